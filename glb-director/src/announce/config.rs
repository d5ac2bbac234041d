//! What the configuration says of announcing, and what would be right where it is wrong.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use glb_host::duration;
use ipnet::IpNet;
use serde::Deserialize;

use super::announcement::{Announcement, DrainLimits, Minimum, WayConfig, WithdrawLimits, overlap};

/// An `announce` table as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawAnnouncement {
    name: Option<String>,
    prefixes: Vec<String>,
    tables: Option<Vec<String>>,
    min_healthy: Option<RawMinimum>,
    way: RawWay,
    socket: Option<PathBuf>,
    protocols: Option<Vec<String>>,
    less_wanted: Option<RawLessWanted>,
    interface: Option<String>,
    metric: Option<u32>,
    less_wanted_metric: Option<u32>,
    command: Option<Vec<String>>,
    timeout: Option<String>,
    repeat: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawWay {
    Bird,
    Tun,
    Hook,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a number of backends, or a share such as \"30%\"")]
enum RawMinimum {
    Backends(u16),
    Share(String),
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "names of BIRD's protocols, or true or false for a hook")]
enum RawLessWanted {
    Flag(bool),
    Protocols(Vec<String>),
}

/// The `drain` table as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawDrain {
    quiet: Option<String>,
    packets_per_second: Option<u32>,
    timeout: Option<String>,
}

/// The `withdraw` table as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawWithdraw {
    timeout: Option<String>,
    grace: Option<String>,
}

/// A key, its value and what would be right.
type Wrong = (&'static str, String, String);

impl RawDrain {
    /// Checks it.
    ///
    /// # Errors
    /// The field, its value and what would be right.
    pub fn check(self) -> Result<DrainLimits, Wrong> {
        let quiet = time("drain.quiet", self.quiet, "3s")?;
        let timeout = time("drain.timeout", self.timeout, "5m")?;
        if timeout <= quiet {
            let fix = format!("give more than `drain.quiet`, which is {quiet:?}");
            return Err(("drain.timeout", format!("\"{timeout:?}\""), fix));
        }
        let packets_per_second = self.packets_per_second.unwrap_or(0);
        Ok(DrainLimits { quiet, packets_per_second, timeout })
    }
}

/// The daemon does nothing else while it waits for a withdrawal and its grace: no longer than this.
const LONGEST_WITHDRAWAL: Duration = Duration::from_secs(10);

impl RawWithdraw {
    /// Checks it.
    ///
    /// # Errors
    /// The field, its value and what would be right.
    pub fn check(self) -> Result<WithdrawLimits, Wrong> {
        let timeout = time("withdraw.timeout", self.timeout, "5s")?;
        let grace = time("withdraw.grace", self.grace, "1s")?;
        if timeout.is_zero() {
            let fix = "a withdrawal takes some milliseconds; give a time such as \"5s\"";
            return Err(("withdraw.timeout", "\"0s\"".into(), fix.into()));
        }
        if timeout + grace > LONGEST_WITHDRAWAL {
            let fix = format!(
                "with `withdraw.timeout`, which is {timeout:?}, it makes more than \
                 {LONGEST_WITHDRAWAL:?}, for which no other change would get through; give less"
            );
            return Err(("withdraw.grace", format!("\"{grace:?}\""), fix));
        }
        Ok(WithdrawLimits { timeout, grace })
    }
}

fn time(key: &'static str, text: Option<String>, default: &str) -> Result<Duration, Wrong> {
    let text = text.unwrap_or_else(|| default.to_owned());
    let fix = || "give a time such as \"500ms\", \"3s\" or \"5m\"".to_owned();
    duration::parse(&text).map_err(|_| (key, format!("{text:?}"), fix()))
}

/// Checks all announcements. Relative paths are meant from `folder`, that of the configuration.
///
/// # Errors
/// The field, its value and what would be right.
pub fn check(raw: Vec<RawAnnouncement>, folder: &Path) -> Result<Vec<Announcement>, Wrong> {
    let mut all: Vec<Announcement> = Vec::new();
    for raw in raw {
        let new = raw.check(folder)?;
        for other in &all {
            if other.name == new.name {
                let fix = "another announcement has this name; give each one its own".into();
                return Err(("announce.name", format!("{:?}", new.name), fix));
            }
            for prefix in &new.prefixes {
                if let Some(twin) = other.prefixes.iter().find(|other| overlap(other, prefix)) {
                    let fix = format!(
                        "{twin} of announcement {:?} overlaps it; a prefix is announced by one only",
                        other.name
                    );
                    return Err(("announce.prefixes", format!("\"{prefix}\""), fix));
                }
            }
            if let Some((key, what)) = shared(&other.way, &new.way) {
                let fix = format!(
                    "announcement {:?} has it too; what one withdraws would be withdrawn for both",
                    other.name
                );
                return Err((key, format!("{what:?}"), fix));
            }
        }
        all.push(new);
    }
    Ok(all)
}

/// What two ways would both switch.
fn shared(one: &WayConfig, other: &WayConfig) -> Option<(&'static str, String)> {
    match (one, other) {
        (
            WayConfig::Bird { socket, protocols, less_wanted },
            WayConfig::Bird { socket: socket2, protocols: protocols2, less_wanted: less_wanted2 },
        ) if socket == socket2 => {
            let first: BTreeSet<_> = protocols.iter().chain(less_wanted).collect();
            let twin = protocols2.iter().chain(less_wanted2).find(|name| first.contains(name))?;
            Some(("announce.protocols", twin.clone()))
        }
        (WayConfig::Tun { interface, .. }, WayConfig::Tun { interface: other, .. })
            if interface == other =>
        {
            Some(("announce.interface", other.clone()))
        }
        _ => None,
    }
}

impl RawAnnouncement {
    fn check(self, folder: &Path) -> Result<Announcement, Wrong> {
        let wrong = |key, value: String, fix: &str| Err((key, value, fix.to_owned()));
        if self.prefixes.is_empty() {
            return wrong("announce.prefixes", "[]".into(), "name at least one prefix");
        }
        let mut prefixes: Vec<IpNet> = Vec::new();
        for text in &self.prefixes {
            let prefix = prefix(text)
                .map_err(|fix| ("announce.prefixes", format!("{text:?}"), fix.to_owned()))?;
            if let Some(twin) = prefixes.iter().find(|other| overlap(other, &prefix)) {
                let fix = format!("it overlaps {twin} of the same announcement; name it once");
                return Err(("announce.prefixes", format!("{text:?}"), fix));
            }
            prefixes.push(prefix);
        }
        let name = match &self.name {
            None => prefixes[0].to_string(),
            Some(name) if name.is_empty() || name.chars().any(char::is_control) => {
                return wrong("announce.name", format!("{name:?}"), "give a name, or leave it out");
            }
            Some(name) => name.clone(),
        };
        let min_healthy = match &self.min_healthy {
            None => Minimum::Backends(0),
            Some(RawMinimum::Backends(count)) => Minimum::Backends(*count),
            Some(RawMinimum::Share(text)) => {
                let percent = text.strip_suffix('%').and_then(|number| number.parse().ok());
                match percent.filter(|percent| (1..=100).contains(percent)) {
                    Some(percent) => Minimum::Percent(percent),
                    None => {
                        let fix = "give a number of backends, or a share such as \"30%\"";
                        return wrong("announce.min_healthy", format!("{text:?}"), fix);
                    }
                }
            }
        };
        if self.tables.as_ref().is_some_and(Vec::is_empty) {
            let fix = "name at least one table, or leave it out";
            return wrong("announce.tables", "[]".into(), fix);
        }
        let tables = self.tables.clone();
        let way = self.way(folder)?;
        Ok(Announcement { name, prefixes, tables, min_healthy, way })
    }

    /// An error if a key of another way is there.
    fn only(&self, keys: &[&str]) -> Result<(), Wrong> {
        let given = [
            ("socket", "announce.socket", self.socket.is_some(), "bird"),
            ("protocols", "announce.protocols", self.protocols.is_some(), "bird"),
            ("interface", "announce.interface", self.interface.is_some(), "tun"),
            ("metric", "announce.metric", self.metric.is_some(), "tun"),
            (
                "less_wanted_metric",
                "announce.less_wanted_metric",
                self.less_wanted_metric.is_some(),
                "tun",
            ),
            ("command", "announce.command", self.command.is_some(), "hook"),
            ("timeout", "announce.timeout", self.timeout.is_some(), "hook"),
            ("repeat", "announce.repeat", self.repeat.is_some(), "hook"),
        ];
        let foreign = given.into_iter().find(|(key, _, is, _)| *is && !keys.contains(key));
        match foreign {
            Some((_, key, _, way)) => {
                let fix = format!("this key is for `way = \"{way}\"`; leave it out");
                Err((key, "…".to_owned(), fix))
            }
            None => Ok(()),
        }
    }

    fn way(self, folder: &Path) -> Result<WayConfig, Wrong> {
        match self.way {
            RawWay::Bird => self.bird(folder),
            RawWay::Tun => self.tun(),
            RawWay::Hook => self.hook(folder),
        }
    }

    fn bird(self, folder: &Path) -> Result<WayConfig, Wrong> {
        self.only(&["socket", "protocols"])?;
        let protocols = self.protocols.unwrap_or_default();
        if protocols.is_empty() {
            let fix = "name the protocols of BIRD that announce these prefixes, such as [\"vip4\"]";
            return Err(("announce.protocols", "[]".into(), fix.into()));
        }
        let less_wanted = match self.less_wanted {
            None => Vec::new(),
            Some(RawLessWanted::Protocols(names)) => names,
            Some(RawLessWanted::Flag(flag)) => {
                let fix = "with `way = \"bird\"` name protocols, such as [\"vip4_drain\"]";
                return Err(("announce.less_wanted", flag.to_string(), fix.into()));
            }
        };
        let mut seen = BTreeSet::new();
        for (key, name) in protocols
            .iter()
            .map(|name| ("announce.protocols", name))
            .chain(less_wanted.iter().map(|name| ("announce.less_wanted", name)))
        {
            // The rules of BIRD's grammar for a name that needs no quotes: nothing else is sent.
            let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
            if !plain || !begins || name.len() > 64 {
                let fix = "letters, digits and _ make a protocol's name, and it begins with none \
                           of the digits";
                return Err((key, format!("{name:?}"), fix.into()));
            }
            if !seen.insert(name.clone()) {
                return Err((key, format!("{name:?}"), "name each protocol once".into()));
            }
        }
        let socket = self.socket.unwrap_or_else(|| "/run/bird/bird.ctl".into());
        Ok(WayConfig::Bird { socket: folder.join(socket), protocols, less_wanted })
    }

    fn tun(self) -> Result<WayConfig, Wrong> {
        self.only(&["interface", "metric", "less_wanted_metric"])?;
        if self.less_wanted.is_some() {
            let fix = "with `way = \"tun\"` give a `less_wanted_metric`";
            return Err(("announce.less_wanted", "…".into(), fix.into()));
        }
        let interface = self.interface.unwrap_or_else(|| "glb-vip".into());
        let is_name = !interface.is_empty()
            && interface.len() < 16
            && !matches!(interface.as_str(), "." | "..")
            && !interface.contains(|c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace());
        if !is_name {
            let fix = "give a name for a new interface, of at most 15 letters";
            return Err(("announce.interface", format!("{interface:?}"), fix.into()));
        }
        // To IPv6, a metric of 0 means 1,024.
        let metric = self.metric.unwrap_or(100);
        for (key, value) in [
            ("announce.metric", Some(metric)),
            ("announce.less_wanted_metric", self.less_wanted_metric),
        ] {
            if value == Some(0) {
                return Err((key, "0".into(), "give a metric from 1 on".into()));
            }
        }
        if let Some(other) = self.less_wanted_metric.filter(|other| *other <= metric) {
            let fix = format!("give more than `metric`, which is {metric}");
            return Err(("announce.less_wanted_metric", other.to_string(), fix));
        }
        let less_wanted_metric = self.less_wanted_metric;
        Ok(WayConfig::Tun { interface, metric, less_wanted_metric })
    }

    fn hook(self, folder: &Path) -> Result<WayConfig, Wrong> {
        self.only(&["command", "timeout", "repeat"])?;
        let mut command = self.command.unwrap_or_default();
        let Some(program) = command.first_mut().filter(|program| !program.is_empty()) else {
            let fix = "give the program and its arguments, such as [\"/etc/glb/announce\"]";
            return Err(("announce.command", "[]".into(), fix.into()));
        };
        // A bare name is looked for in PATH, as a shell would.
        if program.contains('/') {
            *program = folder.join(&*program).to_string_lossy().into_owned();
        }
        let time = |key, text: String| {
            let fix = || "give a time such as \"10s\"".to_owned();
            let time = duration::parse_positive(&text).ok();
            time.ok_or_else(|| (key, format!("{text:?}"), fix()))
        };
        let timeout = time("announce.timeout", self.timeout.unwrap_or_else(|| "10s".into()))?;
        let repeat = self.repeat.map(|text| time("announce.repeat", text)).transpose()?;
        let less_wanted = match self.less_wanted {
            None => false,
            Some(RawLessWanted::Flag(flag)) => flag,
            Some(RawLessWanted::Protocols(names)) => {
                let fix = "with `way = \"hook\"` say true or false: whether the command knows it";
                return Err(("announce.less_wanted", format!("{names:?}"), fix.into()));
            }
        };
        Ok(WayConfig::Hook { command, timeout, repeat, less_wanted })
    }
}

fn prefix(text: &str) -> Result<IpNet, &'static str> {
    let parsed: Option<IpNet> =
        text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    let Some(prefix) = parsed else {
        return Err("give a prefix such as \"203.0.113.10/32\" or \"2001:db8::/64\"");
    };
    if prefix.trunc() != prefix {
        return Err("bits are set behind the prefix's length; clear them, or lengthen it");
    }
    if prefix.prefix_len() == 0 {
        return Err("this is everything; announce the VIPs");
    }
    Ok(prefix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Announcement>, String> {
        #[derive(Deserialize)]
        struct File {
            announce: Vec<RawAnnouncement>,
        }
        let file: File = glb_host::config_file::parse(text, Path::new("/etc/glb/d.toml"))
            .map_err(|error| error.to_string())?;
        check(file.announce, Path::new("/etc/glb"))
            .map_err(|(key, value, fix)| format!("{key} = {value}: {fix}"))
    }

    const BIRD: &str = "[[announce]]\nprefixes = [\"203.0.113.10\"]\nway = \"bird\"\n\
                        protocols = [\"vip4\"]\n";

    #[test]
    fn what_is_left_out_has_defaults() {
        let all = read(BIRD).unwrap();
        assert_eq!(
            (all[0].name.as_str(), all[0].min_healthy),
            ("203.0.113.10/32", Minimum::Backends(0))
        );
        let WayConfig::Bird { socket, less_wanted, .. } = &all[0].way else { panic!("{all:?}") };
        assert_eq!(socket, Path::new("/run/bird/bird.ctl"));
        assert!(less_wanted.is_empty() && !all[0].way.knows_less_wanted());
        let all = read(
            "[[announce]]\nprefixes = [\"2001:db8::/64\"]\nway = \"tun\"\nmin_healthy = \"30%\"\n\
             [[announce]]\nprefixes = [\"192.0.2.0/24\"]\nway = \"hook\"\ncommand = [\"./h\", \"x\"]\n\
             less_wanted = true\nmin_healthy = 2\n",
        )
        .unwrap();
        assert_eq!(all[0].min_healthy, Minimum::Percent(30));
        let tun =
            WayConfig::Tun { interface: "glb-vip".into(), metric: 100, less_wanted_metric: None };
        assert_eq!(all[0].way, tun);
        let WayConfig::Hook { command, timeout, repeat: None, less_wanted } = &all[1].way else {
            panic!("{all:?}")
        };
        assert_eq!(command, &["/etc/glb/./h", "x"]);
        assert_eq!((*timeout, *less_wanted), (Duration::from_secs(10), true));
    }

    #[test]
    fn each_error_names_the_key_the_value_and_the_fix() {
        let with = |lines: &str| format!("{BIRD}{lines}\n");
        let second = |lines: &str| format!("{BIRD}[[announce]]\n{lines}\n");
        for (text, words) in [
            (with("protocol = []"), vec!["did you mean `protocols`?", "line 5"]),
            (with("metric = 4"), vec!["announce.metric", "\"tun\""]),
            (with("command = []"), vec!["announce.command", "\"hook\""]),
            (with("less_wanted = true"), vec!["announce.less_wanted", "vip4_drain"]),
            (with("less_wanted = [\"vip4\"]"), vec!["\"vip4\"", "once"]),
            (with("less_wanted = [\"a b\"]"), vec!["\"a b\"", "letters"]),
            (with("min_healthy = \"0%\""), vec!["announce.min_healthy", "\"0%\"", "30%"]),
            (with("min_healthy = -1"), vec!["line 5", "30%"]),
            (with("tables = []"), vec!["announce.tables", "at least one"]),
            (
                second("prefixes = [\"203.0.113.0/24\"]\nway = \"tun\""),
                vec!["203.0.113.10/32", "overlaps"],
            ),
            (
                second("prefixes = [\"::2\"]\nway = \"bird\"\nprotocols = [\"vip4\"]"),
                vec!["\"vip4\"", "both"],
            ),
            (second("prefixes = []\nway = \"tun\""), vec!["announce.prefixes", "at least one"]),
            (second("prefixes = [\"10.0.0.1/8\"]\nway = \"tun\""), vec!["10.0.0.1/8", "bits"]),
            (second("prefixes = [\"0.0.0.0/0\"]\nway = \"tun\""), vec!["everything"]),
            (second("prefixes = [\"x\"]\nway = \"tun\""), vec!["\"x\"", "203.0.113.10/32"]),
            (second("prefixes = [\"::2\"]\nway = \"tunn\""), vec!["did you mean `tun`?"]),
            (
                second("prefixes = [\"::2\"]\nway = \"tun\"\nless_wanted_metric = 100"),
                vec!["less_wanted_metric", "more than"],
            ),
            (second("prefixes = [\"::2\"]\nway = \"hook\""), vec!["announce.command"]),
            (
                second("prefixes = [\"::2\"]\nway = \"hook\"\ncommand=[\"x\"]\ntimeout=\"0\""),
                vec!["announce.timeout", "10s"],
            ),
            (
                second("prefixes = [\"::2\"]\nway = \"hook\"\ncommand=[\"x\"]\nrepeat=\"0\""),
                vec!["announce.repeat", "10s"],
            ),
        ] {
            let error = read(&text).unwrap_err();
            for word in words {
                assert!(error.contains(word), "{word:?} is missing in: {error}\n{text}");
            }
        }
    }

    #[test]
    fn the_drain_must_be_able_to_end() {
        let raw = |quiet: &str, timeout: &str| RawDrain {
            quiet: Some(quiet.into()),
            timeout: Some(timeout.into()),
            packets_per_second: None,
        };
        assert_eq!(raw("1s", "2s").check().unwrap().quiet, Duration::from_secs(1));
        assert_eq!(raw("2s", "2s").check().unwrap_err().0, "drain.timeout");
        assert_eq!(raw("2x", "2s").check().unwrap_err().0, "drain.quiet");
    }

    #[test]
    fn a_withdrawal_holds_nothing_else_up_for_long() {
        let raw = |timeout: &str, grace: &str| RawWithdraw {
            timeout: Some(timeout.into()),
            grace: Some(grace.into()),
        };
        let limits = RawWithdraw::default().check().unwrap();
        assert_eq!(
            (limits.timeout, limits.grace),
            (Duration::from_secs(5), Duration::from_secs(1))
        );
        assert_eq!(raw("10s", "0").check().unwrap().grace, Duration::ZERO);
        for (timeout, grace, key, words) in [
            ("0s", "1s", "withdraw.timeout", "5s"),
            ("5s", "6s", "withdraw.grace", "10s"),
            ("5s", "x", "withdraw.grace", "500ms"),
            ("-1", "1s", "withdraw.timeout", "500ms"),
        ] {
            let (found, _, fix) = raw(timeout, grace).check().unwrap_err();
            assert!(found == key && fix.contains(words), "{timeout} {grace}: {found}: {fix}");
        }
    }
}
