//! What the tests across processes share: real switches, real clients, the stock tools.
//!
//! | module | what is in it |
//! |---|---|
//! | [`switch`] | a `dpdk-vswitchd` of one's own, from start to a clean end |
//! | [`bare`], [`blast`] | a DPDK secondary that does as it is told, good or bad |
//! | [`bystanders`] | two clients with traffic that must not suffer |
//! | [`torture`] | the torture campaign, small and large |
//! | [`attach`] | raw messages on the attach socket |
//! | [`frames`] | Ethernet frames of every kind |
//! | [`stream`] | numbered frames whose contents can be checked |
//! | [`guest`] | the shim, and testpmd's virtio-user as its guest |
//! | [`fake_host`] | sysfs and procfs as plain files, for the scripts that prepare a host |
//! | [`traced`] | a kill at a system call of one's choice |
//! | [`pcap`], [`packet`], [`namespace`] | capture files, kernel interfaces, namespaces |
//! | [`vm`] | guests in QEMU on the ports of a switch |
//! | [`nic_host`] | a machine in QEMU with NICs of its own, for a switch to run in |
//! | [`child`], [`programs`], [`prerequisites`], [`wait`] | processes and patience |
//!
//! Tests here start real processes on hugepages. A missing prerequisite fails a test and says what to do; nothing
//! is skipped. They take `dpdk-vswitchd` and `dpdk-qemu-shim` as they find them built, and cargo builds those only with
//! the whole workspace: `cargo nextest run -p vswitch-tests` wants `cargo build` before it.

pub mod attach;
pub mod bare;
pub mod blast;
pub mod bystanders;
pub mod child;
pub mod fake_host;
pub mod frames;
pub mod guest;
pub mod namespace;
pub mod nic_host;
pub mod packet;
pub mod pauses;
pub mod pcap;
pub mod prerequisites;
pub mod programs;
pub mod stream;
pub mod switch;
pub mod torture;
pub mod traced;
pub mod vm;
pub mod wait;

pub use bare::Bare;
pub use frames::Frame;
pub use switch::Switch;
pub use wait::{PATIENCE, eventually};
