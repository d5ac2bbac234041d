//! What the daemon tells routers, and when: with a real BIRD, a real TUN interface, a real command.
//! Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use common::{
    bird::{Bird, wait},
    live::{Daemon, Site, alone, table},
};
use nix::sys::signal::Signal;

const WELL: [(u8, &str); 2] = [(11, "active"), (12, "active")];
const ILL: [(u8, &str); 2] = [(11, "draining"), (12, "draining")];

fn by_bird(site: &Site, more: &str) {
    site.configure(&format!(
        "drain = {{ quiet = \"500ms\", timeout = \"20s\" }}\n{more}\n[[announce]]\nname = \"web\"\n\
         prefixes = [\"198.51.100.1/32\"]\nwithdraw_below = 1\nmethod = \"bird\"\nsocket = \"bird.ctl\"\n\
         protocols = [\"vip\"]\nlow_preference = [\"vip_drain\"]\n"
    ));
    site.write(&table("web", 80, &WELL));
}

fn state(site: &Site) -> String {
    let status = site.json("status", &[]);
    status["announce"]["announcements"][0]["state"].as_str().unwrap().to_owned()
}

fn problems(site: &Site) -> Vec<String> {
    let status = site.json("status", &[]);
    let problems = status["problems"].as_array().unwrap();
    problems.iter().map(|problem| problem["name"].as_str().unwrap().to_owned()).collect()
}

/// How often BIRD was told something, by what the daemon says of it.
fn changes(daemon: &Daemon) -> usize {
    daemon.log().lines().filter(|line| line.contains("announcement=")).count()
}

#[test]
fn bird_announces_what_is_fit_and_hears_it_again_after_its_restart() {
    alone(|site| {
        by_bird(&site, "");
        let bird = Bird::start(&site);
        bird.announces(&[]);
        let mut daemon = site.start();
        bird.announces(&["vip"]);
        wait("the state", || (state(&site) == "announced").then_some(()));
        assert!(problems(&site).is_empty(), "{:?}", problems(&site));

        // Too few healthy backends: withdrawn, with the reason. And back again.
        site.write(&table("web", 80, &ILL));
        bird.announces(&[]);
        daemon.says("withdraw_below", 0);
        assert!(problems(&site).contains(&"not_announced".to_owned()), "{:?}", problems(&site));
        site.write(&table("web", 80, &WELL));
        bird.announces(&["vip"]);

        // A BIRD that begins anew announces nothing by itself, and is told at once; meanwhile that
        // is a problem that names the socket.
        drop(bird);
        wait("the problem", || {
            problems(&site).contains(&"announcement_failed".to_owned()).then_some(())
        });
        let (_, text) = site.run("status", &[]);
        assert!(text.contains("bird.ctl"), "{text}");
        let bird = Bird::start(&site);
        bird.announces(&["vip"]);
        // What somebody else disables is enabled again.
        let mut birdc = Command::new("birdc");
        birdc.arg("-s").arg(&bird.socket).args(["disable", "vip"]).stdout(Stdio::null());
        assert!(birdc.status().unwrap().success());
        bird.announces(&["vip"]);
        daemon.signal(Signal::SIGKILL);
    });
}

#[test]
fn a_restart_touches_nothing_that_is_announced() {
    alone(|site| {
        by_bird(&site, "");
        let bird = Bird::start(&site);
        let mut daemon = site.start();
        bird.announces(&["vip"]);
        let since = |bird: &Bird| {
            let mut birdc = Command::new("birdc");
            let output = birdc.arg("-s").arg(&bird.socket).args(["show", "protocols"]).output();
            let text = String::from_utf8(output.unwrap().stdout).unwrap();
            text.lines().find(|line| line.starts_with("vip ")).unwrap().to_owned()
        };
        let before = since(&bird);
        for signal in [Signal::SIGKILL, Signal::SIGTERM] {
            daemon.end(signal);
            daemon = site.start();
            wait("the state", || (state(&site) == "announced").then_some(()));
            thread::sleep(Duration::from_millis(1_500));
            assert_eq!(changes(&daemon), 0, "{}", daemon.log());
        }
        assert_eq!(since(&bird), before);

        // On a machine where nothing serves, what BIRD announces is withdrawn before the start.
        daemon.end(Signal::SIGTERM);
        assert!(site.run("detach", &[]).0);
        bird.announces(&[]);
        let mut birdc = Command::new("birdc");
        birdc.arg("-s").arg(&bird.socket).args(["enable", "vip"]).stdout(Stdio::null());
        assert!(birdc.status().unwrap().success());
        site.fault("wait loaded");
        let mut daemon = site.spawn();
        bird.announces(&[]);
        daemon.says("ready", 0);
        bird.announces(&["vip"]);
    });
}

#[test]
fn what_speaks_against_bird_is_said_with_the_remedy() {
    alone(|site| {
        by_bird(&site, "");
        let mut daemon = site.start();
        daemon.says("cannot ask BIRD on", 0);
        let bird = Bird::start(&site);
        bird.announces(&["vip"]);
        drop(bird);
        // Another service's socket.
        fs::remove_file(site.at("bird.ctl")).ok();
        let listener = std::os::unix::net::UnixListener::bind(site.at("bird.ctl")).unwrap();
        let other = thread::spawn(move || {
            for stream in listener.incoming().take(2) {
                std::io::Write::write_all(&mut stream.unwrap(), b"220 mail ESMTP\r\n").ok();
            }
        });
        daemon.says("is not BIRD's control socket", 0);
        other.join().unwrap();
        fs::remove_file(site.at("bird.ctl")).unwrap();
        daemon.end(Signal::SIGTERM);
        let text = fs::read_to_string(site.at("director.toml")).unwrap();
        fs::write(site.at("director.toml"), text.replace("\"vip_drain\"", "\"vip_darin\""))
            .unwrap();
        let bird = Bird::start(&site);
        let mut daemon = site.start();
        daemon.says("no protocol \"vip_darin\"", 0);
        daemon.says("vip_drain", 0);
        bird.announces(&[]);
    });
}

#[test]
fn a_drain_goes_step_by_step_and_can_be_undone_also_by_a_successor() {
    alone(|site| {
        by_bird(&site, "");
        let bird = Bird::start(&site);
        let mut daemon = site.start();
        bird.announces(&["vip"]);
        // No packets come here: it is drained after twice the quiet.
        let (well, text) = site.run("drain", &[]);
        assert!(well && text.contains("low_preference") && text.contains("drained"), "{text}");
        bird.announces(&[]);
        daemon.says("low_preference", 0);
        let status = site.json("status", &[]);
        assert_eq!(status["announce"]["drain"]["stage"], "drained", "{status}");
        assert!(problems(&site).is_empty(), "{:?}", problems(&site));

        // It stays so across restarts.
        daemon.end(Signal::SIGKILL);
        let mut daemon = site.start();
        daemon.says("stays drained until", 0);
        thread::sleep(Duration::from_millis(500));
        bird.announces(&[]);
        assert!(site.run("undrain", &[]).0);
        bird.announces(&["vip"]);
        assert!(site.run("undrain", &[]).1.contains("no drain"));
        daemon.end(Signal::SIGTERM);
        let daemon = site.start();
        bird.announces(&["vip"]);
        drop(daemon);
    });
}

#[test]
fn a_stop_withdraws_before_it_detaches() {
    alone(|site| {
        for how in ["detach", "drain"] {
            by_bird(&site, &format!("on_stop = \"{how}\""));
            let bird = Bird::start(&site);
            let mut daemon = site.start();
            bird.announces(&["vip"]);
            assert!(daemon.end(Signal::SIGTERM).success());
            bird.announces(&[]);
            assert!(!site.pins.exists(), "{how}");
            let log = daemon.log();
            let at = |words: &str| log.find(words).unwrap_or_else(|| panic!("{words:?}: {log}"));
            assert!(at("withdrawn") < at("ended and detached"), "{log}");
            assert_eq!(log.contains("low_preference"), how == "drain", "{log}");
        }
    });
}

/// The routes to the VIP by `ip route`.
fn routes() -> String {
    let mut ip = Command::new("ip");
    let output = ip.args(["route", "show", "198.51.100.1"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// Asks BIRD for its routes.
fn learned(site: &Site) -> String {
    let mut birdc = Command::new("birdc");
    let output = birdc.arg("-s").arg(site.at("bird.ctl")).args(["show", "route", "all"]).output();
    String::from_utf8(output.unwrap().stdout).unwrap()
}

#[test]
fn a_tun_interface_is_learned_by_bird_and_goes_with_its_owner() {
    alone(|site| {
        site.configure(
            "drain = { quiet = \"500ms\", timeout = \"20s\" }\n[[announce]]\nname = \"web\"\n\
             prefixes = [\"198.51.100.1/32\", \"2001:db8::1/128\"]\nmethod = \"tun\"\n\
             interface = \"vip\"\nlow_preference_metric = 500\n",
        );
        let both = table("web", 80, &WELL).replace(
            "binds = [",
            "binds = [{ ip = \"2001:db8::1\", proto = \"tcp\", port = 80 }, ",
        );
        site.write(&both);
        fs::write(
            site.at("bird.conf"),
            "router id 10.0.1.1;\nprotocol device {}\n\
             protocol kernel { learn; scan time 1; ipv4 { import all; export none; }; }\n\
             protocol kernel { learn; scan time 1; ipv6 { import all; export none; }; }\n",
        )
        .unwrap();
        let mut bird = Command::new("bird");
        bird.arg("-f").arg("-c").arg(site.at("bird.conf")).arg("-s").arg(site.at("bird.ctl"));
        let child = bird.stderr(Stdio::null()).spawn().expect("bird is needed (`./x setup`)");
        let _bird = Bird { child, socket: site.at("bird.ctl") };
        let mut daemon = site.start();
        wait("the routes", || {
            let learned = learned(&site);
            let both = learned.contains("198.51.100.1/32") && learned.contains("2001:db8::1/128");
            (both && learned.contains("metric: 100")).then_some(())
        });
        // No address, not even a link-local one.
        let mut ip = Command::new("ip");
        let shown = ip.args(["address", "show", "dev", "vip"]).output().unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(!shown.contains("inet"), "{shown}");

        // What comes out of it is dropped and counted; nobody is told anything.
        let socket = std::net::UdpSocket::bind("10.0.1.1:0").unwrap();
        socket.connect("198.51.100.1:80").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        for _ in 0..3 {
            socket.send(b"x").unwrap();
        }
        let kind = socket.recv(&mut [0]).unwrap_err().kind();
        assert_eq!(kind, std::io::ErrorKind::WouldBlock);
        wait("the count", || {
            let status = site.json("status", &[]);
            (status["announce"]["announcements"][0]["dropped"] == 3).then_some(())
        });

        // Somebody takes a route away, or the interface itself: both are there again.
        ip_does("route del 198.51.100.1");
        wait("the route", || routes().contains("metric 100").then_some(()));
        ip_does("link del vip");
        wait("the route", || routes().contains("metric 100").then_some(()));

        // Less wanted is another metric; the drain ends with no route.
        let mut drain = site.command("drain").stderr(Stdio::null()).spawn().unwrap();
        wait("the metric", || {
            let routes = routes();
            (routes.contains("metric 500") && !routes.contains("metric 100")).then_some(())
        });
        wait("BIRD", || learned(&site).contains("metric: 500").then_some(()));
        assert!(drain.wait().unwrap().success());
        assert_eq!(routes(), "");
        assert!(site.run("undrain", &[]).0);
        wait("BIRD", || learned(&site).contains("metric: 100").then_some(()));

        // The kernel withdraws when the owner is gone, however that came.
        daemon.signal(Signal::SIGKILL);
        daemon.ended();
        assert_eq!(routes(), "");
        wait("BIRD", || (!learned(&site).contains("198.51.100.1")).then_some(()));
        assert!(site.running().iter().all(Option::is_some), "the program goes on");
    });
}

fn ip_does(arguments: &str) {
    common::live::ip(arguments);
}

#[test]
fn a_hook_is_told_again_until_it_does_it() {
    alone(|site| {
        let hook = site.at("hook");
        let log = site.at("told");
        fs::write(
            &hook,
            format!(
                "#!/bin/sh\necho \"$@\" >> {}\n[ -e {} ] || {{ echo no peer >&2; exit 1; }}\n",
                log.display(),
                site.at("peer").display()
            ),
        )
        .unwrap();
        std::os::unix::fs::chown(&hook, Some(0), Some(0)).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&hook, mode).unwrap();
        site.configure(
            "drain = { quiet = \"500ms\", timeout = \"20s\" }\n[[announce]]\n\
             prefixes = [\"198.51.100.1/32\"]\nmethod = \"exec\"\ncommand = [\"./hook\", \"now\"]\n\
             low_preference = true\n",
        );
        site.write(&table("web", 80, &WELL));
        let told = || fs::read_to_string(&log).unwrap_or_default();
        let mut daemon = site.start();
        daemon.says("no peer", 0);
        wait("three attempts", || (told().matches("now announce").count() >= 3).then_some(()));
        assert!(problems(&site).contains(&"announcement_failed".to_owned()));
        fs::write(site.at("peer"), "").unwrap();
        wait("the state", || (state(&site) == "announced").then_some(()));
        fs::remove_file(&log).unwrap();
        assert!(site.run("drain", &[]).0);
        assert_eq!(told(), "now low-preference 198.51.100.1/32\nnow withdraw 198.51.100.1/32\n");
    });
}

#[test]
fn this_kernel_answers_for_no_vip() {
    alone(|site| {
        let rules = |family: &str| {
            let mut ip = Command::new("ip");
            let output = ip.args([family, "rule", "show"]).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            text.lines().filter(|line| line.contains("blackhole")).count()
        };
        by_bird(&site, "");
        let conf = fs::read_to_string(site.at("director.toml")).unwrap();
        let prefix = "\"198.51.100.1/32\"";
        let two = format!("{prefix}, \"2001:db8::1/128\"");
        fs::write(site.at("director.toml"), conf.replace(prefix, &two)).unwrap();
        let both = table("web", 80, &WELL).replace(
            "binds = [",
            "binds = [{ ip = \"2001:db8::1\", proto = \"tcp\", port = 80 }, ",
        );
        site.write(&both);
        // Before: the doctor names the address and the rule.
        ip_does("-6 address add fd99::1/64 dev a nodad");
        let (_, text) = site.run("doctor", &[]);
        assert!(text.contains("ip -6 rule add iif a to 2001:db8::1"), "{text}");
        for path in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            fs::write(format!("/proc/sys/net/{path}"), "1").unwrap();
        }
        let bird = Bird::start(&site);
        let mut daemon = site.start();
        bird.announces(&["vip"]);
        assert_eq!((rules("-4"), rules("-6")), (2, 2));
        daemon.end(Signal::SIGTERM);
        let mut daemon = site.start();
        assert_eq!((rules("-4"), rules("-6")), (2, 2));
        daemon.end(Signal::SIGTERM);
        assert!(site.run("detach", &[]).0);
        bird.announces(&[]);
        // Nothing is attached any more, this machine forwards, and has no route to the VIPs.
        assert_eq!((rules("-4"), rules("-6")), (2, 2));
        let (_, text) = site.run("doctor", &[]);
        assert!(text.contains("kernel_answers: for no VIP"), "{text}");
    });
}

#[test]
fn a_fleet_is_compared_over_sockets_and_http() {
    alone(|site| {
        by_bird(&site, "metrics = \"127.0.0.1:9650\"");
        let bird = Bird::start(&site);
        let _daemon = site.start();
        bird.announces(&["vip"]);
        wait("the state", || (state(&site) == "announced").then_some(()));
        // The same director by both its doors agrees with itself.
        let socket = site.at("c.sock");
        let fleet = |targets: &str| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_glb-director"));
            command.args(["fleet", "status", "-o", "json", "--targets", targets]);
            let output = command.output().unwrap();
            let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            (output.status.code(), report)
        };
        let both = format!("{},http://127.0.0.1:9650", socket.display());
        let (code, report) = fleet(&both);
        assert_eq!((code, &report["agree"]), (Some(0), &true.into()), "{report}");
        assert_eq!(report["targets"][1]["tables"][0]["name"], "web");
        let (code, report) = fleet(&format!("{both},http://127.0.0.1:9"));
        assert_eq!(code, Some(3), "{report}");
        assert!(report["targets"][2]["error"].as_str().unwrap().contains("refused"), "{report}");
        let (code, report) = fleet("/no/such.sock");
        let error = report["targets"][0]["error"].as_str().unwrap();
        assert!(
            code == Some(3) && error.contains("start it") && !error.contains("--config"),
            "{error}"
        );
        let text = report.to_string();
        assert!(!text.contains("12345678901234561234567890123456"), "{text}");
        // And Prometheus is told what is announced.
        let mut stream = std::net::TcpStream::connect("127.0.0.1:9650").unwrap();
        std::io::Write::write_all(&mut stream, b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        std::io::Read::read_to_string(&mut stream, &mut text).unwrap();
        for line in [
            "glb_director_announced{announcement=\"web\"} 1",
            "glb_director_announcement_state{announcement=\"web\",state=\"withdrawn\"} 0",
            "glb_director_withdrawals_total{announcement=\"web\",reason=\"draining\"} 0",
            "glb_director_drain{stage=\"drained\"} 0",
        ] {
            assert!(text.contains(line), "{line} is missing in {text}");
        }
    });
}
