//! A sequence lock: one writer that never waits, readers that try again.
//!
//! What it guards is made of relaxed atomics, so that a copy which a change overtakes is only wrong, and thrown away.

use crate::sync::atomic::{AtomicU32, Ordering, fence};

/// Makes `change` one step for every reader. For one writer at a time.
#[inline]
pub fn write(sequence: &AtomicU32, change: impl FnOnce()) {
    sequence.fetch_add(1, Ordering::Relaxed);
    // The change does not become visible before the odd number does.
    fence(Ordering::Release);
    change();
    sequence.fetch_add(1, Ordering::Release);
}

/// What `copy` sees between two changes; none if one came in between.
#[inline]
pub fn read<T>(sequence: &AtomicU32, copy: impl FnOnce() -> T) -> Option<T> {
    let before = sequence.load(Ordering::Acquire);
    if before % 2 == 1 {
        return None;
    }
    let seen = copy();
    // The second look comes after the copy.
    fence(Ordering::Acquire);
    (sequence.load(Ordering::Relaxed) == before).then_some(seen)
}
