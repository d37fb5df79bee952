//! This switch.

use std::time::{Duration, Instant};

use vswitch_common::stats::Counter;
use vswitch_tests::Switch;

use super::{Peer, SWITCHING_CPU, Wire};
use crate::sample::Sample;

/// A switch with two replaying ports on one bridge.
#[derive(Debug)]
pub struct Ours {
    switch: Switch,
}

impl Ours {
    pub fn start(wire: &Wire) -> Ours {
        let switch = Switch::builder().memory(wire.memory_mb()).start();
        let mask = 1 << SWITCHING_CPU;
        switch.vsctl(&format!("set Open_vSwitch . other_config:pmd-cpu-mask={mask:#x}"));
        switch.vsctl("add-br br0 -- set Bridge br0 datapath_type=dpdk other_config:mac-table-size=262144");
        for side in 0..2 {
            let device = wire.device(side);
            switch.vsctl(&format!(
                "add-port br0 p{side} -- set Interface p{side} type=dpdk options:dpdk-devargs=\"{device}\""
            ));
        }
        Ours { switch }
    }

    /// Packets received, and busy cycles of the switching core.
    fn totals(&self) -> (u64, u64) {
        let packets = ["p0", "p1"].map(|port| self.switch.count(port, Counter::RxPackets));
        let busy = self.switch.snapshot().threads.iter().map(|t| t.busy_cycles).sum();
        (packets.iter().sum(), busy)
    }
}

impl Peer for Ours {
    fn sample(&mut self, time: Duration) -> anyhow::Result<Sample> {
        let (packets, busy) = self.totals();
        let start = Instant::now();
        std::thread::sleep(time);
        let (packets_after, busy_after) = self.totals();
        let seconds = start.elapsed().as_secs_f64();
        let packets = (packets_after - packets) as f64;
        Ok(Sample {
            rate: packets / seconds / 1e6,
            cycles: Some((busy_after - busy) as f64 / packets),
        })
    }
}
