//! Where the programs under test are.

use std::path::{Path, PathBuf};

/// The switch: `$DPDK_VSWITCHD`, else as built beside this test.
pub fn switch() -> PathBuf {
    built("DPDK_VSWITCHD", "dpdk-vswitchd", "dpdk-vswitchd")
}

/// The switch as users build it, without what is compiled in for tests only.
///
/// # Panics
/// If it is not built: the message says how.
pub fn released_switch() -> PathBuf {
    let debug = switch();
    let target = debug
        .parent()
        .and_then(Path::parent)
        .expect("target/debug/dpdk-vswitchd");
    let path = target.join("release/dpdk-vswitchd");
    assert!(
        path.is_file(),
        "{} is missing; run: cargo build --release -p dpdk-vswitchd",
        path.display()
    );
    path
}

/// The shim: `$DPDK_QEMU_SHIM`, else as built beside this test.
pub fn shim() -> PathBuf {
    built("DPDK_QEMU_SHIM", "dpdk-qemu-shim", "dpdk-qemu-shim")
}

/// The bare client, built beside this test.
pub fn bare_client() -> PathBuf {
    built("BARE_CLIENT", "bare-client", "vswitch-tests")
}

/// `program` as `$variable` names it, else in the directory above this test's own (`target/debug/deps`).
///
/// # Panics
/// If it is not there: the message says how to build it.
fn built(variable: &str, program: &str, package: &str) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        let path = PathBuf::from(path);
        assert!(
            path.is_file(),
            "{variable} names {}, and there is no such file",
            path.display()
        );
        return path;
    }
    let test = std::env::current_exe().expect("a process knows its own file");
    let mut places = test.ancestors().skip(1).take(2).map(|dir| dir.join(program));
    places.find(|p| p.is_file()).unwrap_or_else(|| {
        panic!(
            "{program} is not built beside {}; run: cargo build -p {package} --bins (with the profile and target \
             directory of this test), or set {variable}",
            test.display()
        )
    })
}
