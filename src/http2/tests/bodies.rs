//! Bodies of requests: what holds them up, and what a client may send meanwhile.

use serde_json::json;

use super::*;
use crate::auth::{Key, KeySet, Signer};
use crate::config::TokenRules;
use crate::config::limits::VERIFICATIONS_PER_TURN_MAX;
use crate::egress::{Completion, EgressRing, ReceiveEnd};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const NOW_S: u64 = 1_800_000_000;

/// A carrier whose streams nobody but the test asks for anything.
struct Bare {
    ring: Http2<SimRing>,
    slot: Slot,
    client: Client,
    opened: Vec<Slot>,
    /// What was heard of streams, one behind the other.
    heard: Vec<u8>,
    ended: Vec<(Slot, ReceiveEnd)>,
}

impl Bare {
    fn new(streams_max: usize) -> Bare {
        let rules = StreamRules {
            first_slot: 4,
            streams_max,
            per_carrier_max: 10,
            head_bytes_max: 8_192,
            head_ms_max: 10_000,
            stall_ms_max: 10_000,
        };
        let mut ring = Http2::new(SimRing::new(4, Weather::Fair, 1).recording(), rules);
        let slot = ring.inner_mut().connect().expect("a free socket");
        ring.reap(&mut |_| {});
        let mut client = Client::default();
        ring.carry(slot, client.hello(&[]), false);
        ring.receive(slot);
        let mut bare = Bare { ring, slot, client, opened: vec![], heard: vec![], ended: vec![] };
        bare.say([]);
        bare
    }

    fn say(&mut self, bytes: impl AsRef<[u8]>) {
        self.ring.inner_mut().peer_sends(self.slot, bytes.as_ref());
        for _ in 0..4 {
            self.ring.submit().expect("the simulated ring does not fail");
            self.ring.reap(&mut |completion| match completion {
                Completion::StreamOpened { slot, .. } => self.opened.push(slot),
                Completion::Received { bytes, .. } => self.heard.extend_from_slice(bytes),
                Completion::ReceiveEnded { slot, end } => self.ended.push((slot, end)),
                _ => {}
            });
        }
        let told = self.ring.inner_mut().peer_takes(self.slot);
        self.client.hear(&told);
    }

    /// A publish without its body. Returns its number, and its slot.
    fn post(&mut self) -> (u32, Slot) {
        let (id, bytes) = self.client.request("POST", "/topics/t", &[], false);
        self.say(bytes);
        assert!(self.heard.starts_with(b"POST /topics/t "), "{}", self.heard.escape_ascii());
        self.heard.clear();
        (id, *self.opened.last().expect("it came"))
    }
}

#[test]
fn a_stream_may_be_paused_before_anything_was_asked_for_it() {
    let mut bare = Bare::new(1);
    let (id, slot) = bare.post();
    bare.ring.pause(slot);
    bare.say(frame_of(0, 0, id, &[b'x'; 16_384]).repeat(3));
    assert_eq!(bare.ended, [(slot, ReceiveEnd::Cancelled)]);
    assert_eq!((bare.heard.len(), bare.client.updates.len()), (0, 0), "nothing of it is read");
    bare.ring.receive(slot);
    bare.say([]);
    assert_eq!(bare.heard.iter().filter(|byte| **byte == b'x').count(), 3 * 16_384);
    assert_eq!(bare.client.updates, [(0, 3 * 16_384), (id, 3 * 16_384)], "and now there is room again");
}

#[test]
fn what_a_stream_was_held_up_with_goes_with_it() {
    let mut bare = Bare::new(1);
    let (id, slot) = bare.post();
    bare.ring.pause(slot);
    bare.say(frame_of(0, 0, id, b"of the first"));
    bare.ring.cancel(slot);
    bare.ring.close(slot);
    bare.say([]);
    assert_eq!(bare.client.streams[&id].reset, Some(8));
    let (id, next) = bare.post();
    assert_eq!(next, slot, "there is one place alone");
    bare.ring.pause(slot);
    bare.say(frame_of(0, 1, id, b"of the second"));
    bare.ring.receive(slot);
    bare.say([]);
    assert_eq!(bare.heard, b"d\r\nof the second\r\n0\r\n\r\n");
}

/// A token of its own for each publish, of which a turn checks a few.
#[test]
fn a_publish_that_waits_for_the_check_of_its_token_takes_no_more_than_its_window() {
    let keys = KeySet::of(Key::from_secret(SECRET).expect("a secret"));
    let mut bench = Bench::of(Config {
        tokens: TokenRules { hs256: Some(keys), ..TokenRules::default() },
        client_publish: vec!["t".parse().expect("a pattern")],
        ..Config::default()
    });
    bench.shard.set_time(NOW_S * 1_000, bench.now);
    let mut peer = bench.connect(&[]);
    let signer = Signer::from_secret(SECRET).expect("a secret");
    let mut ask = |seconds: u64| {
        let fanwave = json!({ "subscribe": ["t"], "publish": ["t"] });
        let token = signer.sign(&json!({ "exp": NOW_S + seconds, "fanwave": fanwave })).expect("a token");
        let bearer = format!("Bearer {token}");
        peer.client.request("POST", "/topics/t", &[("authorization", &bearer)], false)
    };
    // Their bodies do not come.
    let others = 6 * VERIFICATIONS_PER_TURN_MAX as u64;
    let mut requests: Vec<u8> = (0..others).flat_map(|other| ask(60 + other).1).collect();
    let (post, bytes) = ask(5_000);
    requests.extend(bytes);
    bench.sim().peer_sends(peer.slot, &requests);
    // The requests come, and the first tokens are checked.
    for _ in 0..2 {
        bench.shard.turn(bench.now).expect("a turn does not fail");
    }
    let body = [frame_of(0, 0, post, &[b'x'; 16_000]).repeat(3), frame_of(0, 1, post, b"end")].concat();
    bench.sim().peer_sends(peer.slot, &body);
    for _ in 0..2 {
        bench.shard.turn(bench.now).expect("a turn does not fail");
    }
    let told = bench.sim().peer_takes(peer.slot);
    peer.client.hear(&told);
    assert!(bench.shard.metrics().tokens.checked < others, "it waits still");
    assert_eq!(peer.client.updates, [], "nobody reads its body");
    for _ in 0..others {
        bench.hear(&mut peer);
    }
    let Some(Publish { event, ticket, .. }) = bench.outbox.uplink().take() else { panic!("it came") };
    assert_eq!(event.data.bytes().len(), 48_003);
    bench.outbox.answer(vec![Answer {
        ticket,
        outcome: Ok(Taken { epoch: Epoch(7), sequence: 9, duplicate: false }),
    }]);
    bench.hear(&mut peer);
    assert_eq!(peer.client.streams[&post].status, Some(200));
}

#[test]
fn a_frame_of_a_body_has_the_time_of_a_body() {
    let mut bench = Bench::new();
    let mut peer = bench.connect(&[]);
    let (post, bytes) = peer.client.request("POST", "/topics/t", &[("content-length", "5")], false);
    bench.say(&mut peer, bytes);
    let data = frame_of(0, 1, post, b"hello");
    bench.say(&mut peer, &data[..11]);
    bench.wait(POST_BODY_MS_MAX / 2);
    bench.hear(&mut peer);
    assert_eq!(peer.client.goaway, None);
    bench.say(&mut peer, &data[11..]);
    let Some(Publish { event, .. }) = bench.outbox.uplink().take() else { panic!("it came") };
    assert_eq!(event.data.bytes(), &b"hello"[..]);
}

/// It may not fill our memory with the room that it is given.
#[test]
fn a_client_that_sends_without_end_and_reads_nothing_is_cut() {
    let mut bench = Bench::new();
    let mut peer = bench.connect(&[]);
    let (post, bytes) = peer.client.request("POST", "/topics/t", &[], false);
    bench.say(&mut peer, bytes);
    let slot = peer.slot;
    bench.sim().stall(slot, true);
    bench.say(&mut peer, frame_of(6, 0, 0, &[1; 8]));
    let megabyte = frame_of(0, 0, post, &[b'x'; 16_384]).repeat(64);
    for _ in 0..40 {
        bench.say(&mut peer, &megabyte);
    }
    assert_eq!(bench.closed(CloseReason::Stalled), 1);
    bench.wait(LINGER_MS_MAX);
    assert!(!bench.sim().is_open(slot));
}
