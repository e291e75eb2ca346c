//! Publishing over the server's control plane, with stamped payloads.
//!
//! Two ways: one endless `POST /publish` with a chunked NDJSON body, each call one chunk and one write; or one
//! `POST /topics/{topic}` per event on a kept connection. Both are plain HTTP/1.1 on a socket of our own, so that a
//! publish costs one write and no more. Sequences start at 1 and have no gaps.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::http;
use crate::stamp::{STAMP_BYTES, Stamp, now_ns};

/// How long the server may leave a publish unread, or unanswered.
const STUCK_LIMIT: Duration = Duration::from_secs(20);

/// The largest payload, beyond what servers take.
const PAYLOAD_BYTES_MAX: usize = 16 << 20;

/// How events are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// One endless request, one NDJSON line per event.
    Stream,
    /// One request per event on a kept connection.
    Post,
}

/// A connected publisher of one topic.
#[derive(Debug)]
pub struct Publisher {
    way: Way,
    socket: TcpStream,
    /// Everything of one event before and after the stamp: a line of the stream, or a whole request.
    before: Vec<u8>,
    after: Vec<u8>,
    /// The sequence of the next event.
    next: u64,
    out: Vec<u8>,
    /// What the server has said on the stream so far.
    said: Vec<u8>,
}

impl Publisher {
    /// Connects to the control plane and publishes `payload_bytes` per event to `topic` from here on. The topic is
    /// used as it is: it needs neither JSON nor percent escapes.
    pub fn connect(control: SocketAddr, way: Way, topic: &str, payload_bytes: usize) -> Result<Publisher> {
        if payload_bytes < STAMP_BYTES {
            bail!("a payload holds a stamp of {STAMP_BYTES} bytes; --size {payload_bytes} is too small");
        }
        if payload_bytes > PAYLOAD_BYTES_MAX {
            bail!(
                "--size {payload_bytes} is too large; at most {PAYLOAD_BYTES_MAX} bytes are published at once"
            );
        }
        let mut socket = http::connect(control)?;
        socket.set_write_timeout(Some(STUCK_LIMIT))?;
        socket.set_read_timeout(Some(STUCK_LIMIT))?;
        let filler = "x".repeat(payload_bytes - STAMP_BYTES);
        let (before, after) = match way {
            Way::Stream => {
                let head = format!(
                    "POST /publish HTTP/1.1\r\nHost: {control}\r\nContent-Type: application/x-ndjson\r\n\
                     Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
                );
                socket.write_all(head.as_bytes()).context("starting the publish stream")?;
                (format!("{{\"topic\":\"{topic}\",\"data\":\""), format!("{filler}\"}}\n"))
            }
            Way::Post => (
                format!(
                    "POST /topics/{topic} HTTP/1.1\r\nHost: {control}\r\nContent-Type: text/plain\r\n\
                     Content-Length: {payload_bytes}\r\n\r\n"
                ),
                filler,
            ),
        };
        Ok(Publisher {
            way,
            socket,
            before: before.into_bytes(),
            after: after.into_bytes(),
            next: 1,
            out: Vec::new(),
            said: Vec::new(),
        })
    }

    /// The sequence that the next event gets.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Publishes `events` events, stamped with the present time.
    pub fn publish(&mut self, events: u64) -> Result<()> {
        self.publish_stamped(events, now_ns())
    }

    /// Publishes `events` events with the time `time_ns` in their stamps.
    pub fn publish_stamped(&mut self, events: u64, time_ns: u64) -> Result<()> {
        match self.way {
            Way::Stream => self.write_chunk(events, time_ns),
            Way::Post => (0..events).try_for_each(|_| self.post(time_ns)),
        }
    }

    fn put_event(&mut self, time_ns: u64) {
        let mut stamp = [0; STAMP_BYTES];
        Stamp { sequence: self.next, time_ns }.write(&mut stamp);
        self.next += 1;
        self.out.extend_from_slice(&self.before);
        self.out.extend_from_slice(&stamp);
        self.out.extend_from_slice(&self.after);
    }

    fn write_chunk(&mut self, events: u64, time_ns: u64) -> Result<()> {
        let bytes = (self.before.len() + STAMP_BYTES + self.after.len()) * events as usize;
        self.out.clear();
        self.out.extend_from_slice(format!("{bytes:x}\r\n").as_bytes());
        for _ in 0..events {
            self.put_event(time_ns);
        }
        self.out.extend_from_slice(b"\r\n");
        match self.socket.write_all(&self.out) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.complaint(error).context("publishing")),
        }
    }

    fn post(&mut self, time_ns: u64) -> Result<()> {
        self.out.clear();
        self.put_event(time_ns);
        self.socket.write_all(&self.out).context("publishing")?;
        let answer = http::read_answer(&mut self.socket)?;
        if answer.status / 100 != 2 {
            bail!("the server refused a publish: {} {}", answer.status, answer.first_line());
        }
        Ok(())
    }

    /// What the server said, if it said anything, in place of the bare I/O error.
    fn complaint(&mut self, error: std::io::Error) -> anyhow::Error {
        // Nothing more than the I/O error is known if this fails too.
        let _ = self.listen();
        let said = String::from_utf8_lossy(&self.said).trim().to_owned();
        match said.is_empty() {
            true => anyhow::Error::new(error),
            false => anyhow::Error::new(error).context(format!("the server said {said:?}")),
        }
    }

    /// Reads what the server has said so far, without waiting.
    fn listen(&mut self) -> Result<()> {
        self.socket.set_nonblocking(true)?;
        let mut chunk = [0; 4_096];
        let outcome = loop {
            match self.socket.read(&mut chunk) {
                Ok(0) => break Ok(()),
                Ok(read) => self.said.extend_from_slice(&chunk[..read]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break Err(error),
            }
        };
        self.socket.set_nonblocking(false)?;
        Ok(outcome?)
    }

    /// Ends the publishing; checks that the server's summary says that it took every event.
    pub fn finish(mut self) -> Result<()> {
        if self.way == Way::Post {
            return Ok(());
        }
        self.socket.write_all(b"0\r\n\r\n").context("ending the publish stream")?;
        let mut rest = Vec::new();
        self.socket.read_to_end(&mut rest).context("reading the summary of the publish stream")?;
        self.said.extend(rest);
        let answer = http::parse_answer(&self.said).context("the answer to the publish stream")?;
        check_summary(answer.status, &answer.text(), self.next - 1)
    }
}

/// The summary is the last line; every line before it is a refused event.
fn check_summary(status: u16, body: &str, events: u64) -> Result<()> {
    let first = body.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    if status / 100 != 2 {
        bail!("the server refused the publish stream: {status} {first}");
    }
    let last = body.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    let summary: serde_json::Value = serde_json::from_str(last)
        .with_context(|| format!("the summary of the publish stream is no JSON: {last:?}"))?;
    match summary.get("accepted").and_then(serde_json::Value::as_u64) {
        Some(taken) if taken == events => Ok(()),
        Some(taken) => bail!("{events} events were published, the server took {taken}: {first}"),
        None => bail!("the summary of the publish stream does not say how many events were taken: {last}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_that_counts_every_event_is_accepted() {
        check_summary(200, "{\"accepted\":7,\"refused\":0}\n", 7).expect("complete");
    }

    #[test]
    fn a_refused_event_and_a_refused_stream_are_told() {
        let error = check_summary(200, "{\"line\":3,\"error\":\"no topic\"}\n{\"accepted\":6}\n", 7)
            .expect_err("6 of 7");
        assert!(error.to_string().contains("no topic"), "{error}");
        assert!(check_summary(503, "full\n", 7).expect_err("503").to_string().contains("full"));
        assert!(check_summary(200, "", 7).is_err());
        assert!(check_summary(200, "{}", 7).is_err());
    }

    #[test]
    fn a_payload_without_room_for_its_stamp_or_beyond_reason_is_refused_before_connecting() {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        for size in [35, PAYLOAD_BYTES_MAX + 1] {
            let error = Publisher::connect(nowhere, Way::Post, "t", size).expect_err("impossible");
            assert!(error.to_string().contains(&format!("--size {size}")), "{error}");
        }
    }
}
