//! A client of the switch for tests: a DPDK secondary that reads commands from standard input, one a line, and answers
//! each by one line, `ok ...` or `error ...`.
//!
//! | command | what it does |
//! |---|---|
//! | `attach SOCKET PORT QUEUES NAME` | attaches as every client does; once more: to another port as well, whose queues come next |
//! | `send QUEUE FRAME...` | sends frames (hexadecimal, `/START+OFFSET` for a half-done checksum) |
//! | `receive COUNT MS` | up to COUNT frames that come within MS |
//! | `checksums COUNT MS` | the same, but what is known of their checksums in place of the frames |
//! | `traffic KEY=VALUE...` | a run of numbered frames, see [`traffic`] |
//! | `load KEY=VALUE...`, `stop` | numbered frames until told to stop, see [`load`] |
//! | `blast [KEY=VALUE...]`, `stop` | frames as fast as it can until told to stop, see [`blast`] |
//! | `hog` | eats memory from now on, until that kills it |
//! | `take COUNT`, `hold COUNT`, `release` | keeps empty mbufs, keeps received frames, gives all kept back |
//! | `push`, `scribble`, `write`, `index`, `ring-bells`, `mute` | what no honest client does, see [`hostile`] |
//! | `hello`, `turn`, `eal`, `ready`, `again`, `detach` | the steps of an attach, one by one, see [`steps`] |
//! | `lookup NAME` | is there an `rte_ring` of that name? |
//! | `event MS` | what the switch says on the attach socket within MS |

mod attached;
mod blast;
mod hostile;
mod load;
mod steps;
mod traffic;

use std::fs::File;
use std::io::{BufRead, BufReader, Write, stdin};
use std::os::fd::AsFd;
use std::str::FromStr;

use attached::Client;

/// The words of a command.
struct Words<'a>(std::str::SplitWhitespace<'a>);

impl<'a> Words<'a> {
    fn next(&mut self) -> Result<&'a str, String> {
        self.0.next().ok_or_else(|| "a word is missing".to_owned())
    }

    fn number<T: FromStr>(&mut self) -> Result<T, String> {
        let word = self.next()?;
        word.parse().map_err(|_| format!("{word:?} is no number"))
    }

    fn numbers<T: FromStr>(self) -> Result<Vec<T>, String> {
        let parse = |word: &str| word.parse().map_err(|_| format!("{word:?} is no number"));
        self.0.map(parse).collect()
    }
}

fn main() {
    let mut client = Client::default();
    let input = stdin().as_fd().try_clone_to_owned();
    let mut input = BufReader::new(File::from(input.expect("standard input is open")));
    let mut line = String::new();
    while input.read_line(&mut line).is_ok_and(|n| n > 0) {
        client.told = !input.buffer().is_empty();
        let answer = match client.command(&line) {
            Ok(text) => format!("ok {text}"),
            Err(text) => format!("error {text}"),
        };
        let mut out = std::io::stdout().lock();
        if writeln!(out, "{}", answer.trim_end())
            .and_then(|()| out.flush())
            .is_err()
        {
            return;
        }
        line.clear();
    }
}

impl Client {
    fn command(&mut self, line: &str) -> Result<String, String> {
        let mut words = Words(line.split_whitespace());
        match words.next()? {
            "attach" => self.attach(words),
            "send" => self.send(words),
            "send-large" => self.send_large(words),
            "receive" => self.receive(words),
            "checksums" => self.checksums(words),
            "traffic" => self.traffic(words),
            "load" => self.load(words),
            "blast" => self.blast(words),
            "stop" => Ok(String::new()),
            "hog" => Ok(hostile::hog()),
            "take" => self.take(words),
            "hold" => self.hold(words),
            "release" => self.release(),
            "push" => self.push(words),
            "scribble" => self.scribble(words),
            "write" => self.write(words),
            "index" => self.index(words),
            "ring-bells" => self.ring_bells(words),
            "mute" => self.mute(),
            "hello" => self.hello(words),
            "turn" => self.turn(),
            "eal" => self.eal(),
            "ready" => self.ready(),
            "again" => self.again(),
            "detach" => self.detach(),
            "lookup" => hostile::lookup(words.next()?).map(|_| String::new()),
            "event" => self.event(words),
            other => Err(format!("{other:?} is no command")),
        }
    }
}
