//! Each field of a table file: what it may be, and what is said if it is not.

use std::net::IpAddr;

use crate::{
    Backend, Bind, HashFields, Key, Order, Proto, State, Table, TableSet,
    model::{MAX_HOPS, MAX_NAME},
    parse::{Fields, Reader, shown},
    syntax::{Format, Node, Value},
    validate::{Places, TablePlaces},
};

const FILE: &[&str] = &["tables", "healthchecks"];
const TABLE: &[&str] = &[
    "name",
    "hash_key",
    "seed",
    "hash_fields",
    "alt_hash_fields",
    "alt_hash_key",
    "alt_seed",
    "hops",
    "order",
    "binds",
    "backends",
    "healthchecks",
];
const BIND: &[&str] = &["ip", "proto", "port", "port_start", "port_end"];
const BACKEND: &[&str] = &["ip", "state", "healthy", "weight", "zone", "healthchecks"];

const FIELD_NAMES: [(&str, HashFields); 4] = [
    ("src_addr", HashFields::SRC_ADDR),
    ("dst_addr", HashFields::DST_ADDR),
    ("src_port", HashFields::SRC_PORT),
    ("dst_port", HashFields::DST_PORT),
];

/// The words for a set of hash fields, in the order in which they are hashed.
#[must_use]
pub fn hash_field_names(fields: HashFields) -> Vec<&'static str> {
    FIELD_NAMES
        .iter()
        .filter(|(_, bit)| fields.bits() & bit.bits() != 0)
        .map(|(name, _)| *name)
        .collect()
}

pub(crate) fn file(
    reader: &mut Reader,
    form: Format,
    root: &Node,
    set: &mut TableSet,
    places: &mut Places,
) {
    let Some(fields) = Fields::of(reader, root, "the file", FILE) else { return };
    set.healthchecks = fields.get("healthchecks").and_then(|node| kept(reader, node));
    let help = "a file holds one or more [[tables]]";
    let Some(node) = fields.need(reader, "tables", help) else { return };
    for (index, node) in list(reader, node, "tables", help).iter().enumerate() {
        if let Some((table, place)) = table(reader, form, node, index) {
            set.tables.push(table);
            places.tables.push(place);
        }
    }
}

fn table(
    reader: &mut Reader,
    form: Format,
    node: &Node,
    index: usize,
) -> Option<(Table, TablePlaces)> {
    let fields = Fields::of(reader, node, "a table", TABLE)?;
    let mut place = TablePlaces::default();
    let found = match form {
        Format::Toml => fields.need(reader, "name", "give it a name that stays: name = \"web\""),
        // GLB's own tool does not ask for a name.
        Format::Json => fields.get("name"),
    };
    place.name = found.unwrap_or(node).span.clone();
    let name = found
        .and_then(|node| name(reader, node, "name"))
        .unwrap_or_else(|| format!("table{}", index + 1));
    let hash_key =
        fields.need(reader, "hash_key", KEY_HELP).and_then(|node| key(reader, node, "hash_key"));
    let seed = fields.need(reader, "seed", KEY_HELP).and_then(|node| key(reader, node, "seed"));
    let alt_hash_key =
        fields.get("alt_hash_key").and_then(|node| key(reader, node, "alt_hash_key"));
    let alt_seed = fields.get("alt_seed").and_then(|node| key(reader, node, "alt_seed"));
    let hash_fields =
        fields.get("hash_fields").and_then(|node| hash_fields(reader, node, "hash_fields"));
    let alt_hash_fields = fields
        .get("alt_hash_fields")
        .and_then(|node| self::hash_fields(reader, node, "alt_hash_fields"));
    let help = format!("a row has 2 to {MAX_HOPS} hops; 2 is GLB's and the default");
    let hops = fields
        .get("hops")
        .and_then(|node| number(reader, node, "hops", 2, u16::from(MAX_HOPS), &help));
    place.hops = fields.get("hops").map(|node| node.span.clone());
    const ORDERS: [(&str, Order); 2] =
        [("healthy_first", Order::HealthyFirst), ("glb", Order::Glb)];
    let order = fields
        .get("order")
        .and_then(|node| word(reader, node, "order", &ORDERS))
        .unwrap_or_default();
    place.order = fields.get("order").map(|node| node.span.clone());
    place.alternatives = ["alt_hash_key", "alt_seed", "alt_hash_fields"]
        .map(|key| fields.get(key).map(|node| node.span.clone()));

    let mut binds = Vec::new();
    let help = "a table needs a bind: ip = \"203.0.113.10\", proto = \"tcp\", port = 80";
    if let Some(node) = fields.need(reader, "binds", help) {
        place.binds_list = node.span.clone();
        for node in list(reader, node, "binds", help) {
            if let Some(bind) = bind(reader, node) {
                binds.push(bind);
                place.binds.push(node.span.clone());
            }
        }
    }
    let mut backends = Vec::new();
    let help = "a table needs a backend: ip = \"10.0.2.21\", state = \"active\", healthy = true";
    if let Some(node) = fields.need(reader, "backends", help) {
        place.backends_list = node.span.clone();
        for node in list(reader, node, "backends", help) {
            if let Some((backend, span, said_healthy)) = backend(reader, node) {
                backends.push(backend);
                place.backends.push(span);
                place.said_healthy.push(said_healthy);
            } else {
                place.backends_broken = true;
            }
        }
    }
    let table = Table {
        name,
        hash_key: hash_key.unwrap_or(Key::new([0; 16])),
        seed: seed.unwrap_or(Key::new([0; 16])),
        hash_fields: hash_fields.unwrap_or_default(),
        alt_hash_fields,
        alt_hash_key,
        alt_seed,
        hops: hops.unwrap_or(2) as u8,
        order,
        binds,
        backends,
        healthchecks: fields.get("healthchecks").and_then(|node| kept(reader, node)),
    };
    Some((table, place))
}

fn bind(reader: &mut Reader, node: &Node) -> Option<Bind> {
    let fields = Fields::of(reader, node, "a bind", BIND)?;
    let prefix =
        fields.need(reader, "ip", "ip = \"203.0.113.10\", or a network: ip = \"203.0.113.0/24\"");
    let prefix = prefix.and_then(|node| prefix_of(reader, node));
    const PROTOS: [(&str, Proto); 2] = [("tcp", Proto::Tcp), ("udp", Proto::Udp)];
    let proto = fields.need(reader, "proto", "proto = \"tcp\" or \"udp\"");
    let proto = proto.and_then(|node| word(reader, node, "proto", &PROTOS));
    let mut port = |node: Option<&Node>, key| {
        node.and_then(|node| number(reader, node, key, 1, u16::MAX, PORT_HELP))
    };
    let (one, start, end) = (fields.get("port"), fields.get("port_start"), fields.get("port_end"));
    let ports = match (one, start, end) {
        (Some(one), None, None) => port(Some(one), "port").map(|port| port..=port),
        (None, Some(_), Some(_)) => match (port(start, "port_start"), port(end, "port_end")) {
            (Some(first), Some(last)) if first > last => {
                let span = end.map_or(node.span.clone(), |node| node.span.clone());
                let message = format!("the range of ports {first} to {last} is empty");
                reader.error(
                    &span,
                    message,
                    "this is below port_start",
                    "exchange port_start and port_end",
                );
                None
            }
            (Some(first), Some(last)) => Some(first..=last),
            _ => None,
        },
        (Some(one), ..) => {
            let message = "`port` stands beside `port_start` or `port_end`";
            reader.error(
                &one.span,
                message,
                "which of them is meant?",
                "keep `port`, or both of the others",
            );
            None
        }
        (None, None, None) => {
            let span = node.span.start..node.span.end.min(node.span.start + 12);
            reader.error(&span, "a bind has no `port`", "`port` is missing", PORT_HELP);
            None
        }
        (None, start, end) => {
            let there = start.or(end).map_or(node.span.clone(), |node| node.span.clone());
            let (is, missing) = if start.is_some() {
                ("port_start", "port_end")
            } else {
                ("port_end", "port_start")
            };
            let message = format!("a bind has `{is}` and no `{missing}`");
            reader.error(
                &there,
                message,
                format!("`{missing}` is missing"),
                "give both ends of the range, or one `port`",
            );
            None
        }
    };
    Some(Bind { prefix: prefix?, proto: proto?, ports: ports? })
}

/// The backend, where its address stands, and whether its health is given.
fn backend(reader: &mut Reader, node: &Node) -> Option<(Backend, std::ops::Range<usize>, bool)> {
    let fields = Fields::of(reader, node, "a backend", BACKEND)?;
    let ip = fields.need(reader, "ip", "ip = \"10.0.2.21\"");
    let span = ip.unwrap_or(node).span.clone();
    let address = ip.and_then(|node| address(reader, node));
    let state = fields.need(
        reader,
        "state",
        "state is \"active\", \"filling\", \"draining\" or \"inactive\"",
    );
    let state = state.and_then(|node| word(reader, node, "state", &State::NAMES));
    let healthy = match fields.get("healthy").map(|node| (&node.value, node)) {
        None => Some(false),
        Some((Value::Bool(healthy), _)) => Some(*healthy),
        Some((value, node)) => {
            let found = format!("this is {}", value.kind());
            reader.error(
                &node.span,
                "`healthy` must be true or false",
                found,
                "write healthy = true or healthy = false",
            );
            None
        }
    };
    let help =
        "a weight is a whole number from 1 to 65535; to take a backend out, state = \"inactive\"";
    let weight = match fields.get("weight") {
        None => Some(1),
        Some(node) => number(reader, node, "weight", 1, u16::MAX, help),
    };
    let zone = match fields.get("zone") {
        None => Some(String::new()),
        Some(node) => name(reader, node, "zone"),
    };
    let healthchecks = fields.get("healthchecks").and_then(|node| kept(reader, node));
    let backend = Backend {
        address: address?,
        state: state?,
        healthy: healthy?,
        weight: weight?,
        zone: zone?,
        healthchecks,
    };
    Some((backend, span, fields.get("healthy").is_some()))
}

const KEY_HELP: &str = "a key is exactly 32 hex digits; make one with: openssl rand -hex 16";
const PORT_HELP: &str =
    "a port is a whole number from 1 to 65535: port = 80, or port_start = 80 and port_end = 90";

fn list<'n>(reader: &mut Reader, node: &'n Node, key: &str, help: &str) -> &'n [Node] {
    match &node.value {
        Value::List(nodes) if !nodes.is_empty() => nodes,
        Value::List(_) => {
            reader.error(&node.span, format!("`{key}` is empty"), "nothing in it", help);
            &[]
        }
        other => {
            reader.error(
                &node.span,
                format!("`{key}` must be a list"),
                format!("this is {}", other.kind()),
                help,
            );
            &[]
        }
    }
}

fn text<'n>(reader: &mut Reader, node: &'n Node, key: &str, help: &str) -> Option<&'n str> {
    match &node.value {
        Value::Str(text) => Some(text),
        other => {
            reader.error(
                &node.span,
                format!("`{key}` must be a string"),
                format!("this is {}", other.kind()),
                help,
            );
            None
        }
    }
}

fn name(reader: &mut Reader, node: &Node, key: &str) -> Option<String> {
    let help = format!("a {key} has 1 to {MAX_NAME} bytes and no control characters");
    let text = text(reader, node, key, &help)?;
    if text.trim().is_empty() || text.len() > MAX_NAME || text.chars().any(char::is_control) {
        let found = format!("this has {} bytes", text.len());
        reader.error(&node.span, format!("`{key}` cannot be \"{}\"", shown(text)), found, help);
        return None;
    }
    Some(text.to_owned())
}

fn key(reader: &mut Reader, node: &Node, name: &str) -> Option<Key> {
    reader.secrets.push(node.span.clone());
    let text = text(reader, node, name, KEY_HELP)?;
    let key = Key::from_hex(text);
    if key.is_none() {
        // Says what is wrong without showing the key.
        let length = text.chars().count();
        let found = if length == 32 {
            let at = text.chars().position(|c| !c.is_ascii_hexdigit()).unwrap_or(0);
            format!("character {} is no hex digit", at + 1)
        } else {
            format!("its length is {length}")
        };
        reader.error(&node.span, format!("`{name}` is not a key"), found, KEY_HELP);
    }
    key
}

fn number(
    reader: &mut Reader,
    node: &Node,
    key: &str,
    least: u16,
    most: u16,
    help: &str,
) -> Option<u16> {
    let found = match &node.value {
        Value::Int(value) => match u16::try_from(*value) {
            Ok(value) if (least..=most).contains(&value) => return Some(value),
            _ => format!("{value} is out of range"),
        },
        other => format!("this is {}", other.kind()),
    };
    reader.error(
        &node.span,
        format!("`{key}` must be a whole number from {least} to {most}"),
        found,
        help,
    );
    None
}

fn word<T: Copy>(reader: &mut Reader, node: &Node, key: &str, words: &[(&str, T)]) -> Option<T> {
    let known = words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
    let help = format!("`{key}` is one of {known}");
    let text = text(reader, node, key, &help)?;
    let found = words.iter().find(|(word, _)| *word == text);
    if found.is_none() {
        let near =
            words.iter().find(|(word, _)| strsim::osa_distance(word, &text.to_lowercase()) <= 2);
        let help = match near {
            Some((word, _)) => format!("did you mean \"{word}\"? {help}"),
            None => help,
        };
        reader.error(
            &node.span,
            format!("unknown `{key}` \"{}\"", shown(text)),
            "not a known word",
            help,
        );
    }
    found.map(|(_, value)| *value)
}

fn hash_fields(reader: &mut Reader, node: &Node, key: &str) -> Option<HashFields> {
    let help = format!("{key} = [\"src_addr\"]; known are src_addr, dst_addr, src_port, dst_port");
    let mut bits = 0;
    for node in list(reader, node, key, &help) {
        let field = word(reader, node, key, &FIELD_NAMES)?.bits();
        if bits & field != 0 {
            reader.error(
                &node.span,
                format!("a field stands twice in `{key}`"),
                "the second one",
                "keep one of the two",
            );
        }
        bits |= field;
    }
    HashFields::from_bits(bits)
}

fn prefix_of(reader: &mut Reader, node: &Node) -> Option<ipnet::IpNet> {
    const HELP: &str = "ip = \"203.0.113.10\", or a network: ip = \"203.0.113.0/24\"";
    let text = text(reader, node, "ip", HELP)?;
    let parsed = match text.parse::<IpAddr>() {
        Ok(address) => Some(ipnet::IpNet::from(address)),
        // `parse` of a network takes nothing but digits after the slash.
        Err(_) => text.parse::<ipnet::IpNet>().ok(),
    };
    let Some(prefix) = parsed else {
        reader.error(
            &node.span,
            format!("\"{}\" is neither an address nor a network", shown(text)),
            "not an address",
            HELP,
        );
        return None;
    };
    if prefix.addr() != prefix.network() {
        let help =
            format!("the network is \"{}\"; one address is \"{}\"", prefix.trunc(), prefix.addr());
        reader.error(
            &node.span,
            format!("\"{text}\" has bits set after its prefix"),
            "host bits are set",
            help,
        );
        return None;
    }
    Some(prefix)
}

fn address(reader: &mut Reader, node: &Node) -> Option<IpAddr> {
    const HELP: &str = "ip = \"10.0.2.21\"";
    let text = text(reader, node, "ip", HELP)?;
    let Ok(address) = text.parse::<IpAddr>() else {
        let found = if text.contains('/') {
            "a backend is one address, not a network"
        } else {
            "not an address"
        };
        reader.error(&node.span, format!("\"{}\" is not an address", shown(text)), found, HELP);
        return None;
    };
    let why = match address {
        _ if address.is_unspecified() => "the unspecified address is nobody's",
        _ if address.is_multicast() => "a multicast address is a group",
        IpAddr::V4(address) if address.is_broadcast() => "the broadcast address is everybody's",
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => {
            "an IPv4 address is written as such"
        }
        _ => return Some(address),
    };
    reader.error(
        &node.span,
        format!("a backend cannot have the address {address}"),
        why,
        "give the server's own address",
    );
    None
}

/// What is only kept for others. JSON's null at the top stands for nothing, as GLB's checker writes it.
fn kept(reader: &mut Reader, node: &Node) -> Option<serde_json::Value> {
    match &node.value {
        Value::Null => None,
        _ => json(reader, node),
    }
}

fn json(reader: &mut Reader, node: &Node) -> Option<serde_json::Value> {
    use serde_json::Value as Json;
    Some(match &node.value {
        Value::Null => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Int(value) => Json::from(*value),
        Value::Str(text) => Json::from(text.as_str()),
        Value::Other(text, kind) => {
            match text.parse::<f64>().ok().and_then(serde_json::Number::from_f64) {
                Some(number) if *kind == "a number with a fraction" => Json::Number(number),
                _ => {
                    let help = "use a string or a smaller number";
                    reader.error(
                        &node.span,
                        format!("{kind} cannot be kept in both forms of a table"),
                        "here",
                        help,
                    );
                    return None;
                }
            }
        }
        Value::List(nodes) => {
            Json::Array(nodes.iter().filter_map(|node| json(reader, node)).collect())
        }
        Value::Map(entries) => Json::Object(
            entries
                .iter()
                .filter_map(|entry| Some((entry.key.clone(), json(reader, &entry.node)?)))
                .collect(),
        ),
    })
}
