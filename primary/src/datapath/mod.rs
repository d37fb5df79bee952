//! The fast path: receive, parse, look up, send. It knows no database, no socket and no configuration but
//! [`snapshot::Snapshot`].

pub mod chain;
pub mod classify;
pub mod client_port;
pub mod clock;
pub mod forward;
pub mod gso;
mod laps;
pub mod ledger;
pub mod limit;
pub mod mac_table;
pub mod mirror;
pub mod offload;
pub mod output;
pub mod parse;
pub mod pmd;
mod polled;
pub mod port;
mod sleep;
pub mod snapshot;
pub mod turns;
pub mod vlan;

/// Frames handled together.
pub const BURST: usize = 32;
