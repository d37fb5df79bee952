//! Waiting for conditions, with a limit.

use std::time::{Duration, Instant};

/// Ample on a busy machine; whoever waits goes on as soon as what it waits for is there.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Polls until `condition` holds.
///
/// # Panics
/// If that takes longer than [`PATIENCE`].
#[track_caller]
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    assert!(
        within(PATIENCE, condition),
        "in {PATIENCE:?} it did not come about that {what}"
    );
}

/// Polls until `condition` holds, or `limit` is over: then false.
pub fn within(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
