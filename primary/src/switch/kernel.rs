//! Ports to the host kernel: `type=internal` (a bridge's own port is one), `type=tap`, `ovs_dpdk_32` to `ovs_dpdk_47`.
//!
//! Each is an interface in the kernel with the port's name and address, which is there as long as the port, and down
//! until the host switches it on. While it is down the datapath has nothing to do with it.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use vswitch_common::ethdev::{Ethdev, EthdevError, FlowControl, Info, Setup};
use vswitch_common::mbuf::Mbuf;
use vswitch_common::netdev::{self, Netdev, State, TUN_DEVICE};
use vswitch_control::MacAddr;

use super::devices::attach;
use super::{Backend, Parts, Switch};
use crate::datapath::BURST;
use crate::datapath::ledger::Ledger;
use crate::datapath::port::{EthdevIo, PortIndex};

const VHOST_DEVICE: &str = "/dev/vhost-net";
/// Between looks at a TAP queue that was empty: each look is a system call.
const TAP_GAP: Duration = Duration::from_micros(20);

/// How frames get into the kernel and out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// DPDK's virtio-user on vhost-net: a thread of the kernel moves them, many at a time.
    VhostNet,
    /// DPDK's TAP driver: a system call for each.
    Tap,
}

/// The interface to make.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub name: &'a str,
    pub mac: MacAddr,
    /// Bytes of payload.
    pub mtu: u16,
    /// Receive queues, and as many to transmit by.
    pub queues: u16,
}

impl Via {
    /// The ways to try, best first, on a host with or without vhost-net.
    fn candidates(vhost_net: bool) -> &'static [Via] {
        if vhost_net {
            &[Via::VhostNet, Via::Tap]
        } else {
            &[Via::Tap]
        }
    }

    /// As shown in the row's `status:backend`.
    pub fn name(self) -> &'static str {
        match self {
            Via::VhostNet => "vhost-net",
            Via::Tap => "tap",
        }
    }

    /// What DPDK is asked for, for the port with datapath index `index`.
    fn devargs(self, index: PortIndex, request: &Request<'_>) -> String {
        let Request {
            name, mac, queues, ..
        } = request;
        match self {
            Via::VhostNet => format!(
                "net_virtio_user_host{index},path={VHOST_DEVICE},iface={name},mac={mac},queues={queues},queue_size={}",
                self.descriptors()
            ),
            Via::Tap => format!("net_tap_host{index},iface={name},mac={mac}"),
        }
    }

    /// Per queue. The TAP driver's are the segments that one frame may have, not frames.
    fn descriptors(self) -> u16 {
        match self {
            Via::VhostNet => 1024,
            Via::Tap => 1,
        }
    }
}

/// Where the kernel tells that an interface was switched on or deleted.
#[derive(Debug)]
pub struct Watch(Epoll);

impl Watch {
    /// One that watches nothing.
    ///
    /// # Errors
    /// The process is out of file descriptors.
    pub fn new() -> nix::Result<Watch> {
        Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map(Watch)
    }

    /// Until the interface is gone.
    fn add(&self, queue: BorrowedFd<'_>) -> nix::Result<()> {
        let changes = EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        self.0.add(queue, EpollEvent::new(changes, 0))
    }

    /// Takes what has been told so far; was there anything?
    fn take(&self) -> bool {
        let mut events = [EpollEvent::empty(); 16];
        matches!(self.0.wait(&mut events, EpollTimeout::ZERO), Ok(1..))
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

/// A port's interface in the kernel, and the device on its other side.
#[derive(Debug)]
pub struct KernelPort {
    pub io: Arc<EthdevIo>,
    pub netdev: Netdev,
    pub via: Via,
    pub state: State,
    /// Bytes of payload, as far as the driver goes: it gives up a whole burst for one frame that is longer.
    pub mtu: u16,
    /// Why it has not the MTU that was asked for last.
    pub mtu_fault: Option<String>,
    /// The address as configured; the host may have set another.
    mac: MacAddr,
}

impl KernelPort {
    /// Makes the interface, switched off.
    ///
    /// # Errors
    /// Why it can't be made and what to do about it: it goes into the row's `error`.
    pub fn create(request: &Request<'_>, index: PortIndex, parts: &Parts) -> Result<KernelPort, String> {
        check_name(request.name)?;
        if netdev::index(request.name).is_some() {
            return Err(taken(request.name));
        }
        if request.mac.0[0] & 1 != 0 {
            return Err(format!(
                "{} is a group address, which no interface can have",
                request.mac
            ));
        }
        let mut fault = String::new();
        for &via in Via::candidates(opens(VHOST_DEVICE)) {
            match Self::start(via, request, index, parts) {
                Ok(port) => return Ok(port),
                Err(e) => {
                    log::debug!("{} by {}: {e}", request.name, via.name());
                    fault = e.to_string();
                }
            }
        }
        Err(match netdev::try_tap(request.name) {
            Err(e) => explain(request.name, &e),
            Ok(()) => fault,
        })
    }

    fn start(
        via: Via,
        request: &Request<'_>,
        index: PortIndex,
        parts: &Parts,
    ) -> Result<KernelPort, EthdevError> {
        let mut device = attach(&via.devargs(index, request))?;
        let mtu = request.mtu.min(largest_mtu(&device.info()?));
        let setup = Setup {
            rx_queues: request.queues,
            tx_queues: request.queues,
            rx_descriptors: via.descriptors(),
            tx_descriptors: via.descriptors(),
            mtu,
            promiscuous: false,
            doorbells: via == Via::Tap,
            large_receive: false,
            flow_control: FlowControl::default(),
        };
        device.start(&setup, parts.ledger.pool_on(device.node()))?;
        let io = match via {
            Via::VhostNet => EthdevIo::new(device),
            Via::Tap => {
                let doorbells: Vec<OwnedFd> = (0..device.rx_queues())
                    .filter_map(|q| device.doorbell(q))
                    .collect();
                EthdevIo::with_doorbells(device, doorbells, parts.clock.ticks(TAP_GAP))
            }
        };
        let queue = match io.doorbell(0) {
            Some(fd) => fd.try_clone_to_owned().ok(),
            None => netdev::open_queue(request.name),
        };
        let port = KernelPort {
            io: Arc::new(io),
            netdev: Netdev::new(request.name, queue),
            via,
            state: State::Down,
            mtu,
            mtu_fault: None,
            mac: request.mac,
        };
        port.switch_off(parts);
        if let Err(e) = port.netdev.set_mtu(mtu) {
            log::warn!("{}: MTU {mtu}: {e}", request.name);
        }
        if let Some(queue) = port.netdev.queue()
            && let Err(e) = parts.watch.add(queue)
        {
            log::warn!("{}: {e}; its state is looked at once a second", request.name);
        }
        Ok(port)
    }

    /// The TAP driver switches its interface on, and the kernel may have had something to say at once.
    fn switch_off(&self, parts: &Parts) {
        if let Err(e) = self.netdev.set_down() {
            log::warn!("{}: could not be switched off: {e}", self.netdev.name());
        }
        drain(&self.io.device, &parts.ledger);
    }

    /// Sets another MTU, as far as the driver goes.
    pub fn set_mtu(&mut self, asked: u16) {
        let most = self.io.device.info().map_or(asked, |info| largest_mtu(&info));
        let mtu = asked.min(most);
        if mtu < asked {
            log::warn!("{}: mtu_request {asked} is more than {most}", self.netdev.name());
        }
        // By its name: one that was moved to another namespace is out of reach, and what the switch sends there stays as it is.
        let refused = self.netdev.set_mtu(mtu).err().filter(|_| mtu != self.mtu);
        self.mtu_fault = refused.map(|e| {
            format!(
                "mtu_request={mtu}: {e}; an interface in another network namespace has its MTU from there, and gets frames for {} \
                 from the switch",
                self.mtu
            )
        });
        if let Some(fault) = &self.mtu_fault {
            log::warn!("{}: {fault}", self.netdev.name());
            return;
        }
        if let Err(e) = self.io.device.set_mtu(mtu) {
            log::warn!("{e}");
        }
        self.mtu = mtu;
    }

    /// Gives it another address if another is configured now.
    pub fn set_mac(&mut self, mac: MacAddr) {
        if self.mac == mac {
            return;
        }
        if let Err(e) = self.netdev.set_mac(mac.0) {
            log::warn!("{}: address {mac}: {e}", self.netdev.name());
        }
        self.mac = mac;
    }
}

impl Switch {
    /// What is readable when an interface was switched on or deleted: call [`Switch::kernel_event`] then.
    pub fn kernel_events(&self) -> BorrowedFd<'_> {
        self.parts.watch.as_fd()
    }

    /// Takes notice of what the kernel tells, if anything. Says whether something has changed.
    pub fn kernel_event(&mut self) -> bool {
        self.parts.watch.take() && self.watch_kernel_ports()
    }

    /// Takes notice of what the host has done to its interfaces. Says whether that was anything.
    pub(super) fn watch_kernel_ports(&mut self) -> bool {
        let mut changed = Vec::new();
        for state in self.ports.values_mut() {
            let Backend::Kernel { index, port } = &mut state.backend else {
                continue;
            };
            let seen = port.netdev.state();
            if port.state != seen {
                log::info!("{}: its interface is {}", state.name, describe(seen));
                port.state = seen;
                changed.push((state.name.clone(), *index, seen));
            }
        }
        if !changed.is_empty() {
            self.publish();
        }
        for (name, index, seen) in &changed {
            match seen {
                State::Up => {}
                State::Down => self.flush_learned(*index),
                State::Gone => self.discard(
                    name,
                    "its interface was deleted from the kernel; the next change of the configuration makes it again",
                ),
            }
        }
        !changed.is_empty()
    }
}

/// Throws away what a device has received that no thread polls yet.
pub(super) fn drain(device: &Ethdev, ledger: &Ledger) {
    let mut frames = ArrayVec::<Mbuf, BURST>::new();
    for queue in 0..device.rx_queues() {
        loop {
            device.receive(queue, &mut frames);
            if frames.is_empty() {
                break;
            }
            ledger.free_all(&mut frames);
        }
    }
}

fn describe(state: State) -> &'static str {
    match state {
        State::Up => "up",
        State::Down => "down",
        State::Gone => "gone",
    }
}

/// Why DPDK did not take a kernel interface by `devargs`, where that can be told and its own `error` can't.
pub fn explain_devargs(devargs: &str, error: EthdevError) -> String {
    let mut words = devargs.split(',');
    let device = words.next().unwrap_or_default();
    let xdp = device.starts_with("net_af_xdp");
    if !xdp && !device.starts_with("net_af_packet") {
        return error.to_string();
    }
    match words.find_map(|word| word.strip_prefix("iface=")) {
        None => format!("'{device}' is missing the name of an interface: {device},iface=NAME"),
        Some(name) if netdev::index(name).is_none() => {
            format!("'{device}': the host has no interface '{name}'")
        }
        Some(name) if xdp => format!(
            "{error}; for '{name}' by AF_XDP the kernel needs CONFIG_XDP_SOCKETS and the driver must know XDP, DPDK its \
             driver net_af_xdp; net_af_packet0,iface={name} needs neither"
        ),
        Some(_) => error.to_string(),
    }
}

/// What the driver takes, as DPDK counts it: with Ethernet header and checksum.
fn largest_mtu(info: &Info) -> u16 {
    u16::try_from(info.max_rx_packet.saturating_sub(18)).unwrap_or(u16::MAX)
}

fn opens(device: &str) -> bool {
    OpenOptions::new().read(true).write(true).open(device).is_ok()
}

/// Can an interface have this name? The kernel's rules, and those of DPDK's device arguments.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    if name.len() > netdev::MAX_NAME {
        return Err(format!(
            "'{name}' is too long for an interface of the kernel, which has {} bytes at most",
            netdev::MAX_NAME
        ));
    }
    let bad = |c: char| c.is_whitespace() || c.is_control() || "/:%,=[]".contains(c);
    match name.chars().find(|&c| bad(c)) {
        Some(c) => Err(format!("an interface of the kernel can't have {c:?} in its name")),
        None if matches!(name, "" | "." | "..") => Err(format!("'{name}' is no name for an interface")),
        None => Ok(()),
    }
}

fn taken(name: &str) -> String {
    format!("the host has an interface '{name}' already; give that or this port another name")
}

/// Why the kernel made no interface, in words for the user.
fn explain(name: &str, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => format!(
            "no right to make the interface '{name}' ({error}): the switch needs CAP_NET_ADMIN and read and write access \
             to {TUN_DEVICE}"
        ),
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => format!(
            "{TUN_DEVICE} is missing ({error}); load the kernel's module (modprobe tun), in a container pass the device in"
        ),
        Some(libc::EBUSY | libc::EINVAL | libc::EEXIST) => taken(name),
        _ => format!("the kernel made no interface '{name}': {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vhost_net_goes_first_where_there_is_one() {
        assert_eq!(Via::candidates(true), [Via::VhostNet, Via::Tap]);
        assert_eq!(Via::candidates(false), [Via::Tap]);
    }

    #[test]
    fn each_driver_is_asked_in_its_own_words() {
        let request = Request {
            name: "br0",
            mac: MacAddr([2, 0, 0, 0, 0, 0x1f]),
            mtu: 1500,
            queues: 2,
        };
        assert_eq!(
            Via::VhostNet.devargs(7, &request),
            "net_virtio_user_host7,path=/dev/vhost-net,iface=br0,mac=02:00:00:00:00:1f,queues=2,queue_size=1024"
        );
        assert_eq!(
            Via::Tap.devargs(7, &request),
            "net_tap_host7,iface=br0,mac=02:00:00:00:00:1f"
        );
    }

    #[test]
    fn names_that_the_kernel_or_dpdk_would_misread_are_refused() {
        for good in ["br0", "ovs_dpdk_32", "exactly15bytes_", "ä"] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        assert!(check_name("sixteen_bytes_xx").unwrap_err().contains("15"));
        for bad in ["", ".", "..", "a/b", "a:b", "tap%d", "a,b", "a=b", "a b", "a\n"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn each_fault_says_what_to_do() {
        let text = |code| explain("x", &io::Error::from_raw_os_error(code));
        assert!(text(libc::EPERM).contains("CAP_NET_ADMIN"));
        assert!(text(libc::ENOENT).contains("modprobe tun"));
        assert!(text(libc::EBUSY).contains("'x' already"));
        assert!(text(libc::ENOMEM).contains("'x'"));
    }
}
