//! The real daemon in a network and with mounts of its own, on two pairs of interfaces.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use glb_host::{
    bpffs::PinFolder,
    generations::{link_pin, numbers},
    xdp_link::program_behind,
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// Much more than anything takes on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Runs `test` in a thread with mounts and a network of its own.
pub(crate) fn alone(test: impl FnOnce(Site) + Send + 'static) {
    let run = move || test(Site::new());
    if let Err(panic) = thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

pub(crate) fn ip(arguments: &str) {
    let mut ip = Command::new("ip");
    let done = ip.args(arguments.split_whitespace()).status();
    assert!(done.unwrap().success(), "ip {arguments}");
}

/// A machine for a director: interfaces `a` and `b` with neighbours that answer on `pa` and `pb`.
pub(crate) struct Site {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) pins: PathBuf,
}

impl Site {
    fn new() -> Self {
        // Made before the private file system hides the place.
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let pins = super::private_pins().path().with_file_name("director");
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        let site = Self { folder, pins };
        site.link("a", 1);
        site.link("b", 2);
        site.configure("");
        site
    }

    /// Makes an interface and its peer, with permanent neighbours 10.0.N.11 to 10.0.N.18.
    pub(crate) fn link(&self, name: &str, network: u8) {
        let peer = format!("p{name}");
        ip(&format!("link add name {name} type veth peer name {peer}"));
        ip(&format!("link set dev {peer} address 02:00:00:00:{network:02}:02"));
        for interface in [name, &peer] {
            ip(&format!("link set dev {interface} up"));
        }
        // Without a program there, nothing that XDP sends arrives.
        let ports = self.pins.with_file_name("ports");
        fs::create_dir_all(&ports).unwrap();
        let pin = ports.join(&peer);
        drop(fs::remove_file(&pin));
        glb_lab::link::attach_pass(&peer, &pin).unwrap();
        ip(&format!("address add 10.0.{network}.1/24 dev {name}"));
        for host in 11..19 {
            ip(&format!(
                "neighbour replace 10.0.{network}.{host} lladdr 02:00:00:00:{network:02}:02 dev {name} \
                 nud permanent"
            ));
        }
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes the configuration with these lines besides the usual ones.
    pub(crate) fn configure(&self, lines: &str) {
        let interfaces =
            if lines.contains("interfaces") { "" } else { "interfaces = [\"a\", \"b\"]" };
        let text = format!(
            "table = \"table.toml\"\n{interfaces}\nbpffs_dir = \"{}\"\nstate_dir = \"state\"\n\
             control.socket = \"c.sock\"\nprobe.enabled = false\n{lines}\n",
            self.pins.display()
        );
        fs::write(self.at("director.toml"), text).unwrap();
    }

    pub(crate) fn table_file(&self) -> PathBuf {
        self.at("table.toml")
    }

    /// Replaces the table file.
    pub(crate) fn write(&self, text: &str) {
        fs::write(self.at("table.new"), text).unwrap();
        fs::rename(self.at("table.new"), self.table_file()).unwrap();
    }

    pub(crate) fn pins(&self) -> PinFolder {
        PinFolder::open(&self.pins, "glb-director").unwrap().unwrap()
    }

    /// Numbers of what is pinned.
    pub(crate) fn pinned(&self) -> Vec<u64> {
        numbers(&self.pins())
    }

    /// Waits until just these are pinned: a moment after a swap the oldest one goes.
    #[track_caller]
    pub(crate) fn settles_at(&self, numbers: &[u64]) {
        let begun = Instant::now();
        while self.pinned() != numbers {
            assert!(begun.elapsed() < PATIENCE, "{:?} are pinned, not {numbers:?}", self.pinned());
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ids of the programs on the interfaces.
    pub(crate) fn running(&self) -> [Option<u32>; 2] {
        ["a", "b"].map(|name| program_behind(&link_pin(&self.pins(), name)).unwrap())
    }

    pub(crate) fn command(&self, name: &str) -> Command {
        self.command_by(&[], name)
    }

    /// As [`Self::command`], by a program that becomes the director's.
    pub(crate) fn command_by(&self, before: &[&str], name: &str) -> Command {
        let program = env!("CARGO_BIN_EXE_glb-director");
        let words: Vec<&str> = before.iter().copied().chain([program, name, "--config"]).collect();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).arg(self.at("director.toml"));
        command.env("GLB_FAULT_FILE", self.at("fault"));
        command
    }

    /// Runs a command; whether it went well, and what it wrote.
    pub(crate) fn run(&self, name: &str, arguments: &[&str]) -> (bool, String) {
        let output = self.command(name).args(arguments).output().unwrap();
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    }

    /// Runs a command that must go well, and reads its JSON.
    pub(crate) fn json(&self, name: &str, arguments: &[&str]) -> Value {
        let output = self.command(name).args(arguments).args(["-o", "json"]).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
    }

    /// Packets of the first table that were sent to a backend.
    pub(crate) fn encapsulated(&self) -> u64 {
        let counters = self.json("counters", &[]);
        counters["tables"][0]["reasons"]["encapsulated"]["packets"].as_u64().unwrap_or(0)
    }

    /// Mounts the file system of the pins anew with these flags.
    pub(crate) fn remount(&self, flags: MsFlags) {
        let none: Option<&str> = None;
        let root = self.pins.parent().unwrap();
        mount(none, root, none, MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags, none).unwrap();
    }

    /// What is to happen at a place in the daemon.
    pub(crate) fn fault(&self, what: &str) {
        fs::write(self.at("fault"), what).unwrap();
    }

    /// Starts the daemon and does not wait.
    pub(crate) fn spawn(&self) -> Daemon {
        self.spawn_by(self.command("run"))
    }

    /// As [`Self::spawn`], by a command that becomes the daemon.
    pub(crate) fn spawn_by(&self, mut command: Command) -> Daemon {
        let log = self.at("log");
        let file = fs::File::options().create(true).append(true).open(&log).unwrap();
        let start = file.metadata().unwrap().len() as usize;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Daemon { child, log, start }
    }

    /// Starts the daemon and waits until it is ready.
    pub(crate) fn start(&self) -> Daemon {
        self.start_by(self.command("run"))
    }

    /// As [`Self::start`], by a command that becomes the daemon.
    pub(crate) fn start_by(&self, command: Command) -> Daemon {
        let mut daemon = self.spawn_by(command);
        daemon.says("ready", 0);
        daemon
    }
}

/// A running daemon; killed when it is let go.
pub(crate) struct Daemon {
    pub(crate) child: Child,
    log: PathBuf,
    start: usize,
}

impl Daemon {
    pub(crate) fn log(&self) -> String {
        let bytes = fs::read(&self.log).unwrap();
        String::from_utf8_lossy(&bytes[self.start..]).into_owned()
    }

    /// Waits until it has said this, after the first `from` bytes.
    #[track_caller]
    pub(crate) fn says(&mut self, words: &str, from: usize) {
        let begun = Instant::now();
        loop {
            let log = self.log();
            if log.get(from..).is_some_and(|new| new.contains(words)) {
                return;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "ended with {ended:?} before {words:?}:\n{log}");
            assert!(begun.elapsed() < PATIENCE, "{words:?} is missing in:\n{log}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not end:\n{}", self.log());
            thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn end(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.ended()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A table on the network of interface `a` whose backends, by their last octet, have these states.
pub(crate) fn table(name: &str, port: u16, backends: &[(u8, &str)]) -> String {
    let backends: String = backends
        .iter()
        .map(|(host, state)| {
            let address = IpAddr::from([10, 0, 1, *host]);
            format!("{{ ip = \"{address}\", state = \"{state}\", healthy = true }},\n")
        })
        .collect();
    format!(
        "[[tables]]\nname = \"{name}\"\nhash_key = \"12345678901234561234567890123456\"\n\
         seed = \"34567890123456783456789012345678\"\n\
         binds = [{{ ip = \"198.51.100.1\", proto = \"tcp\", port = {port} }}]\n\
         backends = [\n{backends}]\n"
    )
}

/// Every file below a folder.
pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(files_below(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}
