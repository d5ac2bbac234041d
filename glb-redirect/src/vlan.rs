//! VLAN interfaces. XDP cannot transmit through them: a frame leaves by the interface below, with the
//! VLAN's tag.

use std::{collections::BTreeMap, fs};

/// A VLAN interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vlan {
    /// Index of the interface below; `None` if that is a VLAN too, since the program writes one tag.
    pub(crate) below: Option<u32>,
    /// The 802.1Q tag in wire order, as a native-endian word.
    pub(crate) tag: u32,
}

/// The VLAN interfaces of this thread's network namespace, by index.
pub(crate) fn interfaces() -> BTreeMap<u32, Vlan> {
    // A kernel without VLANs has no such file.
    let config = fs::read_to_string("/proc/thread-self/net/vlan/config").unwrap_or_default();
    parse(&config, |name| nix::net::if_::if_nametoindex(name).ok())
}

/// Parses lines such as `eth0.100  | 100  | eth0`, below two header lines.
fn parse(config: &str, index: impl Fn(&str) -> Option<u32>) -> BTreeMap<u32, Vlan> {
    let mut vlans = BTreeMap::new();
    for line in config.lines() {
        let mut fields = line.split('|').map(str::trim);
        let (Some(name), Some(id), Some(below)) = (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (Some(index), Ok(id), Some(below)) = (index(name), id.parse::<u16>(), index(below))
        else {
            continue;
        };
        let [high, low] = id.to_be_bytes();
        let tag = u32::from_ne_bytes([0x81, 0x00, high, low]);
        vlans.insert(index, Vlan { below: Some(below), tag });
    }
    let all: Vec<u32> = vlans.keys().copied().collect();
    for vlan in vlans.values_mut() {
        vlan.below = vlan.below.filter(|below| !all.contains(below));
    }
    vlans
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_proc_net_vlan_config() {
        let config = "VLAN Dev name\t | VLAN ID\n\
                      Name-Type: VLAN_NAME_TYPE_RAW_PLUS_VID_NO_PAD\n\
                      eth0.100       | 100  | eth0\n\
                      eth0.100.7     | 7  | eth0.100\n\
                      gone           | 9  | eth0\n";
        let index = |name: &str| match name {
            "eth0" => Some(2),
            "eth0.100" => Some(5),
            "eth0.100.7" => Some(6),
            _ => None,
        };
        let vlans = parse(config, index);
        assert_eq!(vlans.keys().copied().collect::<Vec<_>>(), [5, 6]);
        assert_eq!(vlans[&5].below, Some(2));
        assert_eq!(vlans[&5].tag.to_ne_bytes(), [0x81, 0, 0, 100]);
        assert_eq!(vlans[&6].below, None);
        assert!(parse("", index).is_empty());
    }
}
