//! The health checker with real servers: every way to be ill, and what the director then does.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use glb_lab::{
    Daemon, Family, Lab, Lock, Node, Plan, Process, Program, TableFile, client, http, vip,
};

use crate::support::build;

const WELL: u8 = 0;
const HANGS: u8 = 1;
const SLOW: u8 = 2;
const BUSY: u8 = 3;
const RESETS: u8 = 4;
const DEAD: u8 = 5;

/// Every check's interval in the lab, and the failures that count.
const INTERVAL: Duration = Duration::from_millis(300);
const TIMEOUT: Duration = Duration::from_millis(200);
const FALL: u32 = 2;

/// Backends of the lab, and half of them.
const ALL: usize = 3;
const HALF: usize = ALL.div_ceil(2);

/// The first so many are unhealthy.
fn first(ill: usize) -> [bool; ALL] {
    std::array::from_fn(|index| index >= ill)
}

/// A web server on port 80 of all of a backend's addresses that can be told to be ill.
struct Server {
    state: Arc<AtomicU8>,
}

impl Server {
    fn start(lab: &Lab, node: Node) -> Result<Self> {
        let state = Arc::new(AtomicU8::new(WELL));
        let (is, netns) = (Arc::clone(&state), lab.netns(node)?.clone());
        let page = format!("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{node}\n");
        ensure!(node.to_string().len() == 8);
        let open = move || netns.run(|| Ok(TcpListener::bind("[::]:80")?));
        let mut listener = Some(open()?);
        thread::spawn(move || {
            let mut held = Vec::new();
            loop {
                let now = is.load(Ordering::Relaxed);
                if now == DEAD {
                    listener = None;
                    held.clear();
                } else if listener.is_none() {
                    listener = open().ok();
                }
                if now == WELL {
                    held.clear();
                }
                let Some(listener) = &listener else {
                    thread::sleep(Duration::from_millis(2));
                    continue;
                };
                listener.set_nonblocking(true).ok();
                let Ok((stream, _)) = listener.accept() else {
                    thread::sleep(Duration::from_millis(2));
                    continue;
                };
                stream.set_nonblocking(false).ok();
                stream.set_read_timeout(Some(Duration::from_secs(3))).ok();
                match now {
                    HANGS => {
                        held.push(stream);
                        continue;
                    }
                    RESETS => {
                        let linger = libc_linger(&stream);
                        if linger.is_err() {
                            return;
                        }
                        continue;
                    }
                    _ => {}
                }
                let page = page.clone();
                thread::spawn(move || answer(stream, now, &page));
            }
        });
        Ok(Self { state })
    }

    fn set(&self, state: u8) {
        self.state.store(state, Ordering::Relaxed);
    }
}

fn answer(mut stream: std::net::TcpStream, state: u8, page: &str) {
    if state == SLOW {
        thread::sleep(TIMEOUT + Duration::from_millis(100));
    }
    let (mut request, mut part) = (Vec::new(), [0; 2048]);
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut part) {
            Ok(length @ 1..) => request.extend_from_slice(&part[..length]),
            _ => return,
        }
    }
    let busy = "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n";
    stream.write_all(if state == BUSY { busy } else { page }.as_bytes()).ok();
}

/// Closing the stream resets the connection.
fn libc_linger(stream: &std::net::TcpStream) -> std::io::Result<()> {
    socket2::SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

/// A fleet whose director reads what a health checker on the same machine writes.
struct Checked {
    checker: Process,
    director: Daemon,
    redirects: Vec<Daemon>,
    servers: Vec<Server>,
    folder: PathBuf,
    lab: Lab,
}

const DIRECTOR: Node = Node::Director(1);

impl Checked {
    fn up(name: &str, more: &str) -> Result<Self> {
        build()?;
        let lab = Lab::up(Plan { backends: ALL as u8, ..Plan::new(name) })?;
        let (mut servers, mut redirects) = (Vec::new(), Vec::new());
        for node in lab.plan().backend_nodes() {
            servers.push(Server::start(&lab, node)?);
            let mut redirect = Daemon::redirect(&lab, node, true)?;
            redirect.start(&lab)?;
            redirects.push(redirect);
        }
        let table = TableFile::new(lab.plan());
        let mut director = Daemon::director(&lab, DIRECTOR, &table)?;
        director.start(&lab)?;
        lab.route_vips_to(&[DIRECTOR])?;

        let folder = lab.folder(DIRECTOR)?;
        let check =
            |family| format!("{{ address = \"{}\", port = 80, path = \"/\" }}", vip(family));
        let source = format!(
            "[healthchecks]\ninterval_ms = {}\ntimeout_ms = {}\nrise = 2\nfall = {FALL}\n\
             gue = 19523\nhttp = 80\nvip = [{}, {}]\n\n{}",
            INTERVAL.as_millis(),
            TIMEOUT.as_millis(),
            check(Family::V4),
            check(Family::V6),
            table.toml()?,
        );
        fs::write(folder.join("source.toml"), source)?;
        let pid = director.id().context("the director runs")?;
        let config = format!(
            "source = \"source.toml\"\nchecked = \"table.toml\"\nsocket = \"health.sock\"\n\
             reload_command = \"kill -HUP {pid}\"\nsettle_ms = 200\n{more}"
        );
        fs::write(folder.join("healthcheck.toml"), config)?;
        let checker = checker(&lab)?;
        let mut fleet = Self { checker, director, redirects, servers, folder, lab };
        fleet.checker.wait_for_log("ready", 0, Duration::from_secs(10))?;
        fleet.in_force(&[true; ALL], 0)?;
        Ok(fleet)
    }

    fn written(&self) -> Result<Vec<bool>> {
        let text = fs::read_to_string(self.folder.join("table.toml"))?;
        let of = |line: &str| line.strip_prefix("healthy = ").map(|word| word == "true");
        Ok(text.lines().filter_map(of).collect())
    }

    /// Waits until the table says so; returns how long it took.
    fn wait(&mut self, wanted: &[bool]) -> Result<Duration> {
        let begun = Instant::now();
        while self.written()? != wanted {
            if begun.elapsed() > Duration::from_secs(15) {
                bail!("{:?}, wanted {wanted:?}:\n{}", self.written()?, self.checker.log()?);
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(begun.elapsed())
    }

    /// Waits until the table says so and the director has that in force; returns how long both
    /// took. `told` is how often the director had been told before.
    fn in_force(&mut self, wanted: &[bool], told: usize) -> Result<(Duration, Duration)> {
        let begun = Instant::now();
        self.wait(wanted)?;
        let written = begun.elapsed();
        while self.told()? == told {
            ensure!(begun.elapsed() < Duration::from_secs(10), "{}", self.checker.log()?);
            thread::sleep(Duration::from_millis(2));
        }
        self.quiet()?;
        Ok((written, begun.elapsed()))
    }

    fn told(&self) -> Result<usize> {
        Ok(self.checker.log()?.matches("reload command done").count())
    }

    /// Waits until the director has in force what it was last told.
    fn quiet(&mut self) -> Result<()> {
        let last = |log: String, text: &str| {
            let line = log.lines().rev().find(|line| line.contains(text));
            line.and_then(|line| line.split('Z').next()).unwrap_or_default().to_owned()
        };
        let begun = Instant::now();
        loop {
            let told = last(self.checker.log()?, "reload command done");
            let in_force = last(self.director.process()?.log()?, "in force");
            if !told.is_empty() && in_force > told {
                return Ok(());
            }
            ensure!(begun.elapsed() < Duration::from_secs(20), "{in_force}, told {told}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// New requests from many clients: who answered.
    fn ask(&self, requests: u16) -> Result<BTreeMap<String, u32>> {
        let mut answers = BTreeMap::new();
        for number in 0..requests {
            let to = SocketAddr::new(vip(Family::V4), 80);
            let from = client(Family::V4, number);
            let reply = http::get_in(self.lab.netns(Node::Client)?, from, to, "/");
            let reply = reply.map_or_else(|error| format!("none: {error:#}"), |r| r.to_string());
            *answers.entry(reply).or_default() += 1;
        }
        Ok(answers)
    }

    fn writes(&self) -> Result<usize> {
        Ok(self.checker.log()?.matches("checked table written").count())
    }

    fn reason(&self, from: usize) -> Result<String> {
        let log = self.checker.log()?;
        let found = log[from..].lines().find(|line| line.contains(" WARN "));
        let line = found.and_then(|line| line.split("down ").nth(1)).unwrap_or("?");
        Ok(line.chars().take(150).collect())
    }
}

fn checker(lab: &Lab) -> Result<Process> {
    let program = Program::Director.path()?.with_file_name("glb-healthcheck");
    let mut command = lab.netns(DIRECTOR)?.command(program);
    command.args(["run", "--config"]).arg(lab.folder(DIRECTOR)?.join("healthcheck.toml"));
    lab.spawn(DIRECTOR, "glb-healthcheck", command.env("NO_COLOR", "1"))
}

type Act = fn(&mut Checked) -> Result<()>;

fn ill(fleet: &mut Checked, state: u8) -> Result<()> {
    fleet.servers[0].set(state);
    Ok(())
}

/// Packets from one backend are lost on the way out.
fn blackhole(fleet: &mut Checked, on: bool) -> Result<()> {
    let state = if on { "down" } else { "up" };
    let port = Node::Backend(1);
    fleet.lab.netns(Node::Router)?.ip(&format!("link set {port} {state}\n"))
}

fn vip_on_lo(fleet: &mut Checked, there: bool) -> Result<()> {
    let word = if there { "add" } else { "del" };
    let vip = vip(Family::V4);
    fleet.lab.netns(Node::Backend(1))?.ip(&format!("address {word} {vip}/32 dev lo\n"))
}

#[test]
fn every_way_to_be_ill() -> Result<()> {
    let _lock = Lock::wait("timing")?;
    let mut fleet = Checked::up("glb-t-ill", "hold_down_ms = 0\n")?;
    let cases: [(&str, Act, Act); 8] = [
        ("dies", |f| ill(f, DEAD), |f| ill(f, WELL)),
        ("hangs", |f| ill(f, HANGS), |f| ill(f, WELL)),
        ("slow", |f| ill(f, SLOW), |f| ill(f, WELL)),
        ("wrong status", |f| ill(f, BUSY), |f| ill(f, WELL)),
        ("reset", |f| ill(f, RESETS), |f| ill(f, WELL)),
        ("blackholed", |f| blackhole(f, true), |f| blackhole(f, false)),
        (
            "redirect program gone",
            |f| {
                f.redirects[0].end(nix::sys::signal::Signal::SIGTERM)?;
                f.redirects[0].detach(&f.lab)?;
                // Its VIPs may have gone with it; this case is about the program alone.
                vip_on_lo(f, true).ok();
                Ok(())
            },
            |f| f.redirects[0].start(&f.lab),
        ),
        ("VIP missing", |f| vip_on_lo(f, false), |f| vip_on_lo(f, true)),
    ];
    // The last failure may come in a timeout after its probe began.
    let limit = INTERVAL * FALL + TIMEOUT + Duration::from_secs(1);
    for (name, fall_ill, recover) in cases {
        let from = fleet.checker.log()?.len();
        let told = fleet.told()?;
        fall_ill(&mut fleet)?;
        let (written, in_force) = fleet.in_force(&first(1), told).context(name)?;
        let answers = fleet.ask(24)?;
        println!("{name}: written {written:.2?}, in force {in_force:.2?}, {answers:?}");
        println!("    {}", fleet.reason(from)?);
        // A generation takes the director half a second of a core, and the cores may be busy.
        ensure!(written < limit, "{name}: written after {written:?}, wanted {limit:?}");
        ensure!(in_force < limit + Duration::from_secs(5), "{name}: in force after {in_force:?}");
        ensure!(
            answers.values().sum::<u32>() == 24 && answers.len() == ALL - 1,
            "{name}: {answers:?}"
        );
        ensure!(answers.keys().all(|key| key.starts_with("200")), "{name}: {answers:?}");
        let told = fleet.told()?;
        recover(&mut fleet).context(name)?;
        fleet.in_force(&[true; ALL], told).context(name)?;
    }
    Ok(())
}

#[test]
fn many_at_once_and_a_checker_that_is_cut_off() -> Result<()> {
    let _lock = Lock::wait("timing")?;
    let mut fleet = Checked::up("glb-t-many", "hold_down_ms = 0\n")?;
    let limit = INTERVAL * FALL + TIMEOUT + Duration::from_secs(1);

    let (before, told) = (fleet.writes()?, fleet.told()?);
    fleet.servers[..HALF].iter().for_each(|server| server.set(DEAD));
    let (took, in_force) = fleet.in_force(&first(HALF), told)?;
    let writes = fleet.writes()? - before;
    println!("half at once: written {took:.2?} in {writes} writes, in force {in_force:.2?}");
    ensure!(took < limit && writes <= 2);
    // A row has two hops: where both are dead nothing helps (a third of the rows here), and
    // everywhere else the living one answers.
    let answers = fleet.ask(24)?;
    let answered = answers.get("200 backend3").copied().unwrap_or(0);
    println!("    {answered} of 24 requests answered");
    ensure!((12..=24).contains(&answered), "{answers:?}");

    // A whole table dies, and the gateway answers: they are dead.
    fleet.servers.iter().for_each(|server| server.set(DEAD));
    let took = fleet.wait(&[false; ALL])?;
    println!("all at once: written {took:.0?}");
    ensure!(took < limit);
    fleet.servers.iter().for_each(|server| server.set(WELL));
    fleet.wait(&[true; ALL])?;

    // The checker's own link breaks: nothing is said of anybody. A write is logged, and so counted,
    // a moment after the file is there.
    thread::sleep(Duration::from_millis(300));
    let before = fleet.writes()?;
    fleet.lab.netns(Node::Router)?.ip(&format!("link set {DIRECTOR} down\n"))?;
    thread::sleep(Duration::from_secs(4));
    let log = fleet.checker.log()?;
    ensure!(log.contains("CUT OFF"), "{log}");
    ensure!(fleet.writes()? == before, "{log}");
    fleet.lab.netns(Node::Router)?.ip(&format!("link set {DIRECTOR} up\n"))?;
    fleet.checker.wait_for_log("connected again", 0, Duration::from_secs(10))?;
    thread::sleep(Duration::from_secs(2));
    ensure!(fleet.writes()? == before && fleet.written()? == [true; ALL]);
    println!("cut off for 4 s: no write");

    // SIGSTOP of the checker is no failure of the fleet.
    let id = nix::unistd::Pid::from_raw(i32::try_from(fleet.checker.id())?);
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGSTOP)?;
    thread::sleep(Duration::from_secs(3));
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGCONT)?;
    thread::sleep(Duration::from_secs(2));
    ensure!(fleet.writes()? == before, "{}", fleet.checker.log()?);
    println!("stopped for 3 s: no write");
    Ok(())
}

#[test]
fn flapping_at_every_rate() -> Result<()> {
    let _lock = Lock::wait("timing")?;
    let fleet = Checked::up("glb-t-flap", "hold_down_ms = 1000\nforgive_ms = 60000\n")?;
    for period in [50, 150, 300, 700, 1500] {
        let before = fleet.writes()?;
        let begun = Instant::now();
        let mut toggles = 0;
        while begun.elapsed() < Duration::from_secs(6) {
            toggles += 1;
            fleet.servers[0].set(if toggles % 2 == 1 { BUSY } else { WELL });
            thread::sleep(Duration::from_millis(period));
        }
        fleet.servers[0].set(WELL);
        let writes = fleet.writes()? - before;
        println!("flapping every {period} ms, {toggles} times: {writes} writes");
        // Held for 1 s, then 2, then 4: more than three falls do not fit.
        ensure!(writes <= 6, "{writes} writes");
        let others = fleet.written()?;
        ensure!(others[1..] == [true; ALL - 1], "{others:?}");
    }
    Ok(())
}

#[test]
fn a_missing_permission_is_named() -> Result<()> {
    build()?;
    let lab = Lab::up(Plan { backends: 1, ..Plan::new("glb-t-nocap") })?;
    let folder = lab.folder(DIRECTOR)?;
    let config = "source = \"source.toml\"\nchecked = \"table.toml\"\nsocket = \"health.sock\"\n";
    fs::write(folder.join("healthcheck.toml"), config)?;
    let table = TableFile::new(lab.plan()).toml()?;
    for (check, words) in [
        ("gue = 19523".to_owned(), ["healthchecks.gue", "CAP_NET_RAW"]),
        (
            format!("vip = {{ address = \"{}\", port = 80 }}", vip(Family::V4)),
            ["healthchecks.vip", "CAP_NET_ADMIN"],
        ),
    ] {
        fs::write(folder.join("source.toml"), format!("[healthchecks]\n{check}\n\n{table}"))?;
        let program = Program::Director.path()?.with_file_name("glb-healthcheck");
        let mut command = lab.netns(DIRECTOR)?.command("setpriv");
        command.args(["--bounding-set=-all", "--inh-caps=-all"]).arg(program);
        command.args(["run", "--config"]).arg(folder.join("healthcheck.toml"));
        let output = glb_lab::command::finish(&mut command)?;
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "{text}");
        for word in words {
            ensure!(text.contains(word), "{word} is missing in: {text}");
        }
    }
    Ok(())
}
