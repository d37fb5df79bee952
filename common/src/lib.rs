//! What the switch (DPDK primary) and its clients (DPDK secondaries) share.
//!
//! | module | what is in it |
//! |---|---|
//! | [`eal`] | start and end of DPDK's environment, worker lcores |
//! | [`mbuf`] | packet buffers: one owner each, accessors that stay inside the buffer |
//! | [`gso`] | frames larger than a wire takes: what is known of one, and how it is cut |
//! | [`csum`] | the Internet checksum |
//! | [`mempool`] | pools of mbufs; only the primary touches one |
//! | [`ring`] | single-producer single-consumer ends of an `rte_ring`, safe against the peer |
//! | [`ethdev`] | NIC ports and vdevs of the primary |
//! | [`netdev`] | interfaces of the host kernel |
//! | [`descriptors`] | descriptors that come with a message on a unix socket |
//! | [`sparse`] | arrays of which little is ever used |
//! | [`port`] | the client-port protocol: shared layout, attach messages, doorbells, the client's side |
//! | [`stats`] | the shared-memory segment with every counter |
//! | [`fault`] | for tests: places where a process can be made to die |
//! | [`rundir`] | where sockets and the stats segment are found |

pub mod csum;
pub mod descriptors;
pub mod eal;
pub mod ethdev;
pub mod fault;
pub mod gso;
pub mod mbuf;
pub mod mempool;
pub mod netdev;
pub mod port;
pub mod ring;
pub mod rundir;
pub mod sparse;
pub mod stats;
