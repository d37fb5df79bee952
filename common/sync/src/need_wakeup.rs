//! "I sleep: ring." The flag that saves a busy pair its system calls.
//!
//! The sleeper sets its flag and then looks for work once more; the other side publishes work and then looks at the
//! flag. With a full fence between the two steps on both sides, at least one of them sees the other: no wake-up is lost.

use crate::sync::atomic::{AtomicU32, Ordering, fence};

/// The flag. In shared memory, on a cache line without what is written often.
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct NeedWakeup(AtomicU32);

impl NeedWakeup {
    /// The sleeper: sets the flag. Look for work once more after this, before blocking.
    #[inline]
    pub fn arm(&self) {
        self.0.store(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The sleeper: awake again.
    #[inline]
    pub fn disarm(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// The other side, after publishing: must the sleeper be woken? True once per sleep.
    #[inline]
    pub fn take(&self) -> bool {
        fence(Ordering::SeqCst);
        let order = Ordering::Relaxed;
        self.0.load(order) == 1 && self.0.compare_exchange(1, 0, order, order).is_ok()
    }
}

/// Sleeps by `block` until one of those who look at `flags` has brought work, unless `has_work`.
#[inline]
pub fn sleep<'f>(
    flags: impl Iterator<Item = &'f NeedWakeup> + Clone,
    has_work: impl FnOnce() -> bool,
    block: impl FnOnce(),
) {
    flags.clone().for_each(NeedWakeup::arm);
    if !has_work() {
        block();
    }
    flags.for_each(NeedWakeup::disarm);
}
