//! Links the static core of DPDK: a secondary has no driver and no bus. And no service cores: see `no_services.c`.

fn main() {
    dpdk_link::static_core();
    println!("cargo:rerun-if-changed=no_services.c");
    for object in cc::Build::new().file("no_services.c").compile_intermediates() {
        println!("cargo:rustc-link-arg={}", object.display());
    }
    for function in ["rte_service_init", "rte_service_start_with_defaults"] {
        println!("cargo:rustc-link-arg=-Wl,--wrap={function}");
    }
}
