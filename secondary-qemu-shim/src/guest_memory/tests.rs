use super::testing::{FRONTEND, memfd, memory, peek, poke};
use super::*;
use proptest::prelude::*;

#[test]
fn spans_stay_inside_one_region() {
    let m = memory(&[(0, 0x4000), (0x4000, 0x1000), (0x10_0000, 0x1000)]);
    assert!(m.span(0, 0x4000).is_some());
    assert!(m.span(0x3fff, 1).is_some());
    assert!(m.span(0x3fff, 2).is_none(), "straddles two regions");
    assert!(m.span(0x5000, 1).is_none());
    assert!(m.span(u64::MAX, 1).is_none());
    assert!(m.span(u64::MAX - 5, u32::MAX).is_none());
    assert!(m.span(0x10_0fff, 1).is_some());
    assert!(m.span(0x10_0000, 0x1001).is_none());
}

#[test]
fn bytes_written_are_bytes_read() {
    let m = memory(&[(0x1000, 0x2000)]);
    poke(&m, 0x1ffe, b"abcd");
    assert_eq!(peek(&m, 0x1ffd, 6), b"\0abcd\0");
}

#[test]
fn a_file_shorter_than_its_region_is_refused() {
    let spec = RegionSpec {
        guest: 0,
        frontend: 0,
        size: 0x3000,
        offset: 0x1000,
        file: memfd(0x3000),
    };
    assert!(matches!(
        GuestMemory::map(vec![spec]),
        Err(MapError::Short {
            end: 0x4000,
            file: 0x3000
        })
    ));
}

#[test]
fn regions_that_wrap_are_refused() {
    let spec = RegionSpec {
        guest: u64::MAX - 10,
        frontend: 0,
        size: 0x1000,
        offset: 0,
        file: memfd(0x1000),
    };
    assert!(matches!(
        GuestMemory::map(vec![spec]),
        Err(MapError::Range { .. })
    ));
    let spec = RegionSpec {
        guest: 0,
        frontend: 0,
        size: 0x1000,
        offset: u64::MAX - 1,
        file: memfd(0x1000),
    };
    assert!(matches!(
        GuestMemory::map(vec![spec]),
        Err(MapError::Range { .. })
    ));
}

#[test]
fn an_offset_need_not_be_page_aligned() {
    let file = memfd(0x4000);
    std::os::unix::fs::FileExt::write_all_at(&file, b"here", 0x1234).unwrap();
    let spec = RegionSpec {
        guest: 0x8000,
        frontend: 0,
        size: 0x1000,
        offset: 0x1234,
        file,
    };
    let m = GuestMemory::map(vec![spec]).unwrap();
    assert_eq!(peek(&m, 0x8000, 4), b"here");
}

#[test]
fn ring_areas_are_found_by_the_frontends_address() {
    let m = memory(&[(0x1000, 0x2000)]);
    let area = RingArea::resolve(&m, FRONTEND + 0x1100, 64, 16).unwrap();
    area.store(2, 0x1234, std::sync::atomic::Ordering::Release);
    assert_eq!(peek(&m, 0x1102, 2), [0x34, 0x12]);
    assert!(
        RingArea::resolve(&m, FRONTEND + 0x1108, 64, 16).is_none(),
        "not aligned"
    );
    assert!(
        RingArea::resolve(&m, FRONTEND + 0x2fc1, 64, 1).is_none(),
        "odd or behind the end"
    );
    assert!(
        RingArea::resolve(&m, 0x1100, 64, 16).is_none(),
        "a guest address is not a frontend address"
    );
}

#[test]
fn the_dirty_log_marks_every_page_touched() {
    let file = memfd(4096);
    let log = DirtyLog::new(SharedTable::map(&file, 0, 2).unwrap());
    log.mark(0x1fff, 2);
    log.mark(0x9000, 0x1000);
    log.mark(0x7_0000, 0x10_0000);
    log.mark(u64::MAX, 100);
    let mut bits = [0; 3];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bits, 0).unwrap();
    assert_eq!(
        bits,
        [0b0000_0110, 0b0000_0010, 0],
        "pages 1, 2 and 9; nothing behind the bitmap's end"
    );
}

proptest! {
    /// A span is given exactly when some region holds all its bytes.
    #[test]
    fn span_agrees_with_arithmetic(guest in 0u64..0x9000, len in 0u32..0x6000) {
        let regions = [(0x1000u64, 0x2000u64), (0x3000, 0x1000), (0x6000, 0x2000)];
        let m = memory(&regions);
        let fits = regions.iter().any(|&(at, size)| {
            guest >= at && guest < at + size && guest + u64::from(len) <= at + size
        });
        prop_assert_eq!(m.span(guest, len).is_some(), fits);
    }
}
