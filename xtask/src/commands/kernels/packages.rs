//! Packages of Debian's archive, downloaded by a private apt and unpacked below target/kernels. The
//! sources and the packages of this machine stay as they are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::process;

const ARCHIVE: &str = "http://deb.debian.org/debian";
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The suite that QEMU and busybox come from.
const EMULATOR_SUITE: &str = "bookworm";
const EMULATOR_PACKAGES: [&str; 2] = ["qemu-system-x86", "busybox-static"];
/// The package that depends on the newest kernel of a suite.
const KERNEL_PACKAGE: &str = "linux-image-amd64";
/// The beginnings of the names of packages that hold a kernel's files.
const KERNEL_PARTS: [&str; 3] = ["linux-image-", "linux-binary-", "linux-modules-"];

/// A suite of Debian's archive.
#[derive(Clone, Copy, Debug)]
pub(super) struct Suite(&'static str);

impl Suite {
    pub(super) const fn new(name: &'static str) -> Self {
        Self(name)
    }
}

/// A private apt for one suite.
#[derive(Debug)]
pub(super) struct Packages {
    folder: PathBuf,
    suite: Suite,
    update: bool,
}

/// An unpacked kernel.
#[derive(Debug)]
pub(super) struct KernelFiles {
    /// Its version, as `uname -r` prints it.
    pub(super) release: String,
    /// The image that is booted.
    pub(super) image: PathBuf,
    /// The folder that holds `lib/modules`.
    pub(super) base: PathBuf,
    /// The folder for what is made from it.
    pub(super) folder: PathBuf,
}

/// Fetches QEMU, busybox and all that they need, and returns the folder with their files.
pub(super) fn emulator(folder: &Path, update: bool) -> Result<PathBuf> {
    let packages = Packages::new(&folder.join("emulator"), Suite(EMULATOR_SUITE), update);
    packages.fetch(|packages| {
        let mut install = packages.apt("apt-get");
        // Nothing counts as installed, so that every library comes along.
        install.args(["-o", "Dir::State::status=/dev/null", "-o", "Debug::NoLocking=true"]);
        install.args(["install", "--yes", "--download-only", "--no-install-recommends"]);
        process::run_with_progress("downloading QEMU", install.args(EMULATOR_PACKAGES))
    })
}

impl Packages {
    /// A private apt that keeps its files in a folder of the suite's name in `folder`.
    pub(super) fn new(folder: &Path, suite: Suite, update: bool) -> Self {
        Self { folder: folder.join(suite.0), suite, update }
    }

    /// Fetches the newest kernel of the suite.
    pub(super) fn kernel(&self) -> Result<KernelFiles> {
        let root = self.fetch(|packages| {
            let names = packages.kernel_parts(KERNEL_PACKAGE)?;
            let mut download = packages.apt("apt-get");
            download.current_dir(packages.archives()).arg("download").args(&names);
            process::run_with_progress(&format!("downloading {}", names.join(" ")), &mut download)
        })?;
        let bases = [root.clone(), root.join("usr")];
        let mut modules = bases.iter().filter_map(|base| {
            let entry = fs::read_dir(base.join("lib/modules")).ok()?.flatten().next()?;
            Some((base.clone(), entry.file_name().into_string().ok()?))
        });
        let (base, release) =
            modules.next_back().with_context(|| format!("no kernel in {}", root.display()))?;
        let images = [
            root.join("boot").join(format!("vmlinuz-{release}")),
            base.join("lib/modules").join(&release).join("vmlinuz"),
        ];
        let image = images.into_iter().find(|image| image.is_file());
        let image =
            image.with_context(|| format!("no image of {release} in {}", root.display()))?;
        Ok(KernelFiles { release, image, base, folder: self.folder.clone() })
    }

    /// Downloads packages by `download` and unpacks them, unless an earlier run did; returns the
    /// folder with their files.
    fn fetch(&self, download: impl FnOnce(&Self) -> Result<()>) -> Result<PathBuf> {
        let root = self.folder.join("root");
        if root.is_dir() && !self.update {
            return Ok(root);
        }
        if !Path::new(KEYS).is_file() {
            bail!(
                "cannot fetch Debian's packages: {KEYS} is missing. Install the package \
                 debian-archive-keyring, or run this on Debian."
            );
        }
        fs::create_dir_all(self.folder.join("lists/partial"))?;
        // Packages of an earlier run would be unpacked over the new ones.
        if self.archives().exists() {
            fs::remove_dir_all(self.archives())?;
        }
        fs::create_dir_all(self.archives().join("partial"))?;
        let source = format!("deb [signed-by={KEYS}] {ARCHIVE} {} main\n", self.suite.0);
        fs::write(self.folder.join("sources.list"), source)?;
        let title = format!("reading the list of packages of {}", self.suite.0);
        process::run_with_progress(&title, self.apt("apt-get").arg("update"))?;
        download(self)?;
        let partial = self.folder.join("root.partial");
        for old in [&partial, &root] {
            if old.exists() {
                fs::remove_dir_all(old)?;
            }
        }
        fs::create_dir_all(&partial)?;
        for entry in fs::read_dir(self.archives())? {
            let file = entry?.path();
            if file.extension().is_some_and(|extension| extension == "deb") {
                let mut unpack = Command::new("dpkg-deb");
                let status = unpack.arg("--extract").arg(&file).arg(&partial).status()?;
                if !status.success() {
                    bail!("cannot unpack {}: dpkg-deb failed with {status}", file.display());
                }
            }
        }
        // Renamed last: a folder of this name is whole.
        fs::rename(&partial, &root)?;
        Ok(root)
    }

    fn archives(&self) -> PathBuf {
        self.folder.join("archives")
    }

    /// The packages that `package` needs, itself included, that hold files of a kernel.
    fn kernel_parts(&self, package: &str) -> Result<Vec<String>> {
        let mut names = vec![package.to_owned()];
        let mut next = 0;
        while let Some(name) = names.get(next).cloned() {
            let output = self.apt("apt-cache").args(["depends", "--important", &name]).output()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            for needed in text.lines().filter_map(|line| line.trim().strip_prefix("Depends: ")) {
                let is_part = KERNEL_PARTS.iter().any(|part| needed.starts_with(part));
                if is_part && !names.iter().any(|name| name == needed) {
                    names.push(needed.to_owned());
                }
            }
            next += 1;
        }
        names.remove(0);
        if names.is_empty() {
            bail!("{} of {} names no kernel", package, self.suite.0);
        }
        Ok(names)
    }

    /// `apt-get` or `apt-cache` with files of its own.
    fn apt(&self, program: &str) -> Command {
        let path = |name: &str| self.folder.join(name).display().to_string();
        let mut command = Command::new(program);
        for option in [
            format!("Dir::Etc::sourcelist={}", path("sources.list")),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            "Dir::Etc::preferencesparts=/dev/null".to_owned(),
            format!("Dir::State::Lists={}", path("lists")),
            format!("Dir::Cache={}", path("cache")),
            format!("Dir::Cache::archives={}", path("archives")),
            "APT::Architecture=amd64".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }
}
