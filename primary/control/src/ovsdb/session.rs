//! One connection's protocol state, without I/O: bytes in, bytes out, what changed.
//!
//! Order on a new connection: `get_schema` and `lock`, then `monitor` of the columns that the schema has. The first
//! snapshot is the reply to `monitor`; from then on `update` notifications keep the replica current.

use super::replica::{Replica, ReplicaError};
use super::schema::{SchemaError, Watched};
use super::{DATABASE, LOCK};
use crate::jsonrpc::{FrameError, Framer, Limits, Message, MessageError};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// A snapshot of a large database is a few megabytes.
const LIMITS: Limits = Limits {
    max_bytes: 256 << 20,
    max_depth: 64,
};
/// A server that asks and never reads what we answer.
const MAX_OUTPUT: usize = 64 << 20;

/// Why a connection is given up.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error(transparent)]
    Schema(#[from] SchemaError),
    #[error(transparent)]
    Replica(#[from] ReplicaError),
    #[error("the server refused \"{method}\": {error}")]
    Refused { method: &'static str, error: String },
    #[error("no answer for {} seconds", .0.as_secs_f32())]
    Silent(Duration),
    #[error("the server does not read our answers")]
    Clogged,
    #[error("the connection was closed")]
    Closed,
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// Whether we hold the lock (RFC 7047 section 4.1.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LockState {
    Unknown,
    Held,
    /// Another process holds it; the server tells us when it is ours.
    Waiting,
}

/// Request ids; a connection never has two of one kind under way.
const ID_SCHEMA: i64 = 1;
const ID_LOCK: i64 = 2;
const ID_MONITOR: i64 = 3;
const ID_PROBE: i64 = 4;
const ID_TRANSACT: i64 = 5;

#[derive(Debug)]
pub(super) struct Session {
    pub(super) replica: Replica,
    pub(super) lock: LockState,
    /// True once the first snapshot is here.
    pub(super) ready: bool,
    /// The configuration may have changed; the reader clears it.
    pub(super) config_changed: bool,
    /// Anything in the replica changed; the reader clears it.
    pub(super) replica_changed: bool,
    /// Result and error of a transaction that has finished.
    pub(super) transaction_done: Option<(Value, Value)>,
    pub(super) output: Vec<u8>,
    framer: Framer,
    probe_interval: Duration,
    last_heard: Instant,
    probe_sent: bool,
}

impl Session {
    /// Starts the conversation.
    pub(super) fn new(probe_interval: Duration, now: Instant) -> Self {
        let mut session = Session {
            replica: Replica::default(),
            lock: LockState::Unknown,
            ready: false,
            config_changed: false,
            replica_changed: false,
            transaction_done: None,
            output: Vec::new(),
            framer: Framer::new(LIMITS),
            probe_interval: probe_interval.max(Duration::from_millis(10)),
            last_heard: now,
            probe_sent: false,
        };
        session.send(&Message::request(ID_SCHEMA, "get_schema", vec![json!(DATABASE)]));
        session.send(&Message::request(ID_LOCK, "lock", vec![json!(LOCK)]));
        session
    }

    /// Takes bytes from the server.
    pub(super) fn receive(&mut self, bytes: &[u8], now: Instant) -> Result<(), SessionError> {
        self.last_heard = now;
        self.probe_sent = false;
        self.framer.push(bytes);
        while let Some(value) = self.framer.next()? {
            self.handle(Message::from_value(value)?)?;
        }
        if self.output.len() > MAX_OUTPUT {
            return Err(SessionError::Clogged);
        }
        Ok(())
    }

    /// Sends the parameters of a `transact`.
    pub(super) fn transact(&mut self, params: Vec<Value>) {
        self.send(&Message::request(ID_TRANSACT, "transact", params));
    }

    /// Probes a silent server, and gives up on one that does not answer.
    pub(super) fn tick(&mut self, now: Instant) -> Result<(), SessionError> {
        let silent = now.saturating_duration_since(self.last_heard);
        if silent >= self.probe_interval * 2 {
            return Err(SessionError::Silent(silent));
        }
        if silent >= self.probe_interval && !self.probe_sent {
            self.probe_sent = true;
            self.send(&Message::request(ID_PROBE, "echo", vec![]));
        }
        Ok(())
    }

    /// When [`tick`](Self::tick) has something to do next.
    pub(super) fn deadline(&self) -> Instant {
        self.last_heard + self.probe_interval * if self.probe_sent { 2 } else { 1 }
    }

    fn send(&mut self, message: &Message) {
        self.output.extend_from_slice(&message.to_bytes());
    }

    fn handle(&mut self, message: Message) -> Result<(), SessionError> {
        match message {
            Message::Request { id, method, params } if method == "echo" => {
                self.send(&Message::Response {
                    id,
                    result: Value::Array(params),
                    error: Value::Null,
                });
            }
            Message::Request { id, method, .. } => {
                let error = json!({"error": "unknown method", "details": method});
                self.send(&Message::Response {
                    id,
                    result: Value::Null,
                    error,
                });
            }
            Message::Notification { method, params } => self.notified(&method, &params)?,
            Message::Response { id, result, error } => match id.as_i64() {
                Some(ID_SCHEMA) => {
                    let schema = accepted("get_schema", result, &error)?;
                    self.replica = Replica::new(Watched::from_schema(&schema)?);
                    let params = vec![
                        json!(DATABASE),
                        Value::Null,
                        self.replica.watched.monitor_requests(),
                    ];
                    self.send(&Message::request(ID_MONITOR, "monitor", params));
                }
                Some(ID_LOCK) => {
                    let held = accepted("lock", result, &error)?["locked"] == json!(true);
                    self.lock = if held { LockState::Held } else { LockState::Waiting };
                }
                Some(ID_MONITOR) => {
                    self.replica.apply(&accepted("monitor", result, &error)?)?;
                    self.ready = true;
                    self.config_changed = true;
                    self.replica_changed = true;
                }
                Some(ID_TRANSACT) => self.transaction_done = Some((result, error)),
                _ => {}
            },
        }
        Ok(())
    }

    fn notified(&mut self, method: &str, params: &[Value]) -> Result<(), SessionError> {
        let ours = params.first() == Some(&json!(LOCK));
        match (method, params) {
            ("update", [_, updates]) => {
                self.config_changed |= self.replica.apply(updates)?;
                self.replica_changed = true;
            }
            ("locked", _) if ours => self.lock = LockState::Held,
            ("stolen", _) if ours => self.lock = LockState::Waiting,
            _ => log::debug!("ignoring \"{method}\" from the database"),
        }
        Ok(())
    }
}

fn accepted(method: &'static str, result: Value, error: &Value) -> Result<Value, SessionError> {
    if error.is_null() {
        return Ok(result);
    }
    Err(SessionError::Refused {
        method,
        error: error.to_string().chars().take(200).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::value::tests::near_datum;
    use super::*;
    use proptest::prelude::*;

    const PROBE: Duration = Duration::from_secs(5);

    fn sent(session: &mut Session) -> Vec<Value> {
        let mut framer = Framer::new(LIMITS);
        framer.push(&std::mem::take(&mut session.output));
        std::iter::from_fn(|| framer.next().unwrap()).collect()
    }

    fn hear(session: &mut Session, value: Value) -> Result<(), SessionError> {
        session.receive(value.to_string().as_bytes(), Instant::now())
    }

    fn schema() -> Value {
        let columns = json!({"columns": {"name": {}, "next_cfg": {}, "cur_cfg": {}}});
        json!({"tables": {"Open_vSwitch": columns, "Bridge": columns, "Port": columns, "Interface": columns}})
    }

    #[test]
    fn schema_lock_monitor_then_updates() {
        let mut session = Session::new(PROBE, Instant::now());
        let methods: Vec<_> = sent(&mut session).iter().map(|m| m["method"].clone()).collect();
        assert_eq!(methods, ["get_schema", "lock"]);
        hear(
            &mut session,
            json!({"id": ID_LOCK, "result": {"locked": false}, "error": null}),
        )
        .unwrap();
        assert_eq!(session.lock, LockState::Waiting);
        hear(
            &mut session,
            json!({"id": ID_SCHEMA, "result": schema(), "error": null}),
        )
        .unwrap();
        let monitor = sent(&mut session).remove(0);
        assert_eq!(
            monitor["params"][2]["Open_vSwitch"],
            json!([{"columns": ["cur_cfg", "next_cfg"]}])
        );
        hear(
            &mut session,
            json!({"id": ID_MONITOR, "result": {}, "error": null}),
        )
        .unwrap();
        assert!(session.ready && session.config_changed);
        session.config_changed = false;
        hear(
            &mut session,
            json!({"id": null, "method": "locked", "params": ["other"]}),
        )
        .unwrap();
        assert_eq!(session.lock, LockState::Waiting);
        hear(
            &mut session,
            json!({"id": null, "method": "locked", "params": [LOCK]}),
        )
        .unwrap();
        assert_eq!(session.lock, LockState::Held);
        hear(
            &mut session,
            json!({"id": null, "method": "stolen", "params": [LOCK]}),
        )
        .unwrap();
        assert_eq!(session.lock, LockState::Waiting);
        let uuid = "00000000-0000-0000-0000-000000000001";
        let updates = json!({"Open_vSwitch": {uuid: {"new": {"next_cfg": 1}}}});
        hear(
            &mut session,
            json!({"id": null, "method": "update", "params": [null, updates]}),
        )
        .unwrap();
        assert!(session.config_changed);
    }

    #[test]
    fn echo_is_answered_and_silence_is_probed() {
        let start = Instant::now();
        let mut session = Session::new(PROBE, start);
        sent(&mut session);
        hear(
            &mut session,
            json!({"id": "echo", "method": "echo", "params": [1]}),
        )
        .unwrap();
        assert_eq!(
            sent(&mut session),
            [json!({"id": "echo", "result": [1], "error": null})]
        );
        let start = session.last_heard;
        session.tick(start + PROBE / 2).unwrap();
        assert!(session.output.is_empty());
        session.tick(start + PROBE).unwrap();
        session.tick(start + PROBE + PROBE / 2).unwrap();
        assert_eq!(sent(&mut session).len(), 1);
        assert!(matches!(
            session.tick(start + PROBE * 2),
            Err(SessionError::Silent(_))
        ));
    }

    #[test]
    fn a_refusal_ends_the_session() {
        let mut session = Session::new(PROBE, Instant::now());
        let refusal = json!({"id": ID_SCHEMA, "result": null, "error": {"error": "unknown database"}});
        let error = hear(&mut session, refusal).unwrap_err().to_string();
        assert!(error.starts_with("the server refused \"get_schema\"") && error.contains("unknown database"));
    }

    proptest! {
        #[test]
        fn a_mad_server_never_makes_us_panic(
            messages in prop::collection::vec((0i64..7, "update|locked|echo|monitor", near_datum(), any::<bool>()), 0..12)
        ) {
            let mut session = Session::new(PROBE, Instant::now());
            hear(&mut session, json!({"id": ID_SCHEMA, "result": schema(), "error": null})).unwrap();
            for (id, method, body, response) in messages {
                let message = if response {
                    json!({"id": id, "result": body, "error": null})
                } else {
                    json!({"id": null, "method": method, "params": [null, body]})
                };
                let _ = hear(&mut session, message);
            }
        }

        #[test]
        fn garbage_never_makes_us_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Session::new(PROBE, Instant::now()).receive(&bytes, Instant::now());
        }
    }
}
