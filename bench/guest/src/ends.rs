//! The two guests, or clients, and what they send: frames with a time in them, or large ones.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};
use arrayvec::ArrayVec;
use vswitch_common::eal::Eal;
use vswitch_common::mbuf::{Checksum, Mbuf};
use vswitch_common::mempool::Pool;

use crate::large;
use crate::port::Port;

/// Frames sent or received at once.
pub const BURST: usize = 32;
const MBUFS: u32 = 8192;
const MEMORY_MB: u32 = 64;
/// Bytes of a frame, without its check sequence.
const FRAME: usize = 60;
/// Where in a frame its time is, in nanoseconds since [`Ends::start`].
const STAMP: std::ops::Range<usize> = 16..24;
/// An EtherType for experiments (IEEE 802 section 9.2.3).
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
pub const MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];
/// How long the switch may take until it forwards.
const PATIENCE: Duration = Duration::from_secs(20);

pub type Burst = ArrayVec<Mbuf, BURST>;

/// Both of them.
pub struct Ends {
    ports: [Port; 2],
    start: Instant,
}

impl Ends {
    /// Two guests that listen at `sockets` until a vhost-user backend has come to each. `large`: they take large frames as
    /// well, which the backends must offer then.
    pub fn guests(cpu: usize, large: bool, sockets: &[PathBuf]) -> anyhow::Result<Ends> {
        let mut args = eal_args(cpu);
        args.extend([
            "--in-memory".into(),
            // vhost-user passes memory by descriptor, and not many of them.
            "--single-file-segments".into(),
            format!("--socket-mem={MEMORY_MB}"),
        ]);
        Eal::init("bench-guest", &args)?;
        let pool = Pool::create("frames", MBUFS, -1).map_err(|why| anyhow!("a pool of mbufs: {why}"))?;
        let guest = |number: usize| Port::guest(number, &sockets[number], pool, large);
        Ok(Ends::new([guest(0)?, guest(1)?]))
    }

    /// The clients of ports 1 and 2 of the switch that listens at `socket`.
    pub fn clients(cpu: usize, socket: &Path) -> anyhow::Result<Ends> {
        let client = |number, other| Port::client(number, socket, &eal_args(cpu), other);
        let first = client(1, None)?;
        let second = client(2, Some(&first))?;
        Ok(Ends::new([first, second]))
    }

    fn new(ports: [Port; 2]) -> Ends {
        Ends {
            ports,
            start: Instant::now(),
        }
    }

    /// Sends from each to the other until a frame has come to each: from then on the switch knows both.
    pub fn introduce(&mut self) -> anyhow::Result<()> {
        for from in [0, 1] {
            let until = Instant::now() + PATIENCE;
            let mut came = false;
            while !came {
                if Instant::now() > until {
                    bail!("no frame comes from end {from} to the other in {PATIENCE:?}");
                }
                self.send_by(from, 1);
                std::thread::sleep(Duration::from_millis(20));
                came = self.drain_by(1 - from) > 0;
            }
        }
        self.drain();
        Ok(())
    }

    /// Nanoseconds since the start.
    pub fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    /// Sends `count` frames from the first guest to the second, [`BURST`] at most; how many the virtqueue took.
    pub fn send(&mut self, count: usize) -> usize {
        self.send_by(0, count)
    }

    fn send_by(&mut self, from: usize, count: usize) -> usize {
        let mut frames = Burst::new();
        if !self.ports[from].alloc(&mut frames, count.min(BURST)) {
            return 0;
        }
        let stamp = self.now().to_be_bytes();
        for frame in &mut frames {
            let room = frame.room_mut();
            room[..6].copy_from_slice(&MACS[1 - from]);
            room[6..12].copy_from_slice(&MACS[from]);
            room[12..14].copy_from_slice(&ETHERTYPE);
            room[STAMP].copy_from_slice(&stamp);
            frame.set_frame(FRAME, Checksum::Unknown);
        }
        let count = frames.len();
        self.ports[from].send(&mut frames);
        let sent = count - frames.len();
        self.ports[from].free(&mut frames);
        sent
    }

    /// Calls `take` with the nanoseconds that each frame took that has come to the second guest; how many there were.
    pub fn receive(&mut self, mut take: impl FnMut(u64)) -> usize {
        let mut frames = Burst::new();
        self.ports[1].receive(&mut frames);
        if frames.is_empty() {
            return 0;
        }
        let now = self.now();
        for frame in &frames {
            let stamp = frame.data().get(STAMP).and_then(|bytes| bytes.try_into().ok());
            if let Some(stamp) = stamp.map(u64::from_be_bytes) {
                take(now.saturating_sub(stamp));
            }
        }
        let count = frames.len();
        self.ports[1].free(&mut frames);
        count
    }

    /// Sends a large frame from the first guest to the second; false where the virtqueue has no room.
    pub fn send_large(&mut self) -> bool {
        let mut segments = large::Segments::new();
        if !self.ports[0].alloc(&mut segments, large::MBUFS) {
            return false;
        }
        let mut frames: ArrayVec<Mbuf, 1> = large::assemble(segments).into_iter().collect();
        self.ports[0].send(&mut frames);
        let sent = frames.is_empty();
        self.free_chains(0, &mut frames);
        sent
    }

    /// Takes what has come to the second guest; how many large frames came whole.
    pub fn receive_large(&mut self) -> usize {
        let mut frames = Burst::new();
        self.ports[1].receive(&mut frames);
        let whole = frames
            .iter()
            .filter(|frame| frame.frame_len() == large::LEN)
            .count();
        self.free_chains(1, &mut frames);
        whole
    }

    fn free_chains<const N: usize>(&mut self, end: usize, frames: &mut ArrayVec<Mbuf, N>) {
        for frame in &mut *frames {
            self.ports[end].free(&mut frame.split());
        }
        self.ports[end].free(frames);
    }

    /// Takes all that is under way.
    pub fn drain(&mut self) {
        loop {
            std::thread::sleep(Duration::from_millis(20));
            if self.drain_by(0) + self.drain_by(1) == 0 {
                return;
            }
        }
    }

    fn drain_by(&mut self, end: usize) -> usize {
        let mut all = 0;
        loop {
            let mut frames = Burst::new();
            self.ports[end].receive(&mut frames);
            if frames.is_empty() {
                return all;
            }
            all += frames.len();
            self.ports[end].free(&mut frames);
        }
    }
}

/// EAL's arguments of guests and clients alike.
fn eal_args(cpu: usize) -> Vec<String> {
    vec![
        format!("--lcores=0@{cpu}"),
        // A client looks for no device: what the switch has is none of its business.
        "--no-pci".into(),
        "--no-telemetry".into(),
        "--log-level=error".into(),
    ]
}
