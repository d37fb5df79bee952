//! Our own `ovsdb-server`: its database, its process, its restart.
//!
//! [`Supervisor::start`] creates or converts the database, starts the server and returns once it answers; the server is
//! restarted when it dies or no longer answers, and dies with us. Start it before EAL, whose threads' CPU affinity the server would inherit.
//!
//! ```no_run
//! # use vswitch_control::ovsdb_server::{Options, Supervisor};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let server = Supervisor::start(Options::new("/var/lib/switch", "/run/switch"))?;
//! let database = server.target(); // for ovsdb::Client::start
//! # drop(database); Ok(())
//! # }
//! ```

mod database;
mod error;
mod process;
mod programs;
mod pulse;
mod repeats;
mod root_row;
mod supervisor;

pub use error::SupervisorError;
pub use supervisor::{Options, Supervisor};
