//! Capture files in the classic format (link type Ethernet), as the pcap PMD reads and writes them.

use std::fs;
use std::path::Path;

use crate::frames::Frame;

const MAGIC: u32 = 0xa1b2_c3d4;
const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;

/// Writes `frames` to a capture file at `path`.
///
/// # Panics
/// If it can't be written.
pub fn write(path: &Path, frames: &[Frame]) {
    let mut bytes = Vec::new();
    bytes.extend(MAGIC.to_ne_bytes());
    bytes.extend([2u16, 4].map(u16::to_ne_bytes).concat());
    bytes.extend([0u32, 0, 65535, 1].map(u32::to_ne_bytes).concat());
    for (i, frame) in frames.iter().enumerate() {
        let len = frame.len() as u32;
        bytes.extend([i as u32, 0, len, len].map(u32::to_ne_bytes).concat());
        bytes.extend(&frame.bytes);
    }
    fs::write(path, bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

/// The frames of a capture file that may still be growing: whole ones only.
pub fn read(path: &Path) -> Vec<Frame> {
    let bytes = fs::read(path).unwrap_or_default();
    let word = |at: usize| -> Option<u32> { Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?)) };
    let mut frames = Vec::new();
    let mut at = FILE_HEADER;
    while let Some(len) = word(at + 8) {
        let start = at + RECORD_HEADER;
        let Some(frame) = bytes.get(start..start + len as usize) else {
            break;
        };
        frames.push(Frame::new(frame));
        at = start + len as usize;
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames::mac;

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.pcap");
        let frames: Vec<Frame> = (60..70)
            .map(|n| Frame::marked(mac(1), mac(2), n as u8, n))
            .collect();
        write(&path, &frames);
        assert_eq!(read(&path), frames);
        assert!(read(&dir.path().join("none")).is_empty());
    }
}
