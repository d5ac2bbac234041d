//! Invalid input is refused, with its place and the fix.
#![expect(clippy::unwrap_used, reason = "the tests' own texts")]

mod common;

use common::{load_json, load_toml};
use glb_table::{Diagnostic, LoadError};
use serde_json::{Map, Value};

const GOOD: &str = r#"
[[tables]]
name = "web"
hash_key = "2ac26cd8ca2eb2aa9b4a52d7cb39dd3a"
seed = "c5a3ab27d95dd9a3ae4d2c8bf4a5a3f1"

[[tables.binds]]
ip = "203.0.113.10"
proto = "tcp"
port = 80

[[tables.backends]]
ip = "10.0.0.1"
state = "active"
healthy = true

[[tables.backends]]
ip = "10.0.0.2"
state = "active"
healthy = true
"#;

/// Odd inputs that GLB's own tool was tried with.
#[test]
fn odd_inputs_are_accepted_or_refused_as_recommended_in_both_formats() {
    let odd: Value = serde_json::from_str(include_str!("data/cli_inputs.json")).unwrap();
    let cases = odd["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 43);
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let accept = case["recommended"] == "accept";
        let json = load_json(&case["input"]);
        assert_eq!(json.is_ok(), accept, "{name} as JSON: {json:?}");
        let mut input = case["input"].clone();
        let has_null = input.to_string().contains("null");
        if let Some(tables) = input["tables"].as_array_mut() {
            for (index, table) in tables.iter_mut().enumerate() {
                table["name"] = format!("table{index}").into();
            }
        }
        if !has_null {
            let toml = load_toml(&toml::to_string(&input).unwrap());
            assert_eq!(toml.is_ok(), accept, "{name} as TOML: {toml:?}");
        }
        for problem in json.as_ref().err().map_or(&[][..], LoadError::problems) {
            assert!(problem.line >= 1 && problem.column >= 1, "{name}");
            assert!(!problem.help.is_empty() && !problem.found.is_empty(), "{name}");
        }
    }
}

fn problems(text: &str) -> Vec<Diagnostic> {
    load_toml(text).map(|_| ()).unwrap_err().problems().to_vec()
}

#[test]
fn a_missing_comma_in_json_does_not_hide_other_errors() {
    let text = r#"{ "tables": [ { "hash_key": "12345678901234561234567890123456", "seed": "12"
        "binds": [ { "ip": "1.1.1.1", "proto": "tcp", "port": 0 }, ], "backends": [] } ] }"#;
    let error = glb_table::parse_bytes("t.json".as_ref(), glb_table::Format::Json, text.as_bytes())
        .unwrap_err();
    let said = error.to_string();
    for part in ["not JSON", "`seed` is not a key", "`port` must be", "`backends` is empty"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
}

#[test]
fn a_backend_without_healthy_beside_others_gets_a_warning() {
    let set = load_toml(&GOOD.replacen("healthy = true", "", 1)).unwrap();
    assert_eq!(set.warnings.len(), 1, "{:?}", set.warnings);
    assert!(
        set.warnings[0].message.contains("10.0.0.1")
            && set.warnings[0].message.contains("no `healthy`")
    );
}

/// Checks that the text has exactly one problem, at this place and with these words.
fn one(text: &str, line: usize, column: usize, message: &str, found: &str, help: &str) {
    let all = problems(text);
    let [problem] = &all[..] else { panic!("not one problem: {all:#?}") };
    assert_eq!((problem.line, problem.column), (line, column), "{problem:?}");
    assert!(problem.message.contains(message), "{problem:?}");
    assert!(problem.found.contains(found), "{problem:?}");
    assert!(problem.help.contains(help), "{problem:?}");
    assert_eq!(problem.snippet, text.lines().nth(line - 1).unwrap(), "{problem:?}");
}

#[test]
fn a_valid_file_has_no_warnings() {
    let set = load_toml(GOOD).unwrap();
    assert_eq!(set.tables[0].backends.len(), 2);
    assert!(set.warnings.is_empty());
}

#[test]
fn a_wrong_value_is_reported_with_line_column_and_fix() {
    one(&GOOD.replace("port = 80", "port = 80000"), 10, 8, "`port` must be", "80000", "1 to 65535");
    one(
        &GOOD.replace("port = 80", "prot = 80\nport = 80"),
        10,
        1,
        "unknown key `prot`",
        "unknown key",
        "`port`",
    );
    one(
        &GOOD.replacen("active", "activ", 1),
        14,
        9,
        "unknown `state` \"activ\"",
        "unknown word",
        "did you mean \"active\"",
    );
    one(&GOOD.replacen("true", "1", 1), 15, 11, "`healthy`", "a whole number", "healthy = true");
    one(
        &GOOD.replace("10.0.0.2", "10.0.0.1"),
        18,
        6,
        "10.0.0.1 is listed twice",
        "second",
        "backend number 1",
    );
    one(
        &GOOD.replace("203.0.113.10", "203.0.113.10/24"),
        8,
        6,
        "bits set",
        "host bits",
        "203.0.113.0/24",
    );
    one(
        &GOOD.replace("10.0.0.2", "2001:db8::2"),
        18,
        6,
        "IPv4 and IPv6",
        "2001:db8::2",
        "two tables",
    );
    one(
        &GOOD.replacen("healthy = true", "healthy = true\nweight = 0", 1),
        16,
        10,
        "`weight`",
        "0 is out",
        "inactive",
    );
    one(
        &GOOD.replace("healthy = true", "healthy = true\nzone = \"a\""),
        13,
        6,
        "zone",
        "three hops",
        "hops = 3",
    );
}

#[test]
fn a_missing_file_is_named_in_the_error() {
    let error = glb_table::load("/nowhere/table.toml".as_ref()).unwrap_err();
    // The caller adds the prefix "error: ".
    let start = "cannot read /nowhere/table.toml: ";
    assert!(error.render(false).starts_with(start), "{}", error.render(false));
    assert!(error.to_string().starts_with(start), "{error}");
}

#[test]
fn keys_are_never_shown() {
    let bad = GOOD.replace("c5a3ab27d95dd9a3ae4d2c8bf4a5a3f1", "345678901234567834567890123456xx");
    let error = load_toml(&bad).unwrap_err();
    for text in [error.to_string(), format!("{error:?}"), error.render(false)] {
        assert!(text.contains("is not a key"), "{text}");
        assert!(!text.contains("345678"), "{text}");
    }
    // A file that does not parse at all, in one line.
    let error = load_json(&Value::String("x".into())).unwrap_err();
    assert!(error.to_string().contains("must be a table of keys"));
    let text = format!("{{ \"tables\": [ {{ \"hash_key\": \"{}\", ] }}", "ab".repeat(16));
    let error = glb_table::parse_bytes("t.json".as_ref(), glb_table::Format::Json, text.as_bytes())
        .unwrap_err();
    assert!(!error.render(false).contains("abab"), "{}", error.render(false));
}

#[test]
fn all_errors_are_reported_at_once_and_in_order() {
    let text = GOOD
        .replace("port = 80", "port = 0")
        .replacen("active", "up", 1)
        .replace("10.0.0.2", "10.0.0.256")
        .replace("2ac26cd8ca2eb2aa9b4a52d7cb39dd3a", "1234")
        .replace("name = \"web\"", "name = \"web\"\nhops = 9");
    let lines: Vec<usize> = problems(&text).iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [4, 5, 11, 15, 19]);
    // Syntax errors do not hide each other or other errors.
    let text = GOOD
        .replace("port = 80", "port = = 80")
        .replacen("\"active\"", "active", 1)
        .replace("10.0.0.2", "x");
    let lines: Vec<usize> = problems(&text).iter().map(|problem| problem.line).collect();
    assert!(lines.contains(&10) && lines.contains(&14) && lines.contains(&18), "{lines:?}");
    let text = text.replace("seed =", "sed =");
    let all = problems(&text);
    assert!(all.iter().any(|problem| problem.message.contains("has no `seed`")), "{all:?}");
    assert!(!all.iter().any(|problem| problem.found.contains("is missing") && problem.message.contains("port")), "{all:?}");
}

#[test]
fn overlapping_binds_name_both_tables() {
    let second = GOOD.replace("\"web\"", "\"git\"");
    let both = format!("{GOOD}{second}");
    let all = problems(&both);
    assert_eq!(all.len(), 1, "{all:?}");
    assert!(all[0].message.contains("\"git\"") && all[0].message.contains("\"web\""), "{}", all[0]);
    assert_eq!(all[0].line, 27);
    let range = second.replace("port = 80", "port_start = 1\nport_end = 65535");
    assert_eq!(problems(&format!("{GOOD}{range}")).len(), 1);
    let above = second.replace("port = 80", "port_start = 81\nport_end = 65535");
    assert!(load_toml(&format!("{GOOD}{above}")).is_ok());
    let udp = second.replace("\"tcp\"", "\"udp\"");
    assert!(load_toml(&format!("{GOOD}{udp}")).is_ok());
    // A longer prefix within another is preferred: allowed, with a warning.
    let net = second.replace("203.0.113.10", "203.0.113.0/24");
    let set = load_toml(&format!("{GOOD}{net}")).unwrap();
    assert_eq!(set.warnings.len(), 1);
    assert!(set.warnings[0].message.contains("lies within"), "{}", set.warnings[0]);
}

#[test]
fn a_key_given_twice_is_an_error_in_both_forms() {
    assert!(!problems(&GOOD.replace("port = 80", "port = 80\nport = 81")).is_empty());
    let text = r#"{"tables": [], "tables": []}"#;
    let error = glb_table::parse_bytes("t.json".as_ref(), glb_table::Format::Json, text.as_bytes())
        .unwrap_err();
    assert!(error.to_string().contains("`tables` is given twice"), "{error}");
}

#[test]
fn more_backends_than_the_limit_are_refused() {
    let backends: Vec<Value> = (0..65_536_u32)
        .map(|n| {
            let ip = std::net::Ipv4Addr::from(0x0a00_0001 + n);
            Value::Object(Map::from_iter([
                ("ip".into(), ip.to_string().into()),
                ("state".into(), "active".into()),
            ]))
        })
        .collect();
    let mut input: Value = serde_json::from_str(
        r#"{"tables":[{"hash_key":"12345678901234561234567890123456","seed":"34567890123456783456789012345678",
        "binds":[{"ip":"1.1.1.1","proto":"tcp","port":80}]}]}"#,
    )
    .unwrap();
    input["tables"][0]["backends"] = backends.into();
    let error = load_json(&input).unwrap_err().to_string();
    assert!(error.contains("too many backends"), "{error}");
    input["tables"][0]["backends"].as_array_mut().unwrap().pop();
    assert!(load_json(&input).is_ok());
}

/// Each of these tables takes four times 256 KiB.
#[test]
fn more_rows_than_a_director_addresses_are_refused() {
    let table = |number: usize, more: &str| {
        let good = GOOD.replace("web", &format!("t{number}")).replace("port = 80", "port = PORT");
        good.replace("PORT", &(number + 1).to_string()).replace("\n\n[[tables.binds]]", more)
    };
    let large = "\nhops = 3\nalt_seed = \"45678901234567894567890123456789\"\n\n[[tables.binds]]";
    let tables = |count: usize| (0..count).map(|number| table(number, large)).collect::<String>();
    assert_eq!(load_toml(&tables(512)).unwrap().tables.len(), 512);
    let one_more = tables(512) + &table(512, "\n\n[[tables.binds]]");
    let line = tables(512).lines().count() + 3;
    let (message, found) = ("the tables' rows take 512.25 MiB", "this is the first one too many");
    one(&one_more, line, 8, message, found, "512 MiB of rows");
    one(&tables(514), line, 8, "the tables' rows take 514 MiB", found, "`alt_seed`");
    // An alternative key uses the same rows.
    let key = "\nhops = 3\nalt_hash_key = \"45678901234567894567890123456789\"\n\n[[tables.binds]]";
    let tables: String = (0..1_024).map(|number| table(number, key)).collect();
    assert_eq!(load_toml(&tables).unwrap().tables.len(), 1_024);
}

#[test]
fn weak_keys_get_a_warning_that_does_not_show_them() {
    let (key, seed) = ("2ac26cd8ca2eb2aa9b4a52d7cb39dd3a", "c5a3ab27d95dd9a3ae4d2c8bf4a5a3f1");
    for (old, new, found) in [
        (key, "00000000000000000000000000000000", "few different bytes"),
        (key, "abcdabcdabcdabcdabcdabcdabcdabcd", "few different bytes"),
        (key, "00112233445566778899aabbccddeeff", "published"),
        (seed, key, "equals the hash key"),
    ] {
        let text = GOOD.replace(old, new);
        let warnings = load_toml(&text).unwrap().warnings;
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].message.contains("is weak"), "{warnings:?}");
        assert!(warnings[0].found.contains(found), "{warnings:?}");
        assert!(!format!("{warnings:?}").contains(new), "{warnings:?}");
        let allowed = text.replace("name = \"web\"", "name = \"web\"\nallow_weak_keys = true");
        assert!(load_toml(&allowed).unwrap().warnings.is_empty());
    }
}

#[test]
fn addresses_that_cannot_work_are_refused() {
    for address in ["169.254.1.1", "224.0.0.1", "255.255.255.255", "0.0.0.0"] {
        for good in ["203.0.113.10", "10.0.0.2"] {
            let all = problems(&GOOD.replace(good, address));
            assert!(all[0].message.contains(address), "{address} for {good}: {all:?}");
        }
    }
    for address in ["fe80::1", "ff02::1", "::"] {
        let all = problems(&GOOD.replace("203.0.113.10", address));
        assert!(all[0].message.contains("a bind cannot have the address"), "{address}: {all:?}");
    }
    for good in ["203.0.113.10", "10.0.0.2"] {
        let warnings = load_toml(&GOOD.replace(good, "127.0.0.1")).unwrap().warnings;
        assert!(warnings[0].message.contains("is a loopback address"), "{good}: {warnings:?}");
    }
}

#[test]
fn a_udp_bind_that_covers_a_tunnel_to_a_backend_is_refused() {
    let udp = GOOD.replace("proto = \"tcp\"", "proto = \"udp\"");
    for (ip, ports, refused) in [
        ("10.0.0.2", "port = 19523", true),
        ("10.0.0.0/24", "port_start = 1\nport_end = 65535", true),
        ("10.0.0.0/24", "port = 53", false),
        ("10.0.1.0/24", "port = 19523", false),
    ] {
        let text = udp.replace("203.0.113.10", ip).replace("port = 80", ports);
        let loaded = load_toml(&text);
        assert_eq!(loaded.is_err(), refused, "{ip} {ports}");
        if refused {
            assert!(problems(&text)[0].message.contains("matches the tunnel packets to backend"));
        }
    }
    let set = load_toml(&GOOD.replace("203.0.113.10", "10.0.0.2")).unwrap();
    assert!(set.warnings[0].message.contains("has the address of a backend"), "{:?}", set.warnings);
    let set = load_toml(&GOOD.replace("203.0.113.10", "0.0.0.0/0")).unwrap();
    assert!(set.warnings[0].message.contains("very wide"), "{:?}", set.warnings);
}

#[test]
fn any_port_of_glb_json_is_accepted() {
    let text = |first: u32, last: u32| {
        format!(
            r#"{{"tables":[{{"hash_key":"2ac26cd8ca2eb2aa9b4a52d7cb39dd3a","seed":"c5a3ab27d95dd9a3ae4d2c8bf4a5a3f1",
            "binds":[{{"ip":"1.1.1.1","proto":"tcp","port_start":{first},"port_end":{last}}}],
            "backends":[{{"ip":"10.0.0.1","state":"active","healthy":true}}]}}]}}"#
        )
    };
    let load = |first, last| load_json(&serde_json::from_str(&text(first, last)).unwrap());
    assert_eq!(load(0, 65_535).unwrap().tables[0].binds[0].ports, 1..=65_535);
    assert!(load(0, 80).is_err());
}
