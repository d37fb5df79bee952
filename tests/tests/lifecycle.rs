//! A switch starts, ends, and leaves nothing behind.

use std::time::Duration;

use nix::sys::signal::Signal;
use vswitch_tests::Switch;

#[test]
fn sigterm_leaves_nothing() {
    let switch = Switch::with_ports(&[1, 2]);
    assert!(
        switch.leftovers().hugepage_files() > 0,
        "it maps hugepages by files while it runs"
    );
    switch.stop();
}

#[test]
fn sigint_ends_it_as_well() {
    let mut switch = Switch::start();
    switch.signal(Signal::SIGINT);
    assert!(switch.wait_for_end().success());
    switch.leftovers().assert_none();
    // Nor a warning that the database's server was ended: it was to.
    let log = switch.log();
    assert!(!log.contains("terminating with signal"), "{log}");
}

/// Whoever looked at the screen of counters is gone, and it goes on.
#[test]
fn a_screen_that_nobody_sees_ends_alone() {
    let first_line_only = ["bash", "-c", "exec \"$@\" > >(head -n 1)", "bash"];
    let mut switch = Switch::builder()
        .wrapper(&first_line_only)
        .options(&["--stats", "1"])
        .start();
    std::thread::sleep(Duration::from_millis(2500));
    assert!(switch.runs(), "{}", switch.log());
    switch.stop();
}
