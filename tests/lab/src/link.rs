//! Settings that make a veth pair carry XDP like a physical link.
//!
//! `XDP_TX` on a veth is delivered only if the peer has an XDP program too. Checksums must be
//! complete when a director sees them: a checksum left to hardware offload would be encapsulated
//! incomplete.

use std::{
    ffi::CString,
    io,
    mem::size_of,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use anyhow::{Context, Result};
use nix::{
    net::if_::if_nametoindex,
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

/// The first fields of `union bpf_attr` for BPF_PROG_LOAD, up to the attach type.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

/// `union bpf_attr` for BPF_LINK_CREATE on an interface.
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// `union bpf_attr` for BPF_OBJ_PIN.
#[repr(C)]
struct ObjPin {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// `r0 = XDP_PASS; exit`
const PASS: [u64; 2] = [0x0000_0002_0000_00b7, 0x0000_0000_0000_0095];

/// Attaches an XDP program that passes every packet, in native mode, and pins the link at `pin`.
/// Works in the calling thread's namespace.
///
/// # Errors
/// The error names the step that failed.
pub fn attach_pass(interface: &str, pin: &Path) -> Result<()> {
    attach_pass_as(interface, pin, "pass")
}

/// Works like [`attach_pass`], with a program name of at most 15 bytes.
///
/// # Errors
/// The error names the step that failed.
pub fn attach_pass_as(interface: &str, pin: &Path, called: &str) -> Result<()> {
    let index = if_nametoindex(interface).with_context(|| format!("no interface {interface}"))?;
    let mut name = [0; 16];
    let called = called.as_bytes();
    name.get_mut(..called.len().min(15))
        .unwrap_or_default()
        .copy_from_slice(&called[..called.len().min(15)]);
    let load = ProgLoad {
        prog_type: BPF_PROG_TYPE_XDP,
        insn_cnt: 2,
        insns: PASS.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        prog_name: name,
        expected_attach_type: BPF_XDP,
        ..Default::default()
    };
    // SAFETY: the instructions and the license live past the call, which copies them.
    let program = unsafe { bpf(BPF_PROG_LOAD, &load) }.context("cannot load a BPF program")?;
    let create = LinkCreate {
        prog_fd: descriptor(&program),
        target_ifindex: index,
        attach_type: BPF_XDP,
        flags: XDP_FLAGS_DRV_MODE,
    };
    // SAFETY: holds no pointers.
    let link = unsafe { bpf(BPF_LINK_CREATE, &create) }
        .with_context(|| format!("cannot attach a program to {interface}"))?;
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let pin_at =
        ObjPin { pathname: path.as_ptr() as u64, bpf_fd: descriptor(&link), file_flags: 0 };
    // SAFETY: the path lives past the call. Pinning returns 0, not a descriptor.
    unsafe { bpf_call(BPF_OBJ_PIN, &pin_at) }
        .with_context(|| format!("cannot pin at {}", pin.display()))?;
    Ok(())
}

fn descriptor(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().unsigned_abs()
}

/// SAFETY: as [`bpf_call`]; `command` must be one that returns a new descriptor.
unsafe fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: passed on to the caller.
    let fd = unsafe { bpf_call(command, attributes) }?;
    // SAFETY: the kernel returned a new descriptor that no other code owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// SAFETY: `attributes` must be a prefix of `union bpf_attr` for `command`, its pointers valid.
unsafe fn bpf_call<T>(command: libc::c_int, attributes: &T) -> io::Result<i32> {
    // SAFETY: the kernel reads as many bytes as it is told.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>())
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}

/// Returns whether an interface of the calling thread's namespace is up.
///
/// # Errors
/// When the interface does not exist.
pub fn is_up(interface: &str) -> Result<bool> {
    let control = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut request = named(interface);
    // SAFETY: the request lives past the call and is of the shape that the call wants.
    if unsafe { libc::ioctl(control.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request) } != 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("no interface {interface}"));
    }
    // SAFETY: the call above has filled in the flags.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(libc::c_int::from(flags) & libc::IFF_UP != 0)
}

/// Builds an interface request with only the name set.
fn named(interface: &str) -> libc::ifreq {
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes().take(15)) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request
}

/// `struct ethtool_value`
#[repr(C)]
struct EthtoolValue {
    cmd: u32,
    data: u32,
}

/// From <linux/sockios.h>; the libc crate lacks it.
const SIOCETHTOOL: libc::Ioctl = 0x8946;

/// Offload settings of `ethtool -K`. The values are the kernel's request numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Offload {
    /// `tx`: transmit checksums, and with them segmentation offload.
    TxChecksums = 0x17,
    /// `gro`: generic receive offload.
    Gro = 0x2c,
}

/// Turns an offload on or off, as `ethtool -K` does. Works in the calling thread's namespace.
///
/// # Errors
/// When the kernel rejects the change.
pub fn set_offload(interface: &str, offload: Offload, on: bool) -> Result<()> {
    let control = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut value = EthtoolValue { cmd: offload as u32, data: on.into() };
    let mut request = named(interface);
    request.ifr_ifru.ifru_data = std::ptr::from_mut(&mut value).cast();
    // SAFETY: request and value live past the call and are of the shape that the call wants.
    if unsafe { libc::ioctl(control.as_raw_fd(), SIOCETHTOOL, &mut request) } != 0 {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("cannot set {offload:?} of {interface}"));
    }
    Ok(())
}
