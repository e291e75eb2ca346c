//! Certificates that come while the server runs, and what an authority wants to see before it signs
//! them (tls-alpn-01, RFC 8737).

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::verify_server_name;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;

use super::identity::{provider, why_not_now};

/// The protocol by which an authority looks (RFC 8737 §6.2).
pub(super) const ALPN: &[u8] = b"acme-tls/1";

/// Why a certificate with its key cannot be used. One line.
#[derive(Debug, thiserror::Error)]
pub enum SignedError {
    /// It is no PEM, or there is no key.
    #[error("there is no key and no certificate: {0}")]
    Pem(#[from] PemError),
    /// There is only a key.
    #[error("there is no certificate")]
    Empty,
    /// The key is of another certificate.
    #[error("the key does not fit the certificate: {0}")]
    Mismatch(#[from] rustls::Error),
    /// Its dates cannot be read.
    #[error("the certificate cannot be read")]
    Unreadable,
    /// It is not valid now.
    #[error("the certificate {0}")]
    NotNow(&'static str),
}

/// A certificate with its chain and its key, valid now.
#[derive(Debug)]
pub struct Signed {
    key: Arc<CertifiedKey>,
    begins: u64,
    expires: u64,
}

impl Signed {
    /// From PEM: the key and the chain, its own certificate first.
    pub fn read(text: &str) -> Result<Signed, SignedError> {
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes())?;
        let chain: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<_, _>>()?;
        let first = chain.first().ok_or(SignedError::Empty)?.clone();
        let provider = provider();
        if let Some(what) = why_not_now(&first, &provider.signature_verification_algorithms) {
            return Err(SignedError::NotNow(what));
        }
        let (_, read) = x509_parser::parse_x509_certificate(&first).map_err(|_| SignedError::Unreadable)?;
        let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
        let (begins, expires) = (seconds(read.validity().not_before), seconds(read.validity().not_after));
        let key = Arc::new(CertifiedKey::from_der(chain, key, &provider)?);
        Ok(Signed { key, begins, expires })
    }

    /// True if it is one for this host.
    pub fn names(&self, host: &str) -> bool {
        let certificate = ParsedCertificate::try_from(&self.key.cert[0]);
        let (Ok(certificate), Ok(name)) = (certificate, ServerName::try_from(host)) else { return false };
        verify_server_name(&certificate, &name).is_ok()
    }

    /// From when on it is valid, in seconds since 1970.
    pub fn begins(&self) -> u64 {
        self.begins
    }

    /// Until when.
    pub fn expires(&self) -> u64 {
        self.expires
    }
}

/// The certificate that is in force, and the proofs that are to be seen now. Clones are the same.
#[derive(Clone, Default)]
pub struct Automatic(Arc<RwLock<Held>>);

#[derive(Default)]
struct Held {
    certificate: Option<Arc<CertifiedKey>>,
    /// By host.
    challenges: HashMap<String, Arc<CertifiedKey>>,
}

impl fmt::Debug for Automatic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Automatic")
    }
}

impl Automatic {
    /// Handshakes from now on have this one.
    pub fn set_certificate(&self, signed: Signed) {
        self.held(|held| held.certificate = Some(signed.key));
    }

    /// What an authority that looks for `host` is to see: a certificate and its key, in PEM. It is of
    /// no other use: nobody else knows its extension, which is critical.
    pub fn set_challenge(&self, host: String, proof: &str) -> Result<(), SignedError> {
        let key = PrivateKeyDer::from_pem_slice(proof.as_bytes())?;
        let key = provider().key_provider.load_private_key(key)?;
        let proof = CertifiedKey::new(vec![CertificateDer::from_pem_slice(proof.as_bytes())?], key);
        self.held(|held| held.challenges.insert(host, Arc::new(proof)));
        Ok(())
    }

    /// Nobody looks any more.
    pub fn forget_challenges(&self) {
        self.held(|held| held.challenges.clear());
    }

    fn held<T>(&self, change: impl FnOnce(&mut Held) -> T) -> T {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// The one in force.
    pub(crate) fn certificate(&self) -> Option<Arc<CertifiedKey>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).certificate.clone()
    }

    pub(super) fn challenge(&self, host: &str) -> Option<Arc<CertifiedKey>> {
        let held = self.0.read().unwrap_or_else(PoisonError::into_inner);
        held.challenges.get(&host.to_ascii_lowercase()).cloned()
    }
}
