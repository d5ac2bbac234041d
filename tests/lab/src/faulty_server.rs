//! A web server that fails on demand.

use std::{
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Result;

use crate::{plan::Node, topology::Lab};

/// The behaviour of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Health {
    /// The server answers.
    Well,
    /// The server accepts connections and sends nothing.
    Hangs,
    /// The server answers too late.
    Slow,
    /// The server answers 503 Service Unavailable.
    Busy,
    /// The server resets connections.
    Resets,
    /// The server does not listen.
    Dead,
    /// The server thread ends.
    Ended,
}

/// The poll interval for connections and for changes of the behaviour.
const LOOK: Duration = Duration::from_millis(2);

/// A web server on port 80 of all addresses of a backend, which answers with the node's name. It
/// ends when the handle is dropped.
#[derive(Debug)]
pub struct FaultyServer {
    health: Arc<AtomicU8>,
}

impl FaultyServer {
    /// Starts the server. A slow server answers after `slowness`.
    ///
    /// # Errors
    /// When port 80 is in use.
    pub fn start(lab: &Lab, node: Node, slowness: Duration) -> Result<Self> {
        let health = Arc::new(AtomicU8::new(Health::Well as u8));
        let (is, netns) = (Arc::clone(&health), lab.netns(node)?.clone());
        let body = format!("{node}\n");
        let page = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let open = move || {
            netns.run(|| {
                let listener = TcpListener::bind("[::]:80")?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            })
        };
        let listener = open()?;
        thread::spawn(move || serve(Some(listener), open, &is, slowness, &page));
        Ok(Self { health })
    }

    /// Changes the behaviour.
    pub fn set(&self, health: Health) {
        self.health.store(health as u8, Ordering::Relaxed);
    }
}

impl Drop for FaultyServer {
    fn drop(&mut self) {
        self.set(Health::Ended);
    }
}

fn serve(
    mut listener: Option<TcpListener>,
    open: impl Fn() -> Result<TcpListener>,
    is: &AtomicU8,
    slowness: Duration,
    page: &str,
) {
    let mut held = Vec::new();
    loop {
        let now = is.load(Ordering::Relaxed);
        if now == Health::Ended as u8 {
            return;
        }
        if now == Health::Dead as u8 {
            listener = None;
            held.clear();
        } else if listener.is_none() {
            listener = open().ok();
        }
        if now == Health::Well as u8 {
            held.clear();
        }
        let accepted = listener.as_ref().and_then(|listener| listener.accept().ok());
        let Some((stream, _)) = accepted else {
            thread::sleep(LOOK);
            continue;
        };
        if now == Health::Hangs as u8 {
            held.push(stream);
        } else if now == Health::Resets as u8 {
            // With this option, closing the connection resets it.
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).ok();
        } else {
            let page = page.to_owned();
            let slowness = if now == Health::Slow as u8 { slowness } else { Duration::ZERO };
            // A client that leaves without an answer is not an error.
            thread::spawn(move || answer(stream, now, slowness, &page).ok());
        }
    }
}

fn answer(mut stream: TcpStream, now: u8, slowness: Duration, page: &str) -> io::Result<()> {
    thread::sleep(slowness);
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    let (mut request, mut part) = (Vec::new(), [0; 2048]);
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read(&mut part)? {
            0 => return Ok(()),
            length => request.extend_from_slice(&part[..length]),
        }
    }
    let busy = "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n";
    stream.write_all(if now == Health::Busy as u8 { busy } else { page }.as_bytes())
}
