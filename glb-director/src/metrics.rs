//! Metrics for Prometheus, over HTTP, in a thread of their own: they answer while a reload runs.

use std::{
    convert::Infallible,
    fmt, io,
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use glb_host::bpffs::PinFolder;
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::CONTENT_TYPE,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, info::Info},
    registry::{Registry, Unit},
};

use crate::counters::{self, Count};

/// How long a client may take to send a request's head.
const PATIENCE: Duration = Duration::from_secs(5);

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

/// What the daemon itself has to tell; packets are counted by the kernel.
#[derive(Debug, Default)]
pub struct Metrics {
    generation: AtomicU64,
    reloads: AtomicU64,
    failed_reloads: AtomicU64,
    last_swap: AtomicU64,
}

impl Metrics {
    /// A generation has just been swapped in.
    pub fn in_force(&self, generation: u64) {
        self.generation.store(generation, Ordering::Relaxed);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_swap.store(now.as_secs(), Ordering::Relaxed);
    }

    /// A reload has ended, well or not.
    pub fn reloaded(&self, generation: u64, well: bool) {
        if well {
            self.reloads.fetch_add(1, Ordering::Relaxed);
            self.in_force(generation);
        } else {
            self.failed_reloads.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Takes the port.
///
/// # Errors
/// When it is in use, or may not be used.
pub fn bind(address: SocketAddr) -> Result<TcpListener, MetricsError> {
    let error = |source| MetricsError::Bind { address, source };
    let listener = TcpListener::bind(address).map_err(error)?;
    listener.set_nonblocking(true).map_err(error)?;
    Ok(listener)
}

/// Serves `GET /metrics` until the process ends.
///
/// # Errors
/// When the thread cannot be started.
pub fn serve(
    listener: TcpListener,
    pins: PinFolder,
    metrics: Arc<Metrics>,
) -> Result<(), MetricsError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(MetricsError::Thread)?;
    thread::Builder::new()
        .name("metrics".into())
        .spawn(move || runtime.block_on(accept(listener, Arc::new(pins), metrics)))
        .map_err(MetricsError::Thread)?;
    Ok(())
}

async fn accept(listener: TcpListener, pins: Arc<PinFolder>, metrics: Arc<Metrics>) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!(%error, "metrics are not served"),
    };
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, mostly: a pause lets some go.
                tracing::warn!(%error, "a client of the metrics was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (pins, metrics) = (Arc::clone(&pins), Arc::clone(&metrics));
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = answer(&request, &pins, &metrics);
                async move { Ok::<_, Infallible>(response) }
            });
            let served = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = served.await {
                tracing::debug!(%error, "a client of the metrics went away");
            }
        });
    }
}

fn answer(
    request: &Request<Incoming>,
    pins: &PinFolder,
    metrics: &Metrics,
) -> Response<Full<Bytes>> {
    let (status, kind, body) = match request.uri().path() {
        "/metrics" => match exposition(pins, metrics) {
            Ok(text) => {
                (StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", text)
            }
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, "text/plain", format!("{error}\n")),
        },
        _ => (StatusCode::NOT_FOUND, "text/plain", "metrics are at /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    table: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Backend {
    table: String,
    backend: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

/// Everything, as it stands now, in the OpenMetrics text format.
fn exposition(pins: &PinFolder, metrics: &Metrics) -> Result<String, Box<dyn std::error::Error>> {
    let report = counters::read(pins)?;
    let mut registry = Registry::with_prefix("glb_director");
    let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("build", "The running director", build);

    let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
    let gauge = |value: u64| {
        let gauge: Gauge = Gauge::default();
        gauge.set(value.try_into().unwrap_or(i64::MAX));
        gauge
    };
    registry.register("generation", "Generation in force", gauge(load(&metrics.generation)));
    registry.register_with_unit(
        "last_swap_timestamp",
        "When the generation in force was swapped in, since the epoch",
        Unit::Seconds,
        gauge(load(&metrics.last_swap)),
    );
    let reloads = Family::<Outcome, Counter>::default();
    reloads.get_or_create(&Outcome { result: "ok" }).inc_by(load(&metrics.reloads));
    reloads.get_or_create(&Outcome { result: "failed" }).inc_by(load(&metrics.failed_reloads));
    registry.register("reloads", "Tables loaded anew, by result", reloads);

    let reasons = Both::<Reason>::new();
    for (reason, count) in report.reasons {
        reasons.add(&Reason { table: String::new(), reason }, count);
    }
    for table in report.tables {
        for (reason, count) in table.reasons {
            reasons.add(&Reason { table: table.name.clone(), reason }, count);
        }
    }
    let what = "by table (none if no table is concerned) and reason";
    reasons.register(&mut registry, "packets", "received", what);
    let backends = Both::<Backend>::new();
    for backend in report.backends {
        let labels = Backend { table: backend.table, backend: backend.address.to_string() };
        backends.add(&labels, backend.count);
    }
    backends.register(&mut registry, "backend_packets", "backend", "sent, by first hop");

    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

/// Packets and bytes under the same labels.
struct Both<L: Clone + Eq + std::hash::Hash> {
    packets: Family<L, Counter>,
    bytes: Family<L, Counter>,
}

impl<L> Both<L>
where
    L: Clone + Eq + std::hash::Hash + EncodeLabelSet + fmt::Debug + Send + Sync + 'static,
{
    fn new() -> Self {
        Self { packets: Family::default(), bytes: Family::default() }
    }

    fn add(&self, labels: &L, count: Count) {
        self.packets.get_or_create(labels).inc_by(count.packets);
        self.bytes.get_or_create(labels).inc_by(count.bytes);
    }

    fn register(self, registry: &mut Registry, packets: &str, bytes: &str, what: &str) {
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
