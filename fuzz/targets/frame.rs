//! What the switch does with the bytes of a frame: headers, VLAN membership, half-done checksums.

#![no_main]

use arbitrary::Arbitrary;
use dpdk_vswitchd::datapath::parse::{self, HEADER_LEN, TAG_LEN, Tag};
use dpdk_vswitchd::datapath::vlan::{Egress, VlanPolicy};
use libfuzzer_sys::fuzz_target;
use vswitch_common::csum;

#[derive(Arbitrary, Debug)]
enum Mode {
    Access(u16),
    Trunk(Vec<u16>),
    Native {
        tag: u16,
        trunks: Vec<u16>,
        egress_tagged: bool,
    },
}

#[derive(Arbitrary, Debug)]
struct Input {
    mode: Mode,
    start: u16,
    offset: u16,
    frame: Vec<u8>,
}

/// IEEE 802.1Q as it reads.
fn header(frame: &[u8]) -> Option<(&[u8], &[u8], Option<u16>)> {
    let (destination, source, ethertype) = (frame.get(..6)?, frame.get(6..12)?, frame.get(12..HEADER_LEN)?);
    let tag = match ethertype {
        [0x81, 0x00] | [0x88, 0xa8] => {
            let tag = frame.get(HEADER_LEN..HEADER_LEN + TAG_LEN)?;
            Some(u16::from_be_bytes([tag[0], tag[1]]))
        }
        _ => None,
    };
    Some((destination, source, tag))
}

/// The VLANs of a port as ovs-vswitchd.conf.db(5) has them: is it in `vlan`, and does that leave without a tag?
fn member(mode: &Mode, vlan: u16) -> Option<bool> {
    match mode {
        Mode::Access(tag) => (vlan == *tag).then_some(true),
        Mode::Trunk(trunks) => (trunks.is_empty() || trunks.contains(&vlan)).then_some(vlan == 0),
        Mode::Native { tag, .. } if vlan == *tag => Some(
            !matches!(
                mode,
                Mode::Native {
                    egress_tagged: true,
                    ..
                }
            ) || vlan == 0,
        ),
        // Without a tag it would be of the native VLAN at the other end.
        Mode::Native { .. } if vlan == 0 => None,
        Mode::Native { trunks, .. } => (trunks.is_empty() || trunks.contains(&vlan)).then_some(false),
    }
}

/// RFC 1071 as it reads.
fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&b| u32::from(b));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fuzz_target!(|input: Input| {
    let Input {
        mut mode,
        start,
        offset,
        mut frame,
    } = input;
    // The configuration comes checked: tags are 0 to 4095.
    match &mut mode {
        Mode::Access(tag) => *tag &= 0xfff,
        Mode::Trunk(trunks) => trunks.iter_mut().for_each(|vid| *vid &= 0xfff),
        Mode::Native { tag, trunks, .. } => {
            *tag &= 0xfff;
            trunks.iter_mut().for_each(|vid| *vid &= 0xfff);
        }
    }
    let policy = match &mode {
        Mode::Access(tag) => VlanPolicy::access(*tag),
        Mode::Trunk(trunks) => VlanPolicy::trunk(trunks),
        Mode::Native {
            tag,
            trunks,
            egress_tagged,
        } => VlanPolicy::native(*tag, trunks, *egress_tagged),
    };

    let parsed = parse::parse(&frame).ok();
    let found = parsed
        .as_ref()
        .map(|e| (e.destination.bytes(), e.source.bytes(), e.tag.map(|Tag(t)| t)));
    let expected = header(&frame);
    assert_eq!(found.as_ref().map(|(d, s, t)| (&d[..], &s[..], *t)), expected);
    if let Some(ethernet) = parsed {
        let _ = (ethernet.source.is_station(), ethernet.destination.is_reserved());
        if let Some(vlan) = policy.ingress(ethernet.tag) {
            assert!(vlan < 4096);
            assert!(member(&mode, vlan).is_some(), "{mode:?} let VLAN {vlan} in");
        }
    }
    for vlan in [0, start & 0xfff, 4094, 4095] {
        let expected = match member(&mode, vlan) {
            None => Egress::Absent,
            Some(true) => Egress::Untagged,
            Some(false) => Egress::Tagged,
        };
        assert_eq!(policy.egress(vlan), expected, "{mode:?}, VLAN {vlan}");
    }

    let (start, offset) = (usize::from(start), usize::from(offset));
    let before = frame.clone();
    csum::complete(&mut frame, start, offset);
    let field = start + offset;
    if field + 2 > before.len() {
        assert_eq!(frame, before, "a place outside the frame changes nothing");
    } else {
        let expected = match !sum(&before[start..]) {
            0 => 0xffff,
            sum => sum,
        };
        assert_eq!(frame[field..field + 2], expected.to_be_bytes());
        assert_eq!(
            (&frame[..field], &frame[field + 2..]),
            (&before[..field], &before[field + 2..])
        );
    }
});
