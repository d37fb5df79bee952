//! Atomics, locks and waiting: the standard library's, or loom's in a model.

#[cfg(not(loom))]
mod real {
    pub use std::sync::{Arc, Condvar, Mutex, MutexGuard, atomic};
    use std::time::Duration;

    /// Waits a little, for the `round`-th time, for what another thread does soon.
    pub fn pause(round: u32) {
        if round < 100 {
            std::hint::spin_loop();
        } else {
            std::thread::sleep(Duration::from_micros(20));
        }
    }
}

#[cfg(loom)]
mod real {
    pub use loom::sync::{Arc, Condvar, Mutex, MutexGuard, atomic};

    /// Lets another thread go on.
    pub fn pause(_: u32) {
        loom::thread::yield_now();
    }
}

pub use real::*;
