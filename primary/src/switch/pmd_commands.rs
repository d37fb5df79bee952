//! ovs-appctl's `dpif-netdev/pmd-...` and `dpif/show`, in the words and columns of Open vSwitch 3.1.
//!
//! This switch has none of Open vSwitch's flow caches and no slow path: their lines are there, for those who parse them,
//! and say 0.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use vswitch_common::stats::{Counter, ThreadSnapshot};

use super::kind::Kind;
use super::{Backend, PortState, Switch};
use crate::cpus;
use crate::rxq::usage::{INTERVAL, INTERVALS};

/// The only datapath, as `dpif-netdev/...` commands may name it.
const DATAPATH: &str = "ovs-netdev";

/// The options of a command.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    /// Only the thread on this core.
    core: Option<usize>,
    seconds: Option<u64>,
}

impl Options {
    /// Reads `args`. The options of histograms and histories are for metrics that are never on, and change nothing.
    fn of(args: &[String]) -> Result<Options, String> {
        let mut options = Options::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let mut number = || {
                let text = args.next().map_or("", String::as_str);
                text.parse::<usize>()
                    .map_err(|_| format!("{arg} '{text}' is not a number"))
            };
            match arg.as_str() {
                "-pmd" => options.core = Some(number()?),
                "-secs" => options.seconds = Some(number()? as u64),
                "-it" | "-ms" => _ = number()?,
                "-nh" | DATAPATH => {}
                _ => return Err("please specify an existing datapath".into()),
            }
        }
        Ok(options)
    }

    /// Intervals to look back.
    fn intervals(&self) -> usize {
        match self.seconds {
            None | Some(0) => INTERVALS,
            Some(seconds) => (seconds.div_ceil(INTERVAL.as_secs()) as usize).min(INTERVALS),
        }
    }
}

fn heading(cpu: Option<usize>) -> String {
    match cpu {
        Some(cpu) => format!("pmd thread numa_id {} core_id {cpu}:\n", cpus::node(cpu)),
        None => "pmd thread:\n".into(),
    }
}

impl Switch {
    /// Answers `dpif-netdev/NAME`.
    ///
    /// # Errors
    /// As [`Switch::command`].
    pub(super) fn pmd_command(&mut self, name: &str, args: &[String]) -> Result<String, String> {
        let options = Options::of(args)?;
        if name == "pmd-rxq-rebalance" {
            self.rebalance_queues();
            return Ok("pmd rxq rebalance requested.\n".into());
        }
        let cpus = self.parts.pmds.cpus();
        let chosen = cpus.iter().enumerate();
        let chosen = chosen.filter(|(_, cpu)| options.core.is_none() || **cpu == options.core);
        let mut text = String::new();
        for (thread, &cpu) in chosen {
            let (counted, duration) = self.parts.pmds.statistics(thread);
            let heading = heading(cpu);
            match name {
                "pmd-rxq-show" => {
                    if text.is_empty() {
                        let seconds = options.intervals() as u64 * INTERVAL.as_secs();
                        let _ = writeln!(text, "Displaying last {seconds} seconds pmd usage %");
                    }
                    text += &heading;
                    text += &self.rxq_show(thread, options.intervals());
                }
                "pmd-stats-show" => text += &(heading + &stats(&counted)),
                "pmd-perf-show" => {
                    let _ = write!(
                        text,
                        "\nTime: {}\nMeasurement duration: {:.3} s\n\n{heading}\n{}",
                        time_of_day(),
                        duration.as_secs_f64(),
                        perf(&counted, duration, self.parts.clock.hz())
                    );
                }
                "pmd-stats-clear" => self.parts.pmds.clear_statistics(thread),
                other => return Err(format!("\"{other}\" is not a command of the PMD threads")),
            }
        }
        if name == "pmd-stats-show" && options.core.is_none() {
            text += "main thread:\n";
            text += &stats(&ThreadSnapshot::default());
        }
        Ok(text)
    }

    /// What thread `thread` polls, and what of its time that took.
    fn rxq_show(&self, thread: usize, intervals: usize) -> String {
        let Some(share) = self.queues.assignment.shares.get(thread) else {
            return String::new();
        };
        let usage = &self.queues.usage;
        let (busy, all) = usage.thread(thread, intervals);
        let percent = |ticks: u64| match (ticks * 100).checked_div(all) {
            Some(percent) => format!("{percent:2} %"),
            None => "NOT AVAIL".into(),
        };
        let mut queues: Vec<_> = share.queues.iter().map(|&q| (self.port_of(q), q)).collect();
        queues.sort_unstable();
        let mut text = format!("  isolated : {}\n", share.isolated);
        let mut of_queues = 0;
        for (name, queue) in &queues {
            let ticks = usage.queue(*queue, intervals);
            of_queues += ticks;
            let _ = writeln!(
                text,
                "  port: {name:<16}  queue-id: {:2} (enabled)   pmd usage: {}",
                queue.queue,
                percent(ticks)
            );
        }
        if !queues.is_empty() {
            let overhead = percent(busy.saturating_sub(of_queues));
            let _ = writeln!(text, "  overhead: {overhead}");
        }
        text
    }

    /// `dpif/show`: the bridges and their ports.
    pub(super) fn dpif_show(&self) -> String {
        let indices = self.ports.values().filter_map(PortState::index);
        let received: u64 = indices
            .map(|i| self.parts.segment.total(i.into(), Counter::RxPackets))
            .sum();
        let mut text = format!("netdev@{DATAPATH}: hit:{received} missed:0\n");
        for bridge in self.bridges.keys() {
            let _ = writeln!(text, "  {bridge}:");
            let ports = self.ports.values().filter(|p| p.bridge == *bridge);
            for port in ports.filter(|p| !matches!(p.backend, Backend::Failed(_))) {
                let index = port.index().map_or("none".into(), |i| i.to_string());
                let (kind, config) = self.netdev(port);
                let separator = if config.is_empty() { "" } else { ": " };
                let config: Vec<String> = config
                    .iter()
                    .map(|(key, value)| format!("{key}={value}"))
                    .collect();
                let _ = writeln!(
                    text,
                    "    {} {}/{index}: ({kind}{separator}{})",
                    port.name,
                    port.ofport,
                    config.join(", ")
                );
            }
        }
        text
    }

    /// The type of a port as Open vSwitch's userspace datapath has it, and its configuration.
    fn netdev(&self, port: &PortState) -> (&'static str, Vec<(&'static str, u64)>) {
        match (&port.kind, &port.backend) {
            (Kind::Client { port: number }, _) => {
                let claim = self.clients.claims.get(number);
                let queues = claim.map_or(0, |c| c.session.queues().len() as u64);
                let config = vec![
                    ("configured_rx_queues", queues),
                    ("configured_tx_queues", queues),
                    ("mtu", port.mtu.into()),
                ];
                ("dpdkr", config)
            }
            (_, Backend::Ethdev { io, setup, .. }) => {
                let config = vec![
                    ("configured_rx_queues", io.device.rx_queues().into()),
                    ("configured_tx_queues", io.device.tx_queues().into()),
                    ("mtu", port.mtu.into()),
                    ("requested_rx_queues", setup.rx_queues.into()),
                    ("requested_rxq_descriptors", setup.rx_descriptors.into()),
                    ("requested_tx_queues", setup.tx_queues.into()),
                    ("requested_txq_descriptors", setup.tx_descriptors.into()),
                ];
                ("dpdk", config)
            }
            (Kind::Netdev, _) => ("system", Vec::new()),
            _ => ("tap", Vec::new()),
        }
    }
}

/// The wall clock's time of day, UTC, with milliseconds.
#[expect(clippy::disallowed_methods, reason = "shown to people, never reckoned with")]
fn time_of_day() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, ms) = (now.as_secs() % 86_400, now.subsec_millis());
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{ms:03}", seconds % 60)
}

/// `part` of `whole`; nothing of nothing is 0.
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        part as f64 / whole as f64
    }
}

/// `pmd-stats-show` of one thread.
fn stats(thread: &ThreadSnapshot) -> String {
    let ThreadSnapshot {
        packets,
        busy_cycles,
        idle_cycles,
        ..
    } = *thread;
    let passes = if packets > 0 { 1.0 } else { 0.0 };
    let mut text = format!(
        "  packets received: {packets}\n  packet recirculations: 0\n  avg. datapath passes per packet: {passes:.2}\n  \
         phwol hits: 0\n  mfex opt hits: 0\n  simple match hits: 0\n  emc hits: 0\n  smc hits: 0\n  megaflow hits: 0\n  \
         avg. subtable lookups per megaflow hit: 0.00\n  miss with success upcall: 0\n  miss with failed upcall: 0\n  \
         avg. packets per output batch: {:.2}\n",
        ratio(thread.sent_packets, thread.sent_batches)
    );
    let all = busy_cycles + idle_cycles;
    if all == 0 {
        return text;
    }
    let _ = write!(
        text,
        "  idle cycles: {idle_cycles} ({:.2}%)\n  processing cycles: {busy_cycles} ({:.2}%)\n",
        100.0 * ratio(idle_cycles, all),
        100.0 * ratio(busy_cycles, all)
    );
    if packets > 0 {
        let _ = write!(
            text,
            "  avg cycles per packet: {:.2} ({all}/{packets})\n  avg processing cycles per packet: {:.2} \
             ({busy_cycles}/{packets})\n",
            ratio(all, packets),
            ratio(busy_cycles, packets)
        );
    }
    text
}

/// `pmd-perf-show` of one thread, over `duration`, at `hz` cycles a second.
fn perf(thread: &ThreadSnapshot, duration: Duration, hz: u64) -> String {
    let ThreadSnapshot {
        packets,
        busy_cycles,
        idle_cycles,
        bursts,
        sleeps,
        sent_packets,
        sent_batches,
        idle_rounds,
        sleep_cycles,
        ..
    } = *thread;
    let us = |cycles: f64| cycles * 1e6 / hz as f64;
    let percent = |part, whole| 100.0 * ratio(part, whole);
    let kpps = |packets: u64| packets as f64 / duration.as_secs_f64().max(1e-9) / 1e3;
    let (rounds, used) = (bursts + idle_rounds, busy_cycles + idle_cycles);
    let total = duration.as_secs_f64() * hz as f64;
    let mut text = format!(
        "  Iterations:         {rounds:12}  ({:.2} us/it)\n  \
         - Used TSC cycles:  {used:12}  ({:5.1} % of total cycles)\n  \
         - idle iterations:  {idle_rounds:12}  ({:5.1} % of used cycles)\n  \
         - busy iterations:  {bursts:12}  ({:5.1} % of used cycles)\n  \
         - sleep iterations: {sleeps:12}  ({:5.1} % of iterations)\n  \
         Sleep time (us):    {:12.0}  ({:3.0} us/iteration avg.)\n",
        us(ratio(used + sleep_cycles, rounds)),
        100.0 * used as f64 / total.max(1.0),
        percent(idle_cycles, used),
        percent(busy_cycles, used),
        percent(sleeps, rounds),
        us(sleep_cycles as f64),
        us(ratio(sleep_cycles, sleeps)),
    );
    if packets > 0 {
        let none = "           0  (  0.0 %";
        let _ = write!(
            text,
            "  Rx packets:         {packets:12}  ({:.0} Kpps, {:.0} cycles/pkt)\n  \
             Datapath passes:    {packets:12}  (1.00 passes/pkt)\n  \
             - PHWOL hits:       {none})\n  - MFEX Opt hits:    {none})\n  - Simple Match hits:{none})\n  \
             - EMC hits:         {none})\n  - SMC hits:         {none})\n  \
             - Megaflow hits:    {none}, 0.00 subtbl lookups/hit)\n  \
             - Upcalls:          {none}, 0.0 us/upcall)\n  - Lost upcalls:     {none})\n",
            kpps(packets),
            ratio(busy_cycles, packets)
        );
    } else {
        let _ = writeln!(text, "  Rx packets:         {packets:12}");
    }
    if sent_packets > 0 {
        let _ = write!(
            text,
            "  Tx packets:         {sent_packets:12}  ({:.0} Kpps)\n  \
             Tx batches:         {sent_batches:12}  ({:.2} pkts/batch)\n",
            kpps(sent_packets),
            ratio(sent_packets, sent_batches)
        );
    } else {
        let _ = writeln!(text, "  Tx packets:         {sent_packets:12}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORKED: ThreadSnapshot = ThreadSnapshot {
        cpu: None,
        busy_cycles: 3_000_000,
        idle_cycles: 1_000_000,
        packets: 60_000,
        bursts: 3_000,
        sleeps: 2_000,
        sent_packets: 64_000,
        sent_batches: 4_000,
        idle_rounds: 5_000,
        sleep_cycles: 12_000_000,
    };

    /// The lines that lib/dpif-netdev.c of Open vSwitch 3.1 prints.
    #[test]
    fn stats_are_those_of_open_vswitch() {
        let caches = "  phwol hits: 0
  mfex opt hits: 0
  simple match hits: 0
  emc hits: 0
  smc hits: 0
  megaflow hits: 0
  avg. subtable lookups per megaflow hit: 0.00
  miss with success upcall: 0
  miss with failed upcall: 0
";
        let expected = format!(
            "  packets received: 60000
  packet recirculations: 0
  avg. datapath passes per packet: 1.00
{caches}  avg. packets per output batch: 16.00
  idle cycles: 1000000 (25.00%)
  processing cycles: 3000000 (75.00%)
  avg cycles per packet: 66.67 (4000000/60000)
  avg processing cycles per packet: 50.00 (3000000/60000)
"
        );
        assert_eq!(stats(&WORKED), expected);
        let nothing = format!(
            "  packets received: 0
  packet recirculations: 0
  avg. datapath passes per packet: 0.00
{caches}  avg. packets per output batch: 0.00
"
        );
        assert_eq!(stats(&ThreadSnapshot::default()), nothing);
    }

    /// The lines that lib/dpif-netdev-perf.c of Open vSwitch 3.1 prints.
    #[test]
    fn performance_is_that_of_open_vswitch() {
        let text = perf(&WORKED, Duration::from_secs(4), 4_000_000);
        let expected = "  Iterations:                 8000  (500.00 us/it)
  - Used TSC cycles:       4000000  ( 25.0 % of total cycles)
  - idle iterations:          5000  ( 25.0 % of used cycles)
  - busy iterations:          3000  ( 75.0 % of used cycles)
  - sleep iterations:         2000  ( 25.0 % of iterations)
  Sleep time (us):         3000000  (1500 us/iteration avg.)
  Rx packets:                60000  (15 Kpps, 50 cycles/pkt)
  Datapath passes:           60000  (1.00 passes/pkt)
  - PHWOL hits:                  0  (  0.0 %)
  - MFEX Opt hits:               0  (  0.0 %)
  - Simple Match hits:           0  (  0.0 %)
  - EMC hits:                    0  (  0.0 %)
  - SMC hits:                    0  (  0.0 %)
  - Megaflow hits:               0  (  0.0 %, 0.00 subtbl lookups/hit)
  - Upcalls:                     0  (  0.0 %, 0.0 us/upcall)
  - Lost upcalls:                0  (  0.0 %)
  Tx packets:                64000  (16 Kpps)
  Tx batches:                 4000  (16.00 pkts/batch)
";
        assert_eq!(text, expected);
        let nothing = perf(&ThreadSnapshot::default(), Duration::ZERO, 4_000_000);
        assert!(!nothing.contains("NaN") && !nothing.contains("inf"), "{nothing}");
        assert!(
            nothing.contains("  Rx packets:                    0\n"),
            "{nothing}"
        );
    }

    #[test]
    fn options_as_ovs_appctl_passes_them() {
        let of = |line: &str| Options::of(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        let found = of("-nh -it 5 -pmd 3 -secs 11 ovs-netdev").unwrap();
        assert_eq!((found.core, found.intervals()), (Some(3), 3));
        assert_eq!(of("").map(|o| o.intervals()), Ok(INTERVALS));
        assert_eq!(of("-secs 600").map(|o| o.intervals()), Ok(INTERVALS));
        assert_eq!(of("-pmd x"), Err("-pmd 'x' is not a number".into()));
        assert_eq!(of("-pmd"), Err("-pmd '' is not a number".into()));
        assert_eq!(
            of("ovs-system"),
            Err("please specify an existing datapath".into())
        );
    }
}
