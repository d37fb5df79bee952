//! Connections of the attach socket, and the state each is in.
//!
//! ```text
//! Silent --Hello--> Waiting --turn--> Initialising --Ready--> Attached
//!                                          \____________________/ closed, evicted or Detach
//!                                                     Ending --process dead--> released
//! ```
//! A client that may touch shared memory (Initialising, Attached) is released only when its process is dead or it
//! has said Detach: a stopped or slow process could still write into mbufs that it owned. One that stays alive
//! without its connection is killed after [`GRACE`].

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use vswitch_common::eal;
use vswitch_common::fault::{self, Point};
use vswitch_common::port::message::{
    Grant, Hello, MAX_LEN, Malformed, Message, NAME_LEN, Reason, Refusal, State, TEXT_LEN, Text, header,
};
use vswitch_common::port::{MAX_QUEUES, VERSION};
use vswitch_common::stats::layout::MAX_PORTS;
use zerocopy::IntoBytes;

use super::outside::{Outside, Unix};
use super::{ClientId, Ports, Refused};

/// Connections held at a time, for each port its client and one that waits to be; the oldest silent one makes room.
const MAX_CONNECTIONS: usize = 2 * MAX_PORTS;
/// Before another try to let somebody in for whom there was no room.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);
/// Connections accepted before those that are there have their turn.
const ACCEPTED_AT_ONCE: usize = 32;
/// Messages read from a connection before the next one has its turn.
const MESSAGES_AT_ONCE: usize = 8;
/// Time for the first word.
const HELLO_TIME: Duration = Duration::from_secs(5);
/// Time to initialise EAL. That takes some 20 ms, but more with a lot of memory to map, and far more where CPUs are
/// short. Nobody else can attach meanwhile.
const INIT_TIME: Duration = Duration::from_secs(5);
/// Time for a process to end by itself after its connection has.
const GRACE: Duration = Duration::from_millis(300);
/// Before another try at a process that could not be killed.
const KILL_AGAIN: Duration = Duration::from_secs(5);

/// The attach socket and its connections.
#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
pub struct Server<O: Outside = Unix> {
    outside: O,
    connections: BTreeMap<ClientId, Connection<O::Socket, O::Process>>,
    next: u64,
    /// Who initialises EAL now.
    turn: Option<ClientId>,
    /// Who waits for the turn, or for a port whose last client is on its way out.
    waiting: VecDeque<ClientId>,
    /// There was no room for another connection; until then nobody is let in.
    full_until: Option<Instant>,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
struct Connection<S, P> {
    socket: S,
    /// Known from its hello on.
    process: Option<P>,
    stage: Stage,
}

#[derive(Debug)]
#[cfg_attr(test, derive(Clone))]
enum Stage {
    Silent {
        until: Instant,
    },
    Waiting(Hello),
    Initialising {
        hello: Hello,
        until: Instant,
    },
    Attached(Hello),
    /// `open`: its connection may still bring a Detach.
    Ending {
        hello: Hello,
        kill_at: Option<Instant>,
        open: bool,
    },
}

impl Stage {
    /// The hello of a client that was admitted: it may touch shared memory.
    fn admitted(&self) -> Option<&Hello> {
        match self {
            Stage::Silent { .. } | Stage::Waiting(_) => None,
            Stage::Initialising { hello, .. } | Stage::Attached(hello) | Stage::Ending { hello, .. } => {
                Some(hello)
            }
        }
    }
}

/// Something that [`Server::work`] waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaited<S, P> {
    Listener,
    Socket(S),
    Process(P),
}

impl Server {
    /// Listens at `path`, in place of a dead switch's socket.
    ///
    /// # Errors
    /// The socket can't be made there.
    pub fn listen(path: &Path) -> nix::Result<Server> {
        Ok(Server::new(Unix::listen(path)?))
    }

    /// Takes the time from `clock`: for tests that don't wait for it to pass.
    #[must_use]
    pub fn with_clock(mut self, clock: fn() -> Instant) -> Server {
        self.outside.clock = clock;
        self
    }

    /// What to poll for input.
    pub fn descriptors(&self) -> impl Iterator<Item = PollFd<'_>> {
        let descriptor = |awaited| match awaited {
            Awaited::Listener => self.outside.listener(),
            Awaited::Socket(socket) => AsFd::as_fd(socket),
            Awaited::Process(process) => AsFd::as_fd(process),
        };
        self.awaited()
            .map(move |awaited| PollFd::new(descriptor(awaited), PollFlags::POLLIN))
    }
}

impl<O: Outside> Server<O> {
    fn new(outside: O) -> Server<O> {
        Server {
            outside,
            connections: BTreeMap::new(),
            next: 0,
            turn: None,
            waiting: VecDeque::new(),
            full_until: None,
        }
    }

    /// What may bring something to do.
    fn awaited(&self) -> impl Iterator<Item = Awaited<&O::Socket, &O::Process>> {
        let connections = self.connections.values().flat_map(|c| {
            let socket = (!matches!(c.stage, Stage::Ending { open: false, .. })).then_some(&c.socket);
            // A process matters when its end releases a port.
            let process = c.stage.admitted().and(c.process.as_ref());
            let socket = socket.map(Awaited::Socket);
            socket.into_iter().chain(process.map(Awaited::Process))
        });
        let listener = self.full_until.is_none().then_some(Awaited::Listener);
        listener.into_iter().chain(connections)
    }

    /// When [`Server::work`] has something to do at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        self.connections
            .values()
            .filter_map(|c| match c.stage {
                Stage::Silent { until } | Stage::Initialising { until, .. } => Some(until),
                Stage::Ending { kill_at, .. } => kill_at,
                Stage::Waiting(_) | Stage::Attached(_) => None,
            })
            .chain(self.full_until)
            .min()
    }

    /// Everybody has `by` more time: the machine, or just this process, stood still.
    pub fn postpone(&mut self, by: Duration) {
        for connection in self.connections.values_mut() {
            match &mut connection.stage {
                Stage::Silent { until } | Stage::Initialising { until, .. } => *until += by,
                Stage::Ending {
                    kill_at: Some(kill_at),
                    ..
                } => *kill_at += by,
                Stage::Waiting(_) | Stage::Attached(_) | Stage::Ending { kill_at: None, .. } => {}
            }
        }
    }

    /// May a client be inside EAL's initialisation now, where it holds locks that DPDK's allocator takes as well?
    pub fn turn_is_taken(&self) -> bool {
        self.turn.is_some()
    }

    /// Does all that can be done now; lets another client initialise EAL if `admit`. Never blocks.
    pub fn work(&mut self, ports: &mut impl Ports, admit: bool) {
        // Those on their way out first: who comes after them may want their port.
        let ids: Vec<ClientId> = self.connections.keys().copied().collect();
        for id in ids {
            self.read(id, ports);
        }
        self.reap(ports);
        self.accept();
        if admit {
            self.give_turn(ports);
        }
    }

    fn accept(&mut self) {
        let now = self.outside.now();
        if self.full_until.is_some_and(|at| at > now) {
            return;
        }
        let was_full = self.full_until.take().is_some();
        // Bounded: clients that only ever connect must not keep the others waiting.
        for _ in 0..ACCEPTED_AT_ONCE {
            if self.connections.len() >= MAX_CONNECTIONS && !self.drop_oldest_silent() {
                self.full_until = Some(now + ACCEPT_AGAIN);
                return;
            }
            match self.outside.accept() {
                Ok(socket) => {
                    let stage = Stage::Silent {
                        until: now + HELLO_TIME,
                    };
                    self.connections.insert(
                        ClientId(self.next),
                        Connection {
                            socket,
                            process: None,
                            stage,
                        },
                    );
                    self.next += 1;
                }
                Err(Errno::EMFILE | Errno::ENFILE) if self.drop_oldest_silent() => {}
                Err(Errno::EAGAIN) => return,
                // Gone again.
                Err(Errno::ECONNABORTED | Errno::EINTR) => {}
                // It is still there, and would wake this thread at once.
                Err(e) => {
                    if !was_full {
                        log::warn!("a client can't be let in: {e}; trying again every {ACCEPT_AGAIN:?}");
                    }
                    self.full_until = Some(now + ACCEPT_AGAIN);
                    return;
                }
            }
        }
    }

    /// Makes room; false where every connection has said hello.
    fn drop_oldest_silent(&mut self) -> bool {
        let silent = self
            .connections
            .iter()
            .find(|(_, c)| matches!(c.stage, Stage::Silent { .. }));
        let id = silent.map(|(id, _)| *id);
        id.is_some_and(|id| self.connections.remove(&id).is_some())
    }

    /// Reads what client `id` has sent.
    fn read(&mut self, id: ClientId, ports: &mut impl Ports) {
        // Bounded: a client that never stops talking must not keep the others waiting.
        for _ in 0..MESSAGES_AT_ONCE {
            let Some(connection) = self.connections.get_mut(&id) else {
                return;
            };
            if matches!(connection.stage, Stage::Ending { open: false, .. }) {
                return;
            }
            let mut bytes = [0u8; MAX_LEN + 1];
            match self.outside.receive(&connection.socket, &mut bytes) {
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                Ok(0) | Err(_) => return self.close(id, false, ports),
                Ok(len) => match Message::parse(&bytes[..len]) {
                    Ok(message) => self.handle(id, message, ports),
                    Err(e) => {
                        self.refuse(id, &unreadable(e));
                        return self.close(id, false, ports);
                    }
                },
            }
        }
    }

    fn handle(&mut self, id: ClientId, message: Message, ports: &mut impl Ports) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        match (message, &connection.stage) {
            (Message::Hello(hello), Stage::Silent { .. }) => {
                let process = self.outside.process(&connection.socket);
                if process.is_none() {
                    self.refuse(id, &invisible());
                    return self.close(id, false, ports);
                }
                connection.process = process;
                connection.stage = Stage::Waiting(hello);
                self.waiting.push_back(id);
            }
            (Message::Ready(_), &Stage::Initialising { hello, .. }) => {
                connection.stage = Stage::Attached(hello);
                self.turn = None;
                self.attach(id, &hello, ports);
            }
            // Not from inside EAL's initialisation: only its death ends that.
            (Message::Detach(_), Stage::Attached(_) | Stage::Ending { .. }) if self.turn != Some(id) => {
                self.close(id, true, ports);
            }
            // It has not read yet that it must go.
            (_, Stage::Ending { .. }) => {}
            (message, _) => {
                let text = format!("out of turn on the attach socket: {message:?}");
                log::debug!("client {}: {text}", id.0);
                self.refuse(
                    id,
                    &Refused {
                        reason: Reason::Malformed,
                        text: "message out of turn".into(),
                    },
                );
                self.close(id, false, ports);
            }
        }
    }

    fn attach(&mut self, id: ClientId, hello: &Hello, ports: &mut impl Ports) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        let (outside, socket) = (&mut self.outside, &connection.socket);
        let node = connection.process.as_ref().and_then(|p| outside.node(p));
        let result = ports.attach(id, hello, node, &mut |answer, fds| {
            outside.send(socket, answer.as_bytes(), fds)
        });
        if let Err(refused) = result {
            self.refuse(id, &refused);
            self.end(id);
        }
    }

    /// Lets the next client initialise EAL, if nobody does; tells those who can't have their port.
    fn give_turn(&mut self, ports: &mut impl Ports) {
        let mut later = VecDeque::new();
        while let Some(id) = self.waiting.pop_front() {
            let Some(&Stage::Waiting(hello)) = self.connections.get(&id).map(|c| &c.stage) else {
                continue;
            };
            match self.holder(&hello) {
                Some(true) => later.push_back(id),
                Some(false) => {
                    let who = self.describe_holder(&hello);
                    let text = format!("port {} is taken: {who} is attached to it", hello.port);
                    self.refuse(
                        id,
                        &Refused {
                            reason: Reason::PortTaken,
                            text,
                        },
                    );
                    self.connections.remove(&id);
                }
                None => match check_build(&hello).and_then(|()| ports.check(&hello)) {
                    Err(refused) => {
                        self.refuse(id, &refused);
                        self.connections.remove(&id);
                    }
                    Ok(_) if self.turn.is_some() => later.push_back(id),
                    Ok(admission) => {
                        let grant = Grant {
                            header: header::<Grant>(),
                            file_prefix: Text::<NAME_LEN>::new(&admission.file_prefix),
                            runtime_dir: Text::<TEXT_LEN>::new(&admission.runtime_dir),
                        };
                        let Some(connection) = self.connections.get_mut(&id) else {
                            continue;
                        };
                        if self.outside.send(&connection.socket, grant.as_bytes(), &[]) {
                            connection.stage = Stage::Initialising {
                                hello,
                                until: self.outside.now() + INIT_TIME,
                            };
                            self.turn = Some(id);
                            fault::point(Point::TurnGiven);
                        } else {
                            self.connections.remove(&id);
                        }
                    }
                },
            }
        }
        self.waiting = later;
    }

    /// Does someone hold the port that `hello` asks for? `Some(true)`: it is on its way out.
    fn holder(&self, hello: &Hello) -> Option<bool> {
        self.connections
            .values()
            .find(|c| c.stage.admitted().is_some_and(|h| h.port == hello.port))
            .map(|c| matches!(c.stage, Stage::Ending { .. }))
    }

    fn describe_holder(&self, hello: &Hello) -> String {
        let holder = self.connections.values().find_map(|c| {
            let held = c.stage.admitted().filter(|h| h.port == hello.port)?;
            let name = Some(held.name.get())
                .filter(|n| !n.is_empty())
                .unwrap_or_else(|| "a client".into());
            Some(match &c.process {
                Some(p) => format!("{name} (process {})", self.outside.pid(p)),
                None => name,
            })
        });
        holder.unwrap_or_else(|| "a client".into())
    }

    /// Ends connections whose process is dead or whose time is up.
    fn reap(&mut self, ports: &mut impl Ports) {
        let now = self.outside.now();
        let ids: Vec<ClientId> = self.connections.keys().copied().collect();
        for id in ids {
            let Some(connection) = self.connections.get_mut(&id) else {
                continue;
            };
            match &mut connection.stage {
                Stage::Silent { until } if *until <= now => drop(self.connections.remove(&id)),
                Stage::Initialising { until, hello } if *until <= now => {
                    let port = hello.port;
                    log::warn!(
                        "port {port}: the client did not initialise EAL within {INIT_TIME:?}; evicted"
                    );
                    self.end(id);
                }
                Stage::Ending { kill_at, hello, .. } => {
                    let hello = *hello;
                    let overdue = kill_at.is_some_and(|at| at <= now);
                    match &connection.process {
                        Some(process) if self.outside.is_dead(process) => self.release(id, &hello, ports),
                        Some(process) if overdue => {
                            let done = kill(&mut self.outside, process, hello.port);
                            *kill_at = (!done).then_some(now + KILL_AGAIN);
                        }
                        _ => {}
                    }
                }
                // Its process has ended though somebody else keeps the connection open.
                Stage::Initialising { .. } | Stage::Attached(_)
                    if connection
                        .process
                        .as_ref()
                        .is_some_and(|p| self.outside.is_dead(p)) =>
                {
                    self.hang_up(id);
                }
                _ => {}
            }
        }
    }

    /// The client has closed its connection, or has to be parted with.
    fn close(&mut self, id: ClientId, detached: bool, ports: &mut impl Ports) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        match connection.stage.admitted().copied() {
            Some(hello) if detached => self.release(id, &hello, ports),
            Some(_) => self.hang_up(id),
            None => drop(self.connections.remove(&id)),
        }
    }

    /// Parts with an admitted client; it is released when its process is dead, or when it says Detach.
    fn end(&mut self, id: ClientId) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let Some(hello) = connection.stage.admitted().copied() else {
            return;
        };
        if !matches!(connection.stage, Stage::Ending { .. }) {
            self.outside.finish(&connection.socket);
            connection.stage = Stage::Ending {
                hello,
                kill_at: Some(self.outside.now() + GRACE),
                open: true,
            };
        }
    }

    /// Nothing more comes from this client.
    fn hang_up(&mut self, id: ClientId) {
        self.end(id);
        if let Some(Stage::Ending { open, .. }) = self.connections.get_mut(&id).map(|c| &mut c.stage) {
            *open = false;
        }
    }

    fn release(&mut self, id: ClientId, hello: &Hello, ports: &mut impl Ports) {
        self.connections.remove(&id);
        if self.turn == Some(id) {
            self.turn = None;
            ports.died_in_turn(hello);
        }
        ports.release(id, hello);
    }

    fn refuse(&mut self, id: ClientId, refused: &Refused) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        log::debug!("client {}: {}", id.0, refused.text);
        let refusal = Refusal {
            header: header::<Refusal>(),
            reason: refused.reason as u32,
            text: Text::new(&refused.text),
        };
        self.outside.send(&connection.socket, refusal.as_bytes(), &[]);
    }

    /// Ends the attachment of client `id` and tells it why.
    pub fn evict(&mut self, id: ClientId, refused: &Refused) {
        self.refuse(id, refused);
        self.end(id);
    }

    /// Ends every attachment and tells each client why. Nobody else is admitted if [`Server::work`] isn't told to.
    pub fn evict_all(&mut self, refused: &Refused) {
        let admitted = |c: &Connection<O::Socket, O::Process>| c.stage.admitted().is_some();
        let ids: Vec<ClientId> = self
            .connections
            .iter()
            .filter(|(_, c)| admitted(c))
            .map(|(id, _)| *id)
            .collect();
        ids.into_iter().for_each(|id| self.evict(id, refused));
    }

    /// Is there a client that may touch shared memory?
    pub fn has_clients(&self) -> bool {
        self.connections.values().any(|c| c.stage.admitted().is_some())
    }

    /// Tells client `id` the state of its port.
    pub fn tell_state(&mut self, id: ClientId, carrier: bool, mtu: u32) {
        if let Some(connection) = self.connections.get(&id) {
            let state = State {
                header: header::<State>(),
                carrier: carrier.into(),
                mtu,
            };
            self.outside.send(&connection.socket, state.as_bytes(), &[]);
        }
    }
}

/// Without a look at its process, nobody could tell when a client's mbufs are safe to take back.
fn invisible() -> Refused {
    Refused {
        reason: Reason::Invisible,
        text: "the switch can't see this client's process: run both in one PID namespace, or the client in one below the \
               switch's"
            .into(),
    }
}

/// What a client is told whose message can't be read.
fn unreadable(why: Malformed) -> Refused {
    match why {
        Malformed::Version(theirs) => Refused {
            reason: Reason::VersionMismatch,
            text: format!(
                "the switch speaks version {VERSION} of the client-port protocol, this client version {theirs}; install \
                 the same release on both sides"
            ),
        },
        other => Refused {
            reason: Reason::Malformed,
            text: format!("malformed message on the attach socket: {other}"),
        },
    }
}

/// Ends a process that goes on without its connection. False: this user may not.
fn kill<O: Outside>(outside: &mut O, process: &O::Process, port: u16) -> bool {
    let pid = outside.pid(process);
    let done = outside.kill(process);
    if done {
        log::warn!("port {port}: client process {pid} goes on without its connection; killed");
    } else {
        log::error!(
            "port {port}: client process {pid} goes on without its connection, and this user can't kill it; end it: the \
             port waits for that, and if it was about to start, so do all other clients and changes of the configuration"
        );
    }
    done
}

/// The client must run the same DPDK: the headers of mbufs and rings are shared.
fn check_build(hello: &Hello) -> Result<(), Refused> {
    let (ours, theirs) = (eal::version(), hello.dpdk_version.get());
    if ours != theirs || hello.mbuf_size as usize != vswitch_common::mbuf::HEADER_LEN {
        let text = format!(
            "the switch runs {ours}, this client {theirs} (mbuf header {} bytes); install the same DPDK on both sides \
             (docs/guide.md, Upgrade)",
            hello.mbuf_size
        );
        return Err(Refused {
            reason: Reason::DpdkMismatch,
            text,
        });
    }
    if hello.queues == 0 || usize::from(hello.queues) > MAX_QUEUES {
        let text = format!(
            "{} queue pairs asked for; 1 to {MAX_QUEUES} are possible",
            hello.queues
        );
        return Err(Refused {
            reason: Reason::TooManyQueues,
            text,
        });
    }
    Ok(())
}

#[cfg(test)]
#[path = "server_model.rs"]
mod model;
