//! Arrays of which little is ever used.

use std::sync::atomic::AtomicU32;

/// `count` words of zero. Those that nobody writes to take no memory, only addresses.
pub fn words(count: usize) -> Box<[AtomicU32]> {
    // Memory that is asked for zeroed comes from the kernel, which maps it page by page as it is written to.
    let words = vec![0u32; count].into_boxed_slice();
    // SAFETY: an AtomicU32 has a u32's size, alignment and values, and the box is nobody else's.
    unsafe { Box::from_raw(Box::into_raw(words) as *mut [AtomicU32]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    fn resident_kib() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn what_is_not_written_takes_no_memory() {
        let before = resident_kib();
        // The words for half a terabyte of mbufs.
        let words = words(1 << 28);
        for at in [0, 1 << 27, (1 << 28) - 1] {
            assert_eq!(words[at].swap(7, Ordering::Relaxed), 0);
            assert_eq!(words[at].load(Ordering::Relaxed), 7);
        }
        // Three huge pages at most, where the kernel gives them unasked, of a GiB.
        let grown = resident_kib().saturating_sub(before);
        assert!(grown < 64 << 10, "{grown} KiB");
    }
}
