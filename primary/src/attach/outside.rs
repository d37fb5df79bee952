//! What the attach server deals with: sockets, the processes behind them, the time.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::socket::{
    self, AddressFamily, Backlog, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, UnixAddr, accept4,
    bind, listen, recv, sendmsg,
};
use nix::sys::stat::{FchmodatFlags, Mode, fchmod, fchmodat};

use super::process::Process;
use crate::cpus;

/// The outside of the attach server. Nothing here blocks.
pub trait Outside {
    type Socket;
    type Process;

    /// The time.
    fn now(&self) -> Instant;

    /// The next new connection.
    ///
    /// # Errors
    /// None waits (EAGAIN), or the process is out of descriptors.
    fn accept(&mut self) -> nix::Result<Self::Socket>;

    /// One packet into `bytes`; returns its length, zero at the end.
    ///
    /// # Errors
    /// None waits (EAGAIN), or the connection is broken.
    fn receive(&mut self, socket: &Self::Socket, bytes: &mut [u8]) -> nix::Result<usize>;

    /// Sends one packet with descriptors; false if the client does not take it.
    fn send(&mut self, socket: &Self::Socket, packet: &[u8], fds: &[BorrowedFd<'_>]) -> bool;

    /// Nothing more is sent on this connection; the client reads its end.
    fn finish(&mut self, socket: &Self::Socket);

    /// The process behind a connection. `None`: the kernel does not tell.
    fn process(&mut self, socket: &Self::Socket) -> Option<Self::Process>;

    /// Its number, for logs.
    fn pid(&self, process: &Self::Process) -> i32;

    /// The NUMA node of the CPUs that it is kept on, if they are of one.
    fn node(&self, process: &Self::Process) -> Option<usize>;

    /// Has it ended?
    fn is_dead(&self, process: &Self::Process) -> bool;

    /// Kills it; false if that is not allowed, or it is dead.
    fn kill(&mut self, process: &Self::Process) -> bool;
}

/// The real one.
#[derive(Debug)]
pub struct Unix {
    listener: OwnedFd,
    path: PathBuf,
    pub(super) clock: fn() -> Instant,
}

impl Unix {
    /// Listens at `path`, in place of a dead switch's socket.
    ///
    /// # Errors
    /// The socket can't be made there.
    pub fn listen(path: &Path) -> nix::Result<Unix> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        // The run-time directory's lock is held, so whoever bound it before is dead.
        let _ = std::fs::remove_file(path);
        // Whatever the umask, there is no moment at which others get in: bind takes the mode from here.
        fchmod(&listener, Mode::from_bits_truncate(0o600))?;
        bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
        // A group of users may be let in by the directory's owner.
        fchmodat(
            AT_FDCWD,
            path,
            Mode::from_bits_truncate(0o660),
            FchmodatFlags::FollowSymlink,
        )?;
        listen(&listener, Backlog::MAXCONN)?;
        Ok(Unix {
            listener,
            path: path.to_owned(),
            clock: Instant::now,
        })
    }

    /// Readable when a connection waits.
    pub fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Outside for Unix {
    type Socket = OwnedFd;
    type Process = Process;

    fn now(&self) -> Instant {
        (self.clock)()
    }

    fn accept(&mut self) -> nix::Result<OwnedFd> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = accept4(self.listener.as_raw_fd(), flags)?;
        // SAFETY: a fresh descriptor that nobody else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    fn receive(&mut self, socket: &OwnedFd, bytes: &mut [u8]) -> nix::Result<usize> {
        recv(socket.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT)
    }

    fn send(&mut self, socket: &OwnedFd, packet: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        loop {
            let iov = [IoSlice::new(packet)];
            match sendmsg::<()>(socket.as_raw_fd(), &iov, control, flags, None) {
                Err(Errno::EINTR) => {}
                result => return result.is_ok(),
            }
        }
    }

    fn finish(&mut self, socket: &OwnedFd) {
        let _ = socket::shutdown(socket.as_raw_fd(), Shutdown::Write);
    }

    fn process(&mut self, socket: &OwnedFd) -> Option<Process> {
        Process::of_peer(socket.as_fd())
    }

    fn pid(&self, process: &Process) -> i32 {
        process.pid()
    }

    fn node(&self, process: &Process) -> Option<usize> {
        cpus::node_of_process(process.pid())
    }

    fn is_dead(&self, process: &Process) -> bool {
        process.is_dead()
    }

    fn kill(&mut self, process: &Process) -> bool {
        process.kill()
    }
}

impl Drop for Unix {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
