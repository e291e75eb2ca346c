//! `fanwave publish`: one event from the command line or standard input, or one per line of an endless stream.
//!
//! A single event is repeated when the server is full, as long as its `Retry-After` says, a few times. A stream of
//! lines is one request: the server slows it down by not reading, and answers a line per refused event and a summary
//! at the end. Nothing is repeated after a broken connection: whether the event arrived is not known.

use std::io::Write;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::Stream;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use reqwest::Url;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

use super::backoff::Backoff;
use super::{
    ClientError, http_client, parse_url, percent_encoded, push_query, read_refusal, retry_after, root_cause,
};

/// Attempts of one event while the server is full.
const ATTEMPTS_MAX: u32 = 5;
/// The longest wait between two attempts, whatever the server asks for.
const RETRY_TIME_MAX: Duration = Duration::from_secs(30);
/// Standard input, or a line of it, as one event; more is meant otherwise, or is a mistake.
const EVENT_BYTES_MAX: usize = 64 << 20;
/// One line of the answer to a stream of lines; a server that sends more is not one of ours.
const ANSWER_BYTES_MAX: usize = 64 << 10;

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

/// Publishes what `options` and `input` say. Ids and the summary go to `out`, refused lines to `notes`.
pub async fn run(
    options: Options,
    input: impl AsyncRead + Send + Unpin + 'static,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> Result<(), ClientError> {
    let server = Server::new(&options.server)?;
    let data = options.data.as_deref().filter(|data| *data != "-");
    match (options.lines, data) {
        (false, Some(data)) => {
            publish_one(&server, &options, Bytes::from(data.to_string()), out, notes).await
        }
        (false, None) => {
            let data = read_event(input, options.binary).await?;
            publish_one(&server, &options, data, out, notes).await
        }
        (true, None) => publish_lines(&server, &options, input, out, notes).await,
        (true, Some(_)) => {
            Err(ClientError::Usage("--lines reads standard input; leave DATA out".to_string()))
        }
    }
}

/// Where to publish, and how to get there.
struct Server {
    client: reqwest::Client,
    base: Url,
    /// The address as the user wrote it.
    name: String,
}

impl Server {
    fn new(address: &str) -> Result<Server, ClientError> {
        // A redirect could turn a POST into a GET (RFC 9110 §15.4.2); the control API has none.
        let builder = http_client().redirect(reqwest::redirect::Policy::none());
        let (builder, base) = match address.strip_prefix("unix:") {
            Some(path) => (builder.unix_socket(path), parse_url("http://localhost", &["http"])?),
            None => (builder, parse_url(address, &["http"])?),
        };
        let client = builder.build().map_err(|error| ClientError::Unreachable(root_cause(&error)))?;
        Ok(Server { client, base, name: address.to_string() })
    }

    /// The URL of a path below the server's address, which may have a path of its own behind a proxy.
    fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}{path}", self.base.path().trim_end_matches('/')));
        url
    }

    fn unreachable(&self, error: &reqwest::Error) -> ClientError {
        let (name, cause) = (&self.name, root_cause(error));
        ClientError::Unreachable(if error.is_connect() {
            format!(
                "cannot connect to {name}: {cause}; start `fanwave serve` or name its address with --server"
            )
        } else {
            format!("{name}: {cause}; the event may or may not be published")
        })
    }
}

/// Standard input to its end as one event.
async fn read_event(input: impl AsyncRead + Unpin, binary: bool) -> Result<Bytes, ClientError> {
    let mut data = Vec::new();
    input.take(EVENT_BYTES_MAX as u64 + 1).read_to_end(&mut data).await?;
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
    let content_type = if options.binary { "application/octet-stream" } else { "text/plain; charset=utf-8" };
    let mut backoff = Backoff::default();
    for attempt in 1.. {
        let request = server.client.post(url.clone()).header(CONTENT_TYPE, content_type).body(data.clone());
        let response = request.send().await.map_err(|error| server.unreachable(&error))?;
        if response.status().is_success() {
            let body = response.bytes().await.map_err(|error| server.unreachable(&error))?;
            writeln!(out, "{}", id_of(&body))?;
            out.flush()?;
            break;
        }
        let full = response.status() == StatusCode::SERVICE_UNAVAILABLE;
        let asked = retry_after(response.headers());
        let line = read_refusal(response).await;
        if !full || attempt == ATTEMPTS_MAX {
            return Err(ClientError::Refused(line));
        }
        let wait = backoff.next(asked).min(RETRY_TIME_MAX);
        note(notes, &format!("{line}; trying again in {:.1} s", wait.as_secs_f64()));
        tokio::time::sleep(wait).await;
    }
    Ok(())
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

async fn publish_lines(
    server: &Server,
    options: &Options,
    input: impl AsyncRead + Send + Unpin + 'static,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> Result<(), ClientError> {
    let broken = Arc::new(OnceLock::new());
    let body = reqwest::Body::wrap_stream(line_stream(input, options.clone(), broken.clone()));
    let request = server.client.post(server.url("/publish")).header(CONTENT_TYPE, "application/x-ndjson");
    // What stopped our own body says more than what the connection made of it.
    let failed = |error: reqwest::Error| match broken.get() {
        Some(cause) => ClientError::Usage(String::clone(cause)),
        None => server.unreachable(&error),
    };
    let mut response = request.body(body).send().await.map_err(failed)?;
    if !response.status().is_success() {
        return Err(ClientError::Refused(read_refusal(response).await));
    }
    let mut summary = None;
    let mut answer = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        answer.extend_from_slice(&chunk);
        while let Some(end) = memchr::memchr(b'\n', &answer) {
            summary = print_answer(&answer[..end], out, notes)?.or(summary);
            answer.drain(..=end);
        }
        if answer.len() > ANSWER_BYTES_MAX {
            return Err(ClientError::Unreachable(format!(
                "{}: its answer is none of fanwave's",
                server.name
            )));
        }
    }
    match summary {
        Some(Answer { error: Some(error), .. }) => Err(ClientError::Refused(error)),
        Some(Answer { refused: 1.., .. }) => Err(ClientError::Refused("some lines were refused".to_string())),
        Some(_) => Ok(()),
        None => Err(ClientError::Unreachable(format!("{}: the answer broke off", server.name))),
    }
}

/// One line of the answer to a stream of lines: a refused line with its number, or the summary without one.
#[derive(serde::Deserialize)]
struct Answer {
    line: Option<u64>,
    /// Why the line was refused, or why the stream ended early.
    error: Option<String>,
    #[serde(default)]
    refused: u64,
}

/// Passes one line of the answer on, and gives the summary if it was that.
fn print_answer(
    line: &[u8],
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> Result<Option<Answer>, ClientError> {
    let text = String::from_utf8_lossy(line);
    let answer = serde_json::from_str::<Answer>(&text).ok();
    if let Some(Answer { line: Some(number), error, .. }) = answer {
        note(notes, &format!("line {number}: {}", error.as_deref().unwrap_or("refused")));
        return Ok(None);
    }
    writeln!(out, "{text}")?;
    out.flush()?;
    Ok(answer)
}

/// Notes are a courtesy: a closed standard error does not end the work.
fn note(notes: &mut dyn Write, text: &str) {
    let _ = writeln!(notes, "fanwave: {text}").and_then(|()| notes.flush());
}

/// One line of NDJSON.
#[derive(serde::Serialize)]
struct Line<'a> {
    topic: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retry: Option<u32>,
}

/// Lines of `input` as NDJSON, each as soon as it is there. A failure ends the stream and is told in `broken`.
fn line_stream(
    input: impl AsyncRead + Send + Unpin + 'static,
    options: Options,
    broken: Arc<OnceLock<String>>,
) -> impl Stream<Item = std::io::Result<Bytes>> + Send + 'static {
    let start = (BufReader::new(input), 1u64, options, broken);
    futures_util::stream::try_unfold(start, |(mut input, number, options, broken)| async move {
        let mut line = Vec::new();
        let json = match (&mut input).take(EVENT_BYTES_MAX as u64 + 1).read_until(b'\n', &mut line).await {
            Ok(0) => return Ok(None),
            Ok(_) if line.len() > EVENT_BYTES_MAX => {
                Err(format!("standard input line {number}: more than {EVENT_BYTES_MAX} bytes"))
            }
            Ok(_) => {
                encode_line(&line, &options).map_err(|cause| format!("standard input line {number}: {cause}"))
            }
            Err(error) => Err(format!("standard input: {error}")),
        };
        match json {
            Ok(json) => Ok(Some((json, (input, number + 1, options, broken)))),
            Err(cause) => {
                // Nobody else sets it; a second failure cannot come after the end.
                let _ = broken.set(cause.clone());
                Err(std::io::Error::other(cause))
            }
        }
    })
}

/// One line, its line break left out, as one line of NDJSON.
fn encode_line(line: &[u8], options: &Options) -> Result<Bytes, String> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let (data, base64) = if options.binary {
        (None, Some(STANDARD.encode(line)))
    } else {
        let text = std::str::from_utf8(line).map_err(|error| {
            format!("not UTF-8 at byte {}; --binary publishes any bytes", error.valid_up_to())
        })?;
        (Some(text), None)
    };
    let event = options.event.as_deref();
    let line = Line { topic: &options.topic, data, base64, event, retry: options.retry };
    let mut json = serde_json::to_vec(&line).map_err(|error| error.to_string())?;
    json.push(b'\n');
    Ok(json.into())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const ANSWER: &str =
        "HTTP/1.1 200 OK\r\nContent-Length: 14\r\nConnection: close\r\n\r\n{\"id\":\"abc-1\"}";

    async fn publish(
        server: &str,
        args: &[&str],
        input: impl AsyncRead + Send + Unpin + 'static,
    ) -> (Result<(), ClientError>, String, String) {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            options: Options,
        }
        let line = ["publish", "--server", server].into_iter().chain(args.iter().copied());
        let line = <Line as clap::Parser>::try_parse_from(line).expect("valid flags");
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        let work = run(line.options, input, &mut out, &mut notes);
        let result = tokio::time::timeout(Duration::from_secs(20), work).await.expect("publish ends in time");
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (result, text(out), text(notes))
    }

    async fn listener() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let server = format!("http://{}", listener.local_addr().expect("bound"));
        (listener, server)
    }

    async fn accept(listener: &TcpListener) -> TcpStream {
        listener.accept().await.expect("a connection").0
    }

    /// Reads up to and including `end`.
    async fn read_to(stream: &mut (impl AsyncRead + Unpin), end: &str) -> String {
        let mut bytes = Vec::new();
        while !bytes.ends_with(end.as_bytes()) {
            bytes.push(stream.read_u8().await.expect("more of the request"));
        }
        String::from_utf8(bytes).expect("UTF-8")
    }

    /// Takes one request whose body ends in `end`, answers it, and gives its head (as sent) and body.
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
        let full = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 4\r\n\r\nfull";
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

    /// A chunk of an answer of unknown length (RFC 9112 §7.1).
    fn chunk(text: &str) -> Vec<u8> {
        format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
    }

    const STREAMED: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";

    #[tokio::test]
    async fn each_line_is_sent_as_it_comes_while_the_server_answers() {
        let (listener, server) = listener().await;
        let (mut keyboard, input) = tokio::io::duplex(1_024);
        let summary = "{\"accepted\":1,\"refused\":1,\"last_id\":\"abc-1\"}\n";
        let serve = async {
            let mut stream = accept(&listener).await;
            let head = read_to(&mut stream, "\r\n\r\n").await;
            stream.write_all(STREAMED).await.expect("the client reads");
            keyboard.write_all(b"one \"1\"\r\n").await.expect("open");
            let first = read_to(&mut stream, "}\n\r\n").await;
            let refusal = chunk("{\"line\":1,\"error\":\"too much\"}\n");
            stream.write_all(&refusal).await.expect("the client reads");
            keyboard.write_all(b"two").await.expect("open");
            drop(keyboard);
            let second = read_to(&mut stream, "0\r\n\r\n").await;
            stream.write_all(&[chunk(summary), chunk("")].concat()).await.expect("the client reads");
            (head, first, second)
        };
        let args = ["t", "--lines", "--event", "e", "--retry", "7"];
        let ((head, first, second), (result, out, notes)) =
            tokio::join!(serve, publish(&server, &args, input));
        assert!(head.starts_with("POST /publish HTTP/1.1\r\n"), "{head}");
        assert!(first.contains(r#"{"topic":"t","data":"one \"1\"","event":"e","retry":7}"#), "{first}");
        assert!(second.contains(r#"{"topic":"t","data":"two","event":"e","retry":7}"#), "{second}");
        assert_eq!(out, summary);
        assert_eq!(notes, "fanwave: line 1: too much\n");
        assert!(matches!(result, Err(ClientError::Refused(line)) if line == "some lines were refused"));
    }

    #[tokio::test]
    async fn a_stream_that_the_server_ends_is_no_success() {
        let draining =
            "{\"accepted\":0,\"refused\":0,\"error\":\"draining: lines from 1 on were not taken\"}\n";
        for (answer, told) in [(draining, "draining: lines from 1"), ("", "the answer broke off")] {
            let (listener, server) = listener().await;
            let (keyboard, input) = tokio::io::duplex(64);
            let serve = async {
                let mut stream = accept(&listener).await;
                read_to(&mut stream, "\r\n\r\n").await;
                let text = if answer.is_empty() { chunk("") } else { [chunk(answer), chunk("")].concat() };
                stream.write_all(&[STREAMED, &text].concat()).await.expect("the client reads");
                stream
            };
            let (_, (result, _, _)) = tokio::join!(serve, publish(&server, &["t", "--lines"], input));
            drop(keyboard);
            let error = result.expect_err("the server ended it").to_string();
            assert!(error.contains(told), "{error}");
        }
    }

    /// What ends a stream of these lines.
    async fn end_of_lines(input: impl AsyncRead + Send + Unpin + 'static) -> String {
        let (listener, server) = listener().await;
        let serve = async {
            let mut stream = accept(&listener).await;
            // The client hangs up; how much arrives before is up to the kernel.
            let mut bytes = Vec::new();
            let _ = stream.read_to_end(&mut bytes).await;
        };
        let ((), (result, _, _)) = tokio::join!(serve, publish(&server, &["t", "--lines"], input));
        result.expect_err("a line that cannot be sent").to_string()
    }

    #[tokio::test]
    async fn a_line_that_is_no_text_ends_the_stream_by_number() {
        let error = end_of_lines(&b"fine\n\xff\xfe\n"[..]).await;
        assert!(error.contains("line 2: not UTF-8 at byte 0") && error.contains("--binary"), "{error}");
    }

    #[tokio::test]
    async fn a_line_without_end_is_not_held() {
        let error = end_of_lines((&b"fine\n"[..]).chain(tokio::io::repeat(b'x'))).await;
        assert!(error.contains("line 2: more than 67108864 bytes"), "{error}");
    }

    #[test]
    fn binary_lines_travel_as_base64() {
        let options = Options {
            topic: "t".to_string(),
            data: None,
            server: String::new(),
            event: None,
            id: None,
            retry: None,
            binary: true,
            lines: true,
        };
        let json = encode_line(b"\x00\xff\n", &options).expect("any bytes");
        assert_eq!(json.as_ref(), b"{\"topic\":\"t\",\"base64\":\"AP8=\"}\n");
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
