//! The threads of a process: how long they ran, and where they may run.

use std::fs;
use std::time::Duration;

use anyhow::Context;
use dpdk_vswitchd::cpus;

/// Ids of the threads of process `pid`.
fn of(pid: i32) -> anyhow::Result<Vec<u32>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid}"))?;
    let ids = tasks
        .flatten()
        .filter_map(|task| task.file_name().to_str()?.parse().ok());
    Ok(ids.collect())
}

/// CPU time that the threads which process `pid` has now took so far (Documentation/scheduler/sched-stats.rst of Linux).
///
/// # Errors
/// There is no such process.
pub fn cpu_time(pid: i32) -> anyhow::Result<Duration> {
    let ran = |thread| -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat")).ok()?;
        text.split_whitespace().next()?.parse().ok()
    };
    Ok(Duration::from_nanos(of(pid)?.into_iter().filter_map(ran).sum()))
}

/// Keeps all threads of process `pid` on CPU `cpu`.
///
/// # Errors
/// There is no such process, or no such CPU.
pub fn pin(pid: i32, cpu: usize) -> anyhow::Result<()> {
    for thread in of(pid)? {
        cpus::pin(thread, &[cpu]).with_context(|| format!("thread {thread} to CPU {cpu}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn a_thread_that_computes_is_seen() {
        let pid = std::process::id() as i32;
        let before = cpu_time(pid).unwrap();
        let start = Instant::now();
        while cpu_time(pid).unwrap() - before < Duration::from_millis(5) {
            assert!(start.elapsed() < Duration::from_secs(20), "it never ran");
        }
    }
}
