//! The backend against rust-vmm's frontend, message by message, in one process.

use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_RING_PACKED;
use vmm_sys_util::eventfd::EventFd;

mod hostile;
mod packed;

use super::*;
use crate::eal_args::EalArgs;
use crate::guest_memory::testing::{FRONTEND, memfd, peek, poke};
use crate::guest_memory::{GuestMemory, RegionSpec};
use crate::pump::testing::Loopback;
use crate::virtqueue::RingAddresses;
use crate::virtqueue::testing::{Driver, dirty_pages};

/// All but the other layout of the rings.
const SPLIT: u64 = FEATURES & !(1 << VIRTIO_F_RING_PACKED);
const SIZE: u64 = 0x20_0000;
const QUEUE: u16 = 256;
const BUFFERS: u64 = 0x10_0000;

/// A device that is served on a thread, and its frontend.
struct Session {
    frontend: Frontend,
    raw: UnixStream,
    device: Arc<Mutex<Device<Loopback>>>,
    ports: Vec<Loopback>,
    memory_file: std::fs::File,
    memory: Arc<GuestMemory>,
    calls: Vec<EventFd>,
    kicks: Vec<EventFd>,
    server: Option<JoinHandle<Ended>>,
}

fn serve(socket: UnixStream, device: Arc<Mutex<Device<Loopback>>>) -> Ended {
    let mut connection = Connection::new(socket, Arc::clone(&device)).unwrap();
    loop {
        let fd = std::os::fd::AsFd::as_fd(&connection);
        poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::NONE).unwrap();
        if let Err(ended) = connection.handle() {
            device.lock().unwrap().disconnect();
            return ended;
        }
    }
}

fn map(file: &std::fs::File) -> Arc<GuestMemory> {
    let file = file.try_clone().unwrap();
    Arc::new(
        GuestMemory::map(vec![RegionSpec {
            guest: 0,
            frontend: FRONTEND,
            size: SIZE,
            offset: 0,
            file,
        }])
        .unwrap(),
    )
}

impl Session {
    fn new(pairs: u16) -> Session {
        let device = Arc::new(Mutex::new(Device::new(1, pairs, &EalArgs::default()).unwrap()));
        let ports: Vec<Loopback> = (0..pairs).map(|_| Loopback::new(600)).collect();
        let memory_file = memfd(SIZE);
        let memory = map(&memory_file);
        let event = || EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let mut session = Session {
            frontend: Frontend::from_stream(UnixStream::pair().unwrap().0, 1),
            raw: UnixStream::pair().unwrap().0,
            device,
            ports,
            memory_file,
            memory,
            calls: (0..2 * pairs).map(|_| event()).collect(),
            kicks: (0..2 * pairs).map(|_| event()).collect(),
            server: None,
        };
        session.connect();
        session
    }

    /// A new connection to the same device.
    fn connect(&mut self) {
        let (near, far) = UnixStream::pair().unwrap();
        let device = Arc::clone(&self.device);
        self.server = Some(std::thread::spawn(move || serve(far, device)));
        self.raw = near.try_clone().unwrap();
        self.frontend = Frontend::from_stream(near, self.calls.len() as u64);
    }

    fn attach(&self) {
        self.device.lock().unwrap().attach(self.ports.clone());
    }

    fn negotiate(&mut self, features: u64) {
        self.frontend.set_owner().unwrap();
        assert_eq!(self.frontend.get_features().unwrap(), FEATURES);
        let protocol = self.frontend.get_protocol_features().unwrap();
        assert_eq!(protocol, PROTOCOL_FEATURES);
        self.frontend.set_protocol_features(protocol).unwrap();
        self.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        self.frontend.set_features(features).unwrap();
        self.set_memory();
    }

    fn set_memory(&mut self) {
        self.frontend.set_mem_table(&[self.region(SIZE)]).unwrap();
    }

    fn region(&self, size: u64) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: size,
            userspace_addr: FRONTEND,
            mmap_offset: 0,
            mmap_handle: self.memory_file.as_raw_fd(),
        }
    }

    fn driver(&self, index: usize) -> Driver {
        Driver::new(&self.memory, 0x8000 * index as u64, QUEUE)
    }

    fn config(&self, index: usize, log: Option<u64>) -> VringConfigData {
        Self::config_at(self.driver(index).addresses(), log)
    }

    fn config_at(at: RingAddresses, log: Option<u64>) -> VringConfigData {
        VringConfigData {
            queue_max_size: QUEUE,
            queue_size: QUEUE,
            flags: u32::from(log.is_some()),
            desc_table_addr: at.descriptors,
            used_ring_addr: at.used,
            avail_ring_addr: at.available,
            log_addr: log,
        }
    }

    /// As QEMU starts a virtqueue.
    fn start(&mut self, index: usize, base: u16) {
        self.start_at(index, base, self.driver(index).addresses());
    }

    fn start_at(&mut self, index: usize, base: u16, at: RingAddresses) {
        self.frontend.set_vring_num(index, QUEUE).unwrap();
        self.frontend.set_vring_base(index, base).unwrap();
        self.frontend
            .set_vring_addr(index, &Self::config_at(at, None))
            .unwrap();
        self.frontend.set_vring_kick(index, &self.kicks[index]).unwrap();
        self.frontend.set_vring_call(index, &self.calls[index]).unwrap();
    }

    fn start_pair(&mut self, pair: usize) -> (Driver, Driver) {
        for index in [2 * pair, 2 * pair + 1] {
            self.start(index, 0);
            self.frontend.set_vring_enable(index, true).unwrap();
        }
        (self.driver(2 * pair), self.driver(2 * pair + 1))
    }

    fn transmit(&self, driver: &mut Driver, index: usize, byte: u8) {
        poke(&self.memory, BUFFERS, &[[0; 12].as_slice(), &[byte; 60]].concat());
        driver.offer(&[(BUFFERS, 72, false)]);
        self.kicks[index].write(1).unwrap();
    }

    /// A region for what is in flight on a pair of queues.
    fn inflight_region(&mut self) -> (VhostUserInflight, std::fs::File) {
        let wanted = VhostUserInflight {
            num_queues: 2,
            queue_size: QUEUE,
            ..Default::default()
        };
        self.frontend.get_inflight_fd(&wanted).unwrap()
    }

    fn ended(&mut self) -> Ended {
        self.server.take().unwrap().join().unwrap()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.raw.shutdown(std::net::Shutdown::Both);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn receives(port: &Loopback, byte: u8) {
    let mut got = Vec::new();
    until("the switch has the guest's frame", || {
        got.extend(port.collect());
        !got.is_empty()
    });
    assert_eq!(got, [vec![byte; 60]]);
}

#[test]
fn frames_flow_once_the_rings_are_enabled() {
    let mut session = Session::new(1);
    session.negotiate(SPLIT);
    session.start(0, 0);
    session.start(1, 0);
    let (mut rx, mut tx) = (session.driver(0), session.driver(1));
    session.attach();
    session.transmit(&mut tx, 1, 1);
    std::thread::sleep(Duration::from_millis(5));
    assert!(session.ports[0].collect().is_empty(), "not enabled yet");
    session.frontend.set_vring_enable(1, true).unwrap();
    receives(&session.ports[0], 1);
    session.frontend.set_vring_enable(0, true).unwrap();
    rx.offer(&[(BUFFERS + 4096, 1600, true)]);
    session.ports[0].deliver(&[7; 60]);
    until("the guest has the switch's frame", || !rx.used().is_empty());
    assert_eq!(peek(&session.memory, BUFFERS + 4096 + 12, 60), [7; 60]);
    until("the guest is interrupted", || session.calls[0].read().is_ok());
    // Last, for this frontend takes the number for that of virtqueues.
    assert_eq!(session.frontend.get_queue_num().unwrap(), 1);
}

#[test]
fn stopping_tells_the_index_and_starting_goes_on_there() {
    let mut session = Session::new(1);
    session.negotiate(SPLIT);
    session.attach();
    let (_, mut tx) = session.start_pair(0);
    for i in 0..5 {
        session.transmit(&mut tx, 1, i);
        receives(&session.ports[0], i);
    }
    assert_eq!(session.frontend.get_vring_base(1).unwrap(), 5);
    session.transmit(&mut tx, 1, 100);
    std::thread::sleep(Duration::from_millis(5));
    assert!(session.ports[0].collect().is_empty(), "stopped");
    session.start(1, 5);
    session.frontend.set_vring_enable(1, true).unwrap();
    receives(&session.ports[0], 100);
    assert_eq!(session.frontend.get_vring_base(1).unwrap(), 6);
}

#[test]
fn a_new_connection_goes_on_at_the_used_index() {
    let mut session = Session::new(1);
    session.negotiate(SPLIT);
    session.attach();
    let (_, mut tx) = session.start_pair(0);
    session.transmit(&mut tx, 1, 1);
    receives(&session.ports[0], 1);
    let _ = session.raw.shutdown(std::net::Shutdown::Both);
    assert!(matches!(session.ended(), Ended::Closed));
    session.transmit(&mut tx, 1, 2);
    session.connect();
    session.negotiate(SPLIT);
    // testpmd's virtio-user says 0 whatever happened; QEMU says what the used index says.
    session.start_pair(0);
    receives(&session.ports[0], 2);
    assert_eq!(session.frontend.get_vring_base(1).unwrap(), 2);
}

#[test]
fn fewer_enabled_queues_than_rings_lose_nothing() {
    let mut session = Session::new(4);
    session.negotiate(SPLIT);
    session.attach();
    let (mut rx0, _) = session.start_pair(0);
    let (mut rx1, mut tx1) = session.start_pair(1);
    for i in 0..8 {
        rx0.offer(&[(BUFFERS + 4096 * (1 + i), 1600, true)]);
        rx1.offer(&[(BUFFERS + 4096 * (9 + i), 1600, true)]);
    }
    for (queue, port) in session.ports.iter().enumerate() {
        port.deliver(&[queue as u8; 60]);
    }
    until("all four arrive", || rx0.used_index() + rx1.used_index() == 4);
    assert_eq!((rx0.used_index(), rx1.used_index()), (2, 2));
    // The guest goes down to one queue pair, and up to two again.
    for enabled in [false, true] {
        session.frontend.set_vring_enable(2, enabled).unwrap();
        session.frontend.set_vring_enable(3, enabled).unwrap();
        let before = rx0.used_index() + rx1.used_index();
        for port in &session.ports {
            port.deliver(&[9; 60]);
        }
        until("all four arrive", || {
            rx0.used_index() + rx1.used_index() == before + 4
        });
    }
    session.transmit(&mut tx1, 3, 5);
    receives(&session.ports[1], 5);
}

/// Frames of a queue that the guest gives up while the switch takes none: they leave once it does.
#[test]
fn a_queue_given_up_is_emptied() {
    let mut session = Session::new(4);
    session.negotiate(SPLIT);
    session.attach();
    session.start_pair(0);
    let (_, mut tx1) = session.start_pair(1);
    session.ports[1].switch(|switch| switch.room = 0);
    session.transmit(&mut tx1, 3, 5);
    until("the guest's frame is taken", || tx1.used_index() == 1);
    session.frontend.set_vring_enable(2, false).unwrap();
    session.frontend.set_vring_enable(3, false).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    session.ports[1].switch(|switch| switch.room = usize::MAX);
    receives(&session.ports[1], 5);
}

/// Nobody completes what the guest's driver puts into a queue that it has just given up, or finds there later, but the device.
#[test]
fn what_waits_in_a_queue_given_up_goes_nowhere() {
    for attached in [true, false] {
        let mut session = Session::new(4);
        session.negotiate(SPLIT);
        if attached {
            session.attach();
        }
        session.start_pair(0);
        let (_, mut tx1) = session.start_pair(1);
        session.frontend.set_vring_enable(2, false).unwrap();
        session.frontend.set_vring_enable(3, false).unwrap();
        for n in 1..=3 {
            session.transmit(&mut tx1, 3, 5);
            until("the frame is let go", || tx1.used_index() == n);
            // Long enough for the pump to sleep.
            std::thread::sleep(Duration::from_millis(5));
        }
        session.frontend.set_vring_enable(3, true).unwrap();
        if !attached {
            session.attach();
        }
        session.transmit(&mut tx1, 3, 6);
        receives(&session.ports[1], 6);
    }
}

#[test]
fn memory_is_replaced_under_running_rings() {
    let mut session = Session::new(1);
    session.negotiate(SPLIT);
    session.attach();
    let (_, mut tx) = session.start_pair(0);
    session.transmit(&mut tx, 1, 1);
    receives(&session.ports[0], 1);
    session.set_memory();
    session.transmit(&mut tx, 1, 2);
    receives(&session.ports[0], 2);
    // A table without the rings: they stop, and the connection lives.
    session.frontend.set_mem_table(&[session.region(0x1000)]).unwrap();
    session.transmit(&mut tx, 1, 3);
    assert_eq!(session.frontend.get_features().unwrap(), FEATURES);
    assert!(session.ports[0].collect().is_empty());
    assert_eq!(
        session.frontend.get_vring_base(1).unwrap(),
        2,
        "where they stopped"
    );
}

#[test]
fn a_migrations_log_names_what_is_written() {
    let mut session = Session::new(1);
    session.negotiate(SPLIT & !features::LOG_ALL);
    session.attach();
    let (mut rx, _) = session.start_pair(0);
    rx.offer(&[(BUFFERS + 0x5000, 1600, true)]);
    session.ports[0].deliver(&[1; 60]);
    until("the first frame", || rx.used_index() == 1);
    let log = memfd(SIZE / 4096 / 8);
    let region = VhostUserDirtyLogRegion {
        mmap_size: SIZE / 4096 / 8,
        mmap_offset: 0,
        mmap_handle: log.as_raw_fd(),
    };
    session.frontend.set_log_base(0, Some(region)).unwrap();
    session.frontend.set_features(SPLIT).unwrap();
    session
        .frontend
        .set_vring_addr(0, &session.config(0, Some(0x3000)))
        .unwrap();
    assert!(
        dirty_pages(&log).iter().all(|page| *page == 3),
        "nothing but the used ring's flags so far"
    );
    rx.offer(&[(BUFFERS + 0x7000, 1600, true)]);
    session.ports[0].deliver(&[2; 60]);
    until("the second frame", || rx.used_index() == 2);
    until("its pages", || dirty_pages(&log) == [3, BUFFERS / 4096 + 7]);
}

#[test]
fn inflight_memory_is_given_and_taken_back() {
    let mut session = Session::new(1);
    session.negotiate(SPLIT);
    session.attach();
    let (told, file) = session.inflight_region();
    assert!(told.mmap_size >= 2 * (16 + 16 * u64::from(QUEUE)));
    session.frontend.set_inflight_fd(&told, file.as_raw_fd()).unwrap();
    let (_, mut tx) = session.start_pair(0);
    session.transmit(&mut tx, 1, 1);
    receives(&session.ports[0], 1);
    let mut header = [0; 16];
    let offset = told.mmap_size / 2;
    until("the used index in the region", || {
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut header, offset).unwrap();
        header[14..16] == [1, 0]
    });
}

#[test]
fn a_broken_virtqueue_is_reported_and_mended_by_a_restart() {
    let mut session = Session::new(1);
    session.negotiate(SPLIT);
    session.attach();
    let (_, mut tx) = session.start_pair(0);
    let err = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    session.frontend.set_vring_err(1, &err).unwrap();
    tx.offer(&[(SIZE, 100, false)]);
    session.kicks[1].write(1).unwrap();
    until("the error is signalled", || err.read().is_ok());
    assert_eq!(session.frontend.get_vring_base(1).unwrap(), 0);
    // The driver resets its queue.
    poke(&session.memory, session.driver(1).available_ring(), &[0; 4]);
    let mut tx = session.driver(1);
    session.start(1, 0);
    session.frontend.set_vring_enable(1, true).unwrap();
    session.transmit(&mut tx, 1, 4);
    receives(&session.ports[0], 4);
}

#[test]
fn nonsense_ends_the_connection_and_nothing_else() {
    let garbage: &[&[u8]] = &[
        &[0xff; 12],
        &[0; 12],
        // SET_FEATURES that was not offered.
        &[
            2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        ],
        // SET_VRING_NUM of queue 99, and cut short.
        &[8, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 99, 0, 0, 0, 0, 1, 0, 0],
        &[8, 0, 0, 0, 1, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0],
        // SET_MEM_TABLE without memory, and with a region but no descriptor.
        &[5, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        // SET_VRING_KICK that says there is a descriptor, without one.
        &[12, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        // A length beyond all bounds.
        &[1, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff],
        // Half a header, half a body.
        &[1, 0, 0],
        &[2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 1],
    ];
    let mut session = Session::new(1);
    for bytes in garbage {
        session.raw.write_all(bytes).unwrap();
        let ended = session.ended();
        assert!(!matches!(ended, Ended::Closed), "{bytes:?}: {ended}");
        session.connect();
    }
    session.negotiate(SPLIT);
    session.attach();
    let (_, mut tx) = session.start_pair(0);
    session.transmit(&mut tx, 1, 1);
    receives(&session.ports[0], 1);
}

/// What the guest's driver chooses, QEMU hands on: were the connection to end, it would end again and again.
#[test]
fn rings_that_can_not_be_do_not_start_and_the_connection_lives() {
    let mut session = Session::new(4);
    session.negotiate(SPLIT);
    session.attach();
    let good = session.config(3, None);
    let size = |size| (size, session.config(3, None));
    let addresses = |config| (QUEUE, config);
    let cases = [
        size(3),
        size(0),
        addresses(VringConfigData {
            desc_table_addr: good.desc_table_addr + 8,
            ..good
        }),
        addresses(VringConfigData {
            used_ring_addr: good.used_ring_addr + 2,
            ..good
        }),
        addresses(VringConfigData {
            avail_ring_addr: good.avail_ring_addr + 1,
            ..good
        }),
    ];
    for (case, (size, config)) in cases.into_iter().enumerate() {
        session.frontend.set_vring_num(3, size).unwrap();
        session.frontend.set_vring_addr(3, &config).unwrap();
        session.frontend.set_vring_kick(3, &session.kicks[3]).unwrap();
        session.frontend.set_vring_enable(3, true).unwrap();
        let mut tx = session.driver(3);
        session.transmit(&mut tx, 3, 1);
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(tx.used_index(), 0, "case {case}");
        assert_eq!(session.frontend.get_vring_base(3).unwrap(), 0);
    }
    // Another one starts.
    let (_, mut tx) = session.start_pair(0);
    session.transmit(&mut tx, 1, 2);
    receives(&session.ports[0], 2);
}

#[test]
fn a_ring_outside_memory_does_not_start_and_the_connection_lives() {
    let mut session = Session::new(1);
    session.negotiate(SPLIT);
    session.attach();
    session.frontend.set_vring_num(1, QUEUE).unwrap();
    session
        .frontend
        .set_vring_addr(
            1,
            &VringConfigData {
                used_ring_addr: 0x1000,
                ..session.config(1, None)
            },
        )
        .unwrap();
    session.frontend.set_vring_kick(1, &session.kicks[1]).unwrap();
    session.frontend.set_vring_enable(1, true).unwrap();
    assert_eq!(session.frontend.get_vring_base(1).unwrap(), 0);
}
