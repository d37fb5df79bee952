//! The table of levels, shared by the logger and the control commands.

use super::spec::{DESTINATIONS, Destination, Spec, VlogError, level_name};
use log::LevelFilter;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type PerDestination = [LevelFilter; DESTINATIONS];

/// Levels per module and destination. Clones share one table.
#[derive(Clone, Debug)]
pub struct Levels {
    table: Arc<Mutex<Table>>,
}

#[derive(Debug)]
pub(super) struct Table {
    default: PerDestination,
    modules: BTreeMap<String, PerDestination>,
    file_path: Option<PathBuf>,
    pub(super) file: Option<File>,
}

impl Levels {
    /// `modules` are known from the start; others become known when they first log.
    pub fn new(level: LevelFilter, modules: &[&str]) -> Self {
        let default = [level, LevelFilter::Off, level];
        let modules = modules.iter().map(|m| (m.to_string(), default)).collect();
        Levels {
            table: Arc::new(Mutex::new(Table {
                default,
                modules,
                file_path: None,
                file: None,
            })),
        }
    }

    /// Writes to a file too, from now on.
    pub fn open_file(&self, path: PathBuf) -> Result<(), VlogError> {
        let file = open(&path)?;
        let mut table = self.lock();
        table.file = Some(file);
        table.file_path = Some(path);
        Ok(())
    }

    /// `vlog/reopen`: opens the file anew after it was moved away.
    pub fn reopen(&self) -> Result<(), VlogError> {
        let mut table = self.lock();
        if let Some(path) = &table.file_path {
            table.file = Some(open(path)?);
        }
        Ok(())
    }

    /// `vlog/set`: one spec such as `info`, `bridge:dbg` or `ANY:file:warn`. Also the syntax of an option `-v`.
    pub fn set(&self, spec: &str) -> Result<(), VlogError> {
        let mut table = self.lock();
        let spec = Spec::parse(spec, |word| table.modules.contains_key(word))?;
        let assign = |levels: &mut PerDestination| match spec.destination {
            Some(destination) => levels[destination.index()] = spec.level,
            None => *levels = [spec.level; DESTINATIONS],
        };
        match &spec.module {
            Some(module) => table.modules.get_mut(module).into_iter().for_each(assign),
            None => {
                assign(&mut table.default);
                table.modules.values_mut().for_each(assign);
            }
        }
        let max = table.max();
        drop(table);
        log::set_max_level(max);
        Ok(())
    }

    /// The text of `vlog/list`.
    pub fn list(&self) -> String {
        let mut text = String::from("                 console    syslog    file\n");
        text.push_str("                 -------    ------    ------\n");
        for (module, [console, syslog, file]) in &self.lock().modules {
            let [console, syslog, file] = [console, syslog, file].map(|l| level_name(*l));
            let _ = writeln!(
                text,
                "{module:<16}  {console:>4}       {syslog:>4}       {file:>4}"
            );
        }
        text
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn max(&self) -> LevelFilter {
        self.lock().max()
    }
}

impl Table {
    /// The level of a module for one destination; makes the module known.
    pub(super) fn level(&mut self, module: &str, destination: Destination) -> LevelFilter {
        if let Some(levels) = self.modules.get(module) {
            return levels[destination.index()];
        }
        self.modules.insert(module.to_owned(), self.default);
        self.default[destination.index()]
    }

    fn max(&self) -> LevelFilter {
        let levels = self.modules.values().chain([&self.default]);
        levels.flatten().copied().max().unwrap_or(LevelFilter::Off)
    }
}

fn open(path: &Path) -> Result<File, VlogError> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(path);
    file.map_err(|cause| VlogError::File {
        path: path.display().to_string(),
        cause,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_keeps_its_own_level() {
        let levels = Levels::new(LevelFilter::Info, &["bridge", "ovsdb"]);
        levels.set("bridge:file:dbg").unwrap();
        levels.set("ovsdb:off").unwrap();
        let mut table = levels.lock();
        assert_eq!(table.level("bridge", Destination::File), LevelFilter::Debug);
        assert_eq!(table.level("bridge", Destination::Console), LevelFilter::Info);
        assert_eq!(table.level("new", Destination::Console), LevelFilter::Info);
        drop(table);
        levels.set("console:warn").unwrap();
        assert_eq!(
            levels.list(),
            "                 console    syslog    file\n\
             \x20                -------    ------    ------\n\
             bridge            WARN        OFF        DBG\n\
             new               WARN        OFF       INFO\n\
             ovsdb             WARN        OFF        OFF\n"
        );
        assert!(levels.set("nowhere:dbg").is_err());
    }

    #[test]
    fn reopen_follows_a_moved_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let levels = Levels::new(LevelFilter::Info, &[]);
        levels.open_file(path.clone()).unwrap();
        std::fs::rename(&path, dir.path().join("log.1")).unwrap();
        levels.reopen().unwrap();
        assert!(path.exists());
    }
}
