//! Claim: with `--acme` the server has its certificate signed by an authority and renewed, and is
//! no worse off while the authority is not there.
//!
//! Set-up: pebble, the test server of Let's Encrypt, which looks at the server's own TLS listener by
//! tls-alpn-01; a name server that leads every name to loopback. Where an authority is not needed,
//! nobody listens at its address.
//!
//! Expectation: a server without a certificate refuses handshakes with an alert and says so; then
//! it serves one that the authority has signed for its names. A restart finds it and orders none.
//! One with a third of its time left is replaced. Where an order fails, the old
//! one stays, and banner, metrics and log say what there is.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use sha2::{Digest, Sha256};

use crate::support::{Scratch, Server, until};

const NAMES: [&str; 2] = ["events.fanwave.test", "edge.fanwave.test"];

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port")
}

/// Leads every name to 127.0.0.1, and to no address of IPv6 (RFC 1035).
struct Names {
    address: SocketAddr,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Names {
    fn start() -> Names {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
        socket.set_read_timeout(Some(std::time::Duration::from_millis(100))).expect("a socket");
        let address = socket.local_addr().expect("bound");
        let ends = Arc::new(AtomicBool::new(false));
        let told = ends.clone();
        let thread = std::thread::spawn(move || {
            let mut packet = [0; 512];
            while !told.load(Ordering::Relaxed) {
                let Ok((length, peer)) = socket.recv_from(&mut packet) else { continue };
                let asked = &packet[..length];
                let name = asked[12..].iter().position(|byte| *byte == 0).expect("a name") + 12;
                let is_ipv4 = asked[name + 1..name + 3] == [0, 1];
                let mut answer = asked[..2].to_vec();
                answer.extend([0x84, 0, 0, 1, 0, u8::from(is_ipv4), 0, 0, 0, 0]);
                answer.extend(&asked[12..name + 5]);
                if is_ipv4 {
                    answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4, 127, 0, 0, 1]);
                }
                // It may have stopped to wait.
                let _ = socket.send_to(&answer, peer);
            }
        });
        Names { address, ends, thread: Some(thread) }
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// pebble, gone with its value.
struct Authority {
    process: Child,
    directory: String,
    _names: Names,
}

impl Authority {
    /// It looks at the port of `server`.
    async fn start(scratch: &Scratch, server: SocketAddr) -> Authority {
        Authority::start_at(free_address(), scratch, server).await
    }

    async fn start_at(address: SocketAddr, scratch: &Scratch, server: SocketAddr) -> Authority {
        let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).expect("a certificate");
        let certificate = scratch.write("authority.pem", &made.cert.pem());
        let key = scratch.write("authority.key", &made.signing_key.serialize_pem());
        let config = serde_json::json!({ "pebble": {
            "listenAddress": address.to_string(),
            "certificate": certificate,
            "privateKey": key,
            "httpPort": 1,
            "tlsPort": server.port(),
        }});
        let config = scratch.write("pebble.json", &config.to_string());
        let names = Names::start();
        let process = Command::new("pebble")
            .args(["-config", &config, "-strict", "-dnsserver", &names.address.to_string()])
            .env("PEBBLE_VA_NOSLEEP", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("pebble is there");
        until("the authority", async || TcpStream::connect(address).ok()).await;
        let directory = format!("https://localhost:{}/dir", address.port());
        Authority { process, directory, _names: names }
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A server with TLS at `address` whose certificate is signed by the authority at `directory`.
fn start(scratch: &Scratch, address: SocketAddr, directory: &str) -> Server {
    start_with(scratch, address, directory, &[])
}

fn start_with(scratch: &Scratch, address: SocketAddr, directory: &str, more: &[&str]) -> Server {
    let (state, ca) = (scratch.path("state"), scratch.path("authority.pem"));
    let flags = [
        "--shards=1",
        "--control-tls=127.0.0.1:0",
        &format!("--listen-tls={address}"),
        &format!("--acme={}", NAMES.join(",")),
        &format!("--acme-directory={directory}"),
        &format!("--acme-dir={}", state.display()),
        &format!("--acme-ca={}", ca.display()),
        "--acme-contact=ops@fanwave.test",
    ];
    Server::start(&[&flags, more].concat())
}

/// What a client that trusts everybody gets of a handshake: the certificate, or why there is none.
fn certificate_at(address: SocketAddr, name: &str) -> Result<CertificateDer<'static>, String> {
    #[derive(Debug)]
    struct Anybody;
    impl rustls::client::danger::ServerCertVerifier for Anybody {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: rustls::pki_types::UnixTime,
        ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
            Ok(rustls::client::danger::ServerCertVerified::assertion())
        }
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            Err(rustls::Error::General("TLS 1.3 alone".into()))
        }
        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &rustls::DigitallySignedStruct,
        ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
            let known = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
            rustls::crypto::verify_tls13_signature(message, certificate, signature, &known)
        }
        fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
            let known = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
            known.supported_schemes()
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_string()).expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut socket = TcpStream::connect(address).expect("it listens");
    while client.is_handshaking() {
        client.complete_io(&mut socket).map_err(|error| error.to_string())?;
    }
    let chain = client.peer_certificates().expect("a server has one");
    Ok(chain[0].clone().into_owned())
}

/// True if it is a certificate for this host.
fn names(certificate: &CertificateDer<'_>, name: &str) -> bool {
    let certificate = rustls::server::ParsedCertificate::try_from(certificate).expect("a certificate");
    let name = ServerName::try_from(name.to_string()).expect("a name");
    rustls::client::verify_server_name(&certificate, &name).is_ok()
}

fn issuer(certificate: &CertificateDer<'_>) -> String {
    let (_, read) = x509_parser::parse_x509_certificate(certificate).expect("a certificate");
    read.issuer().to_string()
}

/// Where a server keeps what it has of the authority at `directory`.
fn place(scratch: &Scratch, directory: &str) -> std::path::PathBuf {
    let host = directory.strip_prefix("https://").and_then(|rest| rest.split('/').next()).expect("a host");
    let digest = Sha256::digest(directory);
    let tail: String = digest[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    scratch.path("state").join(format!("{}-{tail}", host.replace(':', "-")))
}

/// Writes a certificate for the names, as if an authority had signed it `age_days` ago for 90 days.
fn keep(scratch: &Scratch, directory: &str, age_days: i64) -> CertificateDer<'static> {
    let issuer_key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, issuer_key).expect("an issuer");
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(NAMES.map(String::from)).expect("names");
    let day = std::time::Duration::from_secs(86_400);
    let begins = std::time::SystemTime::now() - day * u32::try_from(age_days).expect("an age");
    params.not_before = begins.into();
    params.not_after = (begins + day * 90).into();
    let made = params.signed_by(&key, &issuer).expect("a certificate");
    let place = place(scratch, directory);
    std::fs::create_dir_all(&place).expect("a directory");
    std::fs::write(place.join("certificate.pem"), key.serialize_pem() + &made.pem()).expect("a file");
    made.der().clone()
}

async fn acme(server: &Server) -> (u64, u64, bool) {
    let stats = server.stats().await;
    let certificate = &stats["hub"]["certificate"];
    let number = |name: &str| certificate[name].as_u64().unwrap_or_else(|| panic!("no {name}: {stats}"));
    (number("orders"), number("failures"), number("expires") > 0)
}

fn modes(directory: &Path) -> Vec<u32> {
    use std::os::unix::fs::PermissionsExt;
    let entries = std::fs::read_dir(directory).expect("a directory");
    let mode = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.and_then(|entry| entry.metadata()).expect("a file").permissions().mode() & 0o777
    };
    entries.map(mode).collect()
}

#[tokio::test]
#[ignore = "needs pebble"]
async fn acme_a_certificate_is_ordered_served_and_found_again() {
    let scratch = Scratch::new();
    let address = free_address();
    let authority = Authority::start(&scratch, address).await;
    let mut server = start(&scratch, address, &authority.directory);
    until("the order to be through", async || (acme(&server).await == (1, 0, true)).then_some(())).await;
    let control =
        server.banner.iter().find_map(|line| line.strip_prefix("control, TLS ")).expect("an address");
    for at in [address, control.trim().parse().expect("an address")] {
        for name in NAMES {
            let served = certificate_at(at, name).expect("there is one now");
            assert!(names(&served, name) && issuer(&served).contains("Pebble"), "{}", issuer(&served));
        }
    }
    let metrics = server.get("/metrics").await.body;
    for line in ["fanwave_acme_orders_total 1\n", "fanwave_acme_order_failures_total 0\n"] {
        assert!(metrics.contains(line), "{metrics}");
    }
    let place = place(&scratch, &authority.directory);
    assert_eq!(modes(&place), [0o600, 0o600], "account, and certificate with its key");
    let before = certificate_at(address, NAMES[0]).expect("there is one");
    server.signal(rustix::process::Signal::TERM);
    assert_eq!(server.ended().await.code(), Some(0));
    let again = start(&scratch, address, &authority.directory);
    assert_eq!(acme(&again).await, (0, 0, true), "it is found, and none is ordered");
    assert_eq!(certificate_at(address, NAMES[0]), Ok(before));
    assert!(again.banner.iter().any(|line| line.starts_with("certificate   of events.fanwave.test")));
}

/// Subscribers need certificates of their own here, and an authority has none. The second authority
/// at the same address does not know the account of the first one.
#[tokio::test]
#[ignore = "needs pebble"]
async fn acme_a_certificate_that_ends_soon_is_replaced_also_by_an_authority_that_has_forgotten_us() {
    let scratch = Scratch::new();
    let (address, at) = (free_address(), free_address());
    for _ in 0..2 {
        let authority = Authority::start_at(at, &scratch, address).await;
        let old = keep(&scratch, &authority.directory, 61);
        let ca = scratch.path("authority.pem").display().to_string();
        let server = start_with(&scratch, address, &authority.directory, &["--tls-client-ca", &ca]);
        assert_eq!(certificate_at(address, NAMES[1]).err(), None, "the old one is served meanwhile");
        until("the order to be through", async || (acme(&server).await == (1, 0, true)).then_some(())).await;
        let new = certificate_at(address, NAMES[1]).expect("there is one");
        assert!(new != old && issuer(&new).contains("Pebble"));
        assert_eq!(server.into_log().await.matches("a new account").count(), 1);
    }
}

#[tokio::test]
async fn without_its_authority_a_server_keeps_what_it_has_and_says_so() {
    let scratch = Scratch::new();
    let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).expect("a certificate");
    scratch.write("authority.pem", &made.cert.pem());
    let (address, nobody) = (free_address(), format!("https://localhost:{}/dir", free_address().port()));
    let server = start(&scratch, address, &nobody);
    until("the order to fail", async || (acme(&server).await == (0, 1, false)).then_some(())).await;
    let refused = certificate_at(address, NAMES[0]).expect_err("there is none");
    assert!(refused.contains("AccessDenied"), "{refused}");
    assert!(server.banner.iter().any(|line| line.contains("none yet (--acme)")), "{:?}", server.banner);
    let log = server.into_log().await;
    assert!(log.contains("no new certificate (--acme): ") && log.contains("next try in "), "{log}");

    let old = keep(&scratch, &nobody, 80);
    let server = start(&scratch, address, &nobody);
    until("the order to fail", async || (acme(&server).await == (0, 1, true)).then_some(())).await;
    assert_eq!(certificate_at(address, NAMES[0]), Ok(old.clone()));
    // A reload of the files changes nothing about it.
    assert_eq!(server.answer(server.post("/reload")).await.status, 200);
    assert_eq!(certificate_at(address, NAMES[1]), Ok(old));
    let log = server.into_log().await;
    assert!(log.contains("the old one stays"), "{log}");
}

#[tokio::test]
async fn one_that_looks_for_a_proof_without_an_order_gets_none() {
    let scratch = Scratch::new();
    let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).expect("a certificate");
    scratch.write("authority.pem", &made.cert.pem());
    let (address, nobody) = (free_address(), format!("https://localhost:{}/dir", free_address().port()));
    let old = keep(&scratch, &nobody, 80);
    let server = start(&scratch, address, &nobody);
    let mut roots = RootCertStore::empty();
    roots.add(old).expect("a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"acme-tls/1".to_vec()];
    let name = ServerName::try_from(NAMES[0]).expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut socket = TcpStream::connect(address).expect("it listens");
    let refused = client.complete_io(&mut socket).expect_err("there is no proof").to_string();
    assert!(refused.contains("AccessDenied"), "{refused}");
    server.await_closed("tls_handshake", 1).await;
}
