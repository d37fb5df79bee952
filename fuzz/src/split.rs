//! The split virtqueue (virtio 1.2 §2.7) from the driver's side, and the walk as its text reads: slow and plain, to
//! compare the device's with.

use dpdk_qemu_shim::guest_memory::testing::FRONTEND;
use dpdk_qemu_shim::virtqueue::testing::{INDIRECT, NEXT, WRITE};
use dpdk_qemu_shim::virtqueue::{MAX_CHAIN, RingAddresses};

use crate::guest::Guest;
use crate::virtqueue::Buffer;

/// A ring at `at` in guest memory.
#[derive(Debug, Clone, Copy)]
pub struct Ring {
    pub at: u64,
    pub size: u16,
}

impl Ring {
    pub fn available(&self) -> u64 {
        self.at + 16 * u64::from(self.size)
    }

    pub fn used(&self) -> u64 {
        (self.available() + 6 + 2 * u64::from(self.size)).next_multiple_of(64)
    }

    /// The used ring with its index and event.
    pub fn used_bytes(&self) -> Buffer {
        (self.used(), 6 + 8 * u32::from(self.size))
    }

    /// In the frontend's addresses.
    pub fn addresses(&self) -> RingAddresses {
        RingAddresses {
            descriptors: FRONTEND + self.at,
            available: FRONTEND + self.available(),
            used: FRONTEND + self.used(),
        }
    }

    pub fn available_index(&self, guest: &Guest) -> u16 {
        u16::from_le_bytes(guest.read(self.available() + 2))
    }

    pub fn used_index(&self, guest: &Guest) -> u16 {
        u16::from_le_bytes(guest.read(self.used() + 2))
    }

    /// The head that available index `index` names.
    pub fn head(&self, guest: &Guest, index: u16) -> u16 {
        u16::from_le_bytes(guest.read(self.available() + 4 + 2 * u64::from(index % self.size)))
    }

    /// The driver writes descriptor `index`.
    pub fn set(&self, guest: &mut Guest, index: u16, descriptor: [u8; 16]) {
        guest.poke(self.at + 16 * u64::from(index % self.size), &descriptor);
    }

    /// The driver makes `head` available.
    pub fn publish(&self, guest: &mut Guest, head: u16) {
        let index = self.available_index(guest);
        let slot = self.available() + 4 + 2 * u64::from(index % self.size);
        guest.poke(slot, &head.to_le_bytes());
        guest.poke(self.available() + 2, &index.wrapping_add(1).to_le_bytes());
    }

    /// The buffers of the chain at `head`; none: the guest broke a rule.
    pub fn chain(&self, guest: &Guest, head: u16, write: bool, indirect: bool) -> Option<Vec<Buffer>> {
        let mut chain = Vec::new();
        let (mut table, mut size, mut in_indirect) = (self.at, u32::from(self.size), false);
        let (mut index, mut steps) = (u32::from(head), 0);
        loop {
            if index >= size || steps == size {
                return None;
            }
            steps += 1;
            let bytes: [u8; 16] = guest.read(table + 16 * u64::from(index));
            let (address, len, flags, next) = parse(bytes);
            if flags & INDIRECT != 0 {
                let whole = len > 0 && len % 16 == 0 && len / 16 <= MAX_CHAIN as u32;
                if !indirect || in_indirect || flags & NEXT != 0 || !whole {
                    return None;
                }
                Guest::offset(address, len.into())?;
                (table, size, in_indirect, index, steps) = (address, len / 16, true, 0, 0);
                continue;
            }
            chain.extend(Guest::pieces(address, len)?);
            if (flags & WRITE != 0) != write || chain.len() > MAX_CHAIN {
                return None;
            }
            if flags & NEXT == 0 {
                return Some(chain);
            }
            index = next.into();
        }
    }
}

/// A descriptor's bytes.
pub fn descriptor(address: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let raw = u128::from(address) | u128::from(len) << 64 | u128::from(flags) << 96 | u128::from(next) << 112;
    raw.to_le_bytes()
}

fn parse(bytes: [u8; 16]) -> (u64, u32, u16, u16) {
    let raw = u128::from_le_bytes(bytes);
    (
        raw as u64,
        (raw >> 64) as u32,
        (raw >> 96) as u16,
        (raw >> 112) as u16,
    )
}
