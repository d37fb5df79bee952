//! The client's side of a port: attach, then move frames through queue pairs.
//!
//! The types follow the protocol's steps: [`Connection`] (hello sent, waiting for the turn), [`Turn`] (EAL may be
//! initialised), [`Attachment`] (rings in hand).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use arrayvec::ArrayVec;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    self, AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, getsockopt, send,
};
use zerocopy::IntoBytes;

use super::doorbell::{Bell, Ringer};
use super::layout::{ClientStats, ControlRef};
use super::message::{Attached, Detach, Grant, Hello, MAX_LEN, Malformed, Message, Ready, header};
use super::{MAX_QUEUES, QUOTA};
use crate::descriptors;
use crate::eal::{Eal, EalError, StartLog};
use crate::fault::{self, Point};
use crate::mbuf::Mbuf;
use crate::ring::{Consumer, Producer, RingMemory};

/// Why a client is not attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("no switch runs at {path}: {why}")]
    NoSwitch { path: PathBuf, why: Errno },
    #[error("{text}")]
    Refused { reason: u32, text: String },
    #[error("the switch went away during the attach")]
    Gone,
    #[error("this process is a client of another switch, or of one that is gone")]
    OtherSwitch,
    #[error("the switch's answer makes no sense: {0}")]
    Answer(String),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Eal(#[from] EalError),
    #[error("attach socket: {0}")]
    Socket(#[from] Errno),
}

/// A hello is sent; the switch answers when it is this client's turn.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
}

/// The switch lets this client initialise EAL. Others wait meanwhile, so go on at once.
#[derive(Debug)]
pub struct Turn {
    socket: OwnedFd,
    grant: Grant,
}

/// An attached client.
#[derive(Debug)]
pub struct Attachment {
    socket: OwnedFd,
    carrier: bool,
    mtu: u32,
    queue_pairs: Vec<QueuePair>,
}

/// What the switch tells an attached client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Carrier and MTU of the port.
    State { carrier: bool, mtu: u32 },
    /// The switch ends this attachment and says why.
    Evicted { reason: u32, text: String },
    /// The switch is gone.
    SwitchGone,
}

impl Connection {
    /// Connects to the attach socket at `path` and asks for `port` with `queues` queue pairs.
    ///
    /// # Errors
    /// Nobody listens there, or the socket fails.
    pub fn open(path: &Path, hello: &Hello) -> Result<Connection, AttachError> {
        let socket = socket::socket(
            AddressFamily::Unix,
            SockType::SeqPacket,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        let address = UnixAddr::new(path)?;
        connect(socket.as_raw_fd(), &address).map_err(|why| AttachError::NoSwitch {
            path: path.to_owned(),
            why,
        })?;
        fault::point(Point::Connected);
        send_message(&socket, hello.as_bytes())?;
        fault::point(Point::HelloSent);
        Ok(Connection { socket })
    }

    /// Waits for the turn.
    ///
    /// # Errors
    /// The switch refuses, or goes away.
    pub fn wait(self) -> Result<Turn, AttachError> {
        match receive_expected(&self.socket)? {
            (Message::Grant(grant), _) => Ok(Turn {
                socket: self.socket,
                grant,
            }),
            (other, _) => Err(unexpected(&other)),
        }
    }
}

impl AsFd for Connection {
    /// Readable when [`Connection::wait`] won't block.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Turn {
    /// EAL's `--file-prefix`, as the switch uses it.
    pub fn file_prefix(&self) -> String {
        self.grant.file_prefix.get()
    }

    /// Initialises EAL as a secondary with `eal_args` (lcores, log level; process type and file prefix are added
    /// here), reports it, and takes the rings over. `log` says what is to be seen of EAL's log meanwhile.
    ///
    /// # Errors
    /// EAL does not start, the switch goes away, or its answer makes no sense.
    pub fn init_eal(
        self,
        program: &str,
        eal_args: &[String],
        log: StartLog,
    ) -> Result<Attachment, AttachError> {
        fault::point(Point::Granted);
        let runtime_dir = self.grant.runtime_dir.get();
        if !runtime_dir.is_empty() {
            // SAFETY: attach comes before the process starts threads that read the environment.
            unsafe { std::env::set_var("RUNTIME_DIRECTORY", runtime_dir) };
        }
        let mut args = eal_args.to_vec();
        args.push("--proc-type=secondary".into());
        args.push(format!("--file-prefix={}", self.file_prefix()));
        Eal::init_with(program, &args, log)?;
        let (socket, attached, fds) = self.ready()?;
        // SAFETY: EAL is up as a secondary of the switch that wrote the addresses.
        unsafe { Attachment::from_answer(socket, &attached, fds) }
    }

    /// Takes the rings over in a process that is a client of the same switch already, by `other`: its EAL is up.
    ///
    /// # Errors
    /// It is another switch, or it goes away, or its answer makes no sense.
    pub fn join(self, other: &Attachment) -> Result<Attachment, AttachError> {
        let (socket, attached, fds) = self.ready()?;
        if !same_process(&other.socket, &socket) {
            // Who hangs up and lives on is killed.
            let _ = send_detach(&socket);
            return Err(AttachError::OtherSwitch);
        }
        // SAFETY: EAL came up as a secondary of the switch of `other`, which is the one that wrote the addresses.
        unsafe { Attachment::from_answer(socket, &attached, fds) }
    }

    /// Reports that EAL is up; what the switch says to that.
    fn ready(self) -> Result<(OwnedFd, Attached, Vec<OwnedFd>), AttachError> {
        fault::point(Point::EalUp);
        send_message(
            &self.socket,
            Ready {
                header: header::<Ready>(),
            }
            .as_bytes(),
        )?;
        fault::point(Point::ReadySent);
        match receive_expected(&self.socket)? {
            (Message::Attached(attached), fds) => Ok((self.socket, attached, fds)),
            (other, _) => Err(unexpected(&other)),
        }
    }
}

impl Attachment {
    /// # Safety
    /// The addresses in `attached` are the switch's own and mapped in this process.
    unsafe fn from_answer(
        socket: OwnedFd,
        attached: &Attached,
        fds: Vec<OwnedFd>,
    ) -> Result<Attachment, AttachError> {
        let queues = attached.queues as usize;
        if queues == 0 || queues > MAX_QUEUES || fds.len() != 2 * queues {
            return Err(AttachError::Answer(format!(
                "{queues} queue pairs with {} descriptors",
                fds.len()
            )));
        }
        let mut fds = fds.into_iter();
        let mut queue_pairs = Vec::with_capacity(queues);
        for address in &attached.queue[..queues] {
            let [alloc, tx, rx, free] = attached.ring_sizes;
            // SAFETY: by this function's contract the switch put rings and a control block there.
            let parts = unsafe {
                (
                    RingMemory::at(address.alloc as usize, alloc),
                    RingMemory::at(address.tx as usize, tx),
                    RingMemory::at(address.rx as usize, rx),
                    RingMemory::at(address.free as usize, free),
                    ControlRef::at(address.control as usize),
                )
            };
            let (Some(alloc), Some(tx), Some(rx), Some(free), Some(control)) = parts else {
                return Err(AttachError::Answer("a ring without an address".into()));
            };
            let (Some(to_switch), Some(to_client)) = (fds.next(), fds.next()) else {
                return Err(AttachError::Answer("a queue pair without a doorbell".into()));
            };
            // SAFETY: the rings are empty and this client is the only one on its ends: the switch sees to both.
            let queue_pair = unsafe {
                QueuePair {
                    alloc: Consumer::new(alloc),
                    tx: Producer::new(tx),
                    rx: Consumer::new(rx),
                    free: Producer::new(free),
                    control,
                    to_switch: Ringer::from(to_switch),
                    to_client: Bell::from(to_client),
                }
            };
            queue_pairs.push(queue_pair);
        }
        fault::point(Point::Answered);
        Ok(Attachment {
            socket,
            carrier: attached.carrier != 0,
            mtu: attached.mtu,
            queue_pairs,
        })
    }

    /// Takes the queue pairs, to move each to its own thread. The second call returns none.
    pub fn take_queue_pairs(&mut self) -> Vec<QueuePair> {
        std::mem::take(&mut self.queue_pairs)
    }

    /// Does the port have carrier?
    pub fn carrier(&self) -> bool {
        self.carrier
    }

    /// Bytes of payload behind the Ethernet header.
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// Reads what the switch says; blocks until it says something (poll the descriptor first).
    pub fn next_event(&mut self) -> Event {
        match receive(&self.socket) {
            Ok((Message::State(state), _)) => {
                self.carrier = state.carrier != 0;
                self.mtu = state.mtu;
                Event::State {
                    carrier: self.carrier,
                    mtu: self.mtu,
                }
            }
            Ok((Message::Refusal(r), _)) => Event::Evicted {
                reason: r.reason,
                text: r.text.get(),
            },
            Ok(_) | Err(_) => Event::SwitchGone,
        }
    }

    /// Tells the switch that this client has stopped. Every queue pair's thread must have ended.
    pub fn detach(self) {
        fault::point(Point::Detaching);
        let _ = send_detach(&self.socket);
        fault::point(Point::DetachSent);
    }
}

impl AsFd for Attachment {
    /// Readable when the switch says something or is gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Mbufs moved at a time between ring and caller.
const BURST: usize = 64;

/// One queue pair of the port: frames out, frames in. For one thread.
///
/// Rings that the switch garbled count as empty or full: the attach socket tells when it is gone.
#[derive(Debug)]
pub struct QueuePair {
    alloc: Consumer,
    tx: Producer,
    rx: Consumer,
    free: Producer,
    control: ControlRef,
    to_switch: Ringer,
    to_client: Bell,
}

impl QueuePair {
    /// Adds empty mbufs to `out`: what the switch has provided, as far as there is room, and a burst at most.
    #[inline]
    pub fn alloc<const N: usize>(&mut self, out: &mut ArrayVec<Mbuf, N>) {
        take_burst(&mut self.alloc, out);
    }

    /// Adds frames for this client to `out`, up to its capacity.
    #[inline]
    pub fn receive<const N: usize>(&mut self, out: &mut ArrayVec<Mbuf, N>) {
        take(&mut self.rx, out);
    }

    /// Hands `frames` to the switch, in order. What does not fit stays in `frames`.
    #[inline]
    pub fn send<const N: usize>(&mut self, frames: &mut ArrayVec<Mbuf, N>) {
        put(&mut self.tx, frames);
        self.wake_switch();
    }

    /// Gives `used` mbufs back, filled or not, each for itself. All fit: the ring holds more than a client can own.
    #[inline]
    pub fn release<const N: usize>(&mut self, used: &mut ArrayVec<Mbuf, N>) {
        put(&mut self.free, used);
        self.wake_switch();
    }

    /// Gives received frames back, with all mbufs that are linked to them.
    #[inline]
    pub fn release_frames<const N: usize>(&mut self, frames: &mut ArrayVec<Mbuf, N>) {
        for frame in frames.iter_mut().filter(|frame| frame.segment_count() > 1) {
            put(&mut self.free, &mut frame.split());
        }
        self.release(frames);
    }

    #[inline]
    fn wake_switch(&self) {
        if self.control.get().switch_sleeps.take() {
            self.to_switch.ring();
        }
    }

    /// Frames or empty mbufs wait (either may be what the caller sleeps for).
    pub fn has_work(&mut self) -> bool {
        self.frames_waiting() > 0 || self.buffers_waiting() > 0
    }

    /// Frames that wait for this client.
    pub fn frames_waiting(&mut self) -> usize {
        self.rx.available().unwrap_or(0)
    }

    /// Empty mbufs that wait for this client.
    pub fn buffers_waiting(&mut self) -> usize {
        self.alloc.available().unwrap_or(0)
    }

    /// Frames that fit the ring to the switch now.
    pub fn tx_room(&mut self) -> usize {
        self.tx.free().unwrap_or(0)
    }

    /// Before sleeping: asks the switch to ring. Look for work once more after this, before blocking.
    #[inline]
    pub fn arm_doorbell(&self) {
        self.control.get().client_sleeps.arm();
    }

    /// Awake again: no more rings, please.
    #[inline]
    pub fn disarm_doorbell(&self) {
        self.control.get().client_sleeps.disarm();
    }

    /// Takes the rings so far. Before arming at the latest, or the next sleep ends at once.
    pub fn silence_doorbell(&self) {
        self.to_client.silence();
    }

    /// Readable when the switch has rung.
    pub fn doorbell(&self) -> BorrowedFd<'_> {
        self.to_client.as_fd()
    }

    /// The switch wants this queue pair polled: its user pays with a CPU for the time that waking up takes. The doorbell
    /// rings when that changes, armed or not.
    #[inline]
    pub fn busy_poll(&self) -> bool {
        self.control.get().busy_poll.wanted()
    }

    /// The counters this client keeps for the switch to show.
    pub fn stats(&self) -> &ClientStats {
        &self.control.get().stats
    }
}

const _: () = assert!(MAX_QUEUES * 2 < 253, "SCM_RIGHTS carries 253 descriptors at most");
const _: () = assert!(QUOTA as usize > BURST);

#[inline]
fn take<const N: usize>(ring: &mut Consumer, out: &mut ArrayVec<Mbuf, N>) {
    while !out.is_full() && take_burst(ring, out) {}
}

/// Takes a burst at most; false: there is no more.
#[inline]
fn take_burst<const N: usize>(ring: &mut Consumer, out: &mut ArrayVec<Mbuf, N>) -> bool {
    let mut batch = [0usize; BURST];
    let want = out.remaining_capacity().min(BURST);
    let Ok(got) = ring.dequeue(&mut batch[..want]) else {
        return false;
    };
    // SAFETY: the switch hands out mbufs of its pools, mapped here, and no longer touches them.
    out.extend(
        batch[..got]
            .iter()
            .filter_map(|&a| unsafe { Mbuf::from_address(a) }),
    );
    got == want
}

#[inline]
fn put<const N: usize>(ring: &mut Producer, mbufs: &mut ArrayVec<Mbuf, N>) {
    let sent = ring.enqueue(mbufs).unwrap_or(0);
    mbufs.drain(..sent);
}

/// Is it one process, alive, that is at the other ends of `old` and `new`? While `old` is open nobody else gets its number.
fn same_process(old: &OwnedFd, new: &OwnedFd) -> bool {
    let peer = |socket| getsockopt(socket, PeerCredentials).map(|peer| peer.pid());
    let mut fds = [PollFd::new(old.as_fd(), PollFlags::empty())];
    let open = poll(&mut fds, PollTimeout::ZERO) == Ok(0);
    // 0: the kernel does not show it here.
    open && peer(new).is_ok_and(|pid| pid > 0 && peer(old) == Ok(pid))
}

fn unexpected(message: &Message) -> AttachError {
    match message {
        Message::Refusal(r) => AttachError::Refused {
            reason: r.reason,
            text: r.text.get(),
        },
        other => AttachError::Answer(format!("{other:?} out of turn")),
    }
}

fn receive_expected(socket: &OwnedFd) -> Result<(Message, Vec<OwnedFd>), AttachError> {
    match receive(socket)? {
        (Message::Refusal(r), _) => Err(AttachError::Refused {
            reason: r.reason,
            text: r.text.get(),
        }),
        answer => Ok(answer),
    }
}

fn receive(socket: &OwnedFd) -> Result<(Message, Vec<OwnedFd>), AttachError> {
    let mut bytes = [0u8; MAX_LEN + 1];
    let (len, fds) = loop {
        match descriptors::receive(socket, &mut bytes, MsgFlags::empty()) {
            Ok(received) => break received,
            Err(Errno::EINTR) => {}
            Err(Errno::ECONNRESET) => return Err(AttachError::Gone),
            Err(e) => return Err(e.into()),
        }
    };
    if len == 0 {
        return Err(AttachError::Gone);
    }
    Ok((Message::parse(&bytes[..len])?, fds))
}

fn send_message(socket: &OwnedFd, bytes: &[u8]) -> Result<(), AttachError> {
    loop {
        match send(socket.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(Errno::EPIPE | Errno::ECONNRESET) => return pending_refusal(socket),
            Err(e) => return Err(e.into()),
        }
    }
}

fn send_detach(socket: &OwnedFd) -> Result<(), AttachError> {
    let detach = Detach {
        header: header::<Detach>(),
    };
    send_message(socket, detach.as_bytes())
}

/// The switch closed its end: it may have said why before that.
fn pending_refusal(socket: &OwnedFd) -> Result<(), AttachError> {
    match receive(socket) {
        Ok((message @ Message::Refusal(_), _)) => Err(unexpected(&message)),
        _ => Err(AttachError::Gone),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::socketpair;

    /// A switch that was started again is another one.
    #[test]
    fn a_closed_socket_is_nobodys() {
        let pair = || {
            let flags = SockFlag::SOCK_CLOEXEC;
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap()
        };
        let [(old, old_end), (new, _new_end)] = [pair(), pair()];
        assert!(same_process(&old, &new));
        drop(old_end);
        assert!(!same_process(&old, &new));
    }
}
