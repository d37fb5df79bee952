//! Who is measured.

pub mod between;
pub mod ours;
pub mod ovs;
pub mod testpmd;

use std::path::Path;
use std::time::Duration;

use crate::sample::Sample;

/// This switch's name in tables.
pub const OURS: &str = "dpdk-vswitchd";

/// The CPU that switches; everything else of a peer runs on the others.
pub const SWITCHING_CPU: usize = 1;

/// What a peer switches between: ports that replay captures and ports that frames leave by.
#[derive(Debug)]
pub struct Wire {
    /// Arguments of the ports' drivers, by bridge.
    pub bridges: Vec<Vec<String>>,
    /// Mbufs that the replay and the frames under way take.
    pub mbufs: u32,
    /// The CPUs that switch, as a mask.
    pub cpus: u64,
}

/// Mbufs for frames under way: in rings, in caches, in the ports' queues.
const UNDER_WAY: u32 = 8192;

impl Wire {
    /// One bridge of `ports`, which replay `frames` frames in all, on the switching CPU.
    pub fn new(ports: Vec<String>, frames: u32) -> Wire {
        Wire {
            bridges: vec![ports],
            // A port keeps the frames that it replays in mbufs of the switch.
            mbufs: frames + UNDER_WAY,
            cpus: 1 << SWITCHING_CPU,
        }
    }

    /// The arguments of all ports, each with the number of its bridge.
    pub fn ports(&self) -> impl Iterator<Item = (usize, &String)> {
        let numbered = self.bridges.iter().enumerate();
        numbered.flat_map(|(bridge, ports)| ports.iter().map(move |port| (bridge, port)))
    }

    /// MiB of hugepages for that, with room to spare: 2.5 KiB an mbuf, and a quarter for what is no mbuf.
    pub fn memory_mb(&self) -> u64 {
        u64::from(self.mbufs) * 5 / 2 / 1024 * 4 / 3 + 128
    }
}

/// Arguments of DPDK's pcap driver for a port that replays `capture` for ever; what leaves by it is dropped.
pub fn replay(number: usize, capture: &Path) -> String {
    format!("net_pcap{number},rx_pcap={},infinite_rx=1", capture.display())
}

/// Arguments of DPDK's null driver for a port that nothing comes in by; what leaves by it is dropped.
pub fn sink(number: usize) -> String {
    format!("net_null{number},no-rx=1")
}

/// A running peer with traffic on it. It ends when dropped.
pub trait Peer {
    /// Its process.
    fn pid(&self) -> i32;

    /// What it does within `time`.
    ///
    /// # Errors
    /// It does not tell.
    fn sample(&mut self, time: Duration) -> anyhow::Result<Sample>;
}
