//! Each test runs this test binary once more: what is confined there stays so until the process ends.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus};
use std::sync::mpsc::channel;
use std::time::Duration;

use nix::errno::Errno;

use super::*;

const TRY: &str = "SANDBOX_TEST_TRY";
/// Exit codes of the confined process.
const REFUSED: i32 = 10;
const DONE: i32 = 11;

/// Makes the confined process try `what`.
fn confined(what: &str) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "sandbox::tests::inside",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(TRY, what)
        .env("RUST_BACKTRACE", "1")
        .status()
        .unwrap()
}

/// The confined process. As a test of its own it has nothing to do.
#[test]
fn inside() {
    let Ok(what) = std::env::var(TRY) else {
        return;
    };
    // libtest's own main thread is there too; and one that works meanwhile.
    let (to_worker, work) = channel::<CString>();
    let (to_test, answers) = channel();
    let worker = std::thread::spawn(move || {
        for call in work {
            to_test.send(attempt(call.to_str().unwrap())).unwrap();
        }
    });
    let sandbox = Sandbox::prepare(what == "connect").unwrap();
    sandbox.confine_others().unwrap();
    sandbox.confine_this().unwrap();
    let own = attempt(&what);
    to_worker.send(CString::new(what).unwrap()).unwrap();
    let others = answers.recv().unwrap();
    drop(to_worker);
    worker.join().unwrap();
    let code = match (own, others) {
        (Ok(()), Ok(())) => DONE,
        (Err(Errno::EPERM | Errno::EACCES), Err(Errno::EPERM | Errno::EACCES)) => REFUSED,
        _ => 1,
    };
    std::process::exit(code);
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(0))
}

fn call(number: libc::c_long, arguments: [libc::c_long; 4]) -> Result<(), Errno> {
    let [a, b, c, d] = arguments;
    // SAFETY: the arguments are numbers, or null where a pointer belongs.
    Errno::result(unsafe { libc::syscall(number, a, b, c, d) }).map(drop)
}

/// Tries one thing, on the calling thread.
fn attempt(what: &str) -> Result<(), Errno> {
    match what {
        "read a file" => File::open("/proc/self/status").map(drop).map_err(|e| errno(&e)),
        "write a file" => File::create("/dev/null").map(drop).map_err(|e| errno(&e)),
        "list a directory" => std::fs::read_dir("/").map(drop).map_err(|e| errno(&e)),
        "start a program" => Command::new("/bin/true")
            .status()
            .map(drop)
            .map_err(|e| errno(&e)),
        "exec" => call(libc::SYS_execve, [0; 4]),
        "trace" => call(libc::SYS_ptrace, [libc::PTRACE_TRACEME.into(), 0, 0, 0]),
        "mount" => call(libc::SYS_mount, [0; 4]),
        "internet" => std::net::UdpSocket::bind("127.0.0.1:0")
            .map(drop)
            .map_err(|e| errno(&e)),
        "connect" => match std::os::unix::net::UnixStream::connect("/nowhere/to/be/found") {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.map(drop).map_err(|e| errno(&e)),
        },
        "thread" => std::thread::Builder::new()
            .spawn(|| ())
            .map(|thread| thread.join().unwrap())
            .map_err(|e| errno(&e)),
        "signal" => call(libc::SYS_tgkill, [1, 1, 0, 0]),
        "code" => call(libc::SYS_mprotect, [0, 4096, libc::PROT_EXEC.into(), 0]),
        "privileges" => call(libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), 1, 0, 0]),
        "shorten a file" => call(libc::SYS_ftruncate, [0, 0, 0, 0]),
        "punch a file" => call(libc::SYS_madvise, [0, 4096, libc::MADV_REMOVE.into(), 0]),
        "work" => work(),
        "abort" => std::process::abort(),
        "panic" => panic!("on purpose"),
        other => panic!("{other}?"),
    }
}

/// What a shim does all day.
fn work() -> Result<(), Errno> {
    use nix::sys::eventfd::EventFd;
    let mut file = File::from(nix::sys::memfd::memfd_create(
        c"test",
        nix::sys::memfd::MFdFlags::MFD_CLOEXEC,
    )?);
    file.write_all(&vec![0; 1 << 20]).map_err(|e| errno(&e))?;
    let table = crate::guest_memory::SharedTable::map(&file, 4096, 1 << 16).map_err(|_| Errno::EINVAL)?;
    table.write(8, [1u8; 8]);
    drop(table);
    let copy = file.try_clone().map_err(|e| errno(&e))?;
    drop(copy);
    let large = vec![1u8; 10 << 20];
    drop(std::hint::black_box(large));
    std::thread::sleep(Duration::from_millis(1));
    let _ = std::io::stderr().write_all(b"log\n");
    drop(std::thread::current());
    // Not made in the sandbox, but refused softly.
    match EventFd::new() {
        Err(Errno::EPERM) => Ok(()),
        _ => Err(Errno::EINVAL),
    }
}

#[test]
fn what_no_shim_does_ends_the_process() {
    for what in ["write a file", "exec", "trace", "mount"] {
        let status = confined(what);
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{what}: {status}");
    }
}

#[test]
fn what_is_not_listed_is_refused_on_every_thread() {
    for what in [
        "read a file",
        "list a directory",
        "start a program",
        "internet",
        "thread",
        "signal",
        "code",
        "privileges",
        "shorten a file",
        "punch a file",
    ] {
        assert_eq!(confined(what).code(), Some(REFUSED), "{what}");
    }
}

#[test]
fn a_shim_can_work() {
    assert_eq!(confined("work").code(), Some(DONE));
    assert_eq!(confined("connect").code(), Some(DONE));
}

/// What goes wrong says so and ends as anywhere else.
#[test]
fn a_shim_can_fail() {
    assert_eq!(confined("panic").code(), Some(101));
    assert_eq!(confined("abort").signal(), Some(libc::SIGABRT));
}

/// The tables are data: no call in both as such, and a reason for each.
#[test]
fn the_tables_do_not_contradict_each_other() {
    use syscalls::{ALLOWED, ALLOWED_LEGACY, ALLOWED_TO_CONNECT, FATAL, FATAL_LEGACY};
    let allowed = || ALLOWED.iter().chain(ALLOWED_LEGACY).chain(ALLOWED_TO_CONNECT);
    let fatal = || FATAL.iter().chain(FATAL_LEGACY);
    for entry in allowed() {
        assert!(fatal().all(|never| never.call != entry.call), "{entry:?}");
    }
    for entries in [allowed().collect::<Vec<_>>(), fatal().collect()] {
        let mut seen = BTreeMap::new();
        for entry in entries {
            assert!(!entry.reason.is_empty());
            let conditions: &mut Vec<bool> = seen.entry(entry.call).or_default();
            conditions.push(entry.when.is_empty());
            // An entry without conditions would be undone by one with them.
            assert!(conditions.len() == 1 || !conditions.contains(&true), "{entry:?}");
        }
    }
}
