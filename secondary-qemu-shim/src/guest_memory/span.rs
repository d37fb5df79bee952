//! A checked piece of guest memory that a descriptor named.

use std::marker::PhantomData;
use std::ptr::NonNull;

use vswitch_common::mbuf::{prefetch, prefetch_ahead, prefetch_ahead_for_write, prefetch_for_write};

const CACHE_LINE: usize = 64;

/// Bytes of guest memory within one region, valid as long as the memory table is borrowed.
///
/// The guest may write them at any time: they are copied in or out, once, and never referred to.
#[derive(Debug, Clone, Copy)]
pub struct Span<'m> {
    host: NonNull<u8>,
    guest: u64,
    len: u32,
    _memory: PhantomData<&'m super::GuestMemory>,
}

impl<'m> Span<'m> {
    /// # Safety
    /// `len` bytes at `host` are mapped readable and writable for `'m`.
    pub(super) unsafe fn new(host: NonNull<u8>, guest: u64, len: u32) -> Span<'m> {
        Span {
            host,
            guest,
            len,
            _memory: PhantomData,
        }
    }

    /// Bytes in this piece.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// True of a piece without bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Guest physical address.
    #[inline]
    pub fn guest(&self) -> u64 {
        self.guest
    }

    /// Copies bytes from `offset` on into `out`.
    ///
    /// # Panics
    /// If the span is shorter.
    #[inline]
    pub fn read(&self, offset: usize, out: &mut [u8]) {
        assert!(offset <= self.len() && out.len() <= self.len() - offset);
        // SAFETY: within the span by the assertion, mapped by `new`'s contract; `out` is this process's own memory,
        // so the two do not overlap. A concurrent write by the guest can garble the bytes and nothing else.
        unsafe { std::ptr::copy_nonoverlapping(self.host.as_ptr().add(offset), out.as_mut_ptr(), out.len()) };
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Panics
    /// If the span is shorter.
    #[inline]
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset <= self.len() && bytes.len() <= self.len() - offset);
        // SAFETY: as in `read`, with the roles exchanged.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.host.as_ptr().add(offset), bytes.len()) };
    }

    /// Copies `bytes` to `offset`, unless they are there already: a cache line that stays as it is stays in everybody's cache.
    ///
    /// # Panics
    /// If the span is shorter.
    #[inline]
    pub fn update<const N: usize>(&self, offset: usize, bytes: &[u8; N]) {
        let mut present = [0; N];
        self.read(offset, &mut present);
        if present != *bytes {
            self.write(offset, bytes);
        }
    }

    /// Starts loading the first two cache lines, to be read.
    #[inline]
    pub fn prefetch(&self) {
        prefetch(self.host.as_ptr());
        prefetch(self.host.as_ptr().wrapping_add(CACHE_LINE));
    }

    /// Starts loading the first two cache lines, to be written. One that has nothing but the first `header` bytes in it may stay as
    /// it is ([`Span::update`]), and is loaded to be read.
    #[inline]
    pub fn prefetch_for_write(&self, header: usize) {
        let first = self.host.as_ptr();
        if CACHE_LINE - first.addr() % CACHE_LINE == header {
            prefetch(first);
        } else {
            prefetch_for_write(first);
        }
        prefetch_for_write(first.wrapping_add(CACHE_LINE));
    }

    /// Starts loading what is copied from here next.
    #[inline]
    pub fn prefetch_ahead(&self) {
        prefetch_ahead(self.host.as_ptr());
    }

    /// Starts loading what is overwritten next.
    #[inline]
    pub fn prefetch_ahead_for_write(&self) {
        prefetch_ahead_for_write(self.host.as_ptr());
    }
}
