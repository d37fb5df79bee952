//! The switch as a service manager runs it, with few rights, and without root's.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use vswitch_tests::child::Child;
use vswitch_tests::fake_host::run;
use vswitch_tests::namespace::own_mounts;
use vswitch_tests::wait::PATIENCE;
use vswitch_tests::{prerequisites, programs};

/// A user and a group that nobody has.
const USER: u32 = 4243;
const NO_RIGHTS: &[&str] = &[
    "--reuid=4243",
    "--regid=4243",
    "--clear-groups",
    "--bounding-set=-all",
    "--inh-caps=-all",
    "--no-new-privs",
];

fn units() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/systemd")
}

/// A switch that runs as `setpriv` makes it, with a hugetlbfs of its own that its group may use.
struct Service {
    dir: TempDir,
    rights: Vec<String>,
    switch: Child,
    manager: UnixDatagram,
}

impl Service {
    /// `eal_dir`: the variable that says where EAL keeps its files.
    fn start(rights: &[impl AsRef<str>], owner: u32, eal_dir: &str) -> Service {
        prerequisites::ovs_tools();
        prerequisites::hugepages(128);
        prerequisites::program("setpriv", "util-linux");
        let dir = vswitch_tests::switch::new_dir();
        let path = |name: &str| dir.path().join(name);
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        // The tree may lie where only root can look
        for program in [programs::switch(), programs::bare_client()] {
            fs::copy(&program, path(&program.file_name().unwrap().to_string_lossy())).unwrap();
        }
        for name in ["run", "state", "eal"] {
            fs::create_dir(path(name)).unwrap();
            chown(path(name), Some(owner), Some(owner)).unwrap();
        }
        own_mounts();
        let none = None::<&str>;
        fs::create_dir(path("huge")).unwrap();
        let options = format!("pagesize=2M,gid={owner},mode=1770");
        mount(
            none,
            &path("huge"),
            Some("hugetlbfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .unwrap();

        let manager = UnixDatagram::bind(path("notify")).unwrap();
        manager.set_read_timeout(Some(PATIENCE)).unwrap();
        fs::set_permissions(path("notify"), Permissions::from_mode(0o666)).unwrap();
        let rights: Vec<String> = rights.iter().map(|r| r.as_ref().to_owned()).collect();
        let mut command = Command::new("setpriv");
        command
            .args(&rights)
            .arg(path("dpdk-vswitchd"))
            .args(["-m", "128", "--huge-dir"])
            .arg(path("huge"))
            .args([OsStr::new("--"), OsStr::new("--rundir"), path("run").as_os_str()])
            .args([OsStr::new("--statedir"), path("state").as_os_str()])
            .env("NOTIFY_SOCKET", path("notify"))
            .env_remove("RUNTIME_DIRECTORY")
            .env_remove("OVS_RUNDIR")
            .env(eal_dir, path("eal"))
            .current_dir("/");
        let switch = Child::start(&mut command, &path("log"));
        let service = Service {
            dir,
            rights,
            switch,
            manager,
        };
        assert_eq!(service.told(), "READY=1", "{}", service.switch.log());
        service
    }

    /// What the service manager hears next.
    fn told(&self) -> String {
        let mut text = [0; 64];
        let length = self
            .manager
            .recv(&mut text)
            .unwrap_or_else(|e| panic!("{e}; {}", self.switch.log()));
        String::from_utf8_lossy(&text[..length]).into_owned()
    }

    fn vsctl(&self, arguments: &str) {
        let mut command = Command::new("setpriv");
        let rundir = self.dir.path().join("run");
        command
            .args(&self.rights)
            .arg("ovs-vsctl")
            .args(arguments.split_whitespace())
            .env("OVS_RUNDIR", rundir);
        let said = run(&mut command);
        assert_eq!(said.status, 0, "{said:?}");
    }

    /// A bare client with the rights `rights`.
    fn client(&self, rights: &[String]) -> Client {
        let mut command = Command::new("setpriv");
        command
            .args(rights)
            .arg(self.dir.path().join("bare-client"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .env_remove("RUNTIME_DIRECTORY");
        let mut child = Child::spawn(&mut command, &self.dir.path().join("none"));
        let (Some(input), Some(output)) = child.pipes() else {
            unreachable!("both are pipes")
        };
        Client {
            _child: child,
            input,
            output: BufReader::new(output),
        }
    }

    /// Two clients attach, one as the switch's user and one as root, and a frame goes from one to the other.
    fn forwards(&self) {
        self.vsctl(
            "add-br br0 -- set Bridge br0 datapath_type=dpdk -- add-port br0 dpdkr1 -- set Interface dpdkr1 type=dpdkr \
             -- add-port br0 dpdkr2 -- set Interface dpdkr2 type=dpdkr",
        );
        let socket = self.dir.path().join("run/attach.sock");
        let mut clients = [
            self.client(&self.rights),
            self.client(&["--no-new-privs".to_owned()]),
        ];
        for (client, port) in clients.iter_mut().zip(1..) {
            client.ok(&format!("attach {} {port} 1 client-{port}", socket.display()));
        }
        let [one, two] = &mut clients;
        let frame = format!(
            "{}020000000001{}",
            "ff".repeat(6),
            "0800".to_owned() + &"5a".repeat(46)
        );
        one.ok(&format!("send 0 {frame}"));
        let came = two.ok("receive 1 20000");
        assert!(came.contains(&frame), "{came}");
    }

    /// Ends it as a service manager does; nothing may be left.
    fn stop(mut self) {
        self.switch.signal(Signal::SIGTERM);
        assert_eq!(self.told(), "STOPPING=1");
        assert!(self.switch.wait(PATIENCE).success(), "{}", self.switch.log());
        let left: Vec<_> = fs::read_dir(self.dir.path().join("huge"))
            .unwrap()
            .flatten()
            .collect();
        assert!(left.is_empty(), "hugepage files: {left:?}");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // What is mounted would keep the directory, which goes next
        self.switch.kill();
        let _ = umount2(&self.dir.path().join("huge"), MntFlags::MNT_DETACH);
    }
}

struct Client {
    _child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Client {
    #[track_caller]
    fn ok(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").unwrap();
        let mut answer = String::new();
        self.output.read_line(&mut answer).unwrap();
        assert!(answer.starts_with("ok"), "{line}: {answer}");
        answer
    }
}

#[test]
fn without_roots_rights_frames_are_forwarded() {
    let service = Service::start(NO_RIGHTS, USER, "XDG_RUNTIME_DIR");
    service.forwards();
    service.stop();
}

#[test]
fn the_units_capabilities_are_enough() {
    let unit = fs::read_to_string(units().join("dpdk-vswitchd.service")).unwrap();
    let set = unit
        .lines()
        .find_map(|l| l.strip_prefix("CapabilityBoundingSet="))
        .expect("the unit bounds them");
    let wanted: Vec<String> = set
        .split_whitespace()
        .map(|c| c.trim_start_matches("CAP_").to_lowercase())
        .map(|c| format!("+{c}"))
        .collect();
    let bounds = format!("--bounding-set=-all,{}", wanted.join(","));
    let service = Service::start(&[bounds.as_str(), "--no-new-privs"], 0, "RUNTIME_DIRECTORY");
    service.forwards();
    service.stop();
}

/// With the programs as they are built here in place of the installed ones.
#[test]
fn systemd_understands_the_units() {
    prerequisites::program("systemd-analyze", "systemd");
    let dir = tempfile::tempdir().unwrap();
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts");
    let mut files = Vec::new();
    for entry in fs::read_dir(units()).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        let text = fs::read_to_string(entry.path()).unwrap();
        let text = text
            .replace(
                "/usr/local/sbin/dpdk-vswitchd ",
                &format!("{} ", programs::switch().display()),
            )
            .replace(
                "/usr/local/bin/dpdk-qemu-shim ",
                &format!("{} ", programs::shim().display()),
            )
            .replace(
                "/usr/local/lib/dpdk-vswitch/scripts/",
                &format!("{}/", scripts.display()),
            );
        let file = dir.path().join(name.replace("@.", "@2."));
        fs::write(&file, text).unwrap();
        files.push(file);
    }
    assert_eq!(files.len(), 3, "{files:?}");
    // As cloud-init's stage that sets the network up: NICs have to be DPDK's before it, and it comes before nearly all else.
    let early = dir.path().join("early-network.service");
    fs::write(
        &early,
        "[Unit]\nDefaultDependencies=no\nAfter=network-pre.target\nBefore=sysinit.target\n[Service]\nExecStart=/bin/true\n",
    )
    .unwrap();
    let wants = dir.path().join("sysinit.target.wants");
    fs::create_dir(&wants).unwrap();
    symlink(&early, wants.join("early-network.service")).unwrap();
    files.push(early);
    let said = run(Command::new("systemd-analyze").arg("verify").args(&files));
    let wrong = |line: &&str| line.contains("dpdk-") || line.contains("cycle");
    let ours: Vec<_> = said.stderr.lines().filter(wrong).collect();
    assert!(said.status == 0 && ours.is_empty(), "{said:?}");
}

#[test]
fn a_run_time_directory_that_is_not_safe_is_refused() {
    let refused = |rundir: &Path, rights: &[&str]| {
        let mut command = Command::new("setpriv");
        command
            .args(rights)
            .arg(programs::switch())
            .arg("--")
            .arg("--rundir")
            .arg(rundir)
            .env_remove("OVS_RUNDIR");
        let said = run(&mut command);
        assert_eq!(said.status, 1, "{said:?}");
        said.stderr
    };
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
    let why = refused(dir.path(), &["--no-new-privs"]);
    assert!(why.contains("everybody may write to it (mode 777)"), "{why}");
    fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
    chown(dir.path(), Some(USER), None).unwrap();
    let why = refused(dir.path(), &["--no-new-privs"]);
    assert!(
        why.contains("it belongs to user 4243") && why.contains("runs as user 0"),
        "{why}"
    );
    assert_eq!(
        fs::read_dir(dir.path()).unwrap().count(),
        0,
        "nothing was put there"
    );
}
