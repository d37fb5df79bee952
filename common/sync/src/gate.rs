//! How one thread changes what another one works on: the worker is asked to stand still, and goes on afterwards.
//!
//! The worker holds the mutex all the time it runs, so it pays nothing for it; it looks at one flag a round.

use std::sync::PoisonError;

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard};

/// What a worker sleeps on.
pub trait Bell {
    /// Wakes the worker, now or when it sleeps next.
    fn ring(&self);
    /// Takes the rings so far.
    fn silence(&self);
}

/// State that one thread works on and another one changes now and then.
#[derive(Debug)]
pub struct Gate<T, B> {
    state: Mutex<T>,
    wanted: AtomicBool,
    go_on: Condvar,
    bell: B,
}

impl<T, B: Bell> Gate<T, B> {
    /// Around `state`; `bell` wakes the worker.
    pub fn new(state: T, bell: B) -> Gate<T, B> {
        Gate {
            state: Mutex::new(state),
            wanted: AtomicBool::new(false),
            go_on: Condvar::new(),
            bell,
        }
    }

    /// The changing thread: stops the worker, changes the state, lets it go on. One caller at a time.
    pub fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        self.wanted.store(true, Ordering::SeqCst);
        self.bell.ring();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut state);
        self.wanted.store(false, Ordering::SeqCst);
        drop(state);
        self.go_on.notify_one();
        result
    }

    /// The worker: takes the state, to keep it.
    pub fn enter(&self) -> MutexGuard<'_, T> {
        self.stand_still(self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The worker: does somebody want to change the state?
    #[inline]
    pub fn wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// The worker: lets the change happen.
    pub fn stand_still<'g>(&'g self, mut state: MutexGuard<'g, T>) -> MutexGuard<'g, T> {
        loop {
            while self.wanted.load(Ordering::SeqCst) {
                state = self.go_on.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            // The ring of a change that came and went would keep this thread from sleeping.
            self.bell.silence();
            // It may have been that of the next change.
            if !self.wanted.load(Ordering::SeqCst) {
                return state;
            }
        }
    }

    /// What the worker sleeps on.
    pub fn bell(&self) -> &B {
        &self.bell
    }
}
