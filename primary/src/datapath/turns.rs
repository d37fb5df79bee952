//! Whose turn it is: a PMD thread's time, shared out among the queues that want it.
//!
//! A queue is charged the time that its frames took, whatever they took it for: a frame copied to sixty ports, an
//! address to learn, a chain to join. Who has had more than another that wants time as well is passed over until that
//! one has caught up (start-time fair queueing). So a queue that floods gets its share of the thread, and no more;
//! alone, it gets all of it. Time that nobody wanted is not saved up, and what it was used for is not owed.

use super::BURST;

/// Shares a thread's time out. Times are in any one unit.
#[derive(Debug)]
pub struct Turns {
    /// How far a queue may be ahead of the one that has had least and still be served: so that queues of the same
    /// kind are served in each round.
    lead: u64,
    /// What a queue's turn should last at most: the others wait for so long.
    turn: u64,
    /// No turn counts for more than this, unless its frames were copied often: the thread was interrupted.
    longest: u64,
    /// What the queue that wants and has had least has had.
    floor: u64,
    /// The same, of the present round so far; [`NOBODY`] while nobody wanted time in it.
    lowest: u64,
    /// What any queue has had at most.
    highest: u64,
    queues: Vec<Account>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Account {
    used: u64,
    /// Frames that its next turn should bring at most.
    burst: u8,
}

const NOBODY: u64 = u64::MAX;
/// Copies that may take as long as the longest turn: one to the kernel is a system call.
const COPIES: u64 = 256;

impl Turns {
    /// For no queue so far.
    pub fn new(lead: u64, turn: u64, longest: u64) -> Turns {
        Turns {
            lead,
            turn: turn.max(1),
            longest,
            floor: 0,
            lowest: NOBODY,
            highest: 0,
            queues: Vec::new(),
        }
    }

    /// Starts anew with `queues` queues, none of which has had anything.
    pub fn reset(&mut self, queues: usize) {
        *self = Turns::new(self.lead, self.turn, self.longest);
        let account = Account {
            used: 0,
            burst: BURST as u8,
        };
        self.queues.resize(queues, account);
    }

    /// A new round begins.
    #[inline]
    pub fn next_round(&mut self) {
        // Nobody wanted the time: nobody owes any.
        let lowest = if self.lowest == NOBODY {
            self.highest
        } else {
            self.lowest
        };
        self.floor = self.floor.max(lowest);
        self.lowest = NOBODY;
    }

    /// How many frames `queue` may bring now; 0: it is passed over.
    #[inline]
    pub fn burst(&mut self, queue: usize) -> usize {
        let account = self.queues[queue];
        if account.used > self.floor + self.lead {
            self.lowest = self.lowest.min(account.used);
            return 0;
        }
        usize::from(account.burst)
    }

    /// `queue` had work for `time`, with `frames` frames in it, of which `copies` were made: to many ports, or cut in pieces.
    #[inline]
    pub fn charge(&mut self, queue: usize, time: u64, frames: usize, copies: u64) {
        let account = &mut self.queues[queue];
        let mut longest = self.longest;
        if copies > COPIES {
            longest = longest.saturating_mul(copies / COPIES);
        }
        let time = time.min(longest);
        // It may not have wanted time for a while: what it let pass is gone.
        account.used = account.used.max(self.floor) + time;
        self.lowest = self.lowest.min(account.used);
        self.highest = self.highest.max(account.used);
        if frames == 0 {
            return;
        }
        // One cheap frame says little of those behind it.
        let most = (2 * usize::from(account.burst)).min(BURST) as u64;
        let frames = frames as u64;
        account.burst = if time * most <= self.turn * frames {
            most as u8
        } else {
            (frames * self.turn / time).clamp(1, most) as u8
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAD: u64 = 5_000;
    const TURN: u64 = 20_000;

    /// A queue with frames of one price, of which it has so many in each round, or always more than it may bring.
    #[derive(Clone, Copy)]
    struct Load {
        price: u64,
        frames: Option<usize>,
    }

    const fn flood(price: u64) -> Load {
        Load { price, frames: None }
    }

    /// Runs `rounds` rounds; per queue: time had, frames brought, and the longest time between two of its turns.
    fn run(loads: &[Load], rounds: usize) -> Vec<(u64, u64, u64)> {
        let mut turns = Turns::new(LEAD, TURN, 1_000_000);
        turns.reset(loads.len());
        let mut had = vec![(0, 0, 0); loads.len()];
        let (mut clock, mut seen) = (0u64, vec![0; loads.len()]);
        for _ in 0..rounds {
            turns.next_round();
            for (queue, load) in loads.iter().enumerate() {
                let burst = turns.burst(queue);
                let frames = load.frames.unwrap_or(BURST).min(burst);
                if frames == 0 {
                    continue;
                }
                had[queue].2 = had[queue].2.max(clock - seen[queue]);
                let time = frames as u64 * load.price;
                clock += time;
                seen[queue] = clock;
                had[queue].0 += time;
                had[queue].1 += frames as u64;
                turns.charge(queue, time, frames, frames as u64);
            }
        }
        had
    }

    fn shares(loads: &[Load]) -> Vec<u64> {
        let had = run(loads, 20_000);
        let all: u64 = had.iter().map(|h| h.0).sum();
        had.iter().map(|h| h.0 * 1000 / all).collect()
    }

    /// Frames that cost 20 times as much get no more time, and two floods of a kind half each.
    #[test]
    fn floods_share_time_not_frames() {
        for loads in [
            [flood(50), flood(50)],
            [flood(50), flood(1_000)],
            [flood(50), flood(30_000)],
        ] {
            let shares = shares(&loads);
            assert!(shares.iter().all(|s| (490..=510).contains(s)), "{shares:?}");
        }
        let among_five = shares(&[flood(50), flood(1_000), flood(1_000), flood(70), flood(25_000)]);
        assert!(
            among_five.iter().all(|s| (190..=210).contains(s)),
            "{among_five:?}"
        );
    }

    /// A queue that wants less than its share gets all it wants, and soon, whatever a flood does beside it.
    #[test]
    fn a_modest_queue_is_served_in_every_round() {
        let modest = Load {
            price: 50,
            frames: Some(20),
        };
        let had = run(&[flood(1_000), modest, flood(60_000)], 5_000);
        // One round in which a flood's price is not known yet, then a turn of each at most.
        assert_eq!(had[1].1, 20 * 5_000);
        let settled = run(&[flood(1_000), modest], 5_000);
        assert!(settled[1].2 <= 32_000, "{settled:?}");
    }

    #[test]
    fn alone_it_gets_every_round() {
        assert_eq!(run(&[flood(1_000)], 1_000)[0].0, 32_000 + 999 * 20_000);
        assert_eq!(run(&[flood(50)], 1_000)[0].1, 32_000);
    }

    /// Time that was not used is gone, and time that nobody else wanted is not owed.
    #[test]
    fn nothing_is_saved_up_or_owed() {
        let mut turns = Turns::new(LEAD, TURN, 1_000_000);
        turns.reset(2);
        for _ in 0..1_000 {
            turns.next_round();
            assert!(turns.burst(0) > 0 && turns.burst(1) > 0);
            turns.charge(0, TURN, 20, 20);
        }
        // Now the second one wants as well: it is not ahead by what the first has had.
        let mut passed = 0;
        for _ in 0..100 {
            turns.next_round();
            for queue in [0, 1] {
                if turns.burst(queue) == 0 {
                    passed += 1;
                } else {
                    turns.charge(queue, TURN, 20, 20);
                }
            }
        }
        assert!(passed <= 4, "{passed}");
    }

    /// An interruption of seconds is not paid for with seconds.
    #[test]
    fn an_interruption_is_soon_forgotten() {
        let mut turns = Turns::new(LEAD, TURN, 1_000_000);
        turns.reset(2);
        turns.next_round();
        turns.charge(0, u64::MAX / 4, 1, 1);
        turns.charge(1, 1_000, 1, 1);
        let mut rounds = 0;
        loop {
            turns.next_round();
            turns.charge(1, TURN, 20, 20);
            rounds += 1;
            if turns.burst(0) > 0 {
                break;
            }
        }
        assert!(rounds <= 1_000_000 / TURN + 1, "{rounds}");
    }

    /// A large frame that is cut into a thousand for the kernel: paid for whole, and a cheap one behind it lets no burst in.
    #[test]
    fn dear_frames_hide_behind_nothing() {
        let mut turns = Turns::new(LEAD, TURN, 1_000_000);
        turns.reset(2);
        turns.next_round();
        turns.charge(0, 3_000_000, 1, 1_365);
        turns.charge(1, 1_000, 1, 1);
        let mut rounds = 0;
        while turns.burst(0) == 0 {
            turns.charge(1, TURN, 20, 20);
            turns.next_round();
            rounds += 1;
        }
        assert!(rounds * TURN >= 3_000_000 - TURN, "{rounds}");
        assert_eq!(turns.burst(0), 1);
        turns.charge(0, 50, 1, 1);
        assert!(turns.queues[0].burst <= 2);
        (0..5).for_each(|_| turns.charge(0, 50, 1, 1));
        assert_eq!(usize::from(turns.queues[0].burst), BURST);
    }
}
