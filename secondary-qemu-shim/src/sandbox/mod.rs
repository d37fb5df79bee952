//! The sandbox: what a shim can still do when a guest or a frontend has taken it over.
//!
//! A confined thread has no capability, can't open a file by name, start a program or a thread, or make any system call
//! that is not listed in `syscalls.rs`. The control thread and the pumps are confined before the first message of the
//! frontend is read. The attach thread has to start EAL, which opens the switch's memory; it confines itself and EAL's
//! threads before it reports the attach, and no frame moves before that. There is no way back: the filters survive an
//! exec, so what has to start anew does so from outside (see [`supervisor`](crate::supervisor)).

mod files;
mod filter;
mod others;
mod syscalls;
mod thread;

use std::collections::BTreeSet;
use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::errno::Errno;
use seccompiler::BackendError;

use filter::Filters;
use thread::{Confinement, Step};

/// Why a process is not confined.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("sandbox: the kernel does not rule out new privileges: {0}")]
    NoNewPrivileges(Errno),
    #[error("sandbox: the list of system calls: {0}")]
    Filter(#[from] BackendError),
    #[error("sandbox: landlock: {0}")]
    Ruleset(#[from] landlock::RulesetError),
    #[error("sandbox: {0} are not given up: {1}")]
    Step(&'static str, io::Error),
    #[error("sandbox: looking for threads: {0}")]
    Threads(io::Error),
    #[error("sandbox: interrupting threads: {0}")]
    Signal(Errno),
    #[error("sandbox: thread {0} does not answer")]
    Deaf(i32),
}

impl SandboxError {
    fn step(step: i32, errno: i32) -> SandboxError {
        const CAPABILITIES: i32 = Step::Capabilities as i32;
        const FILES: i32 = Step::Files as i32;
        let name = match step {
            CAPABILITIES => "capabilities",
            FILES => "files",
            _ => "system calls",
        };
        SandboxError::Step(name, io::Error::from_raw_os_error(errno))
    }
}

/// In a static, because signal handlers look at it.
static CONFINEMENT: OnceLock<Confinement> = OnceLock::new();
/// Threads that are confined. None of them ends before the process does, so no number comes twice.
static CONFINED: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// How this process is confined, or that it is not.
#[derive(Debug, Clone, Copy)]
pub struct Sandbox {
    on: bool,
}

impl Sandbox {
    /// For a debugger's sake: confines nothing.
    pub fn off() -> Sandbox {
        Sandbox { on: false }
    }

    /// Rules out new privileges, and prepares the rest. Call before the first thread starts. `connects`: this process
    /// may have to connect to its frontend again.
    ///
    /// # Errors
    /// The kernel lacks something.
    pub fn prepare(connects: bool) -> Result<Sandbox, SandboxError> {
        nix::sys::prctl::set_no_new_privs().map_err(SandboxError::NoNewPrivileges)?;
        others::unblock()?;
        let files = files::nothing()?;
        if files.is_none() {
            log::info!("this kernel has no landlock; the list of system calls has to do");
        }
        let filters = Filters::new(connects)?;
        CONFINEMENT.get_or_init(|| Confinement { filters, files });
        Ok(Sandbox { on: true })
    }

    /// Confines every other thread of this process that is not confined yet. Only while no thread starts, and by one
    /// thread at a time.
    ///
    /// # Errors
    /// A thread could not be confined: do not go on.
    pub fn confine_others(self) -> Result<(), SandboxError> {
        if self.on { others::confine() } else { Ok(()) }
    }

    /// Confines the calling thread.
    ///
    /// # Errors
    /// It could not be confined: do not go on.
    pub fn confine_this(self) -> Result<(), SandboxError> {
        if let (true, Some(confinement)) = (self.on, CONFINEMENT.get()) {
            note(nix::unistd::gettid().as_raw());
            confinement
                .apply()
                .map_err(|(step, errno)| SandboxError::step(step as i32, errno))?;
        }
        Ok(())
    }
}

fn note(thread: i32) {
    CONFINED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(thread);
}

fn is_noted(thread: i32) -> bool {
    CONFINED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .contains(&thread)
}

#[cfg(test)]
mod tests;
