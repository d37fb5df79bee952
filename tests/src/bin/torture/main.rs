//! The torture campaign: `scripts/torture` runs it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use vswitch_tests::torture::{Campaign, Record};

/// Restarts of the switch in a campaign.
const RESTARTS: usize = 100;

/// Kills, stops and abuses clients, shims, guests and the switch at random moments, under load and beside traffic that
/// is checked frame by frame. Exit status 0: every promise held.
#[derive(Debug, Parser)]
#[command(name = "torture")]
struct Args {
    #[arg(value_enum, default_value_t = What::Campaign)]
    what: What,
    /// How long clients, shims and the switch are killed; 100 restarts in a row come on top (about a minute)
    #[arg(long, default_value_t = 5.0)]
    minutes: f64,
    /// What is done, in what order; the default is drawn from the clock
    #[arg(long)]
    seed: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Kills, and restarts of the switch
    Campaign,
    /// Everything comes and goes at random, against a model of every counter
    Soak,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    let record = Record::default();
    let start = Instant::now();
    println!("seed {seed}");
    let result = catch_unwind(AssertUnwindSafe(|| run(&record, args.what, seed, args.minutes)));
    println!(
        "\nseed {seed}, {:.1} minutes\n\n{record}",
        start.elapsed().as_secs_f64() / 60.0
    );
    match result {
        Ok(()) => {
            println!("every promise held");
            ExitCode::SUCCESS
        }
        Err(panic) => {
            println!("FAILED: {}", text_of(&*panic));
            ExitCode::FAILURE
        }
    }
}

/// All of it; panics when a promise is broken.
fn run(record: &Record, what: What, seed: u64, minutes: f64) {
    let start = Instant::now();
    let until = start + Duration::from_secs_f64(minutes * 60.0);
    let tell = |what: &str| {
        let seconds = start.elapsed().as_secs();
        println!(
            "[{:2}:{:02}] {what}; {} processes killed, {} buffers lost",
            seconds / 60,
            seconds % 60,
            record.kills(),
            record.lost()
        );
    };
    let mut campaign = Campaign::start(record, seed);
    while Instant::now() < until {
        match what {
            What::Campaign => {
                campaign.clients(20);
                tell("clients");
                campaign.guest(10);
                tell("a guest and its shims");
                campaign.switch(3);
                tell("the switch");
            }
            What::Soak => {
                campaign.soak(20);
                tell("soak");
            }
        }
    }
    if what == What::Campaign {
        campaign.restarts(RESTARTS);
        tell("restarts");
    }
    campaign.end();
}

fn text_of(panic: &dyn Any) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without words; see above")
}
