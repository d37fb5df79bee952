//! The control thread: connects to the frontend, attaches to the switch, tells the carrier, and ends when it should.

use std::io;
use std::os::fd::{AsFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use vswitch_common::port::client::{Attachment, Event, QueuePair};

use crate::attach::{Attach, Progress};
use crate::backend::{Connection, Device, DeviceError, Ended};
use crate::carrier::Carrier;
use crate::config::{Config, Frontend};
use crate::inherited;
use crate::sandbox::{Sandbox, SandboxError};

/// How long QEMU may take to stop the virtqueues before its shim ends: it could not start another one meanwhile.
const STOP_TIME: Duration = Duration::from_secs(1);
/// Between two tries to connect to the frontend.
const CONNECT_EVERY: Duration = Duration::from_millis(100);

/// How the service ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Nothing left to do.
    Done,
    /// The switch is gone, and EAL can't be initialised twice: a new process goes on.
    Restart,
}

/// Why the service could not go on.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    #[error("--carrier-fd {fd}: {why}")]
    Carrier { fd: RawFd, why: io::Error },
    #[error("--socket-fd {fd}: {why}")]
    Socket { fd: RawFd, why: io::Error },
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error("starting to look for the switch: {0}")]
    Attach(io::Error),
    #[error("waiting for signals: {0}")]
    Signals(Errno),
    #[error("port {port}: {why}")]
    Eal { port: u16, why: String },
    #[error("port {port}: {why}")]
    Misconfigured { port: u16, why: String },
    #[error("waiting for events: {0}")]
    Poll(Errno),
}

/// Serves the port until the frontend, the switch or a signal ends it.
///
/// # Errors
/// Its text is for the user.
pub fn run(config: &Config) -> Result<Ending, ServiceError> {
    // Before any thread starts: all of them inherit the mask.
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGTERM);
    mask.add(Signal::SIGINT);
    mask.thread_block().map_err(ServiceError::Signals)?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .map_err(ServiceError::Signals)?;
    let sandbox = if config.sandbox {
        Sandbox::prepare(matches!(config.frontend, Frontend::Path(_)))?
    } else {
        Sandbox::off()
    };
    let pipe = config
        .carrier_fd
        .map(|fd| inherited::take(fd).map_err(|why| ServiceError::Carrier { fd, why }));
    let mut carrier = Carrier::new(pipe.transpose()?);
    carrier.set(false);
    let device = Device::new(config.port, config.queues, &config.eal)?;
    sandbox.confine_others()?;
    // This thread starts before its parent is confined: EAL needs more than the rest.
    let attach = Attach::start(config, sandbox).map_err(ServiceError::Attach)?;
    let device = Arc::new(Mutex::new(device));
    let frontend = match config.frontend {
        Frontend::Path(_) => None,
        Frontend::Fd(fd) => {
            let connected =
                inherited::take(fd).and_then(|fd| Connection::new(fd.into(), Arc::clone(&device)));
            Some(connected.map_err(|why| ServiceError::Socket { fd, why })?)
        }
    };
    sandbox.confine_this()?;
    let mut service = Service {
        config,
        carrier,
        signals,
        device,
        frontend,
        next_connect: Instant::now(),
        refused: None,
        attach,
        attachment: None,
    };
    let ending = service.serve();
    service.end();
    ending
}

struct Service<'c> {
    config: &'c Config,
    carrier: Carrier,
    signals: SignalFd,
    device: Arc<Mutex<Device<QueuePair>>>,
    frontend: Option<Connection<QueuePair>>,
    next_connect: Instant,
    /// Why the frontend could not be connected to, as far as the user has been told.
    refused: Option<io::ErrorKind>,
    attach: Attach,
    attachment: Option<Attachment>,
}

/// What woke the control thread.
#[derive(Debug, Clone, Copy, Default)]
struct Woken {
    signal: bool,
    attach: bool,
    carrier: bool,
    frontend: bool,
    attachment: bool,
}

impl Service<'_> {
    fn device(&self) -> MutexGuard<'_, Device<QueuePair>> {
        // Only this thread locks it; a panic ends the process.
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&mut self) -> Result<Ending, ServiceError> {
        loop {
            self.connect();
            let woken = self.wait()?;
            if woken.signal || woken.carrier {
                return Ok(Ending::Done);
            }
            if woken.attachment
                && let Some(ending) = self.switch_says()
            {
                return Ok(ending);
            }
            if woken.attach {
                while let Some(progress) = self.attach.next() {
                    if let Some(ending) = self.attach_went(progress)? {
                        return Ok(ending);
                    }
                }
            }
            if woken.frontend
                && let Some(ending) = self.frontend_says()
            {
                return Ok(ending);
            }
        }
    }

    /// Connects to the frontend, if there is one to connect to and it is time.
    fn connect(&mut self) {
        let config = self.config;
        let Frontend::Path(path) = &config.frontend else {
            return;
        };
        if self.frontend.is_some() || Instant::now() < self.next_connect {
            return;
        }
        self.next_connect = Instant::now() + CONNECT_EVERY;
        match UnixStream::connect(path).and_then(|socket| Connection::new(socket, Arc::clone(&self.device))) {
            Ok(connection) => {
                log::info!("connected to the frontend at {}", path.display());
                self.frontend = Some(connection);
                self.refused = None;
            }
            Err(why) => self.not_connected(path, &why),
        }
    }

    /// There is no frontend yet, which is nothing to speak of; or there is, and something is in the way.
    fn not_connected(&mut self, path: &Path, why: &io::Error) {
        let kind = why.kind();
        if matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
            log::trace!("no frontend at {} yet: {why}", path.display());
        } else if self.refused.replace(kind) != Some(kind) {
            let way_out = match kind {
                io::ErrorKind::PermissionDenied => {
                    "; this process needs a user or a group that may write to it: it has no capability, not even as root"
                }
                _ => "",
            };
            self.say(&format!(
                "no connection to {}: {why}{way_out}; trying on",
                path.display()
            ));
        }
    }

    fn wait(&self) -> Result<Woken, ServiceError> {
        let timeout = match &self.frontend {
            Some(_) => PollTimeout::NONE,
            None => {
                let left = self.next_connect.saturating_duration_since(Instant::now());
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            }
        };
        let optional = [
            // Nothing to read there: an error condition tells that the reader is gone.
            (self.carrier.fd(), PollFlags::empty()),
            (self.frontend.as_ref().map(AsFd::as_fd), PollFlags::POLLIN),
            (self.attachment.as_ref().map(AsFd::as_fd), PollFlags::POLLIN),
        ];
        let mut fds = vec![
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.attach.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(
            optional
                .iter()
                .filter_map(|&(fd, flags)| Some(PollFd::new(fd?, flags))),
        );
        match poll(&mut fds, timeout) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Woken::default()),
            Err(why) => return Err(ServiceError::Poll(why)),
        }
        let mut ready = fds.iter().map(|fd| fd.any() != Some(false));
        let mut next = |present: bool| present && ready.next().unwrap_or(false);
        Ok(Woken {
            signal: next(true),
            attach: next(true),
            carrier: next(optional[0].0.is_some()),
            frontend: next(optional[1].0.is_some()),
            attachment: next(optional[2].0.is_some()),
        })
    }

    fn attach_went(&mut self, progress: Progress) -> Result<Option<Ending>, ServiceError> {
        match progress {
            Progress::Waiting => self.device().set_unplugged(true),
            Progress::Attaching => self.device().set_unplugged(false),
            Progress::Lost => return Ok(Some(self.without_switch())),
            Progress::Misconfigured(why) => {
                return Err(ServiceError::Misconfigured {
                    port: self.config.port,
                    why,
                });
            }
            Progress::Failed(why) => {
                return Err(ServiceError::Eal {
                    port: self.config.port,
                    why,
                });
            }
            Progress::Attached(mut attachment) => {
                log::info!("attached to the switch");
                let queue_pairs = attachment.take_queue_pairs();
                let (got, wanted) = (queue_pairs.len(), usize::from(self.config.queues));
                if got != wanted {
                    let why = format!("the switch gives {got} queue pairs where {wanted} were asked for");
                    return Err(ServiceError::Eal {
                        port: self.config.port,
                        why,
                    });
                }
                self.device().attach(queue_pairs);
                self.carrier.set(attachment.carrier());
                self.attachment = Some(*attachment);
            }
        }
        Ok(None)
    }

    /// The switch is gone, or has no place for this client any more.
    fn without_switch(&mut self) -> Ending {
        self.leave_switch();
        if self.config.is_child() {
            self.let_frontend_stop();
        }
        if self.config.is_child() || self.config.once {
            Ending::Done
        } else {
            Ending::Restart
        }
    }

    /// QEMU, told that the carrier is down, stops the virtqueues. When this process ends before that, QEMU does not learn
    /// where they stopped, and complains of each.
    fn let_frontend_stop(&mut self) {
        let until = Instant::now() + STOP_TIME;
        while self.device().has_started() && Instant::now() < until {
            let Some(frontend) = &mut self.frontend else {
                return;
            };
            let left = until.saturating_duration_since(Instant::now());
            let mut fds = [
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(frontend.as_fd(), PollFlags::POLLIN),
            ];
            let ready = poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO));
            let is_ready = |fd: &PollFd<'_>| fd.any() != Some(false);
            let (signal, message) = (is_ready(&fds[0]), is_ready(&fds[1]));
            match ready {
                Err(Errno::EINTR) => continue,
                Ok(1..) if message && !signal => {}
                _ => return,
            }
            if frontend.handle().is_err() {
                return;
            }
        }
    }

    /// The attach socket is readable.
    fn switch_says(&mut self) -> Option<Ending> {
        match self.attachment.as_mut()?.next_event() {
            Event::State { carrier, .. } => {
                self.carrier.set(carrier);
                return None;
            }
            Event::Evicted { text, .. } => self.say(&text),
            Event::SwitchGone => log::info!("the switch is gone"),
        }
        Some(self.without_switch())
    }

    /// The frontend's socket is readable.
    fn frontend_says(&mut self) -> Option<Ending> {
        let ended = self.frontend.as_mut()?.handle().err()?;
        match ended {
            Ended::Closed => log::info!("{ended}"),
            _ => self.say(&format!("{ended}; the connection ends")),
        }
        self.disconnect();
        self.config.is_child().then_some(Ending::Done)
    }

    /// The virtqueues first: a frontend that sees the connection end goes on with them itself.
    fn disconnect(&mut self) {
        self.device().disconnect();
        self.frontend = None;
    }

    fn say(&self, text: &str) {
        eprintln!("dpdk-qemu-shim: port {}: {text}", self.config.port);
    }

    /// Carrier down, nothing of the switch's touched any more, the switch told.
    fn leave_switch(&mut self) {
        self.carrier.set(false);
        self.device().detach();
        if let Some(attachment) = self.attachment.take() {
            attachment.detach();
        }
    }

    /// Leaves everything as it should be found: as without a switch, and virtqueues stopped.
    fn end(mut self) {
        self.leave_switch();
        self.disconnect();
    }
}
