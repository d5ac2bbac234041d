//! Connections that carry a short message now and then and are silent in between.

use std::{
    io::{self, Read as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use crate::{
    accounting::{ConnectionRecord, Kind},
    clients::{ClientContext, Worker, stream},
    serve::PORT,
};

/// The time between two checks of a silent client.
const SLICE: Duration = Duration::from_millis(200);

/// Runs one connection from start to end.
pub(crate) fn run(worker: &mut Worker) {
    let family = worker.family();
    let load = &worker.site.load;
    let age = load.age.mul_f64(0.5 + worker.random.below(500) as f64 / 1000.0);
    let Some((mut stream, account)) = stream::open(&worker.site, Kind::Idle, family, PORT) else {
        worker.site.pause(Duration::from_millis(500));
        return;
    };
    let end = Instant::now() + age;
    let outcome = talk(&worker.site, &mut stream, &account, end);
    account.end(outcome.map_err(|error| stream::in_words(&error, worker.site.load.patience)));
}

fn talk(
    site: &ClientContext,
    stream: &mut TcpStream,
    account: &ConnectionRecord,
    end: Instant,
) -> io::Result<()> {
    for number in 0_u32.. {
        let answer = stream::ask(stream, account, &format!("echo {number}\n"))?;
        let mut words = answer.split(' ');
        account.served_by(words.next().unwrap_or_default());
        if words.next() != Some(number.to_string().as_str()) {
            return Err(io::Error::other(format!("a wrong answer: {answer:.60}")));
        }
        if site.stopped() || Instant::now() >= end {
            break;
        }
        be_silent(site, stream)?;
    }
    Ok(())
}

/// Stays silent for an interval. Anything that arrives meanwhile ends the connection.
fn be_silent(site: &ClientContext, stream: &mut TcpStream) -> io::Result<()> {
    let until = Instant::now() + site.load.idle_interval;
    stream.set_read_timeout(Some(SLICE))?;
    while Instant::now() < until && !site.stopped() {
        match stream.read(&mut [0]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => return Err(io::Error::other("a byte that nobody asked for")),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    stream.set_read_timeout(Some(site.load.patience))
}
