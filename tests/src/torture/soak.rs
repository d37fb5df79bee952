//! Attach, detach, traffic, ports and bridges that come and go, VLAN changes and kills at random, against a model that
//! foretells every counter of every port and every frame that each client gets.

mod model;

use std::collections::BTreeMap;
use std::time::Instant;

use fastrand::Rng;
use model::{Port, Vlan};
use vswitch_common::stats::Counter;

use super::record::{Deed, Record};
use crate::bare::Bare;
use crate::frames::{BROADCAST, Frame, Mac, mac};
use crate::switch::Switch;
use crate::wait::{PATIENCE, eventually, within};

const BRIDGES: [&str; 2] = ["soak0", "soak1"];
const PORTS: std::ops::Range<u16> = 101..107;
const VLANS: [u16; 2] = [10, 20];
/// Frames of a burst. All of it fits a ring.
const BURST: usize = 60;

/// The model and the clients that go with it.
#[derive(Debug)]
pub struct Soak<'a> {
    switch: &'a Switch,
    record: &'a Record,
    dice: Rng,
    ports: BTreeMap<u16, Port>,
    clients: BTreeMap<u16, Bare>,
    /// Tells one burst from another.
    mark: u8,
}

impl<'a> Soak<'a> {
    /// Two bridges without ports.
    #[track_caller]
    pub fn start(switch: &'a Switch, record: &'a Record, dice: Rng) -> Soak<'a> {
        for bridge in BRIDGES {
            switch.add_bridge(bridge, &[]);
        }
        Soak {
            switch,
            record,
            dice,
            ports: BTreeMap::new(),
            clients: BTreeMap::new(),
            mark: 0,
        }
    }

    /// Does something, and compares, until the time is up. Then everything is taken away again.
    #[track_caller]
    pub fn run(mut self, until: Instant) {
        for number in PORTS {
            self.add_port(number);
            self.attach(number);
        }
        while Instant::now() < until {
            let number = self.dice.u16(PORTS);
            match (self.ports.contains_key(&number), self.dice.u8(..20)) {
                (false, _) => self.add_port(number),
                (true, 0) => self.delete_port(number),
                (true, 1) => self.change_vlan(number),
                (true, 2) if self.dice.u8(..4) == 0 => self.replace_bridge(),
                (true, roll) => match (self.clients.contains_key(&number), roll) {
                    (false, _) => self.attach(number),
                    (true, 2..5) => self.part(number),
                    (true, 5 | 6) => self.bad_frames(number),
                    (true, 7) => self.behind_the_same_port(number),
                    (true, 8..13) => self.unicast(number),
                    (true, _) => self.broadcast(number),
                },
            }
            self.compare();
        }
        self.clients.clear();
        for bridge in BRIDGES {
            self.switch.vsctl(&format!("del-br {bridge}"));
        }
    }

    /// Every counter of every port is as foretold.
    #[track_caller]
    fn compare(&mut self) {
        self.record.tried(Deed::Soak);
        let mut fault = None;
        within(PATIENCE, || {
            let snapshot = self.switch.snapshot();
            fault = self.ports.iter().find_map(|(number, port)| {
                let name = format!("dpdkr{number}");
                match snapshot.ports.iter().find(|p| p.info.name == name) {
                    Some(found) => port.differs(found).map(|text| format!("{name}: {text}")),
                    None => Some(format!("{name} is not there")),
                }
            });
            fault.is_none()
        });
        if let Some(fault) = fault {
            panic!("{fault}; all counters:\n{}", self.switch.counters());
        }
        self.record.survived(Deed::Soak);
    }

    fn add_port(&mut self, number: u16) {
        let bridge = self.dice.usize(..BRIDGES.len());
        self.switch.vsctl(&format!(
            "add-port {} dpdkr{number} -- set Interface dpdkr{number} type=dpdkr",
            BRIDGES[bridge]
        ));
        self.ports.insert(number, Port::new(bridge));
    }

    /// With its client, if it has one: the switch sees to that one's end.
    fn delete_port(&mut self, number: u16) {
        self.switch.vsctl(&format!("del-port dpdkr{number}"));
        self.ports.remove(&number);
        self.clients.remove(&number);
    }

    fn replace_bridge(&mut self) {
        let bridge = self.dice.usize(..BRIDGES.len());
        let name = BRIDGES[bridge];
        self.switch.vsctl(&format!("del-br {name}"));
        let gone = self.ports.extract_if(.., |_, port| port.bridge == bridge);
        for (number, _) in gone {
            self.clients.remove(&number);
        }
        self.switch.add_bridge(name, &[]);
    }

    fn change_vlan(&mut self, number: u16) {
        let vlan = match self.dice.usize(..=VLANS.len()) {
            n if n < VLANS.len() => Vlan::Access(VLANS[n]),
            _ => Vlan::Trunk,
        };
        self.switch.vsctl(&match vlan {
            Vlan::Access(tag) => format!("set Port dpdkr{number} tag={tag}"),
            Vlan::Trunk => format!("clear Port dpdkr{number} tag"),
        });
        if let Some(port) = self.ports.get_mut(&number) {
            port.vlan = vlan;
        }
    }

    fn attach(&mut self, number: u16) {
        self.clients.insert(number, Bare::attached(self.switch, number));
        if let Some(port) = self.ports.get_mut(&number) {
            port.add(Counter::Attached, 1);
        }
    }

    /// The client leaves in order, or is killed.
    fn part(&mut self, number: u16) {
        let Some(mut client) = self.clients.remove(&number) else {
            return;
        };
        if self.dice.bool() {
            client.ok("detach");
        }
        client.kill_content();
        // Its death is seen by the switch a moment later, and until then frames go to its rings.
        let name = format!("dpdkr{number}");
        eventually("the port has no link", || !self.switch.port(&name).info.link);
    }

    /// A new mark and a length, so that no two bursts are alike.
    fn frame(&mut self, destination: Mac, source: Mac) -> Frame {
        self.mark = self.mark.wrapping_add(1);
        Frame::marked(destination, source, self.mark, self.dice.usize(60..1500))
    }

    /// Sends `frame` so many times by port `number`, and sees that exactly those clients get it that must.
    #[track_caller]
    fn send(&mut self, number: u16, frame: &Frame, count: usize) {
        let arrivals = model::forward(&mut self.ports, &self.clients, number, frame, count);
        let sender = self.clients.get_mut(&number).expect("it is attached");
        sender.send(&vec![frame.clone(); count]);
        for (target, expected) in arrivals {
            let receiver = self.clients.get_mut(&target).expect("it is attached");
            let came = receiver.receive(count);
            assert!(
                came.iter().all(|f| *f == expected),
                "port {target}: {expected:?} was expected: {came:?}"
            );
            self.record.checked(count as u64);
        }
    }

    fn count(&mut self) -> usize {
        self.dice.usize(1..=BURST)
    }

    fn broadcast(&mut self, number: u16) {
        let mut frame = self.frame(BROADCAST, mac(number as u8));
        if self.dice.bool() {
            let vlan = *self.dice.choice(&VLANS).expect("there are some");
            frame = frame.tagged(vlan);
        }
        let count = self.count();
        self.send(number, &frame, count);
    }

    /// To somebody who has just been heard in the same VLAN.
    fn unicast(&mut self, number: u16) {
        let other = self.dice.u16(PORTS);
        let together = |a: u16, b: u16| {
            let (a, b) = (self.ports.get(&a)?, self.ports.get(&b)?);
            (a.bridge == b.bridge && a.vlan == b.vlan).then_some(())
        };
        if other == number || !self.clients.contains_key(&other) || together(number, other).is_none() {
            return;
        }
        let heard = self.frame(BROADCAST, mac(other as u8));
        self.send(other, &heard, 1);
        let frame = self.frame(mac(other as u8), mac(number as u8));
        let count = self.count();
        self.send(number, &frame, count);
    }

    /// To an address behind the same port.
    fn behind_the_same_port(&mut self, number: u16) {
        let own = mac(number as u8);
        let heard = self.frame(BROADCAST, own);
        self.send(number, &heard, 1);
        let frame = self.frame(own, own);
        let count = self.count();
        self.send(number, &frame, count);
    }

    /// One of each kind that is dropped with a reason.
    fn bad_frames(&mut self, number: u16) {
        let own = mac(number as u8);
        let reserved = [1, 0x80, 0xc2, 0, 0, self.dice.u8(..16)];
        let bad = [
            Frame::new(vec![2; self.dice.usize(1..14)]),
            self.frame(BROADCAST, BROADCAST),
            self.frame(BROADCAST, [0; 6]),
            self.frame(reserved, own),
            self.frame(BROADCAST, own).tagged(4095),
        ];
        for frame in bad {
            let count = self.count();
            self.send(number, &frame, count);
        }
    }
}
