//! The backend's configuration file: read, checked, and completed from the directors' table.

use std::{
    collections::{BTreeSet, HashSet},
    fmt::Display,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use glb_host::{
    config_file::{self, FileError},
    control::{ControlConfig, RawControlConfig},
    table_source::{self, TableSource},
};
use glb_table::TableSet;
use ipnet::IpNet;
use serde::Deserialize;

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    interfaces: Vec<String>,
    #[serde(default = "default_bpffs_dir")]
    bpffs_dir: PathBuf,
    vips: Vec<IpAddr>,
    directors: Vec<String>,
    #[serde(default)]
    backends: Vec<IpAddr>,
    table: Option<PathBuf>,
    addresses: Option<Vec<IpAddr>>,
    #[serde(default = "yes")]
    second_chance: bool,
    #[serde(default)]
    unknown_senders: UnknownSenders,
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

/// Hops of a table's rows, if neither the configuration nor a table tells.
const DEFAULT_HOPS: u8 = 2;

fn default_bpffs_dir() -> PathBuf {
    PathBuf::from("/sys/fs/bpf/glb-redirect")
}

fn yes() -> bool {
    true
}

/// What the program does with tunnelled packets from senders that are not configured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownSenders {
    /// Drop and count them.
    #[default]
    Drop,
    /// Pass them to the kernel and count them.
    Pass,
}

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The file itself.
    pub path: PathBuf,
    /// Interfaces to attach to: at least one, without duplicates.
    pub interfaces: Vec<String>,
    /// Folder on a BPF file system (bpffs) where the program and its maps are pinned.
    pub bpffs_dir: PathBuf,
    /// The addresses that this backend serves.
    pub vips: BTreeSet<IpAddr>,
    /// Directors: they may send tunnelled packets, as fellow backends may.
    pub directors: BTreeSet<IpNet>,
    /// All backends, those of the table included: they may send tunnelled packets, and packets may be
    /// forwarded to them. This host may be among them.
    pub backends: BTreeSet<IpAddr>,
    /// The directors' table, if backends are read from it.
    pub table: Option<TableConfig>,
    /// Address and port of the metrics server; without it there is none.
    pub metrics: Option<SocketAddr>,
    /// Addresses at which the tunnel may end; without it, every address of this host that is not a VIP.
    pub addresses: Option<BTreeSet<IpAddr>>,
    /// Whether packets of connections that are not on this host are forwarded to the next hop.
    pub second_chance: bool,
    /// What the program does with packets of unknown senders.
    pub unknown_senders: UnknownSenders,
    /// Whether the daemon adds the VIPs to the loopback interface.
    pub vips_on_lo: bool,
    /// How the MSS of SYN-ACKs is lowered; nothing if it is left alone.
    pub mss: Option<Mss>,
    /// The control socket.
    pub control: ControlConfig,
}

/// The directors' table, and the values of the configuration that it adds to or replaces.
#[derive(Clone, Debug)]
pub struct TableConfig {
    /// The table; a relative path is relative to the configuration's folder.
    pub source: Arc<dyn TableSource>,
    /// Backends that the configuration names itself.
    backends: BTreeSet<IpAddr>,
    /// Hops that the configuration names itself, which then win over the table's.
    hops: Option<u8>,
}

impl PartialEq for TableConfig {
    fn eq(&self, other: &Self) -> bool {
        let parts = |table: &Self| (table.source.location().to_owned(), table.hops);
        parts(self) == parts(other) && self.backends == other.backends
    }
}

impl Eq for TableConfig {}

/// What the largest MSS in a SYN-ACK depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mss {
    /// MTU of the path from the directors; without it, the smallest MTU of the interfaces.
    pub tunnel_mtu: Option<u32>,
    /// Hops of a row in the directors' tables, the first included.
    pub hops: u8,
    /// The interfaces that replies to clients leave by.
    pub interfaces: Vec<String>,
}

impl Mss {
    /// Bytes that the tunnel adds to each packet.
    #[must_use]
    pub fn overhead(&self, v6_outside: bool) -> u32 {
        // Outer IP, UDP, GUE, the header of the hop list, and the list itself without the first hop.
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
    /// A backend of the table contradicts the configuration.
    #[error("{}: invalid backend {address}: {fix}", path.display())]
    Backend {
        /// The table file.
        path: PathBuf,
        /// The backend.
        address: IpAddr,
        /// What to write instead.
        fix: &'static str,
    },
    /// A value is invalid.
    #[error("{}: invalid `{key}`: {value}: {fix}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What to write instead.
        fix: &'static str,
    },
}

impl Config {
    /// Reads and checks a configuration file and the table that it names.
    ///
    /// # Errors
    /// When one of them cannot be read or is invalid.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::check(config_file::read(path)?, path)?.with_table()
    }

    /// Checks the text of a configuration; `path` is for error messages. The table is not read.
    ///
    /// # Errors
    /// When it is invalid.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        Self::check(config_file::parse(text, path)?, path)
    }

    /// This configuration, completed from the table as it is now.
    ///
    /// # Errors
    /// When the table cannot be read or is invalid.
    pub fn with_table(&self) -> Result<Self, ConfigError> {
        let Some(table) = &self.table else { return Ok(self.clone()) };
        let document = table.source.read().map_err(ConfigError::Table)?;
        let tables = document.parse().map_err(ConfigError::Table)?;
        self.completed_from(&tables)
    }

    /// This configuration, completed from these tables.
    fn completed_from(&self, tables: &TableSet) -> Result<Self, ConfigError> {
        let mut config = self.clone();
        let Some(table) = &self.table else { return Ok(config) };
        config.backends.clone_from(&table.backends);
        // The state of a backend does not matter: an inactive one may still hold connections, and may
        // become active again before this host reads the new table.
        for backend in tables.tables.iter().flat_map(|table| &table.backends) {
            let address = backend.address;
            if self.vips.contains(&address) {
                let fix = "this is a VIP (`vips`); name the backend's own address";
                let path = table.source.location().to_owned();
                return Err(ConfigError::Backend { path, address, fix });
            }
            config.backends.insert(address);
        }
        if let (Some(mss), None) = (&mut config.mss, table.hops) {
            let hops = |table: &glb_table::Table| {
                // A row with an alternative hash lists the hops of both rows.
                if table.has_alternative() { 2 * table.hops } else { table.hops }
            };
            mss.hops = tables.tables.iter().map(hops).max().unwrap_or(DEFAULT_HOPS);
        }
        Ok(config)
    }

    fn check(raw: Raw, path: &Path) -> Result<Self, ConfigError> {
        let invalid = |key, value: &dyn Display, fix| ConfigError::Value {
            path: path.to_owned(),
            key,
            value: value.to_string(),
            fix,
        };
        check_interfaces(&raw.interfaces)
            .map_err(|(name, fix)| invalid("interfaces", &name, fix))?;
        if !raw.bpffs_dir.is_absolute() {
            let fix = "give an absolute path, such as /sys/fs/bpf/glb-redirect";
            return Err(invalid("bpffs_dir", &raw.bpffs_dir.display(), fix));
        }
        if raw.vips.is_empty() {
            return Err(invalid(
                "vips",
                &"[]",
                "name at least one address that this backend serves",
            ));
        }
        if raw.directors.is_empty() {
            let fix = "name the directors by address or CIDR; packets of other senders are dropped";
            return Err(invalid("directors", &"[]", fix));
        }
        let vips = addresses(raw.vips).map_err(|(ip, fix)| invalid("vips", &ip, fix))?;
        let backends =
            addresses(raw.backends).map_err(|(ip, fix)| invalid("backends", &ip, fix))?;
        let own = raw
            .addresses
            .map(addresses)
            .transpose()
            .map_err(|(ip, fix)| invalid("addresses", &ip, fix))?;
        for (key, set) in [("backends", Some(&backends)), ("addresses", own.as_ref())] {
            if let Some(both) = set.and_then(|set| set.intersection(&vips).next()) {
                let fix = "this is a VIP (`vips`); name the host's own address";
                return Err(invalid(key, both, fix));
            }
        }
        let reply_interfaces = raw.reply_interfaces.unwrap_or_else(|| raw.interfaces.clone());
        check_interfaces(&reply_interfaces)
            .map_err(|(name, fix)| invalid("reply_interfaces", &name, fix))?;
        if let Some(hops) = raw.hops.filter(|hops| !(1..=8).contains(hops)) {
            let fix = "give 1 to 4, or up to 8 with an alternative hash; 2 is usual";
            return Err(invalid("hops", &hops, fix));
        }
        if let Some(mtu) = raw.tunnel_mtu.filter(|mtu| !(576..=65_535).contains(mtu)) {
            return Err(invalid("tunnel_mtu", &mtu, "give the MTU in bytes, such as 1500"));
        }
        let mss = raw.mss_clamp.then_some(Mss {
            tunnel_mtu: raw.tunnel_mtu,
            hops: raw.hops.unwrap_or(DEFAULT_HOPS),
            interfaces: reply_interfaces,
        });
        let folder = path.parent().unwrap_or(Path::new(""));
        let control = raw.control.check(folder, "/run/glb-redirect/control.sock");
        let control = control.map_err(|(key, value, fix)| invalid(key, &value, fix))?;
        let mut directors = BTreeSet::new();
        for text in &raw.directors {
            let net = network(text).map_err(|fix| invalid("directors", text, fix))?;
            directors.insert(net);
        }
        let table = raw.table.map(|table| TableConfig {
            source: table_source::open(&folder.join(table)),
            backends: backends.clone(),
            hops: raw.hops,
        });
        Ok(Self {
            path: path.to_owned(),
            table,
            metrics: raw.metrics,
            interfaces: raw.interfaces,
            bpffs_dir: raw.bpffs_dir,
            vips,
            directors,
            backends,
            addresses: own,
            second_chance: raw.second_chance,
            unknown_senders: raw.unknown_senders,
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
        // Interface names become names of pins: the kernel's rules for them exclude `/` and dots.
        let is_name = !name.is_empty()
            && name.len() < 16
            && !matches!(name.as_str(), "." | "..")
            && !name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
        if !is_name {
            return Err((format!("{name:?}"), "not an interface name"));
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
            return Err((address, "not a unicast address that other hosts can reach"));
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
        return Err(
            "host bits are set: give the network address, or the address without a prefix length",
        );
    }
    let address = net.addr();
    // The program compares IPv4 addresses, never IPv4-mapped IPv6 addresses.
    if matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
        return Err("write it as IPv4 address, without ::ffff:");
    }
    let one = net.prefix_len() == net.max_prefix_len();
    if address.is_multicast() || address.is_loopback() || (one && address.is_unspecified()) {
        return Err("no packet from another host has such a source");
    }
    Ok(net)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "interfaces = [\"eth0\"]\nvips = [\"203.0.113.10\", \"2001:db8::10\"]\n\
                        directors = [\"10.0.2.10/32\", \"fd00::1\"]\nbackends = [\"10.0.2.21\"]\n";

    #[test]
    fn the_example_configuration_is_valid() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/redirect.toml");
        let config = Config::load(Path::new(file)).unwrap();
        assert_eq!(config.interfaces, ["eth0"]);
    }

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("/etc/glb/redirect.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn omitted_keys_have_defaults() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.bpffs_dir, Path::new("/sys/fs/bpf/glb-redirect"));
        assert!(config.second_chance && config.vips_on_lo);
        assert_eq!(config.unknown_senders, UnknownSenders::Drop);
        assert_eq!(config.addresses, None);
        let mss = config.mss.unwrap();
        assert_eq!((mss.tunnel_mtu, &mss.interfaces[..]), (None, &["eth0".to_owned()][..]));
        // The wire format: 40 bytes with one listed hop.
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
            ("\"eth0\"]", "\"eth0\"]\nbpffs_dir = \"x\"", ["bpffs_dir", "absolute"]),
            ("\"eth0\"]", "\"eth0\"]\nhops = 9", ["`hops`: 9", "1 to 4"]),
            ("\"eth0\"]", "\"eth0\"]\ntunnel_mtu = 100", ["tunnel_mtu", "100"]),
            ("\"eth0\"]", "\"eth0\"]\nreply_interfaces = []", ["reply_interfaces", "[]"]),
            ("\"eth0\"]", "\"eth0\"]\ncontrol.mode = \"9\"", ["`control.mode`: \"9\"", "octal"]),
            ("\"eth0\"]", "\"eth0\"]\nunknown_senders = \"x\"", ["line 2", "unknown_senders"]),
        ] {
            let error = parse(&GOOD.replacen(from, to, 1)).unwrap_err();
            for word in words.iter().chain(&["redirect.toml"]) {
                assert!(error.contains(word), "{word:?} is missing in: {error}");
            }
        }
    }

    #[test]
    fn backends_and_hops_are_read_from_the_table() {
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
        // A backend that leaves the table is forgotten; one that the configuration names is not.
        table(&backend("10.0.2.33", "active"));
        let all = ["10.0.2.21", "10.0.2.33"].map(|ip| ip.parse::<IpAddr>().unwrap());
        assert_eq!(with.with_table().unwrap().backends, all.into());
        // `hops` in the configuration wins over the table's.
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
