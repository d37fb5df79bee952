//! Clients that come and go.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vswitch_common::eal::locks::SharedLocks;
use vswitch_common::ethdev;
use vswitch_common::fault::{self, Point};
use vswitch_common::port::QUOTA;
use vswitch_common::port::doorbell::{self, Bell, Ringer};
use vswitch_common::port::layout::ClientStats;
use vswitch_common::port::message::{Attached, Hello, QueueAddresses, Reason};
use vswitch_common::stats::{Counter, Segment};

use super::clients::{Claim, for_clients};
use super::{Backend, Discarded, Switch};
use crate::attach::{Admission, ClientId, Notice, Ports, Refused};
use crate::datapath::client_port::Session;
use crate::datapath::port::PortIndex;

/// Finds a counter in a client's control block.
type CounterOf = fn(&ClientStats) -> &AtomicU64;

/// What clients count, and where it is shown.
const MIRRORED: &[(Counter, CounterOf)] = &[
    (Counter::GuestTxTooLong, |s| &s.tx_too_long),
    (Counter::GuestTxBadHeader, |s| &s.tx_bad_header),
    (Counter::GuestTxTooShort, |s| &s.tx_too_short),
    (Counter::GuestRxNotReady, |s| &s.rx_not_ready),
    (Counter::GuestRxTooLong, |s| &s.rx_too_long),
    (Counter::GuestBrokenQueues, |s| &s.broken_virtqueues),
    (Counter::GuestTxLarge, |s| &s.tx_large),
    (Counter::GuestRxLarge, |s| &s.rx_large),
];

/// Wrong ring entries that end an attachment, however slowly they come: no honest client hands in a single one.
const OFFENCES_TO_EVICT: u64 = 1000;

impl Switch {
    /// Once a second: names clients that hand in what is not theirs, each time that is twice as much as before, and
    /// parts with those that go on.
    pub(super) fn watch_clients(&mut self) {
        for (port, claim) in &mut self.clients.claims {
            let offences = offences(&self.parts.segment, claim.index).saturating_sub(claim.offences_before);
            if offences < claim.named_at {
                continue;
            }
            if offences < OFFENCES_TO_EVICT {
                log::warn!(
                    "port {port}: its client has put {offences} wrong entries on its rings; they were ignored"
                );
                claim.named_at = (2 * offences).min(OFFENCES_TO_EVICT);
            } else {
                let text = format!("port {port}: {offences} wrong ring entries");
                log::warn!("{text}; the client is detached");
                self.parts.stats.add(claim.index.into(), Counter::Evicted, 1);
                let refused = Refused {
                    reason: Reason::Misbehaved,
                    text,
                };
                self.notices.push((claim.client, Notice::Evicted(refused)));
                claim.named_at = u64::MAX;
            }
        }
    }

    /// The configured interface of ring port `port`: its name.
    fn client_port(&self, port: u16) -> Result<&super::PortState, Refused> {
        let found = self
            .ports
            .values()
            .find(|s| matches!(s.backend, Backend::Client { port: p, .. } if p == port));
        found.ok_or_else(|| {
            let text = format!(
                "port {port} does not exist on the switch; add it with 'ovs-vsctl add-port BRIDGE dpdkr{port} -- set \
                 Interface dpdkr{port} type=dpdkr'"
            );
            Refused { reason: Reason::NoSuchPort, text }
        })
    }

    /// Is ring port `port` configured?
    pub(super) fn is_ring_port(&self, port: u16) -> bool {
        self.client_port(port).is_ok()
    }

    /// Copies what clients count into the stats segment.
    pub(super) fn mirror_client_counters(&self) {
        for claim in self.clients.claims.values() {
            let index = usize::from(claim.index);
            for ((counter, of), before) in MIRRORED.iter().zip(&claim.counted_before) {
                // Wrapping: a client writes there what it likes.
                let sum = claim.session.queues().iter().fold(*before, |sum, q| {
                    sum.wrapping_add(of(q.client_stats()).load(Ordering::Relaxed))
                });
                self.parts.stats.set(index, *counter, sum);
            }
        }
    }
}

impl Ports for Switch {
    fn check(&mut self, hello: &Hello) -> Result<Admission, Refused> {
        self.client_port(hello.port)?;
        Ok(self.parts.admission.clone())
    }

    fn attach(
        &mut self,
        client: ClientId,
        hello: &Hello,
        node: Option<usize>,
        send: &mut dyn FnMut(&Attached, &[BorrowedFd<'_>]) -> bool,
    ) -> Result<(), Refused> {
        // EAL made an IPC socket for it, which nobody shall wait on.
        ethdev::leave_ipc(&ethdev::eal_runtime_dir());
        let state = self.client_port(hello.port)?;
        let (mtu, name, busy_poll) = (state.mtu, state.name.clone(), state.busy_poll);
        let Some(index) = state.index() else {
            let text = format!("port {} is not set up", hello.port);
            return Err(Refused {
                reason: Reason::NoSuchPort,
                text,
            });
        };
        let no_memory = |why: String| Refused {
            reason: Reason::NoMemory,
            text: format!(
                "port {}: {why}; raise other_config:dpdk-socket-mem and start the switch again",
                hello.port
            ),
        };
        let queues = usize::from(hello.queues);
        // All clients together must leave something for devices and copies.
        let others: usize = self
            .clients
            .claims
            .values()
            .map(|c| c.session.queues().len())
            .sum();
        let mbufs = self.parts.ledger.size() as usize;
        if (others + queues) * QUOTA as usize > for_clients(mbufs) {
            return Err(no_memory(format!(
                "{mbufs} mbufs are too few for {queues} more queue pair(s) beside {others}"
            )));
        }
        let pool = self.clients.pool_for(node, queues, self.parts.ledger.pools());
        // Where no other node has memory, they lie where they should.
        let several_nodes = self.parts.ledger.pools().len() > 1;
        let memory = self
            .clients
            .memory_on(hello.port, node.filter(|_| several_nodes))
            .map_err(no_memory)?;
        memory.grow(hello.port, queues).map_err(no_memory)?;
        let place = match memory.node().filter(|_| several_nodes) {
            Some(node) => format!(", rings on NUMA node {node}"),
            None => String::new(),
        };
        let memory = memory.reset(queues);

        let mut answer = Attached::new(queues as u32, true, mtu.into());
        for (address, m) in answer.queue.iter_mut().zip(&memory) {
            *address = QueueAddresses {
                alloc: m.alloc.address() as u64,
                tx: m.tx.address() as u64,
                rx: m.rx.address() as u64,
                free: m.free.address() as u64,
                control: m.control.address() as u64,
            };
        }
        // For each queue pair the ends that the client gets, and those that stay here.
        let mut theirs: Vec<OwnedFd> = Vec::with_capacity(2 * queues);
        let mut ours: Vec<(Bell, Ringer)> = Vec::with_capacity(queues);
        for _ in 0..queues {
            let pairs = doorbell::pair().and_then(|to_switch| Ok((to_switch, doorbell::pair()?)));
            let ((their_ringer, bell), (ringer, their_bell)) = pairs.map_err(|e| Refused {
                reason: Reason::NoMemory,
                text: format!(
                    "port {}: no descriptors for its doorbells ({e}); raise the switch's limit of open files \
                         (LimitNOFILE= of its unit, or ulimit -n)",
                    hello.port
                ),
            })?;
            theirs.extend([their_ringer.into(), their_bell.into()]);
            ours.push((bell, ringer));
        }
        let fds: Vec<BorrowedFd<'_>> = theirs.iter().map(AsFd::as_fd).collect();
        let parts = memory
            .into_iter()
            .zip(ours)
            .map(|(m, (bell, ringer))| (m, bell, ringer));
        // SAFETY: the rings are this port's, just emptied, and there is no other session: the last one was released.
        let session = Arc::new(unsafe { Session::new(index, pool, parts.collect()) });
        if busy_poll {
            session.set_busy_poll(true);
        }
        self.clients.claims.insert(
            hello.port,
            Claim {
                client,
                index,
                session,
                node,
                counted_before: MIRRORED
                    .iter()
                    .map(|(counter, _)| self.parts.segment.total(index.into(), *counter))
                    .collect(),
                offences_before: offences(&self.parts.segment, index),
                named_at: 1,
            },
        );
        // Before the answer: who reads it may send at once, and is found by what others send.
        self.publish();
        // A client that does not take the answer is gone; its release follows.
        if !send(&answer, &fds) {
            return Err(Refused {
                reason: Reason::Malformed,
                text: "the client does not read its answer".into(),
            });
        }
        fault::point(Point::AttachAnswered);
        self.parts.stats.add(index.into(), Counter::Attached, 1);
        log::info!(
            "port {} ({name}): {} attached, {queues} queue pair(s){place}",
            hello.port,
            display(hello)
        );
        Ok(())
    }

    fn died_in_turn(&mut self, hello: &Hello) {
        let freed = self
            .parts
            .locks
            .as_ref()
            .map(SharedLocks::free_dead)
            .unwrap_or_default();
        if !freed.is_empty() {
            log::warn!(
                "port {}: {} died while it initialised EAL and held DPDK's {} lock; freed",
                hello.port,
                display(hello),
                freed.join(" and ")
            );
        }
    }

    fn release(&mut self, client: ClientId, hello: &Hello) {
        ethdev::leave_ipc(&ethdev::eal_runtime_dir());
        let port = hello.port;
        if self.clients.claims.get(&port).is_none_or(|c| c.client != client) {
            // It never got as far as its rings.
            return;
        }
        self.mirror_client_counters();
        let Some(claim) = self.clients.claims.remove(&port) else {
            return;
        };
        // No thread works on the session any more when this returns.
        self.publish();
        fault::point(Point::ReleaseUnpublished);
        self.flush_learned(claim.index);
        let reclaimed = claim.session.reclaim(&self.parts.ledger);
        fault::point(Point::Reclaimed);
        log::info!(
            "port {port}: {} is gone, {reclaimed} mbufs taken back",
            display(hello)
        );
        if !self.is_ring_port(port) {
            self.discarded.push(Discarded::Rings(port));
        }
    }
}

/// Wrong ring entries that all clients of a port have handed in.
fn offences(segment: &Segment, index: PortIndex) -> u64 {
    let total = |counter| segment.total(index.into(), counter);
    total(Counter::RxBadMbuf) + total(Counter::RxBadRing)
}

fn display(hello: &Hello) -> String {
    let name = hello.name.get();
    if name.is_empty() {
        "a client".into()
    } else {
        format!("\"{name}\"")
    }
}
