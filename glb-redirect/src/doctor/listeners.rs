//! Whether a service listens on each VIP, in the network namespace in which the program looks sockets
//! up.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::MetadataExt as _,
};

use super::Finding;
use crate::connections::listeners;

/// The state TCP_LISTEN in /proc/net/tcp.
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
            let found = format!("cannot list listening sockets: {error}");
            return Finding::warning(CHECK, found, "Run as root.");
        }
    };
    let ports: std::collections::BTreeSet<u16> = here
        .iter()
        .map(|listener| listener.local)
        .filter(|local| serves(local.ip()))
        .map(|local| local.port())
        .collect();
    if !ports.is_empty() {
        let list = ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return Finding::ok(CHECK, format!("{vip}: port {list}"));
    }
    let elsewhere = in_other_namespaces(vip);
    if elsewhere.is_empty() {
        return Finding::problem(
            CHECK,
            format!("no service listens on {vip}: every connection is refused"),
            format!("Start the service, on {vip} or on any address."),
        );
    }
    Finding::problem(
        CHECK,
        format!(
            "no service in this network namespace listens on {vip}, but services in other namespaces do: \
             {}. The program cannot look up sockets there, so it finds no connection",
            elsewhere.join(", ")
        ),
        "Run the service in this network namespace (a container with host networking), or run \
         glb-redirect in the service's network namespace.",
    )
}

/// Listeners on the VIP or on any address in other network namespaces.
fn in_other_namespaces(vip: IpAddr) -> Vec<String> {
    let own = fs::metadata("/proc/thread-self/ns/net").map(|file| file.ino()).unwrap_or(0);
    // One process of each namespace is enough.
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
            for (any, port) in table.lines().filter_map(|line| parse_listener(line, vip)) {
                let name = fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
                let name = name.trim();
                let text = format!("port {port} in the namespace of {name} (process {process})");
                found.insert((any, text));
            }
        }
    }
    // Listeners on the VIP itself come first.
    found.into_iter().map(|(_, text)| text).take(5).collect()
}

/// Parses a line of /proc/net/tcp: the port of a listener on the VIP, or with `true` on any address.
fn parse_listener(line: &str, vip: IpAddr) -> Option<(bool, u16)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let (address, port) = words.get(1)?.split_once(':')?;
    if *words.get(3)? != LISTEN {
        return None;
    }
    let hex: String = match vip {
        IpAddr::V4(vip) => format!("{:08X}", u32::from_ne_bytes(vip.octets())),
        IpAddr::V6(vip) => vip
            .octets()
            .chunks_exact(4)
            .map(|word| format!("{:08X}", u32::from_ne_bytes([word[0], word[1], word[2], word[3]])))
            .collect(),
    };
    let any = address.bytes().all(|digit| digit == b'0');
    let port = u16::from_str_radix(port, 16).ok()?;
    (any || address == hex).then_some((any, port))
}
