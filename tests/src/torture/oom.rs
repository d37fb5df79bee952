//! A memory control group, so that a client can be killed for want of memory and nobody else is.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Beyond this a member of the group is killed.
const LIMIT: u64 = 64 << 20;

/// Where control groups are mounted by convention, with the names of the limits: version 2, then version 1.
const VERSIONS: [(&str, &str, &str); 2] = [
    ("/sys/fs/cgroup", "memory.max", "memory.swap.max"),
    (
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.memsw.limit_in_bytes",
    ),
];

/// A group with a limit. Removed when dropped, if nobody lives in it any more.
#[derive(Debug)]
pub struct Group(PathBuf);

impl Group {
    /// Makes a group. `None` where the kernel, or who set up this machine, does not let us.
    pub fn new(name: &str) -> Option<Group> {
        VERSIONS.into_iter().find_map(|(mount, limit, with_swap)| {
            let group =
                Group(Path::new(mount).join(format!("vswitch-torture-{}-{name}", std::process::id())));
            fs::create_dir(&group.0).ok()?;
            // A directory of the other version's, or of no cgroup at all, has no such file.
            let mut file = OpenOptions::new().write(true).open(group.0.join(limit)).ok()?;
            file.write_all(LIMIT.to_string().as_bytes()).ok()?;
            let swap = if limit == "memory.max" { 0 } else { LIMIT };
            // Not there where swap is not counted.
            if let Ok(mut file) = OpenOptions::new().write(true).open(group.0.join(with_swap)) {
                let _ = file.write_all(swap.to_string().as_bytes());
            }
            Some(group)
        })
    }

    /// Moves process `pid` into it. What it has is not counted, what it takes from now on is.
    ///
    /// # Panics
    /// If that is refused.
    #[track_caller]
    pub fn take_in(&self, pid: i32) {
        fs::write(self.0.join("cgroup.procs"), pid.to_string()).unwrap_or_else(|e| panic!("{self:?}: {e}"));
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}
