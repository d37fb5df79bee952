//! The system calls of a running shim, as data. Numbers with arguments are in `when`; what is in neither table fails
//! with EPERM.

use libc::c_long;

/// A condition on an argument: `argument & mask == value`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Argument {
    pub index: u8,
    pub mask: u64,
    pub value: u64,
}

/// An entry of a table. Several entries of one call: any of them will do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub call: c_long,
    /// All of these hold; none: whatever the arguments.
    pub when: &'static [Argument],
    /// What for, or why not.
    #[cfg_attr(not(test), expect(dead_code, reason = "for the reader"))]
    pub reason: &'static str,
}

const fn any(call: c_long, reason: &'static str) -> Entry {
    Entry {
        call,
        when: &[],
        reason,
    }
}

const fn with(call: c_long, when: &'static [Argument], reason: &'static str) -> Entry {
    Entry { call, when, reason }
}

/// A 32-bit argument's exact value.
const fn is(index: u8, value: i32) -> Argument {
    Argument {
        index,
        mask: u32::MAX as u64,
        value: value as u32 as u64,
    }
}

/// None of the bits `bits`.
const fn without(index: u8, bits: i32) -> Argument {
    Argument {
        index,
        mask: bits as u32 as u64,
        value: 0,
    }
}

/// All of the bits `bits`.
const fn has(index: u8, bits: i32) -> Argument {
    Argument {
        index,
        mask: bits as u32 as u64,
        value: bits as u32 as u64,
    }
}

/// What every thread of a running shim may do.
pub(super) const ALLOWED: &[Entry] = &[
    // Waiting and waking.
    any(libc::SYS_ppoll, "pumps and the control thread sleep"),
    any(libc::SYS_futex, "gates, channels, joining threads"),
    any(libc::SYS_epoll_create1, "EAL's interrupt thread"),
    any(libc::SYS_epoll_ctl, "EAL's interrupt thread"),
    any(libc::SYS_epoll_pwait, "EAL's interrupt thread sleeps"),
    any(libc::SYS_clock_nanosleep, "waiting for the rest of a message"),
    any(libc::SYS_nanosleep, "as above, by older C libraries"),
    any(libc::SYS_sched_yield, "idle pumps, spinning locks of EAL"),
    any(
        libc::SYS_restart_syscall,
        "a sleep that a SIGSTOP and SIGCONT interrupted",
    ),
    // Descriptors that are open, or that arrive over the frontend's socket.
    any(libc::SYS_read, "eventfds, signals, messages"),
    any(libc::SYS_readv, "messages"),
    any(libc::SYS_write, "doorbells, calls, the carrier pipe, the log"),
    any(libc::SYS_writev, "the log"),
    any(libc::SYS_recvfrom, "messages that the library does not take"),
    any(libc::SYS_recvmsg, "messages with descriptors"),
    any(libc::SYS_sendto, "messages to the switch, the system log"),
    any(libc::SYS_sendmsg, "replies to the frontend"),
    any(
        libc::SYS_close,
        "descriptors of a memory table or virtqueue that went",
    ),
    any(libc::SYS_fstat, "size of shared memory"),
    with(libc::SYS_newfstatat, &[has(3, libc::AT_EMPTY_PATH)], "as above"),
    with(libc::SYS_statx, &[has(2, libc::AT_EMPTY_PATH)], "as above"),
    with(
        libc::SYS_fcntl,
        &[is(1, libc::F_DUPFD_CLOEXEC)],
        "a pump's handle of an eventfd",
    ),
    with(libc::SYS_fcntl, &[is(1, libc::F_GETFD)], "checking a descriptor"),
    with(libc::SYS_fcntl, &[is(1, libc::F_SETFD)], "close-on-exec"),
    with(libc::SYS_fcntl, &[is(1, libc::F_GETFL)], "eventfds that block"),
    with(libc::SYS_fcntl, &[is(1, libc::F_SETFL)], "eventfds that block"),
    with(libc::SYS_ioctl, &[is(1, FIONBIO)], "a socket that blocks"),
    with(
        libc::SYS_setsockopt,
        &[is(1, libc::SOL_SOCKET), is(2, libc::SO_RCVTIMEO)],
        "the frontend's socket after a new connection",
    ),
    with(
        libc::SYS_setsockopt,
        &[is(1, libc::SOL_SOCKET), is(2, libc::SO_SNDTIMEO)],
        "as above",
    ),
    // Memory. Nothing becomes executable.
    with(
        libc::SYS_mmap,
        &[without(2, libc::PROT_EXEC)],
        "guest memory at any time; the heap",
    ),
    with(
        libc::SYS_mprotect,
        &[without(2, libc::PROT_EXEC)],
        "the heap; guard pages of stacks",
    ),
    any(libc::SYS_munmap, "guest memory at any time; the heap"),
    any(libc::SYS_mremap, "the heap"),
    any(libc::SYS_brk, "the heap"),
    // Not MADV_REMOVE, which takes pages out of a shared file.
    with(
        libc::SYS_madvise,
        &[is(2, libc::MADV_DONTNEED)],
        "the heap; a stack whose thread ends",
    ),
    with(libc::SYS_madvise, &[is(2, libc::MADV_FREE)], "the heap"),
    any(
        libc::SYS_memfd_create,
        "the inflight region that a frontend asks for",
    ),
    // Time, threads and signals of this process.
    any(libc::SYS_clock_gettime, "where the vDSO can't tell the time"),
    any(libc::SYS_gettimeofday, "as above"),
    any(libc::SYS_getrandom, "seeds of hash tables and of the heap"),
    any(libc::SYS_getpid, "abort, the system log"),
    any(libc::SYS_gettid, "abort"),
    any(
        libc::SYS_sched_getaffinity,
        "a starting thread looks at its stack",
    ),
    with(
        libc::SYS_sched_setaffinity,
        &[is(0, 0)],
        "a starting pump goes to its CPU",
    ),
    with(
        libc::SYS_prctl,
        &[is(0, libc::PR_SET_NAME)],
        "a starting thread's name",
    ),
    with(libc::SYS_prctl, &[is(0, PR_SET_VMA)], "the heap names its memory"),
    any(libc::SYS_set_robust_list, "a starting thread"),
    any(libc::SYS_rseq, "a starting thread"),
    any(libc::SYS_membarrier, "the C library"),
    any(libc::SYS_sigaltstack, "threads that start or end"),
    any(libc::SYS_rt_sigprocmask, "threads that start or end; abort"),
    any(libc::SYS_rt_sigaction, "abort"),
    any(libc::SYS_rt_sigreturn, "the end of a signal handler"),
    any(libc::SYS_exit, "the end of a thread"),
    any(libc::SYS_exit_group, "the end"),
];

/// As [`ALLOWED`]: calls that only older architectures have.
#[cfg(target_arch = "x86_64")]
pub(super) const ALLOWED_LEGACY: &[Entry] = &[
    any(libc::SYS_poll, "pumps and the control thread sleep"),
    any(libc::SYS_epoll_create, "EAL's interrupt thread"),
    any(libc::SYS_epoll_wait, "EAL's interrupt thread sleeps"),
    any(libc::SYS_time, "where the vDSO can't tell the time"),
];
#[cfg(not(target_arch = "x86_64"))]
pub(super) const ALLOWED_LEGACY: &[Entry] = &[];

/// What a shim may do besides, whose frontend has a path: it comes back to one that restarted.
pub(super) const ALLOWED_TO_CONNECT: &[Entry] = &[
    with(
        libc::SYS_socket,
        &[is(0, libc::AF_UNIX)],
        "to connect to the frontend again",
    ),
    any(libc::SYS_connect, "as above"),
];

const NEVER: &str = "no shim does this: whoever tries has taken the process over";

/// What ends the process at once.
pub(super) const FATAL: &[Entry] = &[
    any(libc::SYS_execve, NEVER),
    any(libc::SYS_execveat, NEVER),
    with(libc::SYS_clone, &[without(0, libc::CLONE_THREAD)], NEVER),
    any(libc::SYS_ptrace, NEVER),
    any(libc::SYS_process_vm_readv, NEVER),
    any(libc::SYS_process_vm_writev, NEVER),
    any(libc::SYS_pidfd_getfd, NEVER),
    any(libc::SYS_kill, NEVER),
    with(libc::SYS_openat, &[has(2, libc::O_WRONLY)], NEVER),
    with(libc::SYS_openat, &[has(2, libc::O_RDWR)], NEVER),
    with(libc::SYS_openat, &[has(2, libc::O_CREAT)], NEVER),
    any(libc::SYS_openat2, NEVER),
    any(libc::SYS_open_by_handle_at, NEVER),
    any(libc::SYS_bind, NEVER),
    any(libc::SYS_listen, NEVER),
    any(libc::SYS_mount, NEVER),
    any(libc::SYS_umount2, NEVER),
    any(libc::SYS_move_mount, NEVER),
    any(libc::SYS_open_tree, NEVER),
    any(libc::SYS_fsopen, NEVER),
    any(libc::SYS_pivot_root, NEVER),
    any(libc::SYS_chroot, NEVER),
    any(libc::SYS_unshare, NEVER),
    any(libc::SYS_setns, NEVER),
    any(libc::SYS_setuid, NEVER),
    any(libc::SYS_setresuid, NEVER),
    any(libc::SYS_setgid, NEVER),
    any(libc::SYS_setresgid, NEVER),
    any(libc::SYS_init_module, NEVER),
    any(libc::SYS_finit_module, NEVER),
    any(libc::SYS_kexec_load, NEVER),
    any(libc::SYS_bpf, NEVER),
    any(libc::SYS_perf_event_open, NEVER),
    any(libc::SYS_userfaultfd, NEVER),
    any(libc::SYS_io_uring_setup, NEVER),
    any(libc::SYS_add_key, NEVER),
    any(libc::SYS_keyctl, NEVER),
    any(libc::SYS_request_key, NEVER),
    any(libc::SYS_reboot, NEVER),
    any(libc::SYS_swapon, NEVER),
    any(libc::SYS_personality, NEVER),
];

/// As [`FATAL`]: calls that only older architectures have.
#[cfg(target_arch = "x86_64")]
pub(super) const FATAL_LEGACY: &[Entry] = &[
    any(libc::SYS_fork, NEVER),
    any(libc::SYS_vfork, NEVER),
    any(libc::SYS_creat, NEVER),
    with(libc::SYS_open, &[has(1, libc::O_WRONLY)], NEVER),
    with(libc::SYS_open, &[has(1, libc::O_RDWR)], NEVER),
    with(libc::SYS_open, &[has(1, libc::O_CREAT)], NEVER),
    any(libc::SYS_iopl, NEVER),
    any(libc::SYS_ioperm, NEVER),
];
#[cfg(not(target_arch = "x86_64"))]
pub(super) const FATAL_LEGACY: &[Entry] = &[];

const FIONBIO: i32 = libc::FIONBIO as i32;
const PR_SET_VMA: i32 = 0x5356_4d41;
