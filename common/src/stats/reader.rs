//! The reader's side of the stats segment: any process, no DPDK, never in the switch's way.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use shared_memory::{Shmem, ShmemConf};
use vswitch_sync::seqlock;

use super::layout::{self, Counter, Layout, PortEntry};
use super::{PortInfo, StatsError, segment_name};

/// A mapped segment.
pub struct Reader {
    layout: NonNull<Layout>,
    _memory: Shmem,
}

/// All counters at one moment (each one exact; together as consistent as a running switch allows).
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Process id of the switch.
    pub pid: u32,
    pub tsc_hz: u64,
    /// Unix times in seconds.
    pub started: u64,
    pub updated: u64,
    pub pool_size: u64,
    pub pool_free: u64,
    pub ports: Vec<PortSnapshot>,
    pub threads: Vec<ThreadSnapshot>,
}

/// A port and its counters, summed over the threads.
#[derive(Debug, Clone)]
pub struct PortSnapshot {
    pub info: PortInfo,
    counters: Vec<u64>,
}

/// A thread's own counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ThreadSnapshot {
    pub cpu: Option<usize>,
    pub busy_cycles: u64,
    pub idle_cycles: u64,
    pub packets: u64,
    pub bursts: u64,
    pub sleeps: u64,
    pub sent_packets: u64,
    pub sent_batches: u64,
    pub idle_rounds: u64,
    pub sleep_cycles: u64,
}

impl From<&layout::ThreadStats> for ThreadSnapshot {
    fn from(stats: &layout::ThreadStats) -> ThreadSnapshot {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ThreadSnapshot {
            cpu: (get(&stats.cpu) as usize).checked_sub(1),
            busy_cycles: get(&stats.busy_cycles),
            idle_cycles: get(&stats.idle_cycles),
            packets: get(&stats.packets),
            bursts: get(&stats.bursts),
            sleeps: get(&stats.sleeps),
            sent_packets: get(&stats.sent_packets),
            sent_batches: get(&stats.sent_batches),
            idle_rounds: get(&stats.idle_rounds),
            sleep_cycles: get(&stats.sleep_cycles),
        }
    }
}

impl ThreadSnapshot {
    /// What was counted since `earlier`.
    #[must_use]
    pub fn since(&self, earlier: &ThreadSnapshot) -> ThreadSnapshot {
        let more = |of: fn(&ThreadSnapshot) -> u64| of(self).wrapping_sub(of(earlier));
        ThreadSnapshot {
            cpu: self.cpu,
            busy_cycles: more(|t| t.busy_cycles),
            idle_cycles: more(|t| t.idle_cycles),
            packets: more(|t| t.packets),
            bursts: more(|t| t.bursts),
            sleeps: more(|t| t.sleeps),
            sent_packets: more(|t| t.sent_packets),
            sent_batches: more(|t| t.sent_batches),
            idle_rounds: more(|t| t.idle_rounds),
            sleep_cycles: more(|t| t.sleep_cycles),
        }
    }
}

impl PortSnapshot {
    /// One counter.
    pub fn get(&self, counter: Counter) -> u64 {
        self.counters[counter as usize]
    }

    /// Frames lost on the way in (`rx`) or out.
    pub fn dropped(&self, rx: bool) -> u64 {
        Counter::ALL
            .iter()
            .filter(|c| c.is_drop() && c.name().starts_with("rx_") == rx && !c.name().starts_with("guest_"))
            .map(|&c| self.get(c))
            .sum()
    }
}

impl Reader {
    /// Opens the segment of the switch with EAL file prefix `prefix`.
    ///
    /// # Errors
    /// No switch runs under that prefix, there is no right to read, or it is of another layout version.
    pub fn open(prefix: &str) -> Result<Reader, StatsError> {
        let name = segment_name(prefix);
        let fault = |why: String| StatsError::Map {
            name: name.clone(),
            why,
        };
        let memory = ShmemConf::new()
            .os_id(&name)
            .open()
            .map_err(|e| fault(e.to_string()))?;
        if memory.len() < size_of::<Layout>() {
            return Err(fault(format!("{} bytes are too few", memory.len())));
        }
        let layout =
            NonNull::new(memory.as_ptr().cast::<Layout>()).ok_or_else(|| fault("not mapped".into()))?;
        let reader = Reader {
            layout,
            _memory: memory,
        };
        let header = &reader.layout().header;
        if header.magic.load(Ordering::Acquire) != layout::MAGIC {
            return Err(fault("it is no stats segment, or not ready yet".into()));
        }
        let found = header.version.load(Ordering::Relaxed);
        if found != layout::VERSION {
            return Err(StatsError::Version {
                name,
                found,
                expected: layout::VERSION,
            });
        }
        Ok(reader)
    }

    fn layout(&self) -> &Layout {
        // SAFETY: mapped with at least this size; all that is in it is atomic.
        unsafe { self.layout.as_ref() }
    }

    /// Reads everything.
    ///
    /// # Errors
    /// The directory of ports did not stand still for one copy in a thousand tries.
    pub fn snapshot(&self) -> Result<Snapshot, StatsError> {
        let layout = self.layout();
        let header = &layout.header;
        let entries = self.entries()?;
        let threads = header.threads.load(Ordering::Relaxed) as usize;
        let ports = entries
            .into_iter()
            .map(|(index, entry)| PortSnapshot {
                info: PortInfo {
                    name: layout::unpack(&entry.name),
                    bridge: layout::unpack(&entry.bridge),
                    ofport: entry.ofport,
                    id: (entry.id != u32::MAX).then_some(entry.id),
                    link: entry.link != 0,
                },
                counters: Counter::ALL
                    .iter()
                    .map(|&c| {
                        layout.counters[index]
                            .iter()
                            .map(|t| t.0[c as usize].load(Ordering::Relaxed))
                            .sum()
                    })
                    .collect(),
            })
            .collect();
        let threads = layout.threads.iter().take(threads).map(ThreadSnapshot::from);
        Ok(Snapshot {
            pid: header.pid.load(Ordering::Relaxed),
            tsc_hz: header.tsc_hz.load(Ordering::Relaxed),
            started: header.started.load(Ordering::Relaxed),
            updated: header.updated.load(Ordering::Relaxed),
            pool_size: header.pool_size.load(Ordering::Relaxed),
            pool_free: header.pool_free.load(Ordering::Relaxed),
            ports,
            threads: threads.collect(),
        })
    }

    /// The ports in use with their indices, copied while nobody wrote.
    fn entries(&self) -> Result<Vec<(usize, PortEntry)>, StatsError> {
        let layout = self.layout();
        let copy = || {
            let entries = layout.ports.iter().map(layout::PortSlot::load).enumerate();
            entries.filter(|(_, entry)| entry.used == 1).collect()
        };
        for _ in 0..1000 {
            match seqlock::read(&layout.header.sequence, copy) {
                Some(entries) => return Ok(entries),
                None => std::thread::yield_now(),
            }
        }
        Err(StatsError::Busy)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{PortBlock, Segment};
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_reader_sees_what_the_threads_count() {
        let prefix = format!("vswitch-stats-test-{}", std::process::id());
        let segment = Arc::new(Segment::create(&prefix, 1000).unwrap());
        let info = PortInfo {
            name: "ovs_dpdk_1".into(),
            bridge: "br0".into(),
            ofport: 1,
            id: Some(1),
            link: true,
        };
        segment.set_port(3, Some(&info));
        segment.set_threads(2);
        let (a, b) = (
            PortBlock::claim(&segment, 0).unwrap(),
            PortBlock::claim(&segment, 1).unwrap(),
        );
        assert!(PortBlock::claim(&segment, 1).is_none());
        a.add(3, Counter::RxPackets, 5);
        b.add(3, Counter::RxPackets, 7);
        b.add(3, Counter::RxDropVlan, 2);
        b.thread().burst(7, 700);
        b.thread().sent(6);
        let before = segment.thread(1);
        b.thread().sent(4);
        b.thread().idle(50);
        b.thread().slept(900);

        let reader = Reader::open(&prefix).unwrap();
        let seen = reader.snapshot().unwrap();
        assert_eq!(seen.ports.len(), 1);
        assert_eq!(seen.ports[0].info, info);
        assert_eq!(seen.ports[0].get(Counter::RxPackets), 12);
        assert_eq!(
            (seen.ports[0].dropped(true), seen.ports[0].dropped(false)),
            (2, 0)
        );
        let thread = &seen.threads[1];
        assert_eq!((thread.packets, thread.busy_cycles), (7, 700));
        assert_eq!((thread.sent_packets, thread.sent_batches), (10, 2));
        let later = ThreadSnapshot {
            sent_packets: 4,
            sent_batches: 1,
            idle_cycles: 50,
            idle_rounds: 1,
            sleep_cycles: 900,
            ..ThreadSnapshot::default()
        };
        assert_eq!(thread.since(&before), later);

        segment.set_port(3, None);
        assert!(reader.snapshot().unwrap().ports.is_empty());
        drop((a, b, segment));
        assert!(Reader::open(&prefix).is_err());
    }

    #[test]
    fn a_second_segment_replaces_a_dead_ones() {
        let prefix = format!("vswitch-stats-stale-{}", std::process::id());
        std::mem::forget(Segment::create(&prefix, 1).unwrap());
        let segment = Segment::create(&prefix, 2).unwrap();
        assert_eq!(Reader::open(&prefix).unwrap().snapshot().unwrap().tsc_hz, 2);
        drop(segment);
    }
}
