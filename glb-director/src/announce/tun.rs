//! The prefixes as routes into a TUN interface, for whichever routing daemon to learn from the kernel.
//!
//! The interface is the daemon's own and not persistent: when its owner ends, in whatever way, the
//! kernel removes it with its routes. It has no addresses, so the kernel answers for nothing; what
//! comes out of it (a VIP's packet that was left to a kernel that forwards) is dropped and counted.

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io::{self, Read as _},
    net::IpAddr,
    os::fd::AsRawFd as _,
    os::unix::fs::OpenOptionsExt as _,
};

use ipnet::IpNet;
use rtnetlink::{
    Handle, LinkUnspec, RouteMessageBuilder,
    packet_route::{
        link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute},
        route::{RouteMessage, RouteProtocol},
    },
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::JoinHandle,
};

use super::Level;

/// The largest there is: whatever a kernel forwards into it fits, and nobody is told "too big".
const MTU: u32 = 65_535;

/// Why the routes are not there.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The interface cannot be made.
    #[error(
        "cannot make the TUN interface {name}: {what}: {source}. It takes CAP_NET_ADMIN, a \
         /dev/net/tun that may be opened (`modprobe tun`; under systemd PrivateDevices= hides it), \
         and a name that no other interface has"
    )]
    Make {
        /// Its name.
        name: String,
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Netlink could not be opened.
    #[error("cannot open a netlink route socket: {0}")]
    Open(#[source] io::Error),
    /// The kernel refuses a change.
    #[error("{what}: {answer}")]
    Refused {
        /// What was tried.
        what: String,
        /// The kernel's answer.
        answer: String,
    },
    /// Somebody else's route is there already.
    #[error(
        "there is a route to {prefix} with metric {metric} already, by something else than {name}: \
         remove it (`ip route show {prefix}`), or give another `metric`"
    )]
    Taken {
        /// To where.
        prefix: IpNet,
        /// Its metric.
        metric: u32,
        /// The interface.
        name: String,
    },
}

/// The interface and its routes.
#[derive(Debug)]
pub struct Tun {
    name: String,
    metric: u32,
    less_wanted_metric: Option<u32>,
    prefixes: Vec<IpNet>,
    device: Option<Device>,
    level: Level,
    dropped: u64,
}

#[derive(Debug)]
struct Device {
    file: AsyncFd<File>,
    index: u32,
    handle: Handle,
    task: JoinHandle<()>,
    /// The routes that were added, with their metrics.
    routes: BTreeSet<(IpNet, u32)>,
}

impl Drop for Device {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Tun {
    /// Nothing is made yet.
    #[must_use]
    pub fn new(name: &str, (metric, less): (u32, Option<u32>), prefixes: &[IpNet]) -> Self {
        Self {
            name: name.to_owned(),
            metric,
            less_wanted_metric: less,
            prefixes: prefixes.to_vec(),
            device: None,
            level: Level::Withdrawn,
            dropped: 0,
        }
    }

    /// What was brought last.
    #[must_use]
    pub const fn level(&self) -> Level {
        self.level
    }

    /// Packets to the prefixes that came out of the interface.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Sees to it that these routes are there, and no others of this interface.
    ///
    /// # Errors
    /// When the kernel says no.
    pub async fn bring(&mut self, level: Level) -> Result<(), TunError> {
        let metric = match level {
            Level::Withdrawn => None,
            Level::LessWanted => self.less_wanted_metric,
            Level::Announced => Some(self.metric),
        };
        if let Some(device) = &self.device
            && nix::net::if_::if_nametoindex(self.name.as_str()).ok() != Some(device.index)
        {
            // Somebody removed it.
            self.device = None;
            self.level = Level::Withdrawn;
        }
        if self.device.is_none() && metric.is_some() {
            self.device = Some(Device::make(&self.name).await?);
        }
        let Some(device) = &mut self.device else {
            self.level = level;
            return Ok(());
        };
        // First what is to be there, so that a prefix is never without a route in between.
        if let Some(metric) = metric {
            device.up(&self.name).await?;
            for prefix in &self.prefixes {
                device.add(&self.name, *prefix, metric).await?;
            }
            self.level = self.level.max(level);
        }
        let old = device.routes.iter().filter(|(_, other)| Some(*other) != metric);
        for (prefix, metric) in old.copied().collect::<Vec<_>>() {
            device.remove(prefix, metric).await?;
        }
        self.level = level;
        Ok(())
    }

    /// Drops what comes out of the interface, and returns when that is broken. For ever without one.
    pub async fn swallow(&mut self) {
        let Some(device) = &self.device else { return std::future::pending().await };
        let mut packet = [0; 2_048];
        loop {
            let read = device.file.async_io(Interest::READABLE, |mut file| file.read(&mut packet));
            match read.await {
                Ok(length) => {
                    let to = packet.get(..length).and_then(destination);
                    let is_vip = |to: IpAddr| self.prefixes.iter().any(|p| p.contains(&to));
                    self.dropped += u64::from(to.is_some_and(is_vip));
                }
                Err(_) => {
                    self.device = None;
                    return;
                }
            }
        }
    }
}

/// Where an IP packet wants to go.
fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(16..20)?).ok()?)),
        6 => Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(24..40)?).ok()?)),
        _ => None,
    }
}

impl Device {
    async fn make(name: &str) -> Result<Self, TunError> {
        let failed = |what| move |source| TunError::Make { name: name.to_owned(), what, source };
        if nix::net::if_::if_nametoindex(name).is_ok() {
            let source = io::Error::from_raw_os_error(libc::EEXIST);
            return Err(failed("an interface of this name is there already")(source));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(failed("open /dev/net/tun"))?;
        attach(&file, name).map_err(failed("TUNSETIFF"))?;
        let index = nix::net::if_::if_nametoindex(name)
            .map_err(|errno| failed("its index")(errno.into()))?;
        // SAFETY: the descriptor is owned by what is registered.
        let file = unsafe { AsyncFd::register_with_interest(file, Interest::READABLE) };
        let file = file.map_err(|error| failed("register")(error.into()))?;
        let (connection, handle, _) = rtnetlink::new_connection().map_err(TunError::Open)?;
        let task = tokio::spawn(connection);
        let device = Self { file, index, handle, task, routes: BTreeSet::new() };
        // No address of its own, not even a link-local one: nothing here is to answer or to ask.
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let silent = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]);
        let message = LinkUnspec::new_with_index(index).append_extra_attribute(silent).build();
        // A kernel without IPv6 has nothing to be silenced.
        drop(device.handle.link().set(message).execute().await);
        let message = LinkUnspec::new_with_index(index).mtu(MTU).build();
        let set = device.handle.link().set(message).execute().await;
        set.map_err(|error| refused(format!("set the MTU of {name}"), &error))?;
        Ok(device)
    }

    async fn up(&self, name: &str) -> Result<(), TunError> {
        let message = LinkUnspec::new_with_index(self.index).up().build();
        let set = self.handle.link().set(message).execute().await;
        set.map_err(|error| refused(format!("set {name} up"), &error))
    }

    async fn add(&mut self, name: &str, prefix: IpNet, metric: u32) -> Result<(), TunError> {
        let message = self.route(prefix, metric);
        match self.handle.route().add(message).execute().await {
            Ok(()) => {
                self.routes.insert((prefix, metric));
                Ok(())
            }
            Err(error) if errno(&error) == Some(libc::EEXIST) => {
                if self.routes.contains(&(prefix, metric)) {
                    return Ok(());
                }
                Err(TunError::Taken { prefix, metric, name: name.to_owned() })
            }
            Err(error) => Err(refused(format!("add a route to {prefix} by {name}"), &error)),
        }
    }

    async fn remove(&mut self, prefix: IpNet, metric: u32) -> Result<(), TunError> {
        let message = self.route(prefix, metric);
        match self.handle.route().del(message).execute().await {
            Err(error) if errno(&error) != Some(libc::ESRCH) => {
                Err(refused(format!("remove the route to {prefix}"), &error))
            }
            _ => {
                self.routes.remove(&(prefix, metric));
                Ok(())
            }
        }
    }

    fn route(&self, prefix: IpNet, metric: u32) -> RouteMessage {
        let (index, length) = (self.index, prefix.prefix_len());
        // `static` is what routing daemons take for an administrator's route, and learn.
        match prefix {
            IpNet::V4(prefix) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .destination_prefix(prefix.addr(), length)
                .output_interface(index)
                .priority(metric)
                .protocol(RouteProtocol::Static)
                .build(),
            IpNet::V6(prefix) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .destination_prefix(prefix.addr(), length)
                .output_interface(index)
                .priority(metric)
                .protocol(RouteProtocol::Static)
                .build(),
        }
    }
}

fn refused(what: String, error: &rtnetlink::Error) -> TunError {
    let answer = match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().to_string(),
        other => other.to_string(),
    };
    TunError::Refused { what: format!("the kernel does not {what}"), answer }
}

fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().raw_os_error(),
        _ => None,
    }
}

/// Makes the interface for as long as the descriptor lives.
fn attach(file: &File, name: &str) -> io::Result<()> {
    /// `struct ifreq` of linux/if.h as far as `TUNSETIFF` needs it.
    #[repr(C)]
    struct Request {
        name: [u8; libc::IFNAMSIZ],
        flags: libc::c_short,
        rest: [u8; 22],
    }
    let mut request = Request { name: [0; _], flags: 0, rest: [0; _] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    request.flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the request has the layout and size of the kernel's, its name ends with 0 (names have
    // at most 15 bytes), and it outlives the call.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw const request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_read_and_short_packets_have_none() {
        let mut v4 = vec![0x45; 20];
        v4[16..].copy_from_slice(&[203, 0, 113, 10]);
        assert_eq!(destination(&v4), Some("203.0.113.10".parse().unwrap()));
        let mut v6 = vec![0x60; 40];
        v6[24..].copy_from_slice(&std::net::Ipv6Addr::LOCALHOST.octets());
        assert_eq!(destination(&v6), Some("::1".parse().unwrap()));
        for packet in [&[][..], &v4[..19], &v6[..39], &[0x95; 60]] {
            assert_eq!(destination(packet), None);
        }
    }
}
