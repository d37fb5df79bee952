//! TCP between two VMs: by this switch, by QEMU's own netdev on sockets, by OVS-DPDK.

use std::any::Any;
use std::time::Duration;

use anyhow::Context;
use vm_harness::{Vm, VmBuilder, guest};
use vswitch_tests::{Switch, vm};

use crate::machine;
use crate::peer::{OURS, Wire, ovs::Ovs};
use crate::report::{Row, Table};
use crate::sample::Sample;
use crate::scenario::Effort;

/// Options of each NIC's device. A VM has a NIC of either kind, in a subnet of its own.
const NICS: [(&str, &str); 2] = [
    ("offloads", ""),
    (
        "no offloads",
        "csum=off,guest_csum=off,gso=off,host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off,\
         guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off",
    ),
];
/// Until the other VM answers.
const NETWORK: Duration = Duration::from_secs(20);

/// Two VMs and what connects them, which ends after them.
struct Pair {
    vms: [Vm; 2],
    _between: Box<dyn Any>,
}

type Connect = fn() -> anyhow::Result<Pair>;

const PEERS: [(&str, Connect); 3] = [
    (OURS, Pair::on_this_switch),
    ("QEMU dgram", Pair::on_sockets),
    ("OVS-DPDK", Pair::on_ovs),
];

pub fn run(effort: &Effort) -> anyhow::Result<Table> {
    let mut rows = Vec::new();
    for (nic, _) in NICS {
        rows.extend(PEERS.map(|(peer, _)| Row {
            point: nic.to_owned(),
            peer,
            samples: Vec::new(),
        }));
    }
    // VMs take long to boot.
    let rounds = if effort.quick { 1 } else { effort.rounds };
    for _ in 0..rounds {
        for (number, (peer, connect)) in PEERS.into_iter().enumerate() {
            let mut pair = connect().context(peer)?;
            let its_rows = rows.iter_mut().skip(number).step_by(PEERS.len());
            for (nic, row) in its_rows.enumerate() {
                let rate = pair
                    .stream(nic, effort.measure)
                    .with_context(|| format!("{peer}, {}", row.point))?;
                row.samples.push(Sample { rate, cycles: None });
            }
        }
    }
    Ok(Table {
        scenario: "tcp",
        work: "TCP (iperf3), one stream between two translated VMs",
        unit: "Gbit/s",
        rows,
    })
}

impl Pair {
    fn on_this_switch() -> anyhow::Result<Pair> {
        let switch = Switch::with_ports(&[1, 2, 3, 4]);
        let vms = boot([0, 1].map(|number| {
            let builder = vm::unplugged(&switch, NAMES[number]);
            nics(builder, number, |nic| {
                format!("dpdk,port={}", 1 + number + 2 * nic)
            })
        }))?;
        Ok(Pair {
            vms,
            _between: Box::new(switch),
        })
    }

    fn on_sockets() -> anyhow::Result<Pair> {
        let dir = tempfile::tempdir()?;
        let vms = boot([0, 1].map(|number| {
            nics(plain(number), number, |nic| {
                let socket = |end: usize| dir.path().join(format!("{nic}-{end}")).display().to_string();
                format!(
                    "dgram,local.type=unix,local.path={},remote.type=unix,remote.path={}",
                    socket(number),
                    socket(1 - number)
                )
            })
        }))?;
        Ok(Pair {
            vms,
            _between: Box::new(dir),
        })
    }

    fn on_ovs() -> anyhow::Result<Pair> {
        let dir = tempfile::tempdir()?;
        let ovs = Ovs::start_with(
            &Wire::new(Vec::new(), 0),
            &["other_config:userspace-tso-enable=true"],
        )?;
        let mut builders = [plain(0), plain(1)];
        for (number, builder) in builders.iter_mut().enumerate() {
            for nic in 0..NICS.len() {
                let name = format!("vhost{number}{nic}");
                let socket = dir.path().join(&name);
                ovs.add_guest(&name, &socket)?;
                let chardev = format!("socket,id={name},path={},server=on", socket.display());
                *builder = builder.clone().args(["-chardev".to_owned(), chardev]);
            }
        }
        let mut number = 0;
        let vms = boot(builders.map(|builder| {
            let builder = nics(builder, number, |nic| {
                format!("vhost-user,chardev=vhost{number}{nic}")
            });
            number += 1;
            builder
        }))?;
        Ok(Pair {
            vms,
            _between: Box::new((ovs, dir)),
        })
    }

    /// Gbit/s of one stream from the first VM to the second by their NICs number `nic`.
    fn stream(&mut self, nic: usize, time: Duration) -> anyhow::Result<f64> {
        let [sender, receiver] = &mut self.vms;
        let address = address(nic, 1);
        guest::wait_reachable(sender.serial()?, &address, NETWORK)?;
        receiver
            .serial()?
            .check(&format!("iperf3 -s -1 -D -B {address}"))?;
        let seconds = time.as_secs().max(1);
        // The last figure is what was received.
        let command = format!(
            "for i in 1 2 3 4 5; do iperf3 -J -c {address} -t {seconds} >/tmp/iperf3 && break; sleep 0.2; done; \
             grep bits_per_second /tmp/iperf3 | tail -n 1"
        );
        let text = sender.serial()?.check_for(&command, time + NETWORK)?;
        let figure = text.rsplit(':').next().unwrap_or_default();
        let bits: f64 = figure
            .trim()
            .trim_end_matches(',')
            .parse()
            .with_context(|| format!("iperf3 says {text:?}"))?;
        Ok(bits / 1e9)
    }
}

const NAMES: [&str; 2] = ["Sender", "Receiver"];

fn address(nic: usize, number: usize) -> String {
    format!("10.0.{nic}.{}", number + 1)
}

/// A VM that knows nothing of this switch.
fn plain(number: usize) -> VmBuilder {
    let khz = machine::tsc_hz() / 1e3;
    // As those on this switch: a translated guest that measures its clock while the host is busy is wrong.
    vm::plain(NAMES[number]).cmdline(&format!("tsc_early_khz={khz:.0}"))
}

/// Adds the NICs of VM `number` with what `backend` says of each.
fn nics(builder: VmBuilder, number: usize, backend: impl Fn(usize) -> String) -> VmBuilder {
    let addresses = [0, 1].map(|nic| format!("{}/24", address(nic, number)));
    let builder = builder.cmdline(&format!("ip4={} ip6=none,none", addresses.join(",")));
    let add = |builder: VmBuilder, (nic, (_, options)): (usize, &(&str, &str))| {
        let mac = format!("02:00:00:00:0{nic}:0{}", number + 1);
        builder.nic(&format!("nic{nic}"), &backend(nic), &mac, options)
    };
    NICS.iter().enumerate().fold(builder, add)
}

fn boot(builders: [VmBuilder; 2]) -> anyhow::Result<[Vm; 2]> {
    let [one, two] = builders;
    let mut vms = [one.spawn()?, two.spawn()?];
    let [one, two] = &mut vms;
    let Ok(()) = vm::boot(&mut [one, two]);
    Ok(vms)
}
