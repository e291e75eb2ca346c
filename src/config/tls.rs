//! The flags about TLS, on the addresses of subscribers and of the control plane.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::socket_address;

/// Files with certificates and keys. Read by `tls`, at the start and at each reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// A chain of certificates, and the key of its first one. A client gets the first pair that
    /// names the host it asks for, else the first of all.
    pub pairs: Vec<(PathBuf, PathBuf)>,
    /// Who signs the certificates that clients must have; none, if they need none.
    pub client_ca: Option<PathBuf>,
}

/// What flags about TLS say together that they may not. Names the flag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// An address without a certificate.
    #[error("{0} needs --tls-cert FILE and --tls-key FILE, or --acme DOMAIN")]
    NoCertificate(&'static str),
    /// Certificates without an address.
    #[error("{0} is given without --listen-tls and --control-tls; name an address, such as 0.0.0.0:8443")]
    NoAddress(&'static str),
    /// A certificate without a key, or the reverse.
    #[error("--tls-cert is given {certs} times and --tls-key {keys} times; each needs the other")]
    Unpaired {
        /// Certificates.
        certs: usize,
        /// Keys.
        keys: usize,
    },
}

/// The flags of [`TlsFiles`], and their addresses.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "TLS")]
pub(super) struct TlsFlags {
    /// Where subscribers connect with TLS 1.3: https:// and wss://; repeat it for several
    #[arg(long, value_name = "IP:PORT", value_delimiter = ',', value_parser = socket_address)]
    pub listen_tls: Vec<SocketAddr>,
    /// Where publishers and operators connect with TLS 1.3, besides --control; repeat it for several
    #[arg(long, value_name = "IP:PORT", value_delimiter = ',', value_parser = socket_address)]
    pub control_tls: Vec<SocketAddr>,
    /// Certificate of the server and those that lead to its issuer, in PEM; repeat it, with as many
    /// keys, for several host names
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    tls_cert: Vec<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, value_name = "FILE", value_delimiter = ',')]
    tls_key: Vec<PathBuf>,
    /// Clients need a certificate that one of these has signed, in PEM
    #[arg(long, value_name = "FILE")]
    tls_client_ca: Option<PathBuf>,
}

impl TlsFlags {
    /// Checked; none without an address. `has_acme`: certificates may come later.
    pub(super) fn files(self, has_acme: bool) -> Result<Option<TlsFiles>, TlsError> {
        let (certs, keys) = (self.tls_cert.len(), self.tls_key.len());
        if certs != keys {
            return Err(TlsError::Unpaired { certs, keys });
        }
        let address = match (self.listen_tls.is_empty(), self.control_tls.is_empty()) {
            (false, _) => Some("--listen-tls"),
            (true, false) => Some("--control-tls"),
            (true, true) => None,
        };
        match (address, certs) {
            (Some(flag), 0) if !has_acme => Err(TlsError::NoCertificate(flag)),
            (Some(_), _) => {
                let pairs = self.tls_cert.into_iter().zip(self.tls_key).collect();
                Ok(Some(TlsFiles { pairs, client_ca: self.tls_client_ca }))
            }
            (None, 0) if self.tls_client_ca.is_none() => Ok(None),
            (None, 0) => Err(TlsError::NoAddress("--tls-client-ca")),
            (None, _) => Err(TlsError::NoAddress("--tls-cert")),
        }
    }
}
