//! TLS under fuzzing: the layer over the simulated ring, a peer that says any bytes and any
//! records, and a shard that sends, ends and closes.
//!
//! Two halves, by the first byte, and of each half one where a PROXY header is expected. Before a
//! handshake all bytes are the input's. After one, the input
//! is a list of operations, and the peer has keys: it seals records of any type and content, bends,
//! cuts and repeats them.
//!
//! Promises: what the shard hears is what was said in whole, unbent records, in order, up to the
//! first fault; a fault is told, once, and the peer reads its alert if it was not the one to tell; a
//! peer without a fault reads a goodbye, and its own is told;
//! all that the server says can be opened, in its turn, and is what the shard sent; a slot is closed
//! once; nothing is held afterwards.

use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use fanwave::config::TlsFiles;
use fanwave::egress::sim::{SimRing, Weather};
use fanwave::egress::{Batch, Completion, EgressRing, Insecure, Ledger, ReceiveEnd, SendMode, Slot};
use fanwave::tls::{Identity, Tls, load};
use rustls::{ClientConfig, ServerConfig};

use super::records::{ALERT, DATA, Ends, HANDSHAKE, client, shake_hands};

/// What a record may hold.
const CONTENT_MAX: usize = 1 << 14;
/// Records without a word that the server takes in a row.
const IDLE_RECORDS_MAX: usize = 32;

/// What both sides need to know, made once.
fn both_ends() -> &'static (Arc<ServerConfig>, ClientConfig) {
    static ENDS: OnceLock<(Arc<ServerConfig>, ClientConfig)> = OnceLock::new();
    ENDS.get_or_init(|| {
        let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).expect("a certificate");
        let directory = std::env::temp_dir().join(format!("fanwave-records-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a temporary directory");
        let file = |name: &str, text: String| {
            let path = directory.join(name);
            std::fs::write(&path, text).expect("a file in our own directory");
            path
        };
        let pair = (file("cert.pem", made.cert.pem()), file("key.pem", made.signing_key.serialize_pem()));
        let server = load(&TlsFiles { pairs: vec![pair], client_ca: None }).expect("a server");
        std::fs::remove_dir_all(&directory).expect("our own directory");
        (server, client(made.cert.der()))
    })
}

struct World {
    ring: Tls<SimRing>,
    slot: Slot,
    ledger: Ledger,
    heard: Vec<u8>,
    end: Option<ReceiveEnd>,
    /// PROXY headers that were told.
    introduced: usize,
    secured: usize,
    closed: usize,
    /// A batch that the socket did not take whole.
    short: Option<Rc<Batch>>,
    /// The peer reads nothing: there is no room for our last words.
    is_stalled: bool,
    /// The shard has given up sending: its socket is gone, or it ended its stream.
    is_deaf: bool,
    closing: bool,
}

impl World {
    fn new(proxied: bool) -> World {
        let inner = SimRing::new(2, Weather::Fair, 1).recording();
        let ring = Tls::new(inner, 1, 2, Identity::new(both_ends().0.clone()));
        let mut ring = ring.behind_proxies(vec![false, proxied]);
        let slot = ring.inner_mut().connect_from(Ipv4Addr::LOCALHOST, 1).expect("a free slot");
        let mut world = World {
            ring,
            slot,
            ledger: Ledger::default(),
            heard: Vec::new(),
            end: None,
            introduced: 0,
            secured: 0,
            closed: 0,
            short: None,
            is_stalled: false,
            is_deaf: false,
            closing: false,
        };
        world.turn();
        world.ring.receive(slot);
        world.turn();
        world
    }

    /// One turn of a shard, as far as this connection goes.
    fn turn(&mut self) {
        for _ in 0..4 {
            self.ring.reap(&mut |completion| match completion {
                Completion::Received { bytes, .. } => self.heard.extend_from_slice(bytes),
                Completion::Introduced { .. } => {
                    assert!(self.secured == 0 && self.end.is_none(), "it comes first");
                    self.introduced += 1;
                }
                Completion::Secured { .. } => self.secured += 1,
                Completion::ReceiveEnded { end, .. } => {
                    assert!(self.end.is_none(), "a receive ends once");
                    self.end = Some(end);
                }
                Completion::Short { batch, result: Ok(taken), .. } => {
                    assert_eq!(taken, 0, "all of a batch or nothing");
                    self.short = Some(batch);
                }
                Completion::Short { .. } => self.is_deaf = true,
                Completion::Sent { result, .. } => {
                    self.short = None;
                    self.is_deaf |= result.is_err();
                }
                Completion::Closed { .. } => self.closed += 1,
                _ => {}
            });
            self.ring.submit().expect("the simulated ring does not fail");
        }
    }

    /// A turn after a tick. There are few: the peer is never late with the rest of a record.
    fn tick(&mut self) {
        self.ring.retry_accepts();
        self.turn();
    }

    fn says(&mut self, bytes: &[u8], cut: usize) {
        for piece in bytes.chunks(cut) {
            if self.closed == 0 {
                self.ring.inner_mut().peer_sends(self.slot, piece);
            }
            if cut < 4_096 {
                self.turn();
            }
        }
        self.tick();
    }

    fn stall(&mut self, stalled: bool) {
        self.is_stalled = stalled;
        self.ring.inner_mut().stall(self.slot, stalled);
    }

    fn takes(&mut self) -> Vec<u8> {
        if self.closed > 0 { Vec::new() } else { self.ring.inner_mut().peer_takes(self.slot) }
    }

    /// True if the shard may send.
    fn may_send(&self) -> bool {
        self.short.is_none() && self.end.is_none() && !self.is_deaf && !self.closing && self.closed == 0
    }

    fn send(&mut self, length: usize, mode: SendMode) -> Vec<u8> {
        let bytes = vec![b'0' + (length % 10) as u8; length];
        let batch = Batch::answer(bytes.clone(), &self.ledger);
        self.ring.send(self.slot, &batch, 0, mode);
        self.ring.submit().expect("the simulated ring does not fail");
        bytes
    }

    /// The shard lets go of it, as it does after every end.
    fn close(&mut self) -> Vec<u8> {
        let last = self.takes();
        if self.closed == 0 {
            if self.end.is_none() {
                self.ring.pause(self.slot);
                self.turn();
            }
            if self.short.take().is_some() {
                self.ring.cancel(self.slot);
                self.turn();
            }
            self.ring.close(self.slot);
            self.closing = true;
            let slot = self.slot;
            let mut said = last;
            for _ in 0..8 {
                self.ring.submit().expect("the simulated ring does not fail");
                if self.ring.inner().is_open(slot) {
                    said.extend(self.ring.inner_mut().peer_takes(slot));
                }
                self.tick();
            }
            assert_eq!(self.closed, 1, "a slot is closed, once");
            assert_eq!(self.ledger.bytes(), 0, "nothing is held");
            return said;
        }
        last
    }
}

/// The first byte chooses the half and the cuts.
pub fn tls_records(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    let (proxied, choice) = (choice & 0x80 != 0, choice & 0x7f);
    let cut = [1, 3, 7, 64, 4_096, 1 << 20][usize::from(choice >> 1) % 6];
    match choice & 1 {
        0 => before_the_handshake(rest, cut, proxied),
        _ => after_the_handshake(rest, cut, proxied),
    }
}

/// Whatever a client begins with: no keys come of it, and no word reaches the shard.
fn before_the_handshake(bytes: &[u8], cut: usize, proxied: bool) {
    let mut world = World::new(proxied);
    world.says(bytes, cut);
    assert!(world.secured == 0 && world.heard.is_empty(), "nobody has keys");
    match world.end {
        None => {}
        Some(ReceiveEnd::Insecure(Insecure::Header(_))) if proxied && world.introduced == 0 => {}
        Some(ReceiveEnd::Insecure(Insecure::Handshake)) if world.introduced == usize::from(proxied) => {}
        other => panic!("an end of another kind: {other:?}"),
    }
    let has_failed = world.end.is_some();
    let said = world.close();
    if has_failed {
        let is_answer = said.is_empty() || said.starts_with(b"HTTP/1.1 400 ");
        // A plain alert ends what was said; under keys, a record that looks like data does.
        let alert = said.len() >= 7 && said[said.len() - 7..said.len() - 1] == [ALERT, 3, 3, 0, 2, 2];
        assert!(is_answer || alert || said.contains(&DATA), "{said:?}");
    }
}

/// What a list of operations still has.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn number(&mut self) -> usize {
        usize::from(self.byte().unwrap_or_default())
    }

    fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }
}

/// What the shard must have heard by now, and how the connection must have ended.
#[derive(Default)]
struct Expected {
    heard: Vec<u8>,
    /// The alert of the first fault; none where the peer has told it itself.
    fault: Option<Option<u8>>,
    /// The peer says no more.
    is_silent: bool,
    /// A handshake message, as far as it has come.
    message: Vec<u8>,
    idle: usize,
    /// Records of the server that change its key.
    updates: usize,
}

impl Expected {
    fn fail(&mut self, alert: u8) {
        if self.fault.is_none() && !self.is_silent {
            self.fault = Some(Some(alert));
        }
    }

    /// The peer has said a whole and unbent record.
    fn record(&mut self, kind: u8, content: &[u8]) -> bool {
        const UNEXPECTED_MESSAGE: u8 = 10;
        if self.fault.is_some() || self.is_silent {
            return false;
        }
        self.idle += 1;
        if self.idle > IDLE_RECORDS_MAX {
            self.fail(UNEXPECTED_MESSAGE);
            return false;
        }
        if kind != HANDSHAKE && !self.message.is_empty() {
            self.fail(UNEXPECTED_MESSAGE);
            return false;
        }
        match (kind, content) {
            (DATA, []) => {}
            (DATA, content) => {
                self.idle = 0;
                self.heard.extend_from_slice(content);
            }
            (HANDSHAKE, [_, ..]) => {
                self.message.extend_from_slice(content);
                match self.message[..] {
                    [24, 0, 0, 1, wish @ 0..=1] => {
                        self.updates += usize::from(wish);
                        self.message.clear();
                        return true;
                    }
                    [24, 0, 0, 1, _] => self.fail(47),
                    [24] | [24, 0] | [24, 0, 0] | [24, 0, 0, 1] => {}
                    _ => self.fail(UNEXPECTED_MESSAGE),
                }
            }
            (ALERT, [_, 0]) => self.is_silent = true,
            (ALERT, [_, 90]) => {}
            (ALERT, [_, _]) => self.fault = Some(None),
            (ALERT, [_, ..]) => self.fail(50),
            _ => self.fail(UNEXPECTED_MESSAGE),
        }
        false
    }
}

fn after_the_handshake(operations: &[u8], mut cut: usize, proxied: bool) {
    let mut world = World::new(proxied);
    if proxied {
        world.says(b"PROXY TCP4 192.0.2.1 192.0.2.9 50000 443\r\n", cut);
    }
    assert_eq!(world.introduced, usize::from(proxied));
    let (mut ends, finished) = shake_hands(both_ends().1.clone(), |bytes| {
        world.says(bytes, 1 << 20);
        world.takes()
    });
    world.says(&finished, cut);
    assert_eq!((world.secured, world.end), (1, None));
    let mut expected = Expected::default();
    let mut sent = Vec::new();
    let mut said = world.takes();
    let mut last = Vec::new();
    // Bytes that are no record spoil all that follow: the server waits for more, or finds a fault.
    let mut is_spoilt = false;
    let mut input = Input(operations);
    while let Some(operation) = input.byte() {
        let record = match operation % 12 {
            0 | 1 => {
                let (kind, padding) = (input.number() as u8, input.number());
                let count = input.number();
                let content = input.bytes(count);
                sealed(&mut ends, &mut expected, kind, content, padding)
            }
            2 => {
                let (count, padding) = (input.number() << 6, input.number());
                let content = vec![b'x'; count.min(CONTENT_MAX)];
                sealed(&mut ends, &mut expected, DATA, &content, padding)
            }
            3 => {
                let wish = input.byte().unwrap_or_default() & 1;
                sealed(&mut ends, &mut expected, HANDSHAKE, &[24, 0, 0, 1, wish], 0)
            }
            4 => {
                let mut record = ends.ours.seal(DATA, b"bent", input.number());
                let at = input.number() % record.len();
                record[at] ^= 1 << (input.number() % 8);
                // A header may promise more than there is.
                is_spoilt = true;
                record
            }
            5 if !last.is_empty() => {
                expected.fail(20);
                last.clone()
            }
            6 => {
                is_spoilt = true;
                let count = input.number();
                input.bytes(count).to_vec()
            }
            7 => {
                // Too much content, sealed as it should be.
                let record = ends.ours.seal(DATA, &vec![0x55; CONTENT_MAX + 1 + input.number() % 200], 0);
                expected.fail(22);
                record
            }
            8 => {
                cut = [1, 3, 7, 64, 4_096, 1 << 20][input.number() % 6];
                continue;
            }
            9 => {
                if world.may_send() && expected.fault.is_none() {
                    sent.extend(world.send(1 + input.number() * 200, SendMode::Instant));
                    world.turn();
                    said.extend(world.takes());
                }
                continue;
            }
            10 => {
                if world.closed == 0 {
                    world.stall(input.byte().is_some_and(|byte| byte & 1 == 1));
                }
                continue;
            }
            _ => {
                if let Some(batch) = world.short.clone().filter(|_| world.end.is_none()) {
                    let slot = world.slot;
                    world.stall(false);
                    world.ring.send(slot, &batch, 0, SendMode::Waiting);
                    world.short = None;
                }
                world.turn();
                said.extend(world.takes());
                continue;
            }
        };
        world.says(&record, cut);
        last = record;
        said.extend(world.takes());
        if is_spoilt || expected.fault.is_some() {
            break;
        }
    }
    let is_short = world.short.is_some() || world.is_stalled;
    if !is_spoilt {
        assert_eq!(world.heard, expected.heard);
        let end = match expected.fault {
            Some(_) => Some(ReceiveEnd::Insecure(Insecure::Record)),
            None => expected.is_silent.then_some(ReceiveEnd::EndOfStream),
        };
        assert_eq!(world.end, end, "after {:?}", expected.fault);
    } else {
        assert!(world.heard.starts_with(&expected.heard), "a bent record is not heard");
        let rest = &world.heard[expected.heard.len()..];
        assert!(rest.is_empty(), "{rest:?} was not said");
    }
    said.extend(world.close());
    // A socket that was not emptied breaks off where it does.
    let heard = ends.hear(&said);
    let data: Vec<u8> =
        heard.iter().filter(|(kind, _)| *kind == DATA).flat_map(|(_, text)| text.clone()).collect();
    assert!(sent.starts_with(&data) && (is_short || data.len() == sent.len()), "what the shard sent");
    let alerts: Vec<&[u8]> =
        heard.iter().filter(|(kind, _)| *kind == ALERT).map(|(_, text)| &text[..]).collect();
    match expected.fault {
        Some(Some(alert)) if !is_short && !is_spoilt => assert_eq!(alerts, [[2, alert]]),
        Some(None) if !is_spoilt => assert!(alerts.is_empty(), "{alerts:?}"),
        None if !is_short && !is_spoilt => assert_eq!(alerts, [[1, 0]], "goodbye"),
        _ => assert!(alerts.len() <= 1, "{alerts:?}"),
    }
}

/// Seals a record, and says what must come of it.
fn sealed(ends: &mut Ends, expected: &mut Expected, kind: u8, content: &[u8], padding: usize) -> Vec<u8> {
    let padding = padding.min(CONTENT_MAX + 239 - content.len());
    let record = ends.ours.seal(kind, content, padding);
    if content.len() + padding > CONTENT_MAX {
        expected.fail(22);
        return record;
    }
    // A type of zero is padding: what stands before it is the type.
    let (kind, content) = match kind {
        0 => match content.iter().rposition(|byte| *byte != 0) {
            Some(at) => (content[at], &content[..at]),
            None => {
                expected.fail(10);
                return record;
            }
        },
        kind => (kind, content),
    };
    if expected.record(kind, content) {
        ends.ours.update();
    }
    record
}
