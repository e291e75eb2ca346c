//! `fanwave publish`: one event from the command line or standard input, or one per line of an endless stream.
//!
//! A single event is repeated when the server is full, as long as its `Retry-After` says, a few times. A stream of
//! lines is one request (`lines`): the server slows it down by not reading, and answers a line per refused event and a
//! summary at the end. Nothing is repeated after a broken connection: whether the event arrived is not known.

use std::io::{self, Write};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::CONTENT_TYPE;
use reqwest::Url;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::backoff::Backoff;
use super::{
    ClientError, http_client, parse_url, percent_encoded, push_query, read_refusal, retry_after, root_cause,
};

mod lines;

/// Attempts of one event while the server is full.
const ATTEMPTS_MAX: u32 = 5;
/// The longest wait between two attempts, whatever the server asks for.
const RETRY_TIME_MAX: Duration = Duration::from_secs(30);
/// Standard input, or a line of it, as one event; more is meant otherwise, or is a mistake.
const EVENT_BYTES_MAX: usize = 64 << 20;

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

/// Publishes what `options` and `input` say. Ids and the summary go to `out`, lines that are refused or left out are told
/// in `notes`.
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
        (true, None) => lines::publish_lines(&server, &options, input, out, notes).await,
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
            format!("{name}: {cause}; what was sent may or may not be published")
        })
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

/// Notes are a courtesy: a closed standard error does not end the work.
fn note(notes: &mut dyn Write, text: &str) {
    let _ = writeln!(notes, "fanwave: {text}").and_then(|()| notes.flush());
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const ANSWER: &str =
        "HTTP/1.1 200 OK\r\nContent-Length: 14\r\nConnection: close\r\n\r\n{\"id\":\"abc-1\"}";

    pub(super) async fn publish(
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
