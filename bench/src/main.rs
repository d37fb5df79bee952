//! `vswitch-bench`: the switch and its peers on the same machine, the same traffic, the same core, in turns.
//!
//! | module | what is in it |
//! |---|---|
//! | [`scenario`] | what is measured: one module a scenario |
//! | [`peer`] | who is measured: this switch, OVS-DPDK, testpmd |
//! | [`sample`], [`slices`] | one measurement, and medians of several |
//! | [`trace`], [`clients`] | the traffic |
//! | [`guests`], [`timing`] | guests without a VM: that load, that time |
//! | [`threads`] | CPU time of processes, and their CPUs |
//! | [`distance`] | whether the CPUs share a cache just now |
//! | [`machine`] | what the figures were taken on |
//! | [`report`], [`plot`] | table, JSON, picture |
//!
//! It reports and never judges: no figure makes it fail.

mod clients;
mod distance;
mod guests;
mod machine;
mod peer;
mod plot;
mod report;
mod sample;
mod scenario;
mod slices;
mod threads;
mod timing;
mod trace;

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use vswitch_tests::namespace;

use scenario::Effort;

/// Measures the switch beside its peers.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Scenarios; all of them by default, `vm-large` in a full run only.
    #[arg(value_enum)]
    scenarios: Vec<scenario::Name>,
    /// Fewer rounds, shorter, and only the telling points.
    #[arg(long)]
    quick: bool,
    /// Rounds, in each of which every peer has its turn.
    #[arg(long, value_name = "N")]
    rounds: Option<usize>,
    /// Where the figures (JSON) and pictures (SVG) go.
    #[arg(long, value_name = "DIR", default_value = "bench-out")]
    out: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let effort = Effort {
        quick: args.quick,
        rounds: args.rounds.unwrap_or(if args.quick { 2 } else { 5 }).max(1),
        warm_up: Duration::from_millis(if args.quick { 400 } else { 1500 }),
        measure: Duration::from_millis(if args.quick { 800 } else { 2000 }),
    };
    // The interfaces that peers make stand in nobody's way then, not even those of a bench that was killed.
    namespace::own_network();
    distance::be_patient_for(Duration::from_secs(if args.quick { 10 } else { 300 }));
    let chosen = if args.scenarios.is_empty() {
        scenario::Name::by_default(args.quick)
    } else {
        args.scenarios
    };
    let machine = machine::describe();
    println!("{machine}");
    for name in chosen {
        for table in scenario::run(name, &effort)? {
            println!("{table}");
            report::save(&args.out, &machine, &table)?;
        }
    }
    Ok(())
}
