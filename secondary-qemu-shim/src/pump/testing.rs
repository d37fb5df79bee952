//! A loopback in ordinary memory in place of the switch, for tests.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use nix::sys::eventfd::{EfdFlags, EventFd};
use vswitch_common::mbuf::{BUF_LEN, Checksum, DATA_ROOM, Mbuf, PRIV_LEN};
use vswitch_common::port::doorbell::Doorbell;
use vswitch_common::port::layout::ClientStats;

use super::sleep::Sleeper;
use super::{Gate, Pump, Seat, State};
use crate::port::{Burst, Stash, SwitchPort};
use crate::virtqueue::BATCH;

const MBUF: usize = 128 + PRIV_LEN + BUF_LEN;
/// Bytes behind each mbuf that nobody may write.
const CANARY: [u8; 64] = [0xc5; 64];
const STRIDE: usize = MBUF + CANARY.len();

/// Moves a batch in each direction; true if anything moved.
pub fn step<P: SwitchPort>(state: &mut State<P>) -> bool {
    state.step().busy()
}

/// Takes the switch's queue pairs away, and gives them every mbuf that was in hand.
pub fn take_apart<P: SwitchPort>(state: &mut State<P>) {
    for mut seat in state.unseat() {
        give_empties(&mut seat);
        for burst in [&mut seat.outgoing, &mut seat.inbox] {
            seat.port.release(burst);
        }
    }
}

/// Gives the mbufs back that are kept for the guest's frames.
pub(super) fn give_empties<P: SwitchPort>(seat: &mut Seat<P>) {
    while !seat.empties.is_empty() {
        let rest = seat.empties.len().saturating_sub(BATCH);
        seat.port.release(&mut seat.empties.drain(rest..).collect());
    }
}

impl<P: SwitchPort + 'static> Pump<P> {
    /// A pump without a thread: nothing moves until [`Pump::settle`].
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub fn without_thread() -> io::Result<Pump<P>> {
        Ok(Pump {
            gate: Arc::new(Gate::new(State::default(), Doorbell::new()?)),
            thread: None,
        })
    }

    /// Works until there is nothing to do, and looks around as before a sleep, which ends at once. False: there
    /// still was something to do after `limit` steps.
    pub fn settle(&self, limit: usize) -> bool {
        self.gate.change(|state| {
            for _ in 0..limit {
                let standings = state.step();
                if !standings.busy() {
                    // `change` has just rung the bell.
                    let sleeper = Sleeper::default();
                    sleeper.sleep(state, standings, self.gate.bell().as_fd());
                    sleeper.silence(state);
                    return true;
                }
            }
            false
        })
    }
}

/// Memory shaped like mbufs.
#[derive(Debug)]
pub struct Buffers {
    base: NonNull<u8>,
    layout: Layout,
    free: Vec<Mbuf>,
    count: usize,
}

// SAFETY: the memory has one owner; the mbufs in it move between threads as mbufs may.
unsafe impl Send for Buffers {}

impl Buffers {
    /// `count` empty ones.
    pub fn new(count: usize) -> Buffers {
        let layout = Layout::from_size_align(STRIDE * count, 64).unwrap();
        // SAFETY: a non-zero size.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).unwrap();
        for i in 0..count {
            // SAFETY: inside the allocation, behind the mbuf.
            unsafe { base.add(i * STRIDE + MBUF).cast().write(CANARY) };
        }
        let free = (0..count)
            // SAFETY: memory of an mbuf's shape, owned by this value, which outlives them in every test.
            .map(|i| unsafe { Mbuf::from_address(base.as_ptr() as usize + i * STRIDE) }.unwrap())
            .collect();
        Buffers {
            base,
            layout,
            free,
            count,
        }
    }

    /// An empty mbuf.
    pub fn empty(&mut self) -> Option<Mbuf> {
        self.free.pop()
    }

    /// A frame of `bytes`, in as many mbufs as it takes.
    pub fn frame(&mut self, bytes: &[u8]) -> Mbuf {
        let mut mbufs = bytes.chunks(DATA_ROOM).map(|part| {
            let mut mbuf = self.empty().expect("a buffer is left");
            mbuf.room_mut()[..part.len()].copy_from_slice(part);
            mbuf.set_frame(part.len(), Checksum::Unknown);
            mbuf
        });
        let mut first = mbufs.next().expect("not empty");
        let rest: Vec<Mbuf> = mbufs.collect();
        first.chain(&rest);
        first
    }

    /// Takes a frame's mbufs back, of which nobody must have two.
    pub fn give_back(&mut self, mut mbuf: Mbuf) {
        if mbuf.segment_count() > 1 {
            mbuf.split().into_iter().for_each(|rest| self.give_back(rest));
        }
        assert!(!self.free.contains(&mbuf), "an mbuf came back twice");
        self.free.push(mbuf);
    }

    /// How many there are.
    pub fn available(&self) -> usize {
        self.free.len()
    }

    /// Are all at home?
    pub fn complete(&self) -> bool {
        self.free.len() == self.count
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        for i in 0..self.count {
            // SAFETY: inside the allocation; `new` wrote it.
            let behind: [u8; CANARY.len()] = unsafe { self.base.add(i * STRIDE + MBUF).cast().read() };
            assert!(
                behind == CANARY || std::thread::panicking(),
                "written behind an mbuf's end"
            );
        }
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}

/// What the switch has and what it got.
#[derive(Debug)]
pub struct Switch {
    pub buffers: Buffers,
    /// Frames from the guest.
    pub sent: VecDeque<Mbuf>,
    /// How many of those it takes at most.
    pub room: usize,
    /// Frames for the guest.
    pub frames: VecDeque<Mbuf>,
    /// Everything that the guest sends comes back to it.
    pub echo: bool,
    /// It wants to be polled.
    pub busy_poll: bool,
    /// How often the pump came by.
    looks: u64,
    asleep: bool,
}

/// A port of a [`Switch`] that tests hold the other end of.
#[derive(Debug, Clone)]
pub struct Loopback {
    switch: Arc<Mutex<Switch>>,
    doorbell: Arc<EventFd>,
    stats: Arc<ClientStats>,
}

impl Loopback {
    /// With `buffers` mbufs in all.
    pub fn new(buffers: usize) -> Loopback {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        let switch = Switch {
            buffers: Buffers::new(buffers),
            sent: VecDeque::new(),
            room: usize::MAX,
            frames: VecDeque::new(),
            echo: false,
            busy_poll: false,
            looks: 0,
            asleep: false,
        };
        Loopback {
            switch: Arc::new(Mutex::new(switch)),
            doorbell: Arc::new(EventFd::from_value_and_flags(0, flags).unwrap()),
            stats: Arc::default(),
        }
    }

    /// Acts as the switch, and rings the doorbell if the shim sleeps.
    pub fn switch<R>(&self, act: impl FnOnce(&mut Switch) -> R) -> R {
        let mut switch = self.switch.lock().unwrap();
        let result = act(&mut switch);
        if std::mem::take(&mut switch.asleep) {
            self.doorbell.write(1).unwrap();
        }
        result
    }

    /// Asks to be polled, or no longer.
    pub fn set_busy_poll(&self, on: bool) {
        self.switch(|switch| switch.busy_poll = on);
        self.doorbell.write(1).unwrap();
    }

    /// How often the pump came by, for frames or to know whether to sleep.
    pub fn looks(&self) -> u64 {
        self.switch.lock().unwrap().looks
    }

    /// Puts a frame on the way to the guest.
    pub fn deliver(&self, bytes: &[u8]) {
        self.switch(|switch| {
            let frame = switch.buffers.frame(bytes);
            switch.frames.push_back(frame);
        });
    }

    /// The frames that the guest sent since the last call.
    pub fn collect(&self) -> Vec<Vec<u8>> {
        self.switch(|switch| {
            let sent = std::mem::take(&mut switch.sent);
            sent.into_iter()
                .map(|mbuf| {
                    let bytes = mbuf.segments().collect::<Vec<_>>().concat();
                    switch.buffers.give_back(mbuf);
                    bytes
                })
                .collect()
        })
    }
}

impl SwitchPort for Loopback {
    fn alloc(&mut self, out: &mut Stash) {
        let mut switch = self.switch.lock().unwrap();
        let most = out.remaining_capacity().min(BATCH);
        out.extend(std::iter::from_fn(|| switch.buffers.empty()).take(most));
    }

    fn send(&mut self, frames: &mut Burst) {
        let mut switch = self.switch.lock().unwrap();
        let n = frames.len().min(switch.room.saturating_sub(switch.sent.len()));
        let sent = frames.drain(..n);
        if switch.echo {
            switch.frames.extend(sent)
        } else {
            switch.sent.extend(sent)
        }
    }

    fn receive(&mut self, out: &mut Burst) {
        let mut switch = self.switch.lock().unwrap();
        switch.looks += 1;
        while !out.is_full() {
            let Some(mbuf) = switch.frames.pop_front() else {
                break;
            };
            out.push(mbuf);
        }
    }

    fn release(&mut self, used: &mut Burst) {
        let mut switch = self.switch.lock().unwrap();
        used.drain(..).for_each(|mbuf| switch.buffers.give_back(mbuf));
    }

    fn frames_waiting(&mut self) -> bool {
        !self.switch.lock().unwrap().frames.is_empty()
    }

    fn buffers_waiting(&mut self) -> bool {
        !self.switch.lock().unwrap().buffers.free.is_empty()
    }

    fn has_room(&mut self) -> bool {
        let switch = self.switch.lock().unwrap();
        switch.sent.len() < switch.room
    }

    fn arm(&self) {
        self.switch.lock().unwrap().asleep = true;
    }

    fn disarm(&self) {
        self.switch.lock().unwrap().asleep = false;
    }

    fn silence(&self) {
        let _ = self.doorbell.read();
    }

    fn doorbell(&self) -> BorrowedFd<'_> {
        self.doorbell.as_fd()
    }

    fn busy_poll(&self) -> bool {
        let mut switch = self.switch.lock().unwrap();
        switch.looks += 1;
        switch.busy_poll
    }

    fn stats(&self) -> &ClientStats {
        &self.stats
    }
}
