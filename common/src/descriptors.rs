//! Descriptors that come with a message on a unix socket.

use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// What the kernel lets one message carry (`SCM_MAX_FD`): with room for all of them none is cut off, and left open.
const MOST: usize = 253;

/// Receives into `bytes`; returns how many came, and all descriptors that came along, close-on-exec. With `MSG_PEEK`
/// these are copies.
///
/// # Errors
/// As recvmsg(2); `ENOBUFS` where this process has no descriptors left.
pub fn receive(socket: &impl AsFd, bytes: &mut [u8], flags: MsgFlags) -> nix::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([i32; MOST]);
    let mut parts = [IoSliceMut::new(bytes)];
    let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel just made these descriptors for this process; nobody else owns them.
            descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((message.bytes, descriptors))
}
