//! The NATS client protocol (docs.nats.io, "NATS client protocol"): as it flows over plain TCP and,
//! in binary messages, over WebSocket.
//!
//! [`Parser`] is fed the protocol's own bytes, cut anywhere; [`NatsSplitter`] takes them out of
//! WebSocket frames first. The borders of frames and those of messages have nothing to do with each
//! other. A `MSG` is an event, its payload begins with the stamp. Headers (`HMSG`) are not asked
//! for and so an error, as is anything else that the protocol does not know.

use super::websocket::{BINARY, Frames, client_frame};
use super::{EventEnd, Fed};
use crate::stamp::{STAMP_BYTES, Stamp};

/// Bytes of a control line: `INFO` of a large cluster is the longest.
const LINE_BYTES_MAX: usize = 64 << 10;
/// What stands behind a message's payload.
const LINE_END: &[u8] = b"\r\n";
/// The answer to `PING`, and the line that asks for it.
pub const PONG: &[u8] = b"PONG\r\n";
/// See [`PONG`].
pub const PING: &[u8] = b"PING\r\n";

/// How a client introduces itself: no acknowledgement of each command, no headers.
pub fn connect_line() -> String {
    format!(
        "CONNECT {{\"verbose\":false,\"pedantic\":false,\"tls_required\":false,\"headers\":false,\"protocol\":0,\
         \"lang\":\"rust\",\"version\":\"{}\",\"name\":\"loadtest\"}}\r\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// What a subscriber sends after the WebSocket handshake: one masked message. The server's `PONG`
/// says that the subscription holds.
pub fn opening(subject: &str) -> Vec<u8> {
    let text = format!("{}SUB {subject} 1\r\nPING\r\n", connect_line());
    client_frame(BINARY, text.as_bytes())
}

/// The subject that stands for the path of a WebSocket subscription, `/loadtest-0` for example: the
/// path without its slash.
pub fn subject_of(path: &str) -> &str {
    path.trim_start_matches('/')
}

/// Understands what a server says.
#[derive(Debug, Default)]
pub struct Parser {
    /// The current line, if it began in an earlier feed.
    line: Vec<u8>,
    /// Bytes of the current message still to come, its line end included; 0 between messages.
    message_left: usize,
    /// The start of the current message's payload.
    prefix: Vec<u8>,
    /// `PING`s since [`Parser::answered`].
    pings: u32,
}

impl Parser {
    /// Takes the bytes that came next. `on_message` gets the place behind each message's last byte
    /// and its stamp. Gives the `PONG`s among them; an error is what the server said with `-ERR`,
    /// or that it does not speak NATS.
    pub fn feed(
        &mut self,
        bytes: &[u8],
        mut on_message: impl FnMut(usize, Option<Stamp>),
    ) -> Result<u32, String> {
        let mut at = 0;
        let mut pongs = 0;
        while at < bytes.len() {
            if self.message_left > 0 {
                at += self.message(&bytes[at..]);
                if self.message_left == 0 {
                    on_message(at, Stamp::read(&self.prefix));
                }
                continue;
            }
            let rest = &bytes[at..];
            let Some(length) = memchr::memchr(b'\n', rest) else {
                self.keep(rest)?;
                break;
            };
            at += length + 1;
            if self.line.is_empty() {
                pongs += self.line_ends(&rest[..length])?;
            } else {
                self.keep(&rest[..length])?;
                let mut line = std::mem::take(&mut self.line);
                pongs += self.line_ends(&line)?;
                line.clear();
                self.line = line;
            }
        }
        Ok(pongs)
    }

    /// `PING`s that have not been answered.
    pub fn pings(&self) -> u32 {
        self.pings
    }

    /// The `PONG`s for all `PING`s so far have been given away.
    pub fn answered(&mut self) {
        self.pings = 0;
    }

    fn keep(&mut self, part: &[u8]) -> Result<(), String> {
        self.line.extend_from_slice(part);
        if self.line.len() > LINE_BYTES_MAX {
            return Err(format!("the server sent a NATS line of more than {LINE_BYTES_MAX} bytes"));
        }
        Ok(())
    }

    /// Takes what is here of a message; gives its bytes.
    fn message(&mut self, bytes: &[u8]) -> usize {
        let here = self.message_left.min(bytes.len());
        let payload = here.min(self.message_left.saturating_sub(LINE_END.len()));
        self.prefix.extend_from_slice(&bytes[..payload.min(STAMP_BYTES - self.prefix.len())]);
        self.message_left -= here;
        here
    }

    /// Obeys one line, its LF taken off; gives the `PONG`s in it.
    fn line_ends(&mut self, line: &[u8]) -> Result<u32, String> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let mut words = line.split(|&byte| byte == b' ' || byte == b'\t').filter(|word| !word.is_empty());
        match words.next() {
            Some(b"MSG") => {
                // Subject, subscription, perhaps a reply subject, and the payload's bytes.
                let count = words.clone().count();
                let bytes: usize = words
                    .next_back()
                    .filter(|_| count == 3 || count == 4)
                    .and_then(|word| std::str::from_utf8(word).ok()?.parse().ok())
                    .ok_or_else(|| format!("the server sent a broken NATS line {}", shown(line)))?;
                self.message_left = bytes.saturating_add(LINE_END.len());
                self.prefix.clear();
                Ok(0)
            }
            Some(b"PING") => {
                self.pings += 1;
                Ok(0)
            }
            Some(b"PONG") => Ok(1),
            Some(b"INFO" | b"+OK") => Ok(0),
            Some(b"-ERR") => Err(format!("the server said {}", shown(line))),
            _ => Err(format!("the server does not speak NATS: {}", shown(line))),
        }
    }
}

/// A line for an error: its start, printable.
fn shown(line: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(&line[..line.len().min(200)]))
}

/// Splits the NATS protocol within WebSocket messages into events.
#[derive(Debug, Default)]
pub struct NatsSplitter {
    frames: Frames,
    parser: Parser,
}

impl NatsSplitter {
    pub(super) fn feed(&mut self, bytes: &[u8], mut on_event: impl FnMut(EventEnd)) -> Result<Fed, String> {
        let mut at = 0;
        let mut pongs = 0;
        while let Some(piece) = self.frames.next(bytes, &mut at)? {
            let start = piece.payload.start;
            pongs += self.parser.feed(&bytes[piece.payload], |end, stamp| {
                on_event(EventEnd { at: start + end, stamp, gap: false })
            })?;
        }
        Ok(Fed { pings: self.frames.unanswered() + self.parser.pings(), pongs })
    }

    pub(super) fn answers(&mut self) -> Vec<u8> {
        let mut out = self.frames.answer();
        if self.parser.pings() > 0 {
            out.extend(client_frame(BINARY, &PONG.repeat(self.parser.pings() as usize)));
            self.parser.answered();
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{payload, split};
    use super::super::websocket::tests::server_frame;
    use super::super::{Protocol, Splitter};
    use super::*;
    use crate::framing::Dialect;

    fn splitter() -> Splitter {
        Splitter::new(Protocol::Ws, Dialect::Nats, 0)
    }

    /// What a server says to a subscriber: events 1 to 4 of several lengths, one with a reply
    /// subject, one foreign.
    fn said() -> Vec<u8> {
        let mut said = b"INFO {\"server_id\":\"x\"}\r\n+OK\r\nPONG\r\n".to_vec();
        for (sequence, bytes) in [(1, 36), (2, 200), (3, 5_000)] {
            said.extend(format!("MSG loadtest-0 1 {bytes}\r\n").into_bytes());
            said.extend(payload(sequence, bytes));
            said.extend(b"\r\n");
            said.extend(if sequence == 2 { PING } else { b"" });
        }
        said.extend(b"MSG loadtest-0 1 inbox.7 40\r\n");
        said.extend(payload(4, 40));
        said.extend(b"\r\nMSG loadtest-0 1 0\r\n\r\nMSG loadtest-0 1 7\r\nMSG 1\r\n\r\nPING\r\n");
        said
    }

    #[test]
    fn nats_messages_end_where_they_end_whatever_the_frames_and_the_reads_are() {
        let said = said();
        for frame in [1, 2, 5, 36, 300, said.len()] {
            let stream: Vec<u8> =
                said.chunks(frame).flat_map(|payload| server_frame(0x82, payload)).collect();
            for piece in [1, 3, 64, 1_000, stream.len()] {
                let mut splitter = splitter();
                let events = split(&mut splitter, &stream, piece).expect("no fault");
                let sequences: Vec<_> = events.iter().map(|event| event.1).collect();
                assert_eq!(
                    sequences,
                    [Some(1), Some(2), Some(3), Some(4), None, None],
                    "frames of {frame}, pieces of {piece}"
                );
                assert!(events.is_sorted(), "{events:?}");
                assert_eq!(splitter.answers(), b"\x82\x8c\0\0\0\0PONG\r\nPONG\r\n");
            }
        }
    }

    #[test]
    fn the_end_of_a_nats_message_is_the_place_behind_its_line_end() {
        let said = b"MSG a 1 2\r\nhi\r\nMSG a 1 2\r\nho\r\n";
        let stream = server_frame(0x82, said);
        let events = split(&mut splitter(), &stream, stream.len()).expect("no fault");
        assert_eq!(events, [(2 + said.len() / 2, None), (stream.len(), None)]);
    }

    #[test]
    fn pongs_are_told_so_that_the_opening_knows_its_end() {
        let mut splitter = splitter();
        assert_eq!(
            splitter.feed(&server_frame(0x82, b"INFO {}\r\nPO"), |_| ()),
            Ok(Fed { pings: 0, pongs: 0 })
        );
        assert_eq!(
            splitter.feed(&server_frame(0x82, b"NG\r\nPING\r\n"), |_| ()),
            Ok(Fed { pings: 1, pongs: 1 })
        );
    }

    #[test]
    fn what_a_nats_server_complains_of_is_told_in_its_words() {
        let error = |said: &[u8]| {
            let stream = server_frame(0x82, said);
            split(&mut splitter(), &stream, stream.len()).expect_err("a complaint")
        };
        assert!(error(b"-ERR 'Authorization Violation'\r\n").contains("'Authorization Violation'"));
        assert!(error(b"HTTP/1.1 400 Bad Request\r\n").contains("does not speak NATS"));
        for line in ["MSG a 1\r\n", "MSG a 1 x\r\n", "MSG a 1 r 2 3\r\n", "MSG\r\n"] {
            assert!(error(line.as_bytes()).contains("broken"), "{line}");
        }
        assert!(error(&vec![b'x'; LINE_BYTES_MAX + 1]).contains("more than"));
    }

    #[test]
    fn the_opening_is_one_masked_message_that_asks_for_a_pong() {
        let opening = opening("loadtest-3");
        assert_eq!(opening[0], 0x82);
        assert!(opening[1] & 0x80 != 0);
        assert!(opening.ends_with(b"}\r\nSUB loadtest-3 1\r\nPING\r\n"));
    }
}
