//! A WebSocket per topic; a message is an event, in a masked text frame: its data, or a command of
//! `fanwave.v1.json`. A batch is one write per topic.
//!
//! What the server answers to a message is passed over, its pings are answered, its closing is an
//! error. Commands must be answered once each, in order. Where the publisher is to hear what it
//! says, all of it must come back, once and in order. In the end each socket is closed as RFC 6455
//! §7.1.2 wants it, so that the server has read everything before.

use std::io::Write;
use std::time::Instant;

use anyhow::{Context, Result};
use memchr::memmem;

use super::pipe::Pipe;
use super::{Batch, PublishPlan, Refusals, Sink, TEND_EVERY, Template, Turn};
use crate::audit::Audit;
use crate::fault::server_fault;
use crate::framing::websocket::{CLOSE, CLOSED, TEXT, client_frame, client_head};
use crate::framing::{Dialect, Protocol, Splitter, json};
use crate::receiver::handshake::{head_end, websocket_request};
use crate::stamp::Stamp;
use crate::target::{topic_name, with_topic};
use crate::way::Way;

/// Status 1000: nothing is wrong.
const CLOSE_NORMAL: [u8; 2] = [3, 232];
/// Where a command begins, up to its `ref`.
const REF: &str = "{\"ref\":";

/// The open sockets.
#[derive(Debug)]
pub struct WebSockets {
    sockets: Vec<Socket>,
    template: Template,
    /// When all sockets were tended: each is when its topic comes, which may be seldom.
    tended: Instant,
}

#[derive(Debug)]
struct Socket {
    pipe: Pipe,
    heard: Heard,
    /// What is to be written.
    out: Vec<u8>,
    /// Events that were sent.
    sent: u64,
    /// Commands that were given, of a socket that gives any.
    commands: Option<u64>,
}

/// What came of a socket's events.
#[derive(Debug)]
struct Heard {
    splitter: Splitter,
    topic: usize,
    turn: Turn,
    /// Commands that were answered.
    answered: u64,
    /// What came back of a socket's own events, where it is to.
    own: Option<Audit>,
}

impl WebSockets {
    /// Connects one after the other.
    pub fn connect(plan: &PublishPlan, turn: Turn) -> Result<WebSockets> {
        plan.check_lines("WebSocket")?;
        let command = |topic| {
            let first = json::reference(1);
            format!("{REF}{first},\"publish\":{{\"topic\":\"{}\",\"data\":\"", topic_name(topic))
        };
        let template = match plan.way {
            Way::Json => {
                let after = [&plan.filler()[..], b"\"}}"].concat();
                let before = |topic| {
                    let command = command(topic);
                    let head = client_head(TEXT, command.len() + plan.payload_bytes + b"\"}}".len());
                    [&head[..], command.as_bytes()].concat()
                };
                Template::new(plan, before, after)
            }
            _ => Template::new(plan, |_| client_head(TEXT, plan.payload_bytes), plan.filler()),
        };
        let socket = |topic| Socket::connect(plan, topic, turn);
        let sockets = (0..plan.topics).map(socket).collect::<Result<_>>()?;
        Ok(WebSockets { sockets, template, tended: Instant::now() })
    }
}

impl Socket {
    fn connect(plan: &PublishPlan, topic: usize, turn: Turn) -> Result<Socket> {
        let protocol = if plan.way == Way::Json { Protocol::Json } else { Protocol::Ws };
        let mut pipe = Pipe::connect(plan.address)?;
        let path = with_topic(&plan.path, topic);
        let request = websocket_request(protocol, &path, plan.address, plan.token.as_deref());
        let mut head = Vec::new();
        pipe.send(&request, |_| Ok(()))?;
        let mut end = None;
        pipe.hear_until(|heard| {
            head.extend_from_slice(heard);
            end = head_end(protocol, &head)?;
            Ok(end.is_some())
        })
        .context("opening the publisher's WebSocket")?;
        let end = end.ok_or_else(|| {
            let said = String::from_utf8_lossy(&head);
            server_fault(format!(
                "the server closed the publisher's WebSocket within the handshake, after {said:?}"
            ))
        })?;
        let own = plan.hears.then(|| Audit::new(1));
        let splitter = Splitter::new(protocol, Dialect::Plain, 0);
        let heard = Heard { splitter, topic, turn, answered: 0, own };
        let commands = (plan.way == Way::Json).then_some(0);
        let mut socket = Socket { pipe, heard, out: Vec::new(), sent: 0, commands };
        socket.heard.hear(&head[end..])?;
        if let Some(commands) = socket.commands.as_mut().filter(|_| plan.hears) {
            *commands = 1;
            let of = format!("{{\"topic\":\"{}\"}}", topic_name(topic));
            socket.out = client_frame(TEXT, json::subscribe(1, &of, None).as_bytes());
            socket.write()?;
            socket.settle()?;
        }
        Ok(socket)
    }

    fn put(&mut self, event: (usize, Stamp), template: &Template) {
        let start = self.out.len();
        template.put(event, &mut self.out);
        self.sent += 1;
        if let Some(commands) = &mut self.commands {
            *commands += 1;
            let before = &template.before[event.0];
            let at = start + memmem::find(before, REF.as_bytes()).expect("a command") + REF.len();
            // As wide as the one that stands there.
            write!(&mut self.out[at..], "{}", json::reference(*commands)).expect("there is room");
        }
    }

    fn tend(&mut self) -> Result<()> {
        let Socket { pipe, heard, out, .. } = self;
        pipe.hear(|bytes| heard.hear(bytes))?;
        out.extend(heard.splitter.answers());
        Ok(())
    }

    fn write(&mut self) -> Result<()> {
        let Socket { pipe, heard, out, .. } = self;
        let written = pipe.send(out, |bytes| heard.hear(bytes));
        out.clear();
        written
    }

    fn settle(&mut self) -> Result<()> {
        let Socket { pipe, heard, sent, commands, .. } = self;
        let settled = |heard: &Heard| {
            let all_answered = commands.is_none_or(|commands| heard.answered >= commands);
            all_answered && heard.own.as_ref().is_none_or(|own| own.found().events >= *sent)
        };
        if settled(heard) {
            return Ok(());
        }
        let open = pipe
            .hear_until(|bytes| {
                heard.hear(bytes)?;
                Ok(settled(heard))
            })
            .context("waiting for what was published to be answered and to come back")?;
        if !open {
            return Err(server_fault("the server closed the publisher's WebSocket before all came back"));
        }
        Ok(())
    }

    fn close(&mut self) -> Result<()> {
        self.settle()?;
        self.out.extend(client_frame(CLOSE, &CLOSE_NORMAL));
        self.write()?;
        let Socket { pipe, heard, .. } = self;
        // The server's close frame comes as the splitter's error; its hanging up is as good.
        pipe.hear_until(|bytes| match heard.feed(bytes) {
            Err(cause) if cause.starts_with(CLOSED) => Ok(true),
            other => other.map(|()| false).map_err(server_fault),
        })?;
        match heard.own.as_ref().map(Audit::found) {
            Some(found) if !found.clean() || found.events != self.sent => {
                let told = format!("of {} publishes of one client this came back: {found:?}", self.sent);
                Err(server_fault(told))
            }
            _ => Ok(()),
        }
    }
}

impl Heard {
    fn hear(&mut self, bytes: &[u8]) -> Result<()> {
        self.feed(bytes).map_err(server_fault)
    }

    fn feed(&mut self, bytes: &[u8]) -> Result<(), String> {
        let Heard { splitter, topic, turn, answered, own } = self;
        let fed = splitter.feed(bytes, |event| {
            let Some(own) = own else { return };
            match event.stamp {
                _ if event.gap => own.gap(1),
                None => drop(own.take(None)),
                // What others say on the topic is not its own.
                Some(stamp) => {
                    if let Some(sequence) = turn.own(*topic, stamp.sequence) {
                        own.take(Some(sequence));
                    }
                }
            }
        })?;
        *answered += u64::from(fed.pongs);
        Ok(())
    }
}

impl Sink for WebSockets {
    fn send(&mut self, batch: Batch<'_>) -> Result<Refusals> {
        if self.tended.elapsed() >= TEND_EVERY {
            self.tend().context("publishing")?;
        }
        for topic in batch.topics() {
            self.sockets[topic].tend().context("publishing")?;
        }
        for event in batch.events() {
            self.sockets[event.0].put(event, &self.template);
        }
        for topic in batch.topics() {
            self.sockets[topic].write().context("publishing")?;
        }
        Ok(Refusals::default())
    }

    fn tend(&mut self) -> Result<()> {
        self.tended = Instant::now();
        for socket in &mut self.sockets {
            socket.tend()?;
            socket.write()?;
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        self.sockets.iter_mut().try_for_each(Socket::settle)
    }

    fn finish(mut self: Box<Self>, _events: u64, _refused: u64) -> Result<()> {
        self.sockets.iter_mut().try_for_each(Socket::close).context("closing the publisher's WebSocket")
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc::{TryRecvError, channel};
    use std::thread::spawn;
    use std::time::Duration;

    use super::super::Publisher;
    use super::*;
    use crate::framing::websocket::tests::server_frame;

    const OPEN: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

    fn plan(listener: &TcpListener) -> PublishPlan {
        let address = listener.local_addr().expect("bound");
        PublishPlan {
            way: Way::WebSocket,
            path: "/p/{topic}".into(),
            topics: 2,
            ..PublishPlan::stream(address, 40)
        }
    }

    /// Accepts one publisher; gives its request line too.
    fn accept(listener: &TcpListener) -> (TcpStream, String) {
        let (mut socket, _) = listener.accept().expect("it comes");
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            socket.read_exact(&mut byte).expect("a whole head");
            head.push(byte[0]);
        }
        socket.write_all(OPEN).expect("it reads");
        let head = String::from_utf8(head).expect("text");
        (socket, head.lines().next().unwrap_or_default().to_owned())
    }

    /// Reads one short masked frame: its first byte and its payload.
    fn frame(socket: &mut TcpStream) -> (u8, Vec<u8>) {
        let mut head = [0; 6];
        socket.read_exact(&mut head).expect("a frame");
        assert_eq!((head[1] & 0x80, &head[2..]), (0x80, &[0; 4][..]), "masked");
        let mut payload = vec![0; usize::from(head[1] & 0x7f)];
        socket.read_exact(&mut payload).expect("a payload");
        (head[0], payload)
    }

    #[test]
    fn each_topic_has_a_socket_whose_answers_are_passed_over_and_whose_pings_are_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let plan = plan(&listener);
        let (answer, answered) = channel();
        let server = spawn(move || {
            let mut sockets = [accept(&listener), accept(&listener)];
            let mut seen = Vec::new();
            for (at, sequence) in [(0, 1), (1, 2), (0, 3)] {
                let (socket, request) = &mut sockets[at];
                let (first, payload) = frame(socket);
                assert_eq!(first, 0x81);
                assert_eq!(Stamp::read(&payload).map(|stamp| stamp.sequence), Some(sequence));
                seen.push(request.clone());
                socket.write_all(&server_frame(0x81, b"queued messages: 1")).expect("it reads");
            }
            let (socket, _) = &mut sockets[0];
            socket.write_all(&server_frame(0x89, b"there?")).expect("it reads");
            socket.set_read_timeout(Some(Duration::from_secs(10))).expect("not zero");
            assert_eq!(frame(socket), (0x8a, b"there?".to_vec()));
            answer.send(()).expect("it waits");
            for (socket, _) in &mut sockets {
                assert_eq!(frame(socket), (0x88, CLOSE_NORMAL.to_vec()));
                socket.write_all(&server_frame(0x88, &CLOSE_NORMAL)).expect("it reads");
            }
            seen
        });
        let mut publisher = Publisher::connect(&plan).expect("it answers");
        publisher.publish(3).expect("it reads");
        while let Err(TryRecvError::Empty) = answered.try_recv() {
            publisher.tend().expect("nothing is wrong");
            std::thread::yield_now();
        }
        publisher.finish().expect("it closes");
        let request = |topic: usize| format!("GET /p/loadtest-{topic} HTTP/1.1");
        assert_eq!(server.join().expect("no panic"), [request(0), request(1), request(0)]);
    }

    #[test]
    fn what_does_not_come_back_once_and_in_order_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let plan = PublishPlan { topics: 1, hears: true, ..plan(&listener) };
        // The places of three events that are given back.
        for (back, told) in [
            (&[0, 1, 2][..], None),
            (&[0, 1, 1, 2], Some("duplicated: 1")),
            (&[1, 0, 2], Some("out_of_order: 1")),
            (&[0, 0, 2], Some("lost: 1, duplicated: 1")),
        ] {
            let server = {
                let listener = listener.try_clone().expect("a descriptor");
                spawn(move || {
                    let (mut socket, _) = accept(&listener);
                    let said = [0; 3].map(|_| frame(&mut socket).1);
                    for &at in back {
                        socket.write_all(&server_frame(0x81, &said[at])).expect("it reads");
                    }
                    assert_eq!(frame(&mut socket).0, 0x88);
                    socket.write_all(&server_frame(0x88, &CLOSE_NORMAL)).expect("it reads");
                })
            };
            let mut publisher = Publisher::connect(&plan).expect("it answers");
            publisher.publish(3).expect("it reads");
            let ended = publisher.finish().map_err(|error| format!("{error:#}"));
            match told {
                None => assert_eq!(ended, Ok(())),
                Some(told) => assert!(ended.clone().is_err_and(|error| error.contains(told)), "{ended:?}"),
            }
            server.join().expect("no panic");
        }
    }

    #[test]
    fn a_server_that_closes_or_refuses_is_told_with_its_reason() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let plan = PublishPlan { topics: 1, ..plan(&listener) };
        let server = spawn(move || {
            let (mut socket, _) = accept(&listener);
            frame(&mut socket);
            socket.write_all(&server_frame(0x88, b"\x03\xf0not yours")).expect("it reads");
            let (mut socket, _) = listener.accept().expect("it comes");
            socket.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\nno entry\n").expect("it reads");
            socket.read_to_end(&mut Vec::new()).expect("it leaves");
        });
        let mut publisher = Publisher::connect(&plan).expect("it answers");
        let error = loop {
            // The close frame takes a moment to come.
            if let Err(error) = publisher.publish(1) {
                break format!("{error:#}");
            }
        };
        assert!(error.contains("1008 not yours"), "{error}");
        let error = format!("{:#}", Publisher::connect(&plan).expect_err("refused"));
        assert!(error.contains("403 Forbidden: no entry"), "{error}");
        server.join().expect("no panic");
    }
}
