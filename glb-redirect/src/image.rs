//! What a configuration means for the program: its constants and the contents of its maps.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use glb_common::{
    mss::Limits,
    second_chance::layout::{FEW, Settings, word_v4, words_v6},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::{Config, Mss, Strangers};

/// The constants and the keys of the maps of one generation.
#[derive(Clone, Debug, Default)]
pub struct Image {
    /// Read-only data.
    pub settings: Settings,
    /// Fellow backends, this machine left out.
    pub peers: BTreeSet<IpAddr>,
    /// All VIPs, where there are more than the settings hold.
    pub many_vips: BTreeSet<IpAddr>,
    /// All directors, where there are more than the settings hold.
    pub many_directors: Vec<IpNet>,
}

/// The limits that `config` means where its interfaces have at least this MTU.
#[must_use]
pub fn mss_limits(mss: &Mss, config: &Config, mtu: u32) -> Limits {
    // The tunnel is over IPv6 if any backend is reached that way.
    let v6_outside = config.backends.iter().any(IpAddr::is_ipv6);
    Limits::of(mss.tunnel_mtu.unwrap_or(mtu), mss.overhead(v6_outside))
}

/// More own addresses than the program compares.
#[derive(Debug, thiserror::Error)]
#[error(
    "the tunnel can end at {FEW} addresses of a family, and {count} are given: {}.\n  \
     Name those that directors send to as `addresses = [...]`.",
    addresses.join(", ")
)]
pub struct TooManyAddresses {
    count: usize,
    addresses: Vec<String>,
}

impl Image {
    /// What `config` means on a machine where the tunnel may end at `own`.
    ///
    /// # Errors
    /// When there are more own addresses than the program can compare.
    pub fn new(config: &Config, own: &BTreeSet<IpAddr>) -> Result<Self, TooManyAddresses> {
        let (own_v4, own_v6) = families(own);
        for (count, v4) in [(own_v4.len(), true), (own_v6.len(), false)] {
            if count > FEW {
                let addresses = own.iter().filter(|ip| ip.is_ipv4() == v4).map(ToString::to_string);
                return Err(TooManyAddresses { count, addresses: addresses.collect() });
            }
        }
        let (vips_v4, vips_v6) = families(&config.vips);
        let directors: Vec<IpNet> = IpNet::aggregate(&config.directors.iter().copied().collect());
        let directors_v4: Vec<[u64; 2]> = directors.iter().filter_map(masked_v4).collect();
        let directors_v6: Vec<[u64; 4]> = directors.iter().filter_map(masked_v6).collect();

        let mut flags = 0;
        if config.second_chance {
            flags |= Settings::SECOND_CHANCE;
        }
        if config.strangers == Strangers::Pass {
            flags |= Settings::PASS_STRANGERS;
        }
        let many_vips = vips_v4.len() > FEW || vips_v6.len() > FEW;
        if many_vips {
            flags |= Settings::MANY_VIPS;
        }
        let many_directors = directors_v4.len() > FEW || directors_v6.len() > FEW;
        if many_directors {
            flags |= Settings::MANY_DIRECTORS;
        }
        let mut settings = Settings::default();
        let s = &mut settings;
        Settings::fill(&mut flags, Settings::NO_OWN_V4, &mut s.own_v4, &words_of_v4(&own_v4));
        Settings::fill(&mut flags, Settings::NO_OWN_V6, &mut s.own_v6, &words_of_v6(&own_v6));
        Settings::fill(&mut flags, Settings::NO_VIPS_V4, &mut s.vips_v4, &words_of_v4(&vips_v4));
        Settings::fill(&mut flags, Settings::NO_VIPS_V6, &mut s.vips_v6, &words_of_v6(&vips_v6));
        Settings::fill(&mut flags, Settings::NO_DIRECTORS_V4, &mut s.directors_v4, &directors_v4);
        Settings::fill(&mut flags, Settings::NO_DIRECTORS_V6, &mut s.directors_v6, &directors_v6);
        settings.flags = flags;
        Ok(Self {
            settings,
            peers: config.backends.difference(own).copied().collect(),
            many_vips: if many_vips { config.vips.clone() } else { BTreeSet::new() },
            many_directors: if many_directors { directors } else { Vec::new() },
        })
    }
}

fn families(addresses: &BTreeSet<IpAddr>) -> (Vec<Ipv4Addr>, Vec<Ipv6Addr>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for address in addresses {
        match address {
            IpAddr::V4(address) => v4.push(*address),
            IpAddr::V6(address) => v6.push(*address),
        }
    }
    (v4, v6)
}

fn words_of_v4(addresses: &[Ipv4Addr]) -> Vec<u64> {
    addresses.iter().map(|address| word_v4(address.octets())).collect()
}

fn words_of_v6(addresses: &[Ipv6Addr]) -> Vec<[u64; 2]> {
    addresses.iter().map(|address| words_v6(address.octets())).collect()
}

fn masked_v4(net: &IpNet) -> Option<[u64; 2]> {
    let IpNet::V4(net) = net else { return None };
    let net: &Ipv4Net = net;
    Some([word_v4(net.network().octets()), word_v4(net.netmask().octets())])
}

fn masked_v6(net: &IpNet) -> Option<[u64; 4]> {
    let IpNet::V6(net) = net else { return None };
    let net: &Ipv6Net = net;
    let ([a, b], [c, d]) = (words_v6(net.network().octets()), words_v6(net.netmask().octets()));
    Some([a, b, c, d])
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn config(vips: usize, directors: usize) -> Config {
        let list = |count: usize, text: &dyn Fn(usize) -> String| {
            (0..count).map(|i| format!("{:?}", text(i))).collect::<Vec<_>>().join(",")
        };
        let text = format!(
            "interfaces = [\"eth0\"]\nbackends = [\"10.0.2.21\", \"10.0.2.22\"]\n\
             vips = [{}]\ndirectors = [{}]\n",
            list(vips, &|i| format!("203.0.113.{i}")),
            // Not neighbours: they cannot be aggregated.
            list(directors, &|i| format!("10.1.{i}.1")),
        );
        Config::parse(&text, Path::new("redirect.toml")).unwrap()
    }

    fn own(count: u8) -> BTreeSet<IpAddr> {
        (0..count).map(|i| IpAddr::from([10, 0, 2, 21 + i])).collect()
    }

    #[test]
    fn a_few_are_constants_and_many_are_maps() {
        let image = Image::new(&config(1, 1), &own(1)).unwrap();
        assert_eq!(image.settings.own_v4, [word_v4([10, 0, 2, 21]); FEW]);
        assert!(image.settings.has(Settings::NO_OWN_V6 | Settings::SECOND_CHANCE));
        assert!(image.many_vips.is_empty() && image.many_directors.is_empty());
        assert_eq!(image.peers, [IpAddr::from([10, 0, 2, 22])].into());

        let image = Image::new(&config(9, 9), &own(1)).unwrap();
        assert!(image.settings.has(Settings::MANY_VIPS | Settings::MANY_DIRECTORS));
        assert_eq!((image.many_vips.len(), image.many_directors.len()), (9, 9));
        assert_eq!(image.settings.vips_v4[7], word_v4([203, 0, 113, 7]));
    }

    #[test]
    fn too_many_own_addresses_are_named() {
        let error = Image::new(&config(1, 1), &own(9)).unwrap_err().to_string();
        assert!(error.contains("10.0.2.29") && error.contains("addresses = "), "{error}");
    }
}
