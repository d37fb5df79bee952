//! How far the two CPUs of a scenario are from each other.
//!
//! The host of a virtual machine moves its CPUs about. For seconds at a time they may share no cache, and then a line takes several
//! times as long from one to the other. Whoever is measured meanwhile looks slow, whatever it does: such figures do not count.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dpdk_vswitchd::cpus;
use dpdk_vswitchd::datapath::clock::tsc;

use crate::guests::GUESTS_CPU;
use crate::peer::SWITCHING_CPU;

/// Round trips that are timed as one. Fewer than pass before somebody else has his turn on a CPU.
const TRIPS: u64 = 100;
/// Of so many of those the best counts ...
const RUNS: usize = 500;
/// ... or of as many as there is time for: both CPUs have other work, and this takes both at the same time.
const LOOK: Duration = Duration::from_millis(40);
/// CPUs are far apart where a line takes so many times as long as between near ones.
const FAR: u64 = 2;
/// Ticks of a round trip by a shared cache, at most: CPUs do not get nearer.
const SHARED: u64 = 400;
/// Looks at most, and the time between them, that tell how near the CPUs can be.
const FIRST_LOOKS: usize = 40;
const PAUSE: Duration = Duration::from_millis(250);

/// Milliseconds left for measurements to be repeated in.
static PATIENCE: AtomicU64 = AtomicU64::new(0);

/// Measurements are repeated for so long in all.
pub fn be_patient_for(time: Duration) {
    PATIENCE.store(time.as_millis() as u64, Ordering::Relaxed);
}

/// Is there patience left for another `time`? It is spent then.
pub fn patient(time: Duration) -> bool {
    let spend = |left: u64| left.checked_sub(time.as_millis() as u64);
    PATIENCE
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend)
        .is_ok()
}

/// Are the CPUs as near to each other as they get? True where there are no two, as well.
pub fn near() -> bool {
    static NEAREST: OnceLock<AtomicU64> = OnceLock::new();
    let nearest = NEAREST.get_or_init(|| {
        let mut nearest = round_trip();
        for _ in 1..FIRST_LOOKS {
            if nearest <= SHARED {
                break;
            }
            std::thread::sleep(PAUSE);
            nearest = nearest.min(round_trip());
        }
        AtomicU64::new(nearest)
    });
    let now = round_trip();
    nearest.fetch_min(now, Ordering::Relaxed);
    now <= FAR * nearest.load(Ordering::Relaxed)
}

/// What `measure` tells with the CPUs near each other before and after; or in any case, once patience is at its end.
///
/// # Errors
/// Those of `measure`.
pub fn while_near<T>(mut measure: impl FnMut() -> anyhow::Result<T>) -> anyhow::Result<T> {
    loop {
        while !near() && patient(PAUSE + LOOK) {
            std::thread::sleep(PAUSE);
        }
        let start = Instant::now();
        let measured = measure()?;
        if near() || !patient(start.elapsed()) {
            return Ok(measured);
        }
    }
}

/// Ticks of the timestamp counter that a cache line takes there and back, at best; 0 where there are no two CPUs.
fn round_trip() -> u64 {
    let all = cpus::allowed();
    if [GUESTS_CPU, SWITCHING_CPU].iter().any(|cpu| !all.contains(cpu)) {
        return 0;
    }
    let (line, over) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // It is allowed; and if not, a figure is too good, and the next ones count for nothing.
            let _ = cpus::pin(0, &[SWITCHING_CPU]);
            while !over.load(Ordering::Relaxed) {
                let number = line.load(Ordering::Acquire);
                if number % 2 == 1 {
                    line.store(number + 1, Ordering::Release);
                }
            }
        });
        let near_end = scope.spawn(|| {
            let _ = cpus::pin(0, &[GUESTS_CPU]);
            let (end, mut best, mut number) = (Instant::now() + LOOK, u64::MAX, 0);
            for _ in 0..RUNS {
                if Instant::now() > end {
                    break;
                }
                let start = tsc();
                for _ in 0..TRIPS {
                    line.store(number + 1, Ordering::Release);
                    number += 2;
                    while line.load(Ordering::Acquire) != number {}
                }
                best = best.min(tsc().wrapping_sub(start) / TRIPS);
            }
            over.store(true, Ordering::Relaxed);
            best
        });
        near_end.join().unwrap_or(0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends() {
        be_patient_for(Duration::from_millis(250));
        let granted = (0..5).filter(|_| patient(Duration::from_millis(100)));
        assert_eq!(granted.count(), 2);
    }

    #[test]
    fn a_line_takes_some_time() {
        let both = [GUESTS_CPU, SWITCHING_CPU]
            .iter()
            .all(|cpu| cpus::allowed().contains(cpu));
        assert_eq!(round_trip() > 0, both);
    }
}
