//! Automatic load balancing (`pmd-auto-lb`): is another assignment of receive queues worth the trouble?
//!
//! As Open vSwitch has it: when a thread was overloaded for a minute, an assignment by the present costs is tried on paper,
//! and used if the loads of the threads then differ less, by so much of their variance.

use std::time::Duration;

use super::assign::Assignment;
use super::settings::{Algorithm, Policy};
use super::usage::{INTERVALS, Usage};

/// When it acts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct AutoBalance {
    pub enabled: bool,
    /// Between two looks at least.
    pub interval: Duration,
    /// A thread is overloaded if it is busy for so many percent of the time.
    pub load: u64,
    /// Percent of the variance that has to go.
    pub improvement: u64,
}

impl AutoBalance {
    /// Is there an overloaded thread, and can an assignment by `policy` help it?
    pub fn is_called_for(&self, present: &Assignment, usage: &Usage, policy: Policy) -> bool {
        let open = || present.shares.iter().enumerate().filter(|(_, s)| !s.isolated);
        policy.algorithm != Algorithm::RoundRobin
            && open().count() > 1
            && open().any(|(_, share)| share.queues.len() > 1)
            && open().any(|(thread, _)| usage.is_overloaded(thread, self.load))
    }

    /// Is `planned` so much better than `present`?
    pub fn is_worth_it(&self, present: &Assignment, planned: &Assignment, usage: &Usage) -> bool {
        let (now, then) = (variance(present, usage), variance(planned, usage));
        let improvement = (now.saturating_sub(then) * 100).checked_div(now).unwrap_or(0);
        log::debug!("variance of the PMD threads' loads {now}, with another assignment {then}");
        improvement >= self.improvement
    }
}

/// The variance of the loads, in percent, of the threads that are not isolated.
fn variance(assignment: &Assignment, usage: &Usage) -> u64 {
    let shares = assignment.shares.iter().enumerate();
    let loads: Vec<u64> = shares
        .filter(|(_, share)| !share.isolated)
        .map(|(thread, share)| {
            let busy: u64 = share.queues.iter().map(|q| usage.queue(*q, INTERVALS)).sum();
            let (_, all) = usage.thread(thread, INTERVALS);
            (busy * 100).checked_div(all).unwrap_or(0)
        })
        .collect();
    let count = loads.len().max(1) as u64;
    let mean = loads.iter().sum::<u64>() / count;
    loads.iter().map(|load| load.abs_diff(mean).pow(2)).sum::<u64>() / count
}

#[cfg(test)]
mod tests {
    use super::super::assign::{Demand, Place, assign};
    use super::super::usage::tests::thread;
    use super::*;
    use crate::datapath::snapshot::RxQueue;

    const CPUS: [Option<usize>; 2] = [Some(0), Some(1)];
    const BALANCE: AutoBalance = AutoBalance {
        enabled: true,
        interval: Duration::from_secs(60),
        load: 95,
        improvement: 25,
    };

    /// Four queues that cost so many percent of a thread, as two threads had them dealt out while they were new: the first
    /// and the last to one, the others to the other. With what a minute measured of them.
    struct Minute {
        present: Assignment,
        planned: Assignment,
        usage: Usage,
    }

    fn minute(loads: [u64; 4], algorithm: Algorithm, pinned: Option<u16>) -> Minute {
        let policy = Policy {
            algorithm,
            isolate: true,
        };
        let queues: Vec<RxQueue> = (0..4).map(|queue| RxQueue { port: 0, queue }).collect();
        let plan = |usage: &Usage| {
            let demand = |&queue: &RxQueue| Demand {
                queue,
                pinned: (pinned == Some(queue.queue)).then_some(0),
                node: None,
                busy: usage.queue(queue, INTERVALS),
            };
            let places = CPUS.map(|cpu| Place { cpu, node: None });
            assign(&places, &queues.iter().map(demand).collect::<Vec<_>>(), policy)
        };
        let mut usage = Usage::default();
        usage.follow_queues(&queues);
        usage.follow_threads(&CPUS, |_| thread(0, 0));
        let present = plan(&usage);
        for step in 1..=INTERVALS as u64 {
            for (queue, load) in queues.iter().zip(loads) {
                usage.counter(*queue).add(load);
            }
            usage.step(|number| {
                let queues = &present.shares[number].queues;
                let busy: u64 = queues.iter().map(|q| loads[usize::from(q.queue)]).sum();
                thread(step * busy, step * (100 - busy))
            });
        }
        let planned = plan(&usage);
        Minute {
            present,
            planned,
            usage,
        }
    }

    fn acts(minute: &Minute, algorithm: Algorithm) -> bool {
        let Minute {
            present,
            planned,
            usage,
        } = minute;
        let policy = Policy {
            algorithm,
            isolate: true,
        };
        BALANCE.is_called_for(present, usage, policy) && BALANCE.is_worth_it(present, planned, usage)
    }

    #[test]
    fn two_heavy_queues_on_one_thread_are_parted() {
        for algorithm in [Algorithm::Cycles, Algorithm::Group] {
            let heavy = minute(
                if algorithm == Algorithm::Cycles {
                    [48, 1, 2, 48]
                } else {
                    [48, 1, 48, 2]
                },
                algorithm,
                None,
            );
            assert_eq!(heavy.present.shares[0].queues.len(), 2);
            assert!(acts(&heavy, algorithm), "{:?}", heavy.planned);
            let mut after = heavy;
            after.present = after.planned.clone();
            assert!(!acts(&after, algorithm), "nothing is left to win");
        }
    }

    #[test]
    fn not_without_an_overloaded_thread() {
        assert!(!acts(
            &minute([47, 1, 2, 47], Algorithm::Cycles, None),
            Algorithm::Cycles
        ));
    }

    #[test]
    fn not_for_a_small_improvement() {
        // 98 and 88 become 97 and 89: a variance of 16 in place of 25.
        let alike = minute([50, 49, 39, 48], Algorithm::Cycles, None);
        assert!(BALANCE.is_called_for(&alike.present, &alike.usage, Policy::default()));
        let much = AutoBalance {
            improvement: 50,
            ..BALANCE
        };
        assert!(!much.is_worth_it(&alike.present, &alike.planned, &alike.usage));
        assert!(BALANCE.is_worth_it(&alike.present, &alike.planned, &alike.usage));
    }

    #[test]
    fn not_where_it_can_not_help() {
        assert!(!acts(
            &minute([48, 1, 48, 2], Algorithm::RoundRobin, None),
            Algorithm::RoundRobin
        ));
        // One thread is isolated by a pinned queue: no two are left to balance.
        let pinned = minute([90, 30, 30, 36], Algorithm::Cycles, Some(0));
        assert!(pinned.present.shares[0].isolated && pinned.usage.is_overloaded(1, 95));
        assert!(!acts(&pinned, Algorithm::Cycles));
    }
}
