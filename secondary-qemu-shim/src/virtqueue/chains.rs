//! A batch of walked descriptor chains.

use arrayvec::ArrayVec;

use super::{BATCH, Fault, MAX_CHAIN};
use crate::guest_memory::Span;

/// Which way the bytes of a chain go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The device reads: the guest transmits.
    Read,
    /// The device writes: the guest receives.
    Write,
}

/// Up to [`BATCH`] chains, their buffers one behind the other.
///
/// It lies on a pump's stack, mostly untouched; the storage is not initialised.
#[derive(Debug)]
pub struct Chains<'m> {
    buffers: ArrayVec<Span<'m>, MAX_CHAIN>,
    ends: ArrayVec<(u16, u32), BATCH>,
    open_bytes: u64,
}

impl<'m> Chains<'m> {
    /// An empty batch.
    pub fn new() -> Chains<'m> {
        Chains {
            buffers: ArrayVec::new(),
            ends: ArrayVec::new(),
            open_bytes: 0,
        }
    }

    /// Chains in the batch.
    #[inline]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// True without chains.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The buffers of chain `index` and the bytes they hold together.
    ///
    /// # Panics
    /// If there is no such chain.
    #[inline]
    pub fn get(&self, index: usize) -> (&[Span<'m>], usize) {
        let (end, bytes) = self.ends[index];
        let start = if index == 0 { 0 } else { self.ends[index - 1].0 };
        (
            &self.buffers[usize::from(start)..usize::from(end)],
            bytes as usize,
        )
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.buffers.clear();
        self.ends.clear();
        self.open_bytes = 0;
    }

    /// Buffers that still fit.
    pub(super) fn room(&self) -> usize {
        self.buffers.remaining_capacity()
    }

    /// Adds a chain of one buffer, for which there is room.
    #[inline]
    pub(super) fn push_whole(&mut self, buffer: Span<'m>) {
        let bytes = buffer.len() as u32;
        self.buffers.push(buffer);
        self.ends.push((self.buffers.len() as u16, bytes));
    }

    /// Adds a buffer to the chain that is being walked.
    #[inline]
    pub(super) fn push(&mut self, buffer: Span<'m>) -> Result<(), Fault> {
        self.open_bytes += buffer.len() as u64;
        self.buffers.try_push(buffer).map_err(|_| Fault::TooManyBuffers)
    }

    /// Ends the chain that is being walked.
    #[inline]
    pub(super) fn close(&mut self) -> Result<(), Fault> {
        // The bytes written to a chain are told in 32 bits (virtio 1.2 §2.7.8).
        let bytes = u32::try_from(self.open_bytes).map_err(|_| Fault::TooManyBytes)?;
        self.open_bytes = 0;
        self.ends.push((self.buffers.len() as u16, bytes));
        Ok(())
    }

    /// Drops the chain that is being walked.
    pub(super) fn abandon(&mut self) {
        let end = self.ends.last().map_or(0, |&(end, _)| usize::from(end));
        self.buffers.truncate(end);
        self.open_bytes = 0;
    }
}

impl Default for Chains<'_> {
    fn default() -> Self {
        Chains::new()
    }
}
