//! Access control of the control channel: connections and changes.

use std::{ffi::CString, io, os::fd::AsRawFd as _};

use nix::unistd::{Gid, Group, Uid};

/// The process at the other end of a connection, as the kernel identified it at connect time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The user.
    pub uid: u32,
    /// All groups, supplementary ones included.
    pub groups: Vec<u32>,
    /// The process id, if it is visible in this PID namespace.
    pub pid: Option<i32>,
}

/// The users who may request changes: root, the daemon's own user, and the members of one group.
#[derive(Clone, Debug)]
pub struct Access {
    root: u32,
    own: u32,
    operators: Option<(String, u32)>,
}

/// A configured group does not exist.
#[derive(Debug, thiserror::Error)]
#[error("unknown group `{name}`{}; `getent group` lists the groups of this machine", cause.as_ref().map(|c| format!(" ({c})")).unwrap_or_default())]
pub struct UnknownGroup {
    /// As configured.
    pub name: String,
    /// Why the lookup failed.
    pub cause: Option<io::Error>,
}

impl Access {
    /// Grants access to root, this process's user, and the members of `operators`.
    ///
    /// # Errors
    /// When the group does not exist.
    pub fn new(operators: Option<&str>) -> Result<Self, UnknownGroup> {
        let operators = match operators {
            Some(name) => Some((name.to_owned(), group(name)?.as_raw())),
            None => None,
        };
        Ok(Self { root: 0, own: Uid::effective().as_raw(), operators })
    }

    /// Returns whether this peer may request changes.
    #[must_use]
    pub fn may_change(&self, peer: &Peer) -> bool {
        peer.uid == self.root
            || peer.uid == self.own
            || self.operators.as_ref().is_some_and(|(_, group)| peer.groups.contains(group))
    }

    /// Returns whether the peer is root or the daemon's own user; their connections have a limit of
    /// their own.
    pub(super) fn is_own(&self, peer: &Peer) -> bool {
        peer.uid == 0 || peer.uid == self.own
    }

    /// Denies access to everybody, root included.
    #[cfg(test)]
    pub(super) fn nobody() -> Self {
        Self { root: u32::MAX, own: u32::MAX, operators: Some(("none".into(), u32::MAX)) }
    }

    /// Describes who may request changes.
    pub(super) fn describe(&self) -> String {
        let own = if self.own == 0 { String::new() } else { format!(", user {}", self.own) };
        match &self.operators {
            Some((name, _)) => format!("root{own} and members of group {name}"),
            None => format!("root{own}"),
        }
    }
}

/// Looks up a group by name or number.
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

/// Returns the peer of a connected unix socket.
pub(super) fn peer(stream: &tokio::net::UnixStream) -> io::Result<Peer> {
    let found = stream.peer_cred()?;
    let mut groups = supplementary(stream.as_raw_fd())?;
    groups.push(found.gid());
    Ok(Peer { uid: found.uid(), groups, pid: found.pid() })
}

/// Returns the peer's supplementary groups (`SO_PEERGROUPS`).
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
    fn root_own_user_and_operators_may_change() {
        let peer = |uid, group| Peer { uid, groups: vec![group], pid: None };
        let access = Access { root: 0, own: 7, operators: None };
        assert!(access.may_change(&peer(0, 5)) && access.may_change(&peer(7, 5)));
        assert!(!access.may_change(&peer(8, 0)));
        let access = Access { root: 0, own: 7, operators: Some(("ops".into(), 42)) };
        assert!(access.may_change(&peer(8, 42)) && !access.may_change(&peer(8, 43)));
        assert!(access.describe().contains("group ops"));
    }

    #[test]
    fn groups_are_found_by_name_or_number() {
        assert_eq!(group("root").unwrap(), Gid::from_raw(0));
        assert_eq!(group("4711").unwrap(), Gid::from_raw(4711));
        let error = group("no-such-group-here").unwrap_err().to_string();
        assert!(error.contains("no-such-group-here") && error.contains("getent"), "{error}");
    }
}
