//! What Mirror rows ask for (ovs-vswitchd.conf.db(5)).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use vswitch_control::Uuid;
use vswitch_control::config::{BridgeConfig, MirrorConfig};
use vswitch_control::status::MirrorStatus;

use super::{Switch, complain, unsupported};
use crate::datapath::mirror::{Mirror, Selected};
use crate::datapath::port::PortIndex;
use crate::datapath::vlan::VlanSet;

/// The mirrors of a bridge.
#[derive(Debug, Default)]
pub struct Mirrors(Vec<MirrorState>);

#[derive(Debug)]
struct MirrorState {
    uuid: Uuid,
    /// What it selects and for whom; `None`: it has no effect.
    settings: Option<Settings>,
    selected: Arc<Selected>,
    /// What is wrong with its row.
    complaints: Vec<String>,
}

/// What is configured of a mirror that has an output. Ports are named by their interfaces.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Settings {
    sources: BTreeSet<String>,
    destinations: BTreeSet<String>,
    vlans: Option<VlanSet>,
    output: String,
    snaplen: usize,
}

impl Settings {
    /// Reads `mirror`, which is `bridge`'s. What is wrong in it is named.
    fn of(mirror: &MirrorConfig, bridge: &BridgeConfig) -> (Option<Settings>, Vec<String>) {
        let mut complaints = Vec::new();
        let interface = |port: &String| {
            let port = bridge.ports.iter().find(|p| p.name == *port)?;
            Some(port.interfaces.first()?.name.clone())
        };
        let mut selected = |column: &str, ports: &[String]| -> BTreeSet<String> {
            let strangers = ports.iter().filter(|port| interface(port).is_none());
            complaints.extend(strangers.map(|port| format!("{column} {port} is no port of the bridge")));
            ports.iter().filter_map(interface).collect()
        };
        let (mut sources, mut destinations) = (
            selected("select_src_port", &mirror.select_src_port),
            selected("select_dst_port", &mirror.select_dst_port),
        );
        if mirror.select_all {
            let all = bridge.ports.iter().flat_map(|port| &port.interfaces);
            sources = all.map(|interface| interface.name.clone()).collect();
            destinations = sources.clone();
        }
        complaints.extend(unsupported(&mirror.unsupported));
        if mirror.output_vlan.is_some() {
            complaints.push("output_vlan is not supported; set output_port".into());
        }
        let output = match &mirror.output_port {
            Some(port) => interface(port).or_else(|| {
                complaints.push(format!(
                    "it has no effect: output_port {port} is no port of the bridge"
                ));
                None
            }),
            None => {
                complaints.push("it has no effect without an output_port".into());
                None
            }
        };
        if output.is_some() && sources.is_empty() && destinations.is_empty() {
            complaints.push("it selects nothing: set select_all, select_src_port or select_dst_port".into());
        }
        let vlans = (!mirror.select_vlan.is_empty()).then(|| VlanSet::of(&mirror.select_vlan));
        let settings = output.map(|output| Settings {
            sources,
            destinations,
            vlans,
            output,
            snaplen: mirror.snaplen.map_or(usize::MAX, usize::from),
        });
        (settings, complaints)
    }
}

impl Mirrors {
    /// Brings the mirrors of `bridge` into force. Those that stay go on counting.
    pub fn configure(&mut self, bridge: &BridgeConfig) {
        let mut old: BTreeMap<Uuid, MirrorState> = self.0.drain(..).map(|m| (m.uuid, m)).collect();
        for row in &bridge.mirrors {
            let (settings, complaints) = Settings::of(row, bridge);
            let mut state = old.remove(&row.uuid).unwrap_or_else(|| MirrorState {
                uuid: row.uuid,
                settings: None,
                selected: Arc::default(),
                complaints: Vec::new(),
            });
            let who = format!("bridge {}: mirror {}: ", bridge.name, row.name);
            if state.settings.is_none() && settings.is_some() {
                log::info!("{who}added");
            }
            state.settings = settings;
            complain(&who, &mut state.complaints, complaints);
            self.0.push(state);
        }
    }

    /// The interfaces that are outputs, and nothing else.
    pub fn outputs(&self) -> BTreeSet<&str> {
        let settings = self.0.iter().filter_map(|mirror| mirror.settings.as_ref());
        settings.map(|settings| settings.output.as_str()).collect()
    }

    /// For the datapath, where `index` tells of an interface. A mirror whose output does not work is left out.
    pub fn in_datapath(&self, index: impl Fn(&str) -> Option<PortIndex>) -> Vec<Mirror> {
        let mirrors = self.0.iter().filter_map(|state| {
            let settings = state.settings.as_ref()?;
            let set = |names: &BTreeSet<String>| names.iter().filter_map(|name| index(name)).collect();
            Some(Mirror {
                sources: set(&settings.sources),
                destinations: set(&settings.destinations),
                vlans: settings.vlans.clone(),
                output: index(&settings.output)?,
                snaplen: settings.snaplen,
                selected: state.selected.clone(),
            })
        });
        Mirror::in_order(mirrors.collect())
    }

    /// For the database.
    pub fn status(&self) -> impl Iterator<Item = (Uuid, MirrorStatus)> {
        self.0.iter().map(|mirror| {
            let (packets, bytes) = mirror.selected.get();
            let statistics = [("tx_packets", packets), ("tx_bytes", bytes)];
            let statistics = statistics.map(|(key, value)| (key.to_owned(), value as i64));
            let statistics = statistics.into();
            (mirror.uuid, MirrorStatus { statistics })
        })
    }
}

impl Switch {
    /// Forgets what was learned behind ports that are mirrors' outputs, once they are.
    pub(super) fn flush_mirror_outputs(&self) {
        let outputs = self.bridges.values().flat_map(|bridge| bridge.mirrors.outputs());
        let indexes = outputs.filter_map(|name| self.ports.get(name)?.index());
        indexes.for_each(|index| self.flush_port(index));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vswitch_control::config::{InterfaceConfig, PortConfig};

    /// A bridge with ports a, b and span; the interface of the last is called eth9.
    fn bridge(mirrors: Vec<MirrorConfig>) -> BridgeConfig {
        let port = |name: &str, interface: &str| PortConfig {
            name: name.into(),
            interfaces: vec![InterfaceConfig {
                name: interface.into(),
                ..InterfaceConfig::default()
            }],
            ..PortConfig::default()
        };
        BridgeConfig {
            name: "br0".into(),
            ports: vec![port("a", "a"), port("b", "b"), port("span", "eth9")],
            mirrors,
            ..BridgeConfig::default()
        }
    }

    fn row(change: impl FnOnce(&mut MirrorConfig)) -> MirrorConfig {
        let mut row = MirrorConfig {
            uuid: Uuid(7),
            select_src_port: vec!["a".into()],
            output_port: Some("span".into()),
            ..MirrorConfig::default()
        };
        change(&mut row);
        row
    }

    fn of(change: impl FnOnce(&mut MirrorConfig)) -> (Option<Settings>, Vec<String>) {
        Settings::of(&row(change), &bridge(Vec::new()))
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn a_mirror_is_as_its_row_says() {
        let plain = Settings {
            sources: names(&["a"]),
            destinations: names(&[]),
            vlans: None,
            output: "eth9".into(),
            snaplen: usize::MAX,
        };
        assert_eq!(of(|_| {}), (Some(plain.clone()), Vec::new()));
        let all = names(&["a", "b", "eth9"]);
        let asked = of(|m| (m.select_all, m.snaplen, m.select_vlan) = (true, Some(64), vec![5]));
        let whole = Settings {
            sources: all.clone(),
            destinations: all,
            vlans: Some(VlanSet::of(&[5])),
            snaplen: 64,
            ..plain
        };
        assert_eq!(asked, (Some(whole), Vec::new()));
    }

    #[test]
    fn what_is_wrong_is_named() {
        type Change = fn(&mut MirrorConfig);
        let cases: [(&str, bool, Change); 6] = [
            ("it has no effect without an output_port", false, |m| {
                m.output_port = None;
            }),
            (
                "it has no effect: output_port x is no port of the bridge",
                false,
                |m| {
                    m.output_port = Some("x".into());
                },
            ),
            ("output_vlan is not supported; set output_port", true, |m| {
                m.output_vlan = Some(9);
            }),
            ("it selects nothing: set select_all, ", true, |m| {
                m.select_src_port.clear()
            }),
            ("select_dst_port x is no port of the bridge", true, |m| {
                m.select_dst_port = vec!["x".into(), "b".into()];
            }),
            ("not supported and without effect: filter", true, |m| {
                m.unsupported = vec!["filter"];
            }),
        ];
        for (text, works, change) in cases {
            let (settings, complaints) = of(change);
            assert_eq!(settings.is_some(), works, "{text}");
            let [complaint] = &complaints[..] else {
                panic!("{text}: {complaints:?}")
            };
            assert!(complaint.starts_with(text), "{complaint}");
        }
    }

    #[test]
    fn the_datapath_gets_the_ports_that_work() {
        let mut mirrors = Mirrors::default();
        mirrors.configure(&bridge(vec![row(|m| m.select_all = true)]));
        let index = |name: &str| ["eth9", "b"].iter().position(|&known| known == name);
        let index = |name: &str| index(name).map(|at| at as PortIndex);
        let [mirror] = &mirrors.in_datapath(index)[..] else {
            panic!("{mirrors:?}")
        };
        assert_eq!(mirror.output, 0);
        assert_eq!(mirror.sources, [0, 1].into_iter().collect());
        assert_eq!(mirrors.outputs(), ["eth9"].into());
        let without_output = |name: &str| (name == "a").then_some(1);
        assert!(mirrors.in_datapath(without_output).is_empty());
        // A change keeps what was counted.
        let selected = mirror.selected.clone();
        mirrors.configure(&bridge(vec![row(|_| {})]));
        assert!(Arc::ptr_eq(&mirrors.0[0].selected, &selected));
        mirrors.configure(&bridge(Vec::new()));
        assert!(mirrors.0.is_empty());
    }
}
