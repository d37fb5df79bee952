//! Commands in a guest, over its serial console.
//!
//! The console is an interactive shell on a tty, which echoes what is typed, so a command's output has to be told
//! from its echo. Each command is framed by two markers that the *guest* assembles with printf: the typed
//! text never contains a marker as such, hence the echo can't be taken for one.

use crate::error::{Context, Error, Result, tail};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// What a guest's command left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Exit code, as the shell sees it.
    pub code: i32,
    /// Standard output and standard error, line ends normalised.
    pub text: String,
}

/// A guest's serial console.
#[derive(Debug)]
pub struct Serial {
    stream: UnixStream,
    /// Everything received and not yet consumed.
    pending: Vec<u8>,
    sequence: u64,
}

/// Longest wait inside one read: the granularity of all time limits.
const TICK: Duration = Duration::from_millis(50);

impl Serial {
    /// Connects to the chardev socket at `path`, which may still have to appear.
    pub fn connect(path: &Path, limit: Duration) -> Result<Self> {
        let stream = connect_unix(path, limit)?;
        stream
            .set_read_timeout(Some(TICK))
            .context(|| "serial console".into())?;
        Ok(Self {
            stream,
            pending: Vec::new(),
            sequence: 0,
        })
    }

    /// Waits for the shell's prompt. A console that was already logged in is asked for a new one.
    pub fn wait_prompt(&mut self, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        let mut nudge = Instant::now() + Duration::from_secs(2);
        loop {
            self.read_some()?;
            if ends_with_prompt(&self.pending) {
                self.pending.clear();
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(self.timeout("the prompt on the serial console", limit));
            }
            if Instant::now() >= nudge {
                self.send(b"\n")?;
                nudge = Instant::now() + Duration::from_secs(1);
            }
        }
    }

    /// Runs `command` in a subshell of the guest, its standard input empty, and waits for its end.
    ///
    /// A command that takes longer is interrupted (Ctrl-C) and reported as [`Error::Timeout`].
    pub fn run_for(&mut self, command: &str, limit: Duration) -> Result<Output> {
        self.sequence += 1;
        let id = format!("{}-{}", std::process::id(), self.sequence);
        self.pending.clear();
        self.send(frame_command(command, &id).as_bytes())?;
        let deadline = Instant::now() + limit;
        loop {
            if let Some(output) = parse_frame(&self.pending, &id) {
                let output = output?;
                self.pending.clear();
                return Ok(output);
            }
            if Instant::now() >= deadline {
                let error = self.timeout(&format!("the end of guest command {command:?}"), limit);
                self.send(b"\x03")?;
                // Leave a usable console behind; whether that works is not this command's matter.
                let _ = self.wait_prompt(Duration::from_secs(5));
                return Err(error);
            }
            self.read_some()?;
        }
    }

    /// [`Serial::run_for`] with a limit of 30 s.
    pub fn run(&mut self, command: &str) -> Result<Output> {
        self.run_for(command, Duration::from_secs(30))
    }

    /// Runs `command` and fails unless it ends with 0; returns its output.
    pub fn check(&mut self, command: &str) -> Result<String> {
        self.check_for(command, Duration::from_secs(30))
    }

    /// [`Serial::check`] with another time limit.
    pub fn check_for(&mut self, command: &str, limit: Duration) -> Result<String> {
        let output = self.run_for(command, limit)?;
        if output.code == 0 {
            Ok(output.text)
        } else {
            Err(Error::Command {
                command: command.into(),
                code: output.code,
                output: output.text,
            })
        }
    }

    /// Starts `command` in the background of the guest; its output goes to `log` there.
    pub fn spawn(&mut self, command: &str, log: &str) -> Result<()> {
        // By its path: busybox's setsid takes a bare `sh` for its own, which would run busybox's ping, not the guest's.
        let script = format!("setsid /bin/sh -c {} >{log} 2>&1 </dev/null &", quote(command));
        self.check(&script).map(drop)
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream
            .write_all(bytes)
            .context(|| "write to the serial console".into())
    }

    fn read_some(&mut self) -> Result<()> {
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(Error::Closed("the serial console")),
            Ok(n) => {
                self.pending.extend(chunk.iter().take(n));
                Ok(())
            }
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) =>
            {
                Ok(())
            }
            Err(source) => Err(Error::Io {
                what: "read from the serial console".into(),
                source,
            }),
        }
    }

    fn timeout(&self, what: &str, limit: Duration) -> Error {
        Error::Timeout {
            what: what.into(),
            limit,
            seen: tail(&String::from_utf8_lossy(&self.pending)),
        }
    }
}

/// Connects to a Unix socket that another process is about to create.
pub(crate) fn connect_unix(path: &Path, limit: Duration) -> Result<UnixStream> {
    let deadline = Instant::now() + limit;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                if Instant::now() >= deadline {
                    return Err(Error::Io {
                        what: format!("connect to {}", path.display()),
                        source: e,
                    });
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(source) => {
                return Err(Error::Io {
                    what: format!("connect to {}", path.display()),
                    source,
                });
            }
        }
    }
}

/// `text` as one word of a POSIX shell.
#[must_use]
pub fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The guest's prompt: `NAME:DIRECTORY# ` at the end of what came.
fn ends_with_prompt(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let line = text.rsplit(['\n', '\r']).next().unwrap_or("");
    line.len() > 3 && line.ends_with("# ") && line.contains(':')
}

fn frame_command(command: &str, id: &str) -> String {
    // All on one line that the shell reads as a whole before it runs any of it: so the echo of the second
    // printf can't fall into the output.
    format!(
        " printf '\\n@%s@\\n' begin-{id}; (eval {}) </dev/null; printf '\\n@%s:%d@\\n' end-{id} $?\n",
        quote(command)
    )
}

/// Looks for a whole frame; `None` while the end marker has not come.
fn parse_frame(bytes: &[u8], id: &str) -> Option<Result<Output>> {
    let text = String::from_utf8_lossy(bytes).replace("\r\n", "\n");
    let begin = format!("\n@begin-{id}@\n");
    let (_, rest) = text.split_once(&begin)?;
    let end = format!("\n@end-{id}:");
    // An output without a single character leaves nothing between the markers but one newline.
    let (output, status) = match rest.strip_prefix(end.trim_start()) {
        Some(status) => ("", status),
        None => rest.split_once(&end)?,
    };
    let (code, _) = status.split_once("@\n")?;
    Some(match code.parse() {
        Ok(code) => Ok(Output {
            code,
            text: output.to_owned(),
        }),
        Err(_) => Err(Error::Parse {
            what: "exit code in the end marker",
            text: code.to_owned(),
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A terminal's transcript: the echo, then what the guest's printf made of it.
    fn transcript(command: &str, id: &str, output: &str, code: i32) -> Vec<u8> {
        let echo = frame_command(command, id);
        let said = format!("{echo}\n@begin-{id}@\n{output}\n@end-{id}:{code}@\nclient2:~# ");
        said.replace('\n', "\r\n").into_bytes()
    }

    #[test]
    fn frame_gives_output_and_code() {
        let seen = transcript("echo hello; false", "7-1", "hello\n", 1);
        let output = parse_frame(&seen, "7-1").unwrap().unwrap();
        assert_eq!(
            output,
            Output {
                code: 1,
                text: "hello\n".into()
            }
        );
    }

    #[test]
    fn frame_without_newline_and_without_output() {
        let output = parse_frame(&transcript("printf x", "7-2", "x", 0), "7-2")
            .unwrap()
            .unwrap();
        assert_eq!(output.text, "x");
        let output = parse_frame(&transcript("true", "7-3", "", 0), "7-3")
            .unwrap()
            .unwrap();
        assert_eq!(output.text, "");
    }

    #[test]
    fn incomplete_frames_are_waited_for() {
        let seen = transcript("ls", "7-4", "a\nb\n", 0);
        let whole = seen.len() - "client2:~# ".len();
        for cut in 0..whole {
            assert!(parse_frame(&seen[..cut], "7-4").is_none(), "cut at {cut}");
        }
        assert!(parse_frame(&seen[..whole], "7-4").is_some());
    }

    #[test]
    fn echo_and_other_ids_are_no_markers() {
        assert!(parse_frame(frame_command("ls", "7-5").as_bytes(), "7-5").is_none());
        assert!(parse_frame(&transcript("ls", "7-6", "", 0), "7-7").is_none());
        // Output that quotes another command's marker stays output.
        let output = parse_frame(&transcript("x", "7-8", "\n@end-7-7:0@\n", 3), "7-8")
            .unwrap()
            .unwrap();
        assert_eq!((output.code, output.text.as_str()), (3, "\n@end-7-7:0@\n"));
    }

    #[test]
    fn prompts() {
        assert!(ends_with_prompt(b"boot noise\r\nclient2:~# "));
        assert!(ends_with_prompt(b"client2:/tmp# "));
        assert!(!ends_with_prompt(b"client2:~# ls\r\n"));
        assert!(!ends_with_prompt(b"login: "));
        assert!(!ends_with_prompt(b""));
    }

    #[test]
    fn quoting() {
        assert_eq!(quote("it's"), r"'it'\''s'");
    }
}
