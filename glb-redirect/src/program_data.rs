//! The constants and the map contents that a configuration leads to. No kernel is involved here.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use glb_common::{
    mss::Limits,
    second_chance::abi::{AddressEntry, INLINE_SLOTS, NO_V4, RedirectConfig, word_v4, words_v6},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::{Config, Mss, UnknownSenders};

/// The constants and the map contents of one generation.
#[derive(Clone, Debug, Default)]
pub struct ProgramData {
    /// The program's read-only data. `Self::settings` adds what follows from `known`.
    pub settings: RedirectConfig,
    /// The roles of each address. Next hops are written later.
    pub known: BTreeMap<IpAddr, AddressEntry>,
    /// The other backends, without this host.
    pub peers: BTreeSet<IpAddr>,
    /// All networks of directors, if there are more than the settings hold; else empty.
    pub director_nets: Vec<IpNet>,
}

/// The largest MSS values that SYN-ACKs may announce if the tunnel's interfaces have this MTU.
#[must_use]
pub fn mss_limits(mss: &Mss, config: &Config, mtu: u32) -> Limits {
    // A backend that is reached over IPv6 needs the larger outer header.
    let v6_outside = config.backends.iter().any(IpAddr::is_ipv6);
    Limits::of(mss.tunnel_mtu.unwrap_or(mtu), mss.overhead(v6_outside))
}

impl ProgramData {
    /// The data for `config` on a host with the tunnel ends `own`. All VIPs share one set of counters
    /// until [`Self::assign_counters`] separates them.
    #[must_use]
    pub fn new(config: &Config, own: &BTreeSet<IpAddr>) -> Self {
        let peers: BTreeSet<IpAddr> = config.backends.difference(own).copied().collect();
        let directors: Vec<IpNet> = IpNet::aggregate(&config.directors.iter().copied().collect());
        let (single, nets): (Vec<IpNet>, Vec<IpNet>) =
            directors.iter().partition(|net| net.prefix_len() == net.max_prefix_len());

        let mut known = BTreeMap::<IpAddr, AddressEntry>::new();
        let mut give = |address: IpAddr, roles| known.entry(address).or_default().roles |= roles;
        own.iter().for_each(|address| give(*address, AddressEntry::LOCAL));
        config.vips.iter().for_each(|vip| give(*vip, AddressEntry::VIP));
        peers.iter().for_each(|peer| give(*peer, AddressEntry::PEER | AddressEntry::SENDER));
        single.iter().for_each(|net| give(net.network(), AddressEntry::SENDER));

        let nets_v4: Vec<[u64; 2]> = nets.iter().filter_map(masked_v4).collect();
        let nets_v6: Vec<[u64; 4]> = nets.iter().filter_map(masked_v6).collect();
        let mut flags = 0;
        if config.second_chance {
            flags |= RedirectConfig::SECOND_CHANCE;
        }
        if config.unknown_senders == UnknownSenders::Pass {
            flags |= RedirectConfig::PASS_UNKNOWN_SENDERS;
        }
        let director_nets = nets_v4.len() > INLINE_SLOTS || nets_v6.len() > INLINE_SLOTS;
        if director_nets {
            flags |= RedirectConfig::MANY_NETS;
        }
        let mut settings = RedirectConfig::default();
        RedirectConfig::fill(&mut flags, RedirectConfig::NETS_V4, &mut settings.nets_v4, &nets_v4);
        RedirectConfig::fill(&mut flags, RedirectConfig::NETS_V6, &mut settings.nets_v6, &nets_v6);
        settings.flags = flags;
        Self {
            settings,
            known,
            peers,
            director_nets: if director_nets { nets } else { Vec::new() },
        }
    }

    /// The read-only data that belongs to a perfect hash with this seed and these masks.
    pub(crate) fn settings(
        &self,
        seed: u64,
        displacement_mask: u32,
        address_mask: u32,
    ) -> RedirectConfig {
        let mut flags = self.settings.flags;
        let mut settings =
            RedirectConfig { seed, displacement_mask, address_mask, ..self.settings };
        let of = |role, v4: bool| {
            let known = self.known.iter().filter(move |(_, known)| known.roles & role == role);
            known.filter(move |(address, _)| address.is_ipv4() == v4)
        };
        // The settings have few places for senders, and directors send most packets.
        let director =
            |&(_, known): &(&IpAddr, &AddressEntry)| known.roles & AddressEntry::PEER == 0;
        let v4 = |role| of(role, true).map(|(address, known)| (words(*address)[1], known));
        let v6 = |role| of(role, false).map(|(address, known)| (words(*address), known));
        let s = &mut settings;
        let own: Vec<_> = v4(AddressEntry::LOCAL).map(|(word, _)| word).collect();
        RedirectConfig::fill_v4(&mut s.local_v4, &own, NO_V4);
        let own: Vec<_> = v6(AddressEntry::LOCAL).map(|(words, _)| words).collect();
        RedirectConfig::fill(&mut flags, RedirectConfig::LOCAL_V6, &mut s.local_v6, &own);
        let senders = of(AddressEntry::SENDER, true).filter(director);
        let senders: Vec<_> = senders.map(|(address, _)| words(*address)[1]).collect();
        RedirectConfig::fill_v4(&mut s.senders_v4, &senders, NO_V4);
        let senders = of(AddressEntry::SENDER, false).filter(director);
        let senders: Vec<_> = senders.map(|(address, _)| words(*address)).collect();
        RedirectConfig::fill(&mut flags, RedirectConfig::SENDERS_V6, &mut s.senders_v6, &senders);
        let vips: Vec<_> =
            v4(AddressEntry::VIP).map(|(word, known)| [word, known.counters.into()]).collect();
        RedirectConfig::fill_v4(&mut s.vips_v4, &vips, [NO_V4, 0]);
        let vips: Vec<_> =
            v6(AddressEntry::VIP).map(|([a, b], known)| [a, b, known.counters.into()]).collect();
        RedirectConfig::fill(&mut flags, RedirectConfig::VIPS_V6, &mut s.vips_v6, &vips);
        settings.flags = flags;
        settings
    }

    /// Gives these VIPs sets of counters of their own.
    pub fn assign_counters(&mut self, slots: &BTreeMap<IpAddr, u32>) {
        for (vip, slot) in slots {
            if let Some(known) = self.known.get_mut(vip) {
                known.counters = *slot;
            }
        }
    }
}

fn words(address: IpAddr) -> [u64; 2] {
    match address {
        IpAddr::V4(address) => [0, word_v4(address.octets())],
        IpAddr::V6(address) => words_v6(address.octets()),
    }
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
            // Not adjacent, so that they cannot be aggregated.
            list(directors, &|i| format!("10.{i}.1.0/24")),
        );
        Config::parse(&text, Path::new("redirect.toml")).unwrap()
    }

    fn own(count: u8) -> BTreeSet<IpAddr> {
        (0..count).map(|i| IpAddr::from([10, 0, 2, 21 + i])).collect()
    }

    #[test]
    fn an_address_can_have_several_roles() {
        let text = "interfaces = [\"eth0\"]\nvips = [\"203.0.113.10\"]\n\
                    directors = [\"10.0.2.22\", \"10.0.3.0/24\"]\n\
                    backends = [\"10.0.2.21\", \"10.0.2.22\"]\n";
        let config = Config::parse(text, Path::new("redirect.toml")).unwrap();
        let data = ProgramData::new(&config, &own(1));
        let roles = |address: &str| data.known[&address.parse::<IpAddr>().unwrap()].roles;
        assert_eq!(roles("10.0.2.21"), AddressEntry::LOCAL);
        assert_eq!(roles("10.0.2.22"), AddressEntry::PEER | AddressEntry::SENDER);
        assert_eq!(roles("203.0.113.10"), AddressEntry::VIP);
        assert_eq!(data.peers, [IpAddr::from([10, 0, 2, 22])].into());
        assert!(data.settings.has(RedirectConfig::NETS_V4 | RedirectConfig::SECOND_CHANCE));
        assert!(!data.settings.has(RedirectConfig::NETS_V6));
        assert_eq!(
            data.settings.nets_v4,
            [[word_v4([10, 0, 3, 0]), word_v4([255, 255, 255, 0])]; INLINE_SLOTS]
        );
        assert!(data.director_nets.is_empty());
    }

    #[test]
    fn more_director_networks_than_settings_hold_go_into_maps() {
        let data = ProgramData::new(&config(9, INLINE_SLOTS + 1), &own(9));
        assert!(data.settings.has(RedirectConfig::MANY_NETS));
        assert_eq!((data.known.len(), data.director_nets.len()), (9 + 9, INLINE_SLOTS + 1));
    }
}
