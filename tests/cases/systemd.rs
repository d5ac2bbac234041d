//! The packaged unit under a real systemd, with the whole sandbox: systemd is the first process of
//! namespaces of its own, and runs nothing but this unit.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use glb_lab::{Fleet, Node, Plan, Process, Program, State, command, interrupt};
use nix::sys::signal::Signal;

use crate::support::{build, everybody_answers};

const DIRECTOR: Node = Node::Director(1);
const UNIT: &str = "glb-director.service";
const PATIENCE: Duration = Duration::from_secs(60);

/// Makes the namespaces a machine: folders of its own wherever the unit or systemd writes, a user, the
/// program, and no other unit. `$1` is the folder with the files, `$2` the program.
const MACHINE: &str = r#"
set -e
mount --make-rprivate /
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/group" /etc/group
mount --bind "$1" /mnt
mount -t tmpfs tmpfs /run
mkdir -p /run/glb /run/empty /run/systemd/system
mount --bind /mnt /run/glb
touch /run/glb-director-program
mount --bind "$2" /run/glb-director-program
mount -t tmpfs tmpfs /var/lib
mount -t bpf -o mode=0700 bpf /sys/fs/bpf
# What is mounted there shows the whole machine's groups; systemd mounts its own.
umount --recursive --lazy /sys/fs/cgroup
for target in sysinit local-fs basic multi-user sockets timers paths; do
    for folder in /lib/systemd/system /etc/systemd/system; do
        wants=$folder/$target.target.wants
        [ ! -d $wants ] || mount --bind /run/empty $wants
    done
done
for unit in dbus.service dbus.socket systemd-journald.service systemd-journald.socket \
    systemd-journald-dev-log.socket systemd-udevd.service systemd-udevd-control.socket \
    systemd-udevd-kernel.socket systemd-tmpfiles-setup.service sys-fs-bpf.mount; do
    ln -s /dev/null /run/systemd/system/$unit
done
cp "$1"/glb-director.service /run/systemd/system/
mkdir /run/systemd/system/glb-director.service.d
printf '[Service]\nStandardError=append:/run/glb/log\n' > /run/systemd/system/glb-director.service.d/log.conf
printf '[Unit]\nDefaultDependencies=no\nWants=glb-director.service\n' > /run/systemd/system/lab.target
# One hierarchy of groups, the one that the test cleans up.
export container=lab SYSTEMD_PROC_CMDLINE=systemd.unified_cgroup_hierarchy=1
exec /lib/systemd/systemd --system --log-target=console --unit=lab.target
"#;

/// A machine with systemd, on the director's network.
struct Machine {
    process: Process,
    folder: PathBuf,
    /// Its control group, with those that systemd would leave behind.
    group: PathBuf,
}

impl Machine {
    fn start(fleet: &Fleet) -> Result<Self> {
        let folder = fleet.lab.scratch().join("machine");
        fs::create_dir(&folder)?;
        for (file, line) in [
            ("passwd", "glb-director:x:47110:47110::/nonexistent:/usr/sbin/nologin\n"),
            ("group", "glb-director:x:47110:\n"),
        ] {
            fs::write(folder.join(file), fs::read_to_string(format!("/etc/{file}"))? + line)?;
        }
        let table = fleet.directors[0].config().with_file_name("table.toml");
        fs::copy(table, folder.join("table.toml"))?;
        fs::write(
            folder.join("director.toml"),
            format!("table = \"table.toml\"\ninterfaces = [\"{}\"]\n", glb_lab::INTERFACE),
        )?;
        // As the unit's head says; what is written over the lab's file system is given back.
        let mut own = Command::new("chgrp");
        command::run(own.args(["-R", "47110"]).arg(&folder))?;
        command::run(Command::new("chmod").args(["-R", "u=rwX,g=rX,o="]).arg(&folder))?;
        let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/../packaging/glb-director.service");
        let unit = fs::read_to_string(unit)?
            .replace("/usr/bin/glb-director", "/run/glb-director-program")
            .replace("/etc/glb/", "/run/glb/");
        fs::write(folder.join(UNIT), unit)?;

        // A control group of its own: what systemd makes lies below it.
        let roots = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(PathBuf::from);
        let root = roots.into_iter().find(|root| root.join("cgroup.controllers").exists());
        let root = root.context("no cgroup2 file system is mounted")?;
        let group = root.join(format!("glb-t-systemd-{}", std::process::id()));
        fs::create_dir(&group)?;
        let join = format!("echo $$ > {}/cgroup.procs", group.display());
        let machine = format!(
            "{join} && exec unshare --kill-child --fork --pid --mount --mount-proc --uts --ipc --cgroup \
             bash -c \"$0\" machine \"$@\""
        );
        let mut bash = fleet.lab.netns(DIRECTOR)?.command("bash");
        bash.args(["-c", &machine, MACHINE]).arg(&folder).arg(Program::Director.path()?);
        let process = fleet.lab.spawn(DIRECTOR, "systemd", &mut bash)?;
        Ok(Self { process, folder, group })
    }

    /// A command beside systemd.
    fn run(&self, words: &[&str]) -> Result<Output> {
        let unshare = self.process.id();
        let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"))?;
        let first = children.split_whitespace().next().context("systemd does not run")?;
        let mut nsenter = Command::new("nsenter");
        command::finish(nsenter.args(["--mount", "--pid", "--net", "--target", first]).args(words))
    }

    fn well(&self, words: &[&str]) -> Result<String> {
        let output = self.run(words)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "{words:?}: {}\n{text}{error}\n{}",
            output.status,
            self.log()
        );
        Ok(text)
    }

    fn property(&self, name: &str) -> Result<String> {
        let text = self.well(&["systemctl", "show", "--value", "--property", name, UNIT])?;
        Ok(text.trim().to_owned())
    }

    /// Waits until the unit is active and the daemon another one than `before`.
    fn active(&self, before: &str) -> Result<String> {
        interrupt::wait("the unit", PATIENCE, || {
            // It may be about to begin itself.
            let Ok(state) = self.run(&["systemctl", "is-active", UNIT]) else { return Ok(None) };
            let state = String::from_utf8_lossy(&state.stdout).trim().to_owned();
            ensure!(state != "failed", "{}", self.log());
            let id = if state == "active" { self.property("MainPID")? } else { "0".into() };
            Ok((id != "0" && id != before).then_some(id))
        })
        .with_context(|| self.log())
    }

    fn log(&self) -> String {
        let own = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        format!("{own}\n{}", self.process.log().unwrap_or_default())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.process.signal(Signal::SIGKILL));
        drop(self.process.wait(Duration::from_secs(10)));
        let mut find = Command::new("find");
        find.arg(&self.group).args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"]);
        // What has just died may need a moment to be gone.
        let gone = interrupt::wait("the control groups", Duration::from_secs(10), || {
            drop(find.output());
            Ok((!self.group.exists()).then_some(()))
        });
        if let Err(error) = gone {
            eprintln!("left behind: {}: {error:#}", self.group.display());
        }
    }
}

#[test]
fn the_packaged_unit_runs_in_its_sandbox() -> Result<()> {
    build()?;
    let mut fleet = Fleet::up(Plan { backends: 2, ..Plan::new("glb-t-systemd") }, 1, true)?;
    fleet.director()?.end(Signal::SIGTERM)?;
    fleet.directors[0].detach(&fleet.lab)?;
    let machine = Machine::start(&fleet)?;
    let first = machine.active("0")?;
    everybody_answers(&fleet.lab)?;

    let path = format!("/run/systemd/system/{UNIT}");
    let verified = machine.run(&["systemd-analyze", "verify", &path])?;
    let said = String::from_utf8_lossy(&verified.stderr);
    ensure!(verified.status.success() && said.trim().is_empty(), "{said}");

    // It is as confined as the unit says.
    let status = machine.well(&["cat", &format!("/proc/{first}/status")])?;
    for line in ["Uid:\t47110", "NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t000000c000001000"] {
        ensure!(status.contains(line), "{line:?} is missing in {status}");
    }
    let glb = |words: &[&str]| {
        let mut all = vec!["/run/glb-director-program"];
        all.extend(words);
        all.extend(["--config", "/run/glb/director.toml"]);
        machine.well(&all)
    };
    glb(&["status"])?;

    // A changed table comes into force, and `systemctl reload` says how that went.
    fleet.table.set_state(fleet.redirects[0].node(), State::Draining);
    fs::write(machine.folder.join("table.toml"), fleet.table.toml()?)?;
    machine.well(&["systemctl", "reload", UNIT])?;
    ensure!(glb(&["show", "backends"])?.contains("draining"), "{}", machine.log());
    fs::write(machine.folder.join("table.toml"), "nonsense")?;
    ensure!(!machine.run(&["systemctl", "reload", UNIT])?.status.success());
    fs::write(machine.folder.join("table.toml"), fleet.table.toml()?)?;
    machine.well(&["systemctl", "reload", UNIT])?;

    // Killed, it is started again and takes over what runs; nothing is lost meanwhile.
    machine.well(&["systemctl", "kill", "--signal", "KILL", UNIT])?;
    crate::support::ask_everybody(&fleet.lab)?;
    let second = machine.active(&first)?;
    ensure!(machine.log().contains("adopting"), "{}", machine.log());
    // A restart runs all that comes before the daemon once more.
    machine.well(&["systemctl", "restart", UNIT])?;
    machine.active(&second)?;
    glb(&["status"])?;
    crate::support::ask_everybody(&fleet.lab)?;
    machine.well(&["systemctl", "stop", UNIT])?;
    ensure!(machine.property("Result")? == "success", "{}", machine.log());
    // It stays attached.
    crate::support::ask_everybody(&fleet.lab)?;
    let log = machine.log();
    ensure!(!log.contains("panicked"), "{log}");
    Ok(())
}
