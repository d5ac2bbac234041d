//! The daemon's side.

use std::{io, sync::Arc, thread, time::Duration};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream, unix::OwnedReadHalf},
    sync::{Semaphore, mpsc, oneshot},
    time::{sleep, timeout},
};

use super::{
    Kind, MAX_REQUEST, Message, Refusal, Socket, VERSION,
    access::{self, Access, Peer},
};

/// How long a client may take to ask.
const ASK_WITHIN: Duration = Duration::from_secs(5);

/// How long a client may take to read one line of an answer.
const READ_WITHIN: Duration = Duration::from_secs(10);

/// How many clients of root and of the daemon's own user are served at once.
const OWN_AT_ONCE: usize = 32;

/// How many other clients are served at once.
const OTHERS_AT_ONCE: usize = 32;

/// How many items may wait for a client to read them.
const ITEMS_WAITING: usize = 256;

/// How often it is asked whether a client that will send no more is still there.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// What a daemon can be asked for: `{"request":"name", …}` by serde's rules.
pub trait Command: DeserializeOwned + Send + 'static {
    /// Whether it changes anything, so that not everybody may ask for it.
    fn changes(&self) -> bool;
}

/// A request that has been granted, and who waits for the answer.
#[derive(Debug)]
pub struct Call<C> {
    /// What is asked for.
    pub command: C,
    /// Who asks.
    pub peer: Peer,
    /// Where the answer goes. If it is dropped, the client is told that the daemon has ended.
    pub answer: Answer,
}

/// The way back to a client. Nothing here waits for it except [`Answer::item`].
#[derive(Debug)]
pub struct Answer {
    items: mpsc::Sender<Value>,
    last: oneshot::Sender<Result<Value, Refusal>>,
}

impl Answer {
    /// The answer, which ends the connection.
    pub fn done(self, result: Result<impl Serialize, Refusal>) {
        let result = result.and_then(|value| to_json(&value));
        // A client that has gone away needs none.
        drop(self.last.send(result));
    }

    /// One of many answers; waits until there is room. Says whether the client is still there.
    pub async fn item(&self, value: &impl Serialize) -> bool {
        match to_json(value) {
            Ok(value) => self.items.send(value).await.is_ok(),
            Err(_) => false,
        }
    }

    /// One of many answers, if there is room for it. Says whether there was.
    pub fn try_item(&self, value: &impl Serialize) -> bool {
        to_json(value).is_ok_and(|value| self.items.try_send(value).is_ok())
    }

    /// Waits until the client has gone away.
    pub async fn gone(&self) {
        self.items.closed().await;
    }

    /// Whether the client has gone away.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.items.is_closed()
    }
}

fn to_json(value: &impl Serialize) -> Result<Value, Refusal> {
    serde_json::to_value(value)
        .map_err(|error| Refusal::failed(format_args!("the answer cannot be written: {error}")))
}

/// A control channel in service. When it is dropped, nobody is served any more and the socket goes.
#[derive(Debug)]
pub struct Server {
    _end: oneshot::Sender<()>,
    _socket: Socket,
}

/// Serves the control channel in a thread of its own. `handler` is called in that thread, within
/// its runtime: it must not block, and hands on what takes time.
///
/// # Errors
/// When the thread cannot be started.
pub fn serve<C: Command>(
    socket: Socket,
    access: Access,
    handler: impl Fn(Call<C>) + Send + Sync + 'static,
) -> io::Result<Server> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _inside = runtime.enter();
        UnixListener::from_std(socket.listener.try_clone()?)?
    };
    let (end, ended) = oneshot::channel::<()>();
    let shared = Arc::new(Shared {
        access,
        handler: Box::new(handler),
        own: Semaphore::new(OWN_AT_ONCE),
        others: Semaphore::new(OTHERS_AT_ONCE),
    });
    let work = async move {
        tokio::select! {
            () = accept(&listener, &shared) => {}
            _ = ended => {}
        }
    };
    thread::Builder::new().name("control".into()).spawn(move || runtime.block_on(work))?;
    Ok(Server { _end: end, _socket: socket })
}

struct Shared<C> {
    access: Access,
    handler: Box<dyn Fn(Call<C>) + Send + Sync>,
    own: Semaphore,
    others: Semaphore,
}

async fn accept<C: Command>(listener: &UnixListener, shared: &Arc<Shared<C>>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, mostly: a pause lets some go.
                tracing::warn!(%error, "a client of the control channel was not accepted");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let peer = match access::peer(&stream) {
            Ok(peer) => peer,
            Err(error) => {
                tracing::warn!(%error, "the kernel does not say who asks on the control channel");
                continue;
            }
        };
        let is_own = shared.access.is_own(&peer);
        let has_room = |shared: &Shared<C>| {
            let room = if is_own { &shared.own } else { &shared.others };
            room.try_acquire().map(|permit| permit.forget()).is_ok()
        };
        if !has_room(shared) {
            let text = "too many ask at once; ask again in a moment";
            // It fits into the socket's buffer, or the client has to do without.
            drop(stream.try_write(&Message::Error(Refusal::new(Kind::Busy, text)).line()));
            continue;
        }
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            /// Gives the place back, also when the task panics.
            struct Place<'s>(&'s Semaphore);
            impl Drop for Place<'_> {
                fn drop(&mut self) {
                    self.0.add_permits(1);
                }
            }
            let _place = Place(if is_own { &shared.own } else { &shared.others });
            if let Err(error) = converse(stream, peer, &shared).await {
                tracing::debug!(%error, "a client of the control channel went away");
            }
        });
    }
}

async fn converse<C: Command>(
    stream: UnixStream,
    peer: Peer,
    shared: &Shared<C>,
) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader).take(MAX_REQUEST as u64 + 1);
    let mut request = Vec::new();
    let asked = timeout(ASK_WITHIN, reader.read_until(b'\n', &mut request)).await;
    let asked = asked.map_err(|_| io::Error::from(io::ErrorKind::TimedOut)).and_then(|read| read);
    if let Err(error) = asked {
        let text = format!("no request within {} s", ASK_WITHIN.as_secs());
        let line = Message::Error(Refusal::new(Kind::Malformed, text)).line();
        drop(writer.try_write(&line));
        return Err(error);
    }
    if request.is_empty() {
        return Ok(());
    }
    let command = parse::<C>(&request).and_then(|command| {
        if !command.changes() || shared.access.may_change(&peer) {
            return Ok(command);
        }
        let who = shared.access.in_words();
        let text = format!(
            "user {} may not ask this daemon for a change; {who} may.\n  \
             `control.operators` in its configuration names a group whose members may too.",
            peer.uid
        );
        tracing::warn!(uid = peer.uid, pid = peer.pid, "a request for a change was not permitted");
        Err(Refusal::new(Kind::NotPermitted, text))
    });
    let last = match command {
        Err(refusal) => Err(refusal),
        Ok(command) => {
            let (items, mut waiting) = mpsc::channel(ITEMS_WAITING);
            let (last, mut ended) = oneshot::channel();
            let answer = Answer { items, last };
            (shared.handler)(Call { command, peer, answer });
            let mut reader = reader.into_inner().into_inner();
            loop {
                tokio::select! {
                    biased;
                    Some(item) = waiting.recv() => write(&mut writer, Message::Item(item)).await?,
                    last = &mut ended => {
                        while let Ok(item) = waiting.try_recv() {
                            write(&mut writer, Message::Item(item)).await?;
                        }
                        break last.unwrap_or_else(|_dropped| {
                            let text = "the daemon ended before it answered";
                            Err(Refusal::new(Kind::Ended, text))
                        });
                    }
                    () = hung_up(&mut reader) => return Ok(()),
                }
            }
        }
    };
    write(&mut writer, last.map_or_else(Message::Error, Message::Done)).await
}

fn parse<C: Command>(request: &[u8]) -> Result<C, Refusal> {
    let malformed = |text: String| Refusal::new(Kind::Malformed, text);
    if request.len() > MAX_REQUEST {
        return Err(malformed(format!("the request is longer than {MAX_REQUEST} bytes")));
    }
    let value: Value = serde_json::from_slice(request)
        .map_err(|error| malformed(format!("the request is not JSON: {error}")))?;
    let Value::Object(mut request) = value else {
        return Err(malformed("the request is not a JSON object".into()));
    };
    match request.remove("version").map(|version| version.as_u64()) {
        Some(Some(version)) if version == u64::from(VERSION) => {}
        Some(Some(version)) => {
            let text = format!(
                "this daemon speaks version {VERSION} of the control protocol, not {version}: use \
                 the command of the daemon's own release"
            );
            return Err(Refusal::new(Kind::Version, text));
        }
        _ => return Err(malformed(format!("the request lacks `\"version\":{VERSION}`"))),
    }
    C::deserialize(Value::Object(request))
        .map_err(|error| malformed(format!("the request: {error}")))
}

async fn write(writer: &mut tokio::net::unix::OwnedWriteHalf, message: Message) -> io::Result<()> {
    timeout(READ_WITHIN, writer.write_all(&message.line()))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Waits until the client has closed its socket. One that has only said that it will ask no more
/// still wants its answer. What it sends after its request is thrown away.
async fn hung_up(reader: &mut OwnedReadHalf) {
    let mut rest = [0; 1024];
    loop {
        match reader.read(&mut rest).await {
            Ok(0) => break,
            Ok(_) => {}
            Err(_) => return,
        }
    }
    while !is_closed(reader) {
        sleep(LOOK_AGAIN).await;
    }
}

fn is_closed(reader: &OwnedReadHalf) -> bool {
    use std::os::fd::AsRawFd as _;
    let stream: &UnixStream = reader.as_ref();
    let mut asked = libc::pollfd { fd: stream.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one descriptor, described by a struct that outlives the call.
    unsafe { libc::poll(&mut asked, 1, 0) > 0 && asked.revents & libc::POLLHUP != 0 }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        os::unix::net::UnixStream as Stream,
        path::Path,
        time::Instant,
    };

    use serde::Deserialize;

    use super::{
        super::{Client, ClientError, Place},
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
        let socket = Socket::open(&Place { path, mode: 0o600, group: None }).unwrap();
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

    /// What the server says to these bytes.
    fn raw(folder: &Path, request: &[u8]) -> String {
        let mut stream = Stream::connect(folder.join("control.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // A server that has heard enough closes its side.
        stream.write_all(request).ok();
        let mut text = String::new();
        stream.read_to_string(&mut text).ok();
        text
    }

    #[test]
    fn one_answer_many_answers_and_none() {
        let folder = tempfile::tempdir().unwrap();
        let _server = serve_at(folder.path());
        assert_eq!(echo(folder.path()).unwrap(), "hello");
        let patience = Some(Duration::from_secs(10));
        let mut answers = client(folder.path()).follow(&Ask::Count { to: 1000 }, patience).unwrap();
        for number in 0..1000 {
            assert_eq!(answers.next::<u32>().unwrap(), Some(number));
        }
        assert_eq!(answers.next::<u32>().unwrap(), None);
        let error =
            client(folder.path()).ask::<()>(&Ask::Forget, Duration::from_secs(10)).unwrap_err();
        assert!(error.is_not_running(), "{error}");
    }

    #[test]
    fn what_is_no_request_is_told_so() {
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
    fn a_client_that_only_closes_its_sending_side_is_answered() {
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
    fn hanging_clients_keep_nobody_out_for_long() {
        let folder = tempfile::tempdir().unwrap();
        let _server = serve_at(folder.path());
        let path = folder.path().join("control.sock");
        // Asking nothing, asking for ever, asking and not reading.
        let mut hanging: Vec<Stream> = Vec::new();
        for number in 0..OWN_AT_ONCE + 5 {
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
                Err(ClientError::Refused(refusal)) => assert_eq!(refusal.kind, Kind::Busy),
                Err(error) => panic!("{error}"),
            }
            busy += 1;
            assert!(begun.elapsed() < ASK_WITHIN + READ_WITHIN + Duration::from_secs(20));
            thread::sleep(Duration::from_millis(50));
        }
        assert!(busy > 0, "the places were never full");
        drop(hanging);
    }

    #[test]
    fn a_client_that_goes_away_gives_its_place_back() {
        let folder = tempfile::tempdir().unwrap();
        let _server = serve_at(folder.path());
        for _ in 0..4 * OWN_AT_ONCE {
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
    fn who_may_not_change_is_told_who_may() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let socket = Socket::open(&Place { path, mode: 0o600, group: None }).unwrap();
        let access = Access::nobody();
        let _server =
            serve(socket, access, |call: Call<Ask>| call.answer.done(Ok("done"))).unwrap();
        let patience = Duration::from_secs(10);
        let error = client(folder.path()).ask::<String>(&Ask::Change, patience).unwrap_err();
        assert!(error.to_string().contains("may not ask"), "{error}");
        assert_eq!(client(folder.path()).ask::<String>(&Ask::Never, patience).unwrap(), "done");
    }

    #[test]
    fn when_the_server_goes_so_does_the_socket() {
        let folder = tempfile::tempdir().unwrap();
        let server = serve_at(folder.path());
        let waiting = client(folder.path());
        drop(server);
        let path = folder.path().join("control.sock");
        assert!(!path.exists());
        assert!(Client::connect(&path).unwrap_err().is_not_running());
        assert!(
            waiting.ask::<()>(&Ask::Never, Duration::from_secs(10)).unwrap_err().is_not_running()
        );
        drop(serve_at(folder.path()));
    }
}
