//! The client-port protocol: how a DPDK secondary moves frames through a port of the switch.
//!
//! `docs/client-port-protocol.md` tells it in prose. Its parts: what lies in shared memory ([`layout`]), the messages
//! of the attach socket ([`message`]), the wake-up handshake ([`doorbell`]) and the client's side ([`client`]).

pub mod client;
pub mod doorbell;
pub mod layout;
pub mod message;

/// Version of this protocol: the shared layout, the rings' roles and the attach messages. Both sides must agree.
pub const VERSION: u32 = 2;

/// Queue pairs that a port may have.
pub const MAX_QUEUES: usize = 16;
/// Slots of the ring of empty mbufs, switch to client.
pub const ALLOC_RING_SIZE: u32 = 512;
/// Empty mbufs that a client has at its disposal in that ring: two bursts of a shim's. They are used in turn, so all of them pass
/// through the caches: with twice as many, frames of 1500 bytes cost a quarter more.
pub const ALLOC_LEVEL: u32 = ALLOC_RING_SIZE / 4;
/// Slots of the ring of frames, client to switch.
pub const TX_RING_SIZE: u32 = 1024;
/// Slots of the ring of frames, switch to client.
pub const RX_RING_SIZE: u32 = 1024;
/// Slots of the ring of used mbufs, client to switch: more than a client can ever own, so it is never full.
pub const FREE_RING_SIZE: u32 = 4096;
/// Mbufs that a queue pair may own at most: its share of the pool.
pub const QUOTA: u32 = 1536;
const _: () = assert!(QUOTA < FREE_RING_SIZE && ALLOC_RING_SIZE + RX_RING_SIZE <= QUOTA);

/// Which of a queue pair's rings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingRole {
    /// Empty mbufs, switch to client.
    Alloc,
    /// Frames, client to switch.
    Tx,
    /// Frames, switch to client.
    Rx,
    /// Used mbufs, client to switch.
    Free,
}

/// The name of a ring, as `rte_ring_lookup` knows it: `MProc_Client_N_RX` and so on, as in the historic switch
/// (seen from the client: RX is what it receives). Queue pairs behind the first one add `_Q`.
pub fn ring_name(port: u16, queue: usize, role: RingRole) -> String {
    let role = match role {
        RingRole::Alloc => "ALLOC",
        RingRole::Tx => "TX",
        RingRole::Rx => "RX",
        RingRole::Free => "FREE",
    };
    if queue == 0 {
        format!("MProc_Client_{port}_{role}")
    } else {
        format!("MProc_Client_{port}_{role}_{queue}")
    }
}

/// The name of the memory zone with a port's control blocks, one per queue pair.
pub fn control_name(port: u16) -> String {
    format!("MProc_Client_{port}_CTL")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_names_fit_dpdk() {
        assert_eq!(ring_name(2, 0, RingRole::Rx), "MProc_Client_2_RX");
        assert_eq!(ring_name(2, 3, RingRole::Tx), "MProc_Client_2_TX_3");
        // RTE_RING_NAMESIZE is 29 with the terminating NUL.
        assert!(ring_name(u16::MAX, MAX_QUEUES - 1, RingRole::Alloc).len() <= 28);
    }
}
