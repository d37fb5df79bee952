//! Waiting for the switch and attaching to it, on a thread of its own: both block, and QEMU must not notice.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Builder;
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use vswitch_common::port::client::{AttachError, Attachment, Connection};
use vswitch_common::port::message::Hello;
use vswitch_common::rundir;

use crate::config::Config;

/// Between two looks for a switch.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Between two tries at a switch that said no.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// How far the attach is.
#[derive(Debug)]
pub enum Progress {
    /// There is no switch, or it said no: the port is as good as unplugged.
    Waiting,
    /// A switch answers.
    Attaching,
    /// Done.
    Attached(Box<Attachment>),
    /// EAL can't be initialised a second time: this process has no further try.
    Failed(String),
}

/// The attach that runs in the background.
#[derive(Debug)]
pub struct Attach {
    progress: Receiver<Progress>,
    wake: Arc<EventFd>,
}

impl Attach {
    /// Starts looking for the switch.
    ///
    /// # Errors
    /// The process is out of threads or descriptors.
    pub fn start(config: &Config) -> io::Result<Attach> {
        let wake = Arc::new(EventFd::from_value_and_flags(
            0,
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?);
        let (sender, progress) = channel();
        let worker = Worker {
            config: config.clone(),
            sender,
            wake: Arc::clone(&wake),
            said: HashSet::new(),
        };
        Builder::new().name("attach".into()).spawn(move || worker.run())?;
        Ok(Attach { progress, wake })
    }

    /// The next news, if there are any.
    pub fn next(&self) -> Option<Progress> {
        // Taken before the news are: what comes later rings again.
        let _ = self.wake.read();
        self.progress.try_recv().ok()
    }
}

impl AsFd for Attach {
    /// Readable when there are news.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

struct Worker {
    config: Config,
    sender: Sender<Progress>,
    wake: Arc<EventFd>,
    /// What the user has been told already.
    said: HashSet<String>,
}

impl Worker {
    fn run(mut self) {
        loop {
            let (text, pause) = match self.attempt() {
                Ok(attachment) => return self.report(Progress::Attached(Box::new(attachment))),
                Err(AttachError::NoSwitch { path, .. }) => (
                    format!("no switch running at {}; waiting", path.display()),
                    LOOK_EVERY,
                ),
                Err(AttachError::Eal(why)) => return self.report(Progress::Failed(why.to_string())),
                Err(AttachError::Gone) => (
                    "the switch went away during the attach; waiting".into(),
                    LOOK_EVERY,
                ),
                Err(why) => (format!("{why}; trying again every second"), ASK_EVERY),
            };
            self.say(text);
            self.report(Progress::Waiting);
            std::thread::sleep(pause);
        }
    }

    fn attempt(&self) -> Result<Attachment, AttachError> {
        let Config {
            port,
            queues,
            vm_name,
            rundir,
            eal,
            ..
        } = &self.config;
        let hello = Hello::new(*port, *queues, vm_name);
        let connection = Connection::open(&rundir::attach_socket(rundir), &hello)?;
        let turn = connection.wait()?;
        if let Some(prefix) = &eal.file_prefix
            && *prefix != turn.file_prefix()
        {
            let own = turn.file_prefix();
            return Err(AttachError::Answer(format!(
                "EAL option --file-prefix={prefix}, but the switch has {own}"
            )));
        }
        self.report(Progress::Attaching);
        let attachment = turn.init_eal("dpdk-qemu-shim", &self.config.eal_args())?;
        Ok(attachment)
    }

    fn report(&self, progress: Progress) {
        // A control thread that is gone takes the process along.
        let _ = self.sender.send(progress);
        let _ = self.wake.write(1);
    }

    /// Tells the user, each thing once.
    fn say(&mut self, text: String) {
        if !self.said.contains(&text) {
            eprintln!("dpdk-qemu-shim: port {}: {text}", self.config.port);
            self.said.insert(text);
        }
    }
}
