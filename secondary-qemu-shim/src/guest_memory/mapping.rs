//! Shared mappings of file descriptors that came over a socket.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::ptr::NonNull;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// Why a descriptor could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    #[error("memory region of {size:#x} bytes at {guest:#x} is empty or wraps around")]
    Range { guest: u64, size: u64 },
    #[error("memory region ends at {end:#x} of its file, which has only {file:#x} bytes")]
    Short { end: u64, file: u64 },
    #[error("the shared memory's descriptor can't be examined: {0}")]
    Stat(std::io::Error),
    #[error("mapping {size:#x} bytes of shared memory: {why}")]
    Map { size: u64, why: Errno },
}

/// `size` bytes of a file, mapped shared, readable and writable. Unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<libc::c_void>,
    mapped: usize,
    /// Where the wanted bytes start: the kernel maps whole (huge) pages.
    lead: usize,
}

// SAFETY: an address range that this value owns; what is done with it is the users' business.
unsafe impl Send for Mapping {}
// SAFETY: as above; the methods only read plain fields.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `size` bytes of `file` from `offset`, which need not be aligned to a page.
    ///
    /// # Errors
    /// The file is shorter than that, or the kernel refuses.
    pub fn new(file: &File, offset: u64, size: u64) -> Result<Mapping, MapError> {
        let meta = file.metadata().map_err(MapError::Stat)?;
        let end = offset
            .checked_add(size)
            .ok_or(MapError::Range { guest: offset, size })?;
        // Access behind the end of the file would be a SIGBUS later.
        if end > meta.len() {
            return Err(MapError::Short {
                end,
                file: meta.len(),
            });
        }
        // On hugetlbfs the block size is the huge page's, and both ends must be aligned to it.
        let page = meta.blksize().max(4096).next_power_of_two();
        let start = offset & !(page - 1);
        let lead = (offset - start) as usize;
        let fail = |why| MapError::Map { size, why };
        let mapped = (end - start)
            .checked_next_multiple_of(page)
            .ok_or(fail(Errno::EINVAL))?;
        let mapped = usize::try_from(mapped).map_err(|_| fail(Errno::ENOMEM))?;
        let length = NonZeroUsize::new(mapped).ok_or(fail(Errno::EINVAL))?;
        let offset = libc::off_t::try_from(start).map_err(|_| fail(Errno::EOVERFLOW))?;
        // SAFETY: a new mapping at an address the kernel chooses; it replaces nothing.
        let base = unsafe {
            mmap(
                None,
                length,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_SHARED | MapFlags::MAP_NORESERVE,
                file,
                offset,
            )
        }
        .map_err(fail)?;
        Ok(Mapping { base, mapped, lead })
    }

    /// Host address of the first wanted byte.
    pub fn start(&self) -> NonNull<u8> {
        // SAFETY: `lead` is smaller than the mapping.
        unsafe { self.base.cast::<u8>().add(self.lead) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, unmapped once; every user borrows or owns this value.
        let result = unsafe { munmap(self.base, self.mapped) };
        debug_assert_eq!(result, Ok(()));
    }
}
