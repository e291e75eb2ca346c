//! The keys that tokens are checked with: put together from files and from an address, and told to
//! all shards.
//!
//! Invariants worth naming:
//! - Keys of an address are fetched again and again. A fetch that fails, is slow, too large, or
//!   holds no key changes nothing: the last good set is kept, and the next try comes later and
//!   later. Another address has to give a set before the last one is let go; without any address it
//!   is let go at once.
//! - A second has a bounded number of signatures of tokens that are not known. Those that are known
//!   cost none, and are always taken.
//! - A process that takes the place of another one has its keys before it does, or leaves it.
//! - All shards have the same keys within moments: each says that it has taken them, and one that
//!   does not is told again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use serde::Serialize;
use tokio::sync::{Mutex as Turns, Notify};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{Hub, Stage};
use crate::admission::Bucket;
use crate::auth::{Claims, KeySet, Keys, KnownTokens, Refused};
use crate::broadcast::Question;
use crate::clock::Stamp;
use crate::config::Config;
use crate::config::limits::{
    CONTROL_TOKENS_PER_SECOND_MAX, JWKS_BYTES_MAX, JWKS_FETCH_MS_MAX, JWKS_REFRESH_MS, JWKS_RETRY_MS,
    JWKS_UPGRADE_MS_MAX,
};

/// The keys in force, and where they come from.
#[derive(Debug)]
pub(super) struct Keyring {
    keys: Mutex<Arc<Keys>>,
    checks: Mutex<Checks>,
    /// What the address of keys gave last.
    fetched: Mutex<Option<KeySet>>,
    /// Held while shards are told, so that the newest keys are told last.
    telling: Turns<()>,
    /// Rung after a reload, which may name another address.
    reloaded: Notify,
    fetches: AtomicU64,
    failures: AtomicU64,
    checked: AtomicU64,
    remembered: AtomicU64,
}

/// The checks of publishers' tokens.
#[derive(Debug, Default)]
struct Checks {
    /// Tokens that were checked with the keys in force.
    known: KnownTokens<Arc<Claims>>,
    bucket: Bucket,
    /// Signatures that may be checked now.
    left: usize,
}

/// Too many signatures were checked in this second. A retry helps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TooMany;

/// What an operator is told of them.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct KeyStats {
    /// Keys in force.
    pub(super) keys: usize,
    /// Fetches that gave a set.
    pub(super) fetches: u64,
    /// Fetches that did not.
    pub(super) failures: u64,
    /// Signatures of publishers' tokens that were checked.
    pub(super) checked: u64,
    /// Publishers' tokens that were known from before.
    pub(super) remembered: u64,
}

impl Keyring {
    pub(super) fn new(config: &Config) -> Keyring {
        Keyring {
            keys: Mutex::new(Arc::new(config.tokens.keys(None))),
            checks: Mutex::default(),
            fetched: Mutex::default(),
            telling: Turns::default(),
            reloaded: Notify::new(),
            fetches: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            checked: AtomicU64::new(0),
            remembered: AtomicU64::new(0),
        }
    }

    /// The keys in force.
    pub(super) fn keys(&self) -> Arc<Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What a publisher's token grants at the time `now_ms`, in milliseconds since 1970, which is
    /// `now`. One that was checked before costs no signature.
    pub(super) fn verify(
        &self,
        token: &str,
        now_ms: u64,
        now: Stamp,
    ) -> Result<Result<Arc<Claims>, Refused>, TooMany> {
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        let Checks { known, bucket, left } = &mut *checks;
        match known.find(token, now_ms) {
            Ok(found) => {
                self.remembered.fetch_add(1, Ordering::Relaxed);
                Ok(found)
            }
            Err(unknown) => {
                let most = Bucket::most(CONTROL_TOKENS_PER_SECOND_MAX);
                let come = bucket.fill(CONTROL_TOKENS_PER_SECOND_MAX, now.0);
                *left = (*left + come).min(most).checked_sub(1).ok_or(TooMany)?;
                self.checked.fetch_add(1, Ordering::Relaxed);
                Ok(known.check(unknown, token, &self.keys(), now_ms))
            }
        }
    }

    /// These are in force.
    fn take(&self, keys: Arc<Keys>) {
        let mut checks = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = keys;
        checks.known.forget();
    }

    /// Lets go of what an address has given, if there is none any more: another one that comes
    /// later has given nothing yet.
    fn forget_without(&self, url: Option<&str>) {
        if url.is_none() {
            *self.fetched.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// True once an address of keys has given some.
    fn has_fetched(&self) -> bool {
        self.fetched.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// What there is to tell of them.
    pub(super) fn stats(&self) -> KeyStats {
        KeyStats {
            keys: self.keys().len(),
            fetches: self.fetches.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            checked: self.checked.load(Ordering::Relaxed),
            remembered: self.remembered.load(Ordering::Relaxed),
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
    if hub.keyring.has_fetched() {
        // Before the hub took the place of another one.
        let _ = timeout(Duration::from_millis(JWKS_REFRESH_MS), hub.keyring.reloaded.notified()).await;
    }
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

/// Fetches keys for a server that is to take the place of another one, which goes on meanwhile: so
/// nobody comes to a server without keys. The error is one line.
pub(super) async fn fetch_first(hub: &Hub) -> Result<(), String> {
    let Some(url) = hub.config().tokens.url().map(str::to_string) else { return Ok(()) };
    let until = Instant::now() + Duration::from_millis(JWKS_UPGRADE_MS_MAX);
    loop {
        match fetch_within(&url, until.saturating_duration_since(Instant::now())).await {
            Ok(set) => {
                hub.keyring.fetches.fetch_add(1, Ordering::Relaxed);
                hub.take_fetched(&url, set).await;
                return Ok(());
            }
            Err(cause) => {
                hub.keyring.failures.fetch_add(1, Ordering::Relaxed);
                let again = Instant::now() + Duration::from_millis(JWKS_RETRY_MS);
                if again >= until {
                    return Err(format!("keys of {url} (--auth-jwks): {cause}"));
                }
                sleep_until(again).await;
            }
        }
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
        if *self.keyring.keys() != *keys {
            self.keyring.take(keys.clone());
        }
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
        self.keyring.forget_without(self.config().tokens.url());
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
    use crate::auth::{Key, Signer};
    use crate::config::TokenRules;

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

    #[test]
    fn a_second_has_so_many_signatures_of_strangers_and_known_tokens_are_taken_at_any_time() {
        const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
        let tokens = TokenRules {
            hs256: Some(KeySet::of(Key::from_secret(SECRET).expect("a secret"))),
            ..TokenRules::default()
        };
        let keyring = Keyring::new(&Config { tokens, ..Config::default() });
        let now_ms = 1_800_000_000_000;
        let signer = Signer::from_secret(SECRET).expect("a secret");
        let good = |number: usize| {
            let claims = serde_json::json!({ "exp": 1_900_000_000, "jti": number });
            signer.sign(&claims).expect("a token")
        };
        let at = |seconds: u64| Stamp(1_000_000_000 * seconds);
        assert!(keyring.verify(&good(0), now_ms, at(10)).expect("it is the first").is_ok());
        let most = Bucket::most(CONTROL_TOKENS_PER_SECOND_MAX);
        for number in 1..most {
            let strange = good(number) + "AA";
            assert!(keyring.verify(&strange, now_ms, at(10)).expect("there is room").is_err());
        }
        for number in [1_000, 1_001] {
            assert_eq!(keyring.verify(&good(number), now_ms, at(10)).err(), Some(TooMany));
        }
        assert_eq!(keyring.stats().checked, most as u64);
        assert!(keyring.verify(&good(0), now_ms, at(10)).expect("it is known").is_ok());
        assert!(keyring.verify(&good(1_000), now_ms, at(11)).expect("there is room again").is_ok());
    }

    #[test]
    fn keys_of_an_address_that_is_gone_do_not_come_back() {
        let keyring = Keyring::new(&Config::default());
        let fetched = || keyring.has_fetched();
        *keyring.fetched.lock().expect("alive") = Some(KeySet::read(SET.as_bytes(), false).expect("a set"));
        keyring.forget_without(Some("https://another.example/jwks.json"));
        assert!(fetched(), "they stay until another address gives some");
        keyring.forget_without(None);
        assert!(!fetched());
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
