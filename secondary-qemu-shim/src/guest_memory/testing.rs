//! Synthetic guest memory for tests: memfds, with safe access by guest physical address.

use std::fs::File;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{GuestMemory, RegionSpec};

/// What the tests add to a guest physical address to make the frontend's address of it.
pub const FRONTEND: u64 = 0x7000_0000_0000;

/// An anonymous file of `size` bytes.
pub fn memfd(size: u64) -> File {
    let fd = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap();
    let file = File::from(fd);
    file.set_len(size).unwrap();
    file
}

/// A memory table with a region for each (guest address, size).
pub fn memory(regions: &[(u64, u64)]) -> Arc<GuestMemory> {
    let specs = regions
        .iter()
        .map(|&(guest, size)| RegionSpec {
            guest,
            frontend: FRONTEND + guest,
            size,
            offset: 0,
            file: memfd(size),
        })
        .collect();
    Arc::new(GuestMemory::map(specs).unwrap())
}

/// Writes guest memory as the guest would.
pub fn poke(memory: &GuestMemory, guest: u64, bytes: &[u8]) {
    memory.span(guest, bytes.len() as u32).unwrap().write(0, bytes);
}

/// Reads guest memory as the guest would.
pub fn peek(memory: &GuestMemory, guest: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    memory.span(guest, len as u32).unwrap().read(0, &mut out);
    out
}
