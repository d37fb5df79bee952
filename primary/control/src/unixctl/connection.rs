//! One client of the control socket.

use super::registry::CommandResult;
use crate::jsonrpc::{Framer, Limits, Message};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Instant;

/// A command with its arguments is never near this; a longer one ends the connection.
const LIMITS: Limits = Limits {
    max_bytes: 256 * 1024,
    max_depth: 8,
};
/// Bytes read from one client before the others have their turn.
const READ_TURN: usize = 64 * 1024;

/// What a client asked.
#[derive(Debug, PartialEq)]
pub(super) struct Request {
    pub(super) method: String,
    pub(super) args: Vec<String>,
}

/// A client: its socket, what it has sent so far, what it is still to receive.
///
/// One command at a time: nothing is read while an answer is due or waits to be sent, so a client that does not read
/// holds up only itself and costs one answer of memory.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stream: UnixStream,
    pub(super) last_active: Instant,
    framer: Framer,
    output: Vec<u8>,
    sent: usize,
    /// The id of the request being worked on.
    pending: Option<Value>,
}

impl Connection {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Connection {
            stream,
            last_active: Instant::now(),
            framer: Framer::new(LIMITS),
            output: Vec::new(),
            sent: 0,
            pending: None,
        })
    }

    pub(super) fn wants_write(&self) -> bool {
        self.sent < self.output.len()
    }

    pub(super) fn is_busy(&self) -> bool {
        self.pending.is_some()
    }

    pub(super) fn wants_read(&self) -> bool {
        !self.wants_write() && !self.is_busy()
    }

    /// Whether the client has closed its end, asked while a command is being worked on.
    pub(super) fn has_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(self.stream.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO).is_ok() && fds[0].revents().is_some_and(|r| !r.is_empty())
    }

    /// Reads what is there; an error ends the connection.
    pub(super) fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0u8; 4096];
        let mut total = 0;
        while total < READ_TURN {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    self.last_active = Instant::now();
                    self.framer.push(&buffer[..n]);
                    total += n;
                    if n < buffer.len() {
                        break;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// The next command, when none is being worked on. An error ends the connection.
    pub(super) fn next_request(&mut self) -> Result<Option<Request>, String> {
        if !self.wants_read() {
            return Ok(None);
        }
        let Some(value) = self.framer.next().map_err(|e| e.to_string())? else {
            return Ok(None);
        };
        let Message::Request { id, method, params } =
            Message::from_value(value).map_err(|e| e.to_string())?
        else {
            return Err("a message is not a request".into());
        };
        self.pending = Some(id);
        let args: Option<Vec<String>> = params.iter().map(|p| p.as_str().map(str::to_owned)).collect();
        match args {
            Some(args) => Ok(Some(Request { method, args })),
            None => {
                self.answer(Err(format!("\"{method}\" command has non-string argument")));
                Ok(None)
            }
        }
    }

    /// Queues the answer to the command being worked on.
    pub(super) fn answer(&mut self, result: CommandResult) {
        let Some(id) = self.pending.take() else { return };
        let (result, error) = match result {
            Ok(text) => (json!(text), Value::Null),
            Err(mut text) => {
                if !text.ends_with('\n') {
                    text.push('\n');
                }
                (Value::Null, json!(text))
            }
        };
        self.output = Message::Response { id, result, error }.to_bytes();
        self.sent = 0;
    }

    /// Sends what the client takes. An error ends the connection.
    pub(super) fn write(&mut self) -> io::Result<()> {
        while self.wants_write() {
            match self.stream.write(&self.output[self.sent..]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    self.last_active = Instant::now();
                    self.sent += n;
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.output = Vec::new();
        self.sent = 0;
        Ok(())
    }
}
