//! Messages of the attach socket (`attach.sock`, SOCK_SEQPACKET): one struct a packet, fixed sizes, host byte order.
//!
//! ```text
//! client                         switch
//!   Hello  ───────────────────────>      port, queue pairs, DPDK build, protocol version
//!          <───────────────────────  Grant      your turn to initialise EAL   (or Refusal, and the socket closes)
//!   Ready  ───────────────────────>      EAL is up
//!          <───────────────────────  Attached   addresses, two doorbells per queue pair
//!          <───────────────────────  State      carrier, MTU; again when they change
//!   Detach ───────────────────────>      the client has stopped touching shared memory
//! ```
//! A closed socket means the same as death. Every message is checked by [`Message::parse`] before anything uses it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::MAX_QUEUES;

/// First word of every message: "DVSP".
pub const MAGIC: u32 = u32::from_le_bytes(*b"DVSP");

/// Bytes of a short text field, padded with NULs.
pub const NAME_LEN: usize = 64;
/// Bytes of a path or an error text.
pub const TEXT_LEN: usize = 256;

/// Starts every message.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Header {
    pub magic: u32,
    pub kind: u16,
    /// Low 16 bits of [`super::VERSION`].
    pub version: u16,
}

/// A NUL-padded text of `N` bytes.
#[repr(transparent)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Text<const N: usize>([u8; N]);

impl<const N: usize> Text<N> {
    /// `text`, cut at a character boundary where it is too long.
    pub fn new(text: &str) -> Text<N> {
        let mut end = text.len().min(N - 1);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let mut bytes = [0; N];
        bytes[..end].copy_from_slice(&text.as_bytes()[..end]);
        Text(bytes)
    }

    /// The text up to the first NUL, with what is not printable replaced: it goes into logs.
    pub fn get(&self) -> String {
        let end = self.0.iter().position(|&b| b == 0).unwrap_or(N);
        String::from_utf8_lossy(&self.0[..end])
            .chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect()
    }
}

/// Client: I want this port.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Hello {
    pub header: Header,
    pub port: u16,
    pub queues: u16,
    /// `sizeof(struct rte_mbuf)` of the client's build.
    pub mbuf_size: u32,
    /// What `rte_version()` says in the client.
    pub dpdk_version: Text<NAME_LEN>,
    /// Who it is, for logs: the VM's name.
    pub name: Text<NAME_LEN>,
}

/// Switch: initialise EAL now, with these settings.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Grant {
    pub header: Header,
    /// EAL's `--file-prefix` of the primary.
    pub file_prefix: Text<NAME_LEN>,
    /// EAL's run-time directory of the primary: the parent goes into `RUNTIME_DIRECTORY`. Empty: the default.
    pub runtime_dir: Text<TEXT_LEN>,
}

/// Switch: no. The socket closes after this.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Refusal {
    pub header: Header,
    /// A [`Reason`].
    pub reason: u32,
    pub text: Text<TEXT_LEN>,
}

/// Client: EAL is up.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Ready {
    pub header: Header,
}

/// Where the parts of a queue pair lie; the same addresses in every process of this DPDK instance.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct QueueAddresses {
    pub alloc: u64,
    pub tx: u64,
    pub rx: u64,
    pub free: u64,
    pub control: u64,
}

/// Switch: you are attached. Comes with `2 * queues` pipe ends: for each queue pair the writing end that wakes the
/// switch, then the reading end that wakes the client.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Attached {
    pub header: Header,
    pub queues: u32,
    /// Slots of the alloc, tx, rx and free rings.
    pub ring_sizes: [u32; 4],
    /// Carrier of the port: 1 up, 0 down.
    pub carrier: u32,
    /// Bytes of payload behind the Ethernet header.
    pub mtu: u32,
    reserved: u32,
    pub queue: [QueueAddresses; MAX_QUEUES],
}

/// Switch: the port's state changed.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct State {
    pub header: Header,
    pub carrier: u32,
    pub mtu: u32,
}

/// Client: I have stopped; take everything back.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Detach {
    pub header: Header,
}

/// Why the switch refuses or ends an attachment.
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    NoSuchPort = 1,
    PortTaken = 2,
    DpdkMismatch = 3,
    VersionMismatch = 4,
    TooManyQueues = 5,
    NoMemory = 6,
    Removed = 7,
    Misbehaved = 8,
    Malformed = 9,
    ShuttingDown = 10,
    Invisible = 11,
}

/// A struct that travels as one message.
pub trait Packet: FromBytes + IntoBytes + Immutable + KnownLayout + Copy {
    const KIND: u16;
}

macro_rules! packets {
    ($($kind:literal $name:ident,)*) => {
        $(impl Packet for $name { const KIND: u16 = $kind; })*

        /// Any message, parsed.
        #[derive(Debug, Clone, Copy)]
        #[allow(clippy::large_enum_variant)]
        pub enum Message { $($name($name),)* }

        impl Message {
            /// Reads one packet off the socket.
            ///
            /// # Errors
            /// Not ours, another protocol version, an unknown kind, or the wrong length for its kind.
            pub fn parse(bytes: &[u8]) -> Result<Message, Malformed> {
                let (header, _) = Header::read_from_prefix(bytes).map_err(|_| Malformed::Short(bytes.len()))?;
                if header.magic != MAGIC {
                    return Err(Malformed::Magic(header.magic));
                }
                if u32::from(header.version) != super::VERSION {
                    return Err(Malformed::Version(header.version));
                }
                match header.kind {
                    $($kind => $name::read_from_bytes(bytes).map(Message::$name)
                        .map_err(|_| Malformed::Length { kind: header.kind, len: bytes.len() }),)*
                    other => Err(Malformed::Kind(other)),
                }
            }
        }
    };
}

packets! {
    1 Hello,
    2 Grant,
    3 Refusal,
    4 Ready,
    5 Attached,
    6 State,
    7 Detach,
}

/// Bytes of the longest message.
pub const MAX_LEN: usize = size_of::<Attached>();

/// Why a packet is no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("a packet of {0} bytes is shorter than a header")]
    Short(usize),
    #[error("the packet starts with {0:#010x}, not with the protocol's magic")]
    Magic(u32),
    #[error("the peer speaks version {0} of the client-port protocol, this side speaks {version}", version = super::VERSION)]
    Version(u16),
    #[error("message kind {0} is unknown")]
    Kind(u16),
    #[error("message kind {kind} with {len} bytes has the wrong length")]
    Length { kind: u16, len: usize },
}

/// The header of a message of type `P`.
pub fn header<P: Packet>() -> Header {
    Header {
        magic: MAGIC,
        kind: P::KIND,
        version: super::VERSION as u16,
    }
}

impl Hello {
    /// A hello of this build.
    pub fn new(port: u16, queues: u16, name: &str) -> Hello {
        Hello {
            header: header::<Hello>(),
            port,
            queues,
            mbuf_size: size_of::<dpdk_sys::rte_mbuf>() as u32,
            dpdk_version: Text::new(&crate::eal::version()),
            name: Text::new(name),
        }
    }
}

impl Attached {
    /// An answer with no addresses filled in.
    pub fn new(queues: u32, carrier: bool, mtu: u32) -> Attached {
        Attached {
            header: header::<Attached>(),
            queues,
            ring_sizes: [
                super::ALLOC_RING_SIZE,
                super::TX_RING_SIZE,
                super::RX_RING_SIZE,
                super::FREE_RING_SIZE,
            ],
            carrier: carrier.into(),
            mtu,
            reserved: 0,
            queue: Default::default(),
        }
    }
}

const _: () = assert!(size_of::<Hello>() == 144);
const _: () = assert!(size_of::<Grant>() == 328);
const _: () = assert!(size_of::<Refusal>() == 268);
const _: () = assert!(size_of::<Attached>() == 40 + 40 * MAX_QUEUES);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_hello_survives_the_wire() {
        let hello = Hello::new(7, 2, "Client 7");
        match Message::parse(hello.as_bytes()) {
            Ok(Message::Hello(h)) => {
                assert_eq!((h.port, h.queues, h.name.get()), (7, 2, "Client 7".to_owned()));
                assert!(
                    h.dpdk_version.get().starts_with("DPDK 2"),
                    "{:?}",
                    h.dpdk_version.get()
                );
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_fault_has_its_name() {
        let hello = Hello::new(1, 1, "x");
        let bytes = hello.as_bytes();
        assert_eq!(Message::parse(&bytes[..5]).unwrap_err(), Malformed::Short(5));
        assert_eq!(
            Message::parse(&bytes[..100]).unwrap_err(),
            Malformed::Length { kind: 1, len: 100 }
        );
        let mut other = bytes.to_vec();
        other[6] = 9;
        assert_eq!(Message::parse(&other).unwrap_err(), Malformed::Version(9));
        other[6] = bytes[6];
        other[4] = 77;
        assert_eq!(Message::parse(&other).unwrap_err(), Malformed::Kind(77));
        other[0] = 0;
        assert!(matches!(Message::parse(&other), Err(Malformed::Magic(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..800), kind in 0u16..9) {
            let _ = Message::parse(&bytes);
            let mut framed = Header { magic: MAGIC, kind, version: super::super::VERSION as u16 }.as_bytes().to_vec();
            framed.extend(&bytes);
            if let Ok(Message::Hello(h)) = Message::parse(&framed) {
                prop_assert!(h.name.get().len() <= 3 * NAME_LEN);
            }
        }

        #[test]
        fn texts_are_cut_at_a_character(text in "\\PC*") {
            let cut = Text::<16>::new(&text).get();
            prop_assert!(text.starts_with(&cut) && cut.len() < 16);
        }
    }
}
