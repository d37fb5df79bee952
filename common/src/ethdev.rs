//! Ethernet devices of the primary: NICs and vdevs, by any of DPDK's drivers.

use std::ffi::{CStr, CString, c_int};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};

use arrayvec::ArrayVec;
use dpdk_sys as sys;

use crate::eal::strerror;
use crate::mbuf::Mbuf;
use crate::mempool::Pool;

/// Why a device can't be used. The message goes into the Interface row's `error`.
#[derive(Debug, thiserror::Error)]
pub enum EthdevError {
    #[error("could not attach '{device}': {why}")]
    Probe { device: String, why: String },
    #[error("'{device}' gave no Ethernet port; is the device bound to a DPDK driver (vfio-pci)?")]
    NoPort { device: String },
    #[error("{device}: {step} failed: {why}")]
    Setup {
        device: String,
        step: &'static str,
        why: String,
    },
}

/// How a device is to be set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setup {
    pub rx_queues: u16,
    pub tx_queues: u16,
    pub rx_descriptors: u16,
    pub tx_descriptors: u16,
    /// Bytes of payload behind the Ethernet header.
    pub mtu: u16,
    /// Take frames for any address. Not for an interface of the host kernel: all that it sends comes to the switch
    /// anyway, and the flag would be the interface's.
    pub promiscuous: bool,
    /// Ask the driver for [`Ethdev::doorbell`]s.
    pub doorbells: bool,
}

/// What a device can do, as its driver says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    pub driver: String,
    pub max_rx_queues: u16,
    pub max_tx_queues: u16,
    pub min_rx_buffer: u32,
    pub max_rx_packet: u32,
}

/// Link state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Link {
    pub up: bool,
    pub full_duplex: bool,
    /// Mbit/s; `None` if the driver does not know.
    pub speed: Option<u32>,
}

/// An Ethernet device of this process, attached and (after [`Ethdev::start`]) running. Stopped on drop, and
/// detached unless EAL had attached it at its start.
#[derive(Debug)]
pub struct Ethdev {
    port: u16,
    device: String,
    rx_queues: u16,
    tx_queues: u16,
    /// EAL attached it at its start: it stays attached when this ends, for another port to take.
    adopted: bool,
}

impl Ethdev {
    /// Attaches what `devargs` names (`0000:01:00.0`, `net_pcap0,iface=eth1`, ...), or adopts it where EAL has
    /// attached it at its start.
    ///
    /// # Errors
    /// No driver takes it, or it has no Ethernet port.
    pub fn attach(devargs: &str) -> Result<Ethdev, EthdevError> {
        let device = devargs.split(',').next().unwrap_or_default().to_owned();
        let fault = |why: String| EthdevError::Probe {
            device: devargs.to_owned(),
            why,
        };
        let c_args = CString::new(devargs).map_err(|e| fault(e.to_string()))?;
        let (port, adopted) = match port_by_name(&device) {
            Some(port) => (port, true),
            None => {
                // SAFETY: a NUL-terminated string that DPDK parses.
                let rc = unsafe { sys::rte_dev_probe(c_args.as_ptr()) };
                if rc < 0 {
                    return Err(fault(strerror(-rc)));
                }
                let port = port_by_name(&device).ok_or(EthdevError::NoPort {
                    device: device.clone(),
                })?;
                (port, false)
            }
        };
        Ok(Ethdev {
            port,
            device,
            rx_queues: 0,
            tx_queues: 0,
            adopted,
        })
    }

    /// DPDK's port id.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The device's name: PCI address or vdev name.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// What the driver says of it.
    ///
    /// # Errors
    /// The driver does not answer.
    pub fn info(&self) -> Result<Info, EthdevError> {
        let info = self.raw_info()?;
        let driver = if info.driver_name.is_null() {
            String::new()
        } else {
            // SAFETY: drivers name themselves by static NUL-terminated strings.
            unsafe { CStr::from_ptr(info.driver_name) }
                .to_string_lossy()
                .into_owned()
        };
        Ok(Info {
            driver,
            max_rx_queues: info.max_rx_queues,
            max_tx_queues: info.max_tx_queues,
            min_rx_buffer: info.min_rx_bufsize,
            max_rx_packet: info.max_rx_pktlen,
        })
    }

    fn raw_info(&self) -> Result<sys::rte_eth_dev_info, EthdevError> {
        let mut info = MaybeUninit::<sys::rte_eth_dev_info>::zeroed();
        // SAFETY: DPDK fills the whole struct when it returns 0; a zeroed one is valid as well.
        let rc = unsafe { sys::rte_eth_dev_info_get(self.port, info.as_mut_ptr()) };
        self.check("reading its capabilities", rc)?;
        // SAFETY: see above.
        Ok(unsafe { info.assume_init() })
    }

    /// Sets queues up, and starts. Queue counts and descriptors are cut to what the device has.
    ///
    /// # Errors
    /// The step that the driver refused.
    pub fn start(&mut self, setup: &Setup, pool: &Pool) -> Result<(), EthdevError> {
        let info = self.raw_info()?;
        let rx_queues = setup.rx_queues.clamp(1, info.max_rx_queues.max(1));
        let tx_queues = setup.tx_queues.clamp(1, info.max_tx_queues.max(1));
        // SAFETY: all-zero is the default of this plain C struct.
        let mut conf: sys::rte_eth_conf = unsafe { MaybeUninit::zeroed().assume_init() };
        if rx_queues > 1 && info.flow_type_rss_offloads != 0 {
            conf.rxmode.mq_mode = sys::RTE_ETH_MQ_RX_RSS;
            conf.rx_adv_conf.rss_conf.rss_hf = info.flow_type_rss_offloads & u64::from(RSS_FIELDS);
        }
        let mtu = if info.max_mtu == 0 {
            setup.mtu
        } else {
            setup.mtu.min(info.max_mtu)
        };
        conf.rxmode.mtu = u32::from(mtu);
        conf.intr_conf.set_rxq(setup.doorbells.into());
        // SAFETY: a valid port, and a configuration that outlives the call.
        let rc = unsafe { sys::rte_eth_dev_configure(self.port, rx_queues, tx_queues, &conf) };
        self.check("configuring queues", rc)?;
        let (mut rx_desc, mut tx_desc) = (setup.rx_descriptors, setup.tx_descriptors);
        // SAFETY: two valid pointers for the time of the call.
        let rc = unsafe { sys::rte_eth_dev_adjust_nb_rx_tx_desc(self.port, &mut rx_desc, &mut tx_desc) };
        self.check("sizing queues", rc)?;
        for queue in 0..rx_queues {
            // SAFETY: null asks for the driver's own thresholds; the pool lives as long as the process.
            let rc = unsafe {
                sys::rte_eth_rx_queue_setup(self.port, queue, rx_desc, 0, std::ptr::null(), pool.as_ptr())
            };
            self.check("setting a receive queue up", rc)?;
        }
        for queue in 0..tx_queues {
            // SAFETY: as above.
            let rc = unsafe { sys::rte_eth_tx_queue_setup(self.port, queue, tx_desc, 0, std::ptr::null()) };
            self.check("setting a transmit queue up", rc)?;
        }
        // SAFETY: a configured port.
        let rc = unsafe { sys::rte_eth_dev_start(self.port) };
        self.check("starting", rc)?;
        if setup.promiscuous {
            // Devices that can't be told so (most vdevs) do it anyway.
            // SAFETY: a started port.
            unsafe {
                sys::rte_eth_promiscuous_enable(self.port);
                sys::rte_eth_allmulticast_enable(self.port);
            }
        }
        self.rx_queues = rx_queues;
        self.tx_queues = tx_queues;
        Ok(())
    }

    /// Receive queues in use.
    pub fn rx_queues(&self) -> u16 {
        self.rx_queues
    }

    /// Transmit queues in use.
    pub fn tx_queues(&self) -> u16 {
        self.tx_queues
    }

    /// Its own MAC address.
    pub fn mac(&self) -> Option<[u8; 6]> {
        let mut address = sys::rte_ether_addr { addr_bytes: [0; 6] };
        // SAFETY: a valid pointer for the time of the call.
        (unsafe { sys::rte_eth_macaddr_get(self.port, &mut address) } == 0).then_some(address.addr_bytes)
    }

    /// The payload size it is set to, in bytes.
    pub fn mtu(&self) -> Option<u16> {
        let mut mtu = 0;
        // SAFETY: a valid pointer for the time of the call.
        (unsafe { sys::rte_eth_dev_get_mtu(self.port, &mut mtu) } == 0).then_some(mtu)
    }

    /// Sets the payload size, in bytes, while it runs.
    ///
    /// # Errors
    /// The driver refuses it.
    pub fn set_mtu(&self, mtu: u16) -> Result<(), EthdevError> {
        // SAFETY: any port and number is a valid request.
        let rc = unsafe { sys::rte_eth_dev_set_mtu(self.port, mtu) };
        self.check("setting the MTU", rc)
    }

    /// A descriptor that is readable while frames wait in receive queue `queue`, of a TAP device started with
    /// [`Setup::doorbells`]. It is the interface's own: reading it would take a frame.
    pub fn doorbell(&self, queue: u16) -> Option<OwnedFd> {
        // SAFETY: any port and queue is a valid question.
        let fd = unsafe { sys::rte_eth_dev_rx_intr_ctl_q_get_fd(self.port, queue) };
        if fd < 0 {
            return None;
        }
        // SAFETY: the driver keeps it open while the device is started, which it is while `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().ok()
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

    /// Takes frames off receive queue `queue`, up to `out`'s capacity. One thread a queue at a time. Frames that the
    /// driver spread over several mbufs are freed; returns how many.
    #[inline]
    pub fn receive<const N: usize>(&self, queue: u16, out: &mut ArrayVec<Mbuf, N>) -> u64 {
        let room = out.remaining_capacity().min(usize::from(u16::MAX));
        let at = out.len();
        // SAFETY: room for that many pointers behind the present ones; Mbuf is a transparent non-null pointer, and
        // the driver writes as many as it says. The queue exists (checked by DPDK in debug builds, by callers here).
        unsafe {
            let table = out.as_mut_ptr().add(at).cast();
            let got = sys::rte_eth_rx_burst(self.port, queue, table, room as u16);
            out.set_len(at + usize::from(got));
        }
        let before = out.len();
        if out[at..].iter().any(|frame| frame.segment_count() > 1) {
            out.retain(|frame| {
                let single = frame.segment_count() == 1;
                if !single {
                    // SAFETY: the driver's own chain, which no client has seen; the list forgets it here.
                    unsafe { sys::rte_pktmbuf_free(frame.as_ptr()) };
                }
                single
            });
        }
        (before - out.len()) as u64
    }

    /// Sends `frames` by transmit queue `queue`, in order. What the queue has no room for stays in `frames`.
    #[inline]
    pub fn send<const N: usize>(&self, queue: u16, frames: &mut ArrayVec<Mbuf, N>) {
        // SAFETY: owned mbufs, given up as far as the driver takes them.
        let sent = unsafe {
            sys::rte_eth_tx_burst(self.port, queue, frames.as_mut_ptr().cast(), frames.len() as u16)
        };
        drop(frames.drain(..usize::from(sent)));
    }

    fn check(&self, step: &'static str, rc: c_int) -> Result<(), EthdevError> {
        if rc == 0 {
            return Ok(());
        }
        Err(EthdevError::Setup {
            device: self.device.clone(),
            step,
            why: strerror(-rc),
        })
    }
}

impl Drop for Ethdev {
    fn drop(&mut self) {
        let Ok(info) = self.raw_info() else { return };
        // SAFETY: nobody polls the port any more: this is its last owner. The rte_device outlives the ethdev.
        unsafe {
            sys::rte_eth_dev_stop(self.port);
            if self.adopted {
                return;
            }
            sys::rte_eth_dev_close(self.port);
            let rc = sys::rte_dev_remove(info.device);
            if rc < 0 {
                log::warn!("{}: could not be detached: {}", self.device, strerror(-rc));
            }
        }
    }
}

/// Header fields that spread flows over receive queues.
const RSS_FIELDS: u32 = (1 << 2) | (1 << 4) | (1 << 5) | (1 << 8) | (1 << 10) | (1 << 11);

fn port_by_name(device: &str) -> Option<u16> {
    let name = CString::new(device).ok()?;
    let mut port = 0;
    // SAFETY: a NUL-terminated name and a valid pointer.
    (unsafe { sys::rte_eth_dev_get_port_by_name(name.as_ptr(), &mut port) } == 0).then_some(port)
}

/// Ethernet ports that EAL attached by itself, as `--vdev` and `-a` ask, by port id.
pub fn attached_devices() -> Vec<(u16, String)> {
    (0..sys::RTE_MAX_ETHPORTS as u16)
        .filter_map(|port| {
            // SAFETY: any number is a valid question.
            if unsafe { sys::rte_eth_dev_is_valid_port(port) } == 0 {
                return None;
            }
            let mut name = [0; 256];
            // SAFETY: DPDK's names have 64 bytes at most, with the terminating NUL.
            let rc = unsafe { sys::rte_eth_dev_get_name_by_port(port, name.as_mut_ptr()) };
            // SAFETY: written by DPDK or zero, so terminated.
            let name = unsafe { CStr::from_ptr(name.as_ptr()) }
                .to_string_lossy()
                .into_owned();
            (rc == 0).then_some((port, name))
        })
        .collect()
}

/// Removes the sockets of EAL's multi-process IPC from its run-time directory `dir`.
///
/// A secondary's: EAL's hot-plug asks every secondary whose socket it finds, and waits five seconds for one that hangs.
/// The primary's: whoever can write to it can have devices attached, detached and memory allocated behind the control
/// thread's back. The clients of this switch have no drivers and need neither.
pub fn leave_ipc(dir: &std::path::Path) {
    let Ok(entries) = std::fs::read_dir(dir) else {
        return;
    };
    for entry in entries.flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(b"mp_socket") {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// EAL's run-time directory of this process.
pub fn eal_runtime_dir() -> std::path::PathBuf {
    // SAFETY: a NUL-terminated string in static storage.
    let dir = unsafe { CStr::from_ptr(sys::rte_eal_get_runtime_dir()) };
    std::path::PathBuf::from(dir.to_string_lossy().into_owned())
}
