//! What the machine must have. Checked before anything starts, so that a failure names the cause.

use std::path::Path;
use std::process::{Command, Stdio};

use dpdk_vswitchd::memory;

use crate::wait::within;
use std::time::Duration;

/// A dead process's hugepages come free a moment after its end.
const HUGEPAGE_PATIENCE: Duration = Duration::from_secs(3);

/// Are there `mb` MiB of free hugepages, and root's rights to use them?
///
/// # Panics
/// If not: the message says how to put it right.
pub fn hugepages(mb: u64) {
    assert!(
        nix::unistd::geteuid().is_root(),
        "these tests map hugepages and need root's rights"
    );
    let mut lack = String::new();
    let enough = within(HUGEPAGE_PATIENCE, || {
        match memory::amount(&memory::hugepages(), Some(&[mb])) {
            Ok(_) => true,
            Err(why) => {
                lack = why;
                false
            }
        }
    });
    assert!(enough, "{lack} (scripts/test does so)");
}

/// Is `program` installed?
///
/// # Panics
/// If not: the message names the Debian package.
pub fn program(program: &str, package: &str) {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
            || Path::new("/usr/sbin").join(program).is_file()
    });
    assert!(
        found,
        "{program} is not installed; on Debian: apt install {package}"
    );
}

/// The stock Open vSwitch tools.
///
/// # Panics
/// If they are not installed.
pub fn ovs_tools() {
    program("ovs-vsctl", "openvswitch-common openvswitch-switch");
    program("ovs-appctl", "openvswitch-common");
    program("ovsdb-server", "openvswitch-common");
}

/// Runs a command that prepares the machine (`ip link add ...`).
///
/// # Panics
/// If it fails.
#[track_caller]
pub fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
