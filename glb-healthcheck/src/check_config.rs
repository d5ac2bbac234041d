//! Reads the `healthchecks` of a table file into targets.
//!
//! The key may appear at three levels: file, table and backend. The inner level's settings win. A
//! kind of check on an inner level replaces the outer level's checks of that kind; `false` removes
//! them.
//!
//! A new kind of check needs its name in `KINDS` and a branch in `Level::check`.

use std::{net::IpAddr, path::Path, time::Duration};

use glb_host::duration;
use glb_table::TableSet;
use serde::Deserialize;
use serde_json::{Map, Value as Json};

use crate::check::{Check, CheckKind, HttpCheck, Settings, Target, TlsSettings, VipCheck};

/// An invalid `healthchecks` entry.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {place}: `{key}`: {problem}")]
pub struct CheckConfigError {
    /// The table file.
    pub file: String,
    /// The table and backend.
    pub place: String,
    /// The key's path, starting at `healthchecks`.
    pub key: String,
    /// The fault, and a valid form.
    pub problem: String,
}

/// A key and what is wrong with its value.
type KeyProblem = (String, String);

/// The targets of each backend of each table, in the file's order.
pub type TargetsByTable = Vec<Vec<Vec<Target>>>;

/// Reads the targets of all backends of `set`, which came from `file`.
///
/// # Errors
/// Returns the first invalid check.
pub fn read_targets(
    file: &Path,
    set: &TableSet,
    defaults: &Settings,
) -> Result<TargetsByTable, CheckConfigError> {
    let error_at = |place: String| {
        let file = file.display().to_string();
        move |(key, problem): KeyProblem| CheckConfigError { file, place, key, problem }
    };
    let mut file_level = Level { settings: defaults.clone(), checks: Vec::new() };
    if let Some(given) = &set.healthchecks {
        file_level.apply(given).map_err(error_at("the file".into()))?;
    }
    let mut targets = Vec::with_capacity(set.tables.len());
    for table in &set.tables {
        let mut table_level = file_level.clone();
        if let Some(given) = &table.healthchecks {
            table_level.apply(given).map_err(error_at(format!("table \"{}\"", table.name)))?;
        }
        let mut backends = Vec::with_capacity(table.backends.len());
        for backend in &table.backends {
            let place = format!("table \"{}\", backend {}", table.name, backend.address);
            let mut level = table_level.clone();
            if let Some(given) = &backend.healthchecks {
                level.apply(given).map_err(error_at(place.clone()))?;
            }
            backends.push(level.targets(backend.address).map_err(error_at(place))?);
        }
        targets.push(backends);
    }
    Ok(targets)
}

/// Settings and checks that apply at one level, inherited ones included.
#[derive(Clone)]
struct Level {
    settings: Settings,
    /// The kind's name, and the keys of each of its checks.
    checks: Vec<(&'static str, Vec<Json>)>,
}

const KINDS: [&str; 7] = ["tcp", "http", "https", "gue", "vip", "agent", "exec"];
/// Keys of [`Settings`] in a table and in the configuration's `[defaults]`.
pub(crate) const SETTING_KEYS: [&str; 6] =
    ["interval", "timeout", "rise", "fall", "jitter_percent", "source"];
/// GLB's names of settings, which tables may have too.
const GLB_SETTING_KEYS: [&str; 3] = ["interval_ms", "timeout_ms", "trigger"];

/// Returns whether a table's key is a setting and not a kind of check.
fn is_setting(key: &str) -> bool {
    SETTING_KEYS.contains(&key) || GLB_SETTING_KEYS.contains(&key)
}

impl Level {
    fn apply(&mut self, given: &Json) -> Result<(), KeyProblem> {
        let root = "healthchecks".to_owned();
        let Json::Object(keys) = given else {
            return Err((root, "must be a table of keys, such as { http = 80 }".into()));
        };
        self.settings
            .apply_table_keys(keys)
            .map_err(|(key, problem)| (format!("{root}.{key}"), problem))?;
        for (key, value) in keys {
            let at = format!("{root}.{key}");
            if is_setting(key) || key == "http_uri" {
                continue;
            }
            if key == "fou" {
                let help = "checks of the old FOU tunnel are not supported: use `gue`";
                return Err((at, help.into()));
            }
            let Some(kind) = KINDS.into_iter().find(|kind| kind == key) else {
                return Err((at, format!("unknown key; known keys: {}", known_keys().join(", "))));
            };
            self.checks.retain(|(known, _)| *known != kind);
            let uri = keys.get("http_uri").filter(|_| kind == "http");
            let checks = match value {
                Json::Bool(false) => continue,
                Json::Array(list) => list.clone(),
                one => vec![one.clone()],
            };
            let checks = checks.into_iter().map(|check| expand_short_form(&at, check, uri));
            self.checks.push((kind, checks.collect::<Result<_, _>>()?));
        }
        if keys.contains_key("http_uri") && !keys.contains_key("http") {
            return Err((
                format!("{root}.http_uri"),
                "needs `http = PORT` at the same level".into(),
            ));
        }
        Ok(())
    }

    fn targets(&self, address: IpAddr) -> Result<Vec<Target>, KeyProblem> {
        let mut targets: Vec<Target> = Vec::new();
        for (name, checks) in &self.checks {
            for (index, json) in checks.iter().enumerate() {
                let mut at = format!("healthchecks.{name}");
                if checks.len() > 1 {
                    at += &format!("[{index}]");
                }
                let check = self.check(name, json, address);
                let check = check.map_err(|(key, problem)| {
                    let dot = if key.is_empty() { "" } else { "." };
                    (format!("{at}{dot}{key}"), problem)
                })?;
                let target = Target { address, check };
                if targets.contains(&target) {
                    return Err((
                        at,
                        "duplicate of another check of this backend: remove one".into(),
                    ));
                }
                targets.push(target);
            }
        }
        // Sorted, because the order of keys in a file has no meaning.
        targets.sort_by_cached_key(|target| target.check.kind.to_string());
        Ok(targets)
    }

    fn check(&self, kind: &str, json: &Json, address: IpAddr) -> Result<Check, KeyProblem> {
        let mut settings = self.settings.clone();
        let mut keys = json.as_object().cloned().unwrap_or_default();
        settings.apply_table_keys(&keys)?;
        keys.retain(|key, _| !is_setting(key));
        settings.validate(address)?;
        let kind = match kind {
            "tcp" => CheckKind::Tcp { port: port(read::<RawPort>(keys)?.port)? },
            "http" => CheckKind::Http(http(read(keys)?, None)?),
            "gue" => CheckKind::Gue { port: port(read::<RawPort>(keys)?.port)? },
            "agent" => {
                let RawAgent { port: number, send } = read(keys)?;
                CheckKind::Agent { port: port(number)?, send }
            }
            "exec" => {
                let RawExec { command } = read(keys)?;
                if command.first().is_none_or(String::is_empty) {
                    let help = "must list program and arguments: [\"/usr/bin/check\", \"-x\"]";
                    return Err(("command".into(), help.into()));
                }
                CheckKind::Exec { command }
            }
            "vip" => CheckKind::Vip(vip(keys)?),
            _ => {
                let raw: RawHttps = read(keys)?;
                let tls = TlsSettings { name: raw.tls_name, verify: raw.verify, ca: raw.ca };
                if !tls.verify && tls.ca.is_some() {
                    let problem = "has no effect with `verify = false`: remove `ca` or `verify`";
                    return Err(("ca".into(), problem.into()));
                }
                http(raw.http, Some(tls))?
                    .with_valid_name()
                    .map(CheckKind::Http)
                    .map_err(|problem| ("tls_name".to_owned(), problem))?
            }
        };
        Ok(Check { kind, settings })
    }
}

fn known_keys() -> Vec<&'static str> {
    KINDS.into_iter().chain(SETTING_KEYS).chain(["http_uri"]).collect()
}

/// Expands the short form, a port alone, to a table of keys.
fn expand_short_form(at: &str, value: Json, uri: Option<&Json>) -> Result<Json, KeyProblem> {
    let mut keys = match value {
        Json::Object(keys) => keys,
        Json::Number(port) => Map::from_iter([("port".to_owned(), Json::Number(port))]),
        _ => {
            let help = "must be a port, a table of keys, a list of these, or false";
            return Err((at.to_owned(), help.into()));
        }
    };
    if let Some(uri) = uri
        && !keys.contains_key("path")
    {
        keys.insert("path".into(), uri.clone());
    }
    Ok(Json::Object(keys))
}

fn read<T: for<'de> Deserialize<'de>>(keys: Map<String, Json>) -> Result<T, KeyProblem> {
    serde_json::from_value(Json::Object(keys)).map_err(|error| (String::new(), error.to_string()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPort {
    port: u16,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHttp {
    port: u16,
    #[serde(default = "slash")]
    path: String,
    host: Option<String>,
    #[serde(default = "get")]
    method: String,
    status: Option<Json>,
    body: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAgent {
    port: u16,
    send: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawExec {
    command: Vec<String>,
}

/// Reads a `vip` check. It sends an HTTP request if any of HTTP's keys is present.
fn vip(mut keys: Map<String, Json>) -> Result<VipCheck, KeyProblem> {
    let address = keys.remove("address");
    let address = address.as_ref().and_then(Json::as_str).and_then(|text| text.parse().ok());
    let help = || ("address".to_owned(), "must be the VIP: address = \"203.0.113.10\"".to_owned());
    let address: IpAddr = address.ok_or_else(help)?;
    let tunnel_port = match keys.remove("tunnel_port") {
        None => GUE_PORT,
        Some(given) => {
            let number = given.as_u64().and_then(|number| u16::try_from(number).ok());
            let help = || ("tunnel_port".to_owned(), format!("{given} is not a port"));
            port(number.ok_or_else(help)?)?
        }
    };
    let has_request = keys.keys().any(|key| key != "port");
    let raw = http(read(keys)?, None)?;
    let number = raw.port;
    let host =
        raw.host.clone().or_else(|| Some(std::net::SocketAddr::new(address, number).to_string()));
    let http = has_request.then_some(HttpCheck { host, ..raw });
    Ok(VipCheck { address, tunnel_port, port: number, http })
}

/// Default UDP port of the backends' tunnel.
const GUE_PORT: u16 = glb_common::wire::gue::PORT;

struct RawHttps {
    http: RawHttp,
    tls_name: Option<String>,
    verify: bool,
    ca: Option<std::path::PathBuf>,
}

impl<'de> Deserialize<'de> for RawHttps {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        // serde does not allow `flatten` with `deny_unknown_fields`: TLS's keys are removed first.
        let mut keys = Map::deserialize(deserializer)?;
        let word = |key: &str, value: Option<Json>| match value {
            None => Ok(None),
            Some(Json::String(text)) => Ok(Some(text)),
            Some(other) => Err(D::Error::custom(format!("`{key}` = {other} is not a string"))),
        };
        let tls_name = word("tls_name", keys.remove("tls_name"))?;
        let ca = word("ca", keys.remove("ca"))?.map(Into::into);
        let verify = match keys.remove("verify") {
            None => true,
            Some(Json::Bool(verify)) => verify,
            Some(other) => {
                return Err(D::Error::custom(format!("`verify` = {other} is not true or false")));
            }
        };
        let http = serde_json::from_value(Json::Object(keys)).map_err(D::Error::custom)?;
        Ok(Self { http, tls_name, verify, ca })
    }
}

fn slash() -> String {
    "/".into()
}

fn get() -> String {
    "GET".into()
}

fn http(raw: RawHttp, tls: Option<TlsSettings>) -> Result<HttpCheck, KeyProblem> {
    let problem = |key: &str, text: String| Err((key.to_owned(), text));
    // Text of the request must not contain a line break.
    let visible = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
    if !raw.path.starts_with('/') || !visible(&raw.path) {
        let text = format!("\"{}\" must start with / and have no spaces", raw.path.escape_debug());
        return problem("path", text);
    }
    if raw.method.is_empty() || !raw.method.bytes().all(|byte| byte.is_ascii_uppercase()) {
        let text = format!("\"{}\" is not a method such as GET", raw.method.escape_debug());
        return problem("method", text);
    }
    if let Some(host) = raw.host.as_ref().filter(|host| host.is_empty() || !visible(host)) {
        return problem("host", format!("\"{}\" is not a host name", host.escape_debug()));
    }
    if raw.body.as_ref().is_some_and(String::is_empty) {
        return problem("body", "is empty: give the text that the body must contain".into());
    }
    if raw.body.is_some() && raw.method == "HEAD" {
        return problem("body", "a response to HEAD has no body: use GET".into());
    }
    let status = match &raw.status {
        None => Some((200, 299)),
        Some(Json::Number(one)) => one.as_u64().and_then(|one| {
            let one = u16::try_from(one).ok()?;
            Some((one, one))
        }),
        Some(Json::String(text)) => {
            let (low, high) = text.split_once('-').unwrap_or((text, text));
            low.trim().parse().ok().zip(high.trim().parse().ok())
        }
        Some(_) => None,
    };
    let status = status.filter(|(low, high)| (100..=599).contains(low) && low <= high);
    let Some(status) = status.filter(|(_, high)| *high <= 599) else {
        let found = raw.status.unwrap_or_default();
        return problem("status", format!("{found} is not a status such as 200 or \"200-399\""));
    };
    let RawHttp { path, host, method, body, .. } = raw;
    Ok(HttpCheck { port: port(raw.port)?, tls, path, host, method, status, body })
}

fn port(port: u16) -> Result<u16, KeyProblem> {
    if port == 0 {
        return Err(("port".into(), "0 is not a port".into()));
    }
    Ok(port)
}

impl HttpCheck {
    fn with_valid_name(self) -> Result<Self, String> {
        let name = self.tls.as_ref().and_then(|tls| tls.name.as_ref());
        if let Some(name) = name
            && tokio_rustls::rustls::pki_types::ServerName::try_from(name.as_str()).is_err()
        {
            return Err(format!("\"{}\" is not a host name", name.escape_debug()));
        }
        Ok(self)
    }
}

impl Settings {
    /// Applies the settings of a table's level, GLB's names included.
    fn apply_table_keys(&mut self, keys: &Map<String, Json>) -> Result<(), KeyProblem> {
        for (glb, own) in [("interval_ms", "interval"), ("timeout_ms", "timeout")] {
            if keys.contains_key(glb) && keys.contains_key(own) {
                return Err((glb.to_owned(), format!("`{own}` is given too: remove one")));
            }
        }
        let number = |key: &str, least: u64, most: u64| read_number(keys, key, least, most);
        if let Some(milliseconds) = number("interval_ms", 10, DAY_MS)? {
            self.interval = Duration::from_millis(milliseconds);
        }
        if let Some(milliseconds) = number("timeout_ms", 1, DAY_MS)? {
            self.timeout = Duration::from_millis(milliseconds);
        }
        if let Some(count) = number("trigger", 1, 1000)? {
            self.rise = count as u32;
            self.fall = count as u32;
        }
        self.apply(keys)
    }

    /// Applies the settings of a level or of the configuration's `[defaults]`.
    pub(crate) fn apply(&mut self, keys: &Map<String, Json>) -> Result<(), KeyProblem> {
        let number = |key: &str, least: u64, most: u64| read_number(keys, key, least, most);
        if let Some(interval) = read_duration(keys, "interval", 10)? {
            self.interval = interval;
        }
        if let Some(timeout) = read_duration(keys, "timeout", 1)? {
            self.timeout = timeout;
        }
        if let Some(count) = number("rise", 1, 1000)? {
            self.rise = count as u32;
        }
        if let Some(count) = number("fall", 1, 1000)? {
            self.fall = count as u32;
        }
        if let Some(percent) = number("jitter_percent", 0, 50)? {
            self.jitter_percent = percent as u8;
        }
        if let Some(value) = keys.get("source") {
            let source = value.as_str().and_then(|text| text.parse().ok());
            let help = || ("source".to_owned(), format!("{value} is not an IP address"));
            self.source = Some(source.ok_or_else(help)?);
        }
        Ok(())
    }

    fn validate(&self, address: IpAddr) -> Result<(), KeyProblem> {
        if self.timeout >= self.interval {
            let problem = format!(
                "{} is not shorter than the interval, {}: a probe must end before the next one starts",
                duration::format(self.timeout),
                duration::format(self.interval)
            );
            return Err(("timeout".into(), problem));
        }
        if let Some(source) = self.source.filter(|source| source.is_ipv4() != address.is_ipv4()) {
            let problem = format!("{source} and {address} are of different address families");
            return Err(("source".into(), problem));
        }
        Ok(())
    }
}

/// Longest duration of a setting, in milliseconds.
const DAY_MS: u64 = 86_400_000;

fn read_number(
    keys: &Map<String, Json>,
    key: &str,
    least: u64,
    most: u64,
) -> Result<Option<u64>, KeyProblem> {
    let Some(value) = keys.get(key) else { return Ok(None) };
    match value.as_u64().filter(|value| (least..=most).contains(value)) {
        Some(number) => Ok(Some(number)),
        None => {
            let problem = format!("{value} is not a whole number from {least} to {most}");
            Err((key.to_owned(), problem))
        }
    }
}

fn read_duration(
    keys: &Map<String, Json>,
    key: &str,
    least_ms: u64,
) -> Result<Option<Duration>, KeyProblem> {
    let Some(value) = keys.get(key) else { return Ok(None) };
    let allowed = Duration::from_millis(least_ms)..=Duration::from_millis(DAY_MS);
    let given = value.as_str().and_then(|text| duration::parse(text).ok());
    match given.filter(|duration| allowed.contains(duration)) {
        Some(duration) => Ok(Some(duration)),
        None => {
            let problem = format!(
                "{value} is not a duration from \"{least_ms}ms\" to \"24h\", such as \"2s\""
            );
            Err((key.to_owned(), problem))
        }
    }
}

#[cfg(test)]
mod tests;
