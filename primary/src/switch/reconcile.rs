//! From the database's configuration to bridges and ports: what is gone goes, what is new comes, what changed changes,
//! while traffic runs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use vswitch_common::ethdev::Setup;
use vswitch_common::fault::{self, Point};
use vswitch_common::port::message::Reason;
use vswitch_control::MacAddr;
use vswitch_control::config::{SwitchConfig, stats_interval};

use super::bridges::{self, own_mac};
use super::clients::PortMemory;
use super::devices;
use super::kernel::{KernelPort, Request};
use super::kind::Kind;
use super::mirrors::Mirrors;
use super::netdevs::NetdevPort;
use super::ports::{self, Wanted};
use super::{Backend, BridgeState, PortState, Switch, complain, whole};
use crate::attach::{Notice, Refused};
use crate::datapath::limit::Limiter;
use crate::datapath::mac_table::MacTable;
use crate::datapath::port::PortIndex;
use crate::rxq::settings;

/// Number of a bridge's own port, OFPP_LOCAL of OpenFlow 1.0.
pub(super) const LOCAL: u16 = 65534;

impl Switch {
    /// What is in force.
    pub fn config(&self) -> &SwitchConfig {
        &self.config
    }

    /// Brings `config` into force.
    pub fn configure(&mut self, config: SwitchConfig) {
        let threads = self.parts.pmds.count();
        self.configure_threads(&config);
        if self.parts.pmds.count() < threads {
            // What the ended ones polled does not wait for all the rest.
            self.publish();
        }
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
        let kinds: Vec<_> = wanted
            .iter()
            .filter_map(|(&name, wanted)| Some((name, wanted.kind().ok()?)))
            .collect();
        self.devices_tried = devices::present(kinds.iter().map(|(name, kind)| (*name, kind)));
        self.numbered
            .retain(|&number, _| kinds.iter().any(|(_, kind)| kind.is_numbered(number)));
        let mut told = self.remove_unwanted(&wanted);
        // Those that ask for a number first, then those that have one from before, so that no other port is given it.
        let mut order: Vec<&Wanted<'_>> = wanted.values().collect();
        order.sort_by_key(|w| (!w.asks_for_a_number(), w.interface.ofport.0.is_none()));
        for wanted in order {
            let told = told.remove(&wanted.interface.name).unwrap_or_default();
            self.configure_port(wanted, told);
        }
        self.publish();
        self.flush_mirror_outputs();
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
            Ok(cpus) => {
                complaints.extend(cpus.as_deref().and_then(|cpus| self.parts.pmds.complaint(cpus)));
                self.parts.pmds.configure(cpus.as_deref());
            }
            Err(e) => {
                complaints.push(format!(
                    "Open_vSwitch other_config:pmd-cpu-mask: {e}; the PMD threads stay as they are"
                ));
                // As they are at the start is none at all, and somebody has to forward.
                if self.parts.pmds.count() == 0 {
                    self.parts.pmds.configure(None);
                }
            }
        }
        complaints.extend(stats_interval(&config.other_config).err());
        complaints.extend(whole::unknown(&config.other_config));
        complaints.extend(self.parts.started.differs(&config.other_config));
        complain("", &mut self.complaints, complaints);
        self.configure_queues(config);
    }

    fn configure_bridges(&mut self, config: &SwitchConfig) {
        let now = self.parts.clock.now();
        let names: BTreeSet<&str> = config.bridges.iter().map(|b| b.name.as_str()).collect();
        self.bridges.retain(|name, _| names.contains(name.as_str()));
        for bridge in &config.bridges {
            let (settings, complaints) = bridges::Settings::of(bridge);
            let bridges::Settings {
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
                    mirrors: Mirrors::default(),
                    complaints: Vec::new(),
                });
            if state.table.capacity() != table_size {
                let table = MacTable::new(table_size, aging);
                let lost = table.add_all_of(&state.table, now);
                if lost > 0 {
                    log::warn!(
                        "bridge {}: {lost} static addresses find no room in a table of {table_size}",
                        bridge.name
                    );
                }
                state.table = Arc::new(table);
            }
            state.table.set_aging(aging);
            state.uuid = bridge.uuid;
            state.mac = settings.mac;
            state.datapath_id = settings.datapath_id;
            state.forward_reserved = settings.forward_reserved;
            state.mirrors.configure(bridge);
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

    /// Forgets the addresses learned behind a port that has lost its link.
    pub(super) fn flush_learned(&self, index: PortIndex) {
        for bridge in self.bridges.values() {
            bridge.table.flush_learned(index);
        }
    }

    /// Forgets all addresses behind a port.
    pub(super) fn flush_port(&self, index: PortIndex) {
        for bridge in self.bridges.values() {
            bridge.table.flush_port(index);
        }
    }

    /// Brings a port into force. What is wrong with it is logged; of one that is tried again, but for what is in `told`.
    fn configure_port(&mut self, wanted: &Wanted<'_>, told: Vec<String>) {
        let asked = wanted.settings();
        if self.ports.contains_key(&wanted.interface.name) {
            self.change_port(wanted, asked);
        } else {
            self.add_port(wanted, asked, told);
        }
    }

    fn change_port(&mut self, wanted: &Wanted<'_>, asked: ports::Settings) {
        let mtu = asked.mtu();
        let mac = self.mac(wanted, &asked);
        let number = wanted.interface.ofport_request;
        let number = number.filter(|n| self.ofport_is_free(&wanted.bridge.name, *n));
        let limiter = self.limiter(&asked);
        let Some(state) = self.ports.get_mut(&wanted.interface.name) else {
            return;
        };
        state.uuid = wanted.interface.uuid;
        if let (Some(ofport), Some(_)) = (number.filter(|_| state.ofport != LOCAL), state.index()) {
            state.ofport = ofport;
        }
        if state.vlan != asked.vlan {
            log::info!("bridge {}: VLANs of port {} changed", state.bridge, state.name);
            state.vlan = asked.vlan;
            // What was learned in its old VLANs may be unreachable now.
            if let (Some(index), Some(bridge)) = (state.index(), self.bridges.get(&state.bridge)) {
                bridge.table.flush_port(index);
            }
        }
        if state.limiter.as_ref().map(|l| l.limits()) != limiter.as_ref().map(|l| l.limits()) {
            log::info!("bridge {}: limits of port {} changed", state.bridge, state.name);
            state.limiter = limiter;
        }
        state.affinity = asked.affinity;
        state.mtu_request = asked.mtu_request;
        let mut complaints = asked.complaints;
        complaints.extend(
            asked
                .kind
                .iter()
                .filter_map(|kind| state.kind.cannot_become(kind)),
        );
        complain(&state.who(), &mut state.complaints, complaints);
        if let (Backend::Ethdev { setup, .. }, Ok(Kind::Ethdev { options, .. })) =
            (&state.backend, &asked.kind)
        {
            let options = options.as_ref().map(|options| options.setup(mtu));
            let wanted_setup = options.unwrap_or(Setup { mtu, ..*setup });
            if *setup != wanted_setup {
                self.restart_device(&wanted.interface.name, wanted_setup);
            }
            return;
        }
        let new_polling = std::mem::replace(&mut state.busy_poll, asked.busy_poll) != asked.busy_poll;
        let new_mtu = std::mem::replace(&mut state.mtu, mtu) != mtu;
        match &mut state.backend {
            Backend::Client { port, .. } => {
                let Some(claim) = self.clients.claims.get(port) else {
                    return;
                };
                if new_polling {
                    claim.session.set_busy_poll(asked.busy_poll);
                }
                if new_mtu {
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
            Backend::Netdev { port, .. } => port.request_mtu(asked.mtu_request),
            Backend::Ethdev { .. } | Backend::Local(_) | Backend::Failed(_) => {}
        }
    }

    fn add_port(&mut self, wanted: &Wanted<'_>, asked: ports::Settings, mut told: Vec<String>) {
        let name = wanted.interface.name.clone();
        let (mtu, mtu_request) = (asked.mtu(), asked.mtu_request);
        let mac = self.mac(wanted, &asked);
        let limiter = self.limiter(&asked);
        let (kind, mut backend) = match asked.kind {
            Ok(kind) => {
                let backend = self
                    .set_up(&kind, &name, mac, mtu)
                    .unwrap_or_else(|reason| kind.without_backend(reason));
                (kind, backend)
            }
            Err(e) => (Kind::Local, Backend::Failed(e)),
        };
        if let Backend::Netdev { port, .. } = &mut backend {
            port.request_mtu(mtu_request);
        }
        let ofport = self.choose_ofport(wanted, &kind, &backend);
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
            vlan: asked.vlan,
            mtu,
            mtu_request,
            limiter,
            affinity: asked.affinity,
            busy_poll: asked.busy_poll,
            complaints: asked.complaints,
            kind,
            backend,
        };
        complain(&state.who(), &mut told, state.faults());
        if let Some(index) = state.index() {
            self.parts.segment.clear_port(usize::from(index));
        }
        self.ports.insert(name, state);
    }

    fn limiter(&self, asked: &ports::Settings) -> Option<Arc<Limiter>> {
        Limiter::new(asked.limits, self.parts.clock).map(Arc::new)
    }

    /// The address of its interface in the kernel, if it has one: that of its bridge for the bridge's own, else the one asked
    /// for, else one of its own.
    fn mac(&self, wanted: &Wanted<'_>, asked: &ports::Settings) -> MacAddr {
        match self.bridges.get(&wanted.bridge.name) {
            Some(bridge) if bridge.name == wanted.interface.name => bridge.mac,
            _ => asked.mac.unwrap_or_else(|| own_mac(wanted.interface.uuid)),
        }
    }

    fn set_up(&mut self, kind: &Kind, name: &str, mac: MacAddr, mtu: u16) -> Result<Backend, String> {
        let no_index = || "the switch has as many ports as it can".to_owned();
        match kind {
            Kind::Local | Kind::Kernel { .. } => {
                let index = self.free_index().ok_or_else(no_index)?;
                let queues = match kind {
                    Kind::Kernel { queues } => queues.clone()?,
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
            Kind::Netdev => {
                let index = self.free_index().ok_or_else(no_index)?;
                let port = NetdevPort::open(name, &self.parts)?;
                Ok(Backend::Netdev { index, port })
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
                        format!(
                            "no memory for the rings of port {port} ({e}); raise other_config:dpdk-socket-mem and start \
                             the switch again"
                        )
                    })?;
                    self.clients.memory.insert(*port, memory);
                }
                Ok(Backend::Client { index, port: *port })
            }
            Kind::Ethdev { device, options } => {
                let index = self.free_index().ok_or_else(no_index)?;
                self.start_device(device, &options.clone()?.setup(mtu), index)
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

    /// The number asked for, else that of a historic name, else the one it had, else the lowest one free on the bridge.
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
        let former = wanted.interface.ofport.0.filter(free);
        asked
            .or(historic)
            .or(former)
            .or_else(|| (1..=65279).find(free))
            .unwrap_or(0)
    }
}
