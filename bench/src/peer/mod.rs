//! Who is measured.

pub mod ours;
pub mod ovs;
pub mod testpmd;

use std::path::PathBuf;
use std::time::Duration;

use crate::sample::Sample;

/// This switch's name in tables.
pub const OURS: &str = "dpdk-vswitchd";

/// The CPU that switches; everything else of a peer runs on the others.
pub const SWITCHING_CPU: usize = 1;

/// Two ports that replay captures, and what they need.
#[derive(Debug)]
pub struct Wire {
    pub captures: [PathBuf; 2],
    /// Mbufs that the replay and the frames under way take.
    pub mbufs: u32,
}

impl Wire {
    /// Arguments of DPDK's pcap driver for port `side`: what leaves by it is dropped.
    pub fn device(&self, side: usize) -> String {
        format!(
            "net_pcap{side},rx_pcap={},infinite_rx=1",
            self.captures[side].display()
        )
    }

    /// MiB of hugepages for that, with room to spare: 2.5 KiB an mbuf.
    pub fn memory_mb(&self) -> u64 {
        u64::from(self.mbufs) * 5 / 2 / 1024 + 128
    }
}

/// A running peer with traffic on it. It ends when dropped.
pub trait Peer {
    /// What it does within `time`.
    ///
    /// # Errors
    /// It does not tell.
    fn sample(&mut self, time: Duration) -> anyhow::Result<Sample>;
}
