//! Every interleaving and every reordering that the memory model allows, of the code that runs in the switch:
//! `RUSTFLAGS="--cfg loom" cargo nextest run -p vswitch-sync`. Without that flag there is nothing here.
//!
//! A lost wake-up shows as a deadlock, a missing barrier as a wrong value or as two threads in one [`UnsafeCell`].

#![cfg(loom)]

use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use vswitch_sync::gate::{self, Gate};
use vswitch_sync::need_wakeup::{self, NeedWakeup};
use vswitch_sync::quiescence::Published;
use vswitch_sync::seqlock;
use vswitch_sync::spsc::{Consumer, Indices, Producer, Ring};

/// Runs `model` with every schedule of at most `preemptions` switches between threads that could have gone on.
fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.check(model);
}

/// A pipe or an eventfd: remembers that it was rung.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    condition: Condvar,
}

impl Bell {
    fn wait(&self) {
        let mut rung = self.rung.lock().unwrap();
        while !*rung {
            rung = self.condition.wait(rung).unwrap();
        }
    }
}

impl gate::Bell for Bell {
    fn ring(&self) {
        *self.rung.lock().unwrap() = true;
        self.condition.notify_one();
    }

    fn silence(&self) {
        *self.rung.lock().unwrap() = false;
    }
}

use gate::Bell as _;

/// A sleeper's side of a doorbell.
#[derive(Default)]
struct Sleeper {
    flag: NeedWakeup,
    bell: Bell,
}

impl Sleeper {
    /// As PMD threads do: the rings that ended the last sleep are taken before the next one.
    fn sleep_unless(&self, has_work: impl FnOnce() -> bool) {
        self.bell.silence();
        need_wakeup::sleep(std::iter::once(&self.flag), has_work, || self.bell.wait());
    }

    /// As whoever has published something does.
    fn wake(&self) {
        if self.flag.take() {
            self.bell.ring();
        }
    }
}

/// A ring of `N` slots in memory where loom sees each access.
struct Memory<const N: usize> {
    indices: [AtomicU32; 4],
    slots: [UnsafeCell<usize>; N],
}

/// An end's view of it.
struct View<const N: usize>(Arc<Memory<N>>);

impl<const N: usize> Ring for View<N> {
    fn size(&self) -> u32 {
        N as u32
    }

    fn producer(&self) -> Indices<'_> {
        let [head, tail, _, _] = &self.0.indices;
        Indices { head, tail }
    }

    fn consumer(&self) -> Indices<'_> {
        let [_, _, head, tail] = &self.0.indices;
        Indices { head, tail }
    }

    unsafe fn write(&self, index: u32, entry: usize) {
        // SAFETY: loom checks that nobody else is in the cell.
        self.0.slots[index as usize % N].with_mut(|slot| unsafe { *slot = entry });
    }

    unsafe fn read(&self, index: u32) -> usize {
        // SAFETY: as above.
        self.0.slots[index as usize % N].with(|slot| unsafe { *slot })
    }
}

fn ring<const N: usize>() -> (Producer<View<N>>, Consumer<View<N>>) {
    let memory = Arc::new(Memory {
        indices: std::array::from_fn(|_| AtomicU32::new(0)),
        slots: std::array::from_fn(|_| UnsafeCell::new(0)),
    });
    // SAFETY: one end each.
    unsafe { (Producer::new(View(memory.clone())), Consumer::new(View(memory))) }
}

fn put<const N: usize>(producer: &mut Producer<View<N>>, entries: &[usize]) -> usize {
    let n = producer.write(entries.iter().copied()).unwrap();
    producer.publish(n);
    n
}

fn take<const N: usize>(consumer: &mut Consumer<View<N>>, most: usize) -> Vec<usize> {
    let mut out = vec![0; most];
    let n = consumer.read(&mut out).unwrap();
    consumer.release(n);
    out.truncate(n);
    out
}

/// Entries come out whole, in order and once, though their slots are used again; nobody is in a slot with the other.
#[test]
fn ring_ends_hand_over_what_they_publish() {
    check(2, || {
        let (mut producer, mut consumer) = ring::<2>();
        let sender = thread::spawn(move || {
            let mut next = 1;
            while next <= 3 {
                next += put(&mut producer, &[next]);
                thread::yield_now();
            }
        });
        let mut seen = Vec::new();
        while seen.len() < 3 {
            seen.extend(take(&mut consumer, 2));
            thread::yield_now();
        }
        sender.join().unwrap();
        assert_eq!(seen, [1, 2, 3]);
    });
}

/// The consumer sleeps whenever there is nothing: what is put, in two goes, is always found.
#[test]
fn no_wake_up_for_an_entry_is_lost() {
    check(4, || {
        let (mut producer, mut consumer) = ring::<4>();
        let sleeper = Arc::new(Sleeper::default());
        let sender = thread::spawn({
            let sleeper = sleeper.clone();
            move || {
                for entry in 1..=2 {
                    assert_eq!(put(&mut producer, &[entry]), 1);
                    sleeper.wake();
                }
            }
        });
        let mut seen = Vec::new();
        while seen.len() < 2 {
            let new = take(&mut consumer, 2);
            if new.is_empty() {
                sleeper.sleep_unless(|| consumer.available().unwrap() > 0);
            }
            seen.extend(new);
        }
        sender.join().unwrap();
        assert_eq!(seen, [1, 2]);
    });
}

/// The producer sleeps whenever the ring is full, and the consumer whenever it is empty.
#[test]
fn no_wake_up_for_room_is_lost() {
    check(2, || {
        let (mut producer, mut consumer) = ring::<2>();
        let sleepers = Arc::new((Sleeper::default(), Sleeper::default()));
        let sender = thread::spawn({
            let sleepers = sleepers.clone();
            move || {
                let mut next = 1;
                while next <= 2 {
                    let n = put(&mut producer, &[next]);
                    next += n;
                    if n == 0 {
                        sleepers.0.sleep_unless(|| producer.free().unwrap() > 0);
                    } else {
                        sleepers.1.wake();
                    }
                }
            }
        });
        let mut seen = Vec::new();
        while seen.len() < 2 {
            let new = take(&mut consumer, 1);
            if new.is_empty() {
                sleepers.1.sleep_unless(|| consumer.available().unwrap() > 0);
            } else {
                sleepers.0.wake();
            }
            seen.extend(new);
        }
        sender.join().unwrap();
        assert_eq!(seen, [1, 2]);
    });
}

/// Two threads that bring work to one sleeper, by a ring and a doorbell each, as two clients do to a PMD thread.
#[test]
fn a_sleeper_hears_each_of_two_peers() {
    check(2, || {
        let sides: [_; 2] = std::array::from_fn(|_| ring::<2>());
        let flags = Arc::new([NeedWakeup::default(), NeedWakeup::default()]);
        // poll(2) on two pipes.
        let bell = Arc::new(Bell::default());
        let mut consumers = Vec::new();
        let mut senders = Vec::new();
        for (i, (mut producer, consumer)) in sides.into_iter().enumerate() {
            consumers.push(consumer);
            let (flags, bell) = (flags.clone(), bell.clone());
            senders.push(thread::spawn(move || {
                put(&mut producer, &[i + 1]);
                if flags[i].take() {
                    bell.ring();
                }
            }));
        }
        let mut sum = 0;
        while sum < 3 {
            let new: usize = consumers.iter_mut().flat_map(|c| take(c, 1)).sum();
            if new == 0 {
                let mut has_work = || consumers.iter_mut().any(|c| c.available().unwrap() > 0);
                bell.silence();
                need_wakeup::sleep(flags.iter(), &mut has_work, || bell.wait());
            }
            sum += new;
        }
        senders.into_iter().for_each(|s| s.join().unwrap());
    });
}

/// A copy is of one moment: both words belong together, or the reader is told to try again.
#[test]
fn a_seqlock_copy_is_whole() {
    loom::model(|| {
        let shared = Arc::new((AtomicU32::new(0), [AtomicU64::new(0), AtomicU64::new(0)]));
        let writer = thread::spawn({
            let shared = shared.clone();
            move || {
                for value in 1..=2 {
                    seqlock::write(&shared.0, || {
                        shared
                            .1
                            .iter()
                            .for_each(|word| word.store(value, Ordering::Relaxed));
                    });
                }
            }
        });
        let copy = || [0, 1].map(|i| shared.1[i].load(Ordering::Relaxed));
        if let Some([a, b]) = seqlock::read(&shared.0, copy) {
            assert_eq!(a, b);
        }
        writer.join().unwrap();
        assert_eq!(seqlock::read(&shared.0, copy), Some([2, 2]));
    });
}

/// What hangs on a value: a session of a client, which is taken apart when no worker uses it any more.
struct Session(UnsafeCell<u32>);

impl Session {
    fn new() -> Arc<Session> {
        Arc::new(Session(UnsafeCell::new(0)))
    }

    fn work(&self) {
        // SAFETY: loom checks that nobody takes it apart meanwhile.
        self.0.with(|cell| unsafe { assert_eq!(*cell, 0) });
    }

    fn take_apart(&self) {
        // SAFETY: loom checks that nobody works on it.
        self.0.with_mut(|cell| unsafe { *cell = 1 });
    }
}

/// When a value is published, the old one is in no worker's hands: awake, asleep, just starting or about to stop.
#[test]
fn what_is_replaced_is_not_in_use() {
    check(3, || {
        let sessions = [Session::new(), Session::new()];
        // The value is a session's number; the sessions live on, as memory of the ports does.
        let published = Arc::new(Published::new(1, 0usize));
        let bell = Arc::new(Bell::default());
        published.starting(0);
        let worker = thread::spawn({
            let (published, bell, sessions) = (published.clone(), bell.clone(), sessions.clone());
            move || {
                let (mut value, mut generation) = published.load(0, None);
                loop {
                    if published.changed(generation) {
                        (value, generation) = published.load(0, Some(value));
                    }
                    sessions[*value].work();
                    if *value == 1 {
                        break;
                    }
                    bell.wait();
                    bell.silence();
                }
                drop(value);
                published.stopped(0);
            }
        });
        published.publish(1, || bell.ring());
        sessions[0].take_apart();
        worker.join().unwrap();
        published.publish(0, || bell.ring());
        sessions[1].take_apart();
    });
}

/// A worker that starts while a value is being published is waited for, or starts with that one.
#[test]
fn a_worker_that_starts_meanwhile_uses_nothing_old() {
    check(3, || {
        let session = Session::new();
        let published = Arc::new(Published::new(1, true));
        let worker = thread::spawn({
            let (published, session) = (published.clone(), session.clone());
            move || {
                published.starting(0);
                let (value, generation) = published.load(0, None);
                if *value {
                    session.work();
                }
                while !published.changed(generation) && *value {
                    thread::yield_now();
                }
                drop(value);
                published.stopped(0);
            }
        });
        published.publish(false, || ());
        session.take_apart();
        worker.join().unwrap();
    });
}

/// The worker of a gate sees each change, never during its own work, and never sleeps on one that waits.
#[test]
fn a_gate_lets_every_change_through() {
    check(3, || {
        let gate = Arc::new(Gate::new(0u32, Bell::default()));
        let worker = thread::spawn({
            let gate = gate.clone();
            move || {
                let mut state = gate.enter();
                loop {
                    if gate.wanted() {
                        state = gate.stand_still(state);
                    }
                    if *state == 2 {
                        return;
                    }
                    gate.bell().wait();
                }
            }
        });
        for change in 1..=2 {
            gate.change(|state| *state = change);
        }
        worker.join().unwrap();
    });
}
