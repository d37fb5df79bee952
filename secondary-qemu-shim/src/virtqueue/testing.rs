//! Drivers: the guest's end of a virtqueue, as honest or as hostile as a test wants it.

pub mod packed;

use std::sync::Arc;

use super::{RingAddresses, SplitQueue};
use crate::guest_memory::testing::{FRONTEND, peek, poke};
use crate::guest_memory::{DirtyLog, GuestMemory};

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// A buffer to offer: guest address, bytes, does the device write it?
pub type Offer = (u64, u32, bool);

/// The guest's end of a split ring that lies at `at` in guest memory.
#[derive(Debug)]
pub struct Driver {
    pub memory: Arc<GuestMemory>,
    pub at: u64,
    pub size: u16,
    pub available: u16,
    seen: u16,
    next_free: u16,
}

impl Driver {
    /// A ring of `size` entries. It takes up less than 32 bytes for each, and 64.
    pub fn new(memory: &Arc<GuestMemory>, at: u64, size: u16) -> Driver {
        Driver {
            memory: Arc::clone(memory),
            at,
            size,
            available: 0,
            seen: 0,
            next_free: 0,
        }
    }

    /// A ring that has been in use: both indices stand at `index`.
    pub fn starting_at(mut self, index: u16) -> Driver {
        (self.available, self.seen) = (index, index);
        self.set_available_index(index);
        self.poke16(self.used_ring() + 2, index);
        self
    }

    pub fn available_ring(&self) -> u64 {
        self.at + 16 * u64::from(self.size)
    }

    pub fn used_ring(&self) -> u64 {
        (self.available_ring() + 6 + 2 * u64::from(self.size)).next_multiple_of(64)
    }

    /// Where the ring's parts are, in the frontend's addresses.
    pub fn addresses(&self) -> RingAddresses {
        RingAddresses {
            descriptors: FRONTEND + self.at,
            available: FRONTEND + self.available_ring(),
            used: FRONTEND + self.used_ring(),
        }
    }

    /// The device's end.
    pub fn device(&self) -> SplitQueue {
        SplitQueue::new(&self.memory, self.addresses(), self.size).expect("the ring is in guest memory")
    }

    pub fn poke16(&self, at: u64, value: u16) {
        poke(&self.memory, at, &value.to_le_bytes());
    }

    pub fn peek16(&self, at: u64) -> u16 {
        u16::from_le_bytes(peek(&self.memory, at, 2).try_into().unwrap())
    }

    /// Writes a descriptor anywhere.
    pub fn descriptor(&self, at: u64, address: u64, len: u32, flags: u16, next: u16) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        poke(&self.memory, at, &bytes);
    }

    /// Writes descriptor `index` of the ring's table.
    pub fn set(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        self.descriptor(self.at + 16 * u64::from(index), address, len, flags, next);
    }

    fn take_slot(&mut self) -> u16 {
        let slot = self.next_free;
        self.next_free = (slot + 1) % self.size;
        slot
    }

    /// Makes a chain of `offers` available; returns its head.
    pub fn offer(&mut self, offers: &[Offer]) -> u16 {
        let slots: Vec<u16> = offers.iter().map(|_| self.take_slot()).collect();
        for (i, &(address, len, write)) in offers.iter().enumerate() {
            let next = slots.get(i + 1).copied();
            let flags = if write { WRITE } else { 0 } | next.map_or(0, |_| NEXT);
            self.set(slots[i], address, len, flags, next.unwrap_or(0));
        }
        self.publish(slots[0]);
        slots[0]
    }

    /// Makes a chain of `offers` available through an indirect table at `table`.
    pub fn offer_indirect(&mut self, table: u64, offers: &[Offer]) -> u16 {
        for (i, &(address, len, write)) in offers.iter().enumerate() {
            let last = i + 1 == offers.len();
            let flags = if write { WRITE } else { 0 } | if last { 0 } else { NEXT };
            self.descriptor(
                table + 16 * i as u64,
                address,
                len,
                flags,
                if last { 0 } else { i as u16 + 1 },
            );
        }
        let slot = self.take_slot();
        self.set(slot, table, 16 * offers.len() as u32, INDIRECT, 0);
        self.publish(slot);
        slot
    }

    /// Puts `head` on the available ring.
    pub fn publish(&mut self, head: u16) {
        let slot = self.available % self.size;
        self.poke16(self.available_ring() + 4 + 2 * u64::from(slot), head);
        self.available = self.available.wrapping_add(1);
        self.set_available_index(self.available);
    }

    pub fn set_available_index(&self, index: u16) {
        self.poke16(self.available_ring() + 2, index);
    }

    /// "Interrupt me once this used index has been passed."
    pub fn set_used_event(&self, index: u16) {
        self.poke16(self.available_ring() + 4 + 2 * u64::from(self.size), index);
    }

    /// The device's wish for kicks.
    pub fn available_event(&self) -> u16 {
        self.peek16(self.used_ring() + 4 + 8 * u64::from(self.size))
    }

    pub fn used_index(&self) -> u16 {
        self.peek16(self.used_ring() + 2)
    }

    /// The used element in `slot`: head and bytes written.
    pub fn used_element(&self, slot: u16) -> (u16, u32) {
        let element = peek(&self.memory, self.used_ring() + 4 + 8 * u64::from(slot), 8);
        let (head, len) = element.split_at(4);
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
        (word(head) as u16, word(len))
    }

    /// Used elements since the last call: head and bytes written.
    pub fn used(&mut self) -> Vec<(u16, u32)> {
        let mut used = Vec::new();
        while self.seen != self.used_index() {
            used.push(self.used_element(self.seen % self.size));
            self.seen = self.seen.wrapping_add(1);
        }
        used
    }
}

/// A dirty log of `pages` pages, and the file behind it.
pub fn dirty_log(pages: u64) -> (Arc<DirtyLog>, std::fs::File) {
    let file = crate::guest_memory::testing::memfd(pages.div_ceil(8));
    let table = crate::guest_memory::SharedTable::map(&file, 0, pages.div_ceil(8)).unwrap();
    (Arc::new(DirtyLog::new(table)), file)
}

/// The pages marked in a log's file.
pub fn dirty_pages(file: &std::fs::File) -> Vec<u64> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    std::os::unix::fs::FileExt::read_exact_at(file, &mut bytes, 0).unwrap();
    let marked = |page: &u64| bytes[*page as usize / 8] >> (page % 8) & 1 != 0;
    (0..bytes.len() as u64 * 8).filter(marked).collect()
}
