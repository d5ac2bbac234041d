//! `glb-director fleet`

use std::{path::Path, process::ExitCode, thread, time::Duration};

use anyhow::{Context as _, bail};
use clap::Subcommand;
use glb_host::{
    control::{Client, ClientError},
    exit_code,
};
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
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest answer, in bytes.
const LONGEST: usize = 64 << 20;

/// A target does not answer, and the others agree.
const SILENT: u8 = exit_code::NOT_RUNNING;
/// The directors differ.
const DIFFERENT: u8 = exit_code::PROBLEM;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Compare the tables of several directors, and show the differences.
    ///
    /// Exits with 0 if all agree, and with 4 if keys, binds, backends or weights differ, or if states or
    /// health differ (normal for a moment after a change). Exits with 3 if a target does not answer and
    /// the others agree.
    ///
    ///   glb-director fleet status --targets http://10.0.0.1:9650,http://10.0.0.2:9650
    #[command(verbatim_doc_comment)]
    Status {
        /// The directors' metrics addresses (http://HOST:PORT) or control sockets (paths), separated by
        /// commas
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
    /// Why the target did not answer.
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
        Some(About::Order) => DIFFERENT,
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
            tokio::time::timeout(ANSWER_TIMEOUT, over_http(target))
                .await
                .with_context(|| format!("no answer within {ANSWER_TIMEOUT:?}"))?
        })?;
    }
    if target.contains("://") {
        bail!("give http://HOST:PORT, or the path of a control socket");
    }
    let path = target.strip_prefix("unix:").unwrap_or(target);
    match Client::connect(Path::new(path)) {
        // The client's own advice names this machine's configuration.
        Err(ClientError::NotRunning { source, .. }) => Err(source)
            .context("no daemon answers there; start it, or give another path or http://HOST:PORT"),
        client => Ok(client?.ask(&Ask::Member, ANSWER_TIMEOUT)?),
    }
}

async fn over_http(target: &str) -> anyhow::Result<Member> {
    let uri: hyper::Uri = target.parse().context("invalid address")?;
    let authority = uri.authority().context("the address has no host")?;
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let port = authority.port_u16().unwrap_or(80);
    let stream = tokio::net::TcpStream::connect((host, port)).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let task = tokio::spawn(connection);
    let request = Request::get("/status").header(HOST, authority.as_str());
    let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
    let status = response.status();
    if !status.is_success() {
        bail!("unexpected status {status}: check that a director of this release serves there");
    }
    let body = Limited::new(response.into_body(), LONGEST).collect().await;
    task.abort();
    let body = body.map_err(|error| anyhow::anyhow!("the answer is incomplete: {error}"))?;
    serde_json::from_slice(&body.to_bytes()).context("the answer does not come from a director")
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for Target { target, error, member } in &report.targets {
        let Some(member) = member else {
            let error = error.as_deref().unwrap_or_default();
            text += &format!("{target}: NO ANSWER: {error}\n");
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
            About::Order => "states differ",
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
