//! Sleeping without missing anything: every side that may bring work is told first, then looked at once more.

use std::os::fd::{AsFd, BorrowedFd};

use arrayvec::ArrayVec;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vswitch_common::port::MAX_QUEUES;

use super::seat::count;
use super::{Lane, Standing, Standings, State};
use crate::port::SwitchPort;
use crate::virtqueue::Virtqueue;

/// How often a queue is looked at whose frontend gave no kick descriptor, in milliseconds.
const POLL_MS: u8 = 1;

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

/// What has rung and was not silenced so far. That waits for the next sleep: on waking up a frame is there, and each system
/// call would keep it waiting.
#[derive(Debug, Default)]
pub(super) struct Sleeper {
    tx: bool,
    rx: bool,
    /// By their places. One that has another place by then ends the next sleep at once, and is known again.
    seats: [bool; MAX_QUEUES],
}

impl Sleeper {
    /// Blocks until there may be work again, or `wake` is rung.
    pub(super) fn sleep<P: SwitchPort>(
        &mut self,
        state: &mut State<P>,
        standings: Standings,
        wake: BorrowedFd<'_>,
    ) {
        let guest_full = standings.to_guest == Standing::AwaitsGuest;
        let waits = Waits {
            tx: standings.to_switch == Standing::Idle && (state.unplugged || !state.seats.is_empty()),
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
    pub(super) fn silence<P: SwitchPort>(&mut self, state: &mut State<P>) {
        let rung = std::mem::take(self);
        for (lane, rung) in [(&mut state.tx, rung.tx), (&mut state.rx, rung.rx)] {
            if let Some(lane) = lane.as_mut().filter(|_| rung) {
                clear(lane);
            }
        }
        for (seat, _) in state.seats.iter().zip(rung.seats).filter(|&(_, rung)| rung) {
            seat.port.silence();
        }
    }

    fn wait<P: SwitchPort>(&mut self, state: &State<P>, waits: Waits, wake: BorrowedFd<'_>) {
        let mut timeout = PollTimeout::NONE;
        let mut fds = ArrayVec::<PollFd<'_>, { 3 + MAX_QUEUES }>::new();
        let mut bells = ArrayVec::<&mut bool, { 3 + MAX_QUEUES }>::new();
        for (lane, wanted, rung) in [
            (&state.tx, waits.tx, &mut self.tx),
            (&state.rx, waits.rx, &mut self.rx),
        ] {
            let Some(lane) = lane.as_ref().filter(|lane| wanted && lane.runs()) else {
                continue;
            };
            match &lane.kick {
                Some(kick) => {
                    fds.push(PollFd::new(kick.as_fd(), PollFlags::POLLIN));
                    bells.push(rung);
                }
                None => timeout = PollTimeout::from(POLL_MS),
            }
        }
        let kicks = bells.len();
        for (seat, rung) in state.seats.iter().zip(&mut self.seats) {
            fds.push(PollFd::new(seat.port.doorbell(), PollFlags::POLLIN));
            bells.push(rung);
        }
        fds.push(PollFd::new(wake, PollFlags::POLLIN));
        // An interrupted wait is a short one.
        let _ = poll(&mut fds, timeout);
        for (fd, rung) in fds.iter().zip(&mut bells) {
            **rung = fd.any() != Some(false);
        }
        let kicks = bells[..kicks].iter().filter(|rung| ***rung).count();
        if let Some(seat) = state.seats.first() {
            count(&seat.port.stats().kicks, kicks);
        }
    }
}

/// Asks for every notification that is needed; true if there is work after all.
fn prepare<P: SwitchPort>(state: &mut State<P>, waits: Waits) -> bool {
    let mut work = false;
    for (lane, wanted) in [(&mut state.tx, waits.tx), (&mut state.rx, waits.rx)] {
        if let Some(lane) = lane.as_mut().filter(|lane| wanted && lane.runs()) {
            work |= lane.queue.enable_kicks();
        }
    }
    for (index, seat) in state.seats.iter_mut().enumerate() {
        let blocked = waits.switch && index == 0;
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
            "{}: the kick descriptor is no working eventfd; the queue is polled every {POLL_MS} ms",
            lane.name
        );
        lane.kick = None;
    }
}
