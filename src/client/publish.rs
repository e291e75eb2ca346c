//! `fanwave publish`: one event from the command line or standard input, or one per line of an
//! endless stream.
//!
//! A single event is repeated when the server is full, as long as its `Retry-After` says, a few
//! times. A stream of lines is one request (`lines`): the server slows it down by not reading, and
//! answers a line per refused event and a summary at the end. Nothing is repeated after a broken
//! connection, or where no answer came in time: whether the event arrived is not known.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderMap, StatusCode};
use reqwest::{RequestBuilder, Response, Url};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

use super::backoff::Backoff;
use super::{
    CONNECT_TIME_MAX, ClientError, bearer_of, http_client, note, parse_url, percent_encoded, push_query,
    read_refusal, retry_after, root_cause,
};
use crate::config::limits::CONTROL_BODY_MS_MAX;

mod lines;

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
    /// Control plane: http://HOST:PORT or unix:PATH [env: FANWAVE_SERVER]
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8081")]
    pub server: String,
    /// File with the control token of the server, or with a token that may publish [env: FANWAVE_TOKEN_FILE]
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Event name
    #[arg(long, value_name = "NAME")]
    pub event: Option<String>,
    /// Id in place of the server's own
    #[arg(long)]
    pub id: Option<String>,
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
    let server = Server::new(&options.server, options.token_file.as_deref(), patience)?;
    let data = options.data.as_deref().filter(|data| *data != "-");
    match (options.lines, data) {
        (false, Some(data)) => {
            publish_one(&server, &options, Bytes::from(data.to_string()), out, notes).await
        }
        (false, None) => {
            let data = read_event(input, options.binary).await?;
            publish_one(&server, &options, data, out, notes).await
        }
        (true, None) => lines::publish_lines(&server, &options, input, out, notes).await,
        (true, Some(_)) => {
            Err(ClientError::Usage("--lines reads standard input; leave DATA out".to_string()))
        }
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
    fn new(address: &str, token_file: Option<&Path>, patience: Patience) -> Result<Server, ClientError> {
        // A redirect could turn a POST into a GET (RFC 9110 §15.4.2); the control API has none.
        let mut builder = http_client().redirect(reqwest::redirect::Policy::none());
        if let Some(file) = token_file {
            builder = builder.default_headers(HeaderMap::from_iter([(AUTHORIZATION, bearer_of(file)?)]));
        }
        let (builder, url) = match address.strip_prefix("unix:") {
            Some(path) => (builder.unix_socket(path), "http://localhost"),
            None => (builder, address),
        };
        let base = parse_url(url, &["http"], "http://HOST:PORT or unix:PATH")?;
        let client = builder.build().map_err(|error| ClientError::Unreachable(root_cause(&error)))?;
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
        if error.is_connect() {
            ClientError::Unreachable(format!(
                "cannot connect to {name}: {cause}; start `fanwave serve` or name its address with --server"
            ))
        } else {
            self.unknown(&cause)
        }
    }

    /// The server took what we sent and said nothing for this long.
    fn silent(&self, waited: Duration) -> ClientError {
        self.unknown(&format!("no answer within {} s", waited.as_secs_f64()))
    }

    /// Nobody has told us what came of what we sent.
    fn unknown(&self, cause: &str) -> ClientError {
        let text = format!("{}: {cause}; what was sent may or may not be published", self.name);
        ClientError::Unreachable(text)
    }
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
    for (name, value) in [("event", &options.event), ("id", &options.id), ("retry", &retry)] {
        if let Some(value) = value {
            push_query(&mut url, name, value);
        }
    }
    Ok(url)
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
mod tests {
    use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const ANSWER: &str =
        "HTTP/1.1 200 OK\r\nContent-Length: 14\r\nConnection: close\r\n\r\n{\"id\":\"abc-1\"}";

    /// What came of a `fanwave publish`, what it printed, and its notes.
    pub(super) type Outcome = (Result<(), ClientError>, String, String);

    pub(super) async fn publish(
        server: &str,
        args: &[&str],
        input: impl AsyncRead + Send + Unpin + 'static,
    ) -> Outcome {
        publish_within(PATIENCE, server, args, input).await
    }

    pub(super) async fn publish_within(
        patience: Patience,
        server: &str,
        args: &[&str],
        input: impl AsyncRead + Send + Unpin + 'static,
    ) -> Outcome {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            options: Options,
        }
        let line = ["publish", "--server", server].into_iter().chain(args.iter().copied());
        let line = <Line as clap::Parser>::try_parse_from(line).expect("valid flags");
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        let work = super::publish(line.options, patience, input, &mut out, &mut notes);
        let result = tokio::time::timeout(Duration::from_secs(20), work).await.expect("publish ends in time");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (result, text(out), text(notes))
    }

    pub(super) async fn listener() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let server = format!("http://{}", listener.local_addr().expect("bound"));
        (listener, server)
    }

    pub(super) async fn accept(listener: &TcpListener) -> TcpStream {
        listener.accept().await.expect("a connection").0
    }

    /// Reads up to and including `end`.
    pub(super) async fn read_to(stream: &mut (impl AsyncRead + Unpin), end: &str) -> String {
        let mut bytes = Vec::new();
        while !bytes.ends_with(end.as_bytes()) {
            bytes.push(stream.read_u8().await.expect("more of the request"));
        }
        String::from_utf8(bytes).expect("UTF-8")
    }

    /// Takes one request whose body ends in `end`, answers it, and gives its head (as sent) and
    /// body.
    async fn answer(
        stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
        end: &str,
        answer: &str,
    ) -> (String, String) {
        let head = read_to(stream, "\r\n\r\n").await;
        let body = read_to(stream, end).await;
        stream.write_all(answer.as_bytes()).await.expect("the client reads");
        (head, body)
    }

    #[tokio::test]
    async fn an_event_is_posted_with_its_options_and_its_id_is_printed() {
        let (listener, server) = listener().await;
        let args = ["räume/1", "hello, world", "--event", "a&b", "--id", "x y", "--retry", "500"];
        let serve = async { answer(&mut accept(&listener).await, "world", ANSWER).await };
        let ((head, body), (result, out, _)) =
            tokio::join!(serve, publish(&server, &args, tokio::io::empty()));
        result.expect("published");
        assert_eq!(out, "abc-1\n");
        assert_eq!(body, "hello, world");
        let target = "POST /topics/r%C3%A4ume%2F1?event=a%26b&id=x%20y&retry=500 HTTP/1.1\r\n";
        assert!(head.starts_with(target), "{head}");
        assert!(head.to_lowercase().contains("content-type: text/plain; charset=utf-8\r\n"), "{head}");
    }

    #[tokio::test]
    async fn standard_input_is_one_event_without_its_last_line_break() {
        for (input, args, length, content_type) in [
            (&b"a\nb\r\n"[..], &["t"][..], 3, "text/plain"),
            (b"a\nb", &["t", "-"], 3, "text/plain"),
            (b"a\nb\r\n", &["t", "--binary"], 5, "application/octet-stream"),
        ] {
            let (listener, server) = listener().await;
            let serve = async { answer(&mut accept(&listener).await, "a\nb", ANSWER).await };
            let ((head, _), (result, _, _)) = tokio::join!(serve, publish(&server, args, input));
            result.expect("published");
            let head = head.to_lowercase();
            assert!(head.contains(&format!("content-length: {length}\r\n")), "{head}");
            assert!(head.contains(&format!("content-type: {content_type}")), "{head}");
        }
    }

    #[tokio::test]
    async fn a_refused_event_fails_with_the_servers_line() {
        let (listener, server) = listener().await;
        let refusal = "HTTP/1.1 400 Bad Request\r\nContent-Length: 23\r\n\r\n{\"error\":\"id: illegal\"}";
        let serve = async { answer(&mut accept(&listener).await, "x", refusal).await };
        let (_, (result, out, _)) = tokio::join!(serve, publish(&server, &["t", "x"], tokio::io::empty()));
        match result {
            Err(ClientError::Refused(line)) => assert_eq!(line, "400 Bad Request: id: illegal"),
            other => panic!("{other:?}"),
        }
        assert_eq!(out, "");
    }

    #[tokio::test]
    async fn a_full_server_is_asked_again_when_it_says_so() {
        let (listener, server) = listener().await;
        let full = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n\
            Content-Length: 4\r\n\r\nfull";
        let serve = async {
            answer(&mut accept(&listener).await, "x", full).await;
            let refused = std::time::Instant::now();
            answer(&mut accept(&listener).await, "x", ANSWER).await;
            refused.elapsed()
        };
        let (waited, (result, out, notes)) =
            tokio::join!(serve, publish(&server, &["t", "x"], tokio::io::empty()));
        result.expect("published");
        assert!(waited >= Duration::from_millis(990), "{waited:?}");
        assert_eq!(out, "abc-1\n");
        assert!(notes.contains("503 Service Unavailable: full; trying again in 1."), "{notes}");
    }

    /// Says `answer` to every request and then nothing more, for as long as `work` lasts.
    pub(super) async fn while_silent<T>(
        listener: TcpListener,
        answer: &str,
        work: impl Future<Output = T>,
    ) -> T {
        let mut open = Vec::new();
        let serve = async {
            loop {
                let mut stream = accept(&listener).await;
                // The rest of the request fits the kernel's buffer. A client may give up at once.
                if stream.read_u8().await.is_ok() && stream.write_all(answer.as_bytes()).await.is_ok() {
                    open.push(stream);
                }
            }
        };
        tokio::select! {
            () = serve => unreachable!("it serves for ever"),
            result = work => result,
        }
    }

    pub(super) const SHORT: Duration = Duration::from_millis(50);

    /// Neither a server that takes the request and says nothing nor one that stops within its
    /// answer is waited for without end.
    #[tokio::test]
    async fn an_answer_that_does_not_come_leaves_the_event_unknown() {
        let begun = "HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{\"id\":";
        for answer in ["", begun] {
            let (listener, server) = listener().await;
            let patience = Patience { answer: SHORT, ..PATIENCE };
            let work = publish_within(patience, &server, &["t", "x"], tokio::io::empty());
            let (result, out, _) = while_silent(listener, answer, work).await;
            let told =
                format!("{server}: no answer within 0.05 s; what was sent may or may not be published");
            assert!(matches!(&result, Err(ClientError::Unreachable(line)) if *line == told), "{result:?}");
            assert_eq!(out, "");
        }
    }

    #[test]
    fn a_large_event_has_the_time_that_the_server_gives_it() {
        let seconds =
            [0, 65_535, 65_536, 1 << 20, EVENT_BYTES_MAX].map(|bytes| PATIENCE.of_event(bytes).as_secs());
        assert_eq!(seconds, [20, 20, 21, 36, 80]);
    }

    #[tokio::test]
    async fn a_refusal_whose_body_does_not_come_is_told_as_far_as_it_came() {
        for (body, line) in [("", "400 Bad Request"), ("no such t", "400 Bad Request: no such t")] {
            let (listener, server) = listener().await;
            let answer = format!("HTTP/1.1 400 Bad Request\r\nContent-Length: 20\r\n\r\n{body}");
            let patience = Patience { refusal: SHORT, ..PATIENCE };
            let work = publish_within(patience, &server, &["t", "x"], tokio::io::empty());
            let (result, _, _) = while_silent(listener, &answer, work).await;
            assert!(matches!(&result, Err(ClientError::Refused(text)) if text == line), "{result:?}");
        }
    }

    /// The whole body counts, not each of its pieces: these would come for a minute.
    #[tokio::test]
    async fn a_refusal_that_trickles_in_is_not_read_to_its_end() {
        let (listener, server) = listener().await;
        let patience = Patience { refusal: SHORT, ..PATIENCE };
        let work = publish_within(patience, &server, &["t", "x"], tokio::io::empty());
        let trickle = async {
            let mut stream = accept(&listener).await;
            read_to(&mut stream, "\r\n\r\nx").await;
            let head = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 6000\r\n\r\nx";
            stream.write_all(head).await.expect("the client reads");
            let mut pieces = tokio::time::interval(Duration::from_millis(10));
            while stream.write_all(b"x").await.is_ok() {
                pieces.tick().await;
            }
        };
        let ((), (result, _, _)) = tokio::join!(trickle, work);
        let begins = |line: &String| line.starts_with("400 Bad Request: x");
        assert!(matches!(&result, Err(ClientError::Refused(line)) if begins(line)), "{result:?}");
    }

    #[tokio::test]
    async fn a_unix_socket_is_a_server_too() {
        let path = std::env::temp_dir().join(format!("fanwave-{}-publish.sock", std::process::id()));
        let listener = tokio::net::UnixListener::bind(&path).expect("a socket");
        let serve = async {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            answer(&mut stream, "x", ANSWER).await
        };
        let server = format!("unix:{}", path.display());
        let ((head, _), (result, _, _)) =
            tokio::join!(serve, publish(&server, &["t", "x"], tokio::io::empty()));
        let _ = std::fs::remove_file(&path);
        result.expect("published");
        assert!(head.starts_with("POST /topics/t HTTP/1.1\r\n"), "{head}");
    }

    #[tokio::test]
    async fn what_cannot_be_sent_is_said_before_connecting() {
        for (server, args, part) in [
            ("https://127.0.0.1:1", &["t", "x"][..], "no TLS"),
            ("127.0.0.1:8081", &["t", "x"], "http://"),
            ("http://127.0.0.1:1", &["..", "x"], "--lines"),
            ("http://127.0.0.1:1", &["t", "x", "--lines"], "standard input"),
        ] {
            let (result, _, _) = publish(server, args, tokio::io::empty()).await;
            match result {
                Err(ClientError::Usage(line)) => assert!(line.contains(part), "{line}"),
                other => panic!("{args:?}: {other:?}"),
            }
        }
        let (listener, server) = listener().await;
        drop(listener);
        let (result, _, _) = publish(&server, &["t", "x"], tokio::io::empty()).await;
        let error = result.expect_err("nobody listens").to_string();
        assert!(error.contains("refused") && error.contains("fanwave serve"), "{error}");
    }
}
