//! The configuration that PMD threads work by: immutable, replaced as a whole.
//!
//! The control thread publishes a new snapshot and waits until every PMD thread says it works by it; then nothing of
//! the old one is in use any more, and what only that one held (a session, a device) can be taken apart.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use vswitch_common::port::doorbell::Doorbell;

use super::mac_table::MacTable;
use super::port::{Port, PortIndex};

/// A bridge: its learning table and its ports.
#[derive(Debug, Clone)]
pub struct Bridge {
    pub table: Arc<MacTable>,
    pub ports: Vec<PortIndex>,
    /// Forward 01:80:c2:00:00:0X as well (other_config:forward-bpdu).
    pub forward_reserved: bool,
}

/// A receive queue of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RxQueue {
    pub port: PortIndex,
    pub queue: u16,
}

/// All that PMD threads need to know.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// By [`PortIndex`].
    pub ports: Vec<Option<Arc<Port>>>,
    pub bridges: Vec<Bridge>,
    /// What each PMD thread polls.
    pub polled: Vec<Vec<RxQueue>>,
    /// Longest sleep of a PMD thread with nothing to do; zero: it never sleeps.
    pub max_sleep: Option<Duration>,
}

impl Snapshot {
    /// The port with that index.
    #[inline]
    pub fn port(&self, index: PortIndex) -> Option<&Arc<Port>> {
        self.ports.get(usize::from(index))?.as_ref()
    }
}

/// Where snapshots are published.
#[derive(Debug)]
pub struct Publisher {
    current: Mutex<Arc<Snapshot>>,
    generation: AtomicU64,
    threads: Vec<ThreadState>,
}

#[derive(Debug)]
struct ThreadState {
    /// The generation it works by; [`STOPPED`] when it does not run.
    seen: AtomicU64,
    wake: Doorbell,
}

const STOPPED: u64 = u64::MAX;

impl Publisher {
    /// For `threads` PMD threads, with an empty snapshot.
    ///
    /// # Errors
    /// Out of file descriptors.
    pub fn new(threads: usize) -> nix::Result<Publisher> {
        let threads = (0..threads)
            .map(|_| {
                Ok(ThreadState {
                    seen: AtomicU64::new(STOPPED),
                    wake: Doorbell::new()?,
                })
            })
            .collect::<nix::Result<_>>()?;
        Ok(Publisher {
            current: Mutex::default(),
            generation: AtomicU64::new(0),
            threads,
        })
    }

    /// Makes `snapshot` the one to work by and returns when every PMD thread does.
    pub fn publish(&self, snapshot: Snapshot) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(snapshot);
        let generation = self.generation.fetch_add(1, Ordering::AcqRel) + 1;
        for thread in &self.threads {
            thread.wake.ring();
        }
        for thread in &self.threads {
            let mut spins = 0u32;
            while thread.seen.load(Ordering::Acquire) < generation {
                spins += 1;
                if spins < 100 {
                    std::hint::spin_loop()
                } else {
                    std::thread::sleep(Duration::from_micros(20))
                }
            }
        }
    }

    /// The current snapshot.
    pub fn current(&self) -> Arc<Snapshot> {
        self.current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// PMD thread `thread`: is there a newer snapshot than `generation`?
    #[inline]
    pub fn changed(&self, generation: u64) -> bool {
        self.generation.load(Ordering::Acquire) != generation
    }

    /// PMD thread `thread` lets go of its old snapshot and takes the newest, with its generation.
    pub fn load(&self, thread: usize, old: Arc<Snapshot>) -> (Arc<Snapshot>, u64) {
        drop(old);
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = self.generation.load(Ordering::Acquire);
        let snapshot = current.clone();
        drop(current);
        self.threads[thread].seen.store(generation, Ordering::Release);
        (snapshot, generation)
    }

    /// PMD thread `thread` is about to start: whoever publishes from here on waits for it.
    pub fn starting(&self, thread: usize) {
        self.threads[thread].seen.store(0, Ordering::Release);
    }

    /// PMD thread `thread` stops: nobody waits for it any more.
    pub fn stopped(&self, thread: usize) {
        self.threads[thread].seen.store(STOPPED, Ordering::Release);
    }

    /// What wakes PMD thread `thread`.
    pub fn wake(&self, thread: usize) -> &Doorbell {
        &self.threads[thread].wake
    }
}
