//! Starts child processes that die with us and inherit nothing of ours.

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, getpid, getppid};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Prepares a child: SIGTERM when the thread that starts it ends, no signal blocked, its own process group (so that a
/// Ctrl-C at the terminal is ours to handle), and no descriptor but the standard three.
pub(super) fn child_setup(command: &mut Command) {
    let parent = getpid();
    command.process_group(0);
    // SAFETY: the closure runs between fork and exec, and makes nothing but system calls (prctl, rt_sigprocmask,
    // close_range, getppid): it neither allocates nor locks.
    unsafe {
        command.pre_exec(move || in_child(parent));
    }
}

fn in_child(parent: Pid) -> io::Result<()> {
    set_pdeathsig(Signal::SIGTERM)?;
    if getppid() != parent {
        // The parent was gone before the signal was armed.
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    SigSet::empty().thread_set_mask()?;
    // Hugepage files and devices may be open without close-on-exec. Kernels before 5.11 lack this; then they stay.
    // SAFETY: close_range takes three integers, and with this flag changes only the close-on-exec flags of descriptors.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
    }
    Ok(())
}
