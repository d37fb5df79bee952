//! What the database shows of the switch.

use std::collections::BTreeMap;

use vswitch_common::eal;
use vswitch_common::ethdev::Ethdev;
use vswitch_common::netdev::State;
use vswitch_common::stats::Counter;
use vswitch_control::MacAddr;
use vswitch_control::status::{BridgeStatus, Duplex, InterfaceStatus, LinkState, Status};

use super::pci::{self, Pci};
use super::{Backend, PortState, Switch};

impl Switch {
    /// The present state, for the database.
    pub fn status(&self) -> Status {
        let set = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect();
        Status {
            cur_cfg: self.config.next_cfg,
            dpdk_version: Some(eal::version()),
            dpdk_initialized: true,
            datapath_types: set(&["dpdk", "netdev"]),
            iface_types: set(&["dpdk", "dpdkr", "internal", "system", "tap"]),
            bridges: self
                .bridges
                .values()
                .map(|b| {
                    let status = BridgeStatus {
                        datapath_id: Some(b.datapath_id.clone()),
                        datapath_version: "<built-in>".into(),
                    };
                    (b.uuid, status)
                })
                .collect(),
            interfaces: self
                .ports
                .values()
                .map(|p| (p.uuid, self.interface_status(p)))
                .collect(),
            mirrors: self.bridges.values().flat_map(|b| b.mirrors.status()).collect(),
        }
    }

    fn interface_status(&self, port: &PortState) -> InterfaceStatus {
        let state = |up: bool| Some(if up { LinkState::Up } else { LinkState::Down });
        let faults = port.faults();
        let mut status = InterfaceStatus {
            ofport: Some(port.ofport.into()),
            admin_state: state(true),
            mtu: Some(port.mtu.into()),
            error: (!faults.is_empty()).then(|| faults.join("; ")),
            ..InterfaceStatus::default()
        };
        let text = |pairs: &[(&str, String)]| -> BTreeMap<String, String> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect()
        };
        match &port.backend {
            Backend::Failed(reason) => return InterfaceStatus::failed(reason.clone()),
            Backend::Local(_) => {
                status.link_state = state(false);
                status.mac_in_use = self.bridges.get(&port.bridge).map(|b| b.mac);
            }
            Backend::Kernel { index, port: kernel } => {
                let (device, netdev) = (&kernel.io.device, &kernel.netdev);
                let up = kernel.state == State::Up;
                (status.admin_state, status.link_state) = (state(up), state(up));
                status.mac_in_use = netdev.mac().ok().map(MacAddr);
                status.mtu = Some(netdev.mtu().map_or(kernel.mtu.into(), i64::from));
                status.ifindex = netdev.index().map(i64::from);
                status.status = text(&[
                    ("backend", kernel.via.name().into()),
                    ("port_no", device.port().to_string()),
                    ("n_rxq", device.rx_queues().to_string()),
                    ("n_txq", device.tx_queues().to_string()),
                ]);
                if let Ok(info) = device.info() {
                    status.status.insert("driver_name".into(), info.driver);
                }
                status.statistics = self.statistics(*index);
            }
            Backend::Client {
                index,
                port: ring_port,
            } => {
                let claim = self.clients.claims.get(ring_port).filter(|c| c.index == *index);
                status.link_state = state(claim.is_some());
                status.status = text(&[
                    ("driver_name", "client rings".into()),
                    ("port", ring_port.to_string()),
                    ("mode", "client".into()),
                    (
                        "status",
                        if claim.is_some() {
                            "connected"
                        } else {
                            "disconnected"
                        }
                        .into(),
                    ),
                ]);
                if let Some(claim) = claim {
                    let queues = claim.session.queues().len().to_string();
                    status
                        .status
                        .extend(text(&[("n_rxq", queues.clone()), ("n_txq", queues)]));
                }
                status.statistics = self.statistics(*index);
            }
            Backend::Netdev { index, port } => {
                let device = &port.io.device;
                (status.admin_state, status.link_state) = (state(port.is_up()), state(port.link().up));
                status.mac_in_use = device.mac().map(MacAddr);
                status.mtu = Some(port.mtu().into());
                status.ifindex = Some(port.ifindex().into());
                status.status = device_status(device);
                status.statistics = device_statistics(device, self.statistics(*index));
            }
            Backend::Ethdev { index, io, link, .. } => {
                status.link_state = state(link.up);
                status.link_speed = link.speed.map(|mbit| i64::from(mbit) * 1_000_000);
                status.duplex = link.up.then_some(if link.full_duplex {
                    Duplex::Full
                } else {
                    Duplex::Half
                });
                status.mac_in_use = io.device.mac().map(MacAddr);
                status.mtu = Some(io.device.mtu().into());
                status.status = device_status(&io.device);
                status.statistics = device_statistics(&io.device, self.statistics(*index));
            }
        }
        status
    }

    fn statistics(&self, index: u16) -> BTreeMap<String, i64> {
        let total = |c: Counter| self.parts.segment.total(index.into(), c) as i64;
        let mut statistics: BTreeMap<String, i64> = Counter::ALL
            .iter()
            .map(|&c| (c.name().to_owned(), total(c)))
            .collect();
        let dropped = |prefix: &str| -> i64 {
            Counter::ALL
                .iter()
                .filter(|c| c.is_drop() && c.name().starts_with(prefix))
                .map(|&c| total(c))
                .sum()
        };
        statistics.insert("rx_dropped".into(), dropped("rx_"));
        statistics.insert("tx_dropped".into(), dropped("tx_"));
        statistics.insert(
            "rx_errors".into(),
            total(Counter::RxBadMbuf) + total(Counter::RxBadRing) + total(Counter::RxTooLong),
        );
        statistics.insert("tx_errors".into(), 0);
        statistics
    }
}

/// The keys are Open vSwitch's, where it has them.
fn device_status(device: &Ethdev) -> BTreeMap<String, String> {
    let mut status: Vec<(&str, String)> = vec![
        ("port_no", device.port().to_string()),
        ("device", device.device().to_owned()),
        ("n_rxq", device.rx_queues().to_string()),
        ("n_txq", device.tx_queues().to_string()),
    ];
    if let Ok(info) = device.info() {
        let bus_info = match info.bus_info.as_str() {
            "" => format!("bus_name={}", info.bus),
            more => format!("bus_name={}, {more}", info.bus),
        };
        status.extend([
            ("bus_info", bus_info),
            ("if_descr", format!("{} {}", eal::version(), info.driver)),
            ("driver_name", info.driver),
            ("max_hash_mac_addrs", info.max_hash_mac_addresses.to_string()),
            ("max_mac_addrs", info.max_mac_addresses.to_string()),
            ("max_rx_pktlen", info.max_rx_packet.to_string()),
            ("max_rx_queues", info.max_rx_queues.to_string()),
            ("max_tx_queues", info.max_tx_queues.to_string()),
            ("max_vfs", info.max_vfs.to_string()),
            ("max_vmdq_pools", info.max_vmdq_pools.to_string()),
            ("min_rx_bufsize", info.min_rx_buffer.to_string()),
            (
                "link_events",
                if info.link_interrupt {
                    "interrupt"
                } else {
                    "polled"
                }
                .into(),
            ),
        ]);
        status.extend(device.node().map(|node| ("numa_id", node.to_string())));
    }
    status.extend(
        pci::address(device.device())
            .and_then(|address| Some(("kernel_driver", Pci::default().driver(&address)?))),
    );
    if let Some(flow) = device.flow_control() {
        status.extend([
            ("rx-flow-ctrl", flow.receive.to_string()),
            ("tx-flow-ctrl", flow.transmit.to_string()),
        ]);
    }
    let offloads = device.offloads();
    status.extend([
        ("rx_csum_offload", offloads.rx_checksum.to_string()),
        ("tx_tcp_csum_offload", offloads.tx_tcp_checksum.to_string()),
        ("tx_tcp_seg_offload", offloads.tx_segmentation.to_string()),
        ("tx_udp_csum_offload", offloads.tx_udp_checksum.to_string()),
        ("tx_vlan_offload", offloads.tx_vlan.to_string()),
    ]);
    status
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value))
        .collect()
}

/// `own` counters and all of the driver's. What both count under one name is the sum: errors on the wire, and ours.
fn device_statistics(device: &Ethdev, own: BTreeMap<String, i64>) -> BTreeMap<String, i64> {
    let mut statistics = own;
    let mut missed = 0;
    for (name, value) in device.counters() {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        if ["rx_missed_errors", "rx_mbuf_allocation_errors"].contains(&name.as_str()) {
            missed += value;
        }
        *statistics.entry(name).or_default() += value;
    }
    // Frames that the NIC had to drop because nobody took them in time.
    *statistics.entry("rx_dropped".into()).or_default() += missed;
    statistics
}
