//! `glb-director fleet`

use std::{path::Path, process::ExitCode, thread, time::Duration};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use glb_host::control::{Client, ClientError};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::{Request, body::Bytes, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use serde::Serialize;

use super::Output;
use crate::{
    announce::{AnnouncementState, block_on},
    control::Command as Ask,
    fleet::{About, Difference, Member, compare},
};

/// How long one director may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest answer, in bytes.
const LONGEST: usize = 64 << 20;

/// A target does not answer; those that do agree.
const SILENT: u8 = 3;
/// What must be equal is not.
const DIFFERENT: u8 = 4;
/// States or health differ, which may pass.
const OTHER_ORDER: u8 = 6;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Compare the tables of several directors, and name what differs.
    ///
    /// Exits with 0 if all agree, with 4 if what must be equal is not (keys, binds, backends, weights),
    /// with 3 if some target does not answer and the others agree, and with 6 if only states or health
    /// differ, which is normal for the moment that a change takes to get round.
    ///
    ///   glb-director fleet status --targets http://10.0.0.1:9650,http://10.0.0.2:9650
    #[command(verbatim_doc_comment)]
    Status {
        /// The directors: addresses where their metrics are served (http://HOST:PORT), or control
        /// sockets (paths); with commas between, or given several times.
        #[arg(long, required = true, value_delimiter = ',', value_name = "TARGETS")]
        targets: Vec<String>,
    },
}

#[derive(Serialize)]
struct Report {
    agree: bool,
    targets: Vec<Target>,
    differences: Vec<Difference>,
}

#[derive(Serialize)]
struct Target {
    target: String,
    /// Why it did not answer.
    error: Option<String>,
    #[serde(flatten)]
    member: Option<Member>,
}

pub(super) fn execute(command: Command, output: Output) -> anyhow::Result<ExitCode> {
    let Command::Status { targets } = command;
    let targets: Vec<Target> = thread::scope(|scope| {
        let asked: Vec<_> =
            targets.iter().map(|target| (target, scope.spawn(move || ask(target)))).collect();
        let answers = asked.into_iter().map(|(target, asked)| {
            let answer = asked.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let error = answer.as_ref().err().map(glb_host::error_chain);
            Target { target: target.clone(), error, member: answer.ok() }
        });
        answers.collect()
    });
    let members: Vec<(String, Member)> = targets
        .iter()
        .filter_map(|target| Some((target.target.clone(), target.member.clone()?)))
        .collect();
    let differences = compare(&members);
    let silent = targets.iter().any(|target| target.error.is_some());
    let code = match differences.first().map(|first| first.about) {
        Some(About::Membership) => DIFFERENT,
        _ if silent => SILENT,
        Some(About::Order) => OTHER_ORDER,
        None => 0,
    };
    let report = Report { agree: code == 0, targets, differences };
    match output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Table => print!("{}", text(&report)),
    }
    Ok(ExitCode::from(code))
}

fn ask(target: &str) -> anyhow::Result<Member> {
    if target.starts_with("http://") {
        return block_on(async {
            tokio::time::timeout(PATIENCE, over_http(target))
                .await
                .with_context(|| format!("no answer within {PATIENCE:?}"))?
        })?;
    }
    if target.contains("://") {
        bail!("give http://HOST:PORT, or the path of a control socket");
    }
    let path = target.strip_prefix("unix:").unwrap_or(target);
    match Client::connect(Path::new(path)) {
        // The client's own advice is about the director of a configuration.
        Err(ClientError::NotRunning { source, .. }) => Err(source)
            .context("no daemon answers there; start it, or give another path or http://HOST:PORT"),
        client => Ok(client?.ask(&Ask::Member, PATIENCE)?),
    }
}

async fn over_http(target: &str) -> anyhow::Result<Member> {
    let uri: hyper::Uri = target.parse().context("this is not an address")?;
    let authority = uri.authority().context("this names no host")?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let port = authority.port_u16().unwrap_or(80);
    let stream = tokio::net::TcpStream::connect((host, port)).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let task = tokio::spawn(connection);
    let request = Request::get("/status").header(HOST, authority.as_str());
    let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
    let status = response.status();
    if !status.is_success() {
        bail!("it answers with {status}: is it a director, and of this release?");
    }
    let body = Limited::new(response.into_body(), LONGEST).collect().await;
    task.abort();
    let body = body.map_err(|error| anyhow::anyhow!("the answer breaks off: {error}"))?;
    serde_json::from_slice(&body.to_bytes()).context("the answer is not a director's")
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for Target { target, error, member } in &report.targets {
        let Some(member) = member else {
            let error = error.as_deref().unwrap_or_default();
            text += &format!("{target}: DOES NOT ANSWER: {error}\n");
            continue;
        };
        let digest = |digest: &Option<String>| {
            digest.as_ref().map_or("none".to_owned(), |digest| digest.chars().take(16).collect())
        };
        let announced = member.announce.announcements.iter();
        let announced =
            announced.filter(|one| one.state == Some(AnnouncementState::Announced)).count();
        let drain = member.announce.drain.as_ref();
        text += &format!(
            "{target}: membership {}, order {}, {announced} of {} announced{}{}\n",
            digest(&member.membership_digest),
            digest(&member.order_digest),
            member.announce.announcements.len(),
            drain.map(|drain| format!(", {}", drain.stage.name())).unwrap_or_default(),
            if member.problems.is_empty() { "" } else { ", has problems" },
        );
    }
    for difference in &report.differences {
        let about = match difference.about {
            About::Membership => "DIFFERENT",
            About::Order => "other order",
        };
        let backend = difference.backend.as_ref();
        let backend = backend.map(|address| format!(", backend {address}")).unwrap_or_default();
        text += &format!("{about}: table {}{backend}: {}\n", difference.table, difference.what);
        for (value, targets) in &difference.values {
            text += &format!("    {value}: {}\n", targets.join(", "));
        }
    }
    if report.agree {
        text += "all agree\n";
    }
    text
}
