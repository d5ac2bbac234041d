//! `glb-director table …`, as an operator calls it.
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
    let mut command = Command::new(env!("CARGO_BIN_EXE_glb-director"));
    command.arg("table").args(arguments).current_dir(folder).output().unwrap()
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

/// Both outputs of a command that must fail with status 1.
fn fails(folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
    text
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
fn check_is_zero_only_if_all_is_valid_and_names_the_file() {
    let dir = folder();
    let at = dir.path();
    fs::write(at.join("bad.toml"), TABLE.replace("port = 80", "port = 0")).unwrap();
    assert!(ok(at, &["check", "t.toml"]).contains("t.toml: valid (1 table, 1 bind, 3 backends)"));
    let text = fails(at, &["check", "t.toml", "bad.toml", "absent.toml"]);
    for part in
        ["t.toml: valid", "bad.toml:6:", "1 to 65535", "cannot read absent.toml", "2 of 3 files"]
    {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let output = run(at, &["check", "-o", "json", "bad.toml"]);
    let said = json(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(said[0]["problems"][0]["line"], 6);
    assert_eq!(said[0]["valid"], false);
}

/// As the daemon does, which reads its table in the same way.
#[test]
fn both_checks_refuse_more_rows_than_the_program_addresses() {
    let dir = folder();
    let at = dir.path();
    let seed = "\nhops = 4\nalt_seed = \"45678901234567894567890123456789\"\nbinds";
    let table = |number: usize| {
        let table = TABLE.replace("web", &format!("t{number}"));
        table.replace("\nbinds", seed).replace("port = 80", &format!("port = {number}"))
    };
    let tables: String = (1..=513).map(table).collect();
    fs::write(at.join("t.toml"), tables).unwrap();
    fs::write(at.join("director.toml"), "interfaces = [\"lo\"]\ntable = \"t.toml\"\n").unwrap();
    let config = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_glb-director"));
        command.args(["config", "check", "-c", "director.toml"]).current_dir(at).output().unwrap()
    };
    let refused = config();
    assert_eq!(refused.status.code(), Some(1));
    for text in [fails(at, &["check", "t.toml"]), String::from_utf8(refused.stderr).unwrap()] {
        for part in ["t.toml:", "rows take 513 MiB", "name = \"t513\"", "512 MiB", "alt_seed"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }
    fs::write(at.join("t.toml"), (1..=512).map(table).collect::<String>()).unwrap();
    assert!(ok(at, &["check", "t.toml"]).contains("512 tables"));
    let taken = config();
    assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
}

#[test]
fn show_and_lookup_and_diff_speak_both_ways() {
    let dir = folder();
    let at = dir.path();
    let text = ok(at, &["show", "t.toml"]);
    assert!(text.contains("203.0.113.10 tcp 80") && text.contains("FIRST"), "{text}");
    assert!(!text.contains("3456789"), "a key is shown: {text}");
    let said = json(&ok(at, &["show", "-o", "json", "t.toml"]));
    let share = |index: usize| said["tables"][0]["backends"][index]["shares"][0].as_f64().unwrap();
    assert!((share(0) + share(1) + share(2) - 1.0).abs() < 1e-9);
    let text = ok(at, &["lookup", "t.toml", "198.51.100.7", "203.0.113.10"]);
    assert!(text.contains("hop 1") && text.contains("why: by rank"), "{text}");
    let said = json(&ok(
        at,
        &["lookup", "-o", "json", "t.toml", "198.51.100.7:5000", "203.0.113.10:80/tcp"],
    ));
    assert_eq!(said["hops"].as_array().unwrap().len(), 2);
    assert!(
        fails(at, &["lookup", "t.toml", "198.51.100.7", "203.0.113.10:81"])
            .contains("no bind is for")
    );
    assert!(
        fails(at, &["lookup", "t.toml", "nobody", "203.0.113.10:80"])
            .contains("\"nobody\" is no address")
    );
    assert!(fails(at, &["lookup", "t.toml", "::1", "203.0.113.10"]).contains("families"));
    fs::write(at.join("new.toml"), TABLE.replacen("active", "draining", 1)).unwrap();
    let said = json(&ok(at, &["diff", "-o", "json", "t.toml", "new.toml"]));
    let (lost, moved) =
        (&said["tables"][0]["backends"][0]["first_lost"], &said["tables"][0]["first_hop_changes"]);
    assert!(lost == moved && lost.as_u64().unwrap() > 20_000, "{said}");
    assert_eq!(said["tables"][0]["rows_losing"], 0);
    assert_eq!(ok(at, &["diff", "t.toml", "t.toml"]), "no difference\n");
}

#[test]
fn forms_go_into_each_other() {
    let dir = folder();
    let at = dir.path();
    let _ = ok(at, &["convert", "t.toml", "t.json"]);
    let _ = ok(at, &["convert", "t.json", "back.toml"]);
    assert_eq!(ok(at, &["diff", "t.toml", "back.toml"]), "no difference\n");
    let _ = ok(at, &["build", "t.toml", "one.bin"]);
    let _ = ok(at, &["build", "t.json", "two.bin"]);
    assert_eq!(fs::read(at.join("one.bin")).unwrap(), fs::read(at.join("two.bin")).unwrap());
    assert!(ok(at, &["check", "one.bin"]).contains("1 table, 1 bind, 3 backends"));
    fs::write(at.join("seeds"), "34567890123456783456789012345678\n").unwrap();
    let _ = ok(at, &["import", "one.bin", "imported.toml", "--seeds", "seeds", "--names", "web"]);
    assert_eq!(ok(at, &["diff", "t.toml", "imported.toml"]), "no difference\n");
    fs::write(at.join("seeds"), "00000000000000000000000000000000\n").unwrap();
    let text = fails(at, &["import", "one.bin", "wrong.toml", "--seeds", "seeds"]);
    assert!(text.contains("one.bin") && text.contains("rows of table"), "{text}");
    assert!(!at.join("wrong.toml").exists());
    assert!(fails(at, &["build", "t.toml", "t.json"]).contains("use convert"));
    assert!(fails(at, &["convert", "t.toml", "./t.toml"]).contains("over itself"));
    assert!(
        fails(at, &["build", "t.toml", "no/such/folder.bin"])
            .contains("cannot write no/such/folder.bin")
    );
}

#[test]
fn a_plan_fails_at_the_first_unsafe_step() {
    let dir = folder();
    let at = dir.path();
    fs::write(at.join("drain.toml"), TABLE.replacen("active", "draining", 1)).unwrap();
    fs::write(at.join("out.toml"), TABLE.replacen("active", "inactive", 1)).unwrap();
    let text = fails(at, &["plan", "t.toml", "out.toml"]);
    assert!(
        text.contains("step 2 (out.toml) is unsafe") && text.contains("10.0.2.21 may hold flows"),
        "{text}"
    );
    let steps = ["plan", "t.toml", "drain.toml", "drained=10.0.2.21", "out.toml", "t.toml"];
    assert!(ok(at, &steps).contains("safe: no step"));
    assert!(ok(at, &["plan", "t.toml", "drain.toml", "wait", "out.toml"]).contains("wait 1d"));
    let _ = fails(at, &["plan", "t.toml", "drain.toml", "wait=1h", "out.toml"]);
    let _ = ok(at, &["plan", "--flow-age", "1h", "t.toml", "drain.toml", "wait=1h", "out.toml"]);
    assert!(fails(at, &["plan", "wait"]).contains("needs a table file"));
    assert!(fails(at, &["plan", "t.toml", "drained=x"]).contains("is no address"));
    let text = ok(at, &["plan", "--drain", "10.0.2.21,10.0.2.22", "t.toml"]);
    assert!(text.contains("glb-director table set t.toml 10.0.2.22 --state draining"), "{text}");
    let said = json(&ok(at, &["plan", "-o", "json", "--drain", "10.0.2.21", "t.toml"]));
    assert_eq!(said.as_array().unwrap().len(), 3);
    assert!(
        fails(at, &["plan", "--drain", "10.0.2.99", "t.toml"])
            .contains("no table has a backend 10.0.2.99")
    );
}

#[test]
fn plan_simulates_a_sequence_and_follows_flows() {
    let dir = folder();
    let at = dir.path();
    fs::write(at.join("drain.toml"), TABLE.replacen("active", "draining", 1)).unwrap();
    fs::write(at.join("out.toml"), TABLE.replacen("active", "inactive", 1)).unwrap();
    let safe =
        ["plan", "--simulate=50000", "t.toml", "drain.toml", "drained=10.0.2.21", "out.toml"];
    let text = ok(at, &safe);
    for part in ["safe: no step", "simulated: 50,000 flows at once", "broken: 0 (0%)", "web: rows"]
    {
        assert!(text.contains(part), "{part} is not in {text}");
    }
    let said = json(
        &fails(at, &["plan", "-o", "json", "--simulate=50000", "t.toml", "out.toml"])
            .replace("error: step 2 (out.toml) is unsafe\n", ""),
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
    let text = ok(at, &["plan", "--follow", "flows", "t.toml", "drain.toml"]);
    assert!(text.contains("198.51.100.7:50123  203.0.113.10:80  10.0.2.2"), "{text}");
    assert!(text.contains("lives") && text.contains("no bind is for it"), "{text}");
    for (line, said) in [
        ("198.51.100.7 203.0.113.10:80", "\"198.51.100.7\" is no address with a port"),
        ("198.51.100.7:1 203.0.113.10:80 9", "the step is from 1 to 1"),
        ("198.51.100.7:1 [2001:db8::1]:80", "different address families"),
        ("198.51.100.7:1 203.0.113.10:80/icmp", "neither tcp nor udp"),
        ("198.51.100.7:1", "1 words"),
    ] {
        fs::write(at.join("flows"), format!("\n{line}\n")).unwrap();
        let text = fails(at, &["plan", "--follow", "flows", "t.toml"]);
        assert!(text.contains("flows:2: ") && text.contains(said), "{text}");
    }
    let text = fails(at, &["plan", "--simulate", "--shortest", "2d", "t.toml"]);
    assert!(text.contains("--shortest 2d is not below --flow-age 1d"), "{text}");
}

#[test]
fn plan_makes_up_the_maintenance_of_a_fleet() {
    let dir = folder();
    let at = dir.path();
    let made_up =
        ["plan", "--simulate=2000", "--changes", "30", "--backends", "20", "--every", "1h"];
    let text = ok(at, &made_up);
    assert!(text.contains("by the operator's changes: 0; the operator asked the plan"), "{text}");
    assert_eq!(text, ok(at, &made_up), "the same seed gives another answer");
    let text = fails(at, &[&made_up[..], &["--careless"]].concat());
    assert!(text.contains("asked nobody") && text.contains("error: the operator's changes broke"));
    let said = json(&ok(at, &["plan", "-o", "json", "--simulate=100", "--changes", "3", "t.toml"]));
    assert_eq!(said["backends"], 3);
    assert_eq!(said["steps"].as_array().unwrap().len(), 4);
}

#[test]
fn set_changes_one_word_of_the_file() {
    let dir = folder();
    let at = dir.path();
    let text = ok(at, &["set", "t.toml", "10.0.2.21", "--state", "draining"]);
    assert!(text.contains("active → draining"), "{text}");
    assert_eq!(
        fs::read_to_string(at.join("t.toml")).unwrap(),
        TABLE.replacen("\"active\"", "\"draining\"", 1)
    );
    assert!(ok(at, &["set", "t.toml", "10.0.2.21", "--state", "draining"]).contains("already"));
    assert!(
        fails(at, &["set", "t.toml", "10.0.2.99", "--state", "active"])
            .contains("t.toml has no backend 10.0.2.99")
    );
    let known = fails(at, &["set", "t.toml", "10.0.2.21", "--state", "active", "--table", "wob"]);
    assert!(known.contains("no table \"wob\"") && known.contains("\"web\""), "{known}");
    for backend in ["10.0.2.21", "10.0.2.22"] {
        let _ = ok(at, &["set", "t.toml", backend, "--state", "inactive"]);
    }
    let before = fs::read(at.join("t.toml")).unwrap();
    let text = fails(at, &["set", "t.toml", "10.0.2.23", "--state", "inactive"]);
    assert!(text.contains("no backend of table") && text.contains("as it was"), "{text}");
    assert_eq!(fs::read(at.join("t.toml")).unwrap(), before);
}

#[test]
fn changes_made_at_once_are_all_made() {
    let folder = tempfile::tempdir().unwrap();
    let backends: String = (1..=16)
        .map(|host| format!("{{ ip = \"10.0.3.{host}\", state = \"active\", healthy = true }},\n"))
        .collect();
    let head = TABLE.split("[[tables.backends]]").next().unwrap();
    fs::write(folder.path().join("t.toml"), format!("{head}backends = [\n{backends}]\n")).unwrap();
    std::thread::scope(|scope| {
        for host in 1..=16 {
            let path = folder.path();
            scope.spawn(move || {
                let backend = format!("10.0.3.{host}");
                ok(path, &["set", "t.toml", &backend, "--state", "draining"]);
            });
        }
    });
    let text = fs::read_to_string(folder.path().join("t.toml")).unwrap();
    assert_eq!(text.matches("draining").count(), 16, "{text}");
}
