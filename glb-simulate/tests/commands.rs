//! The commands of `glb-simulate`.
#![expect(clippy::unwrap_used, reason = "test helpers")]

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

const TABLE: &str = r#"# the fleet
[[tables]]
name = "web"   # public
hash_key = "12345678901234561234567890123456"
seed = "34567890123456783456789012345678"
binds = [{ ip = "203.0.113.10", proto = "tcp", port = 80 }]

[[tables.backends]]
ip = "10.0.2.21"
state = "active"  # since Monday
healthy = true

[[tables.backends]]
ip = "10.0.2.22"
state = "active"
healthy = true

[[tables.backends]]
ip = "10.0.2.23"
state = "active"
healthy = true
"#;

fn run(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_glb-simulate"));
    command.args(arguments).current_dir(folder).output().unwrap()
}

/// Standard output of a command that must succeed.
fn ok(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

/// Standard output and standard error of a command that must exit with this code.
fn exits_with(code: i32, folder: &Path, arguments: &[&str]) -> (String, String) {
    let output = run(folder, arguments);
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {out}{err}");
    (out, err)
}

/// Standard error of a command that must fail.
fn fails(folder: &Path, arguments: &[&str]) -> String {
    exits_with(1, folder, arguments).1
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("t.toml"), TABLE).unwrap();
    folder
}

#[test]
fn sequence_counts_broken_flows_and_reports_traced_ones() {
    let dir = folder();
    let at = dir.path();
    fs::write(at.join("drain.toml"), TABLE.replacen("active", "draining", 1)).unwrap();
    fs::write(at.join("out.toml"), TABLE.replacen("active", "inactive", 1)).unwrap();
    let safe = [
        "sequence",
        "--concurrent=50000",
        "t.toml",
        "drain.toml",
        "mark-drained=10.0.2.21",
        "out.toml",
    ];
    let text = ok(at, &safe);
    for part in
        ["safe: no step", "simulated: 50,000 concurrent flows", "broken: 0 (0%)", "web: rows"]
    {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let said = json(
        &exits_with(6, at, &["sequence", "-o", "json", "--concurrent=50000", "t.toml", "out.toml"])
            .0,
    );
    // A third of the flows were the backend's, but for those that ended in ten minutes.
    let broken = said["simulation"]["steps"][1]["broken"]["reset"].as_u64().unwrap();
    assert!((4_000..16_667).contains(&broken), "{said}");
    assert_eq!(said["first_unsafe"], 2);

    fs::write(
        at.join("flows"),
        "[::ffff:198.51.100.7]:50123 203.0.113.10:80\n198.51.100.8:1 203.0.113.10:81 2\n\n",
    )
    .unwrap();
    let text = ok(at, &["sequence", "--flows", "flows", "t.toml", "drain.toml"]);
    assert!(text.contains("198.51.100.7:50123  203.0.113.10:80  10.0.2.2"), "{text}");
    assert!(text.contains("lives") && text.contains("no bind matches"), "{text}");
    for (line, said) in [
        ("198.51.100.7 203.0.113.10:80", "\"198.51.100.7\" is not an address with a port"),
        ("198.51.100.7:1 203.0.113.10:80 9", "the step must be from 1 to 1"),
        ("198.51.100.7:1 [2001:db8::1]:80", "different address families"),
        ("198.51.100.7:1 203.0.113.10:80/icmp", "neither tcp nor udp"),
        ("198.51.100.7:1", "the line has 1 words"),
    ] {
        fs::write(at.join("flows"), format!("\n{line}\n")).unwrap();
        let text = fails(at, &["sequence", "--flows", "flows", "t.toml"]);
        assert!(text.contains("flows:2: ") && text.contains(said), "{text}");
    }
    let text = fails(at, &["sequence", "--min-lifetime", "2d", "t.toml"]);
    assert!(text.contains("--min-lifetime 2d is not below --flow-age 1d"), "{text}");
}

#[test]
fn maintenance_is_reproducible_and_breaks_flows_only_without_the_plan() {
    let dir = folder();
    let at = dir.path();
    let generated = [
        "maintenance",
        "--concurrent=2000",
        "--changes",
        "30",
        "--backends",
        "20",
        "--step-interval",
        "1h",
    ];
    let text = ok(at, &generated);
    assert!(
        text.contains("broken by the operator's changes: 0; the operator asked the plan"),
        "{text}"
    );
    assert_eq!(text, ok(at, &generated), "the same seed gives another answer");
    let text = exits_with(6, at, &[&generated[..], &["--ignore-plan"]].concat()).1;
    assert!(text.contains("error: the operator's changes broke"), "{text}");
    let said = json(&ok(
        at,
        &["maintenance", "-o", "json", "--concurrent=100", "--changes", "3", "t.toml"],
    ));
    assert_eq!(said["backends"], 3);
    assert_eq!(said["steps"].as_array().unwrap().len(), 4);
}
