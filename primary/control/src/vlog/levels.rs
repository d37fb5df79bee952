//! The table of levels, shared by the logger and the control commands.

use super::spec::{DESTINATIONS, Destination, Spec, VlogError, level_name};
use log::LevelFilter;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

type PerDestination = [LevelFilter; DESTINATIONS];

/// Makes what else the process prints go to the log file, which has just been opened.
pub type TakeOver = fn(&File) -> io::Result<()>;

/// Levels per module and destination. Clones share one table.
#[derive(Clone, Debug)]
pub struct Levels {
    table: Arc<Mutex<Table>>,
}

#[derive(Debug)]
pub(super) struct Table {
    default: PerDestination,
    modules: BTreeMap<String, PerDestination>,
    /// Where the log file shall be.
    wanted: Option<(PathBuf, TakeOver)>,
    /// It is open, and lines go there and no longer to the console.
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
                wanted: None,
                file: None,
            })),
        }
    }

    /// Lines go to a file at `path`, in place of the console, from the first [`Levels::reopen`] on.
    pub fn log_to(&self, path: PathBuf, take_over: TakeOver) {
        self.lock().wanted = Some((path, take_over));
    }

    /// `vlog/reopen`: opens the file, anew after it was moved away.
    pub fn reopen(&self) -> Result<(), VlogError> {
        let mut table = self.lock();
        let (path, take_over) = table.wanted.as_ref().ok_or(VlogError::NoFile)?;
        table.file = Some(open(path, *take_over)?);
        Ok(())
    }

    /// `vlog/set`: one spec such as `info`, `bridge:dbg` or `ANY:file:warn`. Also the syntax of an option `-v`.
    pub fn set(&self, spec: &str) -> Result<(), VlogError> {
        let mut table = self.lock();
        let spec = Spec::parse(spec, |word| table.modules.contains_key(word))?;
        if spec.destination == Some(Destination::File) && table.wanted.is_none() {
            return Err(VlogError::NoFile);
        }
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

fn open(path: &Path, take_over: TakeOver) -> Result<File, VlogError> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(path);
    let taken_over = file.and_then(|file| take_over(&file).map(|()| file));
    taken_over.map_err(|cause| VlogError::File {
        path: path.display().to_string(),
        cause,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn a_module_keeps_its_own_level() {
        let levels = Levels::new(LevelFilter::Info, &["bridge", "ovsdb"]);
        levels.log_to("log".into(), |_| Ok(()));
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
        levels.log_to(path.clone(), |mut file| file.write_all(b"taken over\n"));
        assert!(!path.exists());
        levels.reopen().unwrap();
        std::fs::rename(&path, dir.path().join("log.1")).unwrap();
        levels.reopen().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "taken over\n");
    }

    #[test]
    fn without_a_file_there_is_nothing_to_set_or_reopen() {
        let levels = Levels::new(LevelFilter::Info, &[]);
        for error in [levels.reopen(), levels.set("ANY:file:dbg")] {
            let text = error.unwrap_err().to_string();
            assert!(text.starts_with("Logging to file not configured"), "{text}");
        }
        levels.set("dbg").unwrap();
    }
}
