//! The traffic: capture files that a `net_pcap` port replays for ever.

use std::path::{Path, PathBuf};

use vswitch_tests::frames::{BROADCAST, Mac};
use vswitch_tests::{Frame, pcap};

/// Bytes of a frame, without its check sequence.
pub const FRAME: usize = 60;

/// Host `number` on side `side` (0 or 1).
pub fn host(side: u8, number: u32) -> Mac {
    let [_, b, c, d] = number.to_be_bytes();
    [0x02, 0x10 + side, 0, b, c, d]
}

/// Two files in `dir`: what the `pairs` hosts from number `first` on on one side send to their peers on the other, and the
/// answers. Both are in an order of their own, as hosts don't take turns.
pub fn pairs(dir: &Path, first: u32, pairs: u32) -> [PathBuf; 2] {
    [0u8, 1].map(|side| {
        let path = dir.join(format!("side-{side}-{first}.pcap"));
        let order = shuffled(pairs, u64::from(side) + 1);
        let frames: Vec<Frame> = order
            .into_iter()
            .map(|n| first + n)
            .map(|n| Frame::marked(host(1 - side, n), host(side, n), n as u8, FRAME))
            .collect();
        pcap::write(&path, &frames);
        path
    })
}

/// A file in `dir`: what one host sends to all.
pub fn broadcast(dir: &Path) -> PathBuf {
    let path = dir.join("broadcast.pcap");
    pcap::write(&path, &[Frame::marked(BROADCAST, host(0, 0), 0, FRAME)]);
    path
}

/// The numbers below `count` in an order that `seed` decides (Fisher-Yates with an xorshift generator).
fn shuffled(count: u32, seed: u64) -> Vec<u32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut numbers: Vec<u32> = (0..count).collect();
    for i in (1..numbers.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        numbers.swap(i, (state % (i as u64 + 1)) as usize);
    }
    numbers
}
