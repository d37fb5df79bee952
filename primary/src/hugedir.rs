//! The hugetlbfs directories, which other processes use as well: whose files are whose, and who keeps DPDK out.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{major, minor};

use crate::memory;

/// The right to the files of one EAL prefix in all these directories, for as long as it lives. The run-time directory has a lock too, but
/// switches in different containers may have one of the same name each, and share the hugepages.
#[derive(Debug)]
pub struct Claim(Vec<(PathBuf, Flock<File>)>);

impl Claim {
    /// Claims the files of `prefix`.
    ///
    /// # Errors
    /// Another switch has done so.
    pub fn of(prefix: &str) -> Result<Claim, String> {
        Claim::in_dirs(memory::mounts(), prefix)
    }

    fn in_dirs(dirs: impl Iterator<Item = PathBuf>, prefix: &str) -> Result<Claim, String> {
        let mut locks: Vec<(PathBuf, Flock<File>)> = Vec::new();
        for dir in dirs {
            let path = dir.join(format!("{prefix}.lock"));
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path);
            // Where this user may not write, it has no files either.
            let Ok(file) = file else { continue };
            // Two mount points may lead to one directory (a bind mount), and a lock of our own would stand in our way.
            if locks.iter().any(|(_, lock)| is_same(lock, &file)) {
                continue;
            }
            match try_lock(file) {
                Ok(lock) => locks.push((path, lock)),
                Err(Errno::EWOULDBLOCK) => {
                    return Err(format!(
                        "another switch, perhaps in another container, has its hugepages in {} under the same name ({prefix}): \
                         give one of them another --rundir",
                        dir.display()
                    ));
                }
                Err(errno) => log::warn!("{} can't be locked: {errno}", path.display()),
            }
        }
        Ok(Claim(locks))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        for (path, _) in &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

/// Who keeps DPDK from starting: it waits without end for a lock on each of these directories, which any process that can
/// open them may hold. None: nobody does.
pub fn in_the_way() -> Option<String> {
    let dir = memory::mounts().find(|dir| {
        let file = File::open(dir);
        file.is_ok_and(|file| try_lock(file).is_err_and(|errno| errno == Errno::EWOULDBLOCK))
    })?;
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let who = match holder(&locks, &dir) {
        Some(pid) => format!("process {pid} holds"),
        None => "somebody holds".into(),
    };
    Some(format!(
        "{who} the lock on {} that DPDK needs: end that process",
        dir.display()
    ))
}

fn try_lock(file: File) -> Result<Flock<File>, Errno> {
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno)
}

fn is_same(a: &File, b: &File) -> bool {
    let id = |file: &File| file.metadata().map(|at| (at.dev(), at.ino())).ok();
    id(a).is_some_and(|a| id(b) == Some(a))
}

/// The process that holds the lock on `dir`, by the text of /proc/locks (proc_locks(5)).
fn holder(locks: &str, dir: &Path) -> Option<i32> {
    let at = dir.metadata().ok()?;
    let id = format!("{:02x}:{:02x}:{}", major(at.dev()), minor(at.dev()), at.ino());
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [_, "FLOCK", _, _, pid, place, ..] if place == id => pid.parse().ok(),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_with_two_names_is_claimed_once() {
        let dir = tempfile::tempdir().unwrap();
        let names = [dir.path().join("one"), dir.path().join("two")];
        fs::create_dir(&names[0]).unwrap();
        std::os::unix::fs::symlink(&names[0], &names[1]).unwrap();
        let claim = || Claim::in_dirs(names.iter().cloned(), "x");
        let first = claim().unwrap();
        let refusal = claim().unwrap_err();
        assert!(
            refusal.contains("another switch, perhaps in another container"),
            "{refusal}"
        );
        drop(first);
        assert!(!names[0].join("x.lock").exists());
        claim().unwrap();
    }

    #[test]
    fn the_holder_of_a_lock_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let locks = || fs::read_to_string("/proc/locks").unwrap();
        assert_eq!(holder(&locks(), dir.path()), None);
        let lock = try_lock(File::open(dir.path()).unwrap()).unwrap();
        assert_eq!(holder(&locks(), dir.path()), Some(std::process::id() as i32));
        assert!(try_lock(File::open(dir.path()).unwrap()).is_err());
        drop(lock);
        assert_eq!(holder(&locks(), dir.path()), None);
    }
}
