//! Two well-behaved clients with traffic between them at a steady pace, beside which things happen.

use std::time::Duration;

use crate::bare::{Bare, Traffic};
use crate::frames::{Frame, Mac, mac};
use crate::pauses::Pauses;
use crate::switch::Switch;

/// Longest silence that anything beside them may cause; a busy machine's scheduler has its part in it.
const OUTAGE: Duration = Duration::from_millis(500);

/// Their addresses.
const MACS: [Mac; 2] = [mac(0x61), mac(0x62)];

/// The two, at work.
#[derive(Debug)]
pub struct Bystanders {
    clients: [Bare; 2],
    /// Frames each way.
    count: u64,
    pauses: Pauses,
}

/// How they fared: every frame came, once, in order and unaltered.
#[derive(Debug, Clone, Copy)]
pub struct Calm {
    /// Frames that came, both ways together.
    pub frames: u64,
    /// Longest time without one at either.
    pub silence: Duration,
    /// Longest time that a CPU was away meanwhile: so much of the silence may be the machine's.
    pub away: Duration,
}

impl Bystanders {
    /// Attaches them to `ports` and lets them exchange `rate` frames a second, each way, for so many seconds. Each
    /// learns where the other is before, so that nobody is flooded with it.
    #[track_caller]
    pub fn start(switch: &Switch, ports: [u16; 2], rate: u64, seconds: u64) -> Bystanders {
        let mut clients = ports.map(|n| Bare::attached(switch, n));
        for (to, from) in [(0, 1), (1, 0)] {
            clients[from].send(&[Frame::marked(MACS[to], MACS[from], 0, 60)]);
            clients[to].receive(1);
        }
        let count = seconds * rate;
        let one = Traffic {
            source: MACS[0],
            destination: MACS[1],
            rate,
            seconds: 60 + seconds,
            ..Traffic::both_ways(count).0
        };
        let pauses = Pauses::watch();
        clients[0].start_traffic(&one);
        clients[1].start_traffic(&one.peer());
        Bystanders {
            clients,
            count,
            pauses,
        }
    }

    /// As [`finish`](Bystanders::finish), where what was done beside them may have made no long pause either.
    ///
    /// # Panics
    /// As there, and if it has.
    #[track_caller]
    pub fn finish_undisturbed(self) -> [Bare; 2] {
        let (clients, calm) = self.finish();
        assert!(calm.silence < OUTAGE + calm.away, "{calm:?}");
        clients
    }

    /// Waits for the end and checks that every frame came, others' between them or not.
    ///
    /// # Panics
    /// If one did not come, or came twice, late or altered.
    #[track_caller]
    pub fn finish(mut self) -> ([Bare; 2], Calm) {
        let mut silence = Duration::ZERO;
        for client in &mut self.clients {
            let report = client.report();
            report.assert_own(self.count);
            silence = silence.max(Duration::from_micros(report.gap_us));
        }
        let frames = 2 * self.count;
        let away = self.pauses.longest();
        println!(
            "beside it: {frames} frames, longest silence {silence:?}, a CPU was away for {away:?} at most"
        );
        let calm = Calm {
            frames,
            silence,
            away,
        };
        (self.clients, calm)
    }
}
