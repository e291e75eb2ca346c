//! Claim: Firefox, too, hears everything over both protocols, with TLS and without, and comes back
//! by itself. Over HTTP/2 no event stream of a tab waits for another one.
//!
//! Set-up and expectation: those of the other browser's promises, whose pages it opens. Over TLS it
//! has the test's own authority in its profile, and checks the server's certificate as any other.
//! One more page has thirty event streams: each is complete and in order, and a `fetch` beside them
//! is answered while all of them are open.
//!
//! `tests/run --long` installs it.

use super::browser::{comes_back, hears_everything, hears_everything_over_tls, speaks_json};
use crate::support::Scratch;
use crate::support::secure::{Authority, start};
use crate::support::visit::{Make, Trust, Visit, reported};

#[tokio::test]
#[ignore = "needs firefox-esr: tests/run --long installs it"]
async fn firefox_hears_everything_over_both_protocols() {
    hears_everything(Make::Firefox).await;
}

#[tokio::test]
#[ignore = "needs firefox-esr and certutil: tests/run --long installs them"]
async fn firefox_hears_everything_over_tls_whose_certificate_changes() {
    hears_everything_over_tls(Make::Firefox).await;
}

#[tokio::test]
#[ignore = "needs firefox-esr: tests/run --long installs it"]
async fn firefox_speaks_json_and_publishes_to_other_pages() {
    speaks_json(Make::Firefox).await;
}

#[tokio::test]
#[ignore = "needs firefox-esr: tests/run --long installs it"]
async fn firefox_comes_back_to_a_draining_a_restarted_and_a_full_server() {
    comes_back(Make::Firefox).await;
}

#[tokio::test]
#[ignore = "needs firefox-esr and certutil: tests/run --long installs them"]
async fn firefox_has_thirty_event_streams_in_one_tab() {
    let scratch = Scratch::new();
    let authority = Authority::new(&scratch);
    let trust = Trust { key: authority.key_digest(), authority: authority.file.clone() };
    let (server, address) = start(&scratch, &["--shards", "1"]);
    let mut visit = Visit::new(Make::Firefox, address, "many", Some(&trust)).await;
    assert_eq!(reported(&mut visit.reports).await, "all open");
    assert_eq!(reported(&mut visit.reports).await, "fetched opaque");
    let http2 = server.stats().await["totals"]["http2"].clone();
    assert_eq!(http2["streams"], 30);
    // It opens several at once, before it knows that one carries them all.
    assert!(http2["carriers"].as_u64() <= Some(6), "{http2}");
    let mut texts: Vec<String> = (0..20).map(|text| text.to_string()).collect();
    texts.push("last".into());
    for text in &texts {
        server.publish("browser", text.clone()).await;
    }
    assert_eq!(reported(&mut visit.reports).await, format!("heard {}", texts.join(",")));
}
