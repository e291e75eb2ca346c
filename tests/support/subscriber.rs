//! A subscriber on a real socket, with its own reading of event streams (WHATWG HTML §9.2.6) and
//! WebSocket frames (RFC 6455 §5.2). It checks what must hold for every stream: whole unmasked
//! frames in shortest form, valid UTF-8, nothing after a close frame.

use std::net::SocketAddr;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::chunks::Chunks;
use super::peer::{self, masked};
use super::{Protocol, within};

/// One thing that the server said.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    /// An event.
    Event(Event),
    /// A gap notice: what is under `gap` in its JSON.
    Gap(Value),
    /// A comment on an event stream, or a ping with this payload.
    Alive(Vec<u8>),
    /// A pong with this payload.
    Pong(Vec<u8>),
    /// A close frame.
    Close(u16, String),
    /// The end of the stream.
    End,
    /// The connection was reset.
    Reset,
}

/// An event as a subscriber sees it. WebSocket carries the data alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Event {
    pub id: Option<String>,
    pub name: Option<String>,
    pub retry: Option<u64>,
    pub data: Vec<u8>,
    /// A binary message.
    pub binary: bool,
}

impl Event {
    /// The data as text.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.data).expect("text is UTF-8")
    }
}

/// A subscriber whose stream is open.
pub struct Subscriber {
    pub protocol: Protocol,
    /// The head of the answer.
    pub head: String,
    /// The id that an event stream began with, once it was read; no event is before it.
    pub opening_id: Option<String>,
    socket: TcpStream,
    /// Some if the body comes in chunks.
    chunks: Option<Chunks>,
    /// Bytes that were read, without the framing of chunks; those before `at` are used up.
    buffer: Vec<u8>,
    at: usize,
    closed: bool,
}

impl Subscriber {
    /// Subscribes, and returns once the server has said that it is.
    pub async fn connect(server: SocketAddr, protocol: Protocol, topics: &[&str]) -> Subscriber {
        Subscriber::resume(server, protocol, topics, None).await
    }

    /// Subscribes from after the event `after` on, named in the query.
    pub async fn resume(
        server: SocketAddr,
        protocol: Protocol,
        topics: &[&str],
        after: Option<&str>,
    ) -> Subscriber {
        Subscriber::request(server, protocol, peer::request(protocol, topics, after)).await
    }

    /// Subscribes with this request head and whatever follows it.
    pub async fn request(server: SocketAddr, protocol: Protocol, request: impl AsRef<[u8]>) -> Subscriber {
        let socket = within("a connection", TcpStream::connect(server)).await.expect("the server accepts");
        let mut subscriber = Subscriber {
            protocol,
            head: String::new(),
            opening_id: None,
            socket,
            chunks: None,
            buffer: Vec::new(),
            at: 0,
            closed: false,
        };
        subscriber.send(request.as_ref()).await;
        let status = match protocol {
            Protocol::Sse => "HTTP/1.1 200 ",
            Protocol::WebSocket => "HTTP/1.1 101 ",
        };
        within("the head of the answer", async {
            while find(&subscriber.buffer, b"\r\n\r\n").is_none() {
                assert!(subscriber.fill().await.is_none(), "the answer ends: {:?}", subscriber.buffer);
            }
        })
        .await;
        let end = find(&subscriber.buffer, b"\r\n\r\n").expect("waited for") + 4;
        subscriber.head = String::from_utf8(subscriber.buffer[..end].to_vec()).expect("a head is ASCII");
        subscriber.at = end;
        assert!(subscriber.head.starts_with(status), "refused: {}", subscriber.head);
        // A proxy may write the field in another case.
        if subscriber.head.to_ascii_lowercase().contains("\r\ntransfer-encoding: chunked\r\n") {
            let mut chunks = Chunks::default();
            subscriber.buffer = chunks.feed(&subscriber.buffer[end..]).concat();
            subscriber.at = 0;
            subscriber.chunks = Some(chunks);
        }
        subscriber
    }

    /// Its own address.
    pub fn address(&self) -> SocketAddr {
        self.socket.local_addr().expect("it is connected")
    }

    /// Writes bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) {
        within("room to write", self.socket.write_all(bytes)).await.expect("the server reads");
    }

    /// What the server says next.
    pub async fn next(&mut self) -> Said {
        within(self.awaited(), self.said()).await
    }

    /// What the server says next besides signs of life; pings are answered.
    pub async fn news(&mut self) -> Said {
        // One patience for all of it: signs of life are no progress.
        within(self.awaited(), async {
            loop {
                match self.said().await {
                    Said::Alive(payload) if self.protocol == Protocol::WebSocket => {
                        self.send(&masked(0xa, &payload)).await;
                    }
                    Said::Alive(_) => {}
                    said => return said,
                }
            }
        })
        .await
    }

    fn awaited(&self) -> &'static str {
        match self.protocol {
            Protocol::Sse => "something on an event stream",
            Protocol::WebSocket => "something on a WebSocket",
        }
    }

    async fn said(&mut self) -> Said {
        loop {
            if let Some(said) = self.parse() {
                return said;
            }
            if let Some(end) = self.fill().await {
                assert!(self.at == self.buffer.len(), "the end comes between two events");
                let is_whole = self.chunks.as_ref().is_none_or(Chunks::ended);
                return if is_whole { end } else { Said::Reset };
            }
        }
    }

    /// The next event; anything else but signs of life is a failure.
    pub async fn event(&mut self) -> Event {
        match self.news().await {
            Said::Event(event) => event,
            other => panic!("expected an event, not {other:?}"),
        }
    }

    /// The next event's data as text.
    pub async fn text(&mut self) -> String {
        self.event().await.text().to_string()
    }

    /// The next `count` events' data as text.
    pub async fn texts(&mut self, count: usize) -> Vec<String> {
        let mut texts = Vec::with_capacity(count);
        for _ in 0..count {
            texts.push(self.text().await);
        }
        texts
    }

    /// Reads what is there or comes, until something was read. Returns the end if that was it.
    async fn fill(&mut self) -> Option<Said> {
        if self.at == self.buffer.len() {
            self.buffer.clear();
            self.at = 0;
        }
        self.buffer.reserve(64 << 10);
        let Some(chunks) = &mut self.chunks else {
            return match self.socket.read_buf(&mut self.buffer).await {
                Ok(0) => Some(Said::End),
                Ok(_) => None,
                Err(_) => Some(Said::Reset),
            };
        };
        let mut raw = Vec::with_capacity(64 << 10);
        match self.socket.read_buf(&mut raw).await {
            Ok(0) => Some(Said::End),
            Ok(_) => {
                for block in chunks.feed(&raw) {
                    assert!(block.ends_with(b"\n\n"), "a chunk holds whole blocks");
                    self.buffer.extend(block);
                }
                None
            }
            Err(_) => Some(Said::Reset),
        }
    }

    fn parse(&mut self) -> Option<Said> {
        match self.protocol {
            Protocol::Sse => self.parse_block(),
            Protocol::WebSocket => self.parse_frame(),
        }
    }

    /// One block of an event stream, up to its blank line.
    fn parse_block(&mut self) -> Option<Said> {
        let rest = &self.buffer[self.at..];
        let end = find(rest, b"\n\n")?;
        let block = std::str::from_utf8(&rest[..end]).expect("an event stream is UTF-8");
        let mut event = Event::default();
        let mut data: Vec<&str> = Vec::new();
        for line in block.split('\n') {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" => {} // a comment
                "id" => event.id = Some(value.to_string()),
                "event" => event.name = Some(value.to_string()),
                "retry" => event.retry = Some(value.parse().expect("retry is a number")),
                "data" => data.push(value),
                other => panic!("unknown field {other:?} in {block:?}"),
            }
        }
        self.at += end + 2;
        if data.is_empty() {
            let id = event.id.take();
            let retry = event.retry.take();
            let usual = |ms| ms == 2_000 || (1_000..5_000).contains(&ms) && id.is_none();
            assert!(retry.is_none_or(usual), "a stream opens with the usual time, a drain spreads it");
            assert_eq!(event, Event::default(), "a block without data is a comment or an id: {block:?}");
            assert!(id.is_none() || self.opening_id.is_none(), "one id at most opens a stream: {block:?}");
            self.opening_id = self.opening_id.take().or(id);
            return Some(Said::Alive(Vec::new()));
        }
        event.data = data.join("\n").into_bytes();
        Some(if event.name.as_deref() == Some("fanwave-gap") {
            assert_eq!(event.id, None, "a gap notice leaves the client's last id alone");
            Said::Gap(gap_of(event.text()).expect("a gap notice is JSON"))
        } else {
            Said::Event(event)
        })
    }

    fn parse_frame(&mut self) -> Option<Said> {
        let rest = &self.buffer[self.at..];
        let [first, second, ..] = *rest else { return None };
        assert!(!self.closed, "nothing follows a close frame");
        assert!(first & 0xf0 == 0x80 && second & 0x80 == 0, "a server's frame is whole and unmasked");
        let (header, length) = match second {
            126 => (4, u64::from(u16::from_be_bytes(rest.get(2..4)?.try_into().expect("2 bytes")))),
            127 => (10, u64::from_be_bytes(rest.get(2..10)?.try_into().expect("8 bytes"))),
            short => (2, u64::from(short)),
        };
        let shortest = match length {
            0..=125 => 2,
            126..=0xffff => 4,
            _ => 10,
        };
        assert_eq!(header, shortest, "a length of {length} is in its shortest form");
        let payload = rest.get(header..header + length as usize)?.to_vec();
        self.at += header + payload.len();
        Some(match first & 0x0f {
            0x1 => {
                let text = std::str::from_utf8(&payload).expect("a text message is UTF-8");
                match gap_of(text) {
                    Some(gap) => Said::Gap(gap),
                    None => Said::Event(Event { data: payload, ..Event::default() }),
                }
            }
            0x2 => Said::Event(Event { data: payload, binary: true, ..Event::default() }),
            0x8 => {
                self.closed = true;
                let (code, reason) = payload.split_first_chunk().expect("our close frames have a code");
                let reason = String::from_utf8(reason.to_vec()).expect("a reason is UTF-8");
                Said::Close(u16::from_be_bytes(*code), reason)
            }
            0x9 => Said::Alive(payload),
            0xa => Said::Pong(payload),
            opcode => panic!("unexpected opcode {opcode}"),
        })
    }
}

/// What is under `gap`, if the text is a gap notice.
fn gap_of(text: &str) -> Option<Value> {
    if !text.starts_with("{\"gap\":") {
        return None;
    }
    serde_json::from_str::<Value>(text).ok().map(|mut notice| notice["gap"].take())
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    memchr::memmem::find(haystack, needle)
}
