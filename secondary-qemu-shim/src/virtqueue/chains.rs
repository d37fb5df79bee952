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
    /// Chains at the front that are one buffer each, as nearly all are: they need no entry in `ends`.
    plain: usize,
    /// Of the chains behind those: where the buffers end, and how many bytes they hold.
    ends: ArrayVec<(u16, u32), BATCH>,
    /// Bytes that those hold together, and how many are enough.
    listed_bytes: u64,
    enough: u64,
    open_bytes: u64,
    /// The chain behind these has more buffers than there was room for.
    full: bool,
    fault: Option<Fault>,
}

impl<'m> Chains<'m> {
    /// An empty batch.
    #[inline]
    pub fn new() -> Chains<'m> {
        Chains {
            buffers: ArrayVec::new(),
            plain: 0,
            ends: ArrayVec::new(),
            listed_bytes: 0,
            enough: u64::MAX,
            open_bytes: 0,
            full: false,
            fault: None,
        }
    }

    /// Chains of several buffers are enough once they hold `bytes`: more would be walked in vain.
    #[inline]
    pub fn want(&mut self, bytes: usize) {
        self.enough = bytes as u64;
    }

    /// Chains in the batch.
    #[inline]
    pub fn len(&self) -> usize {
        self.plain + self.ends.len()
    }

    /// True without chains.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The chains at the front that are one buffer each.
    #[inline]
    pub fn plain(&self) -> &[Span<'m>] {
        &self.buffers[..self.plain]
    }

    /// The buffers of chain `index` and the bytes they hold together.
    ///
    /// # Panics
    /// If there is no such chain.
    #[inline]
    pub fn get(&self, index: usize) -> (&[Span<'m>], usize) {
        let Some(listed) = index.checked_sub(self.plain) else {
            return (&self.buffers[index..=index], self.buffers[index].len());
        };
        let (end, bytes) = self.ends[listed];
        let start = match listed {
            0 => self.plain,
            _ => usize::from(self.ends[listed - 1].0),
        };
        (&self.buffers[start..usize::from(end)], bytes as usize)
    }

    /// The buffers of chain `index`, and of all behind it.
    ///
    /// # Panics
    /// If there is no such chain.
    #[inline]
    pub fn buffers_from(&self, index: usize) -> &[Span<'m>] {
        let start = match index.checked_sub(self.plain) {
            None | Some(0) => index,
            Some(listed) => usize::from(self.ends[listed - 1].0),
        };
        &self.buffers[start..]
    }

    /// Can't more be taken at once, though there is another chain?
    #[inline]
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// What is wrong with the chain behind these: there will be no others.
    #[inline]
    pub fn fault(&self) -> Option<Fault> {
        self.fault
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.buffers.clear();
        self.plain = 0;
        self.ends.clear();
        self.listed_bytes = 0;
        self.open_bytes = 0;
        self.full = false;
        self.fault = None;
    }

    /// Is no further chain wanted?
    pub(super) fn is_complete(&self) -> bool {
        self.listed_bytes >= self.enough
    }

    /// Adds chains of one buffer each, as long as `buffers` has some. Only to chains that are such, too.
    #[inline]
    pub(super) fn extend_plain(&mut self, buffers: impl Iterator<Item = Span<'m>>) {
        debug_assert!(self.ends.is_empty());
        self.buffers.extend(buffers);
        self.plain = self.buffers.len();
    }

    /// Adds a buffer to the chain that is being walked. False: no room left beside the chains in front.
    #[inline]
    pub(super) fn push(&mut self, buffer: Span<'m>) -> Result<bool, Fault> {
        let fits = self.buffers.try_push(buffer).is_ok();
        if !fits && self.is_empty() {
            return Err(Fault::TooManyBuffers);
        }
        self.open_bytes += buffer.len() as u64;
        Ok(fits)
    }

    /// Ends the chain that is being walked.
    #[inline]
    pub(super) fn close(&mut self) -> Result<(), Fault> {
        // The bytes written to a chain are told in 32 bits (virtio 1.2 §2.7.8).
        let bytes = u32::try_from(self.open_bytes).map_err(|_| Fault::TooManyBytes)?;
        self.open_bytes = 0;
        self.listed_bytes += u64::from(bytes);
        self.ends.push((self.buffers.len() as u16, bytes));
        Ok(())
    }

    /// Says what is wrong with the chain behind these, and of which nothing is kept.
    #[cold]
    pub(super) fn end_with(&mut self, fault: Fault) {
        self.fault = Some(fault);
    }

    /// Drops the chain that is being walked, for which there is no room.
    pub(super) fn put_off(&mut self) {
        self.abandon();
        self.full = true;
    }

    /// Drops the chain that is being walked.
    pub(super) fn abandon(&mut self) {
        let end = self.ends.last().map_or(self.plain, |&(end, _)| usize::from(end));
        self.buffers.truncate(end);
        self.open_bytes = 0;
    }
}

impl Default for Chains<'_> {
    fn default() -> Self {
        Chains::new()
    }
}
