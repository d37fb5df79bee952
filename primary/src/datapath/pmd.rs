//! A PMD thread: polls its receive queues, forwards what comes, sleeps when nothing does.

use std::cell::Cell;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use arrayvec::ArrayVec;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use vswitch_common::mbuf::Mbuf;
use vswitch_common::port::doorbell::{Doorbell, need_wakeup};
use vswitch_common::stats::{Counter, PortBlock};

use super::BURST;
use super::client_port::Queue;
use super::clock::{Clock, tsc};
use super::forward::Forwarder;
use super::ledger::Ledger;
use super::port::{Io, Port};
use super::snapshot::{BusyTicks, Publisher, Snapshot};
use super::turns::Turns;

/// How long a thread polls in vain before it sleeps. Longer than the gaps of traffic worth polling for.
const IDLE_BEFORE_SLEEP: Duration = Duration::from_micros(50);
/// A queue that was polled so often in vain is quiet, and costs the busy ones next to nothing: beside them it is looked
/// at once in a [`QUIET_GAP`], and no further than to see whether a client has brought anything.
const QUIET_AFTER: u32 = 64;
/// Shorter than what fills a ring, or wakes a thread that sleeps.
const QUIET_GAP: Duration = Duration::from_micros(25);
/// One look in so many at a quiet client is a whole poll.
const LOOKS: u32 = 64;

/// Longest sleep while a polled device can't ring a doorbell.
const DEVICE_SLEEP: Duration = Duration::from_micros(250);
/// Longest sleep otherwise: a safety net, no timer that anything waits for.
const MAX_SLEEP: Duration = Duration::from_millis(100);

/// How far one queue may be ahead of another that wants time as well: a little more than a full burst takes.
const LEAD: Duration = Duration::from_micros(4);
/// How long a queue's turn should last at most: some hundred frames wait in the others' rings meanwhile.
const TURN: Duration = Duration::from_micros(20);
/// What a turn counts for at most. Nothing but an interruption takes longer.
const LONGEST_TURN: Duration = Duration::from_millis(1);

/// What the control thread shares with a PMD thread.
#[derive(Debug, Default)]
pub struct Control {
    pub stop: AtomicBool,
    /// Kernel thread id, once it runs.
    pub tid: AtomicU32,
}

/// Everything a PMD thread works with.
#[derive(Debug)]
pub struct Pmd {
    pub thread: usize,
    pub publisher: Arc<Publisher>,
    pub ledger: Arc<Ledger>,
    pub stats: PortBlock,
    pub clock: Clock,
    pub control: Arc<Control>,
}

/// A receive queue with its port at hand.
struct Polled {
    port: Arc<Port>,
    queue: u16,
    busy: Arc<BusyTicks>,
    /// Polls in vain since it last had work.
    vain: u32,
    /// Looks at it while it was quiet.
    looks: u32,
    /// Its doorbell has rung and was not silenced so far.
    rung: Cell<bool>,
}

impl Polled {
    /// The client's queue pair, if it is one.
    fn client(&self) -> Option<&Queue> {
        match &self.port.io {
            Io::Client(session) => Some(&session.queues()[usize::from(self.queue)]),
            Io::Ethdev(_) | Io::Down => None,
        }
    }

    #[inline]
    fn is_quiet(&self) -> bool {
        self.vain >= QUIET_AFTER
    }

    /// Is a quiet queue worth a poll? Without a doorbell only a poll can tell. And a client that got no mbufs, because there were
    /// none, brings nothing until it has some: a poll now and then hands them out.
    #[inline]
    fn stirs(&mut self) -> bool {
        self.looks = self.looks.wrapping_add(1);
        match self.client() {
            Some(client) => self.looks.is_multiple_of(LOOKS) || client.has_work(),
            None => matches!(self.port.io, Io::Ethdev(_)),
        }
    }
}

impl Pmd {
    /// Works until told to stop.
    pub fn run(self) {
        let Pmd {
            thread,
            publisher,
            ledger,
            stats,
            clock,
            control,
        } = self;
        control
            .tid
            .store(nix::unistd::gettid().as_raw() as u32, Ordering::Release);
        let mut forwarder = Forwarder::new(thread, ledger.clone(), stats);
        let (mut snapshot, mut generation) = publisher.load(thread, None);
        let mut queues = polled_queues(&snapshot, thread);
        forwarder.resize(snapshot.ports.len());
        let mut turns = Turns::new(clock.ticks(LEAD), clock.ticks(TURN), clock.ticks(LONGEST_TURN));
        turns.reset(queues.len());
        let [idle_ticks, quiet_ticks] = [IDLE_BEFORE_SLEEP, QUIET_GAP].map(|time| clock.ticks(time));
        let mut last = tsc();
        let mut idle_since = last;
        let mut looked_at_quiet = last;
        // Did the last round find work?
        let mut worked = false;
        let wake_rung = Cell::new(false);
        let mut frames = ArrayVec::<Mbuf, BURST>::new();

        while !control.stop.load(Ordering::Relaxed) {
            if publisher.changed(generation) {
                // The queues hold ports of the old snapshot: they go first.
                queues.clear();
                (snapshot, generation) = publisher.load(thread, Some(snapshot));
                queues = polled_queues(&snapshot, thread);
                forwarder.resize(snapshot.ports.len());
                turns.reset(queues.len());
                idle_since = tsc();
            }
            let now = clock.at(last);
            let mut packets = 0;
            // The poll before was in vain, and `tick` lies in front of it.
            let mut in_vain = false;
            let mut tick = last;
            // A thread with nothing to do looks at all, always.
            let quiet_too = !worked || last.wrapping_sub(looked_at_quiet) > quiet_ticks;
            if quiet_too {
                looked_at_quiet = last;
            }
            worked = false;
            turns.next_round();
            for (number, polled) in queues.iter_mut().enumerate() {
                if polled.is_quiet() && !(quiet_too && polled.stirs()) {
                    continue;
                }
                let limit = turns.burst(number);
                if limit == 0 {
                    worked = true;
                    continue;
                }
                if std::mem::take(&mut in_vain) {
                    // What went before is not this queue's.
                    tick = tsc();
                }
                let had_work = poll(polled, &ledger, forwarder.stats(), &mut frames, limit);
                if !had_work {
                    polled.vain = polled.vain.saturating_add(1);
                    in_vain = true;
                    continue;
                }
                let count = frames.len();
                if count > 0 {
                    packets += count;
                    forwarder.burst(&snapshot, &polled.port, polled.queue, &mut frames, now);
                }
                let before = std::mem::replace(&mut tick, tsc());
                let time = tick.wrapping_sub(before);
                polled.busy.add(time);
                turns.charge(number, time, count);
                worked = true;
                polled.vain = 0;
            }
            if in_vain || tick == last {
                tick = tsc();
            }
            if packets > 0 {
                forwarder
                    .stats()
                    .thread()
                    .burst(packets as u64, tick.wrapping_sub(last));
            } else {
                forwarder.stats().thread().idle(tick.wrapping_sub(last));
            }
            last = tick;
            if worked {
                idle_since = tick;
            } else if tick.wrapping_sub(idle_since) > idle_ticks && snapshot.max_sleep != Some(Duration::ZERO)
            {
                let called = || control.stop.load(Ordering::Relaxed) || publisher.changed(generation);
                sleep(
                    &queues,
                    snapshot.max_sleep,
                    (publisher.wake(thread), &wake_rung),
                    called,
                    forwarder.stats(),
                );
                last = tsc();
                forwarder.stats().thread().slept(last.wrapping_sub(tick));
                idle_since = last;
                // Whoever got no mbufs may have waited for this.
                queues.iter_mut().for_each(|polled| polled.looks = LOOKS - 1);
            } else {
                // Whoever has the frames may wait for this very CPU.
                std::thread::yield_now();
                last = tsc();
                forwarder.stats().thread().idle(last.wrapping_sub(tick));
            }
        }
        drop(queues);
        drop(snapshot);
        publisher.stopped(thread);
    }
}

fn polled_queues(snapshot: &Snapshot, thread: usize) -> Vec<Polled> {
    let mine = snapshot.polled.get(thread).map_or(&[][..], Vec::as_slice);
    mine.iter()
        .filter_map(|assigned| {
            Some(Polled {
                port: snapshot.port(assigned.queue.port)?.clone(),
                queue: assigned.queue.queue,
                busy: assigned.busy.clone(),
                vain: 0,
                looks: 0,
                rung: Cell::new(false),
            })
        })
        .collect()
}

/// Takes a burst into `frames`; true if there was anything to do. A client's has `limit` frames at most; a device's
/// may have more, since drivers take no small bursts.
#[inline]
fn poll(
    polled: &Polled,
    ledger: &Ledger,
    stats: &PortBlock,
    frames: &mut ArrayVec<Mbuf, BURST>,
    limit: usize,
) -> bool {
    match &polled.port.io {
        Io::Client(session) => {
            let found = session.queues()[usize::from(polled.queue)].receive(ledger, frames, limit);
            if found.bad_mbufs + found.bad_rings > 0 {
                let index = usize::from(polled.port.index);
                stats.add(index, Counter::RxBadMbuf, found.bad_mbufs);
                stats.add(index, Counter::RxBadRing, found.bad_rings);
            }
            !frames.is_empty() || found.moved > 0 || found.bad_mbufs > 0
        }
        Io::Ethdev(io) => {
            io.receive(polled.queue, frames);
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
                stats.add(usize::from(polled.port.index), Counter::RxTooLong, too_long);
            }
            !frames.is_empty()
        }
        Io::Down => false,
    }
}

/// Sleeps until a client, the host kernel or the control thread rings, or for as long as devices without doorbells may
/// wait. What has rung is silenced before the next sleep: on waking up a frame is there, and each system call would keep it
/// waiting.
///
/// `called`: whoever rings `wake` wants something; it may have rung just before that was silenced.
fn sleep(
    queues: &[Polled],
    max: Option<Duration>,
    wake: (&Doorbell, &Cell<bool>),
    called: impl Fn() -> bool,
    stats: &PortBlock,
) {
    let clients = || queues.iter().filter_map(Polled::client);
    let (wake, wake_rung) = wake;
    if wake_rung.take() {
        wake.silence();
    }
    for polled in queues.iter().filter(|polled| polled.rung.take()) {
        if let Some(client) = polled.client() {
            client.silence();
        }
    }
    let block = || {
        let bells = queues.iter().filter_map(|polled| match &polled.port.io {
            Io::Client(_) => Some((polled, polled.client().map(Queue::doorbell))),
            Io::Ethdev(io) => Some((polled, io.doorbell(polled.queue))),
            Io::Down => None,
        });
        let silent = bells.clone().any(|(_, bell)| bell.is_none());
        let longest = if silent { DEVICE_SLEEP } else { MAX_SLEEP };
        let timeout = max.map_or(longest, |m| m.min(longest));
        let bells = bells.filter_map(|(polled, bell)| Some((&polled.rung, bell?)));
        let bells = || std::iter::once((wake_rung, wake.as_fd())).chain(bells.clone());
        let mut fds: Vec<PollFd> = bells()
            .map(|(_, bell)| PollFd::new(bell, PollFlags::POLLIN))
            .collect();
        stats.thread().sleep();
        // Errors (a signal) are a wake-up like any other.
        let _ = ppoll(&mut fds, Some(TimeSpec::from_duration(timeout)), None);
        for ((rung, _), fd) in bells().zip(&fds) {
            rung.set(fd.any() != Some(false));
        }
    };
    need_wakeup::sleep(
        clients().map(Queue::sleeps),
        || called() || clients().any(Queue::has_work),
        block,
    );
}
