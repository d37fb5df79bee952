//! `dpdk-vswitchd`: the DPDK primary.
//!
//! | module | what is in it |
//! |---|---|
//! | [`daemon`] | the life of the process and its control thread |
//! | [`args`], [`eal_config`], [`memory`], [`cpus`] | what the user says, and what the host has |
//! | [`switch`] | bridges and ports as configured, and who is attached to them |
//! | [`attach`] | the attach socket: clients that come, wait, attach and die |
//! | [`pmds`] | starting, pinning and stopping the PMD threads |
//! | [`rxq`] | which of them polls which receive queue |
//! | [`datapath`] | the fast path |
//! | [`screen`] | counters as text |
//! | [`detach`], [`notify`] | `--detach`, and the service manager |

pub mod args;
pub mod attach;
pub mod cpus;
pub mod daemon;
pub mod datapath;
pub mod detach;
pub mod eal_config;
pub mod hugedir;
pub mod memory;
pub mod notify;
pub mod pmds;
pub mod rxq;
pub mod screen;
pub mod switch;
