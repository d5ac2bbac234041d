//! The findings of `doctor`. Each test makes a fault in a network namespace, expects the finding with
//! its remedy, repairs the fault, and expects no finding. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod common;
#[path = "../../glb-common/tests/support/mod.rs"]
mod support;

use std::{
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
};

use common::{in_namespace, ip, sysctl};
use glb_redirect::{
    config::Config,
    doctor::{Finding, Level, examine},
};

const CONFIG: &str = "interfaces = [\"e0\"]\nbpffs_dir = \"/sys/fs/bpf/glb-test-no-such\"\n\
                      vips = [\"203.0.113.10\", \"2001:db8::10\"]\n\
                      directors = [\"10.0.2.10\"]\nbackends = [\"10.0.2.21\"]\n";

fn config(text: &str) -> Config {
    Config::parse(text, Path::new("redirect.toml")).unwrap()
}

fn look(check: &str) -> Vec<Finding> {
    look_with(CONFIG, check)
}

fn look_with(text: &str, check: &str) -> Vec<Finding> {
    examine(&config(text)).into_iter().filter(|finding| finding.check == check).collect()
}

/// Asserts the level of the worst finding, and that its text and remedy contain `words`.
#[track_caller]
fn expect(findings: &[Finding], level: Level, words: &[&str]) {
    let worst = findings.iter().max_by_key(|finding| finding.level).expect("nothing was found");
    assert_eq!(worst.level, level, "{findings:?}");
    let text = format!("{} {}", worst.found, worst.remedy.as_deref().unwrap_or_default());
    for word in words {
        assert!(text.contains(word), "{word:?} is missing in: {text}");
    }
    assert_eq!(worst.remedy.is_none(), level == Level::Ok, "{text}");
}

/// Sets up a backend with an interface and correct settings.
fn set_up_host() {
    sysctl("ipv4.conf.all.rp_filter", "0");
    sysctl("ipv4.conf.default.rp_filter", "0");
    sysctl("ipv4.conf.all.arp_ignore", "1");
    sysctl("ipv4.conf.all.arp_announce", "2");
    ip("link add e0 mtu 1600 type veth peer name e1 mtu 1600");
    ip("addr add 10.0.2.21/24 dev e0");
    ip("link set e0 up");
    ip("link set e1 up");
}

#[test]
fn sysctls_that_lose_packets_are_problems() {
    in_namespace(|_| {
        set_up_host();
        expect(&look("rp_filter"), Level::Ok, &["e0"]);
        for place in ["all", "e0"] {
            sysctl(&format!("ipv4.conf.{place}.rp_filter"), "1");
            expect(&look("rp_filter"), Level::Problem, &["e0", "sysctl -w", "rp_filter=0"]);
            // The kernel uses the larger value: loose (2) wins over strict (1).
            sysctl("ipv4.conf.e0.rp_filter", "2");
            expect(&look("rp_filter"), Level::Ok, &[]);
            sysctl("ipv4.conf.e0.rp_filter", "0");
            sysctl("ipv4.conf.all.rp_filter", "0");
        }
        for (check, good) in [("arp_ignore", "1"), ("arp_announce", "2")] {
            expect(&look(check), Level::Ok, &["e0"]);
            sysctl(&format!("ipv4.conf.all.{check}"), "0");
            expect(&look(check), Level::Problem, &["e0", &format!("{check}={good}")]);
            sysctl(&format!("ipv4.conf.e0.{check}"), good);
            expect(&look(check), Level::Ok, &[]);
        }
        // Only IPv4 has these.
        let v6 = CONFIG.replace("\"203.0.113.10\", ", "");
        for check in ["rp_filter", "arp_ignore", "arp_announce"] {
            assert_eq!(look_with(&v6, check), []);
        }
    });
}

#[test]
fn missing_and_misplaced_addresses_are_found() {
    in_namespace(|_| {
        set_up_host();
        expect(&look("vip"), Level::Ok, &["on lo"]);
        ip("addr del 203.0.113.10/32 dev lo");
        expect(&look("vip"), Level::Problem, &["ip address add 203.0.113.10/32 dev lo"]);
        ip("addr add 203.0.113.10/32 dev e0");
        expect(&look("vip"), Level::Warning, &["on e0", "ip address del 203.0.113.10/32 dev e0"]);

        assert_eq!(look("duplicate_address"), []);
        ip("addr del 2001:db8::10/128 dev lo");
        ip("link set e1 down");
        sysctl("ipv6.conf.e0.dad_transmits", "1");
        ip("link set e1 up");
        // Another host on the segment has it, and this one runs duplicate address detection.
        ip("addr add 2001:db8::10/64 dev e1 nodad");
        ip("addr add 2001:db8::10/64 dev e0");
        expect(&look("duplicate_address"), Level::Problem, &["2001:db8::10", "nodad"]);

        assert_eq!(look("loopback"), []);
        ip("link set lo down");
        expect(&look("loopback"), Level::Problem, &["ip link set lo up"]);

        expect(&look("own_address"), Level::Ok, &["10.0.2.21"]);
        ip("addr add 10.0.2.99/24 dev e0");
        ip("addr del 10.0.2.21/24 dev e0");
        ip("addr add 10.0.2.99/24 dev e0");
        expect(&look("own_address"), Level::Warning, &["10.0.2.99", "`backends`"]);
        ip("addr flush dev e0");
        ip("addr flush dev lo");
        expect(&look("own_address"), Level::Problem, &["no address"]);
    });
}

#[test]
fn an_mtu_without_room_for_the_tunnel_is_a_problem() {
    in_namespace(|_| {
        set_up_host();
        expect(&look("mtu"), Level::Ok, &["1600", "room"]);
        ip("link set e0 mtu 1539");
        expect(&look("mtu"), Level::Problem, &["1539", "needs 1540", "ip link set e0 mtu 1540"]);
        let off = format!("mss_clamp = false\n{CONFIG}");
        expect(&look_with(&off, "mtu"), Level::Problem, &["mss_clamp", "1540"]);
        let three = format!("hops = 3\n{CONFIG}");
        expect(&look_with(&three, "mtu"), Level::Problem, &["needs 1544"]);
        ip("link set e0 mtu 1540");
        expect(&look("mtu"), Level::Ok, &[]);
        expect(&look_with(&off, "mtu"), Level::Ok, &[]);
        expect(&look_with(&three, "mtu"), Level::Problem, &["needs 1544"]);
    });
}

#[test]
fn a_missing_or_foreign_xdp_program_is_a_problem() {
    in_namespace(|_| {
        set_up_host();
        expect(&look("program"), Level::Problem, &["nothing is attached", "glb-redirect run"]);
        let gone = CONFIG.replace("\"e0\"", "\"e9\"");
        expect(&look_with(&gone, "program"), Level::Problem, &["e9", "interfaces"]);
        let image =
            glb_redirect::program_data::ProgramData::new(&config(CONFIG), &Default::default());
        let mut generation = glb_redirect::generation::Generation::load(&image, None).unwrap();
        let program = generation.program().unwrap();
        // It is not pinned in the folder of this configuration.
        program.attach("e0", aya::programs::XdpMode::Driver).unwrap();
        expect(&look("program"), Level::Problem, &["another", "xdp off"]);
    });
}

/// A BPF file system that is unmounted at the end of the test.
struct BpfFs(std::path::PathBuf);

impl BpfFs {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("glb-redirect-bpf-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("bpf"), &folder, Some("bpf"), flags, None::<&str>).unwrap();
        Self(folder)
    }
}

impl Drop for BpfFs {
    fn drop(&mut self) {
        let unmounted = nix::mount::umount(&self.0);
        let removed = std::fs::remove_dir(&self.0);
        // A second panic would abort the test.
        if !std::thread::panicking() {
            unmounted.unwrap();
            removed.unwrap();
        }
    }
}

#[test]
fn generic_mode_is_a_warning() {
    use glb_host::{bpffs::PinFolder, generations, xdp_link::Mode};
    in_namespace(|_| {
        set_up_host();
        let bpf = BpfFs::new();
        let text =
            CONFIG.replace("/sys/fs/bpf/glb-test-no-such", bpf.0.join("pins").to_str().unwrap());
        let config = config(&text);
        let image = glb_redirect::program_data::ProgramData::new(&config, &Default::default());
        for (mode, level, words) in
            [(Mode::Native, Level::Ok, "native"), (Mode::Generic, Level::Warning, "generic mode")]
        {
            let pins = PinFolder::create(&config.bpffs_dir, glb_redirect::PIN_OWNER).unwrap();
            let mut generation = glb_redirect::generation::Generation::load(&image, None).unwrap();
            let program = generation.program().unwrap();
            generations::swap(program, &config.interfaces, &pins, mode).unwrap();
            expect(&look_with(&text, "program"), level, &[words, "e0"]);
            generations::detach_all_but(&pins, &[]).unwrap();
            pins.remove_all().unwrap();
        }
    });
}

#[test]
fn firewall_rules_that_drop_untracked_connections_are_problems() {
    if Command::new("nft").arg("--version").stdout(Stdio::null()).status().is_err() {
        eprintln!("skipped: nft is not installed");
        return;
    }
    in_namespace(|_| {
        set_up_host();
        let nft = |arguments: &str| {
            let status = Command::new("nft").args(arguments.split_whitespace()).status().unwrap();
            assert!(status.success(), "nft {arguments}");
        };
        expect(&look("conntrack"), Level::Ok, &[]);
        nft("add table inet t");
        nft("add chain inet t c { type filter hook input priority 0 ; }");
        nft("add rule inet t c ip protocol tcp drop");
        expect(&look("conntrack"), Level::Ok, &[]);
        let mut rule = Command::new("nft");
        rule.args(["add", "rule", "inet", "t", "c", "ct", "state", "invalid", "drop"]);
        // The rule needs connection tracking in the kernel.
        if rule.stderr(Stdio::null()).status().unwrap().success() {
            expect(
                &look("conntrack"),
                Level::Problem,
                &["nft", "ct state invalid drop", "notrack"],
            );
        }
        if Path::new("/proc/sys/net/netfilter/nf_conntrack_tcp_loose").exists() {
            nft("flush ruleset");
            sysctl("netfilter.nf_conntrack_tcp_loose", "0");
            expect(&look("conntrack"), Level::Problem, &["nf_conntrack_tcp_loose=1"]);
        }
    });
}

#[test]
fn a_vip_without_a_listener_in_this_namespace_is_a_problem() {
    in_namespace(|_| {
        set_up_host();
        let of = |vip: &str| {
            let all = look("listener");
            all.into_iter().filter(|finding| finding.found.contains(vip)).collect::<Vec<_>>()
        };
        expect(&of("203.0.113.10"), Level::Problem, &["listens on 203.0.113.10"]);
        let v4 = TcpListener::bind("203.0.113.10:8080").unwrap();
        expect(&of("203.0.113.10"), Level::Ok, &["8080"]);
        expect(&of("2001:db8::10"), Level::Problem, &["2001:db8::10"]);
        drop(v4);
        let both = TcpListener::bind("[::]:8081").unwrap();
        expect(&of("203.0.113.10"), Level::Ok, &["8081"]);
        expect(&of("2001:db8::10"), Level::Ok, &["8081"]);
        drop(both);
        let other = TcpListener::bind("10.0.2.21:8082").unwrap();
        expect(&of("203.0.113.10"), Level::Problem, &[]);
        drop(other);

        // A process in another network namespace listens on the VIP.
        let script = "ip link set lo up; ip addr add 203.0.113.10/32 dev lo; exec python3 -c \
                      'import socket,time; s=socket.socket(); s.bind((\"203.0.113.10\",8083)); \
                      s.listen(); print(1, flush=True); time.sleep(60)'";
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = [0];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut said).unwrap();
        let found = of("203.0.113.10");
        child.kill().unwrap();
        child.wait().unwrap();
        expect(&found, Level::Problem, &["port 8083", "network namespace"]);
    });
}

#[test]
fn doctor_exits_with_4_and_prints_text_or_json() {
    in_namespace(|_| {
        set_up_host();
        let file = std::env::temp_dir().join(format!("glb-doctor-{}.toml", std::process::id()));
        std::fs::write(&file, CONFIG).unwrap();
        let run = |output: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_glb-redirect"));
            command.arg("doctor").arg("--config").arg(&file).args(output).output().unwrap()
        };
        let (text, json) = (run(&[]), run(&["-o", "json"]));
        std::fs::remove_file(&file).unwrap();
        assert_eq!((text.status.code(), json.status.code()), (Some(4), Some(4)), "{text:?}");
        let text = String::from_utf8(text.stdout).unwrap();
        assert!(text.contains("PROBLEM  program: nothing is attached to e0"), "{text}");
        assert!(text.contains(" -> ") && text.trim_end().ends_with("problems"), "{text}");
        let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
        assert_eq!((&json[0]["check"], &json[0]["level"]), (&"program".into(), &"problem".into()));
    });
}
