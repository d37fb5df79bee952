//! A run of numbered frames, both ways at once, over all queue pairs.
//!
//! Each frame carries how many its sender has received, so that the other end may keep no more than a window under
//! way: the pace is the slower end's, whatever else the machine does, and nothing has an excuse to be lost.

use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use vswitch_common::mbuf::{Checksum, Mbuf};
use vswitch_common::port::client::QueuePair;
use vswitch_tests::frames::Mac;
use vswitch_tests::stream::{Label, Receiver, Report, Stream};

use super::Words;
use super::attached::Client;

const BURST: usize = 32;
/// Sleep when there is nothing to do: frames ring the doorbell, rates and supplies do not.
const NAP: Duration = Duration::from_millis(1);
/// How much longer than for what it expects a run listens, in ms.
const LATE_MS: u64 = 5;

#[derive(Debug, Default)]
struct Plan {
    id: u16,
    expect: u16,
    source: Mac,
    destination: Mac,
    send: u64,
    receive: u64,
    min: usize,
    max: usize,
    window: u64,
    rate: u64,
    echo: bool,
    seconds: u64,
}

impl Plan {
    fn parse(words: Words<'_>) -> Result<Plan, String> {
        let mut plan = Plan::default();
        for word in words.0 {
            let (key, value) = word.split_once('=').ok_or("KEY=VALUE")?;
            let number = || value.parse::<u64>().map_err(|_| format!("{word:?} is no number"));
            match key {
                "id" => plan.id = number()? as u16,
                "expect" => plan.expect = number()? as u16,
                "source" => plan.source = mac(value)?,
                "destination" => plan.destination = mac(value)?,
                "send" => plan.send = number()?,
                "receive" => plan.receive = number()?,
                "min" => plan.min = number()? as usize,
                "max" => plan.max = number()? as usize,
                "window" => plan.window = number()?,
                "rate" => plan.rate = number()?,
                "echo" => plan.echo = number()? != 0,
                "seconds" => plan.seconds = number()?,
                other => return Err(format!("{other:?} is no part of a plan")),
            }
        }
        Ok(plan)
    }

    fn stream(&self, id: u16) -> Stream {
        Stream {
            id,
            source: self.source,
            destination: self.destination,
            min: self.min,
            max: self.max,
        }
    }
}

pub fn mac(hex: &str) -> Result<Mac, String> {
    let bits = u64::from_str_radix(hex, 16).map_err(|_| format!("{hex:?} is no MAC"))?;
    let [.., a, b, c, d, e, f] = bits.to_be_bytes();
    Ok([a, b, c, d, e, f])
}

/// The run's state.
struct Run {
    plan: Plan,
    start: Instant,
    report: Report,
    /// Next number of each queue pair's own stream.
    next: Vec<u64>,
    receivers: Vec<Receiver>,
    /// Frames of ours that the peer has received, as far as it told.
    delivered: u64,
    /// What we have told the peer.
    told: u64,
    acks: u64,
    last: Option<Instant>,
}

impl Client {
    /// `traffic KEY=VALUE...`: runs until all is sent and received, or time is up.
    pub fn traffic(&mut self, words: Words<'_>) -> Result<String, String> {
        let plan = Plan::parse(words)?;
        let queues = self.queues.len();
        if queues == 0 {
            return Err("not attached".into());
        }
        let expected = (0..queues as u16).map(|q| {
            if plan.echo {
                plan.stream(plan.id + q).swapped()
            } else {
                plan.stream(plan.expect + q).swapped()
            }
        });
        let mut run = Run {
            start: Instant::now(),
            report: Report::default(),
            next: vec![0; queues],
            receivers: expected.map(Receiver::new).collect(),
            delivered: 0,
            told: 0,
            acks: 0,
            last: None,
            plan,
        };
        let until = run.start + Duration::from_secs(run.plan.seconds);
        while !run.is_done() && Instant::now() < until {
            let mut worked = false;
            for (index, queue) in self.queues.iter_mut().enumerate() {
                worked |= run.receive(index, queue);
            }
            for (index, queue) in self.queues.iter_mut().enumerate() {
                worked |= run.send(index, queue);
            }
            worked |= run.acknowledge(&mut self.queues[0]);
            if !worked {
                self.sleep(NAP);
            }
        }
        run.report.ms = run.start.elapsed().as_millis() as u64;
        // What comes twice may do so last
        while run.is_done() && run.start.elapsed().as_millis() as u64 <= run.report.ms + LATE_MS {
            for (index, queue) in self.queues.iter_mut().enumerate() {
                run.receive(index, queue);
            }
            self.sleep(NAP);
        }
        Ok(run.report.to_string())
    }
}

impl Run {
    fn is_done(&self) -> bool {
        let came = self.report.received + self.report.altered;
        self.report.sent >= self.plan.send && came >= self.plan.receive
    }

    fn receive(&mut self, index: usize, queue: &mut QueuePair) -> bool {
        let mut frames = ArrayVec::<Mbuf, BURST>::new();
        queue.receive(&mut frames);
        if frames.is_empty() {
            return false;
        }
        let now = Instant::now();
        if let Some(last) = self.last.replace(now) {
            let gap = now.duration_since(last).as_micros() as u64;
            self.report.gap_us = self.report.gap_us.max(gap);
        }
        self.report.queues |= 1 << index;
        for frame in &frames {
            self.take(frame.data());
        }
        queue.release(&mut frames);
        true
    }

    fn take(&mut self, bytes: &[u8]) {
        let first = if self.plan.echo {
            self.plan.id
        } else {
            self.plan.expect
        };
        let label = Label::of(bytes);
        let receiver = label.and_then(|l| {
            let queue = usize::from(l.stream.checked_sub(first)?);
            Some((l, self.receivers.get_mut(queue)?))
        });
        match receiver {
            None => self.report.foreign += 1,
            Some((label, receiver)) => {
                if label.data {
                    receiver.take(&label, bytes, &mut self.report);
                }
                self.delivered = self.delivered.max(label.received);
            }
        }
        if self.plan.echo {
            self.delivered = self.report.received;
        }
    }

    /// Frames that may be sent now.
    fn allowance(&self) -> u64 {
        let Plan {
            send, window, rate, ..
        } = self.plan;
        let sent = self.report.sent;
        let mut allowed = send - sent;
        if window > 0 {
            allowed = allowed.min((self.delivered + window).saturating_sub(sent));
        }
        if rate > 0 {
            let due = self.start.elapsed().as_micros() as u64 * rate / 1_000_000;
            allowed = allowed.min(due.saturating_sub(sent));
        }
        allowed
    }

    fn send(&mut self, index: usize, queue: &mut QueuePair) -> bool {
        let mut want = self.allowance().min(BURST as u64) as usize;
        want = want.min(queue.tx_room());
        let mut frames = ArrayVec::<Mbuf, BURST>::new();
        while frames.len() < want {
            let mut one = ArrayVec::<Mbuf, 1>::new();
            queue.alloc(&mut one);
            let Some(mut mbuf) = one.pop() else { break };
            let label = Label {
                stream: self.plan.id + index as u16,
                data: true,
                number: self.next[index],
                received: self.report.received,
            };
            self.next[index] += 1;
            write(&self.plan.stream(label.stream), &label, &mut mbuf);
            frames.push(mbuf);
        }
        if frames.is_empty() {
            return false;
        }
        self.report.sent += frames.len() as u64;
        self.told = self.report.received;
        queue.send(&mut frames);
        assert!(frames.is_empty(), "the ring had room");
        true
    }

    /// Tells the peer what came, where no frame of ours did.
    fn acknowledge(&mut self, queue: &mut QueuePair) -> bool {
        let news = self.report.received - self.told;
        if self.plan.echo || self.plan.window == 0 || news == 0 || news < self.plan.window / 4 {
            return false;
        }
        let mut one = ArrayVec::<Mbuf, 1>::new();
        if queue.tx_room() > 0 {
            queue.alloc(&mut one);
        }
        let Some(mbuf) = one.first_mut() else { return false };
        let label = Label {
            stream: self.plan.id,
            data: false,
            number: self.acks,
            received: self.report.received,
        };
        write(&self.plan.stream(label.stream), &label, mbuf);
        queue.send(&mut one);
        self.acks += 1;
        self.told = self.report.received;
        true
    }
}

fn write(stream: &Stream, label: &Label, mbuf: &mut Mbuf) {
    let len = stream.write(label, mbuf.room_mut());
    mbuf.set_frame(len, Checksum::Unknown);
}
