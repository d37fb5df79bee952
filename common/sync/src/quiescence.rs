//! An immutable value that threads work by, replaced as a whole: who replaces it waits until nobody works by the old
//! one, and no thread ever waits for a lock on its way.

use std::sync::PoisonError;

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, pause};

/// The value, and what each worker has seen of it.
#[derive(Debug)]
pub struct Published<T> {
    current: Mutex<Arc<T>>,
    generation: AtomicU64,
    /// The generation that each worker works by; [`STOPPED`] when it does not run.
    seen: Vec<AtomicU64>,
}

const STOPPED: u64 = u64::MAX;

impl<T> Published<T> {
    /// For `workers` workers, none of which runs.
    pub fn new(workers: usize, first: T) -> Published<T> {
        Published {
            current: Mutex::new(Arc::new(first)),
            generation: AtomicU64::new(0),
            seen: (0..workers).map(|_| AtomicU64::new(STOPPED)).collect(),
        }
    }

    /// Makes `value` the one to work by, wakes the workers, and returns when all that run work by it. One caller at a
    /// time.
    pub fn publish(&self, value: T, wake: impl FnOnce()) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
        let generation = self.generation.fetch_add(1, Ordering::AcqRel) + 1;
        wake();
        for seen in &self.seen {
            let mut round = 0;
            while seen.load(Ordering::Acquire) < generation {
                pause(round);
                round += 1;
            }
        }
    }

    /// The value to work by.
    pub fn current(&self) -> Arc<T> {
        self.current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// A worker: is there a newer value than that of `generation`?
    #[inline]
    pub fn changed(&self, generation: u64) -> bool {
        self.generation.load(Ordering::Acquire) != generation
    }

    /// Worker `worker` lets go of its old value and takes the newest, with its generation.
    pub fn load(&self, worker: usize, old: Option<Arc<T>>) -> (Arc<T>, u64) {
        drop(old);
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let generation = self.generation.load(Ordering::Acquire);
        let value = current.clone();
        drop(current);
        self.seen[worker].store(generation, Ordering::Release);
        (value, generation)
    }

    /// Worker `worker` is about to start: whoever publishes from here on waits for it.
    pub fn starting(&self, worker: usize) {
        self.seen[worker].store(0, Ordering::Release);
    }

    /// Worker `worker` has let go of its value for good.
    pub fn stopped(&self, worker: usize) {
        self.seen[worker].store(STOPPED, Ordering::Release);
    }
}
