//! One HTTP/1.1 request on a connection of its own.

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

use super::{Failure, Step, Tools, connect};
use crate::check::{Http, Target};

/// So much of a body is searched.
const BODY: usize = 64 << 10;
/// No answer's head is longer.
const HEAD: usize = 64 << 10;
/// So much of an answer is read at all, whatever it is made of: who sends interim answers or chunks
/// without end must not keep everybody else waiting.
const ANSWER: u64 = 256 << 10;

pub(super) async fn run(
    target: &Target,
    http: &Http,
    tools: &Tools,
    step: &Step,
) -> Result<(), Failure> {
    let stream = connect::tcp(target, http.port, step).await?;
    match &http.tls {
        None => exchange(stream, target, http, step).await,
        Some(tls) => {
            step.set("TLS");
            let stream = tools.tls.connect(stream, target, http, tls).await?;
            exchange(stream, target, http, step).await
        }
    }
}

pub(super) async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    target: &Target,
    http: &Http,
    step: &Step,
) -> Result<(), Failure> {
    step.set("answer");
    let (reader, writer) = tokio::io::split(stream);
    let stream = TokioIo::new(tokio::io::join(reader.take(ANSWER), writer));
    let handshake = http1::Builder::new().max_buf_size(HEAD).handshake(stream);
    let (mut sender, connection) = handshake.await.map_err(failed)?;
    let request = request(target, http)?;
    let talk = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        judge(response, http, step).await
    };
    drive(talk, connection).await
}

/// A broken connection is the kernel's word, the rest is HTTP's.
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

/// Runs the connection as long as the talk on it needs it.
async fn drive<T>(
    talk: impl Future<Output = Result<T, Failure>>,
    connection: impl Future<Output = hyper::Result<()>>,
) -> Result<T, Failure> {
    let (mut talk, mut connection) = (std::pin::pin!(talk), std::pin::pin!(connection));
    tokio::select! {
        biased;
        said = &mut talk => said,
        // It ends before the talk when the whole answer is buffered, or when it broke: the talk
        // knows which.
        _ = &mut connection => talk.await,
    }
}

async fn judge(response: Response<Incoming>, http: &Http, step: &Step) -> Result<(), Failure> {
    let status = response.status().as_u16();
    let (low, high) = http.status;
    if !(low..=high).contains(&status) {
        return Err(Failure::Status { status, wanted: http.status });
    }
    let Some(wanted) = &http.body else { return Ok(()) };
    step.set("body");
    let mut body = response.into_body();
    let mut seen = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(failed)?;
        let Some(data) = frame.data_ref() else { continue };
        let old = seen.len();
        seen.extend_from_slice(&data[..data.len().min(BODY - old)]);
        // What is wanted may begin in the part before.
        let from = old.saturating_sub(wanted.len());
        if contains(&seen[from..], wanted.as_bytes()) {
            return Ok(());
        }
        if seen.len() == BODY {
            break;
        }
    }
    Err(Failure::Body { wanted: wanted.clone() })
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

fn request(target: &Target, http: &Http) -> Result<Request<Empty<Bytes>>, Failure> {
    let host = http.host.clone().unwrap_or_else(|| {
        let usual = if http.tls.is_some() { 443 } else { 80 };
        if http.port != usual {
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
