//! What is measured.

mod host;
mod l2;

use std::time::Duration;

use clap::ValueEnum;

use crate::report::Table;

/// A scenario's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// Two ports, known unicast between N pairs of hosts, learning on.
    L2,
    /// TCP between two hosts on ports to the kernel.
    Host,
}

impl Name {
    /// All of them, in the order in which they run.
    pub const ALL: [Name; 2] = [Name::L2, Name::Host];
}

/// How thorough a run is.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    pub quick: bool,
    pub rounds: usize,
    pub warm_up: Duration,
    pub measure: Duration,
}

/// Runs a scenario.
///
/// # Errors
/// A peer does not start.
pub fn run(name: Name, effort: &Effort) -> anyhow::Result<Table> {
    match name {
        Name::L2 => l2::run(effort),
        Name::Host => host::run(effort),
    }
}
