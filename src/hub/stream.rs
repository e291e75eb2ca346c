//! `POST /publish`: NDJSON as one request of any length, answered while it is being read.
//!
//! Invariants worth naming:
//! - The events of one body chunk are taken in together and flushed once, so they travel in as few
//!   batches as allowed.
//! - A full queue stops the reading, and so in the end the publisher; a line is never refused for
//!   lack of room.
//! - Reading goes on in a task of its own: a publisher that does not read its error lines still
//!   gets its events through. At most [`ERROR_LINES_MAX`] error lines wait for it, further ones are
//!   only counted; the summary has a place of its own.
//! - What a source answers later is counted when it is answered: at most [`STREAM_WAITING_MAX`]
//!   lines of a stream wait for that, and the summary waits for all of them.
//! - A bad line costs nobody else's line. Every line taken in is either accepted or counted as
//!   refused.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, BodyDataStream, HttpBody};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Serialize;
use tokio::sync::mpsc;

use super::principal::Principal;
use super::source::{Published, Waiting};
use super::{Hub, Refusal, RefusalReason, Stage, id_text};
use crate::broadcast::Outcome;
use crate::clock::Stamp;
use crate::config::Limits;
use crate::config::limits::{ERROR_LINES_MAX, LINGER_MS_MAX, STREAM_WAITING_MAX};
use crate::event::{CustomId, Event, EventId};
use crate::publishing::{IdempotencyKey, Line, Lines, check_content_coding, parse_line, parse_query};

/// Answers at once with a stream of error lines and, at the end, the summary.
pub(super) async fn publish_stream(
    State(hub): State<Arc<Hub>>,
    Extension(principal): Extension<Principal>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Response> {
    let checked = check_content_coding(&headers).and_then(|()| parse_query(query.as_deref(), &[]));
    let draining = hub.intake().is_draining().then(Refusal::draining);
    if let Some(refusal) = checked.err().or(draining) {
        return Err(refused_unread(&hub, refusal, body.into_data_stream()));
    }
    let (answers, mut lines) = mpsc::channel(ERROR_LINES_MAX + 1);
    let place = answers.clone().try_reserve_owned().expect("an empty channel has room for the summary");
    let reading = Reading {
        lines: Lines::new(hub.config().limits.line_bytes_max()),
        hub,
        principal,
        answers,
        waiting: VecDeque::new(),
        accepted: 0,
        refused: 0,
        unreported: 0,
        last: None,
    };
    tokio::spawn(reading.run(body.into_data_stream(), place));
    let lines = futures_util::stream::poll_fn(move |context| lines.poll_recv(context));
    let body = Body::from_stream(lines.map(Ok::<Bytes, Infallible>));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// Counts the refusal of a request, and answers it; what is left of its body is read and dropped.
/// The connection ends with it then: nobody knows how long a client goes on with a body that nobody
/// wants.
pub(super) fn refused_unread(hub: &Hub, refusal: Refusal, rest: BodyDataStream) -> Response {
    let mut response = hub.counted(refusal).into_response();
    if !HttpBody::is_end_stream(&rest) {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        tokio::spawn(discard(rest));
    }
    response
}

/// Reads and drops what a publisher still sends, so that it is not reset before it has read our
/// answer.
async fn discard(mut frames: BodyDataStream) {
    let rest = async { while let Some(Ok(_)) = frames.next().await {} };
    // A publisher that still sends then has had the time to read.
    let _ = tokio::time::timeout(Duration::from_millis(LINGER_MS_MAX), rest).await;
}

/// The reading half of one stream.
struct Reading {
    hub: Arc<Hub>,
    /// Who publishes.
    principal: Principal,
    lines: Lines,
    answers: mpsc::Sender<Bytes>,
    /// Lines that their source has not answered, in their order.
    waiting: VecDeque<Sent>,
    accepted: u64,
    refused: u64,
    /// Refused lines whose error line found no room; at most `refused`.
    unreported: u64,
    /// The last accepted event: its publisher's id and ours.
    last: Option<(Option<CustomId>, EventId)>,
}

/// A line that its source has.
struct Sent {
    line: u64,
    id: Option<CustomId>,
    answer: Waiting,
}

/// An error line.
#[derive(Serialize)]
struct ErrorLine<'a> {
    line: u64,
    error: &'a str,
}

/// The last line.
#[derive(Serialize)]
struct Summary {
    accepted: u64,
    refused: u64,
    last_id: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    unreported: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Reading {
    async fn run(mut self, mut frames: BodyDataStream, place: mpsc::OwnedPermit<Bytes>) {
        let hub = self.hub.clone();
        let mut draining = std::pin::pin!(hub.reached(Stage::Draining));
        let error = loop {
            let frame = tokio::select! {
                biased;
                () = &mut draining => {
                    hub.counted(Refusal::draining());
                    break Some(self.not_taken(self.lines.number()));
                }
                answer = oldest(&mut self.waiting), if !self.waiting.is_empty() => {
                    self.answered(answer);
                    continue;
                }
                frame = frames.next() => frame,
            };
            match frame {
                Some(Ok(chunk)) => {
                    let taken = self.take_chunk(&chunk).await;
                    hub.flush();
                    if let Err(line) = taken {
                        break Some(self.not_taken(line));
                    }
                }
                Some(Err(_)) => {
                    let line = self.lines.number();
                    let broken = Refusal::new(RefusalReason::BodyBroken, "the body broke off in this line");
                    if let Err(line) = self.take_rest(Some(hub.counted(broken))).await {
                        break Some(self.not_taken(line));
                    }
                    break Some(format!("the body broke off in line {line}"));
                }
                None => break self.take_rest(None).await.err().map(|line| self.not_taken(line)),
            }
        };
        hub.flush();
        while !self.waiting.is_empty() {
            let answer = oldest(&mut self.waiting).await;
            self.answered(answer);
        }
        let summary = Summary {
            accepted: self.accepted,
            refused: self.refused,
            last_id: self.last.map(|(id, ours)| id_text(id.as_ref(), ours)),
            unreported: self.unreported,
            error,
        };
        // The sender that the permit gives back and ours are the last ones; without them the answer
        // ends.
        drop((place.send(line_of(&summary)), self.answers));
        discard(frames).await;
    }

    fn not_taken(&self, line: u64) -> String {
        format!("draining: lines from {line} on were not taken")
    }

    /// Takes in the lines that `chunk` completes. `Err` holds the line at which the drain began.
    async fn take_chunk(&mut self, chunk: &[u8]) -> Result<(), u64> {
        let mut intake_at = self.hub.intake_time();
        let mut rest = chunk;
        while let Some(line) = self.lines.next(&mut rest) {
            let Some((number, event)) = read(line, &self.hub.config().limits) else { continue };
            self.take(number, event, &mut intake_at).await?;
        }
        Ok(())
    }

    /// Takes in a last line without LF. If it is no event, `broken`, which is counted already, says
    /// why rather than the parser.
    async fn take_rest(&mut self, broken: Option<Refusal>) -> Result<(), u64> {
        let Some((number, event)) =
            self.lines.finish().and_then(|line| read(line, &self.hub.config().limits))
        else {
            return Ok(());
        };
        if let (Err(_), Some(broken)) = (&event, broken) {
            self.tell(number, &broken);
            return Ok(());
        }
        let mut now = self.hub.intake_time();
        self.take(number, event, &mut now).await
    }

    /// Takes in one line's event, waiting for room, or tells why it is none.
    async fn take(&mut self, number: u64, event: Said, intake_at: &mut Stamp) -> Result<(), u64> {
        let allowed = event.and_then(|(event, key)| {
            self.principal.check_topic(&self.hub, &event.topic).map(|()| (event, key))
        });
        let (event, key) = match allowed {
            Ok((event, key)) => (event, key.map(|key| self.principal.own(key))),
            Err(refusal) => {
                let refusal = self.hub.counted(refusal);
                self.tell(number, &refusal);
                return Ok(());
            }
        };
        let memory = self.hub.intake().memory_of(&event);
        if self.hub.intake().room_for_stream(&event.topic, memory).is_err() {
            self.hub.wait_for_room(&event.topic, memory).await.map_err(|_| number)?;
            *intake_at = self.hub.intake_time();
        }
        let id = event.id.clone();
        match self.hub.accept(event, key, *intake_at) {
            Ok(Published::Taken(taken)) => {
                self.accepted += 1;
                self.last = Some((id, taken.id()));
            }
            Ok(Published::Later(answer)) => {
                self.waiting.push_back(Sent { line: number, id, answer });
                if self.waiting.len() >= STREAM_WAITING_MAX {
                    let answer = oldest(&mut self.waiting).await;
                    self.answered(answer);
                }
            }
            Err(Refusal { reason: RefusalReason::Draining, .. }) => return Err(number),
            Err(refusal) => self.tell(number, &refusal),
        }
        Ok(())
    }

    /// The source has answered the oldest line that waits, perhaps others too.
    fn answered(&mut self, answer: Outcome) {
        let mut answer = Some(answer);
        while let Some(outcome) = answer {
            let Some(Sent { line, id, .. }) = self.waiting.pop_front() else { return };
            match outcome {
                Ok(taken) => {
                    self.accepted += 1;
                    self.last = Some((id, taken.id()));
                }
                Err(refusal) => {
                    let refusal = self.hub.counted(refusal);
                    self.tell(line, &refusal);
                }
            }
            answer = self.waiting.front_mut().and_then(|sent| sent.answer.try_take());
        }
    }

    /// Queues an error line, or counts it as unreported.
    fn tell(&mut self, line: u64, refusal: &Refusal) {
        self.refused += 1;
        let error = line_of(&ErrorLine { line, error: &refusal.text });
        if self.answers.try_send(error).is_err() {
            self.unreported += 1;
        }
    }
}

/// What became of the line that waits longest; there is one.
async fn oldest(waiting: &mut VecDeque<Sent>) -> Outcome {
    let oldest = waiting.front_mut().expect("a line waits");
    (&mut oldest.answer).await
}

/// What a line says.
type Said = Result<(Event, Option<IdempotencyKey>), Refusal>;

/// The number of a line and its event; nothing for a blank line.
fn read(line: Line<'_>, limits: &Limits) -> Option<(u64, Said)> {
    match line {
        Line::Whole(_, bytes) if bytes.iter().all(u8::is_ascii_whitespace) => None,
        Line::Whole(number, bytes) => Some((number, parse_line(bytes, limits.message_bytes_max))),
        Line::TooLong(number) => {
            let text = format!(
                "the line has more than {} bytes and was skipped; POST /topics/TOPIC takes data without escapes",
                limits.line_bytes_max()
            );
            Some((number, Err(Refusal::new(RefusalReason::LineTooLong, text))))
        }
    }
}

/// One line of JSON with its LF.
fn line_of(value: &impl Serialize) -> Bytes {
    let mut line = serde_json::to_vec(value).expect("numbers and strings are JSON");
    line.push(b'\n');
    line.into()
}
