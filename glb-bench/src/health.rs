//! `bench health`: measures the processor time and memory of the health checker with many targets.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum};
use glb_healthcheck::{control_socket, status::Snapshot};
use glb_host::control::Client;
use glb_lab::Program;
use nix::sched::{CloneFlags, unshare};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Options of `bench health`.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The kinds of check.
    #[arg(long, value_enum, default_values_t = [Check::Tcp, Check::Http, Check::Https])]
    check: Vec<Check>,
    /// Number of targets, each with its own address.
    #[arg(long, default_value_t = 10_000)]
    targets: u32,
    /// Time from one probe of a target to the next, in milliseconds. Doubled for HTTPS, whose server
    /// needs a core of its own.
    #[arg(long, default_value_t = 2000)]
    interval: u64,
    /// Duration of the measurement, in seconds.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
}

/// A kind of check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Check {
    /// A TCP handshake.
    Tcp,
    /// An HTTP request.
    Http,
    /// An HTTP request over TLS 1.3, with a verified certificate.
    Https,
}

/// The name in the server's certificate.
const NAME: &str = "bench.example";

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    ensure!(
        (1..=50_000).contains(&arguments.targets),
        "cannot check {} targets: use 1 to 50,000",
        arguments.targets
    );
    let folder = PathBuf::from(format!("/var/tmp/glb-bench-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    // In a new namespace all ports of lo are free.
    let result = unshare(CloneFlags::CLONE_NEWNET)
        .context("cannot make a network namespace: run as root")
        .and_then(|()| {
            let up = Command::new("ip").args(["link", "set", "lo", "up"]).status()?;
            ensure!(up.success(), "`ip link set lo up` failed");
            arguments.check.iter().try_for_each(|check| measure(arguments, *check, &folder))
        });
    fs::remove_dir_all(&folder)?;
    result
}

/// A child process that is killed on drop.
struct Checker(Child);

impl Drop for Checker {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn measure(arguments: &Arguments, check: Check, folder: &Path) -> anyhow::Result<()> {
    let interval = arguments.interval * if check == Check::Https { 2 } else { 1 };
    let port = if check == Check::Https { serve_tls(folder)? } else { serve(check)? };
    let (config, checked) = (folder.join("healthcheck.toml"), folder.join("output.toml"));
    fs::write(
        folder.join("input.toml"),
        source(arguments.targets, interval, check, port, folder)?,
    )?;
    fs::write(
        &config,
        "input = \"input.toml\"\noutput = \"output.toml\"\ncontrol.socket = \"sock\"\n\
         connectivity_targets = []\n",
    )?;
    drop(fs::remove_file(&checked));
    let checker = Command::new(Program::Healthcheck.path()?)
        .args(["run", "--log-level", "warn", "--config"])
        .arg(&config)
        .spawn()?;
    let mut checker = Checker(checker);
    let id = checker.0.id();
    let begun = Instant::now();
    while !checked.exists() {
        ensure!(
            begun.elapsed() < Duration::from_secs(60),
            "the checker wrote no table within 60 s"
        );
        ensure!(checker.0.try_wait()?.is_none(), "the checker ended");
        thread::sleep(Duration::from_millis(5));
    }
    let first = begun.elapsed();
    // By then the probes are spread over the interval.
    thread::sleep(Duration::from_millis(2 * interval));
    let (before, from) = (processor_time(id)?, probes(folder)?);
    let time = Instant::now();
    thread::sleep(Duration::from_secs(arguments.seconds));
    let (after, until) = (processor_time(id)?, probes(folder)?);
    let time = time.elapsed().as_secs_f64();
    let (count, failed) = (until.0 - from.0, until.1 - from.1);
    let name = check.to_possible_value().context("no name")?.get_name().to_uppercase();
    println!(
        "{} {name} targets every {} ms: {:.1} % of a core, {:.1} MB (at most {:.1} MB); {:.0} probes a \
         second, {failed} failed; first table after {:.2} s",
        arguments.targets,
        interval,
        100.0 * (after - before) / time,
        memory(id, "VmRSS")?,
        memory(id, "VmHWM")?,
        count as f64 / time,
        first.as_secs_f64(),
    );
    let expected = f64::from(arguments.targets) / interval as f64 * 1e3;
    ensure!(
        count as f64 / time > 0.9 * expected,
        "the checker made {:.0} probes a second and not {expected:.0}",
        count as f64 / time
    );
    Ok(())
}

/// Starts a server on all addresses of lo and returns its port.
fn serve(check: Check) -> anyhow::Result<u16> {
    let listener = TcpListener::bind("0.0.0.0:0")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            if check == Check::Http {
                let mut request = [0; 1024];
                // The checker counts connections without an answer.
                drop(stream.read(&mut request));
                drop(stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"));
            }
        }
    });
    Ok(port)
}

/// Starts a server with TLS and returns its port. Writes its certificate to `ca.pem` in `folder`.
fn serve_tls(folder: &Path) -> anyhow::Result<u16> {
    use tokio_rustls::{
        TlsAcceptor,
        rustls::{ServerConfig, crypto::ring, pki_types::PrivateKeyDer},
    };
    let made = rcgen::generate_simple_self_signed([NAME.to_owned()])?;
    fs::write(folder.join("ca.pem"), made.cert.pem())?;
    let key =
        PrivateKeyDer::try_from(made.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("0.0.0.0:0")?;
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _inside = runtime.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
    thread::spawn(move || {
        runtime.block_on(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    // All file descriptors are in use: some connections must end first.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                let acceptor = acceptor.clone();
                // The checker counts connections without an answer.
                tokio::spawn(async move {
                    let mut stream = acceptor.accept(stream).await?;
                    let _length = stream.read(&mut [0; 1024]).await?;
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await?;
                    stream.shutdown().await
                });
            }
        });
    });
    Ok(port)
}

fn source(
    targets: u32,
    interval: u64,
    check: Check,
    port: u16,
    folder: &Path,
) -> anyhow::Result<String> {
    let kind = match check {
        Check::Tcp => format!("tcp = {port}"),
        Check::Http => format!("http = {port}"),
        Check::Https => {
            let ca = folder.join("ca.pem");
            let ca = ca.display();
            format!("https = {{ port = {port}, tls_name = \"{NAME}\", ca = \"{ca}\" }}")
        }
    };
    let mut text = format!(
        "[healthchecks]\ninterval = \"{}ms\"\ntimeout = \"{}ms\"\n{kind}\n\
         [[tables]]\nname = \"t\"\nhash_key = \"5b1f8a1e6f0c43d2a7e94c0d1b2a3f48\"\n\
         seed = \"d17b6f20c39e4855b0a1427e8cf3690b\"\n\
         binds = [{{ ip = \"203.0.113.10\", proto = \"tcp\", port = 80 }}]\n",
        interval,
        interval / 2,
    );
    for n in 0..targets {
        let ip = format!("127.{}.{}.{}", 100 + n / 60_000, n / 250 % 250, 1 + n % 250);
        writeln!(text, "[[tables.backends]]\nip = \"{ip}\"\nstate = \"active\"")?;
    }
    Ok(text)
}

/// The number of probes so far, and of failed ones.
fn probes(folder: &Path) -> anyhow::Result<(u64, u64)> {
    let client = Client::connect(&folder.join("sock"))?;
    let status: Snapshot = client.ask(&control_socket::Command::Status, Duration::from_secs(30))?;
    let checks =
        status.tables.iter().flat_map(|table| &table.backends).flat_map(|backend| &backend.checks);
    Ok(checks.fold((0, 0), |(all, failed), check| (all + check.probes, failed + check.failures)))
}

/// The processor time of a process so far, in seconds.
fn processor_time(id: u32) -> anyhow::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    // utime and stime, in ticks of 10 ms; the name, in parentheses, may hold spaces.
    let words = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: Vec<f64> = words.skip(11).take(2).filter_map(|word| word.parse().ok()).collect();
    Ok(ticks.iter().sum::<f64>() / 100.0)
}

/// A value of `/proc/ID/status` in MB.
fn memory(id: u32, key: &str) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let line = status.lines().find(|line| line.starts_with(key)).context("no such line")?;
    let kilobytes: f64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kilobytes / 1024.0)
}
