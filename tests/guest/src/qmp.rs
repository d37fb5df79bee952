//! QEMU's monitor protocol on a Unix socket.

use crate::error::{Context, Error, Result};
use crate::serial::connect_unix;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// A connection that has left capability negotiation behind.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    pending: Vec<u8>,
    events: VecDeque<Value>,
}

const ANSWER: Duration = Duration::from_secs(20);

impl Qmp {
    /// Connects and negotiates; the socket may still have to appear.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self> {
        let stream = connect_unix(path, limit)?;
        stream
            .set_read_timeout(Some(Duration::from_millis(50)))
            .context(|| "QMP".into())?;
        let mut qmp = Self {
            stream,
            pending: Vec::new(),
            events: VecDeque::new(),
        };
        let deadline = Instant::now() + limit.max(ANSWER);
        let greeting = qmp.next_message("the QMP greeting", deadline)?;
        if greeting.get("QMP").is_none() {
            return Err(Error::Protocol {
                protocol: "QMP",
                detail: format!("no greeting but {greeting}"),
            });
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns what it returned. Events that come meanwhile are kept.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut request = json!({ "execute": command, "arguments": arguments }).to_string();
        request.push('\n');
        self.stream
            .write_all(request.as_bytes())
            .context(|| format!("QMP {command}"))?;
        let deadline = Instant::now() + ANSWER;
        loop {
            let mut message = self.next_message(&format!("the answer to QMP {command}"), deadline)?;
            if let Some(value) = message.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = message.get("error") {
                let field = |name: &str| error.get(name).and_then(Value::as_str).unwrap_or("?").to_owned();
                return Err(Error::Qmp {
                    command: command.into(),
                    class: field("class"),
                    description: field("desc"),
                });
            }
            self.events.push_back(message);
        }
    }

    /// Runs a command of the human monitor and returns its text.
    pub fn human(&mut self, line: &str) -> Result<String> {
        let answer = self.execute("human-monitor-command", json!({ "command-line": line }))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    /// Waits for the event `name` (or takes one that came earlier) and returns it whole.
    pub fn wait_event(&mut self, name: &str, limit: Duration) -> Result<Value> {
        let deadline = Instant::now() + limit;
        let mut checked = 0;
        loop {
            let is_it = |event: &Value| event.get("event").and_then(Value::as_str) == Some(name);
            if let Some(at) = self.events.iter().skip(checked).position(is_it)
                && let Some(event) = self.events.remove(checked + at)
            {
                return Ok(event);
            }
            checked = self.events.len();
            let message = self.next_message(&format!("QMP event {name}"), deadline)?;
            self.events.push_back(message);
        }
    }

    /// The events that came and were not waited for, oldest first.
    pub fn take_events(&mut self) -> Vec<Value> {
        self.events.drain(..).collect()
    }

    /// Writes the screen as PNG (QEMU does it: it has to be built with libpng).
    pub fn screendump(&mut self, path: &Path) -> Result<()> {
        self.execute("screendump", json!({ "filename": path, "format": "png" }))
            .map(drop)
    }

    /// Tells QEMU to end. It closes the connection, so no answer is fine as well.
    pub fn quit(&mut self) -> Result<()> {
        match self.execute("quit", json!({})) {
            Ok(_) | Err(Error::Closed(_)) => Ok(()),
            Err(e) => Err(e),
        }
    }

    fn next_message(&mut self, what: &str, deadline: Instant) -> Result<Value> {
        let start = Instant::now();
        loop {
            if let Some(message) = take_line(&mut self.pending)? {
                return Ok(message);
            }
            if Instant::now() >= deadline {
                let seen = String::from_utf8_lossy(&self.pending).into_owned();
                return Err(Error::Timeout {
                    what: what.into(),
                    limit: start.elapsed(),
                    seen,
                });
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(Error::Closed("QMP")),
                Ok(n) => self.pending.extend(chunk.iter().take(n)),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(source) => {
                    return Err(Error::Io {
                        what: what.into(),
                        source,
                    });
                }
            }
        }
    }
}

/// Takes the first whole line off `pending`.
fn take_line(pending: &mut Vec<u8>) -> Result<Option<Value>> {
    while let Some(end) = pending.iter().position(|&b| b == b'\n') {
        let line: Vec<u8> = pending.drain(..=end).collect();
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        return serde_json::from_slice(&line)
            .map(Some)
            .map_err(|e| Error::Protocol {
                protocol: "QMP",
                detail: format!("{e} in {:?}", String::from_utf8_lossy(&line)),
            });
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_whole() {
        let mut pending = b"{\"return\": {}}\r\n{\"ev".to_vec();
        assert_eq!(take_line(&mut pending).unwrap(), Some(json!({ "return": {} })));
        assert_eq!(take_line(&mut pending).unwrap(), None);
        pending.extend(b"ent\": \"STOP\"}\n\r\n");
        assert_eq!(take_line(&mut pending).unwrap(), Some(json!({ "event": "STOP" })));
        assert_eq!(take_line(&mut pending).unwrap(), None);
        assert!(pending.is_empty());
    }

    #[test]
    fn nonsense_is_an_error() {
        assert!(take_line(&mut b"HTTP/1.1 200 OK\n".to_vec()).is_err());
    }

    #[test]
    fn answers_errors_and_events_are_told_apart() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let mut qmp = Qmp {
            stream: ours,
            pending: Vec::new(),
            events: VecDeque::new(),
        };
        theirs
            .write_all(b"{\"event\": \"RESET\"}\n{\"return\": 7}\n")
            .unwrap();
        assert_eq!(qmp.execute("x", json!({})).unwrap(), json!(7));
        theirs
            .write_all(b"{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\n")
            .unwrap();
        assert!(matches!(qmp.execute("y", json!({})), Err(Error::Qmp { .. })));
        assert!(qmp.wait_event("RESET", Duration::from_millis(10)).is_ok());
        assert!(matches!(
            qmp.wait_event("RESET", Duration::from_millis(10)),
            Err(Error::Timeout { .. })
        ));
    }
}
