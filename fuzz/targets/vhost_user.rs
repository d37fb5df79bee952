//! A vhost-user frontend and a guest that do what they like with the device, whose pumps work in between. Afterwards
//! the device serves a frontend that behaves.

#![no_main]

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arbitrary::Arbitrary;
use dpdk_qemu_shim::backend::{Connection, Device};
use dpdk_qemu_shim::pump::testing::Loopback;
use dpdk_qemu_shim::virtqueue::testing::{NEXT, WRITE};
use libfuzzer_sys::fuzz_target;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vswitch_common::mbuf::Checksum;
use vswitch_fuzz::frontend::{Descriptor, Kicks, QUEUES, Request, State, TableEntry, VringFile, ring, send};
use vswitch_fuzz::guest::{Address, Guest, Length};
use vswitch_fuzz::split::descriptor;
use vswitch_fuzz::{leaks, process};

const BUFFERS: usize = 32;
/// The feature bit of the ring layout that these drivers don't use (virtio 1.2 §6).
const RING_PACKED: u64 = 1 << 34;
/// Steps in which a pump must have done all that there can be to do: rings of the largest size, entry by entry.
const ENOUGH: usize = 3 * 32768;
/// Entries of the rings that the driver uses, whatever it tells the device.
const SIZE: u16 = 64;

#[derive(Arbitrary, Debug)]
enum Op {
    Send {
        request: Request,
        descriptors: Vec<Descriptor>,
        need_reply: bool,
    },
    /// A message cut short.
    Cut {
        request: Request,
        at: u8,
    },
    /// Sets virtqueue `index` up and starts it, as it should be.
    Start(u8),
    /// The driver offers a sound chain.
    Offer {
        index: u8,
        slot: u8,
        address: Address,
        len: Length,
        count: u8,
    },
    Describe {
        index: u8,
        slot: u8,
        address: Address,
        len: Length,
        flags: u8,
        next: u16,
    },
    Publish {
        index: u8,
        head: u16,
    },
    SetIndex {
        index: u8,
        value: u16,
    },
    Poke {
        at: Address,
        bytes: [u8; 12],
    },
    Kick(u8),
    Deliver {
        queue: bool,
        len: u16,
    },
    Attach,
    Detach,
    Unplugged(bool),
    Reconnect,
    Settle,
}

#[derive(Arbitrary, Debug)]
struct Input {
    pairs: bool,
    /// Start with a frontend that has negotiated, told the memory and started the first two virtqueues.
    ready: bool,
    ops: Vec<Op>,
}

struct Bench {
    guest: Guest,
    kicks: Kicks,
    device: Arc<Mutex<Device<Loopback>>>,
    ports: Vec<Loopback>,
    line: Option<(UnixStream, Connection<Loopback>)>,
    /// The device may have been told to write outside the regions: then nothing can be said of them.
    blurred: bool,
    /// What comes next on this connection ends, or is taken for, another message than the one it is.
    out_of_step: bool,
}

impl Bench {
    fn new(pairs: u16) -> Bench {
        let device = Device::without_threads(1, pairs).expect("descriptors are left");
        Bench {
            guest: Guest::new(),
            kicks: Kicks::default(),
            device: Arc::new(Mutex::new(device)),
            ports: Vec::new(),
            line: None,
            blurred: false,
            out_of_step: false,
        }
    }

    fn connect(&mut self) {
        self.disconnect();
        let (near, far) = UnixStream::pair().expect("descriptors are left");
        let socket = far.try_clone().expect("a descriptor is left");
        let connection = Connection::new(far, Arc::clone(&self.device)).expect("a socket that works");
        // What does not come whole here never will.
        socket
            .set_read_timeout(Some(Duration::from_millis(1)))
            .expect("a socket that works");
        self.line = Some((near, connection));
        self.out_of_step = false;
    }

    fn disconnect(&mut self) {
        if self.line.take().is_some() {
            self.device.lock().expect("no panic").disconnect();
        }
    }

    fn send(&mut self, bytes: &[u8], descriptors: &[Descriptor]) {
        if self.line.is_none() {
            self.connect();
        }
        let Some((near, _)) = &self.line else { return };
        send(near, bytes, descriptors, &self.guest, &self.kicks);
        self.serve();
    }

    /// The shim's control thread does what there is to do.
    fn serve(&mut self) {
        let Some((_, connection)) = &mut self.line else {
            return;
        };
        // Half a header is waited for; a few rounds of that are enough.
        for _ in 0..8 {
            let mut fds = [PollFd::new(connection.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::ZERO) != Ok(1) {
                return;
            }
            if let Err(ended) = connection.handle() {
                let _ = ended.to_string();
                self.disconnect();
                return;
            }
        }
    }

    fn request(&mut self, request: Request, descriptors: &[Descriptor]) {
        self.send(&request.bytes(false), descriptors);
    }

    fn start(&mut self, index: u8) {
        let log2 = SIZE.ilog2() as u8;
        self.request(Request::SetVringNum { index, log2 }, &[]);
        self.request(
            Request::SetVringAddr {
                index,
                flags: 0,
                off: 0,
                log: 0,
            },
            &[],
        );
        let file = |code| Request::SetVringFile {
            code,
            index,
            none: false,
        };
        self.request(file(VringFile::Call), &[Descriptor::Event]);
        self.request(file(VringFile::Kick), &[Descriptor::Kick(index)]);
        self.request(
            Request::SetVringState {
                code: State::Enable,
                index: index.into(),
                num: 1,
            },
            &[],
        );
    }

    fn negotiate(&mut self) {
        self.request(Request::SetOwner, &[]);
        self.request(Request::GetFeatures, &[]);
        self.request(Request::SetFeatures { only: !RING_PACKED }, &[]);
        self.request(Request::GetProtocolFeatures, &[]);
        let table = [0, 1, 2, 3].map(TableEntry::True).to_vec();
        self.request(Request::SetMemTable(table), &[Descriptor::Memory; 4]);
    }

    fn attach(&mut self) {
        let mut device = self.device.lock().expect("no panic");
        // A switch that goes away takes all of its mbufs back: the next one starts with new ones.
        device.detach();
        self.ports = (0..device.queues()).map(|_| Loopback::new(BUFFERS)).collect();
        device.attach(self.ports.clone());
    }

    /// The pumps work until they would sleep.
    fn settle(&mut self) {
        assert!(
            self.device.lock().expect("no panic").settle(ENOUGH),
            "a pump never comes to rest"
        );
        for port in &self.ports {
            port.collect();
        }
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Send {
                request,
                descriptors,
                need_reply,
            } => {
                self.blurred |= request.blurs(descriptors, self.out_of_step);
                self.out_of_step |= request.misstates_its_size();
                self.send(&request.bytes(*need_reply), descriptors);
            }
            Op::Cut { request, at } => {
                let bytes = request.bytes(false);
                let at = bytes.len().min((*at).into());
                self.send(&bytes[..at], &[]);
                self.out_of_step |= at < bytes.len();
            }
            Op::Start(index) => self.start(index % QUEUES),
            &Op::Offer {
                index,
                slot,
                address,
                len,
                count,
            } => {
                let ring = ring(index, SIZE);
                let write = if index % 2 == 0 { WRITE } else { 0 };
                let count = u16::from(count).clamp(1, SIZE);
                for i in 0..count {
                    let flags = write | if i + 1 < count { NEXT } else { 0 };
                    let at = address.get().wrapping_add(u64::from(len.get()) * u64::from(i));
                    let slot = u16::from(slot).wrapping_add(i);
                    ring.set(
                        &mut self.guest,
                        slot,
                        descriptor(at, len.get(), flags, (slot + 1) % SIZE),
                    );
                }
                ring.publish(&mut self.guest, u16::from(slot) % SIZE);
            }
            &Op::Describe {
                index,
                slot,
                address,
                len,
                flags,
                next,
            } => {
                let bytes = descriptor(address.get(), len.get(), flags.into(), next);
                ring(index, SIZE).set(&mut self.guest, slot.into(), bytes);
            }
            &Op::Publish { index, head } => ring(index, SIZE).publish(&mut self.guest, head),
            &Op::SetIndex { index, value } => {
                self.guest
                    .poke(ring(index, SIZE).available() + 2, &value.to_le_bytes());
            }
            Op::Poke { at, bytes } => self.guest.poke(at.get(), bytes),
            Op::Kick(index) => self.kicks.ring(*index),
            Op::Deliver { queue, len } => {
                if let Some(port) = self.ports.get(usize::from(*queue)) {
                    port.switch(|switch| {
                        if let Some(mut mbuf) = switch.buffers.empty() {
                            mbuf.set_frame(usize::from(*len) % 2048, Checksum::Unknown);
                            switch.frames.push_back(mbuf);
                        }
                    });
                }
            }
            Op::Attach => self.attach(),
            Op::Detach => self.device.lock().expect("no panic").detach(),
            Op::Unplugged(unplugged) => self.device.lock().expect("no panic").set_unplugged(*unplugged),
            Op::Reconnect => self.connect(),
            Op::Settle => self.settle(),
        }
    }

    /// A frontend that behaves, with a guest that sends one frame.
    fn serves_others(mut self) {
        self.disconnect();
        if !self.blurred {
            self.guest.check_canaries();
        }
        self.guest = Guest::new();
        self.connect();
        self.negotiate();
        self.attach();
        self.start(0);
        self.start(1);
        let (at, frame) = (0x10_0000, [7u8; 60]);
        self.guest.poke(at, &[&[0; 12][..], &frame].concat());
        let transmit = ring(1, SIZE);
        transmit.set(&mut self.guest, 0, descriptor(at, 72, 0, 0));
        transmit.publish(&mut self.guest, 0);
        self.kicks.ring(1);
        assert!(
            self.device.lock().expect("no panic").settle(ENOUGH),
            "a pump never comes to rest"
        );
        assert_eq!(
            self.ports[0].collect(),
            [frame.to_vec()],
            "the device serves others, too"
        );
        self.disconnect();
        self.guest.check_canaries();
    }
}

fuzz_target!(init: process::prepare(), |input: Input| {
    leaks::check(|| {
        let mut bench = Bench::new(1 + u16::from(input.pairs));
        if input.ready {
            bench.connect();
            bench.negotiate();
            bench.attach();
            bench.start(0);
            bench.start(1);
        }
        for op in &input.ops {
            bench.apply(op);
        }
        bench.serves_others();
    });
});
