//! Does a server that runs still answer? It is asked for an echo now and then, over a connection of its own.
//!
//! Time is counted in looks and not by a clock: when this process is stopped together with the server, for however
//! long, the server is not held to have been silent.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use serde_json::json;

use crate::jsonrpc::Message;
use crate::stream::connect_unix;

#[derive(Debug)]
pub(super) struct Pulse {
    socket: PathBuf,
    /// Looks without a sign of life after which it hangs; after a third of them it is asked for one.
    patience: u32,
    looks: u32,
    /// Where the answer will come.
    asked: Option<UnixStream>,
}

impl Pulse {
    pub(super) fn new(socket: PathBuf, patience: u32) -> Pulse {
        Pulse {
            socket,
            patience: patience.max(3),
            looks: 0,
            asked: None,
        }
    }

    /// One look. True: the server hangs; from then on it gets as long again.
    pub(super) fn hangs(&mut self) -> bool {
        self.looks += 1;
        match &mut self.asked {
            Some(stream) => {
                // Whatever it says, or that it hangs up, is a sign of life.
                let answer = stream.read(&mut [0; 256]);
                if !answer.is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock) {
                    self.asked = None;
                    self.looks = 0;
                }
            }
            None if self.looks >= self.patience / 3 => self.asked = self.ask().ok(),
            None => {}
        }
        let hangs = self.looks >= self.patience;
        if hangs {
            self.asked = None;
            self.looks = 0;
        }
        hangs
    }

    fn ask(&self) -> io::Result<UnixStream> {
        let mut stream = connect_unix(&self.socket)?;
        stream.write_all(&Message::request(1, "echo", vec![json!("pulse")]).to_bytes())?;
        Ok(stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// Looks until it hangs, `most` at most; how many there were.
    fn looks(pulse: &mut Pulse, most: u32, mut between: impl FnMut()) -> Option<u32> {
        (1..=most).find(|_| {
            between();
            pulse.hangs()
        })
    }

    #[test]
    fn a_server_that_answers_never_hangs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut pulse = Pulse::new(path, 9);
        let mut asked = 0;
        let answer = || {
            if let Ok((mut stream, _)) = listener.accept() {
                asked += 1;
                let mut question = [0; 256];
                let n = stream.read(&mut question).unwrap();
                assert!(String::from_utf8_lossy(&question[..n]).contains("echo"));
                stream.write_all(b"{}").unwrap();
            }
        };
        assert_eq!(looks(&mut pulse, 100, answer), None);
        assert!(asked > 10);
    }

    #[test]
    fn a_silent_or_unreachable_one_hangs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut unreachable = Pulse::new(path.clone(), 9);
        assert_eq!(looks(&mut unreachable, 100, || ()), Some(9));
        let _listener = UnixListener::bind(&path).unwrap();
        let mut silent = Pulse::new(path, 9);
        assert_eq!(looks(&mut silent, 100, || ()), Some(9));
        assert_eq!(looks(&mut silent, 100, || ()), Some(9), "it gets as long again");
    }
}
