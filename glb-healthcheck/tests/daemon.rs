//! The whole daemon on loopback: a fleet of listeners, a source table, a checked table.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// An HTTP server on an address of its own that can be told to be ill.
struct Server {
    address: String,
    port: u16,
    well: Arc<AtomicBool>,
}

impl Server {
    fn start(address: &str) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let well = Arc::new(AtomicBool::new(true));
        let is_well = Arc::clone(&well);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                let mut request = [0; 1024];
                drop(stream.read(&mut request));
                let answer: &[u8] = if is_well.load(Ordering::Relaxed) {
                    b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
                } else {
                    b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n"
                };
                drop(stream.write_all(answer));
            }
        });
        Self { address: address.to_owned(), port, well }
    }

    fn set(&self, well: bool) {
        self.well.store(well, Ordering::Relaxed);
    }
}

struct World {
    folder: tempfile::TempDir,
    daemon: Option<Child>,
}

impl World {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), daemon: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write_source(&self, servers: &[&Server]) {
        let mut text = String::from(
            "# the operator's words\n[[tables]]\nname = \"web\"\n\
             hash_key = \"5b1f8a1e6f0c43d2a7e94c0d1b2a3f48\"\n\
             seed = \"d17b6f20c39e4855b0a1427e8cf3690b\"\n\
             binds = [{ ip = \"203.0.113.10\", proto = \"tcp\", port = 80 }]\n",
        );
        for server in servers {
            text += &format!(
                "[[tables.backends]]\nip = \"{}\"\nstate = \"active\" # as it is\n\
                 healthchecks = {{ http = {} }}\n",
                server.address, server.port
            );
        }
        fs::write(self.path("source.toml"), text).unwrap();
    }

    fn start(&mut self) {
        fs::write(
            self.path("healthcheck.toml"),
            "source = \"source.toml\"\nchecked = \"checked.toml\"\n\
             reload_command = \"cat $(dirname $CONFIG)/checked.toml | sha256sum >> $CONFIG.reloads\"\n\
             hold_down_ms = 0\nsettle_ms = 100\ncontrol.socket = \"status.sock\"\ncontrol_targets = []\n\
             [defaults]\ninterval_ms = 200\ntimeout_ms = 100\nrise = 2\nfall = 2\n",
        )
        .unwrap();
        let config = self.path("healthcheck.toml");
        let log = fs::File::options().create(true).append(true).open(self.path("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_glb-healthcheck"))
            .args(["run", "--config"])
            .arg(&config)
            .env("CONFIG", &config)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.daemon = Some(child);
    }

    fn signal(&self, signal: Signal) {
        let id = self.daemon.as_ref().unwrap().id();
        kill(Pid::from_raw(i32::try_from(id).unwrap()), signal).unwrap();
    }

    fn stop(&mut self, signal: Signal) -> bool {
        self.signal(signal);
        self.daemon.take().unwrap().wait().unwrap().success()
    }

    fn ask(&self, words: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_glb-healthcheck"))
            .args(words)
            .arg("--config")
            .arg(self.path("healthcheck.toml"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    fn reloads(&self) -> usize {
        let told = fs::read_to_string(self.path("healthcheck.toml.reloads"));
        told.unwrap_or_default().lines().count()
    }

    fn healthy(&self) -> Option<Vec<bool>> {
        let set = glb_table::load(&self.path("checked.toml")).ok()?;
        Some(set.tables[0].backends.iter().map(|backend| backend.healthy).collect())
    }

    /// How long it took until the checked table said so.
    fn wait_for(&self, wanted: &[bool]) -> Duration {
        let begun = Instant::now();
        while self.healthy().as_deref() != Some(wanted) {
            let took = begun.elapsed();
            let (found, log) = (self.healthy(), self.log());
            assert!(took < Duration::from_secs(10), "{found:?}, wanted {wanted:?}\n{log}");
            thread::sleep(Duration::from_millis(5));
        }
        begun.elapsed()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            drop(daemon.kill());
            drop(daemon.wait());
        }
    }
}

#[test]
fn a_backends_life() {
    let (a, b) = (Server::start("127.1.0.1"), Server::start("127.1.0.2"));
    let mut world = World::new();
    world.write_source(&[&a, &b]);
    b.set(false);
    world.start();
    world.wait_for(&[true, false]);
    let text = fs::read_to_string(world.path("checked.toml")).unwrap();
    assert!(text.starts_with("# the operator's words\n"), "{text}");
    assert!(text.contains("healthy = true\nstate = \"active\" # as it is\n"), "{text}");
    b.set(true);
    world.wait_for(&[true, true]);
    a.set(false);
    let took = world.wait_for(&[false, true]);
    // Two failures 200 ms apart, and well under a second more.
    assert!(took < Duration::from_millis(1400), "{took:?}");
    assert!(world.log().contains("status 503, wanted 200-299"), "{}", world.log());
    thread::sleep(Duration::from_millis(300));
    assert_eq!(world.reloads(), 3);

    let output = world.ask(&["status"]);
    assert!(output.contains("503") && output.contains("UNHEALTHY"), "{output}");
    let json = world.ask(&["status", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let check = &json["tables"][0]["backends"][0]["checks"][0];
    assert_eq!(check["standing"], "down");
    assert!(check["history"].as_str().unwrap().ends_with(".XXX"), "{check}");
    assert_eq!((&json["writes"], &json["reloads"]), (&3.into(), &3.into()));

    // A restart changes nothing, also after SIGKILL.
    assert!(!world.stop(Signal::SIGKILL));
    let before = fs::metadata(world.path("checked.toml")).unwrap().modified().unwrap();
    world.start();
    thread::sleep(Duration::from_millis(900));
    assert_eq!(world.healthy().unwrap(), [false, true]);
    let after = fs::metadata(world.path("checked.toml")).unwrap().modified().unwrap();
    assert_eq!(before, after);
    // What the killed one may not have told is told.
    assert_eq!(world.reloads(), 4);
    assert!(world.stop(Signal::SIGTERM));
}

#[test]
fn reloading_the_source() {
    let servers: Vec<Server> = (1..=3).map(|n| Server::start(&format!("127.2.0.{n}"))).collect();
    let mut world = World::new();
    world.write_source(&[&servers[0], &servers[1]]);
    world.start();
    world.wait_for(&[true, true]);
    let good = fs::read_to_string(world.path("source.toml")).unwrap();

    // A bad source: the old targets go on.
    fs::write(world.path("source.toml"), good.replace("http = ", "htp = ")).unwrap();
    world.signal(Signal::SIGHUP);
    servers[0].set(false);
    world.wait_for(&[false, true]);
    assert!(world.log().contains("healthchecks.htp"), "{}", world.log());

    // A new backend is never written as unhealthy before it was checked (GLB's fault H2), and
    // what did not change keeps its judgement.
    world.write_source(&[&servers[0], &servers[1], &servers[2]]);
    let begun = Instant::now();
    world.signal(Signal::SIGHUP);
    while world.healthy().unwrap().len() == 2 {
        assert!(begun.elapsed() < Duration::from_secs(5), "{}", world.log());
        thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(world.healthy().unwrap(), [false, true, true]);
    world.write_source(&[&servers[1]]);
    world.signal(Signal::SIGHUP);
    world.wait_for(&[true]);
}

#[test]
fn one_hanging_target_delays_nobody() {
    let well = Server::start("127.3.0.1");
    // Accepts in the kernel and never answers.
    let hanging = TcpListener::bind("127.3.0.2:0").unwrap();
    let hanging = Server {
        address: "127.3.0.2".into(),
        port: hanging.local_addr().unwrap().port(),
        well: {
            std::mem::forget(hanging);
            Arc::default()
        },
    };
    let mut world = World::new();
    world.write_source(&[&well, &hanging]);
    world.start();
    world.wait_for(&[true, false]);
    well.set(false);
    assert!(world.wait_for(&[false, false]) < Duration::from_millis(1400));
    assert!(world.log().contains("timeout after 100 ms (answer)"), "{}", world.log());
}

#[test]
fn once_shows_each_check() {
    let (a, b) = (Server::start("127.4.0.1"), Server::start("127.4.0.2"));
    b.set(false);
    let world = World::new();
    world.write_source(&[&a, &b]);
    let run = |more: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_glb-healthcheck"))
            .arg("once")
            .arg(world.path("source.toml"))
            .args(more)
            .output()
            .unwrap()
    };
    let output = run(&[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("127.4.0.2") && text.contains("status 503, wanted 200-299"), "{text}");
    let json = String::from_utf8(run(&["-o", "json"]).stdout).unwrap();
    assert!(json.contains("\"result\": \"pass\"") && json.contains("\"fail\""), "{json}");
    b.set(true);
    assert_eq!(run(&[]).status.code(), Some(0));
}

#[test]
fn errors_at_the_start_name_the_file_and_the_fix() {
    let world = World::new();
    for (config, words) in [
        ("source = \"none.toml\"\nchecked = \"c.toml\"\n", vec!["none.toml"]),
        ("source = \"s.toml\"\n", vec!["healthcheck.toml", "checked"]),
        ("source = \"s.toml\"\nchecked = \"s.toml\"\n", vec!["a file of its own"]),
    ] {
        fs::write(world.path("healthcheck.toml"), config).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_glb-healthcheck"))
            .args(["run", "--config"])
            .arg(world.path("healthcheck.toml"))
            .output()
            .unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success());
        for word in words {
            assert!(text.contains(word), "{word:?} is missing in: {text}");
        }
    }
}
