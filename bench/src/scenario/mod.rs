//! What is measured.

mod churn;
mod cores;
mod flood;
mod host;
mod idle;
mod l2;
mod latency;
mod ports;
mod rings;
mod start;
mod tcp;
mod vm;

use std::time::Duration;

use clap::ValueEnum;

use crate::report::Table;

/// A scenario's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// Two ports, known unicast between N pairs of hosts, learning on.
    L2,
    /// Two bare clients and their rings.
    Rings,
    /// 64 ports attached, two of them active.
    Ports,
    /// Broadcast to 16 ports.
    Flood,
    /// Addresses that move, and new ones all the time.
    Churn,
    /// One switching core and two.
    Cores,
    /// Times of start and attach, memory by ports.
    Start,
    /// Guest to guest, without VMs.
    Vm,
    /// The same, frames of 64 KB.
    VmLarge,
    /// How long a frame takes from guest to guest, and through the switch alone.
    Latency,
    /// CPU time with two idle VMs.
    Idle,
    /// TCP between two VMs.
    Tcp,
    /// TCP between two hosts on ports to the kernel.
    Host,
}

impl Name {
    /// All of them, in the order in which they run.
    const ALL: &[Name] = &[
        Name::L2,
        Name::Rings,
        Name::Ports,
        Name::Flood,
        Name::Churn,
        Name::Cores,
        Name::Start,
        Name::Vm,
        Name::VmLarge,
        Name::Latency,
        Name::Idle,
        Name::Tcp,
        Name::Host,
    ];

    /// Those that run unless some are named.
    pub fn by_default(quick: bool) -> Vec<Name> {
        let mut names = Name::ALL.to_vec();
        names.retain(|&name| !(quick && name == Name::VmLarge));
        names
    }
}

/// How thorough a run is.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    pub quick: bool,
    pub rounds: usize,
    pub warm_up: Duration,
    pub measure: Duration,
}

/// Runs a scenario: a table for each quantity.
///
/// # Errors
/// A peer does not start.
pub fn run(name: Name, effort: &Effort) -> anyhow::Result<Vec<Table>> {
    match name {
        Name::L2 => l2::run(effort).map(one),
        Name::Rings => rings::run(effort),
        Name::Ports => ports::run(effort),
        Name::Flood => flood::run(effort),
        Name::Churn => churn::run(effort),
        Name::Cores => cores::run(effort),
        Name::Start => start::run(effort),
        Name::Vm => vm::run(effort).map(one),
        Name::VmLarge => vm::large::run(effort).map(one),
        Name::Latency => latency::run(effort),
        Name::Idle => idle::run(effort).map(one),
        Name::Tcp => tcp::run(effort).map(one),
        Name::Host => host::run(effort).map(one),
    }
}

fn one(table: Table) -> Vec<Table> {
    vec![table]
}
