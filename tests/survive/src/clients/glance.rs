//! Image uploads to Glance and downloads from it through the VIP. Each request uses a new
//! connection.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use glb_lab::Family;
use serde_json::{Value, json};
use sha2::{Digest, Sha512};

use crate::{
    accounting::{ConnectionRecord, Kind},
    clients::{ClientContext, Worker, stream},
    random::Random,
    services::GLANCE_PORT,
};

/// An image stored in Glance.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    id: String,
    size: u64,
    /// The SHA-512 of the generated image, which Glance has confirmed.
    sum: String,
}

/// The images available for download.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<Vec<Image>>);

impl Pool {
    /// Creates an empty pool.
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Returns the number of images.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn add(&self, image: Image) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(image);
    }

    fn any(&self, random: &mut Random) -> Option<Image> {
        let images = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        images.get(random.below(images.len() as u64) as usize).cloned()
    }
}

/// Fills the pool at full speed. Must be called in the client's namespace.
pub(crate) fn fill(site: &Arc<ClientContext>, pool: &Pool, number: u16) {
    let random = Random::new(site.seed, 8 << 32 | u64::from(number));
    let mut worker = Worker { site: Arc::clone(site), number, random };
    if let Some(image) = upload(&mut worker, u64::MAX) {
        pool.add(image);
    }
}

/// Runs one upload and deletes the image again, so that the pool keeps its size.
pub(crate) fn uploads(worker: &mut Worker, _pool: &Pool) {
    let pace = worker.site.load.image_pace(&mut worker.random);
    match upload(worker, pace) {
        Some(image) => {
            let path = format!("/v2/images/{}", image.id);
            request(worker, "DELETE", &path, None, 204);
        }
        None => worker.site.pause(Duration::from_millis(500)),
    }
}

/// Downloads a random image of the pool.
pub(crate) fn downloads(worker: &mut Worker, pool: &Pool) {
    let pace = worker.site.load.image_pace(&mut worker.random);
    let Some(image) = pool.any(&mut worker.random) else {
        return worker.site.pause(Duration::from_millis(200));
    };
    let family = worker.family();
    let Some((mut stream, account)) =
        stream::open(&worker.site, Kind::Download, family, GLANCE_PORT)
    else {
        return worker.site.pause(Duration::from_millis(500));
    };
    let outcome = download(&mut stream, &account, &image, pace);
    let broke = outcome.is_err();
    account.end(outcome.map_err(|error| stream::in_words(&error, worker.site.load.patience)));
    if broke {
        worker.site.pause(Duration::from_millis(500));
    }
}

fn download(
    stream: &mut TcpStream,
    account: &ConnectionRecord,
    image: &Image,
    pace: u64,
) -> io::Result<()> {
    send_head(stream, "GET", &format!("/v2/images/{}/file", image.id), "", None)?;
    let mut from = BufReader::with_capacity(64 << 10, stream);
    let (status, length) = read_head(&mut from)?;
    if status != 200 || length != Some(image.size) {
        return Err(wrong(format!("status {status}, {length:?} bytes of {}", image.size)));
    }
    let (mut sum, mut received, begun) = (Sha512::new(), 0, Instant::now());
    let mut buffer = vec![0; 64 << 10];
    while received < image.size {
        account.expects(true);
        let count = from.read(&mut buffer)?;
        account.expects(false);
        if count == 0 {
            return Err(wrong(format!("closed after {received} of {} bytes", image.size)));
        }
        sum.update(&buffer[..count]);
        received += count as u64;
        keep_pace(begun, received, pace);
    }
    let sum = hex(&sum.finalize());
    if sum != image.sum {
        return Err(wrong(format!("another checksum: {sum:.16}… instead of {:.16}…", image.sum)));
    }
    Ok(())
}

/// Generates and uploads an image. Returns none if any of the three requests broke.
fn upload(worker: &mut Worker, pace: u64) -> Option<Image> {
    let size = worker.site.load.image_size(&mut worker.random);
    let wanted = json!({ "name": "lab", "disk_format": "raw", "container_format": "bare" });
    let made = request(worker, "POST", "/v2/images", Some(&wanted), 201)?;
    let id = made.get("id")?.as_str()?.to_owned();
    let family = worker.family();
    let (mut stream, account) = stream::open(&worker.site, Kind::Upload, family, GLANCE_PORT)?;
    let contents = Random::new(worker.random.next(), 0);
    let sent = put(&mut stream, &account, &id, size, pace, contents);
    // Glance's own hash of the stored image, from any backend, is part of the upload's verdict.
    let verdict = sent.map_err(|error| stream::in_words(&error, worker.site.load.patience));
    drop(stream);
    account.closed();
    let sum = match verdict {
        Ok(sum) => sum,
        Err(why) => {
            account.end(Err(why));
            return None;
        }
    };
    let Some(stored) = request(worker, "GET", &format!("/v2/images/{id}"), None, 200) else {
        // The query broke and has its own record. Nothing says that the stored image is wrong, and
        // the server accepted all of it.
        account.end(Ok(()));
        return None;
    };
    let theirs = stored.get("os_hash_value").and_then(Value::as_str).unwrap_or_default();
    let their_size = stored.get("size").and_then(Value::as_u64);
    if theirs != sum || their_size != Some(size) {
        account
            .end(Err(format!("Glance has {their_size:?} bytes with the checksum {theirs:.16}…")));
        return None;
    }
    account.end(Ok(()));
    Some(Image { id, size, sum })
}

fn put(
    stream: &mut TcpStream,
    account: &ConnectionRecord,
    id: &str,
    size: u64,
    pace: u64,
    mut contents: Random,
) -> io::Result<String> {
    let kind = "Content-Type: application/octet-stream\r\n";
    send_head(stream, "PUT", &format!("/v2/images/{id}/file"), kind, Some(size))?;
    let (mut sum, mut sent, begun) = (Sha512::new(), 0, Instant::now());
    let mut buffer = vec![0; 64 << 10];
    while sent < size {
        let count = (size - sent).min(buffer.len() as u64) as usize;
        contents.fill(&mut buffer[..count]);
        sum.update(&buffer[..count]);
        stream.write_all(&buffer[..count])?;
        sent += count as u64;
        keep_pace(begun, sent, pace);
    }
    account.expects(false);
    let (status, _) = read_head(&mut BufReader::new(stream))?;
    if status != 204 {
        return Err(wrong(format!("status {status}")));
    }
    Ok(hex(&sum.finalize()))
}

/// Sends a request with a small answer.
fn request(
    worker: &mut Worker,
    method: &str,
    path: &str,
    body: Option<&Value>,
    wanted: u16,
) -> Option<Value> {
    let family: Family = worker.family();
    let (mut stream, account) = stream::open(&worker.site, Kind::Glance, family, GLANCE_PORT)?;
    match small(&mut stream, method, path, body, wanted) {
        Ok(answer) => {
            account.end(Ok(()));
            Some(answer)
        }
        Err(error) => {
            account.end(Err(stream::in_words(&error, worker.site.load.patience)));
            None
        }
    }
}

fn small(
    stream: &mut TcpStream,
    method: &str,
    path: &str,
    body: Option<&Value>,
    wanted: u16,
) -> io::Result<Value> {
    let body = body.map(Value::to_string);
    let kind = if body.is_some() { "Content-Type: application/json\r\n" } else { "" };
    send_head(stream, method, path, kind, body.as_ref().map(|body| body.len() as u64))?;
    stream.write_all(body.unwrap_or_default().as_bytes())?;
    let mut from = BufReader::new(stream);
    let (status, length) = read_head(&mut from)?;
    let mut answer = vec![0; usize::try_from(length.unwrap_or(0)).map_err(io::Error::other)?];
    from.read_exact(&mut answer)?;
    if status != wanted {
        let said = String::from_utf8_lossy(&answer);
        return Err(wrong(format!("{method}: status {status}: {:.120}", said.trim())));
    }
    if answer.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&answer).map_err(io::Error::other)
}

fn send_head(
    stream: &mut TcpStream,
    method: &str,
    path: &str,
    more: &str,
    length: Option<u64>,
) -> io::Result<()> {
    let length = length.map(|bytes| format!("Content-Length: {bytes}\r\n")).unwrap_or_default();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n{more}{length}\r\n");
    stream.write_all(head.as_bytes())
}

/// Reads the status and the content length; the body follows.
fn read_head(from: &mut impl BufRead) -> io::Result<(u16, Option<u64>)> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let status = line.split(' ').nth(1).and_then(|digits| digits.parse().ok());
    let status = status.ok_or_else(|| wrong(format!("not an HTTP answer: {line:.40}")))?;
    let mut length = None;
    loop {
        line.clear();
        if from.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line.trim().is_empty() {
            return Ok((status, length));
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = Some(value.trim().parse().map_err(io::Error::other)?);
        }
    }
}

fn wrong(what: String) -> io::Error {
    io::Error::other(what)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn keep_pace(begun: Instant, bytes: u64, pace: u64) {
    if pace != u64::MAX {
        let due = Duration::from_secs_f64(bytes as f64 / pace as f64);
        thread::sleep(due.saturating_sub(begun.elapsed()));
    }
}
