//! One endless `POST /publish` with a chunked NDJSON body: a batch is one chunk and one write.
//!
//! The server answers while it reads: a line for each event that it refuses, a summary at the end. It holds the
//! publisher up when it is busy and refuses nothing for that reason, so any refusal is an error.

use anyhow::{Context, Result, bail};

use super::pipe::Pipe;
use super::{Batch, PublishPlan, Refusals, Sink, Template};
use crate::http;
use crate::target::topic_name;

/// Bytes of the answer that are kept; refusals end the publishing long before.
const SAID_BYTES_MAX: usize = 1 << 20;

/// The open request.
#[derive(Debug)]
pub struct Stream {
    pipe: Pipe,
    template: Template,
    out: Vec<u8>,
    /// What the server has said so far.
    said: Vec<u8>,
}

impl Stream {
    /// Starts the request. Topic names need no JSON escapes.
    pub fn connect(plan: &PublishPlan) -> Result<Stream> {
        let before = |topic| format!("{{\"topic\":\"{}\",\"data\":\"", topic_name(topic)).into_bytes();
        let template = Template::new(plan, before, [&plan.filler()[..], b"\"}\n"].concat());
        let pipe = Pipe::connect(plan.address)?;
        let mut stream = Stream { pipe, template, out: Vec::new(), said: Vec::new() };
        let head = format!(
            "POST /publish HTTP/1.1\r\nHost: {}\r\nContent-Type: application/x-ndjson\r\n\
             Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
            plan.address
        );
        stream.write(head.as_bytes()).context("starting the publish stream")?;
        Ok(stream)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Stream { pipe, said, .. } = self;
        pipe.send(bytes, |heard| note(said, heard)).map_err(|error| with_words(said, error))
    }
}

/// Keeps what the server said; an error if it is a refusal.
fn note(said: &mut Vec<u8>, heard: &[u8]) -> Result<()> {
    if said.len() + heard.len() > SAID_BYTES_MAX {
        bail!("the server answered the publish stream with more than {SAID_BYTES_MAX} bytes");
    }
    said.extend_from_slice(heard);
    let text = String::from_utf8_lossy(said);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return Ok(()) };
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1).is_none_or(|code| !code.starts_with('2')) {
        let line = body.lines().find(|line| line.len() > 8).unwrap_or_default();
        bail!("the server refused the publish stream: {status} {line}");
    }
    match body.lines().find(|line| line.starts_with("{\"line\"")) {
        Some(line) => bail!("the server refused an event: {line}"),
        None => Ok(()),
    }
}

/// Adds what the server has said to an error that does not tell it.
fn with_words(said: &[u8], error: anyhow::Error) -> anyhow::Error {
    match String::from_utf8_lossy(said).trim() {
        "" => error,
        text => error.context(format!("the server said {text:?}")),
    }
}

impl Sink for Stream {
    fn send(&mut self, batch: Batch<'_>) -> Result<Refusals> {
        self.tend()?;
        let mut out = std::mem::take(&mut self.out);
        out.clear();
        let bytes: usize = batch.events().map(|(topic, _)| self.template.bytes(topic)).sum();
        out.extend_from_slice(format!("{bytes:x}\r\n").as_bytes());
        batch.events().for_each(|event| self.template.put(event, &mut out));
        out.extend_from_slice(b"\r\n");
        let written = self.write(&out);
        self.out = out;
        written.context("publishing")?;
        Ok(Refusals::default())
    }

    fn tend(&mut self) -> Result<()> {
        let Stream { pipe, said, .. } = self;
        pipe.hear(|heard| note(said, heard)).map_err(|error| with_words(said, error))
    }

    fn finish(mut self: Box<Self>, events: u64, refused: u64) -> Result<()> {
        self.write(b"0\r\n\r\n").context("ending the publish stream")?;
        let Stream { mut pipe, mut said, .. } = *self;
        pipe.hear_until(|heard| note(&mut said, heard).map(|()| false))
            .context("reading the summary of the publish stream")?;
        let answer = http::parse_answer(&said).context("the answer to the publish stream")?;
        check_summary(answer.status, &answer.text(), events - refused)
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
        check_summary(200, "{\"accepted\":7,\"last_id\":\"x-7\"}\n", 7).expect("all taken");
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
    fn a_refusal_is_noticed_while_the_stream_goes_on() {
        let mut said = Vec::new();
        note(&mut said, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n").expect("a head so far");
        note(&mut said, b"\r\n").expect("nothing refused");
        let error = note(&mut said, b"1e\r\n{\"line\":2,\"error\":\"too long\"}\n").expect_err("refused");
        assert!(error.to_string().contains("too long"), "{error}");
        let error =
            note(&mut Vec::new(), b"HTTP/1.1 503 Busy\r\n\r\n{\"error\":\"draining\"}").expect_err("refused");
        assert!(error.to_string().contains("503 Busy {\"error\":\"draining\"}"), "{error}");
    }
}
