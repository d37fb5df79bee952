//! A vhost-user frontend that says what it likes: requests as the protocol lays them out, in any order, with any
//! contents and any descriptors.

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use arbitrary::Arbitrary;
use dpdk_qemu_shim::backend::FEATURES;
use dpdk_qemu_shim::guest_memory::testing::{FRONTEND, memfd};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::guest::{Guest, REGIONS};
use crate::split::Ring;

/// A descriptor to send along.
#[derive(Arbitrary, Debug, Clone, Copy)]
pub enum Descriptor {
    Memory,
    /// The same file, only for reading.
    ReadOnly,
    /// A file of 4096 bytes.
    Table,
    Empty,
    Kick(u8),
    /// A new eventfd that nobody else holds.
    Event,
    /// A pipe whose other end is closed.
    Pipe {
        read: bool,
    },
    Null,
    Socket,
}

/// A region of a memory table.
#[derive(Arbitrary, Debug, Clone, Copy)]
pub enum TableEntry {
    /// As it is.
    True(u8),
    Lie {
        guest: u64,
        size: u64,
        frontend: u64,
        offset: u64,
    },
    /// One of the true ones, elsewhere or of another size.
    Bent {
        region: u8,
        guest: i16,
        size: i16,
        offset: i16,
    },
}

#[derive(Arbitrary, Debug, Clone)]
pub enum Request {
    SetOwner,
    ResetOwner,
    ResetDevice,
    GetFeatures,
    /// Those of the device's features that `only` leaves.
    SetFeatures {
        only: u64,
    },
    SetAnyFeatures(u64),
    GetProtocolFeatures,
    SetProtocolFeatures(u16),
    GetQueueNum,
    SetMemTable(Vec<TableEntry>),
    SetVringNum {
        index: u8,
        log2: u8,
    },
    SetVringState {
        code: State,
        index: u32,
        num: u32,
    },
    /// Where the ring really is, moved by `off`.
    SetVringAddr {
        index: u8,
        flags: u8,
        off: i16,
        log: u64,
    },
    SetAnyVringAddr {
        index: u32,
        flags: u32,
        addresses: [u64; 4],
    },
    SetVringFile {
        code: VringFile,
        index: u8,
        none: bool,
    },
    SetLogBase {
        size: u16,
        offset: u16,
    },
    GetInflight {
        queues: u8,
        log2: u8,
    },
    SetInflight {
        size: u16,
        offset: u16,
        queues: u8,
        log2: u8,
    },
    Raw {
        request: u8,
        flags: u8,
        size: Option<u16>,
        body: Vec<u8>,
    },
}

#[derive(Arbitrary, Debug, Clone, Copy)]
pub enum State {
    Num,
    Base,
    GetBase,
    Enable,
}

#[derive(Arbitrary, Debug, Clone, Copy)]
pub enum VringFile {
    Kick,
    Call,
    Err,
}

/// Virtqueues that the frontend knows of, each with its ring in memory.
pub const QUEUES: u8 = 4;

/// The ring of virtqueue `index`.
pub fn ring(index: u8, size: u16) -> Ring {
    Ring {
        at: 0x1800 * u64::from(index % QUEUES),
        size,
    }
}

impl Request {
    /// Code and body.
    fn encode(&self) -> (u32, Vec<u8>) {
        let long = |value: u64| value.to_ne_bytes().to_vec();
        let state = |index: u32, num: u32| [index.to_ne_bytes(), num.to_ne_bytes()].concat();
        let size = |log2: u8| 1u32 << (log2 % 17);
        match self {
            Request::SetOwner => (3, vec![]),
            Request::ResetOwner => (4, vec![]),
            Request::ResetDevice => (34, vec![]),
            Request::GetFeatures => (1, vec![]),
            Request::SetFeatures { only } => (2, long(FEATURES & only)),
            Request::SetAnyFeatures(features) => (2, long(*features)),
            Request::GetProtocolFeatures => (15, vec![]),
            Request::SetProtocolFeatures(features) => (16, long((*features).into())),
            Request::GetQueueNum => (17, vec![]),
            Request::SetMemTable(entries) => (5, table(entries)),
            Request::SetVringNum { index, log2 } => (8, state((*index).into(), size(*log2))),
            Request::SetVringState { code, index, num } => {
                let code = match code {
                    State::Num => 8,
                    State::Base => 10,
                    State::GetBase => 11,
                    State::Enable => 18,
                };
                (code, state(*index, *num))
            }
            Request::SetVringAddr {
                index,
                flags,
                off,
                log,
            } => {
                let at = ring(*index, 64).addresses();
                let off = |address: u64| address.wrapping_add_signed((*off).into());
                let addresses = [off(at.descriptors), off(at.used), off(at.available), *log];
                (9, vring_addr((*index).into(), (*flags).into(), &addresses))
            }
            Request::SetAnyVringAddr {
                index,
                flags,
                addresses,
            } => (9, vring_addr(*index, *flags, addresses)),
            Request::SetVringFile { code, index, none } => {
                let code = match code {
                    VringFile::Kick => 12,
                    VringFile::Call => 13,
                    VringFile::Err => 14,
                };
                (code, long(u64::from(*index) | u64::from(*none) << 8))
            }
            Request::SetLogBase { size, offset } => (
                6,
                [u64::from(*size), (*offset).into()]
                    .map(u64::to_ne_bytes)
                    .concat(),
            ),
            Request::GetInflight { queues, log2 } => (31, inflight(0, 0, *queues, size(*log2))),
            Request::SetInflight {
                size: bytes,
                offset,
                queues,
                log2,
            } => (
                32,
                inflight((*bytes).into(), (*offset).into(), *queues, size(*log2)),
            ),
            Request::Raw { request, body, .. } => ((*request).into(), body.clone()),
        }
    }

    /// The whole message.
    pub fn bytes(&self, need_reply: bool) -> Vec<u8> {
        let (code, mut body) = self.encode();
        let (mut flags, mut size) = (1 | u32::from(need_reply) << 3, body.len() as u32);
        if let Request::Raw {
            flags: raw,
            size: told,
            ..
        } = self
        {
            flags = (*raw).into();
            size = told.map_or(size, u32::from);
        }
        let mut message = [code, flags, size].map(u32::to_ne_bytes).concat();
        message.append(&mut body);
        message
    }

    /// May the device write somewhere between the true regions, since this message says so? `out_of_step`: its bytes
    /// may be read as another message.
    pub fn blurs(&self, descriptors: &[Descriptor], out_of_step: bool) -> bool {
        let memory = descriptors.iter().any(|d| matches!(d, Descriptor::Memory));
        match self {
            Request::SetMemTable(entries) if !out_of_step => {
                !entries.iter().all(|e| matches!(e, TableEntry::True(_)))
            }
            Request::SetLogBase { .. } | Request::SetInflight { .. } | Request::Raw { .. } => memory,
            _ => out_of_step && memory,
        }
    }

    /// Does it leave the reader in the middle of what follows?
    pub fn misstates_its_size(&self) -> bool {
        matches!(self, Request::Raw { size: Some(size), body, .. } if usize::from(*size) != body.len())
    }
}

fn table(entries: &[TableEntry]) -> Vec<u8> {
    let mut body = [entries.len() as u32, 0].map(u32::to_ne_bytes).concat();
    for entry in entries {
        let region = |i: u8| REGIONS[usize::from(i) % REGIONS.len()];
        let frontend = |guest: u64| FRONTEND.wrapping_add(guest & 0xffff_ffff);
        let words = match *entry {
            TableEntry::True(i) => {
                let r = region(i);
                [r.guest, r.size, frontend(r.guest), r.offset]
            }
            TableEntry::Lie {
                guest,
                size,
                frontend,
                offset,
            } => [guest, size, frontend, offset],
            TableEntry::Bent {
                region: i,
                guest,
                size,
                offset,
            } => {
                let r = region(i);
                [
                    r.guest.wrapping_add_signed(guest.into()),
                    r.size.wrapping_add_signed(size.into()),
                    frontend(r.guest),
                    r.offset.wrapping_add_signed(offset.into()),
                ]
            }
        };
        body.extend(words.map(u64::to_ne_bytes).concat());
    }
    body
}

fn vring_addr(index: u32, flags: u32, addresses: &[u64; 4]) -> Vec<u8> {
    let mut body = [index, flags].map(u32::to_ne_bytes).concat();
    body.extend(addresses.map(u64::to_ne_bytes).concat());
    body
}

fn inflight(size: u64, offset: u64, queues: u8, queue_size: u32) -> Vec<u8> {
    let mut body = [size, offset].map(u64::to_ne_bytes).concat();
    body.extend(
        [u16::from(queues), queue_size as u16]
            .map(u16::to_ne_bytes)
            .concat(),
    );
    body
}

/// The eventfds by which the driver kicks.
#[derive(Debug)]
pub struct Kicks([EventFd; QUEUES as usize]);

impl Default for Kicks {
    fn default() -> Self {
        Kicks(std::array::from_fn(|_| event()))
    }
}

impl Kicks {
    pub fn ring(&self, index: u8) {
        let _ = self.0[usize::from(index % QUEUES)].write(1);
    }
}

fn event() -> EventFd {
    EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)
        .expect("a descriptor is left")
}

impl Descriptor {
    fn open(self, guest: &Guest, kicks: &Kicks) -> OwnedFd {
        let memory = || guest.file.try_clone().expect("a descriptor is left");
        match self {
            Descriptor::Memory => memory().into(),
            Descriptor::ReadOnly => {
                let path = format!("/proc/self/fd/{}", guest.file.as_raw_fd());
                File::open(path).expect("an open file").into()
            }
            Descriptor::Table => memfd(4096).into(),
            Descriptor::Empty => memfd(0).into(),
            Descriptor::Kick(index) => {
                let kick = &kicks.0[usize::from(index % QUEUES)];
                std::os::fd::AsFd::as_fd(kick)
                    .try_clone_to_owned()
                    .expect("a descriptor is left")
            }
            Descriptor::Event => event().into(),
            Descriptor::Pipe { read } => {
                let (from, to) = nix::unistd::pipe().expect("descriptors are left");
                if read { from } else { to }
            }
            Descriptor::Null => File::open("/dev/null").expect("there is one").into(),
            Descriptor::Socket => UnixStream::pair().expect("descriptors are left").0.into(),
        }
    }
}

/// Sends `bytes` with `descriptors`; false: the connection is over.
pub fn send(
    socket: &UnixStream,
    bytes: &[u8],
    descriptors: &[Descriptor],
    guest: &Guest,
    kicks: &Kicks,
) -> bool {
    let files: Vec<OwnedFd> = descriptors.iter().map(|d| d.open(guest, kicks)).collect();
    let raw: Vec<i32> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(bytes)],
        control,
        MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
        None,
    )
    .is_ok()
}
