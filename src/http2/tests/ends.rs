//! Ends of streams and of carriers, and what still comes for them.

use super::*;

/// RFC 9113 §6.8: turn by turn around the end.
#[test]
fn a_request_that_meets_the_end_of_an_idle_carrier_is_served_or_known_to_be_unheard() {
    const TURNS_PER_TICK: u64 = 4;
    let ticks = H2_IDLE_MS_MAX / TICK_MS;
    let (mut served, mut unheard) = (0, 0);
    for turns in (ticks - 2) * TURNS_PER_TICK..(ticks + 6) * TURNS_PER_TICK {
        let mut bench = Bench::new();
        let mut peer = bench.connect(&[]);
        let (stream, request) = peer.client.get("/sse/t");
        for turn in 0..(ticks + 8) * TURNS_PER_TICK {
            if turn == turns {
                bench.sim().peer_sends(peer.slot, &request);
            }
            bench.now = Stamp(bench.now.0 + TICK_MS * 1_000_000 / TURNS_PER_TICK);
            bench.shard.turn(bench.now).expect("a turn does not fail");
        }
        bench.hear(&mut peer);
        bench.wait(LINGER_MS_MAX + 1_000);
        bench.publish(10);
        bench.hear(&mut peer);
        let heard = &peer.client.streams[&stream];
        match peer.client.goaway {
            None => {
                assert_eq!(ids(&heard.body), [1], "after {turns} turns");
                served += 1;
            }
            Some(farewell) => {
                assert_eq!((farewell, heard.status), ((0, 0), None), "after {turns} turns");
                assert!(matches!(heard.reset, None | Some(7)), "{heard:?} after {turns} turns");
                unheard += 1;
            }
        }
        assert_eq!(bench.closed(CloseReason::CarrierGone) + bench.closed(CloseReason::SocketError), 0);
    }
    assert!(served > 0 && unheard > 0, "{served} were served, and {unheard} were not");
}

/// RFC 9113 §6.8.
#[test]
fn no_farewell_names_a_later_stream_than_the_one_before() {
    let mut bench = Bench::new();
    let mut peer = bench.connect(&[]);
    let stream = bench.get(&mut peer, "/sse/t");
    let (drain, _done) = Drain::new(bench.now.plus(std::time::Duration::from_secs(60)));
    bench.sim().stall(peer.slot, true);
    bench.publish(10);
    bench.outbox.try_send(Message::Drain(drain)).expect("room");
    bench.wait(TICK_MS);
    let late = bench.get(&mut peer, "/healthz");
    bench.sim().stall(peer.slot, false);
    bench.say(&mut peer, []);
    assert_eq!(peer.client.streams[&late].reset, Some(7));
    assert_eq!(peer.client.goaway, Some((stream, 0)));
    bench.say(&mut peer, frame_of(5, 4, 1, &[0; 4]));
    bench.hear(&mut peer);
    assert_eq!(peer.client.goaway, Some((stream, 1)), "a fault says farewell again");
}

/// RFC 9113 §5.1, §5.4.2.
#[test]
fn what_was_on_its_way_for_a_stream_that_we_reset_is_read_over() {
    let mut bench = Bench::new();
    let mut peer = bench.connect(&[]);
    let (post, bytes) = peer.client.request("POST", "/topics/t", &[("content-length", "1")], false);
    bench.say(&mut peer, [bytes, frame_of(0, 0, post, b"two")].concat());
    assert_eq!(peer.client.streams[&post].reset, Some(1));
    let late = [frame_of(0, 0, post, b"more"), frame_of(8, 0, post, &[0, 0, 0, 1])].concat();
    let trailers = frame_of(1, 5, post, &block(&[("a", "b")]));
    let reset = peer.client.reset(post, 8);
    bench.say(&mut peer, [late, trailers, reset].concat());
    assert_eq!((peer.client.streams[&post].reset, peer.client.goaway), (Some(1), None), "nothing is said");
    let health = bench.get(&mut peer, "/healthz");
    assert_eq!(peer.client.take(health), b"ok\n");
    // But not without end.
    bench.say(&mut peer, frame_of(0, 0, post, b"x").repeat(500));
    bench.hear(&mut peer);
    assert_eq!(peer.client.goaway, Some((health, 11)));
    assert_eq!(bench.closed(CloseReason::H2EmptyFrames), 1);
}

/// RFC 9113 §5.1.
#[test]
fn what_comes_for_a_stream_that_its_client_has_ended_ends_the_connection() {
    let ended = |bench: &mut Bench, peer: &mut Peer| bench.get(peer, "/healthz");
    let reset = |bench: &mut Bench, peer: &mut Peer| {
        let stream = bench.get(peer, "/sse/t");
        let reset = peer.client.reset(stream, 8);
        bench.say(peer, reset);
        stream
    };
    for end in [&ended as &dyn Fn(&mut Bench, &mut Peer) -> u32, &reset] {
        for (kind, payload) in [(0, b"x".to_vec()), (1, block(&[("a", "b")]))] {
            let mut bench = Bench::new();
            let mut peer = bench.connect(&[]);
            let stream = end(&mut bench, &mut peer);
            bench.say(&mut peer, frame_of(kind, 5, stream, &payload));
            bench.hear(&mut peer);
            assert_eq!(peer.client.goaway, Some((stream, 5)), "a frame of type {kind}");
            assert_eq!(peer.client.streams[&stream].reset, None);
        }
    }
}

/// RFC 9113 §6.9: only DATA is under flow control.
#[test]
fn no_head_waits_for_a_window() {
    let mut bench = Bench::new();
    let mut peer = bench.connect(&[(WINDOW_SETTING, 1 << 20)]);
    bench.get(&mut peer, "/sse/t");
    while peer.client.window > 0 {
        bench.publish(1_000);
        bench.hear(&mut peer);
    }
    let slot = peer.slot;
    bench.sim().stall(slot, true);
    bench.say(&mut peer, frame_of(6, 0, 0, &[1; 8]));
    let [health, nowhere] = ["/healthz", "/nowhere"].map(|path| bench.get(&mut peer, path));
    assert_eq!(peer.client.streams[&health].status, None, "its socket is full");
    bench.sim().stall(slot, false);
    bench.say(&mut peer, []);
    for (stream, status) in [(health, 200), (nowhere, 404)] {
        let heard = &peer.client.streams[&stream];
        assert_eq!((heard.status, heard.body.len(), heard.ended), (Some(status), 0, false));
    }
    let more = peer.client.allow(0, 10_000);
    bench.say(&mut peer, more);
    assert_eq!(peer.client.take(health), b"ok\n");
    assert!(peer.client.streams[&nowhere].ended);
}

#[test]
fn blocks_of_fields_that_come_in_time_may_come_one_into_the_other() {
    let mut bench = Bench::new();
    let mut peer = bench.connect(&[]);
    let mut begun = Vec::new();
    for _ in 0..2 * Limits::default().handshake_ms_max / TICK_MS {
        let (stream, request) = peer.client.get("/healthz");
        let (first, rest) = request[9..].split_at(8);
        let bytes = [begun, frame_of(1, 1, stream, first)].concat();
        begun = frame_of(9, 4, stream, rest);
        bench.say(&mut peer, bytes);
        bench.wait(0);
    }
    assert_eq!(peer.client.goaway, None);
}
