//! The configuration that PMD threads work by: immutable, replaced as a whole.
//!
//! The control thread publishes a new snapshot and waits until every PMD thread says it works by it; then nothing of
//! the old one is in use any more, and what only that one held (a session, a device) can be taken apart.
//!
//! A receive queue has one thread at any time. One that moves is let go by its old thread, with all that it has taken
//! from it sent, before the new one looks at it: so frames stay in order, and no driver is entered twice.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use vswitch_common::port::doorbell::Doorbell;
use vswitch_sync::quiescence::Published;

use super::mac_table::MacTable;
use super::mirror::Mirror;
use super::port::{Port, PortIndex};

/// A bridge: its learning table, its ports, and those that watch them.
#[derive(Debug, Clone)]
pub struct Bridge {
    pub table: Arc<MacTable>,
    pub ports: Vec<PortIndex>,
    /// In the order of [`Mirror::in_order`].
    pub mirrors: Vec<Mirror>,
    /// Forward reserved addresses as well (other_config:forward-bpdu).
    pub forward_reserved: bool,
}

/// A receive queue of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RxQueue {
    pub port: PortIndex,
    pub queue: u16,
}

/// Timestamp counter ticks that went into a receive queue's frames, counted by the thread that polls it, in a cache line
/// of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct BusyTicks(AtomicU64);

impl BusyTicks {
    /// Adds `ticks` without a locked instruction: there is one writer.
    #[inline]
    pub fn add(&self, ticks: u64) {
        let sum = self.0.load(Ordering::Relaxed).wrapping_add(ticks);
        self.0.store(sum, Ordering::Relaxed);
    }

    /// The sum so far; it wraps.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A receive queue that a thread is to poll.
#[derive(Debug, Clone)]
pub struct Assigned {
    pub queue: RxQueue,
    /// Where the thread counts what it costs.
    pub busy: Arc<BusyTicks>,
}

/// All that PMD threads need to know.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// By [`PortIndex`].
    pub ports: Vec<Option<Arc<Port>>>,
    pub bridges: Vec<Bridge>,
    /// What each PMD thread polls.
    pub polled: Vec<Vec<Assigned>>,
    /// Longest sleep of a PMD thread with nothing to do; zero: it never sleeps.
    pub max_sleep: Option<Duration>,
}

impl Snapshot {
    /// The port with that index.
    #[inline]
    pub fn port(&self, index: PortIndex) -> Option<&Arc<Port>> {
        self.ports.get(usize::from(index))?.as_ref()
    }
}

/// Where snapshots are published.
#[derive(Debug)]
pub struct Publisher {
    snapshots: Published<Snapshot>,
    /// Wakes each PMD thread.
    bells: Vec<Doorbell>,
}

impl Publisher {
    /// For `threads` PMD threads, with an empty snapshot.
    ///
    /// # Errors
    /// Out of file descriptors.
    pub fn new(threads: usize) -> nix::Result<Publisher> {
        Ok(Publisher {
            snapshots: Published::new(threads, Snapshot::default()),
            bells: (0..threads)
                .map(|_| Doorbell::new())
                .collect::<nix::Result<_>>()?,
        })
    }

    /// Makes `snapshot` the one to work by and returns when every PMD thread does. Queues that move from one thread to
    /// another are polled by none in between.
    pub fn publish(&self, snapshot: Snapshot) {
        let wake = || self.bells.iter().for_each(Doorbell::ring);
        if let Some(polled) = without_moving(&self.current().polled, &snapshot.polled) {
            let between = Snapshot {
                polled,
                ..snapshot.clone()
            };
            self.snapshots.publish(between, wake);
        }
        self.snapshots.publish(snapshot, wake);
    }

    /// What wakes PMD thread `thread`.
    pub fn wake(&self, thread: usize) -> &Doorbell {
        &self.bells[thread]
    }
}

impl Deref for Publisher {
    type Target = Published<Snapshot>;

    fn deref(&self) -> &Published<Snapshot> {
        &self.snapshots
    }
}

/// What is to be polled until every thread has let go of what `new` gives to another; `None`: nothing moves.
fn without_moving(old: &[Vec<Assigned>], new: &[Vec<Assigned>]) -> Option<Vec<Vec<Assigned>>> {
    let lists = old.iter().enumerate();
    let owners: HashMap<RxQueue, usize> = lists
        .flat_map(|(thread, list)| list.iter().map(move |a| (a.queue, thread)))
        .collect();
    let stays = |thread: usize, queue| owners.get(&queue).is_none_or(|&owner| owner == thread);
    let staying: Vec<Vec<Assigned>> = new
        .iter()
        .enumerate()
        .map(|(thread, list)| list.iter().filter(|a| stays(thread, a.queue)).cloned().collect())
        .collect();
    let moves = staying.iter().zip(new).any(|(some, all)| some.len() < all.len());
    moves.then_some(staying)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    fn polled(lists: &[&[u16]]) -> Vec<Vec<Assigned>> {
        let assigned = |&port| Assigned {
            queue: RxQueue { port, queue: 0 },
            busy: Arc::default(),
        };
        lists
            .iter()
            .map(|list| list.iter().map(assigned).collect())
            .collect()
    }

    fn ports(lists: &[Vec<Assigned>]) -> Vec<Vec<u16>> {
        let of = |list: &Vec<Assigned>| list.iter().map(|a| a.queue.port).collect();
        lists.iter().map(of).collect()
    }

    #[test]
    fn only_what_moves_is_left_out_in_between() {
        let old = polled(&[&[1, 2], &[3, 4]]);
        for same in [
            &[&[2, 1][..], &[4, 3]][..],
            &[&[1][..], &[3, 4, 5]],
            &[&[2][..]],
            &[],
        ] {
            assert!(without_moving(&old, &polled(same)).is_none(), "{same:?}");
        }
        let between = without_moving(&old, &polled(&[&[1, 4, 5], &[2, 3]])).map(|l| ports(&l));
        assert_eq!(between, Some(vec![vec![1, 5], vec![3]]));
        // Also from a thread that there is no more.
        let between = without_moving(&old, &polled(&[&[1, 2, 3, 4]])).map(|l| ports(&l));
        assert_eq!(between, Some(vec![vec![1, 2]]));
    }

    /// Two threads that poll as PMD threads do, while their queues change places all the time.
    #[test]
    fn a_queue_never_has_two_threads() {
        const ROUNDS: usize = 300;
        let publisher = Publisher::new(2).unwrap();
        let (ends, doubled) = (AtomicBool::new(false), AtomicBool::new(false));
        let taken: [AtomicBool; 3] = Default::default();
        (0..2).for_each(|thread| publisher.starting(thread));
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let (publisher, ends, doubled, taken) = (&publisher, &ends, &doubled, &taken);
                scope.spawn(move || {
                    let (mut snapshot, mut generation) = publisher.load(thread, None);
                    while !ends.load(Ordering::Relaxed) {
                        if publisher.changed(generation) {
                            (snapshot, generation) = publisher.load(thread, Some(snapshot));
                        }
                        for assigned in snapshot.polled.get(thread).into_iter().flatten() {
                            let held = &taken[usize::from(assigned.queue.port)];
                            doubled.fetch_or(held.swap(true, Ordering::AcqRel), Ordering::Relaxed);
                            std::thread::yield_now();
                            held.store(false, Ordering::Release);
                        }
                    }
                    publisher.stopped(thread);
                });
            }
            for round in 0..ROUNDS {
                let lists: [&[u16]; 2] = if round % 2 == 0 {
                    [&[0, 1], &[2]]
                } else {
                    [&[2], &[1, 0]]
                };
                publisher.publish(Snapshot {
                    polled: polled(&lists),
                    ..Snapshot::default()
                });
            }
            ends.store(true, Ordering::Relaxed);
        });
        assert!(!doubled.into_inner());
    }
}
