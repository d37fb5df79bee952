//! A measurement in short slices, of which the median counts: what others on the machine disturb is left out.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use crate::distance;
use crate::peer::Peer;
use crate::sample::Sample;

const SLICE: Duration = Duration::from_millis(200);
/// Part of a slice that the switching thread must have had its CPU.
const RUNNING: f64 = 0.97;

/// A slice, and whether it counts: the thread ran all the time, with the CPUs near each other.
struct Slice {
    undisturbed: bool,
    sample: Sample,
}

/// What `peer` does in the median slice of `time`.
///
/// # Errors
/// The peer does not tell.
pub fn measure(peer: &mut dyn Peer, time: Duration) -> anyhow::Result<Sample> {
    let mut slices: Vec<Slice> = Vec::new();
    let wanted = (time.as_millis() / SLICE.as_millis()).max(1) as usize;
    let undisturbed = |slices: &[Slice]| slices.iter().filter(|slice| slice.undisturbed).count();
    let mut near = distance::near();
    while slices.len() < wanted || (undisturbed(&slices) < wanted && distance::patient(SLICE)) {
        let (before, start) = (cpu_times(peer.pid()), Instant::now());
        let sample = peer.sample(SLICE)?;
        let ran = busiest(&before, &cpu_times(peer.pid()));
        let all = ran.as_secs_f64() >= RUNNING * start.elapsed().as_secs_f64();
        let was_near = std::mem::replace(&mut near, distance::near());
        slices.push(Slice {
            undisturbed: all && was_near && near,
            sample,
        });
    }
    Ok(median(slices))
}

/// The slice with the median rate, of the undisturbed ones if there are any.
fn median(mut slices: Vec<Slice>) -> Sample {
    if slices.iter().any(|slice| slice.undisturbed) {
        slices.retain(|slice| slice.undisturbed);
    }
    slices.sort_by(|a, b| a.sample.rate.total_cmp(&b.sample.rate));
    slices[slices.len() / 2].sample
}

/// CPU time of each thread of process `pid`, by thread id (Documentation/scheduler/sched-stats.rst of Linux).
fn cpu_times(pid: i32) -> HashMap<String, Duration> {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return HashMap::new();
    };
    let time = |thread: fs::DirEntry| {
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        let nanoseconds = text.split_whitespace().next()?.parse().ok()?;
        let id = thread.file_name().into_string().ok()?;
        Some((id, Duration::from_nanos(nanoseconds)))
    };
    threads.flatten().filter_map(time).collect()
}

/// How long the thread ran that ran most.
fn busiest(before: &HashMap<String, Duration>, after: &HashMap<String, Duration>) -> Duration {
    let ran = after
        .iter()
        .map(|(id, time)| time.saturating_sub(before.get(id).copied().unwrap_or_default()));
    ran.max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(undisturbed: bool, rate: f64) -> Slice {
        let sample = Sample { rate, cycles: None };
        Slice { undisturbed, sample }
    }

    #[test]
    fn a_disturbed_slice_does_not_count() {
        let slices = vec![
            slice(true, 10.0),
            slice(false, 5.0),
            slice(false, 4.0),
            slice(true, 9.0),
        ];
        assert_eq!(median(slices).rate, 10.0);
        let none_undisturbed = vec![slice(false, 5.0), slice(false, 4.0), slice(false, 6.0)];
        assert_eq!(median(none_undisturbed).rate, 5.0);
    }

    /// This very thread, which does nothing but count.
    #[test]
    fn a_thread_that_runs_is_seen_running() {
        let pid = std::process::id() as i32;
        let before = cpu_times(pid);
        let start = Instant::now();
        while busiest(&before, &cpu_times(pid)) < Duration::from_millis(5) {
            assert!(start.elapsed() < Duration::from_secs(20), "it never ran");
        }
    }
}
