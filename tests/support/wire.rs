//! The simulated ring, some of whose peers speak TLS: those of listener 1. What they send is sealed
//! by rustls, and what they take is opened by it, so both sides of ours are judged by another
//! implementation. Now and then a peer changes its keys. One that leaves may leave by a fault: with
//! bytes that were bent on their way, or a record that is none.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

use fanwave::config::TlsFiles;
use fanwave::egress::sim::{Dice, SimRing};
use fanwave::egress::{Batch, Completion, EgressRing, RingError, SendMode, Slot};
use fanwave::tls::{Identity, Tls, load};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, Error, RootCertStore, ServerConfig};

use super::scratch::Scratch;

/// The listener whose peers speak TLS.
const SECURE: usize = 1;

/// A ring, and the keys of its peers.
#[derive(Debug)]
pub struct Wire {
    ring: Tls<SimRing>,
    clients: HashMap<Slot, ClientConnection>,
    /// Slots of peers that have sent what no peer may send.
    faulty: HashSet<Slot>,
    dice: Dice,
    /// One of so many peers speaks TLS; 0 for none.
    one_in: u64,
}

impl Wire {
    pub fn new(ring: SimRing, seed: u64) -> Wire {
        let (server, _) = both_ends();
        let ring = Tls::new(ring, SECURE, 2, Identity::new(server.clone()));
        Wire {
            ring,
            clients: HashMap::new(),
            faulty: HashSet::new(),
            dice: Dice::new(seed ^ 0x715),
            one_in: 0,
        }
    }

    /// One of so many peers speaks TLS from now on.
    pub fn speak_tls(&mut self, one_in: u64) {
        self.one_in = one_in;
    }

    /// True if a peer may speak TLS: the sockets take other bytes than the shard gives.
    pub fn is_secure(&self) -> bool {
        self.one_in > 0
    }

    /// True if all that peers have sent was received.
    pub fn is_heard(&self) -> bool {
        let slots = self.clients.keys();
        slots.filter(|slot| self.is_open(**slot)).all(|slot| self.unreceived(*slot) == 0)
    }

    pub fn connect(&mut self) -> Option<Slot> {
        if self.one_in == 0 || !self.dice.chance(1, self.one_in) {
            let slot = self.ring.inner_mut().connect()?;
            self.clients.remove(&slot);
            self.faulty.remove(&slot);
            return Some(slot);
        }
        let slot = self.ring.inner_mut().connect_from(Ipv4Addr::LOCALHOST, SECURE)?;
        let (_, config) = both_ends();
        let name = ServerName::try_from("localhost").expect("a name");
        let client = ClientConnection::new(config.clone(), name).expect("a client");
        self.clients.insert(slot, client);
        self.faulty.remove(&slot);
        self.flush(slot);
        Some(slot)
    }

    /// A peer leaves without a word.
    pub fn peer_resets(&mut self, slot: Slot) {
        if !self.leaves_by_a_fault(slot) {
            self.ring.inner_mut().peer_resets(slot);
        }
    }

    /// A peer leaves in order.
    pub fn peer_closes(&mut self, slot: Slot) {
        if !self.leaves_by_a_fault(slot) {
            self.ring.inner_mut().peer_closes(slot);
        }
    }

    /// Every second peer that speaks TLS does.
    fn leaves_by_a_fault(&mut self, slot: Slot) -> bool {
        let Some(client) = self.clients.get_mut(&slot) else { return false };
        if self.faulty.contains(&slot) || !self.dice.chance(1, 2) {
            return false;
        }
        let mut bytes = b"\x16\x03\x03\xff\xff".to_vec();
        if !client.is_handshaking() {
            client.writer().write_all(b"bent").expect("rustls keeps it");
            bytes = said(client);
            match self.dice.roll(4) {
                // A flipped bit, a replay, another type, a length that no record has.
                0 => *bytes.last_mut().expect("a record") ^= 1 << self.dice.roll(8),
                1 => bytes = bytes.repeat(2),
                2 => bytes[0] = 20 + self.dice.roll(3) as u8,
                _ => bytes[3] = 0xff,
            }
        }
        self.faulty.insert(slot);
        self.ring.inner_mut().peer_sends(slot, &bytes);
        true
    }

    pub fn peer_sends(&mut self, slot: Slot, bytes: &[u8]) {
        match self.clients.get_mut(&slot) {
            None => self.ring.inner_mut().peer_sends(slot, bytes),
            Some(_) if self.faulty.contains(&slot) => {}
            Some(client) => {
                client.writer().write_all(bytes).expect("rustls keeps it");
                self.flush(slot);
            }
        }
    }

    pub fn peer_takes(&mut self, slot: Slot) -> Vec<u8> {
        let sealed = self.ring.inner_mut().peer_takes(slot);
        let Some(client) = self.clients.get_mut(&slot) else { return sealed };
        let mut plain = Vec::new();
        let mut sealed = &sealed[..];
        while !sealed.is_empty() {
            // Nothing is read behind the end that the server has said.
            if client.read_tls(&mut sealed).expect("a slice can be read") == 0 {
                break;
            }
            match client.process_new_packets() {
                Ok(_) => {}
                // What comes behind its alert is nothing to it.
                Err(Error::AlertReceived(_)) if self.faulty.contains(&slot) => break,
                Err(error) => panic!("every record is as RFC 8446 wants it: {error}"),
            }
            // The end of the stream, or nothing more for now.
            let _ = client.reader().read_to_end(&mut plain);
        }
        if self.faulty.contains(&slot) {
            return plain;
        }
        if !plain.is_empty() && self.dice.chance(1, 20) {
            client.refresh_traffic_keys().expect("after the handshake");
        }
        self.flush(slot);
        plain
    }

    /// What rustls has to say.
    fn flush(&mut self, slot: Slot) {
        let Some(client) = self.clients.get_mut(&slot) else { return };
        let sealed = said(client);
        if !sealed.is_empty() {
            self.ring.inner_mut().peer_sends(slot, &sealed);
        }
    }
}

/// What rustls has to say.
pub fn said(client: &mut ClientConnection) -> Vec<u8> {
    let mut sealed = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut sealed).expect("memory can be written");
    }
    sealed
}

/// What the server and its clients need to know, made once.
pub fn both_ends() -> &'static (Arc<ServerConfig>, Arc<ClientConfig>) {
    static ENDS: OnceLock<(Arc<ServerConfig>, Arc<ClientConfig>)> = OnceLock::new();
    ENDS.get_or_init(|| {
        let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).expect("a certificate");
        let scratch = Scratch::new();
        let cert = scratch.write("cert.pem", &made.cert.pem());
        let key = scratch.write("key.pem", &made.signing_key.serialize_pem());
        let files = TlsFiles { pairs: vec![(cert.into(), key.into())], client_ca: None };
        let server = load(&files).expect("a certificate and its key");
        (server, Arc::new(client_config(made.cert.der())))
    })
}

/// A client that trusts this certificate.
fn client_config(certificate: &CertificateDer<'static>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).expect("a certificate");
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

impl Deref for Wire {
    type Target = SimRing;

    fn deref(&self) -> &SimRing {
        self.ring.inner()
    }
}

impl DerefMut for Wire {
    fn deref_mut(&mut self) -> &mut SimRing {
        self.ring.inner_mut()
    }
}

impl EgressRing for Wire {
    fn room(&self) -> usize {
        self.ring.room()
    }

    fn send(&mut self, slot: Slot, batch: &Rc<Batch>, offset: usize, mode: SendMode) {
        self.ring.send(slot, batch, offset, mode);
    }

    fn receive(&mut self, slot: Slot) {
        self.ring.receive(slot);
    }

    fn pause(&mut self, slot: Slot) {
        self.ring.pause(slot);
    }

    fn end_stream(&mut self, slot: Slot) {
        self.ring.end_stream(slot);
    }

    fn cancel(&mut self, slot: Slot) {
        self.ring.cancel(slot);
    }

    fn close(&mut self, slot: Slot) {
        self.ring.close(slot);
    }

    fn wants_submit(&mut self) -> bool {
        self.ring.wants_submit()
    }

    fn submit(&mut self) -> Result<(), RingError> {
        self.ring.submit()
    }

    fn retry_accepts(&mut self) {
        self.ring.retry_accepts();
    }

    fn allow_accepts(&mut self, more: usize, most: usize) {
        self.ring.allow_accepts(more, most);
    }

    fn hold_accepts(&mut self) {
        self.ring.hold_accepts();
    }

    fn holds_accepts(&self) -> bool {
        self.ring.holds_accepts()
    }

    fn open_accepts(&mut self) -> Result<(), RingError> {
        self.ring.open_accepts()
    }

    fn copy_listeners(&self) -> std::io::Result<Vec<OwnedFd>> {
        self.ring.copy_listeners()
    }

    fn leave_listeners(&mut self) {
        self.ring.leave_listeners();
    }

    fn reap(&mut self, handle: &mut dyn FnMut(Completion<'_>)) -> usize {
        self.ring.reap(handle)
    }

    fn may_sleep(&mut self) -> bool {
        self.ring.may_sleep()
    }

    fn awake(&mut self) {
        self.ring.awake();
    }

    fn enters(&self) -> u64 {
        self.ring.enters()
    }
}
