//! The thread that keeps one connection to the database, for ever.

use super::LOCK;
use super::build;
use super::session::{LockState, Session, SessionError};
use super::target::Target;
use super::writer::Writer;
use crate::config::SwitchConfig;
use crate::status::Status;
use crate::stream::Stream;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Pause between attempts to connect: doubles from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// Bytes taken from the socket before what they mean is acted upon.
const READ_TURN: usize = 4 << 20;

/// What the switch hears from the database.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The configuration, complete: the first once the lock is held, then each one that differs from the last. A burst of
    /// changes may give one event.
    Config(SwitchConfig),
    /// We may configure and write. Comes once per connection, before any configuration.
    Locked,
    /// Another process plays ovs-vswitchd on this database. No configuration comes until `Locked`, and nothing is
    /// written. After it the next configuration is sent even if it equals the last.
    NotLocked { lock: &'static str },
    /// No connection; sent once until there is one again. What was configured stays in force.
    Disconnected { reason: String },
}

/// Knobs that tests turn.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Silence after which the server is probed; after twice as much the connection is given up.
    pub probe_interval: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            probe_interval: Duration::from_secs(5),
        }
    }
}

/// A client of one database. Dropped or stopped, its thread has ended.
#[derive(Debug)]
pub struct Client {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// Published and not yet taken by the thread.
    status: Mutex<Option<Status>>,
    stop: AtomicBool,
    wake: EventFd,
}

impl Client {
    /// Starts the thread. `on_event` runs on it and should only pass the event on; while it runs, changes pile up and
    /// then come as one event. Fails only when the system gives no thread or descriptor.
    pub fn start(target: Target, on_event: impl Fn(Event) + Send + 'static) -> io::Result<Self> {
        Self::start_with(target, Options::default(), on_event)
    }

    /// As [`start`](Self::start), with options.
    pub fn start_with(
        target: Target,
        options: Options,
        on_event: impl Fn(Event) + Send + 'static,
    ) -> io::Result<Self> {
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let shared = Arc::new(Shared {
            status: Mutex::new(None),
            stop: AtomicBool::new(false),
            wake,
        });
        let worker = Worker {
            shared: shared.clone(),
            target,
            options,
            on_event,
            writer: Writer::default(),
            last_config: None,
            lock: LockState::Unknown,
            reported_down: false,
        };
        let thread = std::thread::Builder::new()
            .name("ovsdb".into())
            .spawn(move || worker.run())?;
        Ok(Client {
            shared,
            thread: Some(thread),
        })
    }

    /// Hands over what the database should show; never blocks. A status that was not written yet is replaced.
    pub fn publish(&self, status: Status) {
        *self.shared.status.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
        self.shared.wake();
    }

    /// Ends the thread; waits up to the time that a TCP connection attempt takes (1 s), or the callback.
    pub fn stop(mut self) {
        self.shut_down();
    }

    fn shut_down(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake();
        if thread.join().is_err() {
            log::error!("the database thread panicked");
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shut_down();
    }
}

impl Shared {
    fn wake(&self) {
        // Fails only when the counter is full, and then the thread is awake anyway.
        let _ = self.wake.write(1);
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

struct Worker<F> {
    shared: Arc<Shared>,
    target: Target,
    options: Options,
    on_event: F,
    writer: Writer,
    last_config: Option<SwitchConfig>,
    /// As last reported.
    lock: LockState,
    reported_down: bool,
}

impl<F: Fn(Event)> Worker<F> {
    fn run(mut self) {
        let mut backoff = BACKOFF.0;
        while !self.shared.stopping() {
            let mut was_ready = false;
            let ended = match self.connect() {
                Ok(stream) => self.serve(stream, &mut was_ready),
                Err(e) => Err(e.into()),
            };
            let Err(error) = ended else { return };
            if was_ready {
                backoff = BACKOFF.0;
            }
            if !self.reported_down {
                self.reported_down = true;
                log::warn!("{}: {error}; trying again until it works", self.target);
                (self.on_event)(Event::Disconnected {
                    reason: error.to_string(),
                });
            }
            self.pause(backoff);
            backoff = (backoff * 2).min(BACKOFF.1);
        }
    }

    fn connect(&self) -> io::Result<Stream> {
        match &self.target {
            Target::Unix(path) => Stream::unix(path),
            Target::Tcp(address) => Stream::tcp(address, BACKOFF.1),
        }
    }

    /// Sleeps, unless asked to stop.
    fn pause(&mut self, duration: Duration) {
        let until = Instant::now() + duration;
        while !self.shared.stopping() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let mut fds = [PollFd::new(self.shared.wake.as_fd(), PollFlags::POLLIN)];
            let _ = poll(&mut fds, poll_timeout(left));
            self.take_status();
        }
    }

    /// Takes over what was published.
    fn take_status(&mut self) {
        let _ = self.shared.wake.read();
        let status = self
            .shared
            .status
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(status) = status {
            self.writer.publish(status);
        }
    }

    /// Speaks over one connection until it breaks, or until asked to stop (`Ok`).
    fn serve(&mut self, mut stream: Stream, was_ready: &mut bool) -> Result<(), SessionError> {
        let mut session = Session::new(self.options.probe_interval, Instant::now());
        self.writer.reset();
        self.lock = LockState::Unknown;
        loop {
            send(&mut stream, &mut session.output)?;
            let deadline = self.deadline(&session);
            let mut events = PollFlags::POLLIN;
            events.set(PollFlags::POLLOUT, !session.output.is_empty());
            let mut fds = [
                PollFd::new(stream.as_fd(), events),
                PollFd::new(self.shared.wake.as_fd(), PollFlags::POLLIN),
            ];
            let _ = poll(
                &mut fds,
                poll_timeout(deadline.saturating_duration_since(Instant::now())),
            );
            if self.shared.stopping() {
                return Ok(());
            }
            // Read before looking at the clock: after a stop of this process, what is there shows that the server lives.
            receive(&mut stream, &mut session)?;
            let now = Instant::now();
            session.tick(now)?;
            if session.ready && !*was_ready {
                *was_ready = true;
                self.reported_down = false;
                log::info!("connected to the database at {}", self.target);
            }
            self.report(&mut session);
            self.take_status();
            self.write(&mut session, now);
        }
    }

    fn deadline(&self, session: &Session) -> Instant {
        let mut deadline = session.deadline();
        if session.ready
            && session.lock == LockState::Held
            && let Some(at) = self.writer.deadline(&session.replica)
        {
            deadline = deadline.min(at);
        }
        deadline
    }

    /// Tells the switch what changed.
    fn report(&mut self, session: &mut Session) {
        if session.lock != self.lock {
            self.lock = session.lock;
            match self.lock {
                LockState::Held => {
                    (self.on_event)(Event::Locked);
                    session.config_changed = true;
                }
                LockState::Waiting => {
                    log::warn!(
                        "another process plays ovs-vswitchd on {}; waiting for it to end",
                        self.target
                    );
                    self.last_config = None;
                    (self.on_event)(Event::NotLocked { lock: LOCK });
                }
                LockState::Unknown => {}
            }
        }
        if session.ready && self.lock == LockState::Held && std::mem::take(&mut session.config_changed) {
            let config = build::config(&session.replica);
            if self.last_config.as_ref() != Some(&config) {
                self.last_config = Some(config.clone());
                (self.on_event)(Event::Config(config));
            }
        }
    }

    /// Takes note of a finished transaction and starts the next.
    fn write(&mut self, session: &mut Session, now: Instant) {
        if let Some((result, error)) = session.transaction_done.take() {
            self.writer.finished(&result, &error, now);
        }
        if std::mem::take(&mut session.replica_changed) {
            self.writer.replica_changed();
        }
        if session.ready
            && session.lock == LockState::Held
            && let Some(transaction) = self.writer.next(&session.replica, now)
        {
            session.transact(transaction);
        }
    }
}

/// Sends what the socket takes.
fn send(stream: &mut Stream, output: &mut Vec<u8>) -> Result<(), SessionError> {
    let mut sent = 0;
    while sent < output.len() {
        match stream.write(&output[sent..]) {
            Ok(0) => return Err(SessionError::Closed),
            Ok(n) => sent += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    output.drain(..sent);
    Ok(())
}

/// Takes what the socket has.
fn receive(stream: &mut Stream, session: &mut Session) -> Result<(), SessionError> {
    let mut buffer = [0u8; 16384];
    let mut total = 0;
    while total < READ_TURN {
        match stream.read(&mut buffer) {
            Ok(0) => return Err(SessionError::Closed),
            Ok(n) => {
                session.receive(&buffer[..n], Instant::now())?;
                total += n;
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// Rounded up to milliseconds, so as not to wake early and spin.
fn poll_timeout(duration: Duration) -> PollTimeout {
    let ms = duration.as_micros().div_ceil(1000).min(60_000);
    PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX)
}
