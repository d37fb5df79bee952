//! `dpdk-vswitchd`: parses the command line and runs the switch.

use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::Parser;
use dpdk_vswitchd::args::{Args, split};
use dpdk_vswitchd::eal_config::default_prefix;
use dpdk_vswitchd::{daemon, screen};
use vswitch_common::rundir;
use vswitch_common::stats::Reader;
use vswitch_control::unixctl::lock_holder;

fn main() -> ExitCode {
    let mut arguments = std::env::args();
    let program = arguments.next().unwrap_or_else(|| "dpdk-vswitchd".into());
    let (eal_arguments, ours) = split(arguments.collect());
    let args = Args::parse_from(std::iter::once(program).chain(ours));
    let result = if args.show_stats {
        show_stats(&args)
    } else {
        daemon::run(&args, eal_arguments)
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("dpdk-vswitchd: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn show_stats(args: &Args) -> anyhow::Result<()> {
    let rundir = rundir::resolve(args.rundir.as_deref());
    let none = || format!("no switch runs in {} (--rundir, OVS_RUNDIR)", rundir.display());
    let reader = Reader::open(&default_prefix(&rundir)).with_context(none)?;
    if lock_holder(&rundir.join("ovs-vswitchd.pid")).is_none() {
        return Err(anyhow!("the last one is dead, and these are its counters").context(none()));
    }
    let snapshot = reader.snapshot()?;
    print!("{}", screen::render(&snapshot, None));
    Ok(())
}
