//! A machine with systemd as its first process, in private namespaces, that runs one packaged unit
//! in its sandbox.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use glb_lab::{Lab, Node, Process, Program, command, interrupt};
use nix::sys::signal::Signal;

const PATIENCE: Duration = Duration::from_secs(60);

/// Turns the namespaces into a machine: private folders for everything that the unit or systemd
/// writes, a user, the program, and no other unit. `$1` is the folder with the files, `$2` the
/// program, `$3` the unit.
const MACHINE: &str = r#"
set -e
mount --make-rprivate /
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/group" /etc/group
mount --bind "$1" /mnt
mount -t tmpfs tmpfs /run
mkdir -p /run/glb /run/empty /run/systemd/system
mount --bind /mnt /run/glb
touch /run/glb-program
mount --bind "$2" /run/glb-program
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
cp "$1/$3" /run/systemd/system/
mkdir "/run/systemd/system/$3.d"
printf '[Service]\nStandardError=append:/run/glb/log\n' > "/run/systemd/system/$3.d/log.conf"
printf '[Unit]\nDefaultDependencies=no\nWants=%s\n' "$3" > /run/systemd/system/lab.target
# One hierarchy of groups, the one that the test cleans up.
export container=lab SYSTEMD_PROC_CMDLINE=systemd.unified_cgroup_hierarchy=1
exec /lib/systemd/systemd --system --log-target=console --unit=lab.target
"#;

/// The path of the program inside the machine.
pub(crate) const PROGRAM: &str = "/run/glb-program";
/// The user id and group id.
const USER: u32 = 47_110;

/// A machine with systemd on a node's network. It runs one packaged unit, with its files in
/// `/run/glb`.
pub(crate) struct Machine {
    process: Process,
    pub(crate) unit: String,
    /// The folder that the machine sees as `/run/glb`.
    pub(crate) folder: PathBuf,
    /// The machine's control group, including the groups that systemd leaves behind.
    group: PathBuf,
}

impl Machine {
    /// Starts the machine with these files, given by name and text.
    pub(crate) fn start(
        lab: &Lab,
        node: Node,
        program: Program,
        files: &[(&str, &str)],
    ) -> Result<Self> {
        let (name, folder) = (program.name(), lab.scratch().join("machine"));
        fs::create_dir(&folder)?;
        for (file, line) in [
            ("passwd", format!("{name}:x:{USER}:{USER}::/nonexistent:/usr/sbin/nologin\n")),
            ("group", format!("{name}:x:{USER}:\n")),
        ] {
            fs::write(folder.join(file), fs::read_to_string(format!("/etc/{file}"))? + &line)?;
        }
        for (file, text) in files {
            fs::write(folder.join(file), text)?;
        }
        // The unit's header asks for this ownership. Changes to the lab's files are reverted at the
        // end.
        let mut own = Command::new("chgrp");
        command::run(own.args(["-R", &USER.to_string()]).arg(&folder))?;
        command::run(Command::new("chmod").args(["-R", "u=rwX,g=rX,o="]).arg(&folder))?;
        let unit = format!("{name}.service");
        let packaged = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../packaging").join(&unit);
        let packaged = fs::read_to_string(packaged)?
            .replace(&format!("/usr/bin/{name}"), PROGRAM)
            .replace("/etc/glb/", "/run/glb/");
        fs::write(folder.join(&unit), packaged)?;

        // A separate control group, above those that systemd creates.
        let roots = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(PathBuf::from);
        let root = roots.into_iter().find(|root| root.join("cgroup.controllers").exists());
        let root = root.context("no cgroup2 file system is mounted")?;
        let group = root.join(format!("glb-t-{name}-{}", std::process::id()));
        fs::create_dir(&group)?;
        let join = format!("echo $$ > {}/cgroup.procs", group.display());
        let machine = format!(
            "{join} && exec unshare --kill-child --fork --pid --mount --mount-proc --uts --ipc --cgroup \
             bash -c \"$0\" machine \"$@\""
        );
        let mut bash = lab.netns(node)?.command("bash");
        bash.args(["-c", &machine, MACHINE]).arg(&folder).arg(program.path()?).arg(&unit);
        let process = lab.spawn(node, "systemd", &mut bash)?;
        Ok(Self { process, unit, folder, group })
    }

    /// Runs a command next to systemd.
    pub(crate) fn run(&self, words: &[&str]) -> Result<Output> {
        let unshare = self.process.id();
        let children = fs::read_to_string(format!("/proc/{unshare}/task/{unshare}/children"))?;
        let first = children.split_whitespace().next().context("systemd does not run")?;
        let mut nsenter = Command::new("nsenter");
        command::finish(nsenter.args(["--mount", "--pid", "--net", "--target", first]).args(words))
    }

    pub(crate) fn well(&self, words: &[&str]) -> Result<String> {
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

    pub(crate) fn property(&self, name: &str) -> Result<String> {
        let text = self.well(&["systemctl", "show", "--value", "--property", name, &self.unit])?;
        Ok(text.trim().to_owned())
    }

    /// Waits until the unit is active with a process other than `before`.
    pub(crate) fn active(&self, before: &str) -> Result<String> {
        interrupt::wait("the unit", PATIENCE, || {
            // The unit can be about to restart.
            let Ok(state) = self.run(&["systemctl", "is-active", &self.unit]) else {
                return Ok(None);
            };
            let state = String::from_utf8_lossy(&state.stdout).trim().to_owned();
            ensure!(state != "failed", "{}", self.log());
            let id = if state == "active" { self.property("MainPID")? } else { "0".into() };
            Ok((id != "0" && id != before).then_some(id))
        })
        .with_context(|| self.log())
    }

    /// Checks that the daemon runs as its user with exactly these capabilities.
    pub(crate) fn is_confined(&self, process: &str, capabilities: &str) -> Result<()> {
        let status = self.well(&["cat", &format!("/proc/{process}/status")])?;
        let user = format!("Uid:\t{USER}");
        let capabilities = ["CapEff", "CapBnd"].map(|set| format!("{set}:\t{capabilities}"));
        let lines = ["NoNewPrivs:\t1", "Seccomp:\t2", &user];
        for line in lines.into_iter().chain(capabilities.iter().map(String::as_str)) {
            ensure!(status.contains(line), "{line:?} is missing in {status}");
        }
        Ok(())
    }

    /// Runs `systemd-analyze verify` on the unit.
    pub(crate) fn verify(&self) -> Result<()> {
        let path = format!("/run/systemd/system/{}", self.unit);
        let verified = self.run(&["systemd-analyze", "verify", &path])?;
        let said = String::from_utf8_lossy(&verified.stderr);
        ensure!(verified.status.success() && said.trim().is_empty(), "{said}");
        Ok(())
    }

    pub(crate) fn log(&self) -> String {
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
        // A process that just died can need a moment to disappear.
        let gone = interrupt::wait("the control groups", Duration::from_secs(10), || {
            drop(find.output());
            Ok((!self.group.exists()).then_some(()))
        });
        if let Err(error) = gone {
            eprintln!("left behind: {}: {error:#}", self.group.display());
        }
    }
}
