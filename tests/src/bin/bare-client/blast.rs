//! Frames as fast as a client can move them, or at a steady pace, for measurements: it writes nothing but their
//! Ethernet headers and looks at none that come.

use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use vswitch_common::mbuf::{Checksum, Mbuf};
use vswitch_common::port::client::QueuePair;
use vswitch_tests::frames::{EXPERIMENT, Mac};

use super::Words;
use super::attached::Client;
use super::load::is_told;
use super::traffic::mac;

const BURST: usize = 32;
/// Without the check sequence: 64 bytes on a wire.
const FRAME: usize = 60;
/// Bursts sent at a stretch, before others that share this CPU have their turn. They fit a ring.
const SPELL: usize = 8;
/// Sleep between looks at the clock.
const NAP: Duration = Duration::from_millis(1);
/// Turns between looks at standard input.
const LOOK: u32 = 16;

/// What is sent. Frames come from `count` addresses in turn, which differ in their last four bytes.
struct Blast {
    destination: Mac,
    source: Mac,
    count: u32,
    next: u32,
    /// Frames a second; 0: as many as the switch takes.
    rate: u64,
    /// How many more than have come; 0: no limit.
    window: u64,
    sent: u64,
    start: Instant,
    /// Mbufs to send in: those of frames that came, and others where these are too few.
    empty: ArrayVec<Mbuf, { SPELL * BURST }>,
}

impl Client {
    /// `blast [KEY=VALUE...]`: sends, takes what comes and gives it back, until there is another command. Without
    /// a key it sends nothing.
    pub fn blast(&mut self, words: Words<'_>) -> Result<String, String> {
        let mut blast = Blast::parse(words)?;
        let queue = self.queues.first_mut().ok_or("not attached")?;
        let mut received = 0;
        for turn in 1u32.. {
            received += drain(queue, blast.as_mut());
            if let Some(blast) = &mut blast {
                (0..SPELL).all(|_| blast.send(queue, received));
            }
            if turn.is_multiple_of(LOOK) && (self.told || is_told()) {
                break;
            }
            match &blast {
                Some(Blast { rate: 1.., .. }) => std::thread::sleep(NAP),
                _ => std::thread::yield_now(),
            }
        }
        // What came before the command did.
        received += drain(queue, None);
        let sent = blast.map_or(0, |mut blast| {
            queue.release(&mut blast.empty);
            blast.sent
        });
        Ok(format!("{sent} {received}"))
    }
}

/// Takes all that waits, keeps of it what can be sent next and gives the rest back; how many that was.
fn drain(queue: &mut QueuePair, mut blast: Option<&mut Blast>) -> u64 {
    let mut received = 0;
    let mut frames = ArrayVec::<Mbuf, { 2 * BURST }>::new();
    loop {
        queue.receive(&mut frames);
        if frames.is_empty() {
            return received;
        }
        received += frames.len() as u64;
        if let Some(Blast { empty, .. }) = &mut blast {
            let rest = frames.len().saturating_sub(empty.remaining_capacity());
            empty.extend(frames.drain(rest..));
        }
        queue.release(&mut frames);
    }
}

impl Blast {
    fn parse(words: Words<'_>) -> Result<Option<Blast>, String> {
        let mut blast = Blast {
            destination: [0; 6],
            source: [0; 6],
            count: 1,
            next: 0,
            rate: 0,
            window: 0,
            sent: 0,
            start: Instant::now(),
            empty: ArrayVec::new(),
        };
        let mut some = false;
        for word in words.0 {
            let (key, value) = word.split_once('=').ok_or("KEY=VALUE")?;
            let number = || value.parse::<u32>().map_err(|_| format!("{word:?} is no number"));
            match key {
                "destination" => blast.destination = mac(value)?,
                "source" => blast.source = mac(value)?,
                "count" => blast.count = number()?.max(1),
                "first" => blast.next = number()?,
                "rate" => blast.rate = number()?.into(),
                "window" => blast.window = number()?.into(),
                other => return Err(format!("{other:?} is no part of a blast")),
            }
            some = true;
        }
        Ok(some.then_some(blast))
    }

    /// Sends a burst; false if less than that could be sent, or is due. `received` frames have come.
    fn send(&mut self, queue: &mut QueuePair, received: u64) -> bool {
        let mut want = BURST.min(queue.tx_room());
        if self.window > 0 {
            want = want.min((received + self.window).saturating_sub(self.sent) as usize);
        }
        if self.rate > 0 {
            let due = self.start.elapsed().as_micros() as u64 * self.rate / 1_000_000;
            want = want.min(due.saturating_sub(self.sent) as usize);
        }
        let mut frames = ArrayVec::<Mbuf, BURST>::new();
        frames.extend(self.empty.drain(self.empty.len().saturating_sub(want)..));
        if frames.len() < want {
            queue.alloc(&mut frames);
            self.empty.extend(frames.drain(want.min(frames.len())..));
        }
        for frame in &mut frames {
            let header = self.header();
            frame.room_mut()[..header.len()].copy_from_slice(&header);
            frame.set_frame(FRAME, Checksum::Unknown);
        }
        let full = frames.is_full();
        self.sent += frames.len() as u64;
        queue.send(&mut frames);
        assert!(frames.is_empty(), "the ring had room");
        full
    }

    /// The next frame's header.
    fn header(&mut self) -> [u8; 14] {
        let mut bytes = [0; 14];
        bytes[..6].copy_from_slice(&self.destination);
        bytes[6..12].copy_from_slice(&self.source);
        if self.count > 1 {
            bytes[8..12].copy_from_slice(&self.next.to_be_bytes());
            self.next = (self.next + 1) % self.count;
        }
        bytes[12..].copy_from_slice(&EXPERIMENT.to_be_bytes());
        bytes
    }
}
