//! The server of idle connections and long polls on every backend, with a health check.
//!
//! The protocol is line based: `echo N` is answered at once with `NAME N`, and `poll MS` after MS
//! milliseconds with `NAME MS`. `GET /health` returns 200 while the health file exists.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result};

/// The server's port.
pub(crate) const PORT: u16 = 7000;

/// Serves until the process is killed.
///
/// # Errors
/// When the port is in use.
pub(crate) fn run(name: &str, health: &Path) -> Result<()> {
    let address = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), PORT);
    let listener = TcpListener::bind(address).with_context(|| format!("port {PORT}"))?;
    println!("ready");
    let server = Arc::new(Server { name: name.to_owned(), health: health.to_owned() });
    for stream in listener.incoming() {
        let server = Arc::clone(&server);
        match stream {
            // A client that closes its connection is normal here.
            Ok(stream) => drop(thread::spawn(move || server.talk(stream).ok())),
            Err(error) => eprintln!("accept: {error}"),
        }
    }
    Ok(())
}

struct Server {
    name: String,
    health: PathBuf,
}

impl Server {
    fn talk(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        for line in BufReader::new(stream.try_clone()?).lines() {
            let line = line?;
            let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
            match word {
                "echo" => writeln_at_once(&mut stream, &format!("{} {rest}", self.name))?,
                "poll" => {
                    let wait = rest.parse().map_err(io::Error::other)?;
                    thread::sleep(Duration::from_millis(wait));
                    writeln_at_once(&mut stream, &format!("{} {rest}", self.name))?;
                }
                "GET" => {
                    let status =
                        if self.health.exists() { "200 OK" } else { "503 Service Unavailable" };
                    let answer = format!("HTTP/1.0 {status}\r\nContent-Length: 0\r\n\r\n");
                    return stream.write_all(answer.as_bytes());
                }
                _ => return Err(io::Error::other(format!("unknown command {line:?}"))),
            }
        }
        Ok(())
    }
}

fn writeln_at_once(stream: &mut TcpStream, text: &str) -> io::Result<()> {
    stream.write_all(format!("{text}\n").as_bytes())
}
