//! Publishers of a cluster: each publishes at its pace, one event at a time, and goes to the next
//! node where one does not acknowledge.
//!
//! An event is repeated under its idempotency key until a node acknowledges it: what nobody knows
//! (504, a connection that broke) is in the log once then. A publisher that is held up does not
//! catch up.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use hdrhistogram::Histogram;
use serde_json::Value;

use super::journal::parts;
use super::stand::Places;
use super::watch::Watch;
use crate::fault::server_fault;
use crate::http;
use crate::receiver::latency_histogram;
use crate::stamp::{STAMP_BYTES, Stamp, now_ns};
use crate::target::topic_name;

/// Before an event is offered again.
const AGAIN_AFTER: Duration = Duration::from_millis(20);
/// How long a node may take to answer: it gives up on the stream after 5 s.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long an event may be offered.
const INSIST_LIMIT: Duration = Duration::from_secs(60);

/// What is published.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Publishers.
    pub publishers: usize,
    /// Events per second of all of them.
    pub rate: f64,
    /// Topics, which the events go round.
    pub topics: usize,
    /// Bytes of one event's data, the stamp included.
    pub payload_bytes: usize,
}

/// One acknowledged event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledged {
    /// Index of its topic.
    pub topic: usize,
    /// The publisher's number, unlike any other one.
    pub number: u64,
    /// The sequence that the node named.
    pub sequence: u64,
}

/// What a publisher did.
#[derive(Debug)]
pub struct Published {
    pub acknowledged: Vec<Acknowledged>,
    /// Answers that were no acknowledgement, and connections that broke.
    pub repeated: u64,
    /// From the first offer to the acknowledgement, in nanoseconds.
    pub latency: Histogram<u64>,
}

/// All publishers.
pub struct Publishers {
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Published>>>,
}

impl Publishers {
    /// Starts them.
    pub fn start(load: Load, places: &Places, watch: &Arc<Watch>) -> Publishers {
        let over = Arc::new(AtomicBool::new(false));
        let start = |voice| {
            let (places, watch, over) = (Arc::clone(places), Arc::clone(watch), Arc::clone(&over));
            spawn(move || Publisher::new(load, voice, places, watch).publish(&over))
        };
        Publishers { threads: (0..load.publishers).map(start).collect(), over }
    }

    /// True if one has ended before its time: it has failed.
    pub fn have_failed(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    /// Lets each finish its event; gives what all did together.
    pub fn finish(self) -> Result<Published> {
        self.over.store(true, Ordering::Release);
        let mut all = Published { acknowledged: Vec::new(), repeated: 0, latency: latency_histogram() };
        for thread in self.threads {
            let one = thread.join().map_err(|_| anyhow!("a publisher broke down"))??;
            all.acknowledged.extend(one.acknowledged);
            all.repeated += one.repeated;
            all.latency.add(one.latency).context("adding latencies")?;
        }
        Ok(all)
    }
}

struct Publisher {
    load: Load,
    voice: usize,
    places: Places,
    watch: Arc<Watch>,
    /// The node that it publishes at, as its number.
    node: usize,
    connection: Option<(SocketAddr, TcpStream)>,
    published: Published,
    /// The mark at which it was well last.
    well: u64,
}

impl Publisher {
    fn new(load: Load, voice: usize, places: Places, watch: Arc<Watch>) -> Publisher {
        let published = Published { acknowledged: Vec::new(), repeated: 0, latency: latency_histogram() };
        Publisher { load, voice, places, watch, node: voice, connection: None, published, well: u64::MAX }
    }

    fn publish(mut self, over: &AtomicBool) -> Result<Published> {
        let interval = Duration::from_secs_f64(self.load.publishers as f64 / self.load.rate);
        let mut due = Instant::now() + interval.mul_f64(self.voice as f64 / self.load.publishers as f64);
        for round in 0.. {
            sleep(due.saturating_duration_since(Instant::now()));
            if over.load(Ordering::Acquire) {
                break;
            }
            due = (due + interval).max(Instant::now());
            self.insist((round * self.load.publishers + self.voice + 1) as u64)?;
        }
        Ok(self.published)
    }

    /// Offers an event until it is acknowledged.
    fn insist(&mut self, number: u64) -> Result<()> {
        let topic = number as usize % self.load.topics;
        let time_ns = now_ns();
        let mut body = vec![b'x'; self.load.payload_bytes];
        Stamp { sequence: number, time_ns }.write(&mut body[..STAMP_BYTES]);
        let path = format!("/topics/{}?idempotency_key=loadtest-{number}", topic_name(topic));
        let deadline = Instant::now() + INSIST_LIMIT;
        let sequence = loop {
            let said = match self.offer(&path, &body) {
                Ok(sequence) => break sequence,
                Err(Refusal::Final(error)) => return Err(error),
                Err(Refusal::Again(said)) => said,
            };
            if Instant::now() > deadline {
                let told = format!("event {number} was not acknowledged within {INSIST_LIMIT:?}: {said}");
                return Err(server_fault(told));
            }
            self.published.repeated += 1;
            self.connection = None;
            self.node += 1;
            sleep(AGAIN_AFTER);
        };
        self.published.acknowledged.push(Acknowledged { topic, number, sequence });
        self.published.latency.saturating_record(now_ns().saturating_sub(time_ns).max(1));
        self.watch.acknowledged(time_ns, &mut self.well);
        Ok(())
    }

    /// Offers an event to a node once; gives the sequence that it got.
    fn offer(&mut self, path: &str, body: &[u8]) -> Result<u64, Refusal> {
        let broken = |error: anyhow::Error| Refusal::Again(format!("{error:#}"));
        let address = {
            let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
            places[self.node % places.len()].publish
        };
        if self.connection.as_ref().is_none_or(|(to, _)| *to != address) {
            self.connection = Some((address, connect(address).map_err(broken)?));
        }
        let Some((_, socket)) = &mut self.connection else { unreachable!("it was opened above") };
        let request = http::post_request(address, path, body);
        let answer = socket.write_all(&request).map_err(anyhow::Error::from);
        let answer = answer.and_then(|()| http::read_answer(socket)).map_err(broken)?;
        if answer.close {
            self.connection = None;
        }
        let said = || format!("{} {}", answer.status, answer.first_line());
        match answer.status {
            200 => sequence_in(&answer.body).map_err(Refusal::Final),
            500..600 => Err(Refusal::Again(said())),
            _ => Err(Refusal::Final(server_fault(format!("a publish was refused: {}", said())))),
        }
    }
}

/// Why a node did not acknowledge.
enum Refusal {
    /// It may later, or another node may.
    Again(String),
    /// No node will.
    Final(anyhow::Error),
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let socket = http::connect(address)?;
    socket.set_read_timeout(Some(ANSWER_LIMIT))?;
    socket.set_write_timeout(Some(ANSWER_LIMIT))?;
    Ok(socket)
}

/// The sequence in an acknowledgement, which its id must hold too.
fn sequence_in(body: &[u8]) -> Result<u64> {
    let answer: Value = serde_json::from_slice(body).context("an acknowledgement in JSON")?;
    let sequence = answer["sequence"].as_u64();
    let in_id = answer["id"].as_str().and_then(parts).map(|(_, sequence)| sequence);
    match sequence {
        Some(number) if sequence == in_id => Ok(number),
        _ => bail!("an acknowledgement without one sequence: {answer}"),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::RwLock;

    use super::super::stand::Place;
    use super::*;

    #[test]
    fn an_acknowledgement_names_one_sequence() {
        let of = |text: &str| sequence_in(text.as_bytes());
        assert_eq!(of(r#"{"id":"e-7","sequence":7}"#).expect("one"), 7);
        for text in [r#"{"id":"e-7","sequence":8}"#, r#"{"id":"e-7"}"#, "{}", "no JSON"] {
            assert!(of(text).is_err(), "{text}");
        }
    }

    /// A server that gives these answers, one to each request; gives the requests.
    fn server(answers: &'static [&'static str]) -> (SocketAddr, JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let requests = spawn(move || {
            let mut requests = Vec::new();
            for answer in answers {
                let (mut socket, _) = listener.accept().expect("the publisher comes");
                let mut buffer = [0; 4_096];
                let read = std::io::Read::read(&mut socket, &mut buffer).expect("a request");
                requests.push(String::from_utf8_lossy(&buffer[..read]).into_owned());
                socket.write_all(answer.as_bytes()).expect("it reads");
            }
            requests
        });
        (address, requests)
    }

    fn publisher(nodes: &[SocketAddr]) -> Publisher {
        let place = |address: &SocketAddr| Place { subscribe: *address, publish: *address };
        let places = Arc::new(RwLock::new(nodes.iter().map(place).collect()));
        let load = Load { publishers: 1, rate: 1.0, topics: 1, payload_bytes: 40 };
        Publisher::new(load, 0, places, Arc::default())
    }

    #[test]
    fn an_event_goes_to_the_next_node_under_its_key_until_one_acknowledges() {
        let (one, refused) = server(&["HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"]);
        let (other, taken) = server(&["HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 25\r\n\r\n\
            {\"id\":\"e-7\",\"sequence\":7}"]);
        let mut publisher = publisher(&[one, other]);
        publisher.insist(5).expect("acknowledged");
        let expected = [Acknowledged { topic: 0, number: 5, sequence: 7 }];
        assert_eq!(publisher.published.acknowledged, expected);
        assert_eq!((publisher.published.repeated, publisher.published.latency.len()), (1, 1));
        for requests in [refused, taken] {
            let requests = requests.join().expect("it ends");
            assert!(requests[0].starts_with("POST /topics/loadtest-0?idempotency_key=loadtest-5 "));
        }
    }

    #[test]
    fn a_publish_that_no_node_will_take_ends_it_with_the_servers_words() {
        let (address, _) = server(&["HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno"]);
        let error = publisher(&[address]).insist(1).expect_err("refused").to_string();
        assert!(error.contains("401 no"), "{error}");
    }
}
