//! `glb-director config`

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Subcommand;
use serde::Serialize;

use glb_host::{exit_code, next_hop::interface_index};

use super::Output;
use crate::{announce, config::Config, doctor, glb_import::Imported};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Check the configuration file and its table file against this machine.
    ///
    /// Checks that the interfaces exist, that BIRD answers and has the named protocols, and that
    /// commands can be executed. Changes nothing. Exits with 4 if it finds an error, with 1 if a file
    /// cannot be used. `doctor` examines the machine further.
    Check {
        #[command(flatten)]
        config: super::ConfigFile,
        /// Check the files only, for example on another machine
        #[arg(long)]
        files_only: bool,
    },
    /// Convert GLB's configuration files or command line into this director's configuration.
    ///
    /// The configuration goes to standard output. Notes on keys without a counterpart go to standard
    /// error.
    ///
    ///   glb-director config import --defaults /etc/default/glb-director-xdp > director.toml
    ///   glb-director config import director.conf --interface eth0
    #[command(verbatim_doc_comment)]
    Import {
        /// GLB's director.conf (JSON) [default: the file that the other inputs name]
        config: Option<PathBuf>,
        /// /etc/default/glb-director or /etc/default/glb-director-xdp
        #[arg(long, value_name = "FILE")]
        defaults: Option<PathBuf>,
        /// An interface to attach to; the files of the DPDK director name none
        #[arg(long, value_name = "NAME")]
        interface: Vec<String>,
        /// GLB's command line, after `--`
        #[arg(last = true, value_name = "OPTIONS")]
        options: Vec<String>,
    },
}

/// The result of a check.
#[derive(Debug, Serialize)]
struct Checked {
    config: PathBuf,
    table: PathBuf,
    tables: usize,
    backends: usize,
    binds: usize,
    errors: Vec<String>,
    warnings: Vec<String>,
}

pub(super) fn execute(command: Command, output: Output) -> anyhow::Result<ExitCode> {
    match command {
        Command::Check { config, files_only } => check(&config.config, files_only, output),
        Command::Import { config, defaults, interface, options } => {
            import(config, defaults.as_deref(), interface, &options)
        }
    }
}

fn check(file: &Path, files_only: bool, output: Output) -> anyhow::Result<ExitCode> {
    let config = Config::load(file)?;
    let tables = glb_table::load(&config.table)
        .map_err(|error| anyhow::anyhow!("{}", error.render(false).trim_end().to_owned()))?;
    let mut warnings = config.warnings();
    let (mut errors, doubts) =
        announce::announcement::check_against(&config.announcements, &tables);
    warnings.extend(doubts);
    if !files_only {
        errors.extend(missing_interfaces(&config));
        errors.extend(announce::block_on(announce::check_methods(&config.announcements))?);
    }
    if !tables.warnings.is_empty() {
        warnings.push(glb_table::render(&tables.warnings, false).trim_end().to_owned());
    }
    if let Some(mode) = glb_host::permission::world_readable_mode(&config.table) {
        let path = config.table.display();
        let remedy = doctor::restrict_access(&config.table);
        warnings.push(format!(
            "every user can read the hash keys in {path} (mode {mode:o}). Restrict access: {remedy}"
        ));
    }
    let checked = Checked {
        tables: tables.tables.len(),
        backends: tables.tables.iter().map(|table| table.backends.len()).sum(),
        binds: tables.tables.iter().map(|table| table.binds.len()).sum(),
        config: config.path,
        table: config.table,
        errors,
        warnings,
    };
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&checked)?),
        Output::Table => {
            let result = if checked.errors.is_empty() { "valid" } else { "NOT VALID here" };
            println!("{}: {result}", checked.config.display());
            println!(
                "{}: valid; {} tables, {} backends, {} binds",
                checked.table.display(),
                checked.tables,
                checked.backends,
                checked.binds
            );
            for warning in &checked.warnings {
                println!("warning: {warning}");
            }
            for error in &checked.errors {
                println!("ERROR: {error}");
            }
        }
    }
    let is_valid = checked.errors.is_empty();
    Ok(if is_valid { ExitCode::SUCCESS } else { ExitCode::from(exit_code::PROBLEM) })
}

/// Names the configured interfaces that do not exist.
fn missing_interfaces(config: &Config) -> Vec<String> {
    let missing = config.interfaces.iter().filter(|name| interface_index(name).is_err());
    let known: BTreeSet<String> = nix::ifaddrs::getifaddrs()
        .into_iter()
        .flatten()
        .map(|entry| entry.interface_name)
        .collect();
    let known = known.into_iter().collect::<Vec<_>>().join(", ");
    missing
        .map(|name| {
            format!(
                "`interfaces`: {name} does not exist on this machine, which has {known}. Correct the \
                 name, or create the interface"
            )
        })
        .collect()
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
