//! Known faults of GLB's own health checker (H1 to H9), each with a test that this one does not have
//! it. H5, a missing permission, needs a lab (`tests/cases/health.rs`).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod fixture;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt as _,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use fixture::{Fixture, HttpServer};
use nix::sys::signal::Signal;

/// Gets a page from the checker's HTTP server.
fn page(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    text.split_once("\r\n\r\n").unwrap().1.to_owned()
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn h1_a_backend_without_checks_is_healthy() {
    let mut checker = Fixture::new();
    let server = HttpServer::start("127.10.1.1");
    checker.write_input(&[&server, &server]);
    let text = fs::read_to_string(checker.path("input.toml")).unwrap();
    // The second backend has no check.
    let second = text.rfind("[[tables.backends]]").unwrap();
    let text = format!(
        "{}[[tables.backends]]\nip = \"127.10.1.2\"\nstate = \"active\"\n",
        &text[..second]
    );
    fs::write(checker.path("input.toml"), text).unwrap();
    checker.start();
    checker.wait_for(&[true, true]);
}

#[test]
fn h2_a_new_backend_is_checked_before_it_is_written() {
    let (old, new) = (HttpServer::start("127.10.2.1"), HttpServer::start("127.10.2.2"));
    let mut checker = Fixture::new();
    checker.write_input(&[&old]);
    checker.start();
    checker.wait_for(&[true]);
    checker.write_input(&[&old, &new]);
    checker.signal(Signal::SIGHUP);
    let begun = Instant::now();
    let written = loop {
        let healthy = checker.healthy().unwrap();
        if healthy.len() == 2 {
            break healthy;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{}", checker.log());
    };
    assert_eq!(written, [true, true]);
}

#[test]
fn h3_the_status_page_shows_results() {
    let (well, failing) = (HttpServer::start("127.10.3.1"), HttpServer::start("127.10.3.2"));
    failing.set(false);
    let mut checker = Fixture::new();
    let port = free_port();
    checker.more += &format!("metrics = \"127.0.0.1:{port}\"\n");
    checker.write_input(&[&well, &failing]);
    checker.start();
    checker.wait_for(&[true, false]);
    let status: serde_json::Value = serde_json::from_str(&page(port, "/health")).unwrap();
    let backends = status["tables"][0]["backends"].as_array().unwrap();
    let healthy: Vec<_> = backends.iter().map(|backend| backend["healthy"].clone()).collect();
    assert_eq!(healthy, [true, false]);
    let metrics = page(port, "/metrics");
    for line in [
        "glb_healthcheck_build_info{version=",
        "glb_healthcheck_check_healthy{backend=\"127.10.3.1\",check=\"http",
        "glb_healthcheck_backend_healthy{table=\"web\",backend=\"127.10.3.2\"} 0",
        "glb_healthcheck_fail_open_backends{table=\"web\"} 0",
        "glb_healthcheck_probes_total{kind=\"http\",result=\"pass\"}",
        "glb_healthcheck_probe_latency_seconds_bucket{le=\"0.001\",kind=\"http\"}",
        "glb_healthcheck_probe_latency_seconds_count{kind=\"http\"}",
        "glb_healthcheck_transitions_total{",
        "glb_healthcheck_flaps_total{",
        "glb_healthcheck_writes_total 1",
        "glb_healthcheck_reload_failures_total 0",
        "glb_healthcheck_last_write_timestamp_seconds 1",
        "glb_healthcheck_isolations_total 0",
        "process_resident_memory_bytes ",
    ] {
        assert!(metrics.contains(line), "{line} is missing in:\n{metrics}");
    }
    // All metrics of the alert rules exist.
    let alerts = include_str!("../../docs/alerts.yml");
    let words = alerts.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let named: Vec<_> = words.filter(|word| word.starts_with("glb_healthcheck_")).collect();
    assert!(named.len() > 5, "{named:?}");
    for name in named {
        assert!(metrics.contains(&format!("\n{name}")), "{name} is missing in:\n{metrics}");
    }
}

#[test]
fn checks_with_the_same_name_show_the_failing_one() {
    let server = HttpServer::start("127.10.3.3");
    let mut checker = Fixture::new();
    let port = free_port();
    checker.more += &format!("metrics = \"127.0.0.1:{port}\"\n");
    checker.write_input(&[&server]);
    let text = fs::read_to_string(checker.path("input.toml")).unwrap();
    let one = format!("http = {}", server.port);
    for order in [["200", "204"], ["204", "200"]] {
        let check = |status| format!("{{ port = {}, status = {status} }}", server.port);
        let two = format!("http = [{}, {}]", check(order[0]), check(order[1]));
        fs::write(checker.path("input.toml"), text.replace(&one, &two)).unwrap();
        checker.start();
        checker.wait_for(&[false]);
        let metrics = page(port, "/metrics");
        let line = format!("{{backend=\"127.10.3.3\",check=\"http {} GET /\"}} 0", server.port);
        assert!(metrics.contains(&format!("glb_healthcheck_check_healthy{line}")), "{metrics}");
        assert!(checker.stop(nix::sys::signal::Signal::SIGTERM));
        fs::remove_file(checker.path("output.toml")).unwrap();
    }
}

#[test]
fn h4_the_output_is_replaced_atomically_and_keeps_all_text() {
    let server = HttpServer::start("127.10.4.1");
    let mut checker = Fixture::new();
    checker.write_input(&[&server]);
    let input = fs::read_to_string(checker.path("input.toml")).unwrap();
    let input = input.replace("healthchecks = {", "healthchecks = { rise = 2,");
    fs::write(checker.path("input.toml"), &input).unwrap();
    checker.start();
    checker.wait_for(&[true]);
    let path = checker.path("output.toml");
    let text = fs::read_to_string(&path).unwrap();
    let expected = input.replace("ip = \"127.10.4.1\"\n", "ip = \"127.10.4.1\"\nhealthy = true\n");
    let (mark, rest) = text.split_once('\n').unwrap();
    assert!(mark.starts_with("# Written by glb-healthcheck from /"), "{mark}");
    assert_eq!(rest, expected);
    // A reader of the old file still reads it completely.
    let mut old = fs::File::open(&path).unwrap();
    server.set(false);
    checker.wait_for(&[false]);
    let mut still = String::new();
    old.read_to_string(&mut still).unwrap();
    assert_eq!(still, text);
    assert_ne!(old.metadata().unwrap().ino(), fs::metadata(&path).unwrap().ino());
}

#[test]
fn h6_a_hanging_check_leaks_no_descriptors() {
    // A full accept queue drops SYNs, like an unreachable machine.
    let listener =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.10.6.1:0".parse().unwrap();
    listener.bind(&any.into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let _first = TcpStream::connect(address).unwrap();
    let server = HttpServer::start("127.10.6.1");
    let mut checker = Fixture::new();
    checker.write_input(&[&server]);
    let text = fs::read_to_string(checker.path("input.toml")).unwrap();
    let text =
        text.replace(&format!("http = {}", server.port), &format!("tcp = {}", address.port()));
    fs::write(checker.path("input.toml"), text).unwrap();
    checker.start();
    checker.wait_for(&[false]);
    // The reload command uses descriptors for a moment.
    while checker.reloads() == 0 {
        thread::sleep(Duration::from_millis(20));
    }
    let open = || fs::read_dir(format!("/proc/{}/fd", checker.id())).unwrap().count();
    let mut most = 0;
    for _ in 0..100 {
        most = most.max(open());
        thread::sleep(Duration::from_millis(20));
    }
    // After ten intervals only one probe's socket is open at a time.
    assert!(most <= open() + 2, "{most} descriptors at once, {} now", open());
    assert!(checker.log().contains("timeout after 100 ms (connect)"), "{}", checker.log());
}

#[test]
fn h7_a_failed_reload_command_is_retried() {
    let server = HttpServer::start("127.10.7.1");
    let mut checker = Fixture::new();
    checker.more =
        "reload_command = \"echo x >> $CONFIG.tries; test $(wc -l < $CONFIG.tries) -ge 3\"\n"
            .into();
    checker.write_input(&[&server]);
    checker.start();
    checker.wait_for(&[true]);
    let begun = Instant::now();
    while !checker.log().contains("reload command succeeded") {
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", checker.log());
        thread::sleep(Duration::from_millis(20));
    }
    let status: serde_json::Value =
        serde_json::from_str(&checker.ask(&["status", "-o", "json"])).unwrap();
    assert_eq!((&status["reload_failures"], &status["reloads"]), (&2.into(), &1.into()));
    assert_eq!(
        fs::read_to_string(checker.path("healthcheck.toml.tries")).unwrap().lines().count(),
        3
    );
}

#[test]
fn h8_the_first_write_waits_for_all_results_and_notifies_the_director() {
    let well = HttpServer::start("127.10.8.1");
    // This server never replies, so the first round takes a timeout.
    let silent = TcpListener::bind("127.10.8.2:0").unwrap();
    let hangs = HttpServer {
        address: "127.10.8.2".into(),
        port: silent.local_addr().unwrap().port(),
        ..HttpServer::start("127.10.8.3")
    };
    let mut checker = Fixture::new();
    checker.write_input(&[&well, &hangs]);
    checker.start();
    let first = loop {
        if let Some(healthy) = checker.healthy() {
            break healthy;
        }
        assert!(checker.reloads() == 0, "the director was notified before the first write");
    };
    assert_eq!(first, [true, false]);
    let begun = Instant::now();
    while checker.reloads() == 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "{}", checker.log());
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn h9_redirects_are_not_followed_and_each_probe_has_a_new_connection() {
    let elsewhere = b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n";
    let server = HttpServer::answering("127.10.9.1", elsewhere);
    let mut checker = Fixture::new();
    checker.write_input(&[&server]);
    checker.start();
    checker.wait_for(&[true]);
    let before = server.connections.load(Ordering::Relaxed);
    server.set(false);
    checker.wait_for(&[false]);
    let log = checker.log();
    assert!(log.contains("status 302, expected 200-299"), "{log}");
    // One connection for each probe, and none to the redirect's target.
    let status: serde_json::Value =
        serde_json::from_str(&checker.ask(&["status", "-o", "json"])).unwrap();
    let probes = status["tables"][0]["backends"][0]["checks"][0]["probes"].as_u64().unwrap();
    let asked = server.connections.load(Ordering::Relaxed);
    assert!(asked > before + 1 && asked.abs_diff(probes as usize) <= 1, "{asked}, {probes} probes");
    assert!(checker.stop(Signal::SIGTERM));

    let text = fs::read_to_string(checker.path("input.toml")).unwrap();
    let text = text.replace("http = ", "timeout = \"200ms\", interval = \"200ms\", http = ");
    fs::write(checker.path("input.toml"), text).unwrap();
    let text = checker.refuses("healthcheck.toml");
    assert!(text.contains("timeout"), "{text}");
    assert!(text.contains("not shorter than the interval, 200ms"), "{text}");
}
