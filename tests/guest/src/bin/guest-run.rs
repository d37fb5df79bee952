//! Runs a command in a guest, by its serial console.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use vm_harness::{Error, Serial};

/// Runs a command in a guest, by its serial console, and prints what it says.
///
/// Waits until the guest has booted. Exit code: that of the command; 124 if it took too long, 125 if the guest could
/// not be asked.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Unix socket of the guest's serial console (QEMU's -serial unix:PATH,server=on,wait=off)
    #[arg(long, value_name = "PATH")]
    serial: PathBuf,
    /// Seconds to wait for the guest's prompt, and then for the end of the command
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    timeout: u64,
    /// What the guest's shell shall run
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("guest-run: {error}");
            ExitCode::from(if matches!(error, Error::Timeout { .. }) {
                124
            } else {
                125
            })
        }
    }
}

fn run(args: &Args) -> Result<u8, Error> {
    let limit = Duration::from_secs(args.timeout);
    let mut console = Serial::connect(&args.serial, limit)?;
    // A console that shows its prompt already has to show it again.
    console.send(b"\n")?;
    console.wait_prompt(limit)?;
    let output = console.run_for(&args.command.join(" "), limit)?;
    print!("{}", output.text);
    Ok(u8::try_from(output.code).unwrap_or(u8::MAX))
}
