//! Packed rings, which have to be told where they stand.

use std::net::Shutdown;

use super::*;
use crate::virtqueue::testing::packed::PackedDriver;

/// Where a packed ring starts that was never used.
const FRESH: u16 = 0x8000;

impl Session {
    fn packed(&self, index: usize) -> PackedDriver {
        PackedDriver::new(&self.memory, 0x8000 * index as u64, QUEUE).in_order()
    }

    fn start_packed(&mut self, index: usize, base: u16) {
        self.start_at(index, base, self.packed(index).addresses());
        self.frontend.set_vring_enable(index, true).unwrap();
    }

    fn transmit_packed(&self, driver: &mut PackedDriver, byte: u8) {
        poke(&self.memory, BUFFERS, &[[0; 12].as_slice(), &[byte; 60]].concat());
        driver.offer(&[(BUFFERS, 12, false), (BUFFERS + 12, 60, false)]);
        self.kicks[1].write(1).unwrap();
    }

    /// A new process in place of the killed one: it has the frontend's connection, and knows nothing.
    fn replace_device(&mut self) {
        let _ = self.raw.shutdown(Shutdown::Both);
        self.ended();
        self.device.lock().unwrap().detach();
        self.device = Arc::new(Mutex::new(Device::new(1, 1, &EalArgs::default()).unwrap()));
        self.connect();
        self.negotiate(FEATURES);
        self.attach();
    }
}

#[test]
fn frames_flow_both_ways() {
    let mut session = Session::new(1);
    session.negotiate(FEATURES);
    session.attach();
    session.start_packed(0, FRESH);
    session.start_packed(1, FRESH);
    let (mut rx, mut tx) = (session.packed(0), session.packed(1));
    for i in 0..=255u8 {
        session.transmit_packed(&mut tx, i);
        receives(&session.ports[0], i);
        let buffer = BUFFERS + 4096;
        rx.offer(&[(buffer, 1600, true)]);
        session.ports[0].deliver(&[i; 60]);
        let mut used = Vec::new();
        until("the guest has the switch's frame", || {
            used.extend(rx.used());
            !used.is_empty()
        });
        assert_eq!(used[0].1, 72);
        assert_eq!(peek(&session.memory, buffer + 12, 60), [i; 60]);
    }
    until("the guest is interrupted", || session.calls[0].read().is_ok());
}

#[test]
fn stopping_tells_place_and_wrap_counter_and_starting_goes_on_there() {
    let mut session = Session::new(1);
    session.negotiate(FEATURES);
    session.attach();
    session.start_packed(1, FRESH);
    let mut tx = session.packed(1);
    for i in 0..5 {
        session.transmit_packed(&mut tx, i);
        receives(&session.ports[0], i);
    }
    let base = session.frontend.get_vring_base(1).unwrap();
    assert_eq!(base, 0x800a_800a);
    session.transmit_packed(&mut tx, 100);
    session.start_packed(1, base as u16);
    receives(&session.ports[0], 100);
}

#[test]
fn a_killed_shims_successor_goes_on_by_the_inflight_region() {
    let mut session = Session::new(1);
    session.negotiate(FEATURES);
    session.attach();
    let (told, file) = session.inflight_region();
    let mut tx = session.packed(1);
    for _ in 0..3 {
        session.frontend.set_inflight_fd(&told, file.as_raw_fd()).unwrap();
        // What the frontend was told last is long past, as it is in QEMU.
        session.start_packed(1, FRESH);
        for i in 0..100 {
            session.transmit_packed(&mut tx, i);
            receives(&session.ports[0], i);
        }
        session.replace_device();
        assert_eq!(tx.used().len(), 100);
    }
    session.frontend.set_inflight_fd(&told, file.as_raw_fd()).unwrap();
    session.start_packed(1, FRESH);
    session.transmit_packed(&mut tx, 1);
    receives(&session.ports[0], 1);
    // The guest resets its device: what the frontend tells is true again.
    session.frontend.get_vring_base(1).unwrap();
    poke(
        &session.memory,
        session.packed(1).at,
        &vec![0; 16 * usize::from(QUEUE)],
    );
    let mut tx = session.packed(1);
    session.start_packed(1, FRESH);
    session.transmit_packed(&mut tx, 2);
    receives(&session.ports[0], 2);
}

/// A shim that dies before the frontend has its answer has told it nothing: the region knows more.
#[test]
fn a_place_that_nobody_was_told_stays_in_the_inflight_region() {
    const GET_VRING_BASE: u32 = 11;
    let mut session = Session::new(1);
    session.negotiate(FEATURES);
    session.attach();
    let (told, file) = session.inflight_region();
    session.frontend.set_inflight_fd(&told, file.as_raw_fd()).unwrap();
    session.start_packed(1, FRESH);
    let mut tx = session.packed(1);
    for i in 0..100 {
        session.transmit_packed(&mut tx, i);
        receives(&session.ports[0], i);
    }
    session.raw.shutdown(Shutdown::Read).unwrap();
    let message = [GET_VRING_BASE, 1, 8, 1, 0].map(u32::to_ne_bytes);
    session.raw.write_all(message.as_flattened()).unwrap();
    session.replace_device();
    session.frontend.set_inflight_fd(&told, file.as_raw_fd()).unwrap();
    session.start_packed(1, FRESH);
    session.transmit_packed(&mut tx, 7);
    receives(&session.ports[0], 7);
}

#[test]
fn a_base_outside_the_ring_does_not_start_and_the_connection_lives() {
    let mut session = Session::new(1);
    session.negotiate(FEATURES);
    session.attach();
    session.start_packed(1, FRESH | QUEUE);
    let mut tx = session.packed(1);
    session.transmit_packed(&mut tx, 1);
    std::thread::sleep(Duration::from_millis(5));
    assert!(session.ports[0].collect().is_empty());
    session.frontend.get_vring_base(1).unwrap();
    session.start_packed(1, FRESH);
    receives(&session.ports[0], 1);
}

#[test]
fn a_misaligned_inflight_region_ends_the_connection() {
    let mut session = Session::new(1);
    session.negotiate(FEATURES);
    let file = memfd(0x1_0000);
    let told = VhostUserInflight {
        mmap_size: 0x8000,
        mmap_offset: 4,
        num_queues: 2,
        queue_size: QUEUE,
    };
    assert!(session.frontend.set_inflight_fd(&told, file.as_raw_fd()).is_err());
    assert!(matches!(session.ended(), Ended::Message(_)));
}

#[test]
fn memory_is_replaced_under_a_running_ring() {
    let mut session = Session::new(1);
    session.negotiate(FEATURES);
    session.attach();
    session.start_packed(1, FRESH);
    let mut tx = session.packed(1);
    session.transmit_packed(&mut tx, 1);
    receives(&session.ports[0], 1);
    session.set_memory();
    session.transmit_packed(&mut tx, 2);
    receives(&session.ports[0], 2);
}
