//! The connection to the frontend: QEMU listens, this side connects.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::MsgFlags;
use vhost::vhost_user::message::MAX_ATTACHED_FD_ENTRIES;
use vhost::vhost_user::{BackendReqHandler, Error, VhostUserBackendReqHandlerMut};
use vswitch_common::descriptors;

use super::Device;
use crate::port::SwitchPort;

/// Bytes of a vhost-user message's header: request, flags, size of the payload, four each.
const HEADER: usize = 12;
/// Bytes of the longest message that this module looks into, which is `SET_VRING_ADDR`; and 32-bit words.
const LOOK: usize = HEADER + 40;
const LOOK_WORDS: usize = LOOK / 4;
/// Requests that this module looks at itself.
const SET_FEATURES: u32 = 2;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_ENABLE: u32 = 18;
/// Header flags: version 1, this is a reply, a reply is wanted.
const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// How long a message may take to arrive whole.
const MESSAGE_TIME: Duration = Duration::from_secs(1);

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
pub enum Ended {
    #[error("the frontend closed the connection")]
    Closed,
    #[error("the frontend's message: {0}")]
    Message(Error),
    #[error("a message that did not arrive whole")]
    Stalled,
    #[error("the frontend's socket: {0}")]
    Socket(Errno),
}

/// An open connection.
pub struct Connection<P: SwitchPort + 'static> {
    socket: UnixStream,
    device: Arc<Mutex<Device<P>>>,
    handler: BackendReqHandler<Mutex<Device<P>>>,
    /// A part of a header has been waiting since then.
    partial_since: Option<Instant>,
    /// The frontend has set the device's features.
    features_set: bool,
}

impl<P: SwitchPort + 'static> Connection<P> {
    /// Serves the frontend at the other end of `socket`, for it to set up `device`.
    ///
    /// # Errors
    /// The socket can't be used.
    pub fn new(socket: UnixStream, device: Arc<Mutex<Device<P>>>) -> io::Result<Connection<P>> {
        socket.set_nonblocking(false)?;
        // The control thread has other things to do than to wait for half a message.
        socket.set_read_timeout(Some(MESSAGE_TIME))?;
        socket.set_write_timeout(Some(MESSAGE_TIME))?;
        let handler = BackendReqHandler::from_stream(socket.try_clone()?, device.clone());
        Ok(Connection {
            socket,
            device,
            handler,
            partial_since: None,
            features_set: false,
        })
    }

    /// Handles the message that waits. Call when the descriptor is readable.
    ///
    /// # Errors
    /// The connection is over.
    pub fn handle(&mut self) -> Result<(), Ended> {
        let mut message = [0; LOOK];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        match descriptors::receive(&self.socket, &mut message, flags) {
            Ok((0, _)) => return Err(Ended::Closed),
            // The message library has no room for more, and would wait for another header for ever.
            Ok((_, files)) if files.len() > MAX_ATTACHED_FD_ENTRIES => {
                return Err(Ended::Message(Error::IncorrectFds));
            }
            Ok((HEADER.., _)) => self.partial_since = None,
            Ok(_) => {
                if self.partial_since.get_or_insert_with(Instant::now).elapsed() > MESSAGE_TIME {
                    return Err(Ended::Stalled);
                }
                std::thread::sleep(Duration::from_millis(1));
                return Ok(());
            }
            Err(Errno::EAGAIN | Errno::EINTR) => return Ok(()),
            Err(Errno::ECONNRESET) => return Err(Ended::Closed),
            Err(why) => return Err(Ended::Socket(why)),
        }
        let message: [u32; LOOK_WORDS] = words(&message);
        match message[0] {
            SET_VRING_ENABLE if !self.features_set => return self.enable_early(),
            SET_VRING_ADDR if is_misaligned(&message) => return self.misplace(),
            _ => {}
        }
        let request = message[0];
        self.features_set |= request == SET_FEATURES;
        self.handler.handle_request().map_err(|why| match why {
            Error::Disconnected | Error::SocketBroken(_) => Ended::Closed,
            Error::SocketRetry(_) => Ended::Stalled,
            why => Ended::Message(why),
        })?;
        self.device().answered();
        Ok(())
    }
}

impl<P: SwitchPort + 'static> Connection<P> {
    /// QEMU enables a netdev's rings before it has set features, which the message library takes for an error.
    fn enable_early(&mut self) -> Result<(), Ended> {
        let [request, flags, size, index, enable] = self.take()?;
        if size != 8 {
            return Err(Ended::Message(Error::InvalidMessage));
        }
        self.device()
            .set_vring_enable(index, enable != 0)
            .map_err(Ended::Message)?;
        self.acknowledge(request, flags)
    }

    /// The guest's driver chose addresses that no ring can have, and QEMU hands them on. For the message library that is the end of
    /// the connection, and QEMU would make another one, and so on.
    fn misplace(&mut self) -> Result<(), Ended> {
        let [request, flags, _, index, ..]: [u32; LOOK_WORDS] = self.take()?;
        self.device().misplace(index).map_err(Ended::Message)?;
        self.acknowledge(request, flags)
    }

    /// Takes a message of so many words.
    fn take<const N: usize>(&mut self) -> Result<[u32; N], Ended> {
        let mut message = [0; LOOK];
        let message = &mut message[..4 * N];
        self.socket.read_exact(message).map_err(|_| Ended::Stalled)?;
        Ok(words(message))
    }

    /// Says that it is done, where the frontend asked for that.
    fn acknowledge(&mut self, request: u32, flags: u32) -> Result<(), Ended> {
        if flags & NEED_REPLY == 0 {
            return Ok(());
        }
        let reply = [request, VERSION | REPLY, 8, 0, 0].map(u32::to_ne_bytes);
        self.socket
            .write_all(reply.as_flattened())
            .map_err(|_| Ended::Closed)
    }

    fn device(&self) -> MutexGuard<'_, Device<P>> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Is this a whole `SET_VRING_ADDR` with descriptors not at a multiple of 16, a used part not at one of 4, or an available
/// part not at one of 2 (virtio 1.2 §2.7, as the message library has it for packed rings as well)?
fn is_misaligned(message: &[u32; LOOK_WORDS]) -> bool {
    let [_, _, size, _, _, descriptors, _, used, _, available, ..] = *message;
    size as usize == LOOK - HEADER && (descriptors % 16, used % 4, available % 2) != (0, 0, 0)
}

/// The first words of a message, in host byte order as the protocol has them.
fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let mut words = [0; N];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *word = u32::from_ne_bytes(*bytes);
    }
    words
}

impl<P: SwitchPort + 'static> AsFd for Connection<P> {
    /// Readable when a message waits or the connection is over.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
