//! What an idle switch with two idle VMs takes of the CPU.

use std::time::Duration;

use anyhow::Context;
use vswitch_tests::{Switch, vm};

use crate::guests::Guests;
use crate::peer::{OURS, Peer, between};
use crate::report::{Row, Table};
use crate::sample::Sample;
use crate::scenario::Effort;
use crate::threads;

/// Until the guests have nothing left to say: the kernel greets its neighbours for some seconds.
const SETTLE: Duration = Duration::from_secs(4);

/// How much of a core a peer takes within that time.
type Measure = fn(Duration) -> anyhow::Result<Sample>;

const PEERS: [(&str, Measure); 2] = [(OURS, ours), ("OVS-DPDK", ovs)];

pub fn run(effort: &Effort) -> anyhow::Result<Table> {
    let time = effort.measure * 4;
    // It takes longest to start, and its figures vary least.
    let rounds = if effort.quick { 1 } else { effort.rounds };
    let mut rows = PEERS.map(|(peer, _)| Row {
        point: "two idle VMs".to_owned(),
        peer,
        samples: Vec::new(),
    });
    for _ in 0..rounds {
        for (row, (peer, measure)) in rows.iter_mut().zip(PEERS) {
            row.samples.push(measure(time).context(peer)?);
        }
    }
    Ok(Table {
        scenario: "idle",
        work: "CPU time of switch and shims with two VMs that do nothing (OVS: two virtio-user guests)",
        unit: "% of a core",
        rows: rows.into(),
    })
}

fn ours(time: Duration) -> anyhow::Result<Sample> {
    let switch = Switch::with_ports(&[1, 2]);
    let mut one = vm::client(&switch, 1).spawn()?;
    let mut two = vm::client(&switch, 2).spawn()?;
    let Ok(()) = vm::boot(&mut [&mut one, &mut two]);
    let Ok(()) = vm::reaches(&mut one, "10.0.0.2");
    std::thread::sleep(SETTLE);
    share(&[switch.pid(), vm::shim(&one), vm::shim(&two)], time)
}

/// With guests that don't forward: a port without a guest is not polled.
fn ovs(time: Duration) -> anyhow::Result<Sample> {
    let mut guests = Guests::start()?;
    let ovs = between::ovs(&guests.sockets())?;
    guests.wait()?;
    std::thread::sleep(SETTLE / 4);
    share(&[ovs.pid()], time)
}

/// How much of a core all threads of `processes` take within `time`, in per cent.
fn share(processes: &[i32], time: Duration) -> anyhow::Result<Sample> {
    let taken = || -> anyhow::Result<Duration> { processes.iter().map(|&pid| threads::cpu_time(pid)).sum() };
    let before = taken()?;
    std::thread::sleep(time);
    let rate = 100.0 * (taken()? - before).as_secs_f64() / time.as_secs_f64();
    Ok(Sample { rate, cycles: None })
}
