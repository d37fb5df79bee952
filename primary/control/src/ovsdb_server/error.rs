//! What can keep our database server from starting. The messages are what the user reads.

use std::io;
use std::path::PathBuf;

/// What the kernel takes as the path of a Unix socket.
pub(super) const MAX_SOCKET_PATH: usize = 107;

/// Why the database server is not running.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    #[error(
        "\"{0}\" is not installed; install Open vSwitch's tools (Debian: apt install openvswitch-switch, \
         or openvswitch-common for ovsdb-tool alone)"
    )]
    NoProgram(&'static str),
    #[error(
        "the Open vSwitch schema is not installed ({} does not exist); install Open vSwitch's tools \
         (Debian: apt install openvswitch-switch)", .0.display()
    )]
    NoSchema(PathBuf),
    #[error("cannot use directory {}: {cause}", path.display())]
    Directory { path: PathBuf, cause: io::Error },
    #[error("socket path {} is too long ({MAX_SOCKET_PATH} bytes at most); use a shorter --rundir", .0.display())]
    PathTooLong(PathBuf),
    #[error("cannot run {program}: {cause}")]
    Run { program: PathBuf, cause: io::Error },
    #[error("cannot create database {}: {details}", path.display())]
    Create { path: PathBuf, details: String },
    #[error(
        "database {} is in use by process {pid}; end that ovsdb-server, or attach to it with --db unix:SOCKET",
        path.display()
    )]
    InUse { path: PathBuf, pid: i32 },
    #[error(
        "another ovsdb-server answers at {}; end it, attach to it with --db unix:{}, or use another --rundir",
        .0.display(), .0.display()
    )]
    SocketInUse(PathBuf),
    #[error(
        "database {} is damaged ({details}); restore a backup of it, or move it away to start with an empty \
         configuration: mv {} {}.damaged", path.display(), path.display(), path.display()
    )]
    Damaged { path: PathBuf, details: String },
    #[error("cannot tell whether database {} fits the schema {}: {details}", path.display(), schema.display())]
    Compare {
        path: PathBuf,
        schema: PathBuf,
        details: String,
    },
    #[error(
        "cannot convert database {} to the schema {}: {details}; the database is unchanged",
        path.display(), schema.display()
    )]
    Convert {
        path: PathBuf,
        schema: PathBuf,
        details: String,
    },
    #[error("ovsdb-server ended at once ({status}): {details}")]
    Ended { status: String, details: String },
    #[error("ovsdb-server does not answer at {} after {seconds} seconds", path.display())]
    NotReady { path: PathBuf, seconds: u64 },
    #[error("cannot start the supervising thread: {0}")]
    Thread(io::Error),
}
