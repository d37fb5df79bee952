//! What lies in shared memory beside the rings: one control block per queue pair.
//!
//! Sizes and offsets are asserted, since two processes that were built apart read it.

use std::mem::offset_of;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use dpdk_sys as sys;

use super::doorbell::NeedWakeup;

/// Counters that a client keeps of one queue pair. The switch reads them, the stats segment shows them.
/// All count frames, unless they say otherwise; directions are the guest's: tx goes to the switch.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct ClientStats {
    /// Guest frames longer than a chain of mbufs holds.
    pub tx_too_long: AtomicU64,
    /// Guest frames whose virtio header asks for what was not negotiated or lies about offsets.
    pub tx_bad_header: AtomicU64,
    /// Guest frames shorter than an Ethernet header.
    pub tx_too_short: AtomicU64,
    /// Frames from the switch dropped because the guest's driver is not ready.
    pub rx_not_ready: AtomicU64,
    /// Frames from the switch that the guest's buffers can't hold.
    pub rx_too_long: AtomicU64,
    /// Virtqueues taken out of service because their descriptors broke the rules.
    pub broken_virtqueues: AtomicU64,
    /// Notifications from the guest (kicks), not frames.
    pub kicks: AtomicU64,
    /// Interrupts to the guest (calls), not frames.
    pub calls: AtomicU64,
    /// Frames taken from the guest.
    pub tx_frames: AtomicU64,
    /// Frames given to the guest.
    pub rx_frames: AtomicU64,
    /// Frames taken from the guest whole that a wire would want cut: they carry a segmentation request.
    pub tx_large: AtomicU64,
    /// The same, given to the guest whole.
    pub rx_large: AtomicU64,
    reserved: [AtomicU64; 4],
}

/// "Poll, and don't sleep": what the switch asks of a client. The client may have written there as well, so the switch
/// does not read it.
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct BusyPoll(AtomicU32);

impl BusyPoll {
    /// The switch: asks for it, or for it no longer.
    pub fn set(&self, on: bool) {
        self.0.store(on.into(), Ordering::Relaxed);
    }

    /// The client: is it asked for?
    #[inline]
    pub fn wanted(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }
}

/// Shared state of a queue pair, beside its four rings. Each side writes its own cache lines only.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct QueueControl {
    /// Set by the switch before it sleeps: ring its doorbell after putting something on `tx` or `free`.
    pub switch_sleeps: NeedWakeup,
    /// Whether the client is to poll. Beside a flag that it looks at with every burst and that is written at sleep only: to
    /// look here costs it nothing.
    pub busy_poll: BusyPoll,
    reserved: [AtomicU32; 14],
    /// Set by the client before it sleeps: the switch rings after putting something on `rx` or `alloc`.
    pub client_sleeps: NeedWakeup,
    /// Written by the client.
    pub stats: ClientStats,
}

const _: () = assert!(size_of::<ClientStats>() == 128);
const _: () = assert!(size_of::<NeedWakeup>() == 4);
const _: () = assert!(offset_of!(QueueControl, busy_poll) == 4);
const _: () = assert!(offset_of!(QueueControl, client_sleeps) == 64);
const _: () = assert!(offset_of!(QueueControl, stats) == 128);
const _: () = assert!(size_of::<QueueControl>() == 256);

/// A queue pair's control block in shared memory.
#[derive(Debug, Clone, Copy)]
pub struct ControlRef(NonNull<QueueControl>);

// SAFETY: every field of QueueControl is atomic.
unsafe impl Send for ControlRef {}
// SAFETY: as above.
unsafe impl Sync for ControlRef {}

impl ControlRef {
    /// The control block at `address`.
    ///
    /// # Safety
    /// A `QueueControl` lies there and stays mapped as long as this value or a copy lives.
    pub unsafe fn at(address: usize) -> Option<ControlRef> {
        if !address.is_multiple_of(align_of::<QueueControl>()) {
            return None;
        }
        NonNull::new(address as *mut QueueControl).map(ControlRef)
    }

    /// The address, the same in every process of this DPDK instance.
    pub fn address(&self) -> usize {
        self.0.as_ptr() as usize
    }

    /// The block itself.
    #[inline]
    pub fn get(&self) -> &QueueControl {
        // SAFETY: by the contract of `at` it is mapped, and all its fields are atomics.
        unsafe { self.0.as_ref() }
    }
}

/// The control blocks of a port's queue pairs, in a memory zone of their own.
#[derive(Debug)]
pub struct ControlBlocks {
    zone: NonNull<sys::rte_memzone>,
    count: usize,
}

// SAFETY: the zone is only read and freed through this one owner.
unsafe impl Send for ControlBlocks {}
// SAFETY: as above; shared access gives out atomics only.
unsafe impl Sync for ControlBlocks {}

impl ControlBlocks {
    /// Reserves the blocks of `count` queue pairs of port `port`, zeroed.
    ///
    /// # Errors
    /// DPDK's text: the name is taken or there is no memory.
    pub fn create(port: u16, count: usize, socket: i32) -> Result<ControlBlocks, String> {
        let name = std::ffi::CString::new(super::control_name(port)).map_err(|e| e.to_string())?;
        let bytes = count * size_of::<QueueControl>();
        // SAFETY: a NUL-terminated name and plain numbers, which DPDK checks.
        let zone = unsafe { sys::rte_memzone_reserve_aligned(name.as_ptr(), bytes, socket, 0, 64) };
        let zone = NonNull::new(zone.cast_mut()).ok_or_else(crate::eal::last_error)?;
        let blocks = ControlBlocks { zone, count };
        blocks.reset();
        Ok(blocks)
    }

    /// Clears every block. Only while no client is attached.
    pub fn reset(&self) {
        for queue in 0..self.count {
            // SAFETY: within the zone; nobody else uses it by contract, and zero is a valid QueueControl.
            unsafe { std::ptr::write_bytes(self.block(queue), 0, 1) };
        }
    }

    /// The block of queue pair `queue`.
    ///
    /// # Panics
    /// If there is no such queue pair.
    pub fn get(&self, queue: usize) -> ControlRef {
        assert!(queue < self.count, "queue pair {queue} of {}", self.count);
        // SAFETY: within the zone, which lives as long as its owner keeps it.
        unsafe { ControlRef::at(self.block(queue) as usize) }.expect("memzones are aligned and not null")
    }

    fn block(&self, queue: usize) -> *mut QueueControl {
        // SAFETY: a memzone's address is a plain field of a live descriptor; the offset is within the zone.
        unsafe {
            (*self.zone.as_ptr())
                .__bindgen_anon_1
                .addr
                .cast::<QueueControl>()
                .add(queue)
        }
    }

    /// Gives the memory back.
    ///
    /// # Safety
    /// No [`ControlRef`] of it is in use, here or in any client.
    pub unsafe fn free(self) {
        // SAFETY: reserved by `create`, freed once.
        unsafe { sys::rte_memzone_free(self.zone.as_ptr()) };
    }
}
