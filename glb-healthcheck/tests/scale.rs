//! 10,000 targets at a 2 s interval on loopback. It takes half a minute and wants a quiet machine:
//! `cargo test --release -p glb-healthcheck --test scale -- --ignored --nocapture`

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

const TARGETS: usize = 10_000;
const TIME: Duration = Duration::from_secs(20);

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Processor time of a process so far, in seconds.
fn processor_time(id: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap();
    let words: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    // utime and stime, in ticks of 10 ms.
    (words[11].parse::<f64>().unwrap() + words[12].parse::<f64>().unwrap()) / 100.0
}

/// A line of `/proc/ID/status` in MB.
fn memory(id: u32, key: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

fn run(check: &str, answer: &'static [u8]) {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            if !answer.is_empty() {
                let mut request = [0; 1024];
                drop(stream.read(&mut request));
                drop(stream.write_all(answer));
            }
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let mut source = format!(
        "[healthchecks]\ninterval_ms = 2000\ntimeout_ms = 1000\n{check} = {port}\n\
         [[tables]]\nname = \"t\"\nhash_key = \"5b1f8a1e6f0c43d2a7e94c0d1b2a3f48\"\n\
         seed = \"d17b6f20c39e4855b0a1427e8cf3690b\"\n\
         binds = [{{ ip = \"203.0.113.10\", proto = \"tcp\", port = 80 }}]\n"
    );
    for n in 0..TARGETS {
        let ip = format!("127.{}.{}.{}", 100 + n / 60_000, n / 250 % 250, 1 + n % 250);
        writeln!(source, "[[tables.backends]]\nip = \"{ip}\"\nstate = \"active\"").unwrap();
    }
    fs::write(folder.path().join("s.toml"), source).unwrap();
    let config = folder.path().join("h.toml");
    let text = "source = \"s.toml\"\nchecked = \"c.toml\"\nsocket = \"sock\"\ncontrol = []\n";
    fs::write(&config, text).unwrap();
    let log = folder.path().join("log");
    let child = Command::new(env!("CARGO_BIN_EXE_glb-healthcheck"))
        .args(["run", "--config"])
        .arg(&config)
        .env("GLB_LOG", "warn")
        .stderr(Stdio::from(fs::File::create(&log).unwrap()))
        .spawn()
        .unwrap();
    let child = Ended(child);
    let id = child.0.id();
    let begun = Instant::now();
    while !folder.path().join("c.toml").exists() {
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", fs::read_to_string(&log));
        thread::sleep(Duration::from_millis(10));
    }
    let first = begun.elapsed();
    thread::sleep(Duration::from_secs(3));
    let before = processor_time(id);
    thread::sleep(TIME);
    let share = (processor_time(id) - before) / TIME.as_secs_f64();
    let probes = Command::new(env!("CARGO_BIN_EXE_glb-healthcheck"))
        .args(["status", "-o", "json", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    let status: serde_json::Value = serde_json::from_slice(&probes.stdout).unwrap();
    let backends = status["tables"][0]["backends"].as_array().unwrap();
    let checks = backends.iter().flat_map(|backend| backend["checks"].as_array().unwrap());
    let history: Vec<String> =
        checks.map(|check| check["history"].as_str().unwrap().to_owned()).collect();
    let probes: usize = history.iter().map(String::len).sum();
    let failed: usize = history.iter().map(|strip| strip.matches('X').count()).sum();
    println!(
        "{check}: first table after {:.2} s; {:.1} % of a core; {:.1} MB (most: {:.1} MB); \
         {probes} probes in {:.1} s, {failed} failed",
        first.as_secs_f64(),
        100.0 * share,
        memory(id, "VmRSS"),
        memory(id, "VmHWM"),
        begun.elapsed().as_secs_f64(),
    );
    assert!(probes > TARGETS * 10 && failed == 0, "{}", fs::read_to_string(&log).unwrap());
}

#[test]
#[ignore = "takes half a minute and wants a quiet machine"]
fn ten_thousand_tcp() {
    run("tcp", b"");
}

#[test]
#[ignore = "takes half a minute and wants a quiet machine"]
fn ten_thousand_http() {
    run("http", b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
}
