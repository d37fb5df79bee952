//! What a Port row and its Interface row ask for, with the defaults of Open vSwitch (ovs-vswitchd.conf.db(5)).

use std::collections::BTreeMap;

use vswitch_common::mbuf::DATA_ROOM;
use vswitch_control::MacAddr;
use vswitch_control::config::{BridgeConfig, InterfaceConfig, PortConfig, VlanMode};

use super::bridges::interface_mac;
use super::kind::Kind;
use super::{limits, netdevs, unsupported};
use crate::datapath::limit::Limits;
use crate::datapath::port::FRAME_OVERHEAD;
use crate::datapath::vlan::VlanPolicy;
use crate::rxq::settings;

/// Payload of a frame by default, in bytes.
pub(super) const DEFAULT_MTU: u16 = 1500;
/// Smallest payload that may be asked for, in bytes: that of RFC 791.
const LEAST_MTU: u16 = 68;
/// Largest payload that may be asked for; a device's driver may take less.
const MAX_MTU: u16 = 16_000;
/// The same for interfaces of the host kernel: what an mbuf holds.
const MAX_KERNEL_MTU: u16 = (DATA_ROOM - FRAME_OVERHEAD) as u16;

/// An interface as the database wants it, with the rows it hangs on.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    pub bridge: &'a BridgeConfig,
    pub port: &'a PortConfig,
    pub interface: &'a InterfaceConfig,
}

/// What is configured of a port.
#[derive(Debug)]
pub struct Settings {
    /// What it is, or why that can't be.
    pub kind: Result<Kind, String>,
    pub vlan: VlanPolicy,
    /// Payload of a frame, where it is asked for, in bytes.
    pub mtu_request: Option<u16>,
    pub mac: Option<MacAddr>,
    pub limits: Limits,
    /// The CPUs that receive queues are pinned to.
    pub affinity: BTreeMap<u16, usize>,
    /// Its client is to poll when idle.
    pub busy_poll: bool,
    /// What is wrong in the rows or has no effect, though the port works.
    pub complaints: Vec<String>,
}

impl Settings {
    /// Payload of a frame, in bytes.
    pub fn mtu(&self) -> u16 {
        self.mtu_request.unwrap_or(DEFAULT_MTU)
    }
}

impl Wanted<'_> {
    /// Reads the rows. Where something in them is wrong the default counts.
    pub fn settings(&self) -> Settings {
        let mut complaints = Vec::new();
        let kind = self.kind();
        complaints.extend(self.idle_trunks());
        let mtu_request = noted(self.mtu(&kind), &mut complaints).flatten();
        let mac = noted(self.mac(&kind), &mut complaints).flatten();
        let (limits, unlimited) = limits::of(self.interface);
        complaints.extend(unlimited);
        let affinity = settings::affinity(&self.interface.other_config);
        let affinity = noted(affinity, &mut complaints).unwrap_or_default();
        let mut busy_poll = false;
        if let Ok(kind) = &kind {
            busy_poll = noted(kind.busy_poll(self.interface), &mut complaints).unwrap_or_default();
            complaints.extend(kind.unfit_options(self.interface));
        }
        complaints.extend(unsupported(
            &[&self.port.unsupported[..], &self.interface.unsupported].concat(),
        ));
        Settings {
            kind,
            vlan: self.vlan(),
            mtu_request,
            mac,
            limits,
            affinity,
            busy_poll,
            complaints,
        }
    }

    /// What it is.
    ///
    /// # Errors
    /// What is wrong with the rows and how to put it right.
    pub fn kind(&self) -> Result<Kind, String> {
        if self.port.interfaces.len() > 1 {
            return Err(format!(
                "port {} has several interfaces; bonding is not supported",
                self.port.name
            ));
        }
        if self.port.vlan_mode == Some(VlanMode::Dot1qTunnel) {
            return Err("vlan_mode=dot1q-tunnel is not supported".into());
        }
        Kind::of(self.interface, &self.bridge.name)
    }

    /// Does it ask for a number on its bridge?
    pub fn asks_for_a_number(&self) -> bool {
        self.interface.ofport_request.is_some() || Kind::preferred_ofport(&self.interface.name).is_some()
    }

    fn mac(&self, kind: &Result<Kind, String>) -> Result<Option<MacAddr>, String> {
        let Some(text) = &self.interface.mac else {
            return Ok(None);
        };
        match kind {
            Ok(Kind::Kernel { .. }) => interface_mac(text)
                .map(Some)
                .ok_or_else(|| format!("mac={text} is not the address of an interface; the default is used")),
            Ok(Kind::Local) => {
                Err("mac has no effect on a bridge's own port; set the bridge's other_config:hwaddr".into())
            }
            Ok(Kind::Client { .. }) => {
                Err("mac has no effect on a VM port; QEMU gives a VM its address".into())
            }
            Ok(Kind::Ethdev { .. } | Kind::Netdev) => {
                Err("mac has no effect on a NIC or an interface of the host".into())
            }
            Err(_) => Ok(None),
        }
    }

    fn mtu(&self, kind: &Result<Kind, String>) -> Result<Option<u16>, String> {
        let Some(asked) = self.interface.mtu_request else {
            return Ok(None);
        };
        let greatest = match kind {
            Ok(Kind::Local | Kind::Kernel { .. }) => MAX_KERNEL_MTU,
            Ok(Kind::Netdev) => netdevs::GREATEST_MTU,
            _ => MAX_MTU,
        };
        let possible = u16::try_from(asked)
            .ok()
            .filter(|mtu| (LEAST_MTU..=greatest).contains(mtu));
        possible.map(Some).ok_or_else(|| {
            format!("mtu_request={asked} is not within {LEAST_MTU} to {greatest}; the default is used")
        })
    }

    /// Names trunks that an access port has, and carries not.
    fn idle_trunks(&self) -> Option<String> {
        let access = match self.port.vlan_mode {
            Some(mode) => mode == VlanMode::Access,
            None => self.port.tag.is_some(),
        };
        (access && !self.port.trunks.is_empty()).then(|| {
            "trunks of the port have no effect: it is an access port by its tag or vlan_mode; for one that carries VLANs \
             set vlan_mode=trunk, native-tagged or native-untagged"
                .to_owned()
        })
    }

    fn vlan(&self) -> VlanPolicy {
        let tag = self.port.tag.unwrap_or(0);
        let trunks = &self.port.trunks;
        match self.port.vlan_mode {
            Some(VlanMode::NativeTagged) => VlanPolicy::native(tag, trunks, true),
            Some(VlanMode::NativeUntagged) => VlanPolicy::native(tag, trunks, false),
            Some(VlanMode::Trunk) => VlanPolicy::trunk(trunks),
            Some(VlanMode::Access) => VlanPolicy::access(tag),
            Some(VlanMode::Dot1qTunnel) | None if self.port.tag.is_some() => VlanPolicy::access(tag),
            Some(VlanMode::Dot1qTunnel) | None => VlanPolicy::trunk(trunks),
        }
    }
}

/// The value; an error goes to `complaints`.
fn noted<T>(value: Result<T, String>, complaints: &mut Vec<String>) -> Option<T> {
    value.map_err(|text| complaints.push(text)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a VM port asks for whose rows are changed by `change`.
    fn of(change: impl FnOnce(&mut PortConfig, &mut InterfaceConfig)) -> Settings {
        of_type("dpdkr", change)
    }

    fn of_type(kind: &str, change: impl FnOnce(&mut PortConfig, &mut InterfaceConfig)) -> Settings {
        let mut port = PortConfig::default();
        let mut interface = InterfaceConfig {
            name: "dpdkr1".into(),
            kind: kind.into(),
            ..InterfaceConfig::default()
        };
        change(&mut port, &mut interface);
        let bridge = BridgeConfig::default();
        let wanted = Wanted {
            bridge: &bridge,
            port: &port,
            interface: &interface,
        };
        wanted.settings()
    }

    #[test]
    fn a_port_is_as_its_rows_say() {
        let plain = of(|_, _| {});
        assert_eq!(plain.kind, Ok(Kind::Client { port: 1 }));
        assert_eq!((plain.mtu(), plain.mac, plain.busy_poll), (1500, None, false));
        assert_eq!(plain.vlan, VlanPolicy::trunk(&[]));
        let asked = of(|port, interface| {
            port.tag = Some(7);
            interface.mtu_request = Some(9000);
            interface.options.insert("busy-poll".into(), "true".into());
        });
        assert_eq!((asked.mtu(), asked.busy_poll), (9000, true));
        assert_eq!(asked.vlan, VlanPolicy::access(7));
        assert!(plain.complaints.is_empty() && asked.complaints.is_empty());
    }

    #[test]
    fn an_address_is_for_ports_to_the_kernel() {
        let of = |mac: &str| of_type("internal", |_, interface| interface.mac = Some(mac.into()));
        let good = of("02:00:00:00:00:09");
        let mac = MacAddr([2, 0, 0, 0, 0, 9]);
        assert_eq!((good.mac, good.complaints), (Some(mac), Vec::new()));
        for wrong in ["nonsense", "01:00:00:00:00:01", "00:00:00:00:00:00"] {
            let text = format!("mac={wrong} is not the address of an interface; the default is used");
            let asked = of(wrong);
            assert_eq!((asked.mac, asked.complaints), (None, vec![text]));
        }
    }

    #[test]
    fn what_is_wrong_or_without_effect_is_named_and_the_default_counts() {
        type Change = fn(&mut PortConfig, &mut InterfaceConfig);
        let cases: [(&str, Change); 7] = [
            ("mtu_request=67 is not within 68 to 16000", |_, i| {
                i.mtu_request = Some(67)
            }),
            ("mtu_request=70000 is not", |_, i| i.mtu_request = Some(70_000)),
            ("mac has no effect on a VM port", |_, i| {
                i.mac = Some("02:00:00:00:00:09".into());
            }),
            ("trunks of the port have no effect", |p, _| {
                (p.tag, p.trunks) = (Some(1), vec![2])
            }),
            ("options:busy-poll=yes is neither", |_, i| {
                i.options.insert("busy-poll".into(), "yes".into());
            }),
            ("options:mtu has no effect", |_, i| {
                i.options.insert("mtu".into(), "9000".into());
            }),
            ("not supported and without effect: protected, qos, bfd", |p, i| {
                p.unsupported = vec!["protected", "qos"];
                i.unsupported = vec!["bfd"];
            }),
        ];
        for (text, change) in cases {
            let asked = of(change);
            let [complaint] = &asked.complaints[..] else {
                panic!("{text}: {:?}", asked.complaints)
            };
            assert!(complaint.starts_with(text), "{complaint}");
            assert_eq!((asked.mtu(), asked.mac, asked.busy_poll), (1500, None, false));
            assert_eq!(asked.kind, Ok(Kind::Client { port: 1 }));
        }
    }
}
