//! `dpdk-testpmd` with a virtio-user device: a guest without a VM, which listens as QEMU does.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::child::Child;
use crate::prerequisites;
use crate::switch::Switch;
use crate::wait::within;

/// MiB of hugepages of a guest.
const MEMORY_MB: u64 = 64;

/// A running testpmd. Its hugepage files go with it.
#[derive(Debug)]
pub struct Testpmd {
    child: Child,
    input: std::process::ChildStdin,
    prefix: String,
    socket: PathBuf,
}

impl Testpmd {
    /// Starts a guest with `queues` queue pairs that forwards by `mode` (macswap, txonly, rxonly, ...) from its one port
    /// back to it. `more` are arguments of testpmd itself. It starts forwarding when its link is up.
    #[track_caller]
    pub fn start(switch: &Switch, name: &str, queues: u16, mode: &str, more: &[&str]) -> Testpmd {
        prerequisites::program("dpdk-testpmd", "dpdk-dev");
        prerequisites::hugepages(MEMORY_MB);
        let socket = switch.scratch().join(format!("{name}.sock"));
        let prefix = format!("{}-{name}", switch.prefix());
        let log = switch.scratch().join(format!("{name}.log"));
        let out = std::fs::File::create(&log).expect("the scratch directory can be written to");
        let err = out.try_clone().expect("a descriptor can be duplicated");
        let mut command = Command::new("dpdk-testpmd");
        command
            .args(["--no-pci", "--single-file-segments", "--no-telemetry"])
            .arg(format!("--socket-mem={MEMORY_MB}"))
            .arg(format!("--file-prefix={prefix}"))
            .arg(format!(
                "--vdev=net_virtio_user0,path={},server=1,queues={queues},queue_size=256",
                socket.display()
            ))
            .args(["--", "--interactive", "--total-num-mbufs=8192"])
            .args([format!("--rxq={queues}"), format!("--txq={queues}")])
            .arg(format!("--forward-mode={mode}"))
            .arg("--port-topology=loop")
            .args(more)
            .stdin(Stdio::piped())
            .stdout(out)
            .stderr(err)
            .env_remove("RUNTIME_DIRECTORY");
        let mut child = Child::spawn(&mut command, &log);
        let (Some(input), _) = child.pipes() else {
            unreachable!("standard input is a pipe")
        };
        let mut guest = Testpmd {
            child,
            input,
            prefix,
            socket,
        };
        let listens = within(crate::PATIENCE, || {
            guest.socket.exists() || guest.child.ended().is_some()
        });
        assert!(listens && guest.socket.exists(), "testpmd:\n{}", guest.log());
        guest
    }

    /// The vhost-user socket on which it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What it has said so far.
    pub fn log(&self) -> String {
        self.child.log()
    }

    /// Gives it a command at its prompt.
    #[track_caller]
    pub fn command(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap_or_else(|e| panic!("testpmd: {e}\n{}", self.log()));
    }

    /// Waits for its prompt, which comes when a backend has answered, and starts forwarding.
    #[track_caller]
    pub fn forward(&mut self) {
        self.child.wait_for_log("testpmd>");
        self.command("start");
        self.child.wait_for_log("packet forwarding");
    }
}

impl Drop for Testpmd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- testpmd's log ----\n{}", self.log());
        }
        self.child.kill();
        let _ = std::fs::remove_file(&self.socket);
        dpdk_vswitchd::memory::remove_files(&self.prefix);
        let _ = std::fs::remove_dir_all(Path::new("/var/run/dpdk").join(&self.prefix));
    }
}
