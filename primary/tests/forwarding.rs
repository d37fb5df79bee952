//! The fast path on real rings and mbufs in one process, held against a simple model; and against garbage.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use dpdk_vswitchd::cpus;
use dpdk_vswitchd::datapath::BURST;
use dpdk_vswitchd::datapath::client_port::{QueueMemory, Session};
use dpdk_vswitchd::datapath::clock::Moment;
use dpdk_vswitchd::datapath::forward::Forwarder;
use dpdk_vswitchd::datapath::ledger::{Ledger, Owner};
use dpdk_vswitchd::datapath::mac_table::MacTable;
use dpdk_vswitchd::datapath::mirror::Mirror;
use dpdk_vswitchd::datapath::port::{FRAME_OVERHEAD, Io, NO_BRIDGE, Port};
use dpdk_vswitchd::datapath::snapshot::{Bridge, Snapshot};
use dpdk_vswitchd::datapath::vlan::{VlanPolicy, VlanSet};
use proptest::prelude::*;
use vswitch_common::eal::Eal;
use vswitch_common::gso::{Kind, Segmentation};
use vswitch_common::mbuf::{Checksum, DATA_ROOM, MAX_SEGMENTS, Mbuf};
use vswitch_common::mempool::Pool;
use vswitch_common::port::doorbell;
use vswitch_common::port::layout::ControlBlocks;
use vswitch_common::port::{ALLOC_LEVEL, ALLOC_RING_SIZE, FREE_RING_SIZE, QUOTA, RX_RING_SIZE, TX_RING_SIZE};
use vswitch_common::ring::{Consumer, Producer, RingMemory};
use vswitch_common::stats::{Counter, PortBlock, Segment, segment_name};

const PORTS: usize = 4;
/// Of each port.
const MTUS: [usize; PORTS] = [1500, 9000, 9000, 1500];
const NOW: Moment = Moment {
    ticks: 1000,
    seconds: 10,
};

/// EAL without hugepages, a pool, and the memory of four client ports: once a process, for one test at a time.
struct Bench {
    ledger: Arc<Ledger>,
    segment: Arc<Segment>,
    memory: Vec<QueueMemory>,
}

fn bench() -> std::sync::MutexGuard<'static, Bench> {
    static BENCH: OnceLock<Mutex<Bench>> = OnceLock::new();
    let bench = BENCH.get_or_init(|| {
        let args = ["--no-huge", "--no-shconf", "--no-pci", "-m", "256"];
        Eal::init("forwarding", &args.map(str::to_owned)).unwrap();
        let ledger = Arc::new(Ledger::new(vec![Pool::create("pool", 16384, -1).unwrap()]));
        let name = format!("forwarding-test-{}", std::process::id());
        let segment = Segment::create(&name, 1).unwrap();
        // It is mapped, and nobody else looks for it: a static is never dropped.
        nix::sys::mman::shm_unlink(segment_name(&name).as_str()).unwrap();
        let ring =
            |port: usize, role: &str, size| RingMemory::create(&format!("{role}{port}"), size, -1).unwrap();
        let memory = (0..PORTS)
            .map(|port| QueueMemory {
                alloc: ring(port, "alloc", ALLOC_RING_SIZE),
                tx: ring(port, "tx", TX_RING_SIZE),
                rx: ring(port, "rx", RX_RING_SIZE),
                free: ring(port, "free", FREE_RING_SIZE),
                control: ControlBlocks::create(port as u16, 1, -1).unwrap().get(0),
            })
            .collect();
        Mutex::new(Bench {
            ledger,
            segment: Arc::new(segment),
            memory,
        })
    });
    bench.lock().unwrap_or_else(|e| e.into_inner())
}

/// A client's ends of its rings.
struct Client {
    alloc: Consumer,
    tx: Producer,
    rx: Consumer,
    free: Producer,
}

/// Four client ports on one bridge, and their clients.
struct Fixture<'a> {
    bench: &'a Bench,
    snapshot: Snapshot,
    forwarder: Forwarder,
    clients: Vec<Client>,
    free_before: u32,
}

impl<'a> Fixture<'a> {
    fn new(bench: &'a Bench, vlans: &[VlanPolicy]) -> Fixture<'a> {
        let free_before = bench.ledger.available();
        let pool = bench.ledger.pools()[0];
        let mut snapshot = Snapshot::default();
        let mut clients = Vec::new();
        for (index, (memory, vlan)) in bench.memory.iter().zip(vlans).enumerate() {
            [memory.alloc, memory.tx, memory.rx, memory.free]
                .iter()
                .for_each(RingMemory::reset);
            let ((_, bell), (ringer, _)) = (doorbell::pair().unwrap(), doorbell::pair().unwrap());
            // SAFETY: rings of this port alone, just emptied; the fixture before this one is gone.
            let (session, client) = unsafe {
                let client = Client {
                    alloc: Consumer::new(memory.alloc),
                    tx: Producer::new(memory.tx),
                    rx: Consumer::new(memory.rx),
                    free: Producer::new(memory.free),
                };
                (
                    Session::new(index as u16, pool, vec![(*memory, bell, ringer)]),
                    client,
                )
            };
            let port = Port {
                index: index as u16,
                bridge: 0,
                vlan: vlan.clone(),
                max_frame: MTUS[index] + FRAME_OVERHEAD,
                limiter: None,
                io: Io::Client(Arc::new(session)),
            };
            snapshot.ports.push(Some(Arc::new(port)));
            bench.segment.clear_port(index);
            clients.push(client);
        }
        let ports = (0..vlans.len() as u16).collect();
        let table = Arc::new(MacTable::new(1024, 300));
        snapshot.bridges.push(Bridge {
            table,
            ports,
            mirrors: Vec::new(),
            forward_reserved: false,
        });
        let stats = PortBlock::claim(&bench.segment, 1).unwrap();
        let mut forwarder = Forwarder::new(0, bench.ledger.clone(), stats);
        forwarder.resize(snapshot.ports.len());
        Fixture {
            bench,
            snapshot,
            forwarder,
            clients,
            free_before,
        }
    }

    /// Puts mirrors onto the bridge.
    fn mirror(&mut self, mirrors: &[MirrorModel]) {
        let bridge = &mut self.snapshot.bridges[0];
        bridge.mirrors = Mirror::in_order(mirrors.iter().map(MirrorModel::mirror).collect());
        for mirror in &bridge.mirrors {
            bridge.ports.retain(|&port| port != mirror.output);
            let output = self.snapshot.ports[usize::from(mirror.output)].as_mut().unwrap();
            Arc::make_mut(output).bridge = NO_BRIDGE;
        }
    }

    /// Polls port `index` once and forwards what it finds.
    fn poll(&mut self, index: usize) {
        let port = self.snapshot.ports[index].clone().unwrap();
        let Io::Client(session) = &port.io else {
            unreachable!()
        };
        let mut frames = ArrayVec::<Mbuf, BURST>::new();
        let found = session.queues()[0].receive(&self.bench.ledger, &mut frames, BURST);
        self.forwarder
            .stats()
            .add(index, Counter::RxBadMbuf, found.bad_mbufs);
        self.forwarder
            .stats()
            .add(index, Counter::RxBadRing, found.bad_rings);
        if !frames.is_empty() {
            self.forwarder.burst(&self.snapshot, &port, 0, &mut frames, NOW);
        }
    }

    /// An mbuf of client `index` with `bytes` in it.
    fn mbuf(&mut self, index: usize, bytes: &[u8]) -> Mbuf {
        let mut entry = [0];
        if self.clients[index].alloc.dequeue(&mut entry).unwrap() == 0 {
            self.poll(index);
            assert_eq!(
                self.clients[index].alloc.dequeue(&mut entry).unwrap(),
                1,
                "no empty mbuf"
            );
        }
        // SAFETY: an empty mbuf that the switch gave to this client.
        let mut mbuf = unsafe { Mbuf::from_address(entry[0]) }.unwrap();
        mbuf.room_mut()[..bytes.len()].copy_from_slice(bytes);
        mbuf.set_frame(bytes.len(), Checksum::Unknown);
        mbuf
    }

    /// Client `index` sends `bytes`, in as many mbufs as it takes.
    fn send(&mut self, index: usize, bytes: &[u8]) {
        self.send_as(index, bytes, |_| {});
    }

    /// The same, with what `finish` adds to the first mbuf.
    fn send_as(&mut self, index: usize, bytes: &[u8], finish: impl FnOnce(&mut Mbuf)) {
        self.put(index, bytes, finish);
        self.poll(index);
    }

    /// Client `index` puts `bytes` onto its ring.
    fn put(&mut self, index: usize, bytes: &[u8], finish: impl FnOnce(&mut Mbuf)) {
        let (first, rest) = bytes.split_at(bytes.len().min(DATA_ROOM));
        let mut first = self.mbuf(index, first);
        let rest: Vec<Mbuf> = rest
            .chunks(DATA_ROOM)
            .map(|part| self.mbuf(index, part))
            .collect();
        if !rest.is_empty() {
            first.chain(&rest);
        }
        finish(&mut first);
        assert_eq!(self.clients[index].tx.enqueue(&[first]).unwrap(), 1);
    }

    /// What client `index` has received, in order.
    fn received(&mut self, index: usize) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut entries = [0; 64];
        loop {
            let n = self.clients[index].rx.dequeue(&mut entries).unwrap();
            for &address in &entries[..n] {
                // SAFETY: a frame that the switch gave to this client.
                let mut mbuf = unsafe { Mbuf::from_address(address) }.unwrap();
                frames.push(mbuf.segments().flatten().copied().collect());
                let rest = mbuf.split();
                self.clients[index].free.enqueue(&rest).unwrap();
                self.clients[index].free.enqueue(&[mbuf]).unwrap();
            }
            if n < entries.len() {
                return frames;
            }
        }
    }

    /// Client `index` gives back what it has received, without a look: client 0 may still write into it.
    fn return_unread(&mut self, index: usize) {
        let mut entries = [0; 1024];
        let n = self.clients[index].rx.dequeue(&mut entries).unwrap();
        // SAFETY: addresses that are only moved from ring to ring.
        let mbufs: Vec<Mbuf> = entries[..n]
            .iter()
            .map(|&a| unsafe { Mbuf::from_address(a) }.unwrap())
            .collect();
        self.clients[index].free.enqueue(&mbufs).unwrap();
        self.poll(index);
    }

    fn total(&self, index: usize, counter: Counter) -> u64 {
        self.bench.segment.total(index, counter)
    }

    /// Copies made of what came in, and those that left or were dropped on their way out.
    fn copies(&self) -> (u64, u64) {
        let tx = [
            Counter::TxPackets,
            Counter::TxDropTooLong,
            Counter::TxDropFull,
            Counter::TxDropHeadroom,
        ];
        let out = tx
            .iter()
            .flat_map(|&c| (0..PORTS).map(move |port| self.total(port, c)));
        (
            (0..PORTS).map(|port| self.total(port, Counter::RxCopies)).sum(),
            out.sum(),
        )
    }

    /// Ends the clients: every mbuf is back in the pool.
    fn end(self) {
        for port in self.snapshot.ports.iter().flatten() {
            if let Io::Client(session) = &port.io {
                session.reclaim(&self.bench.ledger);
            }
        }
        assert_eq!(self.bench.ledger.available(), self.free_before, "mbufs are lost");
    }
}

/// A VLAN mode as the Port table has it.
#[derive(Debug, Clone)]
enum Mode {
    Access(u16),
    Trunk(Vec<u16>),
    Native {
        tag: u16,
        trunks: Vec<u16>,
        tagged: bool,
    },
}

impl Mode {
    fn policy(&self) -> VlanPolicy {
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
            Mode::Native { trunks, .. } => Self::carries(trunks, vlan).then_some(vlan != 0),
        }
    }
}

/// A mirror in its plainest form.
#[derive(Debug, Clone)]
struct MirrorModel {
    sources: [bool; PORTS],
    destinations: [bool; PORTS],
    vlan: Option<u16>,
    output: usize,
    snaplen: usize,
}

impl MirrorModel {
    fn mirror(&self) -> Mirror {
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
struct Model {
    modes: Vec<Mode>,
    mirrors: Vec<MirrorModel>,
    seen: HashMap<(u16, [u8; 6]), usize>,
}

impl Model {
    fn is_output(&self, port: usize) -> bool {
        self.mirrors.iter().any(|mirror| mirror.output == port)
    }

    /// What leaves by each port when `frame` comes in by `from`.
    fn forward(&mut self, from: usize, frame: &[u8]) -> Vec<(usize, Vec<u8>)> {
        if frame.len() < 14 || self.is_output(from) {
            return Vec::new();
        }
        let destination: [u8; 6] = frame[..6].try_into().unwrap();
        let source: [u8; 6] = frame[6..12].try_into().unwrap();
        let tagged = frame[12..14] == [0x81, 0] || frame[12..14] == [0x88, 0xa8];
        if tagged && frame.len() < 18 {
            return Vec::new();
        }
        let tci = if tagged {
            u16::from_be_bytes([frame[14], frame[15]])
        } else {
            0
        };
        let Some(vlan) = self.modes[from].ingress(tci & 0xfff) else {
            return Vec::new();
        };
        let refused = source[0] & 1 == 1
            || source == [0; 6]
            || destination[..5] == [1, 0x80, 0xc2, 0, 0] && destination[5] < 16;
        let targets = if refused {
            Vec::new()
        } else {
            self.seen.insert((vlan, source), from);
            self.targets(from, vlan, destination)
        };
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
fn mirrors() -> impl Strategy<Value = Vec<MirrorModel>> {
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

fn mode() -> impl Strategy<Value = Mode> {
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
        1 => Just([0; 6]),
    ]
}

/// Frames of every kind, in any order: plain, priority-tagged, tagged, double-tagged, cut, long.
fn frame() -> impl Strategy<Value = Vec<u8>> {
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
fn alike() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let frame = (1u8..4, prop_oneof![9 => 0usize..100, 1 => 1400usize..1600]);
    let frames = proptest::collection::vec(frame, 1..BURST);
    (3u8..6, frames).prop_map(|(to, frames)| {
        let header = |from| [[2, 0, 0, 0, 0, to], [2, 0, 0, 0, 0, from]].concat();
        let frame = |(from, len)| [&header(from)[..], &[8, 0], &vec![from; len]].concat();
        frames.into_iter().map(frame).collect()
    })
}

/// Frames and their bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Passed {
    frames: u64,
    bytes: u64,
}

impl Passed {
    fn add(&mut self, frame: &[u8]) {
        self.frames += 1;
        self.bytes += frame.len() as u64;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every frame leaves where, and as, the model says; nothing is lost, and every frame is counted.
    #[test]
    fn the_bridge_does_as_the_model(
        modes in proptest::collection::vec(mode(), PORTS),
        mirrors in mirrors(),
        frames in proptest::collection::vec((0..PORTS, frame()), 1..80),
    ) {
        let bench = bench();
        let mut fixture = Fixture::new(&bench, &modes.iter().map(Mode::policy).collect::<Vec<_>>());
        fixture.mirror(&mirrors);
        let mut model = Model { modes, mirrors, seen: HashMap::new() };
        for (from, frame) in &frames {
            let mut expected = vec![Vec::new(); PORTS];
            for (port, bytes) in model.forward(*from, frame) {
                expected[port].push(bytes);
            }
            fixture.send(*from, frame);
            for (port, expected) in expected.iter().enumerate() {
                prop_assert_eq!(&fixture.received(port), expected, "port {} after {:02x?} from {}", port, frame, from);
            }
        }
        for port in 0..PORTS {
            let sent = frames.iter().filter(|(from, _)| *from == port).count() as u64;
            prop_assert_eq!(fixture.total(port, Counter::RxPackets), sent);
        }
        let (copies, out) = fixture.copies();
        prop_assert_eq!(copies, out);
        fixture.end();
    }

    /// The same of bursts, whether their frames are alike, all but one, or of every kind.
    #[test]
    fn bursts_do_as_the_model(
        modes in proptest::collection::vec(mode(), PORTS),
        mirrors in mirrors(),
        bursts in proptest::collection::vec(
            (
                0..PORTS,
                prop_oneof![
                    3 => alike(),
                    2 => (alike(), any::<prop::sample::Index>(), frame()).prop_map(|(mut frames, at, other)| {
                        let at = at.index(frames.len());
                        frames[at] = other;
                        frames
                    }),
                    1 => proptest::collection::vec(frame(), 1..BURST),
                ],
            ),
            1..12,
        ),
    ) {
        let bench = bench();
        let mut fixture = Fixture::new(&bench, &modes.iter().map(Mode::policy).collect::<Vec<_>>());
        fixture.mirror(&mirrors);
        let mut model = Model { modes, mirrors, seen: HashMap::new() };
        let (mut came, mut left) = ([Passed::default(); PORTS], [Passed::default(); PORTS]);
        for (from, frames) in &bursts {
            let mut expected = vec![Vec::new(); PORTS];
            for frame in frames {
                came[*from].add(frame);
                for (port, bytes) in model.forward(*from, frame) {
                    left[port].add(&bytes);
                    expected[port].push(bytes);
                }
                fixture.put(*from, frame, |_| {});
            }
            fixture.poll(*from);
            for (port, expected) in expected.iter().enumerate() {
                prop_assert_eq!(&fixture.received(port), expected, "port {} after a burst from {}", port, from);
            }
        }
        for port in 0..PORTS {
            let passed = |frames, bytes| Passed {
                frames: fixture.total(port, frames),
                bytes: fixture.total(port, bytes),
            };
            prop_assert_eq!(passed(Counter::RxPackets, Counter::RxBytes), came[port]);
            prop_assert_eq!(passed(Counter::TxPackets, Counter::TxBytes), left[port]);
        }
        let (copies, out) = fixture.copies();
        prop_assert_eq!(copies, out);
        fixture.end();
    }

    /// Whatever a client writes on its rings and into its mbufs: counted or clamped, and no mbuf is lost.
    #[test]
    fn garbage_on_the_rings_costs_nothing(
        entries in proptest::collection::vec((0usize..6, any::<usize>(), any::<[u16; 4]>()), 1..200),
    ) {
        let bench = bench();
        let mut fixture = Fixture::new(&bench, &vec![VlanPolicy::trunk(&[]); PORTS]);
        fixture.poll(0);
        fixture.poll(1);
        let mut own = Vec::new();
        let mut wrong = 0;
        let mut theirs = [0; 64];
        fixture.clients[1].alloc.dequeue(&mut theirs).unwrap();
        for (kind, number, lengths) in entries {
            let mut entry = [0];
            if fixture.clients[0].alloc.dequeue(&mut entry).unwrap() == 1 {
                own.push(entry[0]);
            }
            let Some(&mine) = own.get(number % own.len().max(1)) else { continue };
            let address = match kind {
                0 => number,
                1 => mine + 64 * (1 + number % 30),
                2 => theirs[number % theirs.len()],
                // Its own, perhaps for the second time, with a header that lies.
                _ => {
                    scribble(mine, number, lengths, &theirs, &own);
                    mine
                }
            };
            // SAFETY: the address is only moved through the ring.
            let Some(entry) = (unsafe { Mbuf::from_address(address) }) else { continue };
            let ring = if kind == 5 { &mut fixture.clients[0].free } else { &mut fixture.clients[0].tx };
            ring.enqueue(&[entry]).unwrap();
            fixture.poll(0);
            wrong += u64::from(kind < 3);
        }
        prop_assert!(fixture.total(0, Counter::RxBadMbuf) >= wrong, "what is not its own was taken");
        for port in 1..PORTS {
            fixture.return_unread(port);
        }
        prop_assert_eq!(bench.ledger.owned(Owner::client(9, 0)), 0);
        fixture.end();
    }
}

/// Overwrites what a client may: lengths, offsets, flags, the segment count and the link of one of its mbufs, and what it
/// says of checksum and segmentation.
fn scribble(
    address: usize,
    number: usize,
    [offset, len, segments, flags]: [u16; 4],
    theirs: &[usize],
    own: &[usize],
) {
    let link = match number % 5 {
        0 => 0,
        1 => address,
        2 => theirs[number % theirs.len()],
        3 => own[number / 5 % own.len()],
        _ => number,
    };
    let header = address as *mut u8;
    // SAFETY: an mbuf of the pool, whose header has these fields at these offsets (asserted in the mbuf module).
    unsafe {
        header.add(16).cast::<u16>().write(offset);
        header
            .add(20)
            .cast::<u16>()
            .write(segments % if number.is_multiple_of(3) { 3 } else { 40 });
        header
            .add(24)
            .cast::<u64>()
            .write(u64::from(flags) << (number % 3));
        header.add(36).cast::<u32>().write(u32::from(len) << (number % 8));
        header.add(40).cast::<u16>().write(len);
        header.add(64).cast::<usize>().write(link);
        header.add(128).cast::<[u16; 6]>().write([
            offset % 99,
            16,
            len,
            segments % 99,
            [1, 4, 5, flags][number % 4],
            0,
        ]);
    }
}

/// A large TCP frame of `payload` bytes to client 1, and how it is to be cut.
fn large(payload: usize, size: u16) -> (Vec<u8>, Segmentation) {
    let mut bytes = [
        2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 0, 0, 1, 0, 0, 64, 6,
    ]
    .to_vec();
    bytes.resize(46, 7);
    bytes.extend([0x50, 0x10]);
    bytes.resize(54 + payload, 9);
    let segmentation = Segmentation::new(Kind::Tcp4, false, size, 34, &bytes).unwrap();
    (bytes, segmentation)
}

/// To a client a large frame goes whole, tag or not, if its segments are no longer than the port's frames may be.
#[test]
fn large_frames_pass_by_the_length_of_their_segments() {
    let bench = bench();
    let mut fixture = Fixture::new(
        &bench,
        &[
            VlanPolicy::access(5),
            VlanPolicy::trunk(&[5]),
            VlanPolicy::access(5),
            VlanPolicy::access(5),
        ],
    );
    let partial = Checksum::Partial {
        start: 34,
        offset: 16,
    };
    let send = |fixture: &mut Fixture<'_>, size| {
        let (bytes, segmentation) = large(60_000, size);
        fixture.send_as(0, &bytes, |first| {
            first.set_checksum(partial);
            first.set_segmentation(segmentation);
        });
        bytes
    };
    // Flooded: port 1 has it tagged, the others as it is.
    let bytes = send(&mut fixture, 1448);
    let tagged = [&bytes[..12], &[0x81, 0, 0, 5], &bytes[12..]].concat();
    let mut entry = [0];
    assert_eq!(fixture.clients[1].rx.dequeue(&mut entry).unwrap(), 1);
    // SAFETY: a frame that the switch gave to this client.
    let mut frame = unsafe { Mbuf::from_address(entry[0]) }.unwrap();
    assert_eq!(frame.segments().flatten().copied().collect::<Vec<u8>>(), tagged);
    let segmentation = frame.segmentation().unwrap();
    assert_eq!((segmentation.size, segmentation.header_len), (1448, 58));
    let shifted = Checksum::Partial {
        start: 38,
        offset: 16,
    };
    assert_eq!(frame.checksum(), shifted);
    fixture.clients[1].free.enqueue(&frame.split()).unwrap();
    fixture.clients[1].free.enqueue(&[frame]).unwrap();
    assert_eq!(
        [fixture.received(2), fixture.received(3)],
        [[bytes.clone()], [bytes]]
    );
    // Segments too long for port 3 only.
    let bytes = send(&mut fixture, 2000);
    assert_eq!(fixture.received(1).len(), 1);
    assert_eq!(fixture.received(2), [bytes]);
    assert!(fixture.received(3).is_empty());
    assert_eq!(fixture.total(3, Counter::TxDropTooLong), 1);
    fixture.end();
}

/// In short a large frame is one frame, and none that the mirror's output is too small for.
#[test]
fn a_large_frame_is_mirrored_in_short() {
    let bench = bench();
    for (output, snaplen, expected) in [(3, 64, 64), (3, 2000, 1518), (2, 4000, 4000)] {
        let mut fixture = Fixture::new(&bench, &vec![VlanPolicy::access(5); PORTS]);
        fixture.mirror(&[MirrorModel {
            sources: [true, false, false, false],
            destinations: [false; PORTS],
            vlan: None,
            output,
            snaplen,
        }]);
        let (bytes, segmentation) = large(60_000, 1448);
        fixture.send_as(0, &bytes, |first| {
            let (start, offset) = (34, 16);
            first.set_checksum(Checksum::Partial { start, offset });
            first.set_segmentation(segmentation);
        });
        let seen = fixture.received(output);
        assert_eq!(seen.iter().map(Vec::len).collect::<Vec<_>>(), [expected]);
        assert!(seen[0] == bytes[..expected] && fixture.received(1) == [bytes]);
        (2..PORTS).for_each(|port| drop(fixture.received(port)));
        fixture.end();
    }
}

/// A client that gives nothing back gets chains up to its share, less what it needs to send; each mbuf of them counts.
#[test]
fn chains_count_by_their_mbufs() {
    let bench = bench();
    let mut fixture = Fixture::new(&bench, &vec![VlanPolicy::access(0); PORTS]);
    let hello = [[2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 2]].concat();
    fixture.send(1, &[&hello[..], &[0; 48]].concat());
    (0..PORTS).for_each(|port| drop(fixture.received(port)));
    let (bytes, segmentation) = large((MAX_SEGMENTS - 1) * DATA_ROOM, 1448);
    for _ in 0..60 {
        fixture.send_as(0, &bytes, |first| {
            first.set_checksum(Checksum::Partial {
                start: 34,
                offset: 16,
            });
            first.set_segmentation(segmentation);
        });
        // What client 1 may have for its own frames is topped up meanwhile.
        fixture.poll(1);
    }
    let sent = fixture.total(1, Counter::TxPackets) as usize;
    assert_eq!(sent as u64 + fixture.total(1, Counter::TxDropQuota), 60);
    let owned = bench.ledger.owned(Owner::client(1, 0));
    assert!(
        sent > 10 && owned >= sent * MAX_SEGMENTS,
        "{owned} mbufs for {sent}"
    );
    assert!(owned <= (QUOTA - ALLOC_LEVEL) as usize);
    // It can send, and get small frames.
    fixture.send(1, &[&hello[..], &[0; 48]].concat());
    assert_eq!(fixture.received(2).len(), 1);
    fixture.send(0, &bytes[..60]);
    assert_eq!(fixture.total(1, Counter::TxPackets) as usize, sent + 1);
    // And all again, once it has given back.
    assert_eq!(fixture.received(1).len(), sent + 1);
    (0..60).for_each(|_| fixture.poll(1));
    fixture.send_as(0, &bytes, |first| {
        first.set_checksum(Checksum::Partial {
            start: 34,
            offset: 16,
        });
        first.set_segmentation(segmentation);
    });
    assert_eq!(fixture.received(1), [bytes]);
    fixture.end();
}

/// Large and small frames leave who takes none of them what it needs to send, also one that had no empty mbufs yet.
#[test]
fn who_takes_nothing_can_send() {
    let bench = bench();
    let mut fixture = Fixture::new(&bench, &vec![VlanPolicy::access(0); PORTS]);
    let broadcast = [[0xff; 6], [2, 0, 0, 0, 0, 1]].concat();
    let (mut bytes, segmentation) = large((MAX_SEGMENTS - 1) * DATA_ROOM, 1448);
    bytes[..12].copy_from_slice(&broadcast);
    for number in 0..260 {
        if number < 60 {
            fixture.send_as(0, &bytes, |first| {
                first.set_checksum(Checksum::Partial {
                    start: 34,
                    offset: 16,
                });
                first.set_segmentation(segmentation);
            });
        } else {
            fixture.send(0, &[&broadcast[..], &[0; 48]].concat());
        }
        // The others take theirs.
        for port in [2, 3] {
            fixture.received(port);
            fixture.poll(port);
        }
    }
    assert!(fixture.total(1, Counter::TxDropQuota) > 0);
    for _ in 0..1000 {
        fixture.send(1, &[&[2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 2][..], &[0; 48]].concat());
        assert_eq!(fixture.received(2).len(), 1);
    }
    fixture.end();
}

/// A client sends by one thread while another brings it frames, all of which it keeps: whatever that thread sees of what the first one
/// gives and takes, they are never more than leaves it enough to send.
#[test]
fn two_threads_count_one_share() {
    const TIME: Duration = Duration::from_secs(2);
    let bench = bench();
    let mut fixture = Fixture::new(&bench, &vec![VlanPolicy::access(0); PORTS]);
    (0..4).for_each(|_| fixture.poll(1));
    let Io::Client(session) = &fixture.snapshot.ports[1].as_ref().unwrap().io else {
        unreachable!()
    };
    let (queue, ledger) = (&session.queues()[0], &*bench.ledger);
    let Client { alloc, tx, rx, .. } = &mut fixture.clients[1];
    let end = Instant::now() + TIME;
    let mut sends = || {
        let mut entries = [0; ALLOC_LEVEL as usize];
        let mut frames = ArrayVec::<Mbuf, BURST>::new();
        let mut sent = 0;
        while Instant::now() < end {
            let n = alloc.dequeue(&mut entries).unwrap();
            // SAFETY: empty mbufs that the switch gave to this client, and no longer touches.
            let mbufs = entries[..n]
                .iter()
                .map(|&a| unsafe { Mbuf::from_address(a) }.unwrap());
            let mut mbufs: Vec<Mbuf> = mbufs.collect();
            mbufs
                .iter_mut()
                .for_each(|mbuf| mbuf.set_frame(60, Checksum::Unknown));
            assert_eq!(tx.enqueue(&mbufs).unwrap(), n);
            for _ in 0..=n / BURST {
                queue.receive(ledger, &mut frames, BURST);
                sent += frames.len();
                ledger.free_all(&mut frames);
            }
        }
        sent
    };
    let mut keeps = || {
        let mut frames = ArrayVec::<Mbuf, BURST>::new();
        let mut kept = 0;
        while Instant::now() < end {
            let want = frames.remaining_capacity();
            assert!(want == 0 || ledger.alloc(ledger.pools()[0], &mut frames, want));
            frames
                .iter_mut()
                .for_each(|mbuf| mbuf.set_frame(60, Checksum::Unknown));
            queue.send(ledger, &mut frames, false);
            kept += rx.dequeue(&mut [0; BURST]).unwrap();
        }
        ledger.free_all(&mut frames);
        kept
    };
    let (sent, kept) = std::thread::scope(|scope| {
        let keeper = scope.spawn(move || {
            // EAL has bound the other one to the first CPU, and what it starts with it.
            cpus::pin(0, &cpus::allowed()[1..]).unwrap();
            keeps()
        });
        (sends(), keeper.join().unwrap())
    });
    println!("it sent {sent} and kept {kept}");
    // Its empty mbufs count as well, but for a burst of its frames that was taken just then.
    assert!(kept <= (QUOTA - 2 * ALLOC_LEVEL) as usize + BURST, "{kept}");
    fixture.end();
}

/// A client's thread is held up: between two polls of its port another thread brings it all that its ring takes, and it gives
/// all of that back. It stays within its share.
#[test]
fn one_poll_takes_back_whatever_came() {
    let bench = bench();
    let mut fixture = Fixture::new(&bench, &vec![VlanPolicy::access(0); PORTS]);
    let frame = |to: u8, from: u8| [&[2, 0, 0, 0, 0, to][..], &[2, 0, 0, 0, 0, from], &[0; 48]].concat();
    fixture.send(1, &frame(9, 2));
    (0..PORTS).for_each(|port| drop(fixture.received(port)));
    for _ in 0..20 {
        for _ in 0..1000 {
            fixture.send(0, &frame(2, 1));
        }
        assert_eq!(fixture.received(1).len(), 1000);
        fixture.poll(1);
    }
    assert_eq!(fixture.total(1, Counter::TxDropQuota), 0);
    fixture.end();
}

/// Without an mbuf left a flood reaches the port that needs no copy, the others count why not; known destinations are
/// reached as ever, and with mbufs again so is everybody.
#[test]
fn an_empty_pool_costs_copies_only() {
    let bench = bench();
    let pool = bench.ledger.pools()[0];
    let mut fixture = Fixture::new(&bench, &vec![VlanPolicy::access(0); PORTS]);
    let broadcast = [[0xff; 6], [2, 0, 0, 0, 0, 1]]
        .concat()
        .into_iter()
        .chain([0; 48])
        .collect::<Vec<u8>>();
    let unicast = [[2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 1]]
        .concat()
        .into_iter()
        .chain([0; 48])
        .collect::<Vec<u8>>();
    let answer = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]]
        .concat()
        .into_iter()
        .chain([0; 48])
        .collect::<Vec<u8>>();
    fixture.send(0, &broadcast);
    fixture.send(1, &answer);
    (0..PORTS).for_each(|port| drop(fixture.received(port)));

    let hoard: Vec<Mbuf> = std::iter::from_fn(|| pool.alloc_one()).collect();
    assert_eq!(pool.available(), 0);
    fixture.send(0, &broadcast);
    let came: Vec<usize> = (1..PORTS).map(|port| fixture.received(port).len()).collect();
    assert_eq!(came, [0, 0, 1]);
    for port in [1, 2] {
        assert_eq!(fixture.total(port, Counter::TxDropNoBuffer), 1);
    }
    fixture.send(0, &unicast);
    assert_eq!(fixture.received(1), [unicast]);

    for mbuf in hoard {
        bench.ledger.free(mbuf);
    }
    fixture.send(0, &broadcast);
    assert!((1..PORTS).all(|port| fixture.received(port).len() == 1));
    fixture.end();
}
