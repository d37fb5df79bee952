//! Packet buffers (`rte_mbuf`), each with one owner.
//!
//! Every mbuf of the switch comes from a pool with a fixed shape: header, private area ([`FrameMeta`]), then
//! [`BUF_LEN`] bytes of buffer of which the first [`HEADROOM`] are left free for tags. Because the shape is fixed,
//! the buffer's address follows from the mbuf's own, and lengths are clamped to it on every access: a client that
//! scribbles over a header it no longer owns can garble a frame, but can't make anybody read outside the buffer.

use std::ptr::NonNull;

use arrayvec::ArrayVec;
use dpdk_sys as sys;

use crate::gso::{self, Kind, Segmentation};

/// Bytes of Ethernet's shortest frame, without its checksum (IEEE 802.3 §3.2.8).
const LEAST: usize = 60;
/// Bytes left free before the frame.
pub const HEADROOM: usize = sys::RTE_PKTMBUF_HEADROOM as usize;
/// Bytes for the frame itself in one mbuf.
pub const DATA_ROOM: usize = 2048;
/// Bytes of an mbuf's buffer.
pub const BUF_LEN: usize = HEADROOM + DATA_ROOM;
/// Bytes of the private area behind the header.
pub const PRIV_LEN: usize = 64;
/// Segments that one frame may have: 64 KiB and a header.
pub const MAX_SEGMENTS: usize = 34;

const CACHE_LINE: usize = 64;
/// Cache lines of a piece that are loaded while the one before it is copied.
const AHEAD: usize = 8;

/// Bytes of the header, `struct rte_mbuf`.
pub const HEADER_LEN: usize = size_of::<sys::rte_mbuf>();
const _: () = assert!(HEADER_LEN == 128);
const _: () = assert!(size_of::<FrameMeta>() <= PRIV_LEN);
const _: () = assert!(BUF_LEN <= u16::MAX as usize);

/// The frame's layer 4 checksum is half done: `FrameMeta` says where it goes. DPDK's virtio driver uses this flag so.
const CKSUM_PARTIAL: u64 = sys::RTE_MBUF_F_RX_L4_CKSUM_NONE as u64;
/// The frame's layer 4 checksum was checked or needs no check.
const CKSUM_GOOD: u64 = sys::RTE_MBUF_F_RX_L4_CKSUM_GOOD as u64;

/// The frame is to be cut as `FrameMeta` says, if a port can't take it whole. DPDK's drivers mark so what they have
/// received and put together.
const LARGE: u64 = sys::RTE_MBUF_F_RX_LRO as u64;

/// What is known of a frame's layer 4 checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checksum {
    /// Nothing: it is in the frame, right or wrong.
    #[default]
    Unknown,
    /// The data is good (virtio's DATA_VALID).
    Valid,
    /// Half done (virtio's NEEDS_CSUM): sum from `start` to the frame's end and store at `start + offset`.
    /// Both in bytes; `start + offset + 2` lies within the first segment.
    Partial { start: u16, offset: u16 },
}

/// Where a driver finds what to complete of a TCP or UDP checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TxChecksum {
    pub udp: bool,
    pub ipv6: bool,
    /// Bytes in front of the IP header, less than 128.
    pub l2_len: u16,
    /// Bytes of the IP header, less than 512.
    pub l3_len: u16,
}

/// In the mbuf's private area: what does not fit its header. Shared with the clients.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct FrameMeta {
    csum_start: u16,
    csum_offset: u16,
    segment_size: u16,
    header_len: u16,
    gso_type: u8,
    reserved: [u8; 3],
}

const _: () = assert!(size_of::<FrameMeta>() == 12);

/// An mbuf that this process owns. It has no destructor: hand it to a ring, a port or the pool.
#[repr(transparent)]
#[derive(Debug, PartialEq, Eq)]
pub struct Mbuf(NonNull<sys::rte_mbuf>);

// SAFETY: an mbuf has one owner at a time, so it may move between threads.
unsafe impl Send for Mbuf {}

impl Mbuf {
    /// The mbuf at `address`.
    ///
    /// # Safety
    /// `address` is that of an mbuf of a pool of the switch, mapped in this process, which the caller owns. (A value
    /// that is only moved through a ring and never looked into may be anything but zero.)
    pub unsafe fn from_address(address: usize) -> Option<Mbuf> {
        NonNull::new(address as *mut sys::rte_mbuf).map(Mbuf)
    }

    /// The address, the same in every process of this DPDK instance.
    #[inline]
    pub fn address(&self) -> usize {
        self.0.as_ptr() as usize
    }

    fn buffer(&self) -> *mut u8 {
        // SAFETY: the pool's shape puts the buffer right behind header and private area.
        unsafe { self.0.as_ptr().cast::<u8>().add(HEADER_LEN + PRIV_LEN) }
    }

    fn meta(&self) -> *mut FrameMeta {
        // SAFETY: the private area follows the header.
        unsafe { self.0.as_ptr().cast::<u8>().add(HEADER_LEN).cast() }
    }

    /// Offset and length of the frame's bytes in the buffer, as the header names them.
    #[inline]
    fn named_span(&self) -> (usize, usize) {
        let m = self.0.as_ptr();
        // SAFETY: `self` is a mapped mbuf; volatile, since a client's stray write must not change a checked value.
        unsafe {
            (
                (&raw const (*m).data_off).read_volatile() as usize,
                (&raw const (*m).data_len).read_volatile() as usize,
            )
        }
    }

    /// The same, clamped to the buffer.
    #[inline]
    fn span(&self) -> (usize, usize) {
        let (off, len) = self.named_span();
        let off = off.min(BUF_LEN);
        (off, len.min(BUF_LEN - off))
    }

    /// The bytes of a frame of one segment; `None`: it has more, or its header names bytes outside the buffer.
    #[inline]
    pub fn single(&self) -> Option<&[u8]> {
        let (off, len) = self.named_span();
        (self.segment_count() <= 1 && off + len <= BUF_LEN).then(|| {
            // SAFETY: within the buffer, which this process owns while it holds the mbuf.
            unsafe { std::slice::from_raw_parts(self.buffer().add(off), len) }
        })
    }

    /// Bytes in this segment.
    #[inline]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.span().1
    }

    /// Bytes of the whole frame: of all its segments, where its header says that there are more than this one.
    #[inline]
    pub fn frame_len(&self) -> usize {
        if self.segment_count() <= 1 {
            return self.len();
        }
        // SAFETY: a load from the header of a mapped mbuf.
        unsafe { (&raw const (*self.0.as_ptr()).pkt_len).read_volatile() as usize }
    }

    /// The bytes of this segment.
    #[inline]
    pub fn data(&self) -> &[u8] {
        let (off, len) = self.span();
        // SAFETY: clamped to the buffer, which this process owns while it holds the mbuf.
        unsafe { std::slice::from_raw_parts(self.buffer().add(off), len) }
    }

    /// The bytes of this segment, to change.
    #[inline]
    pub fn data_mut(&mut self) -> &mut [u8] {
        let (off, len) = self.span();
        // SAFETY: as in `data`, and `&mut self` is the only handle.
        unsafe { std::slice::from_raw_parts_mut(self.buffer().add(off), len) }
    }

    /// The room for a frame, [`DATA_ROOM`] bytes behind the headroom. Write here, then [`Mbuf::set_frame`].
    #[inline]
    pub fn room_mut(&mut self) -> &mut [u8] {
        // SAFETY: the room is the buffer's part behind the headroom, and `&mut self` is the only handle.
        unsafe { std::slice::from_raw_parts_mut(self.buffer().add(HEADROOM), DATA_ROOM) }
    }

    /// Makes this a single-segment frame of `bytes`, with nothing known of its checksum. What is longer than the room begins in the headroom.
    ///
    /// # Panics
    /// If they do not fit the buffer.
    #[inline]
    pub fn fill(&mut self, bytes: &[u8]) {
        if let Some(room) = self.room_mut().get_mut(..bytes.len()) {
            room.copy_from_slice(bytes);
            self.set_frame(bytes.len(), Checksum::Unknown);
        } else {
            self.fill_whole(bytes);
        }
    }

    #[cold]
    fn fill_whole(&mut self, bytes: &[u8]) {
        let off = BUF_LEN
            .checked_sub(bytes.len())
            .expect("no more than the buffer holds");
        self.set_frame(0, Checksum::Unknown);
        self.set_span(off, bytes.len());
        self.data_mut().copy_from_slice(bytes);
    }

    /// Makes this a single-segment frame of the first `len` bytes of the room, with nothing known of its checksum.
    ///
    /// # Panics
    /// If `len` exceeds [`DATA_ROOM`].
    #[inline]
    pub fn set_frame(&mut self, len: usize, checksum: Checksum) {
        assert!(len <= DATA_ROOM, "a frame of {len} bytes does not fit an mbuf");
        let m = self.0.as_ptr();
        // SAFETY: plain stores into the header of an mbuf that this process owns.
        unsafe {
            (*m).data_off = HEADROOM as u16;
            (*m).nb_segs = 1;
            (*m).data_len = len as u16;
            (*m).pkt_len = len as u32;
            (*m).ol_flags = 0;
        }
        if checksum != Checksum::Unknown {
            self.set_checksum(checksum);
        }
    }

    /// What is known of the layer 4 checksum. The place of a partial one lies within the first segment.
    #[inline]
    pub fn checksum(&self) -> Checksum {
        // SAFETY: a load from the header of a mapped mbuf.
        let flags = unsafe { (*self.0.as_ptr()).ol_flags };
        // RX_L4_CKSUM_NONE is both bits, GOOD and BAD, set.
        if flags & CKSUM_PARTIAL == CKSUM_PARTIAL {
            // SAFETY: loads from the private area; checked below before anyone uses them.
            let (start, offset) = unsafe {
                let meta = self.meta();
                (
                    (&raw const (*meta).csum_start).read_volatile(),
                    (&raw const (*meta).csum_offset).read_volatile(),
                )
            };
            let end = usize::from(start) + usize::from(offset) + 2;
            if end <= self.len() {
                return Checksum::Partial { start, offset };
            }
            Checksum::Unknown
        } else if flags & CKSUM_GOOD != 0 {
            Checksum::Valid
        } else {
            Checksum::Unknown
        }
    }

    /// Says what is known of the layer 4 checksum; clears every other offload flag.
    #[inline]
    pub fn set_checksum(&mut self, checksum: Checksum) {
        let flags = match checksum {
            Checksum::Unknown => 0,
            Checksum::Valid => CKSUM_GOOD,
            Checksum::Partial { start, offset } => {
                // SAFETY: stores into the private area of an mbuf that this process owns.
                unsafe {
                    (*self.meta()).csum_start = start;
                    (*self.meta()).csum_offset = offset;
                }
                CKSUM_PARTIAL
            }
        };
        // SAFETY: a store into the header of an mbuf that this process owns.
        unsafe { (*self.0.as_ptr()).ol_flags = flags };
    }

    /// Is there anything to say of it? If not, its checksum is unknown, and it is not to be cut.
    #[inline]
    pub fn has_offloads(&self) -> bool {
        // SAFETY: a load from the header of a mapped mbuf.
        unsafe { (*self.0.as_ptr()).ol_flags & (CKSUM_PARTIAL | CKSUM_GOOD | LARGE) != 0 }
    }

    /// Is it to be cut, if a port can't take it whole?
    #[inline]
    pub fn is_large(&self) -> bool {
        // SAFETY: a load from the header of a mapped mbuf.
        unsafe { (*self.0.as_ptr()).ol_flags & LARGE != 0 }
    }

    /// Is it one mbuf, and not to be cut?
    #[inline]
    pub fn is_plain(&self) -> bool {
        self.segment_count() <= 1 && !self.is_large()
    }

    /// How the frame is to be cut. Its checksum is half done then, and all headers lie within the first segment, as far
    /// as their lengths go: [`gso::Segmenter`] looks at the headers themselves.
    #[cold]
    pub fn segmentation(&self) -> Option<Segmentation> {
        if !self.is_large() || !matches!(self.checksum(), Checksum::Partial { .. }) {
            return None;
        }
        // SAFETY: a load from the private area; checked below before anyone uses it.
        let meta = unsafe { self.meta().read_volatile() };
        let (kind, ecn) = Kind::from_gso_type(meta.gso_type)?;
        let segmentation = Segmentation {
            kind,
            ecn,
            size: meta.segment_size,
            header_len: meta.header_len,
        };
        let fits = usize::from(meta.header_len) <= self.len().min(gso::MAX_HEADER);
        (fits && segmentation.size_is_sound()).then_some(segmentation)
    }

    /// Says how the frame, whose checksum was said to be half done, is to be cut.
    #[cold]
    pub fn set_segmentation(&mut self, segmentation: Segmentation) {
        // SAFETY: stores into header and private area of an mbuf that this process owns.
        unsafe {
            let meta = self.meta();
            (*meta).segment_size = segmentation.size;
            (*meta).header_len = segmentation.header_len;
            (*meta).gso_type = segmentation.gso_type();
            (*self.0.as_ptr()).ol_flags |= LARGE;
        }
    }

    /// Takes over what is known of `other`, a frame of the same bytes: its checksum, and how it is to be cut.
    #[inline]
    pub fn set_offloads_of(&mut self, other: &Mbuf) {
        self.set_checksum(other.checksum());
        if let Some(segmentation) = other.is_large().then(|| other.segmentation()).flatten() {
            self.set_segmentation(segmentation);
        }
    }

    /// Moves what is known of places in the frame by `by` bytes, as its headers have moved.
    #[inline]
    pub fn shift_offloads(&mut self, by: i16) {
        // SAFETY: loads and stores in header and private area of an mbuf that this process owns.
        unsafe {
            let flags = (*self.0.as_ptr()).ol_flags;
            let meta = self.meta();
            if flags & CKSUM_PARTIAL == CKSUM_PARTIAL {
                (*meta).csum_start = (*meta).csum_start.saturating_add_signed(by);
            }
            if flags & LARGE != 0 {
                (*meta).header_len = (*meta).header_len.saturating_add_signed(by);
            }
        }
    }

    /// Asks the driver that gets this frame next to complete its layer 4 checksum, which is half done.
    #[inline]
    pub fn request_checksum(&mut self, place: TxChecksum) {
        let version = if place.ipv6 {
            sys::RTE_MBUF_F_TX_IPV6
        } else {
            sys::RTE_MBUF_F_TX_IPV4
        };
        let protocol = if place.udp {
            sys::RTE_MBUF_F_TX_UDP_CKSUM
        } else {
            sys::RTE_MBUF_F_TX_TCP_CKSUM
        };
        let m = self.0.as_ptr();
        // SAFETY: stores into the header of an mbuf that this process owns. `tx_offload` is l2_len in its lowest seven
        // bits, and l3_len in the nine above them.
        unsafe {
            (*m).ol_flags = version | protocol;
            (*m).__bindgen_anon_3.tx_offload =
                u64::from(place.l2_len & 0x7f) | u64::from(place.l3_len & 0x1ff) << 7;
        }
    }

    /// Asks the driver that gets this frame next to cut it: TCP, with the sum of a pseudo header without a length in its
    /// checksum. `ip_checksum`: and to make the segments' IPv4 header checksums, where the frame has zero.
    #[cold]
    pub fn request_segmentation(&mut self, place: TxChecksum, segmentation: Segmentation, ip_checksum: bool) {
        self.request_checksum(place);
        let l4_len = segmentation
            .header_len
            .saturating_sub(place.l2_len + place.l3_len);
        let ip_checksum = if ip_checksum {
            sys::RTE_MBUF_F_TX_IP_CKSUM
        } else {
            0
        };
        let m = self.0.as_ptr();
        // SAFETY: stores into the header of an mbuf that this process owns. In `tx_offload`, l4_len is the eight bits above
        // l3_len, and tso_segsz the sixteen above those.
        unsafe {
            (*m).ol_flags |= sys::RTE_MBUF_F_TX_TCP_SEG | ip_checksum;
            (*m).__bindgen_anon_3.tx_offload |=
                u64::from(l4_len & 0xff) << 16 | u64::from(segmentation.size) << 24;
        }
    }

    /// Asks the driver that gets this frame next to put a VLAN tag behind its addresses.
    #[inline]
    pub fn request_tag(&mut self, tci: u16) {
        // SAFETY: stores into the header of an mbuf that this process owns.
        unsafe {
            (*self.0.as_ptr()).vlan_tci = tci;
            (*self.0.as_ptr()).ol_flags |= sys::RTE_MBUF_F_TX_VLAN;
        }
    }

    /// Keeps of a driver's receive flags only whether it found the checksum good.
    #[inline]
    pub fn normalize_received(&mut self) {
        // SAFETY: a load and a store in the header of an mbuf that this process owns.
        unsafe {
            let flags = (*self.0.as_ptr()).ol_flags & CKSUM_PARTIAL;
            (*self.0.as_ptr()).ol_flags = if flags == CKSUM_GOOD { CKSUM_GOOD } else { 0 };
        }
    }

    /// Segments of the frame, from the first one's header.
    #[inline]
    pub fn segment_count(&self) -> usize {
        // SAFETY: a load from the header of a mapped mbuf.
        unsafe { (&raw const (*self.0.as_ptr()).nb_segs).read_volatile() as usize }
    }

    /// Address of the segment behind this one, zero at the end. Untrusted as long as nobody checked it.
    #[inline]
    pub fn next_address(&self) -> usize {
        // SAFETY: a load from the header of a mapped mbuf.
        unsafe { (&raw const (*self.0.as_ptr()).next).read_volatile() as usize }
    }

    /// Makes this, the first segment, and `rest` one frame. Each is in the pool's own shape ([`Mbuf::scrub`]).
    pub fn chain(&mut self, rest: &[Mbuf]) {
        let mut total = self.len();
        let mut last = self.0.as_ptr();
        for segment in rest {
            total += segment.len();
            // SAFETY: a store into the header of an mbuf that this process owns.
            unsafe { (*last).next = segment.0.as_ptr() };
            last = segment.0.as_ptr();
        }
        // SAFETY: stores into headers of mbufs that this process owns.
        unsafe {
            (*last).next = std::ptr::null_mut();
            (*self.0.as_ptr()).nb_segs = 1 + rest.len() as u16;
            (*self.0.as_ptr()).pkt_len = total as u32;
        }
    }

    /// Takes the later segments off a frame that the switch delivered; each is an mbuf of its own then.
    #[cold]
    pub fn split(&mut self) -> ArrayVec<Mbuf, MAX_SEGMENTS> {
        let mut rest = ArrayVec::new();
        let mut next = self.next_address();
        for _ in 1..self.segment_count().min(MAX_SEGMENTS) {
            // SAFETY: the switch links mbufs that this process owns from then on.
            let Some(mut segment) = (unsafe { Mbuf::from_address(next) }) else {
                break;
            };
            next = segment.next_address();
            segment.cut_off();
            rest.push(segment);
        }
        self.cut_off();
        rest
    }

    fn cut_off(&mut self) {
        // SAFETY: stores into the header of an mbuf that this process owns.
        unsafe {
            (*self.0.as_ptr()).nb_segs = 1;
            (*self.0.as_ptr()).next = std::ptr::null_mut();
        }
    }

    /// The bytes of each segment of a frame that the switch delivered (or checked), in order.
    #[inline]
    pub fn segments(&self) -> impl Iterator<Item = &[u8]> {
        let mut left = self.segment_count().min(MAX_SEGMENTS);
        let mut at = Some(self);
        std::iter::from_fn(move || {
            let mbuf = at?;
            left = left.saturating_sub(1);
            at = if left == 0 { None } else { mbuf.next() };
            Some(mbuf.data())
        })
    }

    /// The segment behind this one, of a frame whose chain was checked.
    fn next(&self) -> Option<&Mbuf> {
        // SAFETY: `next` of a checked chain is null or an mbuf that belongs to the same frame; Mbuf is a
        // transparent non-null pointer, so Option<Mbuf> has the layout of the field.
        unsafe { (*(&raw const (*self.0.as_ptr()).next).cast::<Option<Mbuf>>()).as_ref() }
    }

    /// Drops the first `n` bytes of the frame; false, and nothing changed, where the segment is shorter.
    #[inline]
    pub fn trim_front(&mut self, n: usize) -> bool {
        let (off, len) = self.span();
        if n > len {
            return false;
        }
        self.set_span(off + n, len - n);
        true
    }

    /// Makes `n` bytes of room before the frame; false, and nothing changed, where the headroom is used up.
    #[inline]
    pub fn extend_front(&mut self, n: usize) -> bool {
        let (off, len) = self.span();
        if n > off {
            return false;
        }
        self.set_span(off - n, len + n);
        true
    }

    fn set_span(&mut self, off: usize, len: usize) {
        let m = self.0.as_ptr();
        // SAFETY: stores into the header of an owned mbuf; both callers keep off + len within BUF_LEN.
        unsafe {
            let old = (*m).data_len;
            (*m).data_off = off as u16;
            (*m).data_len = len as u16;
            (*m).pkt_len = (*m).pkt_len.wrapping_add(len as u32).wrapping_sub(u32::from(old));
        }
    }

    /// Rewrites what a client may have scribbled over and a driver relies on: buffer place, counts, links.
    ///
    /// `pool` is the one it is of, `iova` the buffer's bus address. The frame's span is kept but clamped; segments are cut to this one.
    #[inline]
    pub fn scrub(&mut self, pool: crate::mempool::Pool, iova: u64) {
        let (off, len) = self.span();
        let m = self.0.as_ptr();
        // SAFETY: stores into the header of an mbuf that this process owns.
        unsafe {
            (*m).buf_addr = self.buffer().cast();
            (*m).buf_iova = iova;
            (*m).data_off = off as u16;
            (*m).data_len = len as u16;
            (*m).pkt_len = len as u32;
            (*m).refcnt = 1;
            (*m).nb_segs = 1;
            (*m).buf_len = BUF_LEN as u16;
            (*m).pool = pool.as_ptr();
            (*m).next = std::ptr::null_mut();
            (*m).priv_size = PRIV_LEN as u16;
        }
    }

    /// Makes it fit for a pool: [`Mbuf::scrub`], and what its flags say is gone. DPDK keeps two of them for ever, by which a driver that frees
    /// the mbuf would follow a pointer of a client's.
    #[inline]
    pub fn retire(&mut self, pool: crate::mempool::Pool, iova: u64) {
        self.scrub(pool, iova);
        // SAFETY: a store into the header of an mbuf that this process owns.
        unsafe { (*self.0.as_ptr()).ol_flags = 0 };
    }

    /// Where the buffer of the mbuf at `address` begins.
    #[inline]
    pub fn buffer_address(address: usize) -> usize {
        address.wrapping_add(HEADER_LEN + PRIV_LEN)
    }

    /// Makes this a frame of one segment, keeping its bytes, with `checksum` and no other offload.
    #[inline]
    pub fn make_single(&mut self, checksum: Checksum) {
        let (off, len) = self.span();
        let m = self.0.as_ptr();
        // SAFETY: stores into the header of an mbuf that this process owns.
        unsafe {
            (*m).data_off = off as u16;
            (*m).nb_segs = 1;
            (*m).data_len = len as u16;
            (*m).pkt_len = len as u32;
        }
        self.set_checksum(checksum);
    }

    /// Bytes that fit behind this segment's.
    pub fn tailroom(&self) -> usize {
        let (off, len) = self.span();
        BUF_LEN - off - len
    }

    /// Adds `bytes` behind this segment's; false, and nothing changed, where the buffer has no room for them.
    pub fn append(&mut self, bytes: &[u8]) -> bool {
        let (off, len) = self.span();
        if off + len + bytes.len() > BUF_LEN {
            return false;
        }
        // SAFETY: within the buffer, as just checked; `bytes` lies in another mbuf or elsewhere, since `&mut self`
        // is the only handle of this one.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.buffer().add(off + len), bytes.len()) };
        self.set_span(off, len + bytes.len());
        true
    }

    /// Fills a frame of one segment that is shorter than Ethernet has them with zeros behind it.
    #[inline]
    pub fn pad(&mut self) {
        let len = self.len();
        if len < LEAST {
            self.pad_from(len);
        }
    }

    #[cold]
    fn pad_from(&mut self, len: usize) {
        if self.append(&[0; LEAST][len..]) {
            return;
        }
        // So close to the end of its buffer nobody puts a frame but a client that means to.
        let mut bytes = [0; LEAST];
        bytes[..len].copy_from_slice(self.data());
        self.room_mut()[..LEAST].copy_from_slice(&bytes);
        self.set_span(HEADROOM, LEAST);
    }

    /// Is this a frame of one segment as [`Mbuf::set_frame`] makes it? Then nothing needs to be written to its header, whose
    /// cache line may be another core's.
    #[inline]
    pub fn is_sound(&self) -> bool {
        let m = self.0.as_ptr();
        // SAFETY: loads from the header of a mapped mbuf.
        let (off, len, whole, flags) = unsafe {
            (
                usize::from((&raw const (*m).data_off).read_volatile()),
                usize::from((&raw const (*m).data_len).read_volatile()),
                (&raw const (*m).pkt_len).read_volatile() as usize,
                (&raw const (*m).ol_flags).read_volatile(),
            )
        };
        self.segment_count() == 1 && off + len <= BUF_LEN && len == whole && flags & !CKSUM_PARTIAL == 0
    }

    /// Starts loading the header of the mbuf at `address`, and the first bytes of a frame right behind its headroom.
    #[inline]
    pub fn prefetch_at(address: usize) {
        prefetch(address as *const u8);
        prefetch(Self::buffer_address(address).wrapping_add(HEADROOM) as *const u8);
    }

    /// Starts loading header and room, to be written.
    #[inline]
    pub fn prefetch_room(&self) {
        prefetch_for_write(self.0.as_ptr().cast());
        prefetch_ahead_for_write(self.buffer().wrapping_add(HEADROOM));
    }

    /// Starts loading the first cache line of a frame that begins right behind the headroom.
    #[inline]
    pub fn prefetch_frame(&self) {
        prefetch(self.buffer().wrapping_add(HEADROOM));
    }
}

/// Starts loading the cache line at `at`.
#[inline]
pub fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address is harmless.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Starts loading the cache line at `at` to be written: other cores lose it at once, not when the first store finds it shared.
#[inline]
pub fn prefetch_for_write(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address is harmless. (A CPU without this one does nothing instead.)
    unsafe {
        std::arch::asm!("prefetchw [{}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Starts loading the first bytes at `at` of what is copied next, in pieces of an mbuf's size: the CPU itself looks ahead within
/// a piece, but begins anew with each. (They may be fewer than these: a prefetch of any address is harmless.)
#[inline]
pub fn prefetch_ahead(at: *const u8) {
    (0..AHEAD).for_each(|line| prefetch(at.wrapping_add(line * CACHE_LINE)));
}

/// The same, to be written.
#[inline]
pub fn prefetch_ahead_for_write(at: *const u8) {
    (0..AHEAD).for_each(|line| prefetch_for_write(at.wrapping_add(line * CACHE_LINE)));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The client protocol fixes these places: another DPDK that moves them must not attach.
    #[test]
    fn the_header_is_laid_out_as_the_protocol_says() {
        assert_eq!(std::mem::offset_of!(sys::rte_mbuf, buf_addr), 0);
        assert_eq!(std::mem::offset_of!(sys::rte_mbuf, data_off), 16);
        assert_eq!(std::mem::offset_of!(sys::rte_mbuf, ol_flags), 24);
        assert_eq!(std::mem::offset_of!(sys::rte_mbuf, pkt_len), 36);
        assert_eq!(std::mem::offset_of!(sys::rte_mbuf, data_len), 40);
        assert_eq!(std::mem::offset_of!(sys::rte_mbuf, next), 64);
        // SAFETY: all-zero is a valid mbuf header, and its union is plain numbers.
        let mut m: sys::rte_mbuf = unsafe { std::mem::zeroed() };
        // SAFETY: as above.
        unsafe {
            let parts = &mut m.__bindgen_anon_3.__bindgen_anon_1;
            parts.set_l2_len(14);
            parts.set_l3_len(20);
            assert_eq!(m.__bindgen_anon_3.tx_offload, 14 | 20 << 7);
            let parts = &mut m.__bindgen_anon_3.__bindgen_anon_1;
            parts.set_l4_len(32);
            parts.set_tso_segsz(1448);
            assert_eq!(
                m.__bindgen_anon_3.tx_offload,
                14 | 20 << 7 | 32 << 16 | 1448 << 24
            );
        }
        assert_eq!(CKSUM_PARTIAL, CKSUM_GOOD | sys::RTE_MBUF_F_RX_L4_CKSUM_BAD as u64);
    }
}
