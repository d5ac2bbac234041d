//! What the checker knows, told over a unix socket and, if wished, over HTTP: `/status` (JSON),
//! `/health` (the same; GLB's name) and `/metrics` (Prometheus).

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt as _, Empty, Full};
use hyper::{Request, Response, body::Bytes, header, service::service_fn};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener, UnixStream},
    sync::{mpsc, oneshot},
};

use crate::{
    Moment,
    engine::{Engine, Watched},
    publish::Record,
};

/// Why the status cannot be told or asked for.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The socket.
    #[error("cannot listen on {place}: {source}")]
    Listen {
        /// The socket or address.
        place: String,
        /// Why not.
        source: io::Error,
    },
    /// Somebody else answers there.
    #[error(
        "another glb-healthcheck answers on {}: end it, or give this one a `socket` of its own",
        path.display()
    )]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// Nobody answers.
    #[error("no checker answers on {}: {source}; is `glb-healthcheck run` running?", path.display())]
    Nobody {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The answer.
    #[error("the checker's answer is not understood: {0}")]
    Answer(String),
}

/// All that is known.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// Seconds since the start.
    pub uptime_s: f64,
    /// Targets without a result.
    pub pending: usize,
    /// Whether this checker is cut off.
    pub cut_off: bool,
    /// How often it was.
    pub cut_offs: u64,
    /// Control targets, and whether each answered last.
    pub controls: Vec<(String, bool)>,
    /// Times that the checked table was written.
    pub writes: u64,
    /// Times that it could not be.
    pub write_failures: u64,
    /// Times that the reload command did its work.
    pub reloads: u64,
    /// Times that it did not.
    pub reload_failures: u64,
    /// Seconds since 1970 of the last write.
    pub last_write: Option<f64>,
    /// What stands in the way of publishing.
    pub trouble: Option<String>,
    /// The tables.
    pub tables: Vec<TableView>,
}

/// A table.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TableView {
    /// Its name.
    pub name: String,
    /// Its backends.
    pub backends: Vec<BackendView>,
}

/// A backend.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BackendView {
    /// Its address.
    pub address: String,
    /// Its state as written.
    pub state: String,
    /// What was last written of it.
    pub healthy: Option<bool>,
    /// Its checks.
    pub checks: Vec<CheckView>,
}

/// A check of a backend.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CheckView {
    /// What is asked.
    pub check: String,
    /// `up`, `down` or `unknown`.
    pub standing: String,
    /// For how long, in seconds.
    pub since_s: f64,
    /// How much longer it is held down, in seconds.
    pub held_s: f64,
    /// The last probe's time.
    pub latency_ms: Option<f64>,
    /// The last results: `.` passed, `X` failed, `?` said nothing; the last one at the right.
    pub history: String,
    /// Why it last did not pass.
    pub last_error: Option<String>,
    /// Changes between up and down.
    pub transitions: u64,
    /// Failures soon after a return.
    pub flaps: u64,
    /// Whether its agent wants no new connections.
    pub drain: bool,
    /// Percent of its weight, as its agent says.
    pub weight: Option<u16>,
}

impl Snapshot {
    /// What is known now.
    #[must_use]
    pub fn take(engine: &Engine, record: &Record, controls: &[String], now: Moment) -> Self {
        let (cut_offs, cut_off) = engine.cut_off();
        let check = |watched: &Watched| CheckView {
            check: watched.target.check.kind.to_string(),
            standing: format!("{:?}", watched.judge.standing()).to_lowercase(),
            since_s: rounded(now.saturating_sub(watched.judge.since())),
            held_s: rounded(watched.judge.held_until().saturating_sub(now)),
            latency_ms: watched.last_latency.map(|time| (time.as_secs_f64() * 1e5).round() / 100.0),
            history: watched.history.to_string(),
            last_error: watched.last_error.clone(),
            transitions: watched.judge.transitions(),
            flaps: watched.judge.flaps(),
            drain: watched.drain,
            weight: watched.weight,
        };
        let tables = engine.backends().map(|(table, backends)| TableView {
            name: table.name.clone(),
            backends: backends
                .into_iter()
                .map(|seen| BackendView {
                    address: seen.backend.address.to_string(),
                    state: seen
                        .finding
                        .map_or(seen.backend.state, |finding| finding.state)
                        .to_string(),
                    healthy: seen.finding.map(|finding| finding.healthy),
                    checks: seen.checks.into_iter().map(check).collect(),
                })
                .collect(),
        });
        let since_1970 = |time: std::time::SystemTime| {
            time.duration_since(std::time::UNIX_EPOCH).map(rounded).unwrap_or_default()
        };
        Self {
            uptime_s: rounded(now),
            pending: engine.pending(),
            cut_off,
            cut_offs,
            controls: controls.iter().cloned().zip(engine.controls()).collect(),
            writes: record.writes,
            write_failures: record.write_failures,
            reloads: record.reloads,
            reload_failures: record.reload_failures,
            last_write: record.last_write.map(since_1970),
            trouble: record.trouble.clone(),
            tables: tables.collect(),
        }
    }
}

fn rounded(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

/// A question to the daemon's loop, which alone knows the state.
#[derive(Debug)]
pub enum Question {
    /// All that is known.
    Status(oneshot::Sender<Snapshot>),
    /// Metrics as text.
    Metrics(oneshot::Sender<String>),
}

/// Opens the unix socket, and the TCP one if wished, and answers on them.
///
/// # Errors
/// When one cannot be opened.
pub async fn serve(
    socket: &Path,
    listen: Option<SocketAddr>,
    questions: mpsc::Sender<Question>,
) -> Result<(), StatusError> {
    if UnixStream::connect(socket).await.is_ok() {
        return Err(StatusError::Taken { path: socket.to_owned() });
    }
    let place = socket.display().to_string();
    let failed = |place: String| move |source| StatusError::Listen { place, source };
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed(place)(error));
        }
        _ => {}
    }
    let unix = UnixListener::bind(socket).map_err(failed(place))?;
    let asked = questions.clone();
    tokio::spawn(async move {
        loop {
            // Out of files for a moment, it goes on.
            match unix.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(answer(stream, asked.clone()))),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    });
    if let Some(address) = listen {
        let tcp = TcpListener::bind(address).await.map_err(failed(address.to_string()))?;
        tokio::spawn(async move {
            loop {
                match tcp.accept().await {
                    Ok((stream, _)) => drop(tokio::spawn(answer(stream, questions.clone()))),
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            }
        });
    }
    Ok(())
}

async fn answer<S>(stream: S, questions: mpsc::Sender<Question>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request: Request<hyper::body::Incoming>| {
        let questions = questions.clone();
        async move { Ok::<_, Infallible>(reply(request.uri().path(), &questions).await) }
    });
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // Who asks and goes away, or asks nothing, is nobody's trouble.
    drop(tokio::time::timeout(Duration::from_secs(60), connection).await);
}

async fn reply(path: &str, questions: &mpsc::Sender<Question>) -> Response<Full<Bytes>> {
    const JSON: &str = "application/json";
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let found = match path {
        "/status" | "/health" => {
            let (sender, receiver) = oneshot::channel();
            let asked = questions.send(Question::Status(sender)).await;
            let told = if asked.is_ok() { receiver.await.ok() } else { None };
            told.and_then(|told| serde_json::to_vec(&told).ok()).map(|told| (JSON, told))
        }
        "/metrics" => {
            let (sender, receiver) = oneshot::channel();
            let asked = questions.send(Question::Metrics(sender)).await;
            let told = if asked.is_ok() { receiver.await.ok() } else { None };
            told.map(|told| (OPEN_METRICS, told.into_bytes()))
        }
        _ => None,
    };
    let (status, kind, body) = match found {
        Some((kind, body)) => (200, kind, body),
        None => (404, "text/plain", b"there are /status, /health and /metrics\n".to_vec()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() =
        hyper::StatusCode::from_u16(status).unwrap_or(hyper::StatusCode::NOT_FOUND);
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

/// Asks a running checker.
///
/// # Errors
/// When none answers.
pub async fn ask(socket: &Path) -> Result<Snapshot, StatusError> {
    let nobody = |source| StatusError::Nobody { path: socket.to_owned(), source };
    let odd = |error: &dyn std::fmt::Display| StatusError::Answer(error.to_string());
    let stream = UnixStream::connect(socket).await.map_err(nobody)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| odd(&error))?;
    let connection = tokio::spawn(connection);
    let request = Request::get("/status").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| odd(&error))?;
    let asked = async {
        let response = sender.send_request(request).await?;
        response.into_body().collect().await
    };
    let limit = Duration::from_secs(10);
    let body = tokio::time::timeout(limit, asked)
        .await
        .map_err(|_| nobody(io::ErrorKind::TimedOut.into()))?
        .map_err(|error| odd(&error))?;
    connection.abort();
    serde_json::from_slice(&body.to_bytes()).map_err(|error| odd(&error))
}
