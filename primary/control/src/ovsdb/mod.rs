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

/// Lets a fuzzer play the server: what it sends, in `pieces`, goes through framing, replica, configuration and the
/// answers with `status`. Returns the configuration in the end; none: the connection was given up.
#[doc(hidden)]
pub fn receive_for_fuzzing<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
    status: &crate::status::Status,
) -> Option<crate::config::SwitchConfig> {
    let now = std::time::Instant::now();
    let mut session = session::Session::new(Options::default().probe_interval, now);
    let mut writer = writer::Writer::default();
    writer.publish(status.clone());
    for piece in pieces {
        session.receive(piece, now).ok()?;
        if let Some((result, error)) = session.transaction_done.take() {
            writer.finished(&result, &error, now);
        }
        if session.ready
            && std::mem::take(&mut session.replica_changed)
            && let Some(operations) = writer.next(&session.replica, now)
        {
            session.transact(operations);
        }
    }
    Some(build::config(&session.replica))
}

/// The database and its schema's name.
pub(crate) const DATABASE: &str = "Open_vSwitch";
/// The lock that the one process which plays ovs-vswitchd holds.
const LOCK: &str = "ovs_vswitchd";
