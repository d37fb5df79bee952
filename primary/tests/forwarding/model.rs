//! The bridge in its plainest form, and what it is held against: modes, mirrors and frames of every kind.

use std::collections::HashMap;
use std::sync::Arc;

use dpdk_vswitchd::datapath::BURST;
use dpdk_vswitchd::datapath::mirror::Mirror;
use dpdk_vswitchd::datapath::port::FRAME_OVERHEAD;
use dpdk_vswitchd::datapath::vlan::{VlanPolicy, VlanSet};
use proptest::prelude::*;
use vswitch_common::stats::Counter;

use crate::fixture::{MTUS, PORTS};

/// A VLAN mode as the Port table has it.
#[derive(Debug, Clone)]
pub enum Mode {
    Access(u16),
    Trunk(Vec<u16>),
    Native {
        tag: u16,
        trunks: Vec<u16>,
        tagged: bool,
    },
}

impl Mode {
    pub fn policy(&self) -> VlanPolicy {
        match self {
            Mode::Access(tag) => VlanPolicy::access(*tag),
            Mode::Trunk(trunks) => VlanPolicy::trunk(trunks),
            Mode::Native { tag, trunks, tagged } => VlanPolicy::native(*tag, trunks, *tagged),
        }
    }

    fn carries(trunks: &[u16], vlan: u16) -> bool {
        trunks.is_empty() || trunks.contains(&vlan)
    }

    /// The VLAN of a frame that comes in with VLAN id `vid` (0: none).
    fn ingress(&self, vid: u16) -> Option<u16> {
        match self {
            _ if vid == 4095 => None,
            Mode::Access(tag) => (vid == 0).then_some(*tag),
            Mode::Trunk(trunks) => Self::carries(trunks, vid).then_some(vid),
            Mode::Native { tag, .. } if vid == 0 || vid == *tag => Some(*tag),
            Mode::Native { trunks, .. } => Self::carries(trunks, vid).then_some(vid),
        }
    }

    /// Whether a frame of `vlan` leaves, and with a tag.
    fn egress(&self, vlan: u16) -> Option<bool> {
        match self {
            Mode::Access(tag) => (vlan == *tag).then_some(false),
            Mode::Trunk(trunks) => Self::carries(trunks, vlan).then_some(vlan != 0),
            Mode::Native { tag, tagged, .. } if vlan == *tag => Some(*tagged && vlan != 0),
            // The other end would take untagged frames for the native VLAN's.
            Mode::Native { trunks, .. } => (vlan != 0 && Self::carries(trunks, vlan)).then_some(true),
        }
    }
}

/// A mirror in its plainest form.
#[derive(Debug, Clone)]
pub struct MirrorModel {
    sources: [bool; PORTS],
    destinations: [bool; PORTS],
    vlan: Option<u16>,
    output: usize,
    snaplen: usize,
}

impl MirrorModel {
    pub fn mirror(&self) -> Mirror {
        let set = |ports: &[bool; PORTS]| (0..PORTS as u16).filter(|&p| ports[usize::from(p)]).collect();
        Mirror {
            sources: set(&self.sources),
            destinations: set(&self.destinations),
            vlans: self.vlan.map(|vlan| VlanSet::of(&[vlan])),
            output: self.output as u16,
            snaplen: self.snaplen,
            selected: Arc::default(),
        }
    }
}

/// The bridge in its plainest form.
pub struct Model {
    modes: Vec<Mode>,
    mirrors: Vec<MirrorModel>,
    seen: HashMap<(u16, [u8; 6]), usize>,
    /// Frames that went to no port: by which they came in, and why.
    pub dropped: Vec<(usize, Counter)>,
}

impl Model {
    pub fn new(modes: Vec<Mode>, mirrors: Vec<MirrorModel>) -> Model {
        Model {
            modes,
            mirrors,
            seen: HashMap::new(),
            dropped: Vec::new(),
        }
    }

    fn is_output(&self, port: usize) -> bool {
        self.mirrors.iter().any(|mirror| mirror.output == port)
    }

    /// What leaves by each port when `frame` comes in by `from`.
    pub fn forward(&mut self, from: usize, frame: &[u8]) -> Vec<(usize, Vec<u8>)> {
        if self.is_output(from) {
            return self.drop_all(from, Counter::RxDropNoOutput);
        }
        if frame.len() < 14 {
            return self.drop_all(from, Counter::RxDropMalformed);
        }
        let destination: [u8; 6] = frame[..6].try_into().unwrap();
        let source: [u8; 6] = frame[6..12].try_into().unwrap();
        let tagged = frame[12..14] == [0x81, 0] || frame[12..14] == [0x88, 0xa8];
        if tagged && frame.len() < 18 {
            return self.drop_all(from, Counter::RxDropMalformed);
        }
        let tci = if tagged {
            u16::from_be_bytes([frame[14], frame[15]])
        } else {
            0
        };
        let reserved = destination[..5] == [1, 0x80, 0xc2, 0, 0] && destination[5] < 16
            || destination == [1, 0, 0xc, 0xcc, 0xcc, 0xcd];
        let refused = if source[0] & 1 == 1 || source == [0; 6] {
            Some(Counter::RxDropSource)
        } else {
            reserved.then_some(Counter::RxDropReserved)
        };
        let Some(vlan) = self.modes[from].ingress(tci & 0xfff) else {
            return self.drop_all(from, refused.unwrap_or(Counter::RxDropVlan));
        };
        let targets = if refused.is_some() {
            Vec::new()
        } else {
            self.seen.insert((vlan, source), from);
            self.targets(from, vlan, destination)
        };
        if targets.is_empty() {
            self.dropped
                .push((from, refused.unwrap_or(Counter::RxDropNoOutput)));
        }
        let leaves = |with_tag| match (tagged, with_tag) {
            (true, true) => {
                let mut out = frame.to_vec();
                out[14..16].copy_from_slice(&(tci & 0xf000 | vlan).to_be_bytes());
                out
            }
            (true, false) => [&frame[..12], &frame[16..]].concat(),
            (false, true) => [&frame[..12], &[0x81, 0], &vlan.to_be_bytes(), &frame[12..]].concat(),
            (false, false) => frame.to_vec(),
        };
        let forwarded = targets.iter().map(|&(port, with_tag)| (port, leaves(with_tag)));
        let watched = (0..PORTS).filter_map(|port| {
            let selects = |mirror: &&MirrorModel| {
                mirror.output == port
                    && mirror.vlan.is_none_or(|wanted| wanted == vlan)
                    && (mirror.sources[from] || targets.iter().any(|&(to, _)| mirror.destinations[to]))
            };
            let snaplen = self.mirrors.iter().filter(selects).map(|m| m.snaplen).max()?;
            let trunk = !matches!(self.modes[port], Mode::Access(_));
            let with_tag = self.modes[port].egress(vlan).unwrap_or(trunk && vlan != 0);
            let mut out = leaves(with_tag);
            let header = 18 + 4 * usize::from(with_tag) - 4 * usize::from(tagged);
            out.truncate(snaplen.max(header));
            Some((port, out))
        });
        forwarded
            .chain(watched)
            .filter(|(port, out)| out.len() <= MTUS[*port] + FRAME_OVERHEAD)
            .collect()
    }

    fn drop_all(&mut self, from: usize, reason: Counter) -> Vec<(usize, Vec<u8>)> {
        self.dropped.push((from, reason));
        Vec::new()
    }

    /// By which ports a frame leaves, and with a tag.
    fn targets(&self, from: usize, vlan: u16, destination: [u8; 6]) -> Vec<(usize, bool)> {
        let known = self
            .seen
            .get(&(vlan, destination))
            .filter(|_| destination[0] & 1 == 0);
        let targets: Vec<usize> = match known {
            Some(&port) if self.modes[port].egress(vlan).is_some() => vec![port],
            _ => (0..self.modes.len()).collect(),
        };
        targets
            .into_iter()
            .filter(|&port| port != from && !self.is_output(port))
            .filter_map(|port| Some((port, self.modes[port].egress(vlan)?)))
            .collect()
    }
}

/// None, or a few to two of the ports.
pub fn mirrors() -> impl Strategy<Value = Vec<MirrorModel>> {
    let vlan = proptest::option::of(prop_oneof![Just(0u16), Just(10), Just(20)]);
    let snaplen = prop_oneof![Just(usize::MAX), 14usize..200, 1900usize..2300];
    let ports = any::<[bool; PORTS]>;
    let mirror = (ports(), ports(), vlan, 2..PORTS, snaplen);
    let mirror = mirror.prop_map(|(sources, destinations, vlan, output, snaplen)| MirrorModel {
        sources,
        destinations,
        vlan,
        output,
        snaplen,
    });
    prop_oneof![Just(Vec::new()), proptest::collection::vec(mirror, 1..4),]
}

pub fn mode() -> impl Strategy<Value = Mode> {
    let trunks = || proptest::collection::vec(prop_oneof![Just(0), Just(10u16), Just(20), Just(30)], 0..3);
    prop_oneof![
        prop_oneof![Just(10u16), Just(20)].prop_map(Mode::Access),
        trunks().prop_map(Mode::Trunk),
        (prop_oneof![Just(10u16), Just(20)], trunks(), any::<bool>())
            .prop_map(|(tag, trunks, tagged)| Mode::Native { tag, trunks, tagged }),
    ]
}

fn mac() -> impl Strategy<Value = [u8; 6]> {
    prop_oneof![
        12 => (1u8..6).prop_map(|n| [2, 0, 0, 0, 0, n]),
        1 => Just([0xff; 6]),
        1 => Just([1, 0, 0x5e, 0, 0, 1]),
        1 => (0u8..32).prop_map(|n| [1, 0x80, 0xc2, 0, 0, n]),
        1 => Just([1, 0, 0xc, 0xcc, 0xcc, 0xcd]),
        1 => Just([0; 6]),
    ]
}

/// Frames of every kind, in any order: plain, priority-tagged, tagged, double-tagged, cut, long.
pub fn frame() -> impl Strategy<Value = Vec<u8>> {
    let vid = prop_oneof![Just(0u16), Just(10), Just(20), Just(30), Just(4095)];
    let tag = (any::<bool>(), 0u16..8, vid).prop_map(|(service, priority, vid)| {
        let tpid: u16 = if service { 0x88a8 } else { 0x8100 };
        [tpid.to_be_bytes(), (priority << 13 | vid).to_be_bytes()].concat()
    });
    let tags = proptest::collection::vec(tag, 0..3).prop_map(|tags| tags.concat());
    let kind = prop_oneof![Just([8u8, 0]), Just([8, 6]), Just([0x86, 0xdd]), Just([0, 46])];
    let len = prop_oneof![6 => 0usize..100, 2 => 1400usize..1600, 1 => 1900usize..2200, 1 => 8900usize..9100];
    let cut = prop_oneof![9 => Just(usize::MAX), 1 => 0usize..20];
    (mac(), mac(), tags, kind, len, cut, any::<u8>()).prop_map(|(dst, src, tags, kind, len, cut, fill)| {
        let mut bytes = [&dst[..], &src, &tags, &kind, &vec![fill; len]].concat();
        bytes.truncate(cut);
        bytes
    })
}

/// Untagged frames that leave by one port, once it is known: from some stations to one.
pub fn alike() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let frame = (1u8..4, prop_oneof![9 => 0usize..100, 1 => 1400usize..1600]);
    let frames = proptest::collection::vec(frame, 1..BURST);
    (3u8..6, frames).prop_map(|(to, frames)| {
        let header = |from| [[2, 0, 0, 0, 0, to], [2, 0, 0, 0, 0, from]].concat();
        let frame = |(from, len)| [&header(from)[..], &[8, 0], &vec![from; len]].concat();
        frames.into_iter().map(frame).collect()
    })
}
