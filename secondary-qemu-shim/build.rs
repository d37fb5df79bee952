//! Links the static core of DPDK: a secondary has no driver and no bus.

fn main() {
    dpdk_link::static_core();
}
