//! The shim, and testpmd's virtio-user as its guest.

mod shim;
mod testpmd;

pub use shim::Shim;
pub use testpmd::Testpmd;
