//! A subscriber that is handed its bytes: it reads heads, event streams and WebSocket frames on its
//! own account, so that the server's codecs are not checked against themselves.

use std::collections::HashMap;

use super::chunks::Chunks;

/// How a peer subscribes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Server-Sent Events.
    Sse,
    /// WebSocket, raw.
    WebSocket,
}

/// What a peer read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// The head of the answer: it is subscribed.
    Opened,
    /// An event: the number with which its data begins.
    Event(u64),
    /// A gap notice: the topics that it names.
    Gap(Vec<String>),
    /// Another answer than expected, by its first line.
    Refused(String),
}

/// How the stream ended, as far as the peer can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Just the end.
    EndOfStream,
    /// A WebSocket close frame with this code.
    CloseFrame(u16),
}

/// One subscriber and what it knows.
#[derive(Debug)]
pub struct Peer {
    pub protocol: Protocol,
    /// Its topics, as the test numbers them.
    pub topics: Vec<usize>,
    /// The last sequence that it named when it connected, or that its stream began with.
    pub after: Option<u64>,
    /// Newest sequence that the server had taken when it connected: its stream starts here or
    /// later.
    pub connected_at: u64,
    /// Newest sequence published when it read the head of the answer.
    pub opened_at: Option<u64>,
    /// Last sequence that it read.
    pub last: Option<u64>,
    /// Topics that it was told to have lost events of and that no event has come of since, each
    /// with the newest sequence published when it was told.
    pub lost: HashMap<usize, u64>,
    /// It has stopped reading at least once.
    pub was_stalled: bool,
    /// It reset or closed its side.
    pub left: bool,
    /// What its event stream said of each event: the number in the data, the sequence in the id.
    pub ids: Vec<(u64, u64)>,
    /// The ids that its event stream has named first and last.
    pub first_id: Option<String>,
    pub last_id: Option<String>,
    /// Pings that it sent.
    pub pings: u32,
    /// Pings that it got and has not answered.
    pub pongs_owed: u32,
    buffer: Vec<u8>,
    /// Some once the head says that the body comes in chunks.
    chunks: Option<Chunks>,
    close_code: Option<u16>,
}

impl Peer {
    pub fn new(protocol: Protocol, topics: Vec<usize>, after: Option<u64>, connected_at: u64) -> Peer {
        Peer {
            protocol,
            topics,
            after,
            connected_at,
            opened_at: None,
            last: None,
            lost: HashMap::new(),
            was_stalled: false,
            left: false,
            ids: Vec::new(),
            first_id: None,
            last_id: None,
            pings: 0,
            pongs_owed: 0,
            buffer: Vec::new(),
            chunks: None,
            close_code: None,
        }
    }

    pub fn ending(&self) -> Ending {
        self.close_code.map_or(Ending::EndOfStream, Ending::CloseFrame)
    }

    /// True unless the peer can tell that more should have come.
    pub fn is_whole(&self) -> bool {
        self.chunks.as_ref().is_none_or(Chunks::ended) && self.buffer.is_empty()
    }

    /// Reads `bytes` and says what they were.
    pub fn hear(&mut self, bytes: &[u8]) -> Vec<Heard> {
        self.take(bytes);
        let mut heard = Vec::new();
        if self.opened_at.is_none() {
            let Some(end) = find(&self.buffer, b"\r\n\r\n") else { return heard };
            let head = String::from_utf8(self.buffer.drain(..end + 4).collect()).expect("a head is ASCII");
            let expected = match self.protocol {
                Protocol::Sse => "HTTP/1.1 200 ",
                Protocol::WebSocket => "HTTP/1.1 101 ",
            };
            if !head.starts_with(expected) {
                let line = head.lines().next().unwrap_or_default();
                return vec![Heard::Refused(line.to_string())];
            }
            heard.push(Heard::Opened);
            if head.contains("\r\nTransfer-Encoding: chunked\r\n") {
                self.chunks = Some(Chunks::default());
                let body = std::mem::take(&mut self.buffer);
                self.take(&body);
            }
        }
        match self.protocol {
            Protocol::Sse => self.hear_stream(&mut heard),
            Protocol::WebSocket => self.hear_frames(&mut heard),
        }
        heard
    }

    /// Adds bytes to those to be read, without the framing of their chunks.
    fn take(&mut self, bytes: &[u8]) {
        match &mut self.chunks {
            Some(chunks) => {
                for block in chunks.feed(bytes) {
                    assert!(block.ends_with(b"\n\n"), "a chunk holds whole blocks");
                    self.buffer.extend(block);
                }
            }
            None => self.buffer.extend_from_slice(bytes),
        }
    }

    fn hear_stream(&mut self, heard: &mut Vec<Heard>) {
        while let Some(end) = find(&self.buffer, b"\n\n") {
            let block = String::from_utf8(self.buffer.drain(..end + 2).collect()).expect("a stream is UTF-8");
            if block.starts_with(':') {
                continue;
            }
            if let Some(id) = block.lines().find_map(|line| line.strip_prefix("id: ")) {
                self.last_id = Some(id.to_string());
                self.first_id.get_or_insert_with(|| id.to_string());
            }
            if let Some(opening) = block.strip_prefix("retry: 2000\n") {
                if let Some(id) = opening.strip_suffix("\n\n") {
                    let (_, sequence) = id.rsplit_once('-').expect("an opening id has a sequence");
                    assert!(id.starts_with("id: ") && self.after.is_none(), "{id} opens a new stream");
                    self.after = Some(sequence.parse().expect("a sequence is a number"));
                }
                continue;
            }
            if let Some(ms) = block.strip_prefix("retry: ").and_then(|rest| rest.strip_suffix("\n\n")) {
                let ms: u32 = ms.parse().expect("a draining server spreads those who come back");
                assert!((1_000..5_000).contains(&ms), "{ms}");
                continue;
            }
            let data = block.lines().find_map(|line| line.strip_prefix("data: ")).expect("an event has data");
            if block.contains("event: fanwave-gap\n") {
                heard.push(gap(data));
                continue;
            }
            let id = block.lines().find_map(|line| line.strip_prefix("id: ")).expect("an event has an id");
            let (_, by_id) = id.rsplit_once('-').expect("an id of ours has a sequence");
            let number = number(data);
            self.ids.push((number, by_id.parse().expect("a sequence is a number")));
            heard.push(Heard::Event(number));
        }
    }

    fn hear_frames(&mut self, heard: &mut Vec<Heard>) {
        while let Some((opcode, payload)) = self.next_frame() {
            assert!(self.close_code.is_none(), "nothing follows a close frame");
            match opcode {
                0x1 => {
                    let text = String::from_utf8(payload).expect("a text message is UTF-8");
                    let is_gap = text.starts_with("{\"gap\":");
                    heard.push(if is_gap { gap(&text) } else { Heard::Event(number(&text)) });
                }
                0x8 => self.close_code = Some(u16::from_be_bytes([payload[0], payload[1]])),
                0x9 => {
                    assert!(payload.is_empty(), "our pings carry nothing");
                    self.pongs_owed += 1;
                }
                0xa => assert!(self.pings > 0 && payload == b"still there?", "a pong echoes a ping"),
                opcode => panic!("unexpected opcode {opcode}"),
            }
        }
    }

    fn next_frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let [first, second, ..] = *self.buffer.as_slice() else { return None };
        assert!(first & 0xf0 == 0x80 && second & 0x80 == 0, "a server's frame is whole and unmasked");
        let (header, length) = match second {
            126 => (4, usize::from(u16::from_be_bytes([*self.buffer.get(2)?, *self.buffer.get(3)?]))),
            127 => (10, u64::from_be_bytes(self.buffer.get(2..10)?.try_into().expect("8 bytes")) as usize),
            short => (2, usize::from(short)),
        };
        if self.buffer.len() < header + length {
            return None;
        }
        let frame: Vec<u8> = self.buffer.drain(..header + length).collect();
        Some((first & 0x0f, frame[header..].to_vec()))
    }
}

/// The gap notice in a line of JSON.
fn gap(json: &str) -> Heard {
    let notice: serde_json::Value = serde_json::from_str(json).expect("a gap notice is JSON");
    let text = |value: &serde_json::Value| value.as_str().expect("a string").to_string();
    let topics = notice["gap"]["topics"].as_array().expect("a list of topics");
    Heard::Gap(topics.iter().map(text).collect())
}

/// The number at the beginning of an event's data.
fn number(data: &str) -> u64 {
    let number = data.split(' ').next().expect("split gives one part at least");
    number.parse().unwrap_or_else(|_| panic!("data begins with a number: {data:.40}"))
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// A request head; topics with a `*` are patterns.
pub fn request(protocol: Protocol, topics: &[&str], after: Option<&str>) -> String {
    let (path, upgrade) = match protocol {
        Protocol::Sse => ("sse", ""),
        Protocol::WebSocket => (
            "ws",
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        ),
    };
    let named = |topic: &&str| format!("{}={topic}", if topic.contains('*') { "match" } else { "topic" });
    let mut query: Vec<String> = topics.iter().map(named).collect();
    query.extend(after.map(|id| format!("last-event-id={id}")));
    format!("GET /{path}?{} HTTP/1.1\r\nHost: test\r\n{upgrade}\r\n", query.join("&"))
}

/// A client's frame, masked.
pub fn masked(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x12, 0x34, 0x56, 0x78];
    let length = u16::try_from(payload.len()).expect("a frame of at most 64 KiB");
    let mut frame = vec![0x80 | opcode];
    match length {
        0..126 => frame.push(0x80 | length as u8),
        _ => frame.extend([[0xfe].as_slice(), &length.to_be_bytes()].concat()),
    }
    frame.extend_from_slice(&mask);
    frame.extend(payload.iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
    frame
}
