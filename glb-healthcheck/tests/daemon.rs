//! The whole daemon on loopback: a fleet of listeners, a source table, a checked table.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::{
    fs,
    net::TcpListener,
    process::Command,
    sync::{Arc, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use world::{Server, World};

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

    // What is no file is waited for by nobody.
    fs::remove_file(world.path("source.toml")).unwrap();
    let mode = nix::sys::stat::Mode::S_IRWXU;
    nix::unistd::mkfifo(&world.path("source.toml"), mode).unwrap();
    world.signal(Signal::SIGHUP);
    servers[1].set(false);
    world.wait_for(&[false, false]);
    assert!(world.log().contains("not a regular file"), "{}", world.log());
    servers[1].set(true);
    world.wait_for(&[false, true]);
    fs::remove_file(world.path("source.toml")).unwrap();

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
    let (well, hanging) = (Server::start("127.3.0.1"), hanging("127.3.0.2"));
    let mut world = World::new();
    world.write_source(&[&well, &hanging]);
    world.start();
    world.wait_for(&[true, false]);
    well.set(false);
    assert!(world.wait_for(&[false, false]) < Duration::from_millis(1400));
    assert!(world.log().contains("timeout after 100 ms (answer)"), "{}", world.log());
}

/// Accepts in the kernel and never answers.
fn hanging(address: &str) -> Server {
    let listener = TcpListener::bind((address, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::mem::forget(listener);
    Server { address: address.into(), port, well: Arc::default(), asked: Arc::default() }
}

/// Also not one that is new, long before there is a first result of it.
#[test]
fn one_hanging_target_of_a_new_source_delays_nobody() {
    let (a, b) = (Server::start("127.3.1.1"), Server::start("127.3.1.2"));
    let new = hanging("127.3.1.3");
    let mut world = World::new();
    world.write_source(&[&a, &b]);
    world.start();
    world.wait_for(&[true, true]);
    world.write_source(&[&a, &b, &new]);
    let text = fs::read_to_string(world.path("source.toml")).unwrap();
    let slow = format!("interval_ms = 7000, timeout_ms = 6000, http = {}", new.port);
    let text = text.replace(&format!("http = {}", new.port), &slow);
    fs::write(world.path("source.toml"), text).unwrap();
    world.signal(Signal::SIGHUP);
    a.set(false);
    // Two failures 200 ms apart, and well under a second more.
    let took = world.wait_for(&[false, true]);
    assert!(took < Duration::from_millis(1400), "{took:?}");
    a.set(true);
    world.wait_for(&[true, true]);
    let status = world.ask(&["status"]);
    assert!(status.contains("1 targets have no result yet"), "{status}");
    assert!(status.contains("127.3.1.3"), "{status}");
    // Nothing was said of the new one before it was asked, and what was found is said.
    world.wait_for(&[true, true, false]);
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
    assert_eq!(output.status.code(), Some(4), "{text}");
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
        let text = world.refuses("healthcheck.toml");
        for word in words {
            assert!(text.contains(word), "{word:?} is missing in: {text}");
        }
    }
}

/// Whenever it is killed, the file is whole and says what the last one knew.
#[test]
fn killed_at_any_moment() {
    let servers: Vec<Server> = (1..=40).map(|n| Server::start(&format!("127.5.0.{n}"))).collect();
    let all: Vec<&Server> = servers.iter().collect();
    let mut world = World::new();
    world.write_source(&all);
    world.start();
    world.wait_for(&[true; 40]);
    for round in 0..15_u32 {
        // Somebody is always about to be written down or up.
        for (n, server) in servers.iter().enumerate().skip(1) {
            server.set(!(n as u32 + round).is_multiple_of(3));
        }
        thread::sleep(Duration::from_millis(u64::from(350 + 37 * round % 300)));
        assert!(!world.stop(Signal::SIGKILL));
        let killed_with = world.healthy().expect("a whole table");
        assert!(killed_with[0], "the one that was always well");
        world.start();
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(150) {
            let now = world.healthy().expect("a whole table");
            assert!(now[0] && now.len() == 40);
            thread::sleep(Duration::from_millis(3));
        }
    }
    servers.iter().for_each(|server| server.set(true));
    world.wait_for(&[true; 40]);
    assert!(world.stop(Signal::SIGTERM));
    // What a killed one had begun to write is cleared away.
    fs::write(world.path(".checked.toml-a1B2c3.new"), "[[tab").unwrap();
    world.start();
    world.wait_for_log("removed what a killed checker had begun to write");
    let left = fs::read_dir(world.path("")).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<String> = left.map(|name| name.into_string().unwrap()).collect();
    assert!(!left.iter().any(|name| name.ends_with(".new")), "{left:?}");
}

#[test]
fn a_second_checker_of_one_table_is_refused() {
    let server = Server::start("127.6.0.1");
    let mut world = World::new();
    world.write_source(&[&server]);
    world.start();
    world.wait_for(&[true]);
    // By whatever name, and with a control socket of its own.
    std::os::unix::fs::symlink("checked.toml", world.path("link.toml")).unwrap();
    let config = fs::read_to_string(world.path("healthcheck.toml")).unwrap();
    let config = config.replace("status.sock", "second.sock");
    let config = config.replace("\"checked.toml\"", "\"link.toml\"");
    fs::write(world.path("second.toml"), config).unwrap();
    let text = world.refuses("second.toml");
    for words in ["link.toml already", &format!("process {}", world.id()), "of its own"] {
        assert!(text.contains(words), "{words:?} is missing in: {text}");
    }
    // One that was killed holds nothing.
    world.stop(Signal::SIGKILL);
    server.set(false);
    world.start();
    world.wait_for(&[false]);
}

/// After a standstill nobody is asked more often than usual.
#[test]
fn a_standstill_is_followed_by_no_storm() {
    let servers: Vec<Server> = (1..=50).map(|n| Server::start(&format!("127.7.0.{n}"))).collect();
    let all: Vec<&Server> = servers.iter().collect();
    let asked = || servers.iter().map(|server| server.asked.load(Ordering::Relaxed)).sum::<usize>();
    let mut world = World::new();
    world.write_source(&all);
    world.start();
    world.wait_for(&[true; 50]);
    world.signal(Signal::SIGSTOP);
    thread::sleep(Duration::from_secs(3));
    let before = asked();
    world.signal(Signal::SIGCONT);
    thread::sleep(Duration::from_millis(400));
    // Two intervals' worth, and those that were under way; to make up for 15 would be 750.
    let made = asked() - before;
    assert!(made <= 3 * 50, "{made} probes in 400 ms");
    thread::sleep(Duration::from_millis(600));
    assert_eq!(world.healthy().unwrap(), [true; 50], "{}", world.log());
}

/// Waits until the checked table has this of its first backend.
fn wait_for_state(world: &World, wanted: &str, healthy: bool) {
    let begun = Instant::now();
    loop {
        let set = glb_table::load(&world.path("checked.toml")).unwrap();
        let backend = &set.tables[0].backends[0];
        if backend.state.to_string() == wanted && backend.healthy == healthy {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{wanted}: {}", world.log());
        thread::sleep(Duration::from_millis(5));
    }
}

/// A backend drains itself by its agent, and its weight is told and changes nothing.
#[test]
fn an_agent_that_drains_its_backend() {
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
    let server = Server::start("127.8.0.1");
    let mut world = World::new();
    world.write_source(&[&server]);
    let text = fs::read_to_string(world.path("source.toml")).unwrap();
    let text = text.replace("{ http", &format!("{{ agent = {port}, http"));
    fs::write(world.path("source.toml"), text).unwrap();
    world.start();
    world.wait_for(&[true]);
    wait_for_state(&world, "active", true);
    for (says, state, healthy) in [
        ("drain 50%\n", "draining", true),
        // Until it says that it is ready.
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
        wait_for_state(&world, state, healthy);
        if says.contains("50%") {
            let status = world.ask(&["status"]);
            assert!(status.contains("(wants drain) (50%)"), "{status}");
            let set = glb_table::load(&world.path("checked.toml")).unwrap();
            assert_eq!(set.tables[0].backends[0].weight, 1);
        }
    }
    assert!(world.log().contains("agent: down: a new disk"), "{}", world.log());

    // A restart keeps its wish, which it need not say again.
    *word.lock().unwrap() = "drain\n";
    wait_for_state(&world, "draining", true);
    *word.lock().unwrap() = "up\n";
    thread::sleep(Duration::from_millis(700));
    world.stop(Signal::SIGKILL);
    world.start();
    thread::sleep(Duration::from_millis(1000));
    wait_for_state(&world, "draining", true);
    *word.lock().unwrap() = "ready\n";
    wait_for_state(&world, "active", true);
    // But not the operator's, who takes it back while no checker runs.
    *word.lock().unwrap() = "up\n";
    let source = fs::read_to_string(world.path("source.toml")).unwrap();
    fs::write(world.path("source.toml"), source.replace("\"active\"", "\"draining\"")).unwrap();
    world.signal(Signal::SIGHUP);
    wait_for_state(&world, "draining", true);
    world.stop(Signal::SIGKILL);
    fs::write(world.path("source.toml"), source).unwrap();
    world.start();
    wait_for_state(&world, "active", true);
}
