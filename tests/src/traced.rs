//! A process that is killed at a system call of one's choice.
//!
//! Where a process can be hurt most is where it holds something, and it holds what it took over a system call: so
//! a kill at each of them, one after the other, finds what random kills find once in a thousand.

use nix::sys::ptrace;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

/// The tracer of a process' main thread. Belongs to the thread that made it.
#[derive(Debug)]
pub struct Traced {
    pid: Pid,
}

impl Traced {
    /// Stops the process `pid`.
    ///
    /// # Panics
    /// If it can't be traced.
    #[track_caller]
    pub fn stop(pid: i32) -> Traced {
        let pid = Pid::from_raw(pid);
        ptrace::attach(pid).expect("a child can be traced");
        let status = waitpid(pid, None).expect("it is there");
        assert!(matches!(status, WaitStatus::Stopped(..)), "{status:?}");
        let traced = Traced { pid };
        ptrace::setoptions(pid, ptrace::Options::PTRACE_O_TRACESYSGOOD).expect("it is stopped");
        traced
    }

    /// Lets it run up to its `n`-th next entry into a system call, and kills it there. False: it came to
    /// `write(1, ...)` before that, an answer on its standard output, and goes on untraced.
    #[track_caller]
    pub fn kill_at_call(self, n: usize) -> bool {
        let mut entries = 0;
        let mut inside = false;
        loop {
            ptrace::syscall(self.pid, None).expect("it is stopped");
            match waitpid(self.pid, None).expect("it is there") {
                WaitStatus::PtraceSyscall(_) => {
                    inside = !inside;
                    if !inside {
                        continue;
                    }
                    let call = ptrace::getregs(self.pid).expect("it is stopped");
                    if call.orig_rax == libc::SYS_write as u64 && call.rdi == 1 {
                        ptrace::detach(self.pid, None).expect("it is stopped");
                        return false;
                    }
                    entries += 1;
                    if entries == n {
                        nix::sys::signal::kill(self.pid, nix::sys::signal::SIGKILL).expect("it is there");
                        return true;
                    }
                }
                WaitStatus::Stopped(..) => {}
                other => panic!("a traced client: {other:?}"),
            }
        }
    }
}
