//! `fanwave publish --ws`: publishes as a client of the data plane, by commands of
//! `fanwave.v1.json`.
//!
//! Invariants worth naming:
//! - Each publish waits for its answer. Of a stream of lines at most [`UNANSWERED_MAX`] wait at a
//!   time, so the server never has to hold this client back.
//! - What has no room is said again: one event a few times, lines as long as it takes. A line that
//!   is said again may come behind those that were under way with it.
//! - Lines bear their number in standard input, and the summary has the form of the control
//!   plane's.
//! - Nothing is repeated on another connection: whether it was published is not known.

use std::collections::VecDeque;
use std::io::Write;
use std::path::Path;

use futures_util::{SinkExt, StreamExt};
use reqwest::Url;
use tokio::io::AsyncRead;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::super::backoff::Backoff;
use super::super::conversation::{Failure, Heard, SUBPROTOCOL, command};
use super::super::trust::Trust;
use super::super::websocket::{Over, Read, Socket, Target, Unopened, as_websocket, leave};
use super::super::{CONNECT_TIME_MAX, ClientError, note, parse_url, root_cause};
use super::lines::{Lines, Summary, verdict};
use super::{ATTEMPTS_MAX, NoEvent, Options, Patience, RETRY_TIME_MAX, event_json, no_answer, unknown};

/// Publishes without an answer; a server takes as many from one client before it pauses.
const UNANSWERED_MAX: usize = 64;
/// The code of a close frame: the message was larger than the server takes (RFC 6455 §7.4.1).
const TOO_BIG: u16 = 1009;

/// Where clients publish, and how long to wait there.
pub(super) struct Door {
    url: Url,
    /// The address as the user wrote it.
    name: Url,
    trust: Trust,
    patience: Patience,
}

/// What the server said of a publish.
enum Answer {
    Taken {
        id: String,
    },
    Refused(Failure),
    /// Nothing, and it will not any more.
    Over(Over),
}

impl Door {
    pub(super) fn new(address: &str, ca: Option<&Path>, patience: Patience) -> Result<Door, ClientError> {
        let schemes = ["ws", "http", "wss", "https"];
        let name = parse_url(address, &schemes, "ws://HOST:PORT or wss://HOST:PORT")?;
        let trust = Trust::of(ca, &name)?;
        let mut url = name.clone();
        as_websocket(&mut url);
        if url.path() == "/" {
            url.set_path("/ws");
        }
        Ok(Door { url, name, trust, patience })
    }

    /// Connects; where the server has no room for us, a few times.
    async fn open(&self, notes: &mut dyn Write) -> Result<Socket, ClientError> {
        let mut backoff = Backoff::default();
        for attempt in 1.. {
            let target = Target {
                url: &self.url,
                name: &self.name,
                subprotocol: Some(SUBPROTOCOL),
                bearer: None,
                trust: &self.trust,
            };
            let (why, asked) = match target.open(CONNECT_TIME_MAX).await {
                Ok(socket) => return Ok(socket),
                Err(Unopened::Refused(line)) => return Err(ClientError::Refused(line)),
                Err(Unopened::Lost { why, asked: None }) => return Err(ClientError::Unreachable(why)),
                Err(Unopened::Lost { why, asked }) => (why, asked),
            };
            if attempt == ATTEMPTS_MAX {
                return Err(ClientError::Refused(why));
            }
            let wait = backoff.next(asked).min(RETRY_TIME_MAX);
            note(notes, &format!("{why}; trying again in {:.1} s", wait.as_secs_f64()));
            sleep(wait).await;
        }
        unreachable!("the last attempt returns")
    }

    /// The next thing that the server says of a publish, and the number of the publish.
    async fn answer(&self, socket: &mut Socket) -> Result<(Option<u64>, Answer), ClientError> {
        let foreign = |what: &str| unknown(self.name.as_str(), &format!("no {SUBPROTOCOL}: {what}"));
        loop {
            let text = match Read::of(socket.next().await) {
                Read::Message(Message::Text(text)) => text,
                Read::Message(_) => return Err(foreign("a binary message")),
                Read::Alive => continue,
                Read::Over(over) => return Ok((None, Answer::Over(over))),
            };
            match serde_json::from_str(&text) {
                Ok(Heard::Done { reference, ok }) => {
                    let id = ok.id.ok_or_else(|| foreign("an answer without an id"))?;
                    return Ok((Some(reference), Answer::Taken { id }));
                }
                Ok(Heard::Failed { reference, error }) => return Ok((reference, Answer::Refused(error))),
                Ok(Heard::Gap { .. } | Heard::Event(_) | Heard::Other(_)) => {}
                Err(error) => return Err(foreign(&error.to_string())),
            }
        }
    }
}

/// Publishes one event and prints its id.
pub(super) async fn publish_one(
    door: &Door,
    options: &Options,
    data: &[u8],
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> Result<(), ClientError> {
    let event = event_json(data, options).map_err(|error| match error {
        NoEvent::Json(error) => ClientError::Usage(error.to_string()),
        error => ClientError::Usage(format!("the data is {error}")),
    })?;
    let mut socket = door.open(notes).await?;
    let time_max = door.patience.of_event(data.len());
    let mut backoff = Backoff::default();
    let mut attempt = 1;
    let outcome = loop {
        let exchange = async {
            // What the server says tells more than a send that fails.
            let _ = socket.send(Message::text(command(attempt, "publish", &event))).await;
            door.answer(&mut socket).await
        };
        let answered = timeout(time_max, exchange).await;
        let (_, answer) =
            answered.map_err(|_| unknown(door.name.as_str(), &no_answer(time_max))).flatten()?;
        match answer {
            Answer::Taken { id } => break Ok(id),
            Answer::Refused(error) if error.passes() && attempt < u64::from(ATTEMPTS_MAX) => {
                let wait = backoff.next(None);
                note(notes, &format!("{error}; trying again in {:.1} s", wait.as_secs_f64()));
                sleep(wait).await;
                attempt += 1;
            }
            Answer::Refused(error) => break Err(ClientError::Refused(error.to_string())),
            Answer::Over(Over { why, code: Some(TOO_BIG) }) => return Err(ClientError::Refused(why)),
            Answer::Over(over) => return Err(unknown(door.name.as_str(), &over.why)),
        }
    };
    leave(&mut socket, true).await;
    writeln!(out, "{}", outcome?)?;
    out.flush()?;
    Ok(())
}

/// A line under way.
struct Said {
    /// In standard input, from 1.
    number: u64,
    event: String,
}

/// The lines of one connection.
struct Pipe<'a> {
    door: &'a Door,
    socket: Socket,
    /// Those that were said and have no answer, in their order.
    unanswered: VecDeque<Said>,
    /// Those that had no room.
    again: VecDeque<Said>,
    /// When they may be said again.
    pause: Option<Instant>,
    backoff: Backoff,
    accepted: u64,
    refused: u64,
    last_id: Option<String>,
    /// Why the connection is over, if it is.
    over: Option<String>,
}

/// Publishes each line of `input` and prints a summary.
pub(super) async fn publish_lines(
    door: &Door,
    options: &Options,
    input: impl AsyncRead + Send + Unpin + 'static,
    out: &mut dyn Write,
    notes: &mut dyn Write,
) -> Result<(), ClientError> {
    let (lines, mut unsent) = Lines::of(input, options);
    // Pinned, so that a wait for the next line can be left and taken up again.
    let mut lines = Box::pin(lines.stream());
    let mut pipe = Pipe {
        door,
        socket: door.open(notes).await?,
        unanswered: VecDeque::new(),
        again: VecDeque::new(),
        pause: None,
        backoff: Backoff::default(),
        accepted: 0,
        refused: 0,
        last_id: None,
        over: None,
    };
    let (mut number, mut is_read) = (0, false);
    while pipe.over.is_none() && !(is_read && pipe.is_idle()) {
        let may_read = !is_read && pipe.has_room();
        let (pause, is_owed) = (pipe.pause, !pipe.unanswered.is_empty());
        let paused = sleep_until(pause.unwrap_or_else(Instant::now));
        tokio::select! {
            biased;
            Some(obstacle) = unsent.told.recv() => unsent.take(obstacle, notes),
            () = paused, if pause.is_some() => pipe.say_again().await,
            // Before answers, so that the end of the input is known when the last one comes.
            line = lines.next(), if may_read => match line {
                // A line that is left out is blank; it is told as an obstacle.
                Some(Ok(line)) => {
                    number += 1;
                    let event = String::from_utf8_lossy(&line).trim_end().to_string();
                    if !event.is_empty() {
                        pipe.say(Said { number, event }).await;
                    }
                }
                Some(Err(never)) => match never {},
                None => is_read = true,
            },
            answer = pipe.next_answer(is_owed) => {
                let (reference, answer) = answer?;
                pipe.take(reference, answer, notes)?;
            }
        }
    }
    drop(lines);
    while let Some(obstacle) = unsent.told.recv().await {
        unsent.take(obstacle, notes);
    }
    leave(&mut pipe.socket, pipe.over.is_none()).await;
    pipe.finish(out, &unsent)
}

impl Pipe<'_> {
    /// True if nothing is under way.
    fn is_idle(&self) -> bool {
        self.unanswered.is_empty() && self.again.is_empty()
    }

    /// True if the next line may be said.
    fn has_room(&self) -> bool {
        self.again.is_empty() && self.unanswered.len() < UNANSWERED_MAX
    }

    async fn say(&mut self, said: Said) {
        let message = Message::text(command(said.number, "publish", &said.event));
        self.unanswered.push_back(said);
        let time_max = self.door.patience.last_lines;
        match timeout(time_max, self.socket.send(message)).await {
            // What the server says tells more than a send that fails.
            Ok(Ok(()) | Err(Error::ConnectionClosed | Error::AlreadyClosed)) => {}
            Ok(Err(Error::Protocol(_) | Error::Io(_))) => {}
            Ok(Err(error)) => self.over = Some(format!("closed: {}", root_cause(&error))),
            Err(_) => self.over = Some(no_answer(time_max)),
        }
    }

    /// Says those again that had no room.
    async fn say_again(&mut self) {
        self.pause = None;
        for said in std::mem::take(&mut self.again) {
            self.say(said).await;
        }
    }

    /// Waits for an answer; a server that owes one has to give it in time.
    async fn next_answer(&mut self, is_owed: bool) -> Result<(Option<u64>, Answer), ClientError> {
        let answer = self.door.answer(&mut self.socket);
        if !is_owed {
            return answer.await;
        }
        let time_max = self.door.patience.last_lines;
        match timeout(time_max, answer).await {
            Ok(answer) => answer,
            Err(_) => Ok((None, Answer::Over(Over { why: no_answer(time_max), code: None }))),
        }
    }

    fn take(
        &mut self,
        reference: Option<u64>,
        answer: Answer,
        notes: &mut dyn Write,
    ) -> Result<(), ClientError> {
        if let Answer::Over(over) = answer {
            self.over = Some(over.why);
            return Ok(());
        }
        // Answers come in the order of the commands.
        let said = self.unanswered.pop_front();
        let is_next = |said: &Said| reference.is_none_or(|number| number == said.number);
        let Some(said) = said.filter(is_next) else {
            return Err(unknown(self.door.name.as_str(), "an answer to nothing"));
        };
        match answer {
            Answer::Taken { id } => {
                self.accepted += 1;
                self.last_id = Some(id);
                self.backoff.reset();
            }
            Answer::Refused(error) if error.passes() => {
                self.again.push_back(said);
                if self.pause.is_none() {
                    let wait = self.backoff.next(None);
                    note(notes, &format!("{error}; trying again in {:.1} s", wait.as_secs_f64()));
                    self.pause = Some(Instant::now() + wait);
                }
            }
            Answer::Refused(error) => {
                self.refused += 1;
                note(notes, &format!("line {}: {error}", said.number));
            }
            Answer::Over(_) => unreachable!("told above"),
        }
        Ok(())
    }

    /// Prints what all lines came to.
    fn finish(self, out: &mut dyn Write, unsent: &super::lines::Unsent) -> Result<(), ClientError> {
        // What had no room to the end was not taken.
        let (accepted, refused) = (self.accepted, self.refused + self.again.len() as u64);
        let mut summary = serde_json::json!({ "accepted": accepted, "refused": refused });
        if let Some(id) = self.last_id {
            summary["last_id"] = id.into();
        }
        if let Some(why) = &self.over {
            summary["error"] = why.as_str().into();
        }
        writeln!(out, "{summary}")?;
        out.flush()?;
        let unanswered = self.unanswered.len();
        let error = self.over.map(|why| match unanswered {
            0 => why,
            some => format!("{why}; {some} lines may or may not be published"),
        });
        verdict(Summary { accepted, refused, error }, unsent)
    }
}

#[cfg(test)]
mod tests;
