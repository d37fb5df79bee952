//! Control plane of the switch: OVSDB client, ovsdb-server supervision, unixctl. No DPDK in here.
//!
//! * [`config`]: what the database asks of the switch, as plain data.
//! * [`status`]: what the switch wants the database to show, as plain data.
//! * [`ovsdb`]: the client that turns one database into `config` events and writes `status` back.
//! * [`ovsdb_server`]: creates the database and keeps our own `ovsdb-server` running.
//! * [`unixctl`]: the server that `ovs-appctl` talks to, with the pid file it looks for.
//! * [`vlog`]: log levels per module and destination that `ovs-appctl vlog/set` changes.
//! * [`jsonrpc`]: framing and message shapes that both protocols share.
//!
//! Threads: each client, supervisor and unixctl server owns one; callbacks run on that thread. Start them before EAL pins
//! the calling thread to its core, or they (and the database server) share that core.
//! Nothing here panics on what the other side of a socket sends.

pub mod config;
pub mod jsonrpc;
pub mod ovsdb;
pub mod ovsdb_server;
pub mod status;
mod stream;
mod types;
pub mod unixctl;
pub mod vlog;

pub use types::{MacAddr, ParseMacError, ParseUuidError, Uuid};
