//! The stats segment: every counter of the switch in shared memory, for any process to read at any time.
//!
//! `docs/stats-segment.md` documents the layout, which [`layout`] asserts. The switch's side is [`Segment`], the
//! reader's [`Reader`]; neither needs DPDK. Each thread of the switch writes counter blocks of its own, so counting
//! costs a plain add, and a reader sums over the threads.

pub mod layout;
mod reader;
mod segment;

pub use layout::Counter;
pub use reader::{PortSnapshot, Reader, Snapshot, ThreadSnapshot};
pub use segment::{PortBlock, PortInfo, Segment, ThreadBlock};

/// Why a segment can't be made or read.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    #[error("stats segment {name}: {why}")]
    Map { name: String, why: String },
    #[error("stats segment {name} has layout version {found}, this program reads version {expected}")]
    Version { name: String, found: u32, expected: u32 },
    #[error("the stats segment is being rewritten all the time")]
    Busy,
}

/// The name of the POSIX shared memory object of the switch with EAL file prefix `prefix`.
pub fn segment_name(prefix: &str) -> String {
    format!("/{prefix}.stats")
}
