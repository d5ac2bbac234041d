//! The configuration: the example file runs unchanged, mistakes are named, GLB's files are
//! imported, and statsd receives GLB's metric names.

use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use glb_lab::{Daemon, Fleet, Lab, Node, Plan, Program, TableFile, command};
use nix::sys::signal::Signal;

use crate::support::{ask_everybody, build, has_program};

const DIRECTOR: Node = Node::Director(1);

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

#[test]
fn example_configuration_runs_unchanged() -> Result<()> {
    build()?;
    let lab = Lab::up(Plan { backends: 2, ..Plan::new("glb-t-example") })?;
    let example = docs().join("examples/director.toml");
    let program = Program::Director.path()?;
    let check = command::output(
        lab.netns(DIRECTOR)?.command(&program).args(["config", "check", "-c"]).arg(&example),
    )?;
    ensure!(check.contains("1 tables, 2 backends, 1 binds"), "{check}");

    // A private mount namespace for the paths of the example.
    let script = "mount -t bpf bpf /sys/fs/bpf && mount -t tmpfs tmpfs /run && \
                  mount -t tmpfs tmpfs /var/lib && exec \"$@\"";
    let mut run = lab.netns(DIRECTOR)?.command("unshare");
    run.args(["--mount", "sh", "-c", script, "sh"]).arg(&program);
    let mut process = lab.spawn(DIRECTOR, "example", run.args(["run", "-c"]).arg(&example))?;
    process.wait_for_log("ready", 0, Duration::from_secs(30))?;
    ensure!(has_program(&lab, DIRECTOR)?);
    process.signal(Signal::SIGTERM)?;
    ensure!(process.wait(Duration::from_secs(20))?.success());
    Ok(())
}

#[test]
fn every_key_is_documented_and_in_the_example() -> Result<()> {
    build()?;
    let folder = std::env::temp_dir().join(format!("glb-keys-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let file = folder.join("director.toml");
    let program = Program::Director.path()?;
    let guide = fs::read_to_string(docs().join("director.md"))?;
    let example = fs::read_to_string(docs().join("examples/director.toml"))?;
    for (prefix, text) in
        [("", "nonsense_of_mine = 1"), ("control.", "control.nonsense_of_mine = 1")]
    {
        fs::write(&file, text)?;
        let output = command::finish(
            std::process::Command::new(&program).args(["config", "check", "-c"]).arg(&file),
        )?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1) && said.contains("line 1"), "{said}");
        let (_, known) = said.split_once("expected one of").context(said.clone())?;
        let known = known.lines().next().unwrap_or_default();
        let keys: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
        ensure!(keys.len() > 3, "{said}");
        for key in keys {
            let words = [format!("`{prefix}{key}`"), format!("`{prefix}{key}.")];
            let found = words.iter().any(|word| guide.contains(word));
            ensure!(found, "{prefix}{key}: not in director.md");
            ensure!(example.contains(key), "{prefix}{key}: not in the example");
        }
    }
    fs::remove_dir_all(&folder)?;
    Ok(())
}

#[test]
fn glb_files_are_imported_and_run() -> Result<()> {
    build()?;
    let lab = Lab::up(Plan { backends: 2, ..Plan::new("glb-t-import") })?;
    let director = Daemon::director(&lab, DIRECTOR, &TableFile::new(lab.plan()))?;
    let folder = lab.folder(DIRECTOR)?;
    let program = Program::Director.path()?;
    let json = folder.join("forwarding_table.json");
    let table = director.config().with_file_name("table.toml");
    let mut convert = lab.netns(DIRECTOR)?.command(&program);
    command::run(convert.args(["table", "convert"]).arg(&table).arg(&json))?;

    let conf = folder.join("director.conf");
    let source = DIRECTOR.v4();
    fs::write(
        &conf,
        format!(
            "{{\"outbound_gateway_mac\": \"00:11:22:33:44:55\", \"outbound_src_ip\": \"{source}\",\n\
         \"forward_icmp_ping_responses\": false, \"statsd_port\": 28125}}"
        ),
    )?;
    let defaults = folder.join("glb-director-xdp");
    fs::write(
        &defaults,
        format!(
            "GLB_DIRECTOR_XDP_ROOT_PATHS=\"--xdp-root-path=/sys/fs/bpf/xdp_root_array@eth0\"\n\
         GLB_DIRECTOR_XDP_CONFIG_FILE=\"{}\"\n\
         GLB_DIRECTOR_XDP_FORWARDING_TABLE=\"{}\"\n",
            conf.display(),
            json.with_extension("bin").display(),
        ),
    )?;
    let mut import = lab.netns(DIRECTOR)?.command(&program);
    let output = command::finish(import.args(["config", "import", "--defaults"]).arg(&defaults))?;
    let notes = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && notes.contains("gateway_mac"), "{notes}");
    let text = String::from_utf8(output.stdout)?;
    ensure!(text.contains("forward_echo = false") && text.contains("127.0.0.1:28125"), "{text}");
    let pin = lab.bpf().join("imported");
    let rest = format!("bpffs_dir = \"{}\"\ncontrol.socket = \"i.sock\"\n", pin.display());
    let file = folder.join("imported.toml");
    fs::write(&file, text + &rest)?;
    let mut run = lab.netns(DIRECTOR)?.command(&program);
    let mut process = lab.spawn(DIRECTOR, "imported", run.args(["run", "-c"]).arg(&file))?;
    process.wait_for_log("ready", 0, Duration::from_secs(30))
}

#[test]
fn completions_exist_for_each_shell() -> Result<()> {
    build()?;
    let of_director = (Program::Director, &["status", "rollback", "doctor", "log-format"][..]);
    let of_checker = (Program::Healthcheck, &["status", "check", "log-format"][..]);
    let shells = ["bash", "zsh", "fish"];
    for ((program, words), shell) in
        [of_director, of_checker].into_iter().flat_map(|of| shells.map(|shell| (of, shell)))
    {
        let mut command = std::process::Command::new(program.path()?);
        let text = command::output(command.args(["completions", shell]))?;
        for word in words {
            ensure!(text.contains(word), "{shell}: no {word}");
        }
        if shell == "bash" {
            let file = std::env::temp_dir().join(format!("glb-completions-{}", std::process::id()));
            fs::write(&file, text)?;
            let result = command::run(std::process::Command::new("bash").arg("-n").arg(&file));
            fs::remove_file(&file)?;
            result?;
        }
    }
    Ok(())
}

#[test]
fn statsd_receives_glb_metric_names() -> Result<()> {
    build()?;
    let mut fleet = Fleet::up(Plan { backends: 2, ..Plan::new("glb-t-statsd") }, 1, true)?;
    let address = SocketAddr::new(DIRECTOR.v4().into(), 8125);
    let director = &mut fleet.directors[0];
    director.end(Signal::SIGTERM)?;
    let config = fs::read_to_string(director.config())?;
    fs::write(
        director.config(),
        format!(
            "statsd = \"{address}\"\nstatsd_interval = \"1s\"
{config}"
        ),
    )?;
    let socket = fleet.lab.netns(DIRECTOR)?.run(|| Ok(UdpSocket::bind(address)?))?;
    socket.set_read_timeout(Some(Duration::from_millis(500)))?;
    fleet.directors[0].start(&fleet.lab)?;
    let before = fleet.counters()?.directors[0].packets("encapsulated");
    ask_everybody(&fleet.lab)?;
    let after = fleet.counters()?.directors[0].packets("encapsulated");
    let mut heard: BTreeMap<String, u64> = BTreeMap::new();
    let name = "glb.director.packets.encapsulated c #glb_engine:xdp";
    let mut bytes = [0; 2048];
    let begun = Instant::now();
    while heard.get(name).copied().unwrap_or(0) < after - before {
        ensure!(begun.elapsed() < Duration::from_secs(20), "{before} {after} {heard:#?}");
        let Ok(length) = socket.recv(&mut bytes) else { continue };
        ensure!(length <= 1_200, "a datagram of {length} bytes");
        ensure!(bytes[length - 1] != b'\n', "a datagram that ends with a newline");
        for line in String::from_utf8_lossy(&bytes[..length]).lines() {
            let (name, rest) = line.split_once(':').context(line.to_owned())?;
            let mut words = rest.splitn(3, '|');
            let value: u64 = words.next().context(line.to_owned())?.parse()?;
            let kind = words.collect::<Vec<_>>().join(" ");
            *heard.entry(format!("{name} {kind}")).or_default() += value;
        }
    }
    for result in ["UnknownFormat", "NoMatchingBind", "Matched"] {
        let name = format!("glb.director.packets.results c #glb_engine:xdp,result:{result}");
        ensure!(heard.contains_key(&name), "{name} is missing in {heard:#?}");
    }
    ensure!(heard.len() == 13, "{heard:#?}");
    // Without a listener, statsd output is dropped silently.
    drop(socket);
    std::thread::sleep(Duration::from_secs(2));
    fleet.reload()
}
