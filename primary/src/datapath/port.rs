//! A port as the datapath sees it: an index, its VLANs, and a way in and out.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use spin::mutex::SpinMutex;
use vswitch_common::ethdev::Ethdev;
use vswitch_common::mbuf::Mbuf;

use super::client_port::Session;
use super::clock::tsc;
use super::limit::Limiter;
use super::parse::{HEADER_LEN, TAG_LEN};
use super::vlan::VlanPolicy;

/// Index of a port in the datapath, of its counters, and in the learning tables. Stays the same while it exists.
pub type PortIndex = u16;

/// One port of one bridge. Immutable: a change makes a new one.
#[derive(Debug, Clone)]
pub struct Port {
    pub index: PortIndex,
    /// Index of its bridge in the snapshot; [`NO_BRIDGE`] of a mirror's output.
    pub bridge: usize,
    pub vlan: VlanPolicy,
    /// Bytes of the longest frame that leaves by it.
    pub max_frame: FrameLimit,
    /// What keeps what comes in by it to its limits.
    pub limiter: Option<Arc<Limiter>>,
    pub io: Io,
}

/// Index of no bridge: nothing is forwarded to such a port, or from it.
pub const NO_BRIDGE: usize = usize::MAX;

/// Ethernet header and two VLAN tags, which come on top of the MTU.
pub const FRAME_OVERHEAD: usize = HEADER_LEN + 2 * TAG_LEN;

/// Bytes of the longest frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLimit {
    /// Of any.
    pub any: usize,
    /// Of one with an 802.1Q tag (TPID 0x8100) in front.
    pub tagged: usize,
}

impl FrameLimit {
    /// MTU, Ethernet header and two tags of either kind.
    pub const fn of_mtu(mtu: usize) -> FrameLimit {
        let most = mtu + FRAME_OVERHEAD;
        FrameLimit {
            any: most,
            tagged: most,
        }
    }

    /// What the kernel sends by a packet socket (`packet_extra_vlan_len_allowed()`): a tag on top of the MTU in such a frame only.
    /// Longer ones it drops without a word.
    pub const fn of_packet_socket(mtu: usize) -> FrameLimit {
        FrameLimit {
            any: mtu + HEADER_LEN,
            tagged: mtu + HEADER_LEN + TAG_LEN,
        }
    }
}

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
    /// Of a device that leads into the host kernel, per receive queue.
    kernel_queues: Vec<KernelQueue>,
    /// Ticks for which such a queue is left alone that was empty.
    gap: u64,
}

/// A receive queue that the host kernel fills.
#[derive(Debug)]
struct KernelQueue {
    /// Readable while frames wait.
    doorbell: OwnedFd,
    /// When it was last looked into in vain. Only the queue's own thread writes it.
    looked: AtomicU64,
}

impl EthdevIo {
    /// Wraps a started device.
    pub fn new(device: Ethdev) -> EthdevIo {
        EthdevIo {
            tx_locks: (0..device.tx_queues()).map(|_| SpinMutex::new(())).collect(),
            device,
            kernel_queues: Vec::new(),
            gap: 0,
        }
    }

    /// Wraps a started device with the doorbells of its receive queues, which the host kernel fills. Those threads that sleep are
    /// woken by them; those that are awake anyway leave a queue that was empty alone for `gap` ticks.
    pub fn with_doorbells(device: Ethdev, doorbells: Vec<OwnedFd>, gap: u64) -> EthdevIo {
        let queue = |doorbell| KernelQueue {
            doorbell,
            looked: AtomicU64::new(0),
        };
        EthdevIo {
            kernel_queues: doorbells.into_iter().map(queue).collect(),
            gap,
            ..EthdevIo::new(device)
        }
    }

    /// As [`Ethdev::receive`], but a queue of the host kernel's that was empty is left alone for a moment.
    #[inline]
    pub fn receive<const N: usize>(&self, queue: u16, out: &mut ArrayVec<Mbuf, N>) {
        let Some(kernel_queue) = self.kernel_queues.get(usize::from(queue)) else {
            return self.device.receive(queue, out);
        };
        let now = tsc();
        // The counter may start anew, as it does on some machines that were asleep.
        if now.wrapping_sub(kernel_queue.looked.load(Ordering::Relaxed)) < self.gap {
            return;
        }
        self.device.receive(queue, out);
        if out.is_empty() {
            kernel_queue.looked.store(now, Ordering::Relaxed);
        }
    }

    /// What is readable while frames wait in receive queue `queue`; `None`: nothing tells of them.
    pub fn doorbell(&self, queue: u16) -> Option<BorrowedFd<'_>> {
        Some(self.kernel_queues.get(usize::from(queue))?.doorbell.as_fd())
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
