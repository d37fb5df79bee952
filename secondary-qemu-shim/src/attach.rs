//! Waiting for the switch and attaching to it, on a thread of its own: both block, and QEMU must not notice.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Builder;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};
use vswitch_common::port::client::{AttachError, Attachment, Connection, Turn};
use vswitch_common::port::message::{Hello, Reason};
use vswitch_common::rundir;

use crate::config::Config;
use crate::sandbox::Sandbox;

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
    /// The switch went away or changed its mind after EAL was initialised, which can't be done a second time.
    Lost,
    /// EAL does not start here.
    Failed(String),
    /// EAL was told something that does not fit the switch.
    Misconfigured(String),
}

/// The attach that runs in the background.
#[derive(Debug)]
pub struct Attach {
    progress: Receiver<Progress>,
    wake: Arc<EventFd>,
}

impl Attach {
    /// Starts looking for the switch, on a thread that enters `sandbox` when it has attached.
    ///
    /// # Errors
    /// The process is out of threads or descriptors.
    pub fn start(config: &Config, sandbox: Sandbox) -> io::Result<Attach> {
        let wake = Arc::new(EventFd::from_value_and_flags(
            0,
            EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK,
        )?);
        let (sender, progress) = channel();
        let worker = Worker {
            config: config.clone(),
            sandbox,
            sender,
            wake: Arc::clone(&wake),
            said: HashSet::new(),
            waiting: false,
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

/// Why nobody answers at `path`.
fn no_switch(path: &Path, why: Errno) -> String {
    let path = path.display();
    match why {
        Errno::EACCES | Errno::EPERM => format!(
            "no access to {path}: {}; run the shim as the switch's user or in its group (docs/guide.md, Without root); waiting",
            why.desc()
        ),
        _ => format!("no switch running at {path}; waiting"),
    }
}

/// Is it a switch on its way out that did not answer, or said so?
fn is_ending(why: &AttachError) -> bool {
    match why {
        AttachError::Gone => true,
        AttachError::Refused { reason, .. } => *reason == Reason::ShuttingDown as u32,
        _ => false,
    }
}

/// Does another client hold the port?
fn is_taken(why: &AttachError) -> bool {
    matches!(why, AttachError::Refused { reason, .. } if *reason == Reason::PortTaken as u32)
}

struct Worker {
    config: Config,
    sandbox: Sandbox,
    sender: Sender<Progress>,
    wake: Arc<EventFd>,
    /// What the user has been told already.
    said: HashSet<String>,
    /// The last report was [`Progress::Waiting`].
    waiting: bool,
}

impl Worker {
    fn run(mut self) {
        let turn = loop {
            let (text, pause) = match self.turn() {
                Ok(turn) => break turn,
                Err(AttachError::NoSwitch { path, why }) => (Some(no_switch(&path, why)), LOOK_EVERY),
                // It ends. The next one may be here soon.
                Err(why) if is_ending(&why) => (None, LOOK_EVERY),
                // Most likely the shim that this one takes the place of, on its way out.
                Err(why) if is_taken(&why) => (Some(format!("{why}; waiting for it to end")), LOOK_EVERY),
                Err(why) => (Some(format!("{why}; trying again every second")), ASK_EVERY),
            };
            if let Some(text) = text {
                self.say(text);
            }
            self.report(Progress::Waiting);
            std::thread::sleep(pause);
        };
        self.report(Progress::Attaching);
        let progress = self.init(turn);
        self.report(progress);
    }

    /// Waits until the switch lets this process initialise EAL.
    fn turn(&self) -> Result<Turn, AttachError> {
        let Config {
            port,
            queues,
            vm_name,
            rundir,
            ..
        } = &self.config;
        let hello = Hello::new(*port, *queues, vm_name);
        Connection::open(&rundir::attach_socket(rundir), &hello)?.wait()
    }

    /// Attaches. From here on the switch takes this process for one that may touch its memory: there is no second
    /// try in it.
    fn init(&mut self, turn: Turn) -> Progress {
        if let Some(prefix) = &self.config.eal.file_prefix
            && *prefix != turn.file_prefix()
        {
            let own = turn.file_prefix();
            return Progress::Misconfigured(format!(
                "EAL option --file-prefix={prefix}: the switch has {own}"
            ));
        }
        match turn.init_eal(
            "dpdk-qemu-shim",
            &self.config.eal_args(),
            self.config.eal_start_log(),
        ) {
            // Before the first frame moves.
            Ok(attachment) => match self
                .sandbox
                .confine_others()
                .and_then(|()| self.sandbox.confine_this())
            {
                Ok(()) => Progress::Attached(Box::new(attachment)),
                Err(why) => Progress::Failed(why.to_string()),
            },
            Err(AttachError::Eal(why)) => Progress::Failed(why.to_string()),
            Err(why) => {
                self.say(why.to_string());
                Progress::Lost
            }
        }
    }

    fn report(&mut self, progress: Progress) {
        let waiting = matches!(progress, Progress::Waiting);
        if std::mem::replace(&mut self.waiting, waiting) && waiting {
            return;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Who may not look into the switch's directory is not told that there is no switch.
    #[test]
    fn no_answer_is_told_from_no_access() {
        let text = |why| no_switch(Path::new("/run/attach.sock"), why);
        assert_eq!(
            text(Errno::ENOENT),
            "no switch running at /run/attach.sock; waiting"
        );
        assert_eq!(text(Errno::ECONNREFUSED), text(Errno::ENOENT));
        let denied = text(Errno::EACCES);
        assert!(denied.starts_with("no access to /run/attach.sock: Permission denied; run the shim as"));
    }
}
