//! The server against real clients.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream as Stream,
    path::Path,
    time::Instant,
};

use serde::Deserialize;

use super::{
    super::{Client, ClientError, SocketSettings},
    *,
};

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
enum Ask {
    Echo { text: String },
    Change,
    Count { to: u32 },
    Never,
    Forget,
}

impl Command for Ask {
    fn changes(&self) -> bool {
        matches!(self, Self::Change)
    }
}

fn serve_at(folder: &Path) -> Server {
    let path = folder.join("control.sock");
    let socket = Socket::open(&SocketSettings { path, mode: 0o600, group: None }).unwrap();
    serve(socket, Access::new(None).unwrap(), |call: Call<Ask>| match call.command {
        Ask::Echo { text } => call.answer.done(Ok(text)),
        Ask::Change => call.answer.done(Ok("changed")),
        Ask::Count { to } => drop(tokio::spawn(async move {
            for number in 0..to {
                if !call.answer.item(&number).await {
                    return;
                }
            }
            call.answer.done(Ok(()));
        })),
        Ask::Never => drop(tokio::spawn(async move { call.answer.gone().await })),
        Ask::Forget => {}
    })
    .unwrap()
}

fn client(folder: &Path) -> Client {
    Client::connect(&folder.join("control.sock")).unwrap()
}

fn echo(folder: &Path) -> Result<String, ClientError> {
    client(folder).ask(&Ask::Echo { text: "hello".into() }, Duration::from_secs(10))
}

/// Returns the server's answer to these bytes.
fn raw(folder: &Path, request: &[u8]) -> String {
    let mut stream = Stream::connect(folder.join("control.sock")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // The server closes its side when it has read enough.
    stream.write_all(request).ok();
    let mut text = String::new();
    stream.read_to_string(&mut text).ok();
    text
}

#[test]
fn requests_get_one_many_or_no_answers() {
    let folder = tempfile::tempdir().unwrap();
    let _server = serve_at(folder.path());
    assert_eq!(echo(folder.path()).unwrap(), "hello");
    let patience = Some(Duration::from_secs(10));
    let mut answers = client(folder.path()).follow(&Ask::Count { to: 1000 }, patience).unwrap();
    for number in 0..1000 {
        assert_eq!(answers.next::<u32>().unwrap(), Some(number));
    }
    assert_eq!(answers.next::<u32>().unwrap(), None);
    let error = client(folder.path()).ask::<()>(&Ask::Forget, Duration::from_secs(10)).unwrap_err();
    assert!(error.is_not_running(), "{error}");
}

#[test]
fn malformed_requests_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let _server = serve_at(folder.path());
    for (request, words) in [
        ("hello\n", vec!["malformed", "not JSON"]),
        ("[]\n", vec!["malformed", "not a JSON object"]),
        ("{\"request\":\"echo\"}\n", vec!["malformed", "\\\"version\\\":1"]),
        ("{\"version\":2,\"request\":\"echo\"}\n", vec!["\"version\",", "not 2"]),
        ("{\"version\":1,\"request\":\"nonsense\"}\n", vec!["malformed", "nonsense", "`echo`"]),
        ("{\"version\":1,\"request\":\"echo\"}\n", vec!["malformed", "text"]),
        ("{\"version\":1,\"request\":\"echo\",\"txt\":1}\n", vec!["malformed", "txt"]),
    ] {
        let text = raw(folder.path(), request.as_bytes());
        for word in words {
            assert!(text.contains(word), "{word:?} is missing in: {text}");
        }
    }
    let long = format!("{{\"version\":1,\"request\":\"{}\"}}\n", "x".repeat(MAX_REQUEST));
    let text = raw(folder.path(), long.as_bytes());
    assert!(text.contains("longer than 65536"), "{text}");
    assert_eq!(echo(folder.path()).unwrap(), "hello");
}

#[test]
fn half_closed_clients_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    let _server = serve_at(folder.path());
    let mut stream = Stream::connect(folder.path().join("control.sock")).unwrap();
    stream.write_all(b"{\"version\":1,\"request\":\"count\",\"to\":3}").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text.lines().count(), 4, "{text}");
}

#[test]
fn hanging_clients_do_not_block_others() {
    let folder = tempfile::tempdir().unwrap();
    let _server = serve_at(folder.path());
    let path = folder.path().join("control.sock");
    // A client that sends nothing, one that keeps sending, and one that does not read.
    let mut hanging: Vec<Stream> = Vec::new();
    for number in 0..MAX_OWN_CLIENTS + 5 {
        let mut stream = Stream::connect(&path).unwrap();
        match number % 3 {
            0 => {}
            1 => stream.write_all(b"{\"version\":1,").unwrap(),
            _ => {
                let request = b"{\"version\":1,\"request\":\"count\",\"to\":100000000}\n";
                stream.write_all(request).ok();
            }
        }
        hanging.push(stream);
    }
    let begun = Instant::now();
    let mut busy = 0;
    loop {
        match echo(folder.path()) {
            Ok(text) => break assert_eq!(text, "hello"),
            Err(ClientError::Refused(refusal)) => assert_eq!(refusal.kind, RefusalKind::Busy),
            Err(error) => panic!("{error}"),
        }
        busy += 1;
        assert!(begun.elapsed() < REQUEST_TIMEOUT + WRITE_TIMEOUT + Duration::from_secs(20));
        thread::sleep(Duration::from_millis(50));
    }
    assert!(busy > 0, "the places were never full");
    drop(hanging);
}

#[test]
fn disconnected_clients_release_their_permit() {
    let folder = tempfile::tempdir().unwrap();
    let _server = serve_at(folder.path());
    for _ in 0..4 * MAX_OWN_CLIENTS {
        let begun = Instant::now();
        loop {
            let mut stream = Stream::connect(folder.path().join("control.sock")).unwrap();
            stream.write_all(b"{\"version\":1,\"request\":\"never\"}\n").ok();
            stream.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
            let mut answer = [0; 1];
            if stream.read(&mut answer).is_err() {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(20));
            thread::sleep(Duration::from_millis(20));
        }
    }
    let begun = Instant::now();
    while echo(folder.path()).is_err() {
        assert!(begun.elapsed() < Duration::from_secs(20));
    }
}

#[test]
fn refusals_name_who_may_change() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("control.sock");
    let socket = Socket::open(&SocketSettings { path, mode: 0o600, group: None }).unwrap();
    let access = Access::nobody();
    let _server = serve(socket, access, |call: Call<Ask>| call.answer.done(Ok("done"))).unwrap();
    let patience = Duration::from_secs(10);
    let error = client(folder.path()).ask::<String>(&Ask::Change, patience).unwrap_err();
    assert!(error.to_string().contains("may not change"), "{error}");
    assert_eq!(client(folder.path()).ask::<String>(&Ask::Never, patience).unwrap(), "done");
}

#[test]
fn dropping_the_server_removes_the_socket() {
    let folder = tempfile::tempdir().unwrap();
    let server = serve_at(folder.path());
    let waiting = client(folder.path());
    drop(server);
    let path = folder.path().join("control.sock");
    assert!(!path.exists());
    assert!(Client::connect(&path).unwrap_err().is_not_running());
    assert!(waiting.ask::<()>(&Ask::Never, Duration::from_secs(10)).unwrap_err().is_not_running());
    drop(serve_at(folder.path()));
}

#[test]
fn dropping_the_server_delivers_given_answers() {
    for _ in 0..50 {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let socket = Socket::open(&SocketSettings { path, mode: 0o600, group: None }).unwrap();
        let (calls, waiting) = std::sync::mpsc::channel();
        let handler = move |call: Call<Ask>| calls.send(call).unwrap();
        let server = serve(socket, Access::new(None).unwrap(), handler).unwrap();
        let mut answers = client(folder.path()).follow(&Ask::Never, None).unwrap();
        let call = waiting.recv().unwrap();
        assert!(call.answer.try_item(&1));
        call.answer.done(Ok(()));
        drop(server);
        assert_eq!(answers.next::<u32>().unwrap(), Some(1));
        assert_eq!(answers.next::<u32>().unwrap(), None);
    }
}
