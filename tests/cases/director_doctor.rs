//! `glb-director doctor`: each fault is made in a lab, found with its remedy, and no longer found
//! after the repair.

use std::{collections::BTreeMap, fs, os::unix::fs::PermissionsExt as _};

use anyhow::{Context, Result, ensure};
use glb_lab::{Fleet, INTERFACE, Node, Plan, Program, command, link};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::build;

const DIRECTOR: Node = Node::Director(1);

fn fleet(name: &str) -> Result<Fleet> {
    build()?;
    let fleet = Fleet::up(Plan { backends: 2, ..Plan::new(name) }, 1, true)?;
    let table = fleet.directors[0].config().with_file_name("table.toml");
    fs::set_permissions(table, fs::Permissions::from_mode(0o600))?;
    Ok(fleet)
}

/// Runs the doctor and returns the exit status and the report.
fn doctor(fleet: &Fleet, words: &[&str]) -> Result<(Option<i32>, Value)> {
    let mut doctor = fleet.directors[0].command(&fleet.lab, "doctor")?;
    let output = command::finish(doctor.args(["-o", "json"]).args(words))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let value = serde_json::from_str(&text)
        .with_context(|| format!("{text}{}", String::from_utf8_lossy(&output.stderr)))?;
    Ok((output.status.code(), value))
}

/// Returns the findings of a check as `level: found -> remedy`.
fn findings(report: &Value, check: &str) -> Vec<String> {
    let all = report["findings"].as_array().into_iter().flatten();
    let of_check = all.filter(|finding| finding["check"] == check);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let say = |f: &Value| {
        format!("{}: {} -> {}", text(&f["level"]), text(&f["found"]), text(&f["remedy"]))
    };
    of_check.map(say).collect()
}

#[test]
fn doctor_finds_each_fault_and_its_repair() -> Result<()> {
    let mut fleet = fleet("glb-t-doctor")?;
    let (code, well) = doctor(&fleet, &[])?;
    ensure!(code == Some(0), "{well:#}");
    for check in [
        "kernel",
        "jit",
        "program",
        "driver",
        "offloads",
        "mtu",
        "rp_filter",
        "next_hop",
        "vip",
        "pin_folder",
        "keys",
        "memlock",
        "daemon",
        "ip_forward",
        "capabilities",
    ] {
        let found = findings(&well, check);
        ensure!(
            !found.is_empty() && found.iter().all(|f| f.starts_with("ok: ")),
            "{check} {found:?}"
        );
    }
    // On a machine with several processors, the lab's links could have more queues than they have.
    let found = findings(&well, "queues");
    ensure!(found.len() == 1 && !found[0].starts_with("problem"), "{found:?}");
    let director = fleet.lab.netns(DIRECTOR)?;
    let backend = fleet.lab.netns(Node::Backend(2))?;
    let vip = glb_lab::vip(glb_lab::Family::V4);
    // Fault, repair, check, level, and words of the finding and of the remedy.
    type Fault<'a> = Box<dyn Fn(bool) -> Result<()> + 'a>;
    let word = |bad: bool, yes: &'static str, no: &'static str| if bad { yes } else { no };
    let cases: Vec<(Fault, &str, &str, Vec<String>)> = vec![
        (
            Box::new(|bad| {
                director.ip(&format!("link set {INTERFACE} mtu {}\n", word(bad, "1500", "1600")))
            }),
            "mtu",
            "warning",
            vec!["1540".into(), "ip link set".into()],
        ),
        (
            Box::new(|bad| {
                director.sysctl(&[("net.ipv4.conf.all.rp_filter", word(bad, "1", "0"))])
            }),
            "rp_filter",
            "warning",
            vec!["strict".into(), "sysctl".into()],
        ),
        (
            Box::new(|bad| director.sysctl(&[("net.ipv4.ip_forward", word(bad, "1", "0"))])),
            "ip_forward",
            "warning",
            vec!["TTL".into(), "sysctl".into()],
        ),
        (
            Box::new(|bad| {
                director.ip(&format!("address {} {vip}/32 dev lo\n", word(bad, "add", "del")))
            }),
            "vip",
            "problem",
            vec![vip.to_string(), "ip address del".into()],
        ),
        (
            Box::new(|bad| {
                let address = Node::Backend(2).v4();
                // The backend's kernel is silent, and the director's neighbour entry is removed.
                backend.ip(&format!("link set {INTERFACE} {}\n", word(bad, "down", "up")))?;
                director.ip(&format!("neigh flush to {address}\n"))
            }),
            "next_hop",
            "problem",
            vec![Node::Backend(2).v4().to_string(), "ip neigh".into()],
        ),
        (
            Box::new(|bad| {
                let config = fleet.directors[0].config();
                let text = fs::read_to_string(config)?;
                let line = "outer_source_ipv4 = \"192.0.2.77\"\n";
                let text = if bad { format!("{line}{text}") } else { text.replace(line, "") };
                Ok(fs::write(config, text)?)
            }),
            "outer_source",
            "problem",
            vec!["192.0.2.77".into(), "own addresses".into()],
        ),
        (
            Box::new(|bad| {
                let config = fleet.directors[0].config();
                let text = fs::read_to_string(config)?;
                let line = "outer_source_ipv6 = \"2001:db8::77\"\n";
                let text = if bad { format!("{line}{text}") } else { text.replace(line, "") };
                Ok(fs::write(config, text)?)
            }),
            "outer_source",
            "problem",
            vec!["2001:db8::77".into(), "own addresses".into()],
        ),
        (
            Box::new(|bad| {
                let table = fleet.directors[0].config().with_file_name("table.toml");
                let mode = if bad { 0o644 } else { 0o600 };
                Ok(fs::set_permissions(table, fs::Permissions::from_mode(mode))?)
            }),
            "keys",
            "warning",
            vec!["644".into(), "chmod".into()],
        ),
    ];
    let mut levels = BTreeMap::new();
    for (act, check, level, words) in &cases {
        act(true)?;
        let (code, report) = doctor(&fleet, &[])?;
        let found = findings(&report, check);
        let wrong = found
            .iter()
            .find(|f| f.starts_with(level))
            .with_context(|| format!("{check}: {found:?}"))?;
        for word in words {
            ensure!(wrong.contains(word), "{word:?} is missing in: {wrong}");
        }
        let is_problem = *level == "problem";
        ensure!((code == Some(4)) == is_problem, "{check}: exit code {code:?}");
        act(false)?;
        levels.insert(check, level);
    }
    println!("{levels:?}");
    drop(cases);
    // The daemon and the doctor find the neighbour of the returned backend again.
    let begun = std::time::Instant::now();
    loop {
        let (code, report) = doctor(&fleet, &[])?;
        if code == Some(0) {
            break;
        }
        ensure!(begun.elapsed() < std::time::Duration::from_secs(20), "{report:#}");
    }

    // The daemon and `config check` warn about a foreign source address, too.
    let config = fleet.directors[0].config();
    let text = fs::read_to_string(config)?;
    fs::write(config, format!("outer_source_ipv4 = \"192.0.2.77\"\n{text}"))?;
    let mut check = fleet.lab.netns(DIRECTOR)?.command(Program::Director.path()?);
    let said = command::output(check.args(["config", "check", "-c"]).arg(config))?;
    ensure!(said.contains("192.0.2.77") && said.contains("warning"), "{said}");
    fleet.director()?.end(Signal::SIGTERM)?;
    fleet.directors[0].start(&fleet.lab)?;
    let log = fleet.director()?.process()?.log()?;
    ensure!(log.contains("WARN") && log.contains("192.0.2.77"), "{log}");
    fs::write(fleet.directors[0].config(), &text)?;

    // In order: the daemon is gone, the program is gone, another program is attached, the interface
    // is gone.
    fleet.director()?.end(Signal::SIGTERM)?;
    let (code, report) = doctor(&fleet, &[])?;
    let found = findings(&report, "daemon");
    ensure!(code == Some(0) && found[0].contains("glb-director run"), "{found:?}");
    fleet.directors[0].detach(&fleet.lab)?;
    let (code, report) = doctor(&fleet, &[])?;
    let found = findings(&report, "program");
    ensure!(code == Some(4) && found[0].contains("no program is attached"), "{found:?}");
    let pin = fleet.lab.bpf().join("other");
    fleet.lab.netns(DIRECTOR)?.run(|| link::attach_pass(INTERFACE, &pin))?;
    let found = findings(&doctor(&fleet, &[])?.1, "program");
    ensure!(found[0].contains("another XDP program"), "{found:?}");
    fs::remove_file(&pin)?;
    let config = fleet.directors[0].config();
    let text = fs::read_to_string(config)?;
    fs::write(config, text.replace(&format!("\"{INTERFACE}\""), "\"eth7\""))?;
    let found = findings(&doctor(&fleet, &[])?.1, "program");
    ensure!(found[0].contains("eth7"), "{found:?}");
    fs::write(config, text.replace("bpffs_dir = \"", "bpffs_dir = \"/tmp"))?;
    let found = findings(&doctor(&fleet, &[])?.1, "pin_folder");
    ensure!(found[0].contains("mount -t bpf"), "{found:?}");
    fs::write(config, &text)?;
    fleet.directors[0].write_table("nonsense")?;
    let (code, report) = doctor(&fleet, &[])?;
    ensure!(code == Some(4) && findings(&report, "table")[0].contains("table.toml"), "{report:#}");
    Ok(())
}

#[test]
fn doctor_probe_reports_backends_that_answer() -> Result<()> {
    let mut fleet = fleet("glb-t-probe")?;
    let (code, report) = doctor(&fleet, &["--probe"])?;
    let probes = report["probes"].as_array().context("no probes")?;
    // Two backends over both families.
    ensure!(code == Some(0) && probes.len() == 4, "{report:#}");
    for probe in probes {
        ensure!(probe["outcome"]["answered"]["microseconds"].is_u64(), "{report:#}");
    }

    // A backend without its program accepts no tunnelled packet.
    fleet.redirects[1].end(Signal::SIGTERM)?;
    fleet.redirects[1].detach(&fleet.lab)?;
    let (code, report) = doctor(&fleet, &["--probe"])?;
    let silent = Node::Backend(2).v4().to_string();
    let outcome = |backend: &str, report: &Value| -> Vec<Value> {
        let probes = report["probes"].as_array().into_iter().flatten();
        probes.filter(|p| p["backend"] == *backend).map(|p| p["outcome"].clone()).collect()
    };
    ensure!(code == Some(4), "{report:#}");
    ensure!(outcome(&silent, &report).iter().all(|o| o == "silent"), "{report:#}");
    ensure!(
        findings(&report, "probe")
            .iter()
            .any(|f| f.contains(&silent) && f.contains("glb-redirect doctor"))
    );
    let other = Node::Backend(1).v4().to_string();
    ensure!(outcome(&other, &report).iter().all(|o| o["answered"].is_object()), "{report:#}");
    fleet.redirects[1].start(&fleet.lab)?;

    // A port without a listener.
    let table = fleet.table.toml()?.replace("port = 80", "port = 81");
    fleet.directors[0].write_table(&table)?;
    let mut reload = fleet.directors[0].command(&fleet.lab, "reload")?;
    command::run(reload.arg("--force"))?;
    let (code, report) = doctor(&fleet, &["--probe"])?;
    ensure!(code == Some(4), "{report:#}");
    ensure!(outcome(&other, &report).iter().all(|o| o == "refused"), "{report:#}");

    let mut text = fleet.lab.netns(DIRECTOR)?.command(Program::Director.path()?);
    text.args(["doctor", "--probe", "-c"]).arg(fleet.directors[0].config());
    let output = command::finish(&mut text)?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(text.contains("REFUSED") && text.contains("problem"), "{text}");
    println!("{text}");

    // Without a program there is nothing to probe.
    fleet.director()?.end(Signal::SIGTERM)?;
    fleet.directors[0].detach(&fleet.lab)?;
    let (code, report) = doctor(&fleet, &["--probe"])?;
    ensure!(
        code == Some(4) && findings(&report, "probe")[0].contains("start the daemon"),
        "{report:#}"
    );
    Ok(())
}
