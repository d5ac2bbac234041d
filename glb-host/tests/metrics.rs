//! The metrics server under clients that hold connections open.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::{
    error::Error,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use glb_host::metrics::{self, MetricsSource, gauge};
use prometheus_client::registry::Registry;

struct One;

impl MetricsSource for One {
    fn register(&self, registry: &mut Registry) -> Result<(), Box<dyn Error>> {
        registry.register("one", "One", gauge(1));
        Ok(())
    }

    fn prefix(&self) -> &'static str {
        "test"
    }
}

/// The number of clients that hold connections open.
const IDLE_CLIENTS: u8 = 160;

/// Connects, sends `words`, and connects again whenever the server closes the connection.
fn hang(address: SocketAddr, words: &[u8], enough: &AtomicBool, came: &AtomicU64) {
    while !enough.load(Ordering::Relaxed) {
        let Ok(mut stream) = TcpStream::connect_timeout(&address, Duration::from_secs(1)) else {
            continue;
        };
        came.fetch_add(1, Ordering::Relaxed);
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        stream.write_all(words).ok();
        let mut byte = [0];
        while !enough.load(Ordering::Relaxed) {
            match stream.read(&mut byte) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                // Reads an answer as slowly as possible.
                Ok(1) => thread::sleep(Duration::from_millis(100)),
                _ => break,
            }
        }
    }
}

/// Scrapes as Prometheus does, with a new connection each time and a timeout of ten seconds.
fn scrape(address: SocketAddr) -> Result<Duration, String> {
    let begun = Instant::now();
    let patience = Duration::from_secs(10);
    let words = |error: std::io::Error| format!("{error} after {:.1?}", begun.elapsed());
    let mut stream = TcpStream::connect_timeout(&address, patience).map_err(words)?;
    stream.set_read_timeout(Some(patience)).map_err(words)?;
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .map_err(words)?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(words)?;
    if text.contains("test_one 1") { Ok(begun.elapsed()) } else { Err(text) }
}

#[test]
fn scrapes_succeed_while_idle_clients_hold_connections() {
    let listener = metrics::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    metrics::serve(listener, One).unwrap();
    let (enough, came) = (AtomicBool::new(false), AtomicU64::new(0));
    let slowest = thread::scope(|scope| {
        for number in 0..IDLE_CLIENTS {
            let words: &[u8] = match number % 3 {
                0 => b"",
                1 => b"GET /met",
                _ => b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n",
            };
            let (enough, came) = (&enough, &came);
            scope.spawn(move || hang(address, words, enough, came));
        }
        while came.load(Ordering::Relaxed) < u64::from(IDLE_CLIENTS) {
            thread::sleep(Duration::from_millis(10));
        }
        // From the same address as the other clients, which is the hardest case.
        let slowest: Result<Vec<Duration>, String> = (0..10).map(|_| scrape(address)).collect();
        enough.store(true, Ordering::Relaxed);
        slowest
    });
    println!("{} connections; scrapes took {slowest:.2?}", came.load(Ordering::Relaxed));
    slowest.unwrap();
}

/// Sends a request and returns the response.
fn request(address: SocketAddr, method: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write!(stream, "{method} /metrics HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn other_methods_than_get_and_head_are_refused() {
    let listener = metrics::bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    metrics::serve(listener, One).unwrap();
    assert!(request(address, "GET").starts_with("HTTP/1.1 200 "));
    let head = request(address, "HEAD");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    for method in ["DELETE", "POST", "PUT", "OPTIONS"] {
        let text = request(address, method);
        assert!(text.starts_with("HTTP/1.1 405 "), "{method}: {text}");
        assert!(text.to_lowercase().contains("allow: get, head"), "{method}: {text}");
    }
}
