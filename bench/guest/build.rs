//! Links the shared DPDK libraries, which bring virtio-user as a plugin.

fn main() {
    dpdk_link::shared();
}
