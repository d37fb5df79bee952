//! A bare client: a DPDK secondary in a process of its own (EAL starts once per process), told what to do line by line.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use vswitch_common::fault::{self, Point};
use vswitch_common::port::MAX_QUEUES;

use crate::child::Child;
use crate::frames::{Frame, Mac};
use crate::programs;
use crate::stream::Report;
use crate::switch::Switch;
use crate::wait::PATIENCE;

/// What is waited for before "nothing came" is believed. Frames cross the switch in microseconds.
const QUIET: Duration = Duration::from_millis(30);

/// The process. Killed when dropped.
#[derive(Debug)]
pub struct Bare {
    child: Child,
    input: ChildStdin,
    answers: Receiver<String>,
    name: String,
    socket: PathBuf,
}

/// A run of numbered frames, see [`crate::stream`]. Both ends run one at the same time.
#[derive(Debug, Clone, Copy)]
pub struct Traffic {
    /// Stream that is sent, in each queue pair one of its own: `id`, `id + 1`, ...
    pub id: u16,
    /// Stream that is expected.
    pub expect: u16,
    pub source: Mac,
    pub destination: Mac,
    /// Frames to send and to expect, over all queue pairs.
    pub send: u64,
    pub receive: u64,
    pub min: usize,
    pub max: usize,
    /// Frames under way at most: the peer's pace is kept, and nothing may be lost. 0: no limit.
    pub window: u64,
    /// Frames a second at most. 0: no limit.
    pub rate: u64,
    /// What is sent comes back with its addresses exchanged; `expect` does not matter.
    pub echo: bool,
    /// It ends then at the latest.
    pub seconds: u64,
}

impl Default for Traffic {
    /// Streams that no run before had: what is late of one run can't be taken for the next one's.
    fn default() -> Traffic {
        static NEXT: AtomicU16 = AtomicU16::new(1000);
        const QUEUES: u16 = MAX_QUEUES as u16;
        let id = NEXT.fetch_add(2 * QUEUES, Ordering::Relaxed);
        Traffic {
            id,
            expect: id + QUEUES,
            source: crate::frames::mac(1),
            destination: crate::frames::mac(2),
            send: 0,
            receive: 0,
            min: 60,
            max: 1514,
            window: 256,
            rate: 0,
            echo: false,
            seconds: 60,
        }
    }
}

impl Traffic {
    /// `count` frames each way between two ends: what this one and its peer have to run.
    pub fn both_ways(count: u64) -> (Traffic, Traffic) {
        let one = Traffic {
            send: count,
            receive: count,
            ..Traffic::default()
        };
        (one, one.peer())
    }

    /// What the other end has to run.
    #[must_use]
    pub fn peer(&self) -> Traffic {
        Traffic {
            id: self.expect,
            expect: self.id,
            source: self.destination,
            destination: self.source,
            send: self.receive,
            receive: self.send,
            ..*self
        }
    }

    fn line(&self) -> String {
        format!(
            "traffic id={} expect={} source={} destination={} send={} receive={} min={} max={} window={} rate={} \
             echo={} seconds={}",
            self.id,
            self.expect,
            hex(self.source),
            hex(self.destination),
            self.send,
            self.receive,
            self.min,
            self.max,
            self.window,
            self.rate,
            u8::from(self.echo),
            self.seconds
        )
    }
}

/// Numbered frames without end, both ways at once, for a client that may be killed in their midst: see
/// [`crate::stream::Watch`].
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Stream that is sent, from number 0 on.
    pub id: u16,
    /// First stream and first number in it that may come. With `echo`, its own.
    pub expect: u16,
    pub floor: u64,
    pub source: Mac,
    pub destination: Mac,
    /// Frames a second at most. 0: as many as it can.
    pub rate: u64,
    /// What is sent comes back with its addresses exchanged.
    pub echo: bool,
}

impl Load {
    fn line(&self) -> String {
        format!(
            "load id={} expect={} floor={} source={} destination={} rate={} echo={}",
            self.id,
            self.expect,
            self.floor,
            hex(self.source),
            hex(self.destination),
            self.rate,
            u8::from(self.echo)
        )
    }
}

/// How long an attach took, from asking on.
#[derive(Debug, Clone, Copy)]
pub struct AttachTime {
    /// Until the switch let the client have its port.
    pub granted: Duration,
    /// Until it could send.
    pub attached: Duration,
}

pub(crate) fn hex(mac: Mac) -> String {
    mac.map(|b| format!("{b:02x}")).concat()
}

impl Bare {
    /// Starts a client of `switch`, called `name` in its log. It does nothing yet.
    ///
    /// # Panics
    /// If the program is not built or does not start.
    #[track_caller]
    pub fn start(switch: &Switch, name: &str) -> Bare {
        Self::launch(switch, name, None)
    }

    /// A client that dies when it comes by `point` for the `n`-th time.
    #[track_caller]
    pub fn doomed(switch: &Switch, name: &str, point: Point, n: u64) -> Bare {
        Self::launch(switch, name, Some(format!("{}@{n}", point.name())))
    }

    #[track_caller]
    fn launch(switch: &Switch, name: &str, fault: Option<String>) -> Bare {
        let mut command = Command::new(programs::bare_client());
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .env_remove("RUNTIME_DIRECTORY")
            .envs(fault.map(|f| (fault::VARIABLE, f)));
        let mut child = Child::spawn(&mut command, &switch.scratch().join("none"));
        let (Some(input), Some(output)) = child.pipes() else {
            unreachable!("both are pipes")
        };
        let (sender, answers) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Bare {
            child,
            input,
            answers,
            name: name.to_owned(),
            socket: switch.attach_socket(),
        }
    }

    /// A client that is attached to `port` with one queue pair.
    #[track_caller]
    pub fn attached(switch: &Switch, port: u16) -> Bare {
        Self::attached_queues(switch, port, 1)
    }

    /// A client that is attached to `port` with `queues` queue pairs.
    #[track_caller]
    pub fn attached_queues(switch: &Switch, port: u16, queues: u16) -> Bare {
        let mut bare = Bare::start(switch, &format!("client-{port}"));
        bare.ok(&bare.attach_line(port, queues));
        bare
    }

    /// Tells it to attach to `port` with one queue pair, without waiting for the answer.
    #[track_caller]
    pub fn start_attaching(&mut self, port: u16) {
        self.tell(&self.attach_line(port, 1));
    }

    fn attach_line(&self, port: u16, queues: u16) -> String {
        format!("attach {} {port} {queues} {}", self.socket.display(), self.name)
    }

    /// Attaches to `port` with one queue pair, and says how long that took.
    ///
    /// # Panics
    /// If it is refused.
    #[track_caller]
    pub fn attach_timed(&mut self, port: u16) -> AttachTime {
        let start = Instant::now();
        let answer = self
            .attach(port, 1)
            .unwrap_or_else(|e| panic!("{}: port {port}: {e}", self.name));
        let attached = start.elapsed();
        let granted = answer.split_once("granted_us=").map(|(_, n)| n.parse());
        let Some(Ok(us)) = granted else {
            panic!("{}: no time in {answer:?}", self.name)
        };
        AttachTime {
            granted: Duration::from_micros(us),
            attached,
        }
    }

    /// Attaches to `port`.
    ///
    /// # Errors
    /// What the user would read.
    #[track_caller]
    pub fn attach(&mut self, port: u16, queues: u16) -> Result<String, String> {
        self.ask(&self.attach_line(port, queues))
    }

    /// Process id.
    pub fn pid(&self) -> i32 {
        self.child.pid()
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Starts a load, which goes on until [`Bare::stop_load`], its death, or a frame that should not have come.
    #[track_caller]
    pub fn start_load(&mut self, load: &Load) {
        self.tell(&load.line());
    }

    /// Ends a load.
    ///
    /// # Panics
    /// If a frame came that should not have.
    #[track_caller]
    pub fn stop_load(&mut self) -> Report {
        self.tell("stop");
        let report = self.report();
        let name = &self.name;
        let stopped = self.answers.recv_timeout(PATIENCE);
        assert!(stopped.is_ok_and(|line| line == "ok"), "{name} does not stop");
        report
    }

    /// Kills it and checks that none of its answers, read or not, was a complaint.
    ///
    /// # Panics
    /// If one was.
    #[track_caller]
    pub fn kill_content(&mut self) {
        self.kill();
        while let Some(answer) = self.answer_unless_dead(PATIENCE) {
            let name = &self.name;
            answer.unwrap_or_else(|why| panic!("{name}: {why}"));
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        self.child.signal(signal);
    }

    /// Kills it by SIGKILL and waits for its end.
    pub fn kill(&mut self) {
        self.child.kill();
    }

    /// Tells it something without waiting for the answer.
    ///
    /// # Panics
    /// If it is dead.
    #[track_caller]
    pub fn tell(&mut self, line: &str) {
        let alive = self.tell_if_alive(line);
        assert!(alive, "{} is dead: {line}", self.name);
    }

    /// The answer to the earliest command that has none yet; `None` if it dies before it gives one.
    ///
    /// # Panics
    /// If it does not answer.
    #[track_caller]
    pub fn answer_unless_dead(&mut self, limit: Duration) -> Option<Result<String, String>> {
        let line = match self.answers.recv_timeout(limit) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => panic!("{} does not answer within {limit:?}", self.name),
            Err(RecvTimeoutError::Disconnected) => return None,
        };
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("ok", rest) => Some(Ok(rest.to_owned())),
            ("error", rest) => Some(Err(rest.to_owned())),
            _ => panic!("{} says {line:?}", self.name),
        }
    }

    /// Tells it something; false if it is dead.
    pub fn tell_if_alive(&mut self, line: &str) -> bool {
        writeln!(self.input, "{line}").is_ok()
    }

    /// The answer to the earliest command that has none yet.
    ///
    /// # Errors
    /// What it says went wrong.
    ///
    /// # Panics
    /// If it does not answer, or dies.
    #[track_caller]
    pub fn answer(&mut self, limit: Duration) -> Result<String, String> {
        match self.answer_unless_dead(limit) {
            Some(answer) => answer,
            None => panic!("{} died: {:?}", self.name, self.child.wait(PATIENCE)),
        }
    }

    /// Tells it something and waits for the answer.
    ///
    /// # Errors
    /// What it says went wrong.
    #[track_caller]
    pub fn ask(&mut self, line: &str) -> Result<String, String> {
        self.tell(line);
        self.answer(PATIENCE)
    }

    /// Tells it something that must succeed.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn ok(&mut self, line: &str) -> String {
        let name = self.name.clone();
        self.ask(line)
            .unwrap_or_else(|e| panic!("{name}: {line:.100}: {e}"))
    }

    /// Sends `frames` by queue pair 0, in order.
    #[track_caller]
    pub fn send(&mut self, frames: &[Frame]) {
        self.send_by(0, frames);
    }

    /// Sends `frames` by queue pair `queue`, in order.
    #[track_caller]
    pub fn send_by(&mut self, queue: usize, frames: &[Frame]) {
        let texts: Vec<String> = frames.iter().map(Frame::to_string).collect();
        self.ok(&format!("send {queue} {}", texts.join(" ")));
    }

    /// The next `count` frames, whatever queue pair they come by.
    ///
    /// # Panics
    /// If they do not come.
    #[track_caller]
    pub fn receive(&mut self, count: usize) -> Vec<Frame> {
        let frames = self.collect(count, PATIENCE);
        assert_eq!(
            frames.len(),
            count,
            "{}: frames expected, these came: {frames:?}",
            self.name
        );
        frames
    }

    /// Up to `count` frames, as many as come within `limit`.
    #[track_caller]
    pub fn collect(&mut self, count: usize, limit: Duration) -> Vec<Frame> {
        self.tell(&format!("receive {count} {}", limit.as_millis()));
        let name = self.name.clone();
        let text = self
            .answer(limit + PATIENCE)
            .unwrap_or_else(|e| panic!("{name}: receive: {e}"));
        text.split_whitespace()
            .map(|t| t.parse().unwrap_or_else(|e| panic!("{e}")))
            .collect()
    }

    /// Exactly `expected` comes, in order, and nothing else.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    pub fn expect(&mut self, expected: &[Frame]) {
        let mut frames = self.collect(expected.len(), PATIENCE);
        frames.extend(self.collect(1, QUIET));
        assert_eq!(frames, expected, "{}", self.name);
    }

    /// Nothing comes.
    ///
    /// # Panics
    /// If something does.
    #[track_caller]
    pub fn expect_nothing(&mut self) {
        self.expect(&[]);
    }

    /// Starts a run of numbered frames; [`Bare::report`] waits for its end.
    #[track_caller]
    pub fn start_traffic(&mut self, traffic: &Traffic) {
        self.tell(&traffic.line());
    }

    /// The outcome of [`Bare::start_traffic`].
    #[track_caller]
    pub fn report(&mut self) -> Report {
        let name = self.name.clone();
        let text = self
            .answer(Duration::from_secs(120))
            .unwrap_or_else(|e| panic!("{name}: traffic: {e}"));
        text.parse().unwrap_or_else(|e| panic!("{e}"))
    }

    /// Takes `count` empty mbufs and keeps them; their addresses.
    #[track_caller]
    pub fn take(&mut self, count: usize) -> Vec<u64> {
        let text = self.ok(&format!("take {count}"));
        let addresses = text
            .split_whitespace()
            .map(|a| a.parse().unwrap_or_else(|e| panic!("{e}")));
        addresses.collect()
    }

    /// Puts `addresses`, right or wrong, on the ring `tx` or `free`.
    #[track_caller]
    pub fn push(&mut self, ring: &str, addresses: &[u64]) {
        let words: Vec<String> = addresses.iter().map(u64::to_string).collect();
        self.ok(&format!("push {ring} {}", words.join(" ")));
    }
}

/// Runs `traffic` between `one` and `other` and returns what each received.
#[track_caller]
pub fn exchange(one: &mut Bare, other: &mut Bare, traffic: &(Traffic, Traffic)) -> (Report, Report) {
    one.start_traffic(&traffic.0);
    other.start_traffic(&traffic.1);
    (one.report(), other.report())
}
