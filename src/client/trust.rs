//! Which servers the clients believe: those whose certificate is signed by an authority of this
//! machine, or, with `--ca`, by one of a file and by no other.

use std::io;
use std::path::Path;
use std::sync::Arc;

use reqwest::Url;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::ClientError;

/// How to tell a server with TLS from an impostor.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    /// The certificates of `--ca`.
    only: Option<Vec<CertificateDer<'static>>>,
}

impl Trust {
    /// What `--ca` says, for a server at `url`.
    pub fn of(ca: Option<&Path>, url: &Url) -> Result<Trust, ClientError> {
        let Some(file) = ca else { return Ok(Trust::default()) };
        let wrong = |cause: String| ClientError::Usage(format!("--ca {}: {cause}", file.display()));
        if !has_tls(url) {
            return Err(wrong(format!("`{url}` has no TLS; write https:// or wss://")));
        }
        let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let certificates = read.map_err(|error| wrong(error.to_string()))?;
        if certificates.is_empty() {
            return Err(wrong("there is no certificate in it".to_string()));
        }
        let mut store = RootCertStore::empty();
        for certificate in &certificates {
            store.add(certificate.clone()).map_err(|error| wrong(error.to_string()))?;
        }
        Ok(Trust { only: Some(certificates) })
    }

    /// The same for a client of HTTP that asks `url`. One without TLS starts where no authorities
    /// are installed.
    pub fn of_http(
        &self,
        builder: reqwest::ClientBuilder,
        url: &Url,
    ) -> Result<reqwest::ClientBuilder, reqwest::Error> {
        let only = match (&self.only, has_tls(url)) {
            (None, true) => return Ok(builder),
            (None, false) => &[][..],
            (Some(only), _) => only,
        };
        let certificates = only.iter().map(|one| reqwest::Certificate::from_der(one));
        Ok(builder.tls_certs_only(certificates.collect::<Result<Vec<_>, _>>()?))
    }

    /// Makes a TLS handshake with the server of `url`.
    pub async fn shake(&self, url: &Url, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_string()).map_err(io::Error::other)?;
        let config = self.config().map_err(io::Error::other)?;
        TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    fn config(&self) -> Result<ClientConfig, rustls::Error> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let mut config = match &self.only {
            None => builder.with_platform_verifier()?.with_no_client_auth(),
            Some(only) => {
                let mut store = RootCertStore::empty();
                store.add_parsable_certificates(only.iter().cloned());
                builder.with_root_certificates(store).with_no_client_auth()
            }
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

/// True for an address with TLS.
pub fn has_tls(url: &Url) -> bool {
    matches!(url.scheme(), "https" | "wss")
}

/// What is wrong with the certificate of the server, if that is why there is no connection. A retry
/// does not help.
pub fn distrust(url: &Url, error: &(dyn std::error::Error + 'static)) -> Option<String> {
    fn next<'a>(
        error: &&'a (dyn std::error::Error + 'static),
    ) -> Option<&'a (dyn std::error::Error + 'static)> {
        match error.downcast_ref::<io::Error>() {
            // It stands in for the one that it carries, and has the source of that.
            Some(error) => error.get_ref().map(|inner| inner as _),
            None => error.source(),
        }
    }
    let mut causes = std::iter::successors(Some(error), next);
    match causes.find_map(|error| error.downcast_ref::<rustls::Error>())? {
        // An impostor may have the name of an issuer, and not its key.
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => Some(format!(
            "the certificate of {url} is signed by nobody who is trusted here; name who signed it with --ca FILE"
        )),
        rustls::Error::InvalidCertificate(cause) => {
            Some(format!("the certificate of {url} is not valid: {cause}"))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).expect("a URL")
    }

    #[test]
    fn what_is_no_authority_is_told_by_its_file() {
        let file = std::env::temp_dir().join(format!("fanwave-ca-{}", std::process::id()));
        std::fs::write(&file, "nothing").expect("a temporary file");
        for (path, address, part) in [
            (file.as_path(), "https://a/", "no certificate"),
            (Path::new("/nowhere"), "wss://a/", "--ca /nowhere: "),
            (file.as_path(), "http://a/", "has no TLS"),
        ] {
            match Trust::of(Some(path), &url(address)) {
                Err(ClientError::Usage(line)) => assert!(line.contains(part), "no {part:?} in {line}"),
                other => panic!("{other:?}"),
            }
        }
        std::fs::remove_file(&file).expect("our own");
    }

    #[test]
    fn a_certificate_that_is_not_believed_is_found_behind_other_errors() {
        let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let wrapped = io::Error::other(io::Error::other(unknown));
        let told = distrust(&url("https://a/"), &wrapped).expect("it is why");
        assert!(told.contains("https://a/") && told.contains("--ca FILE"), "{told}");
        let expired = rustls::Error::InvalidCertificate(rustls::CertificateError::Expired);
        let told = distrust(&url("https://a/"), &io::Error::other(expired)).expect("it is why");
        assert!(told.contains("is not valid") && !told.contains("--ca"), "{told}");
        let other = rustls::Error::AlertReceived(rustls::AlertDescription::ProtocolVersion);
        assert_eq!(distrust(&url("https://a/"), &io::Error::other(other)), None);
    }
}
