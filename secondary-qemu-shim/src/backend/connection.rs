//! The connection to the frontend: QEMU listens, this side connects.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use vhost::vhost_user::{BackendReqHandler, Error};

use super::Device;
use crate::port::SwitchPort;

/// Bytes of a vhost-user message's header.
const HEADER: usize = 12;

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
    handler: BackendReqHandler<Mutex<Device<P>>>,
    /// A part of a header has been waiting since then.
    partial_since: Option<Instant>,
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
        let handler = BackendReqHandler::from_stream(socket.try_clone()?, device);
        Ok(Connection {
            socket,
            handler,
            partial_since: None,
        })
    }

    /// Handles the message that waits. Call when the descriptor is readable.
    ///
    /// # Errors
    /// The connection is over.
    pub fn handle(&mut self) -> Result<(), Ended> {
        let mut header = [0; HEADER];
        match recv(
            self.socket.as_raw_fd(),
            &mut header,
            MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT,
        ) {
            Ok(0) => return Err(Ended::Closed),
            Ok(HEADER) => self.partial_since = None,
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
        self.handler.handle_request().map_err(|why| match why {
            Error::Disconnected | Error::SocketBroken(_) => Ended::Closed,
            Error::SocketRetry(_) => Ended::Stalled,
            why => Ended::Message(why),
        })
    }
}

impl<P: SwitchPort + 'static> AsFd for Connection<P> {
    /// Readable when a message waits or the connection is over.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
