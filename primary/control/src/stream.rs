//! Sockets that never block, of either family.

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// A socket for `path`, and its address: the standard library has none that does not block from the first.
pub(crate) fn unix_socket(path: &Path) -> io::Result<(OwnedFd, UnixAddr)> {
    let address = UnixAddr::new(path)?;
    let fd = socket(
        AddressFamily::Unix,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        None,
    )?;
    Ok((fd, address))
}

/// Connects without blocking: a listener whose backlog is full gives `WouldBlock` rather than a wait without end.
pub(crate) fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let (fd, address) = unix_socket(path)?;
    connect(fd.as_raw_fd(), &address)?;
    Ok(UnixStream::from(fd))
}

/// A connected stream that does not block.
#[derive(Debug)]
pub(crate) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Stream {
    pub(crate) fn unix(path: &Path) -> io::Result<Self> {
        connect_unix(path).map(Stream::Unix)
    }

    /// Waits up to `timeout` for the connection.
    pub(crate) fn tcp(address: &SocketAddr, timeout: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(address, timeout)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Stream::Tcp(stream))
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(s) => s.read(buffer),
            Stream::Tcp(s) => s.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(s) => s.write(buffer),
            Stream::Tcp(s) => s.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Unix(s) => s.as_fd(),
            Stream::Tcp(s) => s.as_fd(),
        }
    }
}
