//! Live connections: what the kernel lists, and the commands `connections` and `wait`. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;
#[path = "../../glb-common/tests/support/mod.rs"]
mod support;

use std::{
    collections::BTreeSet,
    io::Read as _,
    net::{IpAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use common::{VIPS, in_namespace, tcp::Client};
use glb_host::bpffs::PinFolder;
use glb_redirect::connections::{ConnectionAges, ConnectionReport, VipConnections, report};
use support::{
    packet::{ACK, RST, Segment},
    socket,
};

const V4: (&str, &str) = ("198.51.100.7:40000", "203.0.113.10:80");
const V6: (&str, &str) = ("[2001:db8:9::7]:40000", "[2001:db8::10]:80");

fn vips() -> BTreeSet<IpAddr> {
    VIPS.iter().map(|vip| vip.parse().unwrap()).collect()
}

fn of(report: &ConnectionReport, address: &str) -> VipConnections {
    report.vips[&socket(address).ip()].clone()
}

/// A configuration file that is deleted with its handle.
struct File(PathBuf);

impl File {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("{name}-{}.toml", std::process::id()));
        let text = format!(
            "interfaces = [\"lo\"]\nbpffs_dir = \"/sys/fs/bpf/glb-test-no-such\"\nvips = {VIPS:?}\n\
             directors = [\"10.0.2.10\"]\n"
        );
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_glb-redirect"));
        command.args(arguments).arg("--config").arg(&self.0);
        command
    }
}

impl Drop for File {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

#[test]
fn live_connections_are_reported_by_vip_state_and_age() {
    in_namespace(|mut wire| {
        let mut ages = ConnectionAges::default();
        let empty = report(&vips(), &mut ages).unwrap();
        assert_eq!((empty.live, empty.vips.len()), (0, VIPS.len()));

        // One listener for both families: the kernel shows IPv4 addresses mapped into IPv6.
        let listener = TcpListener::bind("[::]:80").unwrap();
        let clients = [V4, V6].map(|(client, vip)| {
            let client = Client::connect(&mut wire, socket(client), socket(vip));
            (client, listener.accept().unwrap().0)
        });
        // This host's connection to itself does not count.
        let own = TcpStream::connect(V4.1).unwrap();
        let own_end = listener.accept().unwrap().0;
        // A client that never answers the SYN-ACK.
        let half = Client::syn(&mut wire, socket("198.51.100.8:1"), socket(V4.1));
        std::thread::sleep(Duration::from_millis(300));

        let seen = report(&vips(), &mut ages).unwrap();
        assert_eq!(seen.live, 3, "{seen:?}");
        assert_eq!(of(&seen, V4.1).states, [("established", 1), ("syn_received", 1)].into());
        assert_eq!(of(&seen, V6.1).states, [("established", 1)].into());
        let oldest = of(&seen, V6.1).oldest_seconds.unwrap();
        assert!((0.2..10.0).contains(&oldest), "seen first after 0.3 s, it says {oldest}");

        // The age keeps growing while the connection is used.
        std::thread::sleep(Duration::from_millis(700));
        let [(v4, v4_end), (mut v6, v6_end)] = clients;
        wire.send(&Segment { data: 10, ..v6.segment(ACK) }.packet());
        v6.sequence += 10;
        let again = report(&vips(), &mut ages).unwrap();
        let older = of(&again, V6.1).oldest_seconds.unwrap();
        assert!(older >= oldest + 0.7, "{oldest} s, then {older} s");

        // A reset connection is gone at once; one that both sides close stays in TIME_WAIT.
        wire.send(&v4.segment(RST).packet());
        wire.send(&half.segment(RST).packet());
        // Closing with unread data would reset the connection.
        (&v6_end).read_exact(&mut [0; 10]).unwrap();
        v6_end.shutdown(std::net::Shutdown::Write).unwrap();
        v6.receive_fin(&mut wire);
        v6.ack(&mut wire);
        let waiting = report(&vips(), &mut ages).unwrap();
        assert_eq!(of(&waiting, V6.1).states, [("fin_wait_2", 1)].into());
        drop((v4_end, v6_end));
        v6.fin(&mut wire);
        let end = report(&vips(), &mut ages).unwrap();
        assert_eq!((end.live, end.oldest_seconds), (0, None), "{end:?}");
        assert_eq!(of(&end, V6.1).time_wait, 1);
        drop((own, own_end));
    });
}

#[test]
fn ages_outlive_the_daemon() {
    in_namespace(|mut wire| {
        let pins = PinFolder::private().unwrap();
        let pin = pins.join("connections");
        let listener = TcpListener::bind(V4.1).unwrap();
        let client = Client::connect(&mut wire, socket(V4.0), socket(V4.1));
        let stream = listener.accept().unwrap().0;
        let mut daemon = ConnectionAges::open_or_create(&pin).unwrap();
        report(&vips(), &mut daemon).unwrap();
        drop(daemon);
        std::thread::sleep(Duration::from_millis(600));
        // The connection is used, so that its idle time does not tell the age.
        wire.send(&Segment { data: 1, ..client.segment(ACK) }.packet());
        for mut ages in [ConnectionAges::read(&pin), ConnectionAges::open_or_create(&pin).unwrap()]
        {
            let seen = report(&vips(), &mut ages).unwrap();
            assert!(seen.oldest_seconds.unwrap() >= 0.6, "{seen:?}");
        }
        wire.send(&client.segment(RST).packet());
        drop(stream);
        let mut daemon = ConnectionAges::open_or_create(&pin).unwrap();
        assert_eq!(report(&vips(), &mut daemon).unwrap().live, 0);
        // The pin has forgotten it too: a new connection starts with age 0.
        let mut fresh = ConnectionAges::read(&pin);
        let again = Client::connect(&mut wire, socket("198.51.100.7:40009"), socket(V4.1));
        let stream = listener.accept().unwrap().0;
        let seen = report(&vips(), &mut fresh).unwrap();
        assert!(seen.oldest_seconds.unwrap() < 0.5, "{seen:?}");
        drop((again, stream));
    });
}

#[test]
fn connections_lists_and_wait_waits_until_drained() {
    in_namespace(|mut wire| {
        let file = File::new("glb-redirect-connections");
        let listener = TcpListener::bind(V4.1).unwrap();
        let client = Client::connect(&mut wire, socket(V4.0), socket(V4.1));
        let stream = listener.accept().unwrap().0;

        let output = file.command(&["connections", "-o", "json"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json["live"], 1, "{json}");
        assert_eq!(json["vips"]["203.0.113.10"]["live"], 1, "{json}");
        assert_eq!(json["vips"]["2001:db8::10"]["live"], 0, "{json}");
        let output = file.command(&["connections"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.contains("1 established"), "{text}");

        // One line for each report.
        let mut watch = file.command(&["connections", "--watch", "-o", "json"]);
        watch.args(["--interval", "50ms"]).stdout(Stdio::piped());
        let mut watch = watch.spawn().unwrap();
        let mut lines = [0; 700];
        watch.stdout.take().unwrap().read_exact(&mut lines).unwrap();
        watch.kill().unwrap();
        watch.wait().unwrap();
        let lines = String::from_utf8_lossy(&lines).into_owned();
        for line in lines.lines().take(2) {
            let json: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(json["live"], 1, "{line}");
        }

        let until = ["wait", "--until-drained", "--timeout"];
        let start = Instant::now();
        let output = file.command(&[until[0], until[1], until[2], "1s"]).output().unwrap();
        assert_eq!(output.status.code(), Some(7), "{output:?}");
        assert!(start.elapsed() >= Duration::from_secs(1));
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(told.contains("1 live connections (203.0.113.10: 1)"), "{told}");
        assert_eq!(file.command(&["wait"]).output().unwrap().status.code(), Some(2));
        assert_eq!(
            File(PathBuf::from("/nonexistent.toml"))
                .command(&until[..2])
                .output()
                .unwrap()
                .status
                .code(),
            Some(1)
        );

        let mut wait = file.command(&[until[0], until[1], until[2], "60s"]);
        let wait = wait.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(500));
        wire.send(&client.segment(RST).packet());
        drop(stream);
        let output = wait.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains("drained"), "{said}");
    });
}

#[test]
fn wait_fails_in_a_namespace_without_the_vips() {
    let file = File::new("glb-redirect-elsewhere");
    let in_other_namespace = |arguments: &[&str]| {
        let command = file.command(arguments);
        let mut unshare = Command::new("unshare");
        unshare.arg("--net").arg(command.get_program()).args(command.get_args());
        unshare.output().unwrap()
    };
    let output = in_other_namespace(&["wait", "--until-drained", "--timeout", "20s"]);
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{told}");
    for word in ["203.0.113.10", "network namespace", "nsenter"] {
        assert!(told.contains(word), "{word:?} is missing in: {told}");
    }
    let output = in_other_namespace(&["connections", "-o", "json"]);
    assert!(output.status.success(), "{output:?}");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.starts_with("note: ") && told.contains("203.0.113.10"), "{told}");
}

#[test]
fn unwritable_output_is_an_error_but_a_closed_pipe_is_not() {
    in_namespace(|_| {
        let file = File::new("glb-redirect-output");
        let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
        for arguments in [&["wait", "--until-drained", "--quiet", "0s"][..], &["doctor"]] {
            let output = file.command(arguments).stdout(full()).output().unwrap();
            let told = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{arguments:?}: {told}");
            assert!(told.contains("standard output: No space left"), "{arguments:?}: {told}");

            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            let output = file.command(arguments).stdout(writer).output().unwrap();
            let told = String::from_utf8(output.stderr).unwrap();
            assert!(matches!(output.status.code(), Some(0 | 4)), "{arguments:?}: {told}");
        }
        // Progress on stderr may be lost.
        let wait = ["wait", "--until-drained"];
        assert!(file.command(&wait).stderr(full()).status().unwrap().success());
    });
}
