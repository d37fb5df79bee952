//! Links DPDK into this crate's own tests; a binary's link is its own build script's business.

fn main() {
    dpdk_link::static_core();
}
