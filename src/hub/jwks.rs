//! The keys that tokens are checked with: put together from files and from an address, and told to
//! all shards.
//!
//! Invariants worth naming:
//! - Keys of an address are fetched again and again. A fetch that fails, is slow, too large, or
//!   holds no key changes nothing: the last good set is kept, and the next try comes later and
//!   later.
//! - All shards have the same keys within moments: each says that it has taken them, and one that
//!   does not is told again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use serde::Serialize;
use tokio::sync::{Mutex as Turns, Notify};
use tokio::time::{sleep, timeout};

use super::{Hub, Stage};
use crate::auth::{KeySet, Keys};
use crate::broadcast::Question;
use crate::config::Config;
use crate::config::limits::{JWKS_BYTES_MAX, JWKS_FETCH_MS_MAX, JWKS_REFRESH_MS, JWKS_RETRY_MS};

/// The keys in force, and where they come from.
#[derive(Debug)]
pub(super) struct Keyring {
    keys: Mutex<Arc<Keys>>,
    /// What the address of keys gave last.
    fetched: Mutex<Option<KeySet>>,
    /// Held while shards are told, so that the newest keys are told last.
    telling: Turns<()>,
    /// Rung after a reload, which may name another address.
    reloaded: Notify,
    fetches: AtomicU64,
    failures: AtomicU64,
}

/// What an operator is told of them.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct KeyStats {
    /// Keys in force.
    pub(super) keys: usize,
    /// Fetches that gave a set.
    pub(super) fetches: u64,
    /// Fetches that did not.
    pub(super) failures: u64,
}

impl Keyring {
    pub(super) fn new(config: &Config) -> Keyring {
        Keyring {
            keys: Mutex::new(Arc::new(config.tokens.keys(None))),
            fetched: Mutex::default(),
            telling: Turns::default(),
            reloaded: Notify::new(),
            fetches: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        }
    }

    /// The keys in force.
    pub(super) fn keys(&self) -> Arc<Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What there is to tell of them.
    pub(super) fn stats(&self) -> KeyStats {
        KeyStats {
            keys: self.keys().len(),
            fetches: self.fetches.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }

    /// Another configuration is in force, and its keys were told.
    fn note_reload(&self) {
        self.reloaded.notify_one();
    }
}

/// Fetches keys as long as the hub lives, if the configuration names an address.
pub(super) async fn serve(hub: Arc<Hub>) {
    let mut retry_ms = JWKS_RETRY_MS;
    loop {
        let Some(url) = hub.config().tokens.url().map(str::to_string) else {
            hub.keyring.reloaded.notified().await;
            continue;
        };
        let fetched = fetch_within(&url, Duration::from_millis(JWKS_FETCH_MS_MAX)).await;
        let wait_ms = match fetched {
            Ok(set) => {
                hub.keyring.fetches.fetch_add(1, Ordering::Relaxed);
                retry_ms = JWKS_RETRY_MS;
                hub.take_fetched(&url, set).await;
                JWKS_REFRESH_MS
            }
            Err(cause) => {
                hub.keyring.failures.fetch_add(1, Ordering::Relaxed);
                tracing::warn!("keys of {url} (--auth-jwks): {cause}; next try in {retry_ms} ms");
                let wait_ms = retry_ms;
                retry_ms = (2 * retry_ms).min(JWKS_REFRESH_MS);
                wait_ms
            }
        };
        // A reload may name another address.
        let _ = timeout(Duration::from_millis(wait_ms), hub.keyring.reloaded.notified()).await;
    }
}

/// One set of keys from an address that has so long to give it. The error is one line.
async fn fetch_within(url: &str, limit: Duration) -> Result<KeySet, String> {
    let fetched = timeout(limit, fetch(url)).await;
    fetched.unwrap_or_else(|_| Err(format!("it was not there within {} ms", limit.as_millis())))
}

async fn fetch(url: &str) -> Result<KeySet, String> {
    let client = reqwest::Client::builder()
        .user_agent(concat!("fanwave/", env!("CARGO_PKG_VERSION")))
        // Another address, without TLS perhaps, is not the one that the operator trusts.
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| told(&error))?;
    let response = client.get(url).header("Accept", "application/json").send().await;
    let response = response.map_err(|error| told(&error))?;
    let status = response.status();
    if status != reqwest::StatusCode::OK {
        return Err(format!("the answer is {status}"));
    }
    let too_large = || format!("the answer has more than {JWKS_BYTES_MAX} bytes");
    if response.content_length().is_some_and(|bytes| bytes > JWKS_BYTES_MAX as u64) {
        return Err(too_large());
    }
    let mut body = Vec::new();
    let mut chunks = response.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| told(&error))?;
        if body.len() + chunk.len() > JWKS_BYTES_MAX {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    KeySet::read(&body, false).map_err(|error| error.to_string())
}

/// An error of the client with its causes, in one line.
fn told(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        line = format!("{line}: {inner}");
        cause = inner.source();
    }
    line.replace(['\r', '\n'], " ")
}

impl Hub {
    /// The address of keys has given this set.
    async fn take_fetched(&self, url: &str, set: KeySet) {
        {
            // One of before a reload is nothing to us.
            if self.config().tokens.url() != Some(url) {
                return;
            }
            let mut fetched = self.keyring.fetched.lock().unwrap_or_else(PoisonError::into_inner);
            if fetched.as_ref() == Some(&set) {
                return;
            }
            tracing::info!(keys = set.len(), skipped = ?set.skipped, "new keys of {url} (--auth-jwks)");
            *fetched = Some(set);
        }
        self.tell_keys().await;
    }

    /// Puts the keys together and tells all shards. Returns once every shard has them, or is gone.
    async fn tell_keys(&self) {
        let _alone = self.keyring.telling.lock().await;
        let keys = {
            let fetched = self.keyring.fetched.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::new(self.config().tokens.keys(fetched.as_ref()))
        };
        *self.keyring.keys.lock().unwrap_or_else(PoisonError::into_inner) = keys.clone();
        while *self.stage.borrow() < Stage::Stopped {
            let taken = self.scrape(|taken| Question::Keys(keys.clone(), taken)).await;
            if taken.iter().all(Option::is_some) {
                break;
            }
            sleep(Duration::from_millis(JWKS_RETRY_MS)).await;
        }
    }

    /// Another configuration is in force.
    pub(super) async fn reload_keys(&self) {
        if self.config().tokens.is_configured() {
            self.tell_keys().await;
            self.keyring.note_reload();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const SET: &str =
        r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

    /// The address of a server that says this to one request, and then goes on with blanks for
    /// ever, one at a time, if it is to `drip`.
    async fn server(said: String, drip: bool) -> String {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let url = format!("http://{}/jwks.json", listener.local_addr().expect("bound"));
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.expect("the fetch");
            let _ = socket.read(&mut [0; 4_096]).await;
            let _ = socket.write_all(said.as_bytes()).await;
            while drip && socket.write_all(b" ").await.is_ok() {
                sleep(Duration::from_millis(10)).await;
            }
        });
        url
    }

    #[tokio::test]
    async fn an_address_gives_a_set_or_one_line_of_reason() {
        let answer = |length: usize, body: &str| {
            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}")
        };
        let endless = |body: &str| format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{body}");
        let large = " ".repeat(10 << 20);
        let patience = Duration::from_secs(60);
        for (said, drip, limit, part) in [
            (
                "HTTP/1.1 200 OK\r\nX: ".to_string(),
                true,
                Duration::from_millis(300),
                "not there within 300 ms",
            ),
            (endless(SET), true, Duration::from_millis(300), "not there within 300 ms"),
            (String::new(), false, patience, "error sending request"),
            ("rubbish\r\n\r\n".to_string(), false, patience, "error sending request"),
            ("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_string(), false, patience, "404"),
            (answer(10 << 20, ""), false, patience, "more than 1048576 bytes"),
            (endless(&large), false, patience, "more than 1048576 bytes"),
            (answer(11, r#"{"keys":[]}"#), false, patience, "list of keys is empty"),
            (answer(2, "[]"), false, patience, "no JWK set"),
            (answer(SET.len(), &SET[..50]), false, patience, "error"),
        ] {
            let url = server(said, drip).await;
            let error = fetch_within(&url, limit).await.expect_err(part);
            assert!(error.contains(part) && !error.contains('\n'), "no {part:?} in {error:?}");
        }
        let url = server(answer(SET.len(), SET), false).await;
        assert_eq!(fetch_within(&url, patience).await.expect("a set").len(), 1);
        assert!(fetch_within("http://127.0.0.1:1/jwks.json", patience).await.is_err(), "nobody listens");
    }
}
