//! Pools of mbufs. Only the primary touches one, and only from EAL threads, each of which has a cache of its own.

use std::ffi::{CString, c_uint, c_void};
use std::ptr::NonNull;

use arrayvec::ArrayVec;
use dpdk_sys as sys;

use crate::eal;
use crate::mbuf::{BUF_LEN, Mbuf, PRIV_LEN};

/// Bytes an mbuf takes in the pool, rounded up: what to size memory by.
pub const BYTES_PER_MBUF: usize = 2560;

/// Mbufs that an lcore's cache holds.
const CACHE: u32 = 256;

/// A pool of mbufs. It lives as long as the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool(NonNull<sys::rte_mempool>);

// SAFETY: a mempool's operations are safe from any thread; only EAL threads have a cache.
unsafe impl Send for Pool {}
// SAFETY: as above.
unsafe impl Sync for Pool {}

impl Pool {
    /// Makes a pool of `count` mbufs on NUMA node `socket` (-1: any).
    ///
    /// # Errors
    /// DPDK's text, most often that there is not memory enough.
    pub fn create(name: &str, count: u32, socket: i32) -> Result<Pool, String> {
        let name = CString::new(name).map_err(|e| e.to_string())?;
        // SAFETY: a NUL-terminated name and plain numbers, which DPDK checks.
        let pool = unsafe {
            sys::rte_pktmbuf_pool_create(
                name.as_ptr(),
                count,
                CACHE,
                PRIV_LEN as u16,
                BUF_LEN as u16,
                socket,
            )
        };
        NonNull::new(pool).map(Pool).ok_or_else(eal::last_error)
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::rte_mempool {
        self.0.as_ptr()
    }

    /// The NUMA node that it was made for, if it was for one.
    pub fn node(&self) -> Option<usize> {
        usize::try_from(self.socket()).ok()
    }

    /// That node as DPDK has it; -1: any.
    pub(crate) fn socket(&self) -> i32 {
        // SAFETY: a load from a live mempool.
        unsafe { (*self.0.as_ptr()).socket_id }
    }

    /// Mbufs in the pool, free or not.
    pub fn size(&self) -> u32 {
        // SAFETY: a load from a live mempool.
        unsafe { (*self.0.as_ptr()).size }
    }

    /// Free mbufs, those in the caches counted. Exact when no lcore is inside the pool.
    pub fn available(&self) -> u32 {
        // SAFETY: a live mempool.
        unsafe { sys::rte_mempool_avail_count(self.0.as_ptr()) }
    }

    /// Adds `want` mbufs to `out`, or none and returns false.
    #[inline]
    pub fn alloc_n<const N: usize>(&self, out: &mut ArrayVec<Mbuf, N>, want: usize) -> bool {
        let want = want.min(out.remaining_capacity());
        if want == 0 {
            return true;
        }
        let at = out.len();
        // SAFETY: room for `want` pointers behind the `at` present ones; Mbuf is a transparent non-null pointer,
        // and DPDK writes all of them or none.
        unsafe {
            let table = out.as_mut_ptr().add(at).cast();
            if sys::rte_pktmbuf_alloc_bulk(self.0.as_ptr(), table, want as c_uint) != 0 {
                return false;
            }
            out.set_len(at + want);
        }
        true
    }

    /// An mbuf, if the pool has one.
    #[inline]
    pub fn alloc_one(&self) -> Option<Mbuf> {
        let mut mbuf: Option<Mbuf> = None;
        // SAFETY: room for a pointer, which None is a null one of; DPDK writes it or leaves it.
        unsafe { sys::rte_pktmbuf_alloc_bulk(self.0.as_ptr(), (&raw mut mbuf).cast(), 1) };
        mbuf
    }

    /// Gives `mbufs` back and empties it. They must be single segments in the pool's own shape
    /// ([`Mbuf::scrub`]), as those are that never left the primary.
    #[inline]
    pub fn free<const N: usize>(&self, mbufs: &mut ArrayVec<Mbuf, N>) {
        if mbufs.is_empty() {
            return;
        }
        // SAFETY: owned mbufs of this pool, given up here: the list forgets them.
        unsafe {
            sys::rte_mempool_put_bulk(
                self.0.as_ptr(),
                mbufs.as_ptr().cast::<*mut c_void>(),
                mbufs.len() as c_uint,
            );
            mbufs.set_len(0);
        }
    }

    /// Addresses of all mbufs of the pool, free or not.
    pub fn addresses(&self) -> Vec<usize> {
        unsafe extern "C" fn visit(
            _: *mut sys::rte_mempool,
            list: *mut c_void,
            object: *mut c_void,
            _: c_uint,
        ) {
            // SAFETY: `list` is the vector below, alive for the whole walk.
            unsafe { (*list.cast::<Vec<usize>>()).push(object as usize) };
        }
        let mut list: Vec<usize> = Vec::with_capacity(self.size() as usize);
        // SAFETY: `visit` gets the vector's address back and nothing else touches it meanwhile.
        unsafe { sys::rte_mempool_obj_iter(self.0.as_ptr(), Some(visit), (&raw mut list).cast()) };
        list
    }
}

/// The bus address of the buffer of the mbuf at `address`.
pub fn buffer_iova(address: usize) -> u64 {
    let buffer = address + size_of::<sys::rte_mbuf>() + PRIV_LEN;
    // SAFETY: a look-up by value; unknown addresses give RTE_BAD_IOVA.
    unsafe { sys::rte_mem_virt2iova(buffer as *const c_void) }
}
