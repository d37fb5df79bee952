//! Which doorbells have rung and are yet to be silenced.
//!
//! A sleeper silences what woke it before its next sleep, not on waking up: then a frame is there, and each system call
//! would keep it waiting.

use std::cell::Cell;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

/// What a sleeper knows of one doorbell: whether it rang in the last [`wait`] and was not silenced since.
#[derive(Debug, Default)]
pub struct Rung(Cell<bool>);

impl Rung {
    /// Did it ring?
    pub fn get(&self) -> bool {
        self.0.get()
    }

    /// The same, once: whoever asks silences it.
    pub fn take(&self) -> bool {
        self.0.take()
    }
}

/// Blocks until one of `bells` rings, or for `timeout`, and notes which of them have rung.
pub fn wait<'b>(bells: impl Iterator<Item = (BorrowedFd<'b>, &'b Rung)> + Clone, timeout: Option<Duration>) {
    let mut fds: Vec<PollFd> = bells
        .clone()
        .map(|(bell, _)| PollFd::new(bell, PollFlags::POLLIN))
        .collect();
    // Errors (a signal) are a wake-up like any other.
    let _ = ppoll(&mut fds, timeout.map(TimeSpec::from_duration), None);
    for ((_, rung), fd) in bells.zip(&fds) {
        rung.0.set(fd.any() != Some(false));
    }
}

#[cfg(test)]
mod tests {
    use super::super::pair;
    use super::*;
    use std::os::fd::AsFd;

    /// What has rung is known until it is taken, or was silenced before another wait.
    #[test]
    fn a_ring_is_noted_until_it_is_taken() {
        let bells = [(); 3].map(|()| pair().unwrap());
        let rung: [Rung; 3] = Default::default();
        let wait = || {
            let bells = bells.iter().map(|(_, bell)| bell.as_fd()).zip(&rung);
            wait(bells, Some(Duration::ZERO));
        };
        let noted = || rung.each_ref().map(Rung::get);
        wait();
        assert_eq!(noted(), [false; 3]);

        bells[0].0.ring();
        bells[2].0.ring();
        assert_eq!(noted(), [false; 3], "nobody has looked");
        wait();
        assert_eq!(noted(), [true, false, true]);
        assert!(rung[0].take() && !rung[0].take());
        assert_eq!(noted(), [false, false, true]);

        wait();
        assert_eq!(noted(), [true, false, true], "none was silenced");
        bells[0].1.silence();
        wait();
        assert_eq!(noted(), [false, false, true]);
    }
}
