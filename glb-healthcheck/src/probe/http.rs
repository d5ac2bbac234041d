//! The `http` and `https` checks: one HTTP/1.1 request on a new connection.

use std::{future::Future, net::SocketAddr};

use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};

use super::{CurrentStep, Failure, ProbeContext, tcp};
use crate::check::{HttpCheck, Target};

/// Length of the body that is searched.
const MAX_BODY: usize = 64 << 10;
/// Longest head of a response.
const MAX_HEAD: usize = 64 << 10;
/// Longest response, of any content. A server that sends interim responses or chunks without end must
/// not keep the event loop busy.
const MAX_RESPONSE: u64 = 256 << 10;

pub(super) async fn run(
    target: &Target,
    http: &HttpCheck,
    context: &ProbeContext,
    step: &CurrentStep,
) -> Result<(), Failure> {
    let stream = tcp::connect(target, http.port, step).await?;
    match &http.tls {
        None => exchange(stream, target, http, step).await,
        Some(tls) => {
            step.set("TLS");
            let stream = context.tls.connect(stream, target, http, tls).await?;
            exchange(stream, target, http, step).await
        }
    }
}

pub(super) async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    target: &Target,
    http: &HttpCheck,
    step: &CurrentStep,
) -> Result<(), Failure> {
    step.set("answer");
    let (reader, writer) = tokio::io::split(stream);
    let stream = TokioIo::new(tokio::io::join(reader.take(MAX_RESPONSE), writer));
    let handshake = http1::Builder::new().max_buf_size(MAX_HEAD).handshake(stream);
    let (mut sender, connection) = handshake.await.map_err(failed)?;
    let request = request(target, http)?;
    let conversation = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        check_response(response, http, step).await
    };
    drive(conversation, connection).await
}

/// Turns hyper's error into a failure: an I/O error if the connection broke, else one of HTTP.
fn failed(error: hyper::Error) -> Failure {
    let source = std::error::Error::source(&error).and_then(|source| source.downcast_ref());
    match source {
        Some(io) => {
            let io: &std::io::Error = io;
            let source = io
                .raw_os_error()
                .map_or_else(|| io.kind().into(), std::io::Error::from_raw_os_error);
            Failure::Io { step: "answer", source }
        }
        None => Failure::Http(error),
    }
}

/// Drives the connection until the conversation on it ends.
async fn drive<T>(
    conversation: impl Future<Output = Result<T, Failure>>,
    connection: impl Future<Output = hyper::Result<()>>,
) -> Result<T, Failure> {
    let (mut conversation, mut connection) =
        (std::pin::pin!(conversation), std::pin::pin!(connection));
    tokio::select! {
        biased;
        result = &mut conversation => result,
        // The connection ends first if the whole response is buffered, or if it broke; the conversation
        // then has the result.
        _ = &mut connection => conversation.await,
    }
}

async fn check_response(
    response: Response<Incoming>,
    http: &HttpCheck,
    step: &CurrentStep,
) -> Result<(), Failure> {
    let status = response.status().as_u16();
    let (low, high) = http.status;
    if !(low..=high).contains(&status) {
        return Err(Failure::Status { status, expected: http.status });
    }
    let Some(expected) = &http.body else { return Ok(()) };
    step.set("body");
    let mut body = response.into_body();
    let mut searched = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(failed)?;
        let Some(data) = frame.data_ref() else { continue };
        let old = searched.len();
        searched.extend_from_slice(&data[..data.len().min(MAX_BODY - old)]);
        // The text may begin in the previous frame.
        let from = old.saturating_sub(expected.len());
        if contains(&searched[from..], expected.as_bytes()) {
            return Ok(());
        }
        if searched.len() == MAX_BODY {
            break;
        }
    }
    Err(Failure::Body { expected: expected.clone() })
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

fn request(target: &Target, http: &HttpCheck) -> Result<Request<Empty<Bytes>>, Failure> {
    let host = http.host.clone().unwrap_or_else(|| {
        let default_port = if http.tls.is_some() { 443 } else { 80 };
        if http.port != default_port {
            SocketAddr::new(target.address, http.port).to_string()
        } else if target.address.is_ipv6() {
            format!("[{}]", target.address)
        } else {
            target.address.to_string()
        }
    });
    Request::builder()
        .method(http.method.as_str())
        .uri(&http.path)
        .header(header::HOST, host)
        .header(header::USER_AGENT, concat!("glb-healthcheck/", env!("CARGO_PKG_VERSION")))
        .header(header::ACCEPT, "*/*")
        .header(header::CONNECTION, "close")
        .body(Empty::new())
        .map_err(|error| Failure::Setup(error.to_string()))
}
