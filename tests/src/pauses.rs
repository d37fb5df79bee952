//! How long each CPU was away: a machine that is itself virtual is paused now and then, and nothing on it can help that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dpdk_vswitchd::cpus;

/// How often each CPU is looked at.
const LOOK: Duration = Duration::from_millis(5);

/// A thread on each CPU that looks at the clock.
#[derive(Debug)]
pub struct Pauses {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Duration>>,
}

impl Pauses {
    /// Watches the CPUs from now on.
    pub fn watch() -> Pauses {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = |cpu| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || longest(cpu, &stop))
        };
        Pauses {
            threads: cpus::allowed().into_iter().map(thread).collect(),
            stop,
        }
    }

    /// The longest time that a CPU was away.
    ///
    /// # Panics
    /// If a CPU could not be watched.
    pub fn longest(mut self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        let threads = std::mem::take(&mut self.threads).into_iter();
        let times = threads.map(|thread| thread.join().expect("its CPU could not be watched"));
        times.max().unwrap_or_default()
    }
}

impl Drop for Pauses {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// How long the calling thread, which hardly wants any time, waited for `cpu` at most, until told to stop.
fn longest(cpu: usize, stop: &AtomicBool) -> Duration {
    cpus::pin(0, &[cpu]).expect("it may run there");
    let mut longest = Duration::ZERO;
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        std::thread::sleep(LOOK);
        longest = longest.max(start.elapsed().saturating_sub(LOOK));
    }
    longest
}
