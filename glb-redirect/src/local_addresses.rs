//! This host's addresses at which the tunnel may end.

use std::{collections::BTreeSet, io, net::IpAddr};

use crate::config::Config;

/// The configured `addresses`; without them, every address of this network namespace except VIPs,
/// loopback and link-local addresses.
///
/// # Errors
/// When the kernel does not list the addresses.
pub(crate) fn tunnel_ends(config: &Config) -> io::Result<BTreeSet<IpAddr>> {
    if let Some(addresses) = &config.addresses {
        return Ok(addresses.clone());
    }
    let mut own = BTreeSet::new();
    for interface in nix::ifaddrs::getifaddrs()? {
        let Some(address) = interface.address else { continue };
        let address = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
            (Some(v4), _) => IpAddr::V4(v4.ip()),
            (_, Some(v6)) => IpAddr::V6(v6.ip()),
            _ => continue,
        };
        let link_local = match address {
            IpAddr::V4(v4) => v4.is_link_local(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        if !address.is_loopback() && !link_local && !config.vips.contains(&address) {
            own.insert(address);
        }
    }
    Ok(own)
}
