//! The vhost-user backend: what the frontend's messages do to the device.
//!
//! [`Device`] is the state and the pumps; [`handler`] translates messages; [`connection`] reads them off the socket.

mod connection;
mod device;
mod features;
mod handler;
mod vring;

pub use connection::{Connection, Ended};
pub use device::{Device, DeviceError};
pub use features::{FEATURES, PROTOCOL_FEATURES};

#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod testpmd_tests;
#[cfg(test)]
mod tests;
