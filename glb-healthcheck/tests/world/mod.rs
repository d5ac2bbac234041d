//! A checker's whole small world on loopback.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test program uses some of it")]

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// An HTTP server on an address of its own that can be told to be ill.
#[derive(Debug)]
pub struct Server {
    /// Where it is.
    pub address: String,
    /// Its port.
    pub port: u16,
    /// Whether it answers with 200.
    pub well: Arc<AtomicBool>,
    /// How many connections were made to it.
    pub asked: Arc<AtomicUsize>,
}

impl Server {
    pub fn start(address: &str) -> Self {
        Self::answering(address, b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n")
    }

    /// One that gives this answer when it is not well.
    pub fn answering(address: &str, ill: &'static [u8]) -> Self {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let well = Arc::new(AtomicBool::new(true));
        let is_well = Arc::clone(&well);
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { continue };
                count.fetch_add(1, Ordering::Relaxed);
                let mut request = [0; 1024];
                drop(stream.read(&mut request));
                let answer: &[u8] = if is_well.load(Ordering::Relaxed) {
                    b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
                } else {
                    ill
                };
                drop(stream.write_all(answer));
            }
        });
        Self { address: address.to_owned(), port, well, asked }
    }

    pub fn set(&self, well: bool) {
        self.well.store(well, Ordering::Relaxed);
    }
}

/// A checker's files, and the checker while it runs.
#[derive(Debug)]
pub struct World {
    folder: tempfile::TempDir,
    daemon: Option<Child>,
    /// More of the configuration, before its `[defaults]`.
    pub more: String,
}

impl World {
    pub fn new() -> Self {
        let more = "reload_command = \"cat $(dirname $CONFIG)/checked.toml | sha256sum >> \
                    $CONFIG.reloads\"\n";
        let folder = tempfile::tempdir().unwrap();
        Self { folder, daemon: None, more: more.into() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write_source(&self, servers: &[&Server]) {
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

    pub fn start(&mut self) {
        fs::write(
            self.path("healthcheck.toml"),
            format!(
                "source = \"source.toml\"\nchecked = \"checked.toml\"\n{}\
                 hold_down_ms = 0\nsettle_ms = 100\ncontrol.socket = \"status.sock\"\n\
                 control_targets = []\n\
                 [defaults]\ninterval_ms = 200\ntimeout_ms = 100\nrise = 2\nfall = 2\n",
                self.more
            ),
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

    /// The running one's process.
    pub fn id(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    pub fn signal(&self, signal: Signal) {
        let id = self.daemon.as_ref().unwrap().id();
        kill(Pid::from_raw(i32::try_from(id).unwrap()), signal).unwrap();
    }

    pub fn stop(&mut self, signal: Signal) -> bool {
        self.signal(signal);
        self.daemon.take().unwrap().wait().unwrap().success()
    }

    /// What a command answers.
    pub fn ask(&self, words: &[&str]) -> String {
        self.ask_for(words, 0)
    }

    /// What a command answers that ends with this status.
    /// What it says to a start by this configuration, which it must refuse.
    pub fn refuses(&self, config: &str) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_glb-healthcheck"));
        let output = command.args(["run", "--config"]).arg(self.path(config)).output().unwrap();
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }
    pub fn ask_for(&self, words: &[&str], status: i32) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_glb-healthcheck"))
            .args(words)
            .arg("--config")
            .arg(self.path("healthcheck.toml"))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub fn wait_for_log(&self, words: &str) {
        let begun = Instant::now();
        while !self.log().contains(words) {
            assert!(begun.elapsed() < Duration::from_secs(10), "{words:?}: {}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn reloads(&self) -> usize {
        let told = fs::read_to_string(self.path("healthcheck.toml.reloads"));
        told.unwrap_or_default().lines().count()
    }

    pub fn healthy(&self) -> Option<Vec<bool>> {
        let set = glb_table::load(&self.path("checked.toml")).ok()?;
        Some(set.tables[0].backends.iter().map(|backend| backend.healthy).collect())
    }

    /// How long it took until the checked table said so.
    pub fn wait_for(&self, wanted: &[bool]) -> Duration {
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
