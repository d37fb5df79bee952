//! Client of the database that `ovs-vsctl` writes (RFC 7047, schema `Open_vSwitch`).
//!
//! [`Client`] keeps a replica of the columns that matter on a thread of its own. From it come configuration events;
//! against it the published status is compared, so that only what differs is written.
//!
//! ```no_run
//! # use vswitch_control::ovsdb::{Client, Event};
//! # use vswitch_control::status::Status;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (sender, events) = std::sync::mpsc::channel();
//! let client = Client::start("unix:/run/switch/db.sock".parse()?, move |event| {
//!     let _ = sender.send(event);
//! })?;
//! for event in events {
//!     if let Event::Config(config) = event {
//!         // bring `config` into force, then say so
//!         client.publish(Status { cur_cfg: config.next_cfg, ..Default::default() });
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod build;
mod client;
mod diff;
mod once;
mod replica;
mod schema;
mod session;
mod target;
mod value;
mod writer;

pub use client::{Client, Event, Options};
pub(crate) use once::{OnceError, transact};
pub use target::{ParseTargetError, Target};

/// Lets a fuzzer play the server: what it sends goes through framing, replica and configuration.
#[doc(hidden)]
pub fn receive_for_fuzzing(bytes: &[u8]) {
    let now = std::time::Instant::now();
    let mut session = session::Session::new(Options::default().probe_interval, now);
    if session.receive(bytes, now).is_ok() {
        let _ = build::config(&session.replica);
    }
}

/// The database and its schema's name.
pub(crate) const DATABASE: &str = "Open_vSwitch";
/// The lock that the one process which plays ovs-vswitchd holds.
const LOCK: &str = "ovs_vswitchd";
