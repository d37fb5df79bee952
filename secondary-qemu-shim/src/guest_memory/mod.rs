//! The guest's memory, mapped from the file descriptors that the frontend sends.
//!
//! Every `unsafe` access to guest memory is in this folder. What the rest of the shim gets are [`Span`]s and
//! [`RingArea`]s: bounds checked once when made, readable and writable only by copying, never as a Rust reference,
//! because the guest changes the bytes at any time. An address or a length that a guest made up ends in `None`.

mod dirty_log;
mod mapping;
mod ring_area;
mod shared;
mod span;

use std::fs::File;
use std::ptr::NonNull;

use mapping::Mapping;

pub use dirty_log::DirtyLog;
pub use mapping::MapError;
pub use ring_area::RingArea;
pub use shared::SharedTable;
pub use span::Span;

/// One region of a memory table, as the vhost-user message gives it.
#[derive(Debug)]
pub struct RegionSpec {
    /// Guest physical address.
    pub guest: u64,
    /// Address in the frontend's own address space: vring addresses are of this kind.
    pub frontend: u64,
    /// Bytes.
    pub size: u64,
    /// Where the region starts in `file`.
    pub offset: u64,
    /// What to map.
    pub file: File,
}

#[derive(Debug)]
struct Region {
    guest: u64,
    frontend: u64,
    size: u64,
    host: NonNull<u8>,
}

/// A memory table: the guest's regions, mapped. A new table is a new value; whoever still works on the old one keeps
/// it mapped.
#[derive(Debug)]
pub struct GuestMemory {
    /// Largest first: nearly every look-up ends at the first one.
    regions: Box<[Region]>,
    _mappings: Box<[Mapping]>,
}

// SAFETY: the raw pointers lie in mappings that this value owns, and all access through them is by copying or atomics.
unsafe impl Send for GuestMemory {}
// SAFETY: as above; no Rust reference into guest memory is ever made.
unsafe impl Sync for GuestMemory {}

impl GuestMemory {
    /// Maps `specs`.
    ///
    /// # Errors
    /// A region is empty or wraps around, its file is too short, or the kernel refuses the mapping.
    pub fn map(specs: Vec<RegionSpec>) -> Result<GuestMemory, MapError> {
        let mut regions = Vec::with_capacity(specs.len());
        let mut mappings = Vec::with_capacity(specs.len());
        for spec in specs {
            let RegionSpec {
                guest,
                frontend,
                size,
                offset,
                file,
            } = spec;
            if size == 0 || guest.checked_add(size).is_none() || frontend.checked_add(size).is_none() {
                return Err(MapError::Range { guest, size });
            }
            let mapping = Mapping::new(&file, offset, size)?;
            regions.push(Region {
                guest,
                frontend,
                size,
                host: mapping.start(),
            });
            mappings.push(mapping);
        }
        regions.sort_by_key(|r| std::cmp::Reverse(r.size));
        Ok(GuestMemory {
            regions: regions.into(),
            _mappings: mappings.into(),
        })
    }

    /// The `len` bytes at guest physical address `guest`, if they lie within one region.
    #[inline]
    pub fn span(&self, guest: u64, len: u32) -> Option<Span<'_>> {
        for region in &self.regions {
            let offset = guest.wrapping_sub(region.guest);
            if offset < region.size && u64::from(len) <= region.size - offset {
                // SAFETY: offset + len <= size, and size bytes are mapped at `host` as long as `self` lives.
                return Some(unsafe { Span::new(region.host.add(offset as usize), guest, len) });
            }
        }
        None
    }

    /// As many of the `len` bytes at guest physical address `guest` as lie within the region where they begin.
    #[cold]
    pub fn piece(&self, guest: u64, len: u32) -> Option<Span<'_>> {
        self.regions.iter().find_map(|region| {
            let left = region.size.checked_sub(guest.checked_sub(region.guest)?)?;
            let len = u64::from(len).min(left) as u32;
            self.span(guest, len).filter(|_| left > 0)
        })
    }

    /// Host and guest physical address of the `len` bytes at the frontend's address `address`, if they lie within one
    /// region.
    fn by_frontend_address(&self, address: u64, len: usize) -> Option<(NonNull<u8>, u64)> {
        self.regions.iter().find_map(|region| {
            let offset = address.wrapping_sub(region.frontend);
            (offset < region.size && len as u64 <= region.size - offset).then(|| {
                // SAFETY: offset lies within the region, which is mapped whole.
                let host = unsafe { region.host.add(offset as usize) };
                (host, region.guest + offset)
            })
        })
    }
}

#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
