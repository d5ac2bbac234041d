//! The director's configuration file.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use glb_common::parse::MAX_TAGS;
use glb_host::{
    config_file::{self, FileError},
    control::{ControlConfig, RawControlConfig},
    doctor::has_address,
    duration,
    next_hop::{Gateway, Transmit},
    xdp_link::Mode,
};
use glb_table::plan;
use serde::Deserialize;

use crate::{
    announce::{
        self, Announcement, DrainLimits, WithdrawLimits,
        config::{RawAnnouncement, RawDrain, RawWithdraw},
    },
    compiled_tables::ForwardingOptions,
};

/// The default control socket; under systemd it is in the unit's runtime directory.
pub const DEFAULT_SOCKET: &str = "/run/glb-director/control.sock";

/// The configuration file before it is checked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    table: PathBuf,
    interfaces: Vec<String>,
    #[serde(default = "default_bpffs_dir")]
    bpffs_dir: PathBuf,
    outer_source_ipv4: Option<Ipv4Addr>,
    outer_source_ipv6: Option<Ipv6Addr>,
    gateway_mac: Option<String>,
    #[serde(default)]
    outer_tos: Tos,
    #[serde(default)]
    vlan: Vlan,
    #[serde(default)]
    may_fragment: MayFragment,
    #[serde(default = "answers_per_second")]
    answers_per_second: u32,
    #[serde(default = "yes")]
    forward_echo: bool,
    metrics: Option<SocketAddr>,
    statsd: Option<SocketAddr>,
    statsd_interval: Option<String>,
    #[serde(default)]
    control: RawControlConfig,
    state_dir: Option<PathBuf>,
    #[serde(default)]
    on_unsafe: OnUnsafe,
    #[serde(default)]
    flow_age: Option<String>,
    #[serde(default)]
    on_stop: OnStop,
    #[serde(default)]
    mode: AttachMode,
    #[serde(default)]
    announce: Vec<RawAnnouncement>,
    #[serde(default)]
    drain: RawDrain,
    #[serde(default)]
    withdraw: RawWithdraw,
    #[serde(default)]
    probe: ProbeConfig,
}

/// The `[probe]` table: the probes that the director sends to its backends.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ProbeConfig {
    /// Whether backends are probed.
    pub enabled: bool,
    /// The time from one round of probes to the next.
    #[serde(deserialize_with = "glb_host::duration::deserialize")]
    pub interval: Duration,
    /// The largest inner packet of a probe, in bytes; by default what fits the path.
    pub size: Option<u16>,
}

impl Default for ProbeConfig {
    fn default() -> Self {
        Self { enabled: false, interval: Duration::from_secs(5), size: None }
    }
}

/// The treatment of a change that can break flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnUnsafe {
    /// Make the change and warn.
    #[default]
    Warn,
    /// Refuse the change.
    Refuse,
}

/// The daemon's behaviour on SIGTERM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnStop {
    /// The program stays attached and goes on forwarding.
    #[default]
    Stay,
    /// Withdraw everything, then detach.
    Detach,
    /// Drain, then detach.
    Drain,
}

/// The XDP mode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachMode {
    /// XDP in the driver.
    #[default]
    Native,
    /// XDP in the kernel, after it has allocated an skb for each packet.
    Generic,
}

impl From<AttachMode> for Mode {
    fn from(mode: AttachMode) -> Self {
        match mode {
            AttachMode::Native => Self::Native,
            AttachMode::Generic => Self::Generic,
        }
    }
}

fn answers_per_second() -> u32 {
    ForwardingOptions::default().answers_per_second
}

/// The treatment of an IPv4 packet without DF that exceeds the tunnel's MTU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum MayFragment {
    /// Drop and count it.
    #[default]
    Drop,
    /// Encapsulate it without DF, so that routers may fragment it.
    Tunnel,
}

/// The VLAN tags of sent packets: `"keep"`, or identifiers.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "\"keep\", or a list of at most two VLAN identifiers (1 to 4094)")]
enum Vlan {
    Tags(Vec<u16>),
    Word(VlanWord),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum VlanWord {
    Keep,
}

impl Default for Vlan {
    fn default() -> Self {
        Self::Word(VlanWord::Keep)
    }
}

/// Parses a MAC address.
fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes = text
        .split(':')
        .map(|byte| (byte.len() == 2).then(|| u8::from_str_radix(byte, 16).ok()).flatten());
    bytes.collect::<Option<Vec<u8>>>()?.try_into().ok()
}

fn yes() -> bool {
    true
}

/// The outer TOS byte: `"copy"`, or a number.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "\"copy\" or a number from 0 to 255")]
enum Tos {
    Fixed(u8),
    Word(TosWord),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum TosWord {
    Copy,
}

impl Default for Tos {
    fn default() -> Self {
        Self::Word(TosWord::Copy)
    }
}

fn default_bpffs_dir() -> PathBuf {
    PathBuf::from("/sys/fs/bpf/glb-director")
}

/// Derives the state directory from the pin directory, so that two directors have two.
fn default_state_dir(pin: &Path) -> PathBuf {
    let folder = PathBuf::from("/var/lib/glb-director");
    if pin == default_bpffs_dir() {
        return folder;
    }
    let name = pin.to_string_lossy().trim_matches('/').replace('/', "-");
    folder.join(format!("at-{name}"))
}

/// A director's checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The path of the configuration file.
    pub path: PathBuf,
    /// The table file; a relative path starts at the configuration file's directory.
    pub table: PathBuf,
    /// The interfaces to attach to: at least one, each once.
    pub interfaces: Vec<String>,
    /// The directory on a BPF file system that holds the pins.
    pub bpffs_dir: PathBuf,
    /// The options of the packet path.
    pub options: ForwardingOptions,
    /// The next hop of all backends; without it, the kernel's routes and neighbours decide.
    pub gateway_mac: Option<[u8; 6]>,
    /// The address of the Prometheus exporter, if any.
    pub metrics: Option<SocketAddr>,
    /// The statsd address and the interval, if any.
    pub statsd: Option<(SocketAddr, Duration)>,
    /// The control socket.
    pub control: ControlConfig,
    /// The directory for state that must outlive the daemon and cannot be pinned.
    pub state_dir: PathBuf,
    /// The treatment of a change that can break flows.
    pub on_unsafe: OnUnsafe,
    /// The longest lifetime of a flow, in seconds.
    pub flow_age: u64,
    /// The daemon's behaviour on SIGTERM.
    pub on_stop: OnStop,
    /// The XDP mode.
    pub mode: Mode,
    /// The announcements to routers.
    pub announcements: Vec<Announcement>,
    /// When a drain takes traffic as stopped.
    pub drain: DrainLimits,
    /// How long a withdrawal may delay the change that ends a VIP's service.
    pub withdraw: WithdrawLimits,
    /// The probes to the backends.
    pub probe: ProbeConfig,
}

/// Why a configuration is invalid.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read or parsed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A value is invalid.
    #[error("{}: `{key} = {value}`: {fix}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// The value.
        value: String,
        /// The fix.
        fix: String,
    },
}

impl Config {
    /// Returns how the program sends frames to the backends.
    #[must_use]
    pub fn transmit(&self) -> Transmit {
        match self.mode {
            Mode::Native => Transmit::Xdp { tags: self.options.vlan.clone() },
            Mode::Generic => Transmit::AnyDevice,
        }
    }

    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// When the file cannot be read, or a value is invalid.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::check(config_file::read(path)?, path)
    }

    /// Returns the gateway that all tunnel packets go through, if one is configured. Packets to a backend
    /// that no route covers leave by the first interface, as with GLB.
    #[must_use]
    pub fn gateway(&self) -> Option<Gateway> {
        let mac = self.gateway_mac?;
        Some(Gateway { mac, interface: self.interfaces.first().cloned() })
    }

    /// Warns about values that do not fit this machine.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let v4 = self.options.outer_source.map(IpAddr::from);
        let v6 = self.options.outer_source_ipv6.map(IpAddr::from);
        let foreign = v4.into_iter().chain(v6).filter(|source| !has_address(*source));
        let warning = |source: IpAddr| {
            let family = if source.is_ipv4() { "ipv4" } else { "ipv6" };
            format!(
                "`outer_source_{family} = \"{source}\"` is not an address of this machine: backends \
                 may refuse its packets, and ICMP errors go elsewhere. Set one of its own addresses, or \
                 remove the key"
            )
        };
        foreign.map(warning).collect()
    }

    fn check(raw: Raw, path: &Path) -> Result<Self, ConfigError> {
        let error = |key, value: String, fix: &str| ConfigError::Value {
            path: path.to_owned(),
            key,
            value,
            fix: fix.to_owned(),
        };
        let wrong = |key, value: String, fix: &str| Err(error(key, value, fix));
        if raw.interfaces.is_empty() {
            return wrong("interfaces", "[]".into(), "name at least one interface");
        }
        let mut seen = HashSet::new();
        for interface in &raw.interfaces {
            // Interface names become file names of pins, so the kernel's rules for names apply.
            let is_name = !interface.is_empty()
                && interface.len() < 16
                && !matches!(interface.as_str(), "." | "..")
                && !interface.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
            if !is_name {
                return wrong(
                    "interfaces",
                    format!("{interface:?}"),
                    "this is not an interface name",
                );
            }
            if !seen.insert(interface) {
                return wrong("interfaces", format!("{interface:?}"), "name each interface once");
            }
        }
        if !raw.bpffs_dir.is_absolute() {
            let value = format!("{:?}", raw.bpffs_dir);
            return wrong(
                "bpffs_dir",
                value,
                "give an absolute path, such as /sys/fs/bpf/glb-director",
            );
        }
        if let Some(source) = raw.outer_source_ipv4
            && (source.is_unspecified() || source.is_multicast() || source.is_broadcast())
        {
            let value = source.to_string();
            return wrong("outer_source_ipv4", value, "give one of this director's own addresses");
        }
        if let Some(source) = raw.outer_source_ipv6
            && (source.is_unspecified() || source.is_multicast())
        {
            let value = source.to_string();
            return wrong("outer_source_ipv6", value, "give one of this director's own addresses");
        }
        let gateway_mac = match &raw.gateway_mac {
            None => None,
            Some(text) => match mac(text).filter(|mac| mac[0] & 1 == 0 && *mac != [0; 6]) {
                Some(mac) => Some(mac),
                None => {
                    let fix = "give a machine's MAC address, such as \"02:00:5e:10:00:01\"";
                    return wrong("gateway_mac", format!("{text:?}"), fix);
                }
            },
        };
        let vlan = match raw.vlan {
            Vlan::Word(VlanWord::Keep) => None,
            Vlan::Tags(tags) => {
                if tags.len() > MAX_TAGS || tags.iter().any(|tag| !(1..=4094).contains(tag)) {
                    let fix = "give at most two VLAN identifiers, from 1 to 4094";
                    return wrong("vlan", format!("{tags:?}"), fix);
                }
                Some(tags)
            }
        };
        let interval = raw.statsd_interval.unwrap_or_else(|| "10s".into());
        let Some(statsd_interval) =
            duration::parse(&interval).ok().filter(|interval| *interval >= Duration::from_secs(1))
        else {
            let fix = "give a duration of at least one second, such as \"10s\" (GLB's interval)";
            return wrong("statsd_interval", format!("{interval:?}"), fix);
        };
        let folder = path.parent().unwrap_or(Path::new(""));
        let control = match raw.control.check(folder, DEFAULT_SOCKET) {
            Ok(control) => control,
            Err((key, value, fix)) => return wrong(key, value, fix),
        };
        let flow_age = match &raw.flow_age {
            None => Some(plan::DEFAULT_FLOW_AGE),
            Some(text) => duration::parse(text).ok().map(|age| age.as_secs()),
        };
        let Some(flow_age) = flow_age.filter(|age| *age > 0) else {
            let value = format!("{:?}", raw.flow_age.unwrap_or_default());
            let fix = "give a duration of at least one second, such as \"36h\" or \"2d\"";
            return wrong("flow_age", value, fix);
        };
        let announcements = announce::config::check(raw.announce, folder)
            .map_err(|(key, value, fix)| error(key, value, &fix))?;
        let drain = raw.drain.check().map_err(|(key, value, fix)| error(key, value, &fix))?;
        if raw.probe.interval < Duration::from_secs(1) {
            let value = format!("{:?}", duration::format(raw.probe.interval));
            return wrong("probe.interval", value, "give at least 1 second, such as \"5s\"");
        }
        let withdraw = raw.withdraw.check().map_err(|(key, value, fix)| error(key, value, &fix))?;
        if raw.on_stop == OnStop::Drain && announcements.is_empty() {
            let fix = "nothing is announced (`announce`), so nothing can be drained; \"detach\" takes \
                       the program off at once";
            return wrong("on_stop", "\"drain\"".into(), fix);
        }
        let state_dir = match raw.state_dir {
            Some(state) => folder.join(state),
            None => default_state_dir(&raw.bpffs_dir),
        };
        Ok(Self {
            path: path.to_owned(),
            state_dir,
            on_unsafe: raw.on_unsafe,
            flow_age,
            on_stop: raw.on_stop,
            mode: raw.mode.into(),
            announcements,
            drain,
            withdraw,
            probe: raw.probe,
            table: folder.join(raw.table),
            interfaces: raw.interfaces,
            bpffs_dir: raw.bpffs_dir,
            options: ForwardingOptions {
                outer_source: raw.outer_source_ipv4,
                outer_source_ipv6: raw.outer_source_ipv6,
                outer_tos: match raw.outer_tos {
                    Tos::Fixed(tos) => Some(tos),
                    Tos::Word(TosWord::Copy) => None,
                },
                forward_echo: raw.forward_echo,
                answers_per_second: raw.answers_per_second,
                fragment_tunnel: raw.may_fragment == MayFragment::Tunnel,
                vlan,
            },
            gateway_mac,
            metrics: raw.metrics,
            statsd: raw.statsd.map(|address| (address, statsd_interval)),
            control,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "table = \"t.toml\"\ninterfaces = [\"eth0\"]\n";

    fn parse(text: &str) -> Result<Config, ConfigError> {
        let path = Path::new("/etc/glb/director.toml");
        Config::check(config_file::parse(text, path)?, path)
    }

    fn error(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn relative_paths_start_at_the_file() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.table, Path::new("/etc/glb/t.toml"));
        assert_eq!(config.state_dir, Path::new("/var/lib/glb-director"));
        let other =
            parse(&format!("{GOOD}bpffs_dir = \"/bpf/two\"\nflow_age = \"36h\"\n")).unwrap();
        assert_eq!(other.state_dir, Path::new("/var/lib/glb-director/at-bpf-two"));
        assert_eq!((config.flow_age, other.flow_age), (86_400, 36 * 3_600));
        assert_eq!(config.bpffs_dir, Path::new("/sys/fs/bpf/glb-director"));
        assert_eq!(config.control.place.path, Path::new("/run/glb-director/control.sock"));
        let config = parse(&format!("{GOOD}control.socket = \"c.sock\"\n")).unwrap();
        assert_eq!(config.control.place.path, Path::new("/etc/glb/c.sock"));
    }

    #[test]
    fn each_error_names_the_file_the_key_and_the_value() {
        for (text, words) in [
            ("interfaces = []\ntable = \"t\"", vec!["director.toml", "interfaces", "at least one"]),
            ("interfaces = [\"a\", \"a\"]\ntable = \"t\"", vec!["\"a\"", "once"]),
            ("interfaces = [\"../x\"]\ntable = \"t\"", vec!["\"../x\"", "not an interface name"]),
            (
                "interfaces = [\"a\"]\ntable = \"t\"\nbpffs_dir = \"x\"",
                vec!["bpffs_dir", "\"x\"", "absolute"],
            ),
            ("interfaces = [\"a\"]\ntable = \"t\"\ntabel = 1", vec!["tabel", "line 3"]),
            ("interfaces = [\"a\"]", vec!["table"]),
            ("interface = [\"a\"]\ntable = \"t\"", vec!["line 1", "did you mean `interfaces`?"]),
            ("interfaces = [\"a\"]\ntable = \"t\"\nstatsd_interval = \"0s\"", vec!["one second"]),
            ("interfaces = [\"a\"]\ntable = \"t\"\nouter_tos = 256", vec!["line 3", "0 to 255"]),
            ("interfaces = [\"a\"]\ntable = \"t\"\nouter_tos = \"cpy\"", vec!["line 3", "copy"]),
            (
                "interfaces = [\"a\"]\ntable = \"t\"\nouter_source_ipv4 = \"0.0.0.0\"",
                vec!["outer_source_ipv4", "0.0.0.0"],
            ),
            (
                "interfaces = [\"a\"]\ntable = \"t\"\nouter_source_ipv6 = \"::\"",
                vec!["outer_source_ipv6", "::"],
            ),
            (
                "interfaces = [\"a\"]\ntable = \"t\"\ngateway_mac = \"01:00:00:00:00:01\"",
                vec!["gateway_mac", "02:00:5e"],
            ),
            ("interfaces = [\"a\"]\ntable = \"t\"\nvlan = [0]", vec!["vlan", "[0]", "4094"]),
            ("interfaces = [\"a\"]\ntable = \"t\"\nvlan = [1, 2, 3]", vec!["vlan", "at most two"]),
            ("interfaces = [\"a\"]\ntable = \"t\"\nvlan = \"kep\"", vec!["line 3", "keep"]),
            (
                "interfaces = [\"a\"]\ntable = \"t\"\nmay_fragment = \"yes\"",
                vec!["line 3", "tunnel"],
            ),
            ("interfaces = [\"a\"]\ntable = \"t\"\nouter_source_ipv4 = \"x\"", vec!["line 3"]),
            (
                "interfaces = [\"a\"]\ntable = \"t\"\nflow_age = \"1x\"",
                vec!["flow_age", "1x", "36h"],
            ),
            ("interfaces = [\"a\"]\ntable = \"t\"\nflow_age = \"0\"", vec!["flow_age", "36h"]),
            ("interfaces = [\"a\"]\ntable = \"t\"\non_unsafe = \"die\"", vec!["line 3", "refuse"]),
            ("interfaces = [\"a\"]\ntable = \"t\"\non_stop = \"x\"", vec!["line 3", "detach"]),
            ("interfaces = [\"a\"]\ntable = \"t\"\nmode = \"skb\"", vec!["line 3", "generic"]),
            ("interfaces = [\"a\"]\ntable = \"t\"\ncontrol.mode = \"0x1\"", vec!["0x1", "0660"]),
            ("interfaces = [\"a\"]\ntable = \"t\"\ncontrol.sokcet = \"x\"", vec!["sokcet"]),
        ] {
            let error = error(text);
            for word in words {
                assert!(error.contains(word), "{word:?} is missing in: {error}");
            }
        }
    }
}
