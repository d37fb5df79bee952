//! The receive queues of the ports, and which PMD thread polls each.

use std::collections::BTreeSet;
use std::time::Instant;

use vswitch_control::config::SwitchConfig;

use super::{Backend, PortState, Switch, complain};
use crate::cpus;
use crate::datapath::port::PortIndex;
use crate::datapath::snapshot::{Assigned, RxQueue, Snapshot};
use crate::rxq::assign::{Assignment, Demand, Place, assign};
use crate::rxq::balance::AutoBalance;
use crate::rxq::settings::{self, Policy};
use crate::rxq::usage::{INTERVAL, INTERVALS, Usage};

/// What there is to deal out, how it was dealt out, and what it costs.
#[derive(Debug)]
pub struct Queues {
    policy: Policy,
    balance: AutoBalance,
    pub usage: Usage,
    /// What `assignment` was made for; `None`: make another.
    wanted: Option<Wanted>,
    pub assignment: Assignment,
    /// What is wrong with the settings, and with the assignment.
    complaints: [Vec<String>; 2],
    /// When the present interval ends, and when to look for a better assignment.
    next_interval: Instant,
    next_look: Instant,
}

impl Default for Queues {
    fn default() -> Queues {
        Queues {
            policy: Policy::default(),
            balance: AutoBalance::default(),
            usage: Usage::default(),
            wanted: None,
            assignment: Assignment::default(),
            complaints: Default::default(),
            next_interval: Instant::now() + INTERVAL,
            next_look: Instant::now(),
        }
    }
}

/// All that calls for another assignment when it changes. What queues cost does not.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    policy: Policy,
    places: Vec<Place>,
    queues: Vec<Polled>,
}

/// A queue, the CPU that it is pinned to, and its NUMA node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Polled {
    queue: RxQueue,
    pinned: Option<usize>,
    node: Option<usize>,
}

impl Queues {
    fn assign(&self, wanted: &Wanted) -> Assignment {
        let demand = |&Polled { queue, pinned, node }: &Polled| Demand {
            queue,
            pinned,
            node,
            busy: self.usage.queue(queue, INTERVALS),
        };
        let demands: Vec<Demand> = wanted.queues.iter().map(demand).collect();
        assign(&wanted.places, &demands, wanted.policy)
    }

    fn polled(&self) -> Vec<Vec<Assigned>> {
        let assigned = |&queue: &RxQueue| Assigned {
            queue,
            busy: self.usage.counter(queue),
        };
        let shares = self.assignment.shares.iter();
        shares
            .map(|share| share.queues.iter().map(assigned).collect())
            .collect()
    }
}

impl Switch {
    /// Takes the settings that are for all queues.
    pub(super) fn configure_queues(&mut self, config: &SwitchConfig) {
        let (policy, balance, complaints) = settings::of_switch(&config.other_config);
        let queues = &mut self.queues;
        complain("", &mut queues.complaints[0], complaints);
        if balance != queues.balance {
            queues.next_look = Instant::now() + balance.interval;
        }
        (queues.policy, queues.balance) = (policy, balance);
    }

    /// Says in `snapshot` which thread polls what. Queues stay where they are while there is no need to move them.
    pub(super) fn assign_queues(&mut self, snapshot: &mut Snapshot) {
        let ports = snapshot.ports.iter().flatten();
        let queues: Vec<Polled> = ports
            .flat_map(|port| {
                let state = self.port_at(port.index);
                let node = state.and_then(|state| self.node_of(state));
                (0..port.rx_queues() as u16).map(move |number| Polled {
                    queue: RxQueue {
                        port: port.index,
                        queue: number,
                    },
                    pinned: state.and_then(|s| s.affinity.get(&number)).copied(),
                    node,
                })
            })
            .collect();
        let cpus = self.parts.pmds.cpus();
        let place = |&cpu: &Option<usize>| Place {
            cpu,
            node: cpu.map(cpus::node),
        };
        let wanted = Wanted {
            policy: self.queues.policy,
            places: cpus.iter().map(place).collect(),
            queues,
        };
        let numbers: Vec<RxQueue> = wanted.queues.iter().map(|polled| polled.queue).collect();
        let pmds = &self.parts.pmds;
        let queues = &mut self.queues;
        queues.usage.follow_queues(&numbers);
        queues.usage.follow_threads(&cpus, |n| pmds.counters(n));
        if queues.wanted.as_ref() != Some(&wanted) {
            queues.assignment = queues.assign(&wanted);
            queues.wanted = Some(wanted);
            self.describe_assignment();
        }
        snapshot.polled = self.queues.polled();
    }

    /// The NUMA node that the frames of a port come from: that of the device, or of the client's CPUs.
    fn node_of(&self, port: &PortState) -> Option<usize> {
        match &port.backend {
            Backend::Client { port, .. } => self.clients.claims.get(port)?.node,
            Backend::Ethdev { io, .. } => io.device.node(),
            Backend::Kernel { .. } | Backend::Netdev { .. } | Backend::Local(_) | Backend::Failed(_) => None,
        }
    }

    /// Deals all queues out anew, by what they cost now.
    pub(super) fn rebalance_queues(&mut self) {
        self.queues.wanted = None;
        self.publish();
    }

    /// Once a second: keeps account, and balances if that is asked for and worth it.
    pub(super) fn watch_queues(&mut self) {
        let now = Instant::now();
        let (queues, pmds) = (&mut self.queues, &self.parts.pmds);
        if now >= queues.next_interval {
            queues.next_interval = now + INTERVAL;
            queues.usage.step(|n| pmds.counters(n));
        }
        let balance = queues.balance;
        if !balance.enabled || now < queues.next_look {
            return;
        }
        queues.next_look = now + balance.interval;
        let Some(wanted) = &queues.wanted else { return };
        let (present, usage) = (&queues.assignment, &queues.usage);
        if balance.is_called_for(present, usage, wanted.policy)
            && balance.is_worth_it(present, &queues.assign(wanted), usage)
        {
            log::info!("a PMD thread is overloaded: the receive queues are dealt out anew");
            self.rebalance_queues();
        }
    }

    /// The name of the port with that receive queue.
    pub(super) fn port_of(&self, queue: RxQueue) -> &str {
        self.port_at(queue.port).map_or("?", |p| &p.name)
    }

    fn port_at(&self, index: PortIndex) -> Option<&PortState> {
        self.ports.values().find(|p| p.index() == Some(index))
    }

    fn describe_assignment(&mut self) {
        let Queues {
            policy, assignment, ..
        } = &self.queues;
        log::debug!(
            "receive queues dealt out to PMD threads by {}",
            policy.algorithm.name()
        );
        for (thread, share) in assignment.shares.iter().enumerate() {
            for &queue in &share.queues {
                let (name, number) = (self.port_of(queue), queue.queue);
                log::debug!("PMD thread {thread} polls receive queue {number} of port {name}");
            }
        }
        let misplaced = assignment.misplaced.iter().map(|&(queue, cpu)| {
            format!(
                "port {}: receive queue {} is pinned to core {cpu}, which has no PMD thread; another polls it (add the core \
                 to other_config:pmd-cpu-mask)",
                self.port_of(queue),
                queue.queue
            )
        });
        // By port: they are many at once.
        let unpolled: BTreeSet<&str> = assignment.unpolled.iter().map(|&q| self.port_of(q)).collect();
        let unpolled = unpolled.into_iter().map(|name| {
            format!(
                "port {name}: not polled where it is not pinned, since queues are pinned to every PMD thread; pin it as well, \
                 or add a core to other_config:pmd-cpu-mask"
            )
        });
        let complaints = misplaced.chain(unpolled).collect();
        complain("", &mut self.queues.complaints[1], complaints);
    }
}
