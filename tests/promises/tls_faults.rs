//! Claim: a client that breaks TLS in whatever way is told so by the alert of RFC 8446, counted
//! under its reason, and touches nobody else.
//!
//! Set-up: a server with `--listen-tls`; subscribers that stay; clients that keep the handshake and
//! then seal what no honest client says, and clients that do not even begin. Certificates and keys
//! of every kind that cannot be used.
//!
//! Expectation: for each the standard's alert, or the silence that it asks for; the reason's
//! counter, exactly; those who stay hear all. A start names the file, a reload names it and keeps
//! what there was.

use std::io::Write;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{ClientConfig, RootCertStore, SupportedCipherSuite};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::peer::{Protocol, request};
use crate::support::raw::{exchange, exchange_bytes, rest};
use crate::support::records::{self, ALERT, CHANGE_CIPHER_SPEC, DATA, Ends, HANDSHAKE};
use crate::support::secure::{Authority, Client, start};
use crate::support::{Scratch, Server, within};

const UNEXPECTED_MESSAGE: u8 = 10;
const BAD_RECORD_MAC: u8 = 20;
const RECORD_OVERFLOW: u8 = 22;
const HANDSHAKE_FAILURE: u8 = 40;
const ILLEGAL_PARAMETER: u8 = 47;
const DECODE_ERROR: u8 = 50;
const PROTOCOL_VERSION: u8 = 70;

/// Two that stay while others break things, and what they have been sent.
struct Bystanders {
    clients: Vec<Client>,
    events: usize,
}

impl Bystanders {
    fn new(address: SocketAddr, authority: &Authority) -> Bystanders {
        let subscribe = |protocol| Client::subscribe(address, &authority.root, protocol, None);
        Bystanders { clients: [Protocol::Sse, Protocol::WebSocket].map(subscribe).into(), events: 0 }
    }

    /// They hear an event, and nothing in its place.
    async fn hear(&mut self, server: &Server) {
        self.events += 1;
        let text = format!("event {};", self.events);
        server.publish("t", text.clone()).await;
        for client in &mut self.clients {
            let heard = client.hears(&text);
            assert!(!heard[..heard.len() - text.len()].contains("event"), "{heard}");
        }
    }
}

/// A connection whose handshake is made but for the client's last flight, which is returned.
async fn shaken(address: SocketAddr, config: ClientConfig) -> (TcpStream, Ends, Vec<u8>) {
    let mut socket = within("a connection", TcpStream::connect(address)).await.expect("it listens");
    let (ends, finished) = tokio::task::block_in_place(|| {
        records::shake_hands(config, |bytes| {
            let mut heard = Vec::with_capacity(16_384);
            tokio::runtime::Handle::current().block_on(within("a flight of the server", async {
                socket.write_all(bytes).await.expect("the server reads");
                socket.read_buf(&mut heard).await.expect("the server answers");
            }));
            heard
        })
    });
    (socket, ends, finished)
}

/// A client with keys.
async fn secured(address: SocketAddr, authority: &Authority) -> (TcpStream, Ends) {
    let (mut socket, ends, finished) = shaken(address, records::client(&authority.root)).await;
    socket.write_all(&finished).await.expect("the server reads");
    (socket, ends)
}

type Fault = fn(&mut Ends) -> Vec<u8>;

/// What a client with keys may do wrong, and the alert that answers it; none where the server has to
/// be silent.
const RECORDS: [(&str, Option<u8>, Fault); 21] = [
    ("a bit of the content is flipped", Some(BAD_RECORD_MAC), |ends| bent(ends, 5)),
    ("a bit of the tag is flipped", Some(BAD_RECORD_MAC), |ends| bent(ends, 20)),
    ("it is replayed", Some(BAD_RECORD_MAC), |ends| ends.ours.clone().seal(DATA, b"", 0).repeat(2)),
    ("one before it is missing", Some(BAD_RECORD_MAC), |ends| {
        ends.ours.seal(DATA, b"lost", 0);
        ends.ours.seal(DATA, b"", 0)
    }),
    ("it is too short for a tag", Some(BAD_RECORD_MAC), |_| b"\x17\x03\x03\x00\x0aabcdefghij".to_vec()),
    ("it is empty", Some(BAD_RECORD_MAC), |_| b"\x17\x03\x03\x00\x00".to_vec()),
    ("it says that it is a handshake", Some(UNEXPECTED_MESSAGE), |ends| {
        let sealed = ends.ours.seal(DATA, b"", 0);
        [&[HANDSHAKE], &sealed[1..]].concat()
    }),
    ("it changes ciphers as older versions do", Some(UNEXPECTED_MESSAGE), |_| {
        vec![CHANGE_CIPHER_SPEC, 3, 3, 0, 1, 1]
    }),
    ("an alert is not sealed", Some(UNEXPECTED_MESSAGE), |_| vec![ALERT, 3, 3, 0, 2, 2, 40]),
    ("its header promises too much", Some(RECORD_OVERFLOW), |_| vec![DATA, 3, 3, 0x41, 0x01]),
    ("it holds too much", Some(RECORD_OVERFLOW), |ends| ends.ours.seal(DATA, &[b'x'; (1 << 14) + 1], 0)),
    ("it is padding alone", Some(UNEXPECTED_MESSAGE), |ends| ends.ours.seal_inner(&[0; 40])),
    ("it is of a type that nobody knows", Some(UNEXPECTED_MESSAGE), |ends| ends.ours.seal(99, b"x", 0)),
    ("it renegotiates", Some(UNEXPECTED_MESSAGE), |ends| {
        ends.ours.seal(HANDSHAKE, &[1, 0, 0, 4, 3, 3, 0, 0], 0)
    }),
    ("it finishes again", Some(UNEXPECTED_MESSAGE), |ends| {
        ends.ours.seal(HANDSHAKE, &[&[20, 0, 0, 32][..], &[7; 32]].concat(), 0)
    }),
    ("it is an empty handshake", Some(UNEXPECTED_MESSAGE), |ends| ends.ours.seal(HANDSHAKE, b"", 9)),
    ("it wants another key in a way of its own", Some(ILLEGAL_PARAMETER), |ends| {
        ends.ours.seal(HANDSHAKE, &[24, 0, 0, 1, 2], 0)
    }),
    ("keys change and nothing is said", Some(UNEXPECTED_MESSAGE), |ends| {
        let update = |_| {
            let record = ends.ours.seal(HANDSHAKE, &[24, 0, 0, 1, 0], 0);
            ends.ours.update();
            record
        };
        (0..33).flat_map(update).collect()
    }),
    ("an alert is empty", Some(UNEXPECTED_MESSAGE), |ends| ends.ours.seal(ALERT, b"", 0)),
    ("two alerts are one", Some(DECODE_ERROR), |ends| ends.ours.seal(ALERT, &[1, 90, 1, 0], 0)),
    ("it tells of a fault itself", None, |ends| ends.ours.seal(ALERT, &[2, 80], 0)),
];

fn bent(ends: &mut Ends, at: usize) -> Vec<u8> {
    let mut record = ends.ours.seal(DATA, b"hello", 0);
    record[at] ^= 1;
    record
}

/// The alerts among what the server says until its end.
async fn alerts(socket: &mut TcpStream, ends: &mut Ends) -> Vec<Vec<u8>> {
    let heard = ends.hear(&rest(socket).await);
    heard.into_iter().filter(|(kind, _)| *kind == ALERT).map(|(_, alert)| alert).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_of_a_record_is_answered_by_its_alert_and_touches_nobody_else() {
    let scratch = Scratch::new();
    let authority = Authority::new(&scratch);
    let (server, address) = start(&scratch, &["--shards", "1"]);
    let mut bystanders = Bystanders::new(address, &authority);
    for (fault, alert, record) in RECORDS {
        // As a newcomer, in the middle of its head, and as a subscriber.
        let head = request(Protocol::WebSocket, &["t"], None);
        for said in ["", &head[..20], &head] {
            let (mut socket, mut ends) = secured(address, &authority).await;
            let mut bytes = match said {
                "" => Vec::new(),
                said => ends.ours.seal(DATA, said.as_bytes(), 0),
            };
            bytes.extend(record(&mut ends));
            socket.write_all(&bytes).await.expect("the server reads");
            let told = alerts(&mut socket, &mut ends).await;
            let expected: Vec<Vec<u8>> = alert.iter().map(|alert| vec![2, *alert]).collect();
            assert_eq!(told, expected, "{fault}, after {said:?}");
        }
        bystanders.hear(&server).await;
    }
    server.await_closed("tls_record", 3 * RECORDS.len() as u64).await;
    // A record that breaks off is the end of the stream, and no fault.
    let (mut socket, mut ends) = secured(address, &authority).await;
    let record = ends.ours.seal(DATA, b"GET /sse/t HTTP/1.1\r\nHost: h\r\n\r\n", 0);
    socket.write_all(&record[..record.len() - 1]).await.expect("the server reads");
    socket.shutdown().await.expect("a socket");
    assert!(alerts(&mut socket, &mut ends).await.iter().all(|alert| alert[1] == 0));
    server.await_closed("client_gone", 1).await;
    server.await_closed("tls_record", 3 * RECORDS.len() as u64).await;
    bystanders.hear(&server).await;
}

/// Its goodbye ends its side as the end of its socket does, and is answered by ours.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_says_goodbye_has_its_answer_and_then_ours() {
    let scratch = Scratch::new();
    let authority = Authority::new(&scratch);
    let (_server, address) = start(&scratch, &["--shards", "1"]);
    let stream = request(Protocol::Sse, &["t"], None);
    for asked in ["GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n", &stream] {
        for ends_its_socket in [false, true] {
            let (mut socket, mut ends) = secured(address, &authority).await;
            let bytes = [ends.ours.seal(DATA, asked.as_bytes(), 0), ends.ours.seal(ALERT, &[1, 0], 0)];
            socket.write_all(&bytes.concat()).await.expect("the server reads");
            if ends_its_socket {
                socket.shutdown().await.expect("a socket");
            }
            let mut heard = ends.hear(&rest(&mut socket).await);
            assert_eq!(heard.pop(), Some((ALERT, vec![1, 0])), "{asked}");
            let data = heard.into_iter().filter(|(kind, _)| *kind == DATA).flat_map(|(_, text)| text);
            let text = String::from_utf8(data.collect()).expect("UTF-8");
            assert!(text.starts_with("HTTP/1.1 200 OK\r\n") && text.ends_with('\n'), "{text}");
        }
    }
}

/// A client of this suite and these protocols, with the smallest hello that there is.
fn small(authority: &Authority, suite: SupportedCipherSuite, alpn: &[&[u8]]) -> ClientConfig {
    let provider = CryptoProvider {
        cipher_suites: vec![suite],
        kx_groups: vec![kx_group::X25519 as &dyn SupportedKxGroup],
        ..default_provider()
    };
    let mut roots = RootCertStore::empty();
    roots.add(authority.root.clone()).expect("a certificate");
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_fault_of_a_handshake_is_answered_by_its_alert_and_touches_nobody_else() {
    let scratch = Scratch::new();
    let authority = Authority::new(&scratch);
    let (server, address) = start(&scratch, &["--shards", "1"]);
    let mut bystanders = Bystanders::new(address, &authority);
    let hello = |suite, alpn: &[&[u8]]| records::hello(small(&authority, suite, alpn)).1;
    let usual = hello(cipher_suite::TLS13_AES_128_GCM_SHA256, &[]);
    let versions = memchr::memmem::find(&usual, &[0, 43, 0, 3, 2, 3, 4]).expect("supported versions");
    let mut older = usual.clone();
    older[versions + 6] = 3;
    let mut no_hello = usual.clone();
    no_hello[5] = 20;
    let cases: [(&str, Option<u8>, Vec<u8>); 12] = [
        ("no TLS at all", Some(UNEXPECTED_MESSAGE), b"\0\x01\x02\x03".to_vec()),
        ("SSL 2", Some(UNEXPECTED_MESSAGE), b"\x80\x2e\x01\x00\x02\x00\x15".to_vec()),
        ("data first", Some(UNEXPECTED_MESSAGE), b"\x17\x03\x03\x00\x05hello".to_vec()),
        ("a change of ciphers first", Some(UNEXPECTED_MESSAGE), b"\x14\x03\x03\x00\x01\x01".to_vec()),
        ("an alert first", None, b"\x15\x03\x03\x00\x02\x02\x28".to_vec()),
        ("an empty record", Some(UNEXPECTED_MESSAGE), b"\x16\x03\x01\x00\x00".to_vec()),
        ("a record that is too long", Some(RECORD_OVERFLOW), b"\x16\x03\x01\x40\x01".to_vec()),
        ("a hello that is none", Some(DECODE_ERROR), b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00".to_vec()),
        ("another message than a hello", Some(UNEXPECTED_MESSAGE), no_hello),
        ("an older version", Some(PROTOCOL_VERSION), older),
        ("no suite in common", Some(HANDSHAKE_FAILURE), hello(cipher_suite::TLS13_AES_256_GCM_SHA384, &[])),
        (
            "a message without an end",
            Some(ILLEGAL_PARAMETER),
            [
                &b"\x16\x03\x01\x40\x00\x01\x00\xff\xff"[..],
                &[0; 16_380],
                b"\x16\x03\x01\x40\x00",
                &[0; 4_000],
            ]
            .concat(),
        ),
    ];
    for (fault, alert, bytes) in &cases {
        let told = exchange_bytes(address, bytes).await;
        let expected = alert.map(|alert| vec![ALERT, 3, 3, 0, 2, 2, alert]).unwrap_or_default();
        assert_eq!(told, expected, "{fault}");
        bystanders.hear(&server).await;
    }
    // A plain request gets an answer that it understands.
    let told = exchange(address, b"GET /sse/t HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!((told.status, told.line()), (400, "this address speaks TLS: write https://"));
    // This alert is sealed: rustls can read it.
    let spdy = small(&authority, cipher_suite::TLS13_AES_128_GCM_SHA256, &[b"spdy/3"]);
    let refused = Client::with(address, Arc::new(spdy)).stream.write_all(b"GET").expect_err("no protocol");
    assert!(refused.to_string().contains("NoApplicationProtocol"), "{refused}");
    // A second hello, and a last flight with a flipped bit: the alerts are sealed by then.
    for bytes in [usual.repeat(2), [&usual[..], b"\x17\x03\x03\x41\x01"].concat()] {
        let told = exchange_bytes(address, &bytes).await;
        assert_eq!((told[0], told[5]), (HANDSHAKE, 2), "a hello of ours, and more");
    }
    server.await_closed("tls_handshake", cases.len() as u64 + 4).await;
    let (mut socket, _, mut finished) = shaken(address, records::client(&authority.root)).await;
    let last = finished.len() - 1;
    finished[last] ^= 1;
    socket.write_all(&finished).await.expect("the server reads");
    let told = rest(&mut socket).await;
    assert!(told.starts_with(&[DATA, 3, 3]), "an alert under the keys of the handshake: {told:?}");
    server.await_closed("tls_handshake", cases.len() as u64 + 5).await;
    bystanders.hear(&server).await;
    assert_eq!(server.closed("tls_record").await, 0);
}

/// Every byte of what a client says before its request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_stall_at_any_byte_end_in_time_and_hold_up_nobody() {
    let scratch = Scratch::new();
    let authority = Authority::new(&scratch);
    let (server, address) = start(&scratch, &["--shards", "1", "--handshake-ms-max", "1000"]);
    let mut bystanders = Bystanders::new(address, &authority);
    let usual = || small(&authority, cipher_suite::TLS13_AES_128_GCM_SHA256, &[]);
    let mut stalled = Vec::new();
    for at in 0..records::hello(usual()).1.len() {
        let mut socket = within("a connection", TcpStream::connect(address)).await.expect("it listens");
        socket.write_all(&records::hello(usual()).1[..at]).await.expect("the server reads");
        stalled.push(socket);
    }
    bystanders.hear(&server).await;
    // The last flight: a change of ciphers, for middleboxes, and what finishes the handshake.
    for at in 0..=(6 + 5 + 36 + 17) {
        let (mut socket, _, finished) = shaken(address, usual()).await;
        assert_eq!(finished.len(), 6 + 5 + 36 + 17);
        socket.write_all(&finished[..at]).await.expect("the server reads");
        stalled.push(socket);
    }
    bystanders.hear(&server).await;
    for socket in &mut stalled {
        rest(socket).await;
    }
    server.await_closed("handshake_timeout", stalled.len() as u64).await;
    assert_eq!(server.closed("tls_handshake").await, 0);
    bystanders.hear(&server).await;
}

/// Files that cannot be used: what stands in them, and what is told of which.
fn unusable(scratch: &Scratch) -> Vec<(String, String, &'static str)> {
    let good = (scratch.path("cert.pem"), scratch.path("key.pem"));
    let [cert, key] = [&good.0, &good.1].map(|path| std::fs::read_to_string(path).expect("our file"));
    let other = rcgen::generate_simple_self_signed(["localhost".to_string()]).expect("a certificate");
    let of_year = |year: i32| {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(["localhost".to_string()]).expect("a name");
        (params.not_before, params.not_after) =
            (rcgen::date_time_ymd(year, 1, 1), rcgen::date_time_ymd(year, 2, 1));
        (params.self_signed(&key).expect("a certificate").pem(), key.serialize_pem())
    };
    let (expired, expired_key) = of_year(1999);
    let (early, early_key) = of_year(2999);
    let half = &cert[..cert.len() / 2];
    let broken = cert.replacen("MII", "AAA", 1);
    let mut cases = vec![
        (cert.clone(), other.signing_key.serialize_pem(), "does not fit"),
        (other.cert.pem(), key.clone(), "does not fit"),
        (expired, expired_key, "has expired"),
        (early, early_key, "is not valid yet"),
        (key.clone(), key.clone(), "there is no certificate in it"),
        (half.to_string(), key.clone(), "--tls-cert"),
        (broken, key.clone(), "cannot be read"),
        (String::new(), key.clone(), "there is no certificate in it"),
        ("\0\u{1}\u{2}".to_string(), key.clone(), "--tls-cert"),
        (cert.clone(), String::new(), "--tls-key"),
        (cert.clone(), cert.clone(), "--tls-key"),
        (cert.clone(), key[..key.len() / 2].to_string(), "--tls-key"),
    ];
    cases.push((cert, key.replacen("MI", "AA", 1), "--tls-key"));
    cases
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_cannot_be_used_refuse_the_start_and_change_nothing_in_a_reload() {
    let scratch = Scratch::new();
    let authority = Authority::new(&scratch);
    let cases = unusable(&scratch);
    let (server, address) = start(&scratch, &["--shards", "1"]);
    let mut bystanders = Bystanders::new(address, &authority);
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| scratch.path(name).display().to_string());
    for (certificate, private, told) in &cases {
        scratch.write("cert.pem", certificate);
        scratch.write("key.pem", private);
        let reload = server.answer(server.post("/reload")).await;
        assert_eq!(reload.status, 422, "{told}: {reload:?}");
        let output = Command::new("timeout")
            .args(["60", env!("CARGO_BIN_EXE_fanwave"), "--listen", "127.0.0.1:0", "--shards", "1"])
            .args(["--control", "127.0.0.1:0", "--listen-tls", "127.0.0.1:0"])
            .args(["--tls-cert", &cert, "--tls-key", &key])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .output()
            .expect("the program runs");
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{told}: {stderr}");
        for line in [reload.error(), stderr] {
            assert!(line.contains(told), "no {told:?} in {line}");
            assert!(line.contains(&cert) || line.contains(&key), "no file in {line}");
        }
        // The certificate of before is there still.
        Client::subscribe(address, &authority.root, Protocol::Sse, None);
        bystanders.hear(&server).await;
    }
    // A file that is gone, and a directory.
    for change in [|path: &str| std::fs::remove_file(path), |path: &str| std::fs::create_dir(path)] {
        change(&cert).expect("our own file");
        let reload = server.answer(server.post("/reload")).await;
        assert_eq!(reload.status, 422, "{reload:?}");
        assert!(reload.error().contains(&cert), "{reload:?}");
    }
    std::fs::remove_dir(&cert).expect("our own directory");
    authority.renew(&scratch);
    assert_eq!(server.answer(server.post("/reload")).await.status, 200);
    bystanders.hear(&server).await;
}
