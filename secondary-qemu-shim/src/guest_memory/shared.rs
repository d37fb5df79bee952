//! Shared memory that is not the guest's: small tables that a frontend and a backend both keep.

use std::fs::File;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use super::mapping::{MapError, Mapping};

/// A mapped file of known length, accessed by copying.
#[derive(Debug)]
pub struct SharedTable {
    mapping: Mapping,
    len: u64,
}

impl SharedTable {
    /// Maps `len` bytes of `file` from `offset`.
    ///
    /// # Errors
    /// The file is too short or can't be mapped.
    pub fn map(file: &File, offset: u64, len: u64) -> Result<SharedTable, MapError> {
        Ok(SharedTable {
            mapping: Mapping::new(file, offset, len)?,
            len,
        })
    }

    /// Bytes in the table.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True of a table without bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn check(&self, at: u64, len: usize) -> usize {
        assert!(
            at <= self.len && len as u64 <= self.len - at,
            "{len} bytes at {at} of a table of {}",
            self.len
        );
        at as usize
    }

    /// Copies `N` bytes out.
    ///
    /// # Panics
    /// If they do not lie inside.
    pub fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let at = self.check(at, N);
        let mut bytes = [0; N];
        // SAFETY: inside the mapping by the check; `bytes` is this process's own memory.
        unsafe {
            std::ptr::copy_nonoverlapping(self.mapping.start().as_ptr().add(at), bytes.as_mut_ptr(), N)
        };
        bytes
    }

    /// Copies `bytes` in.
    ///
    /// # Panics
    /// If they do not lie inside.
    pub fn write<const N: usize>(&self, at: u64, bytes: [u8; N]) {
        let at = self.check(at, N);
        // SAFETY: as in `read`, with the roles exchanged.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.mapping.start().as_ptr().add(at), N) };
    }

    fn long(&self, at: u64) -> &AtomicU64 {
        let at = self.mapping.start().as_ptr().wrapping_add(self.check(at, 8));
        assert!((at as usize).is_multiple_of(8));
        // SAFETY: inside the mapping by the check, and aligned; an atomic may be shared with the other process.
        unsafe { AtomicU64::from_ptr(at.cast()) }
    }

    /// Loads the 64-bit word at `at`, whole.
    ///
    /// # Panics
    /// If it does not lie inside or is not aligned.
    pub fn load64(&self, at: u64) -> u64 {
        self.long(at).load(Ordering::Acquire)
    }

    /// Stores the 64-bit word at `at`, whole.
    ///
    /// # Panics
    /// If it does not lie inside or is not aligned.
    #[inline]
    pub fn store64(&self, at: u64, value: u64) {
        self.long(at).store(value, Ordering::Release);
    }

    /// Sets `bits` in the byte at `at`, atomically.
    ///
    /// # Panics
    /// If it does not lie inside.
    pub fn set_bits(&self, at: u64, bits: u8) {
        let at = self.check(at, 1);
        // SAFETY: inside the mapping by the check; an atomic byte may be shared with the other process.
        unsafe { AtomicU8::from_ptr(self.mapping.start().as_ptr().add(at)) }
            .fetch_or(bits, Ordering::Release);
    }
}
