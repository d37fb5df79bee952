//! What a switch and its clients hold that might become more from one death to the next.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dpdk_vswitchd::memory;

use crate::child::is_dead;
use crate::switch::Switch;
use crate::wait::{PATIENCE, within};

/// Long enough for whoever has just started to have all that it will have.
const REST: Duration = Duration::from_secs(1);

/// Counts, taken from the outside.
#[derive(Debug, PartialEq, Eq)]
pub struct Holdings {
    free_hugepages: u64,
    /// Files in the run-time directory and EAL's, and those of this switch in the hugetlbfs and in shared memory.
    files: BTreeMap<PathBuf, usize>,
    /// Processes that have the run-time directory on their command line.
    processes: usize,
    /// File descriptors and threads of the switch and of the shims that were named.
    descriptors: Vec<usize>,
    threads: Vec<usize>,
}

fn count(dir: &Path, wanted: impl Fn(&str) -> bool) -> usize {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
    names.filter(|name| wanted(name) && !is_dead_ones(name)).count()
}

/// Is `name` a list of memory segments of a dead secondary? The next one that initialises EAL removes it.
fn is_dead_ones(name: &str) -> bool {
    let pid = name
        .strip_prefix("fbarray_memseg")
        .and_then(|rest| rest.rsplit_once('_'));
    pid.and_then(|(_, pid)| pid.parse().ok()).is_some_and(is_dead)
}

impl Holdings {
    fn now(switch: &Switch, shims: &[i32]) -> Holdings {
        let pages = memory::hugepages();
        let mounts = pages.iter().filter_map(|p| p.mount.clone());
        let shared = mounts.chain(["/dev/shm".into(), "/var/run/dpdk".into()]);
        let own = [switch.rundir(), Path::new("/var/run/dpdk").join(switch.prefix())];
        let files = shared.map(|dir| (count(&dir, |name| name.contains(switch.prefix())), dir));
        let files = files.chain(own.map(|dir| (count(&dir, |_| true), dir)));
        let in_proc = |what: &str| {
            let pids = std::iter::once(switch.pid()).chain(shims.iter().copied());
            let dirs = pids.map(|pid| PathBuf::from(format!("/proc/{pid}/{what}")));
            dirs.map(|dir| count(&dir, |_| true)).collect()
        };
        Holdings {
            free_hugepages: pages.iter().map(|p| p.free).sum(),
            files: files.map(|(n, dir)| (dir, n)).collect(),
            processes: switch.leftovers().processes.len(),
            descriptors: in_proc("fd"),
            threads: in_proc("task"),
        }
    }

    /// What is held by `switch` and the processes `shims`, a moment from now.
    pub fn at_rest(switch: &Switch, shims: &[i32]) -> Holdings {
        std::thread::sleep(REST);
        Holdings::now(switch, shims)
    }

    /// Waits until as much is held as then.
    ///
    /// # Panics
    /// If that does not come about.
    #[track_caller]
    pub fn assert_same(&self, switch: &Switch, shims: &[i32]) {
        let mut now = None;
        let same = within(PATIENCE, || now.insert(Holdings::now(switch, shims)) == self);
        assert!(same, "held now, and before:\n{:#?}\n{self:#?}", now.as_ref());
    }
}
