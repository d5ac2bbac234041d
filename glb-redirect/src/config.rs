//! The backend's configuration file.

use std::{
    collections::{BTreeSet, HashSet},
    fmt::Display,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use glb_host::control::{Control, RawControl};
use ipnet::IpNet;
use serde::Deserialize;

/// What is written in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    interfaces: Vec<String>,
    #[serde(default = "default_pin")]
    pin: PathBuf,
    vips: Vec<IpAddr>,
    directors: Vec<String>,
    #[serde(default)]
    backends: Vec<IpAddr>,
    addresses: Option<Vec<IpAddr>>,
    #[serde(default = "yes")]
    second_chance: bool,
    #[serde(default)]
    strangers: Strangers,
    #[serde(default = "yes")]
    vips_on_lo: bool,
    #[serde(default = "yes")]
    mss_clamp: bool,
    tunnel_mtu: Option<u32>,
    #[serde(default = "two")]
    hops: u8,
    reply_interfaces: Option<Vec<String>>,
    #[serde(default)]
    control: RawControl,
}

fn two() -> u8 {
    2
}

fn default_pin() -> PathBuf {
    PathBuf::from("/sys/fs/bpf/glb-redirect")
}

fn yes() -> bool {
    true
}

/// What becomes of tunnel packets from senders that are not configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Strangers {
    /// Dropped and counted.
    #[default]
    Drop,
    /// Left to the kernel and counted.
    Pass,
}

/// What is meant: every value has been checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file itself.
    pub path: PathBuf,
    /// Interfaces to attach to, at least one, none twice.
    pub interfaces: Vec<String>,
    /// Folder on a BPF file system where program and maps are pinned.
    pub pin: PathBuf,
    /// The addresses that this backend serves.
    pub vips: BTreeSet<IpAddr>,
    /// Who may send into the tunnel, besides the fellow backends.
    pub directors: BTreeSet<IpNet>,
    /// Fellow backends: may send, and may be sent to. This machine may be among them.
    pub backends: BTreeSet<IpAddr>,
    /// Where the tunnel may end; without it, any address of this machine that is no VIP.
    pub addresses: Option<BTreeSet<IpAddr>>,
    /// Whether packets that are not ours are sent on.
    pub second_chance: bool,
    /// What becomes of strangers' packets.
    pub strangers: Strangers,
    /// Whether the VIPs are put on the loopback interface.
    pub vips_on_lo: bool,
    /// How the MSS of SYN-ACKs is lowered; nothing if it is not.
    pub mss: Option<Mss>,
    /// The control channel.
    pub control: Control,
}

/// What the MSS that clients are told depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mss {
    /// MTU on the way from the directors; without it, the smallest of the interfaces'.
    pub tunnel_mtu: Option<u32>,
    /// Hops of the directors' tables, the first included.
    pub hops: u8,
    /// Where replies to clients leave.
    pub interfaces: Vec<String>,
}

impl Mss {
    /// Bytes of the tunnel's headers in each packet.
    #[must_use]
    pub fn overhead(&self, v6_outside: bool) -> u32 {
        // IP and UDP, GUE, the header of the list; then the list, which the first hop is not in.
        let (ip, address) = if v6_outside { (40, 16) } else { (20, 4) };
        ip + 8 + 4 + 4 + u32::from(self.hops.saturating_sub(1)) * address
    }
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not TOML, or a field is wrong.
    #[error("{}: {source}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// A value makes no sense.
    #[error("{}: `{key}`: {value}: {fix}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The field.
        key: &'static str,
        /// What is written.
        value: String,
        /// What would be right.
        fix: &'static str,
    },
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// When it cannot be read or says something wrong.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Checks a configuration; `path` is for error messages.
    ///
    /// # Errors
    /// When it says something wrong.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let raw: Raw = toml::from_str(text).map_err(|source| ConfigError::Syntax {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        let wrong = |key, value: &dyn Display, fix| ConfigError::Value {
            path: path.to_owned(),
            key,
            value: value.to_string(),
            fix,
        };
        check_interfaces(&raw.interfaces).map_err(|(name, fix)| wrong("interfaces", &name, fix))?;
        if !raw.pin.is_absolute() {
            let fix = "give an absolute path, such as /sys/fs/bpf/glb-redirect";
            return Err(wrong("pin", &raw.pin.display(), fix));
        }
        if raw.vips.is_empty() {
            return Err(wrong("vips", &"[]", "name at least one address that this backend serves"));
        }
        if raw.directors.is_empty() {
            let fix = "name the directors (addresses or CIDR); packets from others are not taken";
            return Err(wrong("directors", &"[]", fix));
        }
        let vips = addresses(raw.vips).map_err(|(ip, fix)| wrong("vips", &ip, fix))?;
        let backends = addresses(raw.backends).map_err(|(ip, fix)| wrong("backends", &ip, fix))?;
        let own = raw
            .addresses
            .map(addresses)
            .transpose()
            .map_err(|(ip, fix)| wrong("addresses", &ip, fix))?;
        for (key, set) in [("backends", Some(&backends)), ("addresses", own.as_ref())] {
            if let Some(both) = set.and_then(|set| set.intersection(&vips).next()) {
                let fix = "this is a VIP; backends are reached by addresses of their own";
                return Err(wrong(key, both, fix));
            }
        }
        let reply_interfaces = raw.reply_interfaces.unwrap_or_else(|| raw.interfaces.clone());
        check_interfaces(&reply_interfaces)
            .map_err(|(name, fix)| wrong("reply_interfaces", &name, fix))?;
        if !(1..=8).contains(&raw.hops) {
            let fix = "a table has 1 to 4 hops, or up to 8 with an alternative: 2 is the usual";
            return Err(wrong("hops", &raw.hops, fix));
        }
        if let Some(mtu) = raw.tunnel_mtu.filter(|mtu| !(576..=65_535).contains(mtu)) {
            return Err(wrong("tunnel_mtu", &mtu, "give the MTU in bytes, such as 1500"));
        }
        let mss = raw.mss_clamp.then_some(Mss {
            tunnel_mtu: raw.tunnel_mtu,
            hops: raw.hops,
            interfaces: reply_interfaces,
        });
        let folder = path.parent().unwrap_or(Path::new(""));
        let control = raw.control.check(folder, "/run/glb-redirect/control.sock");
        let control = control.map_err(|(key, value, fix)| wrong(key, &value, fix))?;
        let mut directors = BTreeSet::new();
        for text in &raw.directors {
            let fix = "give an IP address or a network in CIDR notation";
            let net = network(text).ok_or_else(|| wrong("directors", text, fix))?;
            directors.insert(net);
        }
        Ok(Self {
            path: path.to_owned(),
            interfaces: raw.interfaces,
            pin: raw.pin,
            vips,
            directors,
            backends,
            addresses: own,
            second_chance: raw.second_chance,
            strangers: raw.strangers,
            vips_on_lo: raw.vips_on_lo,
            mss,
            control,
        })
    }
}

fn check_interfaces(names: &[String]) -> Result<(), (String, &'static str)> {
    if names.is_empty() {
        return Err(("[]".into(), "name at least one interface"));
    }
    let mut seen = HashSet::new();
    for name in names {
        // Interface names become file names of pins: the kernel's own rules keep those apart.
        let is_name = !name.is_empty()
            && name.len() < 16
            && !matches!(name.as_str(), "." | "..")
            && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
        if !is_name {
            return Err((format!("{name:?}"), "this is not an interface name"));
        }
        if !seen.insert(name) {
            return Err((format!("{name:?}"), "name each interface once"));
        }
    }
    Ok(())
}

fn addresses(listed: Vec<IpAddr>) -> Result<BTreeSet<IpAddr>, (IpAddr, &'static str)> {
    let mut set = BTreeSet::new();
    for address in listed {
        let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
        if address.is_unspecified()
            || address.is_multicast()
            || address.is_loopback()
            || broadcast
            || matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some())
        {
            return Err((address, "this is not a unicast address that others can reach"));
        }
        if !set.insert(address) {
            return Err((address, "name each address once"));
        }
    }
    Ok(set)
}

fn network(text: &str) -> Option<IpNet> {
    let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).ok()?;
    Some(net.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "interfaces = [\"eth0\"]\nvips = [\"203.0.113.10\", \"2001:db8::10\"]\n\
                        directors = [\"10.0.2.10/32\", \"fd00::1\"]\nbackends = [\"10.0.2.21\"]\n";

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("/etc/glb/redirect.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.pin, Path::new("/sys/fs/bpf/glb-redirect"));
        assert!(config.second_chance && config.vips_on_lo);
        assert_eq!(config.strangers, Strangers::Drop);
        assert_eq!(config.addresses, None);
        let mss = config.mss.unwrap();
        assert_eq!((mss.tunnel_mtu, &mss.interfaces[..]), (None, &["eth0".to_owned()][..]));
        // As the wire format says: 40 bytes with one listed hop.
        assert_eq!((mss.overhead(false), mss.overhead(true)), (40, 72));
        let directors: Vec<String> = config.directors.iter().map(ToString::to_string).collect();
        assert_eq!(directors, ["10.0.2.10/32", "fd00::1/128"]);
    }

    #[test]
    fn each_error_names_the_key_and_the_value() {
        for (from, to, words) in [
            ("\"eth0\"", "", ["interfaces", "at least one"]),
            ("\"eth0\"", "\"eth0\", \"eth0\"", ["\"eth0\"", "once"]),
            ("\"eth0\"", "\"../x\"", ["\"../x\"", "not an interface name"]),
            ("\"10.0.2.10/32\"", "\"10.0.2.10/33\"", ["directors", "10.0.2.10/33"]),
            ("\"10.0.2.10/32\", \"fd00::1\"", "", ["directors", "[]"]),
            ("\"203.0.113.10\"", "\"0.0.0.0\"", ["vips", "0.0.0.0"]),
            ("\"203.0.113.10\"", "\"2001:db8::10\"", ["vips", "once"]),
            ("\"203.0.113.10\"", "\"203.0.113\"", ["line 2", "IP address"]),
            ("\"10.0.2.21\"", "\"203.0.113.10\"", ["backends", "VIP"]),
            ("backends", "bakends", ["bakends", "line 4"]),
            ("\"eth0\"]", "\"eth0\"]\npin = \"x\"", ["pin", "absolute"]),
            ("\"eth0\"]", "\"eth0\"]\nhops = 9", ["`hops`: 9", "1 to 4"]),
            ("\"eth0\"]", "\"eth0\"]\ntunnel_mtu = 100", ["tunnel_mtu", "100"]),
            ("\"eth0\"]", "\"eth0\"]\nreply_interfaces = []", ["reply_interfaces", "[]"]),
            ("\"eth0\"]", "\"eth0\"]\ncontrol.mode = \"9\"", ["`control.mode`: \"9\"", "octal"]),
            ("\"eth0\"]", "\"eth0\"]\nstrangers = \"x\"", ["line 2", "strangers"]),
        ] {
            let error = parse(&GOOD.replacen(from, to, 1)).unwrap_err();
            for word in words.iter().chain(&["redirect.toml"]) {
                assert!(error.contains(word), "{word:?} is missing in: {error}");
            }
        }
    }
}
