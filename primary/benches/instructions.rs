//! Instructions that the switch executes for a packet, counted by valgrind: the same number every time.
//!
//! `scripts/bench-instructions` runs this and holds the figures against `bench/instructions.txt`; by itself it counts
//! nothing. What is counted is what a PMD thread does in a round over the ports: frames and used mbufs in, empty ones out,
//! forwarding. The clients' part is not. It needs no hugepages.

mod stage;

use std::hint::black_box;
use std::sync::Arc;

use arrayvec::ArrayVec;
use dpdk_vswitchd::cpus;
use dpdk_vswitchd::datapath::clock::Moment;
use dpdk_vswitchd::datapath::forward::Forwarder;
use dpdk_vswitchd::datapath::ledger::Ledger;
use dpdk_vswitchd::datapath::mac_table::{DEFAULT_SIZE, Key, MacTable};
use dpdk_vswitchd::datapath::parse;
use dpdk_vswitchd::datapath::port::{EthdevIo, Io};
use dpdk_vswitchd::datapath::snapshot::{Bridge, Snapshot};
use vswitch_common::eal::Eal;
use vswitch_common::ethdev::{Ethdev, FlowControl, Setup};
use vswitch_common::mbuf::Mbuf;
use vswitch_common::mempool::Pool;
use vswitch_common::stats::{PortBlock, Segment, segment_name};

use stage::{BURST, Client, FRAME, header, mac};

/// Who sends, who receives, and others that a broadcast is copied to.
const SENDER: usize = 0;
const RECEIVER: usize = 1;
const CLIENTS: usize = 17;
/// A device that swallows what it is given.
const DEVICE: usize = CLIENTS;
const DEVICE_MAC: [u8; 6] = [2, 0, 0, 0, 1, 0];
/// Bursts until rings and caches are at their levels, and bursts that are counted.
const WARM_UP: usize = 256;
const BURSTS: usize = 1024;
const NOW: Moment = Moment {
    ticks: 1000,
    seconds: 10,
};

/// Callgrind counts what is executed in here: `scripts/bench-instructions` names it.
#[inline(never)]
fn measured(work: &mut dyn FnMut()) {
    work();
}

/// Ends a case of so many packets: callgrind writes down what it has counted before it enters.
#[inline(never)]
fn report(packets: usize, case: &str) {
    println!("{packets}\t{case}");
}

struct Bench {
    ledger: Arc<Ledger>,
    snapshot: Snapshot,
    forwarder: Forwarder,
    clients: Vec<Client>,
}

impl Bench {
    /// A PMD thread's round over `ports`.
    fn round(&mut self, ports: &[usize]) {
        for &index in ports {
            let Some(port) = &self.snapshot.ports[index] else {
                continue;
            };
            let Io::Client(session) = &port.io else { continue };
            let mut frames = ArrayVec::<Mbuf, BURST>::new();
            session.queues()[0].receive(&self.ledger, &mut frames, BURST);
            if !frames.is_empty() {
                self.forwarder.burst(&self.snapshot, port, 0, &mut frames, NOW);
            }
        }
    }

    /// Bursts of `burst` frames to `destination`; in each round, the thread looks at `ports`.
    fn forward(&mut self, case: &str, destination: [u8; 6], burst: usize, ports: &[usize]) {
        let header = header(destination, mac(SENDER));
        for number in 0..WARM_UP + BURSTS {
            let sent = self.clients[SENDER].send(burst, FRAME, || header);
            assert_eq!(sent, burst, "the switch keeps the client in empty mbufs");
            if number < WARM_UP {
                self.round(ports);
            } else {
                measured(&mut || self.round(ports));
            }
            self.clients.iter_mut().for_each(|c| c.drain(|_| ()));
        }
        report(burst * BURSTS, case);
    }
}

/// A large frame after another, each a chain of mbufs, from client to client.
fn forward_chains(bench: &mut Bench) {
    let header = header(mac(RECEIVER), mac(SENDER));
    let couple = [SENDER, RECEIVER];
    for number in 0..WARM_UP + BURSTS {
        bench.clients[SENDER].send_chain(BURST, header);
        if number < WARM_UP {
            bench.round(&couple);
        } else {
            measured(&mut || bench.round(&couple));
        }
        bench.clients[RECEIVER].drain_chains();
    }
    report(BURSTS, "client to client, chains of 32 mbufs");
}

/// Bursts that go back and forth between two clients, in the same mbufs.
fn answer(bench: &mut Bench) {
    let headers = [[RECEIVER, SENDER], [SENDER, RECEIVER]].map(|[to, from]| header(mac(to), mac(from)));
    let couple = [SENDER, RECEIVER];
    for (client, header) in couple.into_iter().zip(headers) {
        assert_eq!(bench.clients[client].send(BURST, FRAME, || header), BURST);
    }
    for _ in 0..BURSTS {
        measured(&mut || bench.round(&couple));
        for (client, header) in couple.into_iter().zip(headers) {
            assert_eq!(bench.clients[client].answer(header), BURST);
        }
    }
    report(
        couple.len() * BURST * BURSTS,
        "client to client and back, in the same mbufs",
    );
    bench.round(&couple);
    bench.clients.iter_mut().for_each(|c| c.drain(|_| ()));
}

fn start() -> Bench {
    let lcores = format!("--lcores=0@{}", cpus::allowed()[0]);
    let args = [
        "--no-huge",
        "--no-shconf",
        "--no-pci",
        "--no-telemetry",
        "-m",
        "256",
        &lcores,
    ];
    Eal::init("instructions", &args.map(str::to_owned)).expect("EAL");
    let pool = Pool::create("pool", 32_767, -1).expect("memory");
    let ledger = Arc::new(Ledger::new(vec![pool]));
    let name = format!("instructions-{}", std::process::id());
    let segment = Arc::new(Segment::create(&name, 1).expect("shared memory"));
    // It is mapped, and nobody else looks for it.
    nix::sys::mman::shm_unlink(segment_name(&name).as_str()).expect("it was made just now");
    let mut snapshot = Snapshot::default();
    let mut clients = Vec::new();
    for index in 0..CLIENTS {
        let (port, client) = stage::client_port(index, pool);
        snapshot.ports.push(Some(port));
        clients.push(client);
    }
    let mut device = Ethdev::attach("net_null0,no-rx=1").expect("DPDK's null driver");
    let setup = Setup {
        rx_queues: 1,
        tx_queues: 1,
        rx_descriptors: 512,
        tx_descriptors: 512,
        mtu: 1500,
        promiscuous: false,
        doorbells: false,
        large_receive: false,
        flow_control: FlowControl::default(),
    };
    device.start(&setup, pool).expect("DPDK's null driver");
    let io = Io::Ethdev(Arc::new(EthdevIo::new(device)));
    snapshot.ports.push(Some(stage::port(DEVICE, io)));
    let table = Arc::new(MacTable::new(DEFAULT_SIZE, 300));
    for port in 0..CLIENTS {
        table.learn(Key::new(0, parse::Mac::new(mac(port))), port as u16, NOW.seconds);
    }
    table.learn(
        Key::new(0, parse::Mac::new(DEVICE_MAC)),
        DEVICE as u16,
        NOW.seconds,
    );
    snapshot.bridges.push(Bridge {
        table,
        ports: (0..CLIENTS as u16).collect(),
        mirrors: Vec::new(),
        forward_reserved: false,
    });
    let stats = PortBlock::claim(&segment, 1).expect("its first thread");
    let mut forwarder = Forwarder::new(0, ledger.clone(), stats);
    forwarder.resize(snapshot.ports.len());
    Bench {
        ledger,
        snapshot,
        forwarder,
        clients,
    }
}

/// What is read and looked up of a burst: header, source, destination.
fn look_up(bench: &Bench) {
    let table = bench.snapshot.bridges[0].table.reader(NOW.seconds);
    let frames: Vec<([u8; 14], u16)> = (0..BURST)
        .map(|n| (n % CLIENTS, (n + 1) % CLIENTS))
        .map(|(from, to)| (header(mac(to), mac(from)), from as u16))
        .collect();
    for _ in 0..BURSTS {
        measured(&mut || {
            for (header, port) in &frames {
                let header = parse::parse(black_box(header)).expect("a whole header");
                black_box(table.check_source(Key::new(0, header.source), *port));
                black_box(table.lookup(Key::new(0, header.destination)));
            }
        });
    }
    report(BURST * BURSTS, "parse and look up");
}

fn main() {
    let mut bench = start();
    let all: Vec<usize> = (0..CLIENTS).collect();
    // Everybody gets empty mbufs.
    (0..2 * BURST).for_each(|_| bench.round(&all));
    let couple = [SENDER, RECEIVER];
    bench.forward("client to client, bursts of 32", mac(RECEIVER), 32, &couple);
    answer(&mut bench);
    bench.forward("client to client, bursts of 4", mac(RECEIVER), 4, &couple);
    bench.forward("client to device, bursts of 32", DEVICE_MAC, 32, &[SENDER]);
    bench.forward("broadcast to 16 clients, bursts of 32", [0xff; 6], 32, &all);
    forward_chains(&mut bench);
    look_up(&bench);
    // The device outlives the run, as does the memory.
    std::mem::forget(bench);
}
