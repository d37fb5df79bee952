//! Numbered frames both ways for as long as the client lives, or until it is told to stop.
//!
//! A client that is killed gives no report, so the first frame that should not have come ends the load at once, and
//! its answer says which.

use std::io::stdin;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vswitch_common::mbuf::{Checksum, Mbuf};
use vswitch_common::port::client::QueuePair;
use vswitch_tests::stream::{Label, Report, Stream, Watch};

use super::Words;
use super::attached::Client;
use super::traffic::mac;

const BURST: usize = 32;
const NAP: Duration = Duration::from_millis(1);
/// Bursts between looks at standard input.
const LOOK: u32 = 64;

struct Load {
    stream: Stream,
    rate: u64,
    start: Instant,
    watch: Watch,
    report: Report,
    last: Option<Instant>,
}

impl Client {
    /// `load KEY=VALUE...`: sends and watches until there is another command.
    pub fn load(&mut self, words: Words<'_>) -> Result<String, String> {
        let mut load = Load::parse(words)?;
        let mut turn = 0u32;
        loop {
            let queue = self.queues.first_mut().ok_or("not attached")?;
            let worked = load.receive(queue)? | load.send(queue);
            turn = turn.wrapping_add(1);
            if (!worked || turn.is_multiple_of(LOOK)) && (self.told || is_told()) {
                load.report.ms = load.start.elapsed().as_millis() as u64;
                return Ok(load.report.to_string());
            }
            if !worked {
                self.sleep(NAP);
            }
        }
    }
}

/// Is there another command?
pub fn is_told() -> bool {
    let input = stdin();
    let mut fds = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO) != Ok(0)
}

impl Load {
    fn parse(words: Words<'_>) -> Result<Load, String> {
        let mut stream = Stream {
            id: 0,
            source: [0; 6],
            destination: [0; 6],
            min: 60,
            max: 1514,
        };
        let (mut expect, mut floor, mut rate, mut echo) = (0, 0, 0, false);
        for word in words.0 {
            let (key, value) = word.split_once('=').ok_or("KEY=VALUE")?;
            let number = || value.parse::<u64>().map_err(|_| format!("{word:?} is no number"));
            match key {
                "id" => stream.id = number()? as u16,
                "expect" => expect = number()? as u16,
                "floor" => floor = number()?,
                "source" => stream.source = mac(value)?,
                "destination" => stream.destination = mac(value)?,
                "rate" => rate = number()?,
                "echo" => echo = number()? != 0,
                other => return Err(format!("{other:?} is no part of a load")),
            }
        }
        if echo {
            expect = stream.id;
        }
        Ok(Load {
            // The peer's frames and a guest's echo alike have the addresses exchanged.
            watch: Watch::new(stream.swapped(), expect, floor),
            stream,
            rate,
            start: Instant::now(),
            report: Report::default(),
            last: None,
        })
    }

    fn receive(&mut self, queue: &mut QueuePair) -> Result<bool, String> {
        let mut frames = ArrayVec::<Mbuf, BURST>::new();
        queue.receive(&mut frames);
        if frames.is_empty() {
            return Ok(false);
        }
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            let gap = now.duration_since(last).as_micros() as u64;
            self.report.gap_us = self.report.gap_us.max(gap);
        }
        self.report.received += frames.len() as u64;
        let watched = frames.iter().try_for_each(|f| self.watch.take(f.data()));
        queue.release(&mut frames);
        watched.map(|()| true)
    }

    fn send(&mut self, queue: &mut QueuePair) -> bool {
        let mut want = BURST.min(queue.tx_room());
        if self.rate > 0 {
            let due = self.start.elapsed().as_micros() as u64 * self.rate / 1_000_000;
            want = want.min(due.saturating_sub(self.report.sent) as usize);
        }
        let mut frames = ArrayVec::<Mbuf, BURST>::new();
        while frames.len() < want {
            let mut one = ArrayVec::<Mbuf, 1>::new();
            queue.alloc(&mut one);
            let Some(mut mbuf) = one.pop() else { break };
            let label = Label {
                stream: self.stream.id,
                data: true,
                number: self.report.sent,
                received: 0,
            };
            let len = self.stream.write(&label, mbuf.room_mut());
            mbuf.set_frame(len, Checksum::Unknown);
            self.report.sent += 1;
            frames.push(mbuf);
        }
        let some = !frames.is_empty();
        queue.send(&mut frames);
        assert!(frames.is_empty(), "the ring had room");
        some
    }
}
