//! `fanwave tail`: prints the events of one address and follows its reconnects.
//!
//! Invariants worth naming:
//! - Every event is flushed before the next one is read.
//! - Standard output holds events and nothing else; what happens to the connection is told on
//!   standard error.
//! - An answer that a retry cannot change (204, 4xx, no event stream) ends the command; everything
//!   else is followed.
//!
//! Over SSE nothing is lost or doubled across a reconnect: `Last-Event-ID` resumes, and over JSON
//! the position of each subscription does. Where that cannot be, what is published between two
//! connections may be missing, and a note says so: the stream has given no id, or one that no
//! header carries, or it is a raw WebSocket, which carries no ids.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use reqwest::Url;

use super::backoff::Backoff;
use super::trust::Trust;
use super::websocket::{MESSAGE_BYTES_MAX, Unopened, as_websocket};
use super::{CONNECT_TIME_MAX, ClientError, bearer_of, note, parse_url, push_query};
use crate::topic_pattern::Pattern;
use crate::wire::SlowPolicy;
use crate::wire::sse::GAP_EVENT;
use crate::wire::start::{SINCE_MS_MAX, parse_duration_ms};

mod json;
mod sse;
mod websocket;

/// From the first packet to the head of an answer, and from there to the end of a refusal.
const ANSWER_TIME_MAX: Duration = CONNECT_TIME_MAX;
/// The largest event that is taken; a server that sends more is not one of ours.
const EVENT_BYTES_MAX: usize = MESSAGE_BYTES_MAX;

/// The flags of `fanwave tail`.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// http://HOST:PORT/sse/TOPIC or ws://HOST:PORT/ws/TOPIC; with TLS https:// and wss://
    pub url: String,
    /// Also the topics of this pattern: `*` is one segment, `**` at the end is one or more; repeats
    #[arg(long = "match", value_name = "PATTERN")]
    pub matches: Vec<Pattern>,
    /// One JSON object per event instead of its data
    #[arg(long)]
    pub json: bool,
    /// Speak fanwave.v1.json over the WebSocket: events with topic and id, resumed after a cut
    #[arg(long)]
    pub json_protocol: bool,
    /// End after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Start after the event of this id
    #[arg(long, visible_alias = "from", value_name = "ID", conflicts_with_all = ["since", "last"])]
    pub after: Option<String>,
    /// Start with events that are at most so old: 500ms, 30s, 5m or 1h
    #[arg(long, value_name = "TIME", value_parser = since_ms, conflicts_with = "last")]
    pub since: Option<u64>,
    /// Start with the last N events of each topic
    #[arg(long, value_name = "N")]
    pub last: Option<u64>,
    /// When we are too slow: close, skip or latest; the server's choice by default
    #[arg(long, value_name = "POLICY")]
    pub slow: Option<SlowPolicy>,
    /// File with a token that may subscribe
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Believe a server whose certificate one of these has signed, and no other one, in PEM
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
}

fn since_ms(text: &str) -> Result<u64, String> {
    let ms = parse_duration_ms(text).filter(|ms| *ms <= SINCE_MS_MAX);
    ms.ok_or_else(|| "write 500ms, 30s, 5m or 1h, at most 555h".to_string())
}

/// Why a connection is over.
enum Ended {
    /// There is nothing more to print, or nobody to print it for.
    Done,
    /// Standard output failed.
    Output(io::Error),
    /// The server does not want us, or does not speak our language. A retry does not help.
    Refused(String),
    /// The connection broke or never was. A retry helps, after what the server asked for.
    Lost { why: String, asked: Option<Duration> },
}

impl Ended {
    fn lost(why: impl Into<String>) -> Ended {
        Ended::Lost { why: why.into(), asked: None }
    }
}

impl From<Unopened> for Ended {
    fn from(unopened: Unopened) -> Ended {
        match unopened {
            Unopened::Refused(line) => Ended::Refused(line),
            Unopened::Lost { why, asked } => Ended::Lost { why, asked },
        }
    }
}

enum Source {
    Sse(Box<sse::Stream>),
    WebSocket(websocket::Stream),
    Json(json::Stream),
}

/// Follows `options.url` until the count is reached, `out` is closed (both `Ok`), or the server
/// refuses.
pub async fn run(options: Options, out: &mut dyn Write, notes: &mut dyn Write) -> Result<(), ClientError> {
    follow(options, ANSWER_TIME_MAX, out, notes).await
}

/// [`run`], with another limit than [`ANSWER_TIME_MAX`].
async fn follow(
    options: Options,
    answer_time_max: Duration,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> Result<(), ClientError> {
    let mut source = source(&options, answer_time_max)?;
    let mut output = Output { out, notes, json: options.json, printed: 0, count: options.count };
    let mut backoff = Backoff::default();
    loop {
        let printed = output.printed;
        let ended = match &mut source {
            Source::Sse(stream) => stream.follow(&mut output).await,
            Source::WebSocket(stream) => stream.follow(&mut output).await,
            Source::Json(stream) => stream.follow(&mut output).await,
        };
        let (why, asked) = match ended {
            Ended::Done => return Ok(()),
            Ended::Output(error) => return Err(error.into()),
            Ended::Refused(line) => return Err(ClientError::Refused(line)),
            Ended::Lost { why, asked } => (why, asked),
        };
        // A server that accepts and hangs up at once is left alone ever longer.
        if output.printed > printed {
            backoff.reset();
        }
        let wait = backoff.next(asked);
        output.note(&format!("{why}; reconnecting in {:.1} s", wait.as_secs_f64()));
        tokio::time::sleep(wait).await;
    }
}

/// SSE or WebSocket by scheme, and by path where somebody wrote `http:` for a WebSocket.
fn source(options: &Options, answer_time_max: Duration) -> Result<Source, ClientError> {
    let form = "http://HOST:PORT/sse/TOPIC or ws://HOST:PORT/ws/TOPIC, or with TLS https:// or wss://";
    let mut url = parse_url(&options.url, &["http", "ws", "https", "wss"], form)?;
    if url.path() == "/ws" || url.path().starts_with("/ws/") {
        as_websocket(&mut url);
    }
    let trust = Trust::of(options.ca.as_deref(), &url)?;
    let is_websocket = url.scheme().starts_with("ws");
    let bearer = options.token_file.as_deref().map(bearer_of).transpose()?;
    if options.json_protocol {
        if !is_websocket {
            let text = format!("`{}` is no WebSocket; write ws://HOST:PORT/ws/TOPIC", options.url);
            return Err(ClientError::Usage(text));
        }
        return Ok(Source::Json(json::Stream::new(url, options, bearer, trust, answer_time_max)?));
    }
    let addresses = Addresses { bearer, ..Addresses::new(url, options, is_websocket) };
    Ok(match is_websocket {
        true => Source::WebSocket(websocket::Stream::new(addresses, trust, answer_time_max)),
        false => {
            let after = options.after.clone();
            Source::Sse(Box::new(sse::Stream::new(addresses, after, &trust, answer_time_max)?))
        }
    })
}

/// Where to connect to.
struct Addresses {
    /// What is named to the user: the address as it was written.
    name: Url,
    /// Until a connection was open: with the start that the flags ask for.
    first: Url,
    /// After that.
    later: Url,
    /// What lets us in.
    bearer: Option<HeaderValue>,
}

impl Addresses {
    /// Puts what the flags say before the query of `name`, because of several values the first one
    /// counts. An id to start after is among it only where no header names it.
    fn new(name: Url, options: &Options, with_id: bool) -> Addresses {
        let slow = options.slow.map(|slow| ("slow", slow.to_string()));
        let patterns = options.matches.iter().map(|pattern| ("match", pattern.to_string()));
        let always: Vec<_> = patterns.chain(slow).collect();
        let after = options.after.clone().filter(|_| with_id).map(|id| ("last-event-id", id));
        let since = options.since.map(|ms| ("since", format!("{ms}ms")));
        let last = options.last.map(|events| ("last", events.to_string()));
        let at_first: Vec<_> = always.iter().cloned().chain(after).chain(since).chain(last).collect();
        let (first, later) = (with_query(&name, &at_first), with_query(&name, &always));
        Addresses { name, first, later, bearer: None }
    }
}

/// `url` with these parameters before its own.
fn with_query(url: &Url, parameters: &[(&str, String)]) -> Url {
    let mut asked = url.clone();
    if parameters.is_empty() {
        return asked;
    }
    asked.set_query(None);
    for (name, value) in parameters {
        push_query(&mut asked, name, value);
    }
    let own = url.query().filter(|query| !query.is_empty());
    if let (Some(put), Some(own)) = (asked.query(), own) {
        let query = format!("{put}&{own}");
        asked.set_query(Some(&query));
    }
    asked
}

/// What an event carries, as the transport gave it.
enum Payload<'a> {
    Text(&'a str),
    Binary(&'a [u8]),
}

/// Where events and notes go.
struct Output<'a> {
    out: &'a mut dyn Write,
    notes: &'a mut dyn Write,
    json: bool,
    /// Events written so far.
    printed: u64,
    /// Events after which there is nothing more to do.
    count: Option<u64>,
}

impl Output<'_> {
    /// Writes one event; `Break` when it was the last one.
    fn event(&mut self, name: &str, id: &str, payload: Payload<'_>) -> ControlFlow<Ended> {
        if !self.json {
            return self.data(payload);
        }
        self.line(match payload {
            Payload::Text(data) => serde_json::json!({ "event": name, "id": id, "data": data }).to_string(),
            Payload::Binary(bytes) => {
                serde_json::json!({ "event": name, "id": id, "base64": STANDARD.encode(bytes) }).to_string()
            }
        })
    }

    /// Writes the data of an event alone.
    fn data(&mut self, payload: Payload<'_>) -> ControlFlow<Ended> {
        self.line(match payload {
            Payload::Text(data) => data.to_string(),
            Payload::Binary(bytes) => format!("<{} bytes binary>", bytes.len()),
        })
    }

    /// Tells of a gap. It is no event of a topic: it belongs among the events only where its name
    /// tells it apart.
    fn gap(&mut self, id: &str, json: &str) -> ControlFlow<Ended> {
        if self.json {
            return self.event(GAP_EVENT, id, Payload::Text(json));
        }
        self.note(&format!("events are missing: {json}"));
        ControlFlow::Continue(())
    }

    /// Writes what an event is printed as.
    fn line(&mut self, mut line: String) -> ControlFlow<Ended> {
        line.push('\n');
        match self.out.write_all(line.as_bytes()).and_then(|()| self.out.flush()) {
            Ok(()) => {}
            // `fanwave tail … | head` has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                return ControlFlow::Break(Ended::Done);
            }
            Err(error) => return ControlFlow::Break(Ended::Output(error)),
        }
        self.printed += 1;
        if Some(self.printed) == self.count {
            ControlFlow::Break(Ended::Done)
        } else {
            ControlFlow::Continue(())
        }
    }

    /// Tells that a connection is open, and if it may `lack` events after an earlier one, why.
    fn connected(&mut self, url: &Url, lack: Option<&str>) {
        self.note(&format!("connected to {url}"));
        if let Some(cause) = lack {
            self.note(&format!("events may be missing: {cause}"));
        }
    }

    fn note(&mut self, text: &str) {
        note(self.notes, text);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// What `fanwave tail` with `args` behind the URL is to do.
    pub(super) fn options(url: &str, args: &[&str]) -> Options {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            options: Options,
        }
        let line = ["tail", url].into_iter().chain(args.iter().copied());
        <Line as clap::Parser>::try_parse_from(line).expect("valid flags").options
    }

    /// Runs `tail` with `args` behind the URL and gives its result, what it printed, and its notes.
    pub(super) async fn tail(url: &str, args: &[&str]) -> (Result<(), ClientError>, String, String) {
        tail_within(ANSWER_TIME_MAX, url, args).await
    }

    async fn tail_within(
        answer_time_max: Duration,
        url: &str,
        args: &[&str],
    ) -> (Result<(), ClientError>, String, String) {
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        let limit = Duration::from_secs(20);
        let work = follow(options(url, args), answer_time_max, &mut out, &mut notes);
        let result = tokio::time::timeout(limit, work).await;
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (result.expect("tail ends in time"), text(out), text(notes))
    }

    #[test]
    fn the_transport_follows_from_scheme_and_path() {
        let is_websocket = |url: &str| {
            source(&options(url, &[]), ANSWER_TIME_MAX).map(|source| matches!(source, Source::WebSocket(_)))
        };
        for (url, websocket) in [
            ("http://127.0.0.1:1/sse/a", false),
            ("http://127.0.0.1:1/sse?topic=a", false),
            ("http://127.0.0.1:1/wsx", false),
            ("http://127.0.0.1:1/ws/a", true),
            ("http://127.0.0.1:1/ws?topic=a", true),
            ("ws://127.0.0.1:1/anything", true),
            ("https://127.0.0.1:1/sse/a", false),
            ("https://127.0.0.1:1/ws/a", true),
            ("wss://127.0.0.1:1/anything", true),
        ] {
            assert_eq!(is_websocket(url).expect(url), websocket, "{url}");
        }
        assert!(matches!(is_websocket("ftp://a/ws/b"), Err(ClientError::Usage(_))));
    }

    #[test]
    fn flags_stand_before_what_the_address_says_and_starts_hold_for_one_connection() {
        let flags = ["--match", "a/*", "--match", "b c", "--slow", "skip", "--last", "3"];
        for (url, flags, first, later) in [
            (
                "http://h/sse/t?last=9&x",
                &flags[..],
                "match=a%2F%2A&match=b%20c&slow=skip&last=3&last=9&x",
                "match=a%2F%2A&match=b%20c&slow=skip&last=9&x",
            ),
            ("http://h/sse/t?x=%zz", &["--since", "2m"], "since=120000ms&x=%zz", "x=%zz"),
            ("ws://h/ws/t", &["--after", "a b"], "last-event-id=a%20b", ""),
            ("http://h/sse/t", &["--after", "a b"], "", ""),
        ] {
            let name = Url::parse(url).expect("a URL");
            let addresses = Addresses::new(name, &options(url, flags), url.starts_with("ws"));
            assert_eq!(addresses.first.query().unwrap_or_default(), first, "{url}");
            assert_eq!(addresses.later.query().unwrap_or_default(), later, "{url}");
        }
    }

    /// Says `first` to the first connection and `later` to the others, and leaves all of them open.
    async fn answer(listener: TcpListener, first: &str, later: &str) {
        let mut open = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let text = if open.is_empty() { first } else { later };
            // The rest of the request fits the kernel's buffer. A client that has given up
            // meanwhile comes again.
            if stream.read_u8().await.is_ok() && stream.write_all(text.as_bytes()).await.is_ok() {
                open.push(stream);
            }
        }
    }

    /// Long enough for an answer that comes at once; if it is not, `tail` only comes once more.
    const SHORT: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn a_server_that_takes_the_request_and_says_nothing_is_asked_again() {
        for (scheme, path) in [("http", "sse/t"), ("ws", "ws/t")] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let url = format!("{scheme}://{}/{path}", listener.local_addr().expect("bound"));
            let gone = "HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\ngone\n";
            let (result, _, notes) = tokio::select! {
                () = answer(listener, "", gone) => unreachable!("it answers for ever"),
                outcome = tail_within(SHORT, &url, &[]) => outcome,
            };
            let line =
                format!("fanwave: cannot connect to {url}: no answer in time; reconnecting in 0.1 s\n");
            assert!(notes.starts_with(&line), "{notes}");
            assert!(
                matches!(&result, Err(ClientError::Refused(line)) if line == "404 Not Found: gone"),
                "{result:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_refusal_whose_body_does_not_come_is_told_as_far_as_it_came() {
        for (body, line) in [("", "404 Not Found"), ("no such p", "404 Not Found: no such p")] {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
            let url = format!("http://{}/sse/t", listener.local_addr().expect("bound"));
            let begun = format!("HTTP/1.1 404 Not Found\r\nContent-Length: 13\r\n\r\n{body}");
            let (result, _, _) = tokio::select! {
                () = answer(listener, &begun, &begun) => unreachable!("it answers for ever"),
                outcome = tail_within(SHORT, &url, &[]) => outcome,
            };
            assert!(matches!(&result, Err(ClientError::Refused(text)) if text == line), "{result:?}");
        }
    }

    #[test]
    fn a_closed_pipe_is_a_good_end_and_a_full_disk_is_not() {
        struct Broken(io::ErrorKind);
        impl Write for Broken {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let ended = |kind| {
            let mut output = Output {
                out: &mut Broken(kind),
                notes: &mut io::sink(),
                json: false,
                printed: 0,
                count: None,
            };
            output.event("message", "", Payload::Text("x"))
        };
        assert!(matches!(ended(io::ErrorKind::BrokenPipe), ControlFlow::Break(Ended::Done)));
        assert!(matches!(ended(io::ErrorKind::StorageFull), ControlFlow::Break(Ended::Output(_))));
    }
}
