//! A client as it should be: attaches, sends, receives, gives back.

use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vswitch_common::eal::StartLog;
use vswitch_common::gso::{Kind, Segmentation};
use vswitch_common::mbuf::{Checksum, DATA_ROOM, Mbuf};
use vswitch_common::port::client::{Attachment, Connection, Event, QueuePair};
use vswitch_common::port::message::Hello;
use vswitch_tests::Frame;

use super::Words;
use super::steps::Steps;

/// How long to wait for empty mbufs, or for room on a ring.
const SUPPLY: Duration = Duration::from_secs(10);

/// The client's state between commands.
#[derive(Debug, Default)]
pub struct Client {
    pub port: u16,
    attachments: Vec<Attachment>,
    /// Of all its ports.
    pub queues: Vec<QueuePair>,
    /// Kept by `take` and `hold`.
    kept: Vec<Mbuf>,
    pub steps: Steps,
    /// The next command has been read already.
    pub told: bool,
}

/// EAL's arguments of a client: any CPU will do, and no word on standard output.
pub fn eal_args() -> Vec<String> {
    let cpus = dpdk_vswitchd::cpus::show(&dpdk_vswitchd::cpus::inherited());
    vec![
        format!("--lcores=0@({cpus})"),
        "--log-level=error".into(),
        "--no-telemetry".into(),
    ]
}

impl Client {
    pub fn attach(&mut self, mut words: Words<'_>) -> Result<String, String> {
        let socket = words.next()?;
        let hello = Hello::new(words.number()?, words.number()?, words.next()?);
        let start = Instant::now();
        let turn = Connection::open(Path::new(socket), &hello)
            .and_then(Connection::wait)
            .map_err(|e| e.to_string())?;
        let granted = start.elapsed().as_micros();
        let prefix = turn.file_prefix();
        let attached = match self.attachments.first() {
            None => turn.init_eal("bare-client", &eal_args(), StartLog::Shown),
            Some(other) => turn.join(other),
        };
        let mut attachment = attached.map_err(|e| e.to_string())?;
        self.port = hello.port;
        let queues = attachment.take_queue_pairs();
        let text = format!(
            "carrier={} mtu={} prefix={prefix} queues={} version={} granted_us={granted}",
            u8::from(attachment.carrier()),
            attachment.mtu(),
            queues.len(),
            vswitch_common::eal::version()
        );
        self.queues.extend(queues);
        self.attachments.push(attachment);
        Ok(text)
    }

    pub fn queue(&mut self, index: usize) -> Result<&mut QueuePair, String> {
        let count = self.queues.len();
        self.queues
            .get_mut(index)
            .ok_or_else(|| format!("there is no queue pair {index}, but {count}"))
    }

    pub fn send(&mut self, mut words: Words<'_>) -> Result<String, String> {
        let queue = self.queue(words.number()?)?;
        let mut count = 0;
        for text in words.0 {
            send(queue, &text.parse()?, None)?;
            count += 1;
        }
        Ok(count.to_string())
    }

    /// `send-large QUEUE LEN SIZE`: [`Frame::tcp4_large`] with LEN bytes of payload, to be cut into pieces of SIZE.
    pub fn send_large(&mut self, mut words: Words<'_>) -> Result<String, String> {
        let queue = self.queue(words.number()?)?;
        let frame = Frame::tcp4_large(words.number()?);
        send(queue, &frame, Some(words.number()?))?;
        Ok(String::new())
    }

    pub fn receive(&mut self, words: Words<'_>) -> Result<String, String> {
        self.arrivals(words, text_of)
    }

    pub fn checksums(&mut self, words: Words<'_>) -> Result<String, String> {
        self.arrivals(words, |mbuf| format!("{:?}", mbuf.checksum()))
    }

    /// A word on each frame that comes.
    fn arrivals(&mut self, mut words: Words<'_>, word: impl Fn(&Mbuf) -> String) -> Result<String, String> {
        let (count, ms): (usize, u64) = (words.number()?, words.number()?);
        let until = Instant::now() + Duration::from_millis(ms);
        let mut texts = Vec::new();
        while texts.len() < count {
            let mut one = ArrayVec::<Mbuf, 1>::new();
            for queue in &mut self.queues {
                one.clear();
                queue.receive(&mut one);
                let Some(mbuf) = one.first() else { continue };
                texts.push(word(mbuf));
                queue.release_frames(&mut one);
                break;
            }
            if !texts.is_empty() && texts.len() == count {
                break;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.sleep(left);
        }
        Ok(texts.join(" "))
    }

    /// Sleeps until the switch rings, `limit` at most; not at all where frames wait.
    pub fn sleep(&mut self, limit: Duration) {
        self.queues.iter().for_each(QueuePair::arm_doorbell);
        if self.queues.iter_mut().all(|q| q.frames_waiting() == 0) {
            let mut fds: Vec<PollFd<'_>> = self
                .queues
                .iter()
                .map(|q| PollFd::new(q.doorbell(), PollFlags::POLLIN))
                .collect();
            let timeout = PollTimeout::try_from(limit.max(Duration::from_millis(1)));
            let _ = poll(&mut fds, timeout.unwrap_or(PollTimeout::MAX));
        }
        self.queues.iter().for_each(QueuePair::disarm_doorbell);
        self.queues.iter().for_each(QueuePair::silence_doorbell);
    }

    pub fn take(&mut self, mut words: Words<'_>) -> Result<String, String> {
        let count: usize = words.number()?;
        let queue = self.queues.first_mut().ok_or("not attached")?;
        let mut taken = Vec::new();
        supply(|| {
            let mut one = ArrayVec::<Mbuf, 1>::new();
            while taken.len() < count {
                queue.alloc(&mut one);
                match one.pop() {
                    Some(mbuf) => taken.push(mbuf),
                    None => return false,
                }
            }
            true
        })?;
        let addresses: Vec<String> = taken.iter().map(|m| m.address().to_string()).collect();
        self.kept.append(&mut taken);
        Ok(addresses.join(" "))
    }

    pub fn hold(&mut self, mut words: Words<'_>) -> Result<String, String> {
        let count: usize = words.number()?;
        let (queues, kept) = (&mut self.queues, &mut self.kept);
        let before = kept.len();
        supply(|| {
            let mut some = ArrayVec::<Mbuf, 64>::new();
            for queue in queues.iter_mut() {
                queue.receive(&mut some);
                kept.extend(some.drain(..));
            }
            kept.len() - before >= count
        })?;
        Ok((self.kept.len() - before).to_string())
    }

    pub fn release(&mut self) -> Result<String, String> {
        let queue = self.queues.first_mut().ok_or("not attached")?;
        let count = self.kept.len();
        for mbuf in self.kept.drain(..) {
            queue.release(&mut ArrayVec::from([mbuf]));
        }
        Ok(count.to_string())
    }

    pub fn event(&mut self, mut words: Words<'_>) -> Result<String, String> {
        let ms: u16 = words.number()?;
        let attachment = self.attachments.first_mut().ok_or("not attached")?;
        let mut fds = [PollFd::new(attachment.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(ms)) {
            Ok(0) => Ok("nothing".into()),
            Ok(_) => Ok(match attachment.next_event() {
                Event::State { carrier, mtu } => format!("state carrier={} mtu={mtu}", u8::from(carrier)),
                Event::Evicted { reason, text } => format!("evicted {reason} {text}"),
                Event::SwitchGone => "gone".into(),
            }),
            Err(e) => Err(e.to_string()),
        }
    }

    pub fn detach(&mut self) -> Result<String, String> {
        self.queues.clear();
        self.kept.clear();
        if self.attachments.is_empty() {
            return Err("not attached".into());
        }
        self.attachments.drain(..).for_each(Attachment::detach);
        Ok(String::new())
    }
}

/// Sends a frame, in as many mbufs as it takes; a TCP frame over IPv4 to be cut into pieces of `size` bytes, if one is given.
fn send(queue: &mut QueuePair, frame: &Frame, size: Option<u16>) -> Result<(), String> {
    let mut mbufs = Vec::new();
    for part in frame.bytes.chunks(DATA_ROOM) {
        let mut one = ArrayVec::<Mbuf, 1>::new();
        supply(|| {
            queue.alloc(&mut one);
            one.is_full()
        })?;
        one[0].room_mut()[..part.len()].copy_from_slice(part);
        one[0].set_frame(part.len(), Checksum::Unknown);
        mbufs.extend(one);
    }
    let rest = mbufs.split_off(1);
    mbufs[0].chain(&rest);
    if let Some((start, offset)) = frame.partial {
        mbufs[0].set_checksum(Checksum::Partial { start, offset });
        if let Some(size) = size {
            let cut = Segmentation::new(Kind::Tcp4, false, size, start, mbufs[0].data());
            mbufs[0].set_segmentation(cut.ok_or("it can't be cut")?);
        }
    }
    let mut one: ArrayVec<Mbuf, 1> = mbufs.drain(..).collect();
    supply(|| {
        queue.send(&mut one);
        one.is_empty()
    })
}

fn text_of(mbuf: &Mbuf) -> String {
    let frame = Frame {
        bytes: mbuf.segments().collect::<Vec<_>>().concat(),
        partial: match mbuf.checksum() {
            Checksum::Partial { start, offset } => Some((start, offset)),
            Checksum::Unknown | Checksum::Valid => None,
        },
    };
    frame.to_string()
}

/// Tries until it works; the switch refills rings in no time while it is well.
fn supply(mut works: impl FnMut() -> bool) -> Result<(), String> {
    let until = Instant::now() + SUPPLY;
    while !works() {
        if Instant::now() > until {
            return Err(format!("the switch did not provide within {SUPPLY:?}"));
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}
