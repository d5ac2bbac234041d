//! A virtual machine with one of the kernels: its initial RAM disk, and a run of the checks in it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{
    guest_script,
    list::{Check, Work},
    packages::KernelFiles,
    report::Outcome,
};
use crate::{process, test_programs::TestProgram};

/// Modules with which the machine reaches this machine's files. All others are loaded from there.
const FIRST_MODULES: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];
/// A machine that takes longer is stopped. Two processors that emulate take about a fifth of it.
const PATIENCE: Duration = Duration::from_secs(45 * 60);

/// A kernel that is ready to boot.
#[derive(Debug)]
pub(super) struct Machine {
    emulator: PathBuf,
    release: String,
    image: PathBuf,
    modules: PathBuf,
    ram_disk: PathBuf,
    results: PathBuf,
}

impl Machine {
    /// Makes the RAM disk of a kernel.
    pub(super) fn new(folder: &Path, emulator: &Path, kernel: &KernelFiles) -> Result<Self> {
        let busybox = emulator.join("bin/busybox");
        let machine = Self {
            emulator: emulator.to_owned(),
            release: kernel.release.clone(),
            image: absolute(&kernel.image)?,
            modules: absolute(&kernel.base.join("lib/modules"))?,
            ram_disk: kernel.folder.join("initrd.gz"),
            results: kernel.folder.join("results"),
        };
        let modules = machine.modules.join(&kernel.release);
        if !modules.join("modules.dep.bb").exists() && !modules.join("modules.dep").exists() {
            let mut depmod = Command::new(&busybox);
            depmod.args(["depmod", "-b"]).arg(&kernel.base).arg(&kernel.release);
            process::run_with_progress("listing the kernel's modules", &mut depmod)?;
        }
        let stage = folder.join("initrd");
        if stage.exists() {
            fs::remove_dir_all(&stage)?;
        }
        for name in ["bin", "proc", "sys", "dev", "lower", "upper", "root"] {
            fs::create_dir_all(stage.join(name))?;
        }
        fs::copy(&busybox, stage.join("bin/busybox"))?;
        fs::copy(guest_script("init.sh"), stage.join("init"))?;
        process::run(Command::new("chmod").arg("755").arg(stage.join("init")))?;
        copy_modules(&modules, &stage.join("lib/modules").join(&kernel.release))?;
        let mut pack = Command::new("sh");
        pack.current_dir(&stage)
            .arg("-c")
            .arg("find . | \"$1\" cpio -o -H newc | gzip -1 > \"$2\"");
        pack.arg("sh").arg(absolute(&busybox)?).arg(absolute(&kernel.folder)?.join("initrd.gz"));
        process::run_with_progress("packing the RAM disk", &mut pack)?;
        Ok(machine)
    }

    /// The version of the kernel.
    pub(super) fn release(&self) -> &str {
        &self.release
    }

    /// Boots the kernel and runs `checks` in it.
    pub(super) fn run(
        &self,
        checks: &[&Check],
        programs: &[TestProgram],
        processors: u8,
    ) -> Result<Vec<(&'static str, Outcome)>> {
        if self.results.exists() {
            fs::remove_dir_all(&self.results)?;
        }
        fs::create_dir_all(&self.results)?;
        let mut lines = String::new();
        for (number, check) in checks.iter().enumerate() {
            let (folder, command) = command(check, programs)?;
            lines.push_str(&format!("{number}\t{}\t{command}\n", folder.display()));
        }
        fs::write(self.results.join("checks"), lines)?;
        process::run_with_progress(
            &format!("Linux {} under QEMU", self.release),
            &mut self.emulation(processors)?,
        )?;
        if !self.results.join("exit").exists() {
            let console = fs::read_to_string(self.results.join("console")).unwrap_or_default();
            let end: Vec<_> = console.lines().rev().take(10).collect();
            let end: Vec<_> = end.into_iter().rev().collect();
            bail!("the machine did not finish; the end of its console:\n{}", end.join("\n"));
        }
        let outcomes = checks.iter().enumerate().map(|(number, check)| {
            let file = |kind: &str| {
                let path = self.results.join(format!("{number}.{kind}"));
                fs::read_to_string(path).unwrap_or_default()
            };
            (check.name, Outcome::new(&file("result"), file("log")))
        });
        Ok(outcomes.collect())
    }

    /// QEMU, in a network namespace with a TAP device of two queues for the machine's network card.
    fn emulation(&self, processors: u8) -> Result<Command> {
        let emulator = absolute(&self.emulator)?;
        let libraries = emulator.join("usr/lib/x86_64-linux-gnu");
        let c_library = emulator.join("lib/x86_64-linux-gnu");
        let results = absolute(&self.results)?;
        let mut command = Command::new("timeout");
        command.env("QEMU_MODULE_DIR", libraries.join("qemu"));
        command.args([&PATIENCE.as_secs().to_string(), "unshare", "--net", "sh", "-c"]);
        command.arg(
            "ip tuntap add dev tap0 mode tap multi_queue && ip addr add 192.0.2.1/24 dev tap0 && \
             ip link set tap0 up && exec \"$@\"",
        );
        command.arg("sh");
        // By its own loader: the C library of this machine may be another one.
        command.arg(emulator.join("lib64/ld-linux-x86-64.so.2")).arg("--library-path");
        command.arg(format!("{}:{}", libraries.display(), c_library.display()));
        command.arg(emulator.join("usr/bin/qemu-system-x86_64"));
        for folder in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(emulator.join(folder));
        }
        command.args(["-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "Nehalem"]);
        command.args(["-smp", &processors.to_string(), "-m", "1536"]);
        command.args(["-nodefaults", "-no-reboot", "-display", "none", "-serial"]);
        command.arg(format!("file:{}", results.join("console").display()));
        command.arg("-kernel").arg(&self.image).arg("-initrd").arg(absolute(&self.ram_disk)?);
        // On a busy machine the emulated timer is late, and the kernel would take it for broken.
        command.arg("-append").arg(format!(
            "console=ttyS0 panic=-1 quiet no_timer_check glb.script={}",
            guest_script("checks.sh").display()
        ));
        for (tag, path, options) in [
            ("hostroot", Path::new("/"), ",readonly=on,multidevs=remap"),
            ("results", &results, ""),
            ("modules", &self.modules, ",readonly=on"),
        ] {
            command.arg("-fsdev").arg(format!(
                "local,id={tag},path={},security_model=none{options}",
                path.display()
            ));
            command.args(["-device", &format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}")]);
        }
        command.args(["-netdev", "tap,id=card,ifname=tap0,script=no,downscript=no,queues=2"]);
        command.args(["-device", "virtio-net-pci,netdev=card,mq=on,vectors=6,romfile="]);
        Ok(command)
    }
}

/// The folder and the shell command of a check.
fn command(check: &Check, programs: &[TestProgram]) -> Result<(PathBuf, String)> {
    match check.work {
        Work::Tests { package, target, filter } => {
            let program = programs.iter().find(|program| {
                program.package == package && program.target == target && program.is_integration()
            });
            let program =
                program.with_context(|| format!("{package} has no tests named {target}"))?;
            let command = program.shell_command(&[filter, "--nocapture", "--test-threads=1"]);
            Ok((program.folder().to_owned(), command))
        }
        Work::Script(function) => {
            let programs = process::target().join("debug");
            Ok((process::root(), format!("GLB_PROGRAMS={} {function}", programs.display())))
        }
    }
}

/// Copies the first modules, those that they need, and the list of modules.
fn copy_modules(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with("modules.") {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    let list = fs::read_to_string(from.join("modules.dep"))?;
    for module in FIRST_MODULES {
        // `kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz …`; a module may be built in.
        let ends = [format!("/{module}.ko"), format!("/{module}.ko.xz")];
        let line = list.lines().find(|line| {
            line.split(':').next().is_some_and(|path| ends.iter().any(|end| path.ends_with(end)))
        });
        for path in line.unwrap_or_default().split([':', ' ']).filter(|path| !path.is_empty()) {
            let copy = to.join(path);
            fs::create_dir_all(copy.parent().unwrap_or(to))?;
            fs::copy(from.join(path), copy)?;
        }
    }
    Ok(())
}

fn absolute(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path).or_else(|_| std::path::absolute(path)).map_err(Into::into)
}
