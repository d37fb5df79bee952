//! Our copy of the watched columns, kept up by `update` notifications.

use super::schema::{Watched, is_config};
use super::value::{Datum, ValueError};
use crate::Uuid;
use serde_json::Value;
use std::collections::BTreeMap;

/// The columns of one row.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Row(BTreeMap<String, Datum>);

impl Row {
    pub(super) fn get(&self, column: &str) -> Option<&Datum> {
        self.0.get(column)
    }

    fn parse(value: &Value) -> Result<Self, ReplicaError> {
        let columns = value.as_object().ok_or(ReplicaError::Shape("a row"))?;
        let parsed = columns
            .iter()
            .map(|(name, v)| Ok((name.clone(), Datum::parse(v)?)));
        parsed.collect::<Result<_, ReplicaError>>().map(Row)
    }

    #[cfg(test)]
    pub(super) fn set(&mut self, column: &str, datum: Datum) {
        self.0.insert(column.to_owned(), datum);
    }
}

/// Why a `<table-updates>` cannot be taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReplicaError {
    #[error("malformed database update: {0} is not an object")]
    Shape(&'static str),
    #[error("malformed database update: {0}")]
    Uuid(#[from] crate::ParseUuidError),
    #[error(transparent)]
    Value(#[from] ValueError),
}

/// Rows by table and UUID.
#[derive(Clone, Debug, Default)]
pub(super) struct Replica {
    pub(super) watched: Watched,
    tables: BTreeMap<String, BTreeMap<Uuid, Row>>,
}

impl Replica {
    pub(super) fn new(watched: Watched) -> Self {
        Replica {
            watched,
            tables: BTreeMap::new(),
        }
    }

    pub(super) fn row(&self, table: &str, uuid: Uuid) -> Option<&Row> {
        self.tables.get(table)?.get(&uuid)
    }

    /// The one row of the root table, once the database has been initialised.
    pub(super) fn root(&self) -> Option<(Uuid, &Row)> {
        self.tables
            .get(super::DATABASE)?
            .iter()
            .next()
            .map(|(uuid, row)| (*uuid, row))
    }

    /// Takes over a `<table-updates>` (RFC 7047 section 4.1.6). True when configuration may have changed.
    pub(super) fn apply(&mut self, updates: &Value) -> Result<bool, ReplicaError> {
        let mut config = false;
        for (table, rows) in updates.as_object().ok_or(ReplicaError::Shape("the table list"))? {
            for (uuid, update) in rows.as_object().ok_or(ReplicaError::Shape("a table"))? {
                let uuid: Uuid = uuid.parse()?;
                let update = update.as_object().ok_or(ReplicaError::Shape("a row update"))?;
                config |= touches_config(table, update.get("old"), update.get("new"));
                match update.get("new") {
                    Some(new) => {
                        let row = Row::parse(new)?;
                        self.tables.entry(table.clone()).or_default().insert(uuid, row);
                    }
                    None => {
                        if let Some(rows) = self.tables.get_mut(table) {
                            rows.remove(&uuid);
                        }
                    }
                }
            }
        }
        Ok(config)
    }

    #[cfg(test)]
    pub(super) fn insert(&mut self, table: &str, uuid: Uuid, row: Row) {
        self.tables.entry(table.to_owned()).or_default().insert(uuid, row);
    }
}

/// Rows that come or go count, and changed configuration columns; `old` lists exactly the columns that changed.
fn touches_config(table: &str, old: Option<&Value>, new: Option<&Value>) -> bool {
    match (old.and_then(Value::as_object), new) {
        (Some(old), Some(_)) => old.keys().any(|column| is_config(table, column)),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::super::value::tests::near_datum;
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const ID: &str = "f23ce3b1-6399-4179-bce2-c3f1a774729a";

    #[test]
    fn rows_come_change_and_go() {
        let mut replica = Replica::new(Watched::all());
        let uuid = ID.parse().unwrap();
        let insert = json!({"Interface": {ID: {"new": {"name": "a", "mtu": ["set", []]}}}});
        assert_eq!(replica.apply(&insert), Ok(true));
        let status =
            json!({"Interface": {ID: {"old": {"mtu": ["set", []]}, "new": {"name": "a", "mtu": 1500}}}});
        assert_eq!(replica.apply(&status), Ok(false));
        let mtu = replica.row("Interface", uuid).and_then(|r| r.get("mtu")).unwrap();
        assert_eq!(mtu.integers().collect::<Vec<_>>(), [1500]);
        let config = json!({"Interface": {ID: {"old": {"type": ""}, "new": {"name": "a", "type": "dpdk"}}}});
        assert_eq!(replica.apply(&config), Ok(true));
        assert_eq!(
            replica.apply(&json!({"Interface": {ID: {"old": {"name": "a"}}}})),
            Ok(true)
        );
        assert!(replica.row("Interface", uuid).is_none());
    }

    proptest! {
        #[test]
        fn malformed_updates_are_errors_not_panics(row in near_datum(), id in "x|f23ce3b1-6399-4179-bce2-c3f1a774729a") {
            let mut replica = Replica::default();
            let _ = replica.apply(&row);
            let _ = replica.apply(&json!({ "Bridge": row }));
            let _ = replica.apply(&json!({"Bridge": {&id: row}}));
            let _ = replica.apply(&json!({"Bridge": {&id: {"new": row, "old": row}}}));
            let _ = replica.apply(&json!({"Bridge": {&id: {"new": {"name": row}}}}));
            let _ = super::super::build::config(&replica);
        }
    }
}
