//! What no honest client does: wrong entries, scribbled headers, garbage indices, endless doorbells.

use std::ffi::CString;
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arrayvec::ArrayVec;
use dpdk_sys as sys;
use vswitch_common::mbuf::{HEADROOM, Mbuf};
use vswitch_common::port::{RingRole, ring_name};
use vswitch_tests::Frame;

use super::Words;
use super::attached::Client;

impl Client {
    /// `push tx|free ADDRESS...`: puts these addresses on the ring, whatever they are.
    pub fn push(&mut self, mut words: Words<'_>) -> Result<String, String> {
        let ring = words.next()?;
        let addresses: Vec<usize> = words.numbers()?;
        let queue = self.queue(0)?;
        for address in addresses {
            // SAFETY: only moved through a ring, never looked into here.
            let mbuf = unsafe { Mbuf::from_address(address) }.ok_or("a zero can't be pushed")?;
            let mut one = ArrayVec::from([mbuf]);
            while !one.is_empty() {
                match ring {
                    "tx" => queue.send(&mut one),
                    "free" => queue.release(&mut one),
                    other => return Err(format!("{other:?} is no ring to push to")),
                }
            }
        }
        Ok(String::new())
    }

    /// `write ADDRESS FRAME`: writes a frame into an mbuf that was taken, header and all.
    pub fn write(&mut self, mut words: Words<'_>) -> Result<String, String> {
        let address = words.number()?;
        let frame: Frame = words.next()?.parse()?;
        // SAFETY: the test gives addresses that `take` printed: mapped mbufs of this client.
        let mut mbuf = unsafe { Mbuf::from_address(address) }.ok_or("no address")?;
        mbuf.room_mut()[..frame.len()].copy_from_slice(&frame.bytes);
        mbuf.set_frame(frame.len(), vswitch_common::mbuf::Checksum::Unknown);
        Ok(String::new())
    }

    /// `scribble ADDRESS FIELD=VALUE...`: writes fields of an mbuf's header.
    pub fn scribble(&mut self, mut words: Words<'_>) -> Result<String, String> {
        let address: usize = words.number()?;
        let mbuf = NonNull::new(address as *mut sys::rte_mbuf)
            .ok_or("no address")?
            .as_ptr();
        for word in words.0 {
            let (field, value) = word.split_once('=').ok_or("FIELD=VALUE")?;
            let value: u64 = value.parse().map_err(|_| format!("{word:?}"))?;
            // SAFETY: the test gives addresses that `take` printed: mapped mbufs; plain stores into their headers.
            unsafe {
                match field {
                    "data_off" => (*mbuf).data_off = value as u16,
                    "data_len" => (*mbuf).data_len = value as u16,
                    "pkt_len" => (*mbuf).pkt_len = value as u32,
                    "nb_segs" => (*mbuf).nb_segs = value as u16,
                    "next" => (*mbuf).next = value as *mut sys::rte_mbuf,
                    "refcnt" => (*mbuf).refcnt = value as u16,
                    "pool" => (*mbuf).pool = value as *mut sys::rte_mempool,
                    "buf_addr" => (*mbuf).buf_addr = value as *mut _,
                    "buf_iova" => (*mbuf).buf_iova = value,
                    "buf_len" => (*mbuf).buf_len = value as u16,
                    "priv_size" => (*mbuf).priv_size = value as u16,
                    "ol_flags" => (*mbuf).ol_flags = value,
                    "meta" => mbuf.add(1).cast::<u32>().write(value as u32),
                    "meta4" => mbuf.add(1).cast::<u32>().add(1).write(value as u32),
                    "meta8" => mbuf.add(1).cast::<u32>().add(2).write(value as u32),
                    other => return Err(format!("{other:?} is no field")),
                }
            }
        }
        Ok(HEADROOM.to_string())
    }

    /// `index tx|free|rx|alloc prod|cons OFFSET`: moves head and tail of that end by OFFSET.
    pub fn index(&mut self, mut words: Words<'_>) -> Result<String, String> {
        let role = match words.next()? {
            "tx" => RingRole::Tx,
            "free" => RingRole::Free,
            "rx" => RingRole::Rx,
            "alloc" => RingRole::Alloc,
            other => return Err(format!("{other:?} is no ring")),
        };
        let end = match words.next()? {
            "prod" => offset_of!(sys::rte_ring, __bindgen_anon_1),
            "cons" => offset_of!(sys::rte_ring, __bindgen_anon_2),
            other => return Err(format!("{other:?} is no end")),
        };
        let by: i64 = words.number()?;
        let ring = lookup(&ring_name(self.port, 0, role))?;
        for field in [
            offset_of!(sys::rte_ring_headtail, head),
            offset_of!(sys::rte_ring_headtail, tail),
        ] {
            // SAFETY: a mapped rte_ring, and an aligned u32 inside it.
            let index = unsafe { &*ring.as_ptr().cast::<u8>().add(end + field).cast::<AtomicU32>() };
            index.fetch_add(by as u32, Ordering::SeqCst);
        }
        Ok(String::new())
    }

    /// `ring-bells COUNT`: rings every doorbell of this process that it has the ringing end of. They are pipes.
    pub fn ring_bells(&mut self, mut words: Words<'_>) -> Result<String, String> {
        let count: u64 = words.number()?;
        // SAFETY: writes one byte to a descriptor; a reading end gives an error.
        let ring = |fd: i32| unsafe { libc::write(fd, [1u8].as_ptr().cast(), 1) };
        let bells: Vec<i32> = pipes()?.into_iter().filter(|&fd| ring(fd) == 1).collect();
        for _ in 0..count {
            bells.iter().for_each(|&fd| _ = ring(fd));
        }
        Ok(bells.len().to_string())
    }

    /// `mute`: from here on every ring of a doorbell is lost.
    pub fn mute(&mut self) -> Result<String, String> {
        let nowhere = std::fs::File::options().write(true).open("/dev/null");
        let nowhere = nowhere.map_err(|e| e.to_string())?;
        // SAFETY: asks for a descriptor's flags.
        let writes = |fd: i32| unsafe { libc::fcntl(fd, libc::F_GETFL) } & libc::O_ACCMODE == libc::O_WRONLY;
        let bells: Vec<i32> = pipes()?.into_iter().filter(|&fd| writes(fd)).collect();
        for &fd in &bells {
            // SAFETY: what is written there goes nowhere from now on; its owner closes it as before.
            unsafe { libc::dup2(nowhere.as_raw_fd(), fd) };
        }
        Ok(bells.len().to_string())
    }
}

/// Descriptors of pipes, but for the standard three.
fn pipes() -> Result<Vec<i32>, String> {
    let is_pipe = |path: std::path::PathBuf| {
        std::fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("pipe:"))
    };
    let entries = std::fs::read_dir("/proc/self/fd").map_err(|e| e.to_string())?;
    let pipes = entries
        .flatten()
        .filter(|e| is_pipe(e.path()))
        .filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    Ok(pipes.filter(|&fd| fd > 2).collect())
}

/// `hog`: from now on a thread takes a MiB of memory each millisecond and uses it, until the process is killed for it.
pub fn hog() -> String {
    std::thread::spawn(|| {
        let mut eaten: Vec<Vec<u8>> = Vec::new();
        loop {
            eaten.push(vec![eaten.len() as u8 | 1; 1 << 20]);
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    String::new()
}

/// The ring `name`, as DPDK's directory of rings has it.
pub fn lookup(name: &str) -> Result<NonNull<sys::rte_ring>, String> {
    let c_name = CString::new(name).map_err(|e| e.to_string())?;
    // SAFETY: a NUL-terminated name; EAL runs, or the look-up finds nothing.
    NonNull::new(unsafe { sys::rte_ring_lookup(c_name.as_ptr()) })
        .ok_or_else(|| format!("there is no ring {name}: {}", vswitch_common::eal::last_error()))
}
