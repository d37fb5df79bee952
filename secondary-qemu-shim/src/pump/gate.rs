//! How the control thread changes what a pump works on: the pump is asked to stand still, and goes on afterwards.
//!
//! The pump holds the mutex all the time it runs, so it pays nothing for it; it looks at one flag a round.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// State that one thread works on and another one changes now and then.
#[derive(Debug)]
pub struct Gate<T> {
    state: Mutex<T>,
    wanted: AtomicBool,
    go_on: Condvar,
    wake: EventFd,
}

impl<T> Gate<T> {
    /// Around `state`.
    ///
    /// # Errors
    /// The process is out of descriptors.
    pub fn new(state: T) -> io::Result<Gate<T>> {
        let wake = EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Gate {
            state: Mutex::new(state),
            wanted: AtomicBool::new(false),
            go_on: Condvar::new(),
            wake,
        })
    }

    /// The changing thread: stops the working one, changes the state, lets it go on.
    pub fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        self.wanted.store(true, Ordering::SeqCst);
        // A full counter means that it is awake.
        let _ = self.wake.write(1);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut state);
        self.wanted.store(false, Ordering::SeqCst);
        drop(state);
        self.go_on.notify_one();
        result
    }

    /// The working thread: takes the state, to keep it.
    pub fn enter(&self) -> MutexGuard<'_, T> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // A change may have come and gone before this thread was there; its ring would keep it from ever sleeping.
        let _ = self.wake.read();
        state
    }

    /// The working thread: does somebody want to change the state?
    #[inline]
    pub fn wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// The working thread: lets the change happen.
    pub fn stand_still<'g>(&'g self, state: MutexGuard<'g, T>) -> MutexGuard<'g, T> {
        let state = self
            .go_on
            .wait_while(state, |_| self.wanted.load(Ordering::SeqCst))
            .unwrap_or_else(PoisonError::into_inner);
        // Not before: a ring that comes later belongs to the next change.
        let _ = self.wake.read();
        state
    }

    /// Readable when the state is wanted: for the working thread to sleep on.
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
