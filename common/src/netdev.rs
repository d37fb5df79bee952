//! Network interfaces of the host kernel, and what its TUN/TAP driver says of them: the other side of a port that
//! leads to the host.
//!
//! An interface may be moved to another network namespace while it is in use. Its name is worth nothing then, but the
//! descriptor of one of its TAP queues still reaches it; so that goes first where there is one.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::{SndBufForce, SocketError};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, setsockopt, socket};

/// Bytes of the longest name (IFNAMSIZ without the terminating NUL).
pub const MAX_NAME: usize = libc::IFNAMSIZ - 1;
/// Where the kernel makes TAP interfaces.
pub const TUN_DEVICE: &str = "/dev/net/tun";

// linux/sockios.h and linux/ethtool.h
const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_SFLAGS: u32 = 0x26;
const ETHTOOL_GGRO: u32 = 0x2b;
const ETHTOOL_SGRO: u32 = 0x2c;
const ETH_FLAG_LRO: u32 = 1 << 15;
/// A filter (linux/filter.h) for frames that do not go out and have `longest` bytes at most. (`PACKET_IGNORE_OUTGOING` has no effect on
/// sockets of a fanout group.)
fn received(longest: u32) -> [libc::sock_filter; 6] {
    let step = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let (load, compare) = (libc::BPF_LD, libc::BPF_JMP | libc::BPF_K);
    let packet_type = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE) as u32;
    [
        step(load | libc::BPF_H | libc::BPF_ABS, 0, 0, packet_type),
        step(compare | libc::BPF_JEQ, 3, 0, libc::PACKET_OUTGOING as u32),
        step(load | libc::BPF_W | libc::BPF_LEN, 0, 0, 0),
        step(compare | libc::BPF_JGT, 1, 0, longest),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ]
}

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// What an interface does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// The host has switched it on (IFF_UP).
    Up,
    Down,
    /// It is no more: it, or the namespace that it was moved to, was deleted.
    Gone,
}

/// An interface of the host kernel.
#[derive(Debug)]
pub struct Netdev {
    name: String,
    queue: Option<OwnedFd>,
}

impl Netdev {
    /// The interface `name` of this process's network namespace; with `queue`, a descriptor of one of its TAP queues,
    /// wherever it goes.
    pub fn new(name: &str, queue: Option<OwnedFd>) -> Netdev {
        Netdev {
            name: name.to_owned(),
            queue,
        }
    }

    /// Its name, as it was made.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The TAP queue's descriptor: "writable" means that the interface has been switched on.
    pub fn queue(&self) -> Option<BorrowedFd<'_>> {
        self.queue.as_ref().map(AsFd::as_fd)
    }

    /// What it does now.
    pub fn state(&self) -> State {
        if let Some(queue) = &self.queue {
            // The driver takes no frames for an interface that is down, and reports an error for one that is gone.
            let mut fds = [PollFd::new(queue.as_fd(), PollFlags::POLLOUT)];
            let _ = poll(&mut fds, PollTimeout::ZERO);
            let seen = fds[0].revents().unwrap_or(PollFlags::empty());
            return if seen.contains(PollFlags::POLLERR) {
                State::Gone
            } else if seen.contains(PollFlags::POLLOUT) {
                State::Up
            } else {
                State::Down
            };
        }
        match self.flags() {
            Ok(flags) if flags & libc::IFF_UP as i16 != 0 => State::Up,
            Ok(_) => State::Down,
            // Most likely it was moved to another namespace: nobody can say what it does there.
            Err(_) => State::Up,
        }
    }

    /// Switches it off, as after its making only the host switches it on.
    ///
    /// # Errors
    /// The kernel refuses, or it is not in this process's namespace.
    pub fn set_down(&self) -> io::Result<()> {
        let flags = self.flags()?;
        self.by_name(libc::SIOCSIFFLAGS, |r| {
            r.ifr_ifru.ifru_flags = flags & !(libc::IFF_UP as i16);
        })?;
        Ok(())
    }

    /// Its index, if it is in this process's namespace.
    pub fn index(&self) -> Option<u32> {
        index(&self.name)
    }

    /// Its address.
    ///
    /// # Errors
    /// It is gone.
    pub fn mac(&self) -> io::Result<[u8; 6]> {
        let reply = self.request(libc::SIOCGIFHWADDR, |_| {})?;
        // SAFETY: SIOCGIFHWADDR fills this member.
        let bytes = unsafe { reply.ifr_ifru.ifru_hwaddr.sa_data };
        Ok(std::array::from_fn(|i| bytes[i] as u8))
    }

    /// Are its frames Ethernet's? Not those of a tunnel for IP packets.
    pub fn is_ethernet(&self) -> bool {
        let reply = self.request(libc::SIOCGIFHWADDR, |_| {});
        // SAFETY: SIOCGIFHWADDR fills this member.
        reply.is_ok_and(|reply| unsafe { reply.ifr_ifru.ifru_hwaddr.sa_family } == libc::ARPHRD_ETHER)
    }

    /// Gives it another address.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn set_mac(&self, mac: [u8; 6]) -> io::Result<()> {
        self.request(libc::SIOCSIFHWADDR, |r| {
            // SAFETY: an all-zero sockaddr is valid.
            let mut address: libc::sockaddr = unsafe { MaybeUninit::zeroed().assume_init() };
            address.sa_family = libc::ARPHRD_ETHER;
            for (to, from) in address.sa_data.iter_mut().zip(mac) {
                *to = from as libc::c_char;
            }
            r.ifr_ifru.ifru_hwaddr = address;
        })?;
        Ok(())
    }

    /// The payload size it is set to, in bytes, if it is in this process's namespace.
    pub fn mtu(&self) -> Option<u32> {
        let reply = self.by_name(libc::SIOCGIFMTU, |_| {}).ok()?;
        // SAFETY: SIOCGIFMTU fills this member.
        u32::try_from(unsafe { reply.ifr_ifru.ifru_mtu }).ok()
    }

    /// Is it on, and connected to something?
    pub fn has_carrier(&self) -> bool {
        self.flags()
            .is_ok_and(|flags| flags & libc::IFF_RUNNING as i16 != 0)
    }

    /// Its IFF_ flags, if it is in this process's namespace.
    fn flags(&self) -> io::Result<i16> {
        let reply = self.by_name(libc::SIOCGIFFLAGS, |_| {})?;
        // SAFETY: SIOCGIFFLAGS fills this member.
        Ok(unsafe { reply.ifr_ifru.ifru_flags })
    }

    /// Keeps the kernel from joining frames that come in into longer ones (GRO, LRO). Says whether it did so.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn keep_frames_apart(&self) -> io::Result<bool> {
        let gro = self.ethtool(ETHTOOL_GGRO, 0)? != 0;
        if gro {
            self.ethtool(ETHTOOL_SGRO, 0)?;
        }
        let flags = self.ethtool(ETHTOOL_GFLAGS, 0)?;
        let lro = flags & ETH_FLAG_LRO != 0;
        if lro {
            self.ethtool(ETHTOOL_SFLAGS, flags & !ETH_FLAG_LRO)?;
        }
        Ok(gro || lro)
    }

    /// A command of linux/ethtool.h that takes or gives a number; the answer.
    fn ethtool(&self, command: u32, data: u32) -> io::Result<u32> {
        let mut value = EthtoolValue { command, data };
        self.by_name(SIOCETHTOOL, |r| {
            // The kernel reads and writes it during the call.
            r.ifr_ifru.ifru_data = (&raw mut value).cast();
        })?;
        Ok(value.data)
    }

    /// Sets its payload size, in bytes.
    ///
    /// # Errors
    /// The kernel refuses it, or it is not in this process's namespace.
    pub fn set_mtu(&self, mtu: u16) -> io::Result<()> {
        self.by_name(libc::SIOCSIFMTU, |r| r.ifr_ifru.ifru_mtu = mtu.into())?;
        Ok(())
    }

    /// By the TAP queue if there is one, else by name.
    fn request(&self, code: libc::c_ulong, fill: impl FnOnce(&mut libc::ifreq)) -> io::Result<libc::ifreq> {
        match &self.queue {
            Some(queue) => ioctl(queue.as_fd(), code, &self.name, fill),
            None => self.by_name(code, fill),
        }
    }

    fn by_name(&self, code: libc::c_ulong, fill: impl FnOnce(&mut libc::ifreq)) -> io::Result<libc::ifreq> {
        let socket = socket(
            AddressFamily::Inet,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        ioctl(socket.as_fd(), code, &self.name, fill)
    }
}

/// Index of the interface `name` in this process's network namespace.
pub fn index(name: &str) -> Option<u32> {
    let name = std::ffi::CString::new(name).ok()?;
    // SAFETY: a NUL-terminated string.
    Some(unsafe { libc::if_nametoindex(name.as_ptr()) }).filter(|&i| i != 0)
}

/// Makes a TAP interface `name`, which is gone again when this returns: why it can't be made.
///
/// # Errors
/// Opening [`TUN_DEVICE`] or making the interface failed.
pub fn try_tap(name: &str) -> io::Result<()> {
    let device = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(TUN_DEVICE)?;
    ioctl(device.as_fd(), libc::TUNSETIFF, name, |r| {
        r.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as i16;
    })?;
    Ok(())
}

/// A descriptor of one of the interface's TAP queues, of a driver in this process that does not tell (virtio-user on
/// vhost-net). To be called by the thread that attaches devices.
pub fn open_queue(name: &str) -> Option<OwnedFd> {
    descriptors(|target| target == TUN_DEVICE).find_map(|fd| {
        // SAFETY: it was open just now, and only the thread that attaches devices, this one, closes TAP queues.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        let reply = ioctl(fd, libc::TUNGETIFF, "", |_| {}).ok()?;
        let found = reply.ifr_name.iter().map(|&c| c as u8).take_while(|&c| c != 0);
        if !found.eq(name.bytes()) {
            return None;
        }
        fd.try_clone_to_owned().ok()
    })
}

/// An AF_PACKET socket on an interface, of a driver in this process: the same, and not a new one.
#[derive(Debug)]
pub struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// Those on interface `index`. To be called by the thread that attaches devices.
    pub fn all_on(index: u32) -> Vec<PacketSocket> {
        let sockets = descriptors(|target| target.starts_with("socket:")).filter_map(|fd| {
            // SAFETY: an all-zero sockaddr_ll is valid.
            let mut address: libc::sockaddr_ll = unsafe { MaybeUninit::zeroed().assume_init() };
            let mut len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            // SAFETY: the kernel writes no more than `len` bytes of the address, whatever the descriptor is.
            let rc = unsafe { libc::getsockname(fd, (&raw mut address).cast(), &raw mut len) };
            let is_packet = i32::from(address.sll_family) == libc::AF_PACKET;
            if rc != 0 || !is_packet || address.sll_ifindex != index as i32 {
                return None;
            }
            // SAFETY: packet sockets are closed only by the thread that attaches devices, this one.
            let socket = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned();
            Some(PacketSocket(socket.ok()?))
        });
        sockets.collect()
    }

    /// A descriptor that is readable while frames wait.
    ///
    /// # Errors
    /// Out of file descriptors.
    pub fn doorbell(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    /// Forgets the last error, such as that the interface is down.
    pub fn clear_error(&self) {
        let _ = getsockopt(&self.0, SocketError);
    }

    /// Lets `bytes` wait behind it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_send_buffer(&self, bytes: usize) -> io::Result<()> {
        Ok(setsockopt(&self.0, SndBufForce, &bytes)?)
    }

    /// Lets frames to any address come in by interface `index`, as long as this socket is there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn be_promiscuous(&self, index: u32) -> io::Result<()> {
        let request = libc::packet_mreq {
            mr_ifindex: index as libc::c_int,
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        self.set(libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &request)
    }

    /// Lets in what comes in by the interface, up to `longest` bytes a frame: not what the host itself sends by it, and nothing that would be cut.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn accept_received(&self, longest: u32) -> io::Result<()> {
        let mut steps = received(longest);
        let program = libc::sock_fprog {
            len: steps.len() as u16,
            filter: steps.as_mut_ptr(),
        };
        self.set(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
    }

    fn set<T>(&self, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
        // SAFETY: the kernel reads the value, and the steps that a program points to, which live for the time of the call.
        let rc = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                level,
                option,
                std::ptr::from_ref(value).cast(),
                size_of::<T>() as libc::socklen_t,
            )
        };
        if rc != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// Descriptors of this process that lead to what `wanted` likes. Another thread may close one at any time.
fn descriptors(wanted: impl Fn(&str) -> bool) -> impl Iterator<Item = RawFd> {
    let open = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    open.filter_map(move |entry| {
        let target = std::fs::read_link(entry.path()).ok()?;
        let fd = entry.file_name().to_str()?.parse().ok()?;
        wanted(target.to_str()?).then_some(fd)
    })
}

/// One request about an interface to the kernel; its answer.
fn ioctl(
    fd: BorrowedFd<'_>,
    code: libc::c_ulong,
    name: &str,
    fill: impl FnOnce(&mut libc::ifreq),
) -> io::Result<libc::ifreq> {
    // SAFETY: all-zero is a valid value of this plain C struct.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(MAX_NAME)) {
        *to = from as libc::c_char;
    }
    fill(&mut request);
    // SAFETY: every code used here takes a pointer to an ifreq, which lives for the time of the call, as does what `fill` lets
    // it point to: an ethtool_value of the caller's.
    if unsafe { libc::ioctl(fd.as_raw_fd(), code, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(request)
}

/// Keeps DPDK's TAP driver from using signals. Call before any device is attached.
///
/// It asks the kernel for a real-time signal for every frame, and looks at a queue only after one came. Each costs
/// more than the frame itself; when their queue is full the kernel sends SIGIO, which ends the process. A driver
/// that finds every real-time signal taken does without: it looks whenever it is asked to.
pub fn take_realtime_signals() {
    extern "C" fn nothing(_: libc::c_int) {}
    for signal in libc::SIGRTMIN()..=libc::SIGRTMAX() {
        // SAFETY: an all-zero sigaction is valid; the handler does nothing, so it may run anywhere. Nobody else in this
        // process uses these signals: the C library keeps those that it needs below SIGRTMIN.
        unsafe {
            let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
            action.sa_sigaction = nothing as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_known() {
        assert!(index("lo").is_some() && index("no-such-netdev").is_none());
        let lo = Netdev::new("lo", None);
        assert_eq!(lo.mac().unwrap(), [0; 6]);
        assert!(lo.mtu().unwrap() >= 1500 && lo.state() != State::Gone);
        assert_eq!(Netdev::new("no-such-netdev", None).state(), State::Up);
    }

    #[test]
    fn a_name_that_is_taken_is_no_tap() {
        assert!(try_tap("lo").is_err());
    }
}
