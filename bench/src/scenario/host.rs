//! TCP between two network namespaces: through this switch's `type=internal` ports, and through a kernel bridge.

use std::any::Any;
use std::time::Duration;

use anyhow::{Context, bail};
use vswitch_tests::Switch;
use vswitch_tests::child::Child;
use vswitch_tests::namespace::Namespace;
use vswitch_tests::prerequisites::run as tool;
use vswitch_tests::wait::within;

use crate::peer::OURS;
use crate::report::{Row, Table};
use crate::sample::Sample;
use crate::scenario::Effort;

/// Makes two hosts that reach each other.
type Connect = fn() -> Hosts;

const PEERS: &[(&str, Connect)] = &[
    (OURS, Hosts::on_this_switch),
    ("kernel bridge", Hosts::on_a_kernel_bridge),
];
const ADDRESSES: [&str; 2] = ["10.99.0.1", "10.99.0.2"];

/// Two namespaces that reach each other. What connects them ends after them.
struct Hosts {
    ends: [Namespace; 2],
    _between: Box<dyn Any>,
}

struct KernelBridge(String);

impl Drop for KernelBridge {
    fn drop(&mut self) {
        tool("ip", &["link", "del", &self.0]);
    }
}

impl Hosts {
    fn new(interfaces: [&str; 2], between: Box<dyn Any>) -> Hosts {
        let ends = [Namespace::new(), Namespace::new()];
        for ((end, interface), address) in ends.iter().zip(interfaces).zip(ADDRESSES) {
            end.take(interface, &format!("{address}/24"));
        }
        Hosts {
            ends,
            _between: between,
        }
    }

    fn on_this_switch() -> Hosts {
        let switch = Switch::start();
        switch.add_bridge("br0", &[]);
        for port in ["bench0", "bench1"] {
            switch.vsctl(&format!(
                "add-port br0 {port} -- set Interface {port} type=internal"
            ));
        }
        Hosts::new(["bench0", "bench1"], Box::new(switch))
    }

    fn on_a_kernel_bridge() -> Hosts {
        let bridge = "bench-bridge";
        tool("ip", &["link", "add", bridge, "type", "bridge"]);
        let between = Box::new(KernelBridge(bridge.to_owned()));
        tool("ip", &["link", "set", bridge, "up"]);
        let sides = [("bench0", "bench0-port"), ("bench1", "bench1-port")];
        for (end, port) in sides {
            tool("ip", &["link", "add", end, "type", "veth", "peer", "name", port]);
            tool("ip", &["link", "set", port, "master", bridge]);
            tool("ip", &["link", "set", port, "up"]);
        }
        Hosts::new(sides.map(|(end, _)| end), between)
    }

    /// Gbit/s that one TCP stream carries.
    fn stream(&self, time: Duration) -> anyhow::Result<f64> {
        let [left, right] = &self.ends;
        if !left.pings(ADDRESSES[1], 20) {
            bail!("the two ends don't reach each other");
        }
        let log = tempfile::NamedTempFile::new()?;
        let mut server = right.command("iperf3");
        let _server = Child::start(server.args(["-s", "-1"]), log.path());
        let listens = || right.run("cat /proc/net/tcp6 /proc/net/tcp").contains(":1451 ");
        if !within(Duration::from_secs(10), listens) {
            bail!("iperf3 does not listen");
        }
        let seconds = time.as_secs().max(1);
        let text = left.run(&format!("iperf3 -J -c {} -t {seconds}", ADDRESSES[1]));
        let report: serde_json::Value = serde_json::from_str(&text).context("iperf3")?;
        let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
        Ok(bits.with_context(|| format!("iperf3 says\n{text}"))? / 1e9)
    }
}

pub fn run(effort: &Effort) -> anyhow::Result<Table> {
    let mut samples = vec![Vec::new(); PEERS.len()];
    for _ in 0..effort.rounds {
        for (&(name, hosts), samples) in PEERS.iter().zip(&mut samples) {
            let rate = hosts().stream(effort.measure).context(name)?;
            samples.push(Sample { rate, cycles: None });
        }
    }
    let rows = PEERS.iter().zip(samples).map(|(&(peer, _), samples)| Row {
        point: "one stream".to_owned(),
        peer,
        samples,
    });
    Ok(Table {
        scenario: "host",
        work: "TCP (iperf3) between two network namespaces, by type=internal ports",
        unit: "Gbit/s",
        rows: rows.collect(),
    })
}
