//! One endless `POST /publish` with a chunked NDJSON body: a batch is one chunk and one write.
//!
//! The server answers while it reads: a line for each event that it refuses, a summary at the end.
//! It holds the publisher up when it is busy and refuses nothing for that reason, so any refusal is
//! an error.

use anyhow::{Context, Result, bail};

use super::pipe::Pipe;
use super::{Batch, PublishPlan, Refusals, Sink, Template};
use crate::fault::server_fault;
use crate::http;
use crate::target::topic_name;
use crate::token::head_line;

/// Bytes of the answer that are kept; refusals end the publishing long before.
const SAID_BYTES_MAX: usize = 1 << 20;

/// How an answer begins.
const HTTP: &[u8] = b"HTTP/1.";

/// The open request.
#[derive(Debug)]
pub struct Stream {
    pipe: Pipe,
    /// For each topic and key; an event's is that of its number, since all go round.
    template: Template,
    out: Vec<u8>,
    /// What the server has said so far.
    said: Vec<u8>,
}

impl Stream {
    /// Starts the request. Topic names need no JSON escapes.
    pub fn connect(plan: &PublishPlan) -> Result<Stream> {
        let name = |at| format!("{{\"topic\":\"{}\"", topic_name(at % plan.topics));
        let key = |at| format!(",\"key\":\"{}\"", at / plan.topics);
        let before = |at| {
            let key = if plan.keys > 1 { key(at) } else { String::new() };
            format!("{}{key},\"data\":\"", name(at)).into_bytes()
        };
        // One for each value: a topic's and, where there are several, a key's.
        let values = PublishPlan { topics: plan.topics * plan.keys, ..plan.clone() };
        let template = Template::new(&values, before, [&plan.filler()[..], b"\"}\n"].concat());
        let pipe = Pipe::connect(plan.address)?;
        let mut stream = Stream { pipe, template, out: Vec::new(), said: Vec::new() };
        let head = format!(
            "POST /publish HTTP/1.1\r\nHost: {}\r\nContent-Type: application/x-ndjson\r\n\
             Transfer-Encoding: chunked\r\nConnection: close\r\n{}\r\n",
            plan.address,
            head_line(plan.token.as_deref())
        );
        stream.write(head.as_bytes()).context("starting the publish stream")?;
        Ok(stream)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Stream { pipe, said, .. } = self;
        pipe.send(bytes, |heard| note(said, heard))
    }
}

/// Keeps what the server said; an error if it is a refusal.
fn note(said: &mut Vec<u8>, heard: &[u8]) -> Result<()> {
    if said.len() + heard.len() > SAID_BYTES_MAX {
        bail!("the server answered the publish stream with more than {SAID_BYTES_MAX} bytes");
    }
    said.extend_from_slice(heard);
    let text = String::from_utf8_lossy(said);
    if !said.starts_with(&HTTP[..said.len().min(HTTP.len())]) {
        bail!("the server does not speak HTTP: {:?}", text.lines().next().unwrap_or_default());
    }
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return Ok(()) };
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1).is_none_or(|code| !code.starts_with('2')) {
        let line = body.lines().find(|line| line.len() > 8).unwrap_or_default();
        return Err(server_fault(format!("the server refused the publish stream: {status} {line}")));
    }
    match body.lines().find(|line| line.starts_with("{\"line\"")) {
        Some(line) => Err(server_fault(format!("the server refused an event: {line}"))),
        None => Ok(()),
    }
}

impl Sink for Stream {
    fn send(&mut self, batch: Batch<'_>) -> Result<Refusals> {
        self.tend()?;
        let Stream { pipe, template, out, said } = self;
        let values = template.before.len() as u64;
        let events = || batch.events().map(|(_, stamp)| (((stamp.sequence - 1) % values) as usize, stamp));
        let bytes: usize = events().map(|(value, _)| template.bytes(value)).sum();
        out.clear();
        out.extend_from_slice(format!("{bytes:x}\r\n").as_bytes());
        events().for_each(|event| template.put(event, out));
        out.extend_from_slice(b"\r\n");
        pipe.send(out, |heard| note(said, heard)).context("publishing")?;
        Ok(Refusals::default())
    }

    fn tend(&mut self) -> Result<()> {
        let Stream { pipe, said, .. } = self;
        pipe.hear(|heard| note(said, heard))
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
        return Err(server_fault(format!("the server refused the publish stream: {status} {first}")));
    }
    let last = body.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
    let summary: serde_json::Value = serde_json::from_str(last)
        .with_context(|| format!("the summary of the publish stream is no JSON: {last:?}"))?;
    match summary.get("accepted").and_then(serde_json::Value::as_u64) {
        Some(taken) if taken == events => Ok(()),
        Some(taken) => {
            Err(server_fault(format!("{events} events were published, the server took {taken}: {first}")))
        }
        None => bail!("the summary of the publish stream does not say how many events were taken: {last}"),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc::channel;
    use std::thread::spawn;

    use super::super::Publisher;
    use super::*;
    use crate::stamp::Stamp;
    use crate::way::Way;

    fn plan(listener: &TcpListener) -> PublishPlan {
        let address = listener.local_addr().expect("bound");
        PublishPlan { way: Way::Stream, path: String::new(), topics: 2, ..PublishPlan::stream(address, 40) }
    }

    fn accept(listener: &TcpListener) -> BufReader<TcpStream> {
        let mut from = BufReader::new(listener.accept().expect("it comes").0);
        assert_eq!(line(&mut from), "POST /publish HTTP/1.1");
        while !line(&mut from).is_empty() {}
        from
    }

    fn line(from: &mut impl BufRead) -> String {
        let mut line = String::new();
        from.read_line(&mut line).expect("text");
        line.trim_end().to_owned()
    }

    #[test]
    fn a_batch_is_one_chunk_of_lines_and_the_summary_is_asked_for_in_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let plan = plan(&listener);
        let server = spawn(move || {
            let mut from = accept(&listener);
            let mut chunks = Vec::new();
            loop {
                let bytes = usize::from_str_radix(&line(&mut from), 16).expect("a chunk's size");
                let mut chunk = vec![0; bytes];
                from.read_exact(&mut chunk).expect("a chunk");
                line(&mut from);
                if bytes == 0 {
                    break;
                }
                chunks.push(String::from_utf8(chunk).expect("text"));
            }
            let answer = "HTTP/1.1 200 OK\r\n\r\n{\"accepted\":4}\n";
            from.get_mut().write_all(answer.as_bytes()).expect("it reads");
            chunks
        });
        let mut publisher = Publisher::connect(&plan).expect("it listens");
        publisher.publish(3).expect("it reads");
        publisher.publish(1).expect("it reads");
        publisher.finish().expect("all accepted");
        let chunks = server.join().expect("no panic");
        assert_eq!(chunks.len(), 2);
        let events = chunks.concat();
        let events = events.lines().map(|line| {
            let event: serde_json::Value = serde_json::from_str(line).expect("JSON");
            let data = event["data"].as_str().expect("text");
            assert_eq!(data.len(), 40);
            let stamp = Stamp::read(data.as_bytes()).expect("stamped");
            (event["topic"].as_str().expect("text").to_owned(), stamp.sequence)
        });
        let expected = [("loadtest-0", 1), ("loadtest-1", 2), ("loadtest-0", 3), ("loadtest-1", 4)];
        assert_eq!(events.collect::<Vec<_>>(), expected.map(|(topic, at)| (topic.to_owned(), at)));
    }

    #[test]
    fn a_refusal_ends_the_publishing_with_the_servers_words() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let plan = plan(&listener);
        let (leave, left) = channel::<()>();
        let server = spawn(move || {
            let mut from = accept(&listener);
            let answer = "HTTP/1.1 503 Service Unavailable\r\n\r\n{\"error\":\"draining\"}\n";
            from.get_mut().write_all(answer.as_bytes()).expect("it reads");
            // Open until the publisher has understood: its error is not a broken connection.
            assert!(left.recv().is_err());
        });
        let mut publisher = Publisher::connect(&plan).expect("it listens");
        let error = loop {
            // The answer takes a moment to come.
            if let Err(error) = publisher.publish(1) {
                break format!("{error:#}");
            }
        };
        drop(leave);
        assert!(error.contains("503 Service Unavailable {\"error\":\"draining\"}"), "{error}");
        server.join().expect("no panic");
    }

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
        note(&mut Vec::new(), b"HTT").expect("a head so far");
        let error = note(&mut Vec::new(), b"SSH-2.0\r\n").expect_err("foreign");
        assert!(error.to_string().contains("SSH-2.0"), "{error}");
    }
}
