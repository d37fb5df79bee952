//! The switch's ends of a client's queue pairs.
//!
//! The receiving half (frames in, used mbufs back, empty mbufs out) is worked by the PMD thread that polls the port;
//! the sending half by whichever thread has frames for it. Each half has its own lock, which nearly always is free.

use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use arrayvec::ArrayVec;
use spin::mutex::SpinMutex;
use vswitch_common::mbuf::Mbuf;
use vswitch_common::mempool::Pool;
use vswitch_common::port::doorbell::{Bell, NeedWakeup, Ringer};
use vswitch_common::port::layout::{ClientStats, ControlRef};
use vswitch_common::port::{ALLOC_LEVEL, ALLOC_RING_SIZE, MAX_QUEUES, QUOTA, TX_RING_SIZE};
use vswitch_common::ring::{Consumer, Producer, RingCorrupt, RingMemory};

use super::BURST;
use super::chain;
use super::ledger::{Ledger, Owner};

/// An attached client: one process, from attach to its end.
#[derive(Debug)]
pub struct Session {
    owners: RangeInclusive<Owner>,
    pool: Pool,
    queues: Vec<Queue>,
}

/// One of its queue pairs.
#[derive(Debug)]
pub struct Queue {
    owner: Owner,
    /// What its empty mbufs come from.
    pool: Pool,
    receiving: SpinMutex<Receiving>,
    sending: SpinMutex<Producer>,
    control: ControlRef,
    bell: Bell,
    to_client: Ringer,
    /// Mbufs handed out by the sending half: frames.
    given_frames: AtomicU32,
    /// Mbufs handed out by the receiving half, empty ones, less all that it has taken back. One number, and not one of each: the
    /// sending half never sees the one new and the other old.
    balance: AtomicU32,
    /// There was no room for all frames the last time.
    scarce: AtomicBool,
}

#[derive(Debug)]
struct Receiving {
    tx: Consumer,
    free: Consumer,
    alloc: Producer,
    /// Taken back from the client, to be handed out empty again.
    recycled: ArrayVec<Mbuf, { 2 * BURST }>,
}

impl Receiving {
    /// Keeps room for a burst of used mbufs: the client may be out of its share until they are taken back.
    #[inline]
    fn trim(&mut self, ledger: &Ledger) {
        if self.recycled.len() > BURST {
            let mut surplus: ArrayVec<Mbuf, { 2 * BURST }> = self.recycled.drain(BURST..).collect();
            ledger.free_singles(&mut surplus);
        }
    }
}

/// The memory of a queue pair.
#[derive(Debug, Clone, Copy)]
pub struct QueueMemory {
    pub alloc: RingMemory,
    pub tx: RingMemory,
    pub rx: RingMemory,
    pub free: RingMemory,
    pub control: ControlRef,
}

/// What a poll of a queue pair found.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Polled {
    /// Ring entries that were not the client's mbufs.
    pub bad_mbufs: u64,
    /// Ring indices that made no sense.
    pub bad_rings: u64,
    /// Used mbufs taken back, empty ones handed out: work, even without frames.
    pub moved: usize,
}

impl Session {
    /// A session of the client of port `port` on rings that are empty, with mbufs of `pool` while there are some.
    ///
    /// # Safety
    /// The rings and control blocks belong to that port, stay mapped as long as the session, and no other session
    /// uses them.
    pub unsafe fn new(port: u16, pool: Pool, queues: Vec<(QueueMemory, Bell, Ringer)>) -> Session {
        let owners = Owner::client(port, 0)..=Owner::client(port, MAX_QUEUES - 1);
        let queues = queues
            .into_iter()
            .enumerate()
            .map(|(number, (memory, bell, to_client))| {
                // SAFETY: by this function's contract, the only ends on this side.
                let (tx, free, alloc, rx) = unsafe {
                    (
                        Consumer::new(memory.tx),
                        Consumer::new(memory.free),
                        Producer::new(memory.alloc),
                        Producer::new(memory.rx),
                    )
                };
                Queue {
                    owner: Owner::client(port, number),
                    pool,
                    receiving: SpinMutex::new(Receiving {
                        tx,
                        free,
                        alloc,
                        recycled: ArrayVec::new(),
                    }),
                    sending: SpinMutex::new(rx),
                    control: memory.control,
                    bell,
                    to_client,
                    given_frames: AtomicU32::new(0),
                    balance: AtomicU32::new(0),
                    scarce: AtomicBool::new(false),
                }
            })
            .collect();
        Session { owners, pool, queues }
    }

    /// Its queue pairs.
    pub fn queues(&self) -> &[Queue] {
        &self.queues
    }

    /// The pool that its mbufs come from.
    pub fn pool(&self) -> Pool {
        self.pool
    }

    /// Asks the client to poll, or no longer to.
    pub fn set_busy_poll(&self, on: bool) {
        self.queues.iter().for_each(|queue| queue.set_busy_poll(on));
    }

    /// The queue pair by which goes what came in by queue `number` of another port.
    #[inline]
    pub fn queue(&self, number: usize) -> &Queue {
        &self.queues[number % self.queues.len()]
    }

    /// Takes back all mbufs that the session holds. Only when no thread works on it and the client is gone.
    pub fn reclaim(&self, ledger: &Ledger) -> usize {
        for queue in &self.queues {
            ledger.free_singles(&mut queue.receiving.lock().recycled);
        }
        ledger.reclaim(self.owners.clone())
    }
}

impl Queue {
    /// Takes frames from the client, up to `limit` and the room in `frames`; takes used mbufs back; keeps it in empty ones.
    #[inline]
    pub fn receive(&self, ledger: &Ledger, frames: &mut ArrayVec<Mbuf, BURST>, limit: usize) -> Polled {
        let mut polled = Polled::default();
        let Some(mut half) = self.receiving.try_lock() else {
            return polled;
        };
        let mut entries = [0usize; BURST];
        let mut returned = 0u32;

        let want = frames.remaining_capacity().min(limit);
        match half.tx.dequeue(&mut entries[..want]) {
            Ok(0) => {}
            Ok(n) => {
                // The client has just written both on another core.
                for &address in &entries[..n] {
                    ledger.prefetch(address);
                    Mbuf::prefetch_at(address);
                }
                for &address in &entries[..n] {
                    let (frame, taken) = ledger.take_frame(address, self.owner);
                    returned += taken;
                    match frame {
                        Some(frame) => frames.push(frame),
                        None => polled.bad_mbufs += 1,
                    }
                }
                // A client may sleep until its ring, which was full, has room again.
                if n == want
                    && half
                        .tx
                        .available()
                        .is_ok_and(|left| left > TX_RING_SIZE as usize / 2)
                {
                    self.wake_client();
                }
            }
            Err(RingCorrupt) => polled.bad_rings += 1,
        }

        let (back, more) = self.take_back(&mut half, ledger, &mut polled, &mut entries);
        self.count_returned(returned + back);
        polled.bad_rings += u64::from(self.refill(&mut half, ledger, &mut polled.moved).is_err());
        half.trim(ledger);
        if more {
            self.take_back_all(&mut half, ledger, &mut polled);
        }
        polled
    }

    /// Takes a burst of used mbufs back: how many they were, and whether there are more.
    #[inline(always)]
    fn take_back(
        &self,
        half: &mut Receiving,
        ledger: &Ledger,
        polled: &mut Polled,
        entries: &mut [usize; BURST],
    ) -> (u32, bool) {
        let Ok(n) = half.free.dequeue(entries) else {
            polled.bad_rings += 1;
            return (0, false);
        };
        debug_assert!(half.recycled.len() <= BURST, "trimmed after each burst");
        let mut returned = 0;
        for &address in &entries[..n] {
            match ledger.take(address, self.owner) {
                Some(mbuf) => {
                    returned += 1;
                    half.recycled.push(mbuf);
                }
                None => polled.bad_mbufs += 1,
            }
        }
        polled.moved += n;
        // Frames of clients and NICs on other nodes came in these.
        ledger.free_others(self.pool, &mut half.recycled);
        // Of a client that brings what it does not have no more is taken at once.
        let more = returned as usize == BURST && half.free.available().is_ok_and(|left| left > 0);
        (returned, more)
    }

    /// Takes all used mbufs back, up to the client's share: they count as its own until then, and many a poll's worth may have
    /// come since the last one, where other threads bring it frames too, or this one had to wait for its CPU.
    #[cold]
    fn take_back_all(&self, half: &mut Receiving, ledger: &Ledger, polled: &mut Polled) {
        let mut entries = [0; BURST];
        for _ in 0..QUOTA as usize / BURST {
            let (back, more) = self.take_back(half, ledger, polled, &mut entries);
            self.count_returned(back);
            half.trim(ledger);
            if !more {
                break;
            }
        }
    }

    #[inline]
    fn count_returned(&self, mbufs: u32) {
        if mbufs > 0 {
            let balance = self.balance.load(Ordering::Relaxed);
            self.balance.store(balance.wrapping_sub(mbufs), Ordering::Relaxed);
        }
    }

    /// Hands empty mbufs out, recycled ones first, up to the level.
    #[inline]
    fn refill(&self, half: &mut Receiving, ledger: &Ledger, moved: &mut usize) -> Result<(), RingCorrupt> {
        let level = (ALLOC_RING_SIZE - 1) as usize - half.alloc.free()?;
        let enough = ALLOC_LEVEL as usize;
        let missing = enough.saturating_sub(level);
        // Small top-ups are left for later, so that a burst moves whole cache lines.
        if missing < BURST && level >= enough / 2 && half.recycled.len() <= BURST {
            return Ok(());
        }
        let quota_left = QUOTA.saturating_sub(self.owned()) as usize;
        let give = missing.min(2 * BURST).min(quota_left);
        // What comes from a pool comes in bursts, too.
        if half.recycled.len() < give && missing >= BURST {
            let more = give - half.recycled.len();
            ledger.alloc(self.pool, &mut half.recycled, more);
        }
        let give = give.min(half.recycled.len());
        if give == 0 {
            return Ok(());
        }
        let keep = half.recycled.len() - give;
        let Receiving { alloc, recycled, .. } = half;
        recycled[keep..].iter().for_each(|m| ledger.give(m, self.owner));
        let balance = self.balance.load(Ordering::Relaxed);
        self.balance
            .store(balance.wrapping_add(give as u32), Ordering::Relaxed);
        // All fit: `level` was read from the ring just now and this is its only producer.
        let put = alloc.enqueue(&recycled[keep..])?;
        drop(recycled.drain(keep..keep + put));
        *moved += put;
        self.wake_client();
        Ok(())
    }

    /// How many frames [`Queue::send`] would take now, if it could not take all of them the last time.
    #[inline]
    pub fn scarce_room(&self) -> Option<Room> {
        if !self.scarce.load(Ordering::Relaxed) {
            return None;
        }
        // Who holds the lock is sending, and will tell.
        let free = self.sending.try_lock()?.free().unwrap_or(0);
        Some(self.room(free))
    }

    fn room(&self, free: usize) -> Room {
        let quota_left = self.left_for_frames() as usize;
        Room {
            frames: free.min(quota_left),
            over_quota: quota_left < free,
        }
    }

    /// Hands `frames` to the client, in order; what does not fit stays in the list. `chains`: there may be some among them.
    #[inline]
    pub fn send<const N: usize>(
        &self,
        ledger: &Ledger,
        frames: &mut ArrayVec<Mbuf, N>,
        chains: bool,
    ) -> Sent {
        let total = frames.len();
        let mut sending = self.sending.lock();
        let free = sending.free().unwrap_or(0);
        let mut room = self.room(free);
        if chains {
            room.keep_to_quota(frames, self.left_for_frames());
        }
        let count = total.min(room.frames);
        let scarce = count < total;
        if self.scarce.load(Ordering::Relaxed) != scarce {
            self.scarce.store(scarce, Ordering::Relaxed);
        }
        let mut mbufs = count as u32;
        for frame in &mut frames[..count] {
            if chains {
                mbufs += ledger.give_rest(frame, self.owner);
            }
            ledger.give(frame, self.owner);
        }
        if count > 0 {
            let given = &self.given_frames;
            given.store(
                given.load(Ordering::Relaxed).wrapping_add(mbufs),
                Ordering::Relaxed,
            );
            // All fit: `free` was read under the lock, which makes this the only producer.
            let _ = sending.enqueue(&frames[..count]);
            drop(frames.drain(..count));
            drop(sending);
            self.wake_client();
        }
        Sent {
            over_quota: room.over_quota,
            ..Sent::all_but(frames, total)
        }
    }

    /// Mbufs of the client's share that frames may still take. They leave it enough for what it sends, also while it takes none of them.
    fn left_for_frames(&self) -> u32 {
        (QUOTA - ALLOC_LEVEL).saturating_sub(self.owned())
    }

    /// Mbufs that the client has of this queue pair's share.
    fn owned(&self) -> u32 {
        let balance = self.balance.load(Ordering::Relaxed);
        let owned = balance.wrapping_add(self.given_frames.load(Ordering::Relaxed));
        // Frames may be back before they are counted as handed out: no less than nothing is left then.
        owned.cast_signed().max(0).cast_unsigned()
    }

    #[inline]
    fn wake_client(&self) {
        if self.control.get().client_sleeps.take() {
            self.to_client.ring();
        }
    }

    /// What asks the client to ring while the switch sleeps.
    pub fn sleeps(&self) -> &NeedWakeup {
        &self.control.get().switch_sleeps
    }

    /// Takes the client's rings so far.
    pub fn silence(&self) {
        self.bell.silence();
    }

    /// Is there something to take from the client, or something wrong with its rings, for which it is evicted soon?
    pub fn has_work(&self) -> bool {
        let mut half = self.receiving.lock();
        half.tx.available() != Ok(0) || half.free.available() != Ok(0)
    }

    /// Readable when the client has rung.
    pub fn doorbell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    fn set_busy_poll(&self, on: bool) {
        self.control.get().busy_poll.set(on);
        // Not only if it has asked for it: it may sleep waiting for its guest alone.
        self.to_client.ring();
    }

    /// What the client counts.
    pub fn client_stats(&self) -> &ClientStats {
        &self.control.get().stats
    }
}

/// What [`Queue::send`] would take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    pub frames: usize,
    /// It is the client's share of the pool that sets the bound, not its ring.
    pub over_quota: bool,
}

impl Room {
    /// For frames of several mbufs, which the client's share has room for `mbufs` of.
    #[cold]
    fn keep_to_quota(&mut self, frames: &[Mbuf], mbufs: u32) {
        let fitting = chain::fitting(frames, mbufs);
        if fitting < self.frames {
            *self = Room {
                frames: fitting,
                over_quota: fitting < frames.len(),
            };
        }
    }
}

/// What became of frames that were to leave.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    pub frames: usize,
    /// Bytes of those that were not sent.
    pub left_bytes: usize,
    /// The rest was kept back by the client's share of the pool, not by a full ring.
    pub over_quota: bool,
}

impl Sent {
    /// Of `total` frames those in `left` were not sent.
    #[inline]
    pub fn all_but<const N: usize>(left: &ArrayVec<Mbuf, N>, total: usize) -> Sent {
        Sent {
            frames: total - left.len(),
            left_bytes: left.iter().map(Mbuf::frame_len).sum(),
            over_quota: false,
        }
    }
}
