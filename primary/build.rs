//! Links the shared DPDK libraries, which bring every poll-mode driver as a plugin.

fn main() {
    dpdk_link::shared();
}
