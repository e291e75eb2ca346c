//! Set-up: the layer over the simulated ring, without a shard: the test asks what a shard would.
//! The peer is rustls, or bytes that the test has changed.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig, ClientConnection, RootCertStore, ServerConfig};

use super::*;
use crate::config::TlsFiles;
use crate::config::limits::{HANDSHAKE_STEPS_PER_TURN, TICK_MS, TLS_RECORD_MS_MAX};
use crate::egress::sim::{SimRing, Weather};
use crate::egress::{Ledger, Payload};

mod ends;
mod proxied;

/// Files of a self-signed certificate for `localhost`, in a directory of their own.
fn files(name: &str) -> (TlsFiles, rcgen::Certificate) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).expect("a certificate");
    let files = write(name, &made.cert.pem(), &made.signing_key.serialize_pem());
    (files, made.cert)
}

fn write(name: &str, cert: &str, key: &str) -> TlsFiles {
    let directory = std::env::temp_dir().join(format!("fanwave-tls-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("a temporary directory");
    let file = |name: &str, text: &str| -> PathBuf {
        let path = directory.join(name);
        std::fs::write(&path, text).expect("a file in our own directory");
        path
    };
    TlsFiles { pairs: vec![(file("cert.pem", cert), file("key.pem", key))], client_ca: None }
}

fn remove(files: &TlsFiles) {
    let directory = files.pairs[0].0.parent().expect("it is in a directory");
    std::fs::remove_dir_all(directory).expect("our own directory");
}

/// What the server and its clients need to know, made once.
fn ends() -> &'static (Arc<ServerConfig>, Arc<ClientConfig>) {
    static ENDS: OnceLock<(Arc<ServerConfig>, Arc<ClientConfig>)> = OnceLock::new();
    ENDS.get_or_init(|| {
        let (files, certificate) = files("ends");
        let server = load(&files).expect("a certificate and its key");
        remove(&files);
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).expect("a certificate");
        let client =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13])
                .expect("TLS 1.3")
                .with_root_certificates(roots)
                .with_no_client_auth();
        (server, Arc::new(client))
    })
}

/// One connection, and what the shard would have heard of it.
struct Bench {
    ring: Tls<SimRing>,
    slot: Slot,
    ledger: Ledger,
    heard: Vec<u8>,
    /// What PROXY headers told, and whether the handshake was over by then.
    introduced: Vec<(Option<SocketAddr>, bool)>,
    secured: usize,
    end: Option<ReceiveEnd>,
    /// How often one was told.
    ends: usize,
    /// The last instant send that the socket did not take whole.
    short: Option<Rc<Batch>>,
    closed: usize,
}

impl Bench {
    fn new() -> Bench {
        Bench::at(1)
    }

    /// A client of this listener, where the second of two addresses speaks TLS.
    fn at(listener: usize) -> Bench {
        Bench::of(listener, ends().0.clone())
    }

    /// A client of a server of this kind.
    fn of(listener: usize, server: Arc<ServerConfig>) -> Bench {
        let inner = SimRing::new(4, Weather::Fair, 7).recording();
        Bench::over(Tls::new(inner, 1, 2, Identity::new(server)), listener)
    }

    fn over(mut ring: Tls<SimRing>, listener: usize) -> Bench {
        let slot = ring.inner_mut().connect_from(Ipv4Addr::LOCALHOST, listener).expect("a free slot");
        let mut bench = Bench {
            ring,
            slot,
            ledger: Ledger::default(),
            heard: Vec::new(),
            introduced: Vec::new(),
            secured: 0,
            end: None,
            ends: 0,
            short: None,
            closed: 0,
        };
        bench.turn();
        bench.ring.receive(slot);
        bench.turn();
        bench
    }

    /// As many turns as one exchange takes; a tick passes.
    fn turn(&mut self) {
        self.ring.retry_accepts();
        for _ in 0..6 {
            self.ring.reap(&mut |completion| match completion {
                Completion::Received { bytes, .. } => self.heard.extend_from_slice(bytes),
                Completion::Introduced { client, .. } => self.introduced.push((client, self.secured > 0)),
                Completion::Secured { .. } => self.secured += 1,
                Completion::ReceiveEnded { end, .. } => {
                    self.end = Some(end);
                    self.ends += 1;
                }
                Completion::Short { batch, .. } => self.short = Some(batch),
                Completion::Closed { .. } => self.closed += 1,
                _ => {}
            });
            self.ring.submit().expect("the simulated ring does not fail");
        }
    }

    fn sends(&mut self, bytes: &[u8]) {
        self.ring.inner_mut().peer_sends(self.slot, bytes);
        self.turn();
    }

    fn takes(&mut self) -> Vec<u8> {
        self.ring.inner_mut().peer_takes(self.slot)
    }

    fn send(&mut self, text: &str) {
        let batch = Batch::answer(text.as_bytes().to_vec(), &self.ledger);
        self.ring.send(self.slot, &batch, 0, SendMode::Instant);
        // A turn ends with its submit.
        self.ring.submit().expect("the simulated ring does not fail");
        self.turn();
    }

    /// A client that has agreed on keys.
    fn client(&mut self) -> ClientConnection {
        let name = ServerName::try_from("localhost").expect("a name");
        let mut client = ClientConnection::new(ends().1.clone(), name).expect("a client");
        for _ in 0..3 {
            self.exchange(&mut client).expect("a handshake");
        }
        assert!(!client.is_handshaking() && self.secured == 1, "{:?}", self.end);
        client
    }

    /// Each side reads what the other one has said. Returns the client's plain bytes.
    fn exchange(&mut self, client: &mut ClientConnection) -> Result<Vec<u8>, rustls::Error> {
        let sealed = says(client);
        if !sealed.is_empty() {
            self.sends(&sealed);
        }
        self.turn();
        let mut plain = Vec::new();
        let sealed = self.takes();
        let mut sealed = &sealed[..];
        while !sealed.is_empty() {
            client.read_tls(&mut sealed).expect("a slice can be read");
            client.process_new_packets()?;
            let _ = client.reader().read_to_end(&mut plain);
        }
        Ok(plain)
    }

    /// The alert that the client reads.
    fn alert(&mut self, client: &mut ClientConnection) -> AlertDescription {
        match self.exchange(client) {
            Err(rustls::Error::AlertReceived(alert)) => alert,
            other => panic!("no alert: {other:?}"),
        }
    }
}

/// What a client wants to send now.
fn says(client: &mut ClientConnection) -> Vec<u8> {
    let mut sealed = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut sealed).expect("memory can be written");
    }
    sealed
}

/// One record of a client with this content.
fn record(client: &mut ClientConnection, text: &[u8]) -> Vec<u8> {
    client.writer().write_all(text).expect("rustls keeps it");
    says(client)
}

#[test]
fn both_sides_hear_each_other() {
    let mut bench = Bench::new();
    let mut client = bench.client();
    let hello = record(&mut client, b"hello");
    bench.sends(&hello);
    assert_eq!(bench.heard, b"hello");
    bench.send("welcome");
    assert_eq!(bench.exchange(&mut client), Ok(b"welcome".to_vec()));
}

#[test]
fn an_address_speaks_tls_at_each_of_its_listeners_and_no_other_one_does() {
    for listener in [0, 2, 4] {
        let mut bench = Bench::at(listener);
        bench.sends(b"GET /sse/t");
        assert_eq!(bench.heard, b"GET /sse/t", "listener {listener}");
    }
    for listener in [1, 3, 5] {
        Bench::at(listener).client();
    }
}

#[test]
fn a_handshake_comes_to_its_end_wherever_it_is_cut() {
    let mut bench = Bench::new();
    let name = ServerName::try_from("localhost").expect("a name");
    let mut client = ClientConnection::new(ends().1.clone(), name).expect("a client");
    for _ in 0..3 {
        for byte in says(&mut client) {
            bench.sends(&[byte]);
        }
        bench.exchange(&mut client).expect("a handshake");
    }
    for byte in record(&mut client, b"one by one") {
        bench.sends(&[byte]);
    }
    assert_eq!(bench.heard, b"one by one");
}

#[test]
fn large_batches_are_cut_into_records_and_segments_are_joined() {
    let mut bench = Bench::new();
    let mut client = bench.client();
    let segments = [9_000, 20_000, 1, 16_384, 40_000].map(|length| vec![length as u8; length]);
    let plain = segments.concat();
    let mut batch = Batch::empty(&bench.ledger);
    batch.fill(Payload::Vectored(segments.map(bytes::Bytes::from).into()), 9);
    bench.ring.send(bench.slot, &Rc::new(batch), 0, SendMode::Instant);
    bench.turn();
    assert_eq!(bench.exchange(&mut client), Ok(plain));
}

#[test]
fn keys_change_on_either_side_and_nothing_is_lost() {
    let mut bench = Bench::new();
    let mut client = bench.client();
    for round in 0..5 {
        client.refresh_traffic_keys().expect("after the handshake");
        let text = format!("round {round};");
        let sealed = record(&mut client, text.as_bytes());
        bench.sends(&sealed);
        bench.send(&text);
        assert_eq!(bench.exchange(&mut client), Ok(text.into_bytes()));
    }
    assert_eq!(bench.heard, b"round 0;round 1;round 2;round 3;round 4;");
}

#[test]
fn our_key_changes_when_it_is_used_up() {
    let mut bench = Bench::new();
    let mut client = bench.client();
    for number in 0..3 * record::RECORDS_PER_KEY_MAX {
        let text = number.to_string();
        bench.send(&text);
        assert_eq!(bench.exchange(&mut client), Ok(text.into_bytes()), "the client follows");
    }
}

/// Every hostile record ends its connection with the alert of RFC 8446, and closes it.
fn is_refused(alert: AlertDescription, change: impl Fn(&mut Vec<u8>)) {
    let mut bench = Bench::new();
    let mut client = bench.client();
    let mut sealed = record(&mut client, b"hello");
    change(&mut sealed);
    bench.sends(&sealed);
    assert_eq!(bench.end, Some(ReceiveEnd::Insecure(Insecure::Record)), "{alert:?}");
    assert!(bench.heard.is_empty() || alert == AlertDescription::BadRecordMac);
    bench.ring.close(bench.slot);
    bench.turn();
    assert_eq!(bench.alert(&mut client), alert);
    assert_eq!(bench.closed, 1, "{alert:?}");
}

#[test]
fn hostile_records_are_refused_with_the_alert_of_the_standard() {
    use AlertDescription::{BadRecordMac, RecordOverflow, UnexpectedMessage};
    for at in [5, 9, 12] {
        is_refused(BadRecordMac, |record| record[at] ^= 0x40);
    }
    is_refused(BadRecordMac, |record| record.extend(record.clone()));
    is_refused(UnexpectedMessage, |record| record[0] = 22);
    is_refused(UnexpectedMessage, |record| record[0] = 20);
    is_refused(RecordOverflow, |record| record[3] = 0x42);
}

/// The end of the receive and a tick may both ask for the close.
#[test]
fn a_slot_is_closed_once_whatever_comes_between() {
    for ends in [true, false] {
        let mut bench = Bench::new();
        bench.sends(b"GET / HTTP/1.1\r\n\r\n");
        bench.ring.close(bench.slot);
        bench.ring.submit().expect("the simulated ring does not fail");
        if ends {
            bench.ring.inner_mut().peer_closes(bench.slot);
            bench.ring.inner_mut().submit().expect("the simulated ring does not fail");
        }
        bench.turn();
        assert_eq!(bench.closed, 1, "ends: {ends}");
    }
}

#[test]
fn a_fault_behind_a_send_that_fell_short_is_no_reason_to_stay() {
    let mut bench = Bench::new();
    let mut client = bench.client();
    let sealed = record(&mut client, b"hello");
    bench.ring.inner_mut().stall(bench.slot, true);
    bench.send("an event");
    assert!(bench.short.take().is_some_and(|batch| batch.len() == 8), "the shard hears of its own batch");
    bench.sends(&[&[22], &sealed[1..]].concat());
    assert_eq!(bench.end, Some(ReceiveEnd::Insecure(Insecure::Record)));
    bench.ring.close(bench.slot);
    bench.turn();
    assert_eq!(bench.closed, 1);
}

#[test]
fn what_stands_behind_the_handshake_is_no_part_of_it_however_much_it_is() {
    let mut bench = Bench::new();
    let name = ServerName::try_from("localhost").expect("a name");
    let mut client = ClientConnection::new(ends().1.clone(), name).expect("a client");
    bench.exchange(&mut client).expect("a handshake");
    bench.exchange(&mut client).expect("a handshake");
    let large = vec![b'x'; 60_000];
    client.writer().write_all(&large).expect("rustls keeps it");
    let mut sealed = says(&mut client);
    // In one reap, receive buffer by receive buffer.
    let Bench { ring, heard, slot, end, .. } = &mut bench;
    let Tls { layer, .. } = ring;
    // It has a step although the turn has had all of its own.
    layer.ahead = HANDSHAKE_STEPS_PER_TURN;
    for part in sealed.chunks_mut(2_048) {
        layer.translate(
            Completion::Received { slot: *slot, bytes: part },
            &mut |completion| match completion {
                Completion::Received { bytes, .. } => heard.extend_from_slice(bytes),
                Completion::ReceiveEnded { end: why, .. } => *end = Some(why),
                _ => {}
            },
        );
    }
    bench.turn();
    assert_eq!((bench.end, bench.heard.len()), (None, large.len()));
}

#[test]
fn a_client_that_only_changes_keys_is_refused() {
    let mut bench = Bench::new();
    let mut client = bench.client();
    for _ in 0..40 {
        client.refresh_traffic_keys().expect("after the handshake");
        let sealed = says(&mut client);
        bench.sends(&sealed);
    }
    assert_eq!(bench.end, Some(ReceiveEnd::Insecure(Insecure::Record)));
}

#[test]
fn a_truncated_record_is_no_data() {
    let mut bench = Bench::new();
    let mut client = bench.client();
    let sealed = record(&mut client, b"hello");
    bench.sends(&sealed[..sealed.len() - 1]);
    bench.ring.inner_mut().peer_closes(bench.slot);
    bench.turn();
    assert_eq!((bench.heard.as_slice(), bench.end), (&b""[..], Some(ReceiveEnd::EndOfStream)));
}

#[test]
fn a_plain_request_is_told_to_speak_tls() {
    let mut bench = Bench::new();
    bench.sends(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!(bench.end, Some(ReceiveEnd::Insecure(Insecure::Handshake)));
    bench.ring.close(bench.slot);
    bench.turn();
    let answer = String::from_utf8(bench.takes()).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.1 400 ") && body.contains("https://"), "{answer}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{answer}");
    assert_eq!(bench.closed, 1);
}

#[test]
fn a_fault_with_more_messages_behind_it_in_its_record_has_its_alert() {
    let mut bench = Bench::new();
    let name = ServerName::try_from("localhost").expect("a name");
    let mut client = ClientConnection::new(ends().1.clone(), name).expect("a client");
    // The same message again, in the same record.
    let hello = says(&mut client);
    let messages = [&hello[record::HEADER..], &hello[record::HEADER..]].concat();
    let length = u16::try_from(messages.len()).expect("it fits a record").to_be_bytes();
    bench.sends(&[&hello[..3], &length, &messages].concat());
    assert_eq!(bench.end, Some(ReceiveEnd::Insecure(Insecure::Handshake)));
    bench.ring.close(bench.slot);
    bench.turn();
    let alert = bench.takes();
    assert_eq!((&alert[..5], alert.len(), bench.closed), (&[21, 3, 3, 0, 2][..], 7, 1), "{alert:?}");
}

/// Its last flight is one record: that there is no certificate, and what follows from it.
#[test]
fn a_client_without_the_certificate_that_it_needs_is_told_so() {
    let (mut files, certificate) = files("needed");
    files.client_ca = Some(files.pairs[0].0.clone());
    let server = load(&files).expect("certificates");
    remove(&files);
    let mut bench = Bench::of(1, server);
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone()).expect("a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    bench.exchange(&mut client).expect("it hears of the server first");
    let last = says(&mut client);
    bench.sends(&last);
    assert_eq!((bench.end, bench.secured), (Some(ReceiveEnd::Insecure(Insecure::Handshake)), 0));
    bench.ring.close(bench.slot);
    bench.turn();
    assert_eq!(bench.alert(&mut client), AlertDescription::CertificateRequired);
    assert_eq!(bench.closed, 1);
}

#[test]
fn noise_instead_of_a_handshake_is_refused() {
    for noise in [&b"\x00\x01\x02"[..], b"\x16\x03\x01\xff\xff", b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"]
    {
        let mut bench = Bench::new();
        bench.sends(noise);
        bench.ring.inner_mut().peer_closes(bench.slot);
        bench.turn();
        assert!(bench.end.is_some() && bench.secured == 0, "{noise:?}");
    }
}

#[test]
fn an_idle_connection_keeps_its_keys_alone() {
    let mut bench = Bench::new();
    let mut client = bench.client();
    bench.send("an event");
    bench.exchange(&mut client).expect("no fault");
    let session = bench.ring.layer.session(bench.slot).expect("it is there");
    assert!(session.cold().is_none(), "{session:?}");
    assert!(size_of::<Session>() <= 192, "{} bytes", size_of::<Session>());
    assert_eq!(bench.ledger.bytes(), 0, "no piece is held");
}

#[test]
fn a_certificate_that_cannot_be_used_is_named() {
    let (good, _) = files("good");
    let (other, _) = files("other");
    let told = |files: &TlsFiles| load(files).expect_err("it cannot be used").to_string();
    let (cert, key) = (&good.pairs[0].0, &other.pairs[0].1);
    let mixed = TlsFiles { pairs: vec![(cert.clone(), key.clone())], client_ca: None };
    let expected = format!("--tls-key {} does not fit --tls-cert {}", key.display(), cert.display());
    assert!(told(&mixed).starts_with(&expected), "{}", told(&mixed));
    let swapped = TlsFiles { pairs: vec![(good.pairs[0].1.clone(), cert.clone())], client_ca: None };
    assert!(told(&swapped).contains("there is no certificate in it"), "{}", told(&swapped));
    let missing = TlsFiles { pairs: vec![("/nowhere".into(), key.clone())], client_ca: None };
    assert!(told(&missing).starts_with("--tls-cert /nowhere: "), "{}", told(&missing));

    for (year, what) in [(1999, "has expired"), (2999, "is not valid yet")] {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(["localhost".to_string()]).expect("a name");
        params.not_before = rcgen::date_time_ymd(year, 1, 1);
        params.not_after = rcgen::date_time_ymd(year, 2, 1);
        let cert = params.self_signed(&key).expect("a certificate");
        let files = write(&format!("year-{year}"), &cert.pem(), &key.serialize_pem());
        assert!(told(&files).contains(what), "{}", told(&files));
        remove(&files);
    }
    remove(&good);
    remove(&other);
}
