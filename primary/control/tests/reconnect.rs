//! Databases that die, come back, are locked by others, or fall silent.

mod support;

use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use support::{Database, PATIENCE, PretendSwitch, eventually, kill, vsctl};
use vswitch_control::jsonrpc::{Framer, Limits};
use vswitch_control::ovsdb::{Client, Event, Options, Target};
use vswitch_control::status::Status;

#[test]
fn a_crashed_server_under_load_is_found_again_and_brought_up_to_date() {
    let mut database = Database::new();
    let dir = database.path().to_owned();
    let switch = PretendSwitch::start(database.target());
    vsctl(&dir, "add-br br0");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            for n in 0.. {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                let (dir, value) = (&dir, format!("other_config:n={n}"));
                // Fails while the server is down.
                support::tool(dir, "ovs-vsctl", &["--timeout=1", "set", "Bridge", "br0", &value]);
            }
        });
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(150));
            database.crash();
            std::thread::sleep(Duration::from_millis(50));
            database.start();
        }
        done.store(true, Ordering::Relaxed);
        load.join().unwrap();
    });
    switch.event_where("the loss was reported", |e| {
        matches!(e, Event::Disconnected { .. })
    });
    let start = Instant::now();
    vsctl(&dir, "add-port br0 p");
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "took {:?}",
        start.elapsed()
    );
    // Columns that the server does not keep on disk have been written anew.
    assert_eq!(vsctl(&dir, "get Interface br0 mtu"), "1500\n");
    assert_eq!(
        vsctl(&dir, "get Bridge br0 datapath_id"),
        "\"0000000000000001\"\n"
    );
}

#[test]
fn an_unchanged_database_gives_no_second_configuration() {
    let mut database = Database::new();
    let dir = database.path().to_owned();
    let switch = PretendSwitch::start(database.target());
    vsctl(&dir, "add-br br0");
    let before = switch.configs();
    database.crash();
    switch.event_where("the loss", |e| matches!(e, Event::Disconnected { .. }));
    std::thread::sleep(Duration::from_millis(500));
    database.start();
    eventually("ephemeral columns are back", || {
        vsctl(&dir, "get Interface br0 mtu") == "1500\n"
    });
    assert_eq!(switch.configs(), before);
    let losses = switch
        .events()
        .iter()
        .filter(|e| matches!(e, Event::Disconnected { .. }))
        .count();
    assert_eq!(losses, 1, "reported once, however long it lasted");
}

#[test]
fn started_before_its_database() {
    let mut database = Database::new();
    database.crash();
    let switch = PretendSwitch::start(database.target());
    switch.event_where("not there", |e| matches!(e, Event::Disconnected { .. }));
    database.start();
    switch.config_where("the first", |_| true);
    vsctl(database.path(), "add-br br0");
}

#[test]
fn another_holder_of_the_lock_makes_us_wait() {
    let database = Database::new();
    let dir = database.path();
    vsctl(dir, "--no-wait add-br br0");
    let socket = format!("unix:{}", dir.join("db.sock").display());
    let mut holder = Command::new("ovsdb-client")
        .args(["lock", &socket, "ovs_vswitchd"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut first = [0u8; 1];
    holder.stdout.as_mut().unwrap().read_exact(&mut first).unwrap(); // it has the lock

    let switch = PretendSwitch::start(database.target());
    switch.event_where("refused", |e| *e == Event::NotLocked { lock: "ovs_vswitchd" });
    switch.client.publish(Status {
        dpdk_initialized: true,
        ..Default::default()
    });
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(switch.configs(), 0, "passive");
    assert_eq!(vsctl(dir, "get Open_vSwitch . dpdk_initialized"), "false\n");

    kill(holder.id(), "KILL");
    holder.wait().unwrap();
    switch.event_where("our turn", |e| *e == Event::Locked);
    switch.config_where("the bridge", |c| c.bridges.len() == 1);
    vsctl(dir, "add-port br0 p");

    // Stolen: passive again; and when it comes back, everything is told anew.
    let before = switch.configs();
    let mut thief = Command::new("ovsdb-client")
        .args(["steal", &socket, "ovs_vswitchd"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the theft is noticed", || {
        switch
            .events()
            .iter()
            .filter(|e| matches!(e, Event::NotLocked { .. }))
            .count()
            == 2
    });
    kill(thief.id(), "KILL");
    thief.wait().unwrap();
    eventually("told anew", || switch.configs() > before);
}

#[test]
fn a_full_disk_is_outlived() {
    let mut database = Database::new();
    let dir = database.path().to_owned();
    vsctl(&dir, "--no-wait add-br br0 -- set Bridge br0 datapath_type=dpdk");
    database.crash();
    let kib = std::fs::metadata(database.file()).unwrap().len().div_ceil(1024);
    database.start_with_full_disk(u32::try_from(kib).unwrap());
    for length in [300, 1] {
        // Until the last bytes are gone.
        for n in 0.. {
            let value = format!("other_config:a={n}{}", "x".repeat(length));
            let args = ["--no-wait", "set", "Bridge", "br0", &value];
            if !support::tool(&dir, "ovs-vsctl", &args).status.success() {
                break;
            }
        }
    }
    let switch = PretendSwitch::start(database.target());
    switch.config_where("the bridge", |c| c.bridges.len() == 1);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(vsctl(&dir, "list-br"), "br0\n", "it still answers");
    assert_eq!(vsctl(&dir, "get Interface br0 ofport"), "[]\n", "no room for it");
    database.lift_file_limit();
    eventually("the status is written", || {
        vsctl(&dir, "get Interface br0 ofport") == "65534\n"
    });
    vsctl(&dir, "add-port br0 p");
    eventually("the status got through", || {
        vsctl(&dir, "get Interface p ofport") == "2\n"
    });
    let losses = switch
        .events()
        .iter()
        .filter(|e| matches!(e, Event::Disconnected { .. }))
        .count();
    assert_eq!(losses, 0);
}

/// A server that plays its part by hand.
struct Fake {
    stream: UnixStream,
    framer: Framer,
}

impl Fake {
    fn hear(&mut self) -> Value {
        loop {
            if let Some(value) = self.framer.next().unwrap() {
                return value;
            }
            let mut buffer = [0u8; 4096];
            let n = self.stream.read(&mut buffer).unwrap();
            assert!(n > 0, "the client hung up");
            self.framer.push(&buffer[..n]);
        }
    }

    fn hear_method(&mut self, method: &str) -> Value {
        loop {
            let message = self.hear();
            if message["method"] == method {
                return message;
            }
        }
    }

    fn say(&mut self, value: &Value) {
        self.stream.write_all(value.to_string().as_bytes()).unwrap();
    }

    fn answer(&mut self, request: &Value, result: Value) {
        self.say(&json!({"id": request["id"], "result": result, "error": null}));
    }

    /// Up to the first snapshot, of an empty root row.
    fn greet(&mut self) {
        self.greet_with_lock(true);
    }

    fn greet_with_lock(&mut self, locked: bool) {
        let columns = |names: &[&str]| {
            let columns: serde_json::Map<_, _> = names.iter().map(|n| (n.to_string(), json!({}))).collect();
            json!({ "columns": columns })
        };
        let schema = self.hear_method("get_schema");
        let tables = json!({"Open_vSwitch": columns(&["next_cfg", "cur_cfg"]), "Bridge": columns(&["name"]),
            "Port": columns(&["name"]), "Interface": columns(&["name"])});
        self.answer(&schema, json!({ "tables": tables }));
        let lock = self.hear_method("lock");
        self.answer(&lock, json!({ "locked": locked }));
        let monitor = self.hear_method("monitor");
        let root = json!({"00000000-0000-0000-0000-000000000001": {"new": {"next_cfg": 1, "cur_cfg": 0}}});
        self.answer(&monitor, json!({ "Open_vSwitch": root }));
    }
}

fn fake_server() -> (tempfile::TempDir, UnixListener, Target) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db.sock");
    let listener = UnixListener::bind(&path).unwrap();
    (dir, listener, Target::Unix(path))
}

fn accept(listener: &UnixListener) -> Fake {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Fake {
        stream,
        framer: Framer::new(Limits {
            max_bytes: 1 << 20,
            max_depth: 64,
        }),
    }
}

#[test]
fn echo_both_ways_and_a_silent_server_is_left() {
    let (_dir, listener, target) = fake_server();
    let (sender, events) = channel();
    let options = Options {
        probe_interval: Duration::from_millis(100),
    };
    let _client = Client::start_with(target, options, move |e| drop(sender.send(e))).unwrap();
    let mut server = accept(&listener);
    server.greet();
    server.say(&json!({"id": "x", "method": "echo", "params": ["y"]}));
    loop {
        let message = server.hear();
        if message["id"] == "x" {
            assert_eq!(message["result"], json!(["y"]));
            break;
        }
    }
    for _ in 0..3 {
        let probe = server.hear_method("echo"); // silence makes the client ask
        server.answer(&probe, json!([]));
    }
    server.hear_method("echo");
    let mut next = accept(&listener); // no answer: it comes again
    next.hear_method("get_schema");
    let reasons: Vec<Event> = events
        .try_iter()
        .filter(|e| matches!(e, Event::Disconnected { .. }))
        .collect();
    assert!(format!("{reasons:?}").contains("no answer for"), "{reasons:?}");
}

#[test]
fn a_refused_write_is_tried_again_and_the_newest_status_wins() {
    let (_dir, listener, target) = fake_server();
    let client = Client::start(target, |_| {}).unwrap();
    let mut server = accept(&listener);
    server.greet();
    client.publish(Status {
        cur_cfg: 1,
        ..Default::default()
    });
    let first = server.hear_method("transact");
    assert_eq!(
        first["params"].as_array().unwrap().last(),
        Some(&json!({"op": "assert", "lock": "ovs_vswitchd"}))
    );
    client.publish(Status {
        cur_cfg: -1,
        ..Default::default()
    });
    client.publish(Status {
        cur_cfg: -2,
        ..Default::default()
    });
    let refused = Instant::now();
    server.answer(
        &first,
        json!([null, null, {"error": "I/O error", "details": "No space left on device"}]),
    );
    let second = server.hear_method("transact");
    assert!(
        refused.elapsed() > Duration::from_millis(900),
        "not in a tight loop"
    );
    assert_eq!(second["params"][1]["row"]["cur_cfg"], json!(-2));
    server.answer(&second, json!([{"count": 1}, {}]));
    client.publish(Status {
        cur_cfg: -3,
        ..Default::default()
    });
    let third = server.hear_method("transact");
    assert_eq!(third["params"][1]["row"]["cur_cfg"], json!(-3));
}

#[test]
fn nothing_is_written_without_the_lock() {
    let (_dir, listener, target) = fake_server();
    let client = Client::start(target, |_| {}).unwrap();
    let mut server = accept(&listener);
    server.greet_with_lock(false);
    client.publish(Status {
        cur_cfg: 1,
        ..Default::default()
    });
    server
        .stream
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let mut buffer = [0u8; 64];
    assert!(
        server.stream.read(&mut buffer).is_err(),
        "{}",
        String::from_utf8_lossy(&buffer)
    );
    server.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    server.say(&json!({"id": null, "method": "locked", "params": ["ovs_vswitchd"]}));
    server.hear_method("transact");
}

#[test]
fn a_write_lost_with_its_connection_is_made_again() {
    let (_dir, listener, target) = fake_server();
    let client = Client::start(target, |_| {}).unwrap();
    let mut server = accept(&listener);
    server.greet();
    client.publish(Status {
        cur_cfg: 1,
        ..Default::default()
    });
    server.hear_method("transact");
    drop(server);
    let mut server = accept(&listener);
    server.greet();
    let again = server.hear_method("transact");
    assert_eq!(again["params"][1]["row"]["cur_cfg"], json!(1));
}

#[test]
fn nonsense_from_a_server_ends_the_connection_not_the_client() {
    let (_dir, listener, target) = fake_server();
    let _client = Client::start(target, |_| {}).unwrap();
    for nonsense in [
        "hello",
        "{\"id\":1}}",
        "{\"id\":1,\"result\":7,\"error\":null}",
        "{\"method\":3}",
        "\u{0}",
    ] {
        let mut server = accept(&listener);
        server.hear_method("get_schema");
        server.stream.write_all(nonsense.as_bytes()).unwrap();
    }
    accept(&listener).greet();
}
