//! What a pair of clients can carry without a loss, alone and beside others that flood, on one PMD thread.
//!
//! `cargo bench -p dpdk-vswitchd --bench fair_share [-- SLICES]`: needs root, 192 MiB of hugepages and two CPUs. The
//! switch's thread is the real one and has a CPU to itself; the clients' ends of all rings are worked by one thread on
//! the other, so that the system's scheduler has no part in how they share.
//!
//! The pair's sender holds back what its receiver has no room for, so that nothing of theirs is ever lost: the pace at
//! which frames then pass is the greatest one without loss. It is taken in slices of a millisecond; one during which
//! either thread was interrupted by others on the machine does not count, nor does the one after it.

mod stage;

use std::sync::Arc;
use std::time::Duration;

use dpdk_vswitchd::cpus;
use dpdk_vswitchd::datapath::clock::{Clock, tsc};
use dpdk_vswitchd::datapath::ledger::Ledger;
use dpdk_vswitchd::datapath::mac_table::MacTable;
use dpdk_vswitchd::datapath::snapshot::{Assigned, Bridge, Publisher, RxQueue, Snapshot};
use dpdk_vswitchd::pmds::{MAX_PMDS, Pmds};
use nix::time::ClockId;
use vswitch_common::eal::{self, Eal};
use vswitch_common::mempool::Pool;
use vswitch_common::stats::{Counter, Segment, segment_name};

use stage::{BURST, Client, FRAME, header, mac};

/// The pair, who floods, whom it floods by unicast, and others: a broadcast is copied to 16 ports.
const SENDER: usize = 0;
const RECEIVER: usize = 1;
const FLOODER: usize = 2;
const SINK: usize = 3;
const PORTS: usize = 17;
/// Frames of the pair that are under way at most: less than a ring holds.
const WINDOW: u64 = 768;
const SLICE: Duration = Duration::from_millis(1);
/// The clients' thread is never away for so long unless it was interrupted.
const GAP: Duration = Duration::from_micros(60);
/// Part of a slice, in percent, that the switch's thread must have had a CPU.
const RUNNING: u64 = 97;
/// A scenario that does not get its slices on a busy machine ends with those that it has.
const PATIENCE: Duration = Duration::from_secs(30);

/// What happens beside the pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beside {
    Nothing,
    Unicast,
    UnicastLong,
    Broadcast,
    BroadcastLong,
    /// Random sources to random destinations: each is learned and flooded.
    RandomAddresses,
    /// A unicast flood to one that takes nothing.
    Stopped,
    /// A broadcast flood to ports that take nothing.
    AllStopped,
}

const SCENARIOS: &[(Beside, &str)] = &[
    (Beside::Nothing, "the pair alone"),
    (Beside::Unicast, "beside a unicast flood, 60 bytes"),
    (Beside::UnicastLong, "beside a unicast flood, 1514 bytes"),
    (
        Beside::Broadcast,
        "beside a broadcast flood to 16 ports, 60 bytes",
    ),
    (
        Beside::BroadcastLong,
        "beside a broadcast flood to 16 ports, 1514 bytes",
    ),
    (
        Beside::RandomAddresses,
        "beside a flood of random addresses to 16 ports",
    ),
    (Beside::Stopped, "beside a flood to a receiver that never drains"),
    (
        Beside::AllStopped,
        "beside a broadcast flood to 14 that never drain",
    ),
];

struct Bench {
    clients: Vec<Client>,
    clock: Clock,
    segment: Arc<Segment>,
    /// The PMD thread's id.
    pmd: i32,
    random: u64,
}

impl Bench {
    fn flood(&mut self, beside: Beside) -> u64 {
        let (to, len) = match beside {
            Beside::Nothing => return 0,
            Beside::Unicast | Beside::Stopped => (mac(SINK), FRAME),
            Beside::UnicastLong => (mac(SINK), 1514),
            Beside::Broadcast | Beside::AllStopped => ([0xff; 6], FRAME),
            Beside::BroadcastLong => ([0xff; 6], 1514),
            Beside::RandomAddresses => {
                let random = &mut self.random;
                let next = || {
                    *random = random
                        .wrapping_mul(0x5851_f42d_4c95_7f2d)
                        .wrapping_add(0x1405_7b7e_f767_814f);
                    let [a, b, c, d, e, ..] = random.to_be_bytes();
                    header([6, a, b, c, d, e], [10, e, d, c, b, a])
                };
                return self.clients[FLOODER].send(BURST, FRAME, next) as u64;
            }
        };
        let header = header(to, mac(FLOODER));
        self.clients[FLOODER].send(BURST, len, || header) as u64
    }

    /// Everybody takes what waits, but those who never do. How many of the pair's came.
    fn drain(&mut self, beside: Beside) -> u64 {
        let mut received = 0;
        self.clients[RECEIVER].drain(|frame| received += u64::from(frame.data()[6..12] == mac(SENDER)));
        for port in [SENDER, FLOODER] {
            self.clients[port].drain(|_| ());
        }
        if !matches!(beside, Beside::Nothing | Beside::Stopped | Beside::AllStopped) {
            self.clients[SINK..].iter_mut().for_each(|c| c.drain(|_| ()));
        }
        received
    }

    /// Per valid slice, the pair's and the flood's frames a second; and how many frames the receiver lost in them.
    fn measure(&mut self, beside: Beside, slices: usize) -> (Vec<(u64, u64)>, u64) {
        let to_receiver = header(mac(RECEIVER), mac(SENDER));
        let [slice, gap, patience] = [SLICE, GAP, PATIENCE].map(|d| self.clock.ticks(d));
        let (mut found, mut settled) = (Vec::new(), 0);
        let (mut under_way, mut lost) = (0u64, 0);
        let begin = tsc();
        while found.len() < slices && tsc() - begin < patience {
            if settled == 0 {
                // Whoever was away has left rings full: nothing is under way when the next slice begins.
                let quiet = tsc() + slice;
                while tsc() < quiet {
                    self.drain(beside);
                }
                under_way = 0;
            }
            let (start, ran, dropped) = (tsc(), cpu_time(self.pmd), self.dropped());
            let (mut last, mut valid) = (start, true);
            let (mut carried, mut flooded) = (0, 0);
            while last - start < slice {
                let room = (WINDOW - under_way) as usize;
                under_way += self.clients[SENDER].send(room, FRAME, || to_receiver) as u64;
                flooded += self.flood(beside);
                let received = self.drain(beside);
                carried += received;
                under_way = under_way.saturating_sub(received);
                let now = tsc();
                valid &= now - last < gap;
                last = now;
            }
            let ran = (cpu_time(self.pmd) - ran).as_nanos() as u64;
            let took = (u128::from(last - start) * 1_000_000_000 / u128::from(self.clock.hz())) as u64;
            valid &= ran * 100 >= took * RUNNING;
            settled = if valid { settled + 1 } else { 0 };
            if settled > 1 {
                lost += self.dropped() - dropped;
                found.push((carried * 1_000_000_000 / took, flooded * 1_000_000_000 / took));
            }
        }
        found.sort_unstable();
        (found, lost)
    }

    /// Frames that the receiver's ring had no room for, the pair's or broadcast.
    fn dropped(&self) -> u64 {
        let drops = [Counter::TxDropFull, Counter::TxDropQuota, Counter::TxDropNoBuffer];
        drops.iter().map(|&c| self.segment.total(RECEIVER, c)).sum()
    }
}

/// CPU time of a thread of this process.
fn cpu_time(tid: i32) -> Duration {
    // As pthread_getcpuclockid makes it: MAKE_THREAD_CPUCLOCK(tid, CPUCLOCK_SCHED).
    let time = ClockId::from_raw((!tid << 3) | 6).now().expect("the thread runs");
    Duration::from(time)
}

fn start(pmd: usize, clients_cpu: usize) -> (Bench, Pmds) {
    let lcores = format!("--lcores=0@{clients_cpu},1@{pmd}");
    let args = ["--in-memory", "--no-pci", "--no-telemetry", "-m", "192", &lcores];
    let eal = Eal::init("fair_share", &args.map(str::to_owned)).expect("EAL, with 192 MiB of hugepages");
    let pool = Pool::create("pool", 57_343, -1).expect("hugepages");
    let ledger = Arc::new(Ledger::new(vec![pool]));
    let name = format!("fair-share-{}", std::process::id());
    let segment = Arc::new(Segment::create(&name, eal::tsc_hz()).expect("shared memory"));
    // It is mapped, and nobody else looks for it: the threads that write it outlive the run.
    nix::sys::mman::shm_unlink(segment_name(&name).as_str()).expect("it was made just now");
    let publisher = Arc::new(Publisher::new(MAX_PMDS).expect("descriptors"));
    let clock = Clock::new(eal::tsc_hz());
    let mut snapshot = Snapshot {
        max_sleep: Some(Duration::ZERO),
        ..Snapshot::default()
    };
    let mut clients = Vec::new();
    for index in 0..PORTS {
        let (port, client) = stage::client_port(index, pool);
        snapshot.ports.push(Some(port));
        clients.push(client);
    }
    snapshot.bridges.push(Bridge {
        table: Arc::new(MacTable::new(2048, 300)),
        ports: (0..PORTS as u16).collect(),
        mirrors: Vec::new(),
        forward_reserved: false,
    });
    let polled = (0..PORTS as u16).map(|port| Assigned {
        queue: RxQueue { port, queue: 0 },
        busy: Arc::default(),
    });
    snapshot.polled = vec![polled.collect()];
    let mut pmds = Pmds::new(eal, publisher.clone(), ledger, segment.clone(), clock, vec![pmd]);
    pmds.configure(Some(&[pmd]));
    publisher.publish(snapshot);
    let pmd = pmds.tid(0).expect("it runs") as i32;
    let bench = Bench {
        clients,
        clock,
        segment,
        pmd,
        random: 1,
    };
    (bench, pmds)
}

fn main() {
    // Cargo adds "--bench".
    let slices = std::env::args().find_map(|a| a.parse().ok()).unwrap_or(500);
    let cpus = cpus::allowed();
    let [pmd, clients_cpu, ..] = cpus[..] else {
        panic!("two CPUs are needed, {} may be used", cpus.len())
    };
    let (mut bench, pmds) = start(pmd, clients_cpu);
    // Everybody is known before it begins.
    for port in 0..PORTS {
        let hello = header([0xff; 6], mac(port));
        while bench.clients[port].send(1, FRAME, || hello) == 0 {}
    }
    println!("frames of 60 bytes without loss: median (lower, upper quartile) of slices of {SLICE:?}");
    let mut alone = 0;
    for &(beside, name) in SCENARIOS {
        let (found, lost) = bench.measure(beside, slices);
        let Some(&(rate, flooded)) = found.get(found.len() / 2) else {
            println!("{name:<50} the machine is too busy");
            continue;
        };
        if beside == Beside::Nothing {
            alone = rate;
        }
        let mpps = |n: u64| n as f64 / 1e6;
        println!(
            "{name:<50} {:6.2} Mpps ({:5.2}, {:5.2}) {:4} %   flood {:6.2} Mpps   {} slices, {lost} lost",
            mpps(rate),
            mpps(found[found.len() / 4].0),
            mpps(found[found.len() * 3 / 4].0),
            rate * 100 / alone.max(1),
            mpps(flooded),
            found.len()
        );
    }
    // The threads end with the process; so does the memory.
    drop(bench);
    std::mem::forget(pmds);
}
