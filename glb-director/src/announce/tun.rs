//! The `tun` method: routes the prefixes into a TUN interface, where a routing daemon learns them.
//!
//! The interface belongs to the daemon's process and is not persistent: when the process ends, the kernel
//! removes it with its routes. It has no addresses, so the kernel answers for nothing. A VIP packet that
//! the kernel forwards into it is dropped and counted.

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

use super::AnnouncementState;

/// The largest MTU, so that the kernel never answers "too big" for a VIP.
const MTU: u32 = 65_535;

/// Why the interface or its routes cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The interface cannot be created.
    #[error(
        "cannot create the TUN interface {name}: {what}: {source}. It needs CAP_NET_ADMIN and access \
         to /dev/net/tun (`modprobe tun`; systemd's PrivateDevices= hides it)"
    )]
    Create {
        /// The interface's name.
        name: String,
        /// The step that failed.
        what: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// Another process owns the interface, and may announce by it.
    #[error(
        "cannot tell what is announced by the TUN interface {name}: another process owns it. Stop \
         that process (`ip -details link show {name}`), or set another `interface`"
    )]
    Foreign {
        /// The interface's name.
        name: String,
    },
    /// Netlink could not be opened.
    #[error("cannot open a netlink route socket: {0}")]
    Open(#[source] io::Error),
    /// The kernel rejected a change.
    #[error("{what}: {answer}. Check the routes with `ip route show`")]
    Refused {
        /// The step that failed.
        what: String,
        /// The kernel's error.
        answer: String,
    },
    /// Another route has the same prefix and metric.
    #[error(
        "cannot add the route to {prefix} by {name}: another route has metric {metric}. Remove it \
         (`ip route show {prefix}`), or set another `metric`"
    )]
    Taken {
        /// The prefix.
        prefix: IpNet,
        /// The metric.
        metric: u32,
        /// The interface.
        name: String,
    },
}

/// The TUN interface of one announcement, and its routes.
#[derive(Debug)]
pub struct Tun {
    name: String,
    metric: u32,
    low_preference_metric: Option<u32>,
    prefixes: Vec<IpNet>,
    device: Option<Device>,
    state: AnnouncementState,
    dropped: u64,
}

#[derive(Debug)]
struct Device {
    file: AsyncFd<File>,
    index: u32,
    handle: Handle,
    task: JoinHandle<()>,
    /// The added routes with their metrics.
    routes: BTreeSet<(IpNet, u32)>,
}

impl Drop for Device {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Tun {
    /// Names the interface, metrics and prefixes. Creates nothing yet.
    #[must_use]
    pub fn new(name: &str, (metric, less): (u32, Option<u32>), prefixes: &[IpNet]) -> Self {
        Self {
            name: name.to_owned(),
            metric,
            low_preference_metric: less,
            prefixes: prefixes.to_vec(),
            device: None,
            state: AnnouncementState::Withdrawn,
            dropped: 0,
        }
    }

    /// Returns the state that was applied last; nothing while another process owns the interface.
    #[must_use]
    pub fn state(&self) -> Option<AnnouncementState> {
        (!self.is_foreign()).then_some(self.state)
    }

    /// Whether another process owns an interface of this name.
    fn is_foreign(&self) -> bool {
        self.device.is_none() && nix::net::if_::if_nametoindex(self.name.as_str()).is_ok()
    }

    /// Returns the number of packets to the prefixes that came out of the interface.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Creates the interface and its routes, or removes them.
    ///
    /// # Errors
    /// When the kernel rejects a change.
    pub async fn apply(&mut self, state: AnnouncementState) -> Result<(), TunError> {
        let metric = match state {
            AnnouncementState::Withdrawn => None,
            AnnouncementState::LowPreference => self.low_preference_metric,
            AnnouncementState::Announced => Some(self.metric),
        };
        if let Some(device) = &self.device
            && nix::net::if_::if_nametoindex(self.name.as_str()).ok() != Some(device.index)
        {
            // The interface was removed from outside.
            self.device = None;
            self.state = AnnouncementState::Withdrawn;
        }
        if self.device.is_none() && metric.is_some() {
            self.device = Some(Device::create(&self.name).await?);
        }
        if metric.is_none() && self.is_foreign() {
            return Err(TunError::Foreign { name: self.name.clone() });
        }
        let Some(device) = &mut self.device else {
            self.state = state;
            return Ok(());
        };
        // Add first, so that the prefix is never without a route.
        if let Some(metric) = metric {
            device.up(&self.name).await?;
            for prefix in &self.prefixes {
                device.add(&self.name, *prefix, metric).await?;
            }
            self.state = self.state.max(state);
        }
        let old = device.routes.iter().filter(|(_, other)| Some(*other) != metric);
        for (prefix, metric) in old.copied().collect::<Vec<_>>() {
            device.remove(prefix, metric).await?;
        }
        self.state = state;
        Ok(())
    }

    /// Reads and drops packets; returns when the interface breaks, never without one.
    pub async fn drop_packets(&mut self) {
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

/// Returns the destination address of an IP packet.
fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(16..20)?).ok()?)),
        6 => Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(24..40)?).ok()?)),
        _ => None,
    }
}

impl Device {
    async fn create(name: &str) -> Result<Self, TunError> {
        let failed = |what| move |source| TunError::Create { name: name.to_owned(), what, source };
        if nix::net::if_::if_nametoindex(name).is_ok() {
            let source = io::Error::from_raw_os_error(libc::EEXIST);
            return Err(failed("another interface has this name")(source));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(failed("open /dev/net/tun"))?;
        attach(&file, name).map_err(failed("TUNSETIFF"))?;
        let index = nix::net::if_::if_nametoindex(name)
            .map_err(|errno| failed("read its index")(errno.into()))?;
        // SAFETY: the descriptor is owned by what is registered.
        let file = unsafe { AsyncFd::register_with_interest(file, Interest::READABLE) };
        let file = file.map_err(|error| failed("register it for reading")(error.into()))?;
        let (connection, handle, _) = rtnetlink::new_connection().map_err(TunError::Open)?;
        let task = tokio::spawn(connection);
        let device = Self { file, index, handle, task, routes: BTreeSet::new() };
        // No address, not even a link-local one: the interface must neither answer nor solicit.
        let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        let silent = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]);
        let message = LinkUnspec::new_with_index(index).append_extra_attribute(silent).build();
        // A kernel without IPv6 rejects this, and needs it not.
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
        // Routing daemons learn routes with protocol `static`.
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
    TunError::Refused { what: format!("cannot {what}"), answer }
}

fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().raw_os_error(),
        _ => None,
    }
}

/// Creates the interface, for as long as the descriptor is open.
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
    fn destinations_of_whole_packets_are_parsed_and_short_ones_have_none() {
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
