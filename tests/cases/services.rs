//! The services of a lab without a load balancer: plain routes to one backend.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use glb_lab::{
    Family, GitClone, Lab, Node, Plan, Requests, WebServer, client, command, http, interrupt,
    kernel, repository, vip,
};

#[test]
fn page_and_clone_work_over_plain_routes() -> Result<()> {
    let lab = Lab::up(Plan { client_mbit: Some(80), ..Plan::new("glb-t-services") })?;
    let head = repository::create(&lab.scratch().join("big.git"), 12)?;
    let backend = Node::Backend(3);
    lab.route_vips_to(&[backend])?;
    lab.add_vips(backend)?;
    let _server = WebServer::start(&lab, backend, lab.scratch())?;
    for family in [Family::V4, Family::V6] {
        let to = SocketAddr::new(vip(family), 80);
        let reply = http::get_in(lab.netns(Node::Client)?, client(family, 77), to, "/")?;
        ensure!(reply.to_string() == "200 backend3", "{reply}");

        let copy = lab.scratch().join(format!("copy-{family:?}"));
        let mut clone = repository::isolated(lab.netns(Node::Client)?.command("git"));
        clone.args(["clone", "--quiet", "--bare", &format!("http://{to}/git/big.git")]);
        let started = Instant::now();
        command::run_interruptible(clone.arg(&copy))?;
        let seconds = started.elapsed().as_secs_f64();
        // 12 MB at 80 Mbit/s take 1.26 s.
        ensure!((1.0..8.0).contains(&seconds), "the clone took {seconds:.1} s");
        ensure!(repository::head(&copy)? == head);
        println!("{family:?}: {seconds:.2} s");
    }
    for node in [Node::Client, backend] {
        println!("{node}: {}", kernel::tcp_counter(lab.netns(node)?, "RetransSegs")?);
        ensure!(kernel::tcp_counter(lab.netns(node)?, "InCsumErrors")? == 0);
    }
    Ok(())
}

#[test]
fn repository_content_is_reproducible() -> Result<()> {
    let folder = Lab::up(Plan { backends: 1, ..Plan::new("glb-t-repository") })?;
    let head = repository::create(&folder.scratch().join("a.git"), 2)?;
    ensure!(head == repository::create(&folder.scratch().join("b.git"), 2)?);
    let a = folder.scratch().join("a.git");
    command::run(repository::in_repository(&a).args(["fsck", "--full"]))?;
    let size = command::output(repository::in_repository(&a).args(["count-objects", "-vH"]))?;
    ensure!(size.contains("size-pack: 2.00 MiB"), "{size}");
    Ok(())
}

#[test]
fn clone_progress_is_observed_next_to_requests() -> Result<()> {
    let lab = Lab::up(Plan { client_mbit: Some(52), ..Plan::new("glb-t-watched") })?;
    let head = repository::create(&lab.scratch().join("big.git"), 20)?;
    let backend = Node::Backend(1);
    lab.route_vips_to(&[backend])?;
    lab.add_vips(backend)?;
    let _server = WebServer::start(&lab, backend, lab.scratch())?;
    let begun = Instant::now();
    let requests = Requests::start(&lab, Family::V4, 4, Duration::from_millis(20))?;
    let mut clone = GitClone::start(&lab, Family::V4, "big.git", "copy")?;
    let mut seen = Vec::new();
    let (status, time) = interrupt::wait("the clone", Duration::from_secs(30), || {
        seen.push((clone.percent()?, clone.served_by(&lab)?));
        clone.finished()
    })?;
    ensure!(status.success(), "{:?}", clone.complaints()?);
    ensure!(repository::head(clone.target())? == head);
    let percents = seen.iter().map(|(percent, _)| *percent);
    ensure!(percents.clone().is_sorted() && percents.clone().any(|p| (20..80).contains(&p)));
    let middle = seen.iter().find(|(percent, _)| *percent >= 50);
    ensure!(middle.is_some_and(|(_, by)| by.len() == 1 && by[0].0 == backend), "{middle:?}");
    let (answers, errors) = requests.between(begun, Instant::now());
    ensure!(errors.is_empty(), "{errors:?}");
    let answered = answers.get("backend1").copied().unwrap_or(0);
    ensure!(answered > 10 && answers.len() == 1, "{answers:?}");
    println!("{time:.2?} {answered} requests");
    for node in [Node::Client, backend] {
        println!("{node} sent again {}", kernel::tcp_counter(lab.netns(node)?, "RetransSegs")?);
    }
    Ok(())
}
