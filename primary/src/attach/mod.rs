//! The attach socket: clients say hello, initialise EAL one at a time, get their rings, and are watched until the end.
//!
//! [`server::Server`] knows sockets and processes and no port; [`Ports`] knows ports and no socket. Both run on the
//! control thread.

pub mod outside;
pub mod process;
pub mod server;

use std::os::fd::BorrowedFd;

use vswitch_common::port::message::{Attached, Hello, Reason};

/// A connection to the attach socket, as long as the process behind it may touch shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClientId(pub u64);

/// Why a client is refused or evicted, in words its user reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    pub reason: Reason,
    pub text: String,
}

/// What the switch wants a client told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// Its attachment ends.
    Evicted(Refused),
    /// The state of its port has changed.
    State { carrier: bool, mtu: u32 },
}

/// What the attach server asks of the switch.
pub trait Ports {
    /// May this client have its port? It does not hold it yet.
    ///
    /// # Errors
    /// Why not.
    fn check(&mut self, hello: &Hello) -> Result<Admission, Refused>;

    /// The client's EAL is up, on CPUs of NUMA node `node` if they are of one: hands its rings over, by sending the answer with
    /// descriptors through `send`.
    ///
    /// # Errors
    /// The port went away meanwhile, or there is no memory.
    fn attach(
        &mut self,
        client: ClientId,
        hello: &Hello,
        node: Option<usize>,
        send: &mut dyn FnMut(&Attached, &[BorrowedFd<'_>]) -> bool,
    ) -> Result<(), Refused>;

    /// The client died while it initialised EAL, where it may have held locks in shared memory.
    fn died_in_turn(&mut self, hello: &Hello);

    /// The client is dead, or has let go of everything. Called for whoever was admitted, attached or not.
    fn release(&mut self, client: ClientId, hello: &Hello);
}

/// The settings a client initialises EAL with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admission {
    pub file_prefix: String,
    /// EAL's run-time directory where it is not the default.
    pub runtime_dir: String,
}
