//! The other threads of this process. Capabilities and landlock are a thread's own, and some threads are EAL's: each is
//! interrupted by a signal, and confines itself in the handler.

use std::fs;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use super::{CONFINEMENT, SandboxError, is_noted, note};

/// Interrupts a thread that is to confine itself.
const SIGNAL: Signal = Signal::SIGUSR2;
/// How long a thread may take; only a machine that stands still takes so long.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the handler has to say: nothing yet, done, or the step that failed and errno.
static ANSWER: AtomicI32 = AtomicI32::new(PENDING);
const PENDING: i32 = -1;
const DONE: i32 = 0;
const ERRNO_BITS: i32 = 16;

extern "C" fn confine_this_thread(_signal: libc::c_int) {
    let errno = Errno::last_raw();
    let answer = match CONFINEMENT.get().map(|confinement| confinement.apply()) {
        None | Some(Ok(())) => DONE,
        Some(Err((step, errno))) => (step as i32) << ERRNO_BITS | errno,
    };
    ANSWER.store(answer, Ordering::Release);
    Errno::set_raw(errno);
}

/// Confines every thread of this process that is not yet, but for the calling one. One caller at a time.
pub(super) fn confine() -> Result<(), SandboxError> {
    let handler = SigAction::new(
        SigHandler::Handler(confine_this_thread),
        SaFlags::SA_RESTART,
        SigSet::all(),
    );
    // SAFETY: the handler makes system calls and touches atomics only, and leaves errno as it was.
    let before = unsafe { sigaction(SIGNAL, &handler) }.map_err(SandboxError::Signal)?;
    let result = confine_each();
    // SAFETY: puts back what was there.
    unsafe { sigaction(SIGNAL, &before) }.map_err(SandboxError::Signal)?;
    result
}

/// Lets the calling thread, and those it starts, be interrupted.
pub(super) fn unblock() -> Result<(), SandboxError> {
    let mut mask = SigSet::empty();
    mask.add(SIGNAL);
    mask.thread_unblock().map_err(SandboxError::Signal)
}

fn confine_each() -> Result<(), SandboxError> {
    let own = nix::unistd::gettid().as_raw();
    for entry in fs::read_dir("/proc/self/task").map_err(SandboxError::Threads)? {
        let name = entry.map_err(SandboxError::Threads)?.file_name();
        let Some(thread) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if thread != own && !is_noted(thread) {
            confine_one(thread)?;
        }
    }
    Ok(())
}

fn confine_one(thread: i32) -> Result<(), SandboxError> {
    ANSWER.store(PENDING, Ordering::Release);
    // SAFETY: signals a thread of this process, for which there is a handler.
    let result = unsafe {
        libc::syscall(
            libc::SYS_tgkill,
            std::process::id(),
            thread,
            SIGNAL as libc::c_int,
        )
    };
    match Errno::result(result) {
        Ok(_) => {}
        Err(Errno::ESRCH) => return Ok(()),
        Err(why) => return Err(SandboxError::Signal(why)),
    }
    let start = Instant::now();
    loop {
        match ANSWER.load(Ordering::Acquire) {
            PENDING => {}
            DONE => {
                note(thread);
                return Ok(());
            }
            failed => {
                return Err(SandboxError::step(
                    failed >> ERRNO_BITS,
                    failed & ((1 << ERRNO_BITS) - 1),
                ));
            }
        }
        // It may have ended instead.
        if has_ended(thread) {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            return Err(SandboxError::Deaf(thread));
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

fn has_ended(thread: i32) -> bool {
    match fs::read_to_string(format!("/proc/self/task/{thread}/stat")) {
        Ok(stat) => stat
            .rsplit(") ")
            .next()
            .is_some_and(|rest| rest.starts_with(['Z', 'X'])),
        Err(_) => true,
    }
}
