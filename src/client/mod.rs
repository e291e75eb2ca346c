//! The other ends: the publisher and the subscriber of the command line.
//!
//! Both are ordinary tokio programs over well-kept clients (reqwest, tungstenite); nothing of the
//! server's data path is used but the parser of event streams and the name of a gap notice. They
//! write to the `Write`s that they are given, never to the process's own, and they return when the
//! work is done: the caller decides on the exit code. They never wait without end for a server that
//! owes them an answer.
//!
//! Not here: scopes of IPv6 addresses, which URLs do not have (WHATWG URL §3.5). Such an address is
//! refused with a remedy.

use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use http::HeaderValue;
use reqwest::Url;
use tokio::time::timeout;

use crate::secret::Secret;

pub(crate) mod backoff;
pub(crate) mod conversation;
#[cfg(test)]
mod fixtures;
pub mod publish;
pub mod tail;
pub(crate) mod trust;
pub(crate) mod websocket;

/// Why a client did not do what it was told: one line with the cause, and the remedy if there is
/// one.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The user's arguments make no sense.
    #[error("{0}")]
    Usage(String),
    /// The server answered and does not want what we ask for; the text is the server's own line.
    #[error("{0}")]
    Refused(String),
    /// The server does not answer, or the connection broke.
    #[error("{0}")]
    Unreachable(String),
    /// Reading standard input or writing standard output failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// From the first packet to an open connection.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// Silence on a connection until the kernel asks whether the peer is still there.
const KEEPALIVE_TIME: Duration = Duration::from_secs(30);
/// Text of an answer that is no success; one line is expected.
const REFUSAL_BYTES_MAX: usize = 4 << 10;

/// Runs a client on this thread until it is done.
pub fn block_on<T>(work: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(work);
    // A read of standard input cannot be interrupted; waiting for it would wait for the user.
    runtime.shutdown_background();
    result
}

/// `work`, or nothing more once the user has pressed Ctrl-C: both are a good end.
pub async fn or_interrupted(work: impl Future<Output = Result<(), ClientError>>) -> Result<(), ClientError> {
    tokio::select! {
        result = work => result,
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
    }
}

/// Settings that all HTTP requests share. Environment proxies are left out: WebSocket has none, and
/// both ways shall reach the same server.
fn http_client() -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .user_agent(concat!("fanwave/", env!("CARGO_PKG_VERSION")))
        .no_proxy()
        .connect_timeout(CONNECT_TIME_MAX)
        .tcp_keepalive(KEEPALIVE_TIME)
}

/// The value of `Authorization` that names the token of this file.
fn bearer_of(file: &Path) -> Result<HeaderValue, ClientError> {
    let token = Secret::read(file).map_err(|error| ClientError::Usage(format!("--token-file {error}")))?;
    let mut value = HeaderValue::from_bytes(&token.bearer()).expect("a token is visible ASCII");
    value.set_sensitive(true);
    Ok(value)
}

/// Reads an address of one of these schemes. `form` is what to write instead of one that is no such
/// address.
fn parse_url(text: &str, schemes: &[&str], form: &str) -> Result<Url, ClientError> {
    let unusable = |cause: &str| ClientError::Usage(format!("`{text}` {cause}"));
    let url = Url::parse(text).map_err(|_| match has_scope(text) {
        true => unusable("has an IPv6 scope (%), which fanwave's clients do not take; curl does"),
        false => unusable(&format!("is no URL; write {form}")),
    })?;
    match schemes.contains(&url.scheme()) && url.has_host() {
        true => Ok(url),
        false => Err(unusable(&format!("is not of the form {form}"))),
    }
}

/// True for an address such as `http://[fe80::1%25eth0]:8080` (RFC 6874), or with the `%` alone.
fn has_scope(url: &str) -> bool {
    let literal = url.split_once("://[").and_then(|(_, rest)| rest.split_once(']'));
    literal.is_some_and(|(address, _)| address.contains('%'))
}

/// `text` as one segment of a path or one value of a query, whatever it holds (RFC 3986 §2.3).
fn percent_encoded(text: &str) -> impl std::fmt::Display {
    const SET: &percent_encoding::AsciiSet =
        &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
    percent_encoding::utf8_percent_encode(text, SET)
}

/// Adds one parameter to the query of `url`. A space becomes `%20`: not every server takes `+` for
/// one.
pub(crate) fn push_query(url: &mut Url, name: &str, value: &str) {
    let query = match url.query() {
        Some(query) if !query.is_empty() => format!("{query}&{name}={}", percent_encoded(value)),
        _ => format!("{name}={}", percent_encoded(value)),
    };
    url.set_query(Some(&query));
}

/// The one line of an answer that is no success: the `error` of a JSON body, else its text, else
/// the status.
fn refusal_line(status: http::StatusCode, body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Body {
        error: String,
    }
    let text = match serde_json::from_slice::<Body>(body) {
        Ok(body) => body.error,
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    match text.lines().map(str::trim).find(|line| !line.is_empty()) {
        Some(line) => format!("{status}: {line}"),
        None => status.to_string(),
    }
}

/// Reads the start of an answer that is no success. A body that breaks off, or has not come within
/// `time_max`, is told as far as it came.
async fn read_refusal(mut response: reqwest::Response, time_max: Duration) -> String {
    let status = response.status();
    let mut body = Vec::new();
    let reading = async {
        while body.len() < REFUSAL_BYTES_MAX {
            let Ok(Some(chunk)) = response.chunk().await else { break };
            body.extend_from_slice(&chunk[..chunk.len().min(REFUSAL_BYTES_MAX - body.len())]);
        }
    };
    // Whether it is whole makes no difference.
    let _ = timeout(time_max, reading).await;
    refusal_line(status, &body)
}

/// The `Retry-After` of an answer, in its form of whole seconds (RFC 9110 §10.2.3).
fn retry_after(headers: &http::HeaderMap) -> Option<Duration> {
    let seconds = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Tells the user what happens. Notes are a courtesy: a closed standard error does not end the
/// work.
fn note(notes: &mut dyn Write, text: &str) {
    let _ = writeln!(notes, "fanwave: {text}").and_then(|()| notes.flush());
}

/// That `url` cannot be reached, in one line. A port where nobody listens is the commonest reason,
/// and is named as that.
fn cannot_connect(url: &Url, error: &(dyn std::error::Error + 'static)) -> String {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    let refused = causes.any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    });
    match refused {
        true => format!("nobody listens at {url}: is the server running?"),
        false => format!("cannot connect to {url}: {}", root_cause(error)),
    }
}

/// The innermost cause of an error: libraries wrap "connection refused" into three sentences.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_address_is_told_the_form_of_one() {
        for text in ["", "127.0.0.1:8080/sse/x", "localhost:8080", "file:///a", "http:", "http://[::1/"] {
            let error = refusal_of(text);
            assert!(error.contains(&format!("`{text}`")) && error.contains("http://HOST"), "{error}");
        }
        assert!(parse_url("http://[::1]:8080/sse/x?id=[%25]", &["http"], "").is_ok());
    }

    #[test]
    fn an_address_with_a_scope_is_told_from_nonsense() {
        for text in ["http://[fe80::1%252]:8080/sse/x", "http://[fe80::1%eth0]", "http://[fe80::1%2]:1"] {
            let error = refusal_of(text);
            assert!(error.contains("scope") && error.contains("curl") && error.contains(text), "{error}");
        }
        assert!(!refusal_of("http://[::1/%25").contains("scope"), "no bracket ends");
    }

    fn refusal_of(url: &str) -> String {
        match parse_url(url, &["http", "ws"], "http://HOST:PORT") {
            Err(ClientError::Usage(line)) => line,
            other => panic!("{url}: {other:?}"),
        }
    }

    #[test]
    fn a_refusal_is_the_servers_own_line() {
        let status = http::StatusCode::NOT_FOUND;
        assert_eq!(refusal_line(status, b"no such path\nmore"), "404 Not Found: no such path");
        assert_eq!(
            refusal_line(status, br#"{"error":"the topic is empty"}"#),
            "404 Not Found: the topic is empty"
        );
        assert_eq!(refusal_line(status, b" \n"), "404 Not Found");
    }
}
