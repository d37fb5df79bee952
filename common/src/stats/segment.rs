//! The switch's side of the stats segment.

use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::fcntl::{OFlag, posix_fallocate};
use nix::sys::mman::shm_open;
use nix::sys::stat::Mode;
use shared_memory::{Shmem, ShmemConf, ShmemError};
use vswitch_sync::seqlock;

use super::layout::{self, Counter, Layout, MAX_PORTS, MAX_THREADS, PortEntry};
use super::{StatsError, ThreadSnapshot, segment_name};

/// The segment, owned by the switch and removed with it.
pub struct Segment {
    layout: NonNull<Layout>,
    /// Held while a port entry is written.
    directory: Mutex<()>,
    /// Which thread numbers have a writer.
    claimed: [AtomicBool; MAX_THREADS],
    /// Owns the mapping and, at its end, the name.
    _memory: Shmem,
}

// SAFETY: all that is in it is atomic.
unsafe impl Send for Segment {}
// SAFETY: as above.
unsafe impl Sync for Segment {}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segment").finish_non_exhaustive()
    }
}

/// What a reader learns of a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortInfo {
    pub name: String,
    pub bridge: String,
    pub ofport: u32,
    /// Client ring port number or DPDK port id.
    pub id: Option<u32>,
    pub link: bool,
}

impl Segment {
    /// Makes the segment of the switch with EAL file prefix `prefix`, in place of a dead switch's.
    ///
    /// # Errors
    /// There is no memory, or no right to create it.
    pub fn create(prefix: &str, tsc_hz: u64) -> Result<Segment, StatsError> {
        let name = segment_name(prefix);
        let conf = || ShmemConf::new().size(size_of::<Layout>()).os_id(&name);
        let memory = match conf().create() {
            Err(ShmemError::MappingIdExists) => {
                // The run-time directory's lock was ours before this call, so its former owner is dead.
                let _ = nix::sys::mman::shm_unlink(name.as_str());
                conf().create()
            }
            other => other,
        };
        let memory = memory.map_err(|e| StatsError::Map {
            name: name.clone(),
            why: e.to_string(),
        })?;
        allocate(&name).map_err(|errno| StatsError::Map {
            name: name.clone(),
            why: format!("no room for it in /dev/shm: {errno}"),
        })?;
        let layout = NonNull::new(memory.as_ptr().cast::<Layout>())
            .filter(|p| p.is_aligned())
            .ok_or_else(|| StatsError::Map {
                name,
                why: "mapped at no usable address".into(),
            })?;
        let segment = Segment {
            layout,
            directory: Mutex::new(()),
            claimed: Default::default(),
            _memory: memory,
        };
        let header = &segment.layout().header;
        header.version.store(layout::VERSION, Ordering::Relaxed);
        header.pid.store(std::process::id(), Ordering::Relaxed);
        header.max_ports.store(MAX_PORTS as u32, Ordering::Relaxed);
        header.max_threads.store(MAX_THREADS as u32, Ordering::Relaxed);
        header.tsc_hz.store(tsc_hz, Ordering::Relaxed);
        header.started.store(now(), Ordering::Relaxed);
        header.magic.store(layout::MAGIC, Ordering::Release);
        Ok(segment)
    }

    fn layout(&self) -> &Layout {
        // SAFETY: mapped and zero-initialised at creation, which is valid for every field; others only read it.
        unsafe { self.layout.as_ref() }
    }

    /// Puts port `index` into the directory, or takes it out; counters of a new port start at zero.
    pub fn set_port(&self, index: usize, info: Option<&PortInfo>) {
        let entry = match info {
            None => PortEntry {
                used: 0,
                ofport: 0,
                id: 0,
                link: 0,
                name: [0; _],
                bridge: [0; _],
                reserved: [0; _],
            },
            Some(info) => PortEntry {
                used: 1,
                ofport: info.ofport,
                id: info.id.unwrap_or(u32::MAX),
                link: info.link.into(),
                name: layout::pack(&info.name),
                bridge: layout::pack(&info.bridge),
                reserved: [0; _],
            },
        };
        assert!(index < MAX_PORTS, "port index {index} of {MAX_PORTS}");
        let _writing = self.directory.lock().unwrap_or_else(PoisonError::into_inner);
        let layout = self.layout();
        seqlock::write(&layout.header.sequence, || layout.ports[index].store(entry));
    }

    /// Zeroes the counters of port `index`, of all threads. Only while no thread counts it.
    pub fn clear_port(&self, index: usize) {
        for thread in &self.layout().counters[index] {
            for counter in &thread.0 {
                counter.store(0, Ordering::Relaxed);
            }
        }
    }

    /// The total of one of port `index`'s counters.
    pub fn total(&self, index: usize, counter: Counter) -> u64 {
        self.layout().counters[index]
            .iter()
            .map(|t| t.0[counter as usize].load(Ordering::Relaxed))
            .sum()
    }

    /// What thread `thread` has counted so far.
    pub fn thread(&self, thread: usize) -> ThreadSnapshot {
        ThreadSnapshot::from(&self.layout().threads[thread])
    }

    /// Publishes the pool's fill and the time of the look.
    pub fn set_pool(&self, size: u64, free: u64) {
        let header = &self.layout().header;
        header.pool_size.store(size, Ordering::Relaxed);
        header.pool_free.store(free, Ordering::Relaxed);
        header.updated.store(now(), Ordering::Relaxed);
    }

    /// Publishes the CPU that thread `thread` is pinned to.
    pub fn set_cpu(&self, thread: usize, cpu: Option<usize>) {
        self.layout().threads[thread]
            .cpu
            .store(cpu.map_or(0, |c| c as u64 + 1), Ordering::Relaxed);
    }

    /// Publishes how many threads count.
    pub fn set_threads(&self, threads: usize) {
        self.layout()
            .header
            .threads
            .store(threads as u32, Ordering::Relaxed);
    }
}

/// Gives the segment `name` its pages: one that is missing when it is first touched, because others have filled the file system
/// meanwhile, would end the process.
fn allocate(name: &str) -> nix::Result<()> {
    let file = shm_open(name, OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
    posix_fallocate(&file, 0, size_of::<Layout>() as i64)
}

#[expect(clippy::disallowed_methods, reason = "shown to people, never reckoned with")]
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}

/// Adds without a locked instruction: a counter block has one writer.
#[inline]
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

/// The counter blocks that one thread writes, all ports'.
#[derive(Debug)]
pub struct PortBlock {
    segment: Arc<Segment>,
    thread: usize,
}

impl PortBlock {
    /// The blocks of thread `thread`; `None` where another one counts under this number.
    ///
    /// # Panics
    /// If there is no such thread number.
    pub fn claim(segment: &Arc<Segment>, thread: usize) -> Option<PortBlock> {
        let free = !segment.claimed[thread].swap(true, Ordering::AcqRel);
        free.then(|| PortBlock {
            segment: segment.clone(),
            thread,
        })
    }

    /// Adds `n` to `counter` of port `index`.
    #[inline]
    pub fn add(&self, index: usize, counter: Counter, n: u64) {
        add(
            &self.segment.layout().counters[index][self.thread].0[counter as usize],
            n,
        );
    }

    /// Sets `counter` of port `index`, for what somebody else counts and this thread mirrors.
    #[inline]
    pub fn set(&self, index: usize, counter: Counter, n: u64) {
        self.segment.layout().counters[index][self.thread].0[counter as usize].store(n, Ordering::Relaxed);
    }

    /// What the thread does itself.
    pub fn thread(&self) -> ThreadBlock<'_> {
        ThreadBlock(&self.segment.layout().threads[self.thread])
    }
}

impl Drop for PortBlock {
    fn drop(&mut self) {
        self.segment.claimed[self.thread].store(false, Ordering::Release);
    }
}

/// A thread's own counters.
#[derive(Debug, Clone, Copy)]
pub struct ThreadBlock<'a>(&'a layout::ThreadStats);

impl ThreadBlock<'_> {
    /// A burst of `packets` frames that took `cycles`.
    #[inline]
    pub fn burst(&self, packets: u64, cycles: u64) {
        add(&self.0.packets, packets);
        add(&self.0.bursts, 1);
        add(&self.0.busy_cycles, cycles);
    }

    /// A round of polls that found nothing, in all `cycles`.
    #[inline]
    pub fn idle(&self, cycles: u64) {
        add(&self.0.idle_rounds, 1);
        add(&self.0.idle_cycles, cycles);
    }

    /// A batch of `packets` frames that left by a port.
    #[inline]
    pub fn sent(&self, packets: u64) {
        add(&self.0.sent_packets, packets);
        add(&self.0.sent_batches, 1);
    }

    /// Went to sleep once.
    pub fn sleep(&self) {
        add(&self.0.sleeps, 1);
    }

    /// Sleep, and what it takes to fall asleep and wake up, in all `cycles`.
    pub fn slept(&self, cycles: u64) {
        add(&self.0.sleep_cycles, cycles);
    }
}
