//! The memory of a virtqueue's three parts, which stays resolved as long as the ring runs.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use vswitch_common::mbuf::prefetch;

use super::GuestMemory;

/// A part of a virtqueue in guest memory. Keeps its memory table mapped.
#[derive(Debug)]
pub struct RingArea {
    host: NonNull<u8>,
    guest: u64,
    len: usize,
    _memory: Arc<GuestMemory>,
}

// SAFETY: the pointer lies in memory that `_memory` keeps mapped; access is by copying or atomics.
unsafe impl Send for RingArea {}

impl RingArea {
    /// The `len` bytes at the frontend's address `address`, if one region holds them and they are aligned to `align`.
    pub fn resolve(memory: &Arc<GuestMemory>, address: u64, len: usize, align: usize) -> Option<RingArea> {
        let (host, guest) = memory.by_frontend_address(address, len)?;
        (host.as_ptr() as usize)
            .is_multiple_of(align.max(2))
            .then(|| RingArea {
                host,
                guest,
                len,
                _memory: Arc::clone(memory),
            })
    }

    /// Guest physical address.
    pub fn guest(&self) -> u64 {
        self.guest
    }

    #[inline]
    fn word(&self, offset: usize) -> &AtomicU16 {
        assert!(offset + 2 <= self.len && offset.is_multiple_of(2));
        // SAFETY: inside the area and aligned, since its start is aligned to 2 at least; an atomic may be shared
        // with the guest, which writes it behind this process's back.
        unsafe { AtomicU16::from_ptr(self.host.as_ptr().add(offset).cast()) }
    }

    /// Loads the little-endian 16-bit word at `offset`.
    ///
    /// # Panics
    /// If it does not lie inside or is not aligned.
    #[inline]
    pub fn load(&self, offset: usize, order: Ordering) -> u16 {
        u16::from_le(self.word(offset).load(order))
    }

    /// Stores a little-endian 16-bit word at `offset`.
    ///
    /// # Panics
    /// If it does not lie inside or is not aligned.
    #[inline]
    pub fn store(&self, offset: usize, value: u16, order: Ordering) {
        self.word(offset).store(value.to_le(), order);
    }

    #[inline]
    fn long(&self, offset: usize) -> &AtomicU64 {
        let at = self.host.as_ptr().wrapping_add(offset);
        assert!(offset <= self.len && 8 <= self.len - offset && (at as usize).is_multiple_of(8));
        // SAFETY: inside the area and aligned; an atomic may be shared with the guest, as in `word`.
        unsafe { AtomicU64::from_ptr(at.cast()) }
    }

    /// Loads the little-endian 64-bit word at `offset`.
    ///
    /// # Panics
    /// If it does not lie inside or is not aligned.
    #[inline]
    pub fn load64(&self, offset: usize, order: Ordering) -> u64 {
        u64::from_le(self.long(offset).load(order))
    }

    /// Stores a little-endian 64-bit word at `offset`.
    ///
    /// # Panics
    /// If it does not lie inside or is not aligned.
    #[inline]
    pub fn store64(&self, offset: usize, value: u64, order: Ordering) {
        self.long(offset).store(value.to_le(), order);
    }

    /// Copies `N` bytes out, once.
    ///
    /// # Panics
    /// If they do not lie inside.
    #[inline]
    pub fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        assert!(offset <= self.len && N <= self.len - offset);
        let mut out = [0; N];
        // SAFETY: inside the area, which is mapped; `out` is this process's own.
        unsafe { std::ptr::copy_nonoverlapping(self.host.as_ptr().add(offset), out.as_mut_ptr(), N) };
        out
    }

    /// Copies little-endian 16-bit words out, each once.
    ///
    /// # Panics
    /// If they do not lie inside.
    #[inline]
    pub fn read_words(&self, offset: usize, out: &mut [u16]) {
        assert!(offset <= self.len && size_of_val(out) <= self.len - offset);
        // SAFETY: as in `read`; any bytes make numbers.
        unsafe {
            let from = self.host.as_ptr().add(offset);
            std::ptr::copy_nonoverlapping(from, out.as_mut_ptr().cast(), size_of_val(out));
        }
        out.iter_mut().for_each(|word| *word = u16::from_le(*word));
    }

    /// Copies `bytes` in.
    ///
    /// # Panics
    /// If they do not lie inside.
    #[inline]
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset <= self.len && bytes.len() <= self.len - offset);
        // SAFETY: as in `read`, with the roles exchanged.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.host.as_ptr().add(offset), bytes.len()) };
    }

    /// Starts loading the cache line at `offset`.
    #[inline]
    pub fn prefetch(&self, offset: usize) {
        prefetch(self.host.as_ptr().wrapping_add(offset));
    }
}
