//! Two stacks of mbufs in place of a switch: what it is sent is empty again at once, or delivered again, and what it delivers
//! comes back to be delivered again.

use std::os::fd::{AsFd, BorrowedFd};

use arrayvec::ArrayVec;
use dpdk_qemu_shim::port::{Burst, Stash, SwitchPort};
use dpdk_qemu_shim::virtqueue::BATCH;
use nix::sys::eventfd::EventFd;
use vswitch_common::mbuf::Mbuf;
use vswitch_common::port::layout::ClientStats;

#[derive(Debug)]
pub struct Stacks {
    empty: Vec<Mbuf>,
    frames: Vec<Mbuf>,
    echo: bool,
    /// What it is sent are chains, to be taken apart.
    chains: bool,
    stats: ClientStats,
    doorbell: EventFd,
}

impl Stacks {
    /// A switch with `empty` mbufs to hand out and `frames` to deliver.
    pub fn new(empty: Vec<Mbuf>, frames: Vec<Mbuf>) -> Stacks {
        Stacks {
            empty,
            frames,
            echo: false,
            chains: false,
            stats: ClientStats::default(),
            doorbell: EventFd::new().expect("descriptors"),
        }
    }

    /// A switch that has `frames` to deliver, and delivers what it is sent.
    // One of the benches has no use for it.
    #[allow(dead_code)]
    pub fn echo(frames: Vec<Mbuf>) -> Stacks {
        Stacks {
            echo: true,
            ..Stacks::new(Vec::new(), frames)
        }
    }

    /// A switch with `empty` mbufs to hand out, to be sent chains of them.
    // One of the benches has no use for it.
    #[allow(dead_code)]
    pub fn for_chains(empty: Vec<Mbuf>) -> Stacks {
        Stacks {
            chains: true,
            ..Stacks::new(empty, Vec::new())
        }
    }
}

/// Moves mbufs from a stack, as many as fit and a batch at most.
fn take<const N: usize>(from: &mut Vec<Mbuf>, to: &mut ArrayVec<Mbuf, N>) {
    let rest = from.len().saturating_sub(to.remaining_capacity().min(BATCH));
    to.extend(from.drain(rest..));
}

impl SwitchPort for Stacks {
    fn alloc(&mut self, out: &mut Stash) {
        take(&mut self.empty, out);
    }

    fn send(&mut self, frames: &mut Burst) {
        if self.chains {
            for frame in &mut *frames {
                self.empty.extend(frame.split());
            }
        }
        let stack = if self.echo {
            &mut self.frames
        } else {
            &mut self.empty
        };
        stack.extend(frames.drain(..));
    }

    fn receive(&mut self, out: &mut Burst) {
        take(&mut self.frames, out);
    }

    fn release(&mut self, used: &mut Burst) {
        self.frames.extend(used.drain(..));
    }

    fn frames_waiting(&mut self) -> bool {
        !self.frames.is_empty()
    }

    fn buffers_waiting(&mut self) -> bool {
        !self.empty.is_empty()
    }

    fn has_room(&mut self) -> bool {
        true
    }

    fn arm(&self) {}

    fn disarm(&self) {}

    fn silence(&self) {}

    fn doorbell(&self) -> BorrowedFd<'_> {
        self.doorbell.as_fd()
    }

    fn busy_poll(&self) -> bool {
        false
    }

    fn stats(&self) -> &ClientStats {
        &self.stats
    }
}
