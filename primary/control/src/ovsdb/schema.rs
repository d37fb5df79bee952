//! The columns we watch, cut down to those the server's schema has.

use super::DATABASE;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The columns of one table: those that configure the switch, those that ask for what it does not have, and those it writes.
pub(super) struct TableSpec {
    pub(super) name: &'static str,
    /// The server need not have it.
    optional: bool,
    pub(super) config: &'static [&'static str],
    pub(super) unsupported: &'static [&'static str],
    pub(super) status: &'static [&'static str],
}

impl TableSpec {
    /// All that are watched.
    fn columns(&self) -> impl Iterator<Item = &'static str> {
        [self.config, self.unsupported, self.status]
            .into_iter()
            .flatten()
            .copied()
    }
}

pub(super) const TABLES: &[TableSpec] = &[
    TableSpec {
        name: DATABASE,
        optional: false,
        config: &["bridges", "other_config", "next_cfg"],
        unsupported: &[],
        status: &[
            "cur_cfg",
            "dpdk_version",
            "dpdk_initialized",
            "datapath_types",
            "iface_types",
        ],
    },
    TableSpec {
        name: "Bridge",
        optional: false,
        config: &[
            "name",
            "datapath_type",
            "other_config",
            "fail_mode",
            "controller",
            "ports",
            "mirrors",
        ],
        unsupported: &[
            "flood_vlans",
            "ipfix",
            "mcast_snooping_enable",
            "netflow",
            "rstp_enable",
            "sflow",
            "stp_enable",
        ],
        status: &["datapath_id", "datapath_version"],
    },
    TableSpec {
        name: "Port",
        optional: false,
        config: &["name", "interfaces", "tag", "trunks", "vlan_mode"],
        unsupported: &["lacp", "protected", "qos"],
        status: &[],
    },
    TableSpec {
        name: "Interface",
        optional: false,
        config: &[
            "name",
            "type",
            "options",
            "mac",
            "mtu_request",
            "ofport_request",
            "other_config",
            "ingress_policing_rate",
            "ingress_policing_burst",
            "ingress_policing_kpkts_rate",
            "ingress_policing_kpkts_burst",
        ],
        unsupported: &["bfd", "cfm_mpid", "lldp"],
        status: &[
            "ofport",
            "error",
            "admin_state",
            "link_state",
            "link_speed",
            "duplex",
            "mac_in_use",
            "mtu",
            "ifindex",
            "status",
            "statistics",
        ],
    },
    TableSpec {
        name: "Mirror",
        optional: true,
        config: &[
            "name",
            "select_all",
            "select_src_port",
            "select_dst_port",
            "select_vlan",
            "output_port",
            "output_vlan",
            "snaplen",
        ],
        unsupported: &["filter"],
        status: &["statistics"],
    },
];

/// True for columns whose change is a change of configuration.
pub(super) fn is_config(table: &str, column: &str) -> bool {
    TABLES
        .iter()
        .any(|t| t.name == table && (t.config.contains(&column) || t.unsupported.contains(&column)))
}

/// The columns of [`TABLES`] that the server knows, by table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Watched(BTreeMap<&'static str, BTreeSet<&'static str>>);

/// The answer to `get_schema` is not a schema.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the server's schema has no table \"{0}\"; is this an Open vSwitch database?")]
pub(super) struct SchemaError(&'static str);

impl Watched {
    /// From a `<database-schema>` (RFC 7047 section 3.2). Only what the switch can do without may be missing.
    pub(super) fn from_schema(schema: &Value) -> Result<Self, SchemaError> {
        let mut watched = BTreeMap::new();
        for spec in TABLES {
            let columns = schema["tables"][spec.name]["columns"].as_object();
            let Some(columns) = columns else {
                if spec.optional {
                    continue;
                }
                return Err(SchemaError(spec.name));
            };
            let known = spec.columns().filter(|c| columns.contains_key(*c));
            watched.insert(spec.name, known.collect());
        }
        Ok(Watched(watched))
    }

    pub(super) fn contains(&self, table: &str, column: &str) -> bool {
        self.0.get(table).is_some_and(|columns| columns.contains(column))
    }

    /// The `<monitor-requests>` for all of it (RFC 7047 section 4.1.5).
    pub(super) fn monitor_requests(&self) -> Value {
        let tables = self
            .0
            .iter()
            .map(|(table, columns)| (table.to_string(), json!([{"columns": columns}])));
        Value::Object(tables.collect::<Map<_, _>>())
    }

    /// Everything of [`TABLES`].
    #[cfg(test)]
    pub(super) fn all() -> Self {
        let tables = TABLES.iter().map(|t| (t.name, t.columns().collect()));
        Watched(tables.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_server_has_is_watched() {
        let columns = json!({"columns": {"name": {}, "ofport": {}, "other": {}}});
        let schema = json!({"tables": {"Open_vSwitch": columns, "Bridge": columns, "Port": columns, "Interface": columns}});
        let watched = Watched::from_schema(&schema).unwrap();
        assert!(watched.contains("Interface", "ofport"));
        assert!(!watched.contains("Interface", "mtu"));
        assert!(!watched.contains("Interface", "other"));
        assert!(!watched.contains("Mirror", "name"));
        assert_eq!(
            watched.monitor_requests()["Interface"],
            json!([{"columns": ["name", "ofport"]}])
        );
    }

    #[test]
    fn another_schema_is_refused() {
        for bad in [
            json!({}),
            json!(null),
            json!([]),
            json!({"tables": {"Open_vSwitch": {"columns": 1}}}),
        ] {
            assert!(Watched::from_schema(&bad).is_err());
        }
    }
}
