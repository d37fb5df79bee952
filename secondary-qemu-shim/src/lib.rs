//! `dpdk-qemu-shim`: a DPDK secondary that serves one VM port of the switch over vhost-user.
//!
//! | module | what is in it |
//! |---|---|
//! | [`config`], [`eal_args`], [`cpus`] | the command line, checked |
//! | [`service`] | the control thread: what happens when |
//! | [`attach`] | waiting for the switch, and attaching to it |
//! | [`carrier`], [`inherited`] | telling QEMU the link state; the descriptors it passes |
//! | [`sandbox`], [`supervisor`] | what the process gives up; who starts it anew |
//! | [`backend`] | vhost-user messages and the device they set up |
//! | [`pump`] | the threads that move frames |
//! | [`port`] | the pumps' other side: the switch, or a test |
//! | [`virtqueue`] | the device's end of a virtqueue |
//! | [`net_header`], [`csum`] | what stands before a frame, and half-done checksums |
//! | [`guest_memory`] | the guest's memory, and every `unsafe` that touches it |

pub mod attach;
pub mod backend;
pub mod carrier;
pub mod config;
pub mod cpus;
pub mod csum;
pub mod eal_args;
pub mod guest_memory;
pub mod inherited;
pub mod net_header;
pub mod port;
pub mod pump;
pub mod sandbox;
pub mod service;
pub mod supervisor;
pub mod virtqueue;
