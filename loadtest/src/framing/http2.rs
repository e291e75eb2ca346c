//! HTTP/2 (RFC 9113) on a connection that carries event streams, as their subscriber speaks it.
//!
//! A [`Carrier`] asks for all of its streams behind the preface. Then it gives the runs of data
//! within the bytes fed, and whose they are, wherever these are cut. It keeps the begin of a frame
//! and nothing of the data. Of an answer's fields it reads the status, which comes first (§8.3.2).
//! Windows are as large as they can be, so that they are seldom given back. Nothing of the server's
//! own code is used here: it is what is judged. No I/O: what is to be sent is given as bytes.

use std::ops::Range;

/// What a client says first (§3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Bytes of a frame's header (§4.1).
const HEADER: usize = 9;
/// Bytes behind it, of frames that everybody takes (§4.2).
const PAYLOAD_MAX: usize = 1 << 14;
/// A window before anybody has said anything of it, and the largest (§6.9).
const WINDOW_FIRST: u32 = 65_535;
const WINDOW: u32 = (1 << 31) - 1;
/// Bytes of a block of fields.
const BLOCK_BYTES_MAX: usize = 64 << 10;

/// Types of frames (§6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// Flags of frames.
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 32;

/// Settings (§6.5.2).
const HEADER_TABLE_SIZE: u16 = 1;
const ENABLE_PUSH: u16 = 2;
const MAX_CONCURRENT_STREAMS: u16 = 3;
const INITIAL_WINDOW_SIZE: u16 = 4;

/// Indexes of fields whose names need not be told (RFC 7541, Appendix A).
const METHOD_GET: u8 = 2;
const SCHEME_HTTP: u8 = 6;
const SCHEME_HTTPS: u8 = 7;
const AUTHORITY: usize = 1;
const PATH: usize = 4;
const ACCEPT: usize = 19;
const AUTHORIZATION: usize = 23;

/// What is asked for on one stream.
#[derive(Debug, Clone)]
pub struct Request {
    /// Path and query.
    pub path: String,
    /// Host and port.
    pub authority: String,
    /// A token, if one is brought.
    pub token: Option<String>,
    /// The connection is one of TLS.
    pub is_secure: bool,
}

/// One connection.
#[derive(Debug)]
pub struct Carrier {
    /// In the order of their requests: stream n has the number 2n + 1.
    streams: Vec<Stream>,
    /// Streams whose head has come. 0 <= answered <= streams.len().
    answered: usize,
    /// The frame that is not whole, if it holds no data: its header and what has come of the rest.
    part: Vec<u8>,
    /// The frame of data under way.
    data: Option<Data>,
    /// The block of fields that is not whole, and its stream.
    block: Option<(usize, Vec<u8>)>,
    /// Bytes of data whose room was not given back.
    owed: u32,
    /// The server has said what it wants.
    has_settings: bool,
    /// What is to be sent.
    answers: Vec<u8>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Stream {
    /// 0 until its head has come.
    status: u16,
    /// Bytes of data whose room was not given back.
    owed: u32,
}

/// A frame of data. 0 < left.
#[derive(Debug)]
struct Data {
    stream: usize,
    left: usize,
    /// The stream ends behind it.
    is_last: bool,
}

/// The header of a frame.
#[derive(Debug, Clone, Copy)]
struct Header {
    length: usize,
    kind: u8,
    flags: u8,
    stream: u32,
}

impl Carrier {
    /// A connection that asks for these streams, and the bytes that it begins with.
    pub fn begin(requests: &[Request]) -> Result<(Carrier, Vec<u8>), String> {
        let mut out = PREFACE.to_vec();
        let mut settings = Vec::new();
        for (setting, value) in [(HEADER_TABLE_SIZE, 0), (ENABLE_PUSH, 0), (INITIAL_WINDOW_SIZE, WINDOW)] {
            settings.extend(setting.to_be_bytes());
            settings.extend(value.to_be_bytes());
        }
        push_frame(&mut out, SETTINGS, 0, 0, &settings);
        push_frame(&mut out, WINDOW_UPDATE, 0, 0, &(WINDOW - WINDOW_FIRST).to_be_bytes());
        for (at, request) in requests.iter().enumerate() {
            let block = block_of(request);
            if block.len() > PAYLOAD_MAX {
                return Err(format!("a request of more than {PAYLOAD_MAX} bytes"));
            }
            push_frame(&mut out, HEADERS, END_STREAM | END_HEADERS, number_of(at), &block);
        }
        let carrier = Carrier {
            streams: vec![Stream::default(); requests.len()],
            answered: 0,
            part: Vec::new(),
            data: None,
            block: None,
            owed: 0,
            has_settings: false,
            answers: Vec::new(),
        };
        Ok((carrier, out))
    }

    /// True once the server has answered all requests.
    pub fn is_open(&self) -> bool {
        self.answered == self.streams.len()
    }

    /// What is to be sent since the last call; empty if nothing is.
    pub fn answers(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.answers)
    }

    /// The next run of data in `bytes` from `at` on, which moves behind it, and the stream that it
    /// belongs to; `None` when all is taken. An error means that the server broke the protocol,
    /// refused a request, or ended a stream.
    pub fn next(&mut self, bytes: &[u8], at: &mut usize) -> Result<Option<(usize, Range<usize>)>, String> {
        while *at < bytes.len() {
            if let Some(data) = &mut self.data {
                let run = *at..bytes.len().min(*at + data.left);
                *at = run.end;
                data.left -= run.len();
                let (stream, is_over, is_last) = (data.stream, data.left == 0, data.is_last);
                if is_over {
                    self.data = None;
                }
                // A server that ends a stream has failed its subscriber, whatever came before.
                return if is_over && is_last { Err(ended(stream)) } else { Ok(Some((stream, run))) };
            }
            let whole = match self.header() {
                None => HEADER,
                Some(header) => HEADER + header.length,
            };
            let taken = (whole - self.part.len()).min(bytes.len() - *at);
            self.part.extend_from_slice(&bytes[*at..*at + taken]);
            *at += taken;
            let Some(header) = self.header() else { continue };
            if self.part.len() == HEADER {
                self.begin_frame(header)?;
            }
            if self.part.len() == HEADER + header.length {
                let part = std::mem::take(&mut self.part);
                self.read_frame(header, &part[HEADER..])?;
                self.part = part;
                self.part.clear();
            }
        }
        Ok(None)
    }

    /// That of the frame that is not whole, once all of it is here.
    fn header(&self) -> Option<Header> {
        let [a, b, c, kind, flags, stream @ ..] = *self.part.first_chunk::<HEADER>()?;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        // The highest bit has no meaning.
        Some(Header { length, kind, flags, stream: u32::from_be_bytes(stream) & !(1 << 31) })
    }

    /// The header of a frame has come. Data is not collected, so it leaves `part` empty.
    fn begin_frame(&mut self, header: Header) -> Result<(), String> {
        let Header { length, kind, flags, stream } = header;
        if !self.has_settings && kind != SETTINGS {
            return Err("the server does not answer in HTTP/2".into());
        }
        if length > PAYLOAD_MAX {
            return Err(format!("the server sent a frame of {length} bytes"));
        }
        if self.block.is_some() && kind != CONTINUATION {
            return Err(format!("the server sent a frame of type {kind} within a block of fields"));
        }
        if matches!(kind, DATA | HEADERS) && flags & (PADDED | PRIORITY) != 0 {
            return Err(format!("the server pads frames of type {kind}, which is not understood here"));
        }
        if kind != DATA {
            return Ok(());
        }
        let at = self.stream(stream)?;
        if length > 0 && self.streams[at].status == 200 {
            self.part.clear();
            self.data = Some(Data { stream: at, left: length, is_last: flags & END_STREAM != 0 });
            self.take_room(at, length as u32);
        }
        Ok(())
    }

    /// So many bytes of data have come: half a window of them is given back at once.
    fn take_room(&mut self, at: usize, bytes: u32) {
        let stream = &mut self.streams[at].owed;
        for (owed, number) in [(&mut self.owed, 0), (stream, number_of(at))] {
            *owed += bytes;
            if *owed > WINDOW / 2 {
                push_frame(&mut self.answers, WINDOW_UPDATE, 0, number, &owed.to_be_bytes());
                *owed = 0;
            }
        }
    }

    /// A frame is whole that is no data of an answer with status 200.
    fn read_frame(&mut self, header: Header, payload: &[u8]) -> Result<(), String> {
        let Header { kind, flags, stream, .. } = header;
        match kind {
            DATA => {
                let at = self.stream(stream)?;
                match self.streams[at].status {
                    0 => Err(format!("the server sent data before the head of stream {stream}")),
                    200 if flags & END_STREAM != 0 => Err(ended(at)),
                    200 => Ok(()),
                    status => Err(refused(status, payload)),
                }
            }
            HEADERS => {
                let at = self.stream(stream)?;
                if self.streams[at].status != 0 {
                    return Err(ended(at));
                }
                match flags & END_HEADERS != 0 {
                    true => self.read_head(at, flags, payload),
                    // Its status stands at the begin.
                    false => {
                        self.read_head(at, flags, payload)?;
                        self.block = Some((at, payload.to_vec()));
                        Ok(())
                    }
                }
            }
            CONTINUATION => {
                let Some((at, block)) = &mut self.block else {
                    return Err("the server went on with a block of fields that it had not begun".into());
                };
                if number_of(*at) != stream || block.len() + payload.len() > BLOCK_BYTES_MAX {
                    return Err("the server broke off a block of fields, or it is too long".into());
                }
                block.extend_from_slice(payload);
                if flags & END_HEADERS != 0 {
                    self.block = None;
                }
                Ok(())
            }
            SETTINGS if flags & ACK == 0 => {
                self.has_settings = true;
                for setting in payload.chunks_exact(6) {
                    let (name, value) = setting.split_at(2);
                    let value = u32::from_be_bytes(value.try_into().map_err(|_| "a setting of six bytes")?);
                    let most = name == MAX_CONCURRENT_STREAMS.to_be_bytes();
                    if most && (value as usize) < self.streams.len() {
                        let asked = self.streams.len();
                        return Err(format!("the server takes {value} streams on a connection, not {asked}"));
                    }
                }
                push_frame(&mut self.answers, SETTINGS, ACK, 0, &[]);
                Ok(())
            }
            PING if flags & ACK == 0 => {
                push_frame(&mut self.answers, PING, ACK, 0, payload);
                Ok(())
            }
            RST_STREAM => {
                let code = code_in(payload);
                Err(format!("the server reset stream {stream} with error {code}"))
            }
            GOAWAY => {
                let code = code_in(payload.get(4..).unwrap_or_default());
                let why = String::from_utf8_lossy(payload.get(8..).unwrap_or_default()).into_owned();
                Err(format!("the server said farewell with error {code}: {why:?}"))
            }
            PUSH_PROMISE => Err("the server promised an answer that nobody wants".into()),
            // What is not known has no meaning (§5.5).
            _ => Ok(()),
        }
    }

    /// The head of an answer, whose block begins so.
    fn read_head(&mut self, at: usize, flags: u8, block: &[u8]) -> Result<(), String> {
        let status = status_in(block).ok_or("the server sent a head without a status that can be read")?;
        // An interim answer: the head is still to come (§8.1).
        if status < 200 {
            return Ok(());
        }
        let is_over = flags & END_STREAM != 0;
        match status {
            200 if is_over => return Err(ended(at)),
            200 => self.answered += 1,
            _ if is_over => return Err(refused(status, &[])),
            // The reason follows.
            _ => {}
        }
        self.streams[at].status = status;
        Ok(())
    }

    /// The index of a stream.
    fn stream(&self, number: u32) -> Result<usize, String> {
        let at = (number / 2) as usize;
        match number % 2 == 1 && at < self.streams.len() {
            true => Ok(at),
            false => Err(format!("the server sent a frame for stream {number}, which nobody has opened")),
        }
    }
}

/// The number of a stream by its index.
fn number_of(at: usize) -> u32 {
    2 * at as u32 + 1
}

fn ended(at: usize) -> String {
    format!("the server ended stream {}", number_of(at))
}

fn refused(status: u16, body: &[u8]) -> String {
    let body = String::from_utf8_lossy(body);
    let reason = body.lines().next().unwrap_or_default().trim();
    format!("the server refused the request: {status}: {reason}")
}

/// An error code (§7).
fn code_in(payload: &[u8]) -> u32 {
    payload.first_chunk().map_or(u32::MAX, |code| u32::from_be_bytes(*code))
}

fn push_frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let [_, length @ ..] = (payload.len() as u32).to_be_bytes();
    out.extend(length);
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// The fields of a request (§8.3.1), none of which anybody is to remember.
fn block_of(request: &Request) -> Vec<u8> {
    let scheme = if request.is_secure { SCHEME_HTTPS } else { SCHEME_HTTP };
    let mut block = vec![0x80 | METHOD_GET, 0x80 | scheme];
    push_field(&mut block, PATH, request.path.as_bytes());
    push_field(&mut block, AUTHORITY, request.authority.as_bytes());
    push_field(&mut block, ACCEPT, b"text/event-stream");
    if let Some(token) = &request.token {
        push_field(&mut block, AUTHORIZATION, format!("Bearer {token}").as_bytes());
    }
    block
}

/// A field whose name need not be told (RFC 7541 §6.2.2).
fn push_field(block: &mut Vec<u8>, name: usize, value: &[u8]) {
    push_integer(block, 4, name);
    push_integer(block, 7, value.len());
    block.extend_from_slice(value);
}

/// An integer whose first byte has `prefix` bits of it (RFC 7541 §5.1).
fn push_integer(block: &mut Vec<u8>, prefix: u32, value: usize) {
    let mask = (1 << prefix) - 1;
    if value < mask {
        block.push(value as u8);
        return;
    }
    block.push(mask as u8);
    let mut left = value - mask;
    while left >= 0x80 {
        block.push(0x80 | left as u8);
        left >>= 7;
    }
    block.push(left as u8);
}

/// The status that a block of fields begins with, told by its index (RFC 7541 §6.1) or in three
/// digits behind the index of its name (§6.2); `None` if it begins otherwise.
fn status_in(mut block: &[u8]) -> Option<u16> {
    const TOLD: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    // Sizes of the table may stand before all fields (§6.3).
    while let [first @ 0x20..0x40, rest @ ..] = block {
        let more = if first & 0x1f < 0x1f { 0 } else { rest.iter().position(|byte| *byte < 0x80)? + 1 };
        block = &rest[more..];
    }
    match block {
        [told @ 0x88..=0x8e, ..] => Some(TOLD[usize::from(told - 0x88)]),
        [0x08..=0x0e | 0x18..=0x1e | 0x48..=0x4e, 3, digits @ ..] => {
            let digits = std::str::from_utf8(digits.get(..3)?).ok()?;
            digits.bytes().all(|digit| digit.is_ascii_digit()).then(|| digits.parse().ok())?
        }
        _ => None,
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Answers of a server: its settings, then a head for each of so many streams.
    pub fn heads(streams: usize) -> Vec<u8> {
        let mut out = Vec::new();
        push_frame(&mut out, SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100]);
        push_frame(&mut out, SETTINGS, ACK, 0, &[]);
        (0..streams).for_each(|at| push_frame(&mut out, HEADERS, END_HEADERS, number_of(at), &[0x20, 0x88]));
        out
    }

    /// Data of a stream.
    pub fn data(at: usize, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        push_frame(&mut out, DATA, 0, number_of(at), data);
        out
    }

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        push_frame(&mut out, kind, flags, stream, payload);
        out
    }

    fn carrier(streams: usize) -> Carrier {
        let request =
            Request { path: "/sse/a".into(), authority: "127.0.0.1:1".into(), token: None, is_secure: false };
        Carrier::begin(&vec![request; streams]).expect("short requests").0
    }

    /// What each stream hears of `bytes` in pieces of `piece`.
    fn heard(carrier: &mut Carrier, bytes: &[u8], piece: usize) -> Result<Vec<Vec<u8>>, String> {
        let mut heard = vec![Vec::new(); carrier.streams.len()];
        for bytes in bytes.chunks(piece) {
            let mut at = 0;
            while let Some((stream, run)) = carrier.next(bytes, &mut at)? {
                heard[stream].extend_from_slice(&bytes[run]);
            }
            assert_eq!(at, bytes.len());
        }
        Ok(heard)
    }

    #[test]
    fn data_comes_to_its_stream_whole_however_the_bytes_arrive() {
        let frames = [
            heads(3),
            data(0, b"one"),
            data(2, b"three"),
            frame(PING, 0, 0, b"12345678"),
            data(0, b""),
            frame(WINDOW_UPDATE, 0, 0, &[0, 0, 1, 0]),
            frame(200, 0, 0, b"nobody knows this type"),
            data(1, &[b'x'; PAYLOAD_MAX]),
            data(0, b", two"),
        ]
        .concat();
        for piece in [1, 2, 9, 10, 1_000, frames.len()] {
            let mut carrier = carrier(3);
            let expected = [b"one, two".to_vec(), vec![b'x'; PAYLOAD_MAX], b"three".to_vec()];
            assert_eq!(heard(&mut carrier, &frames, piece), Ok(expected.to_vec()), "pieces of {piece}");
            assert!(carrier.is_open());
            let answers = [frame(SETTINGS, ACK, 0, &[]), frame(PING, ACK, 0, b"12345678")].concat();
            assert_eq!((carrier.answers(), carrier.answers()), (answers, Vec::new()));
        }
    }

    #[test]
    fn a_connection_is_open_when_the_last_of_its_streams_has_its_head() {
        let all = heads(2);
        let mut carrier = carrier(2);
        heard(&mut carrier, &all[..all.len() - 1], 5).expect("no fault");
        assert!(!carrier.is_open());
        heard(&mut carrier, &all[all.len() - 1..], 5).expect("no fault");
        assert!(carrier.is_open());
    }

    #[test]
    fn room_is_given_back_half_a_window_at_a_time() {
        let mut carrier = carrier(2);
        heard(&mut carrier, &heads(2), 100).expect("no fault");
        carrier.answers();
        let half = (WINDOW / 2) as usize / PAYLOAD_MAX;
        for _ in 0..half {
            carrier.take_room(1, PAYLOAD_MAX as u32);
        }
        assert_eq!(carrier.answers(), b"", "less than half");
        carrier.take_room(1, PAYLOAD_MAX as u32);
        let back = (((half + 1) * PAYLOAD_MAX) as u32).to_be_bytes();
        let updates = [frame(WINDOW_UPDATE, 0, 0, &back), frame(WINDOW_UPDATE, 0, 3, &back)].concat();
        assert_eq!(carrier.answers(), updates);
        assert_eq!((carrier.owed, carrier.streams[0].owed, carrier.streams[1].owed), (0, 0, 0));
    }

    #[test]
    fn what_a_server_may_not_do_and_what_ends_a_stream_is_named() {
        let begun = heads(1);
        let unread = data(0, b"x")[..9].to_vec();
        let cases: [(&[&[u8]], &str); 16] = [
            (&[b"HTTP/1.1 400 Bad Request\r\n"], "does not answer in HTTP/2"),
            (&[&frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 0])], "takes 0 streams on a connection, not 1"),
            (&[&begun[..24], &data(0, b"x")], "before the head"),
            (&[&begun, &data(1, b"x")], "stream 3, which nobody has opened"),
            (&[&begun, &frame(DATA, 0, 2, b"x")], "stream 2, which nobody has opened"),
            (&[&begun, &[0, 0x40, 1], &unread[3..]], "a frame of 16385 bytes"),
            (&[&begun, &frame(DATA, PADDED, 1, &[0])], "pads"),
            (&[&begun, &frame(DATA, END_STREAM, 1, b"x")], "ended stream 1"),
            (&[&begun, &frame(DATA, END_STREAM, 1, b"")], "ended stream 1"),
            (&[&begun, &frame(HEADERS, END_STREAM | END_HEADERS, 1, &[0])], "ended stream 1"),
            (&[&begun, &frame(RST_STREAM, 0, 1, &[0, 0, 0, 7])], "reset stream 1 with error 7"),
            (&[&begun, &frame(GOAWAY, 0, 0, b"\0\0\0\0\0\0\0\x0bcalm")], "farewell with error 11: \"calm\""),
            (&[&begun, &frame(PUSH_PROMISE, 4, 1, &[0, 0, 0, 2])], "promised"),
            (&[&begun, &frame(CONTINUATION, END_HEADERS, 1, &[])], "had not begun"),
            (
                &[&begun[..24], &frame(HEADERS, END_HEADERS, 1, b"\x48\x03503"), &data(0, b"full\n")],
                "refused the request: 503: full",
            ),
            (&[&begun[..24], &frame(HEADERS, 5, 1, &[0x8d])], "refused the request: 404"),
        ];
        for (frames, expected) in cases {
            let bytes = frames.concat();
            for piece in [1, 7, bytes.len()] {
                let told = heard(&mut carrier(1), &bytes, piece);
                assert!(
                    told.as_ref().is_err_and(|cause| cause.contains(expected)),
                    "{expected}, in pieces of {piece}: {told:?}"
                );
            }
        }
    }

    #[test]
    fn a_head_may_go_on_in_other_frames_and_nothing_stands_between_them() {
        let first = [&heads(0)[..], &frame(HEADERS, 0, 1, &[0x88])].concat();
        let more = frame(CONTINUATION, END_HEADERS, 1, b"\0\x01a\x01b");
        let mut whole = carrier(1);
        heard(&mut whole, &[&first[..], &more, &data(0, b"x")].concat(), 4).expect("no fault");
        assert!(whole.is_open());
        let told = heard(&mut carrier(1), &[&first[..], &data(0, b"x")].concat(), 4);
        assert!(told.is_err_and(|cause| cause.contains("within a block")));
    }

    #[test]
    fn the_status_is_read_in_each_form_that_servers_use() {
        for (block, status) in [
            (&b"\x88"[..], Some(200)),
            (b"\x20\x88\x00", Some(200)),
            (b"\x3f\xe1\x1f\x8e", Some(500)),
            (b"\x08\x03503", Some(503)),
            (b"\x48\x03429rest", Some(429)),
            (b"\x18\x03100", Some(100)),
            (b"\x08\x03+50", None),
            (b"\x08\x0350", None),
            (b"\x08\x82\x6c\x02", None),
            (b"\x82", None),
            (b"\x3f\xe1", None),
            (b"", None),
        ] {
            assert_eq!(status_in(block), status, "{block:x?}");
        }
    }

    #[test]
    fn a_request_says_what_one_of_http_1_says() {
        let request = Request {
            path: format!("/sse/{}", "a".repeat(200)),
            authority: "h:1".into(),
            token: Some("t".into()),
            is_secure: true,
        };
        let (_, bytes) = Carrier::begin(std::slice::from_ref(&request)).expect("short");
        let begin = PREFACE.len() + HEADER + 18 + HEADER + 4;
        let path = [b"\x04\x7f\x4e/sse/".to_vec(), vec![b'a'; 200]].concat();
        let rest = b"\x01\x03h:1\x0f\x04\x11text/event-stream\x0f\x08\x08Bearer t";
        let block = [&[0x82, 0x87][..], &path, rest].concat();
        assert_eq!(bytes[begin..], frame(HEADERS, 5, 1, &block));
        let long = Request { path: "/".repeat(PAYLOAD_MAX), ..request };
        assert!(Carrier::begin(&[long]).is_err());
    }
}
