//! The XDP features of a device, by the generic netlink family `netdev` (Linux 6.3 and newer).

use std::{io, os::fd::AsRawFd as _};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use crate::sys::attribute;

/// NETDEV_XDP_ACT_NDO_XMIT: other interfaces can redirect frames to this one.
const NDO_XMIT: u64 = 4;

/// Length of `struct nlmsghdr` and `struct genlmsghdr`.
const HEADERS: usize = 20;

/// Returns whether frames can be redirected to the device now; `None` if the kernel does not tell.
pub(super) fn can_redirect_to(interface: u32) -> Option<bool> {
    features(interface).ok().map(|features| features & NDO_XMIT != 0)
}

fn features(interface: u32) -> io::Result<u64> {
    /// GENL_ID_CTRL, CTRL_CMD_GETFAMILY, CTRL_ATTR_FAMILY_NAME and CTRL_ATTR_FAMILY_ID.
    const CONTROL: (u16, u8, u16, u16) = (0x10, 3, 2, 1);
    /// NETDEV_CMD_DEV_GET, NETDEV_A_DEV_IFINDEX and NETDEV_A_DEV_XDP_FEATURES.
    const DEVICE: (u8, u16, u16) = (1, 1, 3);
    let (family, command, name, id) = CONTROL;
    let answer = request(family, command, name, b"netdev\0")?;
    let family = answer.get(HEADERS..).and_then(|attributes| attribute(attributes, id));
    let family = family.and_then(|id| id.get(..2)?.try_into().ok()).map(u16::from_ne_bytes);
    let family = family.ok_or(io::ErrorKind::Unsupported)?;
    let (command, index, features) = DEVICE;
    let answer = request(family, command, index, &interface.to_ne_bytes())?;
    let features = answer.get(HEADERS..).and_then(|attributes| attribute(attributes, features));
    let features = features.and_then(|bits| bits.get(..8)?.try_into().ok());
    features.map(u64::from_ne_bytes).ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// Sends a request with one attribute and returns the answer.
fn request(family: u16, command: u8, attribute: u16, value: &[u8]) -> io::Result<Vec<u8>> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkGeneric,
    )?;
    let padded = value.len().next_multiple_of(4);
    let mut message = Vec::with_capacity(HEADERS + 4 + padded);
    message.extend(((HEADERS + 4 + padded) as u32).to_ne_bytes());
    message.extend(family.to_ne_bytes());
    message.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend((4 + value.len() as u16).to_ne_bytes());
    message.extend(attribute.to_ne_bytes());
    message.extend(value);
    message.resize(HEADERS + 4 + padded, 0);
    send(socket.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut answer = vec![0; 8_192];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    answer.truncate(length);
    let kind = answer.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
    if kind == Some(libc::NLMSG_ERROR as u16) {
        let code = answer.get(16..20).and_then(|code| code.try_into().ok());
        return Err(io::Error::from_raw_os_error(-code.map_or(-libc::EPROTO, i32::from_ne_bytes)));
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_cannot_be_redirected_to() {
        // Older kernels lack the family.
        assert_ne!(can_redirect_to(1), Some(true));
        assert_eq!(can_redirect_to(u32::MAX), None);
    }
}
