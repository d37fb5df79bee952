//! Links the static core of DPDK, as the harness of the tests does.

fn main() {
    dpdk_link::static_core();
}
