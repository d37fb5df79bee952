//! The command line: `dpdk-vswitchd [EAL arguments --] [options]`.

use std::path::PathBuf;

use clap::Parser;

/// The DPDK virtual switch. Without any option it starts its own ovsdb-server and waits for ovs-vsctl.
///
/// DPDK's EAL arguments may come first, ended by `--`: dpdk-vswitchd -l 1-3 -- --stats 1
#[derive(Debug, Clone, Parser)]
#[command(name = "dpdk-vswitchd", version)]
pub struct Args {
    /// Directory of sockets and pid file; what OVS_RUNDIR is for the stock tools [default: $OVS_RUNDIR, or /run/dpdk-vswitchd for root]
    #[arg(long, value_name = "DIR")]
    pub rundir: Option<PathBuf>,

    /// Directory of the database of our own ovsdb-server [default: /var/lib/dpdk-vswitchd if the run-time directory is /run/dpdk-vswitchd, else that directory]
    #[arg(long, value_name = "DIR")]
    pub statedir: Option<PathBuf>,

    /// Use the ovsdb-server that runs at TARGET (unix:PATH or tcp:ADDRESS:PORT) instead of an own one
    #[arg(long, value_name = "TARGET")]
    pub db: Option<String>,

    /// Show a screen of counters every SECS seconds
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..))]
    pub stats: Option<u64>,

    /// Print the counters of the switch that runs in the run-time directory, and end
    #[arg(long)]
    pub show_stats: bool,

    /// Go to the background once ready; the log goes to RUNDIR/dpdk-vswitchd.log
    #[arg(long)]
    pub detach: bool,

    /// Write the process id to FILE as well
    #[arg(long, value_name = "FILE")]
    pub pidfile: Option<PathBuf>,

    /// More detail in the log; twice for all of it
    #[arg(short, action = clap::ArgAction::Count)]
    pub verbose: u8,

    /// Log levels as ovs-appctl vlog/set takes them, such as `info` or `attach:dbg`
    #[arg(long, value_name = "SPEC")]
    pub log: Vec<String>,
}

/// Splits a command line (without the program's name) into EAL's arguments and ours.
pub fn split(mut arguments: Vec<String>) -> (Vec<String>, Vec<String>) {
    match arguments.iter().position(|a| a == "--") {
        Some(at) => {
            let ours = arguments.split_off(at + 1);
            arguments.pop();
            (arguments, ours)
        }
        None => (Vec::new(), arguments),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn eal_arguments_end_at_the_dashes() {
        assert_eq!(
            split(words("-c 3 -n 4 -- --stats 1")),
            (words("-c 3 -n 4"), words("--stats 1"))
        );
        assert_eq!(split(words("--stats 1")), (vec![], words("--stats 1")));
        assert_eq!(split(words("--")), (vec![], vec![]));
    }

    #[test]
    fn no_option_is_needed() {
        let args = Args::try_parse_from(["dpdk-vswitchd"]).unwrap();
        assert!(args.rundir.is_none() && !args.detach && args.verbose == 0);
    }
}
