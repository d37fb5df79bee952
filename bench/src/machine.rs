//! What the figures were taken on.

use std::fmt;
use std::fs;

use serde::Serialize;

/// The machine, and the versions of what ran on it.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cpus: usize,
    pub kernel: String,
    pub dpdk: String,
}

/// Looks at the machine.
pub fn describe() -> Machine {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo
        .lines()
        .find_map(|l| l.strip_prefix("model name")?.split_once(": "));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Machine {
        cpu: model.map_or("unknown", |(_, name)| name).to_owned(),
        cpus: std::thread::available_parallelism().map_or(0, usize::from),
        kernel: kernel.trim().to_owned(),
        dpdk: vswitch_common::eal::version(),
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Machine {
            cpu,
            cpus,
            kernel,
            dpdk,
        } = self;
        write!(f, "{cpu}, {cpus} CPUs, Linux {kernel}, {dpdk}")
    }
}

/// Timestamp counter ticks a second, measured against the clock.
pub fn tsc_hz() -> f64 {
    static HZ: std::sync::OnceLock<f64> = std::sync::OnceLock::new();
    *HZ.get_or_init(|| {
        let (clock, tsc) = (std::time::Instant::now(), dpdk_vswitchd::datapath::clock::tsc());
        std::thread::sleep(std::time::Duration::from_millis(200));
        let ticks = dpdk_vswitchd::datapath::clock::tsc().wrapping_sub(tsc);
        ticks as f64 / clock.elapsed().as_secs_f64()
    })
}
