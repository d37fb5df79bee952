//! Builds the configuration from the replica.
//!
//! References to rows that are not there, and columns that are missing or out of range, are passed over: the server's
//! schema rules them out, and another schema must not stop the switch.

use super::replica::{Replica, Row};
use super::schema::TABLES;
use super::value::{Atom, Datum};
use crate::Uuid;
use crate::config::{
    BridgeConfig, FailMode, Hint, InterfaceConfig, MirrorConfig, PortConfig, SwitchConfig, VlanMode,
};
use std::collections::BTreeMap;

/// The configuration as it stands; empty while there is no root row.
pub(super) fn config(replica: &Replica) -> SwitchConfig {
    let Some((_, root)) = replica.root() else {
        return SwitchConfig::default();
    };
    SwitchConfig {
        other_config: string_map(root, "other_config"),
        next_cfg: integer(root, "next_cfg").unwrap_or(0),
        bridges: referenced(replica, root, "bridges", "Bridge", bridge, |b| &b.name),
    }
}

fn bridge(replica: &Replica, uuid: Uuid, row: &Row) -> BridgeConfig {
    BridgeConfig {
        uuid,
        name: text(row, "name").unwrap_or_default(),
        datapath_type: text(row, "datapath_type").unwrap_or_default(),
        other_config: string_map(row, "other_config"),
        fail_mode: text(row, "fail_mode").and_then(|mode| match mode.as_str() {
            "standalone" => Some(FailMode::Standalone),
            "secure" => Some(FailMode::Secure),
            _ => None,
        }),
        controller: column(row, "controller").uuids().next().is_some(),
        unsupported: unsupported(row, "Bridge"),
        ports: referenced(replica, row, "ports", "Port", port, |p| &p.name),
        mirrors: referenced(replica, row, "mirrors", "Mirror", mirror, |m| &m.name),
    }
}

fn mirror(replica: &Replica, uuid: Uuid, row: &Row) -> MirrorConfig {
    let ports = |from| {
        let name = |_: &Replica, _, port: &Row| text(port, "name").unwrap_or_default();
        referenced(replica, row, from, "Port", name, |name| name)
    };
    MirrorConfig {
        uuid,
        name: text(row, "name").unwrap_or_default(),
        select_all: column(row, "select_all")
            .atoms()
            .any(|atom| *atom == Atom::Boolean(true)),
        select_src_port: ports("select_src_port"),
        select_dst_port: ports("select_dst_port"),
        select_vlan: column(row, "select_vlan").integers().filter_map(vlan).collect(),
        output_port: ports("output_port").into_iter().next(),
        output_vlan: column(row, "output_vlan").integers().find_map(vlan),
        snaplen: integer(row, "snaplen")
            .and_then(|bytes| u16::try_from(bytes).ok())
            .filter(|bytes| *bytes >= 14),
        unsupported: unsupported(row, "Mirror"),
    }
}

fn port(replica: &Replica, _: Uuid, row: &Row) -> PortConfig {
    PortConfig {
        name: text(row, "name").unwrap_or_default(),
        tag: column(row, "tag").integers().find_map(vlan),
        trunks: column(row, "trunks").integers().filter_map(vlan).collect(),
        vlan_mode: text(row, "vlan_mode").and_then(|mode| match mode.as_str() {
            "access" => Some(VlanMode::Access),
            "trunk" => Some(VlanMode::Trunk),
            "native-tagged" => Some(VlanMode::NativeTagged),
            "native-untagged" => Some(VlanMode::NativeUntagged),
            "dot1q-tunnel" => Some(VlanMode::Dot1qTunnel),
            _ => None,
        }),
        unsupported: unsupported(row, "Port"),
        interfaces: referenced(replica, row, "interfaces", "Interface", interface, |i| &i.name),
    }
}

fn interface(_: &Replica, uuid: Uuid, row: &Row) -> InterfaceConfig {
    let name = text(row, "name").unwrap_or_default();
    let at_least_0 = |column| integer(row, column).unwrap_or(0).max(0);
    let port_number = |column| {
        integer(row, column)
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| (1..=65279).contains(port))
    };
    InterfaceConfig {
        uuid,
        kind: text(row, "type").unwrap_or_default(),
        options: string_map(row, "options"),
        mac: text(row, "mac"),
        mtu_request: integer(row, "mtu_request").filter(|mtu| *mtu >= 1),
        ofport_request: port_number("ofport_request"),
        ofport: Hint(port_number("ofport")),
        other_config: string_map(row, "other_config"),
        ingress_policing_rate: at_least_0("ingress_policing_rate"),
        ingress_policing_burst: at_least_0("ingress_policing_burst"),
        ingress_policing_kpkts_rate: at_least_0("ingress_policing_kpkts_rate"),
        ingress_policing_kpkts_burst: at_least_0("ingress_policing_kpkts_burst"),
        unsupported: unsupported(row, "Interface"),
        name,
    }
}

/// The columns of a row of `table` that ask for what the switch does not have: they are not empty, and do not say no. Those of
/// a protocol's settings ask for it by `enable`, as in Open vSwitch.
fn unsupported(row: &Row, table: &str) -> Vec<&'static str> {
    let columns = TABLES.iter().find(|spec| spec.name == table);
    let columns = columns.map_or(&[][..], |spec| spec.unsupported);
    let no = [Atom::Boolean(false), "off".into()];
    let asks = |name: &&str| {
        let column = column(row, name);
        column.atoms().any(|atom| !no.contains(atom))
            || column
                .to_string_map()
                .get("enable")
                .is_some_and(|enable| enable == "true")
    };
    columns.iter().copied().filter(asks).collect()
}

/// The rows that a column of references leads to, built and sorted by `key`.
fn referenced<T>(
    replica: &Replica,
    row: &Row,
    from: &str,
    table: &str,
    build: impl Fn(&Replica, Uuid, &Row) -> T,
    key: impl Fn(&T) -> &String,
) -> Vec<T> {
    let uuids = column(row, from).uuids();
    let rows = uuids.filter_map(|uuid| replica.row(table, uuid).map(|row| build(replica, uuid, row)));
    let mut items: Vec<T> = rows.collect();
    items.sort_by(|a, b| key(a).cmp(key(b)));
    items
}

fn column<'a>(row: &'a Row, name: &str) -> &'a Datum {
    static EMPTY: Datum = Datum::Set(std::collections::BTreeSet::new());
    row.get(name).unwrap_or(&EMPTY)
}

fn text(row: &Row, name: &str) -> Option<String> {
    column(row, name).texts().next().map(str::to_owned)
}

fn integer(row: &Row, name: &str) -> Option<i64> {
    column(row, name).integers().next()
}

fn string_map(row: &Row, name: &str) -> BTreeMap<String, String> {
    column(row, name).to_string_map()
}

fn vlan(id: i64) -> Option<u16> {
    u16::try_from(id).ok().filter(|id| *id <= 4095)
}

#[cfg(test)]
mod tests {
    use super::super::schema::Watched;
    use super::super::value::tests::any_datum;
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn id(n: u128) -> String {
        Uuid(n).to_string()
    }

    #[test]
    fn a_bridge_with_two_ports_in_name_order() {
        let mut replica = Replica::new(Watched::all());
        let references = |ids: &[u128]| {
            json!([
                "set",
                ids.iter().map(|n| json!(["uuid", id(*n)])).collect::<Vec<_>>()
            ])
        };
        replica
            .apply(&json!({
                "Open_vSwitch": {id(1): {"new": {
                    "bridges": ["uuid", id(2)], "next_cfg": 7, "other_config": ["map", [["dpdk-extra", "-v"]]]}}},
                "Bridge": {id(2): {"new": {
                    "name": "br0", "datapath_type": "dpdk", "fail_mode": "secure", "ports": references(&[3, 4, 99]),
                    "mirrors": references(&[7, 77]), "stp_enable": true, "rstp_enable": false, "sflow": ["set", []]}}},
                "Port": {
                    id(3): {"new": {"name": "z", "tag": 5, "interfaces": ["uuid", id(5)], "qos": ["uuid", id(55)], "protected": false}},
                    id(4): {"new": {"name": "a", "trunks": ["set", [10, 2, 5000]], "vlan_mode": "native-tagged",
                        "interfaces": references(&[6, 98])}}},
                "Mirror": {id(7): {"new": {"name": "m", "select_all": false, "select_src_port": references(&[3, 4, 97]),
                    "select_vlan": ["set", [10, 5, 5000]], "output_port": ["uuid", id(4)], "snaplen": 64, "filter": "ip"}}},
                "Interface": {
                    id(5): {"new": {"name": "z", "type": "dpdk", "mac": "00:00:00:00:00:02", "ofport_request": 70000,
                        "bfd": ["map", [["enable", "true"]]], "lldp": ["map", [["enable", "false"]]], "cfm_mpid": 0}},
                    id(6): {"new": {"name": "a", "mac": "nonsense", "ofport_request": 9, "mtu_request": 9000,
                        "options": ["map", [["port", "2"]]], "ingress_policing_rate": 100}}}
            }))
            .unwrap();
        let config = config(&replica);
        assert_eq!(config.next_cfg, 7);
        assert_eq!(config.other_config["dpdk-extra"], "-v");
        let bridge = &config.bridges[0];
        assert_eq!(
            (bridge.name.as_str(), bridge.datapath_type.as_str()),
            ("br0", "dpdk")
        );
        assert_eq!(bridge.fail_mode, Some(FailMode::Secure));
        assert_eq!(bridge.unsupported, ["stp_enable"]);
        let mirror = MirrorConfig {
            uuid: Uuid(7),
            name: "m".into(),
            select_all: false,
            select_src_port: vec!["a".into(), "z".into()],
            select_dst_port: Vec::new(),
            select_vlan: vec![5, 10],
            output_port: Some("a".into()),
            output_vlan: None,
            snaplen: Some(64),
            unsupported: vec!["filter"],
        };
        assert_eq!(bridge.mirrors, [mirror]);
        let [a, z] = bridge.ports.as_slice() else {
            panic!("{:?}", bridge.ports)
        };
        assert_eq!(
            (a.name.as_str(), a.tag, a.trunks.as_slice()),
            ("a", None, [2, 10].as_slice())
        );
        assert_eq!(a.vlan_mode, Some(VlanMode::NativeTagged));
        assert_eq!(a.interfaces.len(), 1);
        assert_eq!(
            (a.interfaces[0].mac.as_deref(), a.interfaces[0].ofport_request),
            (Some("nonsense"), Some(9))
        );
        assert_eq!(
            (a.interfaces[0].mtu_request, a.interfaces[0].ingress_policing_rate),
            (Some(9000), 100)
        );
        assert_eq!(a.interfaces[0].options["port"], "2");
        assert_eq!(z.unsupported, ["qos"]);
        assert_eq!((z.tag, z.interfaces[0].kind.as_str()), (Some(5), "dpdk"));
        assert_eq!(z.interfaces[0].mac.as_deref(), Some("00:00:00:00:00:02"));
        assert_eq!(z.interfaces[0].ofport_request, None);
        assert_eq!(z.interfaces[0].unsupported, ["bfd", "cfm_mpid"]);
        assert!(a.interfaces[0].unsupported.is_empty());
    }

    #[test]
    fn lacp_that_is_off_asks_for_nothing() {
        for (mode, named) in [("active", &["lacp"][..]), ("passive", &["lacp"]), ("off", &[])] {
            let mut row = Row::default();
            row.set("lacp", Datum::one(mode.into()));
            assert_eq!(unsupported(&row, "Port"), named);
        }
    }

    /// Or the switch would set its ports up anew for what it has written itself.
    #[test]
    fn the_number_that_a_port_has_makes_no_other_configuration() {
        let with_number = |number: i64| {
            let mut replica = Replica::new(Watched::all());
            let rows = json!({
                "Open_vSwitch": {id(1): {"new": {"bridges": ["uuid", id(2)]}}},
                "Bridge": {id(2): {"new": {"name": "br0", "ports": ["uuid", id(3)]}}},
                "Port": {id(3): {"new": {"name": "a", "interfaces": ["uuid", id(4)]}}},
                "Interface": {id(4): {"new": {"name": "a", "ofport": number}}}
            });
            replica.apply(&rows).unwrap();
            let config = config(&replica);
            (config.bridges[0].ports[0].interfaces[0].ofport.0, config)
        };
        let (seven, failed, own) = (with_number(7), with_number(-1), with_number(65534));
        assert_eq!((seven.0, failed.0, own.0), (Some(7), None, None));
        assert_eq!(seven.1, failed.1);
    }

    proptest! {
        /// Any content in any column, dangling and crossed references included.
        #[test]
        fn any_database_gives_a_configuration(
            cells in prop::collection::vec((0..TABLES.len(), 0u128..4, 0usize..12, any_datum()), 0..60),
            links in prop::collection::vec((0usize..5, 0u128..4, prop::collection::btree_set(0u128..5, 0..4)), 0..12),
        ) {
            let mut rows: BTreeMap<(usize, u128), Row> = BTreeMap::new();
            for (table, uuid, column, datum) in cells {
                let columns = [TABLES[table].config, TABLES[table].unsupported].concat();
                rows.entry((table, uuid)).or_default().set(columns[column % columns.len()], datum);
            }
            for (which, uuid, to) in links {
                let (table, column) = [(0, "bridges"), (1, "ports"), (1, "controller"), (2, "interfaces"), (1, "mirrors")][which];
                let datum = Datum::Set(to.into_iter().map(|u| Atom::Uuid(Uuid(u))).collect());
                rows.entry((table, uuid)).or_default().set(column, datum);
            }
            let mut replica = Replica::new(Watched::all());
            for ((table, uuid), row) in rows {
                replica.insert(TABLES[table].name, Uuid(uuid), row);
            }
            let config = config(&replica);
            prop_assert!(config.bridges.is_sorted_by_key(|b| &b.name));
            for bridge in &config.bridges {
                prop_assert!(bridge.ports.is_sorted_by_key(|p| &p.name));
                for port in &bridge.ports {
                    prop_assert!(port.trunks.is_sorted() && port.trunks.iter().all(|v| *v <= 4095));
                }
            }
        }
    }
}
