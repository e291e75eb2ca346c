//! Claim: Firefox, too, hears everything over both protocols, with TLS and without, and comes back
//! by itself.
//!
//! Set-up and expectation: those of the other browser's promises, whose pages it opens. Over TLS it
//! has the test's own authority in its profile, and checks the server's certificate as any other.
//!
//! `tests/run --long` installs it.

use super::browser::{comes_back, hears_everything, hears_everything_over_tls, speaks_json};
use crate::support::visit::Make;

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
