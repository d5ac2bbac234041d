//! The keys of a table file, with their types, ranges and error messages.

use std::net::IpAddr;

use crate::{
    Backend, Bind, HashFields, Key, Order, Proto, State, Table, TableSet,
    model::{MAX_HOPS, MAX_NAME},
    parse::{Diagnostics, Fields, excerpt},
    syntax::{Format, Node, Value},
    validate::{SourceRanges, TableRanges},
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
    "allow_weak_keys",
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

/// The names of hash fields, in the order in which they are hashed.
#[must_use]
pub fn hash_field_names(fields: HashFields) -> Vec<&'static str> {
    FIELD_NAMES
        .iter()
        .filter(|(_, bit)| fields.bits() & bit.bits() != 0)
        .map(|(name, _)| *name)
        .collect()
}

/// Parses the top level of a file.
pub(crate) fn file(
    diagnostics: &mut Diagnostics,
    form: Format,
    root: &Node,
    set: &mut TableSet,
    places: &mut SourceRanges,
) {
    let Some(fields) = Fields::of(diagnostics, root, "the file", FILE) else { return };
    set.healthchecks = fields.get("healthchecks").and_then(|node| opaque(diagnostics, node));
    let help = "a file holds one or more [[tables]]";
    let Some(node) = fields.need(diagnostics, "tables", help) else { return };
    for (index, node) in list(diagnostics, node, "tables", help).iter().enumerate() {
        if let Some((table, place)) = table(diagnostics, form, node, index) {
            set.tables.push(table);
            places.tables.push(place);
        }
    }
}

/// Parses a table.
fn table(
    diagnostics: &mut Diagnostics,
    form: Format,
    node: &Node,
    index: usize,
) -> Option<(Table, TableRanges)> {
    let fields = Fields::of(diagnostics, node, "a table", TABLE)?;
    let mut place = TableRanges::default();
    let found = match form {
        Format::Toml => {
            fields.need(diagnostics, "name", "give the table a permanent name: name = \"web\"")
        }
        // GLB's own tool does not need names.
        Format::Json => fields.get("name"),
    };
    place.name = found.unwrap_or(node).span.clone();
    let name = found
        .and_then(|node| name(diagnostics, node, "name"))
        .unwrap_or_else(|| format!("table{}", index + 1));
    let hash_key = fields
        .need(diagnostics, "hash_key", KEY_HELP)
        .and_then(|node| key(diagnostics, node, "hash_key"));
    let seed =
        fields.need(diagnostics, "seed", KEY_HELP).and_then(|node| key(diagnostics, node, "seed"));
    let alt_hash_key =
        fields.get("alt_hash_key").and_then(|node| key(diagnostics, node, "alt_hash_key"));
    let alt_seed = fields.get("alt_seed").and_then(|node| key(diagnostics, node, "alt_seed"));
    let hash_fields =
        fields.get("hash_fields").and_then(|node| hash_fields(diagnostics, node, "hash_fields"));
    let alt_hash_fields = fields
        .get("alt_hash_fields")
        .and_then(|node| self::hash_fields(diagnostics, node, "alt_hash_fields"));
    let help = format!("a row has 2 to {MAX_HOPS} hops; 2 is GLB's and the default");
    let hops = fields
        .get("hops")
        .and_then(|node| number(diagnostics, node, "hops", 2, u16::from(MAX_HOPS), &help));
    place.hops = fields.get("hops").map(|node| node.span.clone());
    const ORDERS: [(&str, Order); 2] =
        [("healthy_first", Order::HealthyFirst), ("glb", Order::Glb)];
    let order = fields
        .get("order")
        .and_then(|node| word(diagnostics, node, "order", &ORDERS))
        .unwrap_or_default();
    place.order = fields.get("order").map(|node| node.span.clone());
    place.allow_weak_keys = fields
        .get("allow_weak_keys")
        .is_some_and(|node| flag(diagnostics, node, "allow_weak_keys"));
    place.keys = ["hash_key", "seed", "alt_hash_key", "alt_seed"]
        .map(|key| fields.get(key).map(|node| node.span.clone()));
    place.alternatives = ["alt_hash_key", "alt_seed", "alt_hash_fields"]
        .map(|key| fields.get(key).map(|node| node.span.clone()));

    let mut binds = Vec::new();
    let help = "a table needs a bind: ip = \"203.0.113.10\", proto = \"tcp\", port = 80";
    if let Some(node) = fields.need(diagnostics, "binds", help) {
        place.binds_list = node.span.clone();
        for node in list(diagnostics, node, "binds", help) {
            if let Some(bind) = bind(diagnostics, form, node) {
                binds.push(bind);
                place.binds.push(node.span.clone());
            }
        }
    }
    let mut backends = Vec::new();
    let help = "a table needs a backend: ip = \"10.0.2.21\", state = \"active\", healthy = true";
    if let Some(node) = fields.need(diagnostics, "backends", help) {
        place.backends_list = node.span.clone();
        for node in list(diagnostics, node, "backends", help) {
            if let Some((backend, span, has_healthy_key)) = backend(diagnostics, node) {
                backends.push(backend);
                place.backends.push(span);
                place.has_healthy_key.push(has_healthy_key);
            } else {
                place.has_invalid_backend = true;
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
        healthchecks: fields.get("healthchecks").and_then(|node| opaque(diagnostics, node)),
    };
    Some((table, place))
}

/// Parses a bind.
fn bind(diagnostics: &mut Diagnostics, form: Format, node: &Node) -> Option<Bind> {
    let fields = Fields::of(diagnostics, node, "a bind", BIND)?;
    let prefix = fields.need(
        diagnostics,
        "ip",
        "ip = \"203.0.113.10\", or a network: ip = \"203.0.113.0/24\"",
    );
    let prefix = prefix.and_then(|node| prefix_of(diagnostics, node));
    const PROTOS: [(&str, Proto); 2] = [("tcp", Proto::Tcp), ("udp", Proto::Udp)];
    let proto = fields.need(diagnostics, "proto", "proto = \"tcp\" or \"udp\"");
    let proto = proto.and_then(|node| word(diagnostics, node, "proto", &PROTOS));
    let mut port = |node: Option<&Node>, key| {
        node.and_then(|node| number(diagnostics, node, key, 1, u16::MAX, PORT_HELP))
    };
    let (one, start, end) = (fields.get("port"), fields.get("port_start"), fields.get("port_end"));
    let is = |node: Option<&Node>, number| matches!(node, Some(Node { value: Value::Int(n), .. }) if *n == number);
    let ports = match (one, start, end) {
        // GLB's JSON writes "any port" as 0 to 65535. No flow has port 0.
        (None, Some(_), Some(_)) if form == Format::Json && is(start, 0) && is(end, 65_535) => {
            Some(1..=u16::MAX)
        }
        (Some(one), None, None) => port(Some(one), "port").map(|port| port..=port),
        (None, Some(_), Some(_)) => match (port(start, "port_start"), port(end, "port_end")) {
            (Some(first), Some(last)) if first > last => {
                let span = end.map_or(node.span.clone(), |node| node.span.clone());
                let message = format!("the range of ports {first} to {last} is empty");
                diagnostics.error(
                    &span,
                    message,
                    "this is below port_start",
                    "swap port_start and port_end",
                );
                None
            }
            (Some(first), Some(last)) => Some(first..=last),
            _ => None,
        },
        (Some(one), ..) => {
            let message = "a bind has both `port` and a port range";
            diagnostics.error(
                &one.span,
                message,
                "only one of them is allowed",
                "keep `port`, or `port_start` and `port_end`",
            );
            None
        }
        (None, None, None) => {
            let span = node.span.start..node.span.end.min(node.span.start + 12);
            diagnostics.error(&span, "a bind has no `port`", "`port` is missing", PORT_HELP);
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
            diagnostics.error(
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

/// Parses a backend. Also returns the range of its address, and whether its health is given.
fn backend(
    diagnostics: &mut Diagnostics,
    node: &Node,
) -> Option<(Backend, std::ops::Range<usize>, bool)> {
    let fields = Fields::of(diagnostics, node, "a backend", BACKEND)?;
    let ip = fields.need(diagnostics, "ip", "ip = \"10.0.2.21\"");
    let span = ip.unwrap_or(node).span.clone();
    let address = ip.and_then(|node| address(diagnostics, node));
    let state = fields.need(
        diagnostics,
        "state",
        "state is \"active\", \"filling\", \"draining\" or \"inactive\"",
    );
    let state = state.and_then(|node| word(diagnostics, node, "state", &State::NAMES));
    let healthy = match fields.get("healthy").map(|node| (&node.value, node)) {
        None => Some(false),
        Some((Value::Bool(healthy), _)) => Some(*healthy),
        Some((value, node)) => {
            let found = format!("this is {}", value.kind());
            diagnostics.error(
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
        Some(node) => number(diagnostics, node, "weight", 1, u16::MAX, help),
    };
    let zone = match fields.get("zone") {
        None => Some(String::new()),
        Some(node) => name(diagnostics, node, "zone"),
    };
    let healthchecks = fields.get("healthchecks").and_then(|node| opaque(diagnostics, node));
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

const KEY_HELP: &str =
    "a key is exactly 32 hex digits; `glb-director table new` writes a table with random keys";
const PORT_HELP: &str =
    "a port is a whole number from 1 to 65535: port = 80, or port_start = 80 and port_end = 90";

/// The nodes of a list that must not be empty.
fn list<'n>(diagnostics: &mut Diagnostics, node: &'n Node, key: &str, help: &str) -> &'n [Node] {
    match &node.value {
        Value::List(nodes) if !nodes.is_empty() => nodes,
        Value::List(_) => {
            diagnostics.error(
                &node.span,
                format!("`{key}` is empty"),
                "the list has no entries",
                help,
            );
            &[]
        }
        other => {
            diagnostics.error(
                &node.span,
                format!("`{key}` must be a list"),
                format!("this is {}", other.kind()),
                help,
            );
            &[]
        }
    }
}

/// The text of a string.
fn text<'n>(
    diagnostics: &mut Diagnostics,
    node: &'n Node,
    key: &str,
    help: &str,
) -> Option<&'n str> {
    match &node.value {
        Value::Str(text) => Some(text),
        other => {
            diagnostics.error(
                &node.span,
                format!("`{key}` must be a string"),
                format!("this is {}", other.kind()),
                help,
            );
            None
        }
    }
}

/// A name of a table or zone.
fn name(diagnostics: &mut Diagnostics, node: &Node, key: &str) -> Option<String> {
    let help = format!("a {key} has 1 to {MAX_NAME} bytes and no control characters");
    let text = text(diagnostics, node, key, &help)?;
    if text.trim().is_empty() || text.len() > MAX_NAME || text.chars().any(char::is_control) {
        let found = format!("this has {} bytes", text.len());
        diagnostics.error(
            &node.span,
            format!("`{key}` cannot be \"{}\"", excerpt(text)),
            found,
            help,
        );
        return None;
    }
    Some(text.to_owned())
}

/// A hash key or seed.
fn key(diagnostics: &mut Diagnostics, node: &Node, name: &str) -> Option<Key> {
    diagnostics.secrets.push(node.span.clone());
    let text = text(diagnostics, node, name, KEY_HELP)?;
    let key = Key::from_hex(text);
    if key.is_none() {
        // The message must not show the key.
        let length = text.chars().count();
        let found = if length == 32 {
            let at = text.chars().position(|c| !c.is_ascii_hexdigit()).unwrap_or(0);
            format!("character {} is not a hex digit", at + 1)
        } else {
            format!("its length is {length}")
        };
        diagnostics.error(&node.span, format!("`{name}` is not a key"), found, KEY_HELP);
    }
    key
}

/// A whole number in a range.
fn number(
    diagnostics: &mut Diagnostics,
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
    diagnostics.error(
        &node.span,
        format!("`{key}` must be a whole number from {least} to {most}"),
        found,
        help,
    );
    None
}

/// True or false.
fn flag(diagnostics: &mut Diagnostics, node: &Node, key: &str) -> bool {
    if let Value::Bool(value) = node.value {
        return value;
    }
    let found = format!("this is {}", node.value.kind());
    let help = format!("write {key} = true, or remove the key");
    diagnostics.error(&node.span, format!("`{key}` must be true or false"), found, help);
    false
}

/// One of a list of words.
fn word<T: Copy>(
    diagnostics: &mut Diagnostics,
    node: &Node,
    key: &str,
    words: &[(&str, T)],
) -> Option<T> {
    let known = words.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
    let help = format!("`{key}` is one of {known}");
    let text = text(diagnostics, node, key, &help)?;
    let found = words.iter().find(|(word, _)| *word == text);
    if found.is_none() {
        let near =
            words.iter().find(|(word, _)| strsim::osa_distance(word, &text.to_lowercase()) <= 2);
        let help = match near {
            Some((word, _)) => format!("did you mean \"{word}\"? {help}"),
            None => help,
        };
        diagnostics.error(
            &node.span,
            format!("unknown `{key}` \"{}\"", excerpt(text)),
            "unknown word",
            help,
        );
    }
    found.map(|(_, value)| *value)
}

/// A list of hash fields.
fn hash_fields(diagnostics: &mut Diagnostics, node: &Node, key: &str) -> Option<HashFields> {
    let help =
        format!("{key} = [\"src_addr\"]; the fields are src_addr, dst_addr, src_port, dst_port");
    let mut bits = 0;
    for node in list(diagnostics, node, key, &help) {
        let field = word(diagnostics, node, key, &FIELD_NAMES)?.bits();
        if bits & field != 0 {
            diagnostics.error(
                &node.span,
                format!("`{key}` lists a field twice"),
                "the second one",
                "remove one of them",
            );
        }
        bits |= field;
    }
    HashFields::from_bits(bits)
}

/// An address or network.
fn prefix_of(diagnostics: &mut Diagnostics, node: &Node) -> Option<ipnet::IpNet> {
    const HELP: &str = "ip = \"203.0.113.10\", or a network: ip = \"203.0.113.0/24\"";
    let text = text(diagnostics, node, "ip", HELP)?;
    let parsed = match text.parse::<IpAddr>() {
        Ok(address) => Some(ipnet::IpNet::from(address)),
        // Parsing a network accepts digits only after the slash.
        Err(_) => text.parse::<ipnet::IpNet>().ok(),
    };
    let Some(prefix) = parsed else {
        diagnostics.error(
            &node.span,
            format!("\"{}\" is neither an address nor a network", excerpt(text)),
            "not an address",
            HELP,
        );
        return None;
    };
    if prefix.addr() != prefix.network() {
        let help =
            format!("the network is \"{}\"; one address is \"{}\"", prefix.trunc(), prefix.addr());
        diagnostics.error(
            &node.span,
            format!("\"{text}\" has bits set after its prefix"),
            "host bits are set",
            help,
        );
        return None;
    }
    let whole = prefix.prefix_len() == prefix.max_prefix_len();
    let why = match prefix.addr() {
        address if address.is_loopback() => {
            // Not an error: GLB's own test vectors have such binds.
            let message = format!("bind {prefix} is a loopback address");
            let help = "give the address that clients connect to, unless this is a test";
            diagnostics.warn(&node.span, message, "no packets for it come from a network", help);
            return Some(prefix);
        }
        address if address.is_multicast() => "this is a multicast address",
        address if is_link_local(address) => "a link-local address is valid on one link only",
        address if address.is_unspecified() && whole => "this is the unspecified address",
        IpAddr::V4(address) if address.is_broadcast() => "this is the broadcast address",
        _ => return Some(prefix),
    };
    let message = format!("a bind cannot have the address {}", excerpt(text));
    diagnostics.error(&node.span, message, why, "give the address that clients connect to");
    None
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// The address of a backend.
fn address(diagnostics: &mut Diagnostics, node: &Node) -> Option<IpAddr> {
    const HELP: &str = "ip = \"10.0.2.21\"";
    let text = text(diagnostics, node, "ip", HELP)?;
    let Ok(address) = text.parse::<IpAddr>() else {
        let found = if text.contains('/') {
            "a backend is one address, not a network"
        } else {
            "not an address"
        };
        diagnostics.error(
            &node.span,
            format!("\"{}\" is not an address", excerpt(text)),
            found,
            HELP,
        );
        return None;
    };
    let why = match address {
        _ if address.is_unspecified() => "this is the unspecified address",
        _ if address.is_multicast() => "this is a multicast address",
        IpAddr::V4(address) if address.is_broadcast() => "this is the broadcast address",
        _ if address.is_loopback() => {
            // Not an error: benchmarks and tests without a network use such backends.
            let message = format!("backend {address} is a loopback address");
            let help = "give the server's own address, unless this is a test";
            diagnostics.warn(&node.span, message, "directors cannot send packets to it", help);
            return Some(address);
        }
        _ if is_link_local(address) => "a link-local address is valid on one link only",
        IpAddr::V6(address) if address.to_ipv4_mapped().is_some() => "write it as an IPv4 address",
        _ => return Some(address),
    };
    diagnostics.error(
        &node.span,
        format!("a backend cannot have the address {address}"),
        why,
        "give the server's own address",
    );
    None
}

/// A value that is kept for the health checker. GLB's checker writes a top-level null for no value.
fn opaque(diagnostics: &mut Diagnostics, node: &Node) -> Option<serde_json::Value> {
    match &node.value {
        Value::Null => None,
        _ => json(diagnostics, node),
    }
}

/// Converts a node to JSON.
fn json(diagnostics: &mut Diagnostics, node: &Node) -> Option<serde_json::Value> {
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
                    diagnostics.error(
                        &node.span,
                        format!("{kind} cannot be written in both TOML and JSON"),
                        "here",
                        help,
                    );
                    return None;
                }
            }
        }
        Value::List(nodes) => {
            Json::Array(nodes.iter().filter_map(|node| json(diagnostics, node)).collect())
        }
        Value::Map(entries) => Json::Object(
            entries
                .iter()
                .filter_map(|entry| Some((entry.key.clone(), json(diagnostics, &entry.node)?)))
                .collect(),
        ),
    })
}
