//! From the database's configuration to bridges and ports: what is gone goes, what is new comes, what changed changes,
//! while traffic runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use vswitch_common::fault::{self, Point};
use vswitch_common::port::message::Reason;
use vswitch_control::config::{BridgeConfig, InterfaceConfig, PortConfig, SwitchConfig, VlanMode};
use vswitch_control::{MacAddr, Uuid};

use super::clients::PortMemory;
use super::kernel::{KernelPort, Request};
use super::kind::Kind;
use super::limits;
use super::{Backend, BridgeState, DEFAULT_MTU, MAX_KERNEL_MTU, MAX_MTU, PortState, Switch};
use crate::attach::{Notice, Refused};
use crate::datapath::limit::Limiter;
use crate::datapath::mac_table::{DEFAULT_AGING, DEFAULT_SIZE, GREATEST_SIZE, LEAST_SIZE, MacTable};
use crate::datapath::port::PortIndex;
use crate::datapath::vlan::VlanPolicy;
use crate::rxq::settings;

/// Number of a bridge's own port, OFPP_LOCAL of OpenFlow 1.0.
const LOCAL: u16 = 65534;

impl Switch {
    /// Brings `config` into force.
    pub fn configure(&mut self, config: SwitchConfig) {
        self.configure_threads(&config);
        self.configure_bridges(&config);
        let wanted: BTreeMap<&str, Wanted<'_>> = config
            .interfaces()
            .map(|(bridge, port, interface)| {
                (
                    interface.name.as_str(),
                    Wanted {
                        bridge,
                        port,
                        interface,
                    },
                )
            })
            .collect();
        self.remove_unwanted(&wanted);
        // Those that ask for a number first, so that no other port is given it.
        let mut order: Vec<&Wanted<'_>> = wanted.values().collect();
        order.sort_by_key(|w| !w.asks_for_a_number());
        for wanted in order {
            self.configure_port(wanted);
        }
        self.publish();
        fault::point(Point::Configured);
        self.config = config;
    }

    fn configure_threads(&mut self, config: &SwitchConfig) {
        let sleep = config.other_config.get("pmd-sleep-max");
        self.max_sleep = sleep.and_then(|us| us.parse().ok()).map(Duration::from_micros);
        let mask = config
            .other_config
            .get("pmd-cpu-mask")
            .map(String::as_str)
            .filter(|m| !m.is_empty());
        match mask.map(crate::cpus::parse_mask).transpose() {
            Ok(cpus) => self.parts.pmds.configure(cpus.as_deref()),
            Err(e) => log::error!("other_config:pmd-cpu-mask: {e}; the PMD threads stay as they are"),
        }
        self.configure_queues(config);
    }

    fn configure_bridges(&mut self, config: &SwitchConfig) {
        let names: BTreeSet<&str> = config.bridges.iter().map(|b| b.name.as_str()).collect();
        self.bridges.retain(|name, _| names.contains(name.as_str()));
        for bridge in &config.bridges {
            let number = |key: &str, default: u32| {
                bridge
                    .other_config
                    .get(key)
                    .and_then(|v| v.parse().ok())
                    .unwrap_or(default)
            };
            let aging = number("mac-aging-time", DEFAULT_AGING).clamp(15, 3600);
            let size = number("mac-table-size", DEFAULT_SIZE as u32) as usize;
            let size = size.clamp(LEAST_SIZE, GREATEST_SIZE);
            let mac = bridge_mac(bridge);
            let id = bridge
                .other_config
                .get("datapath-id")
                .cloned()
                .unwrap_or_else(|| datapath_id(mac));
            let forward_reserved = bridge
                .other_config
                .get("forward-bpdu")
                .is_some_and(|v| v == "true");
            let state = self
                .bridges
                .entry(bridge.name.clone())
                .or_insert_with(|| BridgeState {
                    uuid: bridge.uuid,
                    name: bridge.name.clone(),
                    mac,
                    datapath_id: String::new(),
                    forward_reserved,
                    table: Arc::new(MacTable::new(size, aging)),
                });
            if state.table.capacity() != size {
                state.table = Arc::new(MacTable::new(size, aging));
            }
            state.table.set_aging(aging);
            state.uuid = bridge.uuid;
            state.mac = mac;
            state.datapath_id = id;
            state.forward_reserved = forward_reserved;
        }
    }

    /// Takes ports away that are no longer wanted, or wanted as something else.
    fn remove_unwanted(&mut self, wanted: &BTreeMap<&str, Wanted<'_>>) {
        let gone: Vec<String> = self
            .ports
            .iter()
            .filter(|(name, state)| match wanted.get(name.as_str()) {
                None => true,
                // A failed port is tried again with every change: what it lacked may be there now.
                Some(w) => {
                    matches!(state.backend, Backend::Failed(_) | Backend::Local(_))
                        || state.bridge != w.bridge.name
                        || !w.kind().is_ok_and(|kind| kind.is_same_place(&state.kind))
                }
            })
            .map(|(name, _)| name.clone())
            .collect();
        if gone.is_empty() {
            return;
        }
        let removed: Vec<PortState> = gone.iter().filter_map(|name| self.ports.remove(name)).collect();
        // No thread knows them any more when this returns.
        self.publish();
        for state in removed {
            let Some(index) = state.index() else { continue };
            self.forget_port(index);
            self.overload.forget(index);
            if let Backend::Client { port, .. } = state.backend {
                if let Some(claim) = self.clients.claims.get(&port) {
                    let text = format!("port {port} was removed from the switch");
                    let refused = Refused {
                        reason: Reason::Removed,
                        text,
                    };
                    self.notices.push((claim.client, Notice::Evicted(refused)));
                }
                self.clients.free_if_unused(port);
            }
            log::info!("bridge {}: removed port {}", state.bridge, state.name);
        }
    }

    pub(super) fn forget_port(&self, index: PortIndex) {
        self.flush_port(index);
        self.parts.segment.set_port(index.into(), None);
    }

    /// Forgets the addresses learned behind a port.
    pub(super) fn flush_port(&self, index: PortIndex) {
        for bridge in self.bridges.values() {
            bridge.table.flush_port(index);
        }
    }

    fn configure_port(&mut self, wanted: &Wanted<'_>) {
        let (vlan, mtu, mac) = (wanted.vlan(), wanted.mtu(), wanted.mac());
        let (limits, unlimited) = limits::of(wanted.interface);
        let affinity = settings::affinity(&wanted.interface.other_config);
        let unpinned = affinity.as_ref().err().cloned();
        let affinity = affinity.unwrap_or_default();
        let kind = wanted.kind();
        let busy_poll = kind
            .as_ref()
            .map_or(Ok(false), |kind| kind.busy_poll(wanted.interface));
        let sleeps = busy_poll.as_ref().err().cloned();
        let busy_poll = busy_poll.unwrap_or_default();
        let unfit = kind
            .as_ref()
            .ok()
            .and_then(|kind| kind.unfit_options(wanted.interface));
        let complaints = [unlimited, unpinned, sleeps, unfit].into_iter().flatten();
        let complaint = complaints.reduce(|one, other| format!("{one}; {other}"));
        let limiter = Limiter::new(limits, self.parts.clock).map(Arc::new);
        let asked = wanted
            .interface
            .ofport_request
            .filter(|n| self.ofport_is_free(&wanted.bridge.name, *n));
        if let Some(state) = self.ports.get_mut(&wanted.interface.name) {
            state.uuid = wanted.interface.uuid;
            if let (Some(ofport), Some(_)) = (asked, state.index()) {
                state.ofport = ofport;
            }
            if state.vlan != vlan {
                log::info!("bridge {}: VLANs of port {} changed", state.bridge, state.name);
                state.vlan = vlan;
                // What was learned in its old VLANs may be unreachable now.
                if let (Some(index), Some(bridge)) = (state.index(), self.bridges.get(&state.bridge)) {
                    bridge.table.flush_port(index);
                }
            }
            if state.limiter.as_ref().map(|l| l.limits()) != limiter.as_ref().map(|l| l.limits()) {
                log::info!("bridge {}: limits of port {} changed", state.bridge, state.name);
                state.limiter = limiter;
            }
            state.affinity = affinity;
            if let Some(text) = complaint.as_ref().filter(|c| state.complaint.as_ref() != Some(c)) {
                log::warn!("bridge {}: port {}: {text}", state.bridge, state.name);
            }
            state.complaint = complaint;
            if let (Backend::Ethdev { setup, .. }, Ok(Kind::Ethdev { options, .. })) = (&state.backend, &kind)
            {
                let wanted_setup = options.setup(mtu);
                if *setup != wanted_setup {
                    self.restart_device(&wanted.interface.name, wanted_setup);
                }
                return;
            }
            let new_polling = std::mem::replace(&mut state.busy_poll, busy_poll) != busy_poll;
            if let (true, Backend::Client { port, .. }) = (new_polling, &state.backend)
                && let Some(claim) = self.clients.claims.get(port)
            {
                claim.session.set_busy_poll(busy_poll);
            }
            let new_mtu = std::mem::replace(&mut state.mtu, mtu) != mtu;
            match &mut state.backend {
                Backend::Client { port, .. } if new_mtu => {
                    if let Some(claim) = self.clients.claims.get(port) {
                        let change = Notice::State {
                            carrier: true,
                            mtu: mtu.into(),
                        };
                        self.notices.push((claim.client, change));
                    }
                }
                Backend::Kernel { port, .. } => {
                    if new_mtu {
                        port.set_mtu(mtu);
                    }
                    port.set_mac(mac);
                }
                _ => {}
            }
            return;
        }
        let (kind, backend) = match kind {
            Ok(kind) => {
                let name = &wanted.interface.name;
                let backend = self
                    .set_up(&kind, name, mac, mtu)
                    .unwrap_or_else(|reason| kind.without_backend(reason));
                (kind, backend)
            }
            Err(e) => (Kind::Local, Backend::Failed(e)),
        };
        let ofport = self.choose_ofport(wanted, &kind, &backend);
        let name = wanted.interface.name.clone();
        match &backend {
            Backend::Failed(e) | Backend::Local(e) => {
                log::warn!("bridge {}: port {name}: {e}", wanted.bridge.name)
            }
            _ => log::info!(
                "bridge {}: added port {name} as number {ofport}",
                wanted.bridge.name
            ),
        }
        if let Some(text) = &complaint {
            log::warn!("bridge {}: port {name}: {text}", wanted.bridge.name);
        }
        let mtu = match &backend {
            Backend::Ethdev { io, .. } => io.device.mtu(),
            _ => mtu,
        };
        let state = PortState {
            uuid: wanted.interface.uuid,
            name: name.clone(),
            bridge: wanted.bridge.name.clone(),
            ofport,
            vlan,
            mtu,
            limiter,
            affinity,
            busy_poll,
            complaint,
            kind,
            backend,
        };
        if let Some(index) = state.index() {
            self.parts.segment.clear_port(usize::from(index));
        }
        self.ports.insert(name, state);
    }

    fn set_up(&mut self, kind: &Kind, name: &str, mac: MacAddr, mtu: u16) -> Result<Backend, String> {
        let no_index = || "the switch has as many ports as it can".to_owned();
        match kind {
            Kind::Local | Kind::Kernel { .. } => {
                let index = self.free_index().ok_or_else(no_index)?;
                let queues = match kind {
                    Kind::Kernel { queues } => *queues,
                    _ => 1,
                };
                let request = Request {
                    name,
                    mac,
                    mtu,
                    queues,
                };
                let port = KernelPort::create(&request, index, &self.parts)?;
                Ok(Backend::Kernel { index, port })
            }
            Kind::Client { port } => {
                let taken =
                    |s: &&PortState| matches!(s.backend, Backend::Client { port: p, .. } if p == *port);
                if let Some(other) = self.ports.values().find(taken) {
                    return Err(format!("ring port {port} is interface {}'s already", other.name));
                }
                // A client that has just lost this port may not be dead yet: then its index stays, too.
                let index = self.free_index().ok_or_else(no_index)?;
                if !self.clients.memory.contains_key(port) {
                    let memory = PortMemory::create(*port).map_err(|e| {
                        format!("no memory for the rings of port {port} ({e}); raise dpdk-socket-mem")
                    })?;
                    self.clients.memory.insert(*port, memory);
                }
                Ok(Backend::Client { index, port: *port })
            }
            Kind::Ethdev { device, options } => {
                let index = self.free_index().ok_or_else(no_index)?;
                self.start_device(device, &options.setup(mtu), index)
            }
        }
    }

    fn ofport_is_free(&self, bridge: &str, number: u16) -> bool {
        (1..=65279).contains(&number)
            && !self
                .ports
                .values()
                .any(|p| p.bridge == bridge && p.ofport == number)
    }

    /// The number asked for, else that of a historic name, else the lowest one free on the bridge.
    fn choose_ofport(&self, wanted: &Wanted<'_>, kind: &Kind, backend: &Backend) -> u16 {
        if matches!(backend, Backend::Failed(_)) {
            return 0;
        }
        if *kind == Kind::Local {
            return LOCAL;
        }
        let free = |n: &u16| self.ofport_is_free(&wanted.bridge.name, *n);
        let asked = wanted.interface.ofport_request.filter(free);
        let historic = Kind::preferred_ofport(&wanted.interface.name).filter(free);
        asked.or(historic).or_else(|| (1..=65279).find(free)).unwrap_or(0)
    }
}

/// An interface as the database wants it, with the rows it hangs on.
#[derive(Debug, Clone, Copy)]
struct Wanted<'a> {
    bridge: &'a BridgeConfig,
    port: &'a PortConfig,
    interface: &'a InterfaceConfig,
}

impl Wanted<'_> {
    fn kind(&self) -> Result<Kind, String> {
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

    /// The address of its interface in the kernel, if it has one: the bridge's for the bridge's own, else the one asked
    /// for, else one of its own.
    fn mac(&self) -> MacAddr {
        if self.interface.name == self.bridge.name {
            return bridge_mac(self.bridge);
        }
        self.interface.mac.unwrap_or_else(|| own_mac(self.interface.uuid))
    }

    fn asks_for_a_number(&self) -> bool {
        self.interface.ofport_request.is_some() || Kind::preferred_ofport(&self.interface.name).is_some()
    }

    fn mtu(&self) -> u16 {
        let Some(asked) = self.interface.mtu_request else {
            return DEFAULT_MTU;
        };
        let greatest = match self.kind() {
            Ok(Kind::Local | Kind::Kernel { .. }) => MAX_KERNEL_MTU,
            _ => MAX_MTU,
        };
        match u16::try_from(asked) {
            Ok(mtu) if (68..=greatest).contains(&mtu) => mtu,
            _ => {
                log::warn!(
                    "{}: mtu_request {asked} is not within 68 to {greatest}",
                    self.interface.name
                );
                DEFAULT_MTU
            }
        }
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

/// The bridge's own address: other_config:hwaddr, else one of its own.
fn bridge_mac(bridge: &BridgeConfig) -> MacAddr {
    let asked = bridge
        .other_config
        .get("hwaddr")
        .and_then(|text| text.parse().ok());
    asked.unwrap_or_else(|| own_mac(bridge.uuid))
}

/// A locally administered address made of a row's id: the same for as long as the row is there.
fn own_mac(row: Uuid) -> MacAddr {
    let [.., a, b, c, d, e] = row.0.to_be_bytes();
    MacAddr([0x02, a, b, c, d, e])
}

fn datapath_id(mac: MacAddr) -> String {
    let MacAddr([a, b, c, d, e, f]) = mac;
    format!("0000{a:02x}{b:02x}{c:02x}{d:02x}{e:02x}{f:02x}")
}
