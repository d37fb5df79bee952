//! The binary: arguments in, service run, exit code out.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use dpdk_qemu_shim::config::{Config, ConfigError};
use dpdk_qemu_shim::cpus;
use dpdk_qemu_shim::service::{self, Ending, ServiceError};
use dpdk_qemu_shim::supervisor;

/// Tells QEMU that another try is of no use until somebody changes something (sysexits.h).
const EX_CONFIG: u8 = 78;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let config = match Config::parse(args.iter().cloned(), &cpus::online()) {
        Ok(config) => config,
        // Help and version are "errors" too, for stdout and with code 0.
        Err(ConfigError::Clap(error)) if !error.use_stderr() => error.exit(),
        Err(error) => {
            let text = error.to_string();
            eprintln!(
                "dpdk-qemu-shim: {}",
                text.trim_end().trim_start_matches("error: ")
            );
            return ExitCode::from(EX_CONFIG);
        }
    };
    let port = config.port;
    env_logger::Builder::new()
        .filter_level(config.log)
        .format(move |out, record| writeln!(out, "dpdk-qemu-shim: port {port}: {}", record.args()))
        .init();
    if config.supervises() {
        return supervisor::run(&args).unwrap_or_else(|why| {
            eprintln!("dpdk-qemu-shim: port {port}: {why}");
            ExitCode::FAILURE
        });
    }
    if let Some(parent) = config.supervisor
        && let Err(why) = supervisor::follow(parent)
    {
        eprintln!("dpdk-qemu-shim: port {port}: {why}");
        return ExitCode::FAILURE;
    }
    match service::run(&config) {
        Ok(Ending::Done) => ExitCode::SUCCESS,
        Ok(Ending::Restart) => ExitCode::from(supervisor::RESTART),
        Err(error) => {
            eprintln!("dpdk-qemu-shim: {error}");
            match error {
                ServiceError::Misconfigured { .. } => ExitCode::from(EX_CONFIG),
                _ => ExitCode::FAILURE,
            }
        }
    }
}
