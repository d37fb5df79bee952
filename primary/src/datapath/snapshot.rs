//! The configuration that PMD threads work by: immutable, replaced as a whole.
//!
//! The control thread publishes a new snapshot and waits until every PMD thread says it works by it; then nothing of
//! the old one is in use any more, and what only that one held (a session, a device) can be taken apart.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use vswitch_common::port::doorbell::Doorbell;
use vswitch_sync::quiescence::Published;

use super::mac_table::MacTable;
use super::port::{Port, PortIndex};

/// A bridge: its learning table and its ports.
#[derive(Debug, Clone)]
pub struct Bridge {
    pub table: Arc<MacTable>,
    pub ports: Vec<PortIndex>,
    /// Forward 01:80:c2:00:00:0X as well (other_config:forward-bpdu).
    pub forward_reserved: bool,
}

/// A receive queue of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RxQueue {
    pub port: PortIndex,
    pub queue: u16,
}

/// All that PMD threads need to know.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// By [`PortIndex`].
    pub ports: Vec<Option<Arc<Port>>>,
    pub bridges: Vec<Bridge>,
    /// What each PMD thread polls.
    pub polled: Vec<Vec<RxQueue>>,
    /// Longest sleep of a PMD thread with nothing to do; zero: it never sleeps.
    pub max_sleep: Option<Duration>,
}

impl Snapshot {
    /// The port with that index.
    #[inline]
    pub fn port(&self, index: PortIndex) -> Option<&Arc<Port>> {
        self.ports.get(usize::from(index))?.as_ref()
    }
}

/// Where snapshots are published.
#[derive(Debug)]
pub struct Publisher {
    snapshots: Published<Snapshot>,
    /// Wakes each PMD thread.
    bells: Vec<Doorbell>,
}

impl Publisher {
    /// For `threads` PMD threads, with an empty snapshot.
    ///
    /// # Errors
    /// Out of file descriptors.
    pub fn new(threads: usize) -> nix::Result<Publisher> {
        Ok(Publisher {
            snapshots: Published::new(threads, Snapshot::default()),
            bells: (0..threads)
                .map(|_| Doorbell::new())
                .collect::<nix::Result<_>>()?,
        })
    }

    /// Makes `snapshot` the one to work by and returns when every PMD thread does.
    pub fn publish(&self, snapshot: Snapshot) {
        self.snapshots
            .publish(snapshot, || self.bells.iter().for_each(Doorbell::ring));
    }

    /// What wakes PMD thread `thread`.
    pub fn wake(&self, thread: usize) -> &Doorbell {
        &self.bells[thread]
    }
}

impl Deref for Publisher {
    type Target = Published<Snapshot>;

    fn deref(&self) -> &Published<Snapshot> {
        &self.snapshots
    }
}
