//! Promise: both sides know how a connection ends, and no client holds memory or takes time beyond
//! its share.

use super::*;

fn has_ended_in_order(client: &mut ClientConnection) {
    let mut rest = Vec::new();
    assert_eq!(client.reader().read_to_end(&mut rest).expect("an end in order"), 0);
}

#[test]
fn the_end_of_a_stream_of_ours_is_a_goodbye() {
    let mut bench = Bench::new();
    let mut client = bench.client();
    bench.ring.end_stream(bench.slot);
    bench.turn();
    bench.exchange(&mut client).expect("no fault");
    has_ended_in_order(&mut client);
    assert!(bench.ring.inner().ended(bench.slot));
}

#[test]
fn a_client_that_says_goodbye_is_told_goodbye() {
    for ends_its_socket in [false, true] {
        let mut bench = Bench::new();
        let mut client = bench.client();
        client.send_close_notify();
        let sealed = says(&mut client);
        bench.sends(&sealed);
        assert_eq!(bench.end, Some(ReceiveEnd::EndOfStream), "its goodbye is its end");
        if ends_its_socket {
            bench.ring.inner_mut().peer_closes(bench.slot);
            bench.turn();
        }
        // It is told all that there is, and no end is told twice.
        bench.send("the answer");
        assert_eq!(bench.exchange(&mut client), Ok(b"the answer".to_vec()));
        assert_eq!((bench.ends, bench.closed), (1, 0));
        bench.ring.close(bench.slot);
        bench.turn();
        bench.exchange(&mut client).expect("no fault");
        has_ended_in_order(&mut client);
        assert_eq!((bench.ends, bench.closed), (1, 1), "ends its socket: {ends_its_socket}");
    }
}

#[test]
fn a_client_that_ends_its_socket_without_a_word_is_told_goodbye() {
    let mut bench = Bench::new();
    let mut client = bench.client();
    bench.ring.inner_mut().peer_closes(bench.slot);
    bench.turn();
    bench.ring.close(bench.slot);
    bench.turn();
    bench.exchange(&mut client).expect("no fault");
    has_ended_in_order(&mut client);
    assert_eq!(bench.closed, 1);
}

/// Half a record of ours, and then a goodbye, would be a record that was changed.
#[test]
fn nothing_stands_behind_half_a_record_of_ours() {
    let mut bench = Bench::new();
    let mut client = bench.client();
    bench.ring.inner_mut().stall(bench.slot, true);
    bench.send("an event");
    bench.ring.inner_mut().peer_closes(bench.slot);
    bench.turn();
    bench.ring.inner_mut().stall(bench.slot, false);
    bench.ring.close(bench.slot);
    bench.turn();
    assert_eq!((bench.takes(), bench.closed), (Vec::new(), 1));
    assert_eq!(bench.exchange(&mut client), Ok(Vec::new()));
}

#[test]
fn a_record_whose_rest_does_not_come_ends_its_connection() {
    let late = (TLS_RECORD_MS_MAX / TICK_MS) as usize + 1;
    // Byte by byte, all at once, or not at all.
    for step in [1, 20, 400] {
        let mut bench = Bench::new();
        let mut client = bench.client();
        let sealed = record(&mut client, &[b'x'; 400]);
        for part in sealed[..400].chunks(step) {
            bench.sends(part);
        }
        (0..late).for_each(|_| bench.turn());
        assert_eq!(bench.end, Some(ReceiveEnd::Insecure(Insecure::Record)), "{step} at a time");
        bench.ring.close(bench.slot);
        bench.turn();
        bench.exchange(&mut client).expect("no fault of the client's");
        has_ended_in_order(&mut client);
        assert_eq!(bench.closed, 1);
    }
}

#[test]
fn a_client_that_is_not_listened_to_may_be_in_the_middle_of_a_record() {
    let late = (TLS_RECORD_MS_MAX / TICK_MS) as usize + 1;
    let mut bench = Bench::new();
    let mut client = bench.client();
    let sealed = record(&mut client, b"hello");
    bench.sends(&sealed[..7]);
    bench.ring.pause(bench.slot);
    (0..late).for_each(|_| bench.turn());
    assert_eq!(bench.end, Some(ReceiveEnd::Cancelled));
    bench.ring.receive(bench.slot);
    bench.sends(&sealed[7..]);
    assert_eq!(bench.heard, b"hello");
    // So may one that speaks all the time, and never ends with a record.
    let mut sealed = record(&mut client, b"again");
    for _ in 0..2 * late {
        let next = record(&mut client, b"again");
        bench.sends(&[&sealed[..], &next[..7]].concat());
        sealed = next[7..].to_vec();
    }
    assert_eq!(bench.ends, 1, "{:?}", bench.end);
    bench.sends(&sealed);
    (0..late).for_each(|_| bench.turn());
    assert_eq!((bench.ends, bench.heard.len()), (1, 5 * (2 * late + 2)));
    assert!(bench.ring.layer.partial.is_empty());
    assert!(bench.ring.layer.session(bench.slot).is_some_and(|session| session.cold().is_none()));
}

/// Both sides of a connection with the same first keys.
fn opened(records: &[(u8, &[u8])]) -> (Result<(), Insecure>, Vec<u8>) {
    let mut client = record::Half::default();
    let mut session = Session::default();
    let (mut heard, mut read) = (Vec::new(), Ok(()));
    for (kind, content) in records {
        let mut sealed = Vec::new();
        client.seal(*kind, content, &mut sealed);
        read = read.and_then(|()| session.read(&mut sealed, &mut |bytes| heard.extend_from_slice(bytes)));
    }
    (read, heard)
}

#[test]
fn a_change_of_keys_may_come_in_pieces_and_nothing_between_them() {
    use record::content::{DATA, HANDSHAKE};
    let update = record::KEY_UPDATE;
    for cut in 1..update.len() {
        let (begin, rest) = update.split_at(cut);
        let mut client = record::Half::default();
        let mut session = Session::default();
        let mut heard = Vec::new();
        let mut says = |client: &mut record::Half, kind, content: &[u8]| {
            let mut sealed = Vec::new();
            client.seal(kind, content, &mut sealed);
            session.read(&mut sealed, &mut |bytes| heard.extend_from_slice(bytes))
        };
        assert_eq!(says(&mut client, HANDSHAKE, begin), Ok(()));
        assert_eq!(says(&mut client, HANDSHAKE, rest), Ok(()));
        client.update();
        assert_eq!(says(&mut client, DATA, b"x"), Ok(()));
        assert_eq!(heard, b"x", "with the next key, cut at {cut}");
        let refused = Err(Insecure::Record);
        assert_eq!(opened(&[(HANDSHAKE, begin), (DATA, b"x"), (HANDSHAKE, rest)]), (refused, Vec::new()));
        let more = [rest, &update[..1]].concat();
        assert_eq!(opened(&[(HANDSHAKE, begin), (HANDSHAKE, &more)]).0, refused);
        assert_eq!(opened(&[(HANDSHAKE, begin), (HANDSHAKE, b"")]).0, refused);
    }
    assert_eq!(opened(&[(HANDSHAKE, &[24, 0, 0]), (HANDSHAKE, &[1, 2])]).0, Err(Insecure::Record));
    assert_eq!(opened(&[(HANDSHAKE, &[4])]).0, Err(Insecure::Record), "another message");
}

#[test]
fn a_turn_answers_a_bounded_number_of_handshakes_however_much_their_clients_send() {
    for (ahead, answers) in [(0, true), (HANDSHAKE_STEPS_PER_TURN, false)] {
        let mut bench = Bench::new();
        let name = ServerName::try_from("localhost").expect("a name");
        let mut client = ClientConnection::new(ends().1.clone(), name).expect("a client");
        let mut hello = says(&mut client);
        let (layer, slot) = (&mut bench.ring.layer, bench.slot);
        layer.ahead = ahead;
        let mut rest = vec![0; TLS_HANDSHAKE_BYTES_MAX];
        layer.translate(Completion::Received { slot, bytes: &mut hello }, &mut |_| {});
        layer.translate(Completion::Received { slot, bytes: &mut rest }, &mut |_| {});
        assert_eq!(layer.ahead, ahead + usize::from(answers));
        let own = layer.session(slot).and_then(Session::cold).map(|cold| cold.own.len());
        assert!(own.is_some_and(|bytes| (bytes > 500) == answers), "{own:?}");
    }
    // Those that did not wait for their step count among those that do.
    let mut bench = Bench::new();
    let name = ServerName::try_from("localhost").expect("a name");
    let mut client = ClientConnection::new(ends().1.clone(), name).expect("a client");
    let mut hello = says(&mut client);
    let (layer, slot) = (&mut bench.ring.layer, bench.slot);
    layer.ahead = HANDSHAKE_STEPS_PER_TURN;
    layer.translate(Completion::Received { slot, bytes: &mut hello }, &mut |_| {});
    layer.shake(&mut |_| {});
    assert_eq!(layer.shaking.len(), 1);
    layer.shake(&mut |_| {});
    assert_eq!(layer.shaking.len(), 0);
}

/// A ticket would let a client in without a look at its certificate.
#[test]
fn a_client_that_needs_a_certificate_shows_it_each_time() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).expect("a certificate");
    let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    for needs_one in [false, true] {
        let mut files = write("each-time", &cert, &key);
        files.client_ca = needs_one.then(|| files.pairs[0].0.clone());
        let server = load(&files).expect("certificates");
        remove(&files);
        let mut roots = RootCertStore::empty();
        roots.add(made.cert.der().clone()).expect("a certificate");
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![made.cert.der().clone()], key.expect("a key"))
            .expect("they fit");
        let config = Arc::new(config);
        let kinds = [(); 2].map(|()| {
            let mut bench = Bench::of(1, server.clone());
            let name = ServerName::try_from("localhost").expect("a name");
            let mut client = ClientConnection::new(config.clone(), name).expect("a client");
            for _ in 0..3 {
                bench.exchange(&mut client).expect("a handshake");
            }
            assert_eq!(bench.secured, 1);
            client.handshake_kind().expect("it is over")
        });
        let second = if needs_one { rustls::HandshakeKind::Full } else { rustls::HandshakeKind::Resumed };
        assert_eq!(kinds[1], second, "needs one: {needs_one}");
    }
}
