//! The layout of the stats segment, version 2.
//!
//! ```text
//! offset 0      Header                      256 bytes
//!               PortEntry  [MAX_PORTS]      192 bytes each: who is who, under a sequence lock
//!               ThreadStats[MAX_THREADS]    128 bytes each
//!               PortStats  [MAX_PORTS][MAX_THREADS]   320 bytes each: 40 counters, see Counter
//! ```

use std::mem::offset_of;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use zerocopy::{FromBytes, Immutable, IntoBytes, transmute};

/// "DVSSTATS".
pub const MAGIC: u64 = u64::from_le_bytes(*b"DVSSTATS");
/// Layout version.
pub const VERSION: u32 = 2;
/// Ports that a switch can have.
pub const MAX_PORTS: usize = 512;
/// Threads that count: the control thread (0) and the PMD threads.
pub const MAX_THREADS: usize = 17;
/// Bytes of a name, padded with NULs.
pub const NAME_LEN: usize = 64;

/// Starts the segment.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct Header {
    pub magic: AtomicU64,
    pub version: AtomicU32,
    /// Process id of the switch.
    pub pid: AtomicU32,
    pub max_ports: AtomicU32,
    pub max_threads: AtomicU32,
    /// Odd while the port entries change; a reader tries again.
    pub sequence: AtomicU32,
    pub threads: AtomicU32,
    /// Timestamp counter ticks per second.
    pub tsc_hz: AtomicU64,
    /// Mbufs of the pool, and those free in it when the switch last looked (once a second).
    pub pool_size: AtomicU64,
    pub pool_free: AtomicU64,
    /// Unix time, in seconds, of the switch's start and of its last look.
    pub started: AtomicU64,
    pub updated: AtomicU64,
    reserved: [u64; 23],
}

/// Who a port is. `name` and `bridge` are NUL-padded UTF-8.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable)]
pub struct PortEntry {
    /// 1: in use.
    pub used: u32,
    /// OpenFlow port number.
    pub ofport: u32,
    /// Client ring port number, DPDK port id of an ethdev; `u32::MAX` without one.
    pub id: u32,
    /// 1: link up (a client is attached, the NIC has carrier).
    pub link: u32,
    pub name: [u8; NAME_LEN],
    pub bridge: [u8; 48],
    pub reserved: [u8; 64],
}

/// Where a [`PortEntry`] lies: in words, since a reader may copy it while it changes.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct PortSlot([AtomicU64; ENTRY_WORDS]);

const ENTRY_WORDS: usize = size_of::<PortEntry>() / size_of::<u64>();

impl PortSlot {
    /// Whatever is there now, half changed perhaps.
    pub(super) fn load(&self) -> PortEntry {
        let words: [u64; ENTRY_WORDS] = std::array::from_fn(|i| self.0[i].load(Ordering::Relaxed));
        transmute!(words)
    }

    /// Changes it word by word.
    pub(super) fn store(&self, entry: PortEntry) {
        let words: [u64; ENTRY_WORDS] = transmute!(entry);
        for (slot, word) in self.0.iter().zip(words) {
            slot.store(word, Ordering::Relaxed);
        }
    }
}

/// What a thread does, in timestamp counter ticks and counts.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct ThreadStats {
    /// CPU it is pinned to, plus one; 0: not pinned.
    pub cpu: AtomicU64,
    /// Ticks spent on bursts with frames in them.
    pub busy_cycles: AtomicU64,
    /// Ticks spent on polls that found nothing (sleep not counted).
    pub idle_cycles: AtomicU64,
    /// Frames taken in.
    pub packets: AtomicU64,
    /// Bursts with at least one frame.
    pub bursts: AtomicU64,
    /// Times it went to sleep.
    pub sleeps: AtomicU64,
    /// Frames sent, and the batches that they left in.
    pub sent_packets: AtomicU64,
    pub sent_batches: AtomicU64,
    /// Rounds of polls that found nothing.
    pub idle_rounds: AtomicU64,
    /// Ticks spent asleep.
    pub sleep_cycles: AtomicU64,
    reserved: [AtomicU64; 6],
}

/// A port's counters as one thread counts them; see [`Counter`].
#[repr(C, align(64))]
#[derive(Debug)]
pub struct PortStats(pub [AtomicU64; 40]);

macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident = $index:literal $text:literal,)*) => {
        /// A port's counters: index in [`PortStats`]. Directions are the switch's: rx comes in by the port.
        /// Every frame counted in `RxPackets` is either in one of the `RxDrop…` counters or went to one or more
        /// ports; every such copy, and every one for a mirror, is in `RxCopies` of its origin and in `TxPackets` or a `TxDrop…` of its target.
        #[repr(usize)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Counter { $($(#[doc = $doc])* $name = $index,)* }

        impl Counter {
            /// All of them, in order of index.
            pub const ALL: &[Counter] = &[$(Counter::$name,)*];

            /// The name it is shown by.
            pub fn name(self) -> &'static str {
                match self { $(Counter::$name => $text,)* }
            }
        }
    };
}

counters! {
    /// Frames that came in.
    RxPackets = 0 "rx_packets",
    /// Their bytes.
    RxBytes = 1 "rx_bytes",
    /// Frames that went out.
    TxPackets = 2 "tx_packets",
    /// Their bytes.
    TxBytes = 3 "tx_bytes",
    /// Copies of incoming frames handed to other ports.
    RxCopies = 4 "rx_copies",
    /// Shorter than an Ethernet header, or cut inside a VLAN tag.
    RxDropMalformed = 5 "rx_drop_malformed",
    /// The source address is a group address or all zero.
    RxDropSource = 6 "rx_drop_bad_source",
    /// To a reserved group address, 01:80:c2:00:00:0X, which bridges do not forward (IEEE 802.1Q 8.6.3).
    RxDropReserved = 7 "rx_drop_reserved_mac",
    /// The port is no member of the frame's VLAN, or the VLAN id is 4095.
    RxDropVlan = 8 "rx_drop_vlan",
    /// The destination is behind the port the frame came from, or there is no other port, or the port is a mirror's output.
    RxDropNoOutput = 9 "rx_drop_no_output",
    /// A client handed in what is not its own mbuf. Counts ring entries; they are not in `RxPackets`.
    RxBadMbuf = 10 "rx_bad_mbuf",
    /// A client's ring index makes no sense. Counts bursts.
    RxBadRing = 11 "rx_bad_ring",
    /// The port's ring or queue is full: its owner does not keep up.
    TxDropFull = 12 "tx_drop_full",
    /// No client is attached, or the link is down.
    TxDropDown = 13 "tx_drop_down",
    /// No free mbuf for a copy.
    TxDropNoBuffer = 14 "tx_drop_no_buffer",
    /// Longer than the port's MTU allows.
    TxDropTooLong = 15 "tx_drop_too_long",
    /// No room for a VLAN tag in front of the frame.
    TxDropHeadroom = 16 "tx_drop_no_headroom",
    /// The client owns as many mbufs as it may.
    TxDropQuota = 17 "tx_drop_quota",
    /// Frames sent to every port of the VLAN: group or unknown destination.
    RxFlooded = 18 "rx_flooded",
    /// Source addresses learned, and those that moved to this port.
    Learned = 19 "learned",
    /// Times a client attached.
    Attached = 20 "attached",
    /// Client side: guest frames longer than a frame may be (68 KiB).
    GuestTxTooLong = 21 "guest_tx_too_long",
    /// Client side: guest frames with a header that lies or asks for what was not negotiated.
    GuestTxBadHeader = 22 "guest_tx_bad_header",
    /// Client side: guest frames shorter than an Ethernet header.
    GuestTxTooShort = 23 "guest_tx_too_short",
    /// Client side: frames dropped because the guest's driver is not ready.
    GuestRxNotReady = 24 "guest_rx_not_ready",
    /// Client side: frames that the guest's buffers can't hold.
    GuestRxTooLong = 25 "guest_rx_too_long",
    /// Client side: virtqueues that broke the rules.
    GuestBrokenQueues = 26 "guest_broken_virtqueues",
    /// Frames from a device in more mbufs than a chain has, or in a broken chain. They are not in `RxPackets`.
    RxTooLong = 27 "rx_too_long",
    /// More frames to many (broadcast, multicast, unknown destination) than the port's storm limit lets in.
    RxDropStorm = 28 "rx_drop_storm",
    /// More than the port's ingress policing lets in.
    RxDropPolicing = 29 "rx_drop_policing",
    /// Times a client was detached for what it put on its rings.
    Evicted = 30 "evicted",
    /// Client side: frames from the guest that are to be cut where a port can't take them whole (TSO, USO).
    GuestTxLarge = 31 "guest_tx_large",
    /// Client side: such frames that the guest got whole.
    GuestRxLarge = 32 "guest_rx_large",
    /// Copies of incoming frames for mirrors. They are in `RxCopies`, too.
    RxMirrored = 33 "rx_mirrored",
}

impl Counter {
    /// Does it count frames that were lost?
    pub fn is_drop(self) -> bool {
        use Counter::*;
        matches!(
            self,
            RxDropMalformed
                | RxDropSource
                | RxDropReserved
                | RxDropVlan
                | RxDropNoOutput
                | RxDropStorm
                | RxDropPolicing
                | TxDropFull
                | TxDropDown
                | TxDropNoBuffer
                | TxDropTooLong
                | TxDropHeadroom
                | TxDropQuota
                | GuestTxTooLong
                | GuestTxBadHeader
                | GuestTxTooShort
                | GuestRxNotReady
                | GuestRxTooLong
        )
    }
}

/// The whole segment.
#[repr(C)]
#[derive(Debug)]
pub struct Layout {
    pub header: Header,
    pub ports: [PortSlot; MAX_PORTS],
    pub threads: [ThreadStats; MAX_THREADS],
    pub counters: [[PortStats; MAX_THREADS]; MAX_PORTS],
}

const _: () = assert!(size_of::<Header>() == 256);
const _: () = assert!(offset_of!(Header, sequence) == 24 && offset_of!(Header, tsc_hz) == 32);
const _: () = assert!(size_of::<PortSlot>() == 192 && size_of::<PortEntry>() == 192);
const _: () = assert!(offset_of!(PortEntry, name) == 16);
const _: () = assert!(size_of::<ThreadStats>() == 128);
const _: () = assert!(size_of::<PortStats>() == 320);
const _: () = assert!(offset_of!(Layout, ports) == 256);
const _: () = assert!(offset_of!(Layout, threads) == 256 + 192 * MAX_PORTS);
const _: () = assert!(offset_of!(Layout, counters) == 256 + 192 * MAX_PORTS + 128 * MAX_THREADS);

/// A NUL-padded name field.
pub(super) fn pack<const N: usize>(text: &str) -> [u8; N] {
    let mut end = text.len().min(N - 1);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let mut field = [0; N];
    field[..end].copy_from_slice(&text.as_bytes()[..end]);
    field
}

/// The text of a NUL-padded field.
pub(super) fn unpack(field: &[u8]) -> String {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}
