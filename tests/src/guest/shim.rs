//! A `dpdk-qemu-shim` between a port of the switch and a vhost-user socket.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;
use vswitch_common::fault::{self, Point};

use crate::child::{Child, children, is_dead};
use crate::programs;
use crate::switch::Switch;

/// A running shim.
#[derive(Debug)]
pub struct Shim {
    child: Child,
    port: u16,
    queues: u16,
    socket: PathBuf,
    rundir: PathBuf,
    log: PathBuf,
    /// Where it dies, if it is doomed.
    fault: Option<String>,
}

impl Shim {
    /// Starts the shim of `port` with `queues` queue pairs, for a frontend that listens at `socket`.
    #[track_caller]
    pub fn start(switch: &Switch, port: u16, queues: u16, socket: &Path) -> Shim {
        let log = switch.scratch().join(format!("shim-{port}.log"));
        let rundir = switch.rundir();
        Shim {
            child: launch(port, queues, socket, &rundir, &log, None),
            port,
            queues,
            socket: socket.to_owned(),
            rundir,
            log,
            fault: None,
        }
    }

    /// Starts it again, dead or alive, as QEMU does when it exits.
    #[track_caller]
    pub fn restart(&mut self) {
        self.child.kill();
        let fault = self.fault.as_deref();
        self.child = launch(
            self.port,
            self.queues,
            &self.socket,
            &self.rundir,
            &self.log,
            fault,
        );
    }

    /// From its next start on it dies when it comes by `point` for the `n`-th time; `None`: no longer.
    pub fn doom(&mut self, at: Option<(Point, u64)>) {
        self.fault = at.map(|(point, n)| format!("{}@{n}", point.name()));
    }

    /// The process that serves the port, a child of [`Shim::process`]; `None` if there is none now.
    pub fn server(&self) -> Option<i32> {
        children(self.child.pid()).into_iter().find(|&pid| !is_dead(pid))
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.child.signal(signal);
    }
}

fn launch(port: u16, queues: u16, socket: &Path, rundir: &Path, log: &Path, fault: Option<&str>) -> Child {
    let mut command = Command::new(programs::shim());
    command
        .args(["--port", &port.to_string(), "--queues", &queues.to_string()])
        .arg("--socket")
        .arg(socket)
        .arg("--rundir")
        .arg(rundir)
        .args(["--log", "info", "--vm-name", &format!("testpmd-{port}")])
        .env_remove("RUNTIME_DIRECTORY")
        .envs(fault.map(|f| (fault::VARIABLE, f)));
    Child::start(&mut command, log)
}

impl Drop for Shim {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- the shim's log ----\n{}", self.child.log());
        }
    }
}
