//! The metrics server: Prometheus metrics over HTTP, in its own thread, so that it answers during a
//! reload.

mod process;
mod prometheus_text;

use std::{
    convert::Infallible,
    error::Error,
    fmt,
    hash::Hash,
    io,
    net::{SocketAddr, TcpListener},
    os::fd::AsRawFd as _,
    sync::Arc,
    thread,
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ACCEPT, ALLOW, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{
    encoding::{
        EncodeLabelSet,
        text::{encode_eof, encode_registry},
    },
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};
use tokio::sync::Semaphore;

/// The maximum number of connections that are served at once; others wait in the kernel.
const MAX_CONNECTIONS: usize = 32;

/// How long a client may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// The maximum lifetime of a connection, which carries one request.
const MAX_LIFETIME: Duration = Duration::from_secs(5);

/// How many connections may wait in the kernel.
const BACKLOG: i32 = 1024;

/// Provides the current metrics; called for each request.
pub trait MetricsSource: Send + Sync + 'static {
    /// Registers all metrics with their current values.
    ///
    /// # Errors
    /// When they cannot be read; the client gets the reason.
    fn register(&self, registry: &mut Registry) -> Result<(), Box<dyn Error>>;

    /// Returns the prefix of every metric's name.
    fn prefix(&self) -> &'static str;

    /// Returns another page at this path, if there is one, or why it cannot be shown now.
    fn page(&self, path: &str) -> Option<Result<Page, Box<dyn Error>>> {
        let _ = path;
        None
    }
}

/// A page beside the metrics.
#[derive(Clone, Debug)]
pub struct Page {
    /// The media type.
    pub kind: &'static str,
    /// The content.
    pub body: String,
}

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The port is in use, or the address is not this machine's.
    #[error(
        "cannot listen on {address} for metrics: {source}.\n  \
         `ss -ltnp` shows which process uses a port. Change `metrics`, or leave it out."
    )]
    Bind {
        /// As configured.
        address: SocketAddr,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The thread could not be started.
    #[error("cannot start the thread that serves metrics: {0}")]
    Thread(io::Error),
}

/// Binds the port.
///
/// # Errors
/// When it is in use, or may not be used.
pub fn bind(address: SocketAddr) -> Result<TcpListener, MetricsError> {
    let error = |source| MetricsError::Bind { address, source };
    let listener = TcpListener::bind(address).map_err(error)?;
    // The standard library's backlog is shorter.
    // SAFETY: a descriptor that lives through the call.
    if unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) } != 0 {
        return Err(error(io::Error::last_os_error()));
    }
    listener.set_nonblocking(true).map_err(error)?;
    Ok(listener)
}

/// Serves `GET /metrics` until the process ends.
///
/// # Errors
/// When the thread cannot be started.
pub fn serve(listener: TcpListener, source: impl MetricsSource) -> Result<(), MetricsError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(MetricsError::Thread)?;
    thread::Builder::new()
        .name("metrics".into())
        .spawn(move || runtime.block_on(accept(listener, Arc::new(source))))
        .map_err(MetricsError::Thread)?;
    Ok(())
}

async fn accept(listener: TcpListener, source: Arc<impl MetricsSource>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "metrics are not served"),
    };
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // Acquiring fails only on a closed semaphore, and this one is never closed.
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Mostly out of descriptors: a pause lets some be closed.
                tracing::warn!(%error, "cannot accept a metrics connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let source = Arc::clone(&source);
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(move |request| {
                let response = answer(&request, &*source);
                async move { Ok::<_, Infallible>(response) }
            });
            // One request per connection: an idle client must not keep its permit.
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST_TIMEOUT)
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            match tokio::time::timeout(MAX_LIFETIME, connection).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!(%error, "metrics connection failed"),
                Err(_elapsed) => tracing::debug!("metrics connection timed out"),
            }
        });
    }
}

fn answer(request: &Request<Incoming>, source: &impl MetricsSource) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let text = "only GET and HEAD are supported\n";
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let (status, kind, body) = match request.uri().path() {
        "/metrics" => match exposition(source) {
            Ok(text) if wants_open_metrics(request) => {
                (StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text)
            }
            Ok(text) => {
                let text = prometheus_text::from_open_metrics(&text);
                (StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text)
            }
            Err(error) => failed(&*error),
        },
        path => match source.page(path) {
            Some(Ok(page)) => (StatusCode::OK, page.kind, page.body),
            Some(Err(error)) => failed(&*error),
            None => (StatusCode::NOT_FOUND, "text/plain", "metrics are at /metrics\n".to_owned()),
        },
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn failed(error: &dyn Error) -> (StatusCode, &'static str, String) {
    (StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{error}\n"))
}

fn wants_open_metrics(request: &Request<Incoming>) -> bool {
    let accepted = request.headers().get_all(ACCEPT).iter();
    accepted.into_iter().any(|value| {
        value.to_str().is_ok_and(|value| value.contains("application/openmetrics-text"))
    })
}

/// Formats all current metrics of `source` in the OpenMetrics text format.
///
/// # Errors
/// When they cannot be read.
pub fn exposition(source: &impl MetricsSource) -> Result<String, Box<dyn Error>> {
    let mut registry = Registry::with_prefix(source.prefix());
    source.register(&mut registry)?;
    let mut own = Registry::default();
    process::register(&mut own);
    let mut text = String::new();
    encode_registry(&mut text, &registry)?;
    encode_registry(&mut text, &own)?;
    encode_eof(&mut text)?;
    Ok(text)
}

/// Returns a gauge with this value.
#[must_use]
pub fn gauge(value: u64) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(value.try_into().unwrap_or(i64::MAX));
    gauge
}

/// A packet counter and a byte counter with the same labels.
#[derive(Debug)]
pub struct PacketsAndBytes<L: Clone + Eq + Hash> {
    packets: Family<L, Counter>,
    bytes: Family<L, Counter>,
}

impl<L: Clone + Eq + Hash> Default for PacketsAndBytes<L> {
    fn default() -> Self {
        Self { packets: Family::default(), bytes: Family::default() }
    }
}

impl<L> PacketsAndBytes<L>
where
    L: Clone + Eq + Hash + EncodeLabelSet + fmt::Debug + Send + Sync + 'static,
{
    /// Adds packets and bytes under `labels`.
    pub fn add(&self, labels: &L, packets: u64, bytes: u64) {
        self.packets.get_or_create(labels).inc_by(packets);
        self.bytes.get_or_create(labels).inc_by(bytes);
    }

    /// Registers both counters under these names; `what` completes the help text "Packets …".
    pub fn register(self, registry: &mut Registry, packets: &str, bytes: &str, what: &str) {
        registry.register(packets, format!("Packets {what}"), self.packets);
        let help = format!("Bytes {what}, from the Ethernet header on as received");
        registry.register_with_unit(bytes, help, Unit::Bytes, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_for_a_port_in_use_has_a_remedy() {
        let first = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = first.local_addr().unwrap();
        let error = bind(address).unwrap_err().to_string();
        for words in [&address.to_string(), "in use", "ss -ltnp"] {
            assert!(error.contains(words), "{words:?} is missing in: {error}");
        }
    }
}
