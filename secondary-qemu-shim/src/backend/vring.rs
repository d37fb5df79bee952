//! What the frontend has said of one virtqueue so far.

use std::fs::File;

use crate::pump::Eventfd;
use crate::virtqueue::RingAddresses;

/// Which way a virtqueue's frames go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The guest receives: even indices (virtio 1.2 §5.1.2).
    Receive,
    /// The guest transmits: odd indices.
    Transmit,
}

/// A virtqueue's settings.
#[derive(Debug, Default)]
pub struct Vring {
    pub size: u16,
    pub addresses: Option<RingAddresses>,
    /// Guest physical address of the used ring, where writes to the ring are to be logged.
    pub log_used: Option<u64>,
    /// Where the ring stands, as the frontend set it or as the ring stopped.
    pub base: u32,
    /// Enabled by message, or from the start where that message was not negotiated.
    pub enabled: bool,
    /// A kick descriptor came (or its absence was told): the ring is to run.
    pub started: bool,
    /// It does: its pump has it.
    pub running: bool,
    pub kick: Option<File>,
    pub call: Option<File>,
    pub err: Option<File>,
}

impl Vring {
    /// Do frames go through it?
    pub fn is_used(&self) -> bool {
        self.running && self.enabled
    }

    /// The virtqueue of a queue pair that goes in `direction`.
    pub fn index(pair: usize, direction: Direction) -> usize {
        2 * pair + usize::from(direction == Direction::Transmit)
    }

    /// The queue pair and direction of virtqueue `index`.
    pub fn place(index: usize) -> (usize, Direction) {
        (
            index / 2,
            if index.is_multiple_of(2) {
                Direction::Receive
            } else {
                Direction::Transmit
            },
        )
    }
}

/// A second handle of a descriptor for a pump; none if there is none or it can't be had.
pub fn for_pump(file: Option<&File>) -> Option<Eventfd> {
    let file = file?;
    match file.try_clone().and_then(Eventfd::new) {
        Ok(fd) => Some(fd),
        Err(why) => {
            log::warn!("a virtqueue's descriptor can't be used: {why}");
            None
        }
    }
}
