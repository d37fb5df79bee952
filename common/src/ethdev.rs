//! Ethernet devices of the primary: NICs and vdevs, by any of DPDK's drivers.

mod describe;
pub mod events;

use std::ffi::{CStr, CString, c_int, c_uint};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use arrayvec::ArrayVec;
use dpdk_sys as sys;

use crate::eal::strerror;
use crate::mbuf::{DATA_ROOM, Mbuf};
use crate::mempool::Pool;

pub use describe::{Info, Link};

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
    /// Take TCP frames far longer than the MTU, in chains, with checksums half done: as a guest does, not the switch.
    pub large_receive: bool,
    pub flow_control: FlowControl,
}

/// IEEE 802.3x pause frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FlowControl {
    /// The device pauses when the peer asks for it.
    pub receive: bool,
    /// The device asks the peer to pause when it can't keep up.
    pub transmit: bool,
    /// Both are negotiated with the peer.
    pub autoneg: bool,
}

/// What a running device does in place of software.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    /// Looks at TCP and UDP checksums of what it receives.
    pub rx_checksum: bool,
    /// Completes TCP checksums.
    pub tx_tcp_checksum: bool,
    /// Completes UDP checksums.
    pub tx_udp_checksum: bool,
    /// Makes IPv4 header checksums.
    pub tx_ipv4_checksum: bool,
    /// Cuts large TCP frames (TSO).
    pub tx_segmentation: bool,
    /// Puts a VLAN tag into what it sends.
    pub tx_vlan: bool,
    /// Spreads a long frame that it receives over several mbufs.
    pub rx_chains: bool,
    /// Sends frames that lie in several mbufs.
    pub tx_chains: bool,
}

/// An Ethernet device of this process, attached and (after [`Ethdev::start`]) running. Stopped on drop, and
/// detached unless EAL had attached it at its start.
#[derive(Debug)]
pub struct Ethdev {
    port: u16,
    device: String,
    rx_queues: u16,
    tx_queues: u16,
    mtu: u16,
    offloads: Offloads,
    running: bool,
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
                    let most = sys::RTE_MAX_ETHPORTS;
                    let full = attached_devices().len() == most as usize;
                    return Err(fault(if full {
                        format!("this DPDK has no place for more than {most} devices")
                    } else {
                        strerror(-rc)
                    }));
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
            mtu: 0,
            offloads: Offloads::default(),
            running: false,
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

    /// Sets it up anew and starts it; stops it before, if it runs. Queue counts, descriptors and MTU are cut to what
    /// the device has; see [`Ethdev::rx_queues`] and the others for what it came to. It receives into mbufs of `pool`, on
    /// whose node its queues are.
    ///
    /// # Errors
    /// The step that the driver refused.
    pub fn start(&mut self, setup: &Setup, pool: Pool) -> Result<(), EthdevError> {
        self.stop();
        let info = self.raw_info()?;
        self.rx_queues = setup.rx_queues.clamp(1, info.max_rx_queues.max(1));
        self.tx_queues = setup.tx_queues.clamp(1, info.max_tx_queues.max(1));
        self.configure(setup, &info)?;
        let (mut rx_desc, mut tx_desc) = (setup.rx_descriptors, setup.tx_descriptors);
        // SAFETY: two valid pointers for the time of the call.
        let rc = unsafe { sys::rte_eth_dev_adjust_nb_rx_tx_desc(self.port, &mut rx_desc, &mut tx_desc) };
        self.check("sizing queues", rc)?;
        // The node that has memory: the device's may have none.
        let socket = pool.socket() as c_uint;
        for queue in 0..self.rx_queues {
            // SAFETY: null asks for the driver's own thresholds; the pool lives as long as the process.
            let rc = unsafe {
                sys::rte_eth_rx_queue_setup(
                    self.port,
                    queue,
                    rx_desc,
                    socket,
                    std::ptr::null(),
                    pool.as_ptr(),
                )
            };
            self.check("setting a receive queue up", rc)?;
        }
        for queue in 0..self.tx_queues {
            // SAFETY: as above.
            let rc =
                unsafe { sys::rte_eth_tx_queue_setup(self.port, queue, tx_desc, socket, std::ptr::null()) };
            self.check("setting a transmit queue up", rc)?;
        }
        // SAFETY: a configured port.
        let rc = unsafe { sys::rte_eth_dev_start(self.port) };
        self.check("starting", rc)?;
        self.running = true;
        if setup.promiscuous {
            // Devices that can't be told so (most vdevs) do it anyway.
            // SAFETY: a started port.
            unsafe {
                sys::rte_eth_promiscuous_enable(self.port);
                sys::rte_eth_allmulticast_enable(self.port);
            }
        }
        self.set_flow_control(setup.flow_control);
        Ok(())
    }

    fn stop(&mut self) {
        if std::mem::take(&mut self.running) {
            // SAFETY: a port of this process that nobody polls: `&mut self` is its only handle.
            unsafe { sys::rte_eth_dev_stop(self.port) };
        }
    }

    /// Queues, MTU, offloads.
    fn configure(&mut self, setup: &Setup, info: &sys::rte_eth_dev_info) -> Result<(), EthdevError> {
        // SAFETY: all-zero is the default of this plain C struct.
        let mut conf: sys::rte_eth_conf = unsafe { MaybeUninit::zeroed().assume_init() };
        if self.rx_queues > 1 && info.flow_type_rss_offloads != 0 {
            conf.rxmode.mq_mode = sys::RTE_ETH_MQ_RX_RSS;
            conf.rx_adv_conf.rss_conf.rss_hf = info.flow_type_rss_offloads & u64::from(RSS_FIELDS);
        }
        conf.intr_conf.set_rxq(setup.doorbells.into());
        conf.intr_conf
            .set_lsc(describe::has_flag(info, sys::DPDK_SYS_LINK_INTERRUPT).into());
        conf.intr_conf
            .set_rmv(describe::has_flag(info, sys::DPDK_SYS_REMOVAL_INTERRUPT).into());
        let virtio = describe::driver(info).starts_with("net_virtio");
        let mut rx = info.rx_offload_capa & (sys::DPDK_SYS_RX_CHECKSUM | sys::DPDK_SYS_RX_SCATTER);
        if !self.is_nic(info) || virtio {
            // With it, virtio's driver passes half-done checksums on, and does not say where they are.
            rx &= !sys::DPDK_SYS_RX_CHECKSUM;
        }
        if setup.large_receive {
            rx |= info.rx_offload_capa & (sys::DPDK_SYS_RX_LARGE | sys::DPDK_SYS_RX_CHECKSUM);
        }
        let mut tx = info.tx_offload_capa
            & (sys::DPDK_SYS_TX_TCP_CHECKSUM
                | sys::DPDK_SYS_TX_UDP_CHECKSUM
                | sys::DPDK_SYS_TX_IPV4_CHECKSUM
                | sys::DPDK_SYS_TX_TCP_SEGMENTATION
                | sys::DPDK_SYS_TX_VLAN_INSERT
                | sys::DPDK_SYS_TX_MULTI_SEGMENT);
        if virtio {
            // It puts tags in by `rte_eth_tx_prepare` alone, which would cost every frame a call.
            tx &= !sys::DPDK_SYS_TX_VLAN_INSERT;
        }
        // TAP's driver cuts in software as well, and no more than 64 segments.
        let needed = sys::DPDK_SYS_TX_TCP_SEGMENTATION
            | sys::DPDK_SYS_TX_TCP_CHECKSUM
            | sys::DPDK_SYS_TX_MULTI_SEGMENT;
        let segmentation = tx & needed == needed && describe::driver(info) != "net_tap";
        if !segmentation {
            tx &= !(sys::DPDK_SYS_TX_TCP_SEGMENTATION | sys::DPDK_SYS_TX_IPV4_CHECKSUM);
        }
        // A NIC's MTU leaves no room for VLAN tags, a kernel interface's does.
        let tags = if self.is_nic(info) { TAGS } else { 0 };
        let mut greatest = if info.max_mtu == 0 { u16::MAX } else { info.max_mtu } - tags;
        if rx & sys::DPDK_SYS_RX_SCATTER == 0 {
            greatest = greatest.min(DATA_ROOM as u16 - FRAME_OVERHEAD - tags);
        }
        self.mtu = setup.mtu.min(greatest);
        conf.rxmode.mtu = u32::from(self.mtu + tags);
        let chains = usize::from(self.mtu + tags + FRAME_OVERHEAD) > DATA_ROOM;
        // Drivers receive faster where they know that each frame fits one mbuf.
        conf.rxmode.offloads = if chains {
            rx
        } else {
            rx & !sys::DPDK_SYS_RX_SCATTER
        };
        conf.txmode.offloads = tx;
        // SAFETY: a valid port, and a configuration that outlives the call.
        let rc = unsafe { sys::rte_eth_dev_configure(self.port, self.rx_queues, self.tx_queues, &conf) };
        self.check("configuring queues", rc)?;
        self.offloads = Offloads {
            rx_checksum: rx & sys::DPDK_SYS_RX_CHECKSUM != 0,
            tx_tcp_checksum: tx & sys::DPDK_SYS_TX_TCP_CHECKSUM != 0,
            tx_udp_checksum: tx & sys::DPDK_SYS_TX_UDP_CHECKSUM != 0,
            tx_ipv4_checksum: tx & sys::DPDK_SYS_TX_IPV4_CHECKSUM != 0,
            tx_segmentation: segmentation,
            tx_vlan: tx & sys::DPDK_SYS_TX_VLAN_INSERT != 0,
            rx_chains: chains,
            tx_chains: tx & sys::DPDK_SYS_TX_MULTI_SEGMENT != 0,
        };
        Ok(())
    }

    /// Is it hardware, or looks like it?
    fn is_nic(&self, info: &sys::rte_eth_dev_info) -> bool {
        // SAFETY: the driver's device, which stays while `self` has it; buses have static names.
        unsafe {
            let bus = sys::rte_dev_bus(info.device);
            !bus.is_null() && CStr::from_ptr(sys::rte_bus_name(bus)) != c"vdev"
        }
    }

    /// Off where it was not asked for, whatever the driver's default is. (What the driver says of it is no help here: it
    /// looks at a link that is not up yet.)
    fn set_flow_control(&self, wanted: FlowControl) {
        let asked = wanted != FlowControl::default();
        let mut conf = MaybeUninit::<sys::rte_eth_fc_conf>::zeroed();
        // SAFETY: DPDK fills the struct when it returns 0; all-zero is valid as well.
        let (rc, mut conf) = unsafe {
            let rc = sys::rte_eth_dev_flow_ctrl_get(self.port, conf.as_mut_ptr());
            (rc, conf.assume_init())
        };
        let mode = match (wanted.receive, wanted.transmit) {
            (false, false) => sys::RTE_ETH_FC_NONE,
            (true, false) => sys::RTE_ETH_FC_RX_PAUSE,
            (false, true) => sys::RTE_ETH_FC_TX_PAUSE,
            (true, true) => sys::RTE_ETH_FC_FULL,
        };
        let own = conf.autoneg;
        conf.mode = mode;
        let mut set = |autoneg| {
            conf.autoneg = autoneg;
            // SAFETY: a valid pointer for the time of the call.
            unsafe { sys::rte_eth_dev_flow_ctrl_set(self.port, &mut conf) }
        };
        let rc = match rc {
            // A driver may be able to negotiate it only (igb's), or not to negotiate it.
            0 => match set(wanted.autoneg.into()) {
                0 => 0,
                _ => set(own),
            },
            _ => rc,
        };
        if rc != 0 && asked {
            log::warn!("{}: no flow control as asked for: {}", self.device, strerror(-rc));
        }
    }

    /// Flow control as the device has it; `None` if its driver has none.
    pub fn flow_control(&self) -> Option<FlowControl> {
        let mut conf = MaybeUninit::<sys::rte_eth_fc_conf>::zeroed();
        // SAFETY: DPDK fills the struct when it returns 0; all-zero is valid as well.
        let (rc, conf) = unsafe {
            let rc = sys::rte_eth_dev_flow_ctrl_get(self.port, conf.as_mut_ptr());
            (rc, conf.assume_init())
        };
        (rc == 0).then_some(FlowControl {
            receive: [sys::RTE_ETH_FC_RX_PAUSE, sys::RTE_ETH_FC_FULL].contains(&conf.mode),
            transmit: [sys::RTE_ETH_FC_TX_PAUSE, sys::RTE_ETH_FC_FULL].contains(&conf.mode),
            autoneg: conf.autoneg != 0,
        })
    }

    /// What it does in place of software.
    #[inline]
    pub fn offloads(&self) -> &Offloads {
        &self.offloads
    }

    /// Receive queues in use.
    pub fn rx_queues(&self) -> u16 {
        self.rx_queues
    }

    /// Transmit queues in use.
    pub fn tx_queues(&self) -> u16 {
        self.tx_queues
    }

    /// The payload size it is set to, in bytes: behind the Ethernet header and up to two VLAN tags.
    pub fn mtu(&self) -> u16 {
        self.mtu
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

    /// Takes frames off receive queue `queue`, up to `out`'s capacity. One thread a queue at a time. A long frame may
    /// lie in a chain of mbufs ([`Offloads::rx_chains`]).
    #[inline]
    pub fn receive<const N: usize>(&self, queue: u16, out: &mut ArrayVec<Mbuf, N>) {
        let room = out.remaining_capacity().min(usize::from(u16::MAX));
        let at = out.len();
        // SAFETY: room for that many pointers behind the present ones; Mbuf is a transparent non-null pointer, and
        // the driver writes as many as it says. The queue exists (checked by DPDK in debug builds, by callers here).
        unsafe {
            let table = out.as_mut_ptr().add(at).cast();
            let got = sys::rte_eth_rx_burst(self.port, queue, table, room as u16);
            out.set_len(at + usize::from(got));
        }
    }

    /// Lets the driver look at a frame of several mbufs that transmit queue `queue` is to send next, and adapt its headers.
    /// False: it can't send it.
    #[cold]
    pub fn prepare(&self, queue: u16, frame: &mut Mbuf) -> bool {
        // SAFETY: an owned mbuf, of which Mbuf is a transparent pointer; the driver keeps nothing of it.
        unsafe { sys::rte_eth_tx_prepare(self.port, queue, std::ptr::from_mut(frame).cast(), 1) == 1 }
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

    /// Lets a device go that is gone or wanted back, however it was attached.
    pub fn surrender(mut self) {
        self.adopted = false;
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
        self.stop();
        if self.adopted {
            return;
        }
        // SAFETY: nobody polls the port any more: this is its last owner.
        unsafe { sys::rte_eth_dev_close(self.port) };
        // A device that is being pulled out can't be let go as long as the interrupt that says so is at work.
        let mut rc = -1;
        for _ in 0..50 {
            // SAFETY: the rte_device outlives the ethdev, and stays where it could not be removed.
            rc = unsafe { sys::rte_dev_remove(info.device) };
            if rc >= 0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        log::warn!("{}: could not be detached: {}", self.device, strerror(-rc));
    }
}

/// Bytes of two VLAN tags.
const TAGS: u16 = 8;
/// Ethernet header and check sum, as drivers add them to the MTU.
const FRAME_OVERHEAD: u16 = 18;

/// Header fields that spread flows over receive queues.
const RSS_FIELDS: u32 = (1 << 2) | (1 << 4) | (1 << 5) | (1 << 8) | (1 << 10) | (1 << 11);

fn port_by_name(device: &str) -> Option<u16> {
    let name = CString::new(device).ok()?;
    let mut port = 0;
    // SAFETY: a NUL-terminated name and a valid pointer.
    (unsafe { sys::rte_eth_dev_get_port_by_name(name.as_ptr(), &mut port) } == 0).then_some(port)
}

/// Ethernet ports that are attached now, by port id: before any was attached by [`Ethdev::attach`], those that EAL took
/// by itself, as `--vdev` and `-a` ask.
pub fn attached_devices() -> Vec<(u16, String)> {
    (0..sys::RTE_MAX_ETHPORTS as u16)
        .filter_map(|port| Some((port, name_of(port)?)))
        .collect()
}

/// The name of the device of port `port`, if there is one.
fn name_of(port: u16) -> Option<String> {
    // SAFETY: any number is a valid question.
    if unsafe { sys::rte_eth_dev_is_valid_port(port) } == 0 {
        return None;
    }
    let mut name = [0; 256];
    // SAFETY: DPDK's names have 64 bytes at most, with the terminating NUL.
    let rc = unsafe { sys::rte_eth_dev_get_name_by_port(port, name.as_mut_ptr()) };
    // SAFETY: written by DPDK or zero, so terminated.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy();
    (rc == 0).then(|| name.into_owned())
}

/// Makes EAL look for VFIO once more, if it was not loaded yet when EAL started: NICs may be bound to it since.
pub fn enable_vfio() {
    // SAFETY: NUL-terminated names; EAL keeps what it finds in memory of its own.
    unsafe {
        if sys::rte_vfio_is_enabled(c"vfio".as_ptr()) == 0 {
            // Whether it helped shows when a device is attached.
            sys::rte_vfio_enable(c"vfio".as_ptr());
        }
    }
}

/// Are devices given physical addresses, as UIO needs it?
pub fn uses_physical_addresses() -> bool {
    // SAFETY: reads EAL's configuration.
    unsafe { sys::rte_eal_iova_mode() == sys::RTE_IOVA_PA }
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
