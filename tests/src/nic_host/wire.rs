//! The far end of a NIC's cable: each frame is a datagram on a Unix socket.

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::frames::Frame;

/// Longest frame that anybody sends here.
const LONGEST: usize = 16 << 10;

/// One cable's far end.
#[derive(Debug)]
pub struct Wire {
    socket: UnixDatagram,
    number: usize,
    near: PathBuf,
    far: PathBuf,
}

impl Wire {
    /// The cable of NIC `number`, with its sockets in `directory`.
    ///
    /// # Panics
    /// If the socket can't be made.
    #[must_use]
    pub fn new(directory: &Path, number: usize) -> Wire {
        let near = directory.join(format!("near{number}"));
        let far = directory.join(format!("far{number}"));
        let socket = UnixDatagram::bind(&far).unwrap_or_else(|e| panic!("{}: {e}", far.display()));
        Wire {
            socket,
            number,
            near,
            far,
        }
    }

    /// QEMU's arguments for it.
    #[must_use]
    pub fn netdev(&self) -> [String; 2] {
        let end = |name: &str, path: &Path| format!("{name}.type=unix,{name}.path={}", path.display());
        let (local, remote) = (end("local", &self.near), end("remote", &self.far));
        [
            "-netdev".to_owned(),
            format!("dgram,id=net{},{local},{remote}", self.number),
        ]
    }

    /// Sends a frame; waits while the NIC has no room for it.
    ///
    /// # Panics
    /// If QEMU is gone.
    #[track_caller]
    pub fn send(&self, frame: &Frame) {
        self.socket
            .send_to(&frame.bytes, &self.near)
            .unwrap_or_else(|e| panic!("{}: {e}", self.near.display()));
    }

    /// The next frame, if one comes within `limit`.
    ///
    /// # Panics
    /// If the socket fails.
    #[must_use]
    pub fn receive(&self, limit: Duration) -> Option<Frame> {
        let mut buffer = [0; LONGEST];
        let limit = limit.max(Duration::from_millis(1));
        self.socket
            .set_read_timeout(Some(limit))
            .expect("a limit above zero");
        match self.socket.recv(&mut buffer) {
            Ok(length) => Some(Frame::new(&buffer[..length])),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            Err(e) => panic!("{}: {e}", self.far.display()),
        }
    }

    /// The next frame that is `wanted`, within `limit`; the others before it are let go.
    #[must_use]
    pub fn receive_where(&self, limit: Duration, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.receive(left) {
                Some(frame) if wanted(&frame) => return Some(frame),
                None => return None,
                Some(_) => {}
            }
        }
    }

    /// Lets go of what has come so far.
    pub fn drain(&self) {
        while self.receive(Duration::from_millis(1)).is_some() {}
    }
}
