//! The run-time directory: where the stock tools, the shims and the stats reader find the switch.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// The variable that the stock Open vSwitch tools read.
pub const ENV: &str = "OVS_RUNDIR";

/// The run-time directory of a switch that root starts without saying where.
pub const DEFAULT: &str = "/run/dpdk-vswitchd";

/// The attach socket's file name inside the run-time directory.
pub const ATTACH_SOCKET: &str = "attach.sock";

/// The run-time directory: `explicit`, else `$OVS_RUNDIR`, else `/run/dpdk-vswitchd` for root, else
/// `$XDG_RUNTIME_DIR/dpdk-vswitchd` (`/tmp/dpdk-vswitchd-UID` without one).
pub fn resolve(explicit: Option<&Path>) -> PathBuf {
    if let Some(dir) = explicit {
        return dir.to_owned();
    }
    if let Some(dir) = env::var_os(ENV).filter(|d| !d.is_empty()) {
        return dir.into();
    }
    let uid = nix::unistd::geteuid();
    if uid.is_root() {
        return DEFAULT.into();
    }
    match env::var_os("XDG_RUNTIME_DIR").filter(|d| !d.is_empty()) {
        Some(dir) => PathBuf::from(dir).join("dpdk-vswitchd"),
        None => format!("/tmp/dpdk-vswitchd-{uid}").into(),
    }
}

/// Why a directory is not fit for a switch's sockets.
#[derive(Debug, thiserror::Error)]
pub enum UnfitError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is no directory")]
    NoDirectory,
    #[error(
        "it belongs to user {owner}, who could put sockets in place of the switch's, which runs as user {user}; remove it, or \
         name another one with --rundir"
    )]
    Owner { owner: u32, user: u32 },
    #[error(
        "everybody may write to it (mode {mode:o}), and could put sockets in place of the switch's; take that away with: \
         chmod o-w {}",
        dir.display()
    )]
    Writable { mode: u32, dir: PathBuf },
}

/// Makes the run-time directory (mode 0750) if it is missing, and makes sure that nobody else can put files there: it must be
/// this user's or root's, and not everybody's to write. A group may be let in.
///
/// # Errors
/// It can't be made, or somebody else could.
pub fn prepare(dir: &Path) -> Result<(), UnfitError> {
    fs::DirBuilder::new().recursive(true).mode(0o750).create(dir)?;
    let user = nix::unistd::geteuid().as_raw();
    check(dir, &fs::metadata(dir)?, user)
}

fn check(dir: &Path, meta: &fs::Metadata, user: u32) -> Result<(), UnfitError> {
    let (owner, mode) = (meta.uid(), meta.mode() & 0o7777);
    if !meta.is_dir() {
        Err(UnfitError::NoDirectory)
    } else if owner != user && owner != 0 {
        Err(UnfitError::Owner { owner, user })
    } else if mode & 0o002 != 0 {
        let dir = dir.to_owned();
        Err(UnfitError::Writable { mode, dir })
    } else {
        Ok(())
    }
}

/// The path of the attach socket of the switch that runs in `rundir`.
pub fn attach_socket(rundir: &Path) -> PathBuf {
    rundir.join(ATTACH_SOCKET)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn mode(dir: &Path) -> u32 {
        fs::metadata(dir).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_new_one_is_for_owner_and_group() {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path().join("a/run");
        prepare(&dir).unwrap();
        assert_eq!(mode(&dir) & !0o750, 0);
        prepare(&dir).expect("the second time as well");
    }

    #[test]
    fn everybodys_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for (mode, fit) in [
            (0o700, true),
            (0o755, true),
            (0o770, true),
            (0o757, false),
            (0o1777, false),
        ] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(prepare(dir.path()).is_ok(), fit, "{mode:o}");
        }
        let why = prepare(dir.path()).unwrap_err().to_string();
        assert!(why.contains("mode 1777") && why.contains("chmod o-w /"), "{why}");
    }

    #[test]
    fn another_users_is_refused_and_roots_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let meta = fs::metadata(dir.path()).unwrap();
        assert!(check(dir.path(), &meta, meta.uid()).is_ok());
        let other = check(dir.path(), &meta, meta.uid() + 1);
        assert_eq!(other.is_ok(), meta.uid() == 0, "{other:?}");
        let root = fs::metadata("/").unwrap();
        assert!(check(Path::new("/"), &root, 4243).is_ok());
    }

    #[test]
    fn a_file_is_none() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(prepare(file.path()).is_err());
    }
}
