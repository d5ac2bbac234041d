//! VLAN interfaces: XDP sends through none of them, but through the interface below, with their tag.

use std::{collections::BTreeMap, fs};

/// What a VLAN interface stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vlan {
    /// Index of the interface below; nothing if that is a VLAN too, whose two tags are not written.
    pub(crate) below: Option<u32>,
    /// The 802.1Q tag, as it lies on the wire, in a native word.
    pub(crate) tag: u32,
}

/// The VLAN interfaces of this thread's network namespace, by index.
pub(crate) fn interfaces() -> BTreeMap<u32, Vlan> {
    // A kernel without VLANs has no such file.
    let config = fs::read_to_string("/proc/thread-self/net/vlan/config").unwrap_or_default();
    read(&config, |name| nix::net::if_::if_nametoindex(name).ok())
}

/// Lines such as `eth0.100  | 100  | eth0`, below two lines of head.
fn read(config: &str, index: impl Fn(&str) -> Option<u32>) -> BTreeMap<u32, Vlan> {
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
    fn the_kernels_list_is_read() {
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
        let vlans = read(config, index);
        assert_eq!(vlans.keys().copied().collect::<Vec<_>>(), [5, 6]);
        assert_eq!(vlans[&5].below, Some(2));
        assert_eq!(vlans[&5].tag.to_ne_bytes(), [0x81, 0, 0, 100]);
        assert_eq!(vlans[&6].below, None);
        assert!(read("", index).is_empty());
    }
}
