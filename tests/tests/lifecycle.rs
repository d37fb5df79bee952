//! A switch starts, ends, and leaves nothing behind.

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
