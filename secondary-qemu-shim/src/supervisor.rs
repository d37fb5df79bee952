//! A shim that was started by hand serves its port in a child process, and starts another when the switch was gone or the
//! child was killed: EAL can be initialised only once in a program's life, and what a confined process gave up an exec
//! does not bring back. Under QEMU there is no supervisor: QEMU is one.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::{Pid, getppid};

/// Exit code of a served process that wants to be started anew (EX_TEMPFAIL).
pub const RESTART: u8 = 75;

/// Two starts are at least this far apart, and after a crash twice as far each time.
const START_EVERY: Duration = Duration::from_millis(50);
/// But not farther than this; who lived as long did not crash at the start.
const START_EVERY_AT_MOST: Duration = Duration::from_secs(1);

/// Why there is no supervision.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    #[error("starting the process that serves the port: {0}")]
    Start(io::Error),
    #[error("waiting for the process that serves the port: {0}")]
    Wait(io::Error),
    #[error("waiting for signals: {0}")]
    Signals(#[from] Errno),
    #[error("the supervisor is gone")]
    Gone,
}

/// The served process's side: ends when `parent` does, however it does.
///
/// # Errors
/// It has ended already.
pub fn follow(parent: i32) -> Result<(), SupervisorError> {
    set_pdeathsig(Signal::SIGKILL)?;
    if getppid() == Pid::from_raw(parent) {
        Ok(())
    } else {
        Err(SupervisorError::Gone)
    }
}

/// Runs this program with `args` as a child, again and again while it asks for that or is killed; the exit code of the
/// one that ends by itself is this one's.
///
/// # Errors
/// The child can't be started or waited for.
pub fn run(args: &[OsString]) -> Result<ExitCode, SupervisorError> {
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        mask.add(signal);
    }
    mask.thread_block()?;
    let mut signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC)?;
    let mut every = START_EVERY;
    loop {
        let started = Instant::now();
        let mut child = start(args).map_err(SupervisorError::Start)?;
        let (status, told) = wait(&mut child, &mut signals)?;
        let lived = started.elapsed();
        match (status.code(), told) {
            (Some(code), false) if code == RESTART.into() => every = START_EVERY,
            (None, false) => {
                eprintln!(
                    "dpdk-qemu-shim: the process that serves the port ended ({status}); starting another"
                );
                let lasted = lived >= START_EVERY_AT_MOST;
                every = if lasted {
                    START_EVERY
                } else {
                    (every * 2).min(START_EVERY_AT_MOST)
                };
            }
            _ => return Ok(exit_code(status, told)),
        }
        std::thread::sleep(every.saturating_sub(lived));
    }
}

fn start(args: &[OsString]) -> io::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    if let Some((name, rest)) = args.split_first() {
        command.arg0(name).args(rest);
    }
    command
        .arg(format!("--supervisor={}", std::process::id()))
        .spawn()
}

/// Waits for the end of `child`, which is told to end when this process is. True: it was.
fn wait(child: &mut Child, signals: &mut SignalFd) -> Result<(ExitStatus, bool), SupervisorError> {
    let mut told = false;
    loop {
        if let Some(status) = child.try_wait().map_err(SupervisorError::Wait)? {
            return Ok((status, told));
        }
        let signal = match signals.read_signal() {
            Ok(Some(info)) => info.ssi_signo,
            Ok(None) | Err(Errno::EINTR) => continue,
            Err(why) => return Err(why.into()),
        };
        if signal != Signal::SIGCHLD as u32 {
            told = true;
            if let Ok(pid) = i32::try_from(child.id()) {
                // It is not yet collected, so its number is its own.
                let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
            }
        }
    }
}

fn exit_code(status: ExitStatus, told: bool) -> ExitCode {
    match status.code() {
        Some(code) => ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        // Told before it could listen.
        None if told => ExitCode::SUCCESS,
        None => ExitCode::FAILURE,
    }
}
