//! What a device says of itself.

use std::ffi::{CStr, c_char};
use std::mem::MaybeUninit;

use dpdk_sys as sys;

use super::{Ethdev, EthdevError};

/// What a device can do, as its driver says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    pub driver: String,
    /// The bus, such as `pci`.
    pub bus: String,
    /// What the bus says of the device: `vendor_id=8086, device_id=1521`. Empty if nothing.
    pub bus_info: String,
    pub max_rx_queues: u16,
    pub max_tx_queues: u16,
    pub max_mac_addresses: u32,
    pub max_hash_mac_addresses: u32,
    pub max_vfs: u16,
    pub max_vmdq_pools: u16,
    pub min_rx_buffer: u32,
    pub max_rx_packet: u32,
    /// Link changes come as an interrupt.
    pub link_interrupt: bool,
}

/// Link state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Link {
    pub up: bool,
    pub full_duplex: bool,
    /// Mbit/s; `None` if the driver does not know.
    pub speed: Option<u32>,
}

impl Ethdev {
    /// What the driver says of it.
    ///
    /// # Errors
    /// The driver does not answer.
    pub fn info(&self) -> Result<Info, EthdevError> {
        let info = self.raw_info()?;
        // SAFETY: the device that the driver names stays while `self` has it; each answer is a NUL-terminated string
        // that stays as long, or null.
        let (bus, bus_info) = unsafe {
            let bus = sys::rte_dev_bus(info.device);
            (
                if bus.is_null() {
                    String::new()
                } else {
                    text(sys::rte_bus_name(bus))
                },
                text(sys::rte_dev_bus_info(info.device)),
            )
        };
        Ok(Info {
            driver: driver(&info),
            bus,
            bus_info,
            max_rx_queues: info.max_rx_queues,
            max_tx_queues: info.max_tx_queues,
            max_mac_addresses: info.max_mac_addrs,
            max_hash_mac_addresses: info.max_hash_mac_addrs,
            max_vfs: info.max_vfs,
            max_vmdq_pools: info.max_vmdq_pools,
            min_rx_buffer: info.min_rx_bufsize,
            max_rx_packet: info.max_rx_pktlen,
            link_interrupt: has_flag(&info, sys::DPDK_SYS_LINK_INTERRUPT),
        })
    }

    /// Its NUMA node; `None` if it has none.
    pub fn node(&self) -> Option<usize> {
        // SAFETY: any port is a valid question.
        usize::try_from(unsafe { sys::rte_eth_dev_socket_id(self.port) }).ok()
    }

    pub(super) fn raw_info(&self) -> Result<sys::rte_eth_dev_info, EthdevError> {
        let mut info = MaybeUninit::<sys::rte_eth_dev_info>::zeroed();
        // SAFETY: DPDK fills the whole struct when it returns 0; a zeroed one is valid as well.
        let rc = unsafe { sys::rte_eth_dev_info_get(self.port, info.as_mut_ptr()) };
        self.check("reading its capabilities", rc)?;
        // SAFETY: see above.
        Ok(unsafe { info.assume_init() })
    }

    /// Its own MAC address.
    pub fn mac(&self) -> Option<[u8; 6]> {
        let mut address = sys::rte_ether_addr { addr_bytes: [0; 6] };
        // SAFETY: a valid pointer for the time of the call.
        (unsafe { sys::rte_eth_macaddr_get(self.port, &mut address) } == 0).then_some(address.addr_bytes)
    }

    /// Its link, as last known to the driver.
    pub fn link(&self) -> Link {
        let mut link = MaybeUninit::<sys::rte_eth_link>::zeroed();
        // SAFETY: DPDK fills the struct; all-zero is valid (down).
        let link = unsafe {
            sys::rte_eth_link_get_nowait(self.port, link.as_mut_ptr());
            link.assume_init()
        };
        Link {
            up: link.link_status() != 0,
            full_duplex: link.link_duplex() != 0,
            speed: (link.link_speed != 0 && link.link_speed != u32::MAX).then_some(link.link_speed),
        }
    }

    /// All that the driver counts, by DPDK's names (`rx_good_packets`, `rx_crc_errors`, ...).
    pub fn counters(&self) -> Vec<(String, u64)> {
        // SAFETY: no room means a question for the number.
        let count = unsafe { sys::rte_eth_xstats_get_names(self.port, std::ptr::null_mut(), 0) };
        let Ok(count) = usize::try_from(count) else {
            return Vec::new();
        };
        let mut names = vec![sys::rte_eth_xstat_name { name: [0; 64] }; count];
        let mut values = vec![sys::rte_eth_xstat { id: 0, value: 0 }; count];
        // SAFETY: both tables have `count` entries, and that is what DPDK is told.
        let (named, valued) = unsafe {
            (
                sys::rte_eth_xstats_get_names(self.port, names.as_mut_ptr(), count as u32),
                sys::rte_eth_xstats_get(self.port, values.as_mut_ptr(), count as u32),
            )
        };
        // More than there is room for, or an error: nothing of it is filled in.
        if named != count as i32 || valued < 0 || valued > count as i32 {
            return Vec::new();
        }
        values[..valued as usize]
            .iter()
            .filter_map(|value| {
                let name = names.get(usize::try_from(value.id).ok()?)?;
                // SAFETY: DPDK terminates names within their 64 bytes.
                Some((unsafe { text(name.name.as_ptr()) }, value.value))
            })
            .collect()
    }
}

/// The driver's name.
pub(super) fn driver(info: &sys::rte_eth_dev_info) -> String {
    // SAFETY: drivers name themselves by static NUL-terminated strings.
    unsafe { text(info.driver_name) }
}

/// Does the driver have this capability (RTE_ETH_DEV_*)?
pub(super) fn has_flag(info: &sys::rte_eth_dev_info, flag: u32) -> bool {
    // SAFETY: null, or the flags of a device that the caller has.
    unsafe { info.dev_flags.as_ref() }.is_some_and(|flags| flags & flag != 0)
}

/// # Safety
/// Null, or a NUL-terminated string.
unsafe fn text(string: *const c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: by contract.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}
