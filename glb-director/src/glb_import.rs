//! GLB's own configuration (`director.conf`, `/etc/default/glb-director`, the command line), as far
//! as it means something here, turned into this director's.

use std::{fmt::Write as _, net::Ipv4Addr, path::PathBuf};

use glb_host::config_file::closest_name;
use serde_json::Value;

/// What is written in GLB's files and on its command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    interfaces: Vec<String>,
    table: Option<PathBuf>,
    outer_source: Option<Ipv4Addr>,
    forward_echo: Option<bool>,
    gateway: Option<String>,
    statsd_port: Option<u16>,
    hash_fields: Option<Vec<&'static str>>,
    alt_hash_fields: Option<Vec<&'static str>>,
    /// What the reader has to know or to do.
    pub notes: Vec<String>,
}

/// Why it cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum GlbConfigError {
    /// It is not JSON.
    #[error("this is not JSON: {0}")]
    Json(serde_json::Error),
    /// It is not an object.
    #[error("this is not a JSON object")]
    NotAnObject,
    /// A value makes no sense.
    #[error("`{key}`: {value} is not {wanted}")]
    Value {
        /// The key.
        key: String,
        /// What is written.
        value: String,
        /// What should be.
        wanted: &'static str,
    },
    /// An option is not one of GLB's.
    #[error("`{option}` is not an option of glb-director or glb-director-xdp{}", near.map(|near| format!("; did you mean `{near}`?")).unwrap_or_default())]
    Option {
        /// As written.
        option: String,
        /// A known one that is like it.
        near: Option<&'static str>,
    },
    /// An option lacks its value.
    #[error("`{0}` needs a value")]
    NoValue(String),
}

/// Keys that concern DPDK only.
const DPDK_KEYS: [&str; 5] = ["num_worker_queues", "rx_drop_en", "flow_paths", "lcores", "kni_ip"];

const KEYS: [&str; 6] = [
    "outbound_gateway_mac",
    "outbound_src_ip",
    "forward_icmp_ping_responses",
    "hash_fields",
    "alt_hash_fields",
    "statsd_port",
];

/// Options with a value.
const OPTIONS: [&str; 7] = [
    "--config-file",
    "--forwarding-table",
    "--xdp-root-path",
    "--xdp-root-idx",
    "--bpf-program",
    "--xdpcap-hook-path",
    "--pid-file",
];

impl Imported {
    /// Reads `director.conf`.
    ///
    /// # Errors
    /// When it is not JSON, or a value is not what GLB takes.
    pub fn read_config(&mut self, text: &str) -> Result<(), GlbConfigError> {
        let value: Value = serde_json::from_str(text).map_err(GlbConfigError::Json)?;
        let Value::Object(config) = value else { return Err(GlbConfigError::NotAnObject) };
        for (key, value) in &config {
            match key.as_str() {
                "outbound_gateway_mac" => {
                    let is_mac = |text: &&str| {
                        let bytes: Vec<&str> = text.split(':').collect();
                        bytes.len() == 6 && bytes.iter().all(|b| u8::from_str_radix(b, 16).is_ok())
                    };
                    let mac = value.as_str().filter(is_mac);
                    let mac = mac.ok_or_else(|| wrong(key, value, "a MAC address"))?;
                    self.gateway = Some(mac.to_owned());
                    self.note(format!(
                        "outbound_gateway_mac = {value}: kept as gateway_mac. Without that line the \
                         kernel's routes and neighbours say where to send, for each backend, and are \
                         followed when they change"
                    ));
                }
                "outbound_src_ip" => {
                    let address = value.as_str().and_then(|text| text.parse().ok());
                    self.outer_source =
                        Some(address.ok_or_else(|| wrong(key, value, "an IPv4 address"))?);
                }
                "forward_icmp_ping_responses" => {
                    let on = value.as_bool();
                    self.forward_echo = Some(on.ok_or_else(|| wrong(key, value, "true or false"))?);
                }
                "hash_fields" => self.hash_fields = Some(fields(key, value)?),
                "alt_hash_fields" => self.alt_hash_fields = Some(fields(key, value)?),
                // The DPDK director takes a string, the XDP one a number.
                "statsd_port" => {
                    let port = value.as_str().map(str::parse).and_then(Result::ok);
                    let port = port.or_else(|| value.as_u64()?.try_into().ok());
                    let port = port.ok_or_else(|| wrong(key, value, "a port"))?;
                    self.statsd_port = (port != 0).then_some(port);
                }
                dpdk if DPDK_KEYS.contains(&dpdk) => {
                    self.note(format!("{key}: left out, it concerns DPDK only"));
                }
                _ => {
                    let near = closest_name(key, KEYS.into_iter().chain(DPDK_KEYS));
                    let near = near.map(|near| format!("; did you mean `{near}`?"));
                    self.note(format!(
                        "`{key}` is not a key of GLB's director.conf and is left out{}",
                        near.unwrap_or_default()
                    ));
                }
            }
        }
        Ok(())
    }

    /// Reads options as they stand on GLB's command line; the configuration file that they name.
    ///
    /// # Errors
    /// When one is not GLB's.
    pub fn read_options(&mut self, words: &[String]) -> Result<Option<PathBuf>, GlbConfigError> {
        let mut config = None;
        // DPDK's own options come first and end with `--`.
        let own = match words.iter().position(|word| word == "--") {
            Some(end) => {
                if end > 0 {
                    self.note(format!("{}: left out, DPDK's options", words[..end].join(" ")));
                }
                &words[end + 1..]
            }
            None => words,
        };
        let mut words = own.iter();
        while let Some(word) = words.next() {
            let (option, value) = match word.split_once('=') {
                Some((option, value)) => (option, Some(value.to_owned())),
                None => (word.as_str(), None),
            };
            let option = match option {
                "-c" => "--config-file",
                "-t" => "--forwarding-table",
                "-v" => "--debug",
                other => other,
            };
            if option == "--debug" {
                self.note("--debug: run this director with `--log-level debug`".into());
                continue;
            }
            if !OPTIONS.contains(&option) {
                let near = closest_name(option, OPTIONS);
                return Err(GlbConfigError::Option { option: option.to_owned(), near });
            }
            let value = value.or_else(|| words.next().cloned());
            let value = value.ok_or_else(|| GlbConfigError::NoValue(option.to_owned()))?;
            match option {
                "--config-file" => config = Some(PathBuf::from(value)),
                "--forwarding-table" => self.table = Some(PathBuf::from(value)),
                "--xdp-root-path" => self.root_path(&value),
                _ => self.note(format!("{option} {value}: left out, nothing here needs it")),
            }
        }
        Ok(config)
    }

    /// Reads `/etc/default/glb-director` or `/etc/default/glb-director-xdp`; the configuration file
    /// that it names.
    ///
    /// # Errors
    /// When an option in it is not GLB's.
    pub fn read_defaults(&mut self, text: &str) -> Result<Option<PathBuf>, GlbConfigError> {
        let mut config = None;
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.split_once('=') else { continue };
            let value = value.trim().trim_matches(['"', '\'']).to_owned();
            let words = || value.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            match name.trim().trim_start_matches("export ") {
                "GLB_DIRECTOR_CONFIG_FILE" | "GLB_DIRECTOR_XDP_CONFIG_FILE" => {
                    config = Some(PathBuf::from(value));
                }
                "GLB_DIRECTOR_FORWARDING_TABLE" | "GLB_DIRECTOR_XDP_FORWARDING_TABLE" => {
                    self.table = Some(PathBuf::from(value));
                }
                "GLB_DIRECTOR_XDP_ROOT_PATHS" | "GLB_DIRECTOR_XDP_EXTRA_ARGS" => {
                    config = self.read_options(&words())?.or(config);
                }
                "GLB_DIRECTOR_EAL_ARGS" => {
                    self.note(format!("GLB_DIRECTOR_EAL_ARGS={value}: left out, DPDK's options"));
                }
                "GLB_DIRECTOR_XDP_BPF_PROGRAM" => self.note(format!(
                    "GLB_DIRECTOR_XDP_BPF_PROGRAM={value}: left out, the program is part of this \
                     director"
                )),
                other => self.note(format!("{other}: left out, it is not one of GLB's")),
            }
        }
        Ok(config)
    }

    /// Names an interface that GLB's files do not.
    pub fn add_interface(&mut self, name: String) {
        if !self.interfaces.contains(&name) {
            self.interfaces.push(name);
        }
    }

    /// `/sys/fs/bpf/xdp_root_array@eth0`, as GLB's root shim names it.
    fn root_path(&mut self, path: &str) {
        match path.rsplit_once('@') {
            Some((_, interface)) if !interface.is_empty() => {
                self.add_interface(interface.to_owned());
                self.note(format!(
                    "{interface}: this director attaches itself; stop xdp-root-shim@{interface} first"
                ));
            }
            _ => self.note(format!("--xdp-root-path {path}: it names no interface")),
        }
    }

    fn note(&mut self, text: String) {
        self.notes.push(text);
    }

    /// The configuration of this director that means the same, and what it cannot say.
    #[must_use]
    pub fn into_toml(mut self) -> (String, Vec<String>) {
        let mut text =
            String::from("# Made from GLB's configuration by `glb-director config import`.\n");
        let table = self.table.take().unwrap_or_else(|| {
            self.note("no forwarding table is named: the usual one is taken".into());
            "/etc/glb/forwarding_table.json".into()
        });
        let json = table.with_extension("json");
        if table != json {
            self.note(format!(
                "table: {} is built from JSON that this director reads itself; it is taken for {}. \
                 If only the binary is there, `glb-director table import` makes a table of it",
                table.display(),
                json.display()
            ));
        }
        if self.interfaces.is_empty() {
            self.note(
                "interfaces: GLB's files name none; eth0 is a guess (see --interface)".into(),
            );
            self.interfaces.push("eth0".into());
        }
        // Of strings and lists of strings, Debug's form is TOML's too, as long as they are plain.
        let _infallible = writeln!(text, "table = {}", toml_text(&json.to_string_lossy()));
        let names: Vec<String> = self.interfaces.iter().map(|name| toml_text(name)).collect();
        let _infallible = writeln!(text, "interfaces = [{}]", names.join(", "));
        if let Some(source) = self.outer_source {
            let _infallible = writeln!(text, "outer_source_ipv4 = \"{source}\"");
        }
        if let Some(gateway) = &self.gateway {
            let _infallible = writeln!(text, "gateway_mac = {}", toml_text(gateway));
        }
        text.push_str("# GLB sends 0; \"copy\" would carry DSCP and ECN outward.\nouter_tos = 0\n");
        if let Some(forward) = self.forward_echo {
            let _infallible = writeln!(text, "forward_echo = {forward}");
        }
        if let Some(port) = self.statsd_port {
            let _infallible = writeln!(text, "statsd = \"127.0.0.1:{port}\"");
        }
        for (key, fields) in [
            ("hash_fields", self.hash_fields.take()),
            ("alt_hash_fields", self.alt_hash_fields.take()),
        ] {
            if let Some(fields) = fields {
                self.note(format!(
                    "{key} belongs to the tables here: add `\"{key}\": {fields:?}` to each table in {}",
                    json.display()
                ));
            }
        }
        (text, self.notes)
    }
}

fn toml_text(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn wrong(key: &str, value: &Value, wanted: &'static str) -> GlbConfigError {
    GlbConfigError::Value { key: key.to_owned(), value: value.to_string(), wanted }
}

fn fields(key: &str, value: &Value) -> Result<Vec<&'static str>, GlbConfigError> {
    let wanted = "an object with at least one of src_addr, dst_addr, src_port and dst_port true";
    let object = value.as_object().ok_or_else(|| wrong(key, value, wanted))?;
    let is_true = |name: &&str| object.get(*name).and_then(Value::as_bool) == Some(true);
    let all = ["src_addr", "dst_addr", "src_port", "dst_port"];
    let fields: Vec<&'static str> = all.into_iter().filter(is_true).collect();
    if fields.is_empty() { Err(wrong(key, value, wanted)) } else { Ok(fields) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As GLB's packages bring them, with what its documentation adds.
    const CONFIG: &str = r#"{
      "outbound_gateway_mac": "00:11:22:33:44:55",
      "outbound_src_ip": "1.2.3.4",
      "forward_icmp_ping_responses": true,
      "num_worker_queues": 1,
      "flow_paths": [{ "rx_port": 0, "rx_queue": 0, "tx_port": 0, "tx_queue": 0 }],
      "lcores": { "lcore-5": { "rx": true } },
      "hash_fields": { "src_addr": true, "src_port": true },
      "statsd_port": "28125"
    }"#;
    const DEFAULTS: &str = "GLB_DIRECTOR_XDP_ROOT_PATHS=\"--xdp-root-path=/sys/fs/bpf/xdp_root_array@eth0\"\n\
        GLB_DIRECTOR_XDP_CONFIG_FILE=\"/etc/glb/director.conf\"\n\
        GLB_DIRECTOR_XDP_FORWARDING_TABLE=\"/etc/glb/forwarding_table.bin\"\n\
        GLB_DIRECTOR_XDP_BPF_PROGRAM=\"/usr/share/glb-director-xdp/glb_encap.o\"\n\
        GLB_DIRECTOR_XDP_EXTRA_ARGS=\"\"\n";

    fn has(notes: &[String], words: &str) {
        assert!(
            notes.iter().any(|note| note.contains(words)),
            "{words:?} is missing in {notes:#?}"
        );
    }

    #[test]
    fn glbs_packaged_files_become_a_configuration_that_is_one() {
        let mut imported = Imported::default();
        let config = imported.read_defaults(DEFAULTS).unwrap();
        assert_eq!(config, Some("/etc/glb/director.conf".into()));
        imported.read_config(CONFIG).unwrap();
        let (text, notes) = imported.into_toml();
        for line in [
            "table = \"/etc/glb/forwarding_table.json\"\n",
            "interfaces = [\"eth0\"]\n",
            "outer_source_ipv4 = \"1.2.3.4\"\n",
            "gateway_mac = \"00:11:22:33:44:55\"\n",
            "outer_tos = 0\n",
            "forward_echo = true\n",
            "statsd = \"127.0.0.1:28125\"\n",
        ] {
            assert!(text.contains(line), "{line} is missing in:\n{text}");
        }
        has(&notes, "00:11:22:33:44:55");
        has(&notes, "lcores: left out");
        has(&notes, "\"hash_fields\": [\"src_addr\", \"src_port\"]");
        has(&notes, "xdp-root-shim@eth0");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("director.toml");
        std::fs::write(&file, &text).unwrap();
        let config = crate::config::Config::load(&file).unwrap();
        assert_eq!(config.options.outer_tos, Some(0));
        assert_eq!(config.interfaces, ["eth0"]);
    }

    #[test]
    fn glbs_command_lines_are_understood() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let mut dpdk = Imported::default();
        let line = "--master-lcore 4 -l 4,5 -- --config-file /a.conf -t /b.bin --debug";
        assert_eq!(dpdk.read_options(&words(line)).unwrap(), Some("/a.conf".into()));
        let (text, notes) = dpdk.into_toml();
        assert!(text.contains("table = \"/b.json\""), "{text}");
        has(&notes, "--master-lcore 4 -l 4,5");
        has(&notes, "--log-level debug");

        let mut xdp = Imported::default();
        let line = "--pid-file=/p --xdp-root-path=/x@eth0 --xdp-root-path=/x@eth1 --config-file=/c";
        assert_eq!(xdp.read_options(&words(line)).unwrap(), Some("/c".into()));
        assert!(xdp.into_toml().0.contains("interfaces = [\"eth0\", \"eth1\"]"));

        for (line, wanted) in [
            ("--config-fil=/x", "did you mean `--config-file`?"),
            ("--nonsense", "not an option"),
            ("--pid-file", "needs a value"),
        ] {
            let error = Imported::default().read_options(&words(line)).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn what_glb_takes_in_silence_is_named() {
        for (config, wanted) in [
            ("{", "not JSON"),
            ("[]", "not a JSON object"),
            ("{\"outbound_src_ip\": \"::1\"}", "an IPv4 address"),
            ("{\"outbound_gateway_mac\": \"00:11:22:33:44\"}", "a MAC address"),
            ("{\"hash_fields\": {}}", "at least one"),
            ("{\"statsd_port\": 70000}", "a port"),
            ("{\"forward_icmp_ping_responses\": 1}", "true or false"),
        ] {
            let error = Imported::default().read_config(config).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        let mut imported = Imported::default();
        imported.read_config("{\"outbound_scr_ip\": \"1.2.3.4\"}").unwrap();
        has(&imported.notes, "did you mean `outbound_src_ip`?");
    }
}
