//! The switch itself goes away and comes back, under the feet of its clients.

use std::time::{Duration, Instant};

use fastrand::Rng;

use super::guest::Guest;
use super::holdings::Holdings;
use super::record::{Deed, Record};
use crate::bare::{Bare, Load};
use crate::frames::mac;
use crate::switch::Switch;

/// Kills the switch while two clients and a guest are at full load, and starts it again; the guest's network must come
/// back by itself.
#[track_caller]
pub fn kill_under_load(
    switch: &mut Switch,
    guest: &mut Guest,
    ports: [u16; 2],
    record: &Record,
    dice: &mut Rng,
) {
    record.tried(Deed::SwitchKill);
    let mut clients = ports.map(|port| Bare::attached(switch, port));
    for (own, peer) in [(0, 1), (1, 0)] {
        clients[own].start_load(&Load {
            id: own as u16,
            expect: peer as u16,
            floor: 0,
            source: mac(ports[own] as u8),
            destination: mac(ports[peer] as u8),
            rate: 20_000,
            echo: false,
        });
    }
    guest.start_load();
    std::thread::sleep(Duration::from_micros(dice.u64(..300_000)));
    switch.kill();
    // One of them is in the dead switch's memory until the next one runs.
    clients[0].kill_content();
    switch.restart();
    let ready = Instant::now();
    clients[1].kill_content();
    guest.kill_client();
    guest.wait_for_link(switch);
    record.attached_again(Deed::SwitchKill, None, ready.elapsed());
    guest.attach_client(switch);
    guest.wait_for_echo();
    record.flowing_again(Deed::SwitchKill, ready.elapsed());
    record.survived(Deed::SwitchKill);
}

/// Restarts the switch `times` times, in order and by SIGKILL by turns, under a guest whose shim goes on. Afterwards
/// it, its shim and the machine hold what they held after the first one.
#[track_caller]
pub fn restarts(switch: &mut Switch, guest: &mut Guest, times: usize, record: &Record) {
    guest.kill_client();
    let mut first = None;
    for n in 0..=times {
        // The first one is for comparison.
        if n > 0 {
            record.tried(Deed::SwitchRestart);
        }
        if n % 2 == 0 {
            switch.kill();
        } else {
            switch.end();
            assert_eq!(switch.leftovers().files, Vec::<std::path::PathBuf>::new());
        }
        switch.restart();
        let ready = Instant::now();
        guest.wait_for_link(switch);
        if n > 0 {
            record.attached_again(Deed::SwitchRestart, None, ready.elapsed());
        }
        let shim = guest.shim.server().expect("a shim serves the port");
        match &first {
            None => first = Some(Holdings::at_rest(switch, &[shim])),
            Some(first) => {
                first.assert_same(switch, &[shim]);
                record.survived(Deed::SwitchRestart);
            }
        }
    }
    guest.attach_client(switch);
    guest.wait_for_echo();
}
