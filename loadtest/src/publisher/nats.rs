//! `PUB` of the NATS client protocol over plain TCP: a batch is one write, and nothing is
//! acknowledged.
//!
//! The server's pings are answered, what it complains of (`-ERR`) is an error, and in the end a
//! `PING` of our own asks whether it has read everything.

use anyhow::{Context, Result, bail};

use super::pipe::{CLOSED, Pipe};
use super::{Batch, PublishPlan, Refusals, Sink, Template};
use crate::fault::server_fault;
use crate::framing::nats::{PING, PONG, Parser, connect_line};
use crate::target::with_topic;

/// The connection.
#[derive(Debug)]
pub struct Nats {
    pipe: Pipe,
    parser: Parser,
    template: Template,
    out: Vec<u8>,
}

impl Nats {
    /// Connects, and waits until the server has agreed.
    pub fn connect(plan: &PublishPlan) -> Result<Nats> {
        if let Some(bad) = plan.path.chars().find(|char| char.is_whitespace() || "*>".contains(*char)) {
            bail!("{:?} is no subject to publish to: it holds {bad:?}", plan.path);
        }
        let before =
            |topic| format!("PUB {} {}\r\n", with_topic(&plan.path, topic), plan.payload_bytes).into_bytes();
        let template = Template::new(plan, before, [&plan.filler()[..], b"\r\n"].concat());
        let pipe = Pipe::connect(plan.address)?;
        let mut nats = Nats { pipe, parser: Parser::default(), template, out: Vec::new() };
        nats.write(connect_line().as_bytes()).context("connecting to NATS")?;
        nats.agree().context("connecting to NATS")?;
        Ok(nats)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Nats { pipe, parser, .. } = self;
        pipe.send(bytes, |heard| parse(parser, heard).map(drop))
    }

    /// Waits until the server has read everything so far.
    fn agree(&mut self) -> Result<()> {
        self.write(PING)?;
        let Nats { pipe, parser, .. } = self;
        match pipe.hear_until(|heard| Ok(parse(parser, heard)? > 0))? {
            true => Ok(()),
            false => Err(server_fault(CLOSED)),
        }
    }
}

/// Gives the `PONG`s.
fn parse(parser: &mut Parser, heard: &[u8]) -> Result<u32> {
    parser.feed(heard, |_, _| ()).map_err(server_fault)
}

impl Sink for Nats {
    fn send(&mut self, batch: Batch<'_>) -> Result<Refusals> {
        self.tend()?;
        let Nats { pipe, parser, template, out } = self;
        out.clear();
        batch.events().for_each(|event| template.put(event, out));
        pipe.send(out, |heard| parse(parser, heard).map(drop)).context("publishing")?;
        Ok(Refusals::default())
    }

    fn tend(&mut self) -> Result<()> {
        let Nats { pipe, parser, .. } = self;
        pipe.hear(|heard| parse(parser, heard).map(drop))?;
        if parser.pings() > 0 {
            let pongs = PONG.repeat(parser.pings() as usize);
            parser.answered();
            self.write(&pongs)?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>, _events: u64, _refused: u64) -> Result<()> {
        self.agree().context("asking NATS whether it has read everything")
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::thread::spawn;

    use super::super::Publisher;
    use super::*;
    use crate::stamp::Stamp;
    use crate::way::Way;

    fn plan(listener: &TcpListener) -> PublishPlan {
        let address = listener.local_addr().expect("bound");
        PublishPlan {
            way: Way::Nats,
            path: "a.{topic}".into(),
            topics: 2,
            ..PublishPlan::stream(address, 40)
        }
    }

    #[test]
    fn events_are_published_pings_answered_and_the_end_is_asked_for() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let plan = plan(&listener);
        let server = spawn(move || {
            let mut from = BufReader::new(listener.accept().expect("it comes").0);
            from.get_mut().write_all(b"INFO {\"max_payload\":1048576}\r\n").expect("it reads");
            let mut seen = Vec::new();
            let mut pinged = false;
            let mut line = String::new();
            while from.read_line(&mut line).expect("text") > 0 {
                match line.trim_end() {
                    "PING" if pinged => from.get_mut().write_all(b"PONG\r\n").expect("it reads"),
                    "PING" => {
                        pinged = true;
                        from.get_mut().write_all(b"PONG\r\nPING\r\n").expect("it reads");
                    }
                    other => seen.push(match Stamp::read(other.as_bytes()) {
                        Some(stamp) => format!("{} {}", stamp.sequence, other.len()),
                        None => other.split('{').next().unwrap_or_default().to_owned(),
                    }),
                }
                line.clear();
            }
            seen
        });
        let mut publisher = Publisher::connect(&plan).expect("it agrees");
        publisher.publish(3).expect("it reads");
        publisher.finish().expect("it has read everything");
        let mut seen = server.join().expect("no panic");
        seen.retain(|line| line != "PONG");
        let events =
            ["PUB a.loadtest-0 40", "1 40", "PUB a.loadtest-1 40", "2 40", "PUB a.loadtest-0 40", "3 40"];
        assert_eq!(seen[0], "CONNECT ");
        assert_eq!(seen[1..], events);
    }

    #[test]
    fn a_complaint_of_the_server_is_the_error() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let plan = plan(&listener);
        let server = spawn(move || {
            let (mut socket, _) = listener.accept().expect("it comes");
            socket.write_all(b"INFO {}\r\n-ERR 'Authorization Violation'\r\n").expect("it reads");
            BufReader::new(socket).lines().count()
        });
        let error = format!("{:#}", Publisher::connect(&plan).expect_err("refused"));
        assert!(error.contains("Authorization Violation"), "{error}");
        server.join().expect("no panic");
        let error = Publisher::connect(&PublishPlan { path: "a b".into(), ..plan }).expect_err("no subject");
        assert!(error.to_string().contains("\"a b\""), "{error}");
    }
}
