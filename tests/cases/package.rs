//! The Debian packages: their contents, and that the installed programs run.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use glb_lab::{Daemon, INTERFACE, Lab, Node, Plan, Program, TableFile, command};

use crate::support::build;

const DAEMONS: [&str; 3] = ["glb-director", "glb-redirect", "glb-healthcheck"];

/// Builds the packages and returns their files in the order of [`DAEMONS`].
fn packages(out: &Path) -> Result<Vec<String>> {
    build()?;
    let folder = Program::Director.path()?;
    let xtask = folder.with_file_name("xtask");
    let mut package = Command::new(xtask);
    let text = command::output(package.args(["package", "--as-built", "--out"]).arg(out))?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn field(package: &str, name: &str) -> Result<String> {
    Ok(command::output(Command::new("dpkg-deb").args(["-f", package, name]))?.trim().to_owned())
}

#[test]
fn packages_contain_working_daemons() -> Result<()> {
    let lab = Lab::up(Plan { backends: 1, ..Plan::new("glb-t-package") })?;
    let root = lab.scratch().join("root");
    fs::create_dir_all(&root)?;
    let packages = packages(lab.scratch())?;
    ensure!(packages.len() == DAEMONS.len(), "{packages:?}");
    for (package, name) in packages.iter().zip(DAEMONS) {
        ensure!(field(package, "Package")? == name);
        // Every file belongs to root.
        let listed = command::output(Command::new("dpkg-deb").args(["-c", package]))?;
        ensure!(listed.lines().all(|line| line.contains(" root/root ")), "{listed}");
        command::run(Command::new("dpkg-deb").args(["-x", package]).arg(&root))?;
        let control = lab.scratch().join(format!("{name}-control"));
        command::run(Command::new("dpkg-deb").args(["-e", package]).arg(&control))?;
        for script in ["postinst", "prerm", "postrm"] {
            command::run(Command::new("sh").arg("-n").arg(control.join(script)))?;
        }

        let program = root.join("usr/bin").join(name);
        let version = command::output(Command::new(&program).arg("--version"))?;
        ensure!(version.trim() == format!("{name} {}", field(package, "Version")?), "{version}");
        let unit = root.join("lib/systemd/system").join(name).with_extension("service");
        let unit = fs::read_to_string(&unit).with_context(|| format!("no unit of {name}"))?;
        ensure!(unit.contains(&format!("ExecStart=/usr/bin/{name} run")), "{unit}");

        // Bash completes the commands that the program has.
        let completions = root.join("usr/share/bash-completion/completions").join(name);
        let asked = format!(
            "source '{}'; function=$(complete -p {name} | sed 's/.*-F \\([^ ]*\\).*/\\1/'); \
             COMP_WORDS=({name} ''); COMP_CWORD=1; \
             $function {name} '' {name}; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            completions.display()
        );
        let offered = command::output(Command::new("bash").args(["-c", &asked]))?;
        let offered: BTreeSet<&str> = offered.lines().collect();
        for wanted in ["run", "completions", "help"] {
            ensure!(offered.contains(wanted), "{name}: {offered:?}");
        }
        for other in [
            format!("usr/share/zsh/vendor-completions/_{name}"),
            format!("usr/share/fish/vendor_completions.d/{name}.fish"),
            format!("usr/share/doc/{name}/copyright"),
        ] {
            ensure!(fs::metadata(root.join(&other))?.len() > 100, "{other}");
        }
    }

    // The packaged director attaches its program, so the BPF objects are complete.
    let node = Node::Director(1);
    let director = Daemon::director(&lab, node, &TableFile::new(lab.plan()))?;
    let mut run = lab.netns(node)?.command(root.join("usr/bin/glb-director"));
    run.args(["run", "--config"]).arg(director.config());
    let mut process = lab.spawn(node, "packed-director", &mut run)?;
    process.wait_for_log("ready", 0, std::time::Duration::from_secs(30))?;
    let mut ip = lab.netns(node)?.command("ip");
    let shown = command::output(ip.args(["-details", "link", "show", "dev", INTERFACE]))?;
    ensure!(shown.contains("prog/xdp"), "{shown}");
    // The packaged examples are valid.
    let example = root.join("usr/share/doc/glb-director/examples/table.toml");
    let program = root.join("usr/bin/glb-director");
    command::run(Command::new(program).args(["table", "check"]).arg(example))
}
