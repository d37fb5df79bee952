//! What the tests across processes share: real switches, real clients, the stock tools.
//!
//! | module | what is in it |
//! |---|---|
//! | [`switch`] | a `dpdk-vswitchd` of one's own, from start to a clean end |
//! | [`child`], [`programs`], [`prerequisites`], [`wait`] | processes and patience |
//!
//! Tests here start real processes on hugepages. A missing prerequisite fails a test and says what to do; nothing
//! is skipped.

pub mod child;
pub mod prerequisites;
pub mod programs;
pub mod switch;
pub mod wait;

pub use switch::Switch;
pub use wait::{PATIENCE, eventually};
