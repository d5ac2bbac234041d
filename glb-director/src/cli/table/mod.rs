//! `glb-director table`: commands that show, check, edit and compare forwarding tables. None of them
//! needs a running director.

mod build;
mod check;
mod convert;
mod diff;
mod import;
mod lookup;
mod new;
mod plan;
mod print;
mod set;
mod show;

use std::{path::PathBuf, process::ExitCode};

use clap::Subcommand;

use super::Output;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Check table files. Exits with 0 if all are valid, with 4 if one is not.
    Check {
        /// TOML files, GLB's JSON files (`.json`) or GLB's binary files; pipes, or - for standard input.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Show tables, binds, and each backend's share of the rows.
    ///
    /// Compare the digests of two directors: `membership` must be equal on all directors of a fleet;
    /// `order` (states and health) may differ while a change is being distributed.
    Show {
        /// The table file.
        file: PathBuf,
    },
    /// Write a new table file with comments and random keys.
    ///
    /// All directors of a fleet need the same file: make it once and distribute it.
    ///
    ///   glb-director table new /etc/glb/table.toml
    #[command(verbatim_doc_comment)]
    New {
        /// The file to write; it must not exist. Only its owner can read it.
        file: PathBuf,
    },
    /// Write a table as GLB's binary file (GLBD version 2).
    Build {
        /// The table file.
        src: PathBuf,
        /// The binary file to write.
        dst: PathBuf,
    },
    /// Convert GLB's binary file to a table. The binary file holds everything except names and seeds.
    ///
    ///   glb-director table import forwarding_table.bin table.toml --seeds seeds.txt --names git,web
    #[command(verbatim_doc_comment)]
    Import(import::Arguments),
    /// Convert a table between TOML and GLB's JSON.
    ///
    ///   glb-director table convert forwarding_table.json table.toml
    #[command(verbatim_doc_comment)]
    Convert {
        /// The table file.
        src: PathBuf,
        /// The file to write; its name ends in `.json` or `.toml`.
        dst: PathBuf,
    },
    /// Show the backends that a flow is sent to, and why.
    ///
    ///   glb-director table lookup table.toml 198.51.100.7 203.0.113.10:443
    ///   glb-director table lookup table.toml '[2001:db8::7]:50123' '[2001:db8::10]:443/tcp'
    #[command(verbatim_doc_comment)]
    Lookup {
        /// The table file.
        file: PathBuf,
        /// The client: ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT.
        source: String,
        /// The VIP: ADDRESS[:PORT], then /tcp (the default) or /udp.
        vip: String,
    },
    /// Compare two tables, row by row.
    ///
    /// `table plan` tells whether the change could break established flows.
    Diff {
        /// The table before the change.
        old: PathBuf,
        /// The table after the change.
        new: PathBuf,
    },
    /// Tell which established flows a sequence of tables could break.
    ///
    /// Exits with 0 if no step can break a flow, with 6 if a step can. `glb-simulate` tries the same
    /// sequence with simulated flows.
    ///
    ///   glb-director table plan now.toml drained.toml mark-drained=10.0.2.21 out.toml
    ///   glb-director table plan --drain 10.0.2.21,10.0.2.22 now.toml
    #[command(verbatim_doc_comment)]
    Plan(plan::Arguments),
    /// Set the state of a backend in a table file. Comments and order of the file are kept.
    ///
    /// A running director loads the changed file automatically. If a health checker writes the file, the
    /// state is set in the health checker's input instead.
    ///
    ///   glb-director table set /etc/glb/table.toml 10.0.2.21 --state draining
    ///   glb-director table set /etc/glb/table.toml 10.0.2.21 --state draining --wait=10s
    #[command(verbatim_doc_comment)]
    Set(set::Arguments),
}

impl Command {
    pub(super) fn execute(self, output: Output) -> anyhow::Result<ExitCode> {
        let done = |result: anyhow::Result<()>| result.map(|()| ExitCode::SUCCESS);
        match self {
            Self::Check { files } => check::execute(&files, output),
            Self::Show { file } => done(show::execute(&file, output)),
            Self::New { file } => done(new::execute(&file)),
            Self::Build { src, dst } => done(build::execute(&src, &dst, output)),
            Self::Import(arguments) => done(import::execute(&arguments, output)),
            Self::Convert { src, dst } => done(convert::execute(&src, &dst, output)),
            Self::Lookup { file, source, vip } => {
                done(lookup::execute(&file, &source, &vip, output))
            }
            Self::Diff { old, new } => done(diff::execute(&old, &new, output)),
            Self::Plan(arguments) => plan::execute(&arguments, output),
            Self::Set(arguments) => set::execute(&arguments, output),
        }
    }
}
