//! Interfaces that the host has, as ports: `add-port br0 eth1` (`type=system`).
//!
//! DPDK's AF_PACKET driver reaches them by rings that the kernel fills and empties, so any interface will do, and the host's own
//! network stack keeps it as well.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use vswitch_common::ethdev::{FlowControl, Link, Setup};
use vswitch_common::netdev::{self, Netdev, PacketSocket, State};

use super::devices::attach;
use super::kernel::{check_name, drain};
use super::{Backend, Parts, Switch};
use crate::datapath::port::EthdevIo;

/// Payload of the longest frame that the driver has.
pub const GREATEST_MTU: u16 = 1500;
/// Bytes of the longest frame that fits a place in the driver's ring (2048 bytes, of which the kernel takes 66 for itself).
const LONGEST_FRAME: u32 = 1982;
/// Bytes that may wait behind a socket: more than its ring holds, or the driver would wait for room when that is full.
const SEND_BUFFER: usize = 2 << 20;

/// An interface that the host has and a port uses, and the device on its other side.
#[derive(Debug)]
pub struct NetdevPort {
    pub io: Arc<EthdevIo>,
    netdev: Netdev,
    /// Another interface of that name has another.
    ifindex: u32,
    seen: Seen,
    /// The driver's.
    sockets: Vec<PacketSocket>,
}

/// What the host has made of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    /// It is switched on.
    up: bool,
    carrier: bool,
    mtu: u16,
}

impl Seen {
    fn of(netdev: &Netdev) -> Seen {
        let mtu = netdev.mtu().and_then(|mtu| u16::try_from(mtu).ok());
        Seen {
            up: netdev.state() == State::Up,
            carrier: netdev.has_carrier(),
            mtu: mtu.unwrap_or(u16::MAX),
        }
    }
}

impl NetdevPort {
    /// Takes the interface `name`.
    ///
    /// # Errors
    /// Why it can't be a port: it goes into the row's `error`.
    pub fn open(name: &str, parts: &Parts) -> Result<NetdevPort, String> {
        let (netdev, ifindex) = find(name)?;
        if !PacketSocket::all_on(ifindex).is_empty() {
            return Err(format!("another port has the host's interface '{name}' already"));
        }
        let mut device = attach(&devargs(name)).map_err(|e| {
            if netdev.state() == State::Up {
                e.to_string()
            } else {
                // Linux before 6.13 refuses it.
                format!("the host's interface '{name}' is switched off: ip link set {name} up")
            }
        })?;
        let sockets = PacketSocket::all_on(ifindex);
        sockets
            .iter()
            .for_each(|socket| make_ready(socket, ifindex, name));
        keep_frames_apart(&netdev);
        let setup = Setup {
            rx_queues: 1,
            tx_queues: 1,
            rx_descriptors: 1024,
            tx_descriptors: 1024,
            mtu: GREATEST_MTU,
            // The driver would do so by the interface's flags, which stay when it is gone.
            promiscuous: false,
            doorbells: false,
            large_receive: false,
            flow_control: FlowControl::default(),
        };
        let pool = parts.ledger.pool_on(device.node());
        device.start(&setup, pool).map_err(|e| e.to_string())?;
        // From its first moment until it was made ready it took whatever passed.
        drain(&device, &parts.ledger);
        let doorbells: Vec<OwnedFd> = sockets
            .iter()
            .filter_map(|socket| socket.doorbell().ok())
            .collect();
        Ok(NetdevPort {
            // A look at an empty queue costs nothing there.
            io: Arc::new(EthdevIo::with_doorbells(device, doorbells, 0)),
            seen: Seen::of(&netdev),
            netdev,
            ifindex,
            sockets,
        })
    }

    /// Sets the payload of its frames, in bytes, if it is asked for.
    pub fn request_mtu(&mut self, asked: Option<u16>) {
        self.look();
        let Some(mtu) = asked.filter(|mtu| *mtu != self.seen.mtu) else {
            return;
        };
        if let Err(e) = self.netdev.set_mtu(mtu) {
            log::warn!("{}: MTU {mtu}: {e}", self.netdev.name());
        }
        self.look();
    }

    /// The payload of its frames, in bytes, as far as the driver goes.
    pub fn mtu(&self) -> u16 {
        self.seen.mtu.min(GREATEST_MTU)
    }

    /// Has the host switched it on?
    pub fn is_up(&self) -> bool {
        self.seen.up
    }

    /// Has it a carrier? The kernel knows no more of most.
    pub fn link(&self) -> Link {
        Link {
            up: self.seen.up && self.seen.carrier,
            full_duplex: true,
            speed: None,
        }
    }

    /// Its index in the kernel.
    pub fn ifindex(&self) -> u32 {
        self.ifindex
    }

    /// Takes notice of what the host has made of it. Says whether that is anything new.
    fn look(&mut self) -> bool {
        let seen = Seen::of(&self.netdev);
        // The next frame would pay for an error of the time when it was down.
        self.sockets.iter().for_each(PacketSocket::clear_error);
        std::mem::replace(&mut self.seen, seen) != seen
    }

    /// Was it deleted, moved or renamed?
    fn is_gone(&self) -> bool {
        self.netdev.index() != Some(self.ifindex)
    }
}

/// The interface `name` and its index.
fn find(name: &str) -> Result<(Netdev, u32), String> {
    check_name(name)?;
    let ifindex = netdev::index(name).ok_or_else(|| {
        format!(
            "the host has no interface '{name}'; for one to be made set type=internal, for a VM port type=dpdkr with \
             options:port=N (or name it ovs_dpdk_N with type=dpdk), for a NIC of DPDK's type=dpdk with \
             options:dpdk-devargs=PCI-ADDRESS"
        )
    })?;
    let netdev = Netdev::new(name, None);
    if !netdev.is_ethernet() {
        return Err(format!(
            "the host's interface '{name}' carries no Ethernet frames"
        ));
    }
    Ok((netdev, ifindex))
}

/// What DPDK is asked for. By its default, frames go past the host's queueing, and past who captures on the interface.
fn devargs(name: &str) -> String {
    format!("net_af_packet_{name},iface={name},qdisc_bypass=0")
}

/// Makes the driver's socket on interface `name` fit for a switch.
fn make_ready(socket: &PacketSocket, ifindex: u32, name: &str) {
    for (what, result) in [
        (
            "what others send by it comes in as well",
            socket.accept_received(LONGEST_FRAME),
        ),
        (
            "only frames to its own address come in",
            socket.be_promiscuous(ifindex),
        ),
        (
            "threads wait for it when it is slow",
            socket.set_send_buffer(SEND_BUFFER),
        ),
    ] {
        if let Err(e) = result {
            log::warn!("{name}: {e}: {what}");
        }
    }
}

/// A switch forwards what was sent, and not what the kernel joins; besides, that would be too long.
fn keep_frames_apart(netdev: &Netdev) {
    let name = netdev.name();
    match netdev.keep_frames_apart() {
        Ok(false) => {}
        Ok(true) => log::info!("{name}: its receive offload is off now (GRO, LRO)"),
        Err(e) => {
            log::warn!("{name}: {e}: its receive offload stays on, and frames that the kernel joins are lost")
        }
    }
}

/// What tells an interface `name` that can be had from one that can't yet: its index, and whether it is up.
pub fn presence(name: &str) -> Option<String> {
    let ifindex = netdev::index(name)?;
    let up = Netdev::new(name, None).state() == State::Up;
    Some(format!("{name} {ifindex} {up}"))
}

impl Switch {
    /// Takes notice of what the host has done to its interfaces that are ports.
    pub(super) fn watch_netdevs(&mut self) {
        let (mut gone, mut down, mut changed) = (Vec::new(), Vec::new(), false);
        for state in self.ports.values_mut() {
            let Backend::Netdev { index, port } = &mut state.backend else {
                continue;
            };
            let before = port.seen;
            if port.is_gone() {
                gone.push(state.name.clone());
            } else if port.look() {
                changed = true;
                let now = port.seen;
                if (now.up, now.carrier) != (before.up, before.carrier) {
                    log::info!(
                        "{}: link {}",
                        state.name,
                        if port.link().up { "up" } else { "down" }
                    );
                }
                down.extend((before.up && !now.up).then_some(*index));
            }
        }
        if changed {
            self.publish();
        }
        down.into_iter().for_each(|index| self.flush_learned(index));
        for name in gone {
            let why = "the host has this interface no more; it is taken again when it is back";
            log::warn!("{name}: {why}");
            self.discard(&name, why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_no_port_is_named() {
        let fault = |name| find(name).unwrap_err();
        let missing = fault("no-such-netdev");
        assert!(missing.contains("no interface 'no-such-netdev'") && missing.contains("type=dpdkr"));
        assert!(fault("a,b").contains("','"));
        assert!(fault("lo").contains("'lo' carries no Ethernet"));
    }

    #[test]
    fn another_interface_or_one_that_is_switched_on_is_something_new() {
        let ifindex = netdev::index("lo").unwrap();
        let lo = presence("lo").unwrap();
        assert!([format!("lo {ifindex} true"), format!("lo {ifindex} false")].contains(&lo));
        assert_eq!(presence("no-such-netdev"), None);
    }
}
