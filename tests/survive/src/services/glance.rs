//! OpenStack Glance, as Debian packages it, without Keystone.

use std::{fs, process::Command};

use anyhow::{Context, Result};
use glb_lab::{Lab, Node, Process, command};

use super::{Database, GLANCE_PORT};

/// Debian's own interpreter. Another python3 on the PATH has no Glance.
const PYTHON: &str = "/usr/bin/python3";

/// Creates the database tables, once for all backends.
///
/// # Errors
/// When Glance is missing or the database does not answer.
pub(super) fn prepare(lab: &Lab, database: &Database) -> Result<()> {
    let config = configure(lab, Node::Router)?;
    let mut sync = Command::new(PYTHON);
    sync.arg("/usr/bin/glance-manage").arg("--config-file").arg(config).arg("db_sync");
    command::run(&mut sync)
        .with_context(|| format!("Glance on the database in {}", database.folder().display()))
}

/// Starts Glance on a backend without waiting until it listens.
///
/// # Errors
/// When Glance cannot be started.
pub(super) fn start(lab: &Lab, node: Node) -> Result<Process> {
    let config = configure(lab, node)?;
    let mut glance = lab.netns(node)?.command(PYTHON);
    glance.arg("/usr/bin/glance-api").arg("--config-file").arg(config);
    lab.spawn(node, "glance", &mut glance)
}

fn configure(lab: &Lab, node: Node) -> Result<std::path::PathBuf> {
    let own = lab.folder(node)?.join("glance");
    let staging = lab.scratch().join(format!("staging-{node}"));
    let images = lab.scratch().join("images");
    for folder in [&own, &staging, &images] {
        fs::create_dir_all(folder)?;
    }
    let database = Database::url(&lab.scratch().join("database"));
    let text = format!(
        "[DEFAULT]\nbind_host = ::\nbind_port = {GLANCE_PORT}\nworkers = 0\n\
         node_staging_uri = file://{staging}\nenabled_import_methods = []\n\
         [database]\nconnection = {database}\n\
         [paste_deploy]\nflavor =\n\
         [glance_store]\nstores = file\ndefault_store = file\nfilesystem_store_datadir = {images}\n\
         [oslo_concurrency]\nlock_path = {own}\n",
        staging = staging.display(),
        images = images.display(),
        own = own.display(),
    );
    let file = own.join("glance-api.conf");
    fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}
