//! What the fuzz targets share: a guest's memory with canaries, models of virtqueues, and a look-out for leaks.

#[cfg(feature = "fuzz")]
pub mod clients;
#[cfg(feature = "fuzz")]
pub mod frontend;
#[cfg(feature = "fuzz")]
pub mod guest;
#[cfg(feature = "fuzz")]
pub mod leaks;
#[cfg(feature = "fuzz")]
pub mod process;
#[cfg(feature = "fuzz")]
pub mod split;
#[cfg(feature = "fuzz")]
pub mod virtqueue;
