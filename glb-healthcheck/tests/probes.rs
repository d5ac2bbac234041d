//! Each kind of probe against real sockets.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use glb_healthcheck::{
    check::{Check, CheckKind, HttpCheck, Settings, Target, TlsSettings},
    probe::{AgentReply, Outcome, ProbeContext, probe},
};
use tokio_rustls::rustls;

const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn target(address: IpAddr, kind: CheckKind) -> Target {
    let settings = Settings { timeout: Duration::from_millis(400), ..Settings::default() };
    Target { address, check: Check { kind, settings } }
}

fn http(port: u16) -> HttpCheck {
    HttpCheck {
        port,
        tls: None,
        path: "/health?x=1".into(),
        host: None,
        method: "GET".into(),
        status: (200, 299),
        body: None,
    }
}

/// Probes a target once; returns "pass" or the failure, and the duration.
fn probe_once(target: &Target) -> (String, Duration) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let requests =
        async { probe(target, &ProbeContext::new([target], None, None).await.unwrap()).await };
    match runtime.block_on(requests) {
        (Outcome::Pass(said), took) if said == AgentReply::default() => ("pass".into(), took),
        (Outcome::Pass(said), took) => (format!("{said:?}"), took),
        (Outcome::Fail(failure), took) => (format!("{}: {failure}", failure.label()), took),
        (Outcome::Inconclusive(failure), took) => (format!("inconclusive: {failure}"), took),
    }
}

/// Replies to each connection with `reply`; returns the port and the received requests.
fn serve(answer: &'static [u8]) -> (u16, std::sync::mpsc::Receiver<String>) {
    let listener = TcpListener::bind((LOCAL, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, requests) = std::sync::mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let length = stream.read(&mut request).unwrap_or(0);
            sender.send(String::from_utf8_lossy(&request[..length]).into_owned()).ok();
            stream.write_all(answer).ok();
        }
    });
    (port, requests)
}

#[test]
fn a_completed_handshake_passes_and_a_refused_one_fails() {
    for address in [LOCAL, IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let listener = TcpListener::bind((address, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (result, took) = probe_once(&target(address, CheckKind::Tcp { port }));
        assert_eq!(result, "pass");
        assert!(took < Duration::from_millis(100), "{took:?}");
        drop(listener);
        let (result, _) = probe_once(&target(address, CheckKind::Tcp { port }));
        assert!(result.starts_with("refused: connect"), "{result}");
    }
}

#[test]
fn an_unreachable_server_is_a_timeout() {
    // A full accept queue drops SYNs, like an unreachable machine.
    let listener =
        socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    listener.bind(&SocketAddr::new(LOCAL, 0).into()).unwrap();
    listener.listen(0).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let _first = std::net::TcpStream::connect(address).unwrap();
    let (result, took) = probe_once(&target(LOCAL, CheckKind::Tcp { port: address.port() }));
    assert_eq!(result, "timeout: timeout after 400 ms (connect)");
    assert!(took < Duration::from_millis(500), "{took:?}");
}

#[test]
fn probes_use_the_configured_source_address() {
    let listener = TcpListener::bind((LOCAL, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut target = target(LOCAL, CheckKind::Tcp { port });
    target.check.settings.source = Some("127.0.0.77".parse().unwrap());
    assert_eq!(probe_once(&target).0, "pass");
    assert_eq!(listener.accept().unwrap().1.ip().to_string(), "127.0.0.77");
    // An address that this machine lacks makes the probe inconclusive.
    target.check.settings.source = Some("192.0.2.1".parse().unwrap());
    let (result, _) = probe_once(&target);
    assert!(result.starts_with("inconclusive: connect"), "{result}");
}

#[test]
fn http_status_and_body_must_match() {
    let (port, requests) = serve(b"HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(probe_once(&target(LOCAL, CheckKind::Http(http(port)))).0, "pass");
    let requests = requests.recv().unwrap();
    assert!(requests.starts_with("GET /health?x=1 HTTP/1.1\r\n"), "{requests}");
    assert!(requests.contains(&format!("host: 127.0.0.1:{port}\r\n")), "{requests}");
    assert!(requests.contains("connection: close\r\n"), "{requests}");
    assert!(requests.contains("user-agent: glb-healthcheck/"), "{requests}");

    let (port, requests) = serve(b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n");
    let (result, _) = probe_once(&target(LOCAL, CheckKind::Http(http(port))));
    assert_eq!(result, "status: status 302, expected 200-299");
    let with = HttpCheck { status: (300, 399), host: Some("a.example".into()), ..http(port) };
    assert_eq!(probe_once(&target(LOCAL, CheckKind::Http(with))).0, "pass");
    assert!(requests.iter().nth(1).unwrap().contains("host: a.example\r\n"));

    let (port, _asked) = serve(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nall good\n");
    for (body, wanted) in
        [("good", "pass".to_owned()), ("bad", "body: the body does not contain \"bad\"".to_owned())]
    {
        let with = HttpCheck { body: Some(body.into()), ..http(port) };
        assert_eq!(probe_once(&target(LOCAL, CheckKind::Http(with))).0, wanted);
    }
}

#[test]
fn a_non_http_reply_fails_the_check() {
    for (answer, word) in [
        (&b"SSH-2.0-OpenSSH\r\n"[..], "http: HTTP"),
        (b"", "http: HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", "io: answer: unexpected end"),
    ] {
        let (port, _asked) = serve(answer);
        let with = HttpCheck { body: Some("whole".into()), ..http(port) };
        let (result, _) = probe_once(&target(LOCAL, CheckKind::Http(with)));
        assert!(result.starts_with(word), "{answer:?}: {result}");
    }
    // A reset instead of a reply.
    let listener = TcpListener::bind((LOCAL, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
    });
    let (result, _) = probe_once(&target(LOCAL, CheckKind::Http(http(port))));
    assert!(result.starts_with("reset: "), "{result}");
}

#[test]
fn a_hanging_http_server_is_a_timeout() {
    let listener = TcpListener::bind((LOCAL, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let begun = Instant::now();
    let (result, _) = probe_once(&target(LOCAL, CheckKind::Http(http(port))));
    assert_eq!(result, "timeout: timeout after 400 ms (answer)");
    assert!(begun.elapsed() < Duration::from_millis(600));
}

/// The probe must end although data never does: one thread runs all probes.
#[test]
fn an_endless_http_response_fails_the_check() {
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
        let with = HttpCheck { body: Some("whole".into()), ..http(port) };
        let (result, _) = probe_once(&target(LOCAL, CheckKind::Http(with)));
        assert!(!result.starts_with("pass") && !result.starts_with("inconclusive"), "{result}");
        // The limit includes the kernel's buffers.
        assert!(sender.join().unwrap() < 32 << 20, "{result}");
    }
}

/// Starts a TLS serve for `name`; returns its port and its self-signed certificate as PEM.
fn tls_serverr(name: &str) -> (u16, String) {
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
fn https_verifies_the_certificate_unless_told_not_to() {
    let (port, pem) = tls_serverr("backend.example");
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, pem).unwrap();
    let with = |name: Option<&str>, verify, ca: Option<&std::path::Path>| {
        let tls = TlsSettings {
            name: name.map(str::to_owned),
            verify,
            ca: ca.map(std::path::Path::to_owned),
        };
        probe_once(&target(LOCAL, CheckKind::Http(HttpCheck { tls: Some(tls), ..http(port) }))).0
    };
    assert_eq!(with(Some("backend.example"), true, Some(&ca)), "pass");
    assert_eq!(with(None, false, None), "pass");
    let wrong_name = with(Some("other.example"), true, Some(&ca));
    assert!(wrong_name.starts_with("tls: TLS: invalid peer certificate"), "{wrong_name}");
    let other = tls_serverr("backend.example").1;
    std::fs::write(&ca, other).unwrap();
    let wrong_ca = with(Some("backend.example"), true, Some(&ca));
    assert!(wrong_ca.starts_with("tls: TLS: invalid peer certificate"), "{wrong_ca}");

    let (port, _asked) = serve(b"HTTP/1.1 200 OK\r\n\r\n");
    let tls = TlsSettings { name: None, verify: false, ca: None };
    let plain = target(LOCAL, CheckKind::Http(HttpCheck { tls: Some(tls), ..http(port) }));
    let (result, _) = probe_once(&plain);
    assert!(result.starts_with("tls: TLS"), "{result}");
    let missing = TlsSettings { name: None, verify: true, ca: Some("/nonexistent.pem".into()) };
    let missing = target(LOCAL, CheckKind::Http(HttpCheck { tls: Some(missing), ..http(port) }));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let error =
        runtime.block_on(ProbeContext::new([&missing], None, None)).unwrap_err().to_string();
    assert!(error.contains("/nonexistent.pem"), "{error}");
}

#[test]
fn agent_replies_are_understood() {
    let agent = |answer: &'static [u8]| {
        let (port, requests) = serve(answer);
        let (result, _) =
            probe_once(&target(LOCAL, CheckKind::Agent { port, send: Some("who\n".into()) }));
        assert_eq!(requests.recv().unwrap(), "who\n");
        result
    };
    assert_eq!(agent(b"up\n"), "pass");
    assert_eq!(agent(b"drain 50%\n"), "AgentReply { drain: Some(true), weight: Some(50) }");
    assert_eq!(agent(b"ready"), "AgentReply { drain: Some(false), weight: None }");
    assert_eq!(agent(b"down # disk\n"), "agent: agent: down: disk");
}

#[test]
fn exec_checks_run_a_command_with_a_time_limit() {
    let run = |script: &str| {
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        probe_once(&target(LOCAL, CheckKind::Exec { command })).0
    };
    assert_eq!(run("test $GLB_BACKEND = 127.0.0.1"), "pass");
    assert_eq!(run("exit 3"), "command: the command ended with exit status: 3");
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("mark");
    // Child processes of the command are killed with it.
    let slow = run(&format!("(sleep 0.8; touch {}) & sleep 9", mark.display()));
    assert_eq!(slow, "timeout: timeout after 400 ms (command)");
    thread::sleep(Duration::from_millis(700));
    assert!(!mark.exists());
    let missing = CheckKind::Exec { command: vec!["/nonexistent".into()] };
    assert!(probe_once(&target(LOCAL, missing)).0.starts_with("io: command"));
}
