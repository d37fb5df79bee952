//! Log levels that change while the switch runs, in the syntax of OVS.
//!
//! A module is the part of a `log` target after the crate's name (`dpdk_vswitchd::bridge::table` is `bridge`), or the
//! whole target when it is a plain word. Destinations are `console` (standard error) and, in its place for a process without a
//! terminal, `file`; `syslog` is accepted and listed, as scripts name it, but nothing is sent there.

mod levels;
mod logger;
mod spec;

pub use levels::Levels;
pub use logger::Logger;
pub use spec::VlogError;
