//! Where frames enter the switch and leave it.

use std::path::Path;

use arrayvec::ArrayVec;
use vswitch_common::eal::StartLog;
use vswitch_common::ethdev::{Ethdev, FlowControl, Setup};
use vswitch_common::mbuf::Mbuf;
use vswitch_common::mempool::Pool;
use vswitch_common::port::client::{Attachment, Connection, QueuePair};
use vswitch_common::port::message::Hello;

/// Descriptors of a virtqueue.
const DESCRIPTORS: u16 = 1024;
/// Empty mbufs that a client keeps: as many as come at once.
const EMPTIES: usize = 64;

/// One end of the way through the switch.
pub enum Port {
    /// A guest's device.
    Guest { device: Ethdev, pool: Pool },
    /// A client's queue pair: neither guest nor shim.
    Client {
        queues: QueuePair,
        empties: Box<ArrayVec<Mbuf, EMPTIES>>,
        attachment: Attachment,
    },
}

impl Port {
    /// A guest that listens at `socket` until a vhost-user backend has come.
    pub fn guest(number: usize, socket: &Path, pool: Pool, large: bool) -> anyhow::Result<Port> {
        let mut device = Ethdev::attach(&format!(
            "net_virtio_user{number},path={},server=1,queues=1,queue_size={DESCRIPTORS}",
            socket.display()
        ))?;
        let setup = Setup {
            rx_queues: 1,
            tx_queues: 1,
            rx_descriptors: DESCRIPTORS,
            tx_descriptors: DESCRIPTORS,
            mtu: 1500,
            promiscuous: true,
            doorbells: false,
            large_receive: large,
            flow_control: FlowControl::default(),
        };
        device.start(&setup, pool)?;
        Ok(Port::Guest { device, pool })
    }

    /// The client of port `number` of the switch that listens at `socket`. EAL starts with `eal_args` unless the process
    /// is a client already, by `other`.
    pub fn client(
        number: u16,
        socket: &Path,
        eal_args: &[String],
        other: Option<&Port>,
    ) -> anyhow::Result<Port> {
        let turn = Connection::open(socket, &Hello::new(number, 1, "bench-guest"))?.wait()?;
        let mut attachment = match other {
            Some(Port::Client { attachment, .. }) => turn.join(attachment)?,
            _ => turn.init_eal("bench-guest", eal_args, StartLog::Shown)?,
        };
        let queues = attachment.take_queue_pairs().remove(0);
        Ok(Port::Client {
            queues,
            empties: Box::default(),
            attachment,
        })
    }

    /// Adds `count` empty mbufs to `out`, or none.
    pub fn alloc<const N: usize>(&mut self, out: &mut ArrayVec<Mbuf, N>, count: usize) -> bool {
        match self {
            Port::Guest { pool, .. } => pool.alloc_n(out, count),
            Port::Client { queues, empties, .. } => {
                if empties.len() < count {
                    queues.alloc(empties);
                }
                let some = empties.len() >= count;
                if some {
                    out.extend(empties.drain(..count));
                }
                some
            }
        }
    }

    /// Sends `frames`, in order. What does not fit stays.
    pub fn send<const N: usize>(&mut self, frames: &mut ArrayVec<Mbuf, N>) {
        match self {
            Port::Guest { device, .. } => device.send(0, frames),
            Port::Client { queues, .. } => queues.send(frames),
        }
    }

    /// Adds what has come to `out`, as far as there is room.
    pub fn receive<const N: usize>(&mut self, out: &mut ArrayVec<Mbuf, N>) {
        match self {
            Port::Guest { device, .. } => device.receive(0, out),
            Port::Client { queues, .. } => queues.receive(out),
        }
    }

    /// Gives mbufs of this port back, each for itself.
    pub fn free<const N: usize>(&mut self, mbufs: &mut ArrayVec<Mbuf, N>) {
        match self {
            Port::Guest { pool, .. } => pool.free(mbufs),
            Port::Client { queues, .. } => queues.release(mbufs),
        }
    }
}
