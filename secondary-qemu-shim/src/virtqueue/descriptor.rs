//! What a descriptor says, whatever the layout: a piece of guest memory, or a table of such pieces.

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use super::{Access, Chains, Fault, MAX_CHAIN};
use crate::guest_memory::{GuestMemory, Span};
use crate::net_header::HEADER_MAX;

/// Bytes of a descriptor (virtio 1.2 §2.7.5, §2.8.12).
pub(super) const DESCRIPTOR: usize = 16;

/// Another descriptor follows in the chain.
pub(super) const NEXT: u16 = VRING_DESC_F_NEXT as u16;
/// The device writes the buffer.
pub(super) const WRITE: u16 = VRING_DESC_F_WRITE as u16;
/// The buffer is a table of descriptors.
pub(super) const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// One descriptor, read once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Descriptor {
    pub address: u64,
    pub len: u32,
    pub flags: u16,
}

impl Descriptor {
    #[inline]
    pub fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// The buffer that it names, if it is all of a chain and nothing is wrong with it; its first bytes are being loaded then.
    #[inline]
    pub fn plain<'m>(&self, memory: &'m GuestMemory, access: Access) -> Option<Span<'m>> {
        let flags = match access {
            Access::Read => 0,
            Access::Write => WRITE,
        };
        if self.flags & (NEXT | INDIRECT | WRITE) != flags || self.len == 0 {
            return None;
        }
        let buffer = memory.span(self.address, self.len)?;
        match access {
            Access::Read => buffer.prefetch(),
            Access::Write => buffer.prefetch_for_write(HEADER_MAX),
        }
        Some(buffer)
    }

    /// Adds the buffer that it names to the chain that is being walked. False: no room left in this batch.
    ///
    /// # Errors
    /// It is empty, of the other direction, or not in guest memory; or there are too many for any batch.
    #[inline]
    pub fn push<'m>(
        &self,
        memory: &'m GuestMemory,
        access: Access,
        chains: &mut Chains<'m>,
    ) -> Result<bool, Fault> {
        match (access, self.has(WRITE)) {
            (Access::Read, true) => return Err(Fault::Direction("writable")),
            (Access::Write, false) => return Err(Fault::Direction("readable")),
            _ => {}
        }
        if self.len == 0 {
            return Err(Fault::Empty);
        }
        match memory.span(self.address, self.len) {
            Some(buffer) => chains.push(buffer),
            None => self.push_pieces(memory, chains),
        }
    }

    /// Adds a buffer that lies across regions, which a driver knows nothing of.
    #[cold]
    fn push_pieces<'m>(&self, memory: &'m GuestMemory, chains: &mut Chains<'m>) -> Result<bool, Fault> {
        let Descriptor { mut address, len, .. } = *self;
        let mut left = len;
        while left > 0 {
            let piece = memory.piece(address, left).ok_or(Fault::Address {
                address: self.address,
                len,
            })?;
            if !chains.push(piece)? {
                return Ok(false);
            }
            address += piece.len() as u64;
            left -= piece.len() as u32;
        }
        Ok(true)
    }

    /// The indirect table that it names, and how many descriptors that holds: whole ones, and at the end of a chain
    /// (§2.7.5.3, §2.8.7).
    ///
    /// # Errors
    /// It is no such table, or not in guest memory.
    pub fn table<'m>(&self, memory: &'m GuestMemory) -> Result<(Span<'m>, u32), Fault> {
        let Descriptor { address, len, .. } = *self;
        let count = len / DESCRIPTOR as u32;
        let whole = len.is_multiple_of(DESCRIPTOR as u32) && count > 0;
        if !whole || self.has(NEXT) {
            return Err(Fault::IndirectTable { len });
        }
        if count > MAX_CHAIN as u32 {
            return Err(Fault::TooManyBuffers);
        }
        let span = memory.span(address, len).ok_or(Fault::Address { address, len })?;
        Ok((span, count))
    }
}
