//! Whether anybody listens on a VIP, where the packet program can see it.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::MetadataExt as _,
};

use super::Finding;
use crate::connections::listeners;

/// TCP_LISTEN as /proc/net/tcp writes it.
const LISTEN: &str = "0A";

pub(super) fn listener(vip: IpAddr) -> Finding {
    const CHECK: &str = "listener";
    let serves = |address: IpAddr| {
        address == vip
            || address == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
            || (vip.is_ipv4() && address == IpAddr::V4(Ipv4Addr::UNSPECIFIED))
    };
    let here = match listeners() {
        Ok(listeners) => listeners,
        Err(error) => {
            let found = format!("the kernel does not list its sockets: {error}");
            return Finding::warning(CHECK, found, "Run as root.");
        }
    };
    let ports: std::collections::BTreeSet<u16> =
        here.iter().filter(|local| serves(local.ip())).map(|local| local.port()).collect();
    if !ports.is_empty() {
        let list = ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return Finding::ok(CHECK, format!("{vip}: port {list}"));
    }
    let elsewhere = elsewhere(vip);
    if elsewhere.is_empty() {
        return Finding::problem(
            CHECK,
            format!("nobody listens on {vip}: every connection is refused"),
            format!("Start the service, on {vip} or on any address."),
        );
    }
    Finding::problem(
        CHECK,
        format!(
            "nobody in this network namespace listens on {vip}, but others do elsewhere: {}. \
             Their sockets cannot be seen from here, so no connection is ever found",
            elsewhere.join(", ")
        ),
        "Run the service in this network namespace (a container: with host networking), or run \
         glb-redirect in the service's.",
    )
}

/// Listeners on the VIP or on any address in other network namespaces, by process.
fn elsewhere(vip: IpAddr) -> Vec<String> {
    let own = fs::metadata("/proc/thread-self/ns/net").map(|file| file.ino()).unwrap_or(0);
    // One process tells for its whole namespace.
    let mut namespaces = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(process) = entry.file_name().into_string() else { continue };
        if process.parse::<u32>().is_err() {
            continue;
        }
        if let Ok(file) = fs::metadata(entry.path().join("ns/net"))
            && file.ino() != own
        {
            namespaces.entry(file.ino()).or_insert(process);
        }
    }
    let file = if vip.is_ipv4() { &["tcp", "tcp6"][..] } else { &["tcp6"] };
    let mut found = std::collections::BTreeSet::new();
    for process in namespaces.values() {
        for table in file {
            let path = format!("/proc/{process}/net/{table}");
            let table = fs::read_to_string(path).unwrap_or_default();
            for (any, port) in table.lines().filter_map(|line| listening(line, vip)) {
                let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
                let name = name.trim();
                let text = format!("port {port} in the namespace of {name} (process {process})");
                found.insert((any, text));
            }
        }
    }
    // Those on the VIP itself come first: they are meant for it.
    found.into_iter().map(|(_, text)| text).take(5).collect()
}

/// The port of a line of /proc/net/tcp if it is of a listener on the VIP, or (true) on any address.
fn listening(line: &str, vip: IpAddr) -> Option<(bool, u16)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (address, port) = words.get(1)?.split_once(':')?;
    if *words.get(3)? != LISTEN {
        return None;
    }
    let wanted: String = match vip {
        IpAddr::V4(vip) => format!("{:08X}", u32::from_ne_bytes(vip.octets())),
        IpAddr::V6(vip) => vip
            .octets()
            .chunks_exact(4)
            .map(|word| format!("{:08X}", u32::from_ne_bytes([word[0], word[1], word[2], word[3]])))
            .collect(),
    };
    let any = address.bytes().all(|digit| digit == b'0');
    let port = u16::from_str_radix(port, 16).ok()?;
    (any || address == wanted).then_some((any, port))
}
