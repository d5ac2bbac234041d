//! TLS of `https` checks: one rustls configuration for each set of trusted certificates, created when
//! the input is loaded.

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
use crate::check::{HttpCheck, Target, TlsSettings};

/// Why a TLS configuration cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The CA file is not usable.
    #[error("ca = {:?}: {problem}", path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// The error.
        problem: String,
    },
    /// The system has no certificate authorities.
    #[error(
        "this system has no certificate authorities ({0}): install ca-certificates, or set `ca` or `verify = false`"
    )]
    System(String),
    /// rustls rejects the configuration.
    #[error("TLS: {0}")]
    Rustls(#[from] Error),
}

/// Which certificates are trusted.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Trust {
    Any,
    System,
    File(PathBuf),
}

impl Trust {
    fn of(tls: &TlsSettings) -> Self {
        match (&tls.ca, tls.verify) {
            (_, false) => Self::Any,
            (None, true) => Self::System,
            (Some(path), true) => Self::File(path.clone()),
        }
    }
}

/// The configurations for a set of targets.
#[derive(Debug)]
pub struct TlsConfigs(HashMap<Trust, Arc<ClientConfig>>);

impl TlsConfigs {
    /// Creates the configurations. Those of `old` stay, because the previous input may still be in force.
    ///
    /// # Errors
    /// A CA file is not usable.
    pub(super) fn new<'t>(
        checks: impl IntoIterator<Item = &'t TlsSettings>,
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
        http: &HttpCheck,
        tls: &TlsSettings,
    ) -> Result<TlsStream<TcpStream>, Failure> {
        let setup = |text: &str| Failure::Setup(text.to_owned());
        let config =
            self.0.get(&Trust::of(tls)).ok_or_else(|| setup("the TLS configuration is missing"))?;
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

/// The server name: the configured one, the Host header's, or the address.
fn name(target: &Target, http: &HttpCheck, tls: &TlsSettings) -> ServerName<'static> {
    let host = http.host.as_deref().map(|host| {
        // The Host header may include a port.
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
        Trust::Any => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AcceptAny(provider)))
            .with_no_client_auth(),
        Trust::System => builder.with_root_certificates(system()?).with_no_client_auth(),
        Trust::File(path) => builder.with_root_certificates(file(path)?).with_no_client_auth(),
    };
    // A resumed session does not prove that the server can complete a full handshake.
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
        return Err(wrong("it contains no certificate in PEM form".into()));
    }
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    Ok(roots)
}

/// Accepts every certificate, for `verify = false`. Signatures of the handshake are still verified.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
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
