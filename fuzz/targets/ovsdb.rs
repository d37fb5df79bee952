//! A database server that sends what it likes: JSON that trickles in any pieces means the same as JSON that comes at
//! once, and neither it nor what it describes gets the switch out of step.

#![no_main]

use std::collections::BTreeMap;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};
use vswitch_control::Uuid;
use vswitch_control::config::SwitchConfig;
use vswitch_control::jsonrpc::{Framer, Limits};
use vswitch_control::ovsdb::receive_for_fuzzing;
use vswitch_control::status::{BridgeStatus, InterfaceStatus, Status};
use vswitch_fuzz::{leaks, process};

const TABLES: [&str; 6] = ["Open_vSwitch", "Bridge", "Port", "Interface", "Mirror", "QoS"];
const COLUMNS: [&str; 24] = [
    "bridges",
    "other_config",
    "next_cfg",
    "cur_cfg",
    "name",
    "datapath_type",
    "fail_mode",
    "mirrors",
    "controller",
    "ports",
    "interfaces",
    "tag",
    "trunks",
    "vlan_mode",
    "type",
    "options",
    "mac",
    "mtu_request",
    "ofport_request",
    "ingress_policing_rate",
    "ofport",
    "statistics",
    "status",
    "datapath_id",
];
const WORDS: [&str; 16] = [
    "uuid",
    "set",
    "map",
    "br0",
    "dpdk",
    "dpdkr1",
    "trunk",
    "access",
    "native-tagged",
    "secure",
    "standalone",
    "OpenFlow13",
    "02:00:00:00:00:01",
    "dpdk-devargs",
    "stats-update-interval",
    "5000",
];
/// Rows that things may refer to.
const ROWS: u128 = 6;

#[derive(Arbitrary, Debug)]
enum Json {
    Null,
    Bool(bool),
    Integer(i64),
    Small(u8),
    Real(f64),
    Word(u8),
    Text(String),
    Row(u8),
    Set(Vec<Json>),
    Map(Vec<(Json, Json)>),
    List(Vec<Json>),
    Object(Vec<(u8, Json)>),
}

#[derive(Arbitrary, Debug)]
struct RowUpdate {
    table: u8,
    row: u8,
    columns: Vec<(u8, Json)>,
    deleted: bool,
}

#[derive(Arbitrary, Debug)]
enum Says {
    Schema { without: u8 },
    Lock(bool),
    Monitor(Vec<RowUpdate>),
    Update(Vec<RowUpdate>),
    Locked,
    Stolen,
    Echo(Json),
    Transacted { result: Json, error: Json },
    Response { id: Json, result: Json, error: Json },
    Notify { method: u8, params: Vec<Json> },
    Any(Json),
    Raw(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
struct Input {
    /// Begin with a schema, a lock and an empty snapshot.
    ready: bool,
    says: Vec<Says>,
    cuts: Vec<u8>,
}

fn uuid(row: u8) -> String {
    format!("00000000-0000-4000-8000-{:012x}", u128::from(row) % ROWS)
}

fn word(index: u8) -> &'static str {
    WORDS[usize::from(index) % WORDS.len()]
}

impl Json {
    fn value(&self) -> Value {
        let all = |items: &[Json]| items.iter().map(Json::value).collect::<Vec<_>>();
        match self {
            Json::Null => Value::Null,
            Json::Bool(b) => json!(b),
            Json::Integer(i) => json!(i),
            Json::Small(i) => json!(i),
            Json::Real(f) => json!(f),
            Json::Word(i) => json!(word(*i)),
            Json::Text(text) => json!(text),
            Json::Row(row) => json!(["uuid", uuid(*row)]),
            Json::Set(items) => json!(["set", all(items)]),
            Json::Map(items) => {
                json!([
                    "map",
                    items
                        .iter()
                        .map(|(k, v)| json!([k.value(), v.value()]))
                        .collect::<Vec<_>>()
                ])
            }
            Json::List(items) => json!(all(items)),
            Json::Object(items) => Value::Object(
                items
                    .iter()
                    .map(|(key, value)| (word(*key).into(), value.value()))
                    .collect(),
            ),
        }
    }
}

fn updates(rows: &[RowUpdate]) -> Value {
    let mut tables: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for RowUpdate {
        table,
        row,
        columns,
        deleted,
    } in rows
    {
        let columns: Map<String, Value> = columns
            .iter()
            .map(|(column, value)| {
                (
                    COLUMNS[usize::from(*column) % COLUMNS.len()].into(),
                    value.value(),
                )
            })
            .collect();
        let change = if *deleted {
            json!({"old": columns})
        } else {
            json!({"new": columns})
        };
        tables
            .entry(TABLES[usize::from(*table) % TABLES.len()])
            .or_default()
            .insert(uuid(*row), change);
    }
    json!(tables)
}

fn schema(without: u8) -> Value {
    let columns: Map<String, Value> = COLUMNS.iter().map(|c| ((*c).to_owned(), json!({}))).collect();
    let kept = TABLES
        .iter()
        .enumerate()
        .filter(|(i, _)| usize::from(without) != *i);
    let tables: Map<String, Value> = kept
        .map(|(_, t)| ((*t).to_owned(), json!({"columns": columns})))
        .collect();
    json!({"id": 1, "result": {"tables": tables}, "error": null})
}

impl Says {
    fn bytes(&self) -> Vec<u8> {
        let locked = |method: &str| json!({"id": null, "method": method, "params": ["ovs_vswitchd"]});
        let value = match self {
            Says::Schema { without } => schema(*without),
            Says::Lock(held) => json!({"id": 2, "result": {"locked": held}, "error": null}),
            Says::Monitor(rows) => json!({"id": 3, "result": updates(rows), "error": null}),
            Says::Update(rows) => json!({"id": null, "method": "update", "params": [null, updates(rows)]}),
            Says::Locked => locked("locked"),
            Says::Stolen => locked("stolen"),
            Says::Echo(params) => json!({"id": "echo", "method": "echo", "params": [params.value()]}),
            Says::Transacted { result, error } => {
                json!({"id": 5, "result": result.value(), "error": error.value()})
            }
            Says::Response { id, result, error } => {
                json!({"id": id.value(), "result": result.value(), "error": error.value()})
            }
            Says::Notify { method, params } => {
                let params: Vec<Value> = params.iter().map(Json::value).collect();
                json!({"id": null, "method": word(*method), "params": params})
            }
            Says::Any(json) => json.value(),
            Says::Raw(bytes) => return bytes.clone(),
        };
        value.to_string().into_bytes()
    }
}

/// The bytes in pieces, as the `cuts` say over and over.
fn pieces<'a>(mut bytes: &'a [u8], cuts: &[u8]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    for cut in cuts.iter().cycle().take(4096) {
        let (piece, rest) = bytes.split_at(bytes.len().min(usize::from(*cut)));
        pieces.push(piece);
        bytes = rest;
        if bytes.is_empty() {
            break;
        }
    }
    pieces.push(bytes);
    pieces
}

fn frames(pieces: &[&[u8]], limits: Limits) -> (Vec<Value>, Option<String>) {
    let (mut framer, mut values) = (Framer::new(limits), Vec::new());
    for piece in pieces {
        framer.push(piece);
        loop {
            match framer.next() {
                Ok(Some(value)) => values.push(value),
                Ok(None) => break,
                Err(why) => return (values, Some(why.to_string())),
            }
        }
    }
    (values, None)
}

/// What a switch would show, with a line for every row that there may be.
fn status() -> Status {
    let rows = || (0..ROWS as u8).filter_map(|row| uuid(row).parse::<Uuid>().ok());
    Status {
        cur_cfg: 7,
        dpdk_version: Some("DPDK".into()),
        bridges: rows().map(|row| (row, BridgeStatus::default())).collect(),
        interfaces: rows()
            .map(|row| (row, InterfaceStatus::failed("no \"device\"\0")))
            .collect(),
        ..Status::default()
    }
}

/// What the switch may rely on.
fn check(config: &SwitchConfig) {
    for bridge in &config.bridges {
        for port in &bridge.ports {
            assert!(port.tag.is_none_or(|tag| tag < 4096) && port.trunks.iter().all(|vid| *vid < 4096));
        }
    }
    let names: Vec<&String> = config.bridges.iter().map(|b| &b.name).collect();
    assert!(names.is_sorted(), "lists are sorted by name");
    let _ = config.interfaces().count();
}

fuzz_target!(init: process::prepare(), |input: Input| {
    let mut bytes = Vec::new();
    if input.ready {
        for says in [Says::Schema { without: 99 }, Says::Lock(true), Says::Monitor(Vec::new())] {
            bytes.extend(says.bytes());
        }
    }
    input.says.iter().for_each(|says| bytes.extend(says.bytes()));
    let cut = pieces(&bytes, &input.cuts);
    // Those that are sound JSON by themselves come out of the stream as they went in.
    let sound: Vec<Vec<u8>> = input.says.iter().map(Says::bytes).collect();
    let sound: Vec<(&[u8], Value)> = sound
        .iter()
        .filter_map(|text| Some((&text[..], serde_json::from_slice(text).ok()?)))
        .filter(|(_, value): &(_, Value)| value.is_object())
        .collect();
    let stream: Vec<u8> = sound.iter().flat_map(|(text, _)| *text).copied().collect();
    let values: Vec<Value> = sound.iter().map(|(_, value)| value.clone()).collect();
    let limits = Limits {
        max_bytes: 1 << 20,
        max_depth: 128,
    };
    assert_eq!(frames(&pieces(&stream, &input.cuts), limits), (values, None));
    let status = status();
    leaks::check(|| {
        for limits in [Limits { max_bytes: 64, max_depth: 4 }, Limits { max_bytes: 1 << 20, max_depth: 64 }] {
            assert_eq!(frames(&[&bytes], limits), frames(&cut, limits));
        }
        let whole = receive_for_fuzzing([&bytes[..]], &status);
        assert_eq!(whole, receive_for_fuzzing(cut.iter().copied(), &status));
        if let Some(config) = &whole {
            check(config);
        }
    });
});
