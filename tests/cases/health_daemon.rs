//! The health checker as a daemon: its user, its service manager, its disk, and GLB's own tests.

use std::{
    fs,
    net::SocketAddr,
    os::unix::{fs::chown, net::UnixDatagram},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use glb_lab::{
    Daemon, Family, FaultyServer, Health, Lab, Node, Plan, Program, TableFile, command, http,
    interrupt, vip,
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::Signal,
};

use crate::{service::next_notification, support::build};

const DIRECTOR: Node = Node::Director(1);
const PATIENCE: Duration = Duration::from_secs(30);

/// A lab with one healthy backend and no processes on the director's node.
fn lab(name: &str) -> Result<(Lab, Daemon, FaultyServer)> {
    build()?;
    let lab = Lab::up(Plan { backends: 1, ..Plan::new(name) })?;
    let mut redirect = Daemon::redirect(&lab, Node::Backend(1), true)?;
    redirect.start(&lab)?;
    let server = FaultyServer::start(&lab, Node::Backend(1), Duration::from_secs(1))?;
    Ok((lab, redirect, server))
}

fn source(lab: &Lab, checks: &str) -> Result<String> {
    let pace = "interval = \"300ms\", timeout = \"200ms\", rise = 1, fall = 1";
    Ok(format!("healthchecks = {{ {pace}, {checks} }}\n{}", TableFile::new(lab.plan()).toml()?))
}

/// A user id that no machine uses.
const USER: u32 = 47_112;

/// The privileges of the unit file: a separate user, CAP_NET_RAW for `gue`, CAP_NET_ADMIN for
/// `vip`, and none for operator commands.
#[test]
fn checker_runs_as_an_unprivileged_user() -> Result<()> {
    let (lab, _redirect, _server) = lab("glb-t-huser")?;
    let own = lab.scratch().join("own");
    fs::create_dir_all(&own)?;
    chown(&own, Some(USER), Some(USER))?;
    let nothing = "exec = { command = [\"grep\", \"-q\", \"CapEff:.0000000000000000\", \"/proc/self/status\"] }";
    let checks = format!(
        "gue = 19523, http = 80, vip = {{ address = \"{}\", port = 80, path = \"/\" }}, {nothing}",
        vip(Family::V4)
    );
    fs::write(own.join("source.toml"), source(&lab, &checks)?)?;
    fs::write(
        own.join("h.toml"),
        "input = \"source.toml\"\noutput = \"table.toml\"\ncontrol.socket = \"sock\"\n",
    )?;
    let mut run = lab.netns(DIRECTOR)?.command("setpriv");
    run.args([format!("--reuid={USER}"), format!("--regid={USER}")]);
    run.args(["--clear-groups", "--no-new-privs"]);
    for set in ["--inh-caps", "--ambient-caps", "--bounding-set"] {
        run.arg(format!("{set}=-all,+net_raw,+net_admin"));
    }
    run.arg(Program::Healthcheck.path()?).args(["run", "--config"]).arg(own.join("h.toml"));
    let mut process = lab.spawn(DIRECTOR, "glb-healthcheck-user", &mut run)?;
    process.wait_for_log("ready", 0, PATIENCE)?;
    let text = fs::read_to_string(own.join("table.toml"))?;
    ensure!(text.contains("healthy = true"), "{text}\n{}", process.log()?);
    Ok(())
}

/// The notifications for the service manager: ready after the first round, reloads, the watchdog,
/// and stop.
#[test]
fn checker_notifies_the_service_manager() -> Result<()> {
    let (lab, _redirect, server) = lab("glb-t-hservice")?;
    // The first round takes a full timeout.
    server.set(Health::Hangs);
    let checker = Daemon::healthcheck(&lab, DIRECTOR, &source(&lab, "http = 80")?, "")?;
    let path = lab.scratch().join("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut run = lab.netns(DIRECTOR)?.command("sh");
    run.args(["-c", "WATCHDOG_PID=$$ exec \"$@\"", "sh"]).arg(Program::Healthcheck.path()?);
    run.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "1000000");
    run.args(["run", "--log-format", "json", "--config"]).arg(checker.config());
    let mut process = lab.spawn(DIRECTOR, "glb-healthcheck-json", &mut run)?;
    let message = next_notification(&socket, "READY=1")?;
    ensure!(message.contains("STATUS=checking 1 targets"), "{message}");
    let text = fs::read_to_string(checker.config().with_file_name("table.toml"))?;
    ensure!(text.contains("healthy = false"), "ready before the first round: {text}");
    for _ in 0..3 {
        next_notification(&socket, "WATCHDOG=1")?;
    }
    process.signal(Signal::SIGHUP)?;
    next_notification(&socket, "RELOADING=1")?;
    next_notification(&socket, "READY=1")?;
    fs::write(checker.config().with_file_name("source.toml"), "nonsense")?;
    process.signal(Signal::SIGHUP)?;
    next_notification(&socket, "the last reload failed")?;
    process.signal(Signal::SIGTERM)?;
    next_notification(&socket, "STOPPING=1")?;
    ensure!(process.wait(PATIENCE)?.success());
    for line in process.log()?.lines() {
        serde_json::from_str::<serde_json::Value>(line)
            .with_context(|| format!("no JSON: {line}"))?;
    }
    Ok(())
}

/// The wall clock jumps by years in both directions without an effect on health.
#[test]
fn wall_clock_jump_marks_no_backend_unhealthy() -> Result<()> {
    let (lab, _redirect, _server) = lab("glb-t-hclock")?;
    let checker =
        Daemon::healthcheck(&lab, DIRECTOR, &source(&lab, "http = 80, gue = 19523")?, "")?;
    // Its wall clock comes from this file, read at each call; the other clocks are the kernel's.
    let clock = lab.scratch().join("clock");
    fs::write(&clock, "+0")?;
    let library =
        command::output(Command::new("faketime").args(["-f", "+0", "printenv", "LD_PRELOAD"]))?;
    let mut run = lab.netns(DIRECTOR)?.command(Program::Healthcheck.path()?);
    run.env("LD_PRELOAD", library.trim()).env("FAKETIME_TIMESTAMP_FILE", &clock);
    run.env("FAKETIME_NO_CACHE", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    run.args(["run", "--config"]).arg(checker.config());
    let mut process = lab.spawn(DIRECTOR, "glb-healthcheck-clock", &mut run)?;
    process.wait_for_log("ready", 0, PATIENCE)?;
    let probes = || -> Result<u64> {
        let status = command::output(checker.command(&lab, "status")?.args(["-o", "json"]))?;
        let status: serde_json::Value = serde_json::from_str(&status)?;
        let checks =
            status["tables"][0]["backends"][0]["checks"].as_array().context("no checks")?;
        ensure!(checks.iter().all(|check| check["health"] == "healthy"), "{status}");
        Ok(checks.iter().filter_map(|check| check["probes"].as_u64()).sum())
    };
    let year = |log: &str| log.lines().last().and_then(|line| line.get(..4)?.parse::<u32>().ok());
    let now = year(&process.log()?).context("no year in the log")?;
    for (jump, years) in [("+2y", 1..=3), ("-2y", -3..=-1), ("+0", 0..=0)] {
        let before = probes()?;
        fs::write(&clock, jump)?;
        thread::sleep(Duration::from_secs(2));
        let made = probes()? - before;
        // Two checks with a probe every 300 ms: neither silence nor a burst.
        ensure!((4..=24).contains(&made), "{jump}: {made} probes in 2 s");
        // The jump happened: the log shows the date.
        let from = process.log()?.len();
        process.signal(Signal::SIGHUP)?;
        process.wait_for_log("reloaded", from, PATIENCE)?;
        let then = year(&process.log()?).context("no year in the log")?;
        let moved = i64::from(then) - i64::from(now);
        ensure!(years.contains(&moved), "{jump}: the log is of {then}, it began in {now}");
    }
    let log = process.log()?;
    ensure!(!log.contains(" WARN ") && !log.contains("unhealthy"), "{log}");
    ensure!(log.matches("output written").count() == 1, "{log}");
    Ok(())
}

/// A mounted file system that is unmounted on drop.
struct Disk(PathBuf);

impl Disk {
    fn mount(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let nothing = MsFlags::empty();
        mount(Some("tmpfs"), folder, Some("tmpfs"), nothing, Some("size=64k,mode=0700"))?;
        Ok(Self(folder.to_owned()))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!("left behind: {}: {error}", self.0.display());
        }
    }
}

#[test]
fn full_disk_keeps_the_old_table_and_the_write_is_retried() -> Result<()> {
    let (lab, _redirect, server) = lab("glb-t-hdisk")?;
    let mut checker =
        Daemon::healthcheck(&lab, DIRECTOR, &source(&lab, "http = 80")?, "hold_down = \"0ms\"\n")?;
    let folder = lab.scratch().join("disk");
    let _disk = Disk::mount(&folder)?;
    let config = fs::read_to_string(checker.config())?;
    let place = format!("output = \"{}\"", folder.join("table.toml").display());
    fs::write(checker.config(), config.replace("output = \"table.toml\"", &place))?;
    checker.start(&lab)?;
    let table = || fs::read_to_string(folder.join("table.toml"));
    let before = table()?;
    ensure!(before.contains("healthy = true"), "{before}");
    // The file system is full to the last byte.
    let filled = fs::write(folder.join("fill"), vec![0; 1 << 20]);
    ensure!(filled.is_err(), "it is not full");
    server.set(Health::Dead);
    checker.process()?.wait_for_log("No space left on device", 0, PATIENCE)?;
    ensure!(table()? == before, "the old table is not whole");
    let status = command::finish(&mut checker.command(&lab, "status")?)?;
    let text = String::from_utf8_lossy(&status.stdout).into_owned();
    ensure!(status.status.code() == Some(4) && text.contains("NOT PUBLISHED"), "{text}");
    // The table, its lock file, and the file that fills the disk.
    ensure!(fs::read_dir(&folder)?.count() == 3, "something half-written is left");
    fs::remove_file(folder.join("fill"))?;
    interrupt::wait("the write", PATIENCE, || {
        Ok(table()?.contains("healthy = false").then_some(()))
    })?;
    Ok(())
}

/// An echo through the tunnel to the same machine, which is director and backend. The backend's
/// program is attached to the loopback, too.
#[test]
fn gue_check_works_on_a_combined_director_and_backend() -> Result<()> {
    let (lab, mut redirect, _server) = lab("glb-t-hself")?;
    let node = Node::Backend(1);
    redirect.end(Signal::SIGTERM)?;
    redirect.detach(&lab)?;
    let config = fs::read_to_string(redirect.config())?;
    let config = config.replace("[\"eth0\"]", "[\"eth0\", \"lo\"]");
    let own = format!("directors = [\"{}\", \"{}\", ", node.v4(), node.v6());
    fs::write(redirect.config(), config.replace("directors = [", &own))?;
    let check = |family| -> Result<(bool, String)> {
        let mut plan = lab.plan().clone();
        plan.tunnel = family;
        let table = format!("healthchecks = {{ gue = 19523 }}\n{}", TableFile::new(&plan).toml()?);
        let file = lab.folder(node)?.join("check.toml");
        fs::write(&file, table)?;
        let mut check = lab.netns(node)?.command(Program::Healthcheck.path()?);
        let output = command::finish(check.arg("check").arg(file))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok((output.status.success(), text))
    };
    for family in [Family::V4, Family::V6] {
        let (passes, text) = check(family)?;
        ensure!(!passes && text.contains("fail"), "without the program: {text}");
    }
    redirect.start(&lab)?;
    for family in [Family::V4, Family::V6] {
        let (passes, text) = check(family)?;
        ensure!(passes, "{text}");
    }
    Ok(())
}

/// The assertions of `test-basic.sh` of GLB's checker, on GLB's own files and port.
#[test]
fn glb_test_suite_assertions_hold() -> Result<()> {
    build()?;
    let lab = Lab::up(Plan { backends: 2, ..Plan::new("glb-t-hglb") })?;
    let (mut redirects, mut servers) = (Vec::new(), Vec::new());
    for node in lab.plan().backend_nodes() {
        let mut redirect = Daemon::redirect(&lab, node, true)?;
        redirect.start(&lab)?;
        redirects.push(redirect);
        servers.push(FaultyServer::start(&lab, node, Duration::from_secs(1))?);
    }
    // GLB's proxies 192.168.50.10, .11, .99 (does not exist) and .5 (the checker's own machine).
    let address = |node: Node| node.v4().to_string();
    let (one, two) = (address(Node::Backend(1)), address(Node::Backend(2)));
    let (nobody, own) = ("10.0.2.99".to_owned(), address(DIRECTOR));
    let backend = |ip: &str, checks: &str| {
        format!("{{\"ip\": \"{ip}\", \"state\": \"active\", \"healthchecks\": {{{checks}}}}}")
    };
    let usual = "\"http\": 80, \"gue\": 19523";
    let table = |name: &str, seed: &str, ip: &str, backends: &[String]| {
        format!(
            "{{{name}\"hash_key\": \"12345678901234561234567890123456\", \"seed\": \"{seed}\", \
             \"binds\": [{{\"ip\": \"{ip}\", \"proto\": \"tcp\", \"port\": 80}}], \
             \"backends\": [{}]}}",
            backends.join(", ")
        )
    };
    let seeds = ["34567890123456783456789012345678", "12345678901234561234567890123456"];
    let first = |name| {
        let backends = [&one, &two, &nobody].map(|ip| backend(ip, usual));
        table(name, seeds[0], "1.1.1.1", &backends)
    };
    let second = [
        backend(&one, "\"http\": 5555, \"gue\": 19523"),
        backend(&two, "\"http\": 80, \"gue\": 19000"),
        backend(&nobody, usual),
        backend(&own, "\"http\": 8765"),
    ];
    let second = table("\"name\": \"example2\", ", seeds[1], "1.1.1.2", &second);
    let file = |tables: &[String]| format!("{{\"tables\": [{}]}}", tables.join(", "));
    let folder = lab.folder(DIRECTOR)?;
    let (src, dst) =
        (folder.join("forwarding_table.json"), folder.join("forwarding_table.hc.json"));
    fs::write(&src, file(&[first("\"name\": \"example1\", "), second]))?;
    let config = folder.join("config.json");
    fs::write(
        &config,
        format!(
            "{{\"forwarding_table\": {{\"src\": \"{}\", \"dst\": \"{}\"}}, \"reload_command\": \
             \"echo 'Stubbed out' >> {}\"}}",
            src.display(),
            dst.display(),
            folder.join("reload.txt").display()
        ),
    )?;
    let mut run = lab.netns(DIRECTOR)?.command(Program::Healthcheck.path()?);
    let mut process =
        lab.spawn(DIRECTOR, "glb-healthcheck-glb", run.args(["run", "--config"]).arg(&config))?;
    process.wait_for_log("ready", 0, PATIENCE)?;
    let healthy = |table: usize| -> Result<Vec<bool>> {
        let json: serde_json::Value = serde_json::from_str(&fs::read_to_string(&dst)?)?;
        let backends = json["tables"][table]["backends"].as_array().context("no backends")?;
        Ok(backends.iter().map(|backend| backend["healthy"] == true).collect())
    };

    // "service starts up, exposes debug vars": it answers at its port.
    let to = SocketAddr::from(([127, 0, 0, 1], 19520));
    let reply = http::get_in(lab.netns(DIRECTOR)?, [127, 0, 0, 1].into(), to, "/health")?;
    ensure!(reply.status == 200 && !reply.body.is_empty(), "{reply}");
    // "outputs the healthcheck file with valid health".
    ensure!(healthy(0)? == [true, true, false], "{}", process.log()?);
    ensure!(healthy(1)? == [false; 4], "{}", process.log()?);

    // "responds to health check changes": not before three answers in a row, either way.
    let wait = |wanted: bool| -> Result<Duration> {
        let begun = Instant::now();
        interrupt::wait("the change", PATIENCE, || Ok((healthy(1)?[3] == wanted).then_some(())))?;
        Ok(begun.elapsed())
    };
    let local = LocalServer::start(&lab)?;
    let took = wait(true)?;
    ensure!(took > Duration::from_millis(3500), "healthy after {took:?}");
    drop(local);
    let took = wait(false)?;
    ensure!(took > Duration::from_millis(3500), "unhealthy after {took:?}");

    // "reload should take effect": tables without names, the second one with the usual checks.
    let again = [&one, &two, &nobody].map(|ip| backend(ip, usual));
    fs::write(&src, file(&[first(""), table("", seeds[1], "1.1.1.2", &again)]))?;
    process.signal(Signal::SIGHUP)?;
    interrupt::wait("the reload", PATIENCE, || {
        Ok((healthy(1)? == [true, true, false]).then_some(()))
    })?;
    ensure!(healthy(0)? == [true, true, false], "{}", process.log()?);
    ensure!(fs::read_to_string(folder.join("reload.txt"))?.lines().count() >= 3);
    Ok(())
}

/// A web server on the checker's own machine, port 8765.
struct LocalServer(std::sync::Arc<std::sync::atomic::AtomicBool>);

impl LocalServer {
    fn start(lab: &Lab) -> Result<Self> {
        use std::{
            io::{Read as _, Write as _},
            net::TcpListener,
            sync::atomic::Ordering,
        };
        let listener = lab.netns(DIRECTOR)?.run(|| {
            let listener = TcpListener::bind("0.0.0.0:8765")?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })?;
        let ended = std::sync::Arc::<std::sync::atomic::AtomicBool>::default();
        let is_ended = std::sync::Arc::clone(&ended);
        thread::spawn(move || {
            while !is_ended.load(Ordering::Relaxed) {
                let Ok((mut stream, _)) = listener.accept() else {
                    thread::sleep(Duration::from_millis(5));
                    continue;
                };
                stream.set_nonblocking(false).ok();
                if stream.read(&mut [0; 1024]).is_ok() {
                    stream.write_all(b"HTTP/1.0 200 OK\r\ncontent-length: 0\r\n\r\n").ok();
                }
            }
        });
        Ok(Self(ended))
    }
}

impl Drop for LocalServer {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// promtool finds no fault in the metrics.
#[test]
fn checker_metrics_pass_promtool() -> Result<()> {
    let (lab, _redirect, _server) = lab("glb-t-hprom")?;
    let checks = source(&lab, "http = 80, gue = 19523")?;
    let at = SocketAddr::new(DIRECTOR.v4().into(), 9651);
    let mut checker =
        Daemon::healthcheck(&lab, DIRECTOR, &checks, &format!("metrics = \"{at}\"\n"))?;
    checker.start(&lab)?;
    let reply = http::get_in(lab.netns(DIRECTOR)?, DIRECTOR.v4().into(), at, "/metrics")?;
    let file = lab.scratch().join("metrics");
    fs::write(&file, &reply.body)?;
    let script = format!("promtool check metrics < '{}'", file.display());
    let output = command::finish(Command::new("sh").args(["-c", &script]))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.trim().is_empty(), "{said}\n{reply}");
    Ok(())
}
