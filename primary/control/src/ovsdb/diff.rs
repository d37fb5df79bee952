//! Compares the published status with the replica: what differs becomes `update` operations (RFC 7047 section 5.2.3).

use super::DATABASE;
use super::replica::{Replica, Row};
use super::value::{Atom, Datum};
use crate::Uuid;
use crate::status::{BridgeStatus, Duplex, InterfaceStatus, LinkState, Status};
use serde_json::{Map, Value, json};

/// One column as it should be.
type Column = (&'static str, Datum);

/// The operations that bring the database to `status`; none when it is there already.
///
/// Paced columns (statistics) are left alone unless `paced` is set. `cur_cfg` is never put ahead of `next_cfg`:
/// it would then belong to another database, and make the next `ovs-vsctl` return too early.
pub(super) fn operations(status: &Status, replica: &Replica, paced: bool) -> Vec<Value> {
    let mut operations = Vec::new();
    if let Some((uuid, row)) = replica.root() {
        let columns = root_columns(status, status.cur_cfg <= next_cfg(row));
        operations.extend(update(replica, DATABASE, uuid, row, columns));
    }
    let mut rows = |table, uuid, columns| {
        if let Some(row) = replica.row(table, uuid) {
            operations.extend(update(replica, table, uuid, row, columns));
        }
    };
    for (uuid, bridge) in &status.bridges {
        rows("Bridge", *uuid, bridge_columns(bridge));
    }
    for (uuid, interface) in &status.interfaces {
        rows("Interface", *uuid, interface_columns(interface, paced));
    }
    for (uuid, mirror) in status.mirrors.iter().filter(|_| paced) {
        rows(
            "Mirror",
            *uuid,
            vec![("statistics", Datum::integer_map(&mirror.statistics))],
        );
    }
    operations
}

/// True when the published `cur_cfg` is to be written.
pub(super) fn cur_cfg_differs(status: &Status, replica: &Replica) -> bool {
    let Some((_, row)) = replica.root() else {
        return false;
    };
    let shown = row.get("cur_cfg").and_then(|d| d.integers().next());
    shown.is_some_and(|shown| shown != status.cur_cfg) && status.cur_cfg <= next_cfg(row)
}

fn next_cfg(root: &Row) -> i64 {
    root.get("next_cfg")
        .and_then(|d| d.integers().next())
        .unwrap_or(0)
}

/// One operation for the columns of a row that differ.
fn update(replica: &Replica, table: &str, uuid: Uuid, row: &Row, columns: Vec<Column>) -> Option<Value> {
    let mut changed = Map::new();
    for (name, wanted) in columns {
        if replica.watched.contains(table, name) && row.get(name) != Some(&wanted) {
            changed.insert(name.to_owned(), wanted.to_json());
        }
    }
    let condition = json!([["_uuid", "==", ["uuid", uuid.to_string()]]]);
    (!changed.is_empty()).then(|| json!({"op": "update", "table": table, "where": condition, "row": changed}))
}

fn root_columns(status: &Status, with_cur_cfg: bool) -> Vec<Column> {
    let mut columns = vec![
        ("dpdk_version", optional_text(status.dpdk_version.as_deref())),
        (
            "dpdk_initialized",
            Datum::one(Atom::Boolean(status.dpdk_initialized)),
        ),
        ("datapath_types", Datum::strings(&status.datapath_types)),
        ("iface_types", Datum::strings(&status.iface_types)),
    ];
    if with_cur_cfg {
        columns.push(("cur_cfg", Datum::one(Atom::Integer(status.cur_cfg))));
    }
    columns
}

fn bridge_columns(bridge: &BridgeStatus) -> Vec<Column> {
    vec![
        ("datapath_id", optional_text(bridge.datapath_id.as_deref())),
        (
            "datapath_version",
            Datum::one(bridge.datapath_version.as_str().into()),
        ),
    ]
}

fn interface_columns(interface: &InterfaceStatus, paced: bool) -> Vec<Column> {
    let mac = interface.mac_in_use.map(|mac| mac.to_string());
    let ifindex = interface
        .ifindex
        .filter(|i| (0..=i64::from(u32::MAX)).contains(i));
    let mut columns = vec![
        ("ofport", optional_integer(interface.ofport)),
        ("error", optional_text(interface.error.as_deref())),
        (
            "admin_state",
            optional_text(interface.admin_state.map(link_state)),
        ),
        ("link_state", optional_text(interface.link_state.map(link_state))),
        ("link_speed", optional_integer(interface.link_speed)),
        ("duplex", optional_text(interface.duplex.map(duplex))),
        ("mac_in_use", optional_text(mac.as_deref())),
        ("mtu", optional_integer(interface.mtu)),
        ("ifindex", optional_integer(ifindex)),
        ("status", Datum::string_map(&interface.status)),
    ];
    if paced {
        columns.push(("statistics", Datum::integer_map(&interface.statistics)));
    }
    columns
}

fn link_state(state: LinkState) -> &'static str {
    match state {
        LinkState::Up => "up",
        LinkState::Down => "down",
    }
}

fn duplex(duplex: Duplex) -> &'static str {
    match duplex {
        Duplex::Half => "half",
        Duplex::Full => "full",
    }
}

fn optional_text(text: Option<&str>) -> Datum {
    Datum::optional(text.map(Atom::from))
}

fn optional_integer(integer: Option<i64>) -> Datum {
    Datum::optional(integer.map(Atom::Integer))
}

#[cfg(test)]
mod tests {
    use super::super::schema::Watched;
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// A replica with the root row (UUID 1) and interfaces.
    fn replica(next_cfg: i64, interfaces: &[u128]) -> Replica {
        let mut replica = Replica::new(Watched::all());
        let mut root = Row::default();
        root.set("next_cfg", Datum::one(Atom::Integer(next_cfg)));
        root.set("cur_cfg", Datum::one(Atom::Integer(0)));
        replica.insert(DATABASE, Uuid(1), root);
        for uuid in interfaces {
            replica.insert("Interface", Uuid(*uuid), Row::default());
        }
        replica
    }

    /// Does what the server does with `update` operations.
    fn obey(replica: &mut Replica, operations: &[Value]) {
        for operation in operations {
            let table = operation["table"].as_str().unwrap();
            let uuid: Uuid = operation["where"][0][2][1].as_str().unwrap().parse().unwrap();
            let mut row = replica.row(table, uuid).cloned().unwrap_or_default();
            for (column, value) in operation["row"].as_object().unwrap() {
                row.set(column, Datum::parse(value).unwrap());
            }
            replica.insert(table, uuid, row);
        }
    }

    fn any_interface() -> impl Strategy<Value = InterfaceStatus> {
        (
            any::<Option<i64>>(),
            any::<Option<String>>(),
            any::<Option<bool>>(),
            any::<Option<i64>>(),
            prop::collection::btree_map("[a-z]{1,3}", any::<i64>(), 0..3),
        )
            .prop_map(|(ofport, error, up, ifindex, statistics)| InterfaceStatus {
                ofport,
                error: error.map(|e| e.replace('\0', "")),
                link_state: up.map(|up| if up { LinkState::Up } else { LinkState::Down }),
                ifindex,
                statistics,
                ..Default::default()
            })
    }

    proptest! {
        #[test]
        fn once_written_nothing_differs(
            before in prop::collection::btree_map(2u128..6, any_interface(), 0..4),
            after in prop::collection::btree_map(2u128..6, any_interface(), 0..4),
        ) {
            let mut replica = replica(5, &[2, 3, 4]); // row 5 is gone
            for interfaces in [before, after] {
                let interfaces: BTreeMap<_, _> = interfaces.into_iter().map(|(u, i)| (Uuid(u), i)).collect();
                let status = Status { cur_cfg: 5, interfaces, ..Default::default() };
                let operations_due = operations(&status, &replica, true);
                prop_assert!(operations_due.iter().all(|o| !o.to_string().contains(&Uuid(5).to_string())));
                obey(&mut replica, &operations_due);
                prop_assert_eq!(operations(&status, &replica, true), Vec::<Value>::new());
                prop_assert!(!cur_cfg_differs(&status, &replica));
            }
        }
    }

    #[test]
    fn ofport_and_error_travel_with_cur_cfg() {
        let interfaces = BTreeMap::from([(Uuid(2), InterfaceStatus::failed("no such device"))]);
        let status = Status {
            cur_cfg: 3,
            interfaces,
            ..Default::default()
        };
        let text = json!(operations(&status, &replica(3, &[2]), false)).to_string();
        assert!(text.contains("\"cur_cfg\":3"), "{text}");
        assert!(text.contains("\"ofport\":-1"), "{text}");
        assert!(text.contains("\"error\":\"no such device\""), "{text}");
        assert!(!text.contains("\"statistics\""), "{text}");
    }

    #[test]
    fn cur_cfg_never_runs_ahead() {
        let status = Status {
            cur_cfg: 9,
            ..Default::default()
        };
        let text = json!(operations(&status, &replica(3, &[]), true)).to_string();
        assert!(!text.contains("cur_cfg"), "{text}");
    }
}
