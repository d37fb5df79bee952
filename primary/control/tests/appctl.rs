//! The stock ovs-appctl, and clients that are not as kind.

mod support;

use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use support::{PATIENCE, eventually, tool, tool_ok};
use vswitch_control::unixctl::{Pidfile, PidfileError, Registry, Reply, Server};
use vswitch_control::vlog::Levels;

fn registry() -> Registry {
    let mut registry = Registry::new("dpdk-vswitchd (DPDK vSwitch) 9.8.7");
    registry.vlog(&Levels::new(log::LevelFilter::Info, &["bridge", "ovsdb"]));
    registry.command("echo", "[text]...", 0, None, |args| {
        Ok(format!("{}\n", args.join(" ")))
    });
    registry.command("big", "", 0, Some(0), |_| Ok("x".repeat(4 << 20)));
    registry.command("fails", "", 0, Some(0), |_| Err("no such bridge".into()));
    registry.command("memory/show", "", 0, Some(0), |_| Ok("ports:2\n".into()));
    registry
}

struct Control {
    dir: tempfile::TempDir,
    server: Server,
    _pidfile: Pidfile,
}

fn start_with(registry: Registry) -> Control {
    let dir = tempfile::tempdir().unwrap();
    let pidfile = Pidfile::create(&dir.path().join("ovs-vswitchd.pid")).unwrap();
    let server = Server::start(dir.path(), registry).unwrap();
    Control {
        dir,
        server,
        _pidfile: pidfile,
    }
}

fn appctl(dir: &Path, args: &[&str]) -> String {
    tool_ok(dir, "ovs-appctl", args)
}

#[test]
fn the_stock_tool_finds_us_by_the_pid_file() {
    let control = start_with(registry());
    let dir = control.dir.path();
    assert_eq!(appctl(dir, &["version"]), "dpdk-vswitchd (DPDK vSwitch) 9.8.7\n");
    assert_eq!(appctl(dir, &["echo", "a b", "\"c\""]), "a b \"c\"\n");
    assert_eq!(appctl(dir, &["memory/show"]), "ports:2\n");
    assert_eq!(
        appctl(dir, &["list-commands"]),
        "The available commands are:\n\
         \x20 big                     \n\
         \x20 echo                    [text]...\n\
         \x20 fails                   \n\
         \x20 list-commands           \n\
         \x20 memory/show             \n\
         \x20 version                 \n\
         \x20 vlog/list               \n\
         \x20 vlog/reopen             \n\
         \x20 vlog/set                {spec | PATTERN:destination:pattern}\n"
    );
    let mode = fs::metadata(control.server.path()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode & 0o007, 0, "{mode:o}");
}

const NO_FILE: &str = "Logging to file not configured: without --detach the log goes to the console\n";

#[test]
fn failures_exit_with_2_in_the_words_of_ovs() {
    let control = start_with(registry());
    for (args, message) in [
        (&["fails"][..], "no such bridge\n"),
        (
            &["nope"],
            "\"nope\" is not a valid command (use \"list-commands\" to see a list of valid commands)\n",
        ),
        (
            &["version", "x"],
            "\"version\" command takes at most 0 arguments\n",
        ),
        (
            &["vlog/set"],
            "\"vlog/set\" command requires at least 1 arguments\n",
        ),
        (&["vlog/set", "foo"], "no destination, level, or module \"foo\"\n"),
        (&["vlog/set", "ANY:file:dbg"], NO_FILE),
        (&["vlog/reopen"], NO_FILE),
    ] {
        let output = tool(control.dir.path(), "ovs-appctl", args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert_eq!(
            stderr,
            format!("{message}ovs-appctl: ovs-vswitchd: server returned an error\n")
        );
    }
}

#[test]
fn log_levels_change() {
    let control = start_with(registry());
    let dir = control.dir.path();
    appctl(dir, &["vlog/set", "bridge:console:dbg"]);
    appctl(dir, &["vlog/set", "ovsdb:off"]);
    let list = appctl(dir, &["vlog/list"]);
    assert!(
        list.contains("\nbridge             DBG        OFF       INFO\n"),
        "{list}"
    );
    assert!(
        list.contains("\novsdb              OFF        OFF        OFF\n"),
        "{list}"
    );
}

#[test]
fn exit_is_answered_by_another_thread_before_the_end() {
    let (sender, receiver) = channel::<(Vec<String>, Reply)>();
    let mut registry = registry();
    registry.deferred("exit", "[--cleanup]", 0, Some(1), move |args, reply| {
        let _ = sender.send((args, reply));
    });
    let control = start_with(registry);
    let dir = control.dir.path().to_owned();
    let asked = std::thread::spawn(move || appctl(&dir, &["exit", "--cleanup"]));
    let (args, reply) = receiver.recv_timeout(PATIENCE).unwrap();
    assert_eq!(args, ["--cleanup"]);
    // Others are served while the main thread takes its time.
    assert_eq!(appctl(control.dir.path(), &["echo", "meanwhile"]), "meanwhile\n");
    reply.ok("");
    let path = control.server.path().to_owned();
    control.server.stop();
    assert_eq!(asked.join().unwrap(), "");
    assert!(!path.exists());
}

fn connect(control: &Control) -> UnixStream {
    let stream = UnixStream::connect(control.server.path()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// True when the server has closed the connection.
fn is_closed(stream: &mut UnixStream) -> bool {
    let mut buffer = [0u8; 16];
    matches!(stream.read(&mut buffer), Ok(0)) || stream.write_all(b" ").is_err()
}

#[test]
fn hostile_clients_hurt_only_themselves() {
    let control = start_with(registry());
    let still_well = || {
        let start = Instant::now();
        assert_eq!(appctl(control.dir.path(), &["echo", "ok"]), "ok\n");
        assert!(start.elapsed() < Duration::from_secs(2));
    };
    // Asks for much and reads nothing.
    let mut slow: Vec<UnixStream> = (0..20).map(|_| connect(&control)).collect();
    for stream in &mut slow {
        for id in 0..50 {
            let request = json!({"id": id, "method": "big", "params": []}).to_string();
            stream.set_write_timeout(Some(Duration::from_millis(1))).unwrap();
            let _ = stream.write_all(request.as_bytes());
        }
    }
    still_well();
    // Talks nonsense.
    for nonsense in [
        "hello".to_owned(),
        "[]".into(),
        "{\"id\":1}".into(),
        "{\"id\":1,\"method\":\"echo\",\"params\":7}".into(),
        "{\"a\":".repeat(100),
        format!("{{\"id\":\"{}", "x".repeat(300_000)),
        "{\"id\":null,\"method\":\"exit\",\"params\":[]}".into(),
    ] {
        let mut stream = connect(&control);
        let _ = stream.write_all(nonsense.as_bytes());
        assert!(is_closed(&mut stream), "{}", &nonsense[..nonsense.len().min(40)]);
    }
    let mut stream = connect(&control);
    stream
        .write_all(b"{\"id\":1,\"method\":\"echo\",\"params\":[7]}")
        .unwrap();
    let mut buffer = [0u8; 256];
    let n = stream.read(&mut buffer).unwrap();
    assert!(String::from_utf8_lossy(&buffer[..n]).contains("non-string"));
    // Says half a sentence and waits, many times over: the oldest give way.
    let mut held: Vec<UnixStream> = Vec::new();
    for _ in 0..500 {
        let mut stream = connect(&control);
        let _ = stream.write_all(b"{\"id\":");
        held.push(stream);
    }
    still_well();
    assert!(held[..400].iter_mut().all(is_closed));
    drop((slow, held));
    still_well();
}

#[test]
fn many_commands_at_once_on_one_connection_are_all_answered_in_order() {
    let control = start_with(registry());
    for param in [json!("x"), json!(7)] {
        answered_in_order(connect(&control), &param);
    }
}

fn answered_in_order(mut stream: UnixStream, param: &Value) {
    let count = 200;
    let text: String = (0..count)
        .map(|id| json!({"id": id, "method": "echo", "params": [param]}).to_string())
        .collect();
    stream.write_all(text.as_bytes()).unwrap();
    let mut received = Vec::new();
    let mut answers = Vec::new();
    while answers.len() < count {
        let mut buffer = [0u8; 4096];
        let n = stream.read(&mut buffer).unwrap();
        assert!(n > 0);
        received.extend_from_slice(&buffer[..n]);
        answers = serde_json::Deserializer::from_slice(&received)
            .into_iter::<Value>()
            .map_while(Result::ok)
            .map(|v| v["id"].as_u64().unwrap())
            .collect();
    }
    assert!(answers.is_sorted());
}

#[test]
fn a_big_answer_arrives_whole() {
    let control = start_with(registry());
    assert_eq!(appctl(control.dir.path(), &["big"]).len(), 4 << 20);
}

#[test]
fn dead_sockets_are_swept_and_a_client_that_leaves_early_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let dead = dir.path().join("ovs-vswitchd.4000000.ctl");
    drop(UnixListener::bind(&dead).unwrap());
    let alive = dir.path().join("ovs-vswitchd.4000001.ctl");
    let _listener = UnixListener::bind(&alive).unwrap();
    let (sender, receiver) = channel::<Reply>();
    let mut registry = registry();
    registry.deferred("wait", "", 0, Some(0), move |_, reply| drop(sender.send(reply)));
    let server = Server::start(dir.path(), registry).unwrap();
    assert!(!dead.exists() && alive.exists());
    let mut stream = UnixStream::connect(server.path()).unwrap();
    stream
        .write_all(b"{\"id\":1,\"method\":\"wait\",\"params\":[]}")
        .unwrap();
    let reply = receiver.recv_timeout(PATIENCE).unwrap();
    drop(stream);
    std::thread::sleep(Duration::from_millis(50));
    reply.ok("nobody hears this");
    let path: PathBuf = server.path().to_owned();
    drop(server);
    assert!(!path.exists());
}

#[test]
fn a_pid_file_held_by_a_live_process_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.pid");
    // OVS's own daemons lock their pid files the same way.
    let other = Command::new("ovsdb-server")
        .arg(format!("--pidfile={}", path.display()))
        .arg(format!("--unixctl={}", dir.path().join("x.ctl").display()))
        .args(["-vconsole:off", "-vsyslog:off"])
        .args(empty_database(dir.path()))
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let mut other = Killed(other);
    eventually("the pid file is there", || {
        fs::read_to_string(&path).is_ok_and(|text| text.ends_with('\n'))
    });
    let error = Pidfile::create(&path).unwrap_err();
    assert!(
        matches!(error, PidfileError::Held { pid, .. } if pid == other.0.id() as i32),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .starts_with(&format!("already running as process {}", other.0.id()))
    );
    other.end();
    let pidfile = Pidfile::create(&path).unwrap();
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        format!("{}\n", std::process::id())
    );
    drop(pidfile);
}

/// A process that does not outlive its test.
struct Killed(Child);

impl Killed {
    fn end(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        self.end();
    }
}

fn empty_database(dir: &Path) -> Vec<String> {
    let file = dir.join("x.db").display().to_string();
    tool_ok(dir, "ovsdb-tool", &["create", &file, support::SCHEMA]);
    vec![file]
}
