//! Links the static core of DPDK: `bare-client` is a secondary.

fn main() {
    dpdk_link::static_core();
}
