//! The daemon on loopback, with HTTP servers as backends.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;

use std::{
    fs,
    net::TcpListener,
    process::Command,
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use fixture::{Fixture, HttpServer};
use nix::sys::signal::Signal;

#[test]
fn health_changes_are_written_and_survive_a_restart() {
    let (a, b) = (HttpServer::start("127.1.0.1"), HttpServer::start("127.1.0.2"));
    let mut checker = Fixture::new();
    checker.write_input(&[&a, &b]);
    b.set(false);
    checker.start();
    checker.wait_for(&[true, false]);
    let text = fs::read_to_string(checker.path("output.toml")).unwrap();
    assert!(text.starts_with("# Written by glb-healthcheck from /"), "{text}");
    assert!(text.contains("\n# the operator's comment\n"), "{text}");
    assert!(text.contains("healthy = true\nstate = \"active\" # as it is\n"), "{text}");
    b.set(true);
    checker.wait_for(&[true, true]);
    a.set(false);
    let took = checker.wait_for(&[false, true]);
    // Two failures 200 ms apart, plus well under a second.
    assert!(took < Duration::from_millis(1400), "{took:?}");
    assert!(checker.log().contains("status 503, expected 200-299"), "{}", checker.log());
    thread::sleep(Duration::from_millis(300));
    assert_eq!(checker.reloads(), 3);

    let output = checker.ask(&["status"]);
    assert!(output.contains("503") && output.contains("UNHEALTHY"), "{output}");
    let json = checker.ask(&["status", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let check = &json["tables"][0]["backends"][0]["checks"][0];
    assert_eq!(check["health"], "unhealthy");
    let history = check["history"].as_str().unwrap();
    assert!(history.ends_with("XXX") && history.trim_end_matches('X').ends_with('.'), "{check}");
    assert_eq!((&json["writes"], &json["reloads"]), (&3.into(), &3.into()));

    // A restart changes nothing, not even after SIGKILL.
    assert!(!checker.stop(Signal::SIGKILL));
    let before = fs::metadata(checker.path("output.toml")).unwrap().modified().unwrap();
    checker.start();
    thread::sleep(Duration::from_millis(900));
    assert_eq!(checker.healthy().unwrap(), [false, true]);
    let after = fs::metadata(checker.path("output.toml")).unwrap().modified().unwrap();
    assert_eq!(before, after);
    // The restarted checker notifies the director, because the killed one may not have.
    assert_eq!(checker.reloads(), 4);
    assert!(checker.stop(Signal::SIGTERM));
}

#[test]
fn a_reload_applies_a_valid_input_and_rejects_an_invalid_one() {
    let servers: Vec<HttpServer> =
        (1..=3).map(|n| HttpServer::start(&format!("127.2.0.{n}"))).collect();
    let mut checker = Fixture::new();
    checker.write_input(&[&servers[0], &servers[1]]);
    checker.start();
    checker.wait_for(&[true, true]);
    let good = fs::read_to_string(checker.path("input.toml")).unwrap();

    // An invalid input: the old targets are still probed.
    fs::write(checker.path("input.toml"), good.replace("http = ", "htp = ")).unwrap();
    checker.signal(Signal::SIGHUP);
    servers[0].set(false);
    checker.wait_for(&[false, true]);
    assert!(checker.log().contains("healthchecks.htp"), "{}", checker.log());

    // A FIFO as input does not block the daemon.
    fs::remove_file(checker.path("input.toml")).unwrap();
    let mode = nix::sys::stat::Mode::S_IRWXU;
    nix::unistd::mkfifo(&checker.path("input.toml"), mode).unwrap();
    checker.signal(Signal::SIGHUP);
    servers[1].set(false);
    checker.wait_for(&[false, false]);
    assert!(checker.log().contains("not a regular file"), "{}", checker.log());
    servers[1].set(true);
    checker.wait_for(&[false, true]);
    fs::remove_file(checker.path("input.toml")).unwrap();

    // A new backend is not written before its first result (GLB's fault H2: it was written as
    // unhealthy), and unchanged backends keep their health.
    checker.write_input(&[&servers[0], &servers[1], &servers[2]]);
    let begun = Instant::now();
    checker.signal(Signal::SIGHUP);
    while checker.healthy().unwrap().len() == 2 {
        assert!(begun.elapsed() < Duration::from_secs(5), "{}", checker.log());
        thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(checker.healthy().unwrap(), [false, true, true]);
    checker.write_input(&[&servers[1]]);
    checker.signal(Signal::SIGHUP);
    checker.wait_for(&[true]);
}

#[test]
fn a_hanging_target_does_not_delay_others() {
    let (well, hanging) = (HttpServer::start("127.3.0.1"), hanging_server("127.3.0.2"));
    let mut checker = Fixture::new();
    checker.write_input(&[&well, &hanging]);
    checker.start();
    checker.wait_for(&[true, false]);
    well.set(false);
    assert!(checker.wait_for(&[false, false]) < Duration::from_millis(1400));
    assert!(checker.log().contains("timeout after 100 ms (answer)"), "{}", checker.log());
}

/// A server whose kernel accepts connections and that never replies.
fn hanging_server(address: &str) -> HttpServer {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::mem::forget(listener);
    HttpServer {
        address: address.into(),
        port,
        healthy: Arc::default(),
        connections: Arc::default(),
    }
}

/// The new target has no result for seconds.
#[test]
fn a_new_hanging_target_does_not_delay_others() {
    let (a, b) = (HttpServer::start("127.3.1.1"), HttpServer::start("127.3.1.2"));
    let new = hanging_server("127.3.1.3");
    let mut checker = Fixture::new();
    checker.write_input(&[&a, &b]);
    checker.start();
    checker.wait_for(&[true, true]);
    checker.write_input(&[&a, &b, &new]);
    let text = fs::read_to_string(checker.path("input.toml")).unwrap();
    let slow = format!("interval = \"7s\", timeout = \"6s\", http = {}", new.port);
    let text = text.replace(&format!("http = {}", new.port), &slow);
    fs::write(checker.path("input.toml"), text).unwrap();
    checker.signal(Signal::SIGHUP);
    a.set(false);
    // Two failures 200 ms apart, plus well under a second.
    let took = checker.wait_for(&[false, true]);
    assert!(took < Duration::from_millis(1400), "{took:?}");
    a.set(true);
    checker.wait_for(&[true, true]);
    let status = checker.ask(&["status"]);
    assert!(status.contains("1 checks have no result yet"), "{status}");
    assert!(status.contains("127.3.1.3"), "{status}");
    // The new backend is written when it has its first result.
    checker.wait_for(&[true, true, false]);
}

#[test]
fn check_shows_the_result_of_each_check() {
    let (a, b) = (HttpServer::start("127.4.0.1"), HttpServer::start("127.4.0.2"));
    b.set(false);
    let checker = Fixture::new();
    checker.write_input(&[&a, &b]);
    let run = |more: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_glb-healthcheck"))
            .arg("check")
            .arg(checker.path("input.toml"))
            .args(more)
            .output()
            .unwrap()
    };
    let output = run(&[]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(4), "{text}");
    assert!(text.contains("127.4.0.2") && text.contains("status 503, expected 200-299"), "{text}");
    let json = String::from_utf8(run(&["-o", "json"]).stdout).unwrap();
    assert!(json.contains("\"result\": \"pass\"") && json.contains("\"fail\""), "{json}");
    b.set(true);
    assert_eq!(run(&[]).status.code(), Some(0));
}

/// The example of the documentation is valid, with the example table as its input.
#[test]
fn config_check_accepts_the_example_configuration() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/");
    let check = |config: &str| {
        Command::new(env!("CARGO_BIN_EXE_glb-healthcheck"))
            .args(["config", "check", "--config", config])
            .output()
            .unwrap()
    };
    let output = check(&format!("{folder}healthcheck.toml"));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("healthcheck.toml: valid"), "{text}");
    assert_eq!(check("/nonexistent").status.code(), Some(1));
}

#[test]
fn reload_reads_the_configuration_again() {
    let server = HttpServer::start("127.4.1.1");
    let mut checker = Fixture::new();
    checker.write_input(&[&server]);
    checker.start();
    checker.wait_for(&[true]);
    assert!(checker.ask(&["reload"]).contains("reloaded: 1 targets"));
    let file = checker.path("healthcheck.toml");
    let config = fs::read_to_string(&file).unwrap();
    // Now the next probe comes after up to 10 s.
    let slow = config.replace("\"200ms\"", "\"10s\"");
    fs::write(&file, slow).unwrap();
    assert!(checker.ask(&["reload"]).contains("reloaded"));
    server.set(false);
    thread::sleep(Duration::from_millis(1000));
    assert_eq!(checker.healthy().unwrap(), [true]);
    fs::write(&file, config.replace("output.toml", "other.toml")).unwrap();
    let output = checker.ask_for(&["reload"], 1);
    assert!(output.is_empty(), "{output}");
    assert!(checker.log().contains("changing `output` needs a restart"), "{}", checker.log());
    fs::write(&file, config).unwrap();
    assert!(checker.ask(&["reload"]).contains("reloaded"));
    checker.wait_for(&[false]);
}

#[test]
fn startup_errors_name_the_file_and_the_fix() {
    let checker = Fixture::new();
    for (config, words) in [
        ("input = \"none.toml\"\noutput = \"c.toml\"\n", vec!["none.toml"]),
        ("input = \"s.toml\"\n", vec!["healthcheck.toml", "output"]),
        ("input = \"s.toml\"\noutput = \"s.toml\"\n", vec!["a different file"]),
    ] {
        fs::write(checker.path("healthcheck.toml"), config).unwrap();
        let text = checker.refuses("healthcheck.toml");
        for word in words {
            assert!(text.contains(word), "{word:?} is missing in: {text}");
        }
    }
}

#[test]
fn the_output_is_complete_whenever_the_checker_is_killed() {
    let servers: Vec<HttpServer> =
        (1..=40).map(|n| HttpServer::start(&format!("127.5.0.{n}"))).collect();
    let all: Vec<&HttpServer> = servers.iter().collect();
    let mut checker = Fixture::new();
    checker.write_input(&all);
    checker.start();
    checker.wait_for(&[true; 40]);
    for round in 0..15_u32 {
        // Some backend is always about to change.
        for (n, server) in servers.iter().enumerate().skip(1) {
            server.set(!(n as u32 + round).is_multiple_of(3));
        }
        thread::sleep(Duration::from_millis(u64::from(350 + 37 * round % 300)));
        assert!(!checker.stop(Signal::SIGKILL));
        let killed_with = checker.healthy().expect("a complete table");
        assert!(killed_with[0], "the backend that was always healthy");
        checker.start();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(150) {
            let now = checker.healthy().expect("a complete table");
            assert!(now[0] && now.len() == 40);
            thread::sleep(Duration::from_millis(3));
        }
    }
    servers.iter().for_each(|server| server.set(true));
    checker.wait_for(&[true; 40]);
    assert!(checker.stop(Signal::SIGTERM));
    // Temporary files of a killed checker are removed.
    fs::write(checker.path(".output.toml-a1B2c3.new"), "[[tab").unwrap();
    checker.start();
    checker.wait_for_log("removed a temporary file of a killed checker");
    let begun = Instant::now();
    while checker.path(".output.toml-a1B2c3.new").exists() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{}", checker.log());
        thread::sleep(Duration::from_millis(5));
    }
    let left = fs::read_dir(checker.path("")).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<String> = left.map(|name| name.into_string().unwrap()).collect();
    assert!(!left.iter().any(|name| name.ends_with(".new")), "{left:?}");
}

#[test]
fn a_second_checker_of_the_same_output_is_refused() {
    let server = HttpServer::start("127.6.0.1");
    let mut checker = Fixture::new();
    checker.write_input(&[&server]);
    checker.start();
    checker.wait_for(&[true]);
    // The second one uses a link to the output, and another control socket.
    std::os::unix::fs::symlink("output.toml", checker.path("link.toml")).unwrap();
    let config = fs::read_to_string(checker.path("healthcheck.toml")).unwrap();
    let config = config.replace("status.sock", "second.sock");
    let config = config.replace("\"output.toml\"", "\"link.toml\"");
    fs::write(checker.path("second.toml"), config).unwrap();
    let text = checker.refuses("second.toml");
    for words in ["link.toml", &format!("process {}", checker.id()), "another file"] {
        assert!(text.contains(words), "{words:?} is missing in: {text}");
    }
    // A killed checker holds no lock.
    checker.stop(Signal::SIGKILL);
    server.set(false);
    checker.start();
    checker.wait_for(&[false]);
}

#[test]
fn a_suspended_checker_does_not_send_the_missed_probes() {
    let servers: Vec<HttpServer> =
        (1..=50).map(|n| HttpServer::start(&format!("127.7.0.{n}"))).collect();
    let all: Vec<&HttpServer> = servers.iter().collect();
    let asked =
        || servers.iter().map(|server| server.connections.load(Ordering::Relaxed)).sum::<usize>();
    let mut checker = Fixture::new();
    checker.write_input(&all);
    checker.start();
    checker.wait_for(&[true; 50]);
    checker.signal(Signal::SIGSTOP);
    thread::sleep(Duration::from_secs(3));
    let before = asked();
    checker.signal(Signal::SIGCONT);
    thread::sleep(Duration::from_millis(400));
    // Two intervals and the running probes; 15 missed intervals would be 750 probes.
    let made = asked() - before;
    assert!(made <= 3 * 50, "{made} probes in 400 ms");
    thread::sleep(Duration::from_millis(600));
    assert_eq!(checker.healthy().unwrap(), [true; 50], "{}", checker.log());
}

/// Waits until the output has this state and health of its first backend.
fn wait_for_state(checker: &Fixture, wanted: &str, healthy: bool) {
    let begun = Instant::now();
    loop {
        let set = glb_table::load(&checker.path("output.toml")).unwrap();
        let backend = &set.tables[0].backends[0];
        if backend.state.to_string() == wanted && backend.healthy == healthy {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{wanted}: {}", checker.log());
        thread::sleep(Duration::from_millis(5));
    }
}

/// The agent's weight is reported and not applied.
#[test]
fn an_agent_drains_its_backend_until_ready() {
    use std::{io::Write as _, sync::Mutex};
    let listener = TcpListener::bind("127.8.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let word = Arc::new(Mutex::new("up 100%\n"));
    let says = Arc::clone(&word);
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            stream.write_all(says.lock().unwrap().as_bytes()).ok();
        }
    });
    let server = HttpServer::start("127.8.0.1");
    let mut checker = Fixture::new();
    checker.write_input(&[&server]);
    let text = fs::read_to_string(checker.path("input.toml")).unwrap();
    let text = text.replace("{ http", &format!("{{ agent = {port}, http"));
    fs::write(checker.path("input.toml"), text).unwrap();
    checker.start();
    checker.wait_for(&[true]);
    wait_for_state(&checker, "active", true);
    for (says, state, healthy) in [
        ("drain 50%\n", "draining", true),
        // It lasts until the agent reports `ready`.
        ("up\n", "draining", true),
        ("ready up\n", "active", true),
        ("maint\n", "draining", true),
        ("ready\n", "active", true),
        ("down # a new disk\n", "active", false),
        ("up\n", "active", true),
    ] {
        *word.lock().unwrap() = says;
        if says == "up\n" && state == "draining" {
            thread::sleep(Duration::from_millis(700));
        }
        wait_for_state(&checker, state, healthy);
        if says.contains("50%") {
            let status = checker.ask(&["status"]);
            assert!(status.contains("(agent drains) (50%)"), "{status}");
            let set = glb_table::load(&checker.path("output.toml")).unwrap();
            assert_eq!(set.tables[0].backends[0].weight, 1);
        }
    }
    assert!(checker.log().contains("agent: down: a new disk"), "{}", checker.log());

    // A restart keeps the drain; the agent does not report it again.
    *word.lock().unwrap() = "drain\n";
    wait_for_state(&checker, "draining", true);
    *word.lock().unwrap() = "up\n";
    thread::sleep(Duration::from_millis(700));
    checker.stop(Signal::SIGKILL);
    checker.start();
    thread::sleep(Duration::from_millis(1000));
    wait_for_state(&checker, "draining", true);
    *word.lock().unwrap() = "ready\n";
    wait_for_state(&checker, "active", true);
    // A drain by the operator ends when the operator removes it, even while no checker runs.
    *word.lock().unwrap() = "up\n";
    let input = fs::read_to_string(checker.path("input.toml")).unwrap();
    fs::write(checker.path("input.toml"), input.replace("\"active\"", "\"draining\"")).unwrap();
    checker.signal(Signal::SIGHUP);
    wait_for_state(&checker, "draining", true);
    checker.stop(Signal::SIGKILL);
    fs::write(checker.path("input.toml"), input).unwrap();
    checker.start();
    wait_for_state(&checker, "active", true);
}
