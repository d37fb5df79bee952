//! What a switch may leave behind outside its process, and what tests that were killed left.

use std::fs;
use std::path::{Path, PathBuf};

use dpdk_vswitchd::eal_config::default_prefix;
use dpdk_vswitchd::memory;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use vswitch_common::stats::segment_name;

use crate::child::is_dead;

/// Temporary directories are named by this, the test's process id, and something random.
const DIR: &str = "vswitch-test-";

/// Files and processes of a switch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// Hugepage files, EAL's directory, the stats segment, sockets and pid files.
    pub files: Vec<PathBuf>,
    /// Processes that have its run-time directory on their command line.
    pub processes: Vec<(i32, String)>,
}

impl Leftovers {
    /// Those of the switch in `rundir` with file prefix `prefix`. Files of the database and logs stay by design.
    pub fn of(rundir: &Path, prefix: &str) -> Leftovers {
        let mut files = Vec::new();
        for mount in memory::hugepages().into_iter().filter_map(|p| p.mount) {
            files.extend(entries(&mount).into_iter().filter(|p| {
                name_of(p).starts_with(&format!("{prefix}map_")) || name_of(p) == format!("{prefix}.lock")
            }));
        }
        let segment = Path::new("/dev/shm").join(segment_name(prefix).trim_start_matches('/'));
        files.extend([Path::new("/var/run/dpdk").join(prefix), segment]);
        files.extend(entries(rundir).into_iter().filter(|p| !stays(&name_of(p))));
        files.retain(|p| p.symlink_metadata().is_ok());
        Leftovers {
            files,
            processes: processes_naming(&rundir.display().to_string()),
        }
    }

    /// # Panics
    /// If there are any.
    #[track_caller]
    pub fn assert_none(&self) {
        assert_eq!(self, &Leftovers::default(), "left behind by the switch");
    }

    /// Hugepage files among them.
    pub fn hugepage_files(&self) -> usize {
        self.files.iter().filter(|p| name_of(p).contains("map_")).count()
    }

    /// Removes them.
    pub fn remove(&self) {
        for (pid, _) in &self.processes {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        for file in &self.files {
            let _ = if file.is_dir() {
                fs::remove_dir_all(file)
            } else {
                fs::remove_file(file)
            };
        }
    }
}

/// May `name` stay in the run-time directory? The database, its lock, and logs.
fn stays(name: &str) -> bool {
    name.starts_with("conf.db") || name.starts_with(".conf.db") || name.ends_with(".log")
}

/// A new temporary directory, after clearing up behind tests that are dead.
///
/// # Panics
/// If the temporary directory can't be written to.
#[must_use]
pub fn new_dir() -> TempDir {
    sweep();
    tempfile::Builder::new()
        .prefix(&format!("{DIR}{}-", std::process::id()))
        .tempdir()
        .expect("the temporary directory can be written to")
}

/// Removes what killed tests have left: their directories carry the number of a process that is gone.
pub fn sweep() {
    for dir in entries(&std::env::temp_dir()) {
        let name = name_of(&dir);
        let owner = name
            .strip_prefix(DIR)
            .and_then(|rest| rest.split('-').next())
            .and_then(|pid| pid.parse().ok());
        if owner.is_some_and(is_dead) {
            let rundir = dir.join("run");
            let prefix = default_prefix(&rundir);
            Leftovers::of(&rundir, &prefix).remove();
            remove_those_of_guests(&prefix);
            let _ = fs::remove_dir_all(&dir);
        }
    }
}

/// A testpmd beside the switch with file prefix `prefix` has memory of its own, under names that begin with that one.
fn remove_those_of_guests(prefix: &str) {
    let of_guest = |path: &PathBuf| name_of(path).starts_with(&format!("{prefix}-"));
    for file in memory::mounts()
        .flat_map(|mount| entries(&mount))
        .filter(of_guest)
    {
        let _ = fs::remove_file(file);
    }
    for dir in entries(Path::new("/var/run/dpdk")).into_iter().filter(of_guest) {
        let _ = fs::remove_dir_all(dir);
    }
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir)
        .map(|entries| entries.flatten().map(|e| e.path()).collect())
        .unwrap_or_default()
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// Live processes other than this one with `text` on their command line.
fn processes_naming(text: &str) -> Vec<(i32, String)> {
    let own = std::process::id();
    entries(Path::new("/proc"))
        .into_iter()
        .filter_map(|dir| {
            let pid: i32 = name_of(&dir).parse().ok()?;
            let line = fs::read(dir.join("cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            (pid.unsigned_abs() != own && line.contains(text) && !is_dead(pid)).then_some((pid, line))
        })
        .collect()
}
