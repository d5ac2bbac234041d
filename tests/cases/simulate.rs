//! The simulator's prediction for a sequence of tables matches real connections.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use glb_lab::{
    Daemon, Family, Lab, Lock, Node, Plan, Program, State, TableFile, client, command, http, vip,
};
use serde_json::Value;

use crate::support::build;

/// A connection and its outcome.
struct Connection {
    stream: TcpStream,
    client: SocketAddr,
    vip: SocketAddr,
    /// The step after which it was opened.
    step: usize,
    backend: IpAddr,
    broken_by: Option<usize>,
}

/// Listens on a node and answers each byte with the node's number.
fn serve(lab: &Lab, node: Node) -> Result<()> {
    let Node::Backend(number) = node else { bail!("{node} is no backend") };
    // This socket accepts both families.
    let listener = lab.netns(node)?.run(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, 80))?))?;
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            thread::spawn(move || {
                while stream.read_exact(&mut [0]).is_ok() && stream.write_all(&[number]).is_ok() {}
            });
        }
    });
    Ok(())
}

/// Sends a byte and returns the backend that answered; none if the connection was reset.
fn who(stream: &mut TcpStream) -> Result<Option<IpAddr>> {
    let mut number = [0];
    let heard = stream.write_all(&[0]).and_then(|()| stream.read_exact(&mut number));
    match heard {
        Ok(()) => Ok(Some(Node::Backend(number[0]).v4().into())),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(None),
        Err(error) => Err(error).context("neither an answer nor a reset"),
    }
}

/// The lab's tables in order, with the number of connections opened under each.
fn sequence(plan: &Plan) -> Vec<(TableFile, u16)> {
    let mut table = TableFile::new(plan);
    let mut tables = Vec::new();
    let mut step = |backend, state, connections| {
        table.set_state(Node::Backend(backend), state);
        tables.push((table.clone(), connections));
    };
    step(6, State::Inactive, 120);
    step(1, State::Draining, 120);
    step(1, State::Active, 40);
    // The backend that replaced backend 1 can be pushed out of a row.
    step(6, State::Filling, 40);
    step(2, State::Draining, 40);
    // The backend leaves with its connections while backend 2 is draining.
    step(3, State::Inactive, 40);
    step(2, State::Active, 0);
    tables
}

#[test]
fn simulator_and_lab_agree_on_each_connection() -> Result<()> {
    build()?;
    let _lock = Lock::wait("timing")?;
    let lab = Lab::up(Plan { backends: 6, ..Plan::new("glb-t-simulate") })?;
    let tables = sequence(lab.plan());
    for node in lab.plan().backend_nodes() {
        serve(&lab, node)?;
    }
    let mut redirects = Vec::new();
    for node in lab.plan().backend_nodes() {
        let mut redirect = Daemon::redirect(&lab, node, true)?;
        redirect.start(&lab)?;
        redirects.push(redirect);
    }
    let mut director = Daemon::director(&lab, Node::Director(1), &tables[0].0)?;
    director.start(&lab)?;

    let mut connections: Vec<Connection> = Vec::new();
    let mut next_client = 1_000;
    for (step, (table, more)) in (1..).zip(&tables) {
        if step > 1 {
            director.reload(table)?;
        }
        for connection in connections.iter_mut().filter(|one| one.broken_by.is_none()) {
            match who(&mut connection.stream).with_context(|| format!("in step {step}"))? {
                Some(backend) => ensure!(backend == connection.backend, "it went elsewhere"),
                None => connection.broken_by = Some(step),
            }
        }
        for number in next_client..next_client + more {
            let family = if number % 2 == 0 { Family::V4 } else { Family::V6 };
            let vip = SocketAddr::new(vip(family), 80);
            let limit = Duration::from_secs(20);
            let connect = || Ok(http::connect(client(family, number), vip, limit)?);
            let mut stream = lab.netns(Node::Client)?.run(connect)?;
            let backend = who(&mut stream)?.context("reset at once")?;
            let client = stream.local_addr()?;
            connections.push(Connection { stream, client, vip, step, backend, broken_by: None });
        }
        next_client += more;
    }

    let folder = lab.scratch();
    let mut flows = String::new();
    for connection in &connections {
        writeln!(flows, "{} {} {}", connection.client, connection.vip, connection.step)?;
    }
    fs::write(folder.join("flows"), flows)?;
    let mut plan = Command::new(Program::Director.path()?.with_file_name("glb-simulate"));
    plan.current_dir(folder).args(["sequence", "-o", "json", "--flows", "flows"]);
    for (step, (table, _)) in (1..).zip(&tables) {
        let name = format!("step{step}.toml");
        fs::write(folder.join(&name), table.toml()?)?;
        plan.arg(name);
    }
    let output = command::finish(&mut plan)?;
    ensure!(output.status.code() == Some(6), "an unsafe plan: {output:?}");
    let answer: Value = serde_json::from_slice(&output.stdout)?;

    let traced = answer["simulation"]["traced"].as_array().context("no flows")?;
    ensure!(traced.len() == connections.len());
    let mut broken = BTreeMap::<_, u32>::new();
    for (said, seen) in traced.iter().zip(&connections) {
        let what = format!("said: {said}; seen: {:?} {:?}", seen.backend, seen.broken_by);
        ensure!(said["client"] == seen.client.to_string(), "{what}");
        ensure!(said["backend"] == seen.backend.to_string(), "{what}");
        ensure!(said["broken_by"].as_u64() == seen.broken_by.map(|step| step as u64), "{what}");
        *broken.entry(seen.broken_by).or_default() += 1;
    }
    // The steps that the plan called safe broke no connection.
    let mut unsafe_steps = Vec::new();
    for judged in answer["steps"].as_array().context("no steps")? {
        let step = usize::try_from(judged["step"].as_u64().context("no number")?)?;
        if judged["risk"]["safe"] == false {
            unsafe_steps.push(step);
        }
    }
    println!("{} connections; {unsafe_steps:?} are unsafe; broken: {broken:?}", connections.len());
    let all = broken.keys().flatten();
    ensure!(all.clone().all(|step| unsafe_steps.contains(step)), "{broken:?} {unsafe_steps:?}");
    ensure!(unsafe_steps.len() < tables.len() - 1, "nothing is safe");
    ensure!(broken.contains_key(&Some(4)) && broken.contains_key(&Some(6)), "{broken:?}");
    ensure!(broken.contains_key(&None), "all broke");
    Ok(())
}
