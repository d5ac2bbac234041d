//! Who asks, and what they may ask for.

use std::{ffi::CString, io, os::fd::AsRawFd as _};

use nix::unistd::{Gid, Group, Uid};

/// The process at the other end, by the kernel's word, as it was when it connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its user.
    pub uid: u32,
    /// Its groups, all of them.
    pub groups: Vec<u32>,
    /// Its id, if the kernel can name it in this namespace.
    pub pid: Option<i32>,
}

/// Whose requests for a change are granted: root's, the daemon's own user's, and those of the members
/// of one group.
#[derive(Clone, Debug)]
pub struct Access {
    root: u32,
    own: u32,
    operators: Option<(String, u32)>,
}

/// There is no such group.
#[derive(Debug, thiserror::Error)]
#[error("there is no group `{name}` on this machine{}; `getent group` lists those there are", cause.as_ref().map(|c| format!(" ({c})")).unwrap_or_default())]
pub struct UnknownGroup {
    /// As configured.
    pub name: String,
    /// Why it could not be looked up.
    pub cause: Option<io::Error>,
}

impl Access {
    /// Access for this process's own user, root, and the members of `operators`.
    ///
    /// # Errors
    /// When there is no such group.
    pub fn new(operators: Option<&str>) -> Result<Self, UnknownGroup> {
        let operators = match operators {
            Some(name) => Some((name.to_owned(), group(name)?.as_raw())),
            None => None,
        };
        Ok(Self { root: 0, own: Uid::effective().as_raw(), operators })
    }

    /// Whether this peer may ask for a change.
    #[must_use]
    pub fn may_change(&self, peer: &Peer) -> bool {
        peer.uid == self.root
            || peer.uid == self.own
            || self.operators.as_ref().is_some_and(|(_, group)| peer.groups.contains(group))
    }

    /// Whether this peer is the machine's or the daemon's own: its connections have a room of their
    /// own, so that nobody else's keep them out.
    pub(super) fn is_own(&self, peer: &Peer) -> bool {
        peer.uid == 0 || peer.uid == self.own
    }

    /// Access for no peer at all, root neither.
    #[cfg(test)]
    pub(super) fn nobody() -> Self {
        Self { root: u32::MAX, own: u32::MAX, operators: Some(("none".into(), u32::MAX)) }
    }

    /// Who may ask for a change, in words.
    pub(super) fn in_words(&self) -> String {
        let own = if self.own == 0 { String::new() } else { format!(", user {}", self.own) };
        match &self.operators {
            Some((name, _)) => format!("root{own} and members of group {name}"),
            None => format!("root{own}"),
        }
    }
}

/// A group of this machine by its name or number.
pub(super) fn group(name: &str) -> Result<Gid, UnknownGroup> {
    if let Ok(number) = name.parse() {
        return Ok(Gid::from_raw(number));
    }
    let unknown = |cause| UnknownGroup { name: name.to_owned(), cause };
    if CString::new(name).is_err() {
        return Err(unknown(None));
    }
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid),
        Ok(None) => Err(unknown(None)),
        Err(errno) => Err(unknown(Some(errno.into()))),
    }
}

/// The peer of a connected unix socket.
pub(super) fn peer(stream: &tokio::net::UnixStream) -> io::Result<Peer> {
    let found = stream.peer_cred()?;
    let mut groups = supplementary(stream.as_raw_fd())?;
    groups.push(found.gid());
    Ok(Peer { uid: found.uid(), groups, pid: found.pid() })
}

/// `SO_PEERGROUPS`: the peer's supplementary groups.
fn supplementary(socket: std::os::fd::RawFd) -> io::Result<Vec<u32>> {
    // NGROUPS_MAX of linux/limits.h.
    const MOST: usize = 65_536;
    let mut groups: Vec<u32> = vec![0; 64];
    loop {
        let mut length = (groups.len() * size_of::<u32>()) as libc::socklen_t;
        // SAFETY: the buffer is as long as `length` says, and both outlive the call.
        let result = unsafe {
            libc::getsockopt(
                socket,
                libc::SOL_SOCKET,
                libc::SO_PEERGROUPS,
                groups.as_mut_ptr().cast(),
                &mut length,
            )
        };
        if result == 0 {
            groups.truncate(length as usize / size_of::<u32>());
            return Ok(groups);
        }
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ERANGE) || groups.len() >= MOST {
            return Err(error);
        }
        groups.resize(MOST, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_for_root_the_own_user_and_the_operators() {
        let peer = |uid, group| Peer { uid, groups: vec![group], pid: None };
        let access = Access { root: 0, own: 7, operators: None };
        assert!(access.may_change(&peer(0, 5)) && access.may_change(&peer(7, 5)));
        assert!(!access.may_change(&peer(8, 0)));
        let access = Access { root: 0, own: 7, operators: Some(("ops".into(), 42)) };
        assert!(access.may_change(&peer(8, 42)) && !access.may_change(&peer(8, 43)));
        assert!(access.in_words().contains("group ops"));
    }

    #[test]
    fn groups_go_by_name_or_number() {
        assert_eq!(group("root").unwrap(), Gid::from_raw(0));
        assert_eq!(group("4711").unwrap(), Gid::from_raw(4711));
        let error = group("no-such-group-here").unwrap_err().to_string();
        assert!(error.contains("no-such-group-here") && error.contains("getent"), "{error}");
    }
}
