//! Client ring ports: the rings of each port number, and who is attached to it.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

use vswitch_common::mempool::Pool;
use vswitch_common::port::layout::ControlBlocks;
use vswitch_common::port::{
    ALLOC_RING_SIZE, FREE_RING_SIZE, MAX_QUEUES, QUOTA, RX_RING_SIZE, RingRole, TX_RING_SIZE, ring_name,
};
use vswitch_common::ring::RingMemory;

use crate::attach::ClientId;
use crate::datapath::client_port::{QueueMemory, Session};
use crate::datapath::port::PortIndex;

/// The rings and control blocks of one ring port, there from its configuration to its removal.
#[derive(Debug)]
pub struct PortMemory {
    rings: Vec<[RingMemory; 4]>,
    controls: ControlBlocks,
    /// The NUMA node that it is wanted on. It lies elsewhere where there was no room.
    wanted: Option<usize>,
}

const ROLES: [(RingRole, u32); 4] = [
    (RingRole::Alloc, ALLOC_RING_SIZE),
    (RingRole::Tx, TX_RING_SIZE),
    (RingRole::Rx, RX_RING_SIZE),
    (RingRole::Free, FREE_RING_SIZE),
];

impl PortMemory {
    /// Makes the rings of port `port` with one queue pair, on NUMA node `node` as far as that has room. The control blocks are
    /// for all it may ever have.
    ///
    /// # Errors
    /// DPDK's text: there is no memory left, or somebody else's ring has the name.
    pub fn create(port: u16, node: Option<usize>) -> Result<PortMemory, String> {
        let controls = near(node, |socket| ControlBlocks::create(port, MAX_QUEUES, socket))
            .map_err(|e| format!("control block: {e}"))?;
        let mut memory = PortMemory {
            rings: Vec::new(),
            controls,
            wanted: node,
        };
        match memory.grow(port, 1) {
            Ok(()) => Ok(memory),
            Err(e) => {
                memory.free();
                Err(e)
            }
        }
    }

    /// Makes sure that there are `queues` queue pairs.
    ///
    /// # Errors
    /// As [`PortMemory::create`]; the present ones stay.
    pub fn grow(&mut self, port: u16, queues: usize) -> Result<(), String> {
        while self.rings.len() < queues {
            let mut made = Vec::with_capacity(ROLES.len());
            for (role, size) in ROLES {
                let name = ring_name(port, self.rings.len(), role);
                match near(self.wanted, |socket| RingMemory::create(&name, size, socket)) {
                    Ok(ring) => made.push(ring),
                    Err(e) => {
                        // SAFETY: made just now; nobody has seen them.
                        made.into_iter().for_each(|ring| unsafe { ring.free() });
                        return Err(format!("ring {name}: {e}"));
                    }
                }
            }
            if let Ok(set) = made.try_into() {
                self.rings.push(set);
            }
        }
        Ok(())
    }

    /// The NUMA node that its first ring lies on.
    pub fn node(&self) -> Option<usize> {
        self.rings.first()?[0].node()
    }

    /// Empties the first `queues` queue pairs for a new client. Only while no client is attached.
    pub fn reset(&self, queues: usize) -> Vec<QueueMemory> {
        self.controls.reset();
        let sets = self.rings.iter().take(queues).enumerate();
        sets.map(|(queue, &[alloc, tx, rx, free])| {
            [alloc, tx, rx, free].iter().for_each(RingMemory::reset);
            QueueMemory {
                alloc,
                tx,
                rx,
                free,
                control: self.controls.get(queue),
            }
        })
        .collect()
    }

    /// Gives the memory back. Only while no client is attached and no session on it is left.
    pub fn free(self) {
        for ring in self.rings.into_iter().flatten() {
            // SAFETY: by this function's contract nobody uses it any more.
            unsafe { ring.free() };
        }
        // SAFETY: as above.
        unsafe { self.controls.free() };
    }
}

/// Makes something on NUMA node `node`, or else wherever there is room.
fn near<T>(node: Option<usize>, make: impl Fn(i32) -> Result<T, String>) -> Result<T, String> {
    const SOCKET_ID_ANY: i32 = -1;
    let there = node.and_then(|node| make(i32::try_from(node).ok()?).ok());
    there.map_or_else(|| make(SOCKET_ID_ANY), Ok)
}

/// A client between its admission and its release.
#[derive(Debug)]
pub struct Claim {
    pub client: ClientId,
    /// The datapath index it was attached under; stays taken until the release.
    pub index: PortIndex,
    pub session: Arc<Session>,
    /// The NUMA node that its process is kept on.
    pub node: Option<usize>,
    /// What the port's earlier clients had counted, of each counter that is taken over from clients.
    pub counted_before: Vec<u64>,
    /// Wrong ring entries that the port's earlier clients had handed in.
    pub offences_before: u64,
    /// With so many of its own it is named in the log once more.
    pub named_at: u64,
}

/// Of so many mbufs, those that clients may own in all. The others are for devices and copies.
pub fn for_clients(mbufs: usize) -> usize {
    mbufs * 3 / 4
}

/// What a pool has left of its clients' part.
#[derive(Debug, Clone, Copy)]
struct Left {
    node: Option<usize>,
    mbufs: usize,
}

/// Which pool a client on NUMA node `node` gets that may own `share` mbufs: its node's if that has them left, or else the one
/// with the most.
fn choose(pools: &[Left], node: Option<usize>, share: usize) -> usize {
    let own = |pool: &Left| node.is_some() && pool.node == node && pool.mbufs >= share;
    let most = |&number: &usize| Reverse(pools[number].mbufs);
    let own = pools.iter().position(own);
    own.or_else(|| (0..pools.len()).min_by_key(most)).unwrap_or(0)
}

/// All ring ports' memory and clients, by ring port number.
#[derive(Debug, Default)]
pub struct Clients {
    pub memory: HashMap<u16, PortMemory>,
    pub claims: HashMap<u16, Claim>,
}

impl Clients {
    /// The rings of `port`, which move to NUMA node `node` if they are not there and this was not tried just before. Only while no
    /// client is attached to it.
    ///
    /// # Errors
    /// As [`PortMemory::create`].
    pub fn memory_on(&mut self, port: u16, node: Option<usize>) -> Result<&mut PortMemory, String> {
        let memory = match self.memory.remove(&port) {
            Some(memory) if node.is_none() || memory.wanted == node => memory,
            Some(memory) if memory.node() == node => PortMemory {
                wanted: node,
                ..memory
            },
            elsewhere => {
                if let Some(memory) = elsewhere {
                    memory.free();
                }
                PortMemory::create(port, node)?
            }
        };
        Ok(self.memory.entry(port).insert_entry(memory).into_mut())
    }

    /// Frees the rings of `port` if nobody is attached any more.
    pub fn free_if_unused(&mut self, port: u16) {
        if !self.claims.contains_key(&port)
            && let Some(memory) = self.memory.remove(&port)
        {
            memory.free();
        }
    }

    /// The pool for a new client on NUMA node `node` with so many queue pairs.
    pub fn pool_for(&self, node: Option<usize>, queues: usize, pools: &[Pool]) -> Pool {
        let share = |queues: usize| queues * QUOTA as usize;
        let left = |pool: &Pool| {
            let sessions = self.claims.values().map(|claim| &claim.session);
            let its = sessions.filter(|session| session.pool() == *pool);
            let taken = its.map(|session| share(session.queues().len())).sum();
            Left {
                node: pool.node(),
                mbufs: for_clients(pool.size() as usize).saturating_sub(taken),
            }
        };
        let left: Vec<Left> = pools.iter().map(left).collect();
        pools[choose(&left, node, share(queues))]
    }

    /// Is `index` still in use by a client on its way out?
    pub fn holds_index(&self, index: PortIndex) -> bool {
        self.claims.values().any(|c| c.index == index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_gets_the_pool_of_its_node() {
        let pools = |mbufs: [usize; 3]| -> [Left; 3] {
            let nodes = [Some(1), Some(0), None];
            std::array::from_fn(|n| Left {
                node: nodes[n],
                mbufs: mbufs[n],
            })
        };
        let plenty = pools([5000, 4000, 3000]);
        assert_eq!(choose(&plenty, Some(1), 1536), 0);
        assert_eq!(choose(&plenty, Some(0), 1536), 1);
        // One whose CPUs are of several nodes, and one on a node without a pool: where there is most left.
        assert_eq!(choose(&pools([3000, 4000, 5000]), None, 1536), 2);
        assert_eq!(choose(&plenty, Some(7), 1536), 0);
        assert_eq!(choose(&pools([5000, 5000, 0]), None, 1536), 0);
        // Its node has not a whole share left; nor has any other.
        assert_eq!(choose(&pools([1000, 4000, 0]), Some(1), 1536), 1);
        assert_eq!(choose(&pools([1000, 900, 0]), Some(0), 1536), 0);
    }
}
