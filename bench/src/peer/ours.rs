//! This switch.

use std::time::{Duration, Instant};

use vswitch_common::stats::Counter;
use vswitch_tests::Switch;

use super::{Peer, Wire};
use crate::sample::Sample;

/// A switch with the ports of a [`Wire`], `p0`, `p1`, ... on bridges `br0`, ...
#[derive(Debug)]
pub struct Ours {
    pub switch: Switch,
}

impl Ours {
    pub fn start(wire: &Wire) -> Ours {
        let switch = Switch::builder().memory(wire.memory_mb()).start();
        switch.vsctl(&format!(
            "set Open_vSwitch . other_config:pmd-cpu-mask={:#x}",
            wire.cpus
        ));
        for bridge in 0..wire.bridges.len() {
            switch.vsctl(&format!(
                "add-br br{bridge} -- set Bridge br{bridge} datapath_type=dpdk other_config:mac-table-size=262144"
            ));
        }
        for (number, (bridge, device)) in wire.ports().enumerate() {
            switch.vsctl(&format!(
                "add-port br{bridge} p{number} -- set Interface p{number} type=dpdk options:dpdk-devargs=\"{device}\""
            ));
        }
        Ours { switch }
    }

    /// Frames received by its devices, and busy cycles of the switching cores.
    fn totals(&self) -> (u64, u64) {
        let now = self.switch.snapshot();
        let devices = now.ports.iter().filter(|port| port.info.name.starts_with('p'));
        let frames = devices.map(|port| port.get(Counter::RxPackets)).sum();
        (frames, now.threads.iter().map(|t| t.busy_cycles).sum())
    }
}

impl Peer for Ours {
    fn pid(&self) -> i32 {
        self.switch.pid()
    }

    fn sample(&mut self, time: Duration) -> anyhow::Result<Sample> {
        let (frames, busy) = self.totals();
        let start = Instant::now();
        std::thread::sleep(time);
        let (frames_after, busy_after) = self.totals();
        let seconds = start.elapsed().as_secs_f64();
        let frames = (frames_after - frames) as f64;
        Ok(Sample {
            rate: frames / seconds / 1e6,
            cycles: (frames > 0.0).then(|| (busy_after - busy) as f64 / frames),
        })
    }
}
