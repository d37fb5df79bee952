//! A switch of one's own: real `dpdk-vswitchd`, real `ovsdb-server`, real hugepages.
//!
//! ```no_run
//! let switch = vswitch_tests::Switch::start();
//! switch.vsctl("add-br br0 -- set Bridge br0 datapath_type=dpdk");
//! println!("{}", switch.appctl("memory/show"));
//! switch.stop(); // and nothing may be left behind
//! ```

mod leftovers;
mod numbers;
mod tools;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use dpdk_vswitchd::eal_config::default_prefix;
use nix::sys::signal::Signal;
use tempfile::TempDir;
use vswitch_common::fault::{self, Point};

use crate::child::Child;
use crate::wait::{PATIENCE, within};
use crate::{prerequisites, programs};

pub use leftovers::{Leftovers, new_dir, sweep};

/// MiB of hugepages that a switch gets by default.
pub const MEMORY_MB: u64 = 128;
/// How long a switch may take to end.
const END: Duration = Duration::from_secs(10);

/// How a switch is started.
#[derive(Debug, Clone)]
pub struct Builder {
    memory_mb: u64,
    eal: Vec<String>,
    options: Vec<String>,
    environment: Vec<(String, String)>,
    wrapper: Vec<String>,
}

/// A running switch. When dropped it is ended, and the test fails if anything is left behind.
#[derive(Debug)]
pub struct Switch {
    dir: TempDir,
    prefix: String,
    builder: Builder,
    child: Option<Child>,
    /// From start to "ready".
    start_time: Duration,
}

impl Default for Builder {
    fn default() -> Builder {
        Builder {
            memory_mb: MEMORY_MB,
            eal: Vec::new(),
            options: Vec::new(),
            environment: Vec::new(),
            wrapper: Vec::new(),
        }
    }
}

impl Builder {
    /// MiB of hugepages, in place of [`MEMORY_MB`].
    #[must_use]
    pub fn memory(mut self, mb: u64) -> Builder {
        self.memory_mb = mb;
        self
    }

    /// Adds EAL arguments.
    #[must_use]
    pub fn eal(mut self, args: &[&str]) -> Builder {
        self.eal.extend(args.iter().map(|&a| a.to_owned()));
        self
    }

    /// Adds options behind `--`.
    #[must_use]
    pub fn options(mut self, args: &[&str]) -> Builder {
        self.options.extend(args.iter().map(|&a| a.to_owned()));
        self
    }

    /// Sets a variable in the switch's environment.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Builder {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Starts it by a command that becomes the one behind it (`setpriv ... dpdk-vswitchd ...`).
    #[must_use]
    pub fn wrapper(mut self, words: &[&str]) -> Builder {
        self.wrapper = words.iter().map(|&w| w.to_owned()).collect();
        self
    }

    /// Starts the switch and waits until it is ready.
    ///
    /// # Panics
    /// If it does not get ready, or the machine lacks something.
    #[track_caller]
    pub fn start(self) -> Switch {
        prerequisites::ovs_tools();
        let dir = new_dir();
        let mut switch = Switch {
            prefix: default_prefix(&dir.path().join("run")),
            dir,
            builder: self,
            child: None,
            start_time: Duration::ZERO,
        };
        std::fs::create_dir(switch.rundir()).expect("the directory is new");
        // With the directory there, the same path in its canonical form: that is what the switch goes by.
        switch.prefix = default_prefix(&switch.rundir());
        switch.launch();
        switch
    }
}

impl Switch {
    /// How a switch is started; finish with [`Builder::start`].
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// A switch with nothing configured.
    #[track_caller]
    pub fn start() -> Switch {
        Builder::default().start()
    }

    /// A switch with one bridge `br0` and a client ring port `dpdkrN` for each of `ports`.
    #[track_caller]
    pub fn with_ports(ports: &[u16]) -> Switch {
        let switch = Switch::start();
        switch.add_bridge("br0", ports);
        switch
    }

    /// The command that starts a switch in this one's directories.
    pub fn command(&self) -> Command {
        let mut command = match self.builder.wrapper.split_first() {
            None => Command::new(programs::switch()),
            Some((wrapper, more)) => {
                let mut command = Command::new(wrapper);
                command.args(more).arg(programs::switch());
                command
            }
        };
        command
            .arg(format!("--socket-mem={}", self.builder.memory_mb))
            .args(&self.builder.eal)
            .arg("--")
            .arg("--rundir")
            .arg(self.rundir())
            .args(&self.builder.options)
            .env_remove("OVS_RUNDIR")
            .env_remove("RUNTIME_DIRECTORY")
            .env_remove("NOTIFY_SOCKET")
            .envs(self.builder.environment.iter().map(|(k, v)| (k, v)))
            .current_dir("/");
        command
    }

    /// Starts the process, which must not run, and waits until it is ready.
    #[track_caller]
    fn launch(&mut self) {
        prerequisites::hugepages(self.builder.memory_mb);
        self.restart_at_once();
    }

    /// Starts it again as [`Switch::restart`], even if there are too few free hugepages at this moment.
    #[track_caller]
    pub fn restart_at_once(&mut self) {
        assert!(self.child.is_none(), "the switch runs already");
        let start = Instant::now();
        let seen = self.log().len();
        let mut child = Child::start(&mut self.command(), &self.log_file());
        let ready = format!("export OVS_RUNDIR={}", self.rundir().display());
        let found = within(PATIENCE, || {
            child.ended().is_some() || self.log()[seen..].contains(&ready)
        });
        let ended = child.ended();
        assert!(
            found && ended.is_none(),
            "the switch did not get ready ({ended:?}); its log:\n{}",
            &self.log()[seen..]
        );
        self.start_time = start.elapsed();
        self.child = Some(child);
    }

    /// Starts it again, after its end, with the same directories.
    #[track_caller]
    pub fn restart(&mut self) {
        self.launch();
    }

    /// From its next start on it dies when it comes by `point` for the `n`-th time; `None`: no longer.
    pub fn doom(&mut self, at: Option<(Point, u64)>) {
        let environment = &mut self.builder.environment;
        environment.retain(|(name, _)| name != fault::VARIABLE);
        environment
            .extend(at.map(|(point, n)| (fault::VARIABLE.to_owned(), format!("{}@{n}", point.name()))));
    }

    /// How long its last start took, until it was ready.
    pub fn start_time(&self) -> Duration {
        self.start_time
    }

    /// Process id.
    ///
    /// # Panics
    /// If it does not run.
    pub fn pid(&self) -> i32 {
        self.child.as_ref().expect("the switch runs").pid()
    }

    /// Does it run?
    pub fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|c| c.ended().is_none())
    }

    /// Its run-time directory, OVS_RUNDIR of the tools.
    pub fn rundir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// A directory for the test's own files, beside the run-time directory and as short-lived.
    pub fn scratch(&self) -> &Path {
        self.dir.path()
    }

    /// EAL's file prefix.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The socket that clients attach by.
    pub fn attach_socket(&self) -> PathBuf {
        vswitch_common::rundir::attach_socket(&self.rundir())
    }

    fn log_file(&self) -> PathBuf {
        self.dir.path().join("switch.log")
    }

    /// What it has said so far, over all its starts.
    pub fn log(&self) -> String {
        std::fs::read(self.log_file())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Waits until `text` is in its log.
    ///
    /// # Panics
    /// If that takes longer than [`PATIENCE`].
    #[track_caller]
    pub fn wait_for_log(&self, text: &str) {
        assert!(
            within(PATIENCE, || self.log().contains(text)),
            "{text:?} did not appear; the switch's log:\n{}",
            self.log()
        );
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.child.as_ref().expect("the switch runs").signal(signal);
    }

    /// Waits for its end, which somebody else brings about.
    ///
    /// # Panics
    /// If it goes on.
    #[track_caller]
    pub fn wait_for_end(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("the switch runs");
        child.wait(END)
    }

    /// Kills it by SIGKILL. What it leaves behind stays.
    pub fn kill(&mut self) {
        self.child = None;
    }

    /// Ends it by SIGTERM; it may be started again.
    ///
    /// # Panics
    /// If it does not end well.
    #[track_caller]
    pub fn end(&mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.wait_for_end();
        assert!(
            status.success(),
            "the switch ended with {status}; its log:\n{}",
            self.log()
        );
    }

    /// Ends it by SIGTERM, and checks that nothing is left.
    ///
    /// # Panics
    /// If it does not end well, or something is left behind.
    #[track_caller]
    pub fn stop(mut self) {
        self.end();
        self.leftovers().assert_none();
    }

    /// What there is of it now outside its own process.
    pub fn leftovers(&self) -> Leftovers {
        Leftovers::of(&self.rundir(), &self.prefix)
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- the switch's log ----\n{}", self.log());
            self.child = None;
        } else if let Some(child) = &mut self.child {
            child.signal(Signal::SIGTERM);
            let status = child.wait(END);
            self.child = None;
            let left = self.leftovers();
            left.remove();
            assert!(
                status.success(),
                "the switch ended with {status}:\n{}",
                self.log()
            );
            left.assert_none();
        }
        self.leftovers().remove();
    }
}
