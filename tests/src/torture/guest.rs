//! A guest (testpmd) that sends everything back, behind a shim that dies again and again.
//!
//! The frames are those of a client which watches what comes back for as long as the guest lives: none altered, none
//! twice, none out of order. In the end a run without loss over the same virtqueues shows that their
//! descriptors are all there.

use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vswitch_common::stats::Counter;

use super::record::{Deed, Record};
use crate::bare::{Bare, Load, Traffic};
use crate::frames::{Frame, Mac, mac};
use crate::guest::{Shim, Testpmd};
use crate::switch::Switch;
use crate::wait::{PATIENCE, eventually, within};

/// Whatever is sent to it comes back; the guest's own address is what we say.
const GUEST: Mac = mac(42);
const CLIENT: Mac = mac(41);
/// Frames a second there and back.
const RATE: u64 = 10_000;
/// Frames of the run without loss.
const WHOLE: u64 = 5_000;

/// Client, shim and guest; each ends before what it stands on.
#[derive(Debug)]
pub struct Guest {
    client: Bare,
    pub shim: Shim,
    guest: Testpmd,
    ports: [u16; 2],
    next_id: u16,
}

impl Guest {
    /// A client on the first port, a guest on the second.
    #[track_caller]
    pub fn start(switch: &Switch, ports: [u16; 2]) -> Guest {
        let mut guest = Testpmd::start(switch, "guest", 1, "macswap", &[]);
        let shim = Shim::start(switch, ports[1], 1, guest.socket());
        guest.forward();
        let mut new = Guest {
            client: Bare::attached(switch, ports[0]),
            shim,
            guest,
            ports,
            next_id: 0,
        };
        new.wait_for_link(switch);
        new.wait_for_echo();
        new
    }

    fn name(&self) -> String {
        format!("dpdkr{}", self.ports[1])
    }

    /// Waits until a shim is attached.
    #[track_caller]
    pub fn wait_for_link(&self, switch: &Switch) {
        eventually("the shim attaches", || switch.port(&self.name()).info.link);
    }

    /// Ends the client.
    #[track_caller]
    pub fn kill_client(&mut self) {
        self.client.kill_content();
    }

    /// Another client in place of one that is dead.
    #[track_caller]
    pub fn attach_client(&mut self, switch: &Switch) {
        self.client = Bare::attached(switch, self.ports[0]);
    }

    /// Sends one frame until it comes back.
    #[track_caller]
    pub fn wait_for_echo(&mut self) {
        let frame = Frame::marked(GUEST, CLIENT, 0xee, 60);
        let came = within(PATIENCE, || {
            self.client.send(std::slice::from_ref(&frame));
            !self.client.collect(1, Duration::from_millis(10)).is_empty()
        });
        assert!(came, "no echo; the guest:\n{}", self.guest.log());
        // Those sent in vain may be late only.
        while !self.client.collect(64, Duration::from_millis(60)).is_empty() {}
    }

    /// Frames to the guest and back from now on.
    #[track_caller]
    pub fn start_load(&mut self) {
        self.next_id += 1;
        self.client.start_load(&Load {
            id: self.next_id,
            expect: self.next_id,
            floor: 0,
            source: CLIENT,
            destination: GUEST,
            rate: RATE,
            echo: true,
        });
    }

    /// Kills and stops the shim until the time is up.
    #[track_caller]
    pub fn run(&mut self, switch: &Switch, record: &Record, dice: &mut Rng, until: Instant) {
        self.start_load();
        while Instant::now() < until {
            let deed = match dice.u8(..8) {
                0 => Deed::ShimStop,
                1 => Deed::ShimSegv,
                _ => Deed::ShimKill,
            };
            std::thread::sleep(Duration::from_micros(dice.u64(..100_000)));
            self.strike(switch, record, dice, deed);
        }
        record.checked(self.client.stop_load().received);
        // Late ones of the load are not of this run.
        self.wait_for_echo();
        self.client.start_traffic(&Traffic {
            source: CLIENT,
            destination: GUEST,
            send: WHOLE,
            receive: WHOLE,
            echo: true,
            window: 128,
            ..Traffic::default()
        });
        self.client.report().assert_all(WHOLE);
        record.checked(WHOLE);
    }

    #[track_caller]
    fn strike(&mut self, switch: &Switch, record: &Record, dice: &mut Rng, deed: Deed) {
        record.tried(deed);
        let count = |counter| switch.count(&self.name(), counter);
        let attached = count(Counter::Attached);
        let server = self.shim.server().expect("a shim serves the port");
        let signal = |signal| kill(Pid::from_raw(server), signal).expect("it lives");
        if deed != Deed::ShimStop {
            // It would start another one as well, which would be in the way of ours.
            self.shim.signal(Signal::SIGSTOP);
        }
        match deed {
            Deed::ShimStop => {
                signal(Signal::SIGSTOP);
                std::thread::sleep(Duration::from_micros(dice.u64(..300_000)));
                signal(Signal::SIGCONT);
            }
            Deed::ShimSegv => {
                // Rust's handler takes the first one for a question of its own.
                let dead = within(PATIENCE, || {
                    let _ = kill(Pid::from_raw(server), Signal::SIGSEGV);
                    crate::child::is_dead(server)
                });
                assert!(dead, "SIGSEGV does not end a shim");
            }
            _ => signal(Signal::SIGKILL),
        }
        let start = Instant::now();
        if deed != Deed::ShimStop {
            self.shim.restart();
            eventually("the next shim attaches", || {
                switch.count(&self.name(), Counter::Attached) > attached
            });
            record.attached_again(deed, None, start.elapsed());
        }
        let came = switch.count(&self.name(), Counter::RxPackets);
        eventually("the guest's frames come again", || {
            switch.count(&self.name(), Counter::RxPackets) > came
        });
        record.flowing_again(deed, start.elapsed());
        record.survived(deed);
    }

    /// The guest dies under load, and its shim with it.
    #[track_caller]
    pub fn die(mut self, record: &Record) {
        record.tried(Deed::GuestKill);
        self.start_load();
        std::thread::sleep(Duration::from_millis(50));
        drop(self.guest);
        self.shim.process().kill();
        record.checked(self.client.stop_load().received);
        self.client.kill_content();
        record.survived(Deed::GuestKill);
    }
}
