//! What a round of polls took, told apart by queue.

/// A round's stopwatch. The clock is read behind what had work, and in front of a poll that follows one in vain: so each
/// queue that brings something is timed from its own poll on, and where all do, one look at the clock is enough for each.
pub(super) struct Laps<C> {
    clock: C,
    start: u64,
    /// Where the present lap began.
    since: u64,
    /// The poll before was in vain, and `since` lies in front of it.
    in_vain: bool,
}

impl<C: Fn() -> u64> Laps<C> {
    /// Of a round that begins at `start`, read from `clock`.
    pub fn new(start: u64, clock: C) -> Laps<C> {
        Laps {
            clock,
            start,
            since: start,
            in_vain: false,
        }
    }

    /// A queue's turn begins with `poll`, which tells whether it had work.
    #[inline]
    pub fn poll(&mut self, poll: impl FnOnce() -> bool) -> bool {
        if self.in_vain {
            // What went before is not this queue's.
            self.since = (self.clock)();
        }
        let had_work = poll();
        self.in_vain = !had_work;
        had_work
    }

    /// The work of the last poll is done: what both took.
    #[inline]
    pub fn lap(&mut self) -> u64 {
        let before = std::mem::replace(&mut self.since, (self.clock)());
        self.since.wrapping_sub(before)
    }

    /// When the round ended.
    #[inline]
    pub fn end(self) -> u64 {
        if self.in_vain || self.since == self.start {
            (self.clock)()
        } else {
            self.since
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    const POLL: u64 = 7;

    /// A round over queues whose frames take so long; 0: it has none. What those with frames are charged, and how often the
    /// clock was read.
    fn round(queues: &[u64]) -> (Vec<u64>, u32) {
        let (now, looks) = (Cell::new(1000), Cell::new(0));
        let work = |time| now.set(now.get() + time);
        let mut laps = Laps::new(now.get(), || {
            looks.set(looks.get() + 1);
            now.get()
        });
        let mut charged = Vec::new();
        for &time in queues {
            let had_work = laps.poll(|| {
                work(POLL);
                time > 0
            });
            if had_work {
                work(time);
                charged.push(laps.lap());
            }
        }
        assert_eq!(laps.end(), now.get());
        (charged, looks.get())
    }

    /// Whatever is in front of it: a poll in vain is no other queue's, and its own is its own.
    #[test]
    fn a_queue_is_charged_for_its_own_poll_and_no_other() {
        assert_eq!(round(&[50]).0, [POLL + 50]);
        assert_eq!(round(&[0, 50]).0, [POLL + 50]);
        assert_eq!(round(&[0, 0, 0, 50, 30, 0]).0, [POLL + 50, POLL + 30]);
        assert_eq!(round(&[50, 0, 30]).0, [POLL + 50, POLL + 30]);
    }

    #[test]
    fn the_clock_is_read_no_more_than_needed() {
        assert_eq!(round(&[]).1, 1);
        assert_eq!(round(&[0]).1, 1);
        assert_eq!(round(&[50, 30, 20]).1, 3);
        assert_eq!(round(&[50, 0]).1, 2);
        assert_eq!(round(&[0, 50]).1, 2);
    }
}
