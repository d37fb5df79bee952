//! Interfaces that the host has, as ports: `add-port br0 eth1` (`type=system`).
//!
//! DPDK's AF_PACKET driver reaches them by rings that the kernel fills and empties, so any interface will do, and the host's own
//! network stack keeps it as well.

use std::os::fd::OwnedFd;

use vswitch_common::ethdev::Link;
use vswitch_common::netdev::{self, Netdev, PacketSocket, State};

use super::kernel::check_name;
use super::{Backend, Switch};

/// Payload of the longest frame that the driver has.
pub const GREATEST_MTU: u16 = 1500;

/// An interface that the host has and a port uses.
#[derive(Debug)]
pub struct HostNetdev {
    netdev: Netdev,
    /// Another one of that name has another index.
    index: u32,
    /// By which the device reaches it, once it runs.
    sockets: Vec<PacketSocket>,
}

impl HostNetdev {
    /// Finds the interface `name`.
    ///
    /// # Errors
    /// There is none, or it can't be a port.
    pub fn find(name: &str) -> Result<HostNetdev, String> {
        check_name(name)?;
        let index = netdev::index(name).ok_or_else(|| {
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
        Ok(HostNetdev {
            netdev,
            index,
            sockets: Vec::new(),
        })
    }

    /// What DPDK is asked for. By its default, frames go past the host's queueing, and past who captures on the interface.
    pub fn devargs(&self) -> String {
        let name = self.netdev.name();
        format!("net_af_packet_{name},iface={name},qdisc_bypass=0")
    }

    /// Payload of its frames in bytes, as far as a port can take them.
    pub fn mtu(&self) -> Option<u16> {
        let mtu = u16::try_from(self.netdev.mtu()?).unwrap_or(u16::MAX);
        Some(mtu.min(GREATEST_MTU))
    }

    /// Makes it fit for a port, whose device has started and takes frames with a payload of `mtu` bytes. Returns what rings when
    /// something comes.
    pub fn make_ready(&mut self, mtu: u16) -> Vec<OwnedFd> {
        // Those of before a restart would be found with the driver's own.
        self.sockets.clear();
        self.sockets = PacketSocket::all_on(self.index);
        let name = self.netdev.name();
        if self.mtu() != Some(mtu)
            && let Err(e) = self.netdev.set_mtu(mtu)
        {
            log::warn!("{name}: MTU {mtu}: {e}");
        }
        if let Some(Err(e)) = self
            .sockets
            .iter()
            .map(PacketSocket::ignore_outgoing)
            .find(Result::is_err)
        {
            log::warn!("{name}: {e}: what the host itself sends by it comes into the switch as well");
        }
        match self.netdev.keep_frames_apart() {
            Ok(false) => {}
            Ok(true) => log::info!(
                "{name}: its receive offload is off now (GRO, LRO): a switch forwards what was sent"
            ),
            Err(e) => log::warn!(
                "{name}: its receive offload could not be switched off ({e}): frames that the kernel joins come cut"
            ),
        }
        // The device has one receive queue.
        self.sockets
            .iter()
            .take(1)
            .filter_map(|socket| socket.doorbell().ok())
            .collect()
    }

    /// Was it deleted, moved or renamed?
    pub fn is_gone(&self) -> bool {
        self.netdev.index() != Some(self.index)
    }

    /// Its index in the kernel.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Has the host switched it on?
    pub fn is_up(&self) -> bool {
        self.netdev.state() == State::Up
    }

    /// Has it a carrier? The kernel knows no more of most.
    pub fn link(&self) -> Link {
        // Else who sleeps on it would not sleep any more.
        self.sockets.iter().for_each(PacketSocket::clear_error);
        Link {
            up: self.netdev.has_carrier(),
            full_duplex: true,
            speed: None,
        }
    }
}

impl Switch {
    /// Names of ports that are interfaces of the host, and are so no more.
    fn lost_netdevs(&self) -> Vec<String> {
        let is_lost = |backend: &Backend| matches!(backend, Backend::Ethdev { netdev: Some(netdev), .. } if netdev.is_gone());
        let lost = self.ports.values().filter(|state| is_lost(&state.backend));
        lost.map(|state| state.name.clone()).collect()
    }

    /// Takes notice of interfaces that the host has no more.
    pub(super) fn watch_netdevs(&mut self) {
        for name in self.lost_netdevs() {
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
        let missing = HostNetdev::find("no-such-netdev").unwrap_err();
        assert!(missing.contains("no interface 'no-such-netdev'") && missing.contains("type=dpdkr"));
        assert!(HostNetdev::find("a,b").unwrap_err().contains("','"));
        assert!(
            HostNetdev::find("lo")
                .unwrap_err()
                .contains("'lo' carries no Ethernet")
        );
    }

    #[test]
    fn another_interface_of_that_name_is_another() {
        let mut lo = HostNetdev {
            netdev: Netdev::new("lo", None),
            index: netdev::index("lo").unwrap(),
            sockets: Vec::new(),
        };
        assert_eq!(lo.devargs(), "net_af_packet_lo,iface=lo,qdisc_bypass=0");
        assert!(!lo.is_gone() && lo.mtu() == Some(GREATEST_MTU));
        lo.index += 1;
        assert!(lo.is_gone());
    }
}
