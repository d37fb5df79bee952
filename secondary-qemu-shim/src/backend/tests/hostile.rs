//! Frontends that lie: messages with wrong descriptors, out of order, and changes under running rings.

use std::fs::{File, Metadata};
use std::io::IoSlice;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use super::*;

/// Sends a message as it stands, with descriptors.
fn send_raw(socket: &UnixStream, words: &[u32], files: &[RawFd]) {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let rights = [ControlMessage::ScmRights(files)];
    let control = if files.is_empty() {
        &rights[..0]
    } else {
        &rights[..]
    };
    sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(&bytes)],
        control,
        MsgFlags::empty(),
        None,
    )
    .unwrap();
}

/// How many descriptors of `file` this process has. Those of other files come and go with other tests.
fn descriptors_of(file: &File) -> usize {
    let identity = |m: Metadata| (m.dev(), m.ino());
    let wanted = identity(file.metadata().unwrap());
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    open.filter_map(|entry| std::fs::metadata(entry.ok()?.path()).ok())
        .filter(|found| identity(found.clone()) == wanted)
        .count()
}

/// Signalling it would write into the file, which may be the guest's memory.
#[test]
fn a_file_in_place_of_an_event_ends_the_connection_unwritten() {
    for (what, request) in [("kick", 12), ("call", 13), ("error", 14)] {
        let mut session = Session::new(1);
        session.negotiate(SPLIT);
        session.attach();
        session.start_pair(0);
        let file = memfd(64);
        send_raw(&session.raw, &[request, 1, 8, 0, 0], &[file.as_raw_fd()]);
        let ended = session.ended();
        assert!(matches!(ended, Ended::Message(_)), "{what}: {ended}");
        let mut bytes = [1; 64];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [0; 64], "{what}");
    }
}

/// Descriptors where none belong, none where some belong, more than any message has, and what is not what it should
/// be. The message library would wait for ever for a header that came with more than 32.
#[test]
fn wrong_descriptors_end_the_connection_and_are_closed() {
    let mut session = Session::new(1);
    let file = memfd(4096);
    let long = |value: u64| [value as u32, (value >> 32) as u32];
    let region = [long(0), long(SIZE), long(FRONTEND), long(0)].concat();
    let table = [&[5, 1, 40, 1, 0], &region[..]].concat();
    let inflight = [&[32, 1, 20], &long(4096)[..], &long(0), &[1 | 8 << 16]].concat();
    let cases: &[(&str, &[u32], usize)] = &[
        ("SET_OWNER with one", &[3, 1, 0], 1),
        ("SET_OWNER with as many as fit", &[3, 1, 0], 32),
        ("SET_OWNER with more than fit", &[3, 1, 0], 33),
        ("SET_OWNER with all that the kernel lets through", &[3, 1, 0], 253),
        ("SET_FEATURES with one", &[2, 1, 8, 0, 0], 1),
        ("SET_MEM_TABLE with one too few", &table, 0),
        ("SET_MEM_TABLE with one too many", &table, 2),
        ("SET_MEM_TABLE with a file too short", &table, 1),
        ("SET_VRING_KICK without", &[12, 1, 8, 0, 0], 0),
        ("SET_VRING_KICK with two", &[12, 1, 8, 0, 0], 2),
        ("SET_VRING_CALL with none, and one", &[13, 1, 8, 1 << 8, 0], 1),
        ("SET_INFLIGHT_FD without", &inflight, 0),
        ("SET_INFLIGHT_FD with two", &inflight, 2),
        ("SET_LOG_BASE without", &[6, 1, 16, 4096, 0, 0, 0], 0),
    ];
    let _ = session.raw.shutdown(std::net::Shutdown::Write);
    session.ended();
    for (what, words, count) in cases {
        session.connect();
        send_raw(&session.raw, words, &vec![file.as_raw_fd(); *count]);
        let _ = session.raw.shutdown(std::net::Shutdown::Write);
        let ended = session.ended();
        assert_eq!(
            descriptors_of(&file),
            1,
            "{what}: {ended}, and a descriptor is left"
        );
    }
    session.connect();
    serves_as_ever(session);
}

/// A healthy frontend is served.
fn serves_as_ever(mut session: Session) {
    session.negotiate(SPLIT);
    session.attach();
    let (_, mut tx) = session.start_pair(0);
    session.transmit(&mut tx, 1, 1);
    receives(&session.ports[0], 1);
}

/// A size told while the ring runs is for its next start: the running one must not be read by it, when a new memory
/// table comes, neither its entries nor its marks of what is in flight.
#[test]
fn a_running_ring_keeps_its_size() {
    let mut session = Session::new(1);
    session.negotiate(SPLIT);
    session.attach();
    let (_, mut tx) = session.start_pair(0);
    for (i, size) in [1, 32768, 4].into_iter().enumerate() {
        session.frontend.set_vring_num(1, size).unwrap();
        session.set_memory();
        for frame in 0..5 {
            session.transmit(&mut tx, 1, frame + i as u8);
            receives(&session.ports[0], frame + i as u8);
            assert_eq!(tx.used(), [(5 * i as u16 + u16::from(frame), 0)]);
        }
    }
    assert_eq!(session.frontend.get_vring_base(1).unwrap(), 15);
}

/// The rings stay and the buffers go: a chain that lies in memory no more breaks its virtqueue, and nothing else.
#[test]
fn buffers_that_went_with_the_memory_break_the_queue() {
    let mut session = Session::new(1);
    session.negotiate(SPLIT);
    session.attach();
    let (mut rx, mut tx) = session.start_pair(0);
    let err = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    session.frontend.set_vring_err(0, &err).unwrap();
    rx.offer(&[(BUFFERS, 1600, true)]);
    session
        .frontend
        .set_mem_table(&[session.region(BUFFERS)])
        .unwrap();
    session.ports[0].deliver(&[7; 60]);
    until("the error is signalled", || err.read().is_ok());
    assert_eq!(
        peek(&session.memory, BUFFERS, 72),
        [0; 72],
        "nothing is written there"
    );
    // The other virtqueue goes on.
    poke(
        &session.memory,
        0x8_0000,
        &[[0; 12].as_slice(), &[3; 60]].concat(),
    );
    tx.offer(&[(0x8_0000, 72, false)]);
    session.kicks[1].write(1).unwrap();
    receives(&session.ports[0], 3);
}

/// Descriptors to signal with that are no eventfds and no files: never waited on for ever, never spun on.
#[test]
fn signals_may_come_by_pipe_or_socket() {
    let (pipe_read, pipe_write) = nix::unistd::pipe().unwrap();
    let (gone, _) = UnixStream::pair().unwrap();
    let kinds = [pipe_read.as_raw_fd(), pipe_write.as_raw_fd(), gone.as_raw_fd()];
    for kind in kinds {
        let mut session = Session::new(1);
        session.negotiate(SPLIT);
        session.attach();
        let (_, mut tx) = session.start_pair(0);
        for code in [12, 13, 14] {
            send_raw(&session.raw, &[code, 1, 8, 1, 0], &[kind]);
        }
        session.transmit(&mut tx, 1, 9);
        receives(&session.ports[0], 9);
        session.transmit(&mut tx, 1, 10);
        receives(&session.ports[0], 10);
    }
}

/// Everything that may come late comes first, and what may come once comes twice.
#[test]
fn messages_out_of_order_do_no_harm() {
    let mut session = Session::new(1);
    for _ in 0..2 {
        session.frontend.set_vring_kick(1, &session.kicks[1]).unwrap();
        session.frontend.set_vring_num(1, QUEUE).unwrap();
        assert_eq!(session.frontend.get_vring_base(1).unwrap(), 0);
        session.frontend.reset_owner().unwrap();
    }
    session.attach();
    session.negotiate(SPLIT);
    let (_, mut tx) = session.start_pair(0);
    session.transmit(&mut tx, 1, 1);
    receives(&session.ports[0], 1);
    // Set up anew under the running rings.
    session.negotiate(SPLIT);
    session.start_pair(0);
    session.transmit(&mut tx, 1, 2);
    receives(&session.ports[0], 2);
    session.frontend.reset_owner().unwrap();
    session.transmit(&mut tx, 1, 3);
    assert_eq!(session.frontend.get_features().unwrap(), FEATURES);
    assert!(session.ports[0].collect().is_empty(), "reset rings stand still");
}
