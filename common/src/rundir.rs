//! The run-time directory: where the stock tools, the shims and the stats reader find the switch.

use std::env;
use std::path::{Path, PathBuf};

/// The variable that the stock Open vSwitch tools read.
pub const ENV: &str = "OVS_RUNDIR";

/// The run-time directory of a switch that root starts without saying where.
pub const DEFAULT: &str = "/run/dpdk-vswitchd";

/// The attach socket's file name inside the run-time directory.
pub const ATTACH_SOCKET: &str = "attach.sock";

/// The run-time directory: `explicit`, else `$OVS_RUNDIR`, else `/run/dpdk-vswitchd` for root, else
/// `$XDG_RUNTIME_DIR/dpdk-vswitchd` (`/tmp/dpdk-vswitchd-UID` without one).
pub fn resolve(explicit: Option<&Path>) -> PathBuf {
    if let Some(dir) = explicit {
        return dir.to_owned();
    }
    if let Some(dir) = env::var_os(ENV).filter(|d| !d.is_empty()) {
        return dir.into();
    }
    let uid = nix::unistd::geteuid();
    if uid.is_root() {
        return DEFAULT.into();
    }
    match env::var_os("XDG_RUNTIME_DIR").filter(|d| !d.is_empty()) {
        Some(dir) => PathBuf::from(dir).join("dpdk-vswitchd"),
        None => format!("/tmp/dpdk-vswitchd-{uid}").into(),
    }
}

/// The path of the attach socket of the switch that runs in `rundir`.
pub fn attach_socket(rundir: &Path) -> PathBuf {
    rundir.join(ATTACH_SOCKET)
}
