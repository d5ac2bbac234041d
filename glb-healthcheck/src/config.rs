//! The health checker's configuration file: TOML, or GLB's `healthcheck.conf` (JSON).

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use glb_host::{
    config_file::{self, FileError},
    control::{self, RawControlConfig},
    duration,
};
use glb_table::Format;
use serde::Deserialize;
use serde_json::{Map, Value as Json};

use crate::{
    check::Settings, check_config, engine::EngineOptions, min_healthy::MinHealthy,
    probe::ConnectivityTarget,
};

/// The file's keys as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    input: PathBuf,
    output: PathBuf,
    reload_command: Option<String>,
    director: Option<PathBuf>,
    reload_timeout: Option<String>,
    #[serde(default)]
    defaults: Map<String, Json>,
    hold_down: Option<String>,
    hold_down_max: Option<String>,
    flap_reset: Option<String>,
    debounce: Option<String>,
    min_write_interval: Option<String>,
    connectivity_targets: Option<Vec<String>>,
    connectivity_interval: Option<String>,
    connectivity_timeout: Option<String>,
    isolation_percent: Option<u8>,
    min_healthy: Option<Json>,
    #[serde(default)]
    control: RawControlConfig,
    metrics: Option<SocketAddr>,
    exec_user: Option<String>,
}

/// GLB's `healthcheck.conf`.
#[derive(Deserialize)]
struct GlbConfig {
    forwarding_table: GlbFiles,
    reload_command: Option<String>,
}

#[derive(Deserialize)]
struct GlbFiles {
    src: PathBuf,
    dst: PathBuf,
}

/// A validated configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The configuration file.
    pub path: PathBuf,
    /// The table that operators edit.
    pub input: PathBuf,
    /// The table that this program writes and the director reads.
    pub output: PathBuf,
    /// How the director is asked to reload after a write; `None` if it only watches the file.
    pub reload_method: Option<ReloadMethod>,
    /// Time limit of a reload request.
    pub reload_timeout: Duration,
    /// Settings of checks that do not give their own.
    pub defaults: Settings,
    /// Hold-down, isolation and write timing.
    pub options: EngineOptions,
    /// The hosts that show whether this machine has connectivity.
    pub connectivity: ConnectivityConfig,
    /// The control socket.
    pub control: control::ControlConfig,
    /// The address of the HTTP server for metrics and status, if any.
    pub metrics: Option<SocketAddr>,
    /// The user that runs the commands of `exec` checks; `None` for the daemon's own user.
    pub exec_user: Option<ExecUser>,
}

/// The user that runs the commands of `exec` checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExecUser {
    /// The user id.
    pub uid: u32,
    /// The user's primary group.
    pub gid: u32,
}

/// How the director is asked to reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReloadMethod {
    /// A command, run by `/bin/sh -c`.
    Command(String),
    /// A reload request to the director's control socket.
    ControlSocket(PathBuf),
}

/// The hosts that show whether this machine has connectivity, and how often they are probed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectivityConfig {
    /// The configured hosts; `None` means the default gateways.
    pub targets: Option<Vec<ConnectivityTarget>>,
    /// Time between the starts of two probes.
    pub interval: Duration,
    /// Time limit of a probe.
    pub timeout: Duration,
}

/// Why a configuration is rejected.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is unreadable, is not TOML, or has a key of the wrong type.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is JSON, but not GLB's `healthcheck.conf`.
    #[error(
        "{}: {source}; GLB's file is {{\"forwarding_table\": {{\"src\": …, \"dst\": …}}, \"reload_command\": …}}",
        path.display()
    )]
    Glb {
        /// The file.
        path: PathBuf,
        /// The JSON error.
        source: serde_json::Error,
    },
    /// A value is invalid.
    #[error("{}: `{key} = {value}`: {fix}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The value as written.
        value: String,
        /// A description of valid values.
        fix: String,
    },
}

impl Config {
    /// Reads and validates a configuration file.
    ///
    /// # Errors
    /// The file cannot be read, or a value is invalid.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&config_file::text(path)?, path)
    }

    /// The first key whose value differs in `new` and is read only at the daemon's start.
    #[must_use]
    pub fn restart_key(&self, new: &Self) -> Option<&'static str> {
        let same = |same: bool, key| (!same).then_some(key);
        None.or(same(self.input == new.input, "input"))
            .or(same(self.output == new.output, "output"))
            .or(same(self.connectivity == new.connectivity, "connectivity_targets"))
            .or(same(self.control == new.control, "control"))
            .or(same(self.metrics == new.metrics, "metrics"))
            .or(same(self.exec_user == new.exec_user, "exec_user"))
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let raw = if text.trim_start().starts_with('{') {
            let glb: GlbConfig = serde_json::from_str(text)
                .map_err(|source| ConfigError::Glb { path: path.to_owned(), source })?;
            RawConfig {
                input: glb.forwarding_table.src,
                output: glb.forwarding_table.dst,
                reload_command: glb.reload_command,
                // GLB's checker serves its status there.
                metrics: Some(SocketAddr::from(([127, 0, 0, 1], 19520))),
                ..RawConfig::default()
            }
        } else {
            config_file::parse(text, path)?
        };
        Self::validate(raw, path)
    }

    fn validate(raw: RawConfig, path: &Path) -> Result<Self, ConfigError> {
        let invalid = |key: &str, value: String, fix: &str| ConfigError::Value {
            path: path.to_owned(),
            key: key.to_owned(),
            value,
            fix: fix.to_owned(),
        };
        let folder = path.parent().unwrap_or(Path::new(""));
        let (input, output) = (folder.join(&raw.input), folder.join(&raw.output));
        let shown = format!("{:?}", raw.output.display().to_string());
        if input == output || (output.exists() && same_file(&input, &output)) {
            let fix = "this is the input: the output must be a different file";
            return Err(invalid("output", shown, fix));
        }
        if Format::of_path(&input) != Format::of_path(&output) {
            let fix = "must have the input's form: both names end in .toml, or both in .json";
            return Err(invalid("output", shown, fix));
        }
        if let Some(command) = raw.reload_command.as_ref().filter(|text| text.trim().is_empty()) {
            let fix = "must be a command; remove the key to run none";
            return Err(invalid("reload_command", format!("{command:?}"), fix));
        }
        let reload_method = match (raw.reload_command, raw.director) {
            (Some(_), Some(socket)) => {
                let fix = "excludes `reload_command`: remove one of them";
                let socket = format!("{:?}", socket.display().to_string());
                return Err(invalid("director", socket, fix));
            }
            (Some(command), None) => Some(ReloadMethod::Command(command)),
            (None, Some(socket)) => Some(ReloadMethod::ControlSocket(folder.join(socket))),
            (None, None) => None,
        };
        let time = |key: &str, given: Option<&String>, least: Duration, default: Duration| {
            let Some(text) = given else { return Ok(default) };
            match duration::parse(text) {
                Ok(time) if time >= least => Ok(time),
                Ok(_) => {
                    let fix = format!("must be at least {} ms", least.as_millis());
                    Err(invalid(key, format!("{text:?}"), &fix))
                }
                Err(error) => Err(invalid(key, format!("{text:?}"), &error.to_string())),
            }
        };
        let ms = Duration::from_millis;
        let reload_timeout = raw.reload_timeout.as_ref();
        let reload_timeout = time("reload_timeout", reload_timeout, ms(1), ms(10_000))?;
        let mut options = EngineOptions::default();
        for (key, given, option) in [
            ("hold_down", &raw.hold_down, &mut options.hold_down),
            ("hold_down_max", &raw.hold_down_max, &mut options.hold_down_max),
            ("flap_reset", &raw.flap_reset, &mut options.flap_reset),
            ("debounce", &raw.debounce, &mut options.debounce),
            ("min_write_interval", &raw.min_write_interval, &mut options.min_write_interval),
        ] {
            *option = time(key, given.as_ref(), Duration::ZERO, *option)?;
        }
        if options.hold_down_max < options.hold_down {
            let value = format!("\"{}ms\"", options.hold_down_max.as_millis());
            return Err(invalid("hold_down_max", value, "must not be shorter than `hold_down`"));
        }
        if let Some(percent) = raw.isolation_percent {
            if !(1..=100).contains(&percent) {
                let fix = "must be a percentage from 1 to 100";
                return Err(invalid("isolation_percent", percent.to_string(), fix));
            }
            options.isolation_percent = percent;
        }
        if let Some(given) = &raw.min_healthy {
            let fix = "must be a number of backends, or a percentage such as \"30%\"";
            options.min_healthy = parse_min_healthy(given)
                .ok_or_else(|| invalid("min_healthy", given.to_string(), fix))?;
        }
        let targets = raw.connectivity_targets.as_deref().map(parse_connectivity_targets);
        let connectivity = ConnectivityConfig {
            targets: targets.transpose().map_err(|name| {
                let fix = "must list addresses (\"10.0.0.1\") or addresses with a port \
                           (\"10.0.0.1:22\"); remove the key to use the default gateways";
                invalid("connectivity_targets", format!("{name:?}"), fix)
            })?,
            interval: time(
                "connectivity_interval",
                raw.connectivity_interval.as_ref(),
                ms(10),
                ms(250),
            )?,
            timeout: time(
                "connectivity_timeout",
                raw.connectivity_timeout.as_ref(),
                ms(1),
                ms(400),
            )?,
        };
        let defaults = parse_defaults(&raw.defaults)
            .map_err(|(key, value, fix)| invalid(&format!("defaults.{key}"), value, &fix))?;
        let exec_user = raw.exec_user.as_deref().map(find_user).transpose().map_err(|fix| {
            let name = raw.exec_user.clone().unwrap_or_default();
            invalid("exec_user", format!("{name:?}"), &fix)
        })?;
        let control = raw.control.check(folder, "/run/glb-healthcheck/control.sock");
        let control = control.map_err(|(key, value, fix)| invalid(key, value, fix))?;
        Ok(Self {
            path: path.to_owned(),
            input,
            output,
            reload_method,
            reload_timeout,
            defaults,
            options,
            connectivity,
            control,
            metrics: raw.metrics,
            exec_user,
        })
    }
}

/// Reads the `[defaults]` table. An error names the key, its value and what a valid value is.
fn parse_defaults(keys: &Map<String, Json>) -> Result<Settings, (String, String, String)> {
    let value = |key: &str| keys.get(key).map(ToString::to_string).unwrap_or_default();
    let known = &check_config::SETTING_KEYS;
    if let Some(key) = keys.keys().find(|key| !known.contains(&key.as_str())) {
        let fix = format!("unknown key; known keys: {}", known.join(", "));
        return Err((key.clone(), value(key), fix));
    }
    let mut defaults = Settings::default();
    defaults.apply(keys).map_err(|(key, problem)| {
        let value = value(&key);
        (key, value, problem)
    })?;
    Ok(defaults)
}

/// Looks a user up that may run the commands of `exec` checks.
fn find_user(name: &str) -> Result<ExecUser, String> {
    let user = nix::unistd::User::from_name(name)
        .map_err(|errno| format!("cannot look this user up: {errno}"))?
        .ok_or("this machine has no such user: give an unprivileged one, such as \"nobody\"")?;
    let own = nix::unistd::geteuid();
    if !own.is_root() && user.uid != own {
        return Err(format!(
            "a daemon that runs as uid {own} cannot change the user: remove the key"
        ));
    }
    Ok(ExecUser { uid: user.uid.as_raw(), gid: user.gid.as_raw() })
}

fn parse_min_healthy(given: &Json) -> Option<MinHealthy> {
    match given {
        Json::Number(number) => usize::try_from(number.as_u64()?).ok().map(MinHealthy::Count),
        Json::String(text) => {
            let percent = text.strip_suffix('%')?.trim().parse().ok()?;
            (percent <= 100).then_some(MinHealthy::Percent(percent))
        }
        _ => None,
    }
}

/// Parses a list of connectivity targets; an error is the invalid entry.
fn parse_connectivity_targets(names: &[String]) -> Result<Vec<ConnectivityTarget>, &String> {
    let target = |name: &String| {
        let ping = name.parse().map(ConnectivityTarget::Ping);
        ping.or_else(|_| name.parse().map(ConnectivityTarget::Tcp)).ok()
    };
    names.iter().map(|name| target(name).ok_or(name)).collect()
}

/// Returns whether two paths lead to the same file, links included.
fn same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let id = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    id(a).is_some() && id(a) == id(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "input = \"s.toml\"\noutput = \"c.toml\"\n";

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("/etc/glb/healthcheck.toml"))
    }

    #[test]
    fn paths_are_relative_to_the_configuration_file_and_durations_have_units() {
        let more = "hold_down = \"1500ms\"\n[defaults]\ninterval = \"500ms\"\ntimeout = \"200ms\"\nfall = 2\n";
        let config = parse(&format!("{GOOD}{more}")).unwrap();
        assert_eq!(config.input, Path::new("/etc/glb/s.toml"));
        assert_eq!(config.output, Path::new("/etc/glb/c.toml"));
        assert_eq!(config.options.hold_down, Duration::from_millis(1500));
        assert_eq!(config.defaults.interval, Duration::from_millis(500));
        assert_eq!((config.defaults.rise, config.defaults.fall), (3, 2));
    }

    #[test]
    fn glbs_healthcheck_conf_is_read() {
        let text = r#"{"forwarding_table": {"src": "/etc/glb/forwarding_table.src.json",
            "dst": "/etc/glb/forwarding_table.checked.json"}, "reload_command": "true"}"#;
        let config = parse(text).unwrap();
        assert_eq!(config.input, Path::new("/etc/glb/forwarding_table.src.json"));
        assert_eq!(config.reload_method, Some(ReloadMethod::Command("true".into())));
        assert_eq!(config.metrics, Some("127.0.0.1:19520".parse().unwrap()));
        assert_eq!(config.defaults, Settings::default());
    }

    #[test]
    fn errors_name_the_file_the_key_and_the_value() {
        for (text, words) in [
            ("input = \"t\"\noutput = \"t\"", vec!["healthcheck.toml", "output", "\"t\""]),
            ("input = \"t.toml\"\noutput = \"t.json\"", vec!["output", "\"t.json\"", "form"]),
            ("input = \"t\"", vec!["output"]),
            ("input = \"t\"\noutput = \"c\"\nreload = \"x\"", vec!["reload", "line 3"]),
            ("input = \"t\"\noutput = \"c\"\nreload_command = \" \"", vec!["reload_command"]),
            (
                "input = \"t\"\noutput = \"c\"\n[defaults]\nrise = 0",
                vec!["defaults.rise = 0", "1 to 1000"],
            ),
            (
                "input = \"t\"\noutput = \"c\"\n[defaults]\nrize = 1",
                vec!["defaults.rize = 1", "known keys"],
            ),
            (
                "input = \"t\"\noutput = \"c\"\nconnectivity_targets = [\"x\"]",
                vec!["connectivity_targets", "\"x\""],
            ),
            (
                "input = \"t\"\noutput = \"c\"\ndirector = \"d\"\nreload_command = \"r\"",
                vec!["director = \"d\"", "remove one"],
            ),
            (
                "input = \"t\"\noutput = \"c\"\noutptu = \"c\"",
                vec!["line 3", "did you mean `output`"],
            ),
            ("input = \"t\"\noutput = \"c\"\nmin_healthy = \"3\"", vec!["min_healthy", "30%"]),
            ("input = \"t\"\noutput = \"c\"\nisolation_percent = 0", vec!["isolation_percent = 0"]),
            (
                "input = \"t\"\noutput = \"c\"\nreload_timeout = \"0s\"",
                vec!["reload_timeout = \"0s\"", "at least 1 ms"],
            ),
            ("{\"forwarding_table\": {}}", vec!["healthcheck.toml", "src"]),
        ] {
            let error = parse(text).unwrap_err().to_string();
            for word in words {
                assert!(error.contains(word), "{word:?} is missing in: {error}");
            }
        }
    }
}
