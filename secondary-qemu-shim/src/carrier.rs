//! The link state, told to QEMU over a pipe: one byte for each change, `1` up and `0` down.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::write;

/// The writing end of QEMU's pipe, if this process is QEMU's child.
#[derive(Debug)]
pub struct Carrier {
    pipe: Option<OwnedFd>,
    up: Option<bool>,
}

impl Carrier {
    /// Writes to `pipe`, if there is one.
    pub fn new(pipe: Option<OwnedFd>) -> Carrier {
        Carrier { pipe, up: None }
    }

    /// Tells the link state where it is not known. False: the reader is gone.
    pub fn set(&mut self, up: bool) -> bool {
        if self.up == Some(up) {
            return true;
        }
        self.up = Some(up);
        log::info!("carrier {}", if up { "up" } else { "down" });
        let Some(pipe) = &self.pipe else {
            return true;
        };
        loop {
            match write(pipe, if up { b"1" } else { b"0" }) {
                Err(Errno::EINTR) => {}
                Err(Errno::EPIPE) => return false,
                // A full pipe: nobody reads it, so nobody misses this byte.
                _ => return true,
            }
        }
    }

    /// Reports an error condition when the reader is gone.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.pipe.as_ref().map(AsFd::as_fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;

    #[test]
    fn one_byte_for_each_change() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let mut carrier = Carrier::new(Some(writer));
        for up in [false, false, true, true, false] {
            assert!(carrier.set(up));
        }
        drop(carrier);
        let mut told = String::new();
        File::from(reader).read_to_string(&mut told).unwrap();
        assert_eq!(told, "010");
    }

    #[test]
    fn a_reader_that_is_gone_is_noticed() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        drop(reader);
        assert!(!Carrier::new(Some(writer)).set(true));
        assert!(Carrier::new(None).set(true));
    }
}
