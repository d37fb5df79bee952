//! A driver of a packed virtqueue.

use std::sync::Arc;

use super::{INDIRECT, NEXT, Offer, WRITE};
use crate::guest_memory::GuestMemory;
use crate::guest_memory::testing::{FRONTEND, peek, poke};
use crate::virtqueue::{PackedQueue, RingAddresses};

pub const AVAIL: u16 = 1 << 7;
pub const USED: u16 = 1 << 15;

/// A descriptor as the guest writes and reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor {
    pub address: u64,
    pub len: u32,
    pub id: u16,
    pub flags: u16,
}

/// The guest's end of a packed ring that lies at `at` in guest memory.
#[derive(Debug)]
pub struct PackedDriver {
    pub memory: Arc<GuestMemory>,
    pub at: u64,
    pub size: u16,
    /// Where the next descriptor is made available, and where the next used one is expected: slot and wrap counter.
    available: (u16, bool),
    used: (u16, bool),
    /// Chains that are out, oldest first: buffer id and slots.
    out: std::collections::VecDeque<(u16, u16)>,
    next_id: u16,
    in_order: bool,
}

impl PackedDriver {
    /// A ring of `size` descriptors. It takes up 16 bytes for each, and 8.
    pub fn new(memory: &Arc<GuestMemory>, at: u64, size: u16) -> PackedDriver {
        PackedDriver {
            memory: Arc::clone(memory),
            at,
            size,
            available: (0, true),
            used: (0, true),
            out: std::collections::VecDeque::new(),
            next_id: 100,
            in_order: false,
        }
    }

    /// Knows that one used descriptor may tell of several chains.
    pub fn in_order(mut self) -> PackedDriver {
        self.in_order = true;
        self
    }

    /// A ring that has been in use: both sides stand at `base`.
    pub fn starting_at(mut self, base: u16) -> PackedDriver {
        let (slot, wrap) = (base & 0x7fff, base >> 15 != 0);
        (self.available, self.used) = ((slot, wrap), (slot, wrap));
        // As a round before left it: all used.
        for i in 0..self.size {
            let wrap = if i < slot { wrap } else { !wrap };
            let flags = if wrap { AVAIL | USED } else { 0 };
            self.set(i, 0, 0, 0, flags);
        }
        self
    }

    pub fn driver_area(&self) -> u64 {
        self.at + 16 * u64::from(self.size)
    }

    pub fn device_area(&self) -> u64 {
        self.driver_area() + 4
    }

    /// Where the ring's parts are, in the frontend's addresses.
    pub fn addresses(&self) -> RingAddresses {
        RingAddresses {
            descriptors: FRONTEND + self.at,
            available: FRONTEND + self.driver_area(),
            used: FRONTEND + self.device_area(),
        }
    }

    /// The place where the driver stands, as `SET_VRING_BASE` would tell it when all is used.
    pub fn base(&self) -> u32 {
        u32::from(self.used.0) | u32::from(self.used.1) << 15
    }

    /// The device's end, which starts where the driver expects the next used descriptor.
    pub fn device(&self) -> PackedQueue {
        PackedQueue::new(&self.memory, self.addresses(), self.size, self.base())
            .expect("the ring is in guest memory")
    }

    /// Writes a descriptor anywhere.
    pub fn descriptor(&self, at: u64, address: u64, len: u32, id: u16, flags: u16) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(id.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        poke(&self.memory, at, &bytes);
    }

    /// Writes descriptor `slot` of the ring.
    pub fn set(&self, slot: u16, address: u64, len: u32, id: u16, flags: u16) {
        self.descriptor(self.at + 16 * u64::from(slot), address, len, id, flags);
    }

    /// Reads descriptor `slot` of the ring.
    pub fn get(&self, slot: u16) -> Descriptor {
        let bytes = peek(&self.memory, self.at + 16 * u64::from(slot), 16);
        let raw = u128::from_le_bytes(bytes.try_into().unwrap());
        Descriptor {
            address: raw as u64,
            len: (raw >> 64) as u32,
            id: (raw >> 96) as u16,
            flags: (raw >> 112) as u16,
        }
    }

    fn step(&self, (slot, wrap): (u16, bool), slots: u16) -> (u16, bool) {
        let slot = slot + slots;
        if slot >= self.size {
            (slot - self.size, !wrap)
        } else {
            (slot, wrap)
        }
    }

    /// Makes descriptors available, with these flags beside those that make them so.
    fn publish(&mut self, descriptors: &[(u64, u32, u16)]) -> u16 {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        // The first one last: the device looks at the others only then.
        for (i, &(address, len, flags)) in descriptors.iter().enumerate().rev() {
            let (slot, wrap) = self.step(self.available, i as u16);
            self.set(slot, address, len, id, flags | if wrap { AVAIL } else { USED });
        }
        self.available = self.step(self.available, descriptors.len() as u16);
        self.out.push_back((id, descriptors.len() as u16));
        id
    }

    /// Makes a chain of `offers` available; returns its buffer id.
    pub fn offer(&mut self, offers: &[Offer]) -> u16 {
        let last = offers.len() - 1;
        let flags = |i, write| if write { WRITE } else { 0 } | if i == last { 0 } else { NEXT };
        let descriptors: Vec<_> = offers
            .iter()
            .enumerate()
            .map(|(i, &(address, len, write))| (address, len, flags(i, write)))
            .collect();
        self.publish(&descriptors)
    }

    /// Makes a chain of `offers` available through an indirect table at `table`; returns its buffer id.
    pub fn offer_indirect(&mut self, table: u64, offers: &[Offer]) -> u16 {
        for (i, &(address, len, write)) in offers.iter().enumerate() {
            let flags = if write { WRITE } else { 0 };
            self.descriptor(table + 16 * i as u64, address, len, 0, flags);
        }
        self.publish(&[(table, 16 * offers.len() as u32, INDIRECT)])
    }

    /// The driver's wish for interrupts: of one descriptor, or one of the other values.
    pub fn set_driver_event(&self, off_wrap: u16, flags: u16) {
        let bytes = u32::from(off_wrap) | u32::from(flags) << 16;
        poke(&self.memory, self.driver_area(), &bytes.to_le_bytes());
    }

    /// The device's wish for kicks.
    pub fn device_event(&self) -> (u16, u16) {
        let bytes = peek(&self.memory, self.device_area(), 4);
        let word = u32::from_le_bytes(bytes.try_into().unwrap());
        (word as u16, (word >> 16) as u16)
    }

    /// Chains that were used since the last call: buffer id and bytes written.
    ///
    /// # Panics
    /// If the device used what was not out, or not in order.
    pub fn used(&mut self) -> Vec<(u16, u32)> {
        let mut used = Vec::new();
        loop {
            let (slot, wrap) = self.used;
            let descriptor = self.get(slot);
            let mark = if wrap { AVAIL | USED } else { 0 };
            if descriptor.flags & (AVAIL | USED) != mark || self.out.is_empty() {
                return used;
            }
            loop {
                let (id, slots) = self.out.pop_front().expect("the chain is out");
                self.used = self.step(self.used, slots);
                let last = id == descriptor.id;
                assert!(last || self.in_order, "used {}, not {id}", descriptor.id);
                let written = if last && descriptor.flags & WRITE != 0 {
                    descriptor.len
                } else {
                    0
                };
                used.push((id, written));
                if last {
                    break;
                }
            }
        }
    }
}
