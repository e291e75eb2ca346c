//! `fanwave publish --lines`: one request whose body lasts as long as standard input. Its answer is
//! read meanwhile.
//!
//! Invariants worth naming:
//! - A line is sent as soon as it is whole, and no line costs another one: what cannot be sent is
//!   left out and told, as the server does with what it refuses. An input that breaks ends the body
//!   like one that ends.
//! - Lines bear their number in standard input, whether client or server refuses them.
//! - Whatever was left out or refused makes the command fail, with the counts.
//! - The server may be silent as long as lines may come, and a bounded time after the last one.

use std::convert::Infallible;
use std::io::{self, Write};

use bytes::Bytes;
use futures_util::Stream;
use http::header::CONTENT_TYPE;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::super::{ClientError, note, read_refusal};
use super::{EVENT_BYTES_MAX, NoEvent, Options, Server, event_json};

/// One line of the answer; a server that sends more is not one of ours.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Obstacles that wait to be told; reading goes on when there is room for another one.
const OBSTACLES_MAX: usize = 16;

/// Publishes each line of `input` and prints the server's summary.
pub(super) async fn publish_lines(
    server: &Server,
    options: &Options,
    input: impl AsyncRead + Send + Unpin + 'static,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> Result<(), ClientError> {
    let (lines, mut unsent) = Lines::of(input, options);
    let request = server.client.post(server.url("/publish")).header(CONTENT_TYPE, "application/x-ndjson");
    let sent = request.body(reqwest::Body::wrap_stream(lines.stream())).send();
    let response = unsent.during(sent, server, notes).await?;
    if !response.status().is_success() {
        return Err(ClientError::Refused(read_refusal(response, server.patience.refusal).await));
    }
    let summary = read_answer(server, response, &mut unsent, out, notes).await?;
    verdict(summary, &unsent)
}

/// Passes the answer on as it comes, up to its summary. How the connection ends after that changes
/// nothing.
async fn read_answer(
    server: &Server,
    mut response: reqwest::Response,
    unsent: &mut Unsent,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> Result<Summary, ClientError> {
    let mut answer = Vec::new();
    while let Some(chunk) = unsent.during(response.chunk(), server, notes).await? {
        answer.extend_from_slice(&chunk);
        while let Some(end) = memchr::memchr(b'\n', &answer) {
            if let Some(summary) = print_answer(&answer[..end], out, notes)? {
                return Ok(summary);
            }
            answer.drain(..=end);
        }
        if answer.len() > ANSWER_BYTES_MAX {
            return Err(server.unknown("its answer is none of fanwave's"));
        }
    }
    Err(server.unknown("the answer broke off"))
}

/// What all lines together came to.
pub(super) fn verdict(summary: Summary, unsent: &Unsent) -> Result<(), ClientError> {
    let Summary { accepted, refused, error } = summary;
    let left_out = unsent.lines;
    let counts =
        format!("lines: {accepted} accepted, {refused} refused by the server, {left_out} left out here");
    match error {
        Some(error) => Err(ClientError::Refused(format!("{error}; {counts}"))),
        None if refused + left_out > 0 || unsent.broken => Err(ClientError::Refused(counts)),
        None => Ok(()),
    }
}

/// What keeps a line of standard input from being sent, with its number from 1.
pub(super) enum Obstacle {
    /// The line is no event, and is left out.
    Line { number: u64, cause: NoEvent },
    /// The line cannot be read; there is nothing after it.
    Broken { number: u64, error: io::Error },
}

/// What was not sent.
pub(super) struct Unsent {
    pub(super) told: mpsc::Receiver<Obstacle>,
    /// Lines that were left out.
    lines: u64,
    /// True once standard input could not be read any further.
    broken: bool,
    /// True once nothing more is to be sent: the last line is on its way, or the server takes no
    /// more.
    over: bool,
}

impl Unsent {
    /// Waits for a part of the server's answer, and notes meanwhile what is not sent. Before the
    /// last line the server owes us nothing, so that the wait has no end; after it the part has to
    /// come in time.
    async fn during<T>(
        &mut self,
        part: impl Future<Output = reqwest::Result<T>>,
        server: &Server,
        notes: &mut dyn Write,
    ) -> Result<T, ClientError> {
        let mut part = std::pin::pin!(part);
        let failed = |error: reqwest::Error| server.failed(&error);
        while !self.over {
            tokio::select! {
                biased;
                obstacle = self.told.recv() => match obstacle {
                    Some(obstacle) => self.take(obstacle, notes),
                    // The lines hold the other end, and are gone with the body.
                    None => self.over = true,
                },
                result = &mut part => return result.map_err(failed),
            }
        }
        let time_max = server.patience.last_lines;
        timeout(time_max, part).await.map_err(|_| server.silent(time_max))?.map_err(failed)
    }

    /// Tells of one that was not sent.
    pub(super) fn take(&mut self, obstacle: Obstacle, notes: &mut dyn Write) {
        match obstacle {
            Obstacle::Line { number, cause } => {
                self.lines += 1;
                note(notes, &format!("line {number} is left out: {cause}"));
            }
            Obstacle::Broken { number, error } => {
                self.broken = true;
                let rest = "nothing from this line on was sent";
                note(notes, &format!("standard input, line {number}: {error}; {rest}"));
            }
        }
    }
}

/// One line of the answer to a stream of lines.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Answer {
    /// A line was refused.
    Line {
        line: u64,
        error: String,
    },
    Summary(Summary),
}

/// The last line of the answer.
#[derive(serde::Deserialize)]
pub(super) struct Summary {
    pub(super) accepted: u64,
    pub(super) refused: u64,
    /// Why the stream ended early.
    pub(super) error: Option<String>,
}

/// Passes one line of the answer on, and gives the summary if it was that.
fn print_answer(
    line: &[u8],
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> Result<Option<Summary>, ClientError> {
    let text = String::from_utf8_lossy(line);
    match serde_json::from_str(&text) {
        Ok(Answer::Line { line: number, error }) => {
            note(notes, &format!("line {number}: {error}"));
            Ok(None)
        }
        answer => {
            writeln!(out, "{text}")?;
            out.flush()?;
            Ok(match answer {
                Ok(Answer::Summary(summary)) => Some(summary),
                _ => None,
            })
        }
    }
}

/// Standard input, line by line.
pub(super) struct Lines<Input> {
    input: BufReader<Input>,
    /// Number of the line that was read last, from 1.
    number: u64,
    options: Options,
    obstacles: mpsc::Sender<Obstacle>,
}

impl<Input: AsyncRead + Send + Unpin + 'static> Lines<Input> {
    /// The lines of `input`, and what will not be sent of them.
    pub(super) fn of(input: Input, options: &Options) -> (Lines<Input>, Unsent) {
        let (obstacles, told) = mpsc::channel(OBSTACLES_MAX);
        let lines = Lines { input: BufReader::new(input), number: 0, options: options.clone(), obstacles };
        (lines, Unsent { told, lines: 0, broken: false, over: false })
    }

    /// The lines as NDJSON, each as soon as it is there; a blank one in place of one that is left
    /// out.
    pub(super) fn stream(self) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + 'static {
        futures_util::stream::unfold(self, |mut lines| async move { Some((Ok(lines.next().await?), lines)) })
    }

    /// The next line; `None` at the end of the input, or where it cannot be read any further.
    async fn next(&mut self) -> Option<Bytes> {
        self.number += 1;
        match self.read().await {
            Ok(json) => json,
            Err(error) => {
                self.tell(Obstacle::Broken { number: self.number, error }).await;
                None
            }
        }
    }

    /// The next line, or a blank one in place of a line that is left out: to the server that is no
    /// event, but it counts, so that its numbers are those of the input.
    async fn read(&mut self) -> io::Result<Option<Bytes>> {
        let mut line = Vec::new();
        let read = (&mut self.input).take(EVENT_BYTES_MAX as u64 + 1).read_until(b'\n', &mut line).await?;
        if read == 0 {
            return Ok(None);
        }
        let too_long = line.len() > EVENT_BYTES_MAX && !line.ends_with(b"\n");
        let json = if too_long { Err(NoEvent::TooLong) } else { encode_line(&line, &self.options) };
        let cause = match json {
            Ok(json) => return Ok(Some(json)),
            Err(cause) => cause,
        };
        self.tell(Obstacle::Line { number: self.number, cause }).await;
        if too_long {
            drop(line);
            self.skip_line().await?;
        }
        Ok(Some(Bytes::from_static(b"\n")))
    }

    /// Reads to the end of the line and keeps nothing of it.
    async fn skip_line(&mut self) -> io::Result<()> {
        loop {
            let bytes = self.input.fill_buf().await?;
            let end = memchr::memchr(b'\n', bytes);
            let over = end.is_some() || bytes.is_empty();
            let used = end.map_or(bytes.len(), |end| end + 1);
            self.input.consume(used);
            if over {
                return Ok(());
            }
        }
    }

    async fn tell(&mut self, obstacle: Obstacle) {
        // Nobody listens once the server has ended the stream.
        let _ = self.obstacles.send(obstacle).await;
    }
}

/// One line, its line break left out, as one line of NDJSON. In bytes a CR is no part of a line
/// break.
fn encode_line(line: &[u8], options: &Options) -> Result<Bytes, NoEvent> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = if options.binary { line } else { line.strip_suffix(b"\r").unwrap_or(line) };
    let mut json = event_json(line, options)?;
    json.push('\n');
    Ok(json.into())
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};

    use super::super::tests::{
        Outcome, SHORT, accept, listener, publish, publish_within, read_to, while_silent,
    };
    use super::super::{PATIENCE, Patience};
    use super::*;

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
        assert_refused(result, "lines: 1 accepted, 1 refused by the server, 0 left out here");
    }

    #[tokio::test]
    async fn a_stream_that_the_server_ends_is_no_success() {
        let draining =
            "{\"accepted\":0,\"refused\":0,\"error\":\"draining: lines from 1 on were not taken\"}\n";
        for (answer, told) in [
            (draining, "draining: lines from 1"),
            ("", "the answer broke off"),
            ("{}\n", "the answer broke off"),
        ] {
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

    const SUMMARY: &str = "{\"accepted\":2,\"refused\":0}\n";

    /// Publishes these lines to a server that takes all it gets and answers with [`SUMMARY`]. Gives
    /// the request body besides what came of it.
    async fn lines_of(input: impl AsyncRead + Send + Unpin + 'static) -> (String, Outcome) {
        let (listener, server) = listener().await;
        let serve = async {
            let mut stream = accept(&listener).await;
            read_to(&mut stream, "\r\n\r\n").await;
            let body = read_to(&mut stream, "0\r\n\r\n").await;
            stream
                .write_all(&[STREAMED, &chunk(SUMMARY), &chunk("")].concat())
                .await
                .expect("the client reads");
            body
        };
        tokio::join!(serve, publish(&server, &["t", "--lines"], input))
    }

    fn assert_refused(result: Result<(), ClientError>, line: &str) {
        assert!(matches!(&result, Err(ClientError::Refused(text)) if text == line), "{result:?}");
    }

    /// A blank line takes the place of each line that is not sent, so that the server's numbers are
    /// those of the input.
    #[tokio::test]
    async fn a_line_that_is_no_text_is_left_out_and_told_by_number() {
        let (body, (result, out, notes)) = lines_of(&b"one\n\xff\xfe\nthree\n"[..]).await;
        let unframed: String = body.split("\r\n").filter(|part| part.ends_with('\n')).collect();
        let (one, three) = (r#"{"topic":"t","data":"one"}"#, r#"{"topic":"t","data":"three"}"#);
        assert_eq!(unframed, format!("{one}\n\n{three}\n"));
        let told = "fanwave: line 2 is left out: not UTF-8 at byte 0; --binary publishes any bytes\n";
        assert_eq!(notes, told);
        assert_eq!(out, SUMMARY);
        assert_refused(result, "lines: 2 accepted, 0 refused by the server, 1 left out here");
    }

    #[tokio::test]
    async fn a_line_that_is_too_long_is_left_out_and_the_next_one_is_sent() {
        let long = tokio::io::repeat(b'x').take(EVENT_BYTES_MAX as u64 + 1_000_000);
        let (body, (result, _, notes)) = lines_of((&b"one\n"[..]).chain(long).chain(&b"\nthree"[..])).await;
        assert!(body.contains("\"one\"") && body.contains("\"three\"") && body.len() < 1_000, "{body:.1000}");
        assert_eq!(notes, "fanwave: line 2 is left out: more than 67108864 bytes\n");
        assert_refused(result, "lines: 2 accepted, 0 refused by the server, 1 left out here");
    }

    /// An input that cannot be read.
    struct Broken;

    impl AsyncRead for Broken {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<std::io::Result<()>> {
            Poll::Ready(Err(std::io::Error::other("the disk is gone")))
        }
    }

    #[tokio::test]
    async fn what_was_read_before_the_input_broke_is_published() {
        for (input, number) in [(&b"one\ntwo\n"[..], 3), (b"one\ntwo\npart of thr", 3), (b"", 1)] {
            let (body, (result, out, notes)) = lines_of(input.chain(Broken)).await;
            assert_eq!(
                body.matches("\"data\"").count(),
                number - 1,
                "whole lines, and no part of one: {body}"
            );
            assert_eq!(out, SUMMARY);
            let told = "the disk is gone; nothing from this line on was sent";
            assert_eq!(notes, format!("fanwave: standard input, line {number}: {told}\n"));
            assert_refused(result, "lines: 2 accepted, 0 refused by the server, 0 left out here");
        }
    }

    #[test]
    fn binary_lines_travel_as_base64_with_every_byte_but_the_line_feed() {
        let options = Options {
            topic: "t".to_string(),
            data: None,
            server: String::new(),
            token_file: None,
            event: None,
            id: None,
            retry: None,
            binary: true,
            lines: true,
            ws: None,
            ca: None,
            key: None,
            idempotency_key: None,
        };
        for (line, base64) in [(&b"\x00\xff\n"[..], "AP8="), (b"\x00\xff", "AP8="), (b"a\r\n", "YQ0=")] {
            let json = encode_line(line, &options).expect("any bytes");
            assert_eq!(json, format!("{{\"topic\":\"t\",\"base64\":\"{base64}\"}}\n"), "{line:?}");
        }
    }

    const BRIEF: Patience = Patience { last_lines: SHORT, ..PATIENCE };

    #[tokio::test]
    async fn a_server_that_is_silent_after_the_last_line_leaves_the_lines_unknown() {
        let begun = [STREAMED, &chunk("{\"line\":1,")].concat();
        let begun = String::from_utf8(begun).expect("ASCII");
        for answer in ["", &begun] {
            let (listener, server) = listener().await;
            let work = publish_within(BRIEF, &server, &["t", "--lines"], &b"one\n"[..]);
            let (result, _, _) = while_silent(listener, answer, work).await;
            let told =
                format!("{server}: no answer within 0.05 s; what was sent may or may not be published");
            assert!(matches!(&result, Err(ClientError::Unreachable(line)) if *line == told), "{result:?}");
        }
    }

    /// A server that refuses no line has nothing to say before the last one.
    #[tokio::test]
    async fn a_server_may_be_silent_as_long_as_lines_may_come() {
        let (listener, server) = listener().await;
        let (keyboard, input) = tokio::io::duplex(64);
        let work = publish_within(BRIEF, &server, &["t", "--lines"], input);
        let long = tokio::time::timeout(SHORT * 4, while_silent(listener, "", work)).await;
        assert!(long.is_err(), "it waits for lines: {long:?}");
        drop(keyboard);
    }

    #[tokio::test]
    async fn a_summary_counts_without_the_end_of_the_answer() {
        let (listener, server) = listener().await;
        let answer = [STREAMED, &chunk("{\"accepted\":1,\"refused\":0}\n")].concat();
        let answer = String::from_utf8(answer).expect("ASCII");
        let work = publish(&server, &["t", "--lines"], &b"one\n"[..]);
        let (result, _, _) = while_silent(listener, &answer, work).await;
        result.expect("the line is accepted");
    }

    /// The server has said what came of the lines; how the connection ends after that changes
    /// nothing.
    #[tokio::test]
    async fn a_summary_counts_even_if_the_connection_breaks_after_it() {
        let (listener, server) = listener().await;
        let (keyboard, input) = tokio::io::duplex(64);
        let serve = async {
            let mut stream = accept(&listener).await;
            read_to(&mut stream, "\r\n\r\n").await;
            let summary = chunk("{\"accepted\":0,\"refused\":0,\"error\":\"draining\"}\n");
            stream.write_all(&[STREAMED, &summary].concat()).await.expect("the client reads");
        };
        let ((), (result, _, _)) = tokio::join!(serve, publish(&server, &["t", "--lines"], input));
        drop(keyboard);
        assert_refused(result, "draining; lines: 0 accepted, 0 refused by the server, 0 left out here");
    }
}
