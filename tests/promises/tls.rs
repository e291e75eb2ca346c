//! Claim: over TLS 1.3 a subscriber gets what it gets without, and the certificates may change
//! under it.
//!
//! Set-up: a server with `--listen-tls` and a certificate of its own making. Clients are rustls and
//! curl, neither of which shares code with the server's record layer.
//!
//! Expectation: event streams and WebSockets are whole, also for who comes back with an id, be it
//! to a process that has taken the place of the first one. A reload takes new certificates and cuts
//! nobody; one that cannot be used changes nothing, and is named. What is no TLS, or an older one,
//! is refused with a reason and counted.

use std::collections::HashSet;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};

use crate::support::peer::{Protocol, masked};
use crate::support::raw::exchange;
use crate::support::secure::{Authority, Client, certificate, start, trusting};
use crate::support::server::{answer, client};
use crate::support::{Scratch, Subscriber, until};

#[tokio::test]
async fn event_streams_and_websockets_are_whole_over_tls() {
    let scratch = Scratch::new();
    let trusted = certificate(&scratch);
    let (server, address) = start(&scratch, &["--shards", "1"]);
    let mut sse = Client::subscribe(address, &trusted, Protocol::Sse, None);
    let mut websocket = Client::subscribe(address, &trusted, Protocol::WebSocket, None);
    let large = "x".repeat(300_000);
    for text in ["first", &large, "last"] {
        server.publish("t", text.to_string()).await;
        sse.hears(text);
    }
    websocket.hears("first");
    websocket.hears(&large);
    websocket.hears("last");
    // A ping is answered, and a key that changes is followed.
    for word in ["one", "two"] {
        websocket.stream.conn.refresh_traffic_keys().expect("after the handshake");
        websocket.says(&masked(0x9, word.as_bytes()));
        websocket.hears(word);
    }
}

#[tokio::test]
async fn a_subscriber_that_comes_back_with_its_id_gets_the_rest() {
    let scratch = Scratch::new();
    let trusted = certificate(&scratch);
    let (server, address) = start(&scratch, &["--shards", "1"]);
    let first = server.publish("t", "one").await;
    for text in ["two", "three"] {
        server.publish("t", text).await;
    }
    for protocol in [Protocol::Sse, Protocol::WebSocket] {
        let mut client = Client::subscribe(address, &trusted, protocol, Some(&first.id));
        let heard = client.hears("three");
        assert!(heard.contains("two") && !heard.contains("one"), "{heard}");
    }
}

/// The new process has fewer shards: each has several listeners of both addresses, with TLS and
/// without.
#[tokio::test]
async fn an_upgrade_takes_the_listeners_along_and_subscribers_come_back_with_their_ids() {
    let scratch = Scratch::new();
    let trusted = certificate(&scratch);
    let socket = scratch.path("upgrade").join("socket");
    let socket = ["--upgrade-socket", socket.to_str().expect("UTF-8")];
    let (mut old, address) = start(&scratch, &[&socket[..], &["--shards", "3"]].concat());
    let both = [Protocol::Sse, Protocol::WebSocket];
    let before = both.map(|protocol| Client::subscribe(address, &trusted, protocol, None));
    old.publish("t", "one").await;
    let last = old.publish("t", "two").await;
    let (new, same) = start(&scratch, &[&socket[..], &["--shards", "1", "--upgrade"]].concat());
    assert_eq!((new.data, same), (old.data, address), "the same listeners");
    for mut client in before {
        client.hears("two");
        client.hears_the_end();
    }
    assert_eq!(old.ended().await.code(), Some(0));
    new.publish("t", "three").await;
    // So many that every queue has some.
    for protocol in both.into_iter().cycle().take(12) {
        let mut client = Client::subscribe(address, &trusted, protocol, Some(&last.id));
        let heard = client.hears("three");
        assert!(!heard.contains("two"), "{heard}");
        let mut plain = Subscriber::resume(new.data, protocol, &["t"], Some(&last.id)).await;
        assert_eq!(plain.text().await, "three");
    }
}

#[tokio::test]
async fn a_reload_takes_new_certificates_and_cuts_nobody() {
    let scratch = Scratch::new();
    let old = certificate(&scratch);
    let (server, address) = start(&scratch, &["--shards", "1"]);
    let http = client(reqwest::Client::builder());
    let reload = || answer(http.post(server.url("/reload")));
    let mut before = Client::subscribe(address, &old, Protocol::Sse, None);

    let new = certificate(&scratch);
    let told = reload().await;
    assert_eq!(told.status, 200, "{told:?}");
    let mut after = Client::subscribe(address, &new, Protocol::Sse, None);
    server.publish("t", "to all").await;
    before.hears("to all");
    after.hears("to all");

    scratch.write("key.pem", "no key");
    let wrong = reload().await;
    assert_eq!(wrong.status, 422, "{wrong:?}");
    assert!(wrong.error().contains("key.pem"), "{wrong:?}");
    Client::subscribe(address, &new, Protocol::Sse, None);
}

/// Subscribers of this test, and threads that drive them.
const UNDER_LOAD: (usize, usize) = (256, 4);

/// Old certificates and new ones are of one authority, as with every issuer. Newcomers come without
/// a pause; each gets the certificate of its moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_reloaded_under_load_and_no_connection_is_lost() {
    const EVENTS: usize = 60;
    let scratch = Scratch::new();
    let authority = Authority::new(&scratch);
    let (server, address) = start(&scratch, &["--shards", "2"]);
    let over = Arc::new(AtomicBool::new(false));
    let (subscribers, threads) = UNDER_LOAD;
    let subscribed = Arc::new(Barrier::new(threads + 1));
    let trust = Arc::new(trusting(&authority.root));
    let work = (0..threads).map(|thread| {
        let (trust, subscribed) = (trust.clone(), subscribed.clone());
        std::thread::spawn(move || {
            let protocol = [Protocol::Sse, Protocol::WebSocket][thread % 2];
            let subscribe = |_| Client::subscribe_with(address, trust.clone(), protocol, None);
            let mut clients: Vec<Client> = (0..subscribers / threads).map(subscribe).collect();
            subscribed.wait();
            for number in 0..EVENTS {
                clients.iter_mut().for_each(|client| {
                    let text = format!("event {number}.");
                    let heard = client.hears(&text);
                    assert!(!heard[..heard.len() - text.len()].contains("event"), "in order: {heard}");
                });
            }
            clients.len()
        })
    });
    let work: Vec<_> = work.collect();
    let newcomers = {
        let (trust, over) = (trust.clone(), over.clone());
        std::thread::spawn(move || {
            let mut seen = HashSet::new();
            while !over.load(Ordering::Relaxed) {
                let client = Client::subscribe_with(address, trust.clone(), Protocol::Sse, None);
                seen.insert(client.stream.conn.peer_certificates().expect("a certificate")[0].to_vec());
            }
            seen.len()
        })
    };
    tokio::task::block_in_place(|| subscribed.wait());
    for number in 0..EVENTS {
        if number % 10 == 5 {
            authority.renew(&scratch);
            let told = server.answer(server.post("/reload")).await;
            assert_eq!(told.status, 200, "{told:?}");
        }
        server.publish("t", format!("event {number}.")).await;
    }
    // They are all there, and have heard all.
    let heard = tokio::task::block_in_place(|| work.into_iter().map(|thread| thread.join().expect("whole")));
    assert_eq!(heard.sum::<usize>(), subscribers);
    over.store(true, Ordering::Relaxed);
    let certificates = tokio::task::block_in_place(|| newcomers.join().expect("every newcomer comes in"));
    assert!(certificates > 1, "newcomers see the new ones");
    let closed = server.stats().await["totals"]["closed"].clone();
    let lost: Vec<_> =
        closed.as_object().expect("by reason").iter().filter(|(_, count)| **count != 0).collect();
    // A newcomer that leaves with an event unread is reset by its own kernel.
    let by_themselves = ["client_gone", "socket_error"];
    assert!(lost.iter().all(|(reason, _)| by_themselves.contains(&reason.as_str())), "{lost:?}");
}

#[tokio::test]
async fn what_is_no_tls_1_3_is_refused_and_counted() {
    let scratch = Scratch::new();
    let trusted = certificate(&scratch);
    let (server, address) = start(&scratch, &["--shards", "1"]);
    let plain = exchange(address, b"GET /sse/t HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(plain.status, 400);
    // The reverse: a handshake where HTTP is spoken.
    let hello = exchange(server.data, b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00\r\n\r\n").await;
    assert_eq!(hello.status, 400);
    let old = Command::new("curl")
        .args(["--silent", "--show-error", "--insecure", "--tls-max", "1.2"])
        .arg(format!("https://{address}/healthz"))
        .output()
        .expect("curl is there");
    let told = String::from_utf8_lossy(&old.stderr);
    assert!(!old.status.success() && told.contains("protocol version"), "{told}");
    until("both to be counted", async || {
        let closed = &server.stats().await["totals"]["closed"];
        (closed["tls_handshake"] == 2 && closed["bad_request"] == 1).then_some(())
    })
    .await;
    Client::subscribe(address, &trusted, Protocol::Sse, None);
}

#[tokio::test]
async fn curl_reads_an_event_stream_over_tls() {
    let scratch = Scratch::new();
    certificate(&scratch);
    let (server, address) = start(&scratch, &["--shards", "1"]);
    server.publish("t", "hello").await;
    let output = tokio::process::Command::new("curl")
        .args(["--silent", "--no-buffer", "--max-time", "60", "--cacert"])
        .arg(scratch.path("cert.pem"))
        .args(["--connect-to", &format!("localhost:443:{address}")])
        .arg("https://localhost/healthz")
        .output()
        .await
        .expect("curl is there");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "ok\n");
    let mut stream = tokio::process::Command::new("curl")
        .args(["--silent", "--no-buffer", "--max-time", "60", "--cacert"])
        .arg(scratch.path("cert.pem"))
        .args(["--connect-to", &format!("localhost:443:{address}")])
        .arg("https://localhost/sse/t?last=1")
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("curl is there");
    let mut heard = String::new();
    let mut out = stream.stdout.take().expect("piped");
    while !heard.contains("data: hello\n\n") {
        let mut bytes = [0; 1_024];
        let read = tokio::io::AsyncReadExt::read(&mut out, &mut bytes).await.expect("a pipe");
        assert!(read > 0, "curl ends early: {heard}");
        heard.push_str(&String::from_utf8_lossy(&bytes[..read]));
    }
}

#[test]
fn a_start_without_a_usable_certificate_names_the_file() {
    let scratch = Scratch::new();
    certificate(&scratch);
    let (cert, key) = (scratch.path("cert.pem"), scratch.write("other.pem", "nothing"));
    let cert = cert.to_str().expect("UTF-8");
    for (flags, told) in [
        (&["--tls-cert", cert, "--tls-key", &key][..], "--tls-key"),
        (&["--tls-cert", "/nowhere", "--tls-key", &key], "--tls-cert /nowhere"),
        (&["--tls-cert", cert], "each needs the other"),
        (&[], "--listen-tls needs --tls-cert"),
    ] {
        let output = Command::new("timeout")
            .args(["60", env!("CARGO_BIN_EXE_fanwave"), "--listen", "127.0.0.1:0", "--shards", "1"])
            .args(["--control", "127.0.0.1:0", "--listen-tls", "127.0.0.1:0"])
            .args(flags)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .output()
            .expect("the program runs");
        let stderr = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!((output.status.code(), stderr.lines().count()), (Some(2), 1), "{stderr}");
        assert!(stderr.contains(told), "no {told:?} in {stderr}");
    }
}
