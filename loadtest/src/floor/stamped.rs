//! Bursts of stamped frames, as a server would send them: what the floor's sender sends where
//! receivers audit.

use serde::{Deserialize, Serialize};

use crate::framing::Protocol;
use crate::stamp::{STAMP_BYTES, Stamp, now_ns};

/// The answer to the request for an event stream.
pub const SSE_HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n";
/// Digits of an event's id in an event stream: about as many as an epoch and a sequence have, and
/// always as many, so that all frames have one length.
const ID_DIGITS: usize = 21;

/// What a burst consists of.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Shape {
    /// How events are framed: [`Protocol::Sse`] or [`Protocol::Ws`].
    pub protocol: Protocol,
    /// Bytes of an event's data, at least a stamp and at most what a frame with a 16-bit length
    /// holds.
    pub payload_bytes: u16,
    /// Events of one burst.
    pub frames: u64,
}

/// The sender's numbering.
#[derive(Debug)]
pub struct Stamped {
    shape: Shape,
    /// Sequence of the next event, from 1.
    next: u64,
}

impl Shape {
    /// Bytes of one event on the wire.
    pub fn frame_bytes(&self) -> usize {
        let mut frame = Vec::new();
        self.put(Stamp { sequence: 0, time_ns: 0 }, &mut frame);
        frame.len()
    }

    fn put(&self, stamp: Stamp, out: &mut Vec<u8>) {
        let payload_bytes = usize::from(self.payload_bytes).max(STAMP_BYTES);
        match self.protocol {
            Protocol::Sse => {
                out.extend_from_slice(format!("id: {:0ID_DIGITS$}\ndata: ", stamp.sequence).as_bytes());
            }
            Protocol::Ws | Protocol::Json | Protocol::Raw => match payload_bytes {
                0..126 => out.extend_from_slice(&[0x81, payload_bytes as u8]),
                _ => {
                    out.extend_from_slice(&[0x81, 126]);
                    out.extend_from_slice(&(payload_bytes as u16).to_be_bytes());
                }
            },
        }
        let start = out.len();
        out.resize(start + payload_bytes, b'x');
        stamp.write(&mut out[start..]);
        if self.protocol == Protocol::Sse {
            out.extend_from_slice(b"\n\n");
        }
    }
}

impl Stamped {
    /// Begins with sequence 1.
    pub fn new(shape: Shape) -> Stamped {
        Stamped { shape, next: 1 }
    }

    /// Writes the next burst in place of the last one.
    pub fn load(&mut self, burst: &mut Vec<u8>) {
        burst.clear();
        let time_ns = now_ns();
        for _ in 0..self.shape.frames {
            self.shape.put(Stamp { sequence: self.next, time_ns }, burst);
            self.next += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framing::{Dialect, Splitter};

    #[test]
    fn a_burst_is_what_receivers_read() {
        for protocol in [Protocol::Sse, Protocol::Ws] {
            for payload_bytes in [36, 125, 126, 200, 5_000] {
                let shape = Shape { protocol, payload_bytes, frames: 3 };
                let (mut stamped, mut burst) = (Stamped::new(shape), Vec::new());
                let mut splitter = Splitter::new(protocol, Dialect::Plain, 0);
                let mut seen = Vec::new();
                for _ in 0..2 {
                    stamped.load(&mut burst);
                    assert_eq!(burst.len(), 3 * shape.frame_bytes());
                    splitter
                        .feed(&burst, |event| seen.push(event.stamp.map(|stamp| stamp.sequence)))
                        .expect("our own frames");
                }
                assert_eq!(seen, (1..=6).map(Some).collect::<Vec<_>>());
            }
        }
    }
}
