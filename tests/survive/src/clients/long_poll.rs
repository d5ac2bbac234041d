//! Connections whose answers come some seconds after the question, as in a long poll or a
//! WebSocket.

use std::{
    io::{self, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use crate::{
    accounting::{ConnectionRecord, Kind},
    clients::{Worker, stream},
    serve::PORT,
};

/// Runs one connection from start to end.
pub(crate) fn run(worker: &mut Worker) {
    let family = worker.family();
    let Some((mut stream, account)) = stream::open(&worker.site, Kind::LongPoll, family, PORT)
    else {
        worker.site.pause(Duration::from_millis(500));
        return;
    };
    let end = Instant::now() + worker.site.load.age.mul_f64(0.8);
    let mut outcome = Ok(());
    while outcome.is_ok() && Instant::now() < end && !worker.site.stopped() {
        let wait = Duration::from_millis(worker.random.between(300, 2500));
        outcome = poll(&mut stream, &account, wait);
    }
    account.end(outcome.map_err(|error| stream::in_words(&error, worker.site.load.patience)));
}

fn poll(stream: &mut TcpStream, account: &ConnectionRecord, wait: Duration) -> io::Result<()> {
    let wait_ms = wait.as_millis();
    let begun = Instant::now();
    stream.write_all(format!("poll {wait_ms}\n").as_bytes())?;
    // The server owes nothing before the time is up. The monitor can look one slice late.
    let answer = stream::read_line(stream)?;
    account.served_by(answer.split(' ').next().unwrap_or_default());
    if answer.split(' ').nth(1) != Some(wait_ms.to_string().as_str()) {
        return Err(io::Error::other(format!("a wrong answer: {answer:.60}")));
    }
    if begun.elapsed() < wait {
        return Err(io::Error::other("an answer before its time"));
    }
    account.late(begun.elapsed() - wait);
    Ok(())
}
