//! Four client ports on one bridge, and their clients, in one process.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use arrayvec::ArrayVec;
use dpdk_vswitchd::datapath::BURST;
use dpdk_vswitchd::datapath::client_port::{QueueMemory, Session};
use dpdk_vswitchd::datapath::clock::Moment;
use dpdk_vswitchd::datapath::forward::Forwarder;
use dpdk_vswitchd::datapath::ledger::Ledger;
use dpdk_vswitchd::datapath::mac_table::MacTable;
use dpdk_vswitchd::datapath::mirror::Mirror;
use dpdk_vswitchd::datapath::port::{FrameLimit, Io, NO_BRIDGE, Port};
use dpdk_vswitchd::datapath::snapshot::{Bridge, Snapshot};
use dpdk_vswitchd::datapath::vlan::VlanPolicy;
use vswitch_common::eal::Eal;
use vswitch_common::gso::{Kind, Segmentation};
use vswitch_common::mbuf::{Checksum, DATA_ROOM, Mbuf};
use vswitch_common::mempool::Pool;
use vswitch_common::port::doorbell;
use vswitch_common::port::layout::ControlBlocks;
use vswitch_common::port::{ALLOC_RING_SIZE, FREE_RING_SIZE, RX_RING_SIZE, TX_RING_SIZE};
use vswitch_common::ring::{Consumer, Producer, RingMemory};
use vswitch_common::stats::{Counter, PortBlock, Segment, segment_name};

pub const PORTS: usize = 4;
/// Of each port.
pub const MTUS: [usize; PORTS] = [1500, 9000, 9000, 1500];
const NOW: Moment = Moment {
    ticks: 1000,
    seconds: 10,
};

/// EAL without hugepages, a pool, and the memory of four client ports: once a process, for one test at a time.
pub struct Bench {
    pub ledger: Arc<Ledger>,
    segment: Arc<Segment>,
    memory: Vec<QueueMemory>,
}

pub fn bench() -> MutexGuard<'static, Bench> {
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
pub struct Client {
    pub alloc: Consumer,
    pub tx: Producer,
    pub rx: Consumer,
    pub free: Producer,
}

/// Four client ports on one bridge, and their clients.
pub struct Fixture<'a> {
    bench: &'a Bench,
    pub snapshot: Snapshot,
    forwarder: Forwarder,
    pub clients: Vec<Client>,
    free_before: u32,
}

impl<'a> Fixture<'a> {
    pub fn new(bench: &'a Bench, vlans: &[VlanPolicy]) -> Fixture<'a> {
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
                max_frame: FrameLimit::of_mtu(MTUS[index]),
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
    pub fn mirror(&mut self, mirrors: Vec<Mirror>) {
        let bridge = &mut self.snapshot.bridges[0];
        bridge.mirrors = Mirror::in_order(mirrors);
        for mirror in &bridge.mirrors {
            bridge.ports.retain(|&port| port != mirror.output);
            let output = self.snapshot.ports[usize::from(mirror.output)].as_mut().unwrap();
            Arc::make_mut(output).bridge = NO_BRIDGE;
        }
    }

    /// Polls port `index` once and forwards what it finds.
    pub fn poll(&mut self, index: usize) {
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
    pub fn send(&mut self, index: usize, bytes: &[u8]) {
        self.put(index, bytes, |_| {});
        self.poll(index);
    }

    /// Client `index` sends a frame of TCP over IPv4 that is to be cut, its checksum half done.
    pub fn send_large(&mut self, index: usize, bytes: &[u8], segmentation: Segmentation) {
        let (start, offset) = (34, 16);
        self.put(index, bytes, |first| {
            first.set_checksum(Checksum::Partial { start, offset });
            first.set_segmentation(segmentation);
        });
        self.poll(index);
    }

    /// Client `index` puts `bytes` onto its ring, with what `finish` adds to the first mbuf.
    pub fn put(&mut self, index: usize, bytes: &[u8], finish: impl FnOnce(&mut Mbuf)) {
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
    pub fn received(&mut self, index: usize) -> Vec<Vec<u8>> {
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
    pub fn return_unread(&mut self, index: usize) {
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

    pub fn total(&self, index: usize, counter: Counter) -> u64 {
        self.bench.segment.total(index, counter)
    }

    /// Compares the counters of what went to no port.
    ///
    /// # Panics
    /// If they differ from `expected`: by which port each came in, and why it was dropped.
    #[track_caller]
    pub fn assert_dropped(&self, expected: &[(usize, Counter)]) {
        for counter in Counter::ALL
            .iter()
            .copied()
            .filter(|c| c.is_drop() && c.name().starts_with("rx_"))
        {
            for port in 0..PORTS {
                let wanted = expected.iter().filter(|&&d| d == (port, counter)).count();
                assert_eq!(
                    self.total(port, counter),
                    wanted as u64,
                    "{counter:?} of port {port}"
                );
            }
        }
    }

    /// Copies made of what came in, and those that left or were dropped on their way out.
    pub fn copies(&self) -> (u64, u64) {
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
    pub fn end(self) {
        for port in self.snapshot.ports.iter().flatten() {
            if let Io::Client(session) = &port.io {
                session.reclaim(&self.bench.ledger);
            }
        }
        assert_eq!(self.bench.ledger.available(), self.free_before, "mbufs are lost");
    }
}

/// A large TCP frame of `payload` bytes to client 1, and how it is to be cut.
pub fn large(payload: usize, size: u16) -> (Vec<u8>, Segmentation) {
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
