//! How a PMD thread sleeps without missing anything.

use std::iter::once;
use std::os::fd::AsFd;
use std::time::Duration;

use vswitch_common::port::doorbell::{self, Doorbell, Rung, need_wakeup};
use vswitch_common::stats::PortBlock;

use super::client_port::Queue;
use super::polled::Polled;

/// Longest sleep while a polled device can't ring a doorbell.
const DEVICE_SLEEP: Duration = Duration::from_micros(250);
/// Longest sleep otherwise: a safety net, no timer that anything waits for.
const MAX_SLEEP: Duration = Duration::from_millis(100);

/// A thread's sleep.
pub(super) struct Sleeper<'w> {
    wake: &'w Doorbell,
    rung: Rung,
}

impl<'w> Sleeper<'w> {
    /// The control thread wakes it by `wake`.
    pub fn new(wake: &'w Doorbell) -> Sleeper<'w> {
        Sleeper {
            wake,
            rung: Rung::default(),
        }
    }

    /// Sleeps until a client, the host kernel or the control thread rings, or for as long as devices without doorbells
    /// may wait, and no longer than `max`. Not at all if a client of `queues` has work, or `called`: whoever rings `wake`
    /// wants something, and may have rung just before that is silenced here.
    ///
    /// Each queue gets a whole poll afterwards: a client that got no mbufs, because there were none, may have waited for it.
    pub fn sleep(
        &self,
        queues: &mut [Polled],
        max: Option<Duration>,
        called: impl Fn() -> bool,
        stats: &PortBlock,
    ) {
        if self.rung.take() {
            self.wake.silence();
        }
        for polled in queues.iter().filter(|polled| polled.rung.take()) {
            if let Some(client) = polled.client() {
                client.silence();
            }
        }
        let clients = || queues.iter().filter_map(Polled::client);
        let block = || {
            let silent = queues.iter().any(|polled| polled.doorbell().is_none());
            let longest = if silent { DEVICE_SLEEP } else { MAX_SLEEP };
            let timeout = max.map_or(longest, |max| max.min(longest));
            let bells = queues
                .iter()
                .filter_map(|polled| Some((polled.doorbell()?, &polled.rung)));
            stats.thread().sleep();
            doorbell::wait(once((self.wake.as_fd(), &self.rung)).chain(bells), Some(timeout));
        };
        need_wakeup::sleep(
            clients().map(Queue::sleeps),
            || called() || clients().any(Queue::has_work),
            block,
        );
        queues.iter_mut().for_each(Polled::poll_next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::polled::tests::idle_queue;
    use std::sync::Arc;
    use vswitch_common::stats::Segment;

    #[test]
    fn a_sleeper_polls_every_queue_when_it_wakes() {
        let segment = Arc::new(Segment::create(&format!("sleep-test-{}", std::process::id()), 1).unwrap());
        let stats = PortBlock::claim(&segment, 0).unwrap();
        let wake = Doorbell::new().unwrap();
        let sleeper = Sleeper::new(&wake);
        let mut queues = [idle_queue(), idle_queue()];
        queues[1].stirs();
        for _ in 0..3 {
            sleeper.sleep(&mut queues, Some(Duration::ZERO), || false, &stats);
            assert!(queues.iter_mut().all(Polled::stirs));
            assert!(!queues.iter_mut().any(Polled::stirs));
        }
    }
}
