//! A receive queue, as the PMD thread sees it that polls it.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use arrayvec::ArrayVec;
use vswitch_common::mbuf::Mbuf;
use vswitch_common::port::doorbell::Rung;
use vswitch_common::stats::{Counter, PortBlock};

use super::BURST;
use super::client_port::Queue;
use super::ledger::Ledger;
use super::port::{Io, Port};
use super::snapshot::{BusyTicks, Snapshot};

/// A queue that was polled so often in vain is quiet, and costs the busy ones next to nothing: beside them it is looked
/// at now and then, and no further than to see whether a client has brought anything.
const QUIET_AFTER: u32 = 64;
/// One look in so many at a quiet queue is a whole poll.
const LOOKS: u32 = 64;

/// A receive queue with its port at hand.
pub(super) struct Polled {
    pub port: Arc<Port>,
    pub queue: u16,
    pub busy: Arc<BusyTicks>,
    /// Polls in vain since it last had work.
    vain: u32,
    /// Looks at it while it was quiet.
    looks: u32,
    pub rung: Rung,
}

impl Polled {
    /// The queues that `thread` is to poll.
    pub fn all_of(snapshot: &Snapshot, thread: usize) -> Vec<Polled> {
        let mine = snapshot.polled.get(thread).map_or(&[][..], Vec::as_slice);
        mine.iter()
            .filter_map(|assigned| {
                Some(Polled {
                    port: snapshot.port(assigned.queue.port)?.clone(),
                    queue: assigned.queue.queue,
                    busy: assigned.busy.clone(),
                    vain: 0,
                    looks: 0,
                    rung: Rung::default(),
                })
            })
            .collect()
    }

    /// The client's queue pair, if it is one.
    pub fn client(&self) -> Option<&Queue> {
        match &self.port.io {
            Io::Client(session) => Some(&session.queues()[usize::from(self.queue)]),
            Io::Ethdev(_) | Io::Down => None,
        }
    }

    /// What rings when it has something; `None`: only a poll can tell.
    pub fn doorbell(&self) -> Option<BorrowedFd<'_>> {
        match &self.port.io {
            Io::Ethdev(io) => io.doorbell(self.queue),
            Io::Client(_) | Io::Down => self.client().map(Queue::doorbell),
        }
    }

    #[inline]
    pub fn is_quiet(&self) -> bool {
        self.vain >= QUIET_AFTER
    }

    /// Is a quiet queue worth a poll? Of a device only a poll can tell. And a client that got no mbufs, because there were
    /// none, brings nothing until it has some: a poll now and then hands them out.
    #[inline]
    pub fn stirs(&mut self) -> bool {
        self.looks = self.looks.wrapping_add(1);
        self.looks.is_multiple_of(LOOKS)
            || match &self.port.io {
                Io::Client(_) => self.client().is_some_and(Queue::has_work),
                Io::Ethdev(_) => true,
                Io::Down => false,
            }
    }

    /// The next look at it is a whole poll.
    pub fn poll_next(&mut self) {
        self.looks = LOOKS - 1;
    }

    /// Takes a burst into `frames`; true if there was anything to do. A client's has `limit` frames at most; a device's
    /// may have more, since drivers take no small bursts.
    #[inline]
    pub fn poll(
        &mut self,
        ledger: &Ledger,
        stats: &PortBlock,
        frames: &mut ArrayVec<Mbuf, BURST>,
        limit: usize,
    ) -> bool {
        let had_work = match &self.port.io {
            Io::Client(session) => {
                let found = session.queues()[usize::from(self.queue)].receive(ledger, frames, limit);
                if found.bad_mbufs + found.bad_rings > 0 {
                    let index = usize::from(self.port.index);
                    stats.add(index, Counter::RxBadMbuf, found.bad_mbufs);
                    stats.add(index, Counter::RxBadRing, found.bad_rings);
                }
                !frames.is_empty() || found.moved > 0 || found.bad_mbufs > 0
            }
            Io::Ethdev(io) => {
                io.receive(self.queue, frames);
                let mut chains = false;
                for frame in frames.iter_mut() {
                    frame.prefetch_frame();
                    frame.normalize_received();
                    chains |= frame.segment_count() > 1;
                }
                if chains {
                    let all = frames.len();
                    *frames = frames.drain(..).filter_map(|frame| ledger.adopt(frame)).collect();
                    let too_long = (all - frames.len()) as u64;
                    stats.add(usize::from(self.port.index), Counter::RxTooLong, too_long);
                }
                !frames.is_empty()
            }
            Io::Down => false,
        };
        self.vain = if had_work { 0 } else { self.vain.saturating_add(1) };
        had_work
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::datapath::port::FrameLimit;
    use crate::datapath::snapshot::{Assigned, RxQueue};
    use crate::datapath::vlan::VlanPolicy;

    /// A queue that never has anything.
    pub fn idle_queue() -> Polled {
        let port = Port {
            index: 0,
            bridge: 0,
            vlan: VlanPolicy::access(0),
            max_frame: FrameLimit::of_mtu(0),
            limiter: None,
            io: Io::Down,
        };
        let assigned = Assigned {
            queue: RxQueue { port: 0, queue: 0 },
            busy: Arc::default(),
        };
        let snapshot = Snapshot {
            ports: vec![Some(Arc::new(port))],
            polled: vec![vec![assigned]],
            ..Snapshot::default()
        };
        Polled::all_of(&snapshot, 0).remove(0)
    }

    /// Its client may have waited for mbufs that are back meanwhile.
    #[test]
    fn a_quiet_queue_is_polled_now_and_then() {
        let mut polled = idle_queue();
        let polls = (0..10 * LOOKS).filter(|_| polled.stirs());
        assert_eq!(polls.count(), 10);
    }
}
