//! Every order of messages, hang-ups, deaths, evictions and time-outs of a few clients that keep to no rule, against
//! what the attach server promises. The server is the real one, its [`Outside`] a model; all states that it can come
//! to are visited, each once.

use std::collections::{HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use vswitch_common::port::message::{Attached, Detach, Ready};

use super::*;
use crate::attach::Admission;

/// What a client may say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Word {
    Hello,
    Ready,
    Detach,
}

/// A process with one connection.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Client {
    port: u16,
    /// Says nothing out of turn.
    honest: bool,
    visible: bool,
    alive: bool,
    killed: bool,
    connected: bool,
    closed: bool,
    /// Takes nothing that is sent to it.
    deaf: bool,
    /// What the server has not read yet.
    said: VecDeque<Word>,
    greeted: bool,
    granted: bool,
    ready: bool,
    attached: bool,
    detached: bool,
    answered: bool,
}

impl Client {
    fn gone(&self) -> bool {
        self.closed || !self.alive
    }

    /// May it be inside EAL's initialisation now, and hold locks?
    fn initialises(&self) -> bool {
        self.alive && self.granted && !self.ready
    }

    fn may_say(&self, word: Word) -> bool {
        let in_turn = match word {
            Word::Hello => !self.greeted,
            Word::Ready => self.granted && !self.ready,
            Word::Detach => self.attached && !self.detached,
        };
        in_turn || !self.honest
    }

    /// May it write into its port's mbufs?
    fn holds(&self) -> bool {
        self.alive && self.attached && !self.detached
    }
}

#[derive(Debug, Clone)]
struct World {
    start: Instant,
    passed: Duration,
    clients: Vec<Client>,
    backlog: VecDeque<usize>,
    /// The switch has no file descriptor left.
    exhausted: bool,
}

impl Outside for World {
    type Socket = usize;
    type Process = usize;

    fn now(&self) -> Instant {
        self.start + self.passed
    }

    fn accept(&mut self) -> nix::Result<usize> {
        if self.exhausted && !self.backlog.is_empty() {
            return Err(Errno::EMFILE);
        }
        self.backlog.pop_front().ok_or(Errno::EAGAIN)
    }

    fn receive(&mut self, &socket: &usize, bytes: &mut [u8]) -> nix::Result<usize> {
        let client = &mut self.clients[socket];
        let mut put = |message: &[u8]| {
            bytes[..message.len()].copy_from_slice(message);
            Ok(message.len())
        };
        match client.said.pop_front() {
            None if client.gone() => Ok(0),
            None => Err(Errno::EAGAIN),
            Some(Word::Hello) => {
                client.greeted = true;
                put(Hello::new(client.port, 1, "").as_bytes())
            }
            Some(Word::Ready) => {
                client.ready |= client.granted;
                let header = header::<Ready>();
                put(Ready { header }.as_bytes())
            }
            Some(Word::Detach) => {
                client.detached |= client.ready;
                let header = header::<Detach>();
                put(Detach { header }.as_bytes())
            }
        }
    }

    fn send(&mut self, &socket: &usize, packet: &[u8], _: &[BorrowedFd<'_>]) -> bool {
        if self.clients[socket].gone() || self.clients[socket].deaf {
            return false;
        }
        match Message::parse(packet).expect("the server sends what can be read") {
            Message::Grant(_) => {
                assert!(
                    !self.clients.iter().any(Client::initialises),
                    "two turns at a time"
                );
                self.clients[socket].granted = true;
            }
            Message::Attached(_) => {
                let port = self.clients[socket].port;
                let held = self.clients.iter().any(|c| c.port == port && c.holds());
                assert!(!held, "two holders of a port");
                self.clients[socket].attached = true;
            }
            Message::Refusal(_) => {}
            other => panic!("the server sent {other:?}"),
        }
        self.clients[socket].answered = true;
        true
    }

    fn finish(&mut self, _: &usize) {}

    fn process(&mut self, &socket: &usize) -> Option<usize> {
        self.clients[socket].visible.then_some(socket)
    }

    fn pid(&self, &process: &usize) -> i32 {
        process as i32
    }

    fn node(&self, _: &usize) -> Option<usize> {
        None
    }

    fn is_dead(&self, &process: &usize) -> bool {
        !self.clients[process].alive
    }

    fn kill(&mut self, &process: &usize) -> bool {
        self.clients[process].killed = true;
        true
    }
}

/// The switch's ports: which exist, who holds them, who was released.
#[derive(Debug, Clone, Default)]
struct Table {
    missing: Option<u16>,
    holders: BTreeMap<u16, ClientId>,
    released: Vec<ClientId>,
    /// Something is left of a port without configuration, and waits to be freed.
    discarded: bool,
    /// Deaths inside EAL's initialisation that the switch was told of.
    deaths_in_turn: usize,
}

impl Table {
    fn exists(&self, port: u16) -> Result<(), Refused> {
        let refused = Refused {
            reason: Reason::NoSuchPort,
            text: String::new(),
        };
        (self.missing != Some(port)).then_some(()).ok_or(refused)
    }
}

impl Ports for Table {
    fn check(&mut self, hello: &Hello) -> Result<Admission, Refused> {
        self.exists(hello.port)?;
        Ok(Admission {
            file_prefix: String::new(),
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
        self.exists(hello.port)?;
        assert!(!self.holders.contains_key(&hello.port), "attached twice");
        if !send(&Attached::new(1, true, 1500), &[]) {
            return Err(Refused {
                reason: Reason::Malformed,
                text: String::new(),
            });
        }
        self.holders.insert(hello.port, client);
        Ok(())
    }

    fn died_in_turn(&mut self, _: &Hello) {
        self.deaths_in_turn += 1;
    }

    fn release(&mut self, client: ClientId, hello: &Hello) {
        assert!(!self.released.contains(&client), "released twice");
        self.released.push(client);
        self.discarded |= self.missing == Some(hello.port);
        if self.holders.get(&hello.port) == Some(&client) {
            self.holders.remove(&hello.port);
        }
    }
}

/// What may happen next.
#[derive(Debug, Clone, Copy)]
enum Event {
    Connect(usize),
    Say(usize, Word),
    Close(usize),
    Die(usize),
    /// The switch parts with the holder of a port.
    Evict(u16),
    /// A port is taken out of the configuration.
    Remove(u16),
    /// A configuration waits that allocates.
    Configure,
    /// Until the next time-out.
    TimePasses,
    /// The control thread has its turn.
    Work,
}

#[derive(Debug, Clone)]
struct State {
    server: Server<World>,
    ports: Table,
    configuration: bool,
    /// How it came about, for who has to understand a failure.
    history: Vec<Event>,
}

impl State {
    fn new(clients: &[Client]) -> State {
        let world = World {
            start: Instant::now(),
            passed: Duration::ZERO,
            clients: clients.to_vec(),
            backlog: VecDeque::new(),
            exhausted: false,
        };
        State {
            server: Server::new(world),
            ports: Table::default(),
            configuration: false,
            history: Vec::new(),
        }
    }

    fn world(&mut self) -> &mut World {
        &mut self.server.outside
    }

    /// Is the control thread awake?
    fn awake(&self) -> bool {
        let world = &self.server.outside;
        let input = self.server.awaited().any(|awaited| match awaited {
            Awaited::Listener => !world.backlog.is_empty(),
            Awaited::Socket(&s) => !world.clients[s].said.is_empty() || world.clients[s].gone(),
            Awaited::Process(&p) => !world.clients[p].alive,
        });
        input || self.server.deadline().is_some_and(|at| at <= world.now())
    }

    /// Can the client still be heard?
    fn heard(&self, client: usize) -> bool {
        let world = &self.server.outside;
        let mut sockets = self.server.connections.values().map(|c| c.socket);
        world.backlog.contains(&client) || sockets.any(|s| s == client)
    }

    fn events(&self) -> Vec<Event> {
        let world = &self.server.outside;
        let mut events = Vec::new();
        for (i, client) in world.clients.iter().enumerate() {
            if !client.alive {
                continue;
            }
            if !client.connected {
                events.push(Event::Connect(i));
                continue;
            }
            events.push(Event::Die(i));
            if !client.closed {
                events.push(Event::Close(i));
                if client.said.is_empty() && self.heard(i) {
                    let words = [Word::Hello, Word::Ready, Word::Detach].into_iter();
                    events.extend(words.filter(|&w| client.may_say(w)).map(|w| Event::Say(i, w)));
                }
            }
        }
        events.extend(self.ports.holders.keys().map(|&port| Event::Evict(port)));
        if self.ports.missing.is_none() {
            events.push(Event::Remove(1));
        }
        if !self.configuration {
            events.push(Event::Configure);
        }
        if self.server.deadline().is_some_and(|at| at > world.now()) {
            events.push(Event::TimePasses);
        }
        if self.awake() {
            events.push(Event::Work);
        }
        events
    }

    fn apply(&mut self, event: Event) {
        self.history.push(event);
        match event {
            Event::Connect(i) => {
                self.world().clients[i].connected = true;
                self.world().backlog.push_back(i);
            }
            Event::Say(i, word) => self.world().clients[i].said.push_back(word),
            Event::Close(i) => self.world().clients[i].closed = true,
            Event::Die(i) => self.world().clients[i].alive = false,
            Event::Evict(port) => self.evict(port),
            Event::Remove(port) => {
                self.ports.missing = Some(port);
                self.evict(port);
            }
            Event::Configure => {
                self.configuration = true;
                self.work();
            }
            Event::TimePasses => {
                let at = self.server.deadline().expect("there is one");
                let start = self.world().start;
                self.world().passed = self.world().passed.max(at - start);
            }
            Event::Work => self.work(),
        }
    }

    fn evict(&mut self, port: u16) {
        let refused = Refused {
            reason: Reason::Removed,
            text: String::new(),
        };
        if let Some(&id) = self.ports.holders.get(&port) {
            self.server.evict(id, &refused);
        }
    }

    /// As the control thread does.
    fn work(&mut self) {
        let waits = self.configuration || self.ports.discarded;
        self.server.work(&mut self.ports, !waits);
        if !self.server.turn_is_taken() && (waits || self.ports.discarded) {
            let locked = self.world().clients.iter().any(Client::initialises);
            assert!(
                !locked,
                "the switch allocates or frees while a client initialises EAL"
            );
            (self.configuration, self.ports.discarded) = (false, false);
            self.server.work(&mut self.ports, true);
        }
        let known: Vec<usize> = self.server.connections.values().map(|c| c.socket).collect();
        let (mut released, mut deaths) = (0, 0);
        for (i, client) in self.server.outside.clients.iter().enumerate() {
            if client.granted && !known.contains(&i) {
                assert!(
                    !client.alive || client.detached,
                    "client {i} was released, and lives"
                );
                released += 1;
                deaths += usize::from(!client.ready);
            }
        }
        assert_eq!(
            released,
            self.ports.released.len(),
            "everybody who was admitted is released"
        );
        assert!(deaths <= self.ports.deaths_in_turn, "a death with locks in hand");
    }

    /// Lets everything take its course while no client does anything any more.
    fn settle(&mut self) {
        for _ in 0..1000 {
            for client in &mut self.world().clients {
                client.alive &= !client.killed;
            }
            if self.awake() {
                self.work();
            } else if self.server.deadline().is_some() {
                self.apply(Event::TimePasses);
            } else {
                return;
            }
        }
        panic!("the server never rests: {self:?}");
    }

    /// Nobody waits for ever, whoever stands still, and the end of all clients frees everything.
    fn assert_progress(&self) {
        let mut still = self.clone();
        still.settle();
        for c in still.server.connections.values() {
            assert!(matches!(c.stage, Stage::Attached(_)), "{c:?} waits for ever");
        }
        for client in &still.world().clients {
            let answered = client.answered || client.deaf || client.gone();
            assert!(!client.greeted || answered, "{client:?} has no answer");
        }
        let waits = still.configuration || still.ports.discarded;
        assert!(!waits, "the configuration, or something to free, waits for ever");
        let mut dead = still;
        for client in &mut dead.world().clients {
            client.alive = false;
        }
        dead.settle();
        assert!(dead.server.connections.is_empty() && dead.server.waiting.is_empty());
        assert!(dead.server.turn.is_none() && dead.ports.holders.is_empty());
    }

    /// What tells states apart: all but the time of day.
    fn key(&self) -> u64 {
        let mut hash = DefaultHasher::new();
        let world = &self.server.outside;
        (
            &world.clients,
            &world.backlog,
            self.configuration,
            self.ports.missing,
            self.ports.discarded,
        )
            .hash(&mut hash);
        let left = |at: Instant| at.saturating_duration_since(world.now());
        let socket = |id: &ClientId| self.server.connections.get(id).map(|c| c.socket);
        for c in self.server.connections.values() {
            (c.socket, std::mem::discriminant(&c.stage)).hash(&mut hash);
            match &c.stage {
                Stage::Silent { until } | Stage::Initialising { until, .. } => left(*until).hash(&mut hash),
                Stage::Ending { kill_at, open, .. } => (kill_at.map(left), open).hash(&mut hash),
                Stage::Waiting(_) | Stage::Attached(_) => {}
            }
        }
        self.server.turn.as_ref().map(socket).hash(&mut hash);
        for id in &self.server.waiting {
            socket(id).hash(&mut hash);
        }
        for (port, id) in &self.ports.holders {
            (port, socket(id)).hash(&mut hash);
        }
        hash.finish()
    }
}

fn client(port: u16) -> Client {
    Client {
        port,
        honest: false,
        visible: true,
        alive: true,
        killed: false,
        connected: false,
        closed: false,
        deaf: false,
        said: VecDeque::new(),
        greeted: false,
        granted: false,
        ready: false,
        attached: false,
        detached: false,
        answered: false,
    }
}

/// Visits every state; returns how many there are. `prompt`: the control thread looks at each event before the next one
/// happens, and the configuration stays.
fn explore(clients: &[Client], prompt: bool) -> usize {
    let first = State::new(clients);
    let mut seen = HashSet::from([first.key()]);
    let mut open = vec![first];
    while let Some(state) = open.pop() {
        let step = || {
            state.assert_progress();
            let of_switch = |e: &Event| matches!(e, Event::Remove(_) | Event::Configure);
            for event in state.events().into_iter().filter(|e| !prompt || !of_switch(e)) {
                let mut next = state.clone();
                next.apply(event);
                while prompt && next.awake() {
                    next.apply(Event::Work);
                }
                if seen.insert(next.key()) {
                    open.push(next);
                }
            }
        };
        catch_unwind(AssertUnwindSafe(step)).unwrap_or_else(|panic| {
            println!("after {:?}", state.history);
            resume_unwind(panic)
        });
    }
    println!("{} states", seen.len());
    seen.len()
}

#[test]
fn clients_of_one_port_that_keep_to_no_rule() {
    assert!(explore(&[client(1), client(1)], false) > 10_000);
}

#[test]
fn a_client_that_reads_nothing_holds_nobody_up() {
    let deaf = Client {
        deaf: true,
        ..client(1)
    };
    assert!(explore(&[deaf, client(1)], false) > 10_000);
}

#[test]
fn a_client_that_the_kernel_does_not_show_gets_nothing() {
    let invisible = Client {
        visible: false,
        ..client(1)
    };
    assert!(explore(&[invisible, client(1)], false) > 10_000);
}

/// Who can't be let in does not keep the switch busy, and comes in once there is room.
#[test]
fn a_switch_without_descriptors_waits_for_some() {
    let mut state = State::new(&[client(1)]);
    state.world().exhausted = true;
    state.apply(Event::Connect(0));
    for _ in 0..3 {
        assert!(state.awake());
        state.apply(Event::Work);
        assert!(!state.awake());
        state.apply(Event::TimePasses);
    }
    state.world().exhausted = false;
    state.apply(Event::Work);
    assert_eq!(state.server.connections.len(), 1);
    assert!(!state.awake());
}

#[test]
fn clients_of_two_ports_take_turns() {
    let honest = |port| Client {
        honest: true,
        ..client(port)
    };
    assert!(explore(&[honest(1), honest(1), honest(2)], true) > 10_000);
}
