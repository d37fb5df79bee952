//! The torture campaign: clients, shims, guests and the switch itself are killed, stopped and abused at random moments,
//! under load and beside traffic that is checked frame by frame.
//!
//! | module | what is in it |
//! |---|---|
//! | [`record`] | what was tried and what came of it; the table |
//! | [`couple`] | two clients that load each other, and die in every way |
//! | [`hostile`] | clients that write garbage, connections that say nothing |
//! | [`guest`] | a guest behind a shim that is killed |
//! | [`outage`] | the switch killed, and restarted many times |
//! | [`holdings`] | files, hugepages, descriptors: nothing may become more |
//! | [`soak`] | everything at random, against a model of every counter |
//! | [`oom`] | memory control groups |
//!
//! A broken promise is a panic: the campaign ends there, with the switch's log on standard error.

pub mod couple;
pub mod guest;
pub mod holdings;
pub mod hostile;
pub mod oom;
pub mod outage;
pub mod record;
pub mod soak;

use std::panic::resume_unwind;
use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::resource::{Resource, setrlimit};

use crate::bare::Bare;
use crate::bystanders::Bystanders;
use crate::switch::Switch;
use couple::Couple;
use guest::Guest;
use holdings::Holdings;
use hostile::Hostile;
pub use record::{Deed, Record};
use soak::Soak;

/// Bridges of the couples. The last one's ports are deleted and added again as well.
const COUPLES: [(&str, [u16; 2]); 3] = [("br1", [11, 12]), ("br2", [21, 22]), ("br3", [31, 32])];
/// Ports on `br0`.
const BYSTANDERS: [u16; 2] = [1, 2];
const HOSTILE: u16 = 3;
/// Client and guest on `br4`.
const GUEST: [u16; 2] = [41, 42];
/// Frames a second of the bystanders, each way.
const PACE: u64 = 5_000;

/// The switch that is put to torture.
#[derive(Debug)]
pub struct Campaign<'a> {
    switch: Switch,
    record: &'a Record,
    dice: Rng,
    /// Mbufs free when nobody is attached, and what else is held then.
    free: u64,
    held: Holdings,
}

impl<'a> Campaign<'a> {
    /// Starts a switch. The same seed makes the same choices; what processes make of them is up to the machine.
    #[track_caller]
    pub fn start(record: &'a Record, seed: u64) -> Campaign<'a> {
        // Those that die by SIGSEGV need not leave hugepages full of core.
        let _ = setrlimit(Resource::RLIMIT_CORE, 0, 0);
        let switch = Switch::start();
        switch.add_bridge("br0", &[BYSTANDERS[0], BYSTANDERS[1], HOSTILE]);
        for (bridge, ports) in COUPLES {
            switch.add_bridge(bridge, &ports);
        }
        switch.add_bridge("br4", &GUEST);
        let free = switch.free_mbufs();
        // Its first client makes the switch close what EAL has opened.
        drop(Bare::attached(&switch, HOSTILE));
        let held = Holdings::at_rest(&switch, &[]);
        Campaign {
            switch,
            record,
            dice: Rng::with_seed(seed),
            free,
            held,
        }
    }

    /// Clients die for so many seconds: three couples and a hostile one at a time, beside two bystanders.
    #[track_caller]
    pub fn clients(&mut self, seconds: u64) {
        let bystanders = Bystanders::start(&self.switch, BYSTANDERS, PACE, seconds);
        let until = Instant::now() + Duration::from_secs(seconds);
        let (switch, record) = (&self.switch, self.record);
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            for (n, (bridge, ports)) in COUPLES.into_iter().enumerate() {
                let dice = self.dice.fork();
                let evict = n == COUPLES.len() - 1;
                let couple = move || Couple::attach(switch, record, dice, bridge, ports, evict).run(until);
                threads.push(scope.spawn(couple));
            }
            let dice = self.dice.fork();
            threads.push(scope.spawn(move || Hostile::new(switch, record, dice, HOSTILE).run(until)));
            for thread in threads {
                thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            }
        });
        self.finish(bystanders);
    }

    /// The shim of a guest under load is killed and stopped for so many seconds, and in the end the guest.
    #[track_caller]
    pub fn guest(&mut self, seconds: u64) {
        let bystanders = Bystanders::start(&self.switch, BYSTANDERS, PACE, seconds);
        let until = Instant::now() + Duration::from_secs(seconds);
        let mut guest = Guest::start(&self.switch, GUEST);
        guest.run(&self.switch, self.record, &mut self.dice, until);
        guest.die(self.record);
        self.finish(bystanders);
    }

    /// The switch is killed under load and started again, so many times.
    #[track_caller]
    pub fn switch(&mut self, times: usize) {
        let mut guest = Guest::start(&self.switch, GUEST);
        for _ in 0..times {
            outage::kill_under_load(
                &mut self.switch,
                &mut guest,
                COUPLES[0].1,
                self.record,
                &mut self.dice,
            );
        }
        drop(guest);
        self.quiet();
    }

    /// The switch is restarted so many times in a row, by turns in order and by SIGKILL, and must leak nothing.
    #[track_caller]
    pub fn restarts(&mut self, times: usize) {
        let mut guest = Guest::start(&self.switch, GUEST);
        outage::restarts(&mut self.switch, &mut guest, times, self.record);
        drop(guest);
        self.quiet();
    }

    /// Everything comes and goes at random for so many seconds, against a model of every counter, beside a couple that dies.
    #[track_caller]
    pub fn soak(&mut self, seconds: u64) {
        let bystanders = Bystanders::start(&self.switch, BYSTANDERS, PACE, seconds);
        let until = Instant::now() + Duration::from_secs(seconds);
        let (switch, record) = (&self.switch, self.record);
        let dice = [self.dice.fork(), self.dice.fork()];
        std::thread::scope(|scope| {
            let [one, two] = dice;
            let (bridge, ports) = COUPLES[0];
            let couple = move || Couple::attach(switch, record, one, bridge, ports, false).run(until);
            let couple = scope.spawn(couple);
            let soak = scope.spawn(move || Soak::start(switch, record, two).run(until));
            for thread in [couple, soak] {
                thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            }
        });
        self.finish(bystanders);
    }

    /// With everything still, each mbuf is back and each frame accounted for.
    #[track_caller]
    fn finish(&mut self, bystanders: Bystanders) {
        let (clients, calm) = bystanders.finish();
        self.record.calm(calm);
        drop(clients);
        self.quiet();
    }

    #[track_caller]
    fn quiet(&mut self) {
        assert!(self.switch.runs(), "the switch died");
        self.record.quiet(&self.switch, self.free);
        self.held.assert_same(&self.switch, &[]);
        let whole = |bridge: &str| bridge != COUPLES[COUPLES.len() - 1].0;
        self.switch.assert_frames_accounted_in(whole);
    }

    /// Ends the switch, which must leave nothing behind.
    #[track_caller]
    pub fn end(self) {
        self.switch.stop();
    }
}
