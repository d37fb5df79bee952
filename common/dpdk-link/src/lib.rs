//! How a binary links DPDK, called from its build script.
//!
//! `dpdk-sys` itself names no library, because the two sides want different ones (see
//! `docs/decisions/001-two-ways-to-link-dpdk.md`): the primary needs the shared libraries, which load every
//! poll-mode driver as a plugin; a secondary needs the static core, which has no driver and no bus at all.

/// DPDK libraries the primary calls by name; the drivers come as plugins.
const SHARED: &[&str] = &["ethdev", "bus_vdev", "net", "mempool", "mbuf", "ring", "eal"];

/// The core of a secondary, in link order: EAL whole (its constructors register tail queues and mempool hooks).
const STATIC_CORE: &[&str] = &["mbuf", "mempool", "ring", "telemetry", "kvargs"];

/// Links the shared DPDK libraries. Prints cargo directives; call from `build.rs`.
pub fn shared() {
    search_path();
    println!("cargo:rustc-link-arg=-Wl,--no-as-needed");
    for lib in SHARED {
        println!("cargo:rustc-link-arg=-lrte_{lib}");
    }
}

/// Not in a secondary, which has no use for them: see `no_services.c`.
const NO_SERVICES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/no_services.c");
const REPLACED: &[&str] = &["rte_service_init", "rte_service_start_with_defaults"];

/// Links EAL, ring, mempool and mbuf statically, without any driver and without service cores. Prints cargo
/// directives; call from `build.rs`.
pub fn static_core() {
    search_path();
    println!("cargo:rerun-if-changed={NO_SERVICES}");
    for object in cc::Build::new().file(NO_SERVICES).compile_intermediates() {
        println!("cargo:rustc-link-arg={}", object.display());
    }
    for function in REPLACED {
        println!("cargo:rustc-link-arg=-Wl,--wrap={function}");
    }
    println!("cargo:rustc-link-arg=-Wl,--whole-archive");
    println!("cargo:rustc-link-arg=-l:librte_eal.a");
    println!("cargo:rustc-link-arg=-Wl,--no-whole-archive");
    for lib in STATIC_CORE {
        println!("cargo:rustc-link-arg=-l:librte_{lib}.a");
    }
    for lib in ["numa", "bsd", "dl", "pthread", "m"] {
        println!("cargo:rustc-link-arg=-l{lib}");
    }
}

fn search_path() {
    let lib = probe();
    for dir in &lib.link_paths {
        println!("cargo:rustc-link-arg=-L{}", dir.display());
    }
}

/// Finds libdpdk by pkg-config without printing link directives.
///
/// # Panics
/// If libdpdk 22.11 or later is not installed: the build can't go on, and the message names the package.
pub fn probe() -> pkg_config::Library {
    pkg_config::Config::new()
        .atleast_version("22.11")
        .cargo_metadata(false)
        .probe("libdpdk")
        .unwrap_or_else(|e| panic!("libdpdk >= 22.11 not found (on Debian: apt install libdpdk-dev): {e}"))
}
