//! Many short requests, each over a new connection. They show the error rate and the latency tail.

use std::{
    io::{self, Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use crate::{
    accounting::{ConnectionRecord, Kind},
    clients::{Worker, stream},
};

/// Sends one request to the web server.
pub(crate) fn run(worker: &mut Worker) {
    let family = worker.family();
    if let Some((mut stream, account)) = stream::open(&worker.site, Kind::Request, family, 80) {
        let outcome = request(&mut stream, &account);
        account.end(outcome.map_err(|error| stream::in_words(&error, worker.site.load.patience)));
    }
    worker.site.pause(worker.site.load.request_pause);
}

fn request(stream: &mut TcpStream, account: &ConnectionRecord) -> io::Result<()> {
    stream.write_all(b"GET / HTTP/1.0\r\nHost: lab\r\nConnection: close\r\n\r\n")?;
    account.expects(true);
    let mut answer = String::new();
    stream.take(64 << 10).read_to_string(&mut answer)?;
    account.expects(false);
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let name = body.trim();
    if head.split(' ').nth(1) != Some("200") || !name.starts_with("backend") {
        return Err(io::Error::other(format!("a wrong answer: {head:.40}")));
    }
    account.served_by(name);
    Ok(())
}

/// Computes the pause between requests from the number of clients and the total rate per second.
pub(crate) fn pause_for(clients: u16, per_second: u32) -> Duration {
    Duration::from_secs_f64(f64::from(clients) / f64::from(per_second.max(1)))
}
