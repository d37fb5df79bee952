//! A guest's memory with canaries around every region, and a copy of what must be in it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use arbitrary::Arbitrary;
use dpdk_qemu_shim::guest_memory::testing::{FRONTEND, memfd};
use dpdk_qemu_shim::guest_memory::{GuestMemory, RegionSpec};

/// A region: guest physical address, bytes, and where it is in the file.
#[derive(Debug, Clone, Copy)]
pub struct Region {
    pub guest: u64,
    pub size: u64,
    pub offset: u64,
}

/// The first two are neighbours for the guest; none ends at a page, so that what is written behind an end shows.
pub const REGIONS: [Region; 4] = [
    Region {
        guest: 0,
        size: 0x6000,
        offset: 0x1000,
    },
    Region {
        guest: 0x6000,
        size: 0x1123,
        offset: 0x8000,
    },
    Region {
        guest: 0x10_0000,
        size: 0x2001,
        offset: 0xa000,
    },
    Region {
        guest: 0xffff_ffff_ffff_f000,
        size: 0x800,
        offset: 0xd000,
    },
];
/// Bytes of the file.
const LEN: usize = 0xe000;
const CANARY: u8 = 0xc5;

/// An address that a driver may name: mostly one where something is.
#[derive(Arbitrary, Debug, Clone, Copy)]
pub enum Address {
    In { region: u8, offset: u16 },
    BeforeEnd { region: u8, bytes: u8 },
    Any(u64),
}

impl Address {
    pub fn get(self) -> u64 {
        let region = |i: u8| REGIONS[usize::from(i) % REGIONS.len()];
        match self {
            Address::In { region: i, offset } => region(i).guest + u64::from(offset) % region(i).size,
            Address::BeforeEnd { region: i, bytes } => region(i).guest + region(i).size - u64::from(bytes),
            Address::Any(address) => address,
        }
    }
}

/// A length that a driver may name.
#[derive(Arbitrary, Debug, Clone, Copy)]
pub enum Length {
    Short(u8),
    Frame(u16),
    Any(u32),
}

impl Length {
    pub fn get(self) -> u32 {
        match self {
            Length::Short(len) => len.into(),
            Length::Frame(len) => (len & 0xfff).into(),
            Length::Any(len) => len,
        }
    }
}

/// The memory, seen from outside.
#[derive(Debug)]
pub struct Guest {
    pub file: File,
    /// What must be in the file.
    bytes: Vec<u8>,
}

impl Default for Guest {
    fn default() -> Self {
        Guest::new()
    }
}

impl Guest {
    /// Regions of zeros, canaries between them.
    pub fn new() -> Guest {
        let mut bytes = vec![CANARY; LEN];
        for region in REGIONS {
            bytes[region.offset as usize..][..region.size as usize].fill(0);
        }
        let file = memfd(LEN as u64);
        file.write_all_at(&bytes, 0).expect("a memfd can be written");
        Guest { file, bytes }
    }

    /// A memory table of all regions.
    pub fn table(&self) -> Arc<GuestMemory> {
        let specs = REGIONS.iter().map(|&Region { guest, size, offset }| RegionSpec {
            guest,
            frontend: FRONTEND.wrapping_add(guest & 0xffff_ffff),
            size,
            offset,
            file: self.file.try_clone().expect("a descriptor is left"),
        });
        Arc::new(GuestMemory::map(specs.collect()).expect("the table is sound"))
    }

    /// Where the `len` bytes at `guest` are in the file, if one region holds them.
    pub fn offset(guest: u64, len: u64) -> Option<usize> {
        let holds = |r: &&Region| {
            guest >= r.guest && len <= r.size && guest - r.guest <= r.size - len && guest - r.guest < r.size
        };
        let region = REGIONS.iter().find(holds)?;
        Some((region.offset + (guest - region.guest)) as usize)
    }

    /// The `len` bytes at `guest`, each region's for itself; `None` if they are not all in memory, or none.
    pub fn pieces(guest: u64, len: u32) -> Option<Vec<(u64, u32)>> {
        let (mut pieces, mut at, mut left) = (Vec::new(), guest, len);
        while left > 0 {
            let region = REGIONS.iter().find(|r| at >= r.guest && at - r.guest < r.size)?;
            let len = u64::from(left).min(region.size - (at - region.guest)) as u32;
            pieces.push((at, len));
            (at, left) = (at + u64::from(len), left - len);
        }
        (len > 0).then_some(pieces)
    }

    /// The guest writes, as far as there is memory.
    pub fn poke(&mut self, guest: u64, bytes: &[u8]) {
        if let Some(at) = Guest::offset(guest, bytes.len() as u64) {
            self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
            self.file
                .write_all_at(bytes, at as u64)
                .expect("a memfd can be written");
        }
    }

    /// The device is to have written.
    pub fn expect(&mut self, guest: u64, bytes: &[u8]) {
        let at = Guest::offset(guest, bytes.len() as u64).expect("the device stays in the guest's memory");
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// What is to be at `guest`.
    pub fn read<const N: usize>(&self, guest: u64) -> [u8; N] {
        let at = Guest::offset(guest, N as u64).expect("in the guest's memory");
        self.bytes[at..at + N].try_into().expect("N bytes")
    }

    fn now(&self) -> Vec<u8> {
        let mut now = vec![0; LEN];
        self.file.read_exact_at(&mut now, 0).expect("a memfd can be read");
        now
    }

    /// Is everything in memory as it must be?
    ///
    /// # Panics
    /// If not.
    pub fn check(&self) {
        let now = self.now();
        if now != self.bytes {
            let at = (0..LEN).find(|&at| now[at] != self.bytes[at]).unwrap_or(LEN);
            panic!(
                "byte {at:#x} of the file is {:?}, not {:?}",
                now.get(at),
                self.bytes.get(at)
            );
        }
    }

    /// Takes over what the device wrote, which may be only within `allowed` (guest address, bytes).
    ///
    /// # Panics
    /// If it wrote elsewhere.
    pub fn accept(&mut self, allowed: &[(u64, u32)]) {
        let now = self.now();
        if now == self.bytes {
            return;
        }
        let mut may = vec![false; LEN];
        for &(guest, len) in allowed {
            if let Some(at) = Guest::offset(guest, len.into()) {
                may[at..at + len as usize].fill(true);
            }
        }
        if let Some(at) = (0..LEN).find(|&at| now[at] != self.bytes[at] && !may[at]) {
            panic!("the device wrote byte {at:#x} of the file, which it must not");
        }
        self.bytes = now;
    }

    /// Are the bytes outside the regions untouched?
    ///
    /// # Panics
    /// If not.
    pub fn check_canaries(&self) {
        let mut now = self.now();
        for region in REGIONS {
            now[region.offset as usize..][..region.size as usize].fill(CANARY);
        }
        assert!(
            now.iter().all(|&byte| byte == CANARY),
            "a byte outside guest memory was written"
        );
    }
}
