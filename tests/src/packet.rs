//! Frames on a kernel interface, by an AF_PACKET socket.

use std::ffi::CString;
use std::io;
use std::mem::size_of;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::frames::Frame;
use crate::prerequisites::run;
use crate::wait::PATIENCE;

/// A socket that sends and receives whole frames on one interface.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Opens one on the interface `name`.
    ///
    /// # Panics
    /// If there is no such interface, or no right to do so.
    #[track_caller]
    pub fn open(name: &str) -> PacketSocket {
        let c_name = CString::new(name).expect("an interface name has no NUL");
        let all = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: plain system calls with a NUL-terminated name and an address struct of the size given.
        let fd = unsafe {
            let index = libc::if_nametoindex(c_name.as_ptr());
            assert!(index != 0, "{name}: {}", io::Error::last_os_error());
            let fd = libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                i32::from(all),
            );
            assert!(fd >= 0, "packet socket: {}", io::Error::last_os_error());
            let fd = OwnedFd::from_raw_fd(fd);
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = all;
            address.sll_ifindex = index as i32;
            let len = size_of::<libc::sockaddr_ll>() as u32;
            let rc = libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len);
            assert!(rc == 0, "bind to {name}: {}", io::Error::last_os_error());
            fd
        };
        PacketSocket(fd)
    }

    /// Sends a frame.
    ///
    /// # Panics
    /// If the interface does not take it.
    #[track_caller]
    pub fn send(&self, frame: &Frame) {
        // SAFETY: writes bytes that live for the time of the call.
        let n = unsafe {
            libc::send(
                self.0.as_raw_fd(),
                frame.bytes.as_ptr().cast(),
                frame.bytes.len(),
                0,
            )
        };
        assert!(
            n == frame.bytes.len() as isize,
            "send: {}",
            io::Error::last_os_error()
        );
    }

    /// The next frame that `wanted` likes; others (the kernel has its own to say) are passed over.
    ///
    /// # Panics
    /// If none comes.
    #[track_caller]
    pub fn receive(&self, wanted: impl Fn(&Frame) -> bool) -> Frame {
        let until = Instant::now() + PATIENCE;
        let mut seen = Vec::new();
        while Instant::now() < until {
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            let step = Duration::from_millis(100);
            if poll(&mut fds, PollTimeout::try_from(step).unwrap_or(PollTimeout::MAX)) != Ok(1) {
                continue;
            }
            let mut bytes = [0u8; 4096];
            // SAFETY: the kernel writes at most as many bytes as the buffer has.
            let n = unsafe { libc::recv(self.0.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0) };
            let frame = Frame::new(&bytes[..usize::try_from(n).unwrap_or(0)]);
            if wanted(&frame) {
                return frame;
            }
            seen.push(frame);
        }
        panic!("the frame did not come, but {seen:?}");
    }
}

/// Begins a TCP connection to `to` with `data` in its first segment (RFC 7413). Nobody needs to answer; the sysctl
/// net.ipv4.tcp_fastopen must allow it without a cookie (5).
///
/// # Panics
/// If there are no sockets.
pub fn send_in_syn(to: SocketAddrV4, data: &[u8]) {
    // SAFETY: plain system calls with an address struct of the size given and bytes that live for the time of the call.
    unsafe {
        let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        let fd = libc::socket(libc::AF_INET, kind, 0);
        assert!(fd >= 0, "socket: {}", io::Error::last_os_error());
        let fd = OwnedFd::from_raw_fd(fd);
        let mut address: libc::sockaddr_in = std::mem::zeroed();
        address.sin_family = libc::AF_INET as u16;
        address.sin_port = to.port().to_be();
        address.sin_addr.s_addr = u32::from(*to.ip()).to_be();
        libc::sendto(
            fd.as_raw_fd(),
            data.as_ptr().cast(),
            data.len(),
            libc::MSG_FASTOPEN,
            (&raw const address).cast(),
            size_of::<libc::sockaddr_in>() as u32,
        );
    }
}

/// A pair of connected kernel interfaces. Removed when dropped.
#[derive(Debug)]
pub struct Veth {
    pub near: String,
    pub far: String,
}

impl Veth {
    /// A new pair, up, without addresses.
    ///
    /// # Panics
    /// If the kernel has no veth or `ip` is not installed.
    #[track_caller]
    pub fn new() -> Veth {
        crate::prerequisites::program("ip", "iproute2");
        let id = std::process::id();
        let pair = Veth {
            near: format!("vst{id}a"),
            far: format!("vst{id}b"),
        };
        run(
            "ip",
            &[
                "link", "add", &pair.near, "type", "veth", "peer", "name", &pair.far,
            ],
        );
        for end in [&pair.near, &pair.far] {
            run("ip", &["link", "set", end, "addrgenmode", "none"]);
            run("ip", &["link", "set", end, "up"]);
        }
        pair
    }
}

impl Default for Veth {
    fn default() -> Veth {
        Veth::new()
    }
}

impl Drop for Veth {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip")
            .args(["link", "del", &self.near])
            .status();
    }
}
