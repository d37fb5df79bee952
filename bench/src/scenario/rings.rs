//! Two bare clients and their rings: what the switch takes for a frame that nobody copies.

use std::time::{Duration, Instant};

use vswitch_common::port::QUOTA;
use vswitch_common::stats::{Counter, Snapshot};
use vswitch_tests::blast::Blast;
use vswitch_tests::frames::mac;
use vswitch_tests::{Bare, Frame};

use crate::clients;
use crate::peer::{OURS, Peer, Wire, ours::Ours};
use crate::report::{Row, Table};
use crate::sample::Sample;
use crate::scenario::Effort;
use crate::slices;

/// The clients' ports.
const PORTS: [u16; 2] = [1, 2];
/// Frames that each client has under way: less than a ring holds, so that none is dropped while the other has not its turn
/// on a CPU that they share.
const WINDOW: u32 = 512;

/// A switch with two clients that know each other.
#[derive(Debug)]
pub struct Pair {
    // In the order in which they end.
    clients: [Bare; 2],
    pub ours: Ours,
}

impl Pair {
    /// With client ports 1 to `ports`, of which the first two are attached.
    pub fn start(ports: u16) -> Pair {
        let mut wire = Wire::new(Vec::new(), 0);
        // Each client has a whole share, and all shares are three quarters of the pool at most.
        wire.mbufs += u32::from(ports) * QUOTA * 4 / 3;
        let ours = Ours::start(&wire);
        // It polls all the time: what sleeping and waking cost is not this scenario's.
        ours.switch
            .vsctl("set Open_vSwitch . other_config:pmd-sleep-max=0");
        let added: Vec<String> = (1..=ports)
            .map(|n| format!("add-port br0 dpdkr{n} -- set Interface dpdkr{n} type=dpdkr"))
            .collect();
        ours.switch.vsctl(&added.join(" -- "));
        let mut clients = PORTS.map(|port| clients::attach(&ours.switch, port));
        for (client, port) in clients.iter_mut().zip(PORTS) {
            client.send(&[Frame::marked(mac(0xff), mac(port as u8), 0, 60)]);
        }
        Pair { clients, ours }
    }

    /// Starts traffic both ways.
    pub fn blast(&mut self) {
        for (client, [from, to]) in self.clients.iter_mut().zip([[1, 2], [2, 1]]) {
            client.start_blast(Some(&Blast {
                destination: mac(to),
                source: mac(from),
                window: WINDOW,
                ..Blast::default()
            }));
        }
    }

    /// Ends it.
    pub fn stop(&mut self) {
        for client in &mut self.clients {
            client.stop_blast();
        }
    }
}

/// Frames that reached clients, frames that came from them, in how many rounds over both, and what the switch took for them.
struct Totals {
    delivered: u64,
    packets: u64,
    rounds: u64,
    busy: u64,
}

impl Totals {
    fn of(snapshot: &Snapshot) -> Totals {
        Totals {
            delivered: snapshot.ports.iter().map(|p| p.get(Counter::TxPackets)).sum(),
            packets: snapshot.threads.iter().map(|t| t.packets).sum(),
            rounds: snapshot.threads.iter().map(|t| t.bursts).sum(),
            busy: snapshot.threads.iter().map(|t| t.busy_cycles).sum(),
        }
    }
}

impl Peer for Pair {
    fn pid(&self) -> i32 {
        self.ours.pid()
    }

    fn sample(&mut self, time: Duration) -> anyhow::Result<Sample> {
        let (before, start) = (Totals::of(&self.ours.switch.snapshot()), Instant::now());
        std::thread::sleep(time);
        let (after, seconds) = (
            Totals::of(&self.ours.switch.snapshot()),
            start.elapsed().as_secs_f64(),
        );
        let packets = after.packets - before.packets;
        Ok(Sample {
            rate: (after.delivered - before.delivered) as f64 / seconds / 1e6,
            cycles: (packets > 0).then(|| (after.busy - before.busy) as f64 / packets as f64),
        })
    }
}

pub fn run(effort: &Effort) -> anyhow::Result<Vec<Table>> {
    let (mut rates, mut frames) = (Vec::new(), Vec::new());
    for _ in 0..effort.rounds {
        let mut pair = Pair::start(2);
        pair.blast();
        std::thread::sleep(effort.warm_up);
        let before = Totals::of(&pair.ours.switch.snapshot());
        rates.push(slices::measure(&mut pair, effort.measure)?);
        let after = Totals::of(&pair.ours.switch.snapshot());
        frames.push(Sample {
            rate: (after.packets - before.packets) as f64 / (after.rounds - before.rounds) as f64,
            cycles: None,
        });
        pair.stop();
    }
    let table = |scenario, work, unit, samples| Table {
        scenario,
        work,
        unit,
        rows: vec![Row {
            point: "both ways".to_owned(),
            peer: OURS,
            samples,
        }],
    };
    Ok(vec![
        table(
            "rings",
            "two bare clients move frames of 64 bytes by their rings; one switching core, the clients on the others",
            "Mpps",
            rates,
        ),
        table(
            "rings-bursts",
            "the same: frames in a round over both ports, each of which gives 32 at most",
            "frames",
            frames,
        ),
    ])
}
