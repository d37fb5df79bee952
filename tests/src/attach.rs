//! The attach socket, message by message, for tests that leave the beaten path.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    self, AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg, send,
};
use vswitch_common::port::message::{Detach, Hello, MAX_LEN, Message, Ready, header};
use zerocopy::IntoBytes;

use crate::wait::PATIENCE;

/// A connection to the attach socket that sends whatever it is told to.
#[derive(Debug)]
pub struct Raw {
    socket: OwnedFd,
    /// Descriptors that came with messages.
    pub descriptors: Vec<OwnedFd>,
}

/// What came from the switch.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)]
pub enum Answer {
    /// A message.
    Message(Message),
    /// The switch closed the connection.
    Closed,
    /// Nothing, for the time given.
    Silence,
}

impl Raw {
    /// Connects to the attach socket at `path`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: &Path) -> nix::Result<Raw> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
        Ok(Raw {
            socket,
            descriptors: Vec::new(),
        })
    }

    /// Sends `bytes` as one packet; false if the switch has closed the connection.
    pub fn send(&self, bytes: &[u8]) -> bool {
        send(self.socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL).is_ok()
    }

    /// Asks for a port as a client of this build does.
    pub fn hello(&self, port: u16, queues: u16, name: &str) -> bool {
        self.send(Hello::new(port, queues, name).as_bytes())
    }

    /// Says that EAL is up.
    pub fn ready(&self) -> bool {
        let ready = Ready {
            header: header::<Ready>(),
        };
        self.send(ready.as_bytes())
    }

    /// Says goodbye.
    pub fn detach(&self) -> bool {
        let detach = Detach {
            header: header::<Detach>(),
        };
        self.send(detach.as_bytes())
    }

    /// The next thing that comes within `limit`.
    ///
    /// # Panics
    /// If it is no message of the protocol.
    pub fn answer_within(&mut self, limit: Duration) -> Answer {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(0) | Err(Errno::EINTR) => return Answer::Silence,
            Ok(_) => {}
            Err(e) => panic!("poll: {e}"),
        }
        let mut bytes = [0u8; MAX_LEN + 1];
        let mut space = nix::cmsg_space!([i32; 32]);
        let mut iov = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let len = match recvmsg::<()>(self.socket.as_raw_fd(), &mut iov, Some(&mut space), flags) {
            Ok(received) => {
                for cmsg in received.cmsgs().expect("there is room for all descriptors") {
                    if let ControlMessageOwned::ScmRights(raw) = cmsg {
                        // SAFETY: the kernel just made these descriptors for this process.
                        let owned = raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
                        self.descriptors.extend(owned);
                    }
                }
                received.bytes
            }
            Err(Errno::ECONNRESET) => 0,
            Err(e) => panic!("attach socket: {e}"),
        };
        if len == 0 {
            return Answer::Closed;
        }
        Answer::Message(Message::parse(&bytes[..len]).unwrap_or_else(|e| panic!("from the switch: {e}")))
    }

    /// The next thing that comes.
    pub fn answer(&mut self) -> Answer {
        self.answer_within(PATIENCE)
    }

    /// The refusal that comes next, reason and text, after which the connection must close.
    ///
    /// # Panics
    /// If something else comes.
    #[track_caller]
    pub fn refusal(mut self) -> (u32, String) {
        let refusal = match self.answer() {
            Answer::Message(Message::Refusal(r)) => (r.reason, r.text.get()),
            other => panic!("not a refusal: {other:?}"),
        };
        assert!(
            matches!(self.answer(), Answer::Closed),
            "the connection stays open after {refusal:?}"
        );
        refusal
    }
}
