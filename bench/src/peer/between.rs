//! A switch between two guests, which listen on vhost-user sockets.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use vswitch_tests::Switch;
use vswitch_tests::guest::Shim;
use vswitch_tests::wait::{PATIENCE, within};

use super::ovs::Ovs;
use super::{SWITCHING_CPU, Wire};
use crate::{machine, threads};

/// Client ports of the guests.
const PORTS: [u16; 2] = [1, 2];

/// This switch, and the shims of two guests. Let guests that poll end first: they run ahead of the kernel's own threads,
/// which a switch waits for as it closes its TAP devices.
#[derive(Debug)]
pub struct Ours {
    // In the order in which they end.
    shims: [Shim; 2],
    pub switch: Switch,
}

impl Ours {
    /// Starts them for the guests that listen at `sockets`. They are served as soon as they want to be.
    pub fn start(sockets: &[PathBuf; 2]) -> anyhow::Result<Ours> {
        let switch = switch();
        let shim = |number: usize| Shim::start(&switch, PORTS[number], 1, &sockets[number]);
        let ours = Ours {
            shims: [shim(0), shim(1)],
            switch,
        };
        let served = within(PATIENCE, || ours.servers().is_ok());
        anyhow::ensure!(served, "a shim does not start");
        Ok(ours)
    }

    /// Keeps both shims on CPU `cpu`.
    pub fn pin_shims(&self, cpu: usize) -> anyhow::Result<()> {
        self.servers()?
            .into_iter()
            .try_for_each(|pid| threads::pin(pid, cpu))
    }

    /// From now on nobody on the switch's side sleeps.
    pub fn poll(&self) {
        never_sleep(&self.switch);
        for port in PORTS {
            self.switch
                .vsctl(&format!("set Interface dpdkr{port} options:busy-poll=true"));
        }
    }

    /// TSC cycles that all threads of the switch and of its shims have run for.
    pub fn all_cycles(&self) -> anyhow::Result<f64> {
        let mut time = threads::cpu_time(self.switch.pid())?;
        for pid in self.servers()? {
            time += threads::cpu_time(pid)?;
        }
        Ok(cycles(time))
    }

    /// TSC cycles that the switch's PMD thread spent on bursts with frames in them, by its own reckoning: it reads the
    /// clock before and after, so where others run on its CPU their time is among it.
    pub fn busy_cycles(&self) -> f64 {
        self.switch
            .snapshot()
            .threads
            .iter()
            .map(|t| t.busy_cycles as f64)
            .sum()
    }

    fn servers(&self) -> anyhow::Result<Vec<i32>> {
        let server = |shim: &Shim| shim.server().context("a shim has ended");
        self.shims.iter().map(server).collect()
    }
}

/// This switch with the ports of two clients, to be polled on the CPU that switches.
pub fn switch() -> Switch {
    let switch = Switch::with_ports(&PORTS);
    let mask = 1 << SWITCHING_CPU;
    switch.vsctl(&format!("set Open_vSwitch . other_config:pmd-cpu-mask={mask:#x}"));
    switch
}

/// From now on its PMD thread does not sleep.
pub fn never_sleep(switch: &Switch) {
    switch.vsctl("set Open_vSwitch . other_config:pmd-sleep-max=0");
}

/// OVS with two vhost-user client ports, for the guests that listen at `sockets`. It looks for them once a second.
pub fn ovs(sockets: &[PathBuf; 2]) -> anyhow::Result<Ovs> {
    ovs_with(sockets, &[])
}

/// The same, which takes large frames and hands them over whole.
pub fn ovs_large(sockets: &[PathBuf; 2]) -> anyhow::Result<Ovs> {
    ovs_with(sockets, &["other_config:userspace-tso-enable=true"])
}

fn ovs_with(sockets: &[PathBuf; 2], settings: &[&str]) -> anyhow::Result<Ovs> {
    let ovs = Ovs::start_with(&Wire::new(Vec::new(), 0), settings)?;
    for (number, socket) in sockets.iter().enumerate() {
        ovs.add_guest(&format!("vhost{number}"), socket)?;
    }
    Ok(ovs)
}

/// TSC cycles of `time`.
fn cycles(time: Duration) -> f64 {
    time.as_secs_f64() * machine::tsc_hz()
}
