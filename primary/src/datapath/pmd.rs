//! A PMD thread: polls its receive queues, forwards what comes, sleeps when nothing does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use arrayvec::ArrayVec;
use vswitch_common::mbuf::Mbuf;
use vswitch_common::stats::PortBlock;

use super::BURST;
use super::clock::{Clock, tsc};
use super::forward::Forwarder;
use super::laps::Laps;
use super::ledger::Ledger;
use super::polled::Polled;
use super::sleep::Sleeper;
use super::snapshot::Publisher;
use super::turns::Turns;

/// How long a thread polls in vain before it sleeps. Longer than the gaps of traffic worth polling for.
const IDLE_BEFORE_SLEEP: Duration = Duration::from_micros(50);
/// Beside busy queues, a quiet one is looked at once in so long. Shorter than what fills a ring, or wakes a thread that sleeps.
const QUIET_GAP: Duration = Duration::from_micros(25);

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
        let mut queues = Polled::all_of(&snapshot, thread);
        forwarder.resize(snapshot.ports.len());
        let mut turns = Turns::new(clock.ticks(LEAD), clock.ticks(TURN), clock.ticks(LONGEST_TURN));
        turns.reset(queues.len());
        let [idle_ticks, quiet_ticks] = [IDLE_BEFORE_SLEEP, QUIET_GAP].map(|time| clock.ticks(time));
        let mut last = tsc();
        let mut idle_since = last;
        let mut looked_at_quiet = last;
        // Did the last round find work?
        let mut worked = false;
        let sleeper = Sleeper::new(publisher.wake(thread));
        let mut frames = ArrayVec::<Mbuf, BURST>::new();

        while !control.stop.load(Ordering::Relaxed) {
            if publisher.changed(generation) {
                // The queues hold ports of the old snapshot: they go first.
                queues.clear();
                (snapshot, generation) = publisher.load(thread, Some(snapshot));
                queues = Polled::all_of(&snapshot, thread);
                forwarder.resize(snapshot.ports.len());
                turns.reset(queues.len());
                idle_since = tsc();
            }
            let now = clock.at(last);
            let mut packets = 0;
            let mut laps = Laps::new(last, tsc);
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
                if !laps.poll(|| polled.poll(&ledger, forwarder.stats(), &mut frames, limit)) {
                    continue;
                }
                let count = frames.len();
                let mut copies = 0;
                if count > 0 {
                    packets += count;
                    copies = forwarder.burst(&snapshot, &polled.port, polled.queue, &mut frames, now);
                }
                let time = laps.lap();
                polled.busy.add(time);
                turns.charge(number, time, count, copies);
                worked = true;
            }
            let tick = laps.end();
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
                sleeper.sleep(&mut queues, snapshot.max_sleep, called, forwarder.stats());
                last = tsc();
                forwarder.stats().thread().slept(last.wrapping_sub(tick));
                idle_since = last;
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
