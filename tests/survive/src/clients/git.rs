//! The clients `git clone` and `git push` through the VIP, over smart HTTP and over the git
//! protocol.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use glb_lab::{command, repository};

use crate::{
    accounting::Kind,
    clients::{Worker, relay::Relay},
    services::{GIT_PORT, REPOSITORY},
};

/// A job that takes longer counts as hung. The limit is far above any normal duration.
const LIMIT: Duration = Duration::from_secs(600);

/// Runs one clone and verifies it.
pub(crate) fn clones(worker: &mut Worker) {
    let http = worker.random.below(2) == 0;
    let pace = worker.site.load.git_pace(&mut worker.random);
    let name = format!("clone-{}", worker.number);
    let target = worker.site.copies.join(&name);
    let kind = if http { Kind::CloneHttp } else { Kind::CloneGit };
    job(worker, kind, pace, |worker, url| {
        remove(&target)?;
        let mut clone = repository::isolated(worker.site.netns.command("git"));
        clone.args(["clone", "--quiet", "--mirror", &url(REPOSITORY)]).arg(&target);
        finish(&mut clone)?;
        same(&target, &worker.site.repositories.join(REPOSITORY))
    });
    remove(&target).ok();
}

/// Runs one push into a new repository and verifies it.
pub(crate) fn pushes(worker: &mut Worker) {
    let http = worker.random.below(2) == 0;
    let pace = worker.site.load.git_pace(&mut worker.random);
    let name = format!("push-{}.git", worker.number);
    let target = worker.site.repositories.join(&name);
    let kind = if http { Kind::PushHttp } else { Kind::PushGit };
    job(worker, kind, pace, |worker, url| {
        remove(&target)?;
        command::run(repository::git().args(["init", "--quiet", "--bare"]).arg(&target))?;
        let mut config = repository::in_repository(&target);
        command::run(config.args(["config", "http.receivepack", "true"]))?;
        let source = worker.site.repositories.join(REPOSITORY);
        let mut push = repository::isolated(worker.site.netns.command("git"));
        push.arg("-C").arg(&source).args(["push", "--quiet", "--mirror", &url(&name)]);
        finish(&mut push)?;
        same(&target, &source)
    });
    remove(&target).ok();
}

fn job(
    worker: &mut Worker,
    kind: Kind,
    pace: u64,
    work: impl FnOnce(&Worker, &dyn Fn(&str) -> String) -> Result<()>,
) {
    let family = worker.family();
    let (http, port) = match kind {
        Kind::CloneHttp | Kind::PushHttp => (true, 80),
        _ => (false, GIT_PORT),
    };
    let relay = match Relay::start(&worker.site, kind, family, port, pace) {
        Ok(relay) => relay,
        Err(error) => {
            eprintln!("no relay: {error:#}");
            return worker.site.pause(Duration::from_secs(1));
        }
    };
    let address = relay.address();
    let url = |name: &str| {
        if http {
            format!("http://{address}/git/{name}")
        } else {
            format!("git://{address}/{name}")
        }
    };
    let outcome = work(worker, &url).map_err(|error| format!("{error:#}"));
    relay.judge(&outcome);
    if outcome.is_err() {
        worker.site.pause(Duration::from_millis(500));
    }
}

/// Runs git to completion.
fn finish(git: &mut Command) -> Result<()> {
    let mut child = git
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("git cannot be started")?;
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begun.elapsed() > LIMIT {
            child.kill()?;
            break child.wait()?;
        }
        thread::sleep(Duration::from_millis(20));
    };
    let mut said = String::new();
    if let Some(stderr) = &mut child.stderr {
        // Pipes that a child of git still holds open are not awaited.
        if !status.success() {
            std::io::Read::read_to_string(&mut std::io::Read::take(stderr, 2000), &mut said).ok();
        }
    }
    let said = said.lines().map(str::trim).collect::<Vec<_>>().join(" / ");
    ensure!(status.success(), "git: {said:.300}");
    Ok(())
}

/// Checks that both repositories have the same refs and that the copy is complete.
fn same(copy: &Path, original: &Path) -> Result<()> {
    let refs = |path: &Path| command::output(repository::in_repository(path).arg("for-each-ref"));
    let (here, there) = (refs(copy)?, refs(original)?);
    ensure!(!here.is_empty() && here == there, "other refs: {here:.200} instead of {there:.200}");
    let mut fsck = repository::in_repository(copy);
    command::run(fsck.args(["fsck", "--full", "--no-progress"])).context("git fsck")
}

fn remove(path: &PathBuf) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}
