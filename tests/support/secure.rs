//! Servers that speak TLS, their certificates, and a client of rustls, which shares no code with
//! the server's record layer.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData,
};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use sha2::{Digest, Sha256};

use super::peer::{Protocol, request};
use super::{PATIENCE, Scratch, Server};

/// The files of a certificate for `localhost`, written into `scratch`.
pub fn certificate(scratch: &Scratch) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).expect("a certificate");
    scratch.write("cert.pem", &made.cert.pem());
    scratch.write("key.pem", &made.signing_key.serialize_pem());
    made.cert.der().clone()
}

/// A certificate authority of the test's own, as an organisation has one, and a server's key.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    server: KeyPair,
    /// Certificates that it has made.
    made: AtomicU64,
    /// What its clients trust.
    pub root: CertificateDer<'static>,
    /// The same as a file.
    pub file: String,
}

impl Authority {
    /// Writes its own certificate, and the server's first one, into `scratch`.
    pub fn new(scratch: &Scratch) -> Authority {
        let [key, server] = [(); 2].map(|()| KeyPair::generate().expect("a key"));
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "an authority of a test");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key).expect("a certificate");
        let file = scratch.write("ca.pem", &root.pem());
        let issuer = Issuer::new(params, key);
        let authority = Authority { issuer, server, made: AtomicU64::new(1), root: root.der().clone(), file };
        authority.renew(scratch);
        authority
    }

    /// Writes another certificate of the server's key, for `localhost` and its address.
    pub fn renew(&self, scratch: &Scratch) {
        let (certificate, key) = self.certificate_for(&["localhost", "127.0.0.1"]);
        scratch.write("cert.pem", &certificate);
        scratch.write("key.pem", &key);
    }

    /// A certificate of the server's key for these names, and the key, in PEM.
    pub fn certificate_for(&self, names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
        let mut params = CertificateParams::new(names.clone()).expect("names");
        params.distinguished_name.push(DnType::CommonName, &names[0]);
        params.serial_number = Some(self.made.fetch_add(1, Ordering::Relaxed).into());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&self.server, &self.issuer).expect("a certificate");
        (certificate.pem(), self.server.serialize_pem())
    }

    /// The SHA-256 of the server's public key.
    pub fn key_digest(&self) -> [u8; 32] {
        Sha256::digest(self.server.subject_public_key_info()).into()
    }
}

/// A server with these files; its address with TLS.
pub fn start(scratch: &Scratch, flags: &[&str]) -> (Server, SocketAddr) {
    let path = |name: &str| scratch.path(name).to_str().expect("UTF-8").to_string();
    let (cert, key) = (path("cert.pem"), path("key.pem"));
    let tls = ["--listen-tls", "127.0.0.1:0", "--tls-cert", &cert, "--tls-key", &key];
    let server = Server::start(&[&tls, flags].concat());
    let address = address(&server);
    (server, address)
}

/// The first address with TLS in the banner of a server.
pub fn address(server: &Server) -> SocketAddr {
    let line = server.banner.iter().find_map(|line| line.strip_prefix("data, TLS "));
    line.expect("the banner names the address").trim().parse().expect("an address")
}

/// A client that trusts one certificate.
pub struct Client {
    pub stream: StreamOwned<ClientConnection, TcpStream>,
    heard: String,
}

/// What it needs to know before it connects.
pub fn trusting(trusted: &CertificateDer<'static>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).expect("a certificate");
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

impl Client {
    pub fn with(address: SocketAddr, config: Arc<ClientConfig>) -> Client {
        let name = ServerName::try_from("localhost").expect("a name");
        let connection = ClientConnection::new(config, name).expect("a client");
        let stream = TcpStream::connect(address).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
        Client { stream: StreamOwned::new(connection, stream), heard: String::new() }
    }

    /// A client behind a proxy that passes TLS through. What the proxy says comes together with the
    /// client's first words.
    pub fn behind(address: SocketAddr, config: Arc<ClientConfig>, header: &[u8]) -> Client {
        let mut client = Client::with(address, config);
        let mut first = header.to_vec();
        client.stream.conn.write_tls(&mut first).expect("memory can be written");
        client.stream.sock.write_all(&first).expect("the server is there");
        client
    }

    pub fn subscribe(
        address: SocketAddr,
        trusted: &CertificateDer<'static>,
        protocol: Protocol,
        after: Option<&str>,
    ) -> Client {
        Client::subscribe_with(address, Arc::new(trusting(trusted)), protocol, after)
    }

    pub fn subscribe_with(
        address: SocketAddr,
        config: Arc<ClientConfig>,
        protocol: Protocol,
        after: Option<&str>,
    ) -> Client {
        let mut client = Client::with(address, config);
        client.says(request(protocol, &["t"], after).as_bytes());
        client.hears("\r\n\r\n");
        client
    }

    pub fn says(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server is there");
    }

    /// Reads until `text` has come; returns all up to its end.
    pub fn hears(&mut self, text: &str) -> String {
        loop {
            if let Some(at) = self.heard.find(text) {
                let rest = self.heard.split_off(at + text.len());
                return std::mem::replace(&mut self.heard, rest);
            }
            let mut bytes = [0; 4_096];
            let read = self.stream.read(&mut bytes).expect("no fault");
            assert!(read > 0, "the stream ends before {text:?}: {:?}", self.heard);
            self.heard.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
    }

    /// Reads to the end of the stream, which is that of TLS too.
    pub fn hears_the_end(mut self) {
        while self.stream.read(&mut [0; 4_096]).expect("no fault") > 0 {}
    }
}
