//! The command line: EAL arguments, `--`, the shim's own.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::Parser;
use vswitch_common::eal::StartLog;
use vswitch_common::port::MAX_QUEUES;
use vswitch_common::rundir;

use crate::cpus::{self, Cpus};
use crate::eal_args::{EalArgs, EalArgsError};

/// What is typed behind `--` (or alone, without EAL arguments).
#[derive(Debug, Parser)]
#[command(
    name = "dpdk-qemu-shim",
    version,
    about,
    override_usage = "dpdk-qemu-shim [EAL options --] --port N --socket PATH [options]"
)]
#[command(group(clap::ArgGroup::new("frontend").required(true)))]
struct Args {
    /// Port of the switch, as in QEMU's -netdev dpdk,port=N
    #[arg(long, value_name = "N")]
    port: u16,
    /// Socket on which the vhost-user frontend (QEMU) listens
    #[arg(long, value_name = "PATH", group = "frontend")]
    socket: Option<PathBuf>,
    /// Connected socket on which this process's parent is the vhost-user frontend
    #[arg(long, value_name = "FD", group = "frontend", value_parser = clap::value_parser!(i32).range(3..))]
    socket_fd: Option<RawFd>,
    /// Queue pairs
    #[arg(long, value_name = "Q", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=MAX_QUEUES as i64))]
    queues: u16,
    /// Descriptor to write the link state to, '1' up and '0' down: this process is a child of QEMU
    #[arg(long, value_name = "FD", value_parser = clap::value_parser!(i32).range(3..))]
    carrier_fd: Option<RawFd>,
    /// Name of the VM, for the switch's log
    #[arg(long, value_name = "NAME", default_value = "")]
    vm_name: OsString,
    /// Run-time directory of the switch [default: $OVS_RUNDIR, else /run/dpdk-vswitchd for root]
    #[arg(long, value_name = "DIR")]
    rundir: Option<PathBuf>,
    /// End when the switch does, for whoever starts this program again; without it, it starts anew by itself
    #[arg(long)]
    once: bool,
    /// Keep capabilities, files and system calls: for debugging
    #[arg(long)]
    no_sandbox: bool,
    /// Process that starts this one anew
    #[arg(long, value_name = "PID", hide = true)]
    supervisor: Option<i32>,
    /// Say more; twice for details
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
    /// Log level
    #[arg(long, value_name = "LEVEL", value_parser = ["off", "error", "warn", "info", "debug", "trace"])]
    log: Option<String>,
}

/// Where the vhost-user frontend is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frontend {
    /// It listens there; connect, and connect again when the connection ends.
    Path(PathBuf),
    /// It is the parent, at the other end of this connected socket.
    Fd(RawFd),
}

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    pub port: u16,
    pub frontend: Frontend,
    pub queues: u16,
    pub carrier_fd: Option<RawFd>,
    pub vm_name: String,
    pub rundir: PathBuf,
    /// End with the switch, rather than start anew.
    pub once: bool,
    /// Give up what a running shim does not need.
    pub sandbox: bool,
    /// The process that starts this one anew.
    pub supervisor: Option<i32>,
    pub log: log::LevelFilter,
    pub eal: EalArgs,
    /// CPUs of this machine.
    pub online: Cpus,
}

/// Why a command line is none.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    Clap(#[from] clap::Error),
    #[error(transparent)]
    Eal(#[from] EalArgsError),
    #[error("--socket or --socket-fd is missing")]
    NoFrontend,
    #[error("argument {0:?} is not UTF-8")]
    NotUtf8(OsString),
}

impl Config {
    /// From the arguments of a process, its name first, on a machine with the CPUs `online`.
    ///
    /// # Errors
    /// Its text is for the user.
    pub fn parse(args: impl IntoIterator<Item = OsString>, online: &Cpus) -> Result<Config, ConfigError> {
        let mut args = args.into_iter();
        let program = args.next().unwrap_or_else(|| "dpdk-qemu-shim".into());
        let args: Vec<OsString> = args.collect();
        let (eal, own) = match args.iter().position(|arg| arg == "--") {
            Some(at) => (&args[..at], &args[at + 1..]),
            None => (&args[..0], &args[..]),
        };
        let eal = eal
            .iter()
            .map(|arg| arg.clone().into_string().map_err(ConfigError::NotUtf8))
            .collect::<Result<Vec<String>, _>>()?;
        let own = Args::try_parse_from(std::iter::once(&program).chain(own))?;
        let frontend = match (own.socket, own.socket_fd) {
            (Some(path), _) => Frontend::Path(path),
            (None, Some(fd)) => Frontend::Fd(fd),
            (None, None) => return Err(ConfigError::NoFrontend),
        };
        let log = match (own.log.as_deref(), own.verbose) {
            (Some(level), _) => level.parse().unwrap_or(log::LevelFilter::Info),
            (None, 0) => log::LevelFilter::Warn,
            (None, 1) => log::LevelFilter::Info,
            (None, _) => log::LevelFilter::Debug,
        };
        Ok(Config {
            port: own.port,
            frontend,
            queues: own.queues,
            carrier_fd: own.carrier_fd,
            vm_name: own.vm_name.to_string_lossy().into_owned(),
            rundir: rundir::resolve(own.rundir.as_deref()),
            once: own.once,
            sandbox: !own.no_sandbox,
            supervisor: own.supervisor,
            log,
            eal: EalArgs::parse(&eal, online)?,
            online: online.clone(),
        })
    }

    /// Does this process end with its parent's connection, rather than start anew?
    pub fn is_child(&self) -> bool {
        self.carrier_fd.is_some() || matches!(self.frontend, Frontend::Fd(_))
    }

    /// Is this process to be a supervisor, which starts the one that serves the port?
    pub fn supervises(&self) -> bool {
        !self.is_child() && !self.once && self.supervisor.is_none()
    }

    /// Arguments for EAL, but for those that the switch decides: one lcore that may run wherever this process may,
    /// no driver, quiet unless asked otherwise.
    pub fn eal_args(&self) -> Vec<String> {
        let cpus = cpus::format(self.eal.cpus.as_ref().unwrap_or(&self.online));
        let mut args = vec![format!("--lcores=0@({cpus})"), "--no-telemetry".into()];
        if self.eal_is_quiet() {
            // RTE_LOG_WARNING and worse.
            args.push("--log-level=5".into());
        }
        args.extend(self.eal.rest.iter().cloned());
        args
    }

    /// What is to be seen of EAL's log while it starts. It warns of what is none of a client's business: that it can't share the
    /// switch's VFIO, for one.
    pub fn eal_start_log(&self) -> StartLog {
        if self.eal_is_quiet() {
            StartLog::OnFailure
        } else {
            StartLog::Shown
        }
    }

    fn eal_is_quiet(&self) -> bool {
        let own_level = self.eal.rest.iter().any(|arg| arg.starts_with("--log-level"));
        self.log <= log::LevelFilter::Warn && !own_level
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn parse(line: &str) -> Result<Config, ConfigError> {
        Config::parse(line.split_whitespace().map(OsString::from), &(0..8).collect())
    }

    /// As QEMU gives it: any name that a VM may have.
    #[test]
    fn a_vm_may_have_any_name() {
        let words = ["shim", "--", "--port", "2", "--socket", "/s"].map(OsString::from);
        let name = OsString::from_vec(b"--vm-name=-caf\xe9".to_vec());
        let config = Config::parse(words.into_iter().chain([name]), &(0..8).collect()).unwrap();
        assert_eq!(config.vm_name, "-caf\u{fffd}");
    }

    #[test]
    fn with_and_without_eal_arguments() {
        let config =
            parse("shim -c 0x2 -n 4 -- --port 2 --socket /s --queues 4 --carrier-fd 7 --vm-name me2")
                .unwrap();
        assert_eq!((config.port, config.queues, config.carrier_fd), (2, 4, Some(7)));
        assert_eq!(config.vm_name, "me2");
        assert_eq!(config.eal.cpus, Some(Cpus::from([1])));
        let config = parse("shim --port 2 --socket /s").unwrap();
        assert_eq!(
            (config.queues, config.carrier_fd, config.eal.clone()),
            (1, None, EalArgs::default())
        );
        assert_eq!(config.frontend, Frontend::Path("/s".into()));
        assert!(!config.is_child());
        let config = parse("shim -- --port 2 --socket-fd 5").unwrap();
        assert_eq!(config.frontend, Frontend::Fd(5));
        assert!(config.is_child());
        assert_eq!(
            config.eal_args(),
            ["--lcores=0@(0-7)", "--no-telemetry", "--log-level=5"]
        );
    }

    #[test]
    fn who_starts_it_anew() {
        let supervises = |line: &str| parse(line).unwrap().supervises();
        assert!(supervises("shim --port 2 --socket /s"));
        assert!(!supervises("shim --port 2 --socket /s --once"));
        assert!(!supervises("shim --port 2 --socket /s --supervisor 7"));
        assert!(!supervises("shim --port 2 --socket /s --carrier-fd 7"));
        assert!(!supervises("shim --port 2 --socket-fd 5"));
    }

    #[test]
    fn log_levels() {
        use log::LevelFilter::{Debug, Info, Trace, Warn};
        for (options, level) in [
            ("", Warn),
            ("-v", Info),
            ("-vv", Debug),
            ("--log trace", Trace),
            ("-v --log warn", Warn),
        ] {
            assert_eq!(
                parse(&format!("shim --port 1 --socket /s {options}"))
                    .unwrap()
                    .log,
                level
            );
        }
    }

    #[test]
    fn mistakes_are_told() {
        for (line, word) in [
            ("shim --socket /s", "--port"),
            ("shim --port 1", "--socket"),
            ("shim --port 1 --socket /s --socket-fd 4", "--socket-fd"),
            ("shim --port 1 --socket /s --queues 0", "queues"),
            ("shim --port 1 --socket /s --queues 99", "queues"),
            ("shim --port 99999 --socket /s", "port"),
            ("shim --port 1 --socket /s --carrier-fd 1", "carrier-fd"),
            ("shim --in-memory -- --port 1 --socket /s", "--in-memory"),
            ("shim -c 0x100 -- --port 1 --socket /s", "it has 0-7"),
        ] {
            let error = parse(line).unwrap_err().to_string();
            assert!(error.contains(word), "{line}: {error}");
        }
    }
}
