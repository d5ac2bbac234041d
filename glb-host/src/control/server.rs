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
    MAX_REQUEST, Message, Refusal, RefusalKind, Socket, VERSION,
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

/// How long the end waits for clients to get their last answer.
const LAST_WORDS: Duration = Duration::from_secs(1);

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
    pub answer: Responder,
}

/// The way back to a client. Nothing here waits for it except [`Responder::item`].
#[derive(Debug)]
pub struct Responder {
    items: mpsc::Sender<Value>,
    last: oneshot::Sender<Result<Value, Refusal>>,
}

impl Responder {
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

/// A control channel in service. When it is dropped, answers that have been given still reach their
/// clients, nobody else is served any more, and the socket goes.
#[derive(Debug)]
pub struct Server {
    end: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
    _socket: Socket,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.end.take());
        // A panic in there is no reason for another one.
        drop(self.thread.take().map(thread::JoinHandle::join));
    }
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
        drop(listener);
        // Whoever has not asked yet, or does not read, is not waited for longer.
        drop(timeout(LAST_WORDS, shared.all_gone()).await);
    };
    let thread =
        thread::Builder::new().name("control".into()).spawn(move || runtime.block_on(work))?;
    Ok(Server { end: Some(end), thread: Some(thread), _socket: socket })
}

struct Shared<C> {
    access: Access,
    handler: Box<dyn Fn(Call<C>) + Send + Sync>,
    own: Semaphore,
    others: Semaphore,
}

impl<C> Shared<C> {
    /// Waits until nobody is served any more.
    async fn all_gone(&self) {
        for (room, places) in [(&self.own, OWN_AT_ONCE), (&self.others, OTHERS_AT_ONCE)] {
            // Only a closed semaphore says no, and nobody closes these.
            drop(room.acquire_many(places as u32).await);
        }
    }
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
            drop(stream.try_write(&Message::Error(Refusal::new(RefusalKind::Busy, text)).line()));
            continue;
        }
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            /// Gives the place back, also when the task panics.
            struct SocketSettings<'s>(&'s Semaphore);
            impl Drop for SocketSettings<'_> {
                fn drop(&mut self) {
                    self.0.add_permits(1);
                }
            }
            let _place = SocketSettings(if is_own { &shared.own } else { &shared.others });
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
        let line = Message::Error(Refusal::new(RefusalKind::Malformed, text)).line();
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
        Err(Refusal::new(RefusalKind::NotPermitted, text))
    });
    let last = match command {
        Err(refusal) => Err(refusal),
        Ok(command) => {
            let (items, mut waiting) = mpsc::channel(ITEMS_WAITING);
            let (last, mut ended) = oneshot::channel();
            let answer = Responder { items, last };
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
                            Err(Refusal::new(RefusalKind::Ended, text))
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
    let malformed = |text: String| Refusal::new(RefusalKind::Malformed, text);
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
            return Err(Refusal::new(RefusalKind::Version, text));
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
mod tests;
