//! Attaching an XDP program to an interface by a pinned link.
//!
//! A link is created once; later programs replace the one behind it atomically, also after a
//! restart of the daemon.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use aya::programs::{
    ProgramError, Xdp, XdpMode,
    links::{FdLink, LinkError, PinnedLink},
    xdp::XdpLink,
};

use crate::sys;

/// Why a program could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// This network namespace has no such interface.
    #[error(
        "this network namespace has no interface `{interface}`; `ip link` lists its interfaces"
    )]
    NoInterface {
        /// As configured.
        interface: String,
    },
    /// Another program is attached.
    #[error(
        "interface {interface} already has an XDP program{}.\n  \
         Look at it:    ip -details link show dev {interface}; bpftool link list\n  \
         Take it off:   {}",
        describe_program(program, name.as_deref()),
        removal_advice(interface, name.as_deref())
    )]
    Occupied {
        /// As configured.
        interface: String,
        /// The other program's id.
        program: Option<u32>,
        /// The other program's name, if the kernel tells it (CAP_SYS_ADMIN).
        name: Option<String>,
    },
    /// The driver refuses native XDP.
    #[error(
        "the driver of {interface} refuses native XDP: {source}.\n  \
         Look at the kernel's log (dmesg) for the driver's reason; an MTU above one page and too \
         many queues are the common ones. A driver without native XDP can be used with \
         `mode = \"generic\"`, which is several times slower."
    )]
    NoNativeXdp {
        /// As configured.
        interface: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel is too old for XDP links.
    #[error("this kernel has no BPF links for XDP; Linux 5.9 or newer is needed ({interface})")]
    NoLinks {
        /// As configured.
        interface: String,
    },
    /// The kernel is too old for tcx links.
    #[error("this kernel has no BPF links for tc; Linux 6.6 or newer is needed ({interface})")]
    NoTcx {
        /// As configured.
        interface: String,
    },
    /// The process lacks a capability.
    #[error(
        "not permitted to attach to {interface}: {source}.\n  \
         Run as root, or with CAP_BPF and CAP_NET_ADMIN."
    )]
    NotPermitted {
        /// As configured.
        interface: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel does not answer a request about an interface.
    #[error("cannot read the state of {interface}: {source}")]
    Ask {
        /// As configured.
        interface: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The pinned link belongs to another interface than the one of that name here.
    #[error(
        "{} holds a program on another interface than {interface} of this network namespace (one \
         that was renamed, or one of another namespace).\n  \
         Give each director or backend a pin folder of its own, or `detach` the other one first.",
        path.display()
    )]
    Elsewhere {
        /// As configured.
        interface: String,
        /// The link's pin.
        path: PathBuf,
    },
    /// A pin could not be read, created or removed.
    #[error("cannot {action} the pinned link {}: {source}", path.display())]
    Pin {
        /// The attempted action.
        action: &'static str,
        /// The path of the attempt.
        path: PathBuf,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Any other error.
    #[error("cannot attach to {interface}: {source}")]
    Other {
        /// As configured.
        interface: String,
        /// The library's error.
        source: ProgramError,
    },
}

/// libxdp's dispatcher, which calls several programs in turn.
const DISPATCHER: &str = "xdp_dispatcher";

fn describe_program(program: &Option<u32>, name: Option<&str>) -> String {
    match (program, name) {
        (Some(id), Some(DISPATCHER)) => format!(": libxdp's dispatcher (`{DISPATCHER}`, id {id})"),
        (Some(id), Some(name)) => format!(": `{name}` (id {id})"),
        (Some(id), None) => format!(" (id {id})"),
        (None, _) => String::new(),
    }
}

fn removal_advice(interface: &str, name: Option<&str>) -> String {
    if name == Some(DISPATCHER) {
        return format!(
            "`xdp-loader status {interface}` lists what it runs, `xdp-loader unload {interface} \
             --all` takes it off. This program does not run below a dispatcher: it has to have the \
             interface to itself."
        );
    }
    format!(
        "with the program that owns it (`glb-director detach`, or `glb-redirect detach` on a backend); what was \
         attached without a link also by `ip link set dev {interface} xdp off`."
    )
}

/// Names of other programs, recorded before the capability to ask for them was dropped.
static NAMES: Mutex<BTreeMap<u32, String>> = Mutex::new(BTreeMap::new());

/// Records the names of the programs on these interfaces.
///
/// Asking takes CAP_SYS_ADMIN, which a daemon drops before it attaches.
pub fn record_program_names(interfaces: &[String]) {
    for interface in interfaces {
        let found = interface_index(interface).ok().and_then(|index| sys::attached_xdp(index).ok());
        if let Some((_, Some(id))) = found
            && let Some(name) = ask_name(id)
        {
            NAMES.lock().unwrap_or_else(PoisonError::into_inner).insert(id, name);
        }
    }
}

fn ask_name(id: u32) -> Option<String> {
    let mut programs = aya::programs::loaded_programs().filter_map(Result::ok);
    let found = programs.find(|program| program.id() == id)?;
    found.name_as_str().filter(|name| !name.is_empty()).map(ToOwned::to_owned)
}

/// Returns the name of a program on an interface, if it can be known.
fn program_name(id: u32, index: u32) -> Option<String> {
    let known = NAMES.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
    // The place where libxdp pins its dispatchers.
    let dispatcher = format!("/sys/fs/bpf/xdp/dispatch-{index}-{id}");
    known
        .or_else(|| ask_name(id))
        .or_else(|| Path::new(&dispatcher).exists().then(|| DISPATCHER.to_owned()))
}

fn occupied(interface: String, index: u32) -> AttachError {
    let program = sys::attached_xdp(index).ok().and_then(|(_, id)| id);
    let name = program.and_then(|id| program_name(id, index));
    AttachError::Occupied { interface, program, name }
}

/// How [`attach`] attached the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// A new link was created.
    New,
    /// The program behind the existing link was replaced atomically.
    Replaced,
}

/// Returns the index of an interface of this network namespace.
///
/// # Errors
/// [`AttachError::NoInterface`].
pub fn interface_index(interface: &str) -> Result<u32, AttachError> {
    CString::new(interface)
        .ok()
        // SAFETY: a valid C string that lives through the call.
        .map(|name| unsafe { libc::if_nametoindex(name.as_ptr()) })
        .filter(|index| *index != 0)
        .ok_or_else(|| AttachError::NoInterface { interface: interface.to_owned() })
}

/// The mode of an XDP program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// In the driver, or in the hardware.
    Native,
    /// In the kernel's network stack, after it has allocated an skb.
    Generic,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

impl From<Mode> for XdpMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Native => Self::Driver,
            Mode::Generic => Self::Skb,
        }
    }
}

/// Warns if an interface's program runs in another mode.
///
/// A link keeps its mode, and replacing the link would cause a gap.
pub fn warn_on_mode_mismatch(interface: &str, mode: Mode) {
    if let Ok(Some((found, _))) = attached(interface)
        && found != mode
    {
        tracing::warn!(
            %interface, attached = %found, configured = %mode,
            "XDP mode differs from the configuration; run `detach` and start again to change it"
        );
    }
}

/// Returns whether the link pinned at `pin` belongs to the present interface of this name.
///
/// # Errors
/// When the pin cannot be read.
pub fn holds(pin: &Path, interface: &str) -> Result<bool, AttachError> {
    let Ok(index) = interface_index(interface) else { return Ok(false) };
    let Some(link) = open(pin)? else { return Ok(false) };
    let info =
        sys::xdp_link_info(link.as_fd_ref()).map_err(|error| pin_error("read", pin, error))?;
    Ok(info.interface == index)
}

/// Returns the mode and id of the XDP program on an interface, regardless of who attached it.
///
/// # Errors
/// When there is no such interface, or the kernel does not tell.
pub fn attached(interface: &str) -> Result<Option<(Mode, Option<u32>)>, AttachError> {
    // XDP_ATTACHED_SKB of linux/if_link.h; all other kinds are native.
    const GENERIC: u8 = 2;
    let (kind, id) = sys::attached_xdp(interface_index(interface)?)
        .map_err(|source| AttachError::Ask { interface: interface.to_owned(), source })?;
    Ok(match kind {
        0 => None,
        GENERIC => Some((Mode::Generic, id)),
        _ => Some((Mode::Native, id)),
    })
}

/// Returns the MTU of an interface of this network namespace.
///
/// # Errors
/// When there is no such interface, or the kernel does not tell.
pub fn interface_mtu(interface: &str) -> Result<u32, AttachError> {
    sys::interface_mtu(interface_index(interface)?)
        .map_err(|source| AttachError::Ask { interface: interface.to_owned(), source })
}

/// Returns the name of the interface with this index, or `#INDEX` if it is gone.
#[must_use]
pub fn interface_name(index: u32) -> String {
    nix::net::if_::if_indextoname(index)
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| format!("#{index}"))
}

/// LOOPBACK_IFINDEX of the kernel's net/net_namespace.h.
const LOOPBACK: u32 = 1;

/// Attaches `program` to `interface`.
///
/// It replaces the program behind the link pinned at `pin` if that link belongs to the interface;
/// otherwise it creates and pins a new link in this mode (on the loopback always generic).
///
/// # Errors
/// When the kernel refuses. The earlier program still runs then.
pub fn attach(
    program: &mut Xdp,
    interface: &str,
    pin: &Path,
    mode: Mode,
) -> Result<Attached, AttachError> {
    let index = interface_index(interface)?;
    // The loopback has no driver. It is always the first interface of a network namespace.
    let mode = if index == LOOPBACK { Mode::Generic } else { mode };
    if let Some(link) = adopt(pin, interface, index)? {
        let other = |source| AttachError::Other { interface: interface.to_owned(), source };
        let link = XdpLink::try_from(link).map_err(|error| pin_error("adopt", pin, error))?;
        let id = program.attach_to_link(link).map_err(other)?;
        // The pin keeps the link alive after it is closed here.
        drop(program.take_link(id).map_err(other)?);
        return Ok(Attached::Replaced);
    }
    // A link whose pin was just removed disappears a moment later.
    let mut tries = 0;
    let id = loop {
        match program.attach_to_if_index(index, mode.into()) {
            Ok(id) => break id,
            Err(ProgramError::SyscallError(call))
                if tries < 10 && call.io_error.raw_os_error() == Some(libc::EBUSY) =>
            {
                tries += 1;
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            Err(error) => return Err(classify(error, interface, index)),
        }
    };
    let link = program
        .take_link(id)
        .map_err(|source| AttachError::Other { interface: interface.to_owned(), source })?;
    // aya falls back to netlink where links are missing; such an attachment would end with this
    // process.
    let link = FdLink::try_from(link)
        .map_err(|_not_a_link| AttachError::NoLinks { interface: interface.to_owned() })?;
    crate::failpoints::point("attached").map_err(|error| pin_error("make", pin, error))?;
    let pinned = link.pin(pin).map_err(|error| pin_error("make", pin, error))?;
    drop(pinned);
    Ok(Attached::New)
}

/// Detaches the program of the link pinned at `pin`; returns whether there was one.
///
/// # Errors
/// When the pin cannot be opened or removed, or the kernel refuses.
pub fn detach(pin: &Path) -> Result<bool, AttachError> {
    // Removing the pin alone would detach it too, but only after every open descriptor is closed.
    if let Some(link) = open(pin)? {
        sys::detach_link(link.as_fd_ref()).map_err(|error| pin_error("detach", pin, error))?;
    }
    match fs::remove_file(pin) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(pin_error("remove", pin, error)),
    }
}

/// Returns the id of the program behind the link pinned at `pin`; `None` if the pin or the
/// interface is gone.
///
/// # Errors
/// When the pin cannot be read.
pub fn program_behind(pin: &Path) -> Result<Option<u32>, AttachError> {
    let Some(link) = open(pin)? else { return Ok(None) };
    let info =
        sys::xdp_link_info(link.as_fd_ref()).map_err(|error| pin_error("read", pin, error))?;
    Ok((info.interface != 0).then_some(info.program))
}

fn open(pin: &Path) -> Result<Option<OpenLink>, AttachError> {
    if !pin.exists() {
        return Ok(None);
    }
    let fd = sys::open_pin(pin).map_err(|error| pin_error("open", pin, error))?;
    Ok(Some(OpenLink(fd)))
}

struct OpenLink(std::os::fd::OwnedFd);

impl OpenLink {
    fn as_fd_ref(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Opens the link pinned at `pin` if it belongs to this namespace's interface `index`.
///
/// The pin of a link whose interface is gone is removed.
fn adopt(pin: &Path, interface: &str, index: u32) -> Result<Option<FdLink>, AttachError> {
    let Some(link) = open(pin)? else { return Ok(None) };
    let info =
        sys::xdp_link_info(link.as_fd_ref()).map_err(|error| pin_error("read", pin, error))?;
    if info.interface == 0 {
        tracing::warn!(pin = %pin.display(), "interface of the pinned link is gone; creating a new link");
        fs::remove_file(pin).map_err(|error| pin_error("remove", pin, error))?;
        return Ok(None);
    }
    // Another namespace may have an interface with the same index: the program's id tells them
    // apart.
    let here = sys::attached_xdp(index).ok().and_then(|(_, program)| program);
    if info.interface != index || here != Some(info.program) {
        let (interface, path) = (interface.to_owned(), pin.to_owned());
        return Err(AttachError::Elsewhere { interface, path });
    }
    let pinned =
        PinnedLink::from_pin(pin).map_err(|error: LinkError| pin_error("adopt", pin, error))?;
    Ok(Some(pinned.into()))
}

fn pin_error(
    action: &'static str,
    path: &Path,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> AttachError {
    AttachError::Pin { action, path: path.to_owned(), source: source.into() }
}

fn classify(error: ProgramError, interface: &str, index: u32) -> AttachError {
    let interface = interface.to_owned();
    let ProgramError::SyscallError(call) = &error else {
        return AttachError::Other { interface, source: error };
    };
    let errno = call.io_error.raw_os_error().unwrap_or(0);
    let source = io::Error::from_raw_os_error(errno);
    // The kernel's internal ENOTSUPP is not one of libc's.
    const ENOTSUPP: i32 = 524;
    match errno {
        libc::EBUSY | libc::EEXIST => occupied(interface, index),
        libc::EOPNOTSUPP | ENOTSUPP | libc::ERANGE | libc::ENOSPC => {
            AttachError::NoNativeXdp { interface, source }
        }
        libc::EPERM | libc::EACCES => AttachError::NotPermitted { interface, source },
        _ => AttachError::Other { interface, source: error },
    }
}
