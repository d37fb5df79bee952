//! How long frames take.

use std::fmt;
use std::time::Duration;

use crate::ends::{BURST, Ends};

/// A frame that has not come by then is lost.
const LOST: Duration = Duration::from_millis(100);
/// Frames under way at most in [`most`]: no virtqueue and no ring on the way is ever full.
const WINDOW: usize = 512;

/// What a run came to: `P50 P99 P999 RECEIVED LOST`, times in nanoseconds.
#[derive(Debug)]
pub struct Timed {
    times: Vec<u64>,
    sent: usize,
}

impl Timed {
    fn new(mut times: Vec<u64>, sent: usize) -> Timed {
        times.sort_unstable();
        Timed { times, sent }
    }

    /// So many in a thousand frames took this long at most. 0 if none came.
    fn per_mille(&self, part: usize) -> u64 {
        let last = self.times.len().saturating_sub(1);
        let at = (self.times.len() * part)
            .div_ceil(1000)
            .saturating_sub(1)
            .min(last);
        self.times.get(at).copied().unwrap_or(0)
    }
}

impl fmt::Display for Timed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in [500, 990, 999] {
            write!(f, "{} ", self.per_mille(part))?;
        }
        let received = self.times.len();
        write!(f, "{received} {}", self.sent.saturating_sub(received))
    }
}

/// One frame at a time for `time`, each `gap` to `gap * 3 / 2` after the last one has come: not in step with any timer of
/// the switch's.
pub fn alone(ends: &mut Ends, gap: Duration, time: Duration) -> Timed {
    let (gap, limit) = (gap.as_nanos() as u64, LOST.as_nanos() as u64);
    let (mut times, mut sent) = (Vec::new(), 0);
    let mut random = 1u64;
    let end = ends.now() + time.as_nanos() as u64;
    while ends.now() < end {
        let start = ends.now();
        sent += ends.send(1);
        while ends.receive(|time| times.push(time)) == 0 && ends.now() - start < limit {}
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let next = ends.now() + gap + (random >> 33) % (gap / 2 + 1);
        while ends.now() < next {
            std::hint::spin_loop();
        }
    }
    Timed::new(times, sent)
}

/// `pps` frames a second for `time`, in bursts where this thread was held up.
pub fn paced(ends: &mut Ends, pps: u64, time: Duration) -> Timed {
    let expected = pps as usize * time.as_millis() as usize / 1000;
    let mut times = Vec::with_capacity(expected + BURST);
    let (mut sent, mut tried) = (0, 0);
    let (start, time) = (ends.now(), time.as_nanos() as u64);
    loop {
        let elapsed = ends.now() - start;
        if elapsed > time + LOST.as_nanos() as u64 || elapsed > time && times.len() == sent {
            break;
        }
        if elapsed <= time {
            let due = (u128::from(elapsed) * u128::from(pps) / 1_000_000_000) as usize;
            let count = (due - tried).min(BURST);
            if count > 0 {
                sent += ends.send(count);
                // What the virtqueue had no room for is lost.
                tried += count;
            }
        }
        ends.receive(|time| times.push(time));
    }
    ends.drain();
    Timed::new(times, tried)
}

/// Frames a second that pass with [`WINDOW`] of them under way.
pub fn most(ends: &mut Ends, time: Duration) -> u64 {
    let (mut sent, mut received) = (0, 0);
    let (start, time) = (ends.now(), time.as_nanos() as u64);
    while ends.now() - start < time {
        let room = WINDOW.saturating_sub(sent - received).min(BURST);
        if room > 0 {
            sent += ends.send(room);
        }
        received += ends.receive(|_| {});
    }
    ends.drain();
    (received as u128 * 1_000_000_000 / u128::from(time)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_thousand() {
        let timed = Timed::new((1..=2000).rev().collect(), 2003);
        assert_eq!(timed.to_string(), "1000 1980 1998 2000 3");
        assert_eq!(Timed::new(vec![7], 1).to_string(), "7 7 7 1 0");
        assert_eq!(Timed::new(Vec::new(), 2).to_string(), "0 0 0 0 2");
    }
}
