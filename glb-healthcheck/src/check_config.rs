//! From the `healthchecks` of a table file to targets.
//!
//! They may stand at three levels: in the file, in a table and at a backend. A nearer level's
//! setting wins; a kind of check that a nearer level names replaces the farther level's of this
//! kind, and `false` takes it away.

use std::{net::IpAddr, path::Path, time::Duration};

use glb_table::TableSet;
use serde::Deserialize;
use serde_json::{Map, Value as Json};

use crate::check::{Check, Http, Kind, Pace, Target, Tls, Vip};

/// What is wrong with a `healthchecks`.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {place}: `{key}`: {problem}")]
pub struct WantedError {
    /// The file.
    pub file: String,
    /// Which table and backend.
    pub place: String,
    /// The key, from `healthchecks` on.
    pub key: String,
    /// What is wrong, and what would be right.
    pub problem: String,
}

/// A problem with the key that it is about.
type Problem = (String, String);

/// The targets of each backend of each table, in the file's order.
pub type Wanted = Vec<Vec<Vec<Target>>>;

/// Reads the checks of all backends.
///
/// # Errors
/// The first check that makes no sense.
pub fn targets(file: &Path, set: &TableSet, defaults: &Pace) -> Result<Wanted, WantedError> {
    let wrong = |place: String| {
        let file = file.display().to_string();
        move |(key, problem): Problem| WantedError { file, place, key, problem }
    };
    let mut base = Level { pace: defaults.clone(), checks: Vec::new() };
    if let Some(given) = &set.healthchecks {
        base.refine(given).map_err(wrong("the file".into()))?;
    }
    let mut wanted = Vec::with_capacity(set.tables.len());
    for table in &set.tables {
        let mut of_table = base.clone();
        if let Some(given) = &table.healthchecks {
            of_table.refine(given).map_err(wrong(format!("table \"{}\"", table.name)))?;
        }
        let mut backends = Vec::with_capacity(table.backends.len());
        for backend in &table.backends {
            let place = format!("table \"{}\", backend {}", table.name, backend.address);
            let mut level = of_table.clone();
            if let Some(given) = &backend.healthchecks {
                level.refine(given).map_err(wrong(place.clone()))?;
            }
            backends.push(level.targets(backend.address).map_err(wrong(place))?);
        }
        wanted.push(backends);
    }
    Ok(wanted)
}

/// What is known after a level has been read.
#[derive(Clone)]
struct Level {
    pace: Pace,
    /// Kind, its settings as written, and whose `http_uri` goes with it.
    checks: Vec<(&'static str, Vec<Json>)>,
}

const KINDS: [&str; 7] = ["tcp", "http", "https", "gue", "vip", "agent", "exec"];
const PACE: [&str; 7] =
    ["interval_ms", "timeout_ms", "trigger", "rise", "fall", "jitter_percent", "source"];

/// Whether a key is about the pace.
pub(crate) fn is_pace(key: &str) -> bool {
    PACE.contains(&key)
}

/// The keys about the pace.
pub(crate) fn pace_keys() -> [&'static str; 7] {
    PACE
}

impl Level {
    fn refine(&mut self, given: &Json) -> Result<(), Problem> {
        let root = "healthchecks".to_owned();
        let Json::Object(keys) = given else {
            return Err((root, "must be a table of keys, such as { http = 80 }".into()));
        };
        self.pace.refine(keys).map_err(|(key, problem)| (format!("{root}.{key}"), problem))?;
        for (key, value) in keys {
            let at = format!("{root}.{key}");
            if PACE.contains(&key.as_str()) || key == "http_uri" {
                continue;
            }
            if key == "fou" {
                let help = "the old GRE tunnel is not checked; its successor is `gue`";
                return Err((at, help.into()));
            }
            let Some(kind) = KINDS.into_iter().find(|kind| kind == key) else {
                return Err((at, format!("unknown; known are {}", known().join(", "))));
            };
            self.checks.retain(|(known, _)| *known != kind);
            let uri = keys.get("http_uri").filter(|_| kind == "http");
            let checks = match value {
                Json::Bool(false) => continue,
                Json::Array(list) => list.clone(),
                one => vec![one.clone()],
            };
            let checks = checks.into_iter().map(|check| object(&at, check, uri));
            self.checks.push((kind, checks.collect::<Result<_, _>>()?));
        }
        if keys.contains_key("http_uri") && !keys.contains_key("http") {
            return Err((format!("{root}.http_uri"), "stands without `http = PORT`".into()));
        }
        Ok(())
    }

    fn targets(&self, address: IpAddr) -> Result<Vec<Target>, Problem> {
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
                    return Err((at, "the same check stands here twice: keep one".into()));
                }
                targets.push(target);
            }
        }
        // The order of keys in a file means nothing.
        targets.sort_by_cached_key(|target| target.check.kind.to_string());
        Ok(targets)
    }

    fn check(&self, kind: &str, json: &Json, address: IpAddr) -> Result<Check, Problem> {
        let mut pace = self.pace.clone();
        let mut keys = json.as_object().cloned().unwrap_or_default();
        pace.refine(&keys)?;
        keys.retain(|key, _| !PACE.contains(&key.as_str()));
        pace.check(address)?;
        let kind = match kind {
            "tcp" => Kind::Tcp { port: port(read::<RawTcp>(keys)?.port)? },
            "http" => Kind::Http(http(read(keys)?, None)?),
            "gue" => Kind::Gue { port: port(read::<RawTcp>(keys)?.port)? },
            "agent" => {
                let RawAgent { port: number, send } = read(keys)?;
                Kind::Agent { port: port(number)?, send }
            }
            "exec" => {
                let RawExec { command } = read(keys)?;
                if command.first().is_none_or(String::is_empty) {
                    let help = "give program and arguments: [\"/usr/bin/check\", \"-x\"]";
                    return Err(("command".into(), help.into()));
                }
                Kind::Exec { command }
            }
            "vip" => Kind::Vip(vip(keys)?),
            _ => {
                let raw: RawHttps = read(keys)?;
                let tls = Tls { name: raw.tls_name, verify: raw.verify, ca: raw.ca };
                if !tls.verify && tls.ca.is_some() {
                    let problem = "nothing is verified: remove `ca`, or `verify = false`";
                    return Err(("ca".into(), problem.into()));
                }
                http(raw.http, Some(tls))?
                    .checked_name()
                    .map(Kind::Http)
                    .map_err(|problem| ("tls_name".to_owned(), problem))?
            }
        };
        Ok(Check { kind, pace })
    }
}

fn known() -> Vec<&'static str> {
    KINDS.into_iter().chain(PACE).chain(["http_uri"]).collect()
}

/// A port alone is the short form of a table with a port.
fn object(at: &str, value: Json, uri: Option<&Json>) -> Result<Json, Problem> {
    let mut keys = match value {
        Json::Object(keys) => keys,
        Json::Number(port) => Map::from_iter([("port".to_owned(), Json::Number(port))]),
        _ => {
            let help = "give a port, a table of keys, a list of these, or false";
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

fn read<T: for<'de> Deserialize<'de>>(keys: Map<String, Json>) -> Result<T, Problem> {
    serde_json::from_value(Json::Object(keys)).map_err(|error| (String::new(), error.to_string()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTcp {
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

/// A VIP's check is an HTTP request if it says anything about one.
fn vip(mut keys: Map<String, Json>) -> Result<Vip, Problem> {
    let address = keys.remove("address");
    let address = address.as_ref().and_then(Json::as_str).and_then(|text| text.parse().ok());
    let help = || ("address".to_owned(), "give the VIP: address = \"203.0.113.10\"".to_owned());
    let address: IpAddr = address.ok_or_else(help)?;
    let tunnel = match keys.remove("tunnel_port") {
        None => GUE_PORT,
        Some(given) => {
            let number = given.as_u64().and_then(|number| u16::try_from(number).ok());
            let help = || ("tunnel_port".to_owned(), format!("{given} is not a port"));
            port(number.ok_or_else(help)?)?
        }
    };
    let asks = keys.keys().any(|key| key != "port");
    let raw = http(read(keys)?, None)?;
    let number = raw.port;
    let host =
        raw.host.clone().or_else(|| Some(std::net::SocketAddr::new(address, number).to_string()));
    let http = asks.then_some(Http { host, ..raw });
    Ok(Vip { address, tunnel, port: number, http })
}

/// Where backends take tunnelled packets.
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
        // `flatten` and `deny_unknown_fields` exclude each other: TLS's keys are taken out first.
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

fn http(raw: RawHttp, tls: Option<Tls>) -> Result<Http, Problem> {
    let problem = |key: &str, text: String| Err((key.to_owned(), text));
    // Whatever goes into the request must not be able to end its line.
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
        return problem("body", "is empty: give what must stand in the body".into());
    }
    if raw.body.is_some() && raw.method == "HEAD" {
        return problem("body", "an answer to HEAD has no body: use GET".into());
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
    Ok(Http { port: port(raw.port)?, tls, path, host, method, status, body })
}

fn port(port: u16) -> Result<u16, Problem> {
    if port == 0 {
        return Err(("port".into(), "0 is not a port".into()));
    }
    Ok(port)
}

impl Http {
    fn checked_name(self) -> Result<Self, String> {
        let name = self.tls.as_ref().and_then(|tls| tls.name.as_ref());
        if let Some(name) = name
            && tokio_rustls::rustls::pki_types::ServerName::try_from(name.as_str()).is_err()
        {
            return Err(format!("\"{}\" is not a host name", name.escape_debug()));
        }
        Ok(self)
    }
}

impl Pace {
    /// Takes the settings that a level gives.
    pub(crate) fn refine(&mut self, keys: &Map<String, Json>) -> Result<(), Problem> {
        let number = |key: &str, least: u64, most: u64| match keys.get(key) {
            None => Ok(None),
            Some(value) => match value.as_u64().filter(|value| (least..=most).contains(value)) {
                Some(value) => Ok(Some(value)),
                None => Err((
                    key.to_owned(),
                    format!("{value} is not a whole number from {least} to {most}"),
                )),
            },
        };
        let day = 86_400_000;
        if let Some(value) = number("interval_ms", 10, day)? {
            self.interval = Duration::from_millis(value);
        }
        if let Some(value) = number("timeout_ms", 1, day)? {
            self.timeout = Duration::from_millis(value);
        }
        // GLB's one number for both.
        let trigger = number("trigger", 1, 1000)?;
        if let Some(value) = number("rise", 1, 1000)?.or(trigger) {
            self.rise = value as u32;
        }
        if let Some(value) = number("fall", 1, 1000)?.or(trigger) {
            self.fall = value as u32;
        }
        if let Some(value) = number("jitter_percent", 0, 50)? {
            self.jitter_percent = value as u8;
        }
        if let Some(value) = keys.get("source") {
            let source = value.as_str().and_then(|text| text.parse().ok());
            let help = || ("source".to_owned(), format!("{value} is not an address"));
            self.source = Some(source.ok_or_else(help)?);
        }
        Ok(())
    }

    fn check(&self, address: IpAddr) -> Result<(), Problem> {
        if self.timeout >= self.interval {
            let problem = format!(
                "{} ms is not below interval_ms = {}: a probe must end before the next begins",
                self.timeout.as_millis(),
                self.interval.as_millis()
            );
            return Err(("timeout_ms".into(), problem));
        }
        if let Some(source) = self.source.filter(|source| source.is_ipv4() != address.is_ipv4()) {
            let problem = format!("{source} cannot reach {address}: it is of the other family");
            return Err(("source".into(), problem));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
