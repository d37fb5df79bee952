//! What becomes of each frame of a burst: its header read, its source learned, the port found by which it leaves.
//!
//! In two loops, so that the cache misses of all frames overlap: the first one reads headers and starts loading the buckets
//! of the table, the second one searches them.

use arrayvec::ArrayVec;
use vswitch_common::mbuf::Mbuf;
use vswitch_common::stats::Counter;

use super::BURST;
use super::clock::Moment;
use super::mac_table::{Key, Reader, Source};
use super::parse::{self, Ethernet, Tag};
use super::port::{Port, PortIndex};
use super::snapshot::Bridge;

/// A frame that the bridge takes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Parsed {
    source: Key,
    destination: Key,
    len: u32,
    /// Its outermost tag.
    pub tag: Option<Tag>,
    /// It lies in several mbufs.
    pub chain: bool,
    /// The port by which it leaves; `None`: all others of its VLAN.
    pub target: Option<PortIndex>,
}

impl Parsed {
    /// Its VLAN.
    #[inline]
    pub fn vlan(&self) -> u16 {
        self.source.vlan()
    }

    /// Bytes of the whole frame.
    #[inline]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// The same for `copy`, which may have less of the frame.
    #[must_use]
    pub fn cut_to(&self, copy: &Mbuf) -> Parsed {
        Parsed {
            len: copy.frame_len() as u32,
            chain: copy.segment_count() > 1,
            ..*self
        }
    }

    /// What mirrors are to know of a frame that came in by `port` and is refused for `reason`, where they see such a frame.
    #[cold]
    pub fn of_refused(frame: &Mbuf, port: &Port, reason: Counter) -> Option<Parsed> {
        if !matches!(reason, Counter::RxDropReserved | Counter::RxDropSource) {
            return None;
        }
        let header = parse::parse(frame.data()).ok()?;
        let vlan = port.vlan.ingress(header.tag)?;
        Some(Parsed::new(frame, vlan, &header))
    }

    fn new(frame: &Mbuf, vlan: u16, header: &Ethernet) -> Parsed {
        Parsed {
            source: Key::new(vlan, header.source),
            destination: Key::new(vlan, header.destination),
            len: frame.frame_len() as u32,
            tag: header.tag,
            chain: frame.segment_count() > 1,
            target: None,
        }
    }

    /// Is it untagged and in one mbuf?
    #[inline]
    pub fn is_plain(&self) -> bool {
        self.tag.is_none() && !self.chain
    }
}

/// The frames of a burst that the bridge does not take: their places in it, and why.
pub type Refused = ArrayVec<(usize, Counter), BURST>;

/// Classifies bursts; between them it holds nothing of use.
#[derive(Debug)]
pub struct Classifier {
    parsed: Box<[Parsed; BURST]>,
    refused: Refused,
}

/// What [`Classifier::classify`] found.
#[derive(Debug)]
pub struct Classified<'c> {
    /// One for each frame that the bridge takes, in order.
    pub parsed: &'c [Parsed],
    pub refused: &'c Refused,
    /// Bytes of all frames.
    pub bytes: u64,
    /// Addresses learned.
    pub learned: u64,
    /// What all frames have in common, if each of them came untagged, in one mbuf, and leaves by the same port.
    pub alike: Option<Alike>,
}

/// What frames have in common.
#[derive(Debug, Clone, Copy)]
pub struct Alike {
    pub target: PortIndex,
    pub vlan: u16,
    /// Bytes of the longest one.
    pub longest: usize,
}

impl Default for Classifier {
    fn default() -> Classifier {
        Classifier {
            parsed: Box::new([Parsed::default(); BURST]),
            refused: Refused::new(),
        }
    }
}

impl Classifier {
    /// Classifies `frames`, which came in by `port` of `bridge`.
    #[inline]
    pub fn classify(&mut self, frames: &[Mbuf], port: &Port, bridge: &Bridge, now: Moment) -> Classified<'_> {
        self.refused.clear();
        let table = bridge.table.reader(now.seconds);
        let burst = self.parse(frames, port, bridge, &table, now);
        let (learned, target) = self.look_up(burst.count, port, bridge, &table, now);
        Classified {
            parsed: &self.parsed[..burst.count],
            refused: &self.refused,
            bytes: burst.bytes,
            learned,
            alike: target.filter(|_| burst.plain).map(|target| Alike {
                target,
                vlan: self.parsed[0].vlan(),
                longest: burst.longest as usize,
            }),
        }
    }

    /// Reads the headers.
    // A function of its own, like the next ones: what the loop needs stays in registers.
    #[inline(never)]
    fn parse(
        &mut self,
        frames: &[Mbuf],
        port: &Port,
        bridge: &Bridge,
        table: &Reader<'_>,
        now: Moment,
    ) -> Burst {
        let untagged = plain_vlan(port);
        let mut burst = Burst::default();
        if let Some(vlan) = untagged {
            for (frame, parsed) in frames.iter().zip(self.parsed.iter_mut()) {
                let Some(plain) = parse_plain(frame, vlan) else {
                    break;
                };
                table.prefetch(plain.source);
                table.prefetch(plain.destination);
                burst.add(&plain);
                *parsed = plain;
            }
        }
        burst.plain = burst.count == frames.len();
        if !burst.plain {
            self.parse_rest(frames, &mut burst, port, bridge, table, now);
        }
        burst
    }

    /// Reads the headers from the first one on that is not plain.
    #[inline(never)]
    fn parse_rest(
        &mut self,
        frames: &[Mbuf],
        burst: &mut Burst,
        port: &Port,
        bridge: &Bridge,
        table: &Reader<'_>,
        now: Moment,
    ) {
        let untagged = plain_vlan(port);
        for (i, frame) in frames.iter().enumerate().take(BURST).skip(burst.count) {
            let parsed = match untagged.and_then(|vlan| parse_plain(frame, vlan)) {
                Some(plain) => plain,
                None => match parse_any(frame, port, bridge, now) {
                    Ok(any) => any,
                    Err((len, reason)) => {
                        burst.bytes += len as u64;
                        self.refused.push((i, reason));
                        continue;
                    }
                },
            };
            table.prefetch(parsed.source);
            table.prefetch(parsed.destination);
            self.parsed[burst.count] = parsed;
            burst.add(&parsed);
        }
    }

    /// Learns where the first `count` frames came from, and looks up where they go; says how many were learned, and by which
    /// port they leave if it is the same for all.
    #[inline(never)]
    fn look_up(
        &mut self,
        count: usize,
        port: &Port,
        bridge: &Bridge,
        table: &Reader<'_>,
        now: Moment,
    ) -> (u64, Option<PortIndex>) {
        let mut learned = 0;
        let mut previous = (Key::default(), Key::default());
        let mut target = None;
        // Bits that any target has, and bits that all have.
        let (mut any, mut all) = (0, PortIndex::MAX);
        for frame in &mut self.parsed[..count] {
            // Frames of one flow come in trains.
            if (frame.source, frame.destination) != previous {
                previous = (frame.source, frame.destination);
                if table.check_source(frame.source, port.index) == Source::Learn {
                    learned += u64::from(bridge.table.learn(frame.source, port.index, now.seconds));
                }
                target = None;
                if !frame.destination.mac().is_group() {
                    target = table.lookup(frame.destination);
                }
                match target {
                    Some(target) => (any, all) = (any | target, all & target),
                    None => (any, all) = (PortIndex::MAX, 0),
                }
            }
            frame.target = target;
        }
        (learned, (any == all).then_some(any))
    }
}

/// What the headers of a burst say, all together.
#[derive(Debug, Default)]
struct Burst {
    /// Frames that the bridge takes.
    count: usize,
    /// Bytes of all frames.
    bytes: u64,
    /// Bytes of the longest frame that the bridge takes.
    longest: u32,
    /// All frames came as nearly all do, see [`parse_plain`].
    plain: bool,
}

impl Burst {
    #[inline]
    fn add(&mut self, frame: &Parsed) {
        self.count += 1;
        self.bytes += u64::from(frame.len);
        self.longest = self.longest.max(frame.len);
    }
}

/// The VLAN of plain frames that come in by `port`, if they need not be looked at one by one.
#[inline]
fn plain_vlan(port: &Port) -> Option<u16> {
    port.limiter.is_none().then(|| port.vlan.ingress(None)).flatten()
}

/// Parses a frame as nearly all are: untagged, in one mbuf, from one station to another. `None`: [`parse_any`] has to look
/// at it. `vlan` is that of untagged frames.
#[inline(always)]
fn parse_plain(frame: &Mbuf, vlan: u16) -> Option<Parsed> {
    let bytes = frame.single()?;
    let header = parse::parse_untagged(bytes)?;
    let plain = header.source.is_station() && !header.destination.is_group();
    plain.then(|| Parsed {
        source: Key::new(vlan, header.source),
        destination: Key::new(vlan, header.destination),
        len: bytes.len() as u32,
        tag: None,
        chain: false,
        target: None,
    })
}

/// Frames on a wire that a frame of `len` bytes is.
fn pieces(frame: &Mbuf, len: usize) -> usize {
    let segmentation = frame.is_large().then(|| frame.segmentation()).flatten();
    segmentation.map_or(1, |segmentation| segmentation.count(len))
}

/// Decides whether the bridge takes a frame, and what it needs to forward it. The error comes with the frame's length.
#[inline(never)]
fn parse_any(frame: &Mbuf, port: &Port, bridge: &Bridge, now: Moment) -> Result<Parsed, (usize, Counter)> {
    let len = frame.frame_len();
    let refuse = |reason| Err((len, reason));
    if let Some(limiter) = &port.limiter
        && !limiter.admits(
            len.saturating_sub(parse::HEADER_LEN),
            pieces(frame, len),
            now.ticks,
        )
    {
        return refuse(Counter::RxDropPolicing);
    }
    let Ok(header) = parse::parse(frame.data()) else {
        return refuse(Counter::RxDropMalformed);
    };
    if !header.source.is_station() {
        return refuse(Counter::RxDropSource);
    }
    if header.destination.is_reserved() && !bridge.forward_reserved {
        return refuse(Counter::RxDropReserved);
    }
    let Some(vlan) = port.vlan.ingress(header.tag) else {
        return refuse(Counter::RxDropVlan);
    };
    Ok(Parsed::new(frame, vlan, &header))
}
