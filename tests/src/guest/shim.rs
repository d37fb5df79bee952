//! A `dpdk-qemu-shim` between a port of the switch and a vhost-user socket.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use crate::child::Child;
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
}

impl Shim {
    /// Starts the shim of `port` with `queues` queue pairs, for a frontend that listens at `socket`.
    #[track_caller]
    pub fn start(switch: &Switch, port: u16, queues: u16, socket: &Path) -> Shim {
        let log = switch.scratch().join(format!("shim-{port}.log"));
        let rundir = switch.rundir();
        Shim {
            child: launch(port, queues, socket, &rundir, &log),
            port,
            queues,
            socket: socket.to_owned(),
            rundir,
            log,
        }
    }

    /// Starts it again, dead or alive, as QEMU does when it exits.
    #[track_caller]
    pub fn restart(&mut self) {
        self.child.kill();
        self.child = launch(self.port, self.queues, &self.socket, &self.rundir, &self.log);
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

fn launch(port: u16, queues: u16, socket: &Path, rundir: &Path, log: &Path) -> Child {
    let mut command = Command::new(programs::shim());
    command
        .args(["--port", &port.to_string(), "--queues", &queues.to_string()])
        .arg("--socket")
        .arg(socket)
        .arg("--rundir")
        .arg(rundir)
        .args(["--log", "info", "--vm-name", &format!("testpmd-{port}")])
        .env_remove("RUNTIME_DIRECTORY");
    Child::start(&mut command, log)
}

impl Drop for Shim {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- the shim's log ----\n{}", self.child.log());
        }
    }
}
