//! A port as the datapath sees it: an index, its VLANs, and a way in and out.

use std::sync::Arc;

use spin::mutex::SpinMutex;
use vswitch_common::ethdev::Ethdev;

use super::client_port::Session;
use super::vlan::VlanPolicy;

/// Index of a port in the datapath, of its counters, and in the learning tables. Stays the same while it exists.
pub type PortIndex = u16;

/// One port of one bridge. Immutable: a change makes a new one.
#[derive(Debug, Clone)]
pub struct Port {
    pub index: PortIndex,
    /// Index of its bridge in the snapshot.
    pub bridge: usize,
    pub vlan: VlanPolicy,
    /// Bytes of the longest frame that leaves by it: MTU, Ethernet header and two tags.
    pub max_frame: usize,
    pub io: Io,
}

/// Ethernet header and two VLAN tags, which come on top of the MTU.
pub const FRAME_OVERHEAD: usize = 22;

/// How frames get in and out.
#[derive(Debug, Clone)]
pub enum Io {
    /// Nothing behind it: no client attached, or the port's device did not start.
    Down,
    /// A client's rings.
    Client(Arc<Session>),
    /// A NIC or vdev.
    Ethdev(Arc<EthdevIo>),
}

/// A running device and one lock for each of its transmit queues.
#[derive(Debug)]
pub struct EthdevIo {
    pub device: Ethdev,
    tx_locks: Vec<SpinMutex<()>>,
}

impl EthdevIo {
    /// Wraps a started device.
    pub fn new(device: Ethdev) -> EthdevIo {
        let tx_locks = (0..device.tx_queues()).map(|_| SpinMutex::new(())).collect();
        EthdevIo { device, tx_locks }
    }

    /// The transmit queue of PMD thread `thread`, and its lock: threads share queues where there are too few.
    #[inline]
    pub fn tx_queue(&self, thread: usize) -> (u16, &SpinMutex<()>) {
        let queue = thread % self.tx_locks.len();
        (queue as u16, &self.tx_locks[queue])
    }
}

impl Port {
    /// Receive queues to poll.
    pub fn rx_queues(&self) -> usize {
        match &self.io {
            Io::Down => 0,
            Io::Client(session) => session.queues().len(),
            Io::Ethdev(io) => usize::from(io.device.rx_queues()),
        }
    }
}
