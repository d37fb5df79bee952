//! The switch as its control thread sees it: bridges and ports as configured, clients as attached, and how both become
//! a datapath snapshot.
//!
//! | module | what is in it |
//! |---|---|
//! | [`whole`] | what the Open_vSwitch row asks for without effect |
//! | [`bridges`] | what a Bridge row asks for |
//! | [`ports`] | what a Port row and its Interface row ask for, [`kind`]: which kind of port |
//! | [`mirrors`] | what Mirror rows ask for |
//! | [`kernel`] | interfaces in the host kernel |
//! | [`netdevs`] | interfaces that the host has already |
//! | [`limits`] | what an Interface row limits its traffic to |
//! | [`clients`] | ring ports' memory and their clients |
//! | [`devices`] | NICs and vdevs behind ports, [`pci`]: where the kernel has them |
//! | [`reconcile`] | from the database's configuration to bridges and ports |
//! | [`attachments`] | clients that come and go |
//! | [`queues`] | which PMD thread polls which receive queue |
//! | [`overload`] | what the log says of drops |
//! | [`report`] | what the database shows of it all |
//! | [`commands`], [`pmd_commands`] | ovs-appctl |

pub mod attachments;
pub mod bridges;
pub mod clients;
pub mod commands;
pub mod devices;
pub mod kernel;
pub mod kind;
pub mod limits;
pub mod mirrors;
pub mod netdevs;
pub mod overload;
pub mod pci;
pub mod pmd_commands;
pub mod ports;
pub mod queues;
pub mod reconcile;
pub mod report;
pub mod whole;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use vswitch_common::eal::locks::SharedLocks;
use vswitch_common::ethdev::{self, Link, Setup};
use vswitch_common::netdev::State;
use vswitch_common::stats::layout::MAX_PORTS;
use vswitch_common::stats::{PortBlock, PortInfo, Segment};
use vswitch_control::config::SwitchConfig;
use vswitch_control::{MacAddr, Uuid};

use crate::attach::{Admission, ClientId, Notice};
use crate::datapath::clock::Clock;
use crate::datapath::ledger::Ledger;
use crate::datapath::limit::Limiter;
use crate::datapath::mac_table::MacTable;
use crate::datapath::port::{EthdevIo, FrameLimit, Io, NO_BRIDGE, Port, PortIndex};
use crate::datapath::snapshot::{Bridge, Publisher, Snapshot};
use crate::datapath::vlan::VlanPolicy;
use crate::pmds::Pmds;

use clients::Clients;
use kernel::{KernelPort, Watch};
use kind::Kind;
use mirrors::Mirrors;
use netdevs::NetdevPort;
use overload::Overload;
use queues::Queues;
use whole::Started;

/// A configured bridge.
#[derive(Debug)]
pub struct BridgeState {
    pub uuid: Uuid,
    pub name: String,
    pub mac: MacAddr,
    pub datapath_id: String,
    pub forward_reserved: bool,
    pub table: Arc<MacTable>,
    pub mirrors: Mirrors,
    /// What is wrong with its row, though it works.
    pub complaints: Vec<String>,
}

/// A configured interface, working or not.
#[derive(Debug)]
pub struct PortState {
    pub uuid: Uuid,
    pub name: String,
    pub bridge: String,
    pub ofport: u16,
    pub vlan: VlanPolicy,
    pub mtu: u16,
    /// As the database wants it.
    pub mtu_request: Option<u16>,
    /// What keeps what comes in to its limits.
    pub limiter: Option<Arc<Limiter>>,
    /// The CPUs that receive queues are pinned to.
    pub affinity: BTreeMap<u16, usize>,
    /// Its client is to poll when idle.
    pub busy_poll: bool,
    /// What is wrong with its rows, though it works.
    pub complaints: Vec<String>,
    pub kind: Kind,
    pub backend: Backend,
}

/// What is behind a port.
#[derive(Debug)]
pub enum Backend {
    /// The bridge's own port on a host that gives it no interface, and why.
    Local(String),
    /// An interface in the host kernel.
    Kernel { index: PortIndex, port: KernelPort },
    /// An interface that the host has.
    Netdev { index: PortIndex, port: NetdevPort },
    /// A client ring port with its datapath index.
    Client { index: PortIndex, port: u16 },
    /// A running device.
    Ethdev {
        index: PortIndex,
        io: Arc<EthdevIo>,
        link: Link,
        /// As the database wants it.
        setup: Setup,
    },
    /// It could not be set up.
    Failed(String),
}

/// Logs complaints of `who` that are new, and keeps them all in `old`.
fn complain(who: &str, old: &mut Vec<String>, new: Vec<String>) {
    for text in new.iter().filter(|text| !old.contains(text)) {
        log::warn!("{who}{text}");
    }
    *old = new;
}

/// A complaint of columns of a row that ask for what the switch does not have.
fn unsupported(columns: &[&str]) -> Option<String> {
    (!columns.is_empty()).then(|| format!("not supported and without effect: {}", columns.join(", ")))
}

impl PortState {
    fn index(&self) -> Option<PortIndex> {
        match self.backend {
            Backend::Client { index, .. }
            | Backend::Ethdev { index, .. }
            | Backend::Kernel { index, .. }
            | Backend::Netdev { index, .. } => Some(index),
            Backend::Local(_) | Backend::Failed(_) => None,
        }
    }

    /// Whom the log is about.
    fn who(&self) -> String {
        format!("bridge {}: port {}: ", self.bridge, self.name)
    }

    /// Why it does not work, and what is wrong with its rows.
    fn faults(&self) -> Vec<String> {
        let reason = match &self.backend {
            Backend::Local(reason) | Backend::Failed(reason) => Some(reason),
            _ => None,
        };
        let complaints = reason.into_iter().chain(&self.complaints).cloned();
        complaints.chain(self.shortfalls()).collect()
    }

    /// What its device has less of than its row asks for.
    fn shortfalls(&self) -> Vec<String> {
        // A kernel that refused an MTU says more than the numbers.
        let (mtu, refused) = match &self.backend {
            Backend::Kernel { port, .. } if port.mtu_fault.is_some() => (0, port.mtu_fault.clone()),
            _ => (self.mtu_request.unwrap_or(0), None),
        };
        let amounts = match (&self.kind, &self.backend) {
            (_, Backend::Ethdev { io, setup, .. }) => vec![
                ("mtu_request", mtu, io.device.mtu()),
                ("options:n_rxq", setup.rx_queues, io.device.rx_queues()),
                ("options:n_txq", setup.tx_queues, io.device.tx_queues()),
            ],
            (Kind::Kernel { queues: Ok(queues) }, Backend::Kernel { port, .. }) => vec![
                ("mtu_request", mtu, port.mtu),
                ("options:n_rxq", *queues, port.io.device.rx_queues()),
            ],
            (_, Backend::Kernel { port, .. }) => vec![("mtu_request", mtu, port.mtu)],
            (_, Backend::Netdev { port, .. }) => vec![("mtu_request", mtu, port.mtu())],
            _ => Vec::new(),
        };
        let short = amounts.into_iter().filter(|&(_, asked, has)| has < asked);
        let named = short.map(|(what, asked, has)| {
            format!("{what}={asked} is more than its device can do, which has {has}")
        });
        refused.into_iter().chain(named).collect()
    }
}

/// The parts of the process that the switch works with.
#[derive(Debug)]
pub struct Parts {
    pub ledger: Arc<Ledger>,
    pub segment: Arc<Segment>,
    pub publisher: Arc<Publisher>,
    pub clock: Clock,
    pub pmds: Pmds,
    /// The control thread's own counters.
    pub stats: PortBlock,
    pub admission: Admission,
    /// EAL's locks, to free those of a client that died with them. None: they can't be watched.
    pub locks: Option<SharedLocks>,
    pub watch: Watch,
    pub started: Started,
}

/// The switch.
#[derive(Debug)]
pub struct Switch {
    parts: Parts,
    config: SwitchConfig,
    bridges: BTreeMap<String, BridgeState>,
    /// By interface name.
    ports: BTreeMap<String, PortState>,
    clients: Clients,
    queues: Queues,
    max_sleep: Option<Duration>,
    /// What is wrong with what the database says of the switch as a whole.
    complaints: Vec<String>,
    overload: Overload,
    /// Devices that EAL attached at its start, by DPDK's port id.
    first_devices: Vec<(u16, String)>,
    /// The devices that historic ports have, or had when they were last there, by the number in the port's name.
    numbered: BTreeMap<u16, String>,
    /// Devices that could be had when ports were last set up.
    devices_tried: Vec<String>,
    /// What is of no use any more, and can't be let go at any time.
    discarded: Vec<Discarded>,
    /// What the attach server is to tell clients when a change is through.
    notices: Vec<(ClientId, Notice)>,
}

/// Something that DPDK's locks have to be taken for to let it go.
#[derive(Debug)]
enum Discarded {
    /// The rings of a ring port that lost its client after its configuration.
    Rings(u16),
    /// A port of which the host has deleted the interface.
    Backend(Backend),
}

impl Switch {
    /// A switch with nothing configured, after EAL has started.
    pub fn new(parts: Parts) -> Switch {
        Switch {
            parts,
            config: SwitchConfig::default(),
            bridges: BTreeMap::new(),
            ports: BTreeMap::new(),
            clients: Clients::default(),
            queues: Queues::default(),
            max_sleep: None,
            complaints: Vec::new(),
            overload: Overload::default(),
            first_devices: ethdev::attached_devices(),
            numbered: BTreeMap::new(),
            devices_tried: Vec::new(),
            discarded: Vec::new(),
            notices: Vec::new(),
        }
    }

    /// The lowest free datapath index.
    fn free_index(&self) -> Option<PortIndex> {
        (0..MAX_PORTS as PortIndex)
            .find(|&i| !self.ports.values().any(|p| p.index() == Some(i)) && !self.clients.holds_index(i))
    }

    /// Gives the PMD threads the present state to work by. When it returns, nothing older is in use.
    fn publish(&mut self) {
        let names: Vec<&String> = self.bridges.keys().collect();
        let mut snapshot = Snapshot {
            max_sleep: self.max_sleep,
            ..Snapshot::default()
        };
        snapshot.bridges = self
            .bridges
            .values()
            .map(|b| Bridge {
                table: b.table.clone(),
                ports: Vec::new(),
                mirrors: b.mirrors.in_datapath(|name| self.index_on(b, name)),
                forward_reserved: b.forward_reserved,
            })
            .collect();
        let outputs: Vec<BTreeSet<&str>> = self.bridges.values().map(|b| b.mirrors.outputs()).collect();
        for state in self.ports.values() {
            let (Some(index), Ok(bridge)) = (state.index(), names.binary_search(&&state.bridge)) else {
                continue;
            };
            let io = match &state.backend {
                Backend::Client { port, .. } => match self.clients.claims.get(port) {
                    Some(claim) if claim.index == index => Io::Client(claim.session.clone()),
                    _ => Io::Down,
                },
                Backend::Ethdev { io, .. } => Io::Ethdev(io.clone()),
                Backend::Kernel { port, .. } if port.state == State::Up => Io::Ethdev(port.io.clone()),
                Backend::Netdev { port, .. } if port.is_up() => Io::Ethdev(port.io.clone()),
                Backend::Kernel { .. } | Backend::Netdev { .. } | Backend::Local(_) | Backend::Failed(_) => {
                    Io::Down
                }
            };
            let at = usize::from(index);
            if snapshot.ports.len() <= at {
                snapshot.ports.resize_with(at + 1, || None);
            }
            let is_output = outputs[bridge].contains(state.name.as_str());
            if !is_output {
                snapshot.bridges[bridge].ports.push(index);
            }
            let max_frame = match &state.backend {
                Backend::Kernel { port, .. } => FrameLimit::of_mtu(port.mtu.into()),
                Backend::Netdev { port, .. } => FrameLimit::of_packet_socket(port.mtu().into()),
                _ => FrameLimit::of_mtu(state.mtu.into()),
            };
            snapshot.ports[at] = Some(Arc::new(Port {
                index,
                bridge: if is_output { NO_BRIDGE } else { bridge },
                vlan: state.vlan.clone(),
                max_frame,
                limiter: state.limiter.clone(),
                io,
            }));
        }
        self.assign_queues(&mut snapshot);
        self.parts.publisher.publish(snapshot);
        self.describe_ports();
    }

    /// The datapath index of interface `name` if it is on `bridge` and works.
    fn index_on(&self, bridge: &BridgeState, name: &str) -> Option<PortIndex> {
        let port = self.ports.get(name)?;
        port.index().filter(|_| port.bridge == bridge.name)
    }

    /// Writes who is who into the stats segment.
    fn describe_ports(&self) {
        for state in self.ports.values() {
            let Some(index) = state.index() else { continue };
            let (id, link) = match &state.backend {
                Backend::Client { port, .. } => (Some(u32::from(*port)), self.has_client(*port, index)),
                Backend::Ethdev { io, link, .. } => (Some(u32::from(io.device.port())), link.up),
                Backend::Kernel { port, .. } => {
                    (Some(u32::from(port.io.device.port())), port.state == State::Up)
                }
                Backend::Netdev { port, .. } => (Some(u32::from(port.io.device.port())), port.link().up),
                Backend::Local(_) | Backend::Failed(_) => (None, false),
            };
            let info = PortInfo {
                name: state.name.clone(),
                bridge: state.bridge.clone(),
                ofport: state.ofport.into(),
                id,
                link,
            };
            self.parts.segment.set_port(index.into(), Some(&info));
        }
    }

    fn has_client(&self, port: u16, index: PortIndex) -> bool {
        self.clients.claims.get(&port).is_some_and(|c| c.index == index)
    }

    /// Gives up what is behind port `name` and can't be let go now; the port has failed then, by `why`.
    fn discard(&mut self, name: &str, why: &str) {
        let Some(state) = self.ports.get_mut(name) else {
            return;
        };
        let index = state.index();
        let failed = state.kind.without_backend(why.to_owned());
        let backend = std::mem::replace(&mut state.backend, failed);
        self.publish();
        self.discarded.push(Discarded::Backend(backend));
        if let Some(index) = index {
            self.forget_port(index);
        }
    }

    /// Once a second: ageing, link state, and the counters that are only looked at.
    pub fn tick(&mut self) {
        let now = self.parts.clock.now();
        for bridge in self.bridges.values() {
            bridge.table.expire(now);
        }
        self.watch_netdevs();
        self.look_at_links();
        self.watch_kernel_ports();
        self.mirror_client_counters();
        self.watch_clients();
        self.watch_drops();
        self.watch_queues();
        self.parts.pmds.keep_pinned();
        let ledger = &self.parts.ledger;
        self.parts
            .segment
            .set_pool(ledger.size().into(), ledger.available().into());
    }

    /// Names the causes of drops in the log.
    fn watch_drops(&mut self) {
        for state in self.ports.values() {
            let Some(index) = state.index() else { continue };
            let total = |counter| self.parts.segment.total(index.into(), counter);
            for (text, count) in self.overload.look(index, total) {
                log::warn!("{} {text} ({count} so far)", state.name);
            }
        }
    }

    /// What clients are to be told.
    pub fn take_notices(&mut self) -> Vec<(ClientId, Notice)> {
        std::mem::take(&mut self.notices)
    }

    /// Is there anything for [`Switch::let_go`]?
    pub fn has_discarded(&self) -> bool {
        !self.discarded.is_empty()
    }

    /// Lets go of what is gone or of no use any more. As a configuration does, it waits for DPDK's locks, which a client may hold
    /// while it initialises EAL.
    pub fn let_go(&mut self) {
        self.drop_removed_devices();
        for discarded in std::mem::take(&mut self.discarded) {
            match discarded {
                Discarded::Rings(port) if self.is_ring_port(port) => {}
                Discarded::Rings(port) => self.clients.free_if_unused(port),
                Discarded::Backend(backend) => drop(backend),
            }
        }
    }

    /// Stops the datapath and lets go of every device; `alone`: no client is left. One that can't be ended may hold DPDK's
    /// locks for ever, and what they would be needed for is left to the kernel, as in a crash.
    pub fn shut_down(mut self, alone: bool) -> Parts {
        let (ports, discarded) = (
            std::mem::take(&mut self.ports),
            std::mem::take(&mut self.discarded),
        );
        // First of all, so that it is this thread that ends devices.
        self.publish();
        if alone {
            drop((ports, discarded));
        } else {
            std::mem::forget((ports, discarded));
        }
        self.parts.pmds.stop();
        for (_, claim) in self.clients.claims.drain() {
            claim.session.reclaim(&self.parts.ledger);
        }
        if alone {
            self.clients.memory.drain().for_each(|(_, memory)| memory.free());
        }
        self.parts
    }
}
