//! Initialises the root row as `ovs-ctl` does: makes it, and says what system this is.

use crate::ovsdb::{DATABASE, OnceError, Target, transact};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(5);

/// What the root row is to say.
#[derive(Clone, Debug, Default)]
pub(super) struct SystemInfo {
    pub(super) ovs_version: Option<String>,
    pub(super) db_version: Option<String>,
    pub(super) system_type: Option<String>,
    pub(super) system_version: Option<String>,
}

impl SystemInfo {
    /// Takes the system's name and version from `os-release`.
    pub(super) fn with_os_release(mut self, text: &str) -> Self {
        let fields: BTreeMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.trim(), value.trim().trim_matches(['"', '\''])))
            .collect();
        self.system_type = fields.get("ID").map(|id| (*id).to_owned());
        self.system_version = fields.get("VERSION_ID").map(|id| (*id).to_owned());
        self
    }
}

/// Makes the row if there is none, and fills it. `external_ids` that exist are kept, except for `rundir`.
pub(super) fn initialise(target: &Target, info: &SystemInfo, rundir: &Path) -> Result<(), OnceError> {
    let rows = transact(
        target,
        &[json!({"op": "select", "table": DATABASE, "where": [], "columns": ["_uuid"]})],
        TIMEOUT,
    )?;
    let mut operations = Vec::new();
    if rows
        .first()
        .and_then(|r| r["rows"].as_array())
        .is_none_or(Vec::is_empty)
    {
        operations.push(json!({"op": "insert", "table": DATABASE, "row": {}}));
    }
    let mut row = serde_json::Map::new();
    for (column, value) in [
        ("ovs_version", &info.ovs_version),
        ("db_version", &info.db_version),
        ("system_type", &info.system_type),
        ("system_version", &info.system_version),
    ] {
        if let Some(value) = value {
            row.insert(column.to_owned(), json!(value));
        }
    }
    let host = kernel_text("hostname");
    let mut ids = vec![json!(["rundir", rundir.display().to_string()])];
    ids.extend(host.map(|host| json!(["hostname", host])));
    // Fresh each time, and kept only when the database has none.
    ids.extend(kernel_text("random/uuid").map(|id| json!(["system-id", id])));
    operations.push(json!({"op": "update", "table": DATABASE, "where": [], "row": row}));
    let mutations: Value = json!([
        ["external_ids", "delete", ["set", ["rundir"]]],
        ["external_ids", "insert", ["map", ids]]
    ]);
    operations.push(json!({"op": "mutate", "table": DATABASE, "where": [], "mutations": mutations}));
    transact(target, &operations, TIMEOUT).map(drop)
}

/// A line below `/proc/sys/kernel`.
fn kernel_text(name: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?;
    Some(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn os_release() {
        let info = SystemInfo::default().with_os_release("NAME=\"X Y\"\nID=debian\nVERSION_ID=\"12\"\n");
        assert_eq!(info.system_type.as_deref(), Some("debian"));
        assert_eq!(info.system_version.as_deref(), Some("12"));
        assert_eq!(SystemInfo::default().with_os_release("").system_type, None);
    }
}
