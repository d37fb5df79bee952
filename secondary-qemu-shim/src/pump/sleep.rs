//! Sleeping without missing anything: every side that may bring work is told first, then looked at once more.

use std::iter::once;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use vswitch_common::port::MAX_QUEUES;
use vswitch_common::port::doorbell::{self, Rung};

use super::seat::count;
use super::{Eventfd, Lane, Standing, Standings, State};
use crate::port::SwitchPort;
use crate::virtqueue::Virtqueue;

/// How often a queue is looked at whose frontend gave no kick descriptor.
const POLL: Duration = Duration::from_millis(1);

/// What a pump sleeps for.
#[derive(Debug, Clone, Copy)]
struct Waits {
    /// The guest transmits.
    tx: bool,
    /// The guest gives receive buffers.
    rx: bool,
    /// The switch gives empty mbufs or takes frames.
    switch: bool,
    /// The switch sends.
    frames: bool,
}

/// A pump's sleep, with the doorbells that are to be silenced before the next one.
#[derive(Debug, Default)]
pub(super) struct Sleeper {
    tx: Rung,
    rx: Rung,
    /// By their places. One that has another place by then ends the next sleep at once, and is known again.
    seats: [Rung; MAX_QUEUES],
}

impl Sleeper {
    /// Blocks until there may be work again, or `wake` is rung.
    pub(super) fn sleep<P: SwitchPort>(
        &self,
        state: &mut State<P>,
        standings: Standings,
        wake: BorrowedFd<'_>,
    ) {
        let guest_full = standings.to_guest == Standing::AwaitsGuest;
        let waits = Waits {
            tx: standings.to_switch == Standing::Idle
                && (state.unplugged
                    || !state.seats.is_empty()
                    || state.tx.as_ref().is_some_and(|lane| lane.given_up)),
            rx: guest_full,
            switch: standings.to_switch == Standing::AwaitsSwitch,
            // The switch's frames are of no use while the guest has no buffers: its doorbell need not ring for them.
            frames: !guest_full,
        };
        self.silence(state);
        // What told of a wish to be polled may just have been silenced.
        if !prepare(state, waits) && !state.polls() {
            self.wait(state, waits, wake);
        }
        if let Some(lane) = &mut state.tx {
            lane.queue.suppress_kicks();
        }
        if let Some(lane) = &mut state.rx {
            lane.queue.suppress_kicks();
        }
        for seat in &state.seats {
            seat.port.disarm();
        }
    }

    /// Takes the rings that ended the last sleep.
    pub(super) fn silence<P: SwitchPort>(&self, state: &mut State<P>) {
        for (lane, rung) in [(&mut state.tx, &self.tx), (&mut state.rx, &self.rx)] {
            if rung.take()
                && let Some(lane) = lane
            {
                clear(lane);
            }
        }
        for (seat, rung) in state.seats.iter().zip(&self.seats) {
            if rung.take() {
                seat.port.silence();
            }
        }
    }

    fn wait<P: SwitchPort>(&self, state: &State<P>, waits: Waits, wake: BorrowedFd<'_>) {
        let lanes = [(&state.tx, waits.tx, &self.tx), (&state.rx, waits.rx, &self.rx)];
        let lanes = lanes.iter().filter_map(|&(lane, wanted, rung)| {
            let lane = lane.as_ref().filter(|lane| wanted && lane.is_served())?;
            Some((lane.kick.as_ref().map(Eventfd::as_fd), rung))
        });
        let polled = lanes.clone().any(|(kick, _)| kick.is_none());
        let kicks = lanes.filter_map(|(kick, rung)| Some((kick?, rung)));
        let seats = state.seats.iter().map(|seat| seat.port.doorbell());
        // Not ours to silence: the gate does it.
        let change = (wake, &Rung::default());
        let bells = kicks.chain(seats.zip(&self.seats)).chain(once(change));
        doorbell::wait(bells, polled.then_some(POLL));
        if let Some(seat) = state.seats.first() {
            let kicks = [&self.tx, &self.rx].into_iter().filter(|rung| rung.get());
            count(&seat.port.stats().kicks, kicks.count());
        }
    }
}

/// Asks for every notification that is needed; true if there is work after all.
fn prepare<P: SwitchPort>(state: &mut State<P>, waits: Waits) -> bool {
    let mut work = false;
    for (lane, wanted) in [(&mut state.tx, waits.tx), (&mut state.rx, waits.rx)] {
        if let Some(lane) = lane.as_mut().filter(|lane| wanted && lane.is_served()) {
            work |= lane.queue.enable_kicks();
        }
    }
    for (index, seat) in state.seats.iter_mut().enumerate() {
        let blocked = waits.switch && index == 0 || !seat.outgoing.is_empty();
        if blocked || waits.frames {
            seat.port.arm();
        }
        if blocked {
            work |= if seat.outgoing.is_empty() {
                seat.port.buffers_waiting()
            } else {
                seat.port.has_room()
            };
        }
        if waits.frames {
            work |= seat.port.frames_waiting();
        }
    }
    work
}

/// Takes the kicks so far. A descriptor that can't be waited on would keep this thread from ever sleeping.
fn clear<Q>(lane: &mut Lane<Q>) {
    if lane.kick.as_ref().is_some_and(|kick| !kick.clear()) {
        log::warn!(
            "{}: the kick descriptor is no working eventfd; the queue is polled every {POLL:?}",
            lane.name
        );
        lane.kick = None;
    }
}
