//! Records of TLS 1.3 by another hand than the server's: a peer that can say what no honest client
//! says, and that reads every record on its own account (RFC 8446 §5, §7). rustls makes its
//! handshakes, with AES-128-GCM.

use std::io::Read;
use std::sync::{Arc, Mutex};

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, KeyLog, RootCertStore};

pub const CHANGE_CIPHER_SPEC: u8 = 20;
pub const ALERT: u8 = 21;
pub const HANDSHAKE: u8 = 22;
pub const DATA: u8 = 23;

/// One direction of a connection.
#[derive(Clone)]
pub struct Direction {
    secret: Vec<u8>,
    sequence: u64,
}

impl Direction {
    fn cipher(&mut self) -> (LessSafeKey, Nonce) {
        let key = expand(&self.secret, "key", 16);
        let mut nonce: [u8; 12] = expand(&self.secret, "iv", 12).try_into().expect("12 bytes");
        for (at, byte) in self.sequence.to_be_bytes().iter().enumerate() {
            nonce[4 + at] ^= byte;
        }
        self.sequence += 1;
        let key = UnboundKey::new(&AES_128_GCM, &key).expect("16 bytes");
        (LessSafeKey::new(key), Nonce::assume_unique_for_key(nonce))
    }

    /// A record of any type, with any content, and with padding behind it.
    pub fn seal(&mut self, kind: u8, content: &[u8], padding: usize) -> Vec<u8> {
        let inner = [content, &[kind], &vec![0; padding]].concat();
        self.seal_inner(&inner)
    }

    /// A record of these bytes, which should be content, a type and padding.
    pub fn seal_inner(&mut self, inner: &[u8]) -> Vec<u8> {
        let [high, low] = ((inner.len() + 16) as u16).to_be_bytes();
        let header = [DATA, 3, 3, high, low];
        let (key, nonce) = self.cipher();
        let mut sealed = inner.to_vec();
        key.seal_in_place_append_tag(nonce, Aad::from(header), &mut sealed).expect("it has room");
        [&header[..], &sealed].concat()
    }

    /// The type and the content of a whole record.
    pub fn open(&mut self, record: &[u8]) -> (u8, Vec<u8>) {
        assert_eq!(record[..3], [DATA, 3, 3], "a sealed record looks like data");
        let (key, nonce) = self.cipher();
        let mut sealed = record[5..].to_vec();
        let opened = key.open_in_place(nonce, Aad::from(&record[..5]), &mut sealed);
        let opened = opened.expect("a record of these keys, in its turn");
        let at = opened.iter().rposition(|byte| *byte != 0).expect("a record has a type");
        assert!(at <= 1 << 14, "{at} bytes of content");
        (opened[at], opened[..at].to_vec())
    }

    /// Goes on to the next key.
    pub fn update(&mut self) {
        self.secret = expand(&self.secret, "traffic upd", 32);
        self.sequence = 0;
    }
}

/// HKDF-Expand-Label of at most one block (RFC 5869 §2.3, RFC 8446 §7.1).
fn expand(secret: &[u8], label: &str, length: usize) -> Vec<u8> {
    let label = format!("tls13 {label}");
    let info = [&[0, length as u8, label.len() as u8], label.as_bytes(), &[0, 1]].concat();
    sign(&Key::new(HMAC_SHA256, secret), &info).as_ref()[..length].to_vec()
}

/// Both directions, after a handshake.
#[derive(Clone)]
pub struct Ends {
    pub ours: Direction,
    pub theirs: Direction,
    /// Bytes of the server's that are no whole record yet.
    unread: Vec<u8>,
}

impl Ends {
    /// The server said these bytes: the type and content of each record that is whole now. Its
    /// changes of keys are followed, and are among them.
    pub fn hear(&mut self, bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
        self.unread.extend_from_slice(bytes);
        let mut heard = Vec::new();
        while let [_, _, _, high, low, ..] = self.unread[..] {
            let whole = 5 + usize::from(u16::from_be_bytes([high, low]));
            if self.unread.len() < whole {
                break;
            }
            let record: Vec<u8> = self.unread.drain(..whole).collect();
            let (kind, content) = self.theirs.open(&record);
            if kind == HANDSHAKE && content[0] == 24 {
                self.theirs.update();
            }
            heard.push((kind, content));
        }
        heard
    }
}

/// Secrets of traffic as they are agreed on: the client's, the server's.
#[derive(Debug, Default)]
struct Secrets(Mutex<[Vec<u8>; 2]>);

impl KeyLog for Secrets {
    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        let mut secrets = self.0.lock().expect("alive");
        match label {
            "CLIENT_TRAFFIC_SECRET_0" => secrets[0] = secret.to_vec(),
            "SERVER_TRAFFIC_SECRET_0" => secrets[1] = secret.to_vec(),
            _ => {}
        }
    }
}

/// A client that trusts one certificate, and speaks the one suite.
pub fn client(root: &CertificateDer<'static>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).expect("a certificate");
    let cipher_suites = vec![cipher_suite::TLS13_AES_128_GCM_SHA256];
    ClientConfig::builder_with_provider(Arc::new(CryptoProvider { cipher_suites, ..default_provider() }))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// The bytes that a client begins with.
pub fn hello(config: ClientConfig) -> (ClientConnection, Vec<u8>) {
    let name = ServerName::try_from("localhost").expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut said = Vec::new();
    client.write_tls(&mut said).expect("memory can be written");
    (client, said)
}

/// Makes a handshake; `exchange` brings bytes to the server and what it says back. Returns both
/// directions, and the client's last flight, which is not sent yet.
pub fn shake_hands(mut config: ClientConfig, mut exchange: impl FnMut(&[u8]) -> Vec<u8>) -> (Ends, Vec<u8>) {
    let secrets = Arc::<Secrets>::default();
    config.key_log = secrets.clone();
    let (mut client, mut said) = hello(config);
    while client.is_handshaking() {
        let heard = exchange(&std::mem::take(&mut said));
        let mut heard = &heard[..];
        assert!(!heard.is_empty(), "the server says nothing");
        while !heard.is_empty() {
            client.read_tls(&mut heard).expect("a slice can be read");
            client.process_new_packets().expect("a handshake");
        }
        while client.wants_write() {
            client.write_tls(&mut said).expect("memory can be written");
        }
    }
    assert!(client.reader().read(&mut [0]).is_err(), "nothing but the handshake was said");
    let [ours, theirs] = std::mem::take(&mut *secrets.0.lock().expect("alive"))
        .map(|secret| Direction { secret, sequence: 0 });
    (Ends { ours, theirs, unread: Vec::new() }, said)
}
