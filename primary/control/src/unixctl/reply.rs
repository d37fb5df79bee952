//! The one answer to one command, given from any thread.

use super::registry::CommandResult;
use nix::sys::eventfd::EventFd;
use std::sync::{Arc, Mutex, PoisonError};

/// Where a finished answer goes: the server's queue, and the eventfd that wakes it.
#[derive(Debug)]
pub(super) struct Outbox {
    pub(super) wake: EventFd,
    done: Mutex<Vec<(u64, CommandResult)>>,
}

impl Outbox {
    pub(super) fn new(wake: EventFd) -> Self {
        Outbox {
            wake,
            done: Mutex::new(Vec::new()),
        }
    }

    pub(super) fn take(&self) -> Vec<(u64, CommandResult)> {
        std::mem::take(&mut self.done.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn put(&self, connection: u64, result: CommandResult) {
        self.done
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push((connection, result));
        // Fails only when the counter is full, and then the server is awake anyway.
        let _ = self.wake.write(1);
    }
}

/// Answers one command. Dropped without an answer, the client gets an error rather than waiting for ever.
#[derive(Debug)]
pub struct Reply {
    target: Option<(Arc<Outbox>, u64)>,
    #[cfg(test)]
    test: Option<std::sync::mpsc::Sender<CommandResult>>,
}

impl Reply {
    pub(super) fn new(outbox: Arc<Outbox>, connection: u64) -> Self {
        Reply {
            target: Some((outbox, connection)),
            #[cfg(test)]
            test: None,
        }
    }

    #[cfg(test)]
    pub(super) fn for_test() -> (Self, std::sync::mpsc::Receiver<CommandResult>) {
        let (sender, receiver) = std::sync::mpsc::channel();
        (
            Reply {
                target: None,
                test: Some(sender),
            },
            receiver,
        )
    }

    /// The command worked; `text` is printed as it stands.
    pub fn ok(self, text: impl Into<String>) {
        self.send(Ok(text.into()));
    }

    /// The command failed; `ovs-appctl` prints `text` and exits with status 2.
    pub fn err(self, text: impl Into<String>) {
        self.send(Err(text.into()));
    }

    pub fn send(mut self, result: CommandResult) {
        self.finish(result);
    }

    fn finish(&mut self, result: CommandResult) {
        #[cfg(test)]
        if let Some(sender) = self.test.take() {
            let _ = sender.send(result);
            return;
        }
        if let Some((outbox, connection)) = self.target.take() {
            outbox.put(connection, result);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.finish(Err("the switch gave no answer to this command".into()));
    }
}
