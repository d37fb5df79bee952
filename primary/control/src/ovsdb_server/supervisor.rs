//! The thread that starts `ovsdb-server`, watches it, and starts it again.
//!
//! The child is told to end when the thread that forked it ends, so one thread forks every child and lives as long.

use super::database::Database;
use super::error::{MAX_SOCKET_PATH, SupervisorError};
use super::process::child_setup;
use super::programs::{complaint, find, find_schema, version};
use super::pulse::Pulse;
use super::repeats::Repeats;
use super::root_row::{SystemInfo, initialise};
use crate::ovsdb::Target;
use crate::stream::connect_unix;
use crate::unixctl::{lock_holder, remove_dead_sockets};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::fs::{self, DirBuilder};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often a starting or running server is looked at.
const LOOK: Duration = Duration::from_millis(10);
const WATCH: Duration = Duration::from_millis(50);
/// Time for a server to end by itself before it is killed.
const GRACE: Duration = Duration::from_secs(3);
/// Pause before a restart: doubles from the first to the second while the server keeps dying.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// A server that ran this long is taken for healthy.
const HEALTHY: Duration = Duration::from_secs(10);
/// Lines of the server's standard error that are kept for a message.
const KEPT_LINES: usize = 10;

/// Where the database lies and what it runs with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Holds `conf.db`; made (mode 0750) when missing.
    pub state_dir: PathBuf,
    /// Holds `db.sock`, `ovsdb-server.pid` and the control socket; made (mode 0750) when missing.
    pub run_dir: PathBuf,
    /// `None`: the schema of the installed Open vSwitch.
    pub schema: Option<PathBuf>,
    /// Time for the server to answer at the start.
    pub ready_timeout: Duration,
    /// A running server that is silent for so long is killed and started again.
    pub silence: Duration,
}

impl Options {
    pub fn new(state_dir: impl Into<PathBuf>, run_dir: impl Into<PathBuf>) -> Self {
        Options {
            state_dir: state_dir.into(),
            run_dir: run_dir.into(),
            schema: None,
            ready_timeout: Duration::from_secs(10),
            silence: Duration::from_secs(10),
        }
    }
}

/// A supervised `ovsdb-server`. Dropped or stopped, the server has ended and its sockets and pid file are gone.
#[derive(Debug)]
pub struct Supervisor {
    socket: PathBuf,
    pid: Arc<Mutex<Option<u32>>>,
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Supervisor {
    /// Prepares the database, starts the server, and returns once it answers and the root row was filled.
    pub fn start(options: Options) -> Result<Self, SupervisorError> {
        let (ready, started) = channel();
        let (stop, stopped) = channel();
        let pid = Arc::new(Mutex::new(None));
        let socket = options.run_dir.join("db.sock");
        let thread = std::thread::Builder::new()
            .name("ovsdb-server".into())
            .spawn({
                let pid = pid.clone();
                move || match Worker::new(options, pid) {
                    Ok(worker) => worker.run(&ready, &stopped),
                    Err(e) => drop(ready.send(Err(e))),
                }
            })
            .map_err(SupervisorError::Thread)?;
        let mut supervisor = Supervisor {
            socket,
            pid,
            stop: Some(stop),
            thread: Some(thread),
        };
        match started.recv() {
            Ok(Ok(())) => Ok(supervisor),
            Ok(Err(e)) => Err(e),
            Err(_) => {
                supervisor.shut_down();
                Err(SupervisorError::Thread(std::io::Error::other("it ended early")))
            }
        }
    }

    /// What [`crate::ovsdb::Client`] connects to.
    pub fn target(&self) -> Target {
        Target::Unix(self.socket.clone())
    }

    /// The server's process; `None` while it is being restarted.
    pub fn pid(&self) -> Option<u32> {
        *self.pid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the server and waits for it.
    pub fn stop(mut self) {
        self.shut_down();
    }

    fn shut_down(&mut self) {
        drop(self.stop.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("the thread that supervises ovsdb-server panicked");
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.shut_down();
    }
}

struct Worker {
    options: Options,
    database: Database,
    program: PathBuf,
    info: SystemInfo,
    pid: Arc<Mutex<Option<u32>>>,
}

/// A running server and what it last said.
struct Server {
    child: Child,
    since: Instant,
    said: Arc<Mutex<VecDeque<String>>>,
    reader: Option<JoinHandle<()>>,
}

impl Worker {
    fn new(options: Options, pid: Arc<Mutex<Option<u32>>>) -> Result<Self, SupervisorError> {
        let program = find("ovsdb-server")?;
        let tool = find("ovsdb-tool")?;
        let socket = options.run_dir.join("db.sock");
        if socket.as_os_str().len() > MAX_SOCKET_PATH {
            return Err(SupervisorError::PathTooLong(socket));
        }
        let schema = options.schema.clone().map_or_else(find_schema, Ok)?;
        for path in [&options.state_dir, &options.run_dir] {
            let made = DirBuilder::new().recursive(true).mode(0o750).create(path);
            made.map_err(|cause| SupervisorError::Directory {
                path: path.clone(),
                cause,
            })?;
        }
        let database = Database {
            path: options.state_dir.join("conf.db"),
            schema,
            tool,
        };
        let info = SystemInfo {
            ovs_version: version(&program),
            db_version: database.schema_version(),
            ..Default::default()
        };
        let os_release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let info = info.with_os_release(&os_release);
        Ok(Worker {
            options,
            database,
            program,
            info,
            pid,
        })
    }

    fn run(self, ready: &Sender<Result<(), SupervisorError>>, stop: &Receiver<()>) {
        let mut server = match self.start() {
            Ok(server) => server,
            Err(e) => return drop(ready.send(Err(e))),
        };
        let _ = ready.send(Ok(()));
        let mut backoff = BACKOFF.0;
        while let Some(status) = self.watch(&mut server, stop) {
            if server.since.elapsed() >= HEALTHY {
                backoff = BACKOFF.0;
            }
            log::error!(
                "ovsdb-server ended ({status}): {}; starting it again",
                server.last_words()
            );
            server = loop {
                if stopped_within(stop, backoff) {
                    return self.clean_up();
                }
                backoff = (backoff * 2).min(BACKOFF.1);
                match self.start() {
                    Ok(server) => break server,
                    Err(e) if backoff == BACKOFF.1 => log::debug!("ovsdb-server: {e}"),
                    Err(e) => log::error!("ovsdb-server cannot be started again, trying on: {e}"),
                }
            };
            log::info!("ovsdb-server runs again");
        }
        server.end();
        self.clean_up();
    }

    /// Waits for the server's end (`Some`: how it ended) or for the order to stop (`None`). Kills it when it hangs.
    fn watch(&self, server: &mut Server, stop: &Receiver<()>) -> Option<String> {
        let silence = self.options.silence;
        let looks = silence.as_millis() / WATCH.as_millis();
        let mut pulse = Pulse::new(self.options.run_dir.join("db.sock"), looks as u32);
        loop {
            if stopped_within(stop, WATCH) {
                return None;
            }
            if let Ok(Some(status)) = server.child.try_wait() {
                self.set_pid(None);
                return Some(status.to_string());
            }
            if pulse.hangs() {
                log::error!(
                    "ovsdb-server has not answered for {} seconds; killing it",
                    silence.as_secs_f32()
                );
                // Its end is seen above; a server in the midst of a disk's hang ends when that does.
                let _ = server.child.kill();
            }
        }
    }

    /// One start, until the server answers.
    fn start(&self) -> Result<Server, SupervisorError> {
        let socket = self.options.run_dir.join("db.sock");
        self.database.prepare()?;
        if connect_unix(&socket).is_ok() {
            return Err(SupervisorError::SocketInUse(socket));
        }
        self.remove_remains();
        let mut server = self.spawn(&socket)?;
        let until = Instant::now() + self.options.ready_timeout;
        let outcome = loop {
            if connect_unix(&socket).is_ok() {
                break Ok(());
            }
            if let Ok(Some(status)) = server.child.try_wait() {
                break Err(self.explain(&status.to_string(), &server.last_words()));
            }
            if Instant::now() >= until {
                let seconds = self.options.ready_timeout.as_secs();
                break Err(SupervisorError::NotReady {
                    path: socket.clone(),
                    seconds,
                });
            }
            std::thread::sleep(LOOK);
        };
        match outcome {
            Ok(()) => {
                // A full disk must not keep a server from running that can still answer.
                let target = Target::Unix(socket);
                if let Err(e) = initialise(&target, &self.info, &self.options.run_dir) {
                    log::warn!("cannot describe this system in the database: {e}");
                }
                self.set_pid(Some(server.child.id()));
                Ok(server)
            }
            Err(e) => {
                server.end();
                self.clean_up();
                Err(e)
            }
        }
    }

    fn spawn(&self, socket: &Path) -> Result<Server, SupervisorError> {
        let run_dir = &self.options.run_dir;
        let mut command = Command::new(&self.program);
        command
            .arg(&self.database.path)
            .arg(format!("--remote=punix:{}", socket.display()))
            .arg("--remote=db:Open_vSwitch,Open_vSwitch,manager_options")
            // What `ovs-vsctl set-ssl` has named, for managers by TLS.
            .arg("--private-key=db:Open_vSwitch,SSL,private_key")
            .arg("--certificate=db:Open_vSwitch,SSL,certificate")
            .arg("--bootstrap-ca-cert=db:Open_vSwitch,SSL,ca_cert")
            .arg(format!(
                "--pidfile={}",
                run_dir.join("ovsdb-server.pid").display()
            ))
            .args(["--no-chdir", "-vconsole:warn", "-vsyslog:off", "-vfile:off"])
            // The control socket goes where `ovs-appctl -t ovsdb-server` looks.
            .env("OVS_RUNDIR", run_dir)
            .env("OVS_LOGDIR", run_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        child_setup(&mut command);
        let spawned = command.spawn();
        let mut child = spawned.map_err(|cause| SupervisorError::Run {
            program: self.program.clone(),
            cause,
        })?;
        let said = Arc::new(Mutex::new(VecDeque::new()));
        let reader = child.stderr.take().and_then(|stderr| {
            let said = said.clone();
            let read = move || listen(BufReader::new(stderr), &said);
            std::thread::Builder::new()
                .name("ovsdb-log".into())
                .spawn(read)
                .ok()
        });
        Ok(Server {
            child,
            since: Instant::now(),
            said,
            reader,
        })
    }

    /// Turns the last words of a server that did not start into an error that says what to do.
    fn explain(&self, status: &str, words: &str) -> SupervisorError {
        let path = self.database.path.clone();
        if words.contains("syntax error") || words.contains("file type") || words.contains("file format") {
            return SupervisorError::Damaged {
                path,
                details: words.to_owned(),
            };
        }
        SupervisorError::Ended {
            status: status.to_owned(),
            details: words.to_owned(),
        }
    }

    /// Removes what a killed server left in the run directory.
    fn remove_remains(&self) {
        let run_dir = &self.options.run_dir;
        remove_dead_sockets(run_dir, "db.sock", "");
        remove_dead_sockets(run_dir, "ovsdb-server.", ".ctl");
        let pidfile = run_dir.join("ovsdb-server.pid");
        if pidfile.exists() && lock_holder(&pidfile).is_none() {
            let _ = fs::remove_file(pidfile);
        }
    }

    fn clean_up(&self) {
        self.set_pid(None);
        self.remove_remains();
    }

    fn set_pid(&self, pid: Option<u32>) {
        *self.pid.lock().unwrap_or_else(PoisonError::into_inner) = pid;
    }
}

impl Server {
    /// Asks the server to end, and kills it if it does not.
    fn end(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id())
            && let Ok(None) = self.child.try_wait()
        {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let until = Instant::now() + GRACE;
        while let Ok(None) = self.child.try_wait() {
            if Instant::now() >= until {
                log::warn!("ovsdb-server does not end; killing it");
                let _ = self.child.kill();
                let _ = self.child.wait();
                break;
            }
            std::thread::sleep(LOOK);
        }
        self.join_reader();
    }

    /// What the server said last, for a message about its end.
    fn last_words(&mut self) -> String {
        self.join_reader();
        let said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        complaint(
            "ovsdb-server",
            said.iter().cloned().collect::<Vec<_>>().join("\n").as_bytes(),
        )
    }

    /// The reader ends with the server, which holds the only other end of the pipe.
    fn join_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

/// Passes the server's warnings on to our log, each once while it lasts, and keeps the last of them.
fn listen(stderr: impl BufRead, said: &Mutex<VecDeque<String>>) {
    let mut repeats = Repeats::default();
    for line in stderr.split(b'\n') {
        let Ok(line) = line else { return };
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        if line.is_empty() {
            continue;
        }
        // Its end by a signal is told by whoever waits for it, unless the signal was ours.
        if !line.contains("|terminating with signal") && repeats.is_news(&line, Instant::now()) {
            log::warn!(target: "ovsdb_server", "{line}");
        }
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() == KEPT_LINES {
            said.pop_front();
        }
        said.push_back(line);
    }
}

/// Sleeps; true when the order to stop came (the other end was dropped).
fn stopped_within(stop: &Receiver<()>, time: Duration) -> bool {
    !matches!(stop.recv_timeout(time), Err(RecvTimeoutError::Timeout))
}
