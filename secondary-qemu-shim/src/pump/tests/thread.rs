//! A pump on its thread: when it sleeps, what wakes it, and when it polls on.

use super::*;

/// A real thread, asleep: each side wakes it, and nothing is missed.
#[test]
fn a_sleeping_pump_wakes_for_either_side() {
    let mut bench = Bench::new(MERGEABLE);
    bench.offer_rx(200, 128);
    let pump = bench.start_pump();
    let deadline = |what: &str, done: &mut dyn FnMut() -> bool| {
        let end = Instant::now() + Duration::from_secs(10);
        while !done() {
            assert!(Instant::now() < end, "missed: {what}");
            std::thread::yield_now();
        }
    };
    for round in 0..100u8 {
        // Long enough to fall asleep, in most rounds.
        std::thread::sleep(Duration::from_micros(u64::from(round) * 5));
        bench.transmit(TX_BUFFERS, &[0; 12], &frame(60, round), 4096);
        if bench.tx.peek16(bench.tx.used_ring()) == 0 {
            bench.kick.write(1).unwrap();
        }
        let mut got = Vec::new();
        deadline("the guest's frame", &mut || {
            got.extend(bench.port.collect());
            !got.is_empty()
        });
        assert_eq!(got, [frame(60, round)]);
        std::thread::sleep(Duration::from_micros(u64::from(round) * 5));
        bench.port.deliver(&frame(60, round));
        deadline("the switch's frame", &mut || bench.rx.used().len() == 1);
    }
    // No receive buffers left over: the guest wakes it by giving some.
    let spare = 100;
    for i in 0..=spare {
        bench.port.deliver(&frame(60, i));
    }
    deadline("the full ring", &mut || bench.rx.used_index() == 200);
    std::thread::sleep(Duration::from_millis(2));
    bench.offer_rx(1, 128);
    if bench.rx.peek16(bench.rx.used_ring()) == 0 {
        bench.kick.write(1).unwrap();
    }
    deadline("new receive buffers", &mut || bench.rx.used_index() == 201);
    let base = pump.change(|state| {
        state.forget_frames();
        state.rx.take().unwrap().queue.base()
    });
    assert_eq!(base, 201, "stopped exactly there");
    let state = pump.change(std::mem::take);
    bench.state = state;
    bench.assert_all_mbufs_home();
}

/// A change that comes and goes before the pump's thread is there leaves no ring behind, which would never let it sleep.
#[test]
fn an_early_change_leaves_no_ring() {
    let gate = vswitch_sync::gate::Gate::new(0, Doorbell::new().unwrap());
    gate.change(|state| *state = 1);
    let state = gate.enter();
    assert_eq!(*state, 1);
    let mut fds = [PollFd::new(gate.bell().as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::ZERO), Ok(0));
}

/// A device that goes at once, on a busy host: its pump's thread comes to run after it was told to stop.
#[test]
fn a_pump_stopped_before_it_ran_ends() {
    let gate = Arc::new(Gate::new(State::<Loopback>::default(), Doorbell::new().unwrap()));
    gate.change(|state| state.stop = true);
    let thread = std::thread::spawn({
        let gate = Arc::clone(&gate);
        move || run(&gate)
    });
    let end = Instant::now() + Duration::from_secs(10);
    while !thread.is_finished() {
        assert!(Instant::now() < end, "it goes on for ever");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_idle_pump_sleeps() {
    let mut bench = Bench::new(MERGEABLE);
    let _pump = bench.start_pump();
    let cpu = || {
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_PROCESS_CPUTIME_ID)
            .map(Duration::from)
            .unwrap()
    };
    std::thread::sleep(Duration::from_millis(20));
    let before = cpu();
    std::thread::sleep(Duration::from_millis(200));
    // Other tests may run in this process; a pump that polled would take all of the time.
    if std::env::var_os("NEXTEST").is_some() {
        assert!(
            cpu() - before < Duration::from_millis(100),
            "{:?}",
            cpu() - before
        );
    }
}

/// Whether a pump looks at its port again and again, or comes to rest.
#[track_caller]
fn assert_polls(port: &Loopback, polls: bool) {
    let end = Instant::now() + Duration::from_secs(10);
    let first = port.looks();
    loop {
        let before = port.looks();
        std::thread::sleep(Duration::from_millis(20));
        let now = port.looks();
        let as_expected = if polls { now > first + 1000 } else { now == before };
        if as_expected {
            return;
        }
        assert!(Instant::now() < end, "expected that polls: {polls}");
    }
}

/// What has woken it does not keep it awake, even where its virtqueue has gone meanwhile.
#[test]
fn a_pump_that_was_woken_sleeps_again() {
    let mut bench = Bench::new(MERGEABLE);
    let port = bench.port.clone();
    let pump = bench.start_pump();
    assert_polls(&port, false);
    bench.kick.write(1).unwrap();
    assert_polls(&port, false);
    assert_eq!(bench.stat(|s| &s.kicks), 1);
    port.deliver(&frame(60, 1));
    assert_polls(&port, false);
    bench.kick.write(1).unwrap();
    assert_polls(&port, false);
    pump.change(|state| {
        state.rx.as_mut().unwrap().enabled = false;
        state.seats.insert(0, Seat::new(1, Loopback::new(1)));
    });
    assert_polls(&port, false);
}

#[test]
fn a_pump_polls_while_the_switch_wants_it() {
    let mut bench = Bench::new(MERGEABLE);
    let port = bench.port.clone();
    let pump = bench.start_pump();
    assert_polls(&port, false);
    assert_eq!(bench.tx.peek16(bench.tx.used_ring()), 0, "it asks for kicks");
    port.set_busy_poll(true);
    assert_polls(&port, true);
    assert_eq!(bench.tx.peek16(bench.tx.used_ring()), 1, "it needs no kicks");
    pump.change(|state| assert!(state.polls()));
    assert_polls(&port, true);
    port.set_busy_poll(false);
    assert_polls(&port, false);

    // Asleep till the guest gives buffers, it does not ask the switch to ring.
    port.deliver(&frame(60, 1));
    assert_polls(&port, false);
    port.set_busy_poll(true);
    assert_polls(&port, true);
    drop(pump);
}

/// The ring that tells of it is silenced together with an earlier one, when the pump has already looked whether to poll.
#[test]
fn a_wish_to_be_polled_is_not_slept_through() {
    let mut bench = Bench::new(MERGEABLE);
    let port = bench.port.clone();
    let idle = bench.run();
    let sleeper = Sleeper::default();
    let change = Doorbell::new().unwrap();
    port.set_busy_poll(false);
    sleeper.sleep(&mut bench.state, idle, change.as_fd());
    assert!(!bench.state.polls());
    port.set_busy_poll(true);
    let (state, change) = (&mut bench.state, &change);
    std::thread::scope(|scope| {
        let pump = scope.spawn(move || sleeper.sleep(state, idle, change.as_fd()));
        let end = Instant::now() + Duration::from_secs(10);
        while !pump.is_finished() && Instant::now() < end {
            std::thread::yield_now();
        }
        let awake = pump.is_finished();
        change.ring();
        assert!(awake, "it sleeps");
    });
}

/// Nobody pays for a VM that is off, a driver that is not bound, one that broke its virtqueues, or a switch that is gone.
#[test]
fn a_pump_without_both_sides_sleeps_all_the_same() {
    let mut bench = Bench::new(MERGEABLE);
    let port = bench.port.clone();
    port.set_busy_poll(true);
    let pump = bench.start_pump();
    assert_polls(&port, true);
    let seats = pump.change(State::unseat);
    assert_polls(&port, false);
    pump.change(|state| state.seats = seats);
    assert_polls(&port, true);

    let [mut tx, mut rx] = pump.change(|state| [state.tx.take(), state.rx.take()]);
    assert_polls(&port, false);
    tx.as_mut().unwrap().enabled = false;
    rx.as_mut().unwrap().fault = Some(Fault::NoHeader { len: 0 });
    pump.change(|state| (state.tx, state.rx) = (tx, rx));
    assert_polls(&port, false);
    pump.change(|state| state.tx.as_mut().unwrap().enabled = true);
    assert_polls(&port, true);
}
