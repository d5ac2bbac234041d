//! The backend's configuration file.

use std::{
    collections::{BTreeSet, HashSet},
    fmt::Display,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use glb_host::{
    config_file::{self, FileError},
    control::{ControlConfig, RawControlConfig},
};
use glb_table::TableSet;
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
    table: Option<PathBuf>,
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
    hops: Option<u8>,
    reply_interfaces: Option<Vec<String>>,
    #[serde(default)]
    control: RawControlConfig,
    metrics: Option<SocketAddr>,
}

/// Hops of a table's rows, if nobody says how many.
const USUAL_HOPS: u8 = 2;

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
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Fellow backends: may send, and may be sent to. This machine may be among them. Those of the
    /// table are among them.
    pub backends: BTreeSet<IpAddr>,
    /// The directors' table, if fellow backends are read from it.
    pub table: Option<FromTable>,
    /// Where Prometheus may ask for metrics; nowhere if it is left out.
    pub metrics: Option<SocketAddr>,
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
    pub control: ControlConfig,
}

/// A table file, and what the configuration itself says beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FromTable {
    /// The file; a relative path is meant from the configuration's folder.
    pub path: PathBuf,
    /// Fellow backends that are there in any case.
    backends: BTreeSet<IpAddr>,
    /// Hops as the configuration has them, which then counts.
    hops: Option<u8>,
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
    /// The file could not be read, is not TOML, or a field is wrong.
    #[error(transparent)]
    File(#[from] FileError),
    /// The table file cannot be used.
    #[error("{}", .0.render(false).trim_end())]
    Table(glb_table::LoadError),
    /// A backend of the table makes no sense here.
    #[error("{}: backend {address}: {fix}", path.display())]
    Backend {
        /// The table file.
        path: PathBuf,
        /// The backend.
        address: IpAddr,
        /// What would be right.
        fix: &'static str,
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
    /// Reads and checks a configuration file, and the table that it names.
    ///
    /// # Errors
    /// When one of them cannot be read or says something wrong.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::check(config_file::read(path)?, path)?.with_table()
    }

    /// Checks a configuration; `path` is for error messages. A table that it names is not read.
    ///
    /// # Errors
    /// When it says something wrong.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        Self::check(config_file::parse(text, path)?, path)
    }

    /// The same configuration with the table as it is now.
    ///
    /// # Errors
    /// When the table cannot be read or says something wrong.
    pub fn with_table(&self) -> Result<Self, ConfigError> {
        let Some(table) = &self.table else { return Ok(self.clone()) };
        let tables = glb_table::load(&table.path).map_err(ConfigError::Table)?;
        self.knowing(&tables)
    }

    /// The same configuration with the backends of these tables.
    fn knowing(&self, tables: &TableSet) -> Result<Self, ConfigError> {
        let mut config = self.clone();
        let Some(table) = &self.table else { return Ok(config) };
        config.backends.clone_from(&table.backends);
        // Whatever their state: one that is inactive may hold connections, and may be active again
        // before this file is.
        for backend in tables.tables.iter().flat_map(|table| &table.backends) {
            let address = backend.address;
            if self.vips.contains(&address) {
                let fix = "this is a VIP here; backends are reached by addresses of their own";
                return Err(ConfigError::Backend { path: table.path.clone(), address, fix });
            }
            config.backends.insert(address);
        }
        if let (Some(mss), None) = (&mut config.mss, table.hops) {
            let hops = |table: &glb_table::Table| {
                // The old row's hops follow the new row's.
                if table.has_alternative() { 2 * table.hops } else { table.hops }
            };
            mss.hops = tables.tables.iter().map(hops).max().unwrap_or(USUAL_HOPS);
        }
        Ok(config)
    }

    fn check(raw: Raw, path: &Path) -> Result<Self, ConfigError> {
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
        if let Some(hops) = raw.hops.filter(|hops| !(1..=8).contains(hops)) {
            let fix = "a table has 1 to 4 hops, or up to 8 with an alternative: 2 is the usual";
            return Err(wrong("hops", &hops, fix));
        }
        if let Some(mtu) = raw.tunnel_mtu.filter(|mtu| !(576..=65_535).contains(mtu)) {
            return Err(wrong("tunnel_mtu", &mtu, "give the MTU in bytes, such as 1500"));
        }
        let mss = raw.mss_clamp.then_some(Mss {
            tunnel_mtu: raw.tunnel_mtu,
            hops: raw.hops.unwrap_or(USUAL_HOPS),
            interfaces: reply_interfaces,
        });
        let folder = path.parent().unwrap_or(Path::new(""));
        let control = raw.control.check(folder, "/run/glb-redirect/control.sock");
        let control = control.map_err(|(key, value, fix)| wrong(key, &value, fix))?;
        let mut directors = BTreeSet::new();
        for text in &raw.directors {
            let net = network(text).map_err(|fix| wrong("directors", text, fix))?;
            directors.insert(net);
        }
        let table = raw.table.map(|table| FromTable {
            path: folder.join(table),
            backends: backends.clone(),
            hops: raw.hops,
        });
        Ok(Self {
            path: path.to_owned(),
            table,
            metrics: raw.metrics,
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

fn network(text: &str) -> Result<IpNet, &'static str> {
    let net = text
        .parse::<IpNet>()
        .or_else(|_| text.parse::<IpAddr>().map(IpNet::from))
        .map_err(|_| "give an IP address or a network in CIDR notation")?;
    if net.addr() != net.network() {
        return Err("host bits are set: give the network, or the address without a prefix length");
    }
    let address = net.addr();
    // Of an IPv4 packet, the program knows the address as such and not as it is mapped.
    if matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
        return Err("give the IPv4 address as such, without ::ffff:");
    }
    let one = net.prefix_len() == net.max_prefix_len();
    if address.is_multicast() || address.is_loopback() || (one && address.is_unspecified()) {
        return Err("no packet from elsewhere has such a source");
    }
    Ok(net)
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
            ("\"10.0.2.10/32\"", "\"10.0.2.10/8\"", ["directors", "10.0.2.10/8"]),
            ("\"10.0.2.10/32\"", "\"::ffff:10.0.2.10\"", ["directors", "without ::ffff:"]),
            ("\"10.0.2.10/32\"", "\"0.0.0.0\"", ["`directors`: 0.0.0.0", "such a source"]),
            ("\"10.0.2.10/32\"", "\"224.0.0.0/4\"", ["224.0.0.0/4", "such a source"]),
            ("\"10.0.2.10/32\", \"fd00::1\"", "", ["directors", "[]"]),
            ("\"203.0.113.10\"", "\"0.0.0.0\"", ["vips", "0.0.0.0"]),
            ("\"203.0.113.10\"", "\"2001:db8::10\"", ["vips", "once"]),
            ("\"203.0.113.10\"", "\"203.0.113\"", ["line 2", "IP address"]),
            ("vips", "seed = \"0f\"\nvips", ["seed", "line 2"]),
            ("vips", "metrics = \"9100\"\nvips", ["metrics", "line 2"]),
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

    #[test]
    fn fellow_backends_and_hops_come_from_the_table() {
        let folder = std::env::temp_dir().join(format!("glb-redirect-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let table = |backends: &str| {
            let key = "00".repeat(16);
            let text = format!(
                "[[tables]]\nname = \"t\"\nhash_key = \"{key}\"\nseed = \"{key}\"\nhops = 3\n\
                 binds = [{{ ip = \"203.0.113.10\", proto = \"tcp\", port = 80 }}]\n\
                 backends = [{backends}]\n"
            );
            std::fs::write(folder.join("tables.toml"), text).unwrap();
        };
        let backend = |ip: &str, state: &str| {
            format!("{{ ip = \"{ip}\", state = \"{state}\", healthy = true }},")
        };
        let text = format!("{GOOD}table = \"tables.toml\"\n");
        let config = Config::parse(&text, &folder.join("redirect.toml")).unwrap();
        let mine: BTreeSet<IpAddr> = ["10.0.2.21".parse().unwrap()].into();
        assert_eq!(config.backends, mine);
        table(&(backend("10.0.2.31", "active") + &backend("10.0.2.32", "inactive")));
        let with = config.with_table().unwrap();
        let all = ["10.0.2.21", "10.0.2.31", "10.0.2.32"].map(|ip| ip.parse::<IpAddr>().unwrap());
        assert_eq!(with.backends, all.into());
        assert_eq!(with.mss.as_ref().unwrap().hops, 3);
        // What a table no longer names is gone; what the configuration names is not.
        table(&backend("10.0.2.33", "active"));
        let all = ["10.0.2.21", "10.0.2.33"].map(|ip| ip.parse::<IpAddr>().unwrap());
        assert_eq!(with.with_table().unwrap().backends, all.into());
        // The configuration's own number of hops counts.
        let own = Config::parse(&(text + "hops = 2\n"), &folder.join("redirect.toml")).unwrap();
        assert_eq!(own.with_table().unwrap().mss.unwrap().hops, 2);
        for (backends, words) in [
            (backend("203.0.113.10", "active"), ["tables.toml", "203.0.113.10", "VIP"]),
            ("x".to_owned(), ["tables.toml:7", "TOML", "backends"]),
        ] {
            table(&backends);
            let error = with.with_table().unwrap_err().to_string();
            for word in words {
                assert!(error.contains(word), "{word:?} is missing in: {error}");
            }
            assert!(!error.contains("0000"), "a key is shown: {error}");
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
