//! The database that the Glances of all backends share: PostgreSQL on a unix socket.
//!
//! SQLite does not work: with several Glances, most uploads end in "database is locked", also in
//! WAL mode with a long timeout.

use std::{
    fs,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use glb_lab::{Lab, Node, Process, command, interrupt};

/// PostgreSQL refuses to run as root.
const NOBODY: u32 = 65534;

/// A running PostgreSQL with an empty database `glance`.
#[derive(Debug)]
pub(crate) struct Database {
    _server: Process,
    folder: PathBuf,
}

impl Database {
    /// Creates and starts PostgreSQL on the lab's router, away from the tested machines.
    ///
    /// # Errors
    /// When PostgreSQL is missing or does not start.
    pub(crate) fn start(lab: &Lab) -> Result<Self> {
        let programs = programs()?;
        let folder = lab.scratch().join("database");
        fs::create_dir_all(&folder)?;
        chown(&folder, Some(NOBODY), Some(NOBODY))?;
        let data = folder.join("data");
        let mut initdb = Command::new(programs.join("initdb"));
        initdb.args(["--username=glance", "--auth=trust", "--no-sync", "--encoding=UTF8"]);
        initdb.arg("--locale=C").arg("-D").arg(&data);
        command::run(initdb.current_dir(&folder).uid(NOBODY).gid(NOBODY))?;
        // The process enters the namespace as root and drops root afterwards.
        let mut postgres = lab.netns(Node::Router)?.command("setpriv");
        postgres.arg(format!("--reuid={NOBODY}")).arg(format!("--regid={NOBODY}"));
        postgres
            .arg("--clear-groups")
            .arg(programs.join("postgres"))
            .arg("-D")
            .arg(&data)
            .arg("-k")
            .arg(&folder);
        // The data is not kept after the lab.
        for setting in ["listen_addresses=", "fsync=off", "max_connections=300"] {
            postgres.args(["-c", setting]);
        }
        postgres.current_dir(&folder);
        let mut server = lab.spawn(Node::Router, "postgres", &mut postgres)?;
        interrupt::wait("the database", Duration::from_secs(30), || {
            if let Some(status) = server.ended()? {
                bail!("postgres ended with {status}: {}", server.log()?.trim());
            }
            let mut create = Command::new(programs.join("createdb"));
            create.arg("-h").arg(&folder).args(["-U", "glance", "glance"]);
            Ok(command::run(&mut create).is_ok().then_some(()))
        })?;
        Ok(Self { _server: server, folder })
    }

    /// Returns the database URL for Glance.
    pub(crate) fn url(folder: &Path) -> String {
        format!("postgresql+psycopg2://glance@/glance?host={}", folder.display())
    }

    /// Returns the folder of the socket.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }
}

/// Debian keeps PostgreSQL's programs off the PATH, in one folder per version.
fn programs() -> Result<PathBuf> {
    let root = Path::new("/usr/lib/postgresql");
    let versions = fs::read_dir(root).into_iter().flatten().flatten();
    let newest = versions
        .map(|entry| entry.path().join("bin"))
        .filter(|folder| folder.join("initdb").is_file() && folder.join("postgres").is_file());
    newest.max().with_context(|| {
        format!(
            "no PostgreSQL below {}: `./x setup` installs it, or: apt-get install \
             --no-install-recommends postgresql",
            root.display()
        )
    })
}
