//! Memory and descriptors that a run does not give back.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering};

use nix::fcntl::{FcntlArg, fcntl};
use nix::unistd::close;

/// The system's allocator, counting.
struct Counting;

static LIVE: AtomicIsize = AtomicIsize::new(0);

fn count(bytes: usize, sign: isize) {
    LIVE.fetch_add(sign * bytes as isize, Ordering::Relaxed);
}

// SAFETY: everything is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size(), 1);
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: the caller's contract is the same.
        unsafe { System.dealloc(ptr, layout) }
    }

    unsafe fn realloc(&self, ptr: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(layout.size(), -1);
        count(new_size, 1);
        // SAFETY: the caller's contract is the same.
        unsafe { System.realloc(ptr, layout, new_size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes on the heap, and the lowest descriptor that is free: one more that stays open raises it.
fn held() -> (isize, i32) {
    let lowest = fcntl(std::io::stderr(), FcntlArg::F_DUPFD(0)).expect("a descriptor is left");
    close(lowest).expect("just opened");
    (LIVE.load(Ordering::Relaxed), lowest)
}

/// Runs `run` and sees to it that it leaves nothing behind. What is made once and kept (thread-locals, a logger)
/// grows in the first runs; only what grows each time is a leak.
///
/// # Panics
/// On a leak.
pub fn check(mut run: impl FnMut()) {
    let mut growth = Vec::new();
    for _ in 0..4 {
        let (bytes, descriptors) = held();
        run();
        let (bytes_now, descriptors_now) = held();
        if bytes_now <= bytes && descriptors_now <= descriptors {
            return;
        }
        growth.push((bytes_now - bytes, descriptors_now - descriptors));
    }
    panic!("each run leaks (bytes, descriptors): {growth:?}");
}
