//! Next hops in real network namespaces: the thread's own, and that of a neighbour.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail where it stands")]

use std::{
    io::Write,
    net::IpAddr,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use glb_host::next_hop::{NextHops, Snapshot, Unresolved, interface_index};
use nix::sched::{CloneFlags, unshare};

const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const PATIENCE: Duration = Duration::from_secs(10);

/// This thread's namespace with `here0`, and a neighbour's with `peer0`.
struct Wire {
    peer: Child,
}

impl Drop for Wire {
    fn drop(&mut self) {
        drop(self.peer.kill());
        drop(self.peer.wait());
    }
}

impl Wire {
    fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root (CAP_SYS_ADMIN)");
        let peer = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut wire = Self { peer };
        let mut ready = [0; 6];
        let output = wire.peer.stdout.as_mut().unwrap();
        std::io::Read::read_exact(output, &mut ready).unwrap();
        let pid = wire.peer.id();
        here("link set lo up");
        here(&format!(
            "link add here0 address 02:00:00:00:00:01 mtu 1600 type veth \
             peer name peer0 address 02:00:00:00:00:02 netns {pid}"
        ));
        here("addr add 10.0.2.10/24 dev here0");
        here("addr add fd00:2::10/64 dev here0 nodad");
        here("link set here0 up");
        wire.there("addr add 10.0.2.21/24 dev peer0");
        wire.there("addr add fd00:2::21/64 dev peer0 nodad");
        wire.there("link set peer0 up");
        wire
    }

    fn there(&self, arguments: &str) {
        let pid = self.peer.id().to_string();
        let mut command = Command::new("nsenter");
        command.args(["-t", &pid, "-n", "ip"]).args(arguments.split_whitespace());
        run(command);
    }
}

fn here(arguments: &str) {
    let mut command = Command::new("ip");
    command.args(arguments.split_whitespace());
    run(command);
}

fn run(mut command: Command) {
    let status = command.status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Runs a test on a thread with a network namespace of its own.
fn with_wire(test: impl AsyncFnOnce(&Wire) + Send + 'static) {
    let thread = std::thread::spawn(|| {
        let wire = Wire::new();
        // One thread only: a network namespace belongs to a thread.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(&wire));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

async fn until(hops: &NextHops, what: &str, holds: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
    let mut snapshots = hops.subscribe();
    let found = tokio::time::timeout(PATIENCE, snapshots.wait_for(|s| holds(s))).await;
    match found {
        Ok(found) => Arc::clone(&found.unwrap()),
        Err(_) => panic!("not within {PATIENCE:?}: {what}; last seen {:?}", hops.snapshot()),
    }
}

#[test]
fn neighbours_and_gateways_are_resolved() {
    with_wire(async |wire| {
        wire.there("addr add 10.0.2.1/24 dev peer0");
        here("route add 10.9.0.0/16 via 10.0.2.1 mtu 1400");
        here("route add 10.8.0.0/16 via inet6 fd00:2::21 dev here0");
        here("route add unreachable 10.7.0.0/16");
        let targets = [
            "10.0.2.21",
            "fd00:2::21",
            "10.9.1.1",
            "10.8.1.1",
            "10.0.2.10",
            "10.7.1.1",
            "192.0.2.1",
            "10.0.2.99",
        ];
        let hops = NextHops::start(targets.map(ip)).await.unwrap();
        let snapshot = until(&hops, "all ways", |snapshot| {
            ["10.0.2.21", "fd00:2::21", "10.9.1.1", "10.8.1.1"]
                .iter()
                .all(|target| snapshot[&ip(target)].is_ok())
        })
        .await;
        let interface = interface_index("here0").unwrap();
        for (target, source, mtu) in [
            ("10.0.2.21", "10.0.2.10", 1600),
            ("fd00:2::21", "fd00:2::10", 1600),
            ("10.9.1.1", "10.0.2.10", 1400),
            ("10.8.1.1", "10.0.2.10", 1600),
        ] {
            let hop = snapshot[&ip(target)].as_ref().unwrap();
            assert_eq!(hop.interface, interface, "{target}");
            assert_eq!((hop.own_mac, hop.mac), (OWN_MAC, PEER_MAC), "{target}");
            assert_eq!((hop.source, hop.mtu), (Some(ip(source)), mtu), "{target}");
        }
        assert_eq!(snapshot[&ip("10.0.2.10")], Err(Unresolved::Local));
        for target in ["10.7.1.1", "192.0.2.1"] {
            assert!(matches!(snapshot[&ip(target)], Err(Unresolved::NoRoute(_))), "{target}");
        }
        let address = ip("10.0.2.99");
        assert_eq!(snapshot[&address], Err(Unresolved::NoAnswer { interface, address }));
    });
}

#[test]
fn changes_are_followed() {
    with_wire(async |wire| {
        let (near, late) = (ip("10.0.2.21"), ip("10.0.2.99"));
        let hops = NextHops::start([near, late]).await.unwrap();
        until(&hops, "the neighbour", |snapshot| snapshot[&near].is_ok()).await;

        // The neighbour is probed again until it answers.
        tokio::time::sleep(Duration::from_secs(4)).await;
        wire.there("addr add 10.0.2.99/24 dev peer0");
        until(&hops, "the late one", |snapshot| snapshot[&late].is_ok()).await;

        here("neigh replace 10.0.2.21 dev here0 lladdr 02:00:00:00:00:77 nud permanent");
        until(&hops, "another MAC", |snapshot| {
            snapshot[&near].as_ref().is_ok_and(|hop| hop.mac == [2, 0, 0, 0, 0, 0x77])
        })
        .await;

        here("link set here0 address 02:00:00:00:00:11");
        until(&hops, "another own MAC", |snapshot| {
            snapshot[&near].as_ref().is_ok_and(|hop| hop.own_mac == [2, 0, 0, 0, 0, 0x11])
        })
        .await;

        here("link set here0 mtu 1500");
        until(&hops, "another MTU", |snapshot| {
            snapshot[&near].as_ref().is_ok_and(|hop| hop.mtu == 1500)
        })
        .await;

        wire.there("link set peer0 down");
        until(&hops, "no carrier", |snapshot| {
            matches!(snapshot[&near], Err(Unresolved::LinkDown { .. }))
        })
        .await;
        wire.there("link set peer0 up");
        until(&hops, "carrier", |snapshot| snapshot[&late].is_ok()).await;

        hops.set_targets([late, ip("10.0.2.10")]);
        let snapshot =
            until(&hops, "other targets", |snapshot| !snapshot.contains_key(&near)).await;
        assert_eq!(snapshot[&ip("10.0.2.10")], Err(Unresolved::Local));
        assert!(snapshot[&late].is_ok());
    });
}

#[test]
fn a_changed_neighbour_mac_is_found_without_traffic() {
    with_wire(async |wire| {
        let near = ip("10.0.2.21");
        // The kernel's timers, shortened: 5 s until it probes, 15 to 45 s until the entry is stale.
        for (file, value) in [("delay_first_probe_time", "1"), ("base_reachable_time_ms", "1000")] {
            std::fs::write(format!("/proc/sys/net/ipv4/neigh/here0/{file}"), value).unwrap();
        }
        let hops = NextHops::start([near]).await.unwrap();
        until(&hops, "the neighbour", |snapshot| snapshot[&near].is_ok()).await;
        wire.there("link set peer0 address 02:00:00:00:00:33");
        until(&hops, "the new MAC", |snapshot| {
            snapshot[&near].as_ref().is_ok_and(|hop| hop.mac == [2, 0, 0, 0, 0, 0x33])
        })
        .await;
    });
}

#[test]
fn lost_notifications_cause_a_full_resolution() {
    with_wire(async |_| {
        let near = ip("10.0.2.21");
        let hops = NextHops::start([near]).await.unwrap();
        until(&hops, "the neighbour", |snapshot| snapshot[&near].is_ok()).await;
        // Nobody reads while this thread is here: the notifications overflow the buffer.
        let mut batch =
            Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        let mut input = batch.stdin.take().unwrap();
        for i in 0..20_000 {
            writeln!(input, "route add 172.16.{}.{}/32 dev here0", i / 256, i % 256).unwrap();
        }
        drop(input);
        assert!(batch.wait().unwrap().success());
        here("neigh replace 10.0.2.21 dev here0 lladdr 02:00:00:00:00:77 nud permanent");
        until(&hops, "the new MAC", |snapshot| {
            snapshot[&near].as_ref().is_ok_and(|hop| hop.mac == [2, 0, 0, 0, 0, 0x77])
        })
        .await;
        // Notifications still work.
        here("link set here0 mtu 1555");
        until(&hops, "another MTU", |snapshot| {
            snapshot[&near].as_ref().is_ok_and(|hop| hop.mtu == 1555)
        })
        .await;
    });
}

#[test]
fn permanent_neighbours_added_during_a_probe_stay_permanent() {
    const HOSTS: u8 = 200;
    with_wire(async |_| {
        here("addr add 10.3.255.1/16 dev here0");
        let hops = NextHops::start([]).await.unwrap();
        for round in 0..40 {
            let hosts: Vec<IpAddr> =
                (1..=HOSTS).map(|host| ip(&format!("10.3.{round}.{host}"))).collect();
            let lines: String = hosts
                .iter()
                .map(|host| {
                    format!("neighbour replace {host} lladdr 02:00:00:00:00:09 dev here0 nud permanent\n")
                })
                .collect();
            let mut batch =
                Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
            let mut input = batch.stdin.take().unwrap();
            // ip waits for its input by then.
            std::thread::sleep(Duration::from_millis(20));
            hops.set_targets(hosts.iter().copied());
            let writer = std::thread::spawn(move || {
                // At a random moment of the resolution that begins.
                std::thread::sleep(Duration::from_millis(2 * round));
                input.write_all(lines.as_bytes()).unwrap();
            });
            until(&hops, "all are known", |snapshot| {
                hosts.iter().all(|host| matches!(snapshot.get(host), Some(Ok(_))))
            })
            .await;
            writer.join().unwrap();
            assert!(batch.wait().unwrap().success());
            let shown = Command::new("ip")
                .args([
                    "neighbour",
                    "show",
                    "to",
                    &format!("10.3.{round}.0/24"),
                    "nud",
                    "permanent",
                ])
                .output()
                .unwrap();
            let permanent = String::from_utf8(shown.stdout).unwrap().lines().count();
            assert_eq!(permanent, usize::from(HOSTS), "in round {round}");
        }
    });
}
