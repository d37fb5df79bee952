//! Drives guests in tests and in the demo.
//!
//! * [`vm`] starts a QEMU on the guest image and ends it,
//! * [`serial`] runs commands in the guest and returns exit code and output,
//! * [`guest`] does what tests want done there: ping, copy a file, ask for addresses,
//! * [`qmp`] talks to QEMU's monitor,
//! * [`rfb`] is a VNC client: types on the guest's keyboard, grabs its screen,
//! * [`text`] reads a VGA text screen from pixels.
//!
//! Everything that waits has a time limit, and an error says what had come by then.

#![forbid(unsafe_code)]

pub mod error;
pub mod guest;
pub mod image;
pub mod qmp;
pub mod rfb;
pub mod serial;
pub mod text;
pub mod vm;

pub use error::{Error, Result};
pub use guest::{Copy, PingStats};
pub use image::Image;
pub use serial::{Output, Serial};
pub use vm::{Accel, Boot, Vm, VmBuilder};
