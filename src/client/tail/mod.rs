//! `fanwave tail`: prints the events of one address and follows its reconnects.
//!
//! Invariants worth naming:
//! - Every event is flushed before the next one is read.
//! - Standard output holds events and nothing else; what happens to the connection is told on standard error.
//! - An answer that a retry cannot change (204, 4xx, no event stream) ends the command; everything else is followed.
//!
//! Over SSE nothing is lost or doubled across a reconnect: `Last-Event-ID` resumes. Where it cannot, what is published
//! between two connections may be missing, and a note says so: the stream has given no id, or one that no header
//! carries, or it is a raw WebSocket, which carries no ids.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Url;

use super::backoff::Backoff;
use super::{ClientError, parse_url};

mod sse;
mod websocket;

/// The largest event that is taken; a server that sends more is not one of ours.
const EVENT_BYTES_MAX: usize = 64 << 20;

/// The flags of `fanwave tail`.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// http://HOST:PORT/sse/TOPIC or ws://HOST:PORT/ws/TOPIC
    pub url: String,
    /// One JSON object per event instead of its data
    #[arg(long)]
    pub json: bool,
    /// End after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Start after the event of this id
    #[arg(long, value_name = "ID")]
    pub from: Option<String>,
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

enum Source {
    Sse(Box<sse::Stream>),
    WebSocket(websocket::Stream),
}

/// Follows `options.url` until the count is reached, `out` is closed (both `Ok`), or the server refuses.
pub async fn run(options: Options, out: &mut dyn Write, notes: &mut dyn Write) -> Result<(), ClientError> {
    let mut source = source(&options)?;
    let mut output = Output { out, notes, json: options.json, printed: 0, count: options.count };
    let mut backoff = Backoff::default();
    loop {
        let printed = output.printed;
        let ended = match &mut source {
            Source::Sse(stream) => stream.follow(&mut output).await,
            Source::WebSocket(stream) => stream.follow(&mut output).await,
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
fn source(options: &Options) -> Result<Source, ClientError> {
    let mut url = parse_url(&options.url, &["http", "ws"])?;
    if url.scheme() == "http" && (url.path() == "/ws" || url.path().starts_with("/ws/")) {
        // Only a change between special and other schemes can fail, and both are special (WHATWG URL §6.1).
        url.set_scheme("ws").expect("http becomes ws");
    }
    Ok(match url.scheme() {
        "ws" => Source::WebSocket(websocket::Stream::new(url, options.from.as_deref())),
        _ => Source::Sse(Box::new(sse::Stream::new(url, options.from.clone())?)),
    })
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
        let mut line = match (self.json, payload) {
            (true, Payload::Text(data)) => {
                serde_json::json!({ "event": name, "id": id, "data": data }).to_string()
            }
            (true, Payload::Binary(bytes)) => {
                serde_json::json!({ "event": name, "id": id, "base64": STANDARD.encode(bytes) }).to_string()
            }
            (false, Payload::Text(data)) => data.to_string(),
            (false, Payload::Binary(bytes)) => format!("<{} bytes binary>", bytes.len()),
        };
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

    /// Tells the user what happens. Notes are a courtesy: a closed standard error does not end the work.
    fn note(&mut self, text: &str) {
        let _ = writeln!(self.notes, "fanwave: {text}").and_then(|()| self.notes.flush());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `tail` with `args` behind the URL and gives its result, what it printed, and its notes.
    pub(super) async fn tail(url: &str, args: &[&str]) -> (Result<(), ClientError>, String, String) {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            options: Options,
        }
        let line = ["tail", url].into_iter().chain(args.iter().copied());
        let line = <Line as clap::Parser>::try_parse_from(line).expect("valid flags");
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        let limit = Duration::from_secs(20);
        let result = tokio::time::timeout(limit, run(line.options, &mut out, &mut notes)).await;
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        (result.expect("tail ends in time"), text(out), text(notes))
    }

    #[test]
    fn the_transport_follows_from_scheme_and_path() {
        let is_websocket = |url: &str| {
            let options = Options { url: url.to_string(), json: false, count: None, from: None };
            source(&options).map(|source| matches!(source, Source::WebSocket(_)))
        };
        for (url, websocket) in [
            ("http://127.0.0.1:1/sse/a", false),
            ("http://127.0.0.1:1/sse?topic=a", false),
            ("http://127.0.0.1:1/wsx", false),
            ("http://127.0.0.1:1/ws/a", true),
            ("http://127.0.0.1:1/ws?topic=a", true),
            ("ws://127.0.0.1:1/anything", true),
        ] {
            assert_eq!(is_websocket(url).expect(url), websocket, "{url}");
        }
        assert!(matches!(is_websocket("wss://a/ws/b"), Err(ClientError::Usage(_))));
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
