//! The torture campaign and the soak in small; `scripts/torture` runs them for as long as one likes.

use vswitch_tests::torture::{Campaign, Record};

const SEED: u64 = 1;

/// What was done, printed whatever comes of it.
#[derive(Default)]
struct Shown(Record);

impl Drop for Shown {
    fn drop(&mut self) {
        println!("{}", self.0);
    }
}

/// Runs `act` on a switch of its own; how many processes it killed.
fn campaign(act: impl FnOnce(&mut Campaign<'_>)) -> u64 {
    let shown = Shown::default();
    let mut campaign = Campaign::start(&shown.0, SEED);
    act(&mut campaign);
    campaign.end();
    shown.0.kills()
}

#[test]
fn clients_shims_and_the_switch_are_killed_under_load() {
    let kills = campaign(|c| {
        c.clients(20);
        c.guest(8);
        c.switch(3);
        c.clients(15);
    });
    assert!(kills >= 100, "too few to mean anything");
}

#[test]
fn many_restarts_in_a_row_leak_nothing() {
    campaign(|c| c.restarts(20));
}

#[test]
fn every_counter_is_as_foretold_while_everything_changes() {
    campaign(|c| c.soak(20));
}
