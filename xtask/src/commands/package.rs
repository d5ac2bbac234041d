//! `./x package`: builds Debian packages of the daemons.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{commands::build, process};

/// Builds a Debian package of each daemon, with systemd unit, examples and shell completions.
///
/// A package fits the Debian release and architecture that it is built on. Its installation creates
/// the user of the daemon and starts nothing: write the configuration first.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The folder for the packages.
    #[arg(long, value_name = "FOLDER", default_value = "target/packages")]
    out: PathBuf,
    /// Package the unoptimised programs of `./x build`, and do not compile for release.
    #[arg(long)]
    as_built: bool,
}

/// The package of a daemon. Its systemd unit is `packaging/NAME.service`.
struct Package {
    name: &'static str,
    about: &'static str,
    /// Files that are installed in `/usr/share/doc/NAME`.
    documents: &'static [&'static str],
}

const PACKAGES: [Package; 3] = [
    Package {
        name: "glb-director",
        about: "L4 load-balancer director in XDP that keeps no state of flows",
        documents: &[
            "docs/director.md",
            "docs/announcing.md",
            "docs/fleet.md",
            "docs/packet-path.md",
            "docs/table.md",
            "docs/alerts.yml",
            "docs/examples/director.toml",
            "docs/examples/exabgp-announce",
            "docs/examples/table.toml",
            "docs/grafana/glb-director.json",
        ],
    },
    Package {
        name: "glb-redirect",
        about: "packet redirection on the backends of an L4 load balancer",
        documents: &["docs/backend.md"],
    },
    Package {
        name: "glb-healthcheck",
        about: "health checker for the tables of an L4 load balancer",
        documents: &["docs/healthcheck.md", "docs/table.md"],
    },
];

/// Runs the command.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let profile = if arguments.as_built { "debug" } else { "release" };
    if !arguments.as_built {
        build::for_packages()?;
    }
    fs::create_dir_all(&arguments.out)
        .with_context(|| format!("cannot make {}", arguments.out.display()))?;
    for package in &PACKAGES {
        let binary = process::target().join(profile).join(package.name);
        if !binary.is_file() {
            bail!("cannot package {}: it does not exist. Run `./x build` first.", binary.display());
        }
        let file = package.build(&binary, &arguments.out)?;
        println!("{}", file.display());
    }
    Ok(())
}

impl Package {
    fn build(&self, binary: &Path, out: &Path) -> Result<PathBuf> {
        let name = self.name;
        let stage = process::target().join("package").join(name);
        if stage.exists() {
            fs::remove_dir_all(&stage)?;
        }
        let root = process::root();
        let program = put(&stage, &format!("usr/bin/{name}"), &fs::read(binary)?)?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        process::run(Command::new("strip").arg("--strip-unneeded").arg(&program))?;

        let unit = fs::read(root.join("packaging").join(name).with_extension("service"))?;
        put(&stage, &format!("lib/systemd/system/{name}.service"), &unit)?;
        for (shell, path) in [
            ("bash", format!("usr/share/bash-completion/completions/{name}")),
            ("zsh", format!("usr/share/zsh/vendor-completions/_{name}")),
            ("fish", format!("usr/share/fish/vendor_completions.d/{name}.fish")),
        ] {
            let text = output(Command::new(&program).args(["completions", shell]))?;
            put(&stage, &path, text.as_bytes())?;
        }
        let documents = format!("usr/share/doc/{name}");
        for document in self.documents {
            let path = Path::new(document);
            let kept = path.strip_prefix("docs").unwrap_or(path);
            let text = fs::read(root.join(path)).with_context(|| format!("no {document}"))?;
            put(&stage, &format!("{documents}/{}", kept.display()), &text)?;
        }
        let mit = fs::read_to_string(root.join("LICENSE-MIT"))?;
        let copyright = format!(
            "Apache-2.0 or MIT, at your option.\n\n\
             The text of Apache-2.0 is in /usr/share/common-licenses/Apache-2.0.\n\n{mit}"
        );
        put(&stage, &format!("{documents}/copyright"), copyright.as_bytes())?;
        let sysusers = format!("u {name} - \"{}\"\n", self.about);
        put(&stage, &format!("usr/lib/sysusers.d/{name}.conf"), sysusers.as_bytes())?;
        fs::create_dir_all(stage.join("etc/glb"))?;

        let architecture = output(Command::new("dpkg").arg("--print-architecture"))?;
        put(&stage, "DEBIAN/control", self.control(&stage, architecture.trim())?.as_bytes())?;
        for (script, text) in [
            ("postinst", self.after_install()),
            ("prerm", self.before_remove()),
            ("postrm", self.after_purge()),
        ] {
            let path = put(&stage, &format!("DEBIAN/{script}"), text.as_bytes())?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        let version = env!("CARGO_PKG_VERSION");
        let file = out.join(format!("{name}_{version}_{}.deb", architecture.trim()));
        let mut pack = Command::new("dpkg-deb");
        // The same input gives the same bytes: the archive has no times but this one.
        pack.env("SOURCE_DATE_EPOCH", source_date()?);
        pack.args(["--root-owner-group", "--build"]).arg(&stage).arg(&file);
        process::run(pack.stdout(std::io::stderr()))?;
        Ok(file)
    }

    fn control(&self, stage: &Path, architecture: &str) -> Result<String> {
        let (name, about, version) = (self.name, self.about, env!("CARGO_PKG_VERSION"));
        // A binary needs the C library that it was linked with, or a newer one.
        let libc = output(Command::new("dpkg-query").args(["-W", "-f", "${Version}", "libc6"]))?;
        let libc = libc.split('-').next().unwrap_or_default();
        let size = size(stage)?.div_ceil(1024);
        Ok(format!(
            "Package: {name}\n\
             Version: {version}\n\
             Architecture: {architecture}\n\
             Maintainer: the project's authors <nobody@localhost>\n\
             Depends: libc6 (>= {libc}), libgcc-s1, passwd\n\
             Installed-Size: {size}\n\
             Section: net\n\
             Priority: optional\n\
             Description: {about}\n \
             Part of an L4 load balancer whose backends can be drained without breaking\n \
             a connection. The service is not started by the installation: write its\n \
             configuration in /etc/glb first (examples are in /usr/share/doc/{name}).\n"
        ))
    }

    fn after_install(&self) -> String {
        let name = self.name;
        // The user in the systemd unit.
        let user = format!(
            "if ! getent passwd {name} > /dev/null; then\n    \
             useradd --system --no-create-home --home-dir /nonexistent \
             --shell /usr/sbin/nologin {name}\nfi\n"
        );
        format!(
            "#!/bin/sh\nset -e\n[ \"$1\" = configure ] || exit 0\n{user}\
             if [ -d /run/systemd/system ]; then\n    systemctl daemon-reload\n\
             # An upgrade: packets go on meanwhile.\n    \
             systemctl try-restart {name}.service\nfi\n"
        )
    }

    /// The script that removes the state and the user when the package is purged.
    fn after_purge(&self) -> String {
        let name = self.name;
        format!(
            "#!/bin/sh\nset -e\n\
             if [ -d /run/systemd/system ]; then\n    systemctl daemon-reload\nfi\n\
             [ \"$1\" = purge ] || exit 0\n\
             rm -rf /var/lib/{name}\n\
             if getent passwd {name} > /dev/null; then\n    userdel {name}\nfi\n"
        )
    }

    /// The script that stops the service. The pinned programs go on forwarding until `detach`.
    fn before_remove(&self) -> String {
        let name = self.name;
        format!(
            "#!/bin/sh\nset -e\n[ \"$1\" = remove ] || exit 0\n\
             if [ -d /run/systemd/system ]; then\n    systemctl disable --now {name}.service\nfi\n"
        )
    }
}

/// The time of the source, in seconds since 1970: `SOURCE_DATE_EPOCH` if it is set, else the time of the
/// last commit.
fn source_date() -> Result<String> {
    if let Ok(seconds) = std::env::var("SOURCE_DATE_EPOCH") {
        return Ok(seconds);
    }
    let mut log = Command::new("git");
    log.current_dir(process::root()).args(["log", "-1", "--format=%ct"]);
    Ok(output(&mut log).unwrap_or_else(|_| "0".to_owned()).trim().to_owned())
}

/// Writes a file that everybody may read, and makes its folders.
fn put(stage: &Path, path: &str, bytes: &[u8]) -> Result<PathBuf> {
    let path = stage.join(path);
    let mut made = path.parent().unwrap_or(stage);
    fs::create_dir_all(made)?;
    // Independent of the umask.
    while made != stage.parent().unwrap_or(stage) {
        fs::set_permissions(made, fs::Permissions::from_mode(0o755))?;
        made = made.parent().unwrap_or(stage);
    }
    fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    Ok(path)
}

fn output(command: &mut Command) -> Result<String> {
    let shown = process::shown(command);
    let output = command.output().with_context(|| format!("cannot run `{shown}`"))?;
    if !output.status.success() {
        bail!("`{shown}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// The total size in bytes of all files below a folder.
fn size(folder: &Path) -> Result<u64> {
    let mut all = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let about = entry.metadata()?;
        all += if about.is_dir() { size(&entry.path())? } else { about.len() };
    }
    Ok(all)
}
