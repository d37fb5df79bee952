//! Guests in QEMU on the ports of a [`Switch`].
//!
//! ```no_run
//! use vswitch_tests::{Switch, vm};
//!
//! let switch = Switch::with_ports(&[1, 2]);
//! let mut one = vm::client(&switch, 1).spawn().unwrap();
//! let mut two = vm::client(&switch, 2).spawn().unwrap();
//! vm::boot(&mut [&mut one, &mut two]).unwrap();
//! vm::reaches(&mut one, "10.0.0.2").unwrap();
//! ```
//!
//! QEMU and the guest image are those of `scripts/build-qemu` and `scripts/build-image` (or `$QEMU` and `$VM_IMAGE`),
//! which make them if they are not there yet. `$ACCEL` may be `kvm`.

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vm_harness::{Accel, Vm, VmBuilder, guest};

use crate::child::{children, is_dead};
use crate::programs;
use crate::switch::Switch;
use crate::wait::eventually;

/// A guest's boot, translated, on a machine that has other work as well.
const BOOT: Duration = Duration::from_secs(90);
/// Until a guest's network is up again after whatever came over it.
const NETWORK: Duration = Duration::from_secs(20);

/// What says which boot of a guest it is.
pub const BOOT_ID: &str = "cat /proc/sys/kernel/random/boot_id";

/// What a test of VMs returns.
pub type Outcome = Result<(), Failed>;

/// An error that has become a panic: see its `From`.
#[derive(Debug)]
pub enum Failed {}

/// Panics where the `?` stands. So VMs and switches, dropped on the way out, tell what they have to say.
impl From<vm_harness::Error> for Failed {
    #[track_caller]
    fn from(error: vm_harness::Error) -> Failed {
        panic!("{error}");
    }
}

/// A VM on client port `port`: MAC 00:00:00:00:00:PORT, address 10.0.0.PORT.
#[must_use]
pub fn client(switch: &Switch, port: u8) -> VmBuilder {
    unplugged(switch, &format!("Client {port}")).port(port)
}

/// A VM without a NIC, whose QEMU finds the shim and the switch once it is given one. The switch must run.
///
/// # Panics
/// If QEMU or the guest image are missing and can't be made.
#[must_use]
pub fn unplugged(switch: &Switch, name: &str) -> VmBuilder {
    let clock = match accel() {
        // A translated guest that measures its clock while the host is busy may be wrong many times over.
        Accel::Tcg => format!("tsc_early_khz={}", switch.snapshot().tsc_hz / 1000),
        Accel::Kvm => String::new(),
    };
    plain(name)
        .cmdline(&clock)
        .env("OVS_RUNDIR", &switch.rundir().display().to_string())
        .env("DPDK_QEMU_SHIM", &programs::shim().display().to_string())
}

/// A VM that knows nothing of a switch: one CPU, little memory, no NIC.
///
/// # Panics
/// If QEMU or the guest image are missing and can't be made.
#[must_use]
pub fn plain(name: &str) -> VmBuilder {
    Vm::builder(name)
        .qemu(&qemu())
        .image(&image())
        .accel(accel())
        .cpus(1)
        .memory_mib(384)
}

/// The patched QEMU.
///
/// # Panics
/// If it is missing and can't be made.
#[must_use]
pub fn qemu() -> std::path::PathBuf {
    let path = vm_harness::image::find_qemu()
        .unwrap_or_else(|e| panic!("no QEMU: {e}; run scripts/build-qemu, or name one by the variable QEMU"));
    assert!(path.is_file(), "there is no QEMU at {}", path.display());
    path
}

/// The guest image.
///
/// # Panics
/// If it is missing and can't be made.
#[must_use]
pub fn image() -> vm_harness::Image {
    let image = vm_harness::Image::find().unwrap_or_else(|e| {
        panic!("no guest image: {e}; run scripts/build-image, or name one by the variable VM_IMAGE")
    });
    assert!(
        image.initrd().is_file(),
        "there is no {}",
        image.initrd().display()
    );
    image
}

/// The same guest of a later release: what `scripts/build-image debian13` makes.
///
/// # Panics
/// If it can't be made.
#[must_use]
pub fn debian13() -> vm_harness::Image {
    let directory = vm_harness::image::run_script("build-image", &["debian13"])
        .unwrap_or_else(|e| panic!("no guest image: {e}; run scripts/build-image debian13"));
    vm_harness::Image::at(directory.as_ref())
}

/// How guests run: `$ACCEL`, which is translation unless it says `kvm`.
#[must_use]
pub fn accel() -> Accel {
    match std::env::var("ACCEL").as_deref() {
        Ok("kvm") => Accel::Kvm,
        _ => Accel::Tcg,
    }
}

/// Waits until all of them have a prompt; they boot side by side.
pub fn boot(vms: &mut [&mut Vm]) -> Outcome {
    for vm in vms {
        let time = vm.wait_boot(BOOT)?;
        println!("{}: prompt after {:.1} s", vm.name(), time.as_secs_f64());
    }
    Ok(())
}

/// Waits until `address` answers to `vm`, and then pings it five times, with an answer to each.
///
/// # Panics
/// If answers are missing, or come twice.
#[track_caller]
pub fn reaches(vm: &mut Vm, address: &str) -> Outcome {
    let name = vm.name().to_owned();
    guest::wait_reachable(vm.serial()?, address, NETWORK)?;
    let stats = guest::ping(vm.serial()?, address, 5, "")?;
    println!("{name} to {address}: {stats:?}");
    assert!(stats.is_perfect(), "{name} to {address}: {stats:?}");
    Ok(())
}

/// Pings `address`, which may not answer.
///
/// # Panics
/// If it does.
#[track_caller]
pub fn does_not_reach(vm: &mut Vm, address: &str) -> Outcome {
    let stats = guest::ping(vm.serial()?, address, 3, "-W 1")?;
    assert!(
        stats.sent >= 3 && stats.received == 0,
        "{} to {address}: {stats:?}",
        vm.name()
    );
    Ok(())
}

/// Waits until some more of a stream has come to `vm`.
///
/// # Panics
/// If it has stopped.
#[track_caller]
pub fn stream_flows(vm: &mut Vm) -> Outcome {
    let received = |vm: &mut Vm| -> Result<u64, Failed> {
        let text = vm
            .serial()?
            .check("cat /sys/class/net/eth0/statistics/rx_bytes")?;
        Ok(text.trim().parse().expect("a number"))
    };
    let start = Instant::now();
    let before = received(vm)?;
    while received(vm)? < before + 500_000 {
        assert!(start.elapsed() < NETWORK, "the TCP stream has stopped");
    }
    Ok(())
}

/// Waits until the guest sees its carrier come (`up`) or go; how long that took.
pub fn carrier(vm: &mut Vm, interface: &str, up: bool) -> Result<Duration, Failed> {
    let start = Instant::now();
    guest::wait_carrier(vm.serial()?, interface, up, NETWORK)?;
    Ok(start.elapsed())
}

/// Which boot of the guest this is: another number after a restart of the VM.
pub fn boot_id(vm: &mut Vm) -> Result<String, Failed> {
    Ok(vm.serial()?.check(BOOT_ID)?)
}

/// Process ids of the shims that this VM's QEMU has started and not yet buried.
#[must_use]
pub fn shims(vm: &Vm) -> Vec<i32> {
    let pid = i32::try_from(vm.pid()).expect("process ids are positive");
    children(pid).into_iter().filter(|&pid| !is_dead(pid)).collect()
}

/// The one shim of this VM.
///
/// # Panics
/// If there is none, or more.
#[track_caller]
#[must_use]
pub fn shim(vm: &Vm) -> i32 {
    match shims(vm).as_slice() {
        [pid] => *pid,
        other => panic!("{} has the shims {other:?}, not one", vm.name()),
    }
}

/// Kills the VM's shim, and waits until QEMU has started another one.
///
/// # Panics
/// If it does not.
#[track_caller]
pub fn replace_shim(vm: &Vm) {
    let old = shim(vm);
    kill_now(old);
    eventually(
        "QEMU starts another shim",
        || matches!(shims(vm).as_slice(), [new] if *new != old),
    );
}

/// Ends a process at once.
///
/// # Panics
/// If there is no such process.
#[track_caller]
pub fn kill_now(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap_or_else(|e| panic!("process {pid}: {e}"));
}

/// Pings in the guest's background, twenty times a second, to see for how long no answer came.
#[derive(Debug)]
pub struct Monitor {
    log: String,
    /// Answers that have been looked at.
    seen: u64,
}

/// A time without answers, by the guest's clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Silence {
    /// How long it was.
    pub ms: u64,
    /// Requests sent meanwhile.
    pub unanswered: u64,
}

impl std::fmt::Display for Silence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ms ({} requests)", self.ms, self.unanswered)
    }
}

impl Monitor {
    /// Starts pinging `address`.
    pub fn start(vm: &mut Vm, address: &str) -> Result<Monitor, Failed> {
        let log = format!("/tmp/monitor-{address}");
        vm.serial()?
            .spawn(&format!("exec ping -n -D -i 0.05 {address}"), &log)?;
        Ok(Monitor { log, seen: 0 })
    }

    /// The longest silence above 150 ms since the last call.
    ///
    /// # Panics
    /// If next to no answers have come since then, or a request was answered more than once.
    #[track_caller]
    pub fn silence(&mut self, vm: &mut Vm) -> Result<Silence, Failed> {
        // [1700000000.123456] 64 bytes from 10.0.0.2: icmp_seq=1 ttl=64 time=0.5 ms
        let program = format!(
            "/bytes from/ {{ n++; t = substr($1, 2) + 0; seq = substr($6, 10) + 0; if (/DUP/) d++; \
             if (n > 1 && n > {} && t - last > 0.15 && t - last > s) {{ s = t - last; lost = seq - before - 1 }} \
             last = t; before = seq }} \
             END {{ print n + 0, d + 0, int(s * 1000), lost + 0 }}",
            self.seen
        );
        let start = Instant::now();
        let (answers, duplicates, ms, unanswered) = loop {
            let text = vm.serial()?.check(&format!("awk '{program}' {}", self.log))?;
            let numbers: Vec<u64> = text.split_whitespace().flat_map(str::parse).collect();
            let [answers, duplicates, ms, unanswered] = numbers[..] else {
                panic!("awk in {} said {text:?}", vm.name());
            };
            if answers > self.seen + 5 {
                break (answers, duplicates, ms, unanswered);
            }
            if start.elapsed() > NETWORK {
                let end = vm.serial()?.check(&format!("tail -n 5 {}", self.log))?;
                panic!("ping in {} has next to no answers: {end}", vm.name());
            }
        };
        self.seen = answers;
        assert_eq!(duplicates, 0, "answers that came twice to {}", vm.name());
        Ok(Silence { ms, unanswered })
    }
}
