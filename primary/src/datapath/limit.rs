//! Limits of what comes in by a port: token buckets, shared by the threads that poll the port's queues.

use spin::mutex::SpinMutex;

use super::clock::Clock;

/// A rate: so much a second, and so much at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    pub per_second: u64,
    pub burst: u64,
}

/// What a port is limited to; the default: nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Bytes behind the Ethernet header, of all frames.
    pub bytes: Option<Rate>,
    /// All frames.
    pub frames: Option<Rate>,
    /// Frames that go to many: broadcast, multicast, unknown destination.
    pub storm: Option<Rate>,
}

/// Keeps a port to its limits.
#[derive(Debug)]
pub struct Limiter {
    limits: Limits,
    bytes: Option<Bucket>,
    frames: Option<Bucket>,
    storm: Option<Bucket>,
}

impl Limiter {
    /// For `limits`; `None` where there are none.
    pub fn new(limits: Limits, clock: Clock) -> Option<Limiter> {
        let bucket = |rate: Option<Rate>| rate.map(|r| Bucket::new(r, clock.hz()));
        (limits != Limits::default()).then(|| Limiter {
            limits,
            bytes: bucket(limits.bytes),
            frames: bucket(limits.frames),
            storm: bucket(limits.storm),
        })
    }

    /// What it keeps the port to.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// May a frame with `bytes` behind its Ethernet header, which counts as `frames` (those that it is cut into), come in at `ticks`?
    pub fn admits(&self, bytes: usize, frames: usize, ticks: u64) -> bool {
        let within = |bucket: &Option<Bucket>, n| bucket.as_ref().is_none_or(|b| b.take(n as u64, ticks));
        if !within(&self.frames, frames) {
            return false;
        }
        let admitted = within(&self.bytes, bytes);
        if !admitted && let Some(bucket) = &self.frames {
            // A frame that does not come in counts for neither.
            bucket.give_back(frames as u64);
        }
        admitted
    }

    /// May one more frame go to many at `ticks`?
    pub fn admits_to_many(&self, ticks: u64) -> bool {
        self.storm.as_ref().is_none_or(|b| b.take(1, ticks))
    }
}

/// A token bucket. Its level is in tokens times ticks a second, so that nothing is rounded.
#[derive(Debug)]
struct Bucket {
    rate: i128,
    full: i128,
    hz: i128,
    state: SpinMutex<State>,
}

#[derive(Debug)]
struct State {
    /// Below zero where a frame took more than the bucket holds.
    level: i128,
    /// Ticks when it was last filled.
    filled: u64,
}

impl Bucket {
    fn new(rate: Rate, hz: u64) -> Bucket {
        let full = i128::from(rate.burst) * i128::from(hz);
        Bucket {
            rate: rate.per_second.into(),
            full,
            hz: hz.into(),
            state: SpinMutex::new(State {
                level: full,
                filled: 0,
            }),
        }
    }

    /// Takes `n` tokens at `ticks`; false, and none taken, where there are fewer. More than the bucket holds may be taken from a full one,
    /// and are owed: a large frame would never come in else.
    fn take(&self, n: u64, ticks: u64) -> bool {
        let mut state = self.state.lock();
        // Threads' clocks may be a little apart: then no time has passed. A clock that is far behind has started anew, as
        // a CPU's does on some machines that were asleep.
        let passed = ticks.saturating_sub(state.filled);
        if ticks > state.filled || i128::from(state.filled - ticks) > self.hz {
            state.filled = ticks;
        }
        let level = state
            .level
            .saturating_add(i128::from(passed) * self.rate)
            .min(self.full);
        let wanted = i128::from(n) * self.hz;
        let admitted = level >= wanted.min(self.full);
        state.level = if admitted { level - wanted } else { level };
        admitted
    }

    /// Puts `n` tokens back that were taken for nothing.
    fn give_back(&self, n: u64) {
        let mut state = self.state.lock();
        state.level = (state.level + i128::from(n) * self.hz).min(self.full);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HZ: u64 = 2_100_000_001;

    fn bucket(per_second: u64, burst: u64) -> Bucket {
        Bucket::new(Rate { per_second, burst }, HZ)
    }

    /// Over a second: the burst, and then the rate, whatever the rate.
    #[test]
    fn burst_then_rate() {
        for (rate, burst) in [
            (1, 1),
            (10, 3),
            (1_000, 100),
            (7_777, 10),
            (1_250_000_000, 1_000_000),
        ] {
            let bucket = bucket(rate, burst);
            let start = 1 << 60;
            let took = |at| {
                (0..).take_while(|_| bucket.take(1.max(burst / 100), at)).count() as u64 * 1.max(burst / 100)
            };
            assert_eq!(took(start), burst / 1.max(burst / 100) * 1.max(burst / 100));
            let steps = 5_000;
            let rest: u64 = (1..=steps).map(|i| took(start + HZ * i / steps)).sum();
            assert!(
                rest.abs_diff(rate) <= 1.max(burst / 100),
                "{rate} {burst}: {rest}"
            );
        }
    }

    #[test]
    fn what_is_not_used_does_not_add_up_beyond_the_burst() {
        let bucket = bucket(1_000, 5);
        assert!((0..5).all(|_| bucket.take(1, HZ)) && !bucket.take(1, HZ));
        assert_eq!((0..100).filter(|_| bucket.take(1, 1 << 62)).count(), 5);
        // A clock that is a little behind neither fills nor empties it; one that has started anew goes on from there.
        assert!(!bucket.take(1, (1 << 62) - HZ / 2));
        assert!(!bucket.take(1, HZ) && bucket.take(5, 2 * HZ) && !bucket.take(1, 2 * HZ));
    }

    /// A large frame may be more than the burst: over time it gets its rate all the same, and no more.
    #[test]
    fn more_than_the_burst_is_owed() {
        let bucket = bucket(1_000, 100);
        assert!(bucket.take(400, HZ) && !bucket.take(1, HZ));
        let seconds = |s: f64| HZ + (s * HZ as f64) as u64;
        assert!(
            !bucket.take(400, seconds(0.39)),
            "300 to pay, and it has to be full again"
        );
        assert!(bucket.take(400, seconds(0.41)) && !bucket.take(1, seconds(0.41)));
        let times = (0..1000).filter(|&ms| bucket.take(400, seconds(1.0 + f64::from(ms) / 100.0)));
        assert!((24..=26).contains(&times.count()), "10 seconds");
    }

    #[test]
    fn a_frame_beyond_one_limit_takes_nothing_of_the_other() {
        let clock = Clock::new(HZ);
        let rate = |burst| Some(Rate { per_second: 1, burst });
        let limits = Limits {
            frames: rate(3),
            bytes: rate(1_000),
            storm: None,
        };
        let limiter = Limiter::new(limits, clock).unwrap();
        assert!(limiter.admits(400, 1, 1) && !limiter.admits(700, 1, 1));
        assert!(limiter.admits(600, 1, 1) && !limiter.admits(1, 1, 1));
        assert!(limiter.admits(0, 1, 1) && !limiter.admits(0, 1, 1));
        assert!((0..100).all(|_| limiter.admits_to_many(1)));
        assert!(Limiter::new(Limits::default(), clock).is_none());
    }
}
