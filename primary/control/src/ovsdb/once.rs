//! One transaction over a connection of its own, waiting for the answer.

use super::target::Target;
use crate::jsonrpc::{FrameError, Framer, Limits, Message, MessageError};
use crate::stream::Stream;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

const LIMITS: Limits = Limits {
    max_bytes: 1 << 20,
    max_depth: 64,
};
const ID: i64 = 1;

/// Why a transaction did not come about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OnceError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error("the database refused: {0}")]
    Refused(Value),
    #[error("the database gave no answer in time")]
    TimedOut,
}

/// Runs `operations` in one transaction; gives the result of each.
pub(crate) fn transact(
    target: &Target,
    operations: &[Value],
    timeout: Duration,
) -> Result<Vec<Value>, OnceError> {
    let until = Instant::now() + timeout;
    let mut stream = match target {
        Target::Unix(path) => Stream::unix(path)?,
        Target::Tcp(address) => Stream::tcp(address, timeout)?,
    };
    let mut params = vec![json!(super::DATABASE)];
    params.extend_from_slice(operations);
    let request = Message::request(ID, "transact", params).to_bytes();
    let mut sent = 0;
    while sent < request.len() {
        match stream.write(&request[sent..]) {
            Ok(n) => sent += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => wait(&stream, PollFlags::POLLOUT, until)?,
            Err(e) => return Err(e.into()),
        }
    }
    let mut framer = Framer::new(LIMITS);
    let mut buffer = [0u8; 4096];
    loop {
        while let Some(value) = framer.next()? {
            match Message::from_value(value)? {
                Message::Response { id, result, error } if id == json!(ID) => return outcome(result, error),
                _ => {} // an echo request in so short a time needs no answer
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(n) => framer.push(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => wait(&stream, PollFlags::POLLIN, until)?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn outcome(result: Value, error: Value) -> Result<Vec<Value>, OnceError> {
    match result {
        Value::Array(results) if error.is_null() => {
            match results
                .iter()
                .find(|r| r.get("error").is_some_and(|e| !e.is_null()))
            {
                Some(failed) => Err(OnceError::Refused(failed.clone())),
                None => Ok(results),
            }
        }
        _ => Err(OnceError::Refused(error)),
    }
}

fn wait(stream: &Stream, flags: PollFlags, until: Instant) -> Result<(), OnceError> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(OnceError::TimedOut);
    }
    let timeout = PollTimeout::try_from(left.as_millis().min(60_000) + 1).unwrap_or(PollTimeout::MAX);
    let _ = poll(&mut [PollFd::new(stream.as_fd(), flags)], timeout);
    Ok(())
}
