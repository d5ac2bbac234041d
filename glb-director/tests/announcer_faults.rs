//! A routing daemon that cannot be asked, or that has no session, never looks healthy: with a real BIRD
//! in a network namespace. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    io::Write as _,
    os::unix::net::UnixListener,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use common::{
    bird::{Bird, wait},
    live::{Site, alone, ip, table},
};
use nix::sys::signal::Signal;
use serde_json::Value;

const HEALTHY: [(u8, &str); 2] = [(11, "active"), (12, "active")];

fn configure(site: &Site, socket: &str, more: &str) {
    site.configure(&format!(
        "drain = {{ quiet = \"500ms\", timeout = \"3s\" }}\n{more}\n[[announce]]\nname = \"web\"\n\
         prefixes = [\"198.51.100.1/32\"]\nmethod = \"bird\"\nsocket = \"{socket}\"\n\
         protocols = [\"vip\"]\nlow_preference = [\"vip_drain\"]\n"
    ));
}

fn announcement(site: &Site) -> Value {
    site.json("status", &[])["announce"]["announcements"][0].clone()
}

fn problem(site: &Site, name: &str) -> Option<String> {
    let status = site.json("status", &[]);
    let problems = status["problems"].as_array().unwrap();
    let found = problems.iter().find(|problem| problem["name"] == name)?;
    Some(found["message"].as_str().unwrap().to_owned())
}

/// Starts a director that announces by a real BIRD, ends it, and names another socket.
fn announced_by_an_unreachable_bird(site: &Site, more: &str) -> Bird {
    configure(site, "bird.ctl", more);
    site.write(&table("web", 80, &HEALTHY));
    let bird = Bird::start(site);
    let mut daemon = site.start();
    bird.announces(&["vip"]);
    daemon.end(Signal::SIGKILL);
    configure(site, "no-such.ctl", more);
    bird
}

#[test]
fn detach_refuses_while_the_socket_is_wrong_and_bird_announces() {
    alone(|site| {
        let bird = announced_by_an_unreachable_bird(&site, "");
        let (well, text) = site.run("detach", &[]);
        assert!(!well, "{text}");
        for words in ["no-such.ctl", "unknown", "`socket`", "--force"] {
            assert!(text.contains(words), "{words:?} is missing in: {text}");
        }
        assert!(!text.contains("withdrawn: 1"), "{text}");
        assert!(site.running().iter().all(Option::is_some), "the program goes on forwarding");
        bird.announces(&["vip"]);
        // A socket of another service, and one that this user may not connect to, are no better.
        let listener = UnixListener::bind(site.at("no-such.ctl")).unwrap();
        let other = thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            stream.write_all(b"220 mail ESMTP\r\n").ok();
        });
        let (well, text) = site.run("detach", &[]);
        assert!(!well && text.contains("not BIRD's control socket"), "{text}");
        other.join().unwrap();
        let (well, text) = site.run("detach", &["--force"]);
        assert!(well && text.contains("withdrawn: 0 of 1"), "{text}");
    });
}

#[test]
fn an_unreachable_bird_is_unknown_and_a_stop_keeps_the_program() {
    alone(|site| {
        let bird = announced_by_an_unreachable_bird(&site, "on_stop = \"detach\"");
        let mut daemon = site.start();
        wait("the problem", || problem(&site, "announcement_failed"));
        assert_eq!(announcement(&site)["state"], "unknown");
        let (well, text) = site.run("drain", &["--timeout", "1s"]);
        assert!(!well && text.contains("no-such.ctl"), "{text}");
        let (well, text) = site.run("drain", &["--timeout", "1s", "--force"]);
        assert!(!well && text.contains("no-such.ctl"), "{text}");
        // A table without the VIP is deferred.
        let before = site.running();
        site.write(&table("web", 80, &HEALTHY).replace("198.51.100.1", "198.51.100.9"));
        let (well, text) = site.run("reload", &[]);
        assert!(!well && text.contains("no-such.ctl"), "{text}");
        assert_eq!(site.running(), before);
        daemon.end(Signal::SIGTERM);
        assert!(site.pins.exists(), "the program stays: {}", daemon.log());
        assert!(daemon.log().contains("no-such.ctl"), "{}", daemon.log());
        bird.announces(&["vip"]);
    });
}

#[test]
fn a_foreign_tun_interface_is_unknown() {
    alone(|site| {
        site.configure(
            "[[announce]]\nprefixes = [\"198.51.100.1/32\"]\nmethod = \"tun\"\ninterface = \"vip\"\n",
        );
        site.write(&table("web", 80, &HEALTHY));
        let mut daemon = site.start();
        wait("the route", || (announcement(&site)["state"] == "announced").then_some(()));
        daemon.end(Signal::SIGKILL);
        // Another process has an interface of this name, and a route to the VIP through it.
        ip("tuntap add dev vip mode tun");
        ip("link set dev vip up");
        ip("route add 198.51.100.1/32 dev vip");
        let (well, text) = site.run("detach", &[]);
        assert!(!well && text.contains("another process") && text.contains("--force"), "{text}");
        assert!(site.running().iter().all(Option::is_some));
        ip("link del vip");
        assert!(site.run("detach", &[]).0);
    });
}

#[test]
fn a_long_line_of_another_service_is_shortened_and_cleaned() {
    alone(|site| {
        configure(&site, "bird.ctl", "");
        site.write(&table("web", 80, &HEALTHY));
        let listener = UnixListener::bind(site.at("bird.ctl")).unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut line = b"0001 \x1b[2J\x1b]0;owned\x07".to_vec();
                line.resize(4 << 20, b'x');
                stream.unwrap().write_all(&line).ok();
            }
        });
        let mut daemon = site.start();
        daemon.says("is not BIRD's control socket", 0);
        let log = daemon.log();
        let longest = log.lines().map(str::len).max().unwrap();
        assert!(longest < 2_000, "a line of {longest} bytes");
        let (_, text) = site.run("status", &[]);
        assert!(!text.contains('\x1b') && !text.contains('\x07'), "{text:?}");
        daemon.end(Signal::SIGKILL);
    });
}

/// A BIRD with this configuration, on its own control socket.
fn start_bird(site: &Site, name: &str, text: &str) -> Bird {
    let (conf, socket) = (site.at(&format!("{name}.conf")), site.at(&format!("{name}.ctl")));
    fs::write(&conf, text).unwrap();
    let mut bird = Command::new("bird");
    bird.arg("-f").arg("-c").arg(conf).arg("-s").arg(&socket).stderr(Stdio::null());
    Bird { child: bird.spawn().expect("bird is needed (`./x setup`)"), socket }
}

fn bgp(local: u8, remote: u8, more: &str) -> String {
    format!(
        "local 127.0.0.{local} port 179{local} as 6501{local}; multihop;\n\
         neighbor 127.0.0.{remote} port 179{remote} as 6501{remote};\n\
         connect delay time 1; connect retry time 1; error wait time 1, 2;\n{more}\n"
    )
}

#[test]
fn a_session_that_is_down_is_a_problem_within_seconds() {
    alone(|site| {
        ip("link set dev lo up");
        configure(&site, "bird.ctl", "metrics = \"127.0.0.1:9650\"");
        site.write(&table("web", 80, &HEALTHY));
        let exports = "ipv4 { import none; export where source = RTS_STATIC; };";
        let silent = "ipv4 { import none; export none; };";
        let _bird = start_bird(
            &site,
            "bird",
            &format!(
                "router id 10.0.1.1;\nprotocol device {{}}\n\
                 protocol static vip {{ disabled; ipv4; route 198.51.100.1/32 blackhole; }}\n\
                 protocol static vip_drain {{ disabled; ipv4 {{ preference 100; }};\n\
                 route 198.51.100.1/32 blackhole; }}\n\
                 protocol bgp upstream {{ {} }}\nprotocol bgp collector {{ {} }}\n",
                bgp(1, 2, exports),
                bgp(1, 3, silent)
            ),
        );
        let peer = |number: u8| {
            let channel = "passive; ipv4 { import all; export none; };";
            let text = format!(
                "router id 10.0.9.{number};\nprotocol device {{}}\nprotocol bgp director {{ {} }}\n",
                bgp(number, 1, channel)
            );
            start_bird(&site, &format!("peer{number}"), &text)
        };
        let (router, _collector) = (peer(2), peer(3));
        let _daemon = site.start();
        let session = |name: &str| {
            let one = announcement(&site);
            let sessions = one["sessions"].as_array().unwrap();
            sessions.iter().find(|session| session["name"] == name).cloned()
        };
        wait("the session", || {
            let carried = session("upstream")?;
            (carried["established"] == true && carried["exports"] == true).then_some(())
        });
        wait("the other session", || (session("collector")?["exports"] == false).then_some(()));
        wait("no problem", || problem(&site, "not_exported").is_none().then_some(()));
        let metric = |line: &str| metrics().lines().any(|found| found == line);
        assert!(metric("glb_director_announcement_exported{announcement=\"web\"} 1"));

        // The router is lost: BIRD goes on announcing, and no session carries the VIP.
        drop(router);
        let begun = Instant::now();
        let text = wait("the problem", || problem(&site, "not_exported"));
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(5), "{took:?}");
        println!("a lost session is a problem after {took:?}");
        assert!(text.contains("upstream is down") && text.contains("collector does not"), "{text}");
        assert_eq!(announcement(&site)["state"], "announced");
        wait("the metrics", || {
            let session = "{announcement=\"web\",session=\"upstream\"}";
            (metric("glb_director_announcement_exported{announcement=\"web\"} 0")
                && metric(&format!("glb_director_announcement_session_up{session} 0")))
            .then_some(())
        });
        let _router = peer(2);
        wait("no problem", || problem(&site, "not_exported").is_none().then_some(()));
    });
}

fn metrics() -> String {
    let mut stream = std::net::TcpStream::connect("127.0.0.1:9650").unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut stream, &mut text).unwrap();
    text
}

#[test]
fn config_check_asks_the_machine() {
    alone(|site| {
        configure(&site, "bird.ctl", "");
        site.write(&table("web", 80, &HEALTHY));
        let bird = Bird::start(&site);
        let check = |more: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_glb-director"));
            command.args(["config", "check", "-c"]).arg(site.at("director.toml")).args(more);
            let output = command.output().unwrap();
            let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
            (output.status.code(), said)
        };
        assert_eq!(check(&[]).0, Some(0), "{}", check(&[]).1);
        let good = fs::read_to_string(site.at("director.toml")).unwrap();
        for (from, to, words) in [
            ("[\"a\", \"b\"]", "[\"a\", \"nope0\"]", "nope0 does not exist"),
            ("bird.ctl", "brid.ctl", "brid.ctl"),
            ("\"vip_drain\"", "\"vip_darin\"", "no protocol \"vip_darin\""),
        ] {
            fs::write(site.at("director.toml"), good.replace(from, to)).unwrap();
            let (code, said) = check(&[]);
            assert!(code == Some(4) && said.contains(words), "{code:?} {said}");
            let (code, said) = check(&["--files-only"]);
            assert_eq!(code, Some(0), "{said}");
        }
        drop(bird);
    });
}

#[test]
fn commands_find_the_control_socket_without_the_configuration() {
    alone(|site| {
        site.configure("");
        site.write(&table("web", 80, &HEALTHY));
        let _daemon = site.start();
        let status = |file: &Path, socket: Option<&Path>| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_glb-director"));
            command.arg("status").arg("-c").arg(file);
            if let Some(socket) = socket {
                command.env("GLB_DIRECTOR_SOCKET", socket);
            }
            command.output().unwrap().status.code()
        };
        let missing = site.at("no-such.toml");
        assert_eq!(status(&missing, None), Some(1));
        assert_eq!(status(&missing, Some(&site.at("c.sock"))), Some(0));
        assert_eq!(status(&missing, Some(&site.at("other.sock"))), Some(3));
    });
}

#[test]
fn a_fixed_gateway_needs_no_route_to_a_backend() {
    alone(|site| {
        // No route covers 192.0.2.0/24.
        site.configure("gateway_mac = \"02:00:00:00:01:02\"");
        site.write(&table("web", 80, &HEALTHY).replace("10.0.1.", "192.0.2."));
        let _daemon = site.start();
        let problems = site.json("status", &[])["problems"].clone();
        assert_eq!(problems, serde_json::json!([]));
        let backends = site.json("show", &["backends"]);
        for backend in backends.as_array().unwrap() {
            let next_hop = backend.to_string();
            assert!(next_hop.contains("02:00:00:00:01:02"), "{next_hop}");
        }
    });
}
