//! The known faults of GLB's own health checker (H1 to H9): each is not one of ours. H5, a missing
//! permission, is shown in a lab (`tests/cases/health.rs`).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::fs::MetadataExt as _,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use world::{Server, World};

/// A page of the checker's own HTTP server.
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
    let mut world = World::new();
    let server = Server::start("127.10.1.1");
    world.write_source(&[&server, &server]);
    let text = fs::read_to_string(world.path("source.toml")).unwrap();
    // The second one has another address and nothing to be checked by.
    let second = text.rfind("[[tables.backends]]").unwrap();
    let text = format!(
        "{}[[tables.backends]]\nip = \"127.10.1.2\"\nstate = \"active\"\n",
        &text[..second]
    );
    fs::write(world.path("source.toml"), text).unwrap();
    world.start();
    world.wait_for(&[true, true]);
}

#[test]
fn h2_a_new_backend_is_checked_before_it_is_written() {
    let (old, new) = (Server::start("127.10.2.1"), Server::start("127.10.2.2"));
    let mut world = World::new();
    world.write_source(&[&old]);
    world.start();
    world.wait_for(&[true]);
    world.write_source(&[&old, &new]);
    world.signal(Signal::SIGHUP);
    let begun = Instant::now();
    let written = loop {
        let healthy = world.healthy().unwrap();
        if healthy.len() == 2 {
            break healthy;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{}", world.log());
    };
    assert_eq!(written, [true, true]);
}

#[test]
fn h3_the_status_page_tells_results() {
    let (well, ill) = (Server::start("127.10.3.1"), Server::start("127.10.3.2"));
    ill.set(false);
    let mut world = World::new();
    let port = free_port();
    world.more += &format!("metrics = \"127.0.0.1:{port}\"\n");
    world.write_source(&[&well, &ill]);
    world.start();
    world.wait_for(&[true, false]);
    let status: serde_json::Value = serde_json::from_str(&page(port, "/health")).unwrap();
    let backends = status["tables"][0]["backends"].as_array().unwrap();
    let healthy: Vec<_> = backends.iter().map(|backend| backend["healthy"].clone()).collect();
    assert_eq!(healthy, [true, false]);
    let metrics = page(port, "/metrics");
    for line in [
        "glb_healthcheck_build_info{version=",
        "glb_healthcheck_up{backend=\"127.10.3.1\",check=\"http",
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
        "glb_healthcheck_cut_offs_total 0",
        "process_resident_memory_bytes ",
    ] {
        assert!(metrics.contains(line), "{line} is missing in:\n{metrics}");
    }
    // Whatever the alerts look at is there.
    let alerts = include_str!("../../docs/alerts.yml");
    let words = alerts.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let named: Vec<_> = words.filter(|word| word.starts_with("glb_healthcheck_")).collect();
    assert!(named.len() > 5, "{named:?}");
    for name in named {
        assert!(metrics.contains(&format!("\n{name}")), "{name} is missing in:\n{metrics}");
    }
}

#[test]
fn of_checks_that_are_called_the_same_the_one_that_fails_is_told() {
    let server = Server::start("127.10.3.3");
    let mut world = World::new();
    let port = free_port();
    world.more += &format!("metrics = \"127.0.0.1:{port}\"\n");
    world.write_source(&[&server]);
    let text = fs::read_to_string(world.path("source.toml")).unwrap();
    let one = format!("http = {}", server.port);
    for order in [["200", "204"], ["204", "200"]] {
        let check = |status| format!("{{ port = {}, status = {status} }}", server.port);
        let two = format!("http = [{}, {}]", check(order[0]), check(order[1]));
        fs::write(world.path("source.toml"), text.replace(&one, &two)).unwrap();
        world.start();
        world.wait_for(&[false]);
        let metrics = page(port, "/metrics");
        let line = format!("{{backend=\"127.10.3.3\",check=\"http {} GET /\"}} 0", server.port);
        assert!(metrics.contains(&format!("glb_healthcheck_up{line}")), "{metrics}");
        assert!(world.stop(nix::sys::signal::Signal::SIGTERM));
        fs::remove_file(world.path("checked.toml")).unwrap();
    }
}

#[test]
fn h4_the_file_is_replaced_and_nothing_of_it_is_dropped() {
    let server = Server::start("127.10.4.1");
    let mut world = World::new();
    world.write_source(&[&server]);
    let source = fs::read_to_string(world.path("source.toml")).unwrap();
    let source = source.replace("healthchecks = {", "healthchecks = { rise = 2,");
    fs::write(world.path("source.toml"), &source).unwrap();
    world.start();
    world.wait_for(&[true]);
    let path = world.path("checked.toml");
    let text = fs::read_to_string(&path).unwrap();
    let expected = source.replace("ip = \"127.10.4.1\"\n", "ip = \"127.10.4.1\"\nhealthy = true\n");
    assert_eq!(text, expected);
    // Who has the old file open still reads it whole.
    let mut old = fs::File::open(&path).unwrap();
    server.set(false);
    world.wait_for(&[false]);
    let mut still = String::new();
    old.read_to_string(&mut still).unwrap();
    assert_eq!(still, text);
    assert_ne!(old.metadata().unwrap().ino(), fs::metadata(&path).unwrap().ino());
}

#[test]
fn h6_a_check_that_hangs_leaves_nothing_behind() {
    // A full accept queue drops SYNs, like a machine that is gone.
    let listener =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.10.6.1:0".parse().unwrap();
    listener.bind(&any.into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let _first = TcpStream::connect(address).unwrap();
    let server = Server::start("127.10.6.1");
    let mut world = World::new();
    world.write_source(&[&server]);
    let text = fs::read_to_string(world.path("source.toml")).unwrap();
    let text =
        text.replace(&format!("http = {}", server.port), &format!("tcp = {}", address.port()));
    fs::write(world.path("source.toml"), text).unwrap();
    world.start();
    world.wait_for(&[false]);
    // The reload command needs some for a moment.
    while world.reloads() == 0 {
        thread::sleep(Duration::from_millis(20));
    }
    let open = || fs::read_dir(format!("/proc/{}/fd", world.id())).unwrap().count();
    let mut most = 0;
    for _ in 0..100 {
        most = most.max(open());
        thread::sleep(Duration::from_millis(20));
    }
    // Ten intervals have gone by: one probe is open at a time, and its socket goes with it.
    assert!(most <= open() + 2, "{most} descriptors at once, {} now", open());
    assert!(world.log().contains("timeout after 100 ms (connect)"), "{}", world.log());
}

#[test]
fn h7_a_reload_command_that_fails_is_tried_again() {
    let server = Server::start("127.10.7.1");
    let mut world = World::new();
    world.more =
        "reload_command = \"echo x >> $CONFIG.tries; test $(wc -l < $CONFIG.tries) -ge 3\"\n"
            .into();
    world.write_source(&[&server]);
    world.start();
    world.wait_for(&[true]);
    let begun = Instant::now();
    while !world.log().contains("reload command done") {
        assert!(begun.elapsed() < Duration::from_secs(20), "{}", world.log());
        thread::sleep(Duration::from_millis(20));
    }
    let status: serde_json::Value =
        serde_json::from_str(&world.ask(&["status", "-o", "json"])).unwrap();
    assert_eq!((&status["reload_failures"], &status["reloads"]), (&2.into(), &1.into()));
    assert_eq!(
        fs::read_to_string(world.path("healthcheck.toml.tries")).unwrap().lines().count(),
        3
    );
}

#[test]
fn h8_nothing_is_written_before_the_first_round_and_the_director_is_told_of_it() {
    let well = Server::start("127.10.8.1");
    // Accepts in the kernel and never answers: the first round takes a timeout.
    let silent = TcpListener::bind("127.10.8.2:0").unwrap();
    let hangs = Server {
        address: "127.10.8.2".into(),
        port: silent.local_addr().unwrap().port(),
        ..Server::start("127.10.8.3")
    };
    let mut world = World::new();
    world.write_source(&[&well, &hangs]);
    world.start();
    let first = loop {
        if let Some(healthy) = world.healthy() {
            break healthy;
        }
        assert!(world.reloads() == 0, "told of nothing");
    };
    assert_eq!(first, [true, false]);
    let begun = Instant::now();
    while world.reloads() == 0 {
        assert!(begun.elapsed() < Duration::from_secs(10), "{}", world.log());
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn h9_redirects_fresh_connections_and_timeouts() {
    let elsewhere = b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n";
    let server = Server::answering("127.10.9.1", elsewhere);
    let mut world = World::new();
    world.write_source(&[&server]);
    world.start();
    world.wait_for(&[true]);
    let before = server.asked.load(Ordering::Relaxed);
    server.set(false);
    world.wait_for(&[false]);
    let log = world.log();
    assert!(log.contains("status 302, wanted 200-299"), "{log}");
    // A connection for each probe, and none for where it leads.
    let status: serde_json::Value =
        serde_json::from_str(&world.ask(&["status", "-o", "json"])).unwrap();
    let probes = status["tables"][0]["backends"][0]["checks"][0]["probes"].as_u64().unwrap();
    let asked = server.asked.load(Ordering::Relaxed);
    assert!(asked > before + 1 && asked.abs_diff(probes as usize) <= 1, "{asked}, {probes} probes");
    assert!(world.stop(Signal::SIGTERM));

    let text = fs::read_to_string(world.path("source.toml")).unwrap();
    let text = text.replace("http = ", "timeout_ms = 200, interval_ms = 200, http = ");
    fs::write(world.path("source.toml"), text).unwrap();
    let text = world.refuses("healthcheck.toml");
    assert!(text.contains("timeout_ms"), "{text}");
    assert!(text.contains("not below interval_ms = 200"), "{text}");
}
