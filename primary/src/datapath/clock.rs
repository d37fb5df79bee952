//! Time for the fast path, from the timestamp counter.

use std::time::Duration;

/// The timestamp counter.
#[inline]
pub fn tsc() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: reading the counter has no side effect.
    unsafe {
        std::arch::x86_64::_rdtsc()
    }
}

/// A moment, in the two units that the fast path needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The timestamp counter's.
    pub ticks: u64,
    /// [`Clock::seconds`].
    pub seconds: u32,
}

/// Converts ticks.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    start: u64,
    hz: u64,
}

impl Clock {
    /// A clock that starts now, with `hz` ticks a second.
    pub fn new(hz: u64) -> Clock {
        Clock {
            start: tsc(),
            hz: hz.max(1),
        }
    }

    /// Ticks a second.
    pub fn hz(&self) -> u64 {
        self.hz
    }

    /// The moment `ticks`.
    #[inline]
    pub fn at(&self, ticks: u64) -> Moment {
        Moment {
            ticks,
            seconds: self.seconds(ticks),
        }
    }

    /// Whole seconds from the clock's start to `tick`, plus one: never zero.
    #[inline]
    pub fn seconds(&self, tick: u64) -> u32 {
        (tick.wrapping_sub(self.start) / self.hz) as u32 + 1
    }

    /// Seconds now.
    pub fn now(&self) -> u32 {
        self.seconds(tsc())
    }

    /// Ticks in `duration`.
    pub fn ticks(&self, duration: Duration) -> u64 {
        (duration.as_secs_f64() * self.hz as f64) as u64
    }
}
