//! The life of the process: start everything in order, serve events on the control thread, end in order.

use std::fs;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use vswitch_common::eal::locks::SharedLocks;
use vswitch_common::eal::{self, Eal};
use vswitch_common::ethdev;
use vswitch_common::fault::{self, Point};
use vswitch_common::mempool::Pool;
use vswitch_common::netdev;
use vswitch_common::port::doorbell::Doorbell;
use vswitch_common::port::message::Reason;
use vswitch_common::rundir;
use vswitch_common::stats::{PortBlock, Segment};
use vswitch_control::config::SwitchConfig;
use vswitch_control::ovsdb::{Client, Event as DbEvent, Target};
use vswitch_control::ovsdb_server::{self, Supervisor};
use vswitch_control::unixctl::{self, Pidfile, Registry, Reply};
use vswitch_control::vlog::{Levels, Logger};

use crate::args::Args;
use crate::attach::server::Server;
use crate::attach::{Admission, Notice, Refused};
use crate::cpus;
use crate::datapath::clock::Clock;
use crate::datapath::ledger::Ledger;
use crate::datapath::snapshot::Publisher;
use crate::detach;
use crate::eal_config::{EalConfig, Wishes, default_prefix, runtime_base};
use crate::hugedir;
use crate::memory;
use crate::notify::notify;
use crate::pmds::{MAX_PMDS, Pmds};
use crate::screen;
use crate::switch::kernel::Watch;
use crate::switch::pci::Pci;
use crate::switch::whole::{Started, setting};
use crate::switch::{Parts, Switch, commands};

/// How long clients of a dead switch may hold its memory: they let go as soon as they see that it is gone, or they are
/// stopped, or hang.
const LETTING_GO: Duration = Duration::from_secs(1);
/// How long hugepages may take to come free in all, where there are too few.
const MEMORY_PATIENCE: Duration = Duration::from_secs(3);
/// After waiting for events has failed.
const WAIT_AGAIN: Duration = Duration::from_millis(100);
/// How long clients have to let go at the end.
const FAREWELL: Duration = Duration::from_millis(500);
/// Between looks at links, ages and counters.
const TICK: Duration = Duration::from_secs(1);
/// Woken later than that, this process was stopped, or the machine stood still: its clients could do nothing either.
const STOOD_STILL: Duration = Duration::from_millis(100);

/// The modules that log, so that their levels can be set before they do (`--log`, `ovs-appctl vlog/set`).
const MODULES: &[&str] = &[
    "attach",
    "daemon",
    "ethdev",
    "ovsdb",
    "ovsdb_server",
    "pmds",
    "switch",
    "unixctl",
];

/// What reaches the control thread from other threads.
#[derive(Debug)]
enum Event {
    Database(DbEvent),
    Command {
        name: &'static str,
        args: Vec<String>,
        reply: Reply,
    },
    Exit(Reply),
    /// A link changed or a device is gone.
    Device,
}

/// Queue of events, with a doorbell that a poll can wait for.
#[derive(Debug, Clone)]
struct Inbox {
    sender: Sender<Event>,
    bell: Arc<Doorbell>,
}

impl Inbox {
    fn put(&self, event: Event) {
        // The receiver is gone only when the process ends.
        let _ = self.sender.send(event);
        self.bell.ring();
    }
}

/// Runs the switch until it is told to end.
///
/// # Errors
/// Why it did not start, in words for the user.
pub fn run(args: &Args, eal_arguments: Vec<String>) -> anyhow::Result<()> {
    let readiness = args.detach.then(detach::detach).transpose()?;
    let rundir = rundir::resolve(args.rundir.as_deref());
    let levels = Levels::new(level(args.verbose), MODULES);
    Logger::install(levels.clone()).context("logging")?;
    if args.detach {
        levels.log_to(rundir.join("dpdk-vswitchd.log"), detach::print_to);
    }
    args.log
        .iter()
        .try_for_each(|spec| levels.set(spec))
        .context("--log")?;
    rundir::prepare(&rundir).with_context(|| format!("run-time directory {}", rundir.display()))?;
    let _pidfile = Pidfile::create(&rundir.join("ovs-vswitchd.pid")).with_context(|| {
        format!(
            "a switch uses the run-time directory {} already",
            rundir.display()
        )
    })?;
    let _second_pidfile = args.pidfile.as_deref().map(Pidfile::create).transpose()?;
    let signals = block_signals()?;
    raise_descriptor_limit();

    let (sender, events) = channel();
    let inbox = Inbox {
        sender,
        bell: Arc::new(Doorbell::new().context("eventfd")?),
    };
    let (supervisor, target) = database(args, &rundir)?;
    let db_inbox = inbox.clone();
    let client = Client::start(target, move |event| db_inbox.put(Event::Database(event)))
        .context("database client")?;

    let Some(first) = first_configuration(&signals, &inbox, &events)? else {
        return Ok(());
    };
    let _claim = hugedir::Claim::of(&default_prefix(&rundir)).map_err(|e| anyhow!(e))?;
    let (mut switch, prefix) = start_datapath(eal_arguments, &rundir, &first)?;
    let mut server = Server::listen(&rundir::attach_socket(&rundir))
        .with_context(|| format!("attach socket in {}", rundir.display()))?;
    let unixctl = unixctl::Server::start(&rundir, registry(&inbox, &levels)).context("control socket")?;
    let device_inbox = inbox.clone();
    ethdev::events::listen(move || device_inbox.put(Event::Device));
    switch.configure(first);
    switch.tick();
    client.publish(switch.status());

    log::info!("ready");
    // Whoever started it may have gone
    let _ = writeln!(std::io::stdout(), "export OVS_RUNDIR={}", rundir.display());
    notify("READY=1");
    if let Some(readiness) = readiness {
        levels.reopen()?;
        readiness.ready()?;
    }
    if let Some(seconds) = args.stats {
        let prefix = prefix.clone();
        std::thread::spawn(move || screen::show_for_ever(&prefix, Duration::from_secs(seconds)));
    }

    let farewell = serve(&signals, &inbox, &events, &mut switch, &mut server, &client);
    notify("STOPPING=1");
    say_goodbye(&mut switch, &mut server);
    let alone = !server.has_clients();
    drop(server);
    client.stop();
    stop_datapath(switch, &prefix, alone);
    if let Some(supervisor) = supervisor {
        supervisor.stop();
    }
    if let Some(reply) = farewell {
        reply.ok("");
    }
    unixctl.stop();
    log::info!("ended");
    Ok(())
}

fn level(verbose: u8) -> log::LevelFilter {
    match verbose {
        0 => log::LevelFilter::Info,
        1 => log::LevelFilter::Debug,
        _ => log::LevelFilter::Trace,
    }
}

/// Each client takes a few descriptors, and the usual soft limit of 1024 is for the sake of select(2).
fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // A failure leaves the limit as it was.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn block_signals() -> anyhow::Result<SignalFd> {
    let mut set = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]
        .into_iter()
        .for_each(|s| set.add(s));
    set.thread_block().context("signal mask")?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("signalfd")
}

fn database(args: &Args, rundir: &Path) -> anyhow::Result<(Option<Supervisor>, Target)> {
    if let Some(target) = &args.db {
        return Ok((None, target.parse().with_context(|| format!("--db {target}"))?));
    }
    let statedir = args.statedir.clone().unwrap_or_else(|| {
        // A run-time directory of one's own is a switch of one's own, with a database of its own.
        let default = PathBuf::from("/var/lib/dpdk-vswitchd");
        if rundir == Path::new(rundir::DEFAULT) {
            default
        } else {
            rundir.to_owned()
        }
    });
    let supervisor =
        Supervisor::start(ovsdb_server::Options::new(statedir, rundir)).context("ovsdb-server")?;
    let target = supervisor.target();
    Ok((Some(supervisor), target))
}

/// Waits for the configuration that EAL starts with. `None`: told to end before that.
fn first_configuration(
    signals: &SignalFd,
    inbox: &Inbox,
    events: &Receiver<Event>,
) -> anyhow::Result<Option<SwitchConfig>> {
    loop {
        wait(signals, inbox, std::iter::empty(), None)?;
        if told_to_end(signals) {
            return Ok(None);
        }
        while let Ok(event) = events.try_recv() {
            match event {
                Event::Database(DbEvent::Config(config)) => return Ok(Some(config)),
                // The client says that it can't connect; there is no traffic yet to say a word of.
                Event::Database(DbEvent::Disconnected { .. }) => {}
                Event::Database(event) => log_database(&event),
                Event::Command { .. } | Event::Exit(_) | Event::Device => {}
            }
        }
    }
}

fn start_datapath(
    arguments: Vec<String>,
    rundir: &Path,
    config: &SwitchConfig,
) -> anyhow::Result<(Switch, String)> {
    let setting = |key| setting(&config.other_config, key);
    let wishes = Wishes {
        arguments,
        extra: setting("dpdk-extra"),
        socket_mem: setting("dpdk-socket-mem"),
        lcore_mask: setting("dpdk-lcore-mask"),
        physical_addresses: Pci::default().has_uio_nics(),
    };
    let name_settings = |e: anyhow::Error| match wishes.from_database() {
        Some(settings) => anyhow!("{e:#} ({settings})"),
        None => e,
    };
    let eal_config = eal_config_with_patience(&wishes, rundir).map_err(name_settings)?;
    if let Some(cpus) = &eal_config.cpus {
        cpus::pin(0, cpus).context("CPUs of -c or -l")?;
    }
    log::debug!("EAL arguments: {}", eal_config.arguments.join(" "));
    netdev::take_realtime_signals();
    let eal = Eal::init("dpdk-vswitchd", &eal_config.arguments)
        .map_err(|e| name_settings(anyhow::Error::new(e)))?;
    let ledger = Arc::new(Ledger::new(pools(&eal_config.memory_by_node)?));
    log::info!(
        "{}: {} MiB of hugepages, {} mbufs",
        eal::version(),
        eal_config.memory_by_node.iter().sum::<u64>(),
        ledger.size()
    );

    fault::point(Point::SwitchEalUp);
    let prefix = eal_config.file_prefix;
    // Now, while no client runs.
    let locks = SharedLocks::find(&ethdev::eal_runtime_dir())
        .inspect_err(|e| log::warn!("{e}; a client that dies as it starts may block configuration changes"))
        .ok();
    let segment = Arc::new(Segment::create(&prefix, eal::tsc_hz())?);
    let publisher = Arc::new(Publisher::new(MAX_PMDS).context("eventfd")?);
    let clock = Clock::new(eal::tsc_hz());
    let Some(stats) = PortBlock::claim(&segment, 0) else {
        bail!("the counters are in use")
    };
    let cpus = eal_config.cpus.clone().unwrap_or_else(cpus::inherited);
    let pmds = Pmds::new(
        eal,
        publisher.clone(),
        ledger.clone(),
        segment.clone(),
        clock,
        cpus,
    );
    let admission = Admission {
        file_prefix: prefix.clone(),
        // A client of another user would look elsewhere by itself.
        runtime_dir: runtime_base().to_string_lossy().into_owned(),
    };
    let switch = Switch::new(Parts {
        ledger,
        segment,
        publisher,
        clock,
        pmds,
        stats,
        admission,
        locks,
        watch: Watch::new().context("epoll")?,
        started: Started::with(&config.other_config),
    });
    Ok((switch, prefix))
}

/// A pool of mbufs on each NUMA node that has memory.
fn pools(mb_by_node: &[u64]) -> anyhow::Result<Vec<Pool>> {
    let pools = memory::pools(mb_by_node).map(|(node, mbufs)| {
        let name = format!("MProc_pktmbuf_pool_node{node}");
        Pool::create(&name, mbufs, node as i32).map_err(|e| {
            let mb = mb_by_node[node];
            anyhow!("no memory for {mbufs} mbufs in {mb} MiB of NUMA node {node} ({e})")
        })
    });
    let pools: Vec<Pool> = pools.collect::<anyhow::Result<_>>()?;
    if pools.is_empty() {
        bail!("no NUMA node has memory enough for mbufs; raise other_config:dpdk-socket-mem")
    }
    Ok(pools)
}

/// The clients of a switch that crashed hold its hugepages until they see it is gone.
fn eal_config_with_patience(wishes: &Wishes, rundir: &Path) -> anyhow::Result<EalConfig> {
    // The run-time directory's lock is held, so a switch that had this prefix is dead. Its clients may not be, and they
    // hold locks on EAL's files: new ones are made.
    let prefix = default_prefix(rundir);
    memory::remove_files(&prefix);
    let _ = fs::remove_dir_all(crate::eal_config::runtime_dir(&prefix));
    let start = Instant::now();
    loop {
        let config = EalConfig::new(wishes, rundir, &memory::hugepages());
        let in_the_way = hugedir::in_the_way();
        let short = match &config {
            Ok(config) => !config.memory_is_ample,
            Err(e) => e.contains("hugepages"),
        };
        let waited = start.elapsed();
        if !(short || in_the_way.is_some()) || waited > MEMORY_PATIENCE {
            return match in_the_way {
                Some(who) => Err(anyhow!(who)),
                None => config.map_err(|e| anyhow!(e)),
            };
        }
        let holders = memory::holders(&prefix);
        if holders.is_empty() && config.is_ok() && in_the_way.is_none() {
            return config.map_err(|e| anyhow!(e));
        }
        if waited > LETTING_GO {
            for pid in holders {
                log::warn!(
                    "process {pid} holds the memory of a switch that is dead, and does not let go; killed"
                );
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn registry(inbox: &Inbox, levels: &Levels) -> Registry {
    let mut registry = Registry::new(concat!("dpdk-vswitchd ", env!("CARGO_PKG_VERSION")));
    registry.vlog(levels);
    for &(name, usage, least, most) in commands::COMMANDS {
        let inbox = inbox.clone();
        registry.deferred(name, usage, least, Some(most), move |args, reply| {
            inbox.put(Event::Command { name, args, reply });
        });
    }
    let inbox = inbox.clone();
    registry.deferred("exit", "[--cleanup]", 0, Some(1), move |_, reply| {
        inbox.put(Event::Exit(reply))
    });
    registry
}

/// Serves events until the end; the one who asked for it by ovs-appctl waits for an answer.
fn serve(
    signals: &SignalFd,
    inbox: &Inbox,
    events: &Receiver<Event>,
    switch: &mut Switch,
    server: &mut Server,
    client: &Client,
) -> Option<Reply> {
    let mut next_tick = Instant::now() + TICK;
    let mut pending: Option<SwitchConfig> = None;
    let mut devices_changed = false;
    loop {
        let deadline = server.deadline().map_or(next_tick, |d| d.min(next_tick));
        let deadline = deadline.max(Instant::now());
        let others = server.descriptors().chain([input(switch.kernel_events())]);
        if let Err(e) = wait(signals, inbox, others, Some(deadline)) {
            // Out of memory, perhaps: traffic goes on all the same.
            log::error!("{e:#}");
            std::thread::sleep(WAIT_AGAIN);
        }
        if told_to_end(signals) {
            return None;
        }
        let late = Instant::now().saturating_duration_since(deadline);
        if late > STOOD_STILL {
            server.postpone(late + STOOD_STILL);
        }
        if late > TICK {
            log::warn!(
                "the machine, or this process, stood still for {} ms",
                late.as_millis()
            );
        }
        let mut device_event = false;
        while let Ok(event) = events.try_recv() {
            match event {
                Event::Database(DbEvent::Config(config)) => pending = Some(config),
                Event::Database(event) => log_database(&event),
                Event::Command { name, args, reply } => reply.send(switch.command(name, &args)),
                Event::Exit(reply) => return Some(reply),
                Event::Device => device_event = true,
            }
        }
        if device_event {
            switch.look_at_links();
        }
        if switch.kernel_event() || device_event {
            client.publish(switch.status());
        }
        if Instant::now() >= next_tick {
            next_tick = Instant::now() + TICK;
            switch.tick();
            client.publish(switch.status());
            if switch.has_new_devices() && pending.is_none() {
                pending = Some(switch.config().clone());
            }
        }
        // A new configuration may allocate, and what is of no use be freed, and a client inside EAL's initialisation may hold
        // the allocator's locks, perhaps for ever: so that waits for the present turn's end, and the next turn waits for it.
        devices_changed |= device_event;
        let waits = devices_changed || pending.is_some() || switch.has_discarded();
        server.work(switch, !waits);
        if !server.turn_is_taken() && (waits || switch.has_discarded()) {
            devices_changed = false;
            switch.let_go();
            if let Some(config) = pending.take() {
                switch.configure(config);
            }
            client.publish(switch.status());
            server.work(switch, true);
        }
        for (id, notice) in switch.take_notices() {
            match notice {
                Notice::Evicted(why) => server.evict(id, &why),
                Notice::State { carrier, mtu } => server.tell_state(id, carrier, mtu),
            }
        }
    }
}

/// Waits for a signal, an event, one of `others`, or `deadline`.
fn wait<'a>(
    signals: &'a SignalFd,
    inbox: &'a Inbox,
    others: impl Iterator<Item = PollFd<'a>>,
    deadline: Option<Instant>,
) -> anyhow::Result<()> {
    // Rounded up: waking a moment before the deadline would only mean another round.
    let left = deadline.map(|d| d.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
    let timeout = left.map_or(PollTimeout::NONE, |t| {
        PollTimeout::try_from(t).unwrap_or(PollTimeout::MAX)
    });
    let mut fds = vec![input(signals.as_fd()), input(inbox.bell.as_fd())];
    fds.extend(others);
    match poll(&mut fds, timeout) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => {
            inbox.bell.silence();
            Ok(())
        }
        Err(e) => Err(e).context("poll"),
    }
}

fn input(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::POLLIN)
}

fn told_to_end(signals: &SignalFd) -> bool {
    let mut end = false;
    while let Ok(Some(info)) = signals.read_signal() {
        // A terminal that hangs up does not end a service.
        end |= info.ssi_signo != Signal::SIGHUP as u32;
    }
    end
}

fn log_database(event: &DbEvent) {
    match event {
        DbEvent::Config(_) => {}
        DbEvent::Locked => log::debug!("the database is ours to write"),
        DbEvent::NotLocked { lock } => {
            log::warn!(
                "another switch runs on this database (it holds the lock {lock}); waiting for it to end"
            );
        }
        DbEvent::Disconnected { reason } => {
            log::warn!("no connection to the database ({reason}); traffic goes on, connecting again");
        }
    }
}

/// Tells every client that the switch ends, and gives them a moment to let go.
fn say_goodbye(switch: &mut Switch, server: &mut Server) {
    server.evict_all(&Refused {
        reason: Reason::ShuttingDown,
        text: "the switch ends".to_owned(),
    });
    let until = Instant::now() + FAREWELL;
    while server.has_clients() && Instant::now() < until {
        server.work(switch, false);
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn stop_datapath(switch: Switch, prefix: &str, alone: bool) {
    let Parts { pmds, ledger, .. } = switch.shut_down(alone);
    log::debug!(
        "mbufs free at the end: {} of {}",
        ledger.available(),
        ledger.size()
    );
    let runtime_dir = ethdev::eal_runtime_dir();
    let eal = pmds.into_eal();
    if alone {
        eal.cleanup();
    } else {
        // EAL's clean-up could wait for a lock of a client that can't be ended. The kernel takes everything back as well.
        log::warn!("a client process does not end; leaving the clean-up to the kernel");
    }
    memory::remove_files(prefix);
    // EAL leaves its files for a next start with the same prefix; there need not be one.
    let _ = fs::remove_dir_all(runtime_dir);
}
