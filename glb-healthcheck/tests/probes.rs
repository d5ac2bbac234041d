//! Probes against real sockets.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use glb_healthcheck::{
    check::{Check, Http, Kind, Pace, Target, Tls},
    probe::{Outcome, Said, Tools, probe},
};
use tokio_rustls::rustls;

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn target(address: IpAddr, kind: Kind) -> Target {
    let pace = Pace { timeout: Duration::from_millis(400), ..Pace::default() };
    Target { address, check: Check { kind, pace } }
}

fn http(port: u16) -> Http {
    Http {
        port,
        tls: None,
        path: "/health?x=1".into(),
        host: None,
        method: "GET".into(),
        status: (200, 299),
        body: None,
    }
}

/// "pass", or why not, and how long it took.
fn ask(target: &Target) -> (String, Duration) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let asked = async { probe(target, &Tools::new([target], None).await.unwrap()).await };
    match runtime.block_on(asked) {
        (Outcome::Pass(said), took) if said == Said::default() => ("pass".into(), took),
        (Outcome::Pass(said), took) => (format!("{said:?}"), took),
        (Outcome::Fail(failure), took) => (format!("{}: {failure}", failure.word()), took),
        (Outcome::Unsure(failure), took) => (format!("unsure: {failure}"), took),
    }
}

/// Answers each connection with `answer`; returns the port and what was asked.
fn server(answer: &'static [u8]) -> (u16, std::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind((LOCAL, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, asked) = std::sync::mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap_or(0);
            sender.send(String::from_utf8_lossy(&request[..length]).into_owned()).ok();
            stream.write_all(answer).ok();
        }
    });
    (port, asked)
}

#[test]
fn tcp_handshake() {
    for address in [LOCAL, IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (result, took) = ask(&target(address, Kind::Tcp { port }));
        assert_eq!(result, "pass");
        assert!(took < Duration::from_millis(100), "{took:?}");
        drop(listener);
        let (result, _) = ask(&target(address, Kind::Tcp { port }));
        assert!(result.starts_with("refused: connect"), "{result}");
    }
}

#[test]
fn a_blackhole_is_a_timeout() {
    // A full accept queue drops SYNs, like a machine that is gone.
    let listener =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::new(LOCAL, 0).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let _first = std::net::TcpStream::connect(address).unwrap();
    let (result, took) = ask(&target(LOCAL, Kind::Tcp { port: address.port() }));
    assert_eq!(result, "timeout: timeout after 400 ms (connect)");
    assert!(took < Duration::from_millis(500), "{took:?}");
}

#[test]
fn the_source_address_is_the_one_given() {
    let listener = TcpListener::bind((LOCAL, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut target = target(LOCAL, Kind::Tcp { port });
    target.check.pace.source = Some("127.0.0.77".parse().unwrap());
    assert_eq!(ask(&target).0, "pass");
    assert_eq!(listener.accept().unwrap().1.ip().to_string(), "127.0.0.77");
    // An address that is not ours says nothing about the target.
    target.check.pace.source = Some("192.0.2.1".parse().unwrap());
    let (result, _) = ask(&target);
    assert!(result.starts_with("unsure: connect"), "{result}");
}

#[test]
fn http_statuses_and_bodies() {
    let (port, asked) = server(b"HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(ask(&target(LOCAL, Kind::Http(http(port)))).0, "pass");
    let asked = asked.recv().unwrap();
    assert!(asked.starts_with("GET /health?x=1 HTTP/1.1\r\n"), "{asked}");
    assert!(asked.contains(&format!("host: 127.0.0.1:{port}\r\n")), "{asked}");
    assert!(asked.contains("connection: close\r\n"), "{asked}");
    assert!(asked.contains("user-agent: glb-healthcheck/"), "{asked}");

    let (port, asked) = server(b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n");
    let (result, _) = ask(&target(LOCAL, Kind::Http(http(port))));
    assert_eq!(result, "status: status 302, wanted 200-299");
    let with = Http { status: (300, 399), host: Some("a.example".into()), ..http(port) };
    assert_eq!(ask(&target(LOCAL, Kind::Http(with))).0, "pass");
    assert!(asked.iter().nth(1).unwrap().contains("host: a.example\r\n"));

    let (port, _asked) = server(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nall good\n");
    for (body, wanted) in
        [("good", "pass".to_owned()), ("bad", "body: the body does not contain \"bad\"".to_owned())]
    {
        let with = Http { body: Some(body.into()), ..http(port) };
        assert_eq!(ask(&target(LOCAL, Kind::Http(with))).0, wanted);
    }
}

#[test]
fn http_that_is_none() {
    for (answer, word) in [
        (&b"SSH-2.0-OpenSSH\r\n"[..], "http: HTTP"),
        (b"", "http: HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", "io: answer: unexpected end"),
    ] {
        let (port, _asked) = server(answer);
        let with = Http { body: Some("whole".into()), ..http(port) };
        let (result, _) = ask(&target(LOCAL, Kind::Http(with)));
        assert!(result.starts_with(word), "{answer:?}: {result}");
    }
    // Reset instead of an answer.
    let listener = TcpListener::bind((LOCAL, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    });
    let (result, _) = ask(&target(LOCAL, Kind::Http(http(port))));
    assert!(result.starts_with("reset: "), "{result}");
}

#[test]
fn http_that_hangs() {
    let listener = TcpListener::bind((LOCAL, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let begun = Instant::now();
    let (result, _) = ask(&target(LOCAL, Kind::Http(http(port))));
    assert_eq!(result, "timeout: timeout after 400 ms (answer)");
    assert!(begun.elapsed() < Duration::from_millis(600));
}

/// Whoever is fed without end must look up at times: one thread asks all targets.
#[test]
fn http_without_end() {
    let interim = b"HTTP/1.1 100 Continue\r\n\r\n".repeat(1000);
    let chunks = b"1\r\nx\r\n".repeat(4000);
    for (head, more) in [
        (&b""[..], &interim),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", &chunks),
        (b"HTTP/1.1 200 OK\r\n", &b"x: y\r\n".repeat(4000)),
    ] {
        let listener = TcpListener::bind((LOCAL, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (head, more) = (head.to_vec(), more.clone());
        let sender = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut sent = head.len();
            let mut done = stream.write_all(&head);
            while done.is_ok() {
                done = stream.write_all(&more);
                sent += more.len();
            }
            sent
        });
        let with = Http { body: Some("whole".into()), ..http(port) };
        let (result, _) = ask(&target(LOCAL, Kind::Http(with)));
        assert!(!result.starts_with("pass") && !result.starts_with("unsure"), "{result}");
        // Beside what the kernel holds.
        assert!(sender.join().unwrap() < 32 << 20, "{result}");
    }
}

/// A TLS server for `name`; returns its port and its own certificate as PEM.
fn tls_server(name: &str) -> (u16, String) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind((LOCAL, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let session = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = rustls::StreamOwned::new(session, stream.unwrap());
            let mut request = [0; 4096];
            if stream.read(&mut request).is_ok() {
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                stream.write_all(answer).ok();
                stream.flush().ok();
            }
        }
    });
    (port, made.cert.pem())
}

#[test]
fn https() {
    let (port, pem) = tls_server("backend.example");
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, pem).unwrap();
    let with = |name: Option<&str>, verify, ca: Option<&std::path::Path>| {
        let tls =
            Tls { name: name.map(str::to_owned), verify, ca: ca.map(std::path::Path::to_owned) };
        ask(&target(LOCAL, Kind::Http(Http { tls: Some(tls), ..http(port) }))).0
    };
    assert_eq!(with(Some("backend.example"), true, Some(&ca)), "pass");
    assert_eq!(with(None, false, None), "pass");
    let wrong_name = with(Some("other.example"), true, Some(&ca));
    assert!(wrong_name.starts_with("tls: TLS: invalid peer certificate"), "{wrong_name}");
    let other = tls_server("backend.example").1;
    std::fs::write(&ca, other).unwrap();
    let wrong_ca = with(Some("backend.example"), true, Some(&ca));
    assert!(wrong_ca.starts_with("tls: TLS: invalid peer certificate"), "{wrong_ca}");

    let (port, _asked) = server(b"HTTP/1.1 200 OK\r\n\r\n");
    let tls = Tls { name: None, verify: false, ca: None };
    let plain = target(LOCAL, Kind::Http(Http { tls: Some(tls), ..http(port) }));
    let (result, _) = ask(&plain);
    assert!(result.starts_with("tls: TLS"), "{result}");
    let missing = Tls { name: None, verify: true, ca: Some("/nonexistent.pem".into()) };
    let missing = target(LOCAL, Kind::Http(Http { tls: Some(missing), ..http(port) }));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let error = runtime.block_on(Tools::new([&missing], None)).unwrap_err().to_string();
    assert!(error.contains("/nonexistent.pem"), "{error}");
}

#[test]
fn agents() {
    let agent = |answer: &'static [u8]| {
        let (port, asked) = server(answer);
        let (result, _) = ask(&target(LOCAL, Kind::Agent { port, send: Some("who\n".into()) }));
        assert_eq!(asked.recv().unwrap(), "who\n");
        result
    };
    assert_eq!(agent(b"up\n"), "pass");
    assert_eq!(agent(b"drain 50%\n"), "Said { drain: Some(true), weight: Some(50) }");
    assert_eq!(agent(b"ready"), "Said { drain: Some(false), weight: None }");
    assert_eq!(agent(b"down # disk\n"), "agent: agent: down: disk");
}

#[test]
fn commands() {
    let run = |script: &str| {
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        ask(&target(LOCAL, Kind::Exec { command })).0
    };
    assert_eq!(run("test $GLB_BACKEND = 127.0.0.1"), "pass");
    assert_eq!(run("exit 3"), "command: the command ended with exit status: 3");
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("mark");
    // Its children end with it.
    let slow = run(&format!("(sleep 0.8; touch {}) & sleep 9", mark.display()));
    assert_eq!(slow, "timeout: timeout after 400 ms (command)");
    thread::sleep(Duration::from_millis(700));
    assert!(!mark.exists());
    let missing = Kind::Exec { command: vec!["/nonexistent".into()] };
    assert!(ask(&target(LOCAL, missing)).0.starts_with("io: command"));
}
