//! The demo and the lab as commands. `./x demo` and `./x lab` build this and become it.

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
};

use anyhow::Result;
use clap::{Parser, Subcommand};
use glb_lab::{
    Family, Fleet, Plan,
    demo::{self, Options},
    down, interrupt,
};

#[derive(Parser)]
#[command(name = "glb-lab", about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

/// A load balancer in a data centre of network namespaces.
#[derive(Subcommand)]
enum Command {
    /// Shows a git clone that goes on while the backend that serves it is drained.
    Demo(DemoArguments),
    /// Brings a lab up, with everything running in it, and leaves it up.
    Up(NameArgument),
    /// Removes a lab that was left up, with all that runs in it.
    Down(NameArgument),
}

#[derive(clap::Args)]
struct DemoArguments {
    /// Leave the lab up afterwards, and say how to look around in it.
    #[arg(long)]
    keep: bool,
    /// Backends never send on: the clone must break. Exit status 0 says that it did.
    #[arg(long)]
    without_second_chance: bool,
    /// Clients and VIP speak IPv6.
    #[arg(long)]
    ipv6: bool,
    #[command(flatten)]
    name: NameArgument,
}

#[derive(clap::Args)]
struct NameArgument {
    /// The lab's name: labs of different names can be up side by side.
    #[arg(long, default_value = "glb-demo")]
    name: String,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Demo(arguments) => run_demo(arguments),
        Command::Up(argument) => up(&argument.name).map(|()| true),
        Command::Down(argument) => down(&argument.name).map(|()| true),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(_) if interrupt::check().is_err() => {
            eprintln!("\ninterrupted; the lab and all that ran in it are gone");
            // As a shell sees a program that Ctrl-C ended.
            ExitCode::from(130)
        }
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run_demo(arguments: DemoArguments) -> Result<bool> {
    let options = Options {
        name: arguments.name.name,
        family: if arguments.ipv6 { Family::V6 } else { Family::V4 },
        second_chance: !arguments.without_second_chance,
        keep: arguments.keep,
        ..Options::default()
    };
    let mut out = io::stdout();
    let terminal = out.is_terminal();
    Ok(demo::run(&options, &mut out, terminal)?.held())
}

fn up(name: &str) -> Result<()> {
    interrupt::install()?;
    let options = Options { name: name.to_owned(), ..Options::default() };
    let plan = Plan { client_mbit: Some(options.mbit), ..Plan::new(name) };
    let fleet = Fleet::up(plan, options.megabytes, true)?;
    fleet.lab.keep();
    println!("{}", demo::look_around(&fleet)?);
    Ok(())
}
