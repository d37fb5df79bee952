//! What receive queues and PMD threads have cost: the last minute, in twelve intervals of five seconds, as Open vSwitch
//! measures it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use vswitch_common::stats::ThreadSnapshot;

use crate::datapath::snapshot::{BusyTicks, RxQueue};

/// How long an interval is.
pub const INTERVAL: Duration = Duration::from_secs(5);
/// Intervals that are remembered.
pub const INTERVALS: usize = 12;

/// How far a counter went in each of the last intervals, the latest at the end.
#[derive(Debug, Default)]
struct History {
    counter: u64,
    steps: VecDeque<u64>,
}

impl History {
    /// Of a counter that stands at `counter` now.
    fn from(counter: u64) -> History {
        History {
            counter,
            steps: VecDeque::new(),
        }
    }

    /// An interval ends with the counter at `counter`.
    fn step(&mut self, counter: u64) {
        if self.steps.len() == INTERVALS {
            self.steps.pop_front();
        }
        let before = std::mem::replace(&mut self.counter, counter);
        self.steps.push_back(counter.wrapping_sub(before));
    }

    /// The sum of the last `intervals`.
    fn sum(&self, intervals: usize) -> u64 {
        self.steps.iter().rev().take(intervals).sum()
    }
}

#[derive(Debug)]
struct Queue {
    busy: Arc<BusyTicks>,
    history: History,
}

#[derive(Debug)]
struct Thread {
    cpu: Option<usize>,
    busy: History,
    /// Busy, idle and asleep.
    all: History,
}

/// The measurements.
#[derive(Debug, Default)]
pub struct Usage {
    queues: BTreeMap<RxQueue, Queue>,
    threads: Vec<Thread>,
}

fn all_cycles(thread: &ThreadSnapshot) -> u64 {
    let ThreadSnapshot {
        busy_cycles,
        idle_cycles,
        sleep_cycles,
        ..
    } = thread;
    busy_cycles.wrapping_add(*idle_cycles).wrapping_add(*sleep_cycles)
}

impl Usage {
    /// From now on these are the queues. New ones begin with nothing; what is gone is forgotten.
    pub fn follow_queues(&mut self, queues: &[RxQueue]) {
        let mut old = std::mem::take(&mut self.queues);
        let keep = |queue: &RxQueue| {
            let kept = old.remove(queue);
            let new = || Queue {
                busy: Arc::default(),
                history: History::default(),
            };
            (*queue, kept.unwrap_or_else(new))
        };
        self.queues = queues.iter().map(keep).collect();
    }

    /// From now on threads run on `cpus`. One on another CPU than before begins anew.
    pub fn follow_threads(&mut self, cpus: &[Option<usize>], counters: impl Fn(usize) -> ThreadSnapshot) {
        self.threads.truncate(cpus.len());
        for (number, &cpu) in cpus.iter().enumerate() {
            if self.threads.get(number).is_some_and(|t| t.cpu == cpu) {
                continue;
            }
            let now = counters(number);
            let thread = Thread {
                cpu,
                busy: History::from(now.busy_cycles),
                all: History::from(all_cycles(&now)),
            };
            self.threads.truncate(number);
            self.threads.push(thread);
        }
    }

    /// Where the time of `queue` is counted.
    pub fn counter(&self, queue: RxQueue) -> Arc<BusyTicks> {
        self.queues
            .get(&queue)
            .map_or_else(Arc::default, |q| q.busy.clone())
    }

    /// An interval ends.
    pub fn step(&mut self, counters: impl Fn(usize) -> ThreadSnapshot) {
        for queue in self.queues.values_mut() {
            queue.history.step(queue.busy.get());
        }
        for (number, thread) in self.threads.iter_mut().enumerate() {
            let now = counters(number);
            thread.busy.step(now.busy_cycles);
            thread.all.step(all_cycles(&now));
        }
    }

    /// Ticks that `queue` cost in the last `intervals`.
    pub fn queue(&self, queue: RxQueue, intervals: usize) -> u64 {
        self.queues.get(&queue).map_or(0, |q| q.history.sum(intervals))
    }

    /// Ticks of the last `intervals` that thread `thread` was busy, and all it had. Zero: not measured yet.
    pub fn thread(&self, thread: usize, intervals: usize) -> (u64, u64) {
        let thread = self.threads.get(thread);
        thread.map_or((0, 0), |t| (t.busy.sum(intervals), t.all.sum(intervals)))
    }

    /// Was thread `thread` busy for `percent` of the time at least, in every interval of a whole minute?
    pub fn is_overloaded(&self, thread: usize, percent: u64) -> bool {
        self.threads.get(thread).is_some_and(|t| {
            let mut steps = t.busy.steps.iter().zip(&t.all.steps);
            t.busy.steps.len() == INTERVALS && steps.all(|(&busy, &all)| busy * 100 >= all * percent)
        })
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A thread's counters after it was busy and idle for so many ticks.
    pub fn thread(busy: u64, idle: u64) -> ThreadSnapshot {
        ThreadSnapshot {
            busy_cycles: busy,
            idle_cycles: idle / 2,
            sleep_cycles: idle - idle / 2,
            ..ThreadSnapshot::default()
        }
    }

    fn queue(queue: u16) -> RxQueue {
        RxQueue { port: 1, queue }
    }

    #[test]
    fn a_minute_is_remembered_and_no_more() {
        let mut usage = Usage::default();
        usage.follow_queues(&[queue(0), queue(1)]);
        for n in 1..=20u64 {
            usage.counter(queue(0)).add(n);
            usage.step(|_| ThreadSnapshot::default());
        }
        assert_eq!(usage.queue(queue(0), 1), 20);
        assert_eq!(usage.queue(queue(0), 2), 39);
        assert_eq!(usage.queue(queue(0), INTERVALS), (9..=20u64).sum::<u64>());
        assert_eq!(usage.queue(queue(1), INTERVALS), 0);
    }

    #[test]
    fn a_queue_that_comes_back_is_a_new_one() {
        let mut usage = Usage::default();
        usage.follow_queues(&[queue(0), queue(1)]);
        usage.queues.values().for_each(|q| q.busy.add(5));
        usage.step(|_| ThreadSnapshot::default());
        usage.follow_queues(&[queue(1)]);
        usage.follow_queues(&[queue(0), queue(1)]);
        assert_eq!([0, 1].map(|n| usage.queue(queue(n), 1)), [0, 5]);
        assert_eq!([0, 1].map(|n| usage.counter(queue(n)).get()), [0, 5]);
    }

    #[test]
    fn a_threads_time_has_three_parts() {
        let mut usage = Usage::default();
        usage.follow_threads(&[Some(1)], |_| thread(100, 100));
        assert_eq!(usage.thread(0, INTERVALS), (0, 0), "not measured yet");
        usage.step(|_| thread(300, 1_000));
        assert_eq!(usage.thread(0, INTERVALS), (200, 1_100));
        // It stays with its CPU, and another thread is another one.
        usage.follow_threads(&[Some(1), Some(2)], |_| thread(300, 1_000));
        assert_eq!(usage.thread(0, INTERVALS), (200, 1_100));
        usage.follow_threads(&[Some(2)], |_| thread(300, 1_000));
        assert_eq!(usage.thread(0, INTERVALS), (0, 0));
    }

    #[test]
    fn overloaded_is_who_was_busy_throughout_a_minute() {
        let mut usage = Usage::default();
        usage.follow_threads(&[None], |_| thread(0, 0));
        let (mut busy, mut idle) = (0, 0);
        let mut step = |usage: &mut Usage, load: u64| {
            busy += load;
            idle += 100 - load;
            usage.step(|_| thread(busy, idle));
        };
        for _ in 1..INTERVALS {
            step(&mut usage, 96);
            assert!(!usage.is_overloaded(0, 95), "not for a minute yet");
        }
        step(&mut usage, 95);
        assert!(usage.is_overloaded(0, 95) && !usage.is_overloaded(0, 96));
        step(&mut usage, 94);
        assert!(!usage.is_overloaded(0, 95));
    }
}
