//! EAL's locks in shared memory, seen from outside: which are held, and how one gets free whose holder is dead.
//!
//! `rte_eal_init` of a secondary takes reader-writer locks that lie in the file `config` of EAL's run-time directory.
//! They know no owner: if the secondary is killed meanwhile they stay held, and the primary's next allocation waits
//! for ever. DPDK has calls that take and release each, but none that says where it is. So the words are found once,
//! while no secondary runs, by taking each lock and looking which word of the file that changes.

use std::ffi::c_void;
use std::fs::OpenOptions;
use std::io;
use std::num::NonZeroUsize;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dpdk_sys as sys;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// How long a lock stays held at most by a thread that is alive: they guard look-ups in memory.
const HELD_AT_MOST: Duration = Duration::from_millis(20);

/// A call of EAL that takes or releases a lock.
type LockCall = unsafe extern "C" fn();

/// Locks with calls of their own.
const CALLS: &[(&str, LockCall, LockCall)] = &[
    (
        "memory hot-plug",
        sys::rte_mcfg_mem_write_lock,
        sys::rte_mcfg_mem_write_unlock,
    ),
    (
        "tail queue",
        sys::rte_mcfg_tailq_write_lock,
        sys::rte_mcfg_tailq_write_unlock,
    ),
    (
        "mempool",
        sys::rte_mcfg_mempool_write_lock,
        sys::rte_mcfg_mempool_write_unlock,
    ),
];

/// Why the locks can't be watched.
#[derive(Debug, thiserror::Error)]
pub enum LocksError {
    #[error("EAL's shared configuration can't be mapped: {0}")]
    Map(#[from] io::Error),
    #[error("EAL's {0} lock was not found in its shared configuration")]
    NotFound(&'static str),
}

/// The locks that a secondary takes as it starts.
#[derive(Debug)]
pub struct SharedLocks {
    config: Config,
    /// Names, and word numbers in the file.
    locks: Vec<(&'static str, usize)>,
}

impl SharedLocks {
    /// Finds the locks in the file `config` of EAL's run-time directory `dir`. While it does, nobody else may take one:
    /// no secondary runs yet, and no other thread of this process allocates.
    ///
    /// # Errors
    /// The file can't be mapped, or a lock is not where this looks.
    pub fn find(dir: &Path) -> Result<SharedLocks, LocksError> {
        let config = Config::map(&dir.join("config"))?;
        let mut locks = Vec::new();
        for &(name, lock, unlock) in CALLS {
            let free = config.copy();
            // SAFETY: these two take and release a lock, and EAL runs, or its file would not be there.
            unsafe { lock() };
            let held = config.copy();
            // SAFETY: as above; it is held.
            unsafe { unlock() };
            locks.push((
                name,
                the_one_that_changed(&free, &held).ok_or(LocksError::NotFound(name))?,
            ));
        }
        // That of the memory zones has no call of its own, but is held during a walk over them.
        let mut walk = Walk {
            config: &config,
            held: Vec::new(),
        };
        let free = config.copy();
        // SAFETY: `look` gets `walk` back, which outlives the call.
        unsafe { sys::rte_memzone_walk(Some(look), (&raw mut walk).cast()) };
        let word = the_one_that_changed(&free, &walk.held).ok_or(LocksError::NotFound("memory zone"))?;
        locks.push(("memory zone", word));
        Ok(SharedLocks { config, locks })
    }

    /// Frees the locks that a dead process has left held; their names. Call it when whoever initialised EAL is dead
    /// and nobody does so now.
    pub fn free_dead(&self) -> Vec<&'static str> {
        let mut freed = Vec::new();
        for &(name, word) in &self.locks {
            let word = &self.config.words()[word];
            // A living thread may hold it for a moment; a dead one's word does not change.
            let mut since = Instant::now();
            let mut held = word.load(Ordering::Acquire);
            while held != 0 && since.elapsed() < HELD_AT_MOST {
                std::thread::yield_now();
                let now = word.load(Ordering::Acquire);
                if now != held {
                    (held, since) = (now, Instant::now());
                }
            }
            if held != 0
                && word
                    .compare_exchange(held, 0, Ordering::AcqRel, Ordering::Relaxed)
                    .is_ok()
            {
                freed.push(name);
            }
        }
        freed
    }
}

struct Walk<'a> {
    config: &'a Config,
    held: Vec<u32>,
}

/// Called for each memory zone, with the lock held: the first time counts.
unsafe extern "C" fn look(_: *const sys::rte_memzone, walk: *mut c_void) {
    // SAFETY: the walk that `find` passed in, to which nobody else has access meanwhile.
    let walk = unsafe { &mut *walk.cast::<Walk<'_>>() };
    if walk.held.is_empty() {
        walk.held = walk.config.copy();
    }
}

/// The one word that differs. None: none does, or several.
fn the_one_that_changed(before: &[u32], after: &[u32]) -> Option<usize> {
    let mut changed = before.iter().zip(after).enumerate().filter(|(_, (a, b))| a != b);
    let (word, _) = changed.next()?;
    changed.next().is_none().then_some(word)
}

/// The file, mapped.
#[derive(Debug)]
struct Config {
    base: NonNull<c_void>,
    len: NonZeroUsize,
}

// SAFETY: shared memory that is only read and written by atomics.
unsafe impl Send for Config {}
// SAFETY: as above.
unsafe impl Sync for Config {}

impl Config {
    fn map(path: &Path) -> io::Result<Config> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let len = usize::try_from(file.metadata()?.len())
            .ok()
            .and_then(NonZeroUsize::new);
        let len = len.ok_or_else(|| io::Error::other(format!("{} is empty", path.display())))?;
        // SAFETY: a new mapping at an address of the kernel's choice; it takes no other memory's place.
        let base = unsafe {
            mmap(
                None,
                len,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED,
                &file,
                0,
            )
        }?;
        Ok(Config { base, len })
    }

    fn words(&self) -> &[AtomicU32] {
        // SAFETY: mapped for as long as `self`, aligned to a page; every bit pattern is a u32, and other processes are
        // allowed for by the atomics. EAL never truncates the file.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().cast(), self.len.get() / size_of::<u32>()) }
    }

    fn copy(&self) -> Vec<u32> {
        self.words().iter().map(|w| w.load(Ordering::Acquire)).collect()
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        // SAFETY: the mapping is this object's own, and no slice of it outlives it.
        let _ = unsafe { munmap(self.base, self.len.get()) };
    }
}
