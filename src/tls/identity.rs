//! Who the server is: certificates and keys from files, and which of them a client gets.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use rustls::client::verify_server_name;
use rustls::crypto::aws_lc_rs::{Ticketer, cipher_suite, default_provider};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{
    ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, Error, NoKeyLog, RootCertStore, ServerConfig};

use super::automatic::{ALPN, Automatic};
use super::handshake::SecretsTap;
use crate::config::TlsFiles;

/// What a file with certificates or keys lacks. One line that names it.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// It cannot be read, or is no PEM.
    #[error("{flag} {}: {source}", .path.display())]
    Unreadable {
        /// The flag that names it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: PemError,
    },
    /// It holds no certificate.
    #[error("{flag} {}: there is no certificate in it", .path.display())]
    Empty {
        /// The flag that names it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The certificate is not valid now.
    #[error("--tls-cert {}: the certificate {what}", .path.display())]
    NotNow {
        /// The file.
        path: PathBuf,
        /// In which way.
        what: &'static str,
    },
    /// The key is of another certificate, or of a kind that is not known.
    #[error("--tls-key {} does not fit --tls-cert {}: {source}", .key.display(), .cert.display())]
    Mismatch {
        /// The file of the key.
        key: PathBuf,
        /// The file of the certificate.
        cert: PathBuf,
        /// What is wrong.
        source: Error,
    },
    /// No certificate of the file can be one that signs those of clients.
    #[error("--tls-client-ca {}: {what}", .path.display())]
    ClientCa {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// rustls cannot do what it is asked.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] Error),
}

/// Reads the files and makes the handshakes of a server of them.
pub fn load(files: &TlsFiles) -> Result<Arc<ServerConfig>, IdentityError> {
    load_with(files, None)
}

/// The same with certificates that come while the server runs, if any do.
pub fn load_with(
    files: &TlsFiles,
    automatic: Option<&Automatic>,
) -> Result<Arc<ServerConfig>, IdentityError> {
    let provider = Arc::new(provider());
    let keys = files.pairs.iter().map(|(cert, key)| certified(cert, key, &provider));
    let certificates = Certificates { files: keys.collect::<Result<_, _>>()?, automatic: automatic.cloned() };
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => builder.with_client_cert_verifier(client_verifier(path, &provider)?),
    };
    let mut config = builder.with_cert_resolver(Arc::new(certificates));
    config.enable_secret_extraction = true;
    config.key_log = Arc::new(SecretsTap);
    // AES-128 where both know it: processors do it.
    config.ignore_client_order = true;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.alpn_protocols.extend(automatic.map(|_| ALPN.to_vec()));
    // A ticket is all that a client needs to come back with half a handshake; we keep nothing. Who
    // comes back so shows no certificate, and nobody would look whether it is still good.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = usize::from(files.client_ca.is_none());
    if files.client_ca.is_none() {
        config.ticketer = Ticketer::new()?;
    }
    Ok(Arc::new(config))
}

/// The same handshakes, which offer no HTTP/2.
pub fn without_http2(config: &ServerConfig) -> Arc<ServerConfig> {
    let mut config = config.clone();
    config.alpn_protocols.retain(|protocol| protocol != b"h2");
    Arc::new(config)
}

/// Without AES-256: one hash and one key length less to know, and nothing slower.
pub(super) fn provider() -> CryptoProvider {
    let cipher_suites =
        vec![cipher_suite::TLS13_AES_128_GCM_SHA256, cipher_suite::TLS13_CHACHA20_POLY1305_SHA256];
    CryptoProvider { cipher_suites, ..default_provider() }
}

fn certificates(flag: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let unreadable = |source| IdentityError::Unreadable { flag, path: path.to_path_buf(), source };
    let read = CertificateDer::pem_file_iter(path).map_err(unreadable)?;
    let chain: Vec<_> = read.collect::<Result<_, _>>().map_err(unreadable)?;
    if chain.is_empty() {
        return Err(IdentityError::Empty { flag, path: path.to_path_buf() });
    }
    Ok(chain)
}

fn certified(cert: &Path, key: &Path, provider: &CryptoProvider) -> Result<Arc<CertifiedKey>, IdentityError> {
    let chain = certificates("--tls-cert", cert)?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|source| IdentityError::Unreadable {
        flag: "--tls-key",
        path: key.to_path_buf(),
        source,
    })?;
    if let Some(what) = why_not_now(&chain[0], &provider.signature_verification_algorithms) {
        return Err(IdentityError::NotNow { path: cert.to_path_buf(), what });
    }
    let mismatch = |source| IdentityError::Mismatch { key: key.into(), cert: cert.into(), source };
    Ok(Arc::new(CertifiedKey::from_der(chain, private, provider).map_err(mismatch)?))
}

/// Why a certificate is not valid now, if it is not. Its dates are looked at before its issuer, so
/// that nobody is trusted here does not matter.
pub(super) fn why_not_now(
    certificate: &CertificateDer<'_>,
    algorithms: &WebPkiSupportedAlgorithms,
) -> Option<&'static str> {
    let certificate = match ParsedCertificate::try_from(certificate) {
        Ok(certificate) => certificate,
        Err(_) => return Some("cannot be read"),
    };
    let nobody = RootCertStore::empty();
    let verified = rustls::client::verify_server_cert_signed_by_trust_anchor(
        &certificate,
        &nobody,
        &[],
        UnixTime::now(),
        algorithms.all,
    );
    match verified {
        Err(Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        )) => Some("has expired"),
        Err(Error::InvalidCertificate(
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. },
        )) => Some("is not valid yet"),
        _ => None,
    }
}

fn client_verifier(
    path: &Path,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn rustls::server::danger::ClientCertVerifier>, IdentityError> {
    let wrong = |what: String| IdentityError::ClientCa { path: path.to_path_buf(), what };
    let mut roots = RootCertStore::empty();
    for certificate in certificates("--tls-client-ca", path)? {
        roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
    }
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .map_err(|error| wrong(error.to_string()))
}

/// The first certificate that names what the client asks for, else the first of all. Those of files
/// come first.
#[derive(Debug)]
struct Certificates {
    files: Vec<Arc<CertifiedKey>>,
    automatic: Option<Automatic>,
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        if let Some(automatic) = &self.automatic
            && hello.alpn().is_some_and(|protocols| protocols.eq([ALPN]))
        {
            return automatic.challenge(hello.server_name()?);
        }
        let signed = self.automatic.as_ref().and_then(Automatic::certificate);
        let all = || self.files.iter().chain(&signed);
        let asked = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let names = |key: &&Arc<CertifiedKey>| {
            let certificate = ParsedCertificate::try_from(&key.cert[0]).ok();
            let (Some(certificate), Some(asked)) = (certificate, &asked) else { return false };
            verify_server_name(&certificate, asked).is_ok()
        };
        let named = all().nth(1).and_then(|_| all().find(names));
        named.or_else(|| all().next()).cloned()
    }
}

/// The certificates of now, shared by all shards and the control plane. Looked at once per
/// handshake; a reload replaces them, and leaves the connections that there are.
#[derive(Clone)]
pub struct Identity(Arc<RwLock<Handshakes>>);

/// How handshakes are made.
struct Handshakes {
    data: Arc<ServerConfig>,
    control: Arc<ServerConfig>,
}

impl Handshakes {
    fn new(data: Arc<ServerConfig>) -> Handshakes {
        let mut control = ServerConfig::clone(&data);
        // There rustls keeps its keys to itself, and HTTP/1.1 alone is spoken.
        control.enable_secret_extraction = false;
        control.key_log = Arc::new(NoKeyLog {});
        control.alpn_protocols = vec![b"http/1.1".to_vec()];
        Handshakes { data, control: Arc::new(control) }
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Identity")
    }
}

impl Identity {
    /// With these to begin with.
    pub fn new(config: Arc<ServerConfig>) -> Identity {
        Identity(Arc::new(RwLock::new(Handshakes::new(config))))
    }

    /// Those of now, for subscribers.
    pub fn now(&self) -> Arc<ServerConfig> {
        self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner()).data.clone()
    }

    /// Those of now, for the control plane.
    pub fn control(&self) -> Arc<ServerConfig> {
        self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner()).control.clone()
    }

    /// Handshakes from now on have these.
    pub fn replace(&self, config: Arc<ServerConfig>) {
        *self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = Handshakes::new(config);
    }
}
