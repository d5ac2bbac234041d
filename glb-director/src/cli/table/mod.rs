//! `glb-director table`: look at forwarding tables, change them, and see what a change will do.

mod build;
mod check;
mod convert;
mod diff;
mod import;
mod lookup;
mod plan;
mod print;
mod set;
mod show;
mod simulate;

use std::path::PathBuf;

use clap::Subcommand;

use super::Output;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Check table files: exit status 0 only if all of them are valid.
    Check {
        /// TOML, GLB's JSON (`.json`) or GLB's binary files.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Show tables, binds, and backends with their share of the rows.
    ///
    /// The two digests tell whether directors agree: membership must be equal on all of a fleet, order
    /// (states and health) may differ for as long as a change takes to get round.
    Show {
        /// The table file.
        file: PathBuf,
    },
    /// Build GLB's binary file (GLBD version 2) from a table.
    Build {
        /// The table file.
        src: PathBuf,
        /// The binary file.
        dst: PathBuf,
    },
    /// Make a table of GLB's binary file, which holds everything but names and seeds.
    ///
    ///   glb-director table import forwarding_table.bin table.toml --seeds seeds.txt --names git,web
    #[command(verbatim_doc_comment)]
    Import(import::Arguments),
    /// Write a table in the other form: TOML to GLB's JSON, or back.
    ///
    ///   glb-director table convert forwarding_table.json table.toml
    #[command(verbatim_doc_comment)]
    Convert {
        /// The table file.
        src: PathBuf,
        /// The new file; its name ends in `.json` or `.toml`.
        dst: PathBuf,
    },
    /// Say where a flow goes, and why.
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
    /// Say what changes from one table to another, row by row.
    ///
    /// Whether established flows could break by it, over several steps too, says `plan`.
    Diff {
        /// The table as it is.
        old: PathBuf,
        /// The table as it shall be.
        new: PathBuf,
    },
    /// Say which established flows a sequence of tables could break; exit status 0 only if none.
    ///
    /// With --simulate, flows are sent through the sequence one by one as well, and those that broke
    /// are counted, with the balance of load. With --changes the sequence itself is made up: a fleet's
    /// maintenance of months.
    ///
    ///   glb-director table plan now.toml drained.toml drained=10.0.2.21 out.toml
    ///   glb-director table plan --drain 10.0.2.21,10.0.2.22 now.toml
    ///   glb-director table plan --simulate now.toml wait=1h next.toml
    ///   glb-director table plan --simulate --changes 1000 --backends 200 --hops 3
    #[command(verbatim_doc_comment)]
    Plan(plan::Arguments),
    /// Set a backend's state in a table file, which keeps its comments and order.
    ///
    /// Drains a backend, and takes it back; a running director loads the changed file by itself.
    ///
    ///   glb-director table set /etc/glb/table.toml 10.0.2.21 --state draining
    #[command(verbatim_doc_comment)]
    Set(set::Arguments),
}

impl Command {
    pub(super) fn execute(self, output: Output) -> anyhow::Result<()> {
        match self {
            Self::Check { files } => check::execute(&files, output),
            Self::Show { file } => show::execute(&file, output),
            Self::Build { src, dst } => build::execute(&src, &dst, output),
            Self::Import(arguments) => import::execute(&arguments, output),
            Self::Convert { src, dst } => convert::execute(&src, &dst, output),
            Self::Lookup { file, source, vip } => lookup::execute(&file, &source, &vip, output),
            Self::Diff { old, new } => diff::execute(&old, &new, output),
            Self::Plan(arguments) => plan::execute(&arguments, output),
            Self::Set(arguments) => set::execute(&arguments, output),
        }
    }
}
