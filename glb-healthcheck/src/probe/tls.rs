//! TLS by rustls: one configuration for each way of verifying, made when targets are loaded.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
        client::{
            Resumption,
            danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        },
        crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
        pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
    },
};

use super::Failure;
use crate::check::{Http, Target, Tls};

/// Why TLS cannot be checked as configured.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A CA file.
    #[error("ca = {:?}: {problem}", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The system's authorities.
    #[error(
        "no certificate authorities on this system ({0}): install ca-certificates, give `ca`, or `verify = false`"
    )]
    System(String),
    /// rustls.
    #[error("TLS: {0}")]
    Rustls(#[from] Error),
}

/// How certificates are verified.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Trust {
    Nobody,
    System,
    File(PathBuf),
}

impl Trust {
    fn of(tls: &Tls) -> Self {
        match (&tls.ca, tls.verify) {
            (_, false) => Self::Nobody,
            (None, true) => Self::System,
            (Some(path), true) => Self::File(path.clone()),
        }
    }
}

/// The configurations that a set of targets needs.
#[derive(Debug)]
pub struct TlsConfigs(HashMap<Trust, Arc<ClientConfig>>);

impl TlsConfigs {
    /// Makes them. Those of `old` that nobody asks for any more stay: a former source may still be in
    /// force.
    ///
    /// # Errors
    /// When a CA file cannot be used.
    pub(super) fn new<'t>(
        checks: impl IntoIterator<Item = &'t Tls>,
        old: Option<&Self>,
    ) -> Result<Self, TlsError> {
        let mut configs = HashMap::new();
        for tls in checks {
            if let Entry::Vacant(entry) = configs.entry(Trust::of(tls)) {
                let config = Arc::new(config(entry.key())?);
                entry.insert(config);
            }
        }
        for (trust, config) in old.iter().flat_map(|old| &old.0) {
            configs.entry(trust.clone()).or_insert_with(|| Arc::clone(config));
        }
        Ok(Self(configs))
    }

    pub(super) async fn connect(
        &self,
        stream: TcpStream,
        target: &Target,
        http: &Http,
        tls: &Tls,
    ) -> Result<TlsStream<TcpStream>, Failure> {
        let setup = |text: &str| Failure::Setup(text.to_owned());
        let config = self.0.get(&Trust::of(tls)).ok_or_else(|| setup("no TLS configuration"))?;
        let name = name(target, http, tls);
        let connector = TlsConnector::from(Arc::clone(config));
        connector.connect(name, stream).await.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof => {
                Failure::Io { step: "TLS", source: error }
            }
            _ => Failure::Tls(error),
        })
    }
}

/// The given name, or the Host header's, or the address.
fn name(target: &Target, http: &Http, tls: &Tls) -> ServerName<'static> {
    let host = http.host.as_deref().map(|host| {
        // Without the port, if there is one.
        if host.parse::<SocketAddr>().is_ok() { "" } else { host.split(':').next().unwrap_or("") }
    });
    let given = tls.name.as_deref().or(host).and_then(|name| ServerName::try_from(name).ok());
    match given {
        Some(name) => name.to_owned(),
        None => ServerName::IpAddress(target.address.into()),
    }
}

fn config(trust: &Trust) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let mut config = match trust {
        Trust::Nobody => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
            .with_no_client_auth(),
        Trust::System => builder.with_root_certificates(system()?).with_no_client_auth(),
        Trust::File(path) => builder.with_root_certificates(file(path)?).with_no_client_auth(),
    };
    // A resumed session would not show that the server can still make a new one.
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn system() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (good, _) = roots.add_parsable_certificates(found.certs);
    if good == 0 {
        let why: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
        return Err(TlsError::System(why.join("; ")));
    }
    Ok(roots)
}

fn file(path: &Path) -> Result<RootCertStore, TlsError> {
    let wrong = |problem: String| TlsError::Ca { path: path.to_owned(), problem };
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(error.to_string()))?;
    if certificates.is_empty() {
        return Err(wrong("no certificate in it; a PEM file is wanted".into()));
    }
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    Ok(roots)
}

/// Takes every certificate, for `verify = false`; the handshake itself is still checked.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
