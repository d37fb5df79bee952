//! Two clients that load each other on a bridge of their own, and are replaced as they die.
//!
//! Whoever comes next must see no frame that was on its way to its predecessor. What its peer has sent by then is
//! known: the switch counts what it has taken off the peer's ring, and all of that was delivered, or dropped, before
//! the successor came.

use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::signal::Signal;
use vswitch_common::stats::Counter;

use super::oom::Group;
use super::record::{Deed, Record};
use crate::bare::{Bare, Load};
use crate::frames::mac;
use crate::switch::Switch;
use crate::wait::{PATIENCE, within};

/// Frames a second of a load; 0: as many as it can, which leaves little of a small machine for anything else.
const RATES: [u64; 8] = [1_000, 5_000, 5_000, 5_000, 20_000, 20_000, 20_000, 0];

#[derive(Debug)]
pub struct Couple<'a> {
    switch: &'a Switch,
    record: &'a Record,
    dice: Rng,
    bridge: &'a str,
    group: Option<Group>,
    /// May its ports be deleted and added again?
    evict: bool,
    sides: [Side; 2],
    /// The next stream; one for each load.
    next_id: u16,
}

#[derive(Debug)]
struct Side {
    port: u16,
    client: Bare,
    /// Stream and number of the first frame that it may see.
    first: (u16, u64),
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    /// Keeps empty mbufs, and the frames that come.
    Holding,
    /// Sends stream `id`; its port had counted `base` frames when it began.
    Loaded {
        id: u16,
        base: u64,
    },
}

impl<'a> Couple<'a> {
    /// Attaches two clients to `ports`, which are all that `bridge` has.
    pub fn attach(
        switch: &'a Switch,
        record: &'a Record,
        dice: Rng,
        bridge: &'a str,
        ports: [u16; 2],
        evict: bool,
    ) -> Couple<'a> {
        let sides = ports.map(|port| Side {
            port,
            client: Bare::attached(switch, port),
            first: (0, 0),
            state: State::Idle,
        });
        Couple {
            switch,
            record,
            dice,
            bridge,
            group: Group::new(bridge),
            evict,
            sides,
            next_id: 0,
        }
    }

    /// Lets them die by turns until the time is up.
    pub fn run(mut self, until: Instant) {
        self.occupy(0);
        self.occupy(1);
        while Instant::now() < until {
            let side = self.dice.usize(..2);
            self.strike(side);
        }
        for side in 0..2 {
            self.rest(side);
            self.sides[side].client.kill_content();
        }
    }

    fn peer(&self, side: usize) -> &Side {
        &self.sides[1 - side]
    }

    /// Frames that the switch has taken in from port `port`.
    fn taken(&self, port: u16) -> u64 {
        self.switch.count(&format!("dpdkr{port}"), Counter::RxPackets)
    }

    /// Stream and number of the first frame that a client which attaches from now on may see.
    fn first(&self, side: usize) -> (u16, u64) {
        match self.peer(side).state {
            State::Loaded { id, base } => (id, self.taken(self.peer(side).port) - base),
            State::Idle | State::Holding => (self.next_id, 0),
        }
    }

    /// Gives the client of `side` something to do, or nothing.
    fn occupy(&mut self, side: usize) {
        match self.dice.u8(..8) {
            0 => self.sides[side].state = State::Idle,
            1 => {
                let count = self.dice.usize(1..200);
                self.sides[side].client.take(count);
                self.sides[side].state = State::Holding;
            }
            _ => {
                let rate = *self.dice.choice(&RATES).expect("there are some");
                self.load(side, rate);
            }
        }
    }

    fn load(&mut self, side: usize, rate: u64) {
        let (port, peer) = (self.sides[side].port, self.peer(side).port);
        let (expect, floor) = self.sides[side].first;
        let (id, base) = (self.next_id, self.taken(port));
        self.next_id = id.wrapping_add(1);
        let own = &mut self.sides[side];
        own.client.start_load(&Load {
            id,
            expect,
            floor,
            source: mac(port as u8),
            destination: mac(peer as u8),
            rate,
            echo: false,
        });
        own.state = State::Loaded { id, base };
    }

    /// Ends its load, if it has one.
    fn rest(&mut self, side: usize) {
        let own = &mut self.sides[side];
        if let State::Loaded { .. } = own.state {
            self.record.checked(own.client.stop_load().received);
            own.state = State::Idle;
        }
    }

    fn choose(&mut self, side: usize) -> Deed {
        let kill = match self.sides[side].state {
            State::Idle => Deed::KillIdle,
            State::Holding => Deed::KillHolding,
            State::Loaded { .. } => Deed::KillLoaded,
        };
        match self.dice.u8(..24) {
            0..4 => Deed::KillAttaching,
            4 | 5 => Deed::Segv,
            6 if self.group.is_some() => Deed::Oom,
            7 => Deed::StopKill,
            8 => Deed::Stop,
            9 => Deed::Detach,
            10 if self.evict => Deed::StopEvict,
            _ => kill,
        }
    }

    fn pause(&mut self, most_ms: u64) {
        std::thread::sleep(Duration::from_micros(self.dice.u64(..most_ms * 1000)));
    }

    fn strike(&mut self, side: usize) {
        let deed = self.choose(side);
        self.record.tried(deed);
        self.pause(15);
        if deed == Deed::Stop {
            self.sides[side].client.signal(Signal::SIGSTOP);
            self.pause(300);
            self.sides[side].client.signal(Signal::SIGCONT);
            return self.record.survived(deed);
        }
        // Started before, as only its attach is to be timed.
        let mut successor = Bare::start(self.switch, "successor");
        self.end(side, deed);
        let port = self.sides[side].port;
        if deed == Deed::KillAttaching {
            let mut next = Bare::start(self.switch, "successor");
            successor.start_attaching(port);
            self.pause(30);
            successor.kill_content();
            std::mem::swap(&mut successor, &mut next);
        }
        let dead = Instant::now();
        let first = self.first(side);
        let time = successor.attach_timed(port);
        let attached = dead.elapsed();
        let granted = attached - (time.attached - time.granted);
        self.record.attached_again(deed, Some(granted), attached);
        (self.sides[side].client, self.sides[side].first) = (successor, first);
        self.occupy(side);
        self.record.survived(deed);
    }

    /// Brings the client of `side` to its end.
    fn end(&mut self, side: usize, deed: Deed) {
        let port = self.sides[side].port;
        match deed {
            Deed::Segv => {
                // Rust's handler takes the first one for a question of its own.
                let client = &mut self.sides[side].client;
                let dead = within(PATIENCE, || {
                    client.signal(Signal::SIGSEGV);
                    client.process().ended().is_some()
                });
                assert!(dead, "SIGSEGV does not end a client");
            }
            Deed::Oom => {
                self.rest(side);
                let pid = self.sides[side].client.pid();
                self.group.iter().for_each(|group| group.take_in(pid));
                self.sides[side].client.ok("hog");
                self.load(side, 20_000);
                self.sides[side].client.process().wait(PATIENCE);
            }
            Deed::StopKill => {
                self.sides[side].client.signal(Signal::SIGSTOP);
                self.pause(50);
            }
            Deed::StopEvict => {
                let bridge = self.bridge;
                self.sides[side].client.signal(Signal::SIGSTOP);
                self.switch.vsctl(&format!("del-port dpdkr{port}"));
                // The switch waits for its own end, and sees to it.
                self.sides[side].client.process().wait(PATIENCE);
                self.switch.vsctl(&format!(
                    "add-port {bridge} dpdkr{port} -- set Interface dpdkr{port} type=dpdkr"
                ));
            }
            Deed::Detach => {
                self.rest(side);
                self.sides[side].client.ok("detach");
            }
            _ => {}
        }
        self.sides[side].client.kill_content();
        self.sides[side].state = State::Idle;
    }
}
