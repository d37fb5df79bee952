//! Processes that connect to a socket when told to, and die when told to. The attach server watches, and ends, the
//! process behind each connection: so it takes real ones, which are not the fuzzer itself.
//!
//! A nursery, forked off while there is one thread, forks them; it and they end when their control socket does.

use std::fs::{create_dir, remove_dir_all};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use nix::cmsg_space;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect,
    recvmsg, sendmsg, socket, socketpair,
};
use nix::unistd::{ForkResult, Pid, fork};

const FLAGS: SockFlag = SockFlag::SOCK_CLOEXEC;

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::Unix, SockType::SeqPacket, None, FLAGS).expect("descriptors are left")
}

/// Sends one byte, with a descriptor. False: the other side is gone.
fn give(to: &OwnedFd, descriptor: Option<&OwnedFd>) -> bool {
    let raw = descriptor.map(|fd| [fd.as_raw_fd()]);
    let rights = raw.as_ref().map(|raw| ControlMessage::ScmRights(raw));
    let bytes = [IoSlice::new(&[0])];
    sendmsg::<()>(
        to.as_raw_fd(),
        &bytes,
        rights.as_slice(),
        MsgFlags::MSG_NOSIGNAL,
        None,
    )
    .is_ok()
}

/// Waits for a byte, and the descriptor with it. None: the other side is gone.
fn take(from: &OwnedFd) -> Option<Option<OwnedFd>> {
    let (mut byte, mut space) = ([0], cmsg_space!([i32; 1]));
    let mut bytes = [IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(
        from.as_raw_fd(),
        &mut bytes,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )
    .ok()?;
    let mut descriptors = message.cmsgs().ok()?.filter_map(|c| match c {
        ControlMessageOwned::ScmRights(raw) => raw.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel made it for us; nobody else owns it.
    let descriptor = descriptors.next().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    (message.bytes > 0).then_some(descriptor)
}

/// Where processes come from.
#[derive(Debug)]
pub struct Nursery {
    control: OwnedFd,
    directory: PathBuf,
}

impl Nursery {
    /// To be called while the process has one thread.
    ///
    /// # Panics
    /// If there is no room for one more process.
    pub fn open() -> Nursery {
        let directory = std::env::temp_dir().join(format!("vswitch-fuzz.{}", Pid::this()));
        create_dir(&directory).expect("a directory for the socket");
        let (control, theirs) = pair();
        // SAFETY: there is one thread, so the child may do what any process may.
        match unsafe { fork() }.expect("room for a process") {
            ForkResult::Parent { .. } => Nursery { control, directory },
            ForkResult::Child => {
                drop(control);
                tend(&theirs, &directory.join("socket"));
                let _ = remove_dir_all(directory);
                std::process::exit(0);
            }
        }
    }

    /// Where clients connect.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("socket")
    }

    /// A new process.
    pub fn client(&self) -> Client {
        let (control, theirs) = pair();
        assert!(
            give(&self.control, Some(&theirs)),
            "the nursery lives as long as the fuzzer"
        );
        Client { control }
    }
}

fn tend(control: &OwnedFd, path: &std::path::Path) {
    // SAFETY: no handler is installed; children leave no zombies.
    let _ = unsafe { signal(Signal::SIGCHLD, SigHandler::SigIgn) };
    while let Some(theirs) = take(control) {
        // SAFETY: one thread.
        if let Ok(ForkResult::Child) = unsafe { fork() } {
            let Some(theirs) = theirs else { return };
            while take(&theirs).is_some() {
                let socket = socket(AddressFamily::Unix, SockType::SeqPacket, FLAGS, None).ok();
                let connected = socket.filter(|socket| {
                    UnixAddr::new(path).is_ok_and(|at| connect(socket.as_raw_fd(), &at).is_ok())
                });
                give(&theirs, connected.as_ref());
            }
            std::process::exit(0);
        }
    }
}

/// A process that waits for orders. It ends when this value does.
#[derive(Debug)]
pub struct Client {
    control: OwnedFd,
}

impl Client {
    /// Connects; the connection is the process's own. None: it is dead.
    pub fn connect(&self) -> Option<OwnedFd> {
        give(&self.control, None).then(|| take(&self.control))??
    }
}
