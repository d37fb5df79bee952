//! The thread that serves the control socket.

use super::connection::Connection;
use super::registry::Registry;
use super::reply::{Outbox, Reply};
use super::socket::{listen_at, remove_dead_sockets};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Clients at once. One more, and the one that has been silent longest is closed.
const MAX_CONNECTIONS: usize = 64;
/// Commands of one client that are run before the others have their turn.
const COMMANDS_A_TURN: usize = 16;
/// Milliseconds without accepting after accept has failed for want of descriptors.
const ACCEPT_PAUSE_MS: u8 = 100;

/// Why the control socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot listen on {}: {cause}", path.display())]
    Listen { path: PathBuf, cause: io::Error },
    #[error("cannot start the control thread: {0}")]
    Thread(io::Error),
}

/// The running server. Dropped or stopped, it closes every connection and removes its socket.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    outbox: Arc<Outbox>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `<rundir>/ovs-vswitchd.<pid>.ctl`, where `ovs-appctl` looks by default.
    pub fn start(rundir: &Path, registry: Registry) -> Result<Self, StartError> {
        remove_dead_sockets(rundir, "ovs-vswitchd.", ".ctl");
        Self::start_at(
            &rundir.join(format!("ovs-vswitchd.{}.ctl", std::process::id())),
            registry,
        )
    }

    /// Serves a socket at any path (`ovs-appctl -t PATH`).
    pub fn start_at(path: &Path, registry: Registry) -> Result<Self, StartError> {
        let listener = listen_at(path).map_err(|cause| StartError::Listen {
            path: path.to_owned(),
            cause,
        })?;
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)
            .map_err(|e| StartError::Thread(e.into()))?;
        let outbox = Arc::new(Outbox::new(wake));
        let stop = Arc::new(AtomicBool::new(false));
        let worker = Worker {
            listener,
            registry,
            outbox: outbox.clone(),
            stop: stop.clone(),
            connections: BTreeMap::new(),
            again: Vec::new(),
            next_id: 0,
            accepting: true,
        };
        let thread = std::thread::Builder::new()
            .name("unixctl".into())
            .spawn(move || worker.run())
            .map_err(StartError::Thread)?;
        Ok(Server {
            path: path.to_owned(),
            stop,
            outbox,
            thread: Some(thread),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Ends the thread after what is already answered has been offered to its clients.
    pub fn stop(mut self) {
        self.shut_down();
    }

    fn shut_down(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.stop.store(true, Ordering::Release);
        let _ = self.outbox.wake.write(1);
        if thread.join().is_err() {
            log::error!("the control thread panicked");
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shut_down();
    }
}

struct Worker {
    listener: UnixListener,
    registry: Registry,
    outbox: Arc<Outbox>,
    stop: Arc<AtomicBool>,
    connections: BTreeMap<u64, Connection>,
    /// Connections that may have more commands in their buffers, where poll cannot see them.
    again: Vec<u64>,
    next_id: u64,
    /// False for a moment after accept failed for want of descriptors.
    accepting: bool,
}

impl Worker {
    fn run(mut self) {
        loop {
            let stopping = self.stop.load(Ordering::Acquire);
            self.deliver();
            if stopping {
                return; // answers queued before the stop have been offered to the sockets
            }
            let ready = self.wait();
            self.serve(&ready);
        }
    }

    /// Sleeps until something can be done. Gives the connections that can go on; accepts new ones.
    fn wait(&mut self) -> Vec<u64> {
        let mut fds = vec![PollFd::new(self.outbox.wake.as_fd(), PollFlags::POLLIN)];
        let listen = if self.accepting {
            PollFlags::POLLIN
        } else {
            PollFlags::empty()
        };
        fds.push(PollFd::new(self.listener.as_fd(), listen));
        for connection in self.connections.values() {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::POLLOUT, connection.wants_write());
            flags.set(PollFlags::POLLIN, connection.wants_read());
            fds.push(PollFd::new(connection.stream.as_fd(), flags));
        }
        let timeout = match (self.again.is_empty(), self.accepting) {
            (false, _) => PollTimeout::ZERO,
            (true, true) => PollTimeout::NONE,
            (true, false) => PollTimeout::from(ACCEPT_PAUSE_MS),
        };
        let polled = poll(&mut fds, timeout);
        let happened =
            |fd: &PollFd<'_>| polled.is_ok() && fd.revents().is_none_or(|events| !events.is_empty());
        let woken = happened(&fds[0]);
        let incoming = happened(&fds[1]);
        let ready = self
            .connections
            .keys()
            .zip(&fds[2..])
            .filter(|(_, fd)| happened(fd))
            .map(|(id, _)| *id);
        let mut ready: Vec<u64> = ready.collect();
        ready.append(&mut self.again);
        ready.sort_unstable();
        ready.dedup();
        self.accepting = true;
        if woken {
            let _ = self.outbox.wake.read();
        }
        if incoming {
            self.accept();
        }
        ready
    }

    fn accept(&mut self) {
        for _ in 0..MAX_CONNECTIONS {
            let stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                    return;
                }
                Err(e) => {
                    log::debug!("accepting a control connection: {e}");
                    self.accepting = false;
                    return;
                }
            };
            if self.connections.len() >= MAX_CONNECTIONS {
                self.evict();
            }
            if let Ok(connection) = Connection::new(stream) {
                self.connections.insert(self.next_id, connection);
                self.next_id += 1;
            }
        }
    }

    /// Makes room: closes the client that has been silent longest, rather one that waits for nothing.
    fn evict(&mut self) {
        let oldest = self
            .connections
            .iter()
            .min_by_key(|(_, c)| (c.is_busy(), c.last_active))
            .map(|(id, _)| *id);
        if let Some(id) = oldest {
            log::debug!("too many control connections; closing the one silent longest");
            self.connections.remove(&id);
        }
    }

    /// Lets each ready connection go on.
    fn serve(&mut self, ready: &[u64]) {
        for id in ready {
            let Some(connection) = self.connections.get_mut(id) else {
                continue;
            };
            let step = if connection.wants_write() {
                connection.write()
            } else if connection.wants_read() {
                connection.read()
            } else if connection.has_hung_up() {
                Err(io::ErrorKind::BrokenPipe.into())
            } else {
                Ok(())
            };
            if step.is_err() || !self.advance(*id) {
                self.connections.remove(id);
            }
        }
    }

    /// Runs the commands a client has sent; false ends the connection.
    fn advance(&mut self, id: u64) -> bool {
        for _ in 0..COMMANDS_A_TURN {
            let Some(connection) = self.connections.get_mut(&id) else {
                return true;
            };
            match connection.next_request() {
                Ok(Some(request)) => {
                    log::debug!("received command {} {:?}", request.method, request.args);
                    let reply = Reply::new(self.outbox.clone(), id);
                    self.registry.dispatch(&request.method, request.args, reply);
                    self.deliver();
                }
                Ok(None) if connection.wants_write() => {
                    if connection.write().is_err() {
                        return false;
                    }
                    if connection.wants_write() {
                        return true;
                    }
                }
                Ok(None) => return true,
                Err(reason) => {
                    log::warn!("closing a control connection: {reason}");
                    return false;
                }
            }
        }
        self.again.push(id);
        true
    }

    /// Hands finished answers to their clients, as far as these still exist.
    fn deliver(&mut self) {
        for (id, result) in self.outbox.take() {
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.answer(result);
                if connection.write().is_err() {
                    self.connections.remove(&id);
                } else {
                    self.again.push(id);
                }
            }
        }
    }
}
