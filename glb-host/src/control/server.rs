//! The daemon's side of the control channel.

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

/// How long a client may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a client may take to read one line of an answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// The maximum number of connections of root and of the daemon's own user.
const MAX_OWN_CLIENTS: usize = 32;

/// The maximum number of other connections.
const MAX_OTHER_CLIENTS: usize = 32;

/// The maximum number of items queued for one client.
const ITEM_QUEUE: usize = 256;

/// How long the shutdown waits for last answers to reach their clients.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// How often the server checks whether a half-closed client is still connected.
const HANGUP_POLL: Duration = Duration::from_millis(200);

/// A daemon's requests: `{"request":"name", …}`, deserialized by serde.
pub trait Command: DeserializeOwned + Send + 'static {
    /// Returns whether the request changes anything, and so needs permission.
    fn changes(&self) -> bool;
}

/// A permitted request and its responder.
#[derive(Debug)]
pub struct Call<C> {
    /// The request.
    pub command: C,
    /// The client.
    pub peer: Peer,
    /// Sends the answer. If it is dropped, the client is told that the daemon has ended.
    pub answer: Responder,
}

/// Sends answers to a client. Only [`Responder::item`] waits for the client.
#[derive(Debug)]
pub struct Responder {
    items: mpsc::Sender<Value>,
    last: oneshot::Sender<Result<Value, Refusal>>,
}

impl Responder {
    /// Sends the last answer, which ends the connection.
    pub fn done(self, result: Result<impl Serialize, Refusal>) {
        let result = result.and_then(|value| to_json(&value));
        // A disconnected client needs no answer.
        drop(self.last.send(result));
    }

    /// Queues an item and waits for room; returns whether the client is still connected.
    pub async fn item(&self, value: &impl Serialize) -> bool {
        match to_json(value) {
            Ok(value) => self.items.send(value).await.is_ok(),
            Err(_) => false,
        }
    }

    /// Queues an item if there is room; returns whether it was queued.
    pub fn try_item(&self, value: &impl Serialize) -> bool {
        to_json(value).is_ok_and(|value| self.items.try_send(value).is_ok())
    }

    /// Waits until the client disconnects.
    pub async fn gone(&self) {
        self.items.closed().await;
    }

    /// Returns whether the client has disconnected.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.items.is_closed()
    }
}

fn to_json(value: &impl Serialize) -> Result<Value, Refusal> {
    serde_json::to_value(value)
        .map_err(|error| Refusal::failed(format_args!("the answer cannot be written: {error}")))
}

/// A running control channel.
///
/// Dropping it delivers the answers that were given, serves no further client, and removes the
/// socket.
#[derive(Debug)]
pub struct Server {
    end: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
    _socket: Socket,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.end.take());
        // A panic in the server's thread must not cause another one here.
        drop(self.thread.take().map(thread::JoinHandle::join));
    }
}

/// Serves the control channel in its own thread.
///
/// `handler` runs in that thread, inside its runtime: it must not block.
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
        own: Semaphore::new(MAX_OWN_CLIENTS),
        others: Semaphore::new(MAX_OTHER_CLIENTS),
    });
    let work = async move {
        tokio::select! {
            () = accept(&listener, &shared) => {}
            _ = ended => {}
        }
        drop(listener);
        // Clients that have not sent a request, or do not read, are cut off.
        drop(timeout(SHUTDOWN_TIMEOUT, shared.wait_idle()).await);
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
    /// Waits until no connection is served any more.
    async fn wait_idle(&self) {
        for (room, places) in [(&self.own, MAX_OWN_CLIENTS), (&self.others, MAX_OTHER_CLIENTS)] {
            // Acquiring fails only on a closed semaphore, and these are never closed.
            drop(room.acquire_many(places as u32).await);
        }
    }
}

async fn accept<C: Command>(listener: &UnixListener, shared: &Arc<Shared<C>>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Mostly out of descriptors: a pause lets some be closed.
                tracing::warn!(%error, "cannot accept a control connection");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let peer = match access::peer(&stream) {
            Ok(peer) => peer,
            Err(error) => {
                tracing::warn!(%error, "cannot identify a control client");
                continue;
            }
        };
        let is_own = shared.access.is_own(&peer);
        let has_room = |shared: &Shared<C>| {
            let room = if is_own { &shared.own } else { &shared.others };
            room.try_acquire().map(|permit| permit.forget()).is_ok()
        };
        if !has_room(shared) {
            let text = "too many clients are connected; try again in a moment";
            // The line fits the socket's buffer, or the client goes without.
            drop(stream.try_write(&Message::Error(Refusal::new(RefusalKind::Busy, text)).line()));
            continue;
        }
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            /// Releases the permit, also when the task panics.
            struct Permit<'s>(&'s Semaphore);
            impl Drop for Permit<'_> {
                fn drop(&mut self) {
                    self.0.add_permits(1);
                }
            }
            let _permit = Permit(if is_own { &shared.own } else { &shared.others });
            if let Err(error) = serve_client(stream, peer, &shared).await {
                tracing::debug!(%error, "control connection failed");
            }
        });
    }
}

async fn serve_client<C: Command>(
    stream: UnixStream,
    peer: Peer,
    shared: &Shared<C>,
) -> io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader).take(MAX_REQUEST as u64 + 1);
    let mut request = Vec::new();
    let asked = timeout(REQUEST_TIMEOUT, reader.read_until(b'\n', &mut request)).await;
    let asked = asked.map_err(|_| io::Error::from(io::ErrorKind::TimedOut)).and_then(|read| read);
    if let Err(error) = asked {
        let text = format!("no request arrived within {} s", REQUEST_TIMEOUT.as_secs());
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
        let who = shared.access.describe();
        let text = format!(
            "user {} may not change this daemon; {who} may.\n  \
             Set `control.operators` in its configuration to permit the members of a group.",
            peer.uid
        );
        tracing::warn!(uid = peer.uid, pid = peer.pid, "control request refused: not permitted");
        Err(Refusal::new(RefusalKind::NotPermitted, text))
    });
    let last = match command {
        Err(refusal) => Err(refusal),
        Ok(command) => {
            let (items, mut waiting) = mpsc::channel(ITEM_QUEUE);
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
                    () = wait_hangup(&mut reader) => return Ok(()),
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
                "this daemon uses version {VERSION} of the control protocol, not {version}; use \
                 the command of the daemon's release"
            );
            return Err(Refusal::new(RefusalKind::Version, text));
        }
        _ => return Err(malformed(format!("the request has no `\"version\":{VERSION}`"))),
    }
    C::deserialize(Value::Object(request))
        .map_err(|error| malformed(format!("the request: {error}")))
}

async fn write(writer: &mut tokio::net::unix::OwnedWriteHalf, message: Message) -> io::Result<()> {
    timeout(WRITE_TIMEOUT, writer.write_all(&message.line()))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Waits until the client closes its socket.
///
/// A half-closed client still wants its answer. Data after the request is discarded.
async fn wait_hangup(reader: &mut OwnedReadHalf) {
    let mut rest = [0; 1024];
    loop {
        match reader.read(&mut rest).await {
            Ok(0) => break,
            Ok(_) => {}
            Err(_) => return,
        }
    }
    while !is_closed(reader) {
        sleep(HANGUP_POLL).await;
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
