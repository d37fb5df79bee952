//! What an Interface row asks for: which kind of port, by its type, name and options.

use vswitch_common::ethdev::{FlowControl, Setup};
use vswitch_control::config::InterfaceConfig;

use super::Backend;
use super::pci;

/// A kind of port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// The bridge's own port, to the host kernel.
    Local,
    /// Another port to the host kernel. An error names a value that can't be.
    Kernel { queues: Result<u16, String> },
    /// An interface that the host has.
    Netdev,
    /// A client ring port, QEMU's `port=N`.
    Client { port: u16 },
    /// A NIC or vdev. An error names a value that can't be.
    Ethdev {
        device: DeviceName,
        options: Result<DeviceOptions, String>,
    },
}

/// Which device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceName {
    /// As DPDK names it: a PCI address in full or a vdev, with the driver's arguments behind commas.
    Devargs(String),
    /// By DPDK's port id (historic ports 16 to 31).
    Number(u16),
}

/// How it is to be set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceOptions {
    pub rx_queues: u16,
    pub tx_queues: u16,
    pub rx_descriptors: u16,
    pub tx_descriptors: u16,
    pub flow_control: FlowControl,
}

impl DeviceOptions {
    fn of(interface: &InterfaceConfig) -> Result<DeviceOptions, String> {
        Ok(DeviceOptions {
            rx_queues: number(interface, "n_rxq", 1, 1..=64)?,
            tx_queues: number(interface, "n_txq", 1, 1..=64)?,
            rx_descriptors: number(interface, "n_rxq_desc", 1024, 64..=4096)?,
            tx_descriptors: number(interface, "n_txq_desc", 1024, 64..=4096)?,
            flow_control: FlowControl {
                receive: switch(interface, "rx-flow-ctrl")?,
                transmit: switch(interface, "tx-flow-ctrl")?,
                autoneg: switch(interface, "flow-ctrl-autoneg")?,
            },
        })
    }

    /// For a payload of `mtu` bytes.
    pub fn setup(&self, mtu: u16) -> Setup {
        Setup {
            rx_queues: self.rx_queues,
            tx_queues: self.tx_queues,
            rx_descriptors: self.rx_descriptors,
            tx_descriptors: self.tx_descriptors,
            mtu,
            promiscuous: true,
            doorbells: false,
            large_receive: false,
            flow_control: self.flow_control,
        }
    }
}

/// The options that a NIC or vdev takes.
const DEVICE_OPTIONS: &[&str] = &[
    "dpdk-devargs",
    "n_rxq",
    "n_txq",
    "n_rxq_desc",
    "n_txq_desc",
    "rx-flow-ctrl",
    "tx-flow-ctrl",
    "flow-ctrl-autoneg",
];

/// Number of the historic name `ovs_dpdk_N`.
fn historic(name: &str) -> Option<u16> {
    numbered(name, "ovs_dpdk_")
}

/// N of the name `PREFIXN`, written as numbers are: 1, and not 01 or +1.
fn numbered(name: &str, prefix: &str) -> Option<u16> {
    let digits = name.strip_prefix(prefix)?;
    digits.parse().ok().filter(|n: &u16| n.to_string() == digits)
}

impl Kind {
    /// Reads `interface`, which belongs to bridge `bridge`.
    ///
    /// # Errors
    /// What is wrong with the row and how to put it right: it goes into the row's `error`.
    pub fn of(interface: &InterfaceConfig, bridge: &str) -> Result<Kind, String> {
        let name = interface.name.as_str();
        if name == bridge {
            return Ok(Kind::Local);
        }
        match interface.kind.as_str() {
            "dpdk" => match interface.options.get("dpdk-devargs") {
                Some(devargs) if devargs.is_empty() => Err("options:dpdk-devargs is empty".into()),
                Some(devargs) => Ok(Kind::Ethdev {
                    device: DeviceName::Devargs(in_full(devargs)),
                    options: DeviceOptions::of(interface),
                }),
                None => Self::historic(interface),
            },
            "dpdkr" => {
                let port = match interface.options.get("port") {
                    Some(_) => number(interface, "port", 0, 0..=u16::MAX)?,
                    None => numbered(name, "dpdkr")
                        .ok_or("which ring port? Set options:port=N, or name the interface dpdkrN")?,
                };
                Ok(Kind::Client { port })
            }
            "internal" | "tap" => Ok(Self::kernel(interface)),
            "" | "system" => Ok(Kind::Netdev),
            other => {
                let instead = match other {
                    "dpdkvhostuser" | "dpdkvhostuserclient" => {
                        "; for a VM use type=dpdkr with options:port=N, and dpdk-qemu-shim --port N --socket PATH or \
                         QEMU's -netdev dpdk,port=N"
                    }
                    "patch" => ": bridges can't be joined; use one bridge and VLANs",
                    _ => "",
                };
                Err(format!("interface type '{other}' is not supported{instead}"))
            }
        }
    }

    fn kernel(interface: &InterfaceConfig) -> Kind {
        Kind::Kernel {
            queues: number(interface, "n_rxq", 1, 1..=16),
        }
    }

    /// Do both stand for the same thing, however it is set up?
    pub fn is_same_place(&self, other: &Kind) -> bool {
        match (self, other) {
            (Kind::Ethdev { device, .. }, Kind::Ethdev { device: other, .. }) => device == other,
            (Kind::Kernel { .. }, Kind::Kernel { .. }) => true,
            _ => self == other,
        }
    }

    fn historic(interface: &InterfaceConfig) -> Result<Kind, String> {
        let name = interface.name.as_str();
        match historic(name) {
            Some(port @ 1..=15) => Ok(Kind::Client { port }),
            Some(port @ 16..=31) => Ok(Kind::Ethdev {
                device: DeviceName::Number(port - 16),
                options: DeviceOptions::of(interface),
            }),
            Some(32..=47) => Ok(Self::kernel(interface)),
            Some(n) => Err(format!(
                "'{name}': {n} is no port of the historic scheme (1-15 clients, 16-31 NICs, 32-47 host kernel); set \
                 options:dpdk-devargs for a NIC, type=dpdkr for more client ports, or type=internal for the host"
            )),
            None => Err(format!(
                "'{name}' is missing options:dpdk-devargs. The old 'dpdk<port_id>' names are not supported"
            )),
        }
    }

    /// Is it DPDK's port `number`, whichever that is?
    pub fn is_numbered(&self, number: u16) -> bool {
        matches!(self, Kind::Ethdev { device: DeviceName::Number(n), .. } if *n == number)
    }

    /// What can't be had of `asked` while a port of this kind, which is in the same place, works.
    pub fn cannot_become(&self, asked: &Kind) -> Option<String> {
        match (self, asked) {
            (Kind::Kernel { queues: Ok(has) }, Kind::Kernel { queues: Ok(asked) }) if has != asked => {
                Some(format!(
                    "options:n_rxq={asked}: it was made with {has}, and stays so; with del-port and add-port it is made anew, without its addresses"
                ))
            }
            (_, Kind::Kernel { queues: Err(e) } | Kind::Ethdev { options: Err(e), .. }) => {
                Some(format!("{e}; it stays as it is"))
            }
            _ => None,
        }
    }

    /// What a port of this kind is when it can't be set up. A bridge's own is still there: the bridge goes by it.
    pub fn without_backend(&self, reason: String) -> Backend {
        match self {
            Kind::Local => Backend::Local(reason),
            _ => Backend::Failed(reason),
        }
    }

    /// Is the client of a port of this kind to poll when it is idle? What is wrong with the row otherwise.
    pub fn busy_poll(&self, interface: &InterfaceConfig) -> Result<bool, String> {
        match self {
            Kind::Client { .. } => {
                switch(interface, "busy-poll").map_err(|e| format!("{e}; its client sleeps when idle"))
            }
            _ => Ok(false),
        }
    }

    /// What a port of this kind is called, and the options that it takes.
    fn options(&self, interface: &InterfaceConfig) -> (&'static str, &'static [&'static str]) {
        match self {
            Kind::Local => ("a bridge's own port", &[]),
            Kind::Kernel { .. } => ("a port to the host kernel", &["n_rxq"]),
            Kind::Client { .. } if interface.kind == "dpdkr" => ("a VM port", &["port", "busy-poll"]),
            Kind::Client { .. } => ("a VM port with a historic name", &["busy-poll"]),
            Kind::Netdev => ("an interface of the host", &[]),
            Kind::Ethdev { .. } => ("a NIC", DEVICE_OPTIONS),
        }
    }

    /// Names the options of `interface` that a port of this kind does not take, if there are any. One that is `false`
    /// asks for nothing.
    pub fn unfit_options(&self, interface: &InterfaceConfig) -> Option<String> {
        let (what, takes) = self.options(interface);
        let unfit = interface
            .options
            .iter()
            .filter(|(option, value)| !takes.contains(&option.as_str()) && *value != "false");
        let named = unfit.map(|(option, _)| match (option.as_str(), self) {
            ("busy-poll", _) => {
                "options:busy-poll is for VM ports, and keeps their shims from sleeping; to keep the PMD threads from it, \
                 which poll this port, set other_config:pmd-sleep-max=0 in Open_vSwitch"
                    .to_owned()
            }
            ("n_rxq" | "n_txq", Kind::Client { .. }) => format!(
                "options:{option} has no effect on {what}, which has as many queues as its VM asks for (queues= of QEMU's \
                 -netdev)"
            ),
            _ if takes.is_empty() => format!("options:{option} has no effect on {what}, which takes no options"),
            _ => format!(
                "options:{option} has no effect on {what}, which takes {}",
                takes.join(", ")
            ),
        });
        named.reduce(|one, other| format!("{one}; {other}"))
    }

    /// The OpenFlow port number that the historic name stands for.
    pub fn preferred_ofport(name: &str) -> Option<u16> {
        historic(name).filter(|n| (1..=47).contains(n))
    }
}

/// A PCI address in front of `devargs` as DPDK writes it.
fn in_full(devargs: &str) -> String {
    let (device, arguments) = devargs.split_at(devargs.find(',').unwrap_or(devargs.len()));
    pci::address(device).map_or_else(|| devargs.to_owned(), |address| address + arguments)
}

fn switch(interface: &InterfaceConfig, option: &str) -> Result<bool, String> {
    match interface.options.get(option).map(String::as_str) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(text) => Err(format!("options:{option}={text} is neither true nor false")),
    }
}

fn number(
    interface: &InterfaceConfig,
    option: &str,
    default: u16,
    range: std::ops::RangeInclusive<u16>,
) -> Result<u16, String> {
    let Some(text) = interface.options.get(option) else {
        return Ok(default);
    };
    text.parse().ok().filter(|n| range.contains(n)).ok_or_else(|| {
        format!(
            "options:{option}={text} is not a number from {} to {}",
            range.start(),
            range.end()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(name: &str, kind: &str, options: &[(&str, &str)]) -> InterfaceConfig {
        InterfaceConfig {
            name: name.into(),
            kind: kind.into(),
            options: options
                .iter()
                .map(|&(k, v)| (k.to_owned(), v.to_owned()))
                .collect(),
            ..Default::default()
        }
    }

    fn kind(name: &str, kind: &str, options: &[(&str, &str)]) -> Result<Kind, String> {
        Kind::of(&interface(name, kind, options), "br0")
    }

    #[test]
    fn historic_names_keep_their_meaning() {
        assert_eq!(kind("ovs_dpdk_2", "dpdk", &[]), Ok(Kind::Client { port: 2 }));
        assert!(matches!(
            kind("ovs_dpdk_17", "dpdk", &[("n_rxq", "2")]),
            Ok(Kind::Ethdev {
                device: DeviceName::Number(1),
                options: Ok(DeviceOptions { rx_queues: 2, .. })
            })
        ));
        for kernel in ["ovs_dpdk_32", "ovs_dpdk_47"] {
            assert_eq!(kind(kernel, "dpdk", &[]), Ok(Kind::Kernel { queues: Ok(1) }));
        }
        for bad in ["ovs_dpdk_0", "ovs_dpdk_48", "ovs_dpdk_02", "ovs_dpdk_", "dpdk0"] {
            assert!(kind(bad, "dpdk", &[]).is_err(), "{bad}");
        }
        assert_eq!(Kind::preferred_ofport("ovs_dpdk_7"), Some(7));
        assert_eq!(Kind::preferred_ofport("dpdkr7"), None);
    }

    #[test]
    fn modern_forms() {
        assert_eq!(kind("br0", "internal", &[]), Ok(Kind::Local));
        assert_eq!(kind("int0", "internal", &[]), Ok(Kind::Kernel { queues: Ok(1) }));
        assert_eq!(
            kind("tap0", "tap", &[("n_rxq", "2")]),
            Ok(Kind::Kernel { queues: Ok(2) })
        );
        for system in ["", "system"] {
            assert_eq!(kind("eth0", system, &[]), Ok(Kind::Netdev));
        }
        assert_eq!(kind("dpdkr40", "dpdkr", &[]), Ok(Kind::Client { port: 40 }));
        for unclear in ["dpdkr", "dpdkr01", "dpdkr+1", "dpdkr65536"] {
            let error = kind(unclear, "dpdkr", &[]).unwrap_err();
            assert!(error.contains("which ring port"), "{unclear}: {error}");
        }
        assert_eq!(
            kind("vm1", "dpdkr", &[("port", "300")]),
            Ok(Kind::Client { port: 300 })
        );
        let nic = |devargs, option| kind("nic", "dpdk", &[("dpdk-devargs", devargs), option]).unwrap();
        let one = nic("0000:01:00.0,x=1", ("n_rxq", "4"));
        let other = nic("01:00.0,x=1", ("rx-flow-ctrl", "true"));
        assert!(one.is_same_place(&other) && one != other, "{one:?} {other:?}");
        assert!(!one.is_same_place(&nic("02:00.0,x=1", ("n_rxq", "4"))));
    }

    #[test]
    fn busy_polling_is_asked_for_by_the_word() {
        let busy_poll =
            |options: &[(&str, &str)]| Kind::Client { port: 1 }.busy_poll(&interface("vm", "dpdkr", options));
        assert_eq!(busy_poll(&[]), Ok(false));
        assert_eq!(busy_poll(&[("busy-poll", "false")]), Ok(false));
        assert_eq!(busy_poll(&[("busy-poll", "true")]), Ok(true));
        for wrong in ["yes", "1", "", "True"] {
            let error = busy_poll(&[("busy-poll", wrong)]).unwrap_err();
            assert!(
                error.contains(&format!("options:busy-poll={wrong} is neither")),
                "{error}"
            );
        }
    }

    /// What each kind of port says of its options.
    fn unfit(name: &str, kind: &str, options: &[(&str, &str)]) -> Option<String> {
        let row = interface(name, kind, options);
        Kind::of(&row, "br0").unwrap().unfit_options(&row)
    }

    const NIC: (&str, &str) = ("dpdk-devargs", "net_null0");

    /// There it would be without effect.
    #[test]
    fn busy_polling_is_refused_where_there_is_no_client() {
        for (name, kind, option) in [
            ("nic", "dpdk", NIC),
            ("br0", "internal", ("any", "false")),
            ("int0", "internal", ("n_rxq", "1")),
        ] {
            assert_eq!(unfit(name, kind, &[option]), None);
            assert_eq!(unfit(name, kind, &[option, ("busy-poll", "false")]), None);
            for asked in ["true", "yes"] {
                let error = unfit(name, kind, &[option, ("busy-poll", asked)]).unwrap();
                assert!(error.contains("other_config:pmd-sleep-max=0"), "{error}");
            }
        }
    }

    #[test]
    fn each_kind_of_port_takes_its_own_options() {
        let device = ["n_rxq", "n_txq", "n_rxq_desc", "n_txq_desc"].map(|option| (option, "64"));
        let flow = ["rx-flow-ctrl", "tx-flow-ctrl", "flow-ctrl-autoneg"].map(|option| (option, "true"));
        let device = [&device[..], &flow].concat();
        assert_eq!(unfit("nic", "dpdk", &[&[NIC], &device[..]].concat()), None);
        assert_eq!(unfit("ovs_dpdk_16", "dpdk", &device), None);
        assert_eq!(
            unfit("vm", "dpdkr", &[("port", "3"), ("busy-poll", "true")]),
            None
        );
        assert_eq!(unfit("ovs_dpdk_1", "dpdk", &[("busy-poll", "true")]), None);
        for (name, kind) in [("int0", "internal"), ("tap0", "tap"), ("ovs_dpdk_32", "dpdk")] {
            assert_eq!(unfit(name, kind, &[("n_rxq", "2")]), None);
        }
        for (name, kind, option, takes) in [
            ("dpdkr1", "dpdkr", "dpdk-devargs", "takes port, busy-poll"),
            ("dpdkr1", "dpdkr", "busy_poll", "takes port, busy-poll"),
            ("dpdkr1", "dpdkr", "n_rxq", "queues= of QEMU's -netdev"),
            ("ovs_dpdk_1", "dpdk", "n_txq", "queues= of QEMU's -netdev"),
            ("ovs_dpdk_1", "dpdk", "port", "takes busy-poll"),
            (
                "ovs_dpdk_16",
                "dpdk",
                "n_rxqs",
                "takes dpdk-devargs, n_rxq, n_txq,",
            ),
            ("int0", "internal", "n_txq", "takes n_rxq"),
            ("br0", "internal", "n_rxq", "takes no options"),
            ("eth0", "", "n_rxq", "takes no options"),
        ] {
            let named = unfit(name, kind, &[(option, "2")]).unwrap();
            assert!(
                named.starts_with(&format!("options:{option} has no effect on ")),
                "{named}"
            );
            assert!(named.contains(takes), "{named}");
        }
        let both = unfit("dpdkr1", "dpdkr", &[("a", "1"), ("b", "1")]).unwrap();
        assert!(
            both.contains("options:a has") && both.contains("; options:b has"),
            "{both}"
        );
    }

    #[test]
    fn each_error_names_the_thing() {
        assert!(kind("vm1", "dpdkr", &[]).unwrap_err().contains("options:port"));
        assert!(
            kind("vm1", "dpdkr", &[("port", "x")])
                .unwrap_err()
                .contains("options:port=x")
        );
        // The device is known all the same.
        for (option, value) in [("n_rxq", "0"), ("tx-flow-ctrl", "on")] {
            let nic = kind("nic", "dpdk", &[("dpdk-devargs", "a"), (option, value)]).unwrap();
            let Kind::Ethdev {
                device,
                options: Err(error),
            } = nic
            else {
                panic!("{nic:?}");
            };
            assert_eq!(device, DeviceName::Devargs("a".into()));
            assert!(error.contains(&format!("{option}={value}")), "{error}");
        }
        assert!(kind("x", "gre", &[]).unwrap_err().contains("'gre'"));
        for vhost in ["dpdkvhostuser", "dpdkvhostuserclient"] {
            let error = kind("vm1", vhost, &[]).unwrap_err();
            assert!(
                error.contains(&format!("'{vhost}'")) && error.contains("dpdk-qemu-shim --port N"),
                "{error}"
            );
        }
        assert!(
            kind("p", "patch", &[])
                .unwrap_err()
                .contains("use one bridge and VLANs")
        );
    }
}
