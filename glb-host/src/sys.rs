//! System calls that aya does not offer.

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::ffi::OsStrExt as _,
    },
    path::Path,
};

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_DETACH: libc::c_long = 34;
const BPF_LINK_TYPE_XDP: u32 = 6;
const BPF_LINK_TYPE_TCX: u32 = 11;

/// The kernel's information about an XDP link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct XdpLinkInfo {
    /// Id of the program behind the link.
    pub(crate) program: u32,
    /// Index of the interface; 0 if it is gone.
    pub(crate) interface: u32,
}

/// `struct bpf_link_info` of linux/bpf.h as far as XDP and tcx need it; the union is 8-byte
/// aligned.
#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    interface: u32,
    rest: [u32; 11],
}

#[repr(C)]
struct InfoByFd {
    fd: u32,
    length: u32,
    info: u64,
}

#[repr(C)]
struct PinAttributes {
    path: u64,
    fd: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attributes` is a prefix of the union that the command expects, with its real size.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[repr(C)]
struct CreateMap {
    kind: u32,
    key: u32,
    value: u32,
    entries: u32,
    flags: u32,
}

#[repr(C)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Creates a per-CPU array.
pub(crate) fn per_cpu_array(value: u32, entries: u32) -> io::Result<OwnedFd> {
    const BPF_MAP_TYPE_PERCPU_ARRAY: u32 = 6;
    let mut attributes =
        CreateMap { kind: BPF_MAP_TYPE_PERCPU_ARRAY, key: 4, value, entries, flags: 0 };
    let fd = bpf(BPF_MAP_CREATE, &mut attributes)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Reads an array's element; `value` holds the values of all CPUs, each rounded up to 8 bytes.
pub(crate) fn map_lookup(map: BorrowedFd<'_>, key: u32, value: &mut [u8]) -> io::Result<()> {
    element(BPF_MAP_LOOKUP_ELEM, map, key, value.as_mut_ptr() as u64)
}

/// Writes an array's element; `value` is laid out as in [`map_lookup`].
pub(crate) fn map_update(map: BorrowedFd<'_>, key: u32, value: &[u8]) -> io::Result<()> {
    element(BPF_MAP_UPDATE_ELEM, map, key, value.as_ptr() as u64)
}

fn element(command: libc::c_long, map: BorrowedFd<'_>, key: u32, value: u64) -> io::Result<()> {
    let key = std::ptr::from_ref(&key) as u64;
    let mut attributes = Element { map: map.as_raw_fd() as u32, padding: 0, key, value, flags: 0 };
    bpf(command, &mut attributes).map(|_| ())
}

/// Pins `object` (a program, map or link) at `path`.
pub(crate) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes =
        PinAttributes { path: path.as_ptr() as u64, fd: object.as_raw_fd() as u32, flags: 0 };
    bpf(BPF_OBJ_PIN, &mut attributes).map(|_| ())
}

/// Opens the object that is pinned at `path`.
pub(crate) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = PinAttributes { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    let fd = bpf(BPF_OBJ_GET, &mut attributes)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Detaches a link's program from its interface. The link stays, without a program.
pub(crate) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(BPF_LINK_DETACH, &mut (link.as_raw_fd() as u32)).map(|_| ())
}

/// Returns an XDP link's interface and program.
pub(crate) fn xdp_link_info(link: BorrowedFd<'_>) -> io::Result<XdpLinkInfo> {
    let info = link_info(link, BPF_LINK_TYPE_XDP, "the link of an XDP program")?;
    Ok(XdpLinkInfo { program: info.program, interface: info.interface })
}

/// Returns the index of a tcx link's interface; 0 if it is gone.
pub(crate) fn tcx_link_interface(link: BorrowedFd<'_>) -> io::Result<u32> {
    Ok(link_info(link, BPF_LINK_TYPE_TCX, "the link of a tc program")?.interface)
}

fn link_info(link: BorrowedFd<'_>, kind: u32, name: &str) -> io::Result<RawLinkInfo> {
    let mut info = RawLinkInfo::default();
    let mut attributes = InfoByFd {
        fd: link.as_raw_fd() as u32,
        length: size_of::<RawLinkInfo>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    if info.kind == kind {
        return Ok(info);
    }
    let text = format!("it is not {name} (link type {})", info.kind);
    Err(io::Error::new(io::ErrorKind::InvalidData, text))
}

/// Returns an interface's MTU.
pub(crate) fn interface_mtu(index: u32) -> io::Result<u32> {
    const IFLA_MTU: u16 = 4;
    let answer = link_message(index)?;
    let mtu = answer.get(32..).and_then(|attributes| attribute(attributes, IFLA_MTU));
    mtu.and_then(|mtu| Some(u32::from_ne_bytes(mtu.get(..4)?.try_into().ok()?)))
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Returns the attach kind (IFLA_XDP_ATTACHED) and id of an interface's XDP program.
pub(crate) fn attached_xdp(index: u32) -> io::Result<(u8, Option<u32>)> {
    const IFLA_XDP: u16 = 43;
    const IFLA_XDP_ATTACHED: u16 = 2;
    const IFLA_XDP_PROG_ID: u16 = 4;
    let answer = link_message(index)?;
    // struct nlmsghdr and struct ifinfomsg are 16 bytes each.
    let Some(xdp) = answer.get(32..).and_then(|attributes| attribute(attributes, IFLA_XDP)) else {
        return Ok((0, None));
    };
    let kind = attribute(xdp, IFLA_XDP_ATTACHED).and_then(|kind| kind.first().copied());
    let id = attribute(xdp, IFLA_XDP_PROG_ID)
        .and_then(|id| Some(u32::from_ne_bytes(id.get(..4)?.try_into().ok()?)));
    Ok((kind.unwrap_or(0), id))
}

/// The parent of the filters on the egress of a clsact qdisc (`TC_H_CLSACT`, `TC_H_MIN_EGRESS`).
pub(crate) const TC_EGRESS: u32 = 0xffff_fff3;
/// The parent of those on its ingress.
pub(crate) const TC_INGRESS: u32 = 0xffff_fff2;

/// `struct nlmsghdr` and `struct tcmsg` together.
const TC_HEADER: usize = 16 + 20;

/// The names of the tc filters below `parent` on an interface; those that are no BPF programs have
/// an empty one. Nothing if the interface has no clsact qdisc.
pub(crate) fn tc_filters(index: u32, parent: u32) -> io::Result<Vec<String>> {
    const TCA_OPTIONS: u16 = 2;
    const TCA_BPF_NAME: u16 = 7;
    let dump = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
    let mut names = Vec::new();
    tc_request(libc::RTM_GETTFILTER, dump, index, 0, parent, |message| {
        let name = message
            .get(TC_HEADER..)
            .and_then(|attributes| attribute(attributes, TCA_OPTIONS))
            .and_then(|options| attribute(options, TCA_BPF_NAME))
            .map(|name| String::from_utf8_lossy(name).trim_end_matches('\0').to_owned());
        names.push(name.unwrap_or_default());
    })?;
    Ok(names)
}

/// Removes the clsact qdisc of an interface with every filter on it.
pub(crate) fn delete_clsact(index: u32) -> io::Result<()> {
    const TC_H_CLSACT: u32 = 0xffff_fff1;
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
    tc_request(libc::RTM_DELQDISC, flags, index, 0xffff_0000, TC_H_CLSACT, |_| {})
}

/// Sends a request about tc and calls `each` for every message of the answer.
fn tc_request(
    kind: u16,
    flags: libc::c_int,
    index: u32,
    handle: u32,
    parent: u32,
    mut each: impl FnMut(&[u8]),
) -> io::Result<()> {
    use nix::sys::socket::{MsgFlags, recv, send};
    let socket = route_socket()?;
    let mut request = Vec::with_capacity(TC_HEADER);
    request.extend((TC_HEADER as u32).to_ne_bytes());
    request.extend(kind.to_ne_bytes());
    request.extend((flags as u16).to_ne_bytes());
    request.extend([0; 8]);
    request.extend([0; 4]);
    for word in [index, handle, parent, 0] {
        request.extend(word.to_ne_bytes());
    }
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut datagram = vec![0; 65_536];
    loop {
        let length = recv(socket.as_raw_fd(), &mut datagram, MsgFlags::empty())?;
        let mut rest = datagram.get(..length).unwrap_or_default();
        while let Some(header) = rest.first_chunk::<16>() {
            let [l0, l1, l2, l3, k0, k1, ..] = *header;
            let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
            let kind = libc::c_int::from(u16::from_ne_bytes([k0, k1]));
            let message = rest.get(..length.max(16)).ok_or(io::ErrorKind::InvalidData)?;
            if kind == libc::NLMSG_DONE {
                return Ok(());
            }
            if kind == libc::NLMSG_ERROR {
                let code = message.get(16..20).and_then(|code| code.try_into().ok());
                return match code.map(i32::from_ne_bytes) {
                    Some(0) => Ok(()),
                    Some(code) => Err(io::Error::from_raw_os_error(-code)),
                    None => Err(io::ErrorKind::InvalidData.into()),
                };
            }
            each(message);
            rest = rest.get(message.len().next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// A netlink socket for links, routes and tc.
fn route_socket() -> io::Result<OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
    let (family, protocol) = (AddressFamily::Netlink, SockProtocol::NetlinkRoute);
    Ok(socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?)
}

/// Returns the payload of the first attribute of a kind.
pub(crate) fn attribute(mut attributes: &[u8], kind: u16) -> Option<&[u8]> {
    const NESTED_AND_ORDER: u16 = 0xc000;
    loop {
        let length = usize::from(u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?));
        let this = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?) & !NESTED_AND_ORDER;
        if this == kind {
            return attributes.get(4..length);
        }
        attributes = attributes.get(length.max(4).next_multiple_of(4)..)?;
    }
}

/// Returns the kernel's answer to RTM_GETLINK for one interface.
fn link_message(index: u32) -> io::Result<Vec<u8>> {
    use nix::sys::socket::{MsgFlags, recv, send};
    let socket = route_socket()?;
    let mut request = Vec::with_capacity(32);
    request.extend(32u32.to_ne_bytes());
    request.extend((libc::RTM_GETLINK).to_ne_bytes());
    request.extend((libc::NLM_F_REQUEST as u16).to_ne_bytes());
    request.extend([0; 8]);
    request.extend([0; 4]);
    request.extend(index.to_ne_bytes());
    request.extend([0; 8]);
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    let mut answer = vec![0; 65_536];
    let length = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    answer.truncate(length);
    Ok(answer)
}
