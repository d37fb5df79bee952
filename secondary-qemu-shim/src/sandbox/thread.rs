//! What is taken from one thread: capabilities, files, system calls. Runs in signal handlers too, so it makes system
//! calls only: no allocation, no lock.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::filter::Filters;

/// `_LINUX_CAPABILITY_VERSION_3`: two words of 32 capabilities each.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
/// More capabilities than a kernel can have.
const CAPABILITIES: libc::c_ulong = 64;

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// What the threads of this process keep.
#[derive(Debug)]
pub(super) struct Confinement {
    pub filters: Filters,
    /// A landlock ruleset that allows nothing; none where the kernel has no landlock.
    pub files: Option<OwnedFd>,
}

/// The step that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub(super) enum Step {
    Capabilities = 1,
    Files = 2,
    Calls = 3,
}

impl Confinement {
    /// Confines the calling thread, for good.
    ///
    /// # Errors
    /// The step that failed, and errno.
    pub(super) fn apply(&self) -> Result<(), (Step, i32)> {
        // Inherited where this process is the first to say so; landlock asks each thread for it.
        nix::sys::prctl::set_no_new_privs().map_err(|errno| (Step::Capabilities, errno as i32))?;
        drop_capabilities().map_err(|errno| (Step::Capabilities, errno))?;
        if let Some(ruleset) = &self.files {
            // SAFETY: takes a ruleset's descriptor and flags; touches no memory.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_landlock_restrict_self,
                    ruleset.as_raw_fd(),
                    0 as libc::c_uint,
                )
            };
            check(result).map_err(|errno| (Step::Files, errno))?;
        }
        for filter in [&self.filters.fatal, &self.filters.allowed] {
            seccompiler::apply_filter(filter).map_err(|_| (Step::Calls, last_errno()))?;
        }
        Ok(())
    }
}

/// Empties every set of capabilities of the calling thread. The bounding set stays where the thread may not change it:
/// without new privileges nothing is ever taken from there.
fn drop_capabilities() -> Result<(), i32> {
    for capability in 0..CAPABILITIES {
        // SAFETY: takes numbers only.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        match check(result.into()) {
            // The kernel has no more of them, or this thread may not.
            Err(libc::EINVAL | libc::EPERM) => break,
            done => done?,
        }
    }
    // SAFETY: takes numbers only.
    let result = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    check(result.into())?;
    let header = CapabilityHeader {
        version: CAPABILITY_VERSION,
        pid: 0,
    };
    let none = [CapabilityData::default(); 2];
    // SAFETY: both point to what version 3 of the call expects, and live until it returns.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) };
    check(result)
}

fn check(result: libc::c_long) -> Result<(), i32> {
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

fn last_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}
