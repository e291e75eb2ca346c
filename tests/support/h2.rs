//! A client of HTTP/2, as bytes: what it says, and what it makes of what it hears. It finds fault
//! with a server that sends more than a window allows, or frames out of place.

#![allow(dead_code, reason = "not every test needs all of it")]

use std::collections::BTreeMap;

use fanwave::wire::http2::PREFACE;
use fanwave::wire::http2::frame::{self, HEADER, Header, PAYLOAD_MAX, flag, kind};
use fanwave::wire::http2::hpack::{Decoder, Scratch, push_field};

/// SETTINGS_INITIAL_WINDOW_SIZE.
pub const WINDOW_SETTING: u16 = 4;

/// What came on one stream.
#[derive(Debug, Default)]
pub struct Heard {
    pub status: Option<u16>,
    pub fields: Vec<(String, String)>,
    /// Its bytes, as far as nobody has taken them.
    pub body: Vec<u8>,
    /// The server has ended its side.
    pub ended: bool,
    /// The code of its reset.
    pub reset: Option<u32>,
    /// What it may still send.
    pub window: i64,
}

/// One connection of a client.
#[derive(Debug)]
pub struct Client {
    inbound: Vec<u8>,
    decoder: Decoder,
    next: u32,
    /// Window of a new stream.
    pub initial: i64,
    /// What the server may still send on all streams.
    pub window: i64,
    pub streams: BTreeMap<u32, Heard>,
    /// Last stream and code of the farewell.
    pub goaway: Option<(u32, u32)>,
    /// Our pings that were answered.
    pub pongs: usize,
    /// Our SETTINGS that were answered.
    pub acks: usize,
    /// What the server said of itself.
    pub settings: Vec<(u16, u32)>,
    /// More room that it gave us: stream and bytes.
    pub updates: Vec<(u32, u32)>,
    /// Frames that carried DATA.
    pub frames: usize,
    /// Windows were made smaller: what was on its way then may be more than they allow.
    shrunk: bool,
}

impl Default for Client {
    fn default() -> Client {
        Client {
            inbound: Vec::new(),
            decoder: Decoder::default(),
            next: 1,
            initial: 65_535,
            window: 65_535,
            streams: BTreeMap::new(),
            goaway: None,
            pongs: 0,
            acks: 0,
            settings: Vec::new(),
            updates: Vec::new(),
            frames: 0,
            shrunk: false,
        }
    }
}

impl Client {
    /// The first words, with these settings.
    pub fn hello(&mut self, settings: &[(u16, u32)]) -> Vec<u8> {
        [&PREFACE[..], &self.set(settings)].concat()
    }

    /// SETTINGS, which count from now on.
    pub fn set(&mut self, settings: &[(u16, u32)]) -> Vec<u8> {
        for (_, value) in settings.iter().filter(|setting| setting.0 == WINDOW_SETTING) {
            let more = i64::from(*value) - self.initial;
            self.initial = i64::from(*value);
            self.shrunk |= more < 0;
            self.streams.values_mut().for_each(|stream| stream.window += more);
        }
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(setting, value)| [&setting.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        frame_of(kind::SETTINGS, 0, 0, &payload)
    }

    /// A request without a body. Returns its stream.
    pub fn get(&mut self, path: &str) -> (u32, Vec<u8>) {
        self.request("GET", path, &[], true)
    }

    /// A request; `is_over` if no body follows.
    pub fn request(
        &mut self,
        method: &str,
        path: &str,
        fields: &[(&str, &str)],
        is_over: bool,
    ) -> (u32, Vec<u8>) {
        let pseudo = [(":method", method), (":scheme", "https"), (":path", path), (":authority", "h")];
        let block = block(&[&pseudo[..], fields].concat());
        self.fields(&block, is_over)
    }

    /// A request with this block of fields.
    pub fn fields(&mut self, block: &[u8], is_over: bool) -> (u32, Vec<u8>) {
        let id = self.next;
        self.next += 2;
        self.streams.insert(id, Heard { window: self.initial, ..Heard::default() });
        let flags = flag::END_HEADERS | if is_over { flag::END_STREAM } else { 0 };
        (id, frame_of(kind::HEADERS, flags, id, block))
    }

    /// More room for a stream, or for all of them.
    pub fn allow(&mut self, stream: u32, bytes: u32) -> Vec<u8> {
        match stream {
            0 => self.window += i64::from(bytes),
            id => {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.window += i64::from(bytes);
                }
            }
        }
        let mut out = Vec::new();
        frame::push_window_update(&mut out, stream, bytes);
        out
    }

    /// The end of a stream.
    pub fn reset(&mut self, stream: u32, code: u32) -> Vec<u8> {
        frame_of(kind::RST_STREAM, 0, stream, &code.to_be_bytes())
    }

    /// Bytes of the server. Returns what is to be answered.
    pub fn hear(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.inbound.extend_from_slice(bytes);
        let mut answer = Vec::new();
        while let Some(header) = self.inbound.first_chunk::<HEADER>() {
            let header = Header::read(*header);
            assert!(header.length <= PAYLOAD_MAX, "{header:?} is too large");
            if self.inbound.len() < HEADER + header.length {
                break;
            }
            let frame: Vec<u8> = self.inbound.drain(..HEADER + header.length).collect();
            self.hear_frame(header, &frame[HEADER..], &mut answer);
        }
        answer
    }

    fn hear_frame(&mut self, header: Header, payload: &[u8], answer: &mut Vec<u8>) {
        let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().expect("four bytes"));
        match header.kind {
            kind::DATA => {
                self.frames += 1;
                self.window -= payload.len() as i64;
                assert!(self.window >= 0, "the server overruns the window of the connection");
                let stream = self.streams.get_mut(&header.stream).expect("a stream that was asked for");
                assert!(stream.status.is_some() && !stream.ended, "{header:?} is out of place");
                stream.window -= payload.len() as i64;
                assert!(stream.window >= 0 || self.shrunk, "the server overruns the window of a stream");
                stream.body.extend_from_slice(payload);
                stream.ended = header.has(flag::END_STREAM);
            }
            kind::HEADERS => {
                assert!(header.has(flag::END_HEADERS), "heads of answers are small");
                let stream = self.streams.get_mut(&header.stream).expect("a stream that was asked for");
                assert!(stream.status.is_none() && !stream.ended, "one head for an answer");
                let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("ASCII");
                let each = &mut |name: &[u8], value: &[u8]| {
                    stream.fields.push((text(name), text(value)));
                    true
                };
                self.decoder.read(payload, &mut Scratch::default(), each).expect("a block of fields");
                let (name, status) = stream.fields.remove(0);
                assert_eq!(name, ":status");
                stream.status = Some(status.parse().expect("a status"));
                stream.ended = header.has(flag::END_STREAM);
            }
            kind::RST_STREAM => {
                self.streams.entry(header.stream).or_default().reset = Some(number(0));
            }
            kind::SETTINGS if header.has(flag::ACK) => self.acks += 1,
            kind::SETTINGS => {
                let pairs = payload.chunks(6).map(|pair| {
                    let value = u32::from_be_bytes(pair[2..].try_into().expect("four bytes"));
                    (u16::from_be_bytes([pair[0], pair[1]]), value)
                });
                self.settings = pairs.collect();
                answer.extend(frame_of(kind::SETTINGS, flag::ACK, 0, &[]));
            }
            kind::PING => {
                assert!(header.has(flag::ACK), "we are asked nothing");
                self.pongs += 1;
            }
            kind::GOAWAY => self.goaway = Some((number(0), number(4))),
            kind::WINDOW_UPDATE => self.updates.push((header.stream, number(0))),
            other => panic!("a frame of type {other}"),
        }
    }

    /// The text that came on a stream and nobody has taken.
    pub fn take(&mut self, stream: u32) -> Vec<u8> {
        self.streams.get_mut(&stream).map(|stream| std::mem::take(&mut stream.body)).unwrap_or_default()
    }
}

/// A frame of any type.
pub fn frame_of(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::push(&mut out, kind, flags, stream, payload);
    out
}

/// Fields that nobody is to remember.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    // A client that keeps no table says so at once.
    out.push(0x20);
    fields.iter().for_each(|(name, value)| push_field(&mut out, name.as_bytes(), value.as_bytes()));
    out
}
