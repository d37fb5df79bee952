//! DPDK's environment abstraction layer: start, end, worker lcores; its locks in shared memory.

pub mod locks;
mod log;

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

use dpdk_sys as sys;

pub use log::StartLog;

/// Why EAL did not start or an EAL call failed.
#[derive(Debug, thiserror::Error)]
pub enum EalError {
    /// EAL can be initialised once in a process.
    #[error("DPDK's EAL is initialised already; it can be only once in a process")]
    Twice,
    /// An argument had a NUL byte.
    #[error("EAL argument {0:?} has a NUL byte in it")]
    Argument(String),
    /// `rte_eal_init` said no.
    #[error("DPDK's EAL did not start ({0}); its own lines above say more")]
    Init(String),
    /// A worker lcore could not be given work.
    #[error("lcore {lcore} takes no work: {why}")]
    Launch { lcore: u32, why: String },
}

/// The text of `errno` value `errno` as DPDK prints it.
pub fn strerror(errno: i32) -> String {
    // SAFETY: rte_strerror returns a NUL-terminated string in per-thread storage; it is copied at once.
    unsafe { CStr::from_ptr(sys::rte_strerror(errno)) }
        .to_string_lossy()
        .into_owned()
}

/// The text of the calling thread's `rte_errno`.
pub fn last_error() -> String {
    // SAFETY: reads a per-thread integer.
    strerror(unsafe { sys::dpdk_sys_errno() })
}

/// The version of the DPDK this process runs with, such as `DPDK 22.11.11`.
pub fn version() -> String {
    // SAFETY: rte_version returns a NUL-terminated string in static storage.
    unsafe { CStr::from_ptr(sys::rte_version()) }
        .to_string_lossy()
        .into_owned()
}

/// Timestamp counter ticks per second. Valid once EAL runs.
pub fn tsc_hz() -> u64 {
    // SAFETY: reads a value that rte_eal_init set.
    unsafe { sys::rte_get_tsc_hz() }
}

/// Proof that EAL runs in this process.
#[derive(Debug)]
pub struct Eal {
    _private: (),
}

static STARTED: AtomicBool = AtomicBool::new(false);

impl Eal {
    /// Starts EAL with `args` (without a program name). The calling thread becomes the main lcore.
    ///
    /// # Errors
    /// EAL was started before, an argument has a NUL byte, or `rte_eal_init` failed.
    pub fn init(program: &str, args: &[String]) -> Result<Eal, EalError> {
        Self::init_with(program, args, StartLog::Shown)
    }

    /// The same; `log` says what is to be seen of its log.
    ///
    /// # Errors
    /// As [`Eal::init`].
    pub fn init_with(program: &str, args: &[String], log: StartLog) -> Result<Eal, EalError> {
        let owned: Vec<CString> = std::iter::once(program)
            .chain(args.iter().map(String::as_str))
            .map(|a| CString::new(a).map_err(|_| EalError::Argument(a.to_owned())))
            .collect::<Result<_, _>>()?;
        if STARTED.swap(true, Ordering::SeqCst) {
            return Err(EalError::Twice);
        }
        // EAL permutes argv and keeps pointers into it, so the strings live as long as the process.
        let mut argv: Vec<*mut c_char> = owned.into_iter().map(CString::into_raw).collect();
        let argc = argv.len() as c_int;
        argv.push(std::ptr::null_mut());
        let argv = Vec::leak(argv);
        log::to_stderr();
        let kept = match log {
            StartLog::Shown => None,
            StartLog::OnFailure => log::Kept::start(),
        };
        // SAFETY: argv has argc NUL-terminated strings and a terminating null, all of them leaked above.
        let used = unsafe { sys::rte_eal_init(argc, argv.as_mut_ptr()) };
        if used < 0 {
            let why = last_error();
            if let Some(kept) = kept {
                kept.show();
            }
            return Err(EalError::Init(why));
        }
        Ok(Eal { _private: () })
    }

    /// Ids of the worker lcores, in rising order.
    pub fn worker_lcores(&self) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut id = u32::MAX;
        loop {
            // SAFETY: walks EAL's lcore configuration, which is fixed after init.
            id = unsafe { sys::rte_get_next_lcore(id, 1, 0) };
            if id >= sys::RTE_MAX_LCORE {
                return ids;
            }
            ids.push(id);
        }
    }

    /// Runs `work` on worker `lcore`.
    ///
    /// # Errors
    /// The lcore does not exist or is still busy.
    pub fn launch(&self, lcore: u32, work: Box<dyn FnOnce() + Send>) -> Result<(), EalError> {
        unsafe extern "C" fn run(arg: *mut c_void) -> c_int {
            // SAFETY: `arg` is the box leaked by `launch`, handed over exactly once.
            let work = unsafe { Box::from_raw(arg.cast::<Box<dyn FnOnce() + Send>>()) };
            work();
            0
        }
        let arg = Box::into_raw(Box::new(work));
        // SAFETY: `run` takes the box back; EAL calls it once, on the worker's thread.
        let rc = unsafe { sys::rte_eal_remote_launch(Some(run), arg.cast(), lcore) };
        if rc != 0 {
            // SAFETY: EAL refused, so nobody else holds the pointer.
            drop(unsafe { Box::from_raw(arg) });
            return Err(EalError::Launch {
                lcore,
                why: strerror(-rc),
            });
        }
        Ok(())
    }

    /// Waits until `lcore` has finished what [`Eal::launch`] gave it.
    pub fn wait(&self, lcore: u32) {
        // SAFETY: waits on EAL's own state of a valid lcore; out-of-range ids are refused by EAL.
        unsafe { sys::rte_eal_wait_lcore(lcore) };
    }

    /// Ends EAL. The primary calls it after every port, ring and pool is gone.
    pub fn cleanup(self) {
        // SAFETY: no DPDK object is in use any more, by contract of the caller's shutdown order.
        unsafe { sys::rte_eal_cleanup() };
    }
}
