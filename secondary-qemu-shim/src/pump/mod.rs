//! A pump: the thread that moves the frames of one queue pair, in both directions.
//!
//! It polls while there is work and sleeps when there is none, unless the switch wants it to go on polling. Everything it
//! works on is its [`State`], which the control thread changes only while the pump stands still ([`Gate`](vswitch_sync::gate::Gate)): no lock, no atomic on the way of a frame.

mod cut;
mod lane;
mod long;
mod seat;
mod sleep;
mod to_guest;
mod to_switch;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

pub use lane::{Eventfd, Lane};
pub use seat::Seat;

use vswitch_common::port::RX_RING_SIZE;
use vswitch_common::port::doorbell::Doorbell;

use crate::port::SwitchPort;
use crate::virtqueue::{BATCH, Ring};

use sleep::Sleeper;

/// What a pump's state is changed through.
pub type Gate<P> = vswitch_sync::gate::Gate<State<P>, Doorbell>;

/// How long a pump looks for work in vain before it sleeps.
const PATIENCE: Duration = Duration::from_micros(20);

/// Bytes that a pump copies before others on its CPU have their turn: few enough for them to find these frames in its cache.
const TURN: usize = 256 << 10;

/// What a pump works on.
#[derive(Debug)]
pub struct State<P> {
    /// The virtqueue that the guest transmits on, once it runs.
    pub tx: Option<Lane<Ring>>,
    /// The virtqueue that the guest receives on, once it runs.
    pub rx: Option<Lane<Ring>>,
    /// The switch's queue pairs whose frames this pump delivers. The first one takes the guest's frames.
    pub seats: Vec<Seat<P>>,
    /// There is no switch and none is about to answer: the guest's frames go nowhere, as with a cable unplugged.
    /// While false and without a seat they wait in the virtqueue.
    pub unplugged: bool,
    /// Ends the thread.
    pub stop: bool,
}

impl<P> Default for State<P> {
    fn default() -> Self {
        State {
            tx: None,
            rx: None,
            seats: Vec::new(),
            unplugged: false,
            stop: false,
        }
    }
}

/// How a direction stands after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It moved something.
    Busy,
    /// There is nothing to move.
    Idle,
    /// There is something, and the switch must give mbufs or room first.
    AwaitsSwitch,
    /// There is something, and the guest must give buffers first.
    AwaitsGuest,
}

/// How both directions stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standings {
    to_switch: Standing,
    to_guest: Standing,
}

impl Standings {
    fn busy(self) -> bool {
        self.to_switch == Standing::Busy || self.to_guest == Standing::Busy
    }
}

impl<P: SwitchPort> State<P> {
    /// Moves a batch in each direction.
    #[inline]
    fn step(&mut self) -> Standings {
        let lane = self.tx.as_mut().filter(|lane| lane.is_served());
        let mut to_switch = match (lane, self.seats.first_mut()) {
            (Some(lane), Some(seat)) if lane.enabled => to_switch::step(lane, seat),
            (Some(lane), None) if lane.enabled && !self.unplugged => Standing::Idle,
            (Some(lane), seat) => match to_switch::discard(lane) {
                Standing::Idle => seat.map_or(Standing::Idle, Seat::flush),
                busy => busy,
            },
            (None, Some(seat)) => seat.flush(),
            (None, None) => Standing::Idle,
        };
        // What was left of the guest's frames when it gave up their queue.
        for seat in self.seats.iter_mut().skip(1) {
            if seat.flush() == Standing::Busy {
                to_switch = Standing::Busy;
            }
        }
        let mut to_guest = Standing::Idle;
        let mut lane = self.rx.as_mut().filter(|lane| lane.runs());
        for seat in &mut self.seats {
            let standing = match &mut lane {
                Some(lane) => to_guest::step(lane, seat),
                None => seat.drop_frames(),
            };
            to_guest = match (to_guest, standing) {
                (Standing::Busy, _) | (_, Standing::Busy) => Standing::Busy,
                (Standing::AwaitsGuest, _) | (_, Standing::AwaitsGuest) => Standing::AwaitsGuest,
                _ => Standing::Idle,
            };
        }
        Standings { to_switch, to_guest }
    }

    /// Is it to look for work for ever? Only for a guest whose driver runs: nobody pays for a VM that is off.
    fn polls(&self) -> bool {
        let runs = |lane: &Option<Lane<Ring>>| lane.as_ref().is_some_and(Lane::runs);
        (runs(&self.tx) || runs(&self.rx)) && self.seats.iter().any(|seat| seat.port.busy_poll())
    }

    /// Bytes copied in this turn.
    #[inline]
    fn copied(&self) -> usize {
        self.seats.iter().map(|seat| seat.copied).sum()
    }

    /// Lets others on this CPU have their turn.
    fn give_way(&mut self) {
        self.seats.iter_mut().for_each(|seat| seat.copied = 0);
        std::thread::yield_now();
    }

    /// Drops the frames that wait for the guest: its driver stops, and the next one must not find them.
    pub fn forget_frames(&mut self) {
        for seat in &mut self.seats {
            // A full ring is empty after so many bursts; a switch that keeps sending is not waited for.
            for _ in 0..RX_RING_SIZE as usize / BATCH + 1 {
                if seat.drop_frames() == Standing::Idle {
                    break;
                }
            }
        }
    }

    /// Takes the switch's queue pairs away, after a last try to hand over what the guest has sent.
    pub fn unseat(&mut self) -> Vec<Seat<P>> {
        for seat in &mut self.seats {
            seat.flush();
        }
        std::mem::take(&mut self.seats)
    }
}

/// A running pump thread.
#[derive(Debug)]
pub struct Pump<P> {
    gate: Arc<Gate<P>>,
    thread: Option<JoinHandle<()>>,
}

impl<P: SwitchPort + 'static> Pump<P> {
    /// Starts a pump that has nothing to do yet, on CPU `cpu` if one is given.
    ///
    /// # Errors
    /// The process is out of threads or descriptors.
    pub fn start(name: &str, cpu: Option<usize>) -> io::Result<Pump<P>> {
        let gate = Arc::new(Gate::new(State::default(), Doorbell::new()?));
        let thread = Builder::new().name(name.to_owned()).spawn({
            let gate = Arc::clone(&gate);
            move || {
                if let Some(cpu) = cpu {
                    pin(cpu);
                }
                run(&gate);
            }
        })?;
        Ok(Pump {
            gate,
            thread: Some(thread),
        })
    }

    /// Changes the state while the pump stands still.
    pub fn change<R>(&self, change: impl FnOnce(&mut State<P>) -> R) -> R {
        self.gate.change(change)
    }
}

impl<P> Drop for Pump<P> {
    fn drop(&mut self) {
        self.gate.change(|state| state.stop = true);
        if let Some(thread) = self.thread.take() {
            // A pump that panicked has printed why.
            let _ = thread.join();
        }
    }
}

fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    let pinned = set
        .set(cpu)
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &set));
    if let Err(why) = pinned {
        log::warn!(
            "CPU {cpu} is not available to this process ({why}); the thread runs where the kernel likes"
        );
    }
}

fn run<P: SwitchPort>(gate: &Gate<P>) {
    let mut state = gate.enter();
    let mut idle_since: Option<Instant> = None;
    let sleeper = Sleeper::default();
    // Looked at before the first round, too: it may have been stopped before it came to run.
    while !state.stop {
        if gate.wanted() {
            state = gate.stand_still(state);
            idle_since = None;
            continue;
        }
        let standings = state.step();
        if standings.busy() {
            idle_since = None;
            if state.copied() >= TURN {
                state.give_way();
            }
            continue;
        }
        let now = Instant::now();
        if now - *idle_since.get_or_insert(now) < PATIENCE || state.polls() {
            // Whoever has the frames may wait for this very CPU.
            state.give_way();
            continue;
        }
        sleeper.sleep(&mut state, standings, gate.bell().as_fd());
        idle_since = None;
    }
}

#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
