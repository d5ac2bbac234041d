//! The device that XDP has to transmit through, which may lie below the one that the route names.
//!
//! The kernel has no XDP transmit on a bridge or VLAN device. Frames for a bridge go out of the port
//! that its forwarding table names; frames for a VLAN device go out of the device below, with a tag.

use rtnetlink::packet_route::link::{
    InfoBridge, InfoData, InfoKind, InfoVlan, LinkAttribute, LinkInfo, LinkMessage,
};

use super::{Unresolved, interface_name, xdp_features};

/// How frames to the next hops are sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Transmit {
    /// By the kernel's network stack (generic XDP), or not at all: every Ethernet device will do.
    #[default]
    AnyDevice,
    /// By native XDP, with the same VLAN tags on all frames.
    Xdp {
        /// The tags' VLAN identifiers; `None` if frames keep the tags that they arrived with.
        tags: Option<Vec<u16>>,
    },
    /// By native XDP, with a VLAN tag for each next hop. [`NextHop::interface`] is then the VLAN
    /// device.
    ///
    /// [`NextHop::interface`]: super::NextHop::interface
    XdpTagged,
}

/// What a device is, as far as transmitting needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Device {
    /// A device with a driver of its own.
    Port {
        /// The kind of a virtual device.
        kind: Option<String>,
        /// Whether a native XDP program is attached to it.
        has_program: bool,
    },
    /// A VLAN device with this identifier above another device.
    Vlan { id: u16, below: u32 },
    /// A bridge.
    Bridge { filters_vlans: bool },
}

impl Device {
    pub(super) fn read(message: &LinkMessage) -> Self {
        let (mut kind, mut id, mut filters_vlans, mut below) = (None, None, false, 0);
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::Link(index) => below = *index,
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        match info {
                            LinkInfo::Kind(found) => kind = Some(found.clone()),
                            LinkInfo::Data(InfoData::Vlan(data)) => {
                                id = data.iter().find_map(|one| match one {
                                    InfoVlan::Id(id) => Some(*id),
                                    _ => None,
                                });
                            }
                            LinkInfo::Data(InfoData::Bridge(data)) => {
                                filters_vlans = data.contains(&InfoBridge::VlanFiltering(true));
                            }
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        match (kind, id) {
            (Some(InfoKind::Vlan), Some(id)) => Self::Vlan { id, below },
            (Some(InfoKind::Bridge), _) => Self::Bridge { filters_vlans },
            (kind, _) => {
                // XDP_ATTACHED_DRV of linux/if_link.h.
                const NATIVE: u8 = 1;
                let attached = crate::sys::attached_xdp(message.header.index);
                let has_program = attached.is_ok_and(|(kind, _)| kind == NATIVE);
                Self::Port { kind: kind.map(|kind| kind.to_string()), has_program }
            }
        }
    }
}

/// Checks that XDP can transmit through a port with the tags that the frames need.
pub(super) fn check_port(
    port: u32,
    kind: Option<&str>,
    has_program: bool,
    features: Option<bool>,
) -> Result<(), Unresolved> {
    const NEVER: [&str; 6] = ["dummy", "ipvlan", "macvlan", "team", "vrf", "vxlan"];
    let is_veth = kind == Some("veth");
    let usable = match features {
        Some(true) => true,
        // Frames that arrived on this port are sent back by XDP_TX, which needs no more than the
        // program, except on veth.
        Some(false) => has_program && !is_veth,
        None => !kind.is_some_and(|kind| NEVER.contains(&kind)),
    };
    if usable {
        return Ok(());
    }
    let why = match kind {
        Some("veth") => {
            "its peer neither has an XDP program nor GRO; run `ethtool -K PEER gro on` \
                         where the peer is, or attach an XDP program to it"
                .to_owned()
        }
        Some(kind) if NEVER.contains(&kind) => format!(
            "it is a {kind} device; route to the backends through the network card below it"
        ),
        _ => "its driver does not transmit for other interfaces now; add it to `interfaces`, so \
              that an XDP program is attached to it"
            .to_owned(),
    };
    Err(cannot_transmit(port, why))
}

/// Checks the VLAN tags that a next hop needs.
pub(super) fn check_tags(
    interface: u32,
    needed: &[u16],
    transmit: &Transmit,
) -> Result<(), Unresolved> {
    let fits = match transmit {
        Transmit::Xdp { tags } => needed.is_empty() || tags.as_deref() == Some(needed),
        Transmit::XdpTagged => needed.len() <= 1,
        Transmit::AnyDevice => true,
    };
    if fits {
        return Ok(());
    }
    let ids: Vec<String> = needed.iter().map(ToString::to_string).collect();
    let ids = ids.join(", ");
    let why = match transmit {
        Transmit::Xdp { .. } => format!("its frames need VLAN tag {ids}; set `vlan = [{ids}]`"),
        _ => format!("its frames need several VLAN tags ({ids})"),
    };
    Err(cannot_transmit(interface, why))
}

pub(super) fn cannot_transmit(interface: u32, why: impl Into<String>) -> Unresolved {
    let name = interface_name(interface).unwrap_or_else(|| format!("#{interface}"));
    Unresolved::CannotTransmit { interface: name, why: why.into() }
}

/// Asks the kernel whether XDP can transmit through a port.
pub(super) fn ask_port(port: u32, kind: Option<&str>, has_program: bool) -> Result<(), Unresolved> {
    check_port(port, kind, has_program, xdp_features::can_redirect_to(port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_without_xdp_transmit_are_refused_with_a_remedy() {
        for (kind, has_program, features, remedy) in [
            (Some("veth"), false, Some(true), None),
            (Some("veth"), true, Some(false), Some("gro on")),
            (None, true, Some(false), None),
            (None, false, Some(false), Some("add it to `interfaces`")),
            (Some("team"), false, Some(false), Some("below it")),
            // A kernel that does not tell.
            (Some("team"), false, None, Some("below it")),
            (None, false, None, None),
        ] {
            let error = check_port(9, kind, has_program, features).err();
            let text = error.map(|error| error.to_string());
            match (remedy, &text) {
                (None, None) => {}
                (Some(remedy), Some(text)) => assert!(text.contains(remedy), "{text}"),
                _ => panic!("{kind:?} {has_program} {features:?}: {text:?}"),
            }
        }
    }

    #[test]
    fn vlan_tags_must_be_the_configured_ones() {
        let director = |tags: Option<&[u16]>| Transmit::Xdp { tags: tags.map(<[u16]>::to_vec) };
        for (needed, transmit, fits) in [
            (&[][..], director(None), true),
            (&[100], director(None), false),
            (&[100], director(Some(&[100])), true),
            (&[100], director(Some(&[200])), false),
            (&[100], Transmit::XdpTagged, true),
            (&[100, 7], Transmit::XdpTagged, false),
        ] {
            assert_eq!(check_tags(9, needed, &transmit).is_ok(), fits, "{needed:?} {transmit:?}");
        }
    }
}
