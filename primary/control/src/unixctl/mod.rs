//! The control socket that `ovs-appctl` talks to, and the pid file by which it finds it.
//!
//! One JSON-RPC request per command, every parameter a string, the answer a text. A command is registered with a name,
//! a usage line, how many arguments it takes, and a handler, which either answers at once or keeps a [`Reply`].
//!
//! ```no_run
//! # use vswitch_control::unixctl::{Pidfile, Registry, Server};
//! # use std::path::Path;
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let rundir = Path::new("/run/switch");
//! let pidfile = Pidfile::create(&rundir.join("ovs-vswitchd.pid"))?;
//! let mut registry = Registry::new("dpdk-vswitchd 1.0");
//! registry.command("memory/show", "", 0, Some(0), |_args| Ok("ports:2\n".into()));
//! registry.deferred("exit", "[--cleanup]", 0, Some(1), |_args, reply| {
//!     // hand `reply` to the main loop, which answers when it is done
//!     reply.ok("");
//! });
//! let server = Server::start(rundir, registry)?;
//! # drop((server, pidfile)); Ok(())
//! # }
//! ```

mod connection;
mod pidfile;
mod registry;
mod reply;
mod server;
mod socket;

pub use pidfile::{Pidfile, PidfileError, lock_holder};
pub use registry::{CommandResult, Registry};
pub use reply::Reply;
pub use server::{Server, StartError};
pub(crate) use socket::remove_dead_sockets;
