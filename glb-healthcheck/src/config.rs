//! The health checker's configuration file.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use glb_host::{
    config_file::{self, FileError},
    control::{self, RawControlConfig},
};
use glb_table::Format;
use serde::Deserialize;
use serde_json::{Map, Value as Json};

use crate::{check::Pace, engine::Options, min_healthy::Floor, probe::Control};

/// What is written in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    source: PathBuf,
    checked: PathBuf,
    reload_command: Option<String>,
    director: Option<PathBuf>,
    #[serde(default = "ten_seconds")]
    reload_timeout_ms: u64,
    #[serde(default)]
    defaults: Map<String, Json>,
    hold_down_ms: Option<u64>,
    hold_down_max_ms: Option<u64>,
    forgive_ms: Option<u64>,
    settle_ms: Option<u64>,
    write_gap_ms: Option<u64>,
    control_targets: Option<Vec<String>>,
    control_target_interval_ms: Option<u64>,
    control_target_timeout_ms: Option<u64>,
    mass_percent: Option<u8>,
    min_healthy: Option<Json>,
    #[serde(default)]
    control: RawControlConfig,
    metrics: Option<SocketAddr>,
}

impl Raw {
    /// These files, and nothing else said.
    fn of(source: PathBuf, checked: PathBuf) -> Self {
        Self {
            source,
            checked,
            reload_command: None,
            director: None,
            reload_timeout_ms: ten_seconds(),
            defaults: Map::new(),
            hold_down_ms: None,
            hold_down_max_ms: None,
            forgive_ms: None,
            settle_ms: None,
            write_gap_ms: None,
            control_targets: None,
            control_target_interval_ms: None,
            control_target_timeout_ms: None,
            mass_percent: None,
            min_healthy: None,
            control: RawControlConfig::default(),
            metrics: None,
        }
    }
}

fn ten_seconds() -> u64 {
    10_000
}

/// GLB's `healthcheck.conf`.
#[derive(Deserialize)]
struct Glb {
    forwarding_table: GlbFiles,
    reload_command: Option<String>,
}

#[derive(Deserialize)]
struct GlbFiles {
    src: PathBuf,
    dst: PathBuf,
}

/// What is meant: every value has been checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file itself.
    pub path: PathBuf,
    /// The table as the operator writes it.
    pub source: PathBuf,
    /// The table with what is found, for the director.
    pub checked: PathBuf,
    /// How the director is told of a write; by nothing if it watches the file itself.
    pub tell: Option<Tell>,
    /// How long that may take.
    pub reload_timeout: Duration,
    /// The pace of checks that say nothing else.
    pub defaults: Pace,
    /// Hold-down, cut-off and writing.
    pub options: Options,
    /// Who tells whether this checker is connected.
    pub control_targets: ControlTargets,
    /// The socket where `status` asks.
    pub control: control::ControlConfig,
    /// Where metrics and status are told over HTTP, if anywhere.
    pub metrics: Option<SocketAddr>,
}

/// How the director is told that there is a new table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tell {
    /// A command, run by `/bin/sh -c`.
    Command(String),
    /// The director is asked at its control socket to reload.
    Director(PathBuf),
}

/// Who tells whether this checker is connected, and how often it is asked.
#[derive(Clone, Debug)]
pub struct ControlTargets {
    /// Named ones; None for the default gateways.
    pub targets: Option<Vec<Control>>,
    /// From one probe to the next.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read, is not TOML, or a field is wrong.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is JSON but not GLB's.
    #[error(
        "{}: {source}; GLB's file is {{\"forwarding_table\": {{\"src\": …, \"dst\": …}}, \"reload_command\": …}}",
        path.display()
    )]
    Glb {
        /// The file.
        path: PathBuf,
        /// Where and what.
        source: serde_json::Error,
    },
    /// A value makes no sense.
    #[error("{}: `{key} = {value}`: {fix}", path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The field.
        key: String,
        /// What is written.
        value: String,
        /// What would be right.
        fix: String,
    },
}

impl Config {
    /// Reads and checks a configuration file: TOML, or GLB's `healthcheck.conf`.
    ///
    /// # Errors
    /// When it cannot be read or says something wrong.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&config_file::text(path)?, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let raw = if text.trim_start().starts_with('{') {
            let glb: Glb = serde_json::from_str(text)
                .map_err(|source| ConfigError::Glb { path: path.to_owned(), source })?;
            Raw {
                reload_command: glb.reload_command,
                // Where GLB's checker tells its results.
                metrics: Some(SocketAddr::from(([127, 0, 0, 1], 19520))),
                ..Raw::of(glb.forwarding_table.src, glb.forwarding_table.dst)
            }
        } else {
            config_file::parse(text, path)?
        };
        Self::check(raw, path)
    }

    fn check(raw: Raw, path: &Path) -> Result<Self, ConfigError> {
        let wrong = |key: &str, value: String, fix: &str| ConfigError::Value {
            path: path.to_owned(),
            key: key.to_owned(),
            value,
            fix: fix.to_owned(),
        };
        let folder = path.parent().unwrap_or(Path::new(""));
        let (source, checked) = (folder.join(&raw.source), folder.join(&raw.checked));
        let shown = format!("{:?}", raw.checked.display().to_string());
        if source == checked || (checked.exists() && same_file(&source, &checked)) {
            let fix = "this is the source: give the checked table a file of its own";
            return Err(wrong("checked", shown, fix));
        }
        if Format::of_path(&source) != Format::of_path(&checked) {
            let fix =
                "the checked table has the source's form: end both in .toml, or both in .json";
            return Err(wrong("checked", shown, fix));
        }
        if let Some(command) = raw.reload_command.as_ref().filter(|text| text.trim().is_empty()) {
            let fix = "give a command, or leave the key out";
            return Err(wrong("reload_command", format!("{command:?}"), fix));
        }
        let tell = match (raw.reload_command, raw.director) {
            (Some(_), Some(socket)) => {
                let fix = "there is a `reload_command` too: keep one of them";
                return Err(wrong("director", format!("{:?}", socket.display().to_string()), fix));
            }
            (Some(command), None) => Some(Tell::Command(command)),
            (None, Some(socket)) => Some(Tell::Director(folder.join(socket))),
            (None, None) => None,
        };
        if raw.reload_timeout_ms == 0 {
            let fix = "no word to the director is that quick: give 1 or more, or leave the key out \
                       for 10000";
            return Err(wrong("reload_timeout_ms", "0".into(), fix));
        }
        let mut defaults = Pace::default();
        defaults.refine(&raw.defaults).map_err(|(key, problem)| {
            let value = raw.defaults.get(&key).map(ToString::to_string).unwrap_or_default();
            wrong(&format!("defaults.{key}"), value, &problem)
        })?;
        if let Some(key) = raw.defaults.keys().find(|key| !crate::check_config::is_pace(key)) {
            let value = raw.defaults.get(key).map(ToString::to_string).unwrap_or_default();
            let fix = format!("unknown; known are {}", crate::check_config::pace_keys().join(", "));
            return Err(wrong(&format!("defaults.{key}"), value, &fix));
        }
        let mut options = Options::default();
        let times = [
            (raw.hold_down_ms, &mut options.hold),
            (raw.hold_down_max_ms, &mut options.hold_max),
            (raw.forgive_ms, &mut options.forgive),
            (raw.settle_ms, &mut options.settle),
            (raw.write_gap_ms, &mut options.gap),
        ];
        for (given, option) in times {
            if let Some(milliseconds) = given {
                *option = Duration::from_millis(milliseconds);
            }
        }
        if let Some(percent) = raw.mass_percent {
            if !(1..=100).contains(&percent) {
                return Err(wrong("mass_percent", percent.to_string(), "give 1 to 100"));
            }
            options.mass_percent = percent;
        }
        if let Some(given) = &raw.min_healthy {
            let help = "give a number of backends, or a share such as \"30%\"";
            options.floor =
                floor(given).ok_or_else(|| wrong("min_healthy", given.to_string(), help))?;
        }
        let control_targets = ControlTargets {
            targets: match &raw.control_targets {
                None => None,
                Some(names) => Some(controls(names).map_err(|name| {
                    let help = "give addresses (\"10.0.0.1\"), addresses with a port \
                                (\"10.0.0.1:22\"), or leave the key out for the gateway";
                    wrong("control_targets", format!("{name:?}"), help)
                })?),
            },
            interval: Duration::from_millis(raw.control_target_interval_ms.unwrap_or(250).max(10)),
            timeout: Duration::from_millis(raw.control_target_timeout_ms.unwrap_or(400).max(1)),
        };
        let control = raw.control.check(folder, "/run/glb-healthcheck/control.sock");
        let control = control.map_err(|(key, value, fix)| wrong(key, value, fix))?;
        if options.hold_max < options.hold {
            let value = options.hold_max.as_millis().to_string();
            return Err(wrong("hold_down_max_ms", value, "must not be below hold_down_ms"));
        }
        Ok(Self {
            path: path.to_owned(),
            source,
            checked,
            tell,
            reload_timeout: Duration::from_millis(raw.reload_timeout_ms),
            defaults,
            options,
            control_targets,
            control,
            metrics: raw.metrics,
        })
    }
}

fn floor(given: &Json) -> Option<Floor> {
    match given {
        Json::Number(number) => usize::try_from(number.as_u64()?).ok().map(Floor::Count),
        Json::String(text) => {
            let percent = text.strip_suffix('%')?.trim().parse().ok()?;
            (percent <= 100).then_some(Floor::Percent(percent))
        }
        _ => None,
    }
}

fn controls(names: &[String]) -> Result<Vec<Control>, &String> {
    let control = |name: &String| {
        let ping = name.parse().map(Control::Ping);
        ping.or_else(|_| name.parse().map(Control::Tcp)).ok()
    };
    names.iter().map(|name| control(name).ok_or(name)).collect()
}

/// Links lead to one file too.
fn same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let id = |path: &Path| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    id(a).is_some() && id(a) == id(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "source = \"s.toml\"\nchecked = \"c.toml\"\n";

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("/etc/glb/healthcheck.toml"))
    }

    #[test]
    fn paths_are_meant_from_the_files_folder_and_times_are_milliseconds() {
        let more =
            "hold_down_ms = 1500\n[defaults]\ninterval_ms = 500\ntimeout_ms = 200\nfall = 2\n";
        let config = parse(&format!("{GOOD}{more}")).unwrap();
        assert_eq!(config.source, Path::new("/etc/glb/s.toml"));
        assert_eq!(config.checked, Path::new("/etc/glb/c.toml"));
        assert_eq!(config.options.hold, Duration::from_millis(1500));
        assert_eq!(config.defaults.interval, Duration::from_millis(500));
        assert_eq!((config.defaults.rise, config.defaults.fall), (3, 2));
    }

    #[test]
    fn glbs_file_is_understood() {
        let text = r#"{"forwarding_table": {"src": "/etc/glb/forwarding_table.src.json",
            "dst": "/etc/glb/forwarding_table.checked.json"}, "reload_command": "true"}"#;
        let config = parse(text).unwrap();
        assert_eq!(config.source, Path::new("/etc/glb/forwarding_table.src.json"));
        assert_eq!(config.tell, Some(Tell::Command("true".into())));
        assert_eq!(config.metrics, Some("127.0.0.1:19520".parse().unwrap()));
        assert_eq!(config.defaults, Pace::default());
    }

    #[test]
    fn each_error_names_the_file_the_key_and_the_value() {
        for (text, words) in [
            ("source = \"t\"\nchecked = \"t\"", vec!["healthcheck.toml", "checked", "\"t\""]),
            ("source = \"t.toml\"\nchecked = \"t.json\"", vec!["checked", "\"t.json\"", "form"]),
            ("source = \"t\"", vec!["checked"]),
            ("source = \"t\"\nchecked = \"c\"\nreload = \"x\"", vec!["reload", "line 3"]),
            ("source = \"t\"\nchecked = \"c\"\nreload_command = \" \"", vec!["reload_command"]),
            (
                "source = \"t\"\nchecked = \"c\"\n[defaults]\nrise = 0",
                vec!["defaults.rise = 0", "1 to 1000"],
            ),
            (
                "source = \"t\"\nchecked = \"c\"\n[defaults]\nrize = 1",
                vec!["defaults.rize = 1", "known are"],
            ),
            (
                "source = \"t\"\nchecked = \"c\"\ncontrol_targets = [\"x\"]",
                vec!["control_targets", "\"x\""],
            ),
            (
                "source = \"t\"\nchecked = \"c\"\ndirector = \"d\"\nreload_command = \"r\"",
                vec!["director = \"d\"", "keep one"],
            ),
            (
                "source = \"t\"\nchecked = \"c\"\nchekced = \"c\"",
                vec!["line 3", "did you mean `checked`"],
            ),
            ("source = \"t\"\nchecked = \"c\"\nmin_healthy = \"3\"", vec!["min_healthy", "30%"]),
            ("source = \"t\"\nchecked = \"c\"\nmass_percent = 0", vec!["mass_percent = 0"]),
            (
                "source = \"t\"\nchecked = \"c\"\nreload_timeout_ms = 0",
                vec!["reload_timeout_ms = 0", "1 or more"],
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
