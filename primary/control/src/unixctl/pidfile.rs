//! The pid file: found by `ovs-appctl`, and the lock that keeps a second switch out of the same directory.
//!
//! OVS's tools take a pid file for stale unless the process it names holds a POSIX record lock on it, so that is the lock
//! used here. Such locks do not pass to a forked child and end when *any* descriptor of the file is closed in the
//! process: create it after going into the background, and do not open the file elsewhere.

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why there is no pid file.
#[derive(Debug, thiserror::Error)]
pub enum PidfileError {
    #[error("already running as process {pid} (it holds {})", path.display())]
    Held { path: PathBuf, pid: i32 },
    #[error("cannot write pid file {}: {cause}", path.display())]
    Io { path: PathBuf, cause: io::Error },
}

/// A locked pid file; removed when dropped.
#[derive(Debug)]
pub struct Pidfile {
    path: PathBuf,
    file: File,
}

impl Pidfile {
    /// Locks the file and writes our pid into it, unless another live process holds it.
    pub fn create(path: &Path) -> Result<Self, PidfileError> {
        let failed = |cause: io::Error| PidfileError::Io {
            path: path.to_owned(),
            cause,
        };
        // The holder may remove the file between our open and our lock: then the name leads elsewhere, so try again.
        for _ in 0..16 {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .custom_flags(libc::O_NOFOLLOW)
                .open(path)
                .map_err(failed)?;
            if let Some(pid) = lock(&file).map_err(failed)? {
                return Err(PidfileError::Held {
                    path: path.to_owned(),
                    pid,
                });
            }
            if !is_at(&file, path) {
                continue;
            }
            let text = format!("{}\n", std::process::id());
            file.write_all_at(text.as_bytes(), 0).map_err(failed)?;
            file.set_len(text.len() as u64).map_err(failed)?;
            return Ok(Pidfile {
                path: path.to_owned(),
                file,
            });
        }
        Err(failed(io::Error::other("it keeps being replaced")))
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        if is_at(&self.file, &self.path) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The process that holds a record lock on `path`, if any. Closes its own descriptor, so never call it on a file
/// that this process has locked.
pub fn lock_holder(path: &Path) -> Option<i32> {
    let file = OpenOptions::new().read(true).write(true).open(path).ok()?;
    holder(&file).ok().flatten()
}

/// Takes the lock; gives the holder's pid when there is one.
fn lock(file: &File) -> io::Result<Option<i32>> {
    for _ in 0..16 {
        match fcntl(file, FcntlArg::F_SETLK(&write_lock())) {
            Ok(_) => return Ok(None),
            Err(Errno::EACCES | Errno::EAGAIN) => {
                if let Some(pid) = holder(file)? {
                    return Ok(Some(pid));
                } // gone meanwhile
            }
            Err(e) => return Err(e.into()),
        }
    }
    Err(Errno::EAGAIN.into())
}

fn holder(file: &File) -> io::Result<Option<i32>> {
    let mut probe = write_lock();
    fcntl(file, FcntlArg::F_GETLK(&mut probe))?;
    Ok((i32::from(probe.l_type) != libc::F_UNLCK).then_some(probe.l_pid))
}

fn write_lock() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(ours), Ok(there)) => ours.ino() == there.ino() && ours.dev() == there.dev(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_then_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ovs-vswitchd.pid");
        std::fs::write(&path, "999999999 stale and longer\n").unwrap();
        let pidfile = Pidfile::create(&path).unwrap();
        assert_eq!(
            std::fs::read(&path).unwrap(),
            format!("{}\n", std::process::id()).into_bytes()
        );
        drop(pidfile);
        assert!(!path.exists());
    }

    /// Who prints an error prints its sources behind it, and the cause is in its text already.
    #[test]
    fn the_cause_is_said_once() {
        use std::error::Error as _;
        let error = Pidfile::create(Path::new("/none/x.pid")).unwrap_err();
        assert!(error.to_string().contains("/none/x.pid: No such file"), "{error}");
        assert!(error.source().is_none());
    }

    #[test]
    fn a_replaced_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pid");
        let pidfile = Pidfile::create(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "1\n").unwrap();
        drop(pidfile);
        assert!(path.exists());
    }

    #[test]
    fn a_symlink_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, "keep").unwrap();
        let path = dir.path().join("x.pid");
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        assert!(matches!(Pidfile::create(&path), Err(PidfileError::Io { .. })));
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "keep");
    }
}
