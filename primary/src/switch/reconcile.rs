//! From the database's configuration to bridges and ports: what is gone goes, what is new comes, what changed changes,
//! while traffic runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use vswitch_common::fault::{self, Point};
use vswitch_common::port::message::Reason;
use vswitch_control::MacAddr;
use vswitch_control::config::{BridgeConfig, InterfaceConfig, PortConfig, SwitchConfig, VlanMode};

use super::bridges::{Settings, own_mac};
use super::clients::PortMemory;
use super::kernel::{KernelPort, Request};
use super::kind::Kind;
use super::limits;
use super::{Backend, BridgeState, DEFAULT_MTU, MAX_KERNEL_MTU, MAX_MTU, PortState, Switch, complain};
use crate::attach::{Notice, Refused};
use crate::datapath::limit::Limiter;
use crate::datapath::mac_table::MacTable;
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
        let mut told = self.remove_unwanted(&wanted);
        // Those that ask for a number first, so that no other port is given it.
        let mut order: Vec<&Wanted<'_>> = wanted.values().collect();
        order.sort_by_key(|w| !w.asks_for_a_number());
        for wanted in order {
            let told = told.remove(&wanted.interface.name).unwrap_or_default();
            self.configure_port(wanted, told);
        }
        self.publish();
        fault::point(Point::Configured);
        self.config = config;
    }

    fn configure_threads(&mut self, config: &SwitchConfig) {
        let mut complaints = Vec::new();
        self.max_sleep = settings::max_sleep(&config.other_config).unwrap_or_else(|text| {
            complaints.push(text);
            None
        });
        let mask = config
            .other_config
            .get("pmd-cpu-mask")
            .map(String::as_str)
            .filter(|m| !m.is_empty());
        match mask.map(crate::cpus::parse_mask).transpose() {
            Ok(cpus) => self.parts.pmds.configure(cpus.as_deref()),
            Err(e) => complaints.push(format!(
                "Open_vSwitch other_config:pmd-cpu-mask: {e}; the PMD threads stay as they are"
            )),
        }
        complain("", &mut self.complaints, complaints);
        self.configure_queues(config);
    }

    fn configure_bridges(&mut self, config: &SwitchConfig) {
        let names: BTreeSet<&str> = config.bridges.iter().map(|b| b.name.as_str()).collect();
        self.bridges.retain(|name, _| names.contains(name.as_str()));
        for bridge in &config.bridges {
            let (settings, complaints) = Settings::of(bridge);
            let Settings {
                aging, table_size, ..
            } = settings;
            let state = self
                .bridges
                .entry(bridge.name.clone())
                .or_insert_with(|| BridgeState {
                    uuid: bridge.uuid,
                    name: bridge.name.clone(),
                    mac: settings.mac,
                    datapath_id: String::new(),
                    forward_reserved: settings.forward_reserved,
                    table: Arc::new(MacTable::new(table_size, aging)),
                    complaints: Vec::new(),
                });
            if state.table.capacity() != table_size {
                state.table = Arc::new(MacTable::new(table_size, aging));
            }
            state.table.set_aging(aging);
            state.uuid = bridge.uuid;
            state.mac = settings.mac;
            state.datapath_id = settings.datapath_id;
            state.forward_reserved = settings.forward_reserved;
            complain(
                &format!("bridge {}: ", bridge.name),
                &mut state.complaints,
                complaints,
            );
        }
    }

    /// Takes ports away that are no longer wanted, or wanted as something else. Returns what the log has been told of
    /// those that did not work and are tried again, by name.
    fn remove_unwanted(&mut self, wanted: &BTreeMap<&str, Wanted<'_>>) -> BTreeMap<String, Vec<String>> {
        let mut told = BTreeMap::new();
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
            return told;
        }
        let removed: Vec<PortState> = gone.iter().filter_map(|name| self.ports.remove(name)).collect();
        // No thread knows them any more when this returns.
        self.publish();
        for state in removed {
            let Some(index) = state.index() else {
                told.insert(state.name.clone(), state.faults());
                continue;
            };
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
        told
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

    /// Brings a port into force. What is wrong with a new one is logged, but for what is in `told`.
    fn configure_port(&mut self, wanted: &Wanted<'_>, mut told: Vec<String>) {
        let (vlan, mac) = (wanted.vlan(), wanted.mac(self.bridges.get(&wanted.bridge.name)));
        let mtu = wanted.mtu();
        let unfit_mtu = mtu.as_ref().err().cloned();
        let mtu = mtu.unwrap_or(DEFAULT_MTU);
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
        let complaints = [
            wanted.idle_trunks(),
            unfit_mtu,
            unlimited,
            unpinned,
            sleeps,
            unfit,
        ];
        let complaint = complaints
            .into_iter()
            .flatten()
            .reduce(|one, other| format!("{one}; {other}"));
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
        if !matches!(backend, Backend::Failed(_) | Backend::Local(_)) {
            log::info!(
                "bridge {}: added port {name} as number {ofport}",
                wanted.bridge.name
            );
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
        let who = format!("bridge {}: port {name}: ", state.bridge);
        complain(&who, &mut told, state.faults());
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
                    let memory = PortMemory::create(*port, None).map_err(|e| {
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

    /// The address of its interface in the kernel, if it has one: that of its bridge, `bridge`, for the bridge's own, else the
    /// one asked for, else one of its own.
    fn mac(&self, bridge: Option<&BridgeState>) -> MacAddr {
        match bridge {
            Some(bridge) if bridge.name == self.interface.name => bridge.mac,
            _ => self.interface.mac.unwrap_or_else(|| own_mac(self.interface.uuid)),
        }
    }

    fn asks_for_a_number(&self) -> bool {
        self.interface.ofport_request.is_some() || Kind::preferred_ofport(&self.interface.name).is_some()
    }

    /// Bytes of payload, or why what is asked for can't be.
    fn mtu(&self) -> Result<u16, String> {
        let Some(asked) = self.interface.mtu_request else {
            return Ok(DEFAULT_MTU);
        };
        let greatest = match self.kind() {
            Ok(Kind::Local | Kind::Kernel { .. }) => MAX_KERNEL_MTU,
            _ => MAX_MTU,
        };
        let possible = u16::try_from(asked)
            .ok()
            .filter(|mtu| (68..=greatest).contains(mtu));
        possible.ok_or_else(|| {
            format!("mtu_request={asked} is not within 68 to {greatest}; the port's MTU is {DEFAULT_MTU}")
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
