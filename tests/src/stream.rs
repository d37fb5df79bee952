//! Numbered frames: every byte of one follows from its stream, its number and the count it acknowledges, so that a
//! receiver can tell a lost, doubled, late or altered one from a good one.
//!
//! ```text
//! 0   destination, source, EtherType 0x88b5
//! 14  stream id (2), kind (1: data, 2: acknowledgement), 0
//! 18  number (8)
//! 26  frames received so far by the sender of this one (8)
//! 34  filling, drawn from all the above
//! ```

use std::fmt;
use std::str::FromStr;

use crate::frames::{EXPERIMENT, Frame, Mac};

/// Bytes before the filling.
pub const HEADER: usize = 34;

/// A stream of frames from one station to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    pub id: u16,
    pub source: Mac,
    pub destination: Mac,
    /// Bytes of the shortest and of the longest frame.
    pub min: usize,
    pub max: usize,
}

/// What a frame says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label {
    pub stream: u16,
    pub data: bool,
    pub number: u64,
    pub received: u64,
}

fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

impl Label {
    /// Reads the label of a frame; `None` if it is none of ours.
    pub fn of(bytes: &[u8]) -> Option<Label> {
        if bytes.len() < HEADER || bytes[12..14] != EXPERIMENT.to_be_bytes() || bytes[17] != 0 {
            return None;
        }
        let number = |at: usize| bytes[at..].first_chunk().map(|b| u64::from_be_bytes(*b));
        Some(Label {
            stream: u16::from_be_bytes([bytes[14], bytes[15]]),
            data: match bytes[16] {
                1 => true,
                2 => false,
                _ => return None,
            },
            number: number(18)?,
            received: number(26)?,
        })
    }

    fn fill(&self, bytes: &mut [u8]) {
        let seed =
            u64::from(self.stream) << 48 ^ u64::from(self.data) << 47 ^ self.number ^ self.received << 24;
        let mut state = mix(seed);
        for chunk in bytes.chunks_mut(8) {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            chunk.copy_from_slice(&(state ^ state >> 29).to_be_bytes()[..chunk.len()]);
        }
    }
}

impl Stream {
    /// Bytes of the frame with this label. All lengths of the range come up.
    pub fn len_of(&self, label: &Label) -> usize {
        let span = (self.max - self.min + 1) as u64;
        if label.data {
            self.min + (mix(label.number) % span) as usize
        } else {
            self.min
        }
    }

    /// Writes the frame with this label to the beginning of `room`; returns its length.
    pub fn write(&self, label: &Label, room: &mut [u8]) -> usize {
        let len = self.len_of(label);
        let frame = &mut room[..len];
        frame[..6].copy_from_slice(&self.destination);
        frame[6..12].copy_from_slice(&self.source);
        frame[12..14].copy_from_slice(&EXPERIMENT.to_be_bytes());
        frame[14..16].copy_from_slice(&label.stream.to_be_bytes());
        frame[16] = if label.data { 1 } else { 2 };
        frame[17] = 0;
        frame[18..26].copy_from_slice(&label.number.to_be_bytes());
        frame[26..34].copy_from_slice(&label.received.to_be_bytes());
        label.fill(&mut frame[HEADER..]);
        len
    }

    /// Are these the very bytes that [`Stream::write`] makes for this label?
    pub fn is_intact(&self, label: &Label, bytes: &[u8]) -> bool {
        let mut expected = [0u8; 2048];
        let len = self.write(label, &mut expected);
        bytes == &expected[..len]
    }

    /// The stream that comes back from a guest which exchanges the addresses.
    #[must_use]
    pub fn swapped(&self) -> Stream {
        Stream {
            source: self.destination,
            destination: self.source,
            ..*self
        }
    }
}

/// What a receiver found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    pub sent: u64,
    pub received: u64,
    pub lost: u64,
    pub doubled: u64,
    pub late: u64,
    pub altered: u64,
    /// Frames that belong to no stream.
    pub foreign: u64,
    /// Longest time between two frames, in microseconds.
    pub gap_us: u64,
    pub ms: u64,
    /// Queue pairs by which frames came, as bits.
    pub queues: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report {
            sent,
            received,
            lost,
            doubled,
            late,
            altered,
            foreign,
            gap_us,
            ms,
            queues,
        } = self;
        write!(
            f,
            "{sent} {received} {lost} {doubled} {late} {altered} {foreign} {gap_us} {ms} {queues}"
        )
    }
}

impl FromStr for Report {
    type Err = String;

    fn from_str(text: &str) -> Result<Report, String> {
        let numbers: Result<Vec<u64>, _> = text.split_whitespace().map(str::parse).collect();
        match numbers.as_deref() {
            Ok(
                &[
                    sent,
                    received,
                    lost,
                    doubled,
                    late,
                    altered,
                    foreign,
                    gap_us,
                    ms,
                    queues,
                ],
            ) => Ok(Report {
                sent,
                received,
                lost,
                doubled,
                late,
                altered,
                foreign,
                gap_us,
                ms,
                queues,
            }),
            _ => Err(format!("{text:?} is no report")),
        }
    }
}

impl Report {
    /// Checks that exactly `count` frames of the stream came, each once, in order and unaltered; others may have come
    /// between them.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    pub fn assert_own(&self, count: u64) {
        Report { foreign: 0, ..*self }.assert_all(count);
    }

    /// Checks that exactly `count` frames came, each once, in order and unaltered.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    pub fn assert_all(&self, count: u64) {
        let faults = [self.lost, self.doubled, self.late, self.altered, self.foreign];
        assert!(
            self.received == count && faults.iter().all(|&n| n == 0),
            "{count} frames expected: {self:?}"
        );
    }
}

/// Keeps account of the frames of one stream that arrive.
#[derive(Debug)]
pub struct Receiver {
    stream: Stream,
    next: u64,
    seen: Vec<u64>,
}

impl Receiver {
    /// For the frames of `stream`.
    pub fn new(stream: Stream) -> Receiver {
        Receiver {
            stream,
            next: 0,
            seen: Vec::new(),
        }
    }

    /// Takes a frame of its stream into account.
    pub fn take(&mut self, label: &Label, bytes: &[u8], report: &mut Report) {
        if !self.stream.is_intact(label, bytes) {
            report.altered += 1;
            return;
        }
        let (word, bit) = ((label.number / 64) as usize, 1 << (label.number % 64));
        if self.seen.len() <= word {
            self.seen.resize(word + 1, 0);
        }
        if self.seen[word] & bit != 0 {
            report.doubled += 1;
            return;
        }
        self.seen[word] |= bit;
        report.received += 1;
        if label.number >= self.next {
            report.lost += label.number - self.next;
            self.next = label.number + 1;
        } else {
            report.late += 1;
            report.lost -= 1;
        }
    }
}

/// Watches frames of streams that follow each other, as each time their sender is replaced: in a stream numbers may be
/// missing but only rise, and once a stream has begun nothing of an earlier one comes any more. What breaks that
/// was delivered twice, or was meant for somebody who is dead.
#[derive(Debug)]
pub struct Watch {
    /// Of any of the streams; its id does not matter.
    like: Stream,
    id: u16,
    next: u64,
}

impl Watch {
    /// From number `floor` of stream `id` on. All streams have the addresses and lengths of `like`.
    pub fn new(like: Stream, id: u16, floor: u64) -> Watch {
        Watch {
            like,
            id,
            next: floor,
        }
    }

    /// Looks at a frame.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn take(&mut self, bytes: &[u8]) -> Result<(), String> {
        let Some(label) = Label::of(bytes).filter(|l| l.data) else {
            return Err(format!("a frame of nobody's: {:?}", Frame::new(bytes)));
        };
        if !self.like.is_intact(&label, bytes) {
            return Err(format!("an altered frame: {label:?} {:?}", Frame::new(bytes)));
        }
        // Ids go round.
        let newer = label.stream.wrapping_sub(self.id) as i16;
        if newer < 0 || (newer == 0 && label.number < self.next) {
            return Err(format!(
                "a frame that is stale or came twice: {label:?} after number {} of stream {}",
                self.next, self.id
            ));
        }
        (self.id, self.next) = (label.stream, label.number + 1);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: Stream = Stream {
        id: 3,
        source: [2; 6],
        destination: [4; 6],
        min: 60,
        max: 1514,
    };

    fn frame(number: u64) -> Vec<u8> {
        let mut room = [0; 2048];
        let label = Label {
            stream: 3,
            data: true,
            number,
            received: 9,
        };
        let len = STREAM.write(&label, &mut room);
        room[..len].to_vec()
    }

    fn report_of(frames: &[Vec<u8>]) -> Report {
        let (mut receiver, mut report) = (Receiver::new(STREAM), Report::default());
        for bytes in frames {
            receiver.take(&Label::of(bytes).unwrap(), bytes, &mut report);
        }
        report
    }

    #[test]
    fn each_fault_is_told_from_the_others() {
        let report = report_of(&[frame(0), frame(1), frame(3), frame(2), frame(3), frame(6)]);
        assert_eq!(
            (report.received, report.lost, report.late, report.doubled),
            (5, 2, 1, 1)
        );
        let mut bad = frame(0);
        *bad.last_mut().unwrap() ^= 1;
        let mut short = frame(1);
        short.pop();
        let mut count = frame(2);
        count[33] ^= 1;
        assert_eq!(report_of(&[bad, short, count]).altered, 3);
    }

    #[test]
    fn a_watch_lets_gaps_pass_and_nothing_else() {
        let of = |stream: u16, number: u64| {
            let mut room = [0; 2048];
            let label = Label {
                stream,
                data: true,
                number,
                received: 0,
            };
            let len = STREAM.write(&label, &mut room);
            room[..len].to_vec()
        };
        let watched = |frames: &[(u16, u64)]| {
            let mut watch = Watch::new(STREAM, u16::MAX, 7);
            frames.iter().all(|&(s, n)| watch.take(&of(s, n)).is_ok())
        };
        assert!(watched(&[(u16::MAX, 7), (u16::MAX, 9), (0, 0), (0, 5), (2, 1)]));
        for wrong in [
            &[(u16::MAX, 6)][..],
            &[(u16::MAX, 8), (u16::MAX, 8)],
            &[(u16::MAX, 9), (u16::MAX, 8)],
            &[(1, 0), (u16::MAX, 100)],
            &[(u16::MAX - 1, 100)],
        ] {
            assert!(!watched(wrong), "{wrong:?}");
        }
        let mut altered = of(0, 0);
        altered[40] ^= 1;
        assert!(Watch::new(STREAM, 0, 0).take(&altered).is_err());
        assert!(Watch::new(STREAM, 0, 0).take(&[0; 60]).is_err());
    }

    #[test]
    fn lengths_cover_the_range() {
        let lengths: std::collections::BTreeSet<usize> = (0..20_000).map(|n| frame(n).len()).collect();
        assert_eq!(lengths.len(), 1514 - 60 + 1);
    }
}
