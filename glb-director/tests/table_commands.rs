//! The `glb-director table` commands.
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

/// Both outputs of a command that must exit with this code.
fn exits_with(code: i32, folder: &Path, arguments: &[&str]) -> String {
    let output = run(folder, arguments);
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    text
}

/// Both outputs of a command that must fail.
fn fails(folder: &Path, arguments: &[&str]) -> String {
    exits_with(1, folder, arguments)
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
fn check_exits_with_4_and_names_the_files_that_are_not_valid() {
    let dir = folder();
    let at = dir.path();
    fs::write(at.join("bad.toml"), TABLE.replace("port = 80", "port = 0")).unwrap();
    assert!(ok(at, &["check", "t.toml"]).contains("t.toml: valid (1 table, 1 bind, 3 backends)"));
    let text = exits_with(4, at, &["check", "t.toml", "bad.toml", "absent.toml"]);
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

/// The daemon reads its table in the same way.
#[test]
fn table_check_and_config_check_refuse_more_rows_than_the_program_addresses() {
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
    for text in
        [exits_with(4, at, &["check", "t.toml"]), String::from_utf8(refused.stderr).unwrap()]
    {
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
fn show_lookup_and_diff_print_text_and_json() {
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
            .contains("no bind matches")
    );
    assert!(
        fails(at, &["lookup", "t.toml", "nobody", "203.0.113.10:80"])
            .contains("\"nobody\" is not an address")
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
fn tables_convert_between_all_formats_without_loss() {
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
    assert!(fails(at, &["build", "t.toml", "t.json"]).contains("Use `table convert`"));
    assert!(fails(at, &["convert", "t.toml", "./t.toml"]).contains("both source and destination"));
    assert!(
        fails(at, &["build", "t.toml", "no/such/folder.bin"])
            .contains("cannot write no/such/folder.bin")
    );
}

#[test]
fn plan_exits_with_6_at_the_first_unsafe_step() {
    let dir = folder();
    let at = dir.path();
    fs::write(at.join("drain.toml"), TABLE.replacen("active", "draining", 1)).unwrap();
    fs::write(at.join("out.toml"), TABLE.replacen("active", "inactive", 1)).unwrap();
    let text = exits_with(6, at, &["plan", "t.toml", "out.toml"]);
    assert!(
        text.contains("step 2 (out.toml) is unsafe") && text.contains("10.0.2.21 may hold flows"),
        "{text}"
    );
    let steps = ["plan", "t.toml", "drain.toml", "mark-drained=10.0.2.21", "out.toml", "t.toml"];
    assert!(ok(at, &steps).contains("safe: no step"));
    assert!(ok(at, &["plan", "t.toml", "drain.toml", "wait", "out.toml"]).contains("wait 1d"));
    let _ = exits_with(6, at, &["plan", "t.toml", "drain.toml", "wait=1h", "out.toml"]);
    let _ = ok(at, &["plan", "--flow-age", "1h", "t.toml", "drain.toml", "wait=1h", "out.toml"]);
    assert!(fails(at, &["plan", "wait"]).contains("has no table file"));
    assert!(fails(at, &["plan", "t.toml", "mark-drained=x"]).contains("is not an address"));
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
    assert!(text.contains("no backend of table") && text.contains("is unchanged"), "{text}");
    assert_eq!(fs::read(at.join("t.toml")).unwrap(), before);
}

#[test]
fn set_changes_the_input_of_a_table_that_the_health_checker_writes() {
    let folder = folder();
    let at = folder.path();
    let input = at.join("t.toml");
    let text = fs::read_to_string(&input).unwrap();
    let marked = glb_table::write_mark::add(glb_table::Format::Toml, &text, &input);
    fs::write(at.join("out.toml"), &marked).unwrap();
    let output = run(at, &["set", "out.toml", "10.0.2.21", "--state", "draining"]);
    assert!(output.status.success(), "{output:?}");
    let note = String::from_utf8(output.stderr).unwrap();
    assert!(note.contains("written by glb-healthcheck") && note.contains("t.toml"), "{note}");
    assert!(fs::read_to_string(&input).unwrap().contains("\"draining\""));
    assert_eq!(fs::read_to_string(at.join("out.toml")).unwrap(), marked);
    // The input is on another machine.
    fs::remove_file(&input).unwrap();
    let text = fails(at, &["set", "out.toml", "10.0.2.21", "--state", "active"]);
    assert!(text.contains("t.toml, which is not on this machine"), "{text}");
    assert_eq!(fs::read_to_string(at.join("out.toml")).unwrap(), marked);
}

#[test]
fn set_exits_with_3_if_no_director_answers_to_wait_for() {
    let folder = folder();
    let arguments = ["set", "t.toml", "10.0.2.21", "--state", "draining"];
    let wait = ["--wait=1s", "--socket", "none.sock"];
    let text = exits_with(3, folder.path(), &[&arguments[..], &wait].concat());
    assert!(text.contains("none.sock"), "{text}");
    assert!(fs::read_to_string(folder.path().join("t.toml")).unwrap().contains("\"draining\""));
}

#[test]
fn concurrent_sets_are_all_applied() {
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

#[test]
fn tables_are_read_from_pipes_and_devices_are_refused() {
    let dir = folder();
    let at = dir.path();
    let fifo = at.join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let writer = std::thread::spawn(move || fs::write(fifo, TABLE).unwrap());
    assert!(ok(at, &["check", "fifo"]).contains("fifo: valid (1 table"));
    writer.join().unwrap();
    for device in ["/dev/zero", "/dev/null", "/"] {
        let text = exits_with(4, at, &["check", device]);
        assert!(text.contains("it is not a file or pipe"), "{text}");
    }
}

#[test]
fn new_writes_a_valid_table_that_only_its_owner_can_read() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = folder();
    let at = dir.path();
    assert!(ok(at, &["new", "new.toml"]).contains("random keys"));
    assert!(ok(at, &["check", "new.toml"]).contains("valid (1 table, 1 bind, 2 backends)"));
    let mode = fs::metadata(at.join("new.toml")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(fails(at, &["new", "new.toml"]).contains("cannot create new.toml"));
}
