//! Frames without end and without contents, for measurements: as many as a bare client can move.

use crate::bare::{Bare, hex};
use crate::frames::{BROADCAST, Mac, mac};
use crate::wait::PATIENCE;

/// What a client sends.
#[derive(Debug, Clone, Copy)]
pub struct Blast {
    pub destination: Mac,
    pub source: Mac,
    /// Addresses that frames come from in turn, which differ in their last four bytes. 1: `source` alone.
    pub count: u32,
    /// Which of them is first.
    pub first: u32,
    /// Frames a second. 0: as many as the switch takes.
    pub rate: u32,
    /// How many more than have come: with a peer that does the same, so many of each are under way. 0: no limit.
    pub window: u32,
}

impl Default for Blast {
    /// As fast as can be, from one address to all.
    fn default() -> Blast {
        Blast {
            destination: BROADCAST,
            source: mac(1),
            count: 1,
            first: 0,
            rate: 0,
            window: 0,
        }
    }
}

/// What a client moved.
#[derive(Debug, Clone, Copy)]
pub struct Blasted {
    pub sent: u64,
    pub received: u64,
}

impl Bare {
    /// Starts to send, or with `None` only to take what comes, until [`Bare::stop_blast`].
    #[track_caller]
    pub fn start_blast(&mut self, blast: Option<&Blast>) {
        let keys = blast.map_or(String::new(), |b| {
            format!(
                "destination={} source={} count={} first={} rate={} window={}",
                hex(b.destination),
                hex(b.source),
                b.count,
                b.first,
                b.rate,
                b.window
            )
        });
        self.tell(&format!("blast {keys}"));
    }

    /// Ends that.
    ///
    /// # Panics
    /// If the client does not.
    #[track_caller]
    pub fn stop_blast(&mut self) -> Blasted {
        self.tell("stop");
        let mut answer = || self.answer(PATIENCE).unwrap_or_else(|e| panic!("blast: {e}"));
        let (blasted, _) = (answer(), answer());
        let numbers: Vec<u64> = blasted.split_whitespace().flat_map(str::parse).collect();
        match numbers[..] {
            [sent, received] => Blasted { sent, received },
            _ => panic!("blast: {blasted:?}"),
        }
    }
}
