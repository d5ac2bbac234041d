//! Parses and checks the `announce`, `drain` and `withdraw` tables of the configuration.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use glb_host::duration;
use ipnet::IpNet;
use serde::Deserialize;

use super::announcement::{
    Announcement, DrainLimits, HealthyThreshold, MethodConfig, WithdrawLimits, overlap,
};

/// An `announce` table before it is checked.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawAnnouncement {
    name: Option<String>,
    prefixes: Vec<String>,
    tables: Option<Vec<String>>,
    withdraw_below: Option<RawThreshold>,
    method: RawMethod,
    socket: Option<PathBuf>,
    protocols: Option<Vec<String>>,
    low_preference: Option<RawLowPreference>,
    sessions: Option<Vec<String>>,
    interface: Option<String>,
    metric: Option<u32>,
    low_preference_metric: Option<u32>,
    command: Option<Vec<String>>,
    timeout: Option<String>,
    repeat: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawMethod {
    Bird,
    Tun,
    Exec,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a number of backends, or a share such as \"30%\"")]
enum RawThreshold {
    Backends(u16),
    Share(String),
}

#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "names of BIRD's protocols, or with `method = \"exec\"` true or false"
)]
enum RawLowPreference {
    Flag(bool),
    Protocols(Vec<String>),
}

/// The `drain` table before it is checked.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawDrain {
    quiet: Option<String>,
    packets_per_second: Option<u32>,
    timeout: Option<String>,
}

/// The `withdraw` table before it is checked.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawWithdraw {
    timeout: Option<String>,
    grace: Option<String>,
}

/// An invalid value: the key, the value and the fix.
type Invalid = (&'static str, String, String);

impl RawDrain {
    /// Checks the table.
    ///
    /// # Errors
    /// The first invalid key, its value and the fix.
    pub fn check(self) -> Result<DrainLimits, Invalid> {
        let quiet = time("drain.quiet", self.quiet, "3s")?;
        let timeout = time("drain.timeout", self.timeout, "5m")?;
        if timeout <= quiet {
            let fix = format!("give more than `drain.quiet` ({quiet:?})");
            return Err(("drain.timeout", format!("\"{timeout:?}\""), fix));
        }
        let packets_per_second = self.packets_per_second.unwrap_or(0);
        Ok(DrainLimits { quiet, packets_per_second, timeout })
    }
}

/// The longest that a withdrawal and its grace may block the daemon's loop.
const LONGEST_WITHDRAWAL: Duration = Duration::from_secs(10);

impl RawWithdraw {
    /// Checks the table.
    ///
    /// # Errors
    /// The first invalid key, its value and the fix.
    pub fn check(self) -> Result<WithdrawLimits, Invalid> {
        let timeout = time("withdraw.timeout", self.timeout, "5s")?;
        let grace = time("withdraw.grace", self.grace, "1s")?;
        if timeout.is_zero() {
            let fix = "give a duration above zero, such as \"5s\"";
            return Err(("withdraw.timeout", "\"0s\"".into(), fix.into()));
        }
        if timeout + grace > LONGEST_WITHDRAWAL {
            let fix = format!(
                "`withdraw.timeout` ({timeout:?}) plus `withdraw.grace` block other changes; together they \
                 must be at most {LONGEST_WITHDRAWAL:?}"
            );
            return Err(("withdraw.grace", format!("\"{grace:?}\""), fix));
        }
        Ok(WithdrawLimits { timeout, grace })
    }
}

fn time(key: &'static str, text: Option<String>, default: &str) -> Result<Duration, Invalid> {
    let text = text.unwrap_or_else(|| default.to_owned());
    let fix = || "give a duration such as \"500ms\", \"3s\" or \"5m\"".to_owned();
    duration::parse(&text).map_err(|_| (key, format!("{text:?}"), fix()))
}

/// Checks all announcements. Relative paths start at `folder`, the configuration file's directory.
///
/// # Errors
/// The first invalid key, its value and the fix.
pub fn check(raw: Vec<RawAnnouncement>, folder: &Path) -> Result<Vec<Announcement>, Invalid> {
    let mut all: Vec<Announcement> = Vec::new();
    for raw in raw {
        let new = raw.check(folder)?;
        for other in &all {
            if other.name == new.name {
                let fix = "two announcements have this name; give each its own".into();
                return Err(("announce.name", format!("{:?}", new.name), fix));
            }
            for prefix in &new.prefixes {
                if let Some(twin) = other.prefixes.iter().find(|other| overlap(other, prefix)) {
                    let fix = format!(
                        "it overlaps {twin} of announcement {:?}; list each prefix once",
                        other.name
                    );
                    return Err(("announce.prefixes", format!("\"{prefix}\""), fix));
                }
            }
            if let Some((key, what)) = shared(&other.method, &new.method) {
                let fix = format!(
                    "announcement {:?} uses it too, so withdrawing one would withdraw both; use another",
                    other.name
                );
                return Err((key, format!("{what:?}"), fix));
            }
        }
        all.push(new);
    }
    Ok(all)
}

/// Returns the protocol or interface that two announcements would both control.
fn shared(one: &MethodConfig, other: &MethodConfig) -> Option<(&'static str, String)> {
    match (one, other) {
        (
            MethodConfig::Bird { socket, protocols, low_preference, .. },
            MethodConfig::Bird {
                socket: socket2,
                protocols: protocols2,
                low_preference: low_preference2,
                ..
            },
        ) if socket == socket2 => {
            let first: BTreeSet<_> = protocols.iter().chain(low_preference).collect();
            let twin =
                protocols2.iter().chain(low_preference2).find(|name| first.contains(name))?;
            Some(("announce.protocols", twin.clone()))
        }
        (MethodConfig::Tun { interface, .. }, MethodConfig::Tun { interface: other, .. })
            if interface == other =>
        {
            Some(("announce.interface", other.clone()))
        }
        _ => None,
    }
}

impl RawAnnouncement {
    fn check(self, folder: &Path) -> Result<Announcement, Invalid> {
        let wrong = |key, value: String, fix: &str| Err((key, value, fix.to_owned()));
        if self.prefixes.is_empty() {
            return wrong("announce.prefixes", "[]".into(), "name at least one prefix");
        }
        let mut prefixes: Vec<IpNet> = Vec::new();
        for text in &self.prefixes {
            let prefix = prefix(text)
                .map_err(|fix| ("announce.prefixes", format!("{text:?}"), fix.to_owned()))?;
            if let Some(twin) = prefixes.iter().find(|other| overlap(other, &prefix)) {
                let fix =
                    format!("it overlaps {twin} of the same announcement; list each prefix once");
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
        let withdraw_below = match &self.withdraw_below {
            None => HealthyThreshold::Backends(0),
            Some(RawThreshold::Backends(count)) => HealthyThreshold::Backends(*count),
            Some(RawThreshold::Share(text)) => {
                let percent = text.strip_suffix('%').and_then(|number| number.parse().ok());
                match percent.filter(|percent| (1..=100).contains(percent)) {
                    Some(percent) => HealthyThreshold::Percent(percent),
                    None => {
                        let fix = "give a number of backends, or a share such as \"30%\"";
                        return wrong("announce.withdraw_below", format!("{text:?}"), fix);
                    }
                }
            }
        };
        if self.tables.as_ref().is_some_and(Vec::is_empty) {
            let fix = "name at least one table, or leave it out";
            return wrong("announce.tables", "[]".into(), fix);
        }
        let tables = self.tables.clone();
        let method = self.method(folder)?;
        Ok(Announcement { name, prefixes, tables, withdraw_below, method })
    }

    /// Fails if a key of another method is present.
    fn only(&self, keys: &[&str]) -> Result<(), Invalid> {
        let given = [
            ("socket", "announce.socket", self.socket.is_some(), "bird"),
            ("protocols", "announce.protocols", self.protocols.is_some(), "bird"),
            ("sessions", "announce.sessions", self.sessions.is_some(), "bird"),
            ("interface", "announce.interface", self.interface.is_some(), "tun"),
            ("metric", "announce.metric", self.metric.is_some(), "tun"),
            (
                "low_preference_metric",
                "announce.low_preference_metric",
                self.low_preference_metric.is_some(),
                "tun",
            ),
            ("command", "announce.command", self.command.is_some(), "exec"),
            ("timeout", "announce.timeout", self.timeout.is_some(), "exec"),
            ("repeat", "announce.repeat", self.repeat.is_some(), "exec"),
        ];
        let foreign = given.into_iter().find(|(key, _, is, _)| *is && !keys.contains(key));
        match foreign {
            Some((_, key, _, method)) => {
                let fix = format!("only `method = \"{method}\"` has this key; remove it");
                Err((key, "…".to_owned(), fix))
            }
            None => Ok(()),
        }
    }

    fn method(self, folder: &Path) -> Result<MethodConfig, Invalid> {
        match self.method {
            RawMethod::Bird => self.bird(folder),
            RawMethod::Tun => self.tun(),
            RawMethod::Exec => self.exec(folder),
        }
    }

    fn bird(self, folder: &Path) -> Result<MethodConfig, Invalid> {
        self.only(&["socket", "protocols", "sessions"])?;
        let protocols = self.protocols.unwrap_or_default();
        if protocols.is_empty() {
            let fix = "name the BIRD protocols that announce these prefixes, such as [\"vip4\"]";
            return Err(("announce.protocols", "[]".into(), fix.into()));
        }
        let low_preference = match self.low_preference {
            None => Vec::new(),
            Some(RawLowPreference::Protocols(names)) => names,
            Some(RawLowPreference::Flag(flag)) => {
                let fix = "with `method = \"bird\"` name protocols, such as [\"vip4_drain\"]";
                return Err(("announce.low_preference", flag.to_string(), fix.into()));
            }
        };
        let sessions = self.sessions.unwrap_or_default();
        let mut seen = BTreeSet::new();
        for (key, name) in protocols
            .iter()
            .map(|name| ("announce.protocols", name))
            .chain(low_preference.iter().map(|name| ("announce.low_preference", name)))
            .chain(sessions.iter().map(|name| ("announce.sessions", name)))
        {
            // BIRD's grammar for a name without quotes. Nothing else is sent to BIRD.
            let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
            let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
            if !plain || !begins || name.len() > 64 {
                let fix = "a protocol's name has letters, digits and _, and does not begin with a \
                           digit";
                return Err((key, format!("{name:?}"), fix.into()));
            }
            if !seen.insert(name.clone()) {
                return Err((key, format!("{name:?}"), "name each protocol once".into()));
            }
        }
        let socket = self.socket.unwrap_or_else(|| "/run/bird/bird.ctl".into());
        Ok(MethodConfig::Bird { socket: folder.join(socket), protocols, low_preference, sessions })
    }

    fn tun(self) -> Result<MethodConfig, Invalid> {
        self.only(&["interface", "metric", "low_preference_metric"])?;
        if self.low_preference.is_some() {
            let fix = "with `method = \"tun\"` give a `low_preference_metric`";
            return Err(("announce.low_preference", "…".into(), fix.into()));
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
        // For IPv6 the kernel takes a metric of 0 as 1024.
        let metric = self.metric.unwrap_or(100);
        for (key, value) in [
            ("announce.metric", Some(metric)),
            ("announce.low_preference_metric", self.low_preference_metric),
        ] {
            if value == Some(0) {
                return Err((key, "0".into(), "give a metric of at least 1".into()));
            }
        }
        if let Some(other) = self.low_preference_metric.filter(|other| *other <= metric) {
            let fix = format!("give more than `metric` ({metric})");
            return Err(("announce.low_preference_metric", other.to_string(), fix));
        }
        let low_preference_metric = self.low_preference_metric;
        Ok(MethodConfig::Tun { interface, metric, low_preference_metric })
    }

    fn exec(self, folder: &Path) -> Result<MethodConfig, Invalid> {
        self.only(&["command", "timeout", "repeat"])?;
        let mut command = self.command.unwrap_or_default();
        let Some(program) = command.first_mut().filter(|program| !program.is_empty()) else {
            let fix = "give the program and its arguments, such as [\"/etc/glb/announce\"]";
            return Err(("announce.command", "[]".into(), fix.into()));
        };
        // A name without a slash is looked up in PATH.
        if program.contains('/') {
            *program = folder.join(&*program).to_string_lossy().into_owned();
        }
        let time = |key, text: String| {
            let fix = || "give a duration above zero, such as \"10s\"".to_owned();
            let time = duration::parse_positive(&text).ok();
            time.ok_or_else(|| (key, format!("{text:?}"), fix()))
        };
        let timeout = time("announce.timeout", self.timeout.unwrap_or_else(|| "10s".into()))?;
        let repeat = self.repeat.map(|text| time("announce.repeat", text)).transpose()?;
        let low_preference = match self.low_preference {
            None => false,
            Some(RawLowPreference::Flag(flag)) => flag,
            Some(RawLowPreference::Protocols(names)) => {
                let fix = "with `method = \"exec\"` give true or false";
                return Err(("announce.low_preference", format!("{names:?}"), fix.into()));
            }
        };
        Ok(MethodConfig::Exec { command, timeout, repeat, low_preference })
    }
}

fn prefix(text: &str) -> Result<IpNet, &'static str> {
    let parsed: Option<IpNet> =
        text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    let Some(prefix) = parsed else {
        return Err("give a prefix such as \"203.0.113.10/32\" or \"2001:db8::/64\"");
    };
    if prefix.trunc() != prefix {
        return Err("host bits are set; clear them, or use a longer prefix");
    }
    if prefix.prefix_len() == 0 {
        return Err("this prefix covers every address; announce the VIPs");
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

    const BIRD: &str = "[[announce]]\nprefixes = [\"203.0.113.10\"]\nmethod = \"bird\"\n\
                        protocols = [\"vip4\"]\n";

    #[test]
    fn missing_keys_have_defaults() {
        let all = read(BIRD).unwrap();
        assert_eq!(
            (all[0].name.as_str(), all[0].withdraw_below),
            ("203.0.113.10/32", HealthyThreshold::Backends(0))
        );
        let MethodConfig::Bird { socket, low_preference, .. } = &all[0].method else {
            panic!("{all:?}")
        };
        assert_eq!(socket, Path::new("/run/bird/bird.ctl"));
        assert!(low_preference.is_empty() && !all[0].method.supports_low_preference());
        let all = read(
            "[[announce]]\nprefixes = [\"2001:db8::/64\"]\nmethod = \"tun\"\nwithdraw_below = \"30%\"\n\
             [[announce]]\nprefixes = [\"192.0.2.0/24\"]\nmethod = \"exec\"\ncommand = [\"./h\", \"x\"]\n\
             low_preference = true\nwithdraw_below = 2\n",
        )
        .unwrap();
        assert_eq!(all[0].withdraw_below, HealthyThreshold::Percent(30));
        let tun = MethodConfig::Tun {
            interface: "glb-vip".into(),
            metric: 100,
            low_preference_metric: None,
        };
        assert_eq!(all[0].method, tun);
        let MethodConfig::Exec { command, timeout, repeat: None, low_preference } = &all[1].method
        else {
            panic!("{all:?}")
        };
        assert_eq!(command, &["/etc/glb/./h", "x"]);
        assert_eq!((*timeout, *low_preference), (Duration::from_secs(10), true));
    }

    #[test]
    fn each_error_names_the_key_the_value_and_the_fix() {
        let with = |lines: &str| format!("{BIRD}{lines}\n");
        let second = |lines: &str| format!("{BIRD}[[announce]]\n{lines}\n");
        for (text, words) in [
            (with("protocol = []"), vec!["did you mean `protocols`?", "line 5"]),
            (with("metric = 4"), vec!["announce.metric", "\"tun\""]),
            (with("command = []"), vec!["announce.command", "\"exec\""]),
            (with("low_preference = true"), vec!["announce.low_preference", "vip4_drain"]),
            (with("low_preference = [\"vip4\"]"), vec!["\"vip4\"", "once"]),
            (with("low_preference = [\"a b\"]"), vec!["\"a b\"", "letters"]),
            (with("withdraw_below = \"0%\""), vec!["announce.withdraw_below", "\"0%\"", "30%"]),
            (with("withdraw_below = -1"), vec!["line 5", "30%"]),
            (with("tables = []"), vec!["announce.tables", "at least one"]),
            (
                second("prefixes = [\"203.0.113.0/24\"]\nmethod = \"tun\""),
                vec!["203.0.113.10/32", "overlaps"],
            ),
            (
                second("prefixes = [\"::2\"]\nmethod = \"bird\"\nprotocols = [\"vip4\"]"),
                vec!["\"vip4\"", "both"],
            ),
            (second("prefixes = []\nmethod = \"tun\""), vec!["announce.prefixes", "at least one"]),
            (second("prefixes = [\"10.0.0.1/8\"]\nmethod = \"tun\""), vec!["10.0.0.1/8", "bits"]),
            (second("prefixes = [\"0.0.0.0/0\"]\nmethod = \"tun\""), vec!["every address"]),
            (second("prefixes = [\"x\"]\nmethod = \"tun\""), vec!["\"x\"", "203.0.113.10/32"]),
            (second("prefixes = [\"::2\"]\nmethod = \"tunn\""), vec!["did you mean `tun`?"]),
            (
                second("prefixes = [\"::2\"]\nmethod = \"tun\"\nlow_preference_metric = 100"),
                vec!["low_preference_metric", "more than"],
            ),
            (second("prefixes = [\"::2\"]\nmethod = \"exec\""), vec!["announce.command"]),
            (
                second("prefixes = [\"::2\"]\nmethod = \"exec\"\ncommand=[\"x\"]\ntimeout=\"0\""),
                vec!["announce.timeout", "10s"],
            ),
            (
                second("prefixes = [\"::2\"]\nmethod = \"exec\"\ncommand=[\"x\"]\nrepeat=\"0\""),
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
    fn drain_timeout_must_exceed_quiet() {
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
    fn withdrawal_and_grace_are_bounded() {
        let raw = |timeout: &str, grace: &str| RawWithdraw {
            timeout: Some(timeout.into()),
            grace: Some(grace.into()),
        };
        let limits = RawWithdraw::default().check().unwrap();
        assert_eq!(
            (limits.timeout, limits.grace),
            (Duration::from_secs(5), Duration::from_secs(1))
        );
        assert_eq!(raw("10s", "0s").check().unwrap().grace, Duration::ZERO);
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
