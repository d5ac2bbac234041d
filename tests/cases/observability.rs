//! A director as the operator sees it: `show`, `top`, metrics, dashboard and alerts.

use std::{
    collections::BTreeSet,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use glb_lab::{Family, Fleet, Lab, Node, Plan, Process, command, http, interrupt, vip};
use serde_json::Value;

use crate::support::{ask_everybody, build};

const DIRECTOR: Node = Node::Director(1);
const METRICS: u16 = 9650;
const PROMETHEUS: u16 = 9090;

fn address(port: u16) -> SocketAddr {
    SocketAddr::new(DIRECTOR.v4().into(), port)
}

/// A fleet whose director serves metrics and announces (without a routing daemon).
fn fleet(name: &str) -> Result<Fleet> {
    build()?;
    let mut fleet = Fleet::up(Plan { backends: 3, ..Plan::new(name) }, 1, true)?;
    let director = &mut fleet.directors[0];
    director.end(nix::sys::signal::Signal::SIGTERM)?;
    let mut config = fs::read_to_string(director.config())?;
    config = format!("metrics = \"{}\"\n{config}", address(METRICS));
    config += &format!(
        "[[announce]]\nname = \"web\"\nprefixes = [\"{}\", \"{}\"]\nmethod = \"exec\"\ncommand = [\"true\"]\n",
        vip(Family::V4),
        vip(Family::V6)
    );
    fs::write(director.config(), config)?;
    director.start(&fleet.lab)?;
    ask_everybody(&fleet.lab)?;
    Ok(fleet)
}

fn director(fleet: &Fleet, words: &[&str]) -> Result<String> {
    let mut ask = fleet.directors[0].command(&fleet.lab, words[0])?;
    command::output(ask.args(&words[1..]))
}

fn director_json(fleet: &Fleet, words: &[&str]) -> Result<Value> {
    let text = director(fleet, &[words, &["-o", "json"]].concat())?;
    serde_json::from_str(&text).with_context(|| format!("odd JSON: {text}"))
}

fn get(lab: &Lab, port: u16, path: &str) -> Result<String> {
    let netns = lab.netns(DIRECTOR)?;
    let reply = http::get_in(netns, DIRECTOR.v4().into(), address(port), path)?;
    ensure!(reply.status == 200, "{path}: {reply}");
    Ok(String::from_utf8(reply.body)?)
}

#[test]
fn show_and_top_report_tables_and_rates() -> Result<()> {
    let fleet = fleet("glb-t-show")?;
    let text = director(&fleet, &["show", "tables"])?;
    ensure!(text.contains("git") && text.lines().count() == 2, "{text}");
    let text = director(&fleet, &["show", "binds"])?;
    ensure!(text.lines().count() == 3 && text.contains("tcp"), "{text}");
    let text = director(&fleet, &["show", "generations"])?;
    ensure!(text.contains("eth0"), "{text}");
    let text = director(&fleet, &["show", "backends"])?;
    ensure!(text.contains("10.0.2.21") && !text.contains("NONE"), "{text}");
    let backends = director_json(&fleet, &["show", "backends"])?;
    let backends = backends.as_array().context("no list")?;
    // Every row has one first and one second hop.
    for hop in [0, 1] {
        let sum: u64 = backends.iter().filter_map(|backend| backend["rows"][hop].as_u64()).sum();
        ensure!(sum == 65_536, "{backends:?}");
    }
    ensure!(backends.iter().all(|backend| backend["sent"]["packets"].as_u64() > Some(0)));
    let status = director_json(&fleet, &["status"])?;
    ensure!(status["interfaces"][0]["mode"] == "native", "{status}");

    // A page takes a handful of packets.
    let top = std::thread::scope(|scope| {
        let top = scope.spawn(|| director(&fleet, &["top", "-o", "json", "-n", "1", "-i", "2s"]));
        std::thread::sleep(Duration::from_millis(300));
        ask_everybody(&fleet.lab)?;
        top.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    let top: Value = serde_json::from_str(&top)?;
    ensure!(top["tables"]["git"]["packets_per_second"].as_f64() > Some(10.0), "{top}");
    ensure!(top["backends"].as_array().is_some_and(|backends| backends.len() == 3), "{top}");
    let text = director(&fleet, &["top", "-i", "200ms"])?;
    ensure!(
        text.contains("TABLE") && text.lines().all(|line| line.chars().count() <= 80),
        "{text}"
    );
    Ok(())
}

#[test]
fn director_metrics_pass_promtool() -> Result<()> {
    let fleet = fleet("glb-t-promtool")?;
    let text = get(&fleet.lab, METRICS, "/metrics")?;
    let file = fleet.lab.scratch().join("metrics");
    fs::write(&file, &text)?;
    let script = format!("promtool check metrics < '{}'", file.display());
    let output = command::finish(Command::new("sh").args(["-c", &script]))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.trim().is_empty(), "{said}\n{text}");
    for (metric, why) in [
        ("glb_director_build_info{version=", "release"),
        (
            "glb_director_packets_total{table=\"git\",reason=\"encapsulated\",action=\"send\"} ",
            "sent",
        ),
        ("glb_director_packets_total{table=\"git\",reason=\"too_long\",action=\"drop\"} 0", "zero"),
        ("glb_director_backend_rows{table=\"git\",backend=\"10.0.2.21\",hop=\"2\"}", "hops"),
        ("glb_director_table_digest_info{table=\"\",membership=\"", "digest"),
        ("glb_director_last_reload_success 1", "reload"),
        ("process_resident_memory_bytes ", "memory"),
    ] {
        ensure!(text.contains(metric), "{why}: {metric} is missing in:\n{text}");
    }
    // No output contains a key.
    ensure!(!text.contains("5b1f8a1e6f0c43d2a7e94c0d1b2a3f48"), "{text}");
    Ok(())
}

/// A Prometheus next to the director.
fn prometheus(lab: &Lab) -> Result<Process> {
    let folder = lab.folder(DIRECTOR)?;
    let rules = repository().join("docs/alerts.yml");
    let config = format!(
        "global: {{scrape_interval: 500ms, evaluation_interval: 500ms}}\n\
         rule_files: ['{}']\n\
         scrape_configs:\n  - job_name: glb-director\n    static_configs: [{{targets: ['{}']}}]\n",
        rules.display(),
        address(METRICS),
    );
    let file = folder.join("prometheus.yml");
    fs::write(&file, config)?;
    let mut command = lab.netns(DIRECTOR)?.command("prometheus");
    command.arg(format!("--config.file={}", file.display()));
    command.arg(format!("--storage.tsdb.path={}", lab.scratch().join("tsdb").display()));
    command.arg(format!("--web.listen-address={}", address(PROMETHEUS)));
    let mut process = lab.spawn(DIRECTOR, "prometheus", &mut command)?;
    process.wait_for_log("Server is ready", 0, Duration::from_secs(30))?;
    Ok(process)
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Runs a PromQL query. Special characters are percent-encoded.
fn query(lab: &Lab, expression: &str) -> Result<Vec<Value>> {
    let encoded: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let answer = get(lab, PROMETHEUS, &format!("/api/v1/query?query={encoded}"));
    let answer: Value = serde_json::from_str(&answer.with_context(|| expression.to_owned())?)?;
    Ok(answer["data"]["result"].as_array().context("no result")?.clone())
}

/// Lists every `"expr"` of the dashboard, with its variables filled in.
fn dashboard() -> Result<Vec<String>> {
    let text = fs::read_to_string(repository().join("docs/grafana/glb-director.json"))?;
    let dashboard: Value = serde_json::from_str(&text)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array()).flatten();
    Ok(targets
        .filter_map(|target| target["expr"].as_str())
        .map(|expression| {
            expression
                .replace("$__rate_interval", "20s")
                .replace("$job", "glb-director")
                .replace("$instance", ".*")
        })
        .collect())
}

/// Lists the names of this project's metrics in a text.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("glb_director_") || word.starts_with("process_")).collect()
}

#[test]
fn prometheus_has_every_metric_of_dashboard_and_alerts() -> Result<()> {
    let rules = repository().join("docs/alerts.yml");
    command::run(Command::new("promtool").args(["check", "rules"]).arg(&rules))?;
    let tests = repository().join("tests/data/alerts_test.yml");
    command::run(Command::new("promtool").args(["test", "rules"]).arg(tests))?;

    let mut fleet = fleet("glb-t-prometheus")?;
    let director = &mut fleet.directors[0];
    director.end(nix::sys::signal::Signal::SIGTERM)?;
    director.configure("probe.enabled", "true")?;
    director.start(&fleet.lab)?;
    let _prometheus = prometheus(&fleet.lab)?;
    fleet.reload()?;
    ask_everybody(&fleet.lab)?;
    let begun = Instant::now();
    while query(&fleet.lab, "rate(glb_director_packets_total[20s]) > 0")?.is_empty() {
        ensure!(begun.elapsed() < Duration::from_secs(30), "no packet was ever seen");
        ask_everybody(&fleet.lab)?;
    }
    let expressions = dashboard()?;
    ensure!(expressions.len() > 15, "{expressions:?}");
    for expression in &expressions {
        ensure!(!query(&fleet.lab, expression)?.is_empty(), "nothing found by: {expression}");
    }
    let alerts = fs::read_to_string(&rules)?;
    let mut known = names(&alerts);
    ensure!(known.len() > 8, "{known:?}");
    let shown = expressions.join("\n");
    known.extend(names(&shown));
    // Only BIRD tells of sessions; the director's tests of BIRD hold these two.
    known.retain(|name| {
        !["glb_director_announcement_exported", "glb_director_announcement_session_up"]
            .contains(name)
    });
    for name in &known {
        ensure!(!query(&fleet.lab, name)?.is_empty(), "there is no metric {name}");
    }
    println!("{} expressions, {} metrics", expressions.len(), known.len());
    let firing = query(&fleet.lab, "ALERTS")?;
    ensure!(firing.is_empty(), "all is well, and yet: {firing:?}");

    // A metric that exists only after a failure.
    fleet.director()?.reload_refused("nonsense")?;
    interrupt::wait("the alert", Duration::from_secs(20), || {
        let pending = query(&fleet.lab, "ALERTS{alertname=\"GlbDirectorReloadFailed\"}")?;
        Ok((!pending.is_empty()).then_some(()))
    })?;
    Ok(())
}

#[test]
fn metrics_answer_during_a_reload() -> Result<()> {
    let mut fleet = fleet("glb-t-live")?;
    // The daemon waits for a backend that does not answer.
    let table = fleet.table.toml()?.replace("10.0.2.23", "10.0.2.99");
    fleet.directors[0].write_table(&table)?;
    let begun = Instant::now();
    loop {
        let text = get(&fleet.lab, METRICS, "/metrics")?;
        if text.contains("glb_director_reloading 1") {
            break;
        }
        if begun.elapsed() > Duration::from_secs(10) {
            bail!("no scrape fell into the reload:\n{text}");
        }
    }
    fleet.director()?.process()?.wait_for_log(
        "no next hop to this backend",
        0,
        Duration::from_secs(20),
    )
}

#[test]
fn scrape_is_fast() -> Result<()> {
    let fleet = fleet("glb-t-scrape")?;
    let text = get(&fleet.lab, METRICS, "/metrics")?;
    let cpu = |text: &str| -> Result<f64> {
        let line = text.lines().find_map(|line| line.strip_prefix("process_cpu_seconds_total "));
        Ok(line.context("no processor time")?.parse()?)
    };
    let (before, begun) = (cpu(&text)?, Instant::now());
    const SCRAPES: u32 = 100;
    for _ in 1..SCRAPES {
        get(&fleet.lab, METRICS, "/metrics")?;
    }
    let took = begun.elapsed() / SCRAPES;
    let text = get(&fleet.lab, METRICS, "/metrics")?;
    let spent = (cpu(&text)? - before) / f64::from(SCRAPES) * 1000.0;
    let memory = text.lines().find(|line| line.starts_with("process_resident_memory_bytes "));
    println!("a scrape: {took:.2?}, {spent:.2} ms of processor time, {} bytes", text.len());
    println!("{}", memory.unwrap_or_default());
    ensure!(spent < 50.0, "{spent} ms");
    Ok(())
}

#[test]
fn keys_and_seeds_are_never_shown() -> Result<()> {
    let mut fleet = fleet("glb-t-keys")?;
    let table = fleet.table.toml()?;
    // A key in the wrong place, and a malformed key.
    fleet.director()?.reload_refused(&table.replace("hash_key", "hash_kye"))?;
    fleet.director()?.reload_refused(&table.replace("3f48\"", "3fzz\""))?;
    let mut shown = vec![("log", fleet.director()?.process()?.log()?)];
    for words in [
        &["status", "-o", "json"][..],
        &["show", "tables", "-o", "json"],
        &["show", "backends", "-o", "json"],
        &["show", "generations", "-o", "json"],
        &["counters", "-o", "json"],
        &["doctor", "-o", "json"],
        &["reload"],
    ] {
        let mut command = fleet.directors[0].command(&fleet.lab, words[0])?;
        let output = command::finish(command.args(&words[1..]))?;
        let text = [output.stdout, output.stderr].concat();
        ensure!(!text.is_empty(), "{words:?} says nothing");
        shown.push((words[0], String::from_utf8_lossy(&text).into_owned()));
    }
    shown.push(("metrics", get(&fleet.lab, METRICS, "/metrics")?));
    let config = fs::read_to_string(fleet.directors[0].config())?;
    fs::write(fleet.directors[0].config(), format!("{table}\n{config}"))?;
    let mut check = fleet.lab.netns(DIRECTOR)?.command(glb_lab::Program::Director.path()?);
    check.args(["config", "check", "-c"]).arg(fleet.directors[0].config());
    let output = command::finish(&mut check)?;
    shown.push(("config check", String::from_utf8_lossy(&output.stderr).into_owned()));
    for (name, text) in shown {
        for key in ["5b1f8a1e6f0c43d2", "d17b6f20c39e4855"] {
            ensure!(!text.to_lowercase().contains(key), "{name} shows a key: {text}");
        }
    }
    Ok(())
}
