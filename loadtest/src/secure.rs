//! TLS 1.3 of one subscriber, by rustls: its handshake, what the server says, what is answered. No
//! I/O.
//!
//! Nothing of the server's own record layer is used here: it is what is judged. Of a subscriber
//! whose events are looked at, rustls opens every record. Where arrival is counted in bytes, only
//! the heads of the records of the others are read ([`Secure::skim`]), which costs about what the
//! bytes of a plain connection cost: so a comparison of both is one of servers, not of receivers. A
//! record that was sealed wrongly would not show there, as changed bytes do not on a plain
//! connection.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{ClientConfig, RootCertStore};
use serde::{Deserialize, Serialize};

use crate::fault::server_fault;

/// Bytes of a record's head (RFC 8446 §5.1).
const HEADER: usize = 5;
/// What a sealed record holds beside its content: the type and the tag (§5.2).
const SEALED_MORE: usize = 1 + 16;
/// The most that a record holds (§5.2).
const SEALED_MAX: usize = (1 << 14) + 256;
/// The type of every sealed record.
const APPLICATION_DATA: u8 = 23;
/// What a client offers to speak (RFC 7301).
const ALPN_HTTP1: &[u8] = b"http/1.1";
const ALPN_HTTP2: &[u8] = b"h2";
/// Room for what rustls writes at once.
const FLIGHT_BYTES: usize = 4 << 10;

/// How subscribers speak TLS, for the processes that do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsClient {
    /// The name that the server's certificate must have.
    pub name: String,
    /// Certificates that are trusted, in PEM.
    pub roots: String,
    /// Keys are agreed on by X25519MLKEM768, as browsers do; by X25519 alone otherwise.
    #[serde(default)]
    pub hybrid: bool,
}

/// The same, ready for handshakes. All servers get the same suite, and each handshake is a whole
/// one.
#[derive(Debug, Clone)]
pub struct Door {
    /// For every connection.
    pub config: Arc<ClientConfig>,
    /// The name that is asked for.
    pub name: ServerName<'static>,
}

impl Door {
    /// For HTTP/2, or for HTTP/1.1. An error if a certificate or the name is none.
    pub fn new(client: &TlsClient, is_http2: bool) -> Result<Door> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(client.roots.as_bytes()) {
            roots.add(certificate.context("reading a trusted certificate")?)?;
        }
        let hybrid: &[&'static dyn SupportedKxGroup] = &[kx_group::X25519MLKEM768, kx_group::X25519];
        let provider = CryptoProvider {
            cipher_suites: vec![cipher_suite::TLS13_AES_128_GCM_SHA256],
            kx_groups: hybrid[usize::from(!client.hybrid)..].to_vec(),
            ..default_provider()
        };
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![if is_http2 { ALPN_HTTP2 } else { ALPN_HTTP1 }.to_vec()];
        let name = ServerName::try_from(client.name.clone()).context("the name of a server")?;
        Ok(Door { config: Arc::new(config), name })
    }
}

/// One connection.
pub struct Secure {
    connection: UnbufferedClientConnection,
    /// The begin of a record whose rest has not come. Empty once records are skimmed.
    part: Vec<u8>,
    /// There from the first record on that is not opened.
    skim: Option<Skim>,
}

impl std::fmt::Debug for Secure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secure")
            .field("part", &self.part.len())
            .field("skim", &self.skim)
            .finish_non_exhaustive()
    }
}

impl Secure {
    /// A connection and the bytes that it begins with.
    pub fn begin(door: &Door) -> Result<(Secure, Vec<u8>)> {
        let connection = UnbufferedClientConnection::new(Arc::clone(&door.config), door.name.clone())?;
        let mut secure = Secure { connection, part: Vec::new(), skim: None };
        let mut hello = Vec::new();
        secure.advance(&mut [], &mut hello, &mut |_| Ok(()))?;
        Ok((secure, hello))
    }

    /// True once both sides have keys.
    pub fn is_open(&self) -> bool {
        !self.connection.is_handshaking()
    }

    /// True if the server has taken the offer of HTTP/2.
    pub fn speaks_http2(&self) -> bool {
        self.connection.alpn_protocol() == Some(ALPN_HTTP2)
    }

    /// Takes what came from the socket: tells `on_data` what the records held, appends to `out`
    /// what is to be sent.
    pub fn read(
        &mut self,
        bytes: &mut [u8],
        out: &mut Vec<u8>,
        on_data: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        assert!(self.skim.is_none(), "the records before were not opened");
        if self.part.is_empty() {
            let taken = self.advance(bytes, out, on_data)?;
            self.part.extend_from_slice(&bytes[taken..]);
            return Ok(());
        }
        let mut part = std::mem::take(&mut self.part);
        part.extend_from_slice(bytes);
        let taken = self.advance(&mut part, out, on_data)?;
        part.drain(..taken);
        self.part = part;
        Ok(())
    }

    /// Takes what came from the socket without opening it: how many bytes the records held that
    /// ended with it. All from here on must be taken so.
    pub fn skim(&mut self, bytes: &[u8]) -> Result<u64> {
        let skim = self.skim.get_or_insert_default();
        let before = std::mem::take(&mut self.part);
        let held = skim.take(&before).and_then(|held| Ok(held + skim.take(bytes)?));
        held.map_err(server_fault)
    }

    /// `plain` as records.
    pub fn seal(&mut self, plain: &[u8]) -> Result<Vec<u8>> {
        let UnbufferedStatus { state, .. } = self.connection.process_tls_records(&mut []);
        let ConnectionState::WriteTraffic(mut traffic) = state? else {
            bail!("a TLS connection that has no keys yet, or no more");
        };
        let mut sealed = vec![0; plain.len() + FLIGHT_BYTES];
        let written = traffic.encrypt(plain, &mut sealed).context("sealing a request")?;
        sealed.truncate(written);
        Ok(sealed)
    }

    /// Goes as far as `bytes` allow; gives how many of them were taken.
    fn advance(
        &mut self,
        bytes: &mut [u8],
        out: &mut Vec<u8>,
        on_data: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<usize> {
        let mut taken = 0;
        loop {
            let UnbufferedStatus { mut discard, state, .. } =
                self.connection.process_tls_records(&mut bytes[taken..]);
            let mut is_idle = false;
            match state.map_err(|error| server_fault(format!("TLS: {error}")))? {
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        let record = record?;
                        discard += record.discard;
                        on_data(record.payload)?;
                    }
                }
                ConnectionState::EncodeTlsData(mut data) => encode(&mut data, out)?,
                ConnectionState::TransmitTlsData(data) => data.done(),
                // The end of the server's stream shows on the socket too.
                _ => is_idle = true,
            }
            taken += discard;
            if is_idle {
                return Ok(taken);
            }
        }
    }
}

/// Appends what rustls has to say.
fn encode<D>(data: &mut EncodeTlsData<'_, D>, out: &mut Vec<u8>) -> Result<()> {
    let at = out.len();
    let mut room = FLIGHT_BYTES;
    loop {
        out.resize(at + room, 0);
        match data.encode(&mut out[at..]) {
            Ok(written) => {
                out.truncate(at + written);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(needed)) => room = needed.required_size,
            Err(error) => return Err(error).context("encoding a flight"),
        }
    }
}

/// Where in its records a stream is that is not opened.
#[derive(Debug, Default)]
struct Skim {
    /// The head of the current record, as far as it has come.
    head: [u8; HEADER],
    /// 0 <= have <= HEADER.
    have: usize,
    /// Bytes of the current record that are still to come, and that it has behind its head.
    left: usize,
    length: usize,
}

impl Skim {
    /// How many bytes the records hold that end within `bytes`.
    fn take(&mut self, mut bytes: &[u8]) -> Result<u64, String> {
        let mut held = 0;
        while !bytes.is_empty() {
            if self.have < HEADER {
                let some = (HEADER - self.have).min(bytes.len());
                self.head[self.have..self.have + some].copy_from_slice(&bytes[..some]);
                self.have += some;
                bytes = &bytes[some..];
                if self.have == HEADER {
                    self.begin()?;
                }
                continue;
            }
            let some = self.left.min(bytes.len());
            self.left -= some;
            bytes = &bytes[some..];
            if self.left == 0 {
                held += (self.length - SEALED_MORE) as u64;
                self.have = 0;
            }
        }
        Ok(held)
    }

    fn begin(&mut self) -> Result<(), String> {
        let [kind, _, _, high, low] = self.head;
        self.length = usize::from(u16::from_be_bytes([high, low]));
        if kind != APPLICATION_DATA || !(SEALED_MORE..=SEALED_MAX).contains(&self.length) {
            return Err(format!("the server sent a TLS record of type {kind} with {} bytes", self.length));
        }
        self.left = self.length;
        Ok(())
    }
}

#[cfg(test)]
pub mod tests {
    use rustls::pki_types::PrivateKeyDer;
    use rustls::{ServerConfig, ServerConnection};

    use super::*;

    /// A client that trusts a certificate made just now, and a server that has it.
    pub fn both_ends() -> (TlsClient, Arc<ServerConfig>) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("known")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("they fit");
        let client = TlsClient { name: "localhost".into(), roots: made.cert.pem(), hybrid: false };
        (client, Arc::new(config))
    }

    /// Everything that the server has to send.
    fn flush(server: &mut ServerConnection) -> Vec<u8> {
        let mut out = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut out).expect("a vector");
        }
        out
    }

    fn give(server: &mut ServerConnection, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            server.read_tls(&mut bytes).expect("a slice");
            server.process_new_packets().expect("no fault");
        }
    }

    /// An open connection, what comes from the server cut into pieces.
    fn open(piece: usize) -> (Secure, ServerConnection) {
        let (client, config) = both_ends();
        let mut server = ServerConnection::new(config).expect("a server");
        let (mut secure, hello) = Secure::begin(&Door::new(&client, false).expect("valid")).expect("begins");
        give(&mut server, &hello);
        let mut out = Vec::new();
        for bytes in flush(&mut server).chunks_mut(piece) {
            secure.read(bytes, &mut out, &mut |_| Ok(())).expect("no fault");
        }
        assert!(secure.is_open());
        give(&mut server, &out);
        assert!(!server.is_handshaking());
        (secure, server)
    }

    fn say(server: &mut ServerConnection, data: &[u8]) -> Vec<u8> {
        std::io::Write::write_all(&mut server.writer(), data).expect("room");
        flush(server)
    }

    #[test]
    fn what_a_server_says_is_opened_wherever_it_is_cut() {
        for piece in [1, 2, 7, 1_000, 100_000] {
            let (mut secure, mut server) = open(piece);
            let mut heard = Vec::new();
            for data in [vec![b'a'; 200], vec![b'b'; 40_000]] {
                for bytes in say(&mut server, &data).chunks_mut(piece) {
                    let mut keep = |data: &[u8]| {
                        heard.extend_from_slice(data);
                        Ok(())
                    };
                    secure.read(bytes, &mut Vec::new(), &mut keep).expect("no fault");
                }
            }
            assert_eq!(heard, [vec![b'a'; 200], vec![b'b'; 40_000]].concat(), "pieces of {piece}");
        }
    }

    #[test]
    fn what_is_skimmed_counts_as_many_bytes_as_are_opened_wherever_it_is_cut() {
        for piece in [1, 2, 7, 1_000, 100_000] {
            let (mut secure, mut server) = open(100_000);
            // The ticket, and half of the first record's head.
            let ticket = flush(&mut server);
            let first = say(&mut server, &[b'a'; 200]);
            let mut begin = [&ticket[..], &first[..3]].concat();
            secure.read(&mut begin, &mut Vec::new(), &mut |_| panic!("no data yet")).expect("no fault");
            let mut held = secure.skim(&first[3..]).expect("records");
            assert_eq!(held, 200);
            for bytes in say(&mut server, &[b'b'; 40_000]).chunks(piece) {
                held += secure.skim(bytes).expect("records");
            }
            assert_eq!(held, 40_200, "pieces of {piece}");
        }
        let error = Skim::default().take(b"HTTP/1.1 400").expect_err("no record");
        assert!(error.contains("type 72"), "{error}");
    }

    #[test]
    fn a_record_that_was_changed_is_the_servers_fault() {
        let (mut secure, mut server) = open(100_000);
        let mut bytes = say(&mut server, b"data");
        *bytes.last_mut().expect("a record") ^= 1;
        let error = secure.read(&mut bytes, &mut Vec::new(), &mut |_| Ok(())).expect_err("a flipped bit");
        assert!(crate::fault::is_by_server(&error) && format!("{error:#}").contains("TLS"), "{error:#}");
    }

    #[test]
    fn what_is_sealed_reaches_the_server() {
        let (mut secure, mut server) = open(100_000);
        let request = vec![b'r'; 20_000];
        let sealed = secure.seal(&request).expect("open");
        give(&mut server, &sealed);
        let mut heard = vec![0; 20_000];
        std::io::Read::read_exact(&mut server.reader(), &mut heard).expect("all of it");
        assert_eq!(heard, request);
    }
}
