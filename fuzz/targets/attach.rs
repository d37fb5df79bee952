//! The attach protocol. The switch's side: processes that connect, say what they like, leave and die; ports are given
//! to one at a time and come back exactly once. The client's side: a switch that answers what it likes.

#![no_main]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use dpdk_vswitchd::attach::server::Server;
use dpdk_vswitchd::attach::{Admission, ClientId, Ports, Refused};
use libfuzzer_sys::fuzz_target;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, listen,
    recv, send, sendmsg, socket,
};
use vswitch_common::port::client::Connection;
use vswitch_common::port::message::{
    Attached, Detach, Grant, Hello, MAX_LEN, Message, Ready, Reason, State, Text, header,
};
use vswitch_fuzz::clients::{Client, Nursery};
use vswitch_fuzz::{leaks, process};
use zerocopy::{FromBytes, IntoBytes};

/// Processes that connect.
const CLIENTS: usize = 3;
/// Ports that there are: 0 to 3.
const PORTS: u16 = 4;

#[derive(Arbitrary, Debug)]
enum Says {
    Hello {
        port: u8,
        queues: u8,
        other_build: bool,
    },
    Ready,
    Detach,
    /// What only the switch says.
    State,
    Raw(Vec<u8>),
    /// Another message, changed in one place and cut.
    Bent {
        hello: bool,
        at: u8,
        byte: u8,
        cut: u8,
    },
}

#[derive(Arbitrary, Debug)]
enum Op {
    Connect(u8),
    Say {
        connection: u8,
        says: Says,
        descriptors: u8,
    },
    Close(u8),
    /// The process ends, with all its connections or while somebody else keeps them.
    Die {
        client: u8,
        held: bool,
    },
    Pass {
        millis: u16,
    },
    Work {
        admit: bool,
    },
    Evict(u8),
    Tell(u8),
    /// The switch has no memory for the next one.
    Exhaust(bool),
}

#[derive(Arbitrary, Debug)]
enum Input {
    Server(Vec<Op>),
    Client(Vec<Answer>),
}

#[derive(Arbitrary, Debug)]
struct Answer {
    kind: u8,
    bytes: Vec<u8>,
    descriptors: u8,
}

static NURSERY: OnceLock<Nursery> = OnceLock::new();
static START: LazyLock<Instant> = LazyLock::new(Instant::now);
static PASSED: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// Processes go on from run to run where nothing has ended them.
    static CLIENTS_AT_HAND: RefCell<Vec<Client>> = const { RefCell::new(Vec::new()) };
}

fn clock() -> Instant {
    *START + Duration::from_millis(PASSED.load(Ordering::Relaxed))
}

fn nursery() -> &'static Nursery {
    NURSERY.get().expect("opened before the first run")
}

/// The switch's ports, watching how they are given and taken.
#[derive(Default)]
struct Stub {
    attached: BTreeMap<ClientId, u16>,
    released: Vec<ClientId>,
    exhausted: bool,
}

impl Ports for Stub {
    fn check(&mut self, hello: &Hello) -> Result<Admission, Refused> {
        assert!(
            !self.attached.values().any(|&port| port == hello.port),
            "a port that is held is admitted to"
        );
        if hello.port >= PORTS {
            return Err(Refused {
                reason: Reason::NoSuchPort,
                text: format!("no port {}", hello.port),
            });
        }
        Ok(Admission {
            file_prefix: "fuzz".into(),
            runtime_dir: String::new(),
        })
    }

    fn attach(
        &mut self,
        client: ClientId,
        hello: &Hello,
        _: Option<usize>,
        send: &mut dyn FnMut(&Attached, &[BorrowedFd<'_>]) -> bool,
    ) -> Result<(), Refused> {
        assert!(
            !self.attached.values().any(|&port| port == hello.port),
            "a port is given twice"
        );
        assert!(
            !self.released.contains(&client),
            "a client is attached after its end"
        );
        if self.exhausted {
            return Err(Refused {
                reason: Reason::NoMemory,
                text: "no memory".into(),
            });
        }
        let stderr = std::io::stderr();
        let descriptors = vec![stderr.as_fd(); 2 * usize::from(hello.queues)];
        send(&Attached::new(hello.queues.into(), true, 1500), &descriptors);
        assert_eq!(
            self.attached.insert(client, hello.port),
            None,
            "a client is attached twice"
        );
        Ok(())
    }

    fn died_in_turn(&mut self, hello: &Hello) {
        assert!(
            !self.attached.values().any(|&port| port == hello.port),
            "attached, so its turn was over"
        );
    }

    fn release(&mut self, client: ClientId, _: &Hello) {
        assert!(!self.released.contains(&client), "a client is released twice");
        self.attached.remove(&client);
        self.released.push(client);
    }
}

impl Says {
    fn bytes(&self) -> Vec<u8> {
        match self {
            &Says::Hello {
                port,
                queues,
                other_build,
            } => {
                let mut hello = Hello::new(u16::from(port) % (PORTS + 1), queues.into(), "fuzz");
                if other_build {
                    hello.dpdk_version = Text::new("DPDK 1.5.2");
                }
                hello.as_bytes().to_vec()
            }
            Says::Ready => Ready {
                header: header::<Ready>(),
            }
            .as_bytes()
            .to_vec(),
            Says::Detach => Detach {
                header: header::<Detach>(),
            }
            .as_bytes()
            .to_vec(),
            Says::State => State {
                header: header::<State>(),
                carrier: 1,
                mtu: 1500,
            }
            .as_bytes()
            .to_vec(),
            Says::Raw(bytes) => bytes.clone(),
            &Says::Bent { hello, at, byte, cut } => {
                let says = if hello {
                    Says::Hello {
                        port: 1,
                        queues: 1,
                        other_build: false,
                    }
                } else {
                    Says::Ready
                };
                let mut bytes = says.bytes();
                let at = usize::from(at) % bytes.len();
                bytes[at] = byte;
                bytes.truncate(usize::from(cut).max(1));
                bytes
            }
        }
    }
}

/// A client's connection, and what it has been told.
struct Line {
    client: usize,
    socket: OwnedFd,
    granted: bool,
    attached: bool,
    refused: bool,
}

impl Line {
    fn say(&self, bytes: &[u8], descriptors: u8) {
        let raw = vec![2; usize::from(descriptors % 8)];
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let _ = sendmsg::<()>(
            self.socket.as_raw_fd(),
            &[IoSlice::new(bytes)],
            control,
            flags,
            None,
        );
    }

    /// Reads all answers: are they what the protocol allows?
    fn listen(&mut self) {
        let mut bytes = [0; MAX_LEN + 1];
        while let Ok(len @ 1..) = recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
            assert!(!self.refused, "a word after the refusal");
            match Message::parse(&bytes[..len]).expect("the switch says what can be read") {
                Message::Grant(_) => assert!(!std::mem::replace(&mut self.granted, true), "a second grant"),
                Message::Attached(_) => {
                    assert!(
                        self.granted && !std::mem::replace(&mut self.attached, true),
                        "attached out of turn"
                    );
                }
                Message::Refusal(_) => self.refused = true,
                Message::State(_) => assert!(self.attached),
                other => panic!("the switch says {other:?}"),
            }
        }
    }
}

struct Bench {
    server: Server,
    ports: Stub,
    clients: Vec<Option<Client>>,
    lines: Vec<Line>,
}

impl Bench {
    fn new() -> Bench {
        let mut at_hand = CLIENTS_AT_HAND.take();
        at_hand.resize_with(CLIENTS, || nursery().client());
        Bench {
            server: Server::listen(&nursery().socket())
                .expect("a socket")
                .with_clock(clock),
            ports: Stub::default(),
            clients: at_hand.into_iter().map(Some).collect(),
            lines: Vec::new(),
        }
    }

    fn connect(&mut self, client: usize) {
        // One that the switch has killed makes room for the next.
        let process = self.clients[client].get_or_insert_with(|| nursery().client());
        let socket = process.connect().or_else(|| {
            *process = nursery().client();
            process.connect()
        });
        if let Some(socket) = socket {
            self.lines.push(Line {
                client,
                socket,
                granted: false,
                attached: false,
                refused: false,
            });
        }
    }

    fn line(&mut self, connection: u8) -> Option<&mut Line> {
        let count = self.lines.len().max(1);
        self.lines.get_mut(usize::from(connection) % count)
    }

    fn attached(&self, index: u8) -> Option<ClientId> {
        self.ports.attached.keys().cycle().nth(index.into()).copied()
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Connect(client) => self.connect(usize::from(*client) % CLIENTS),
            Op::Say {
                connection,
                says,
                descriptors,
            } => {
                if let Some(line) = self.line(*connection) {
                    line.say(&says.bytes(), *descriptors);
                }
            }
            Op::Close(connection) => {
                if !self.lines.is_empty() {
                    let at = usize::from(*connection) % self.lines.len();
                    self.lines.swap_remove(at);
                }
            }
            Op::Die { client, held } => {
                let client = usize::from(*client) % CLIENTS;
                self.clients[client] = None;
                if !held {
                    self.lines.retain(|line| line.client != client);
                }
            }
            Op::Pass { millis } => {
                PASSED.fetch_add((*millis).into(), Ordering::Relaxed);
            }
            Op::Work { admit } => self.work(*admit),
            Op::Evict(index) => {
                if let Some(id) = self.attached(*index) {
                    self.server.evict(
                        id,
                        &Refused {
                            reason: Reason::Removed,
                            text: "removed".into(),
                        },
                    );
                }
            }
            // A client that is on its way out is told nothing.
            Op::Tell(index) => {
                if let Some(id) = self.attached(*index) {
                    self.server.tell_state(id, false, 9000);
                }
            }
            Op::Exhaust(exhausted) => self.ports.exhausted = *exhausted,
        }
        self.lines.iter_mut().for_each(Line::listen);
    }

    fn work(&mut self, admit: bool) {
        self.server.work(&mut self.ports, admit);
        let _ = self.server.deadline();
    }

    /// Everybody leaves, and who does not is made to: nothing stays behind.
    fn finish(mut self) {
        self.lines.clear();
        let end = Instant::now() + Duration::from_secs(8);
        loop {
            PASSED.fetch_add(1000, Ordering::Relaxed);
            self.work(true);
            // The listening socket is all there is to wait for.
            if self.server.descriptors().count() == 1 {
                break;
            }
            assert!(Instant::now() < end, "a connection is left for ever");
            std::thread::yield_now();
        }
        assert!(self.ports.attached.is_empty(), "a client is never released");
        assert!(!self.server.turn_is_taken());
        CLIENTS_AT_HAND.set(self.clients.into_iter().flatten().collect());
    }
}

fn server(ops: &[Op]) {
    let mut bench = Bench::new();
    for op in ops {
        bench.apply(op);
    }
    bench.finish();
}

/// Packets from a switch, sound in their first words or not at all.
fn client(answers: &[Answer]) {
    let path = nursery().socket();
    let _ = std::fs::remove_file(&path);
    let flags = SockFlag::SOCK_CLOEXEC;
    let listener =
        socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).expect("a descriptor is left");
    bind(listener.as_raw_fd(), &UnixAddr::new(&path).expect("short")).expect("its place is free");
    listen(&listener, Backlog::new(1).expect("one")).expect("a socket that listens");
    let connection = Connection::open(&path, &Hello::new(1, 1, "fuzz")).expect("somebody listens");
    let accepted = accept4(listener.as_raw_fd(), flags).expect("it waits");
    // SAFETY: a fresh descriptor that nobody else owns.
    let near = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(accepted) };
    for answer in answers {
        let mut bytes = match answer.kind % 4 {
            0 => answer.bytes.clone(),
            1 => Grant::read_from_bytes(&[0; size_of::<Grant>()])
                .expect("as long")
                .as_bytes()
                .to_vec(),
            2 => Attached::new(answer.kind.into(), true, 1500).as_bytes().to_vec(),
            _ => State {
                header: header::<State>(),
                carrier: 1,
                mtu: 1500,
            }
            .as_bytes()
            .to_vec(),
        };
        if answer.kind % 4 == 1 {
            bytes[..8].copy_from_slice(header::<Grant>().as_bytes());
            bytes
                .iter_mut()
                .skip(8)
                .zip(&answer.bytes)
                .for_each(|(to, from)| *to = *from);
        }
        let _ = Message::parse(&bytes);
        let raw = vec![2; usize::from(answer.descriptors)];
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[][..] } else { &rights[..] };
        let _ = sendmsg::<()>(
            near.as_raw_fd(),
            &[IoSlice::new(&bytes)],
            control,
            MsgFlags::MSG_DONTWAIT,
            None,
        );
    }
    let _ = send(near.as_raw_fd(), &[], MsgFlags::MSG_DONTWAIT);
    drop(near);
    match connection.wait() {
        Ok(turn) => drop(turn.file_prefix()),
        Err(why) => drop(why.to_string()),
    }
}

fuzz_target!(
    init: {
        process::prepare();
        let _ = NURSERY.set(Nursery::open());
    },
    |input: Input| {
        leaks::check(|| match &input {
            Input::Server(ops) => server(ops),
            Input::Client(answers) => client(answers),
        });
    }
);
