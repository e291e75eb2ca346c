//! One POST per event on kept connections, one or several. Events that are due together travel as
//! pipelined requests in one write (RFC 9112 §9.3.2), and are answered one by one.
//!
//! A server that is busy (503 with `Retry-After`) has refused an event, and the publishing goes on.
//! Any other answer than success ends it. A server may end the connection after any answer; what it
//! has not answered is then sent again over a new one, which it has promised not to have looked at
//! (§9.6).

use std::collections::VecDeque;
use std::io::{BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use super::pipe::{STUCK_LIMIT, broke, connect};
use super::{Batch, PublishPlan, Refusals, Sink, Template};
use crate::fault::{ServerFault, server_fault};
use crate::http::{self, Answer};
use crate::stamp::Stamp;
use crate::target::with_topic;
use crate::token::head_line;

/// Requests in one write on a connection: their answers fit into a socket's buffer, so that neither
/// side waits for the other's reading.
pub const PIPELINED_MAX: usize = 64;

/// The kept connections.
#[derive(Debug)]
pub struct Post {
    address: SocketAddr,
    lines: Vec<Line>,
    template: Template,
    out: Vec<u8>,
}

/// One connection.
#[derive(Debug)]
struct Line {
    socket: BufReader<TcpStream>,
    /// Events that were not answered, oldest first.
    unanswered: VecDeque<(usize, Stamp)>,
}

impl Post {
    /// Connects. Topic names need no percent escapes.
    pub fn connect(plan: &PublishPlan) -> Result<Post> {
        let bearer = head_line(plan.token.as_deref());
        let before = |topic| {
            format!(
                "POST {} HTTP/1.1\r\nHost: {}\r\nContent-Type: text/plain\r\n{bearer}\
                 Content-Length: {}\r\n\r\n",
                with_topic(&plan.path, topic),
                plan.address,
                plan.payload_bytes
            )
            .into_bytes()
        };
        let template = Template::new(plan, before, plan.filler());
        let line = |_| Ok(Line { socket: open(plan.address)?, unanswered: VecDeque::new() });
        let lines = (0..plan.lines.max(1)).map(line).collect::<Result<_>>()?;
        Ok(Post { address: plan.address, lines, template, out: Vec::new() })
    }

    /// Writes on every connection what is unanswered, and reads the answers, as far as the server
    /// gives them on this connection.
    fn go_on(&mut self, refusals: &mut Refusals) -> Result<()> {
        for line in self.lines.iter_mut().filter(|line| !line.unanswered.is_empty()) {
            self.out.clear();
            line.unanswered.iter().for_each(|&event| self.template.put(event, &mut self.out));
            line.socket.get_mut().write_all(&self.out).map_err(|error| match error.kind() {
                ErrorKind::WouldBlock => server_fault(format!("the server has not read for {STUCK_LIMIT:?}")),
                _ => broke(error),
            })?;
        }
        for line in &mut self.lines {
            while !line.unanswered.is_empty() {
                let answer = http::read_next(&mut line.socket).map_err(unanswered)?;
                judge(&answer, refusals)?;
                line.unanswered.pop_front();
                if answer.close {
                    line.socket = open(self.address)?;
                    break;
                }
            }
        }
        Ok(())
    }
}

fn open(address: SocketAddr) -> Result<BufReader<TcpStream>> {
    let socket = connect(address)?;
    socket.set_write_timeout(Some(STUCK_LIMIT))?;
    socket.set_read_timeout(Some(STUCK_LIMIT))?;
    Ok(BufReader::new(socket))
}

fn unanswered(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
        Some(ErrorKind::WouldBlock) => {
            server_fault(format!("the server did not answer a publish within {STUCK_LIMIT:?}"))
        }
        _ => error.context(ServerFault("the server did not answer a publish".into())),
    }
}

/// Counts a refusal of a busy server; any other refusal is an error.
fn judge(answer: &Answer, refusals: &mut Refusals) -> Result<()> {
    if answer.status / 100 == 2 {
        return Ok(());
    }
    let said = format!("{} {}", answer.status, answer.first_line());
    if answer.status != 503 || !answer.retry_after {
        return Err(server_fault(format!("the server refused a publish: {said}")));
    }
    refusals.events += 1;
    refusals.first.get_or_insert(said);
    Ok(())
}

impl Sink for Post {
    fn send(&mut self, batch: Batch<'_>) -> Result<Refusals> {
        self.tend()?;
        let lines = self.lines.len();
        batch.events().for_each(|event| self.lines[event.0 % lines].unanswered.push_back(event));
        let mut refusals = Refusals::default();
        while self.lines.iter().any(|line| !line.unanswered.is_empty()) {
            self.go_on(&mut refusals).context("publishing")?;
        }
        Ok(refusals)
    }

    /// Connects anew where the server has ended an idle connection, as HTTP lets it.
    fn tend(&mut self) -> Result<()> {
        self.lines.iter_mut().try_for_each(|line| line.tend(self.address))
    }

    fn finish(self: Box<Self>, _events: u64, _refused: u64) -> Result<()> {
        // Every event has been answered.
        Ok(())
    }
}

impl Line {
    fn tend(&mut self, address: SocketAddr) -> Result<()> {
        let mut byte = [0];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match rustix::net::recv(self.socket.get_ref(), &mut byte, flags) {
            Err(Errno::AGAIN) => Ok(()),
            Ok((0, _)) | Err(Errno::CONNRESET) => {
                self.socket = open(address)?;
                Ok(())
            }
            Ok(_) => {
                let answer = http::read_next(&mut self.socket)?;
                bail!("the server said unasked: {} {}", answer.status, answer.first_line());
            }
            Err(error) => Err(error).context("the publisher's connection"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, Read};
    use std::net::TcpListener;
    use std::thread::{JoinHandle, spawn};

    use super::super::Publisher;
    use super::*;
    use crate::stamp::STAMP_BYTES;
    use crate::way::Way;

    const OK: &str = "HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\nok";
    const LAST: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    const BUSY: &str = "HTTP/1.1 503 Busy\r\nRetry-After: 1\r\nContent-Length: 5\r\n\r\nfull\n";

    /// A server that reads a request, gives the next answer, and hangs up if the answer says so.
    /// Gives paths and sequences in the end.
    fn server(answers: &'static [&'static str]) -> (PublishPlan, JoinHandle<Vec<(String, u64)>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let plan = PublishPlan {
            way: Way::Post,
            path: "/p/{topic}".into(),
            topics: 2,
            ..PublishPlan::stream(address, 50)
        };
        let server = spawn(move || {
            let mut seen = Vec::new();
            let mut socket = None;
            for answer in answers {
                let from =
                    socket.get_or_insert_with(|| BufReader::new(listener.accept().expect("it comes").0));
                let head: Vec<String> = from
                    .lines()
                    .map(|line| line.expect("text"))
                    .take_while(|line| !line.is_empty())
                    .collect();
                let mut body = [0; 50];
                from.read_exact(&mut body).expect("a body");
                let stamp = Stamp::read(&body[..STAMP_BYTES]).expect("stamped");
                seen.push((head[0].clone(), stamp.sequence));
                from.get_mut().write_all(answer.as_bytes()).expect("it reads");
                if answer.contains("close") {
                    socket = None;
                }
            }
            seen
        });
        (plan, server)
    }

    fn seen(server: JoinHandle<Vec<(String, u64)>>) -> Vec<(String, u64)> {
        server.join().expect("no panic")
    }

    #[test]
    fn every_event_is_one_request_and_a_closed_connection_costs_none() {
        let (plan, server) = server(&[OK, OK, LAST, OK, OK]);
        let mut publisher = Publisher::connect(&plan).expect("it listens");
        publisher.publish(5).expect("all accepted");
        assert_eq!(publisher.next(), 6);
        publisher.finish().expect("all answered");
        let request = |topic: usize| format!("POST /p/loadtest-{topic} HTTP/1.1");
        let expected = [(0, 1), (1, 2), (0, 3), (1, 4), (0, 5)];
        assert_eq!(seen(server), expected.map(|(topic, sequence)| (request(topic), sequence)));
    }

    #[test]
    fn a_busy_server_refuses_single_events_which_can_be_insisted_on_and_any_other_refusal_ends_the_publishing()
     {
        let (plan, server1) = server(&[OK, BUSY, OK]);
        let mut publisher = Publisher::connect(&plan).expect("it listens");
        let refusals = publisher.send(&[1, 2, 3]).expect("busy is no error");
        assert_eq!(refusals, Refusals { events: 1, first: Some("503 full".into()) });
        seen(server1);

        let (plan, insisted) = server(&[OK, BUSY, BUSY, OK, OK]);
        let mut publisher = Publisher::connect(&plan).expect("it listens");
        let far = std::time::Instant::now() + std::time::Duration::from_secs(10);
        assert_eq!(publisher.insist(3, 7, far).expect("in the end"), 2);
        assert_eq!(publisher.next(), 4);
        let sequences: Vec<u64> = seen(insisted).into_iter().map(|(_, sequence)| sequence).collect();
        assert_eq!(sequences, [1, 2, 2, 2, 3], "the refused one again, in its place");

        let (plan, server2) = server(&[BUSY]);
        let mut publisher = Publisher::connect(&plan).expect("it listens");
        let now = std::time::Instant::now();
        assert!(publisher.insist(1, 7, now).expect_err("too late").to_string().contains("503 full"));
        seen(server2);

        let (plan, server2) = server(&[BUSY]);
        let mut publisher = Publisher::connect(&plan).expect("it listens");
        assert!(
            publisher.publish(1).expect_err("a closed loop cannot go on").to_string().contains("503 full")
        );
        seen(server2);

        let (plan, server3) = server(&["HTTP/1.1 404 Not Found\r\nContent-Length: 8\r\n\r\nno topic"]);
        let mut publisher = Publisher::connect(&plan).expect("it listens");
        let error = format!("{:#}", publisher.send(&[1]).expect_err("refused"));
        assert!(error.contains("404 no topic"), "{error}");
        seen(server3);
    }
}
