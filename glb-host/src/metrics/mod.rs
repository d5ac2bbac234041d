//! Metrics for Prometheus, over HTTP, in a thread of their own: they answer while a reload runs.

mod connection_limit;
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
    pin::pin,
    sync::Arc,
    thread,
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{ACCEPT, CONTENT_TYPE, HeaderValue},
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

use self::connection_limit::{Crowd, Place};

/// How long a client may take to send a request's head.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many wait in the kernel to be served.
const WAITING: i32 = 1024;

/// How long one connection is kept; who wants more connects again.
const LIFE: Duration = Duration::from_secs(60);

/// What makes the metrics as they stand now; asked for each request.
pub trait MetricsSource: Send + Sync + 'static {
    /// Registers everything there is to tell.
    ///
    /// # Errors
    /// When it cannot be told; the client is given the reason.
    fn register(&self, registry: &mut Registry) -> Result<(), Box<dyn Error>>;

    /// What every metric's name starts with.
    fn prefix(&self) -> &'static str;

    /// Another page at this path, if there is one, or why it cannot be told now.
    fn page(&self, path: &str) -> Option<Result<Page, Box<dyn Error>>> {
        let _ = path;
        None
    }
}

/// A page beside the metrics.
#[derive(Clone, Debug)]
pub struct Page {
    /// Its media type.
    pub kind: &'static str,
    /// Its text.
    pub body: String,
}

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// Somebody listens there, or the address is not this machine's.
    #[error(
        "`metrics = \"{address}\"`: cannot listen there: {source}.\n  \
         `ss -ltnp` shows who uses a port; give another one, or leave `metrics` out."
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

/// Takes the port.
///
/// # Errors
/// When it is in use, or may not be used.
pub fn bind(address: SocketAddr) -> Result<TcpListener, MetricsError> {
    let error = |source| MetricsError::Bind { address, source };
    let listener = TcpListener::bind(address).map_err(error)?;
    // The standard library's queue is shorter than the crowd may be.
    // SAFETY: a descriptor that lives through the call.
    if unsafe { libc::listen(listener.as_raw_fd(), WAITING) } != 0 {
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
    let crowd = Arc::new(Crowd::default());
    for number in 0.. {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, mostly: a pause lets some go.
                tracing::warn!(%error, "a client of the metrics was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Whoever comes meanwhile waits in the kernel: the descriptors are the daemon's too.
        let place = crowd.place(number, peer.ip()).await;
        let source = Arc::clone(&source);
        let task = tokio::spawn(async move {
            let service = service_fn(move |request| {
                place.asked();
                let response = answer(&request, &*source);
                async move { Ok::<_, Infallible>(response) }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(stream), service);
            let mut served = pin!(served);
            let result = tokio::select! {
                result = served.as_mut() => result,
                () = tokio::time::sleep(LIFE) => {
                    // The answer under way is still given; one that nobody reads is not waited for.
                    served.as_mut().graceful_shutdown();
                    tokio::time::timeout(PATIENCE, served).await.unwrap_or(Ok(()))
                }
            };
            if let Err(error) = result {
                tracing::debug!(%error, "a client of the metrics went away");
            }
        });
        Place::served_by(&crowd, number, task.abort_handle());
    }
}

fn answer(request: &Request<Incoming>, source: &impl MetricsSource) -> Response<Full<Bytes>> {
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

/// Everything that `source` has to tell, as it stands now, in the OpenMetrics text format.
///
/// # Errors
/// When it cannot be told.
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

/// A gauge that shows `value`.
#[must_use]
pub fn gauge(value: u64) -> Gauge {
    let gauge = Gauge::default();
    gauge.set(value.try_into().unwrap_or(i64::MAX));
    gauge
}

/// Packets and bytes under the same labels.
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
    /// Adds what was counted under `labels`.
    pub fn add(&self, labels: &L, packets: u64, bytes: u64) {
        self.packets.get_or_create(labels).inc_by(packets);
        self.bytes.get_or_create(labels).inc_by(bytes);
    }

    /// Registers both under these names; `what` says in words what they count.
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
    fn a_port_in_use_is_named_with_the_remedy() {
        let first = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = first.local_addr().unwrap();
        let error = bind(address).unwrap_err().to_string();
        for words in [&address.to_string(), "in use", "ss -ltnp"] {
            assert!(error.contains(words), "{words:?} is missing in: {error}");
        }
    }
}
