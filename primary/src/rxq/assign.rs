//! Deals receive queues out to PMD threads, by the rules of Open vSwitch's `sched_numa_list_schedule`.
//!
//! A queue goes to a thread on its own NUMA node. Where there is none that takes it, all nodes' threads share such queues.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::settings::{Algorithm, Policy};
use crate::datapath::snapshot::RxQueue;

/// A receive queue that wants a thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    pub queue: RxQueue,
    /// The CPU whose thread is to have it.
    pub pinned: Option<usize>,
    /// Where the device, or the client, is.
    pub node: Option<usize>,
    /// Ticks that it cost in the last minute; 0: idle or new.
    pub busy: u64,
}

/// Where a thread runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// `None`: on any CPU.
    pub cpu: Option<usize>,
    pub node: Option<usize>,
}

/// What a thread polls.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Share {
    pub queues: Vec<RxQueue>,
    /// It has pinned queues, and takes no others.
    pub isolated: bool,
    /// Ticks that the queues cost in the last minute.
    busy: u64,
}

/// Who polls what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assignment {
    /// By thread.
    pub shares: Vec<Share>,
    /// Pinned to a CPU that has no thread; dealt out as if they were not.
    pub misplaced: Vec<(RxQueue, usize)>,
    /// For want of a thread that is not isolated.
    pub unpolled: Vec<RxQueue>,
}

/// Deals `demands` out to the threads at `places`. The same demands always give the same.
pub fn assign(places: &[Place], demands: &[Demand], policy: Policy) -> Assignment {
    let mut assignment = Assignment {
        shares: vec![Share::default(); places.len()],
        ..Assignment::default()
    };
    let mut floating: Vec<Demand> = Vec::with_capacity(demands.len());
    for demand in demands {
        let Some(cpu) = demand.pinned else {
            floating.push(*demand);
            continue;
        };
        match places.iter().position(|place| place.cpu == Some(cpu)) {
            Some(thread) => {
                let share = &mut assignment.shares[thread];
                share.take(demand);
                share.isolated |= policy.isolate;
            }
            None => {
                assignment.misplaced.push((demand.queue, cpu));
                floating.push(*demand);
            }
        }
    }
    floating.sort_by_key(|d| {
        let heaviest_first = match policy.algorithm {
            Algorithm::RoundRobin => 0,
            Algorithm::Cycles | Algorithm::Group => d.busy,
        };
        (Reverse(heaviest_first), d.queue)
    });
    let open = |wanted: Option<usize>| -> Vec<usize> {
        (0..places.len())
            .filter(|&thread| !assignment.shares[thread].isolated)
            .filter(|&thread| wanted.is_none() || places[thread].node == wanted)
            .collect()
    };
    // The threads for a node's queues, and how many of them have had theirs; those of no node, for all others.
    let mut sides: BTreeMap<Option<usize>, (Vec<usize>, usize)> = places
        .iter()
        .map(|place| place.node)
        .chain([None])
        .map(|node| (node, (open(node), 0)))
        .collect();
    for demand in &floating {
        let shares = &mut assignment.shares;
        let has_open = |node: &usize| sides.get(&Some(*node)).is_some_and(|(open, _)| !open.is_empty());
        let side = demand.node.filter(has_open);
        let Some((open, turns)) = sides.get_mut(&side) else {
            continue;
        };
        let turn = *turns;
        *turns += 1;
        let thread = match policy.algorithm {
            _ if open.is_empty() => None,
            Algorithm::RoundRobin => open.get(turn % open.len()),
            Algorithm::Cycles => open.get(there_and_back(turn, open.len())),
            Algorithm::Group if demand.busy > 0 => open.iter().min_by_key(|&&t| shares[t].busy),
            Algorithm::Group => open.iter().min_by_key(|&&t| shares[t].queues.len()),
        };
        match thread {
            Some(&thread) => shares[thread].take(demand),
            None => assignment.unpolled.push(demand.queue),
        }
    }
    assignment
}

impl Share {
    fn take(&mut self, demand: &Demand) {
        self.queues.push(demand.queue);
        self.busy += demand.busy;
    }
}

/// 0, 1, 2, 2, 1, 0, 0, 1, ... for three places.
fn there_and_back(turn: usize, places: usize) -> usize {
    let step = turn % (2 * places);
    step.min(2 * places - 1 - step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const fn place(cpu: usize, node: usize) -> Place {
        Place {
            cpu: Some(cpu),
            node: Some(node),
        }
    }

    const CPUS: [Place; 3] = [place(3, 0), place(7, 0), place(8, 0)];

    fn queue(port: u16, queue: u16) -> RxQueue {
        RxQueue { port, queue }
    }

    /// Queues 0, 1, ... of one port with these costs.
    fn demands(busy: &[u64]) -> Vec<Demand> {
        let demand = |(n, &busy): (usize, &u64)| Demand {
            queue: queue(0, n as u16),
            pinned: None,
            node: Some(0),
            busy,
        };
        busy.iter().enumerate().map(demand).collect()
    }

    fn policy(algorithm: Algorithm) -> Policy {
        Policy {
            algorithm,
            isolate: true,
        }
    }

    fn numbers(assignment: &Assignment) -> Vec<Vec<u16>> {
        let of = |share: &Share| share.queues.iter().map(|q| q.queue).collect();
        assignment.shares.iter().map(of).collect()
    }

    /// The examples of Open vSwitch's Documentation/topics/dpdk/pmd.rst.
    #[test]
    fn the_examples_of_the_manual() {
        let cycles = assign(&CPUS, &demands(&[30, 80, 60, 70, 10]), policy(Algorithm::Cycles));
        assert_eq!(numbers(&cycles), [vec![1], vec![3, 4], vec![2, 0]]);
        let group = assign(&CPUS, &demands(&[10, 80, 50, 70, 10]), policy(Algorithm::Group));
        assert_eq!(numbers(&group), [vec![1], vec![3], vec![2, 0, 4]]);
        let round_robin = assign(
            &CPUS,
            &demands(&[30, 80, 60, 70, 10]),
            policy(Algorithm::RoundRobin),
        );
        assert_eq!(numbers(&round_robin), [vec![0, 3], vec![1, 4], vec![2]]);
    }

    /// As Open vSwitch's tests/pmd.at has it for eight queues on two cores.
    #[test]
    fn new_queues_are_spread_evenly() {
        let new = demands(&[0; 8]);
        let of = |algorithm| numbers(&assign(&CPUS[..2], &new, policy(algorithm)));
        assert_eq!(of(Algorithm::Cycles), [[0, 3, 4, 7], [1, 2, 5, 6]]);
        assert_eq!(of(Algorithm::RoundRobin), [[0, 2, 4, 6], [1, 3, 5, 7]]);
        assert_eq!(of(Algorithm::Group), [[0, 2, 4, 6], [1, 3, 5, 7]]);
    }

    #[test]
    fn a_pinned_queue_keeps_others_away_if_it_isolates() {
        let mut wanted = demands(&[50, 40, 30]);
        wanted[1].pinned = Some(7);
        let isolating = assign(&CPUS[..2], &wanted, policy(Algorithm::Group));
        assert_eq!(numbers(&isolating), [vec![0, 2], vec![1]]);
        assert_eq!(
            isolating.shares.iter().map(|s| s.isolated).collect::<Vec<_>>(),
            [false, true]
        );
        let shared = Policy {
            algorithm: Algorithm::Group,
            isolate: false,
        };
        let sharing = assign(&CPUS[..2], &wanted, shared);
        assert_eq!(numbers(&sharing), [vec![0], vec![1, 2]]);
    }

    #[test]
    fn what_has_no_thread_is_named() {
        let mut wanted = demands(&[0, 0]);
        wanted[0].pinned = Some(5);
        let elsewhere = assign(&CPUS, &wanted, policy(Algorithm::Cycles));
        assert_eq!(elsewhere.misplaced, [(queue(0, 0), 5)]);
        assert_eq!(numbers(&elsewhere), [vec![0], vec![1], vec![]]);
        assert!(elsewhere.shares.iter().all(|s| !s.isolated));
        wanted[0].pinned = Some(3);
        let nowhere = assign(&CPUS[..1], &wanted, policy(Algorithm::Cycles));
        assert_eq!(nowhere.unpolled, [queue(0, 1)]);
        // A thread without a CPU of its own is nobody's to be pinned to.
        let anywhere = Place {
            cpu: None,
            node: None,
        };
        assert_eq!(
            assign(&[anywhere], &wanted, policy(Algorithm::Cycles)).misplaced,
            [(queue(0, 0), 3)]
        );
    }

    #[test]
    fn queues_stay_on_their_node() {
        let places = [place(0, 0), place(1, 0), place(8, 1), place(9, 1)];
        let mut wanted = demands(&[50, 40, 30, 20, 10, 5]);
        for (n, demand) in wanted.iter_mut().enumerate() {
            demand.node = [Some(1), Some(0), Some(1), None, Some(7), Some(1)][n];
        }
        let of = |wanted: &[Demand]| numbers(&assign(&places, wanted, policy(Algorithm::Cycles)));
        // Those of no node, and of one without a thread, go there and back over all threads.
        assert_eq!(of(&wanted), [vec![1, 3], vec![4], vec![0], vec![2, 5]]);
        // A node whose threads take no others is as one without threads.
        for (n, cpu) in [(0, 8), (2, 9)] {
            wanted[n].pinned = Some(cpu);
        }
        assert_eq!(of(&wanted), [[1, 3].to_vec(), vec![4, 5], vec![0], vec![2]]);
    }

    proptest! {
        #[test]
        fn no_queue_is_lost_or_doubled_and_pins_hold(
            threads in 0usize..5,
            queues in prop::collection::vec(
                (0u16..6, 0u16..4, prop::option::of(0usize..6), prop::option::of(0usize..3), 0u64..4),
                0..24,
            ),
            algorithm in prop::sample::select(vec![Algorithm::Cycles, Algorithm::RoundRobin, Algorithm::Group]),
            isolate: bool,
        ) {
            let places: Vec<Place> = (0..threads).map(|cpu| place(cpu, cpu % 2)).collect();
            let mut seen = BTreeSet::new();
            let wanted: Vec<Demand> = queues
                .iter()
                .map(|&(port, number, pinned, node, busy)| Demand { queue: queue(port, number), pinned, node, busy })
                .filter(|d| seen.insert(d.queue))
                .collect();
            let policy = Policy { algorithm, isolate };
            let found = assign(&places, &wanted, policy);
            let mut all: Vec<RxQueue> = found.shares.iter().flat_map(|s| s.queues.clone()).collect();
            all.extend(&found.unpolled);
            all.sort();
            prop_assert_eq!(all, seen.into_iter().collect::<Vec<_>>());
            prop_assert!(found.unpolled.is_empty() || found.shares.iter().all(|s| s.isolated));
            for (thread, share) in found.shares.iter().enumerate() {
                let pins: Vec<bool> = share.queues.iter().map(|q| {
                    wanted.iter().any(|d| d.queue == *q && d.pinned == Some(thread))
                }).collect();
                prop_assert_eq!(share.isolated, isolate && pins.contains(&true));
                prop_assert!(!share.isolated || !pins.contains(&false));
            }
            for demand in &wanted {
                let at = found.shares.iter().position(|s| s.queues.contains(&demand.queue));
                if let Some(cpu) = demand.pinned {
                    let misplaced = found.misplaced.contains(&(demand.queue, cpu));
                    prop_assert_eq!(misplaced, cpu >= threads);
                    prop_assert!(misplaced || at == Some(cpu));
                    if !misplaced {
                        continue;
                    }
                }
                let open = |place: &Place| {
                    place.node == demand.node && place.cpu.is_some_and(|cpu| !found.shares[cpu].isolated)
                };
                if places.iter().any(open) {
                    prop_assert_eq!(at.map(|at| places[at].node), Some(demand.node));
                }
            }
            // In whatever order they are named.
            let backwards: Vec<Demand> = wanted.iter().rev().copied().collect();
            let again = assign(&places, &backwards, policy);
            let sets = |a: &Assignment| -> Vec<BTreeSet<RxQueue>> {
                a.shares.iter().map(|s| s.queues.iter().copied().collect()).collect()
            };
            prop_assert_eq!(sets(&again), sets(&found));
        }
    }
}
