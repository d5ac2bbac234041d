//! `glb-director config`

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Subcommand;
use serde::Serialize;

use super::Output;
use crate::{announce, config::Config, glb_import::Imported};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Check the configuration and the table that it names, without touching anything.
    ///
    /// `doctor` looks at the machine too.
    Check {
        #[command(flatten)]
        config: super::ConfigFile,
    },
    /// Turn GLB's configuration files or command line into this director's configuration.
    ///
    /// It is written to stdout; what has no counterpart here, key by key, to stderr.
    ///
    ///   glb-director config import --defaults /etc/default/glb-director-xdp > director.toml
    ///   glb-director config import director.conf --interface eth0
    #[command(verbatim_doc_comment)]
    Import {
        /// GLB's director.conf (JSON); what the other files name, if it is left out.
        config: Option<PathBuf>,
        /// /etc/default/glb-director or /etc/default/glb-director-xdp.
        #[arg(long, value_name = "FILE")]
        defaults: Option<PathBuf>,
        /// An interface to attach to, which the DPDK director's files do not name.
        #[arg(long, value_name = "NAME")]
        interface: Vec<String>,
        /// GLB's own command line, after `--`.
        #[arg(last = true, value_name = "OPTIONS")]
        options: Vec<String>,
    },
}

/// What was found.
#[derive(Debug, Serialize)]
struct Checked {
    config: PathBuf,
    table: PathBuf,
    tables: usize,
    backends: usize,
    binds: usize,
    warnings: Vec<String>,
}

pub(super) fn execute(command: Command, output: Output) -> anyhow::Result<ExitCode> {
    match command {
        Command::Check { config } => check(&config.config, output),
        Command::Import { config, defaults, interface, options } => {
            import(config, defaults.as_deref(), interface, &options)
        }
    }
}

fn check(file: &Path, output: Output) -> anyhow::Result<ExitCode> {
    let config = Config::load(file)?;
    let tables = glb_table::load(&config.table)
        .map_err(|error| anyhow::anyhow!("{}", error.render(false).trim_end().to_owned()))?;
    let mut warnings = config.warnings();
    let (errors, doubts) = announce::announcement::check_against(&config.announcements, &tables);
    if !errors.is_empty() {
        anyhow::bail!("{}: {}", config.path.display(), errors.join("\n"));
    }
    warnings.extend(doubts);
    if !tables.warnings.is_empty() {
        warnings.push(glb_table::render(&tables.warnings, false).trim_end().to_owned());
    }
    if let Some(mode) = glb_host::permission::world_readable_mode(&config.table) {
        let path = config.table.display();
        warnings.push(format!(
            "{path} holds hash keys and can be read by everybody (mode {mode:o}): chmod o-r {path}"
        ));
    }
    let checked = Checked {
        tables: tables.tables.len(),
        backends: tables.tables.iter().map(|table| table.backends.len()).sum(),
        binds: tables.tables.iter().map(|table| table.binds.len()).sum(),
        config: config.path,
        table: config.table,
        warnings,
    };
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&checked)?),
        Output::Table => {
            println!("{}: in order", checked.config.display());
            println!(
                "{}: in order; {} tables, {} backends, {} binds",
                checked.table.display(),
                checked.tables,
                checked.backends,
                checked.binds
            );
            for warning in &checked.warnings {
                println!("warning: {warning}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn import(
    config: Option<PathBuf>,
    defaults: Option<&Path>,
    interfaces: Vec<String>,
    options: &[String],
) -> anyhow::Result<ExitCode> {
    let mut imported = Imported::default();
    let mut named = None;
    if let Some(path) = defaults {
        let text = read(path)?;
        named = imported.read_defaults(&text).with_context(|| path.display().to_string())?;
    }
    named = imported.read_options(options).context("the command line")?.or(named);
    for interface in interfaces {
        imported.add_interface(interface);
    }
    let path = config.or(named).unwrap_or_else(|| "/etc/glb/director.conf".into());
    imported.read_config(&read(&path)?).with_context(|| path.display().to_string())?;
    let (text, notes) = imported.into_toml();
    print!("{text}");
    for note in notes {
        eprintln!("note: {note}");
    }
    Ok(ExitCode::SUCCESS)
}

fn read(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
