//! What a learning switch must do with a frame, and count. It knows no table: unicast frames go to stations that were
//! heard just before.

use std::collections::BTreeMap;

use vswitch_common::stats::{Counter, PortSnapshot};

use crate::bare::Bare;
use crate::frames::{Frame, mac};

/// A port's `tag` column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vlan {
    /// None: every VLAN, and 0 for frames without a tag.
    Trunk,
    Access(u16),
}

/// A port and its counters.
#[derive(Debug)]
pub struct Port {
    pub bridge: usize,
    pub vlan: Vlan,
    counters: BTreeMap<Counter, u64>,
}

impl Vlan {
    /// VLAN of a frame that comes in with this tag.
    fn ingress(self, tag: Option<u16>) -> Option<u16> {
        match (self, tag) {
            (_, Some(4095)) | (Vlan::Access(_), Some(1..)) => None,
            (Vlan::Access(vlan), _) => Some(vlan),
            (Vlan::Trunk, tag) => Some(tag.unwrap_or(0)),
        }
    }

    /// Tag of a frame of `vlan` that leaves: `None` if it does not leave here.
    fn egress(self, vlan: u16) -> Option<Option<u16>> {
        match self {
            Vlan::Access(own) => (own == vlan).then_some(None),
            Vlan::Trunk => Some((vlan > 0).then_some(vlan)),
        }
    }
}

impl Port {
    /// A new port.
    pub fn new(bridge: usize) -> Port {
        Port {
            bridge,
            vlan: Vlan::Trunk,
            counters: BTreeMap::new(),
        }
    }

    /// Counts.
    pub fn add(&mut self, counter: Counter, n: u64) {
        *self.counters.entry(counter).or_default() += n;
    }

    /// The first counter that is not as it should be. Only `learned` is not foretold.
    pub fn differs(&self, found: &PortSnapshot) -> Option<String> {
        let wrong = Counter::ALL.iter().find_map(|&counter| {
            let expected = self.counters.get(&counter).copied().unwrap_or(0);
            let differs = counter != Counter::Learned && found.get(counter) != expected;
            differs.then(|| {
                format!(
                    "{} is {}, {expected} was foretold",
                    counter.name(),
                    found.get(counter)
                )
            })
        });
        wrong.or_else(|| unbalanced(found))
    }
}

/// The identities that hold for a port by itself: see docs/stats-segment.md.
fn unbalanced(port: &PortSnapshot) -> Option<String> {
    let (came, dropped) = (port.get(Counter::RxPackets), port.dropped(true));
    let (flooded, copies) = (port.get(Counter::RxFlooded), port.get(Counter::RxCopies));
    let forwarded = came.checked_sub(dropped);
    match forwarded.and_then(|n| n.checked_sub(flooded)) {
        None => Some(format!(
            "{came} came in, {dropped} were dropped, {flooded} flooded"
        )),
        // Each frame that is not flooded goes to one port, each that is to one at least.
        Some(single) if copies < single + flooded || (flooded == 0 && copies != single) => Some(format!(
            "{copies} copies of {single} frames and {flooded} flooded ones"
        )),
        Some(_) => None,
    }
}

/// Counts what must happen to `count` copies of `frame` from port `from`. Returns which clients get them, and in what form.
pub fn forward(
    ports: &mut BTreeMap<u16, Port>,
    clients: &BTreeMap<u16, Bare>,
    from: u16,
    frame: &Frame,
    count: usize,
) -> Vec<(u16, Frame)> {
    let n = count as u64;
    let (bridge, ingress) = (ports[&from].bridge, ports[&from].vlan);
    let mut count_at = |port: u16, counter: Counter, n: u64| {
        if let Some(port) = ports.get_mut(&port) {
            port.add(counter, n);
        }
    };
    count_at(from, Counter::RxPackets, n);
    count_at(from, Counter::RxBytes, n * frame.len() as u64);
    let vlan = match dropped(frame, ingress) {
        Ok(vlan) => vlan,
        Err(reason) => {
            count_at(from, reason, n);
            return Vec::new();
        }
    };
    if frame.destination() == mac(from as u8) {
        count_at(from, Counter::RxDropNoOutput, n);
        return Vec::new();
    }
    let flooded = frame.destination()[0] & 1 == 1;
    let wanted = |number: u16| flooded || frame.destination() == mac(number as u8);
    let members: Vec<(u16, Option<u16>)> = ports
        .iter()
        .filter(|(number, port)| port.bridge == bridge && **number != from && wanted(**number))
        .filter(|(number, _)| clients.contains_key(number))
        .filter_map(|(&number, port)| Some((number, port.vlan.egress(vlan)?)))
        .collect();
    let mut count_at = |port: u16, counter: Counter, n: u64| {
        if let Some(port) = ports.get_mut(&port) {
            port.add(counter, n);
        }
    };
    match members.len() as u64 {
        0 => count_at(from, Counter::RxDropNoOutput, n),
        copies => {
            count_at(from, Counter::RxCopies, n * copies);
            count_at(from, Counter::RxFlooded, if flooded { n } else { 0 });
        }
    }
    let arrivals = members
        .into_iter()
        .map(|(number, tag)| (number, retagged(frame, tag)));
    let arrivals: Vec<(u16, Frame)> = arrivals.collect();
    for (number, frame) in &arrivals {
        count_at(*number, Counter::TxPackets, n);
        count_at(*number, Counter::TxBytes, n * frame.len() as u64);
    }
    arrivals
}

fn tag_of(frame: &Frame) -> Option<u16> {
    let tci = frame.bytes.get(12..16)?.strip_prefix(&[0x81, 0])?;
    Some(u16::from_be_bytes([tci[0], tci[1]]) & 0xfff)
}

/// The frame's VLAN, or why it is dropped as it comes in.
fn dropped(frame: &Frame, ingress: Vlan) -> Result<u16, Counter> {
    let bytes = &frame.bytes;
    if bytes.len() < 14 {
        return Err(Counter::RxDropMalformed);
    }
    if bytes[6] & 1 == 1 || bytes[6..12] == [0; 6] {
        return Err(Counter::RxDropSource);
    }
    if bytes[..5] == [1, 0x80, 0xc2, 0, 0] && bytes[5] < 16 {
        return Err(Counter::RxDropReserved);
    }
    ingress.ingress(tag_of(frame)).ok_or(Counter::RxDropVlan)
}

fn retagged(frame: &Frame, tag: Option<u16>) -> Frame {
    let mut plain = frame.clone();
    if tag_of(frame).is_some() {
        plain.bytes.drain(12..16);
    }
    match tag {
        Some(tag) => plain.tagged(tag),
        None => plain,
    }
}
