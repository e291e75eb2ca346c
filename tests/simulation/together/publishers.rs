//! The publishers of a world: single publishes, batches, and streams whose bytes come in pieces cut
//! anywhere, some of which break off. What the hub answers decides what became of each event.

use std::io;

use axum::body::Body;
use axum::http::{Request, header};
use fanwave::hub::sim::SimHub;
use serde_json::Value;
use tokio::sync::mpsc;

use super::*;

/// Data of an event may have so many bytes.
pub const MESSAGE_BYTES_MAX: usize = 10_000;

/// What became of an event, as far as its publisher knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Unknown,
    /// The publisher was told so; a single one also the sequence.
    Accepted(Option<u64>),
    /// It was told that nobody knows.
    Unsure,
    Refused,
}

/// An event that somebody tried to publish. Its data begins with its number, from 1.
#[derive(Debug)]
pub struct Try {
    pub topic: usize,
    /// The hub has no reason to refuse it but lack of room, or the drain.
    pub is_legal: bool,
    pub fate: Fate,
}

/// Who asked.
#[derive(Debug, Clone, Copy)]
enum Asked {
    /// A single publish of the event of this number.
    Single(u64),
    /// The stream of this index.
    Stream(usize),
}

/// A request whose body comes in pieces.
struct Stream {
    /// `None` once nothing more comes.
    body: Option<mpsc::UnboundedSender<io::Result<Bytes>>>,
    /// What was not sent yet.
    text: Vec<u8>,
    /// The numbers of the events, line by line.
    lines: Vec<u64>,
    is_answered: bool,
}

/// All of them.
pub struct Publishers {
    pub tried: Vec<Try>,
    streams: Vec<Stream>,
    /// Requests without an answer.
    pub waiting: usize,
    tell: mpsc::UnboundedSender<(Asked, u16, String)>,
    told: mpsc::UnboundedReceiver<(Asked, u16, String)>,
}

impl Publishers {
    pub fn new() -> Publishers {
        let (tell, told) = mpsc::unbounded_channel();
        Publishers { tried: Vec::new(), streams: Vec::new(), waiting: 0, tell, told }
    }

    pub fn of(&self, number: u64) -> &Try {
        &self.tried[number as usize - 1]
    }

    /// An event with so many bytes after its number; its number and data.
    fn event(&mut self, topic: usize, padding: usize, is_legal: bool) -> (u64, String) {
        self.tried.push(Try { topic, is_legal, fate: Fate::Unknown });
        let number = self.tried.len() as u64;
        let space = if padding > 0 { " " } else { "" };
        (number, format!("{number}{space}{}", "x".repeat(padding)))
    }

    /// Publishes one event. Returns its number.
    pub fn single(&mut self, hub: &SimHub, topic: usize, padding: usize) -> u64 {
        let (number, data) = self.event(topic, padding, padding < MESSAGE_BYTES_MAX - 10);
        self.ask(hub, Asked::Single(number), &format!("/topics/{}", NAMES[topic]), Body::from(data));
        number
    }

    /// Begins a stream without lines. Returns its index.
    pub fn open(&mut self, hub: &SimHub) -> usize {
        let (body, mut pieces) = mpsc::unbounded_channel();
        let index = self.streams.len();
        self.streams.push(Stream {
            body: Some(body),
            text: Vec::new(),
            lines: Vec::new(),
            is_answered: false,
        });
        let pieces = futures_util::stream::poll_fn(move |context| pieces.poll_recv(context));
        self.ask(hub, Asked::Stream(index), "/publish", Body::from_stream(pieces));
        index
    }

    fn ask(&mut self, hub: &SimHub, asked: Asked, uri: &str, body: Body) {
        let request = Request::post(uri).header(header::HOST, "localhost").body(body).expect("a request");
        let answer = hub.ask(request);
        let tell = self.tell.clone();
        self.waiting += 1;
        tokio::spawn(async move {
            let (head, body) = answer.await.into_parts();
            let body = axum::body::to_bytes(body, usize::MAX).await.expect("a whole answer");
            let text = String::from_utf8(body.into()).expect("UTF-8");
            let _ = tell.send((asked, head.status.as_u16(), text));
        });
    }

    /// A stream that still takes lines, by dice.
    pub fn some_open(&self, dice: &mut Dice) -> Option<usize> {
        let open: Vec<usize> =
            (0..self.streams.len()).filter(|index| self.streams[*index].body.is_some()).collect();
        (!open.is_empty()).then(|| open[dice.roll(open.len() as u64) as usize])
    }

    /// One more line of a stream, to be sent later.
    pub fn write(&mut self, index: usize, topic: usize, padding: usize, dice: &mut Dice) {
        let is_broken = dice.chance(1, 24);
        let (number, data) = self.event(topic, padding, !is_broken && padding < MESSAGE_BYTES_MAX - 10);
        let more = if is_broken { ",\"nonsense\":1" } else { "" };
        let line = format!("{{\"topic\":\"{}\",\"data\":\"{data}\"{more}}}\n", NAMES[topic]);
        let stream = &mut self.streams[index];
        stream.text.extend(line.into_bytes());
        stream.lines.push(number);
    }

    /// Sends a piece of what is written, cut anywhere.
    pub fn send_piece(&mut self, index: usize, dice: &mut Dice) {
        let stream = &mut self.streams[index];
        let bytes = dice.roll(stream.text.len() as u64 + 1) as usize;
        let piece: Vec<u8> = stream.text.drain(..bytes).collect();
        if let Some(body) = stream.body.as_ref().filter(|_| !piece.is_empty()) {
            // A stream that the drain has ended takes no more.
            let _ = body.send(Ok(piece.into()));
        }
    }

    /// Sends what is written, and the end.
    pub fn close(&mut self, index: usize) {
        let stream = &mut self.streams[index];
        let rest = std::mem::take(&mut stream.text);
        if let Some(body) = stream.body.take() {
            let _ = body.send(Ok(rest.into()));
        }
    }

    /// The publisher of a stream vanishes; what it has not sent was never said.
    pub fn break_off(&mut self, index: usize) {
        let stream = &mut self.streams[index];
        stream.text.clear();
        if let Some(body) = stream.body.take() {
            let _ = body.send(Err(io::ErrorKind::ConnectionReset.into()));
        }
    }

    pub fn close_all(&mut self) {
        for index in 0..self.streams.len() {
            self.close(index);
        }
    }

    pub fn is_answered(&self, index: usize) -> bool {
        self.streams[index].is_answered
    }

    /// Notes what the hub has answered meanwhile.
    pub fn hear(&mut self, draining: bool) {
        while let Ok((asked, status, text)) = self.told.try_recv() {
            self.waiting -= 1;
            let lines: Vec<Value> =
                text.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect();
            match asked {
                Asked::Single(number) => self.hear_single(number, status, &lines[0]),
                Asked::Stream(index) => {
                    self.streams[index].is_answered = true;
                    let numbers = std::mem::take(&mut self.streams[index].lines);
                    assert!(status == 200 || status == 503 && draining, "a stream is refused: {text}");
                    let fates = if status == 200 { fates(&lines, &numbers) } else { Vec::new() };
                    for (at, number) in numbers.iter().enumerate() {
                        let fate = fates.get(at).copied().unwrap_or(Fate::Refused);
                        let is_legal = self.of(*number).is_legal;
                        assert!(is_legal || fate == Fate::Refused, "event {number} is none: {fate:?}");
                        let is_told_off = at < fates.len() && fate == Fate::Refused;
                        assert!(
                            !is_legal
                                || !is_told_off
                                || draining
                                || text.contains("broke off")
                                || text.contains(source::AWAY),
                            "{text}"
                        );
                        self.tried[*number as usize - 1].fate = fate;
                    }
                }
            }
        }
    }

    fn hear_single(&mut self, number: u64, status: u16, answer: &Value) {
        let tried = &mut self.tried[number as usize - 1];
        tried.fate = match status {
            200 => Fate::Accepted(Some(answer["sequence"].as_u64().expect("a sequence"))),
            504 => Fate::Unsure,
            _ => Fate::Refused,
        };
        let expected: &[u16] = if tried.is_legal { &[200, 503, 504] } else { &[413] };
        assert!(expected.contains(&status), "event {number}: {status} {answer}");
    }
}

/// What became of the lines that a stream's answer tells of: those refused are named, the others
/// are counted. The rest was not taken.
fn fates(answer: &[Value], numbers: &[u64]) -> Vec<Fate> {
    let (summary, errors) = answer.split_last().expect("an answer ends with its summary");
    let count = |name: &str| summary[name].as_u64().expect("a count") as usize;
    let (accepted, refused) = (count("accepted"), count("refused"));
    assert_eq!(refused, errors.len(), "each refused line is named: {summary}");
    let mut fates = vec![Fate::Accepted(None); accepted + refused];
    for error in errors {
        let line = error["line"].as_u64().expect("the number of a line") as usize;
        let is_unsure = error["error"].as_str().is_some_and(|text| text.contains("not known whether"));
        fates[line - 1] = if is_unsure { Fate::Unsure } else { Fate::Refused };
    }
    assert!(fates.len() <= numbers.len(), "{summary} of {} lines", numbers.len());
    fates
}
