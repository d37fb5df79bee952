//! The commands of ovs-appctl that ask or tell the switch.

use std::collections::HashMap;
use std::fmt::Write as _;

use vswitch_common::stats::Counter;

use super::reconcile::LOCAL;
use super::{BridgeState, Switch};
use crate::datapath::mac_table::Key;
use crate::datapath::parse::Mac;
use crate::datapath::port::PortIndex;

/// A command as registered: name, usage, least and most arguments.
pub type Spec = (&'static str, &'static str, usize, usize);

/// The commands that [`Switch::command`] answers.
pub const COMMANDS: &[Spec] = &[
    ("coverage/show", "", 0, 0),
    (
        "dpif-netdev/pmd-perf-show",
        "[-nh] [-it iter-history-len] [-ms ms-history-len] [-pmd core] [dp]",
        0,
        8,
    ),
    ("dpif-netdev/pmd-rxq-rebalance", "[dp]", 0, 1),
    ("dpif-netdev/pmd-rxq-show", "[-pmd core] [-secs secs] [dp]", 0, 5),
    ("dpif-netdev/pmd-stats-clear", "[-pmd core] [dp]", 0, 3),
    ("dpif-netdev/pmd-stats-show", "[-pmd core] [dp]", 0, 3),
    ("dpif/show", "", 0, 0),
    ("fdb/add", "bridge port vlan mac", 4, 4),
    ("fdb/del", "bridge vlan mac", 3, 3),
    ("fdb/flush", "[bridge]", 0, 1),
    ("fdb/show", "bridge", 1, 1),
    ("fdb/stats-show", "bridge", 1, 1),
    ("memory/show", "", 0, 0),
    ("ofproto/list", "", 0, 0),
];

impl Switch {
    /// Answers one of [`COMMANDS`].
    ///
    /// # Errors
    /// What ovs-appctl prints as the server's error.
    pub fn command(&mut self, name: &str, args: &[String]) -> Result<String, String> {
        if let Some(name) = name.strip_prefix("dpif-netdev/") {
            return self.pmd_command(name, args);
        }
        let arg = |i: usize| args.get(i).map_or("", String::as_str);
        match name {
            "fdb/show" => Ok(self.fdb_show(self.bridge(arg(0))?)),
            "fdb/stats-show" => Ok(fdb_stats(self.bridge(arg(0))?)),
            "fdb/flush" => {
                match args.first() {
                    Some(name) => self.bridge(name)?.table.flush(),
                    None => self.bridges.values().for_each(|b| b.table.flush()),
                }
                Ok("table successfully flushed\n".into())
            }
            "fdb/add" => {
                let bridge = self.bridge(arg(0))?;
                let port = self.ports.get(arg(1)).filter(|p| p.bridge == bridge.name);
                let index = port.and_then(super::PortState::index).ok_or("no such port")?;
                let key = key(arg(2), arg(3))?;
                if bridge.table.add_fixed(key, index, self.parts.clock.now()) {
                    Ok(String::new())
                } else {
                    Err("no room for it beside other static entries; raise the bridge's other_config:mac-table-size".into())
                }
            }
            "fdb/del" => {
                let bridge = self.bridge(arg(0))?;
                let found = bridge.table.remove(key(arg(1), arg(2))?);
                if found {
                    Ok(String::new())
                } else {
                    Err("no such entry".into())
                }
            }
            "ofproto/list" => Ok(self
                .bridges
                .keys()
                .fold(String::new(), |text, name| text + name + "\n")),
            "coverage/show" => Ok(self.coverage()),
            "memory/show" => Ok(self.memory()),
            "dpif/show" => Ok(self.dpif_show()),
            other => Err(format!("\"{other}\" is not a command of the switch")),
        }
    }

    fn bridge(&self, name: &str) -> Result<&BridgeState, String> {
        self.bridges.get(name).ok_or_else(|| "no such bridge".to_owned())
    }

    fn fdb_show(&self, bridge: &BridgeState) -> String {
        let ports = self.ports.values();
        let numbers: HashMap<PortIndex, u16> = ports.filter_map(|p| Some((p.index()?, p.ofport))).collect();
        let mut text = String::from(" port  VLAN  MAC                Age\n");
        for entry in bridge.table.entries(self.parts.clock.now()) {
            let port = numbers.get(&entry.port).copied().unwrap_or(0);
            let age = entry.age.map_or("static".to_owned(), |a| format!("{a:3}"));
            let _ = writeln!(text, "{}  {:4}  {}  {age}", fdb_port(port), entry.vlan, entry.mac);
        }
        text
    }

    /// Counters that are not zero, over all ports.
    fn coverage(&self) -> String {
        let mut text = String::new();
        for &counter in Counter::ALL {
            let ports = self.ports.values().filter_map(super::PortState::index);
            let total: u64 = ports.map(|i| self.parts.segment.total(i.into(), counter)).sum();
            if total > 0 {
                let _ = writeln!(text, "{:<24} total: {total}", counter.name());
            }
        }
        text
    }

    fn memory(&self) -> String {
        let ledger = &self.parts.ledger;
        let entries: usize = self.bridges.values().map(|b| b.table.len()).sum();
        let mut text = format!(
            "mbufs:{} mbufs-free:{} ports:{} clients:{} mac-entries:{entries}",
            ledger.size(),
            ledger.available(),
            self.ports.len(),
            self.clients.claims.len()
        );
        if let pools @ [_, _, ..] = ledger.pools() {
            for pool in pools {
                let (node, size, free) = (pool.node().unwrap_or(0), pool.size(), pool.available());
                let _ = write!(text, " node{node}-mbufs:{size} node{node}-mbufs-free:{free}");
            }
        }
        text + "\n"
    }
}

/// The column of a port in `fdb/show`.
fn fdb_port(ofport: u16) -> String {
    if ofport == LOCAL {
        "LOCAL".into()
    } else {
        format!("{ofport:5}")
    }
}

fn fdb_stats(bridge: &BridgeState) -> String {
    let totals = bridge.table.totals();
    let now = bridge.table.len();
    format!(
        "Statistics for bridge \"{}\":\n  Current/maximum MAC entries in the table: {now}/{}\n  \
         Total number of learned MAC entries     : {}\n  Total number of expired MAC entries     : {}\n  \
         Total number of evicted MAC entries     : {}\n  Total number of port moved MAC entries  : {}\n",
        bridge.name,
        bridge.table.capacity(),
        totals.learned,
        totals.expired,
        totals.evicted,
        totals.moved
    )
}

fn key(vlan: &str, mac: &str) -> Result<Key, String> {
    let vlan = vlan
        .parse()
        .ok()
        .filter(|&v: &u16| v < 4096)
        .ok_or("Invalid VLAN")?;
    let mac: vswitch_control::MacAddr = mac.parse().map_err(|e| format!("{e}"))?;
    Ok(Key::new(vlan, Mac::new(mac.0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_port_of_a_bridge_has_a_name_as_in_open_vswitch() {
        assert_eq!(fdb_port(LOCAL), "LOCAL");
        assert_eq!(fdb_port(7), "    7");
        assert_eq!(fdb_port(65279), "65279");
    }
}
