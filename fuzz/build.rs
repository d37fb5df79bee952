//! Links the static core of DPDK, which mbufs need.

fn main() {
    dpdk_link::static_core();
}
