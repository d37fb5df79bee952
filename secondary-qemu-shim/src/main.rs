//! The binary: arguments in, service run, exit code out.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use dpdk_qemu_shim::config::{Config, ConfigError};
use dpdk_qemu_shim::cpus;
use dpdk_qemu_shim::service::{self, Ending, ServiceError};

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
    match service::run(&config) {
        Ok(Ending::Done) => ExitCode::SUCCESS,
        Ok(Ending::Restart) => restart(&args),
        Err(error) => {
            eprintln!("dpdk-qemu-shim: {error}");
            match error {
                ServiceError::Misconfigured { .. } => ExitCode::from(EX_CONFIG),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// This program anew, in this process: EAL can be initialised only once in a program's life.
fn restart(args: &[OsString]) -> ExitCode {
    close_on_exec();
    let (name, rest) = args
        .split_first()
        .map_or(("dpdk-qemu-shim".as_ref(), args), |(name, rest)| {
            (name.as_os_str(), rest)
        });
    let error = Command::new("/proc/self/exe").arg0(name).args(rest).exec();
    eprintln!("dpdk-qemu-shim: starting anew: {error}");
    ExitCode::FAILURE
}

/// DPDK opens its files without close-on-exec, and the next program must not inherit the old switch's memory.
fn close_on_exec() {
    // SAFETY: sets a flag on descriptors; none is closed before the exec.
    let result = unsafe { libc::close_range(3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as i32) };
    if result != 0 {
        log::warn!(
            "descriptors stay open over the restart: {}",
            std::io::Error::last_os_error()
        );
    }
}
