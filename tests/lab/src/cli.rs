//! The command line of the lab.

use std::{
    env,
    io::{self, IsTerminal},
    os::unix::process::CommandExt,
    process::{self, ExitCode},
};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};
use glb_lab::{
    AnnounceMethod, Family, Fleet, Node, Plan, Program, Routing, State, Target, command,
    demo::{self, Options},
    down, interrupt,
};

/// A data centre of network namespaces with the load balancer in it.
///
/// A lab has a router, clients, directors and backends, each in its own network namespace. Router
/// and directors speak BGP (BIRD, with BFD); backends serve a page and git. `up` starts a lab and
/// leaves it running, the other commands work on it, and `down` removes it. Labs with different
/// names (--name) can run side by side.
#[derive(Parser)]
#[command(name = "lab", bin_name = "./x lab", disable_help_subcommand = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// The lab's name. Labs with different names can run side by side.
    #[arg(long, global = true, default_value = demo::DEFAULT_NAME)]
    name: String,
}

#[derive(Subcommand)]
enum Command {
    /// Starts a lab with all its daemons and leaves it running.
    #[command(after_help = "Then, for example:
  ./x lab status
  ./x lab exec client -- curl -s http://203.0.113.10/
  ./x lab exec router -- ip route show 203.0.113.10
  ./x lab kill director1/bird; ./x lab status; ./x lab start director1/bird
  ./x lab drain backend2
  ./x lab down")]
    Up(UpArguments),
    /// Shows machines, daemons, BGP sessions, routes and tables.
    Status {
        /// The output format.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Runs a command on machines of the lab, in the folder that holds the machine's configuration.
    ///
    /// The programs of this project are on the PATH: `./x lab exec director1 -- glb-director status
    /// --config glb-director.toml`. With several machines, the command runs on one after the other,
    /// and the exit status is 1 if it failed on any of them.
    Exec {
        /// client, router, director1, backend2 and so on; directors, backends, clients or all.
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
        /// The command, after `--`.
        #[arg(last = true, required = true, value_name = "CMD")]
        words: Vec<String>,
    },
    /// Sets a backend to draining: it keeps its connections and gets no new ones.
    Drain {
        /// backend1, backend2 and so on.
        backend: Node,
    },
    /// Sets a backend to filling: it gets new connections, and other backends keep theirs.
    Fill {
        /// backend1, backend2 and so on.
        backend: Node,
    },
    /// Sets a backend to active.
    Back {
        /// backend1, backend2 and so on.
        backend: Node,
    },
    /// Kills a daemon (SIGKILL), or a machine: its link goes down and all its processes die.
    Kill {
        /// director1, or director1/bird, backend2/glb-redirect, router/bird and so on.
        #[arg(value_name = "NODE|DAEMON")]
        target: Target,
    },
    /// Starts a killed daemon or machine.
    ///
    /// On a director it waits up to 20 seconds until the router has a BGP session with it and sends
    /// it packets.
    Start {
        /// The same targets as for `kill`.
        #[arg(value_name = "NODE|DAEMON")]
        target: Target,
    },
    /// Removes a running lab with all its processes.
    Down,
    /// Shows a git clone that continues while its backend is drained.
    Demo(DemoArguments),
}

#[derive(clap::Args)]
struct UpArguments {
    /// The number of directors, 1 to 10.
    #[arg(long, default_value_t = 2)]
    directors: u8,
    /// The number of backends, 1 to 200.
    #[arg(long, default_value_t = 3)]
    backends: u8,
    /// The number of client machines, 1 to 9; each has 65,535 addresses.
    #[arg(long, default_value_t = 1)]
    clients: u8,
    /// The announcement method of the directors.
    #[arg(long, value_enum, default_value_t)]
    method: AnnounceMethod,
    /// Each director gets a health checker (glb-healthcheck), which writes its table.
    #[arg(long)]
    health: bool,
    /// The size of the repository on the backends, /git/big.git.
    #[arg(long, default_value_t = 20, value_name = "MB")]
    repository: usize,
    /// The speed of the client link in Mbit/s. Unlimited by default.
    #[arg(long)]
    mbit: Option<u32>,
}

#[derive(clap::Args)]
struct DemoArguments {
    /// KeepFlag the lab running afterwards, and print how to look around in it.
    #[arg(long)]
    keep: bool,
    /// Disable second chance: the clone must break. Exit status 0 means that it did.
    #[arg(long)]
    without_second_chance: bool,
    /// Use IPv6 between clients and VIP.
    #[arg(long)]
    ipv6: bool,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Output {
    /// Text for people.
    #[default]
    Text,
    /// JSON for programs.
    Json,
}

impl Arguments {
    /// Runs the command.
    pub(crate) fn execute(self) -> Result<ExitCode> {
        let name = &self.name;
        match self.command {
            Command::Up(arguments) => up(name, &arguments)?,
            Command::Status { output } => {
                let status = Fleet::open(name)?.status()?;
                match output {
                    Output::Text => print!("{status}"),
                    Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
                }
            }
            Command::Exec { nodes, words } => return exec(name, &nodes, &words),
            Command::Drain { backend } => set_state(name, backend, State::Draining)?,
            Command::Fill { backend } => set_state(name, backend, State::Filling)?,
            Command::Back { backend } => set_state(name, backend, State::Active)?,
            Command::Kill { target } => change(name, |fleet| fleet.kill(target))?,
            Command::Start { target } => change(name, |fleet| {
                interrupt::install()?;
                fleet.start(target)?;
                fleet.wait_for_director(target.node, &mut io::stderr())
            })?,
            Command::Down => down(name)?,
            Command::Demo(arguments) => return run_demo(name, &arguments),
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn run_demo(name: &str, arguments: &DemoArguments) -> Result<ExitCode> {
    let options = Options {
        name: name.to_owned(),
        family: if arguments.ipv6 { Family::V6 } else { Family::V4 },
        second_chance: !arguments.without_second_chance,
        keep: arguments.keep,
        ..Options::default()
    };
    let mut out = io::stdout();
    let terminal = out.is_terminal();
    let held = demo::run(&options, &mut out, terminal)?.held();
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn up(name: &str, arguments: &UpArguments) -> Result<()> {
    interrupt::install()?;
    if Fleet::open(name).is_ok() {
        bail!(
            "the lab {name} is up: `./x lab down --name {name}` removes it, or give another name"
        );
    }
    let plan = Plan {
        directors: arguments.directors,
        backends: arguments.backends,
        clients: arguments.clients,
        routing: Routing::Bgp,
        method: arguments.method,
        health: arguments.health,
        client_mbit: arguments.mbit,
        ..Plan::new(name)
    };
    let fleet = Fleet::up(plan, arguments.repository, true)?;
    fleet.lab.keep();
    print!("{}", fleet.status()?);
    println!("\n{}", demo::look_around(&fleet)?);
    Ok(())
}

/// Changes a running lab. Only one process at a time may do so.
fn change(name: &str, work: impl FnOnce(&mut Fleet) -> Result<()>) -> Result<()> {
    let lock = Fleet::open(name)?.lock()?;
    // Another process can have changed the lab while this one waited for the lock.
    work(&mut Fleet::open(name)?)?;
    drop(lock);
    Ok(())
}

fn set_state(name: &str, backend: Node, state: State) -> Result<()> {
    change(name, |fleet| fleet.set_state(backend, state))
}

fn exec(name: &str, nodes: &[String], words: &[String]) -> Result<ExitCode> {
    let fleet = Fleet::open(name)?;
    let plan = fleet.lab.plan();
    let mut chosen = Vec::new();
    for node in nodes {
        match node.as_str() {
            "directors" => chosen.extend(plan.director_nodes()),
            "backends" => chosen.extend(plan.backend_nodes()),
            "clients" => chosen.extend(plan.client_nodes()),
            "all" => chosen.extend(plan.nodes()),
            node => chosen.push(node.parse()?),
        }
    }
    let command = |node| -> Result<process::Command> {
        let (program, arguments) = words.split_first().context("no command")?;
        let mut command = process::Command::new(program);
        let own = Program::Lab.path()?;
        let folder = own.parent().context("no folder")?;
        let path = env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}:/usr/sbin:/sbin", folder.display()));
        command.args(arguments).current_dir(fleet.lab.folder(node)?);
        Ok(command)
    };
    if let [node] = chosen[..] {
        // This process becomes the command, so that a shell keeps the terminal.
        let mut command = command(node)?;
        fleet.lab.netns(node)?.enter_this_thread()?;
        return Err(command.exec()).with_context(|| format!("cannot run {}", words.join(" ")));
    }
    let mut all_well = true;
    for node in chosen {
        println!("== {node}");
        let mut command = command(node)?;
        let status = fleet.lab.netns(node)?.run(|| {
            command.status().with_context(|| format!("cannot run `{}`", command::shown(&command)))
        })?;
        all_well &= status.success();
    }
    Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
