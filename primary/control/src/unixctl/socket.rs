//! A listening Unix socket with a narrow mode, and the removal of dead ones.

use crate::stream::{connect_unix, unix_socket};
use nix::sys::socket::{Backlog, bind, listen};
use nix::sys::stat::{Mode, fchmod};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

/// Listens at `path`, not blocking. The mode (0770 less the umask, as OVS) holds from the first moment.
pub(super) fn listen_at(path: &Path) -> io::Result<UnixListener> {
    let (fd, address) = unix_socket(path)?;
    // On Linux the mode of an unbound socket becomes that of its file.
    fchmod(&fd, Mode::from_bits_truncate(0o770))?;
    bind(fd.as_raw_fd(), &address)?;
    listen(&fd, Backlog::new(16)?)?;
    Ok(UnixListener::from(fd))
}

/// Removes sockets `PREFIX*SUFFIX` in `dir` on which nobody listens any more.
pub(crate) fn remove_dead_sockets(dir: &Path, prefix: &str, suffix: &str) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let matches = name
            .to_str()
            .is_some_and(|n| n.starts_with(prefix) && n.ends_with(suffix));
        if matches && is_dead(&entry.path()) {
            log::debug!("removing stale socket {}", entry.path().display());
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn is_dead(path: &Path) -> bool {
    matches!(connect_unix(path), Err(e) if e.kind() == io::ErrorKind::ConnectionRefused)
}
