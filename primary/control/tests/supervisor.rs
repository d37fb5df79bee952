//! Our own ovsdb-server: made, converted, refused, restarted, ended.

mod support;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::{Database, PretendSwitch, SCHEMA, eventually, is_dead, kill, tool_ok, vsctl};
use vswitch_control::ovsdb::Event;
use vswitch_control::ovsdb_server::{Options, Supervisor, SupervisorError};

/// A state and a run directory, neither of which exists yet.
fn options(dir: &Path) -> Options {
    Options::new(dir.join("state"), dir.join("run"))
}

fn refused(options: Options) -> String {
    Supervisor::start(options).map(drop).unwrap_err().to_string()
}

#[test]
fn from_nothing_to_a_described_system_and_back() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let server = Supervisor::start(options(dir.path())).unwrap();
    let pid = server.pid().unwrap();
    assert_eq!(
        vsctl(&run, "get Open_vSwitch . ovs_version")
            .trim()
            .trim_matches('"')
            .split('.')
            .count(),
        3
    );
    assert_eq!(
        vsctl(&run, "get Open_vSwitch . db_version"),
        vsctl(&run, "get Open_vSwitch . db_version")
    );
    assert_ne!(vsctl(&run, "get Open_vSwitch . system_type"), "[]\n");
    assert_eq!(
        vsctl(&run, "get Open_vSwitch . external_ids:rundir"),
        format!("\"{}\"\n", run.display())
    );
    let id = vsctl(&run, "get Open_vSwitch . external_ids:system-id");
    // Its own control socket is where the stock tool looks.
    assert!(tool_ok(&run, "ovs-appctl", &["-t", "ovsdb-server", "version"]).starts_with("ovsdb-server"));
    let mode = fs::metadata(&run).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777 & !0o750, 0);
    vsctl(&run, "--no-wait add-br br0");
    server.stop();
    assert!(is_dead(pid));
    assert_eq!(
        fs::read_dir(&run).unwrap().count(),
        0,
        "nothing is left in the run directory"
    );

    let server = Supervisor::start(options(dir.path())).unwrap();
    assert_eq!(vsctl(&run, "list-br"), "br0\n", "the configuration lives on");
    assert_eq!(vsctl(&run, "get Open_vSwitch . external_ids:system-id"), id);
    drop(server);
    assert_eq!(fs::read_dir(&run).unwrap().count(), 0);
}

/// `ovs-vsctl set-ssl` and a manager by TLS, as with Open vSwitch's own scripts.
#[test]
fn a_manager_connects_by_tls() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let _server = Supervisor::start(options(dir.path())).unwrap();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (key, certificate) = (file("key.pem"), file("certificate.pem"));
    let line = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=switch -keyout";
    let mut args: Vec<&str> = line.split(' ').collect();
    args.extend([&key, "-out", &certificate]);
    let output = Command::new("openssl").args(args).output();
    let output = output.expect("openssl is installed, which Open vSwitch's packages need");
    assert!(output.status.success(), "{output:?}");
    // Port 0: the kernel's choice, which the server tells.
    vsctl(
        &run,
        &format!("--no-wait set-ssl {key} {certificate} {certificate} -- set-manager pssl:0:127.0.0.1"),
    );
    let mut port = String::new();
    eventually("the server tells its port", || {
        port = vsctl(&run, "--if-exists get Manager . status:bound_port");
        !port.trim().is_empty()
    });
    let target = format!("--db=ssl:127.0.0.1:{}", port.trim().trim_matches('"'));
    let list = tool_ok(
        &run,
        "ovs-vsctl",
        &[
            &target,
            "-p",
            &key,
            "-c",
            &certificate,
            "-C",
            &certificate,
            "get-manager",
        ],
    );
    assert_eq!(list, "pssl:0:127.0.0.1\n");
}

#[test]
fn a_killed_server_is_started_again_and_the_client_finds_it() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let server = Supervisor::start(options(dir.path())).unwrap();
    let switch = PretendSwitch::start(server.target());
    vsctl(&run, "add-br br0");
    for round in 0..3 {
        let pid = server.pid().unwrap();
        kill(pid, "KILL");
        eventually("another server runs", || server.pid().is_some_and(|p| p != pid));
        let start = Instant::now();
        vsctl(&run, &format!("add-port br0 p{round}"));
        assert!(
            start.elapsed() < Duration::from_secs(3),
            "took {:?}",
            start.elapsed()
        );
    }
    switch.config_where("all ports", |c| c.interfaces().count() == 4);
    switch.event_where("the loss", |e| matches!(e, Event::Disconnected { .. }));
    eventually("status is back", || {
        vsctl(&run, "get Interface br0 mtu") == "1500\n"
    });
}

#[test]
fn a_hung_server_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let options = Options {
        silence: Duration::from_secs(1),
        ..options(dir.path())
    };
    let server = Supervisor::start(options).unwrap();
    let switch = PretendSwitch::start(server.target());
    vsctl(&run, "add-br br0");
    let first = server.pid().unwrap();
    // One that answers is left alone for longer than that.
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(server.pid(), Some(first));
    kill(first, "STOP");
    eventually("another server runs", || server.pid().is_some_and(|p| p != first));
    vsctl(&run, "add-port br0 p0");
    switch.config_where("the new port", |c| c.interfaces().count() == 2);
}

#[test]
fn what_a_killed_server_left_is_no_obstacle() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    fs::create_dir_all(&run).unwrap();
    for name in ["db.sock", "ovsdb-server.4000000.ctl"] {
        drop(std::os::unix::net::UnixListener::bind(run.join(name)).unwrap());
    }
    fs::write(run.join("ovsdb-server.pid"), "4000000\n").unwrap();
    let server = Supervisor::start(options(dir.path())).unwrap();
    vsctl(&run, "--no-wait add-br br0");
    assert!(!run.join("ovsdb-server.4000000.ctl").exists());
    drop(server);
    assert_eq!(fs::read_dir(&run).unwrap().count(), 0);
}

#[test]
fn a_second_server_is_refused_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let server = Supervisor::start(options(dir.path())).unwrap();
    let error = refused(options(dir.path()));
    let pid = server.pid().unwrap();
    assert!(
        error.contains(&format!("conf.db is in use by process {pid}")) && error.contains("--db"),
        "{error}"
    );
    let error = refused(Options::new(dir.path().join("other"), dir.path().join("run")));
    assert!(
        error.contains("another ovsdb-server answers at") && error.contains("--rundir"),
        "{error}"
    );
    vsctl(&dir.path().join("run"), "--no-wait add-br br0"); // the first is none the worse for it
}

#[test]
fn a_damaged_database_is_named_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("state/conf.db");
    drop(Supervisor::start(options(dir.path())).unwrap());
    let good = fs::read(&file).unwrap();
    let mut flipped = good.clone();
    flipped[500] ^= 1;
    for bad in [b"hello\n".to_vec(), Vec::new(), flipped] {
        fs::write(&file, &bad).unwrap();
        let error = refused(options(dir.path()));
        assert!(
            error.contains(&format!("database {} is damaged", file.display())),
            "{error}"
        );
        assert!(error.contains("mv "), "{error}");
        assert_eq!(fs::read(&file).unwrap(), bad);
    }
    fs::write(&file, &good).unwrap();
    drop(Supervisor::start(options(dir.path())).unwrap());
}

/// Nor is a database moved away that only can't be read, or is not to blame.
#[test]
fn what_keeps_a_database_from_being_checked_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    drop(Supervisor::start(options(dir.path())).unwrap());
    let schema = dir.path().join("broken.ovsschema");
    fs::write(&schema, "{").unwrap();
    let error = refused(Options {
        schema: Some(schema.clone()),
        ..options(dir.path())
    });
    assert!(
        error.contains("conf.db fits the schema") && error.contains("could not be read as JSON"),
        "{error}"
    );
    let file = dir.path().join("state/conf.db");
    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    let error = refused(options(dir.path()));
    assert!(
        error.contains("conf.db fits the schema") && error.contains("Is a directory"),
        "{error}"
    );
}

#[test]
fn an_older_schema_is_converted_and_the_old_file_kept() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    fs::create_dir_all(&state).unwrap();
    let schema = fs::read_to_string(SCHEMA).unwrap();
    let mut older: serde_json::Value = serde_json::from_str(&schema).unwrap();
    older["version"] = "8.0.0".into();
    older["cksum"].take();
    older.as_object_mut().unwrap().remove("cksum");
    older["tables"]["Interface"]["columns"]
        .as_object_mut()
        .unwrap()
        .remove("ofport_request");
    let older_path = dir.path().join("older.ovsschema");
    fs::write(&older_path, older.to_string()).unwrap();
    let file = state.join("conf.db");
    let args = ["create", file.to_str().unwrap(), older_path.to_str().unwrap()];
    tool_ok(dir.path(), "ovsdb-tool", &args);
    let server = Supervisor::start(options(dir.path())).unwrap();
    let run = dir.path().join("run");
    vsctl(&run, "--no-wait add-br br0 -- set Interface br0 ofport_request=5");
    assert!(state.join("conf.db.backup8.0.0").exists());
    drop(server);
}

#[test]
fn missing_parts_and_unusable_directories_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut missing = options(dir.path());
    missing.schema = Some("/nonexistent/vswitch.ovsschema".into());
    let error = refused(missing);
    assert!(
        error.contains("cannot create database") && error.contains("/nonexistent/"),
        "{error}"
    );
    fs::write(dir.path().join("file"), "").unwrap();
    let error = refused(Options::new(
        dir.path().join("file/state"),
        dir.path().join("run"),
    ));
    assert!(
        error.contains("cannot use directory") && error.contains("file/state"),
        "{error}"
    );
    assert!(
        SupervisorError::NoProgram("ovsdb-server")
            .to_string()
            .contains("apt install openvswitch-switch")
    );
}

#[test]
fn a_run_directory_with_a_path_too_long_for_a_socket_is_an_error_not_a_hang() {
    let dir = tempfile::tempdir().unwrap();
    let error = refused(Options::new(
        dir.path().join("state"),
        dir.path().join("x".repeat(120)),
    ));
    assert!(error.contains("too long"), "{error}");
}

/// Not a test of its own: the process that [`the_server_dies_with_us`] kills.
#[test]
#[ignore = "helper process"]
fn helper_that_is_killed() {
    let dir = std::env::var_os("SUPERVISOR_TEST_DIR").expect("started by the test");
    let server = Supervisor::start(options(Path::new(&dir))).unwrap();
    println!("\nserver {}", server.pid().unwrap());
    std::thread::sleep(Duration::from_secs(60));
}

#[test]
fn the_server_dies_with_us() {
    let dir = tempfile::tempdir().unwrap();
    let mut helper = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "helper_that_is_killed", "--ignored", "--nocapture"])
        .env("SUPERVISOR_TEST_DIR", dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(helper.stdout.take().unwrap()).lines();
    let line = lines
        .map_while(Result::ok)
        .find(|line| line.starts_with("server "))
        .unwrap();
    let pid: u32 = line["server ".len()..].parse().unwrap();
    assert!(!is_dead(pid));
    helper.kill().unwrap();
    helper.wait().unwrap();
    eventually("the server is dead too", || is_dead(pid));
    drop(Supervisor::start(options(dir.path())).unwrap());
}

#[test]
fn an_external_server_on_the_same_socket_directory_is_not_disturbed() {
    let database = Database::new();
    let state = tempfile::tempdir().unwrap();
    let error = refused(Options::new(state.path(), database.path()));
    assert!(error.contains("another ovsdb-server answers at"), "{error}");
    assert!(UnixStream::connect(database.path().join("db.sock")).is_ok());
}
