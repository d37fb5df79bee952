//! Client ports, with the clients' ends of their rings in the same process.

use std::sync::Arc;

use arrayvec::ArrayVec;
use dpdk_vswitchd::datapath::client_port::{QueueMemory, Session};
use dpdk_vswitchd::datapath::port::{FrameLimit, Io, Port};
use dpdk_vswitchd::datapath::vlan::VlanPolicy;
use vswitch_common::mbuf::{Checksum, DATA_ROOM, Mbuf};
use vswitch_common::mempool::Pool;
use vswitch_common::port::layout::ControlBlocks;
use vswitch_common::port::{ALLOC_RING_SIZE, FREE_RING_SIZE, RX_RING_SIZE, TX_RING_SIZE, doorbell};
use vswitch_common::ring::{Consumer, Producer, RingMemory};

pub const BURST: usize = 32;
pub const FRAME: usize = 60;

/// A client's ends of its rings.
pub struct Client {
    alloc: Consumer,
    tx: Producer,
    rx: Consumer,
    free: Producer,
}

impl Client {
    /// Sends up to `count` frames whose first bytes `header` makes; how many were sent.
    pub fn send(&mut self, count: usize, len: usize, mut header: impl FnMut() -> [u8; 14]) -> usize {
        let mut entries = [0; BURST];
        let room = self.tx.free().expect("a sound ring").min(count).min(BURST);
        let n = self.alloc.dequeue(&mut entries[..room]).expect("a sound ring");
        let mut frames = ArrayVec::<Mbuf, BURST>::new();
        for &address in &entries[..n] {
            // SAFETY: an empty mbuf that the switch has given to this client.
            let mut mbuf = unsafe { Mbuf::from_address(address) }.expect("no null pointer");
            mbuf.room_mut()[..14].copy_from_slice(&header());
            mbuf.set_frame(len, Checksum::Unknown);
            frames.push(mbuf);
        }
        assert_eq!(self.tx.enqueue(&frames), Ok(n));
        n
    }

    /// Sends a frame of `mbufs` full mbufs.
    // One of the benches has no use for it.
    #[allow(dead_code)]
    pub fn send_chain(&mut self, mbufs: usize, header: [u8; 14]) {
        let mut entries = [0; BURST];
        let n = self.alloc.dequeue(&mut entries[..mbufs]).expect("a sound ring");
        assert_eq!(n, mbufs, "the switch keeps the client in empty mbufs");
        // SAFETY: empty mbufs that the switch has given to this client.
        let mbufs = entries[..n].iter().map(|&a| unsafe { Mbuf::from_address(a) });
        let mut rest: ArrayVec<Mbuf, BURST> = mbufs.flatten().collect();
        rest.iter_mut()
            .for_each(|mbuf| mbuf.set_frame(DATA_ROOM, Checksum::Unknown));
        let mut first = rest.remove(0);
        first.room_mut()[..14].copy_from_slice(&header);
        first.chain(&rest);
        assert_eq!(self.tx.enqueue(&[first]), Ok(1));
    }

    /// Takes what has come and gives all its mbufs back.
    // One of the benches has no use for it.
    #[allow(dead_code)]
    pub fn drain_chains(&mut self) {
        for mut frame in self.receive() {
            let rest = frame.split();
            assert_eq!(self.free.enqueue(&rest), Ok(rest.len()));
            assert_eq!(self.free.enqueue(&[frame]), Ok(1));
        }
    }

    /// Takes what has come and gives it back; `look` may see it.
    pub fn drain(&mut self, look: impl FnMut(&Mbuf)) {
        let mbufs = self.receive();
        mbufs.iter().for_each(look);
        assert_eq!(self.free.enqueue(&mbufs), Ok(mbufs.len()));
    }

    /// Takes what has come and sends it with another header; how many frames that was.
    // One of the benches has no use for it.
    #[allow(dead_code)]
    pub fn answer(&mut self, header: [u8; 14]) -> usize {
        let mut mbufs = self.receive();
        for mbuf in &mut mbufs {
            mbuf.room_mut()[..14].copy_from_slice(&header);
            mbuf.set_frame(FRAME, Checksum::Unknown);
        }
        assert_eq!(self.tx.enqueue(&mbufs), Ok(mbufs.len()));
        mbufs.len()
    }

    fn receive(&mut self) -> ArrayVec<Mbuf, { 2 * BURST }> {
        let mut entries = [0; 2 * BURST];
        let n = self.rx.dequeue(&mut entries).expect("a sound ring");
        // SAFETY: frames that the switch has given to this client.
        let mbufs = entries[..n].iter().map(|&a| unsafe { Mbuf::from_address(a) });
        mbufs.flatten().collect()
    }
}

/// An Ethernet header.
pub fn header(destination: [u8; 6], source: [u8; 6]) -> [u8; 14] {
    let mut bytes = [0; 14];
    bytes[..6].copy_from_slice(&destination);
    bytes[6..12].copy_from_slice(&source);
    bytes[12..].copy_from_slice(&[0x88, 0xb5]);
    bytes
}

/// The address of the client of port `port`.
pub fn mac(port: usize) -> [u8; 6] {
    [2, 0, 0, 0, 0, port as u8]
}

/// Port `index`, of the first bridge, and its client, whose mbufs come from `pool`.
pub fn client_port(index: usize, pool: Pool) -> (Arc<Port>, Client) {
    let ring = |role: &str, size| RingMemory::create(&format!("{role}{index}"), size, -1).expect("memory");
    let memory = QueueMemory {
        alloc: ring("alloc", ALLOC_RING_SIZE),
        tx: ring("tx", TX_RING_SIZE),
        rx: ring("rx", RX_RING_SIZE),
        free: ring("free", FREE_RING_SIZE),
        control: ControlBlocks::create(index as u16, 1, -1).expect("memory").get(0),
    };
    let ((_, bell), (ringer, _)) = (
        doorbell::pair().expect("descriptors"),
        doorbell::pair().expect("descriptors"),
    );
    // SAFETY: new rings, with one end on either side.
    let (session, client) = unsafe {
        let client = Client {
            alloc: Consumer::new(memory.alloc),
            tx: Producer::new(memory.tx),
            rx: Consumer::new(memory.rx),
            free: Producer::new(memory.free),
        };
        (
            Session::new(index as u16, pool, vec![(memory, bell, ringer)]),
            client,
        )
    };
    (port(index, Io::Client(Arc::new(session))), client)
}

/// Port `index`, of the first bridge. Frames may be as long as they like.
pub fn port(index: usize, io: Io) -> Arc<Port> {
    Arc::new(Port {
        index: index as u16,
        bridge: 0,
        vlan: VlanPolicy::trunk(&[]),
        max_frame: FrameLimit::of_mtu(u16::MAX.into()),
        limiter: None,
        io,
    })
}
