//! Child processes that do not outlive the test, and whose output is kept.

use std::fs::{self, File, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{self, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::{PATIENCE, within};

/// A child process. Killed when dropped, or when the thread that started it ends.
#[derive(Debug)]
pub struct Child {
    child: process::Child,
    log: PathBuf,
    status: Option<ExitStatus>,
}

impl Child {
    /// Starts `command` with standard output and error appended to the file `log`.
    ///
    /// # Panics
    /// If it does not start.
    #[track_caller]
    pub fn start(command: &mut Command, log: &Path) -> Child {
        let out = append(log);
        let err = out.try_clone().expect("a descriptor can be duplicated");
        command.stdin(Stdio::null()).stdout(out).stderr(err);
        Self::spawn(command, log)
    }

    /// Starts `command` with the standard streams that it has been given; `log` holds those that go to a file.
    ///
    /// # Panics
    /// If it does not start.
    #[track_caller]
    pub fn spawn(command: &mut Command, log: &Path) -> Child {
        dies_with_us(command);
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Child {
            child,
            log: log.to_owned(),
            status: None,
        }
    }

    /// Process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("process ids are positive")
    }

    /// The child's standard input and output, where they are pipes.
    pub fn pipes(&mut self) -> (Option<process::ChildStdin>, Option<process::ChildStdout>) {
        (self.child.stdin.take(), self.child.stdout.take())
    }

    /// What it has written to its log so far.
    pub fn log(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Waits until its log has `text` in it.
    ///
    /// # Panics
    /// If that does not happen within [`PATIENCE`], or the process ends before.
    #[track_caller]
    pub fn wait_for_log(&mut self, text: &str) {
        let found = within(PATIENCE, || self.log().contains(text) || self.ended().is_some());
        assert!(
            found && self.log().contains(text),
            "{text:?} did not appear; the log:\n{}",
            self.log()
        );
    }

    /// Sends a signal. A process that is dead already does not mind.
    pub fn signal(&self, signal: Signal) {
        let _ = kill(Pid::from_raw(self.pid()), signal);
    }

    /// Its exit status, once it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("a child can be waited for");
        }
        self.status
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it goes on for longer than `limit`.
    #[track_caller]
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let start = Instant::now();
        within(limit, || self.ended().is_some());
        self.status.unwrap_or_else(|| {
            panic!(
                "process {} still runs after {:?}; its log:\n{}",
                self.pid(),
                start.elapsed(),
                self.log()
            )
        })
    }

    /// Kills it by SIGKILL and waits for its end.
    pub fn kill(&mut self) {
        if self.status.is_none() {
            self.signal(Signal::SIGKILL);
            self.status = self.child.wait().ok();
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Has process `pid` ended, with all its threads? One that is dead and not yet collected has.
pub fn is_dead(pid: i32) -> bool {
    // A first thread that has ended is a zombie while others still hold the process's descriptors.
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => threads <= 1 && stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')),
        Err(_) => true,
    }
}

/// Children of process `pid`, dead and not yet collected ones among them.
pub fn children(pid: i32) -> Vec<i32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    let lists = tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists
        .flat_map(|list| list.split_whitespace().flat_map(str::parse).collect::<Vec<i32>>())
        .collect()
}

fn append(path: &Path) -> File {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .unwrap_or_else(|e| panic!("log {}: {e}", path.display()))
}

fn dies_with_us(command: &mut Command) {
    // SAFETY: between fork and exec the closure makes one system call, and neither allocates nor locks.
    unsafe {
        command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?));
    }
}
