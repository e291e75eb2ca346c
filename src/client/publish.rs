//! `fanwave publish`: one event from the command line or standard input, or one per line of an
//! endless stream.
//!
//! A single event is repeated when the server is full, as long as its `Retry-After` says, a few
//! times. A stream of lines is one request (`lines`): the server slows it down by not reading, and
//! answers a line per refused event and a summary at the end. Nothing is repeated after a broken
//! connection, or where no answer came in time: whether the event arrived is not known.
//!
//! `--ws` publishes as a client of the data plane does (`websocket`).

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use reqwest::{RequestBuilder, Response, Url};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

use super::backoff::Backoff;
use super::trust::{Trust, distrust};
use super::{
    CONNECT_TIME_MAX, ClientError, bearer_of, http_client, note, parse_url, percent_encoded, push_query,
    read_refusal, retry_after, root_cause,
};
use crate::config::limits::CONTROL_BODY_MS_MAX;

mod lines;
mod websocket;

/// Attempts of one event while the server is full.
const ATTEMPTS_MAX: u32 = 5;
/// The longest wait between two attempts, whatever the server asks for.
const RETRY_TIME_MAX: Duration = Duration::from_secs(30);
/// Standard input, or a line of it, as one event; more is meant otherwise, or is a mistake.
const EVENT_BYTES_MAX: usize = 64 << 20;
/// Bytes of an event that a slow connection carries in a second.
const SLOW_BYTES_PER_SECOND: u64 = 64 << 10;

/// How long to wait for a server that says nothing.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// From the first packet to the whole answer to a small event.
    answer: Duration,
    /// From the head of a refusal to its end.
    refusal: Duration,
    /// For each part of the answer to a stream of lines, once the last line is on its way.
    last_lines: Duration,
}

/// A server that works answers one event at once, if only to refuse it for lack of room. The wait
/// for its answer outlasts that for a connection, so that an event that was never sent is told as
/// such. Of a stream, megabytes may lie in the kernel's buffers when the last line is on its way,
/// and a server whose shards are busy takes minutes for them without a word.
const PATIENCE: Patience = Patience {
    answer: CONNECT_TIME_MAX.saturating_add(Duration::from_secs(10)),
    refusal: Duration::from_secs(10),
    last_lines: Duration::from_secs(300),
};

impl Patience {
    /// From the first packet to the whole answer to an event of so many bytes: a large one takes a
    /// while to send, but the server gives no event longer than [`CONTROL_BODY_MS_MAX`].
    fn of_event(&self, bytes: usize) -> Duration {
        let sending = Duration::from_secs(bytes as u64 / SLOW_BYTES_PER_SECOND);
        self.answer + sending.min(Duration::from_millis(CONTROL_BODY_MS_MAX))
    }
}

/// The flags of `fanwave publish`.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Topic, 1 to 255 bytes
    pub topic: String,
    /// Data; `-` or nothing reads standard input to its end and leaves out its last line break
    pub data: Option<String>,
    /// Control plane: http://HOST:PORT, https://HOST:PORT or unix:PATH [env: FANWAVE_SERVER]
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8081")]
    pub server: String,
    /// File with the control token of the server, or with a token that may publish [env:
    /// FANWAVE_TOKEN_FILE]
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Publish as a client of the data plane, over a WebSocket: ws://HOST:PORT or wss://HOST:PORT
    #[arg(long, value_name = "URL", conflicts_with_all = ["server", "token_file"])]
    pub ws: Option<String>,
    /// Believe a server whose certificate one of these has signed, and no other one, in PEM
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Event name
    #[arg(long, value_name = "NAME")]
    pub event: Option<String>,
    /// Id in place of the server's own
    #[arg(long)]
    pub id: Option<String>,
    /// What of the topic the event is about: the newest one of each key counts where events are
    /// conflated
    #[arg(long)]
    pub key: Option<String>,
    /// Name of this publish, 1 to 64 bytes: said again under it, the event is published once
    #[arg(long, value_name = "KEY", conflicts_with = "lines")]
    pub idempotency_key: Option<String>,
    /// Reconnection time for SSE subscribers
    #[arg(long, value_name = "MS")]
    pub retry: Option<u32>,
    /// Publish bytes, not text: standard input as it is
    #[arg(long)]
    pub binary: bool,
    /// Each line of standard input is one event, sent as it comes
    #[arg(long, conflicts_with = "id")]
    pub lines: bool,
}

/// Publishes what `options` and `input` say. Ids and the summary go to `out`, lines that are
/// refused or left out are told in `notes`.
pub async fn run(
    options: Options,
    input: impl AsyncRead + Send + Unpin + 'static,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> Result<(), ClientError> {
    publish(options, PATIENCE, input, out, notes).await
}

/// [`run`], with another patience than [`PATIENCE`].
async fn publish(
    options: Options,
    patience: Patience,
    input: impl AsyncRead + Send + Unpin + 'static,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> Result<(), ClientError> {
    let data = options.data.as_deref().filter(|data| *data != "-");
    if options.lines && data.is_some() {
        return Err(ClientError::Usage("--lines reads standard input; leave DATA out".to_string()));
    }
    let way = Way::new(&options, patience)?;
    if options.lines {
        return match way {
            Way::Control(server) => lines::publish_lines(&server, &options, input, out, notes).await,
            Way::Client(door) => websocket::publish_lines(&door, &options, input, out, notes).await,
        };
    }
    let data = match data {
        Some(data) => Bytes::from(data.to_string()),
        None => read_event(input, options.binary).await?,
    };
    match way {
        Way::Control(server) => publish_one(&server, &options, data, out, notes).await,
        Way::Client(door) => websocket::publish_one(&door, &options, &data, out, notes).await,
    }
}

/// As whom to publish.
enum Way {
    /// A publisher of the control plane.
    Control(Server),
    /// A client of the data plane.
    Client(websocket::Door),
}

impl Way {
    fn new(options: &Options, patience: Patience) -> Result<Way, ClientError> {
        Ok(match &options.ws {
            Some(address) => Way::Client(websocket::Door::new(address, options.ca.as_deref(), patience)?),
            None => Way::Control(Server::new(options, patience)?),
        })
    }
}

/// Where to publish, how to get there, and how long to wait for it.
struct Server {
    client: reqwest::Client,
    base: Url,
    /// The address as the user wrote it.
    name: String,
    patience: Patience,
}

impl Server {
    fn new(options: &Options, patience: Patience) -> Result<Server, ClientError> {
        let address = options.server.as_str();
        // A redirect could turn a POST into a GET (RFC 9110 §15.4.2); the control API has none.
        let mut builder = http_client().redirect(reqwest::redirect::Policy::none());
        if let Some(file) = &options.token_file {
            builder = builder.default_headers(HeaderMap::from_iter([(AUTHORIZATION, bearer_of(file)?)]));
        }
        let (builder, url) = match address.strip_prefix("unix:") {
            Some(path) => (builder.unix_socket(path), "http://localhost"),
            None => (builder, address),
        };
        let base = parse_url(url, &["http", "https"], "http://HOST:PORT, https://HOST:PORT or unix:PATH")?;
        let trust = Trust::of(options.ca.as_deref(), &base)?;
        let built = trust.of_http(builder, &base).and_then(reqwest::ClientBuilder::build);
        let client = built.map_err(|error| ClientError::Unreachable(root_cause(&error)))?;
        Ok(Server { client, base, name: address.to_string(), patience })
    }

    /// The URL of a path below the server's address, which may have a path of its own behind a
    /// proxy.
    fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        url
    }

    /// The connection could not be made, or broke.
    fn failed(&self, error: &reqwest::Error) -> ClientError {
        let (name, cause) = (&self.name, root_cause(error));
        if let Some(line) = distrust(&self.base, error) {
            ClientError::Refused(line)
        } else if error.is_connect() {
            ClientError::Unreachable(format!(
                "cannot connect to {name}: {cause}; start `fanwave serve` or name its address with --server"
            ))
        } else {
            self.unknown(&cause)
        }
    }

    /// The server took what we sent and said nothing for this long.
    fn silent(&self, waited: Duration) -> ClientError {
        self.unknown(&no_answer(waited))
    }

    /// Nobody has told us what came of what we sent.
    fn unknown(&self, cause: &str) -> ClientError {
        unknown(&self.name, cause)
    }
}

/// Nobody has told us what came of what the server at `name` was sent.
fn unknown(name: &str, cause: &str) -> ClientError {
    ClientError::Unreachable(format!("{name}: {cause}; what was sent may or may not be published"))
}

/// The server was silent for this long.
fn no_answer(waited: Duration) -> String {
    format!("no answer within {} s", waited.as_secs_f64())
}

/// Standard input to its end as one event.
async fn read_event(input: impl AsyncRead + Unpin, binary: bool) -> Result<Bytes, ClientError> {
    let mut data = Vec::new();
    let read = input.take(EVENT_BYTES_MAX as u64 + 1).read_to_end(&mut data).await;
    read.map_err(|error| io::Error::new(error.kind(), format!("standard input: {error}; nothing was sent")))?;
    if data.len() > EVENT_BYTES_MAX {
        let text =
            format!("standard input has more than {EVENT_BYTES_MAX} bytes; --lines publishes each line");
        return Err(ClientError::Usage(text));
    }
    if !binary {
        let text =
            data.strip_suffix(b"\n").map_or(&data[..], |text| text.strip_suffix(b"\r").unwrap_or(text));
        data.truncate(text.len());
    }
    Ok(data.into())
}

async fn publish_one(
    server: &Server,
    options: &Options,
    data: Bytes,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> Result<(), ClientError> {
    let url = event_url(server, options)?;
    let content_type = if options.binary { "application/octet-stream" } else { "text/plain; charset=utf-8" };
    let time_max = server.patience.of_event(data.len());
    let mut backoff = Backoff::default();
    for attempt in 1.. {
        let request = server.client.post(url.clone()).header(CONTENT_TYPE, content_type).body(data.clone());
        let response = match post(server, request, time_max).await? {
            Posted::Accepted(answer) => {
                writeln!(out, "{}", id_of(&answer))?;
                out.flush()?;
                break;
            }
            Posted::Refused(response) => response,
        };
        let full = response.status() == StatusCode::SERVICE_UNAVAILABLE;
        let asked = retry_after(response.headers());
        let line = read_refusal(response, server.patience.refusal).await;
        if !full || attempt == ATTEMPTS_MAX {
            return Err(ClientError::Refused(line));
        }
        let wait = backoff.next(asked).min(RETRY_TIME_MAX);
        note(notes, &format!("{line}; trying again in {:.1} s", wait.as_secs_f64()));
        tokio::time::sleep(wait).await;
    }
    Ok(())
}

/// Where to post an event with the name, the id and the reconnection time that `options` give it.
fn event_url(server: &Server, options: &Options) -> Result<Url, ClientError> {
    if matches!(options.topic.as_str(), "." | "..") {
        // Every encoding of these is a dot segment (WHATWG URL §4.1) and would leave the path.
        return Err(ClientError::Usage(format!("`{}` cannot stand in a path; use --lines", options.topic)));
    }
    let mut url = server.url(&format!("/topics/{}", percent_encoded(&options.topic)));
    let retry = options.retry.map(|ms| ms.to_string());
    let parameters = [
        ("event", &options.event),
        ("id", &options.id),
        ("retry", &retry),
        ("key", &options.key),
        ("idempotency_key", &options.idempotency_key),
    ];
    for (name, value) in parameters {
        if let Some(value) = value {
            push_query(&mut url, name, value);
        }
    }
    Ok(url)
}

/// Why data is no event.
#[derive(Debug, thiserror::Error)]
enum NoEvent {
    #[error("more than {EVENT_BYTES_MAX} bytes")]
    TooLong,
    #[error("not UTF-8 at byte {at}; --binary publishes any bytes")]
    NotUtf8 { at: usize },
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// An event as a line of NDJSON says it, and a command.
#[derive(serde::Serialize)]
struct EventJson<'a> {
    topic: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<&'a str>,
}

/// The event of this data with all that `options` say of it.
fn event_json(data: &[u8], options: &Options) -> Result<String, NoEvent> {
    let (text, base64) = match options.binary {
        true => (None, Some(STANDARD.encode(data))),
        false => {
            let text = std::str::from_utf8(data);
            (Some(text.map_err(|error| NoEvent::NotUtf8 { at: error.valid_up_to() })?), None)
        }
    };
    Ok(serde_json::to_string(&EventJson {
        topic: &options.topic,
        data: text,
        base64,
        event: options.event.as_deref(),
        id: options.id.as_deref(),
        retry: options.retry,
        key: options.key.as_deref(),
        idempotency_key: options.idempotency_key.as_deref(),
    })?)
}

/// What the server made of an event.
enum Posted {
    /// It took the event; its whole answer.
    Accepted(Bytes),
    /// It did not; its answer, of which the body is not read.
    Refused(Response),
}

/// Sends one event and waits for its answer.
async fn post(server: &Server, request: RequestBuilder, time_max: Duration) -> Result<Posted, ClientError> {
    let exchange = async {
        let response = request.send().await?;
        if response.status().is_success() {
            response.bytes().await.map(Posted::Accepted)
        } else {
            Ok(Posted::Refused(response))
        }
    };
    let posted = timeout(time_max, exchange).await.map_err(|_| server.silent(time_max))?;
    posted.map_err(|error| server.failed(&error))
}

/// The id in an answer; the answer itself if it has another form.
fn id_of(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Published {
        id: String,
    }
    match serde_json::from_slice::<Published>(body) {
        Ok(published) => published.id,
        Err(_) => String::from_utf8_lossy(body).trim_end().to_string(),
    }
}

#[cfg(test)]
mod tests;
