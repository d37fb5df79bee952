//! Clients that write garbage on their rings until they are killed or put out, and connections that say nothing or
//! nonsense.

use std::time::{Duration, Instant};

use fastrand::Rng;

use super::record::{Deed, Record};
use crate::attach::Raw;
use crate::bare::Bare;
use crate::frames::{BROADCAST, Frame, mac};
use crate::switch::Switch;
use crate::wait::PATIENCE;

/// Fields of an mbuf's header.
const FIELDS: [&str; 13] = [
    "data_off",
    "data_len",
    "pkt_len",
    "nb_segs",
    "next",
    "refcnt",
    "pool",
    "buf_addr",
    "buf_iova",
    "buf_len",
    "priv_size",
    "ol_flags",
    "meta",
];

/// Whoever is at it on one port.
#[derive(Debug)]
pub struct Hostile<'a> {
    switch: &'a Switch,
    record: &'a Record,
    dice: Rng,
    port: u16,
}

impl<'a> Hostile<'a> {
    /// On port `port`.
    pub fn new(switch: &'a Switch, record: &'a Record, dice: Rng, port: u16) -> Hostile<'a> {
        Hostile {
            switch,
            record,
            dice,
            port,
        }
    }

    /// One after another until the time is up.
    pub fn run(mut self, until: Instant) {
        while Instant::now() < until {
            match self.dice.u8(..4) {
                0 => self.half_open(),
                _ => self.one_life(),
            }
        }
    }

    fn one_life(&mut self) {
        let mut client = Bare::attached(self.switch, self.port);
        let acts = self.dice.usize(1..12);
        let put_out = (0..acts).any(|_| !self.act(&mut client));
        if !put_out && self.dice.u8(..4) == 0 {
            self.derail(&mut client);
        }
        let deed = if put_out { Deed::Evicted } else { Deed::Hostile };
        self.record.tried(deed);
        if put_out {
            client.process().wait(PATIENCE);
        }
        client.kill();
        let dead = Instant::now();
        let mut next = Bare::start(self.switch, "after-hostile");
        let time = next.attach_timed(self.port);
        let attached = dead.elapsed();
        let granted = attached - (time.attached - time.granted);
        self.record.attached_again(deed, Some(granted), attached);
        // What was left of the one before would be on its rings.
        next.send(&[Frame::marked(mac(0x61), mac(3), 1, 60)]);
        self.record.survived(deed);
    }

    /// An address that may be anything.
    fn garbage(&mut self, own: &[u64]) -> u64 {
        let near = *self.dice.choice(own).expect("it has some");
        match self.dice.u8(..6) {
            0 => self.dice.u64(1..),
            1 => near ^ 1 << self.dice.u32(..64),
            2 => near.wrapping_add(self.dice.u64(..4096)).max(1),
            3 => self.dice.u64(1..4096),
            4 => (near & !0xff_ffff) + self.dice.u64(1..1 << 30),
            _ => near,
        }
    }

    /// Does something bad; false if the client was put out, or is dead.
    fn act(&mut self, client: &mut Bare) -> bool {
        let Some(own) = tell(client, "take 8") else {
            return false;
        };
        let own: Vec<u64> = own.split_whitespace().flat_map(str::parse).collect();
        if own.is_empty() {
            // It has had its share.
            return true;
        }
        let lines: Vec<String> = match self.dice.u8(..12) {
            0..3 => {
                let count = self.dice.usize(1..60);
                let garbage: Vec<String> = (0..count).map(|_| self.garbage(&own).to_string()).collect();
                vec![format!("push {} {}", self.ring(), garbage.join(" "))]
            }
            3 => vec![format!(
                "push {} {1} {1} {1}",
                self.ring(),
                own[self.dice.usize(..own.len())]
            )],
            4..9 => self.scribbled(&own),
            9 | 10 => vec!["ring-bells 20000".into()],
            _ => {
                let garbage: Vec<String> = (0..600).map(|_| self.dice.u64(1..).to_string()).collect();
                vec![format!("push tx {}", garbage.join(" ")); 5]
            }
        };
        lines.iter().all(|line| tell(client, line).is_some())
    }

    /// Moves an index. The last thing a client does: with wrong entries in hand it would write into others' frames,
    /// which nothing in shared memory can keep it from.
    fn derail(&mut self, client: &mut Bare) {
        let ring = *self.dice.choice(&["tx", "free", "rx", "alloc"]).expect("some");
        let end = *self.dice.choice(&["prod", "cons"]).expect("some");
        let by = self.dice.i64(-9000..9000);
        let _ = tell(client, &format!("index {ring} {end} {by}"));
        std::thread::sleep(Duration::from_millis(self.dice.u64(..20)));
    }

    fn ring(&mut self) -> &'static str {
        if self.dice.bool() { "tx" } else { "free" }
    }

    /// Frames whose headers lie, alone or in chains.
    fn scribbled(&mut self, own: &[u64]) -> Vec<String> {
        let mut lines = Vec::new();
        for address in own {
            let frame = Frame::marked(BROADCAST, mac(3), self.dice.u8(..), self.dice.usize(60..1500));
            lines.push(format!("write {address} {frame}"));
            let field = *self.dice.choice(&FIELDS).expect("some");
            let value = match field {
                "next" => self.garbage(own),
                _ if self.dice.bool() => self.dice.u64(..70_000),
                _ => self.dice.u64(..),
            };
            lines.push(format!("scribble {address} {field}={value}"));
            if field == "next" {
                lines.push(format!("scribble {address} nb_segs={}", self.dice.u16(..)));
            }
        }
        let all: Vec<String> = own.iter().map(u64::to_string).collect();
        lines.push(format!("push {} {}", self.ring(), all.join(" ")));
        lines
    }

    /// More connections than the switch keeps, some of which talk nonsense.
    fn half_open(&mut self) {
        self.record.tried(Deed::HalfOpen);
        let count = self.dice.usize(1..400);
        let path = self.switch.attach_socket();
        let mut open = Vec::new();
        for _ in 0..count {
            let Ok(connection) = Raw::connect(&path) else {
                break;
            };
            if self.dice.u8(..4) == 0 {
                let len = self.dice.usize(1..400);
                let noise: Vec<u8> = (0..len).map(|_| self.dice.u8(..)).collect();
                connection.send(&noise);
            }
            open.push(connection);
        }
        std::thread::sleep(Duration::from_millis(self.dice.u64(..50)));
        drop(open);
        self.record.survived(Deed::HalfOpen);
    }
}

/// What it answers, if only to complain; `None` if it is put out, and so killed.
fn tell(client: &mut Bare, line: &str) -> Option<String> {
    if !client.tell_if_alive(line) {
        return None;
    }
    let answer = client.answer_unless_dead(PATIENCE)?;
    Some(answer.unwrap_or_default())
}
