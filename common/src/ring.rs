//! Single-producer single-consumer ends of an `rte_ring` whose other end may be hostile.
//!
//! The memory is a plain `rte_ring` created with `RING_F_SP_ENQ | RING_F_SC_DEQ`, so a C client can use DPDK's own
//! functions on its side. This side's ends are [`spsc`]'s, with the index, the mask and the capacity in private memory:
//! a peer that scribbles over the header can delay or garble its own ring and nothing else.

use std::mem::offset_of;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use dpdk_sys as sys;
use vswitch_sync::spsc::{self, Corrupt, Indices};

use crate::fault::{self, Point};
use crate::mbuf::Mbuf;

/// The peer moved its index to where it can't be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer's ring index is out of range")]
pub struct RingCorrupt;

impl From<Corrupt> for RingCorrupt {
    fn from(_: Corrupt) -> RingCorrupt {
        RingCorrupt
    }
}

/// Where an `rte_ring` lies and how large it is, as the side that created it knows it.
#[derive(Debug, Clone, Copy)]
pub struct RingMemory {
    base: NonNull<u8>,
    size: u32,
    /// Where DPDK reserved it, if this process did: the copy in the ring's header is open to clients.
    zone: *const sys::rte_memzone,
}

// SAFETY: a RingMemory is an address with a size; all access through it is atomic or confined to one end.
unsafe impl Send for RingMemory {}
// SAFETY: as above.
unsafe impl Sync for RingMemory {}

impl RingMemory {
    /// Creates the ring `name` with `size` slots (a power of two, of which `size - 1` are usable).
    ///
    /// # Errors
    /// DPDK's text: the name is taken or too long (28 characters at most), or there is no memory.
    pub fn create(name: &str, size: u32, socket: i32) -> Result<RingMemory, String> {
        let c_name = std::ffi::CString::new(name).map_err(|e| e.to_string())?;
        // SAFETY: a NUL-terminated name and plain numbers; DPDK checks them all.
        let ring = unsafe {
            sys::rte_ring_create(
                c_name.as_ptr(),
                size,
                socket,
                sys::RING_F_SP_ENQ | sys::RING_F_SC_DEQ,
            )
        };
        match NonNull::new(ring) {
            Some(ring) => {
                // SAFETY: made just now, and no client knows of it yet.
                let zone = unsafe { (*ring.as_ptr()).memzone };
                Ok(RingMemory {
                    base: ring.cast(),
                    size,
                    zone,
                })
            }
            None => Err(crate::eal::last_error()),
        }
    }

    /// A ring of `size` slots at `address`, as the attach reply names it.
    ///
    /// # Safety
    /// An `rte_ring` of that size must lie there, and stay mapped as long as any end made from this value lives.
    pub unsafe fn at(address: usize, size: u32) -> Option<RingMemory> {
        if !size.is_power_of_two() || size < 2 {
            return None;
        }
        Some(RingMemory {
            base: NonNull::new(address as *mut u8)?,
            size,
            zone: std::ptr::null(),
        })
    }

    /// The NUMA node that it lies on, if this process created it.
    pub fn node(&self) -> Option<usize> {
        // SAFETY: null, or the descriptor of a memory zone that lives as long as the ring.
        let zone = unsafe { self.zone.as_ref() }?;
        usize::try_from(zone.socket_id).ok()
    }

    /// The ring's address, the same in every process of this DPDK instance.
    pub fn address(&self) -> usize {
        self.base.as_ptr() as usize
    }

    /// Slots of the ring; one of them always stays empty.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Empties the ring: all four indices become zero. Only while no end of it is in use.
    pub fn reset(&self) {
        for index in [
            self.prod_head(),
            self.prod_tail(),
            self.cons_head(),
            self.cons_tail(),
        ] {
            index.store(0, Ordering::Relaxed);
        }
    }

    /// Frees the ring.
    ///
    /// # Safety
    /// Made by [`RingMemory::create`] in this process, and no end of it is in use here or in any client.
    pub unsafe fn free(self) {
        let ring: *mut sys::rte_ring = self.base.as_ptr().cast();
        // SAFETY: by the contract above; DPDK frees what the header names, which a client may have overwritten.
        unsafe {
            (*ring).memzone = self.zone;
            sys::rte_ring_free(ring);
        }
    }

    fn index(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: `offset` is that of an aligned u32 inside rte_ring, which lies at `base` by construction.
        unsafe { &*self.base.as_ptr().add(offset).cast::<AtomicU32>() }
    }

    fn prod_head(&self) -> &AtomicU32 {
        self.index(PROD + offset_of!(sys::rte_ring_headtail, head))
    }

    fn prod_tail(&self) -> &AtomicU32 {
        self.index(PROD + offset_of!(sys::rte_ring_headtail, tail))
    }

    fn cons_head(&self) -> &AtomicU32 {
        self.index(CONS + offset_of!(sys::rte_ring_headtail, head))
    }

    fn cons_tail(&self) -> &AtomicU32 {
        self.index(CONS + offset_of!(sys::rte_ring_headtail, tail))
    }

    /// Slot of `index`. The table of pointers follows the header directly.
    fn slot(&self, index: u32) -> *mut usize {
        let slot = (index & (self.size - 1)) as usize;
        // SAFETY: masked, so it lies within the table of `size` pointers behind the header.
        unsafe {
            self.base
                .as_ptr()
                .add(size_of::<sys::rte_ring>())
                .cast::<usize>()
                .add(slot)
        }
    }
}

const PROD: usize = offset_of!(sys::rte_ring, __bindgen_anon_1);
const CONS: usize = offset_of!(sys::rte_ring, __bindgen_anon_2);
const _: () = assert!(PROD.is_multiple_of(64) && CONS.is_multiple_of(64) && CONS - PROD >= 64);
const _: () = assert!(size_of::<sys::rte_ring>().is_multiple_of(64));

// The slots' contract is that of the trait; a peer that does not keep to it garbles entries, which whoever reads them
// checks.
impl spsc::Ring for RingMemory {
    #[inline]
    fn size(&self) -> u32 {
        self.size
    }

    #[inline]
    fn producer(&self) -> Indices<'_> {
        Indices {
            head: self.prod_head(),
            tail: self.prod_tail(),
        }
    }

    #[inline]
    fn consumer(&self) -> Indices<'_> {
        Indices {
            head: self.cons_head(),
            tail: self.cons_tail(),
        }
    }

    #[inline]
    unsafe fn write(&self, index: u32, entry: usize) {
        // SAFETY: `slot` stays inside the table; by the contract nobody else uses it now.
        unsafe { self.slot(index).write_volatile(entry) };
    }

    #[inline]
    unsafe fn read(&self, index: u32) -> usize {
        // SAFETY: `slot` stays inside the table; a volatile read, since the peer may write it all the time.
        unsafe { self.slot(index).read_volatile() }
    }
}

/// The producing end. One per ring.
#[derive(Debug)]
pub struct Producer(spsc::Producer<RingMemory>);

/// The consuming end. One per ring.
#[derive(Debug)]
pub struct Consumer(spsc::Consumer<RingMemory>);

impl Producer {
    /// The producing end of a ring that is empty and has no other producer.
    ///
    /// # Safety
    /// There is one producer for a ring, and the ring's memory outlives it.
    pub unsafe fn new(ring: RingMemory) -> Producer {
        // SAFETY: the same contract.
        Producer(unsafe { spsc::Producer::new(ring) })
    }

    /// Slots free for at least one more [`Producer::enqueue`].
    ///
    /// # Errors
    /// The consumer's index makes no sense.
    #[inline]
    pub fn free(&mut self) -> Result<usize, RingCorrupt> {
        Ok(self.0.free()?)
    }

    /// Puts as many of `mbufs` on the ring as fit, in order; returns how many. Those now belong to the peer.
    ///
    /// # Errors
    /// The consumer's index makes no sense; nothing was put.
    #[inline]
    pub fn enqueue(&mut self, mbufs: &[Mbuf]) -> Result<usize, RingCorrupt> {
        let n = self.0.write(mbufs.iter().map(Mbuf::address))?;
        if n > 0 {
            fault::point(Point::EntriesWritten);
        }
        self.0.publish(n);
        if n > 0 {
            fault::point(Point::EntriesPublished);
        }
        Ok(n)
    }
}

impl Consumer {
    /// The consuming end of a ring that is empty and has no other consumer.
    ///
    /// # Safety
    /// There is one consumer for a ring, and the ring's memory outlives it.
    pub unsafe fn new(ring: RingMemory) -> Consumer {
        // SAFETY: the same contract.
        Consumer(unsafe { spsc::Consumer::new(ring) })
    }

    /// Entries that wait now.
    ///
    /// # Errors
    /// The producer's index makes no sense.
    #[inline]
    pub fn available(&mut self) -> Result<usize, RingCorrupt> {
        Ok(self.0.available()?)
    }

    /// Takes up to `out.len()` entries; returns how many. An entry is whatever the peer wrote: check it before use.
    ///
    /// # Errors
    /// The producer's index makes no sense; nothing was taken.
    #[inline]
    pub fn dequeue(&mut self, out: &mut [usize]) -> Result<usize, RingCorrupt> {
        let n = self.0.read(out)?;
        if n > 0 {
            fault::point(Point::EntriesRead);
            self.0.release(n);
            fault::point(Point::EntriesTaken);
        }
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    /// A ring in ordinary memory, laid out as DPDK lays it out.
    struct Owned {
        memory: RingMemory,
        layout: std::alloc::Layout,
    }

    impl Owned {
        fn new(size: u32) -> Owned {
            let bytes = size_of::<sys::rte_ring>() + size as usize * 8;
            let layout = std::alloc::Layout::from_size_align(bytes, 64).unwrap();
            // SAFETY: a non-zero size; freed with the same layout on drop.
            let base = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) }).unwrap();
            // SAFETY: rte_ring_init writes the header of a ring of `size` slots into memory that is large enough.
            let rc = unsafe {
                sys::rte_ring_init(
                    base.as_ptr().cast(),
                    c"t".as_ptr(),
                    size,
                    sys::RING_F_SP_ENQ | sys::RING_F_SC_DEQ,
                )
            };
            assert_eq!(rc, 0);
            Owned {
                memory: RingMemory {
                    base,
                    size,
                    zone: std::ptr::null(),
                },
                layout,
            }
        }
    }

    impl Drop for Owned {
        fn drop(&mut self) {
            // SAFETY: allocated in `new` with this layout.
            unsafe { std::alloc::dealloc(self.memory.base.as_ptr(), self.layout) };
        }
    }

    fn fake(n: usize) -> Mbuf {
        // SAFETY: never dereferenced; the ring moves addresses only.
        unsafe { Mbuf::from_address(n * 64).unwrap() }
    }

    proptest! {
        /// Against a queue: order kept, nothing lost, nothing twice, never more than the capacity.
        #[test]
        fn behaves_as_a_bounded_queue(ops in proptest::collection::vec((any::<bool>(), 1usize..40), 1..200)) {
            let ring = Owned::new(32);
            // SAFETY: one end each, dropped before the ring.
            let (mut p, mut c) = unsafe { (Producer::new(ring.memory), Consumer::new(ring.memory)) };
            let mut model = VecDeque::new();
            let mut next = 1;
            for (put, n) in ops {
                if put {
                    let batch: Vec<Mbuf> = (next..next + n).map(fake).collect();
                    let done = p.enqueue(&batch).unwrap();
                    prop_assert_eq!(done, n.min(31 - model.len()));
                    model.extend((next..next + done).map(|i| i * 64));
                    next += done;
                } else {
                    let mut out = vec![0; n];
                    let done = c.dequeue(&mut out).unwrap();
                    prop_assert_eq!(done, n.min(model.len()));
                    for got in &out[..done] {
                        prop_assert_eq!(Some(*got), model.pop_front());
                    }
                }
                // SAFETY: DPDK's own view of the same ring.
                let seen = unsafe { sys::rte_ring_count(ring.memory.base.as_ptr().cast()) } as usize;
                prop_assert_eq!(seen, model.len());
            }
        }

        /// Whatever the peer writes into its index, this end reports it or stays inside the ring.
        #[test]
        fn a_lying_peer_is_found(tail in any::<u32>()) {
            let ring = Owned::new(32);
            // SAFETY: one end each, dropped before the ring.
            let (mut p, mut c) = unsafe { (Producer::new(ring.memory), Consumer::new(ring.memory)) };
            ring.memory.prod_tail().store(tail, Ordering::Relaxed);
            let mut out = [0; 64];
            match c.dequeue(&mut out) {
                Ok(n) => prop_assert!(n <= 31 && n == tail as usize),
                Err(RingCorrupt) => prop_assert!(tail > 31),
            }
            ring.memory.cons_tail().store(tail, Ordering::Relaxed);
            let batch: Vec<Mbuf> = (1..40).map(fake).collect();
            match p.enqueue(&batch) {
                Ok(n) => prop_assert!(n <= 31),
                Err(RingCorrupt) => prop_assert!(0u32.wrapping_sub(tail) > 31),
            }
        }
    }
}
