//! Decides when the status is written: one transaction at a time, statistics paced, failures retried.

use super::LOCK;
use super::diff::{cur_cfg_differs, operations};
use super::replica::Replica;
use crate::config::{self, MIN_STATS_INTERVAL};
use crate::status::Status;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// After a refused transaction.
const RETRY: Duration = Duration::from_secs(1);

/// What is to be written, and what is on its way.
#[derive(Debug, Default)]
pub(super) struct Writer {
    status: Option<Status>,
    in_flight: Option<Vec<Value>>,
    /// Operations the server accepted although they changed nothing; not sent again until something changes.
    settled: Option<Vec<Value>>,
    last_paced: Option<Instant>,
    /// Not before this.
    retry_at: Option<Instant>,
    last_error: Option<String>,
}

impl Writer {
    /// The newest status wins.
    pub(super) fn publish(&mut self, status: Status) {
        self.status = Some(status);
        self.settled = None;
    }

    /// A new connection: nothing is on its way, and everything is compared afresh.
    pub(super) fn reset(&mut self) {
        *self = Writer {
            status: self.status.take(),
            last_error: self.last_error.take(),
            ..Default::default()
        };
    }

    /// The database changed.
    pub(super) fn replica_changed(&mut self) {
        self.settled = None;
    }

    /// The operations of the next transaction, when one is due. Call [`finished`](Self::finished) with its outcome.
    pub(super) fn next(&mut self, replica: &Replica, now: Instant) -> Option<Vec<Value>> {
        if self.in_flight.is_some() || self.retry_at.is_some_and(|at| now < at) {
            return None;
        }
        let status = self.status.as_ref()?;
        let paced = self.paced_at(replica).is_none_or(|at| now >= at) || cur_cfg_differs(status, replica);
        let changes = operations(status, replica, paced);
        if changes.is_empty() || self.settled.as_ref() == Some(&changes) {
            return None;
        }
        if paced {
            self.last_paced = Some(now);
        }
        let mut transaction = vec![json!("Open_vSwitch")];
        transaction.extend(changes.iter().cloned());
        transaction.push(json!({"op": "assert", "lock": LOCK}));
        self.in_flight = Some(changes);
        Some(transaction)
    }

    /// When [`next`](Self::next) may have something although nothing happens in between.
    pub(super) fn deadline(&self, replica: &Replica) -> Option<Instant> {
        if self.in_flight.is_some() {
            return None;
        }
        if self.retry_at.is_some() {
            return self.retry_at;
        }
        let at = self.paced_at(replica)?;
        (!operations(self.status.as_ref()?, replica, true).is_empty()).then_some(at)
    }

    /// The answer to the transaction in flight (RFC 7047 section 4.1.3).
    pub(super) fn finished(&mut self, result: &Value, error: &Value, now: Instant) {
        let sent = self.in_flight.take();
        match failure(result, error) {
            None => {
                self.settled = sent;
                self.retry_at = None;
                if self.last_error.take().is_some() {
                    log::info!("the database accepts the switch's status again");
                }
            }
            Some(reason) => {
                self.retry_at = Some(now + RETRY);
                if self.last_error.as_ref() != Some(&reason) {
                    log::warn!(
                        "the database refused the switch's status, trying again every second: {reason}"
                    );
                    self.last_error = Some(reason);
                }
            }
        }
    }

    fn paced_at(&self, replica: &Replica) -> Option<Instant> {
        self.last_paced.map(|at| at + stats_interval(replica))
    }
}

/// How often statistics are written, as the database says.
fn stats_interval(replica: &Replica) -> Duration {
    let other_config = replica.root().and_then(|(_, row)| row.get("other_config"));
    let other_config = other_config.map(|d| d.to_string_map()).unwrap_or_default();
    config::stats_interval(&other_config).unwrap_or(MIN_STATS_INTERVAL)
}

/// Why a transaction failed: an error for the whole, or one among the results of its operations.
fn failure(result: &Value, error: &Value) -> Option<String> {
    let describe = |e: &Value| {
        let kind = match (e["error"].as_str(), e["details"].as_str()) {
            (Some(kind), Some(details)) => format!("{kind}: {details}"),
            (Some(kind), None) => kind.to_owned(),
            _ => e.to_string().chars().take(200).collect(),
        };
        // What the server's kernel said to it, such as "No space left on device".
        match e["io-error"].as_str() {
            Some(cause) => format!("{kind} ({cause})"),
            None => kind,
        }
    };
    if !error.is_null() {
        return Some(describe(error));
    }
    let Some(results) = result.as_array() else {
        return Some("malformed answer".into());
    };
    results
        .iter()
        .find(|r| r.get("error").is_some_and(|e| !e.is_null()))
        .map(describe)
}

#[cfg(test)]
mod tests {
    use super::super::schema::Watched;
    use super::*;
    use crate::Uuid;
    use crate::status::InterfaceStatus;
    use std::collections::BTreeMap;

    const ROOT: &str = "00000000-0000-0000-0000-000000000001";
    const PORT: &str = "00000000-0000-0000-0000-000000000002";

    fn replica(next_cfg: i64, cur_cfg: i64, interval: &str) -> Replica {
        let mut replica = Replica::new(Watched::all());
        let row = json!({"next_cfg": next_cfg, "cur_cfg": cur_cfg,
            "other_config": ["map", [["stats-update-interval", interval]]]});
        let updates = json!({"Open_vSwitch": {ROOT: {"new": row}},
            "Interface": {PORT: {"new": {"statistics": ["map", []]}}}});
        replica.apply(&updates).unwrap();
        replica
    }

    fn status(cur_cfg: i64, rx_packets: i64) -> Status {
        let interface = InterfaceStatus {
            ofport: Some(1),
            statistics: BTreeMap::from([("rx_packets".to_owned(), rx_packets)]),
            ..Default::default()
        };
        Status {
            cur_cfg,
            interfaces: BTreeMap::from([(Uuid(2), interface)]),
            ..Default::default()
        }
    }

    fn has_statistics(transaction: &Option<Vec<Value>>) -> bool {
        transaction
            .as_ref()
            .is_some_and(|t| json!(t).to_string().contains("rx_packets"))
    }

    fn ok(writer: &mut Writer, now: Instant) {
        writer.finished(&json!([{}, {"count": 1}]), &Value::Null, now);
    }

    #[test]
    fn one_in_flight_and_the_assert_comes_last() {
        let (mut writer, replica, now) = (Writer::default(), replica(1, 0, ""), Instant::now());
        assert!(writer.next(&replica, now).is_none());
        writer.publish(status(1, 0));
        let first = writer.next(&replica, now).unwrap();
        assert_eq!(
            first.last(),
            Some(&json!({"op": "assert", "lock": "ovs_vswitchd"}))
        );
        writer.publish(status(1, 5));
        assert!(writer.next(&replica, now).is_none());
        ok(&mut writer, now);
        writer.replica_changed();
        assert!(writer.next(&replica, now).is_some());
    }

    #[test]
    fn statistics_are_paced_unless_cur_cfg_moves() {
        let (mut writer, idle, now) = (Writer::default(), replica(1, 1, "10"), Instant::now());
        writer.publish(status(1, 1));
        assert!(has_statistics(&writer.next(&idle, now)));
        ok(&mut writer, now);
        writer.publish(status(1, 2));
        let soon = now + Duration::from_millis(4900);
        assert!(!has_statistics(&writer.next(&idle, soon)));
        ok(&mut writer, soon);
        assert_eq!(writer.deadline(&idle), Some(now + Duration::from_secs(5)));
        writer.publish(status(2, 3));
        assert!(has_statistics(&writer.next(&replica(2, 1, "10"), soon)));
        ok(&mut writer, soon);
        writer.publish(status(2, 4));
        let slow = replica(2, 2, "9000");
        assert_eq!(writer.deadline(&slow), Some(soon + Duration::from_secs(9)));
        assert!(has_statistics(&writer.next(&slow, soon + Duration::from_secs(9))));
    }

    #[test]
    fn a_refused_write_is_retried_later_and_a_fruitless_one_is_not_repeated() {
        let (mut writer, replica, now) = (Writer::default(), replica(1, 0, ""), Instant::now());
        writer.publish(status(1, 0));
        assert!(writer.next(&replica, now).is_some());
        writer.finished(
            &json!([{}, {"error": "I/O error", "details": "no space"}]),
            &Value::Null,
            now,
        );
        writer.publish(status(1, 1));
        assert!(writer.next(&replica, now + RETRY / 2).is_none());
        assert_eq!(writer.deadline(&replica), Some(now + RETRY));
        let later = now + RETRY;
        assert!(writer.next(&replica, later).is_some());
        ok(&mut writer, later);
        assert!(
            writer.next(&replica, later).is_none(),
            "the same again would go on for ever"
        );
        writer.replica_changed();
        assert!(writer.next(&replica, later).is_some());
    }

    #[test]
    fn failures_are_found_wherever_they_are() {
        let none = Value::Null;
        assert_eq!(failure(&json!([{"count": 0}, {}]), &none), None);
        assert_eq!(
            failure(&json!([{}, null, {"error": "not owner"}]), &none),
            Some("not owner".into())
        );
        let full = json!({"error": "I/O error", "details": "conf.db: write failed", "io-error": "No space left on device"});
        assert_eq!(
            failure(&json!([{}, full]), &none),
            Some("I/O error: conf.db: write failed (No space left on device)".into())
        );
        assert_eq!(failure(&none, &json!("unknown")), Some("\"unknown\"".into()));
        assert!(failure(&none, &none).is_some());
    }
}
