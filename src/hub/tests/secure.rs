//! Handshakes of control connections that do not come to their end.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::hub::seats::Seats;
use crate::hub::secure::{Certificates, serve_secure};
use crate::hub::{RefusalReason, Stage};

/// A certificate of its own making.
fn certificates() -> Certificates {
    let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .and_then(|builder| {
            builder.with_no_client_auth().with_single_cert(vec![made.cert.der().clone()], key)
        })
        .expect("a key that fits");
    let config = Arc::new(config);
    Certificates::new(move || config.clone())
}

/// Time passes as soon as nobody has anything to do.
#[tokio::test(start_paused = true)]
async fn a_handshake_that_stalls_ends_in_time_and_one_that_never_began_is_no_refusal() {
    let bench = bench(1, Limits::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let certificates = certificates();
    let hello: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
    for (said, ends, refused) in [(hello, false, 1), (&hello[..1], false, 2), (b"", false, 2), (b"", true, 2)]
    {
        let mut client = TcpStream::connect(address).await.expect("it listens");
        let (server, _) = listener.accept().await.expect("it came");
        client.write_all(said).await.expect("room");
        if ends {
            client.shutdown().await.expect("open");
        }
        let seat = Seats::new(16).take();
        serve_secure(server, certificates.clone(), bench.router.clone(), bench.hub.clone(), seat).await;
        // What was not read makes it a reset.
        let _ = client.read(&mut [0; 16]).await;
        let counted = bench.hub.intake().counters().refused.get(RefusalReason::TlsHandshake);
        assert_eq!(counted, refused, "{said:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_handshake_ends_with_its_seat_and_with_the_server() {
    let bench = bench(1, Limits::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    for stops in [false, true] {
        let mut client = TcpStream::connect(address).await.expect("it listens");
        client.write_all(b"\x16").await.expect("room");
        let (server, _) = listener.accept().await.expect("it came");
        let mut seats = Seats::new(1);
        let seat = seats.take();
        let served =
            tokio::spawn(serve_secure(server, certificates(), bench.router.clone(), bench.hub.clone(), seat));
        // It has looked at what was said as soon as it has nothing more to do.
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        match stops {
            true => _ = bench.hub.stage.send_replace(Stage::Stopped),
            false => seats.make_room(std::time::Duration::ZERO, None),
        }
        served.await.expect("no panic");
    }
    assert_eq!(bench.hub.intake().counters().refused.get(RefusalReason::TlsHandshake), 1);
}
