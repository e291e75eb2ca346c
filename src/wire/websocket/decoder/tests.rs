//! Promises of the decoder.

use super::*;
use proptest::prelude::*;

/// What `Incoming` says, without the borrow.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Said {
    Ping(Vec<u8>),
    Pong,
    Close(Option<u16>, Option<u16>),
    Message(u64, bool),
}

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// Feeds pieces of the given sizes in turn, the last one as often as needed.
fn feed_pieces(
    decoder: &mut Decoder,
    bytes: &[u8],
    sizes: &[usize],
    max: u64,
) -> (Vec<Said>, Result<(), Violation>) {
    let mut said = Vec::new();
    let mut bytes = bytes.to_vec();
    let mut rest = &mut bytes[..];
    let mut sizes = sizes.iter().copied();
    let mut size = usize::MAX;
    while !rest.is_empty() {
        size = sizes.next().unwrap_or(size);
        let (piece, after) = rest.split_at_mut(size.min(rest.len()));
        let result = decoder.feed(piece, max, |incoming| {
            said.push(match incoming {
                Incoming::Ping(payload) => Said::Ping(payload.to_vec()),
                Incoming::Pong => Said::Pong,
                Incoming::Close { code, reply } => Said::Close(code, reply),
                Incoming::Message { bytes, text } => Said::Message(bytes, text),
                Incoming::Payload(_) => unreachable!("only a decoder that shows payload tells it"),
            });
        });
        if result.is_err() {
            return (said, result);
        }
        rest = after;
    }
    (said, Ok(()))
}

/// In one piece and byte by byte; both must agree.
fn decode(bytes: &[u8], max: u64) -> (Vec<Said>, Result<(), Violation>) {
    let whole = feed_pieces(&mut Decoder::default(), bytes, &[], max);
    assert_eq!(feed_pieces(&mut Decoder::default(), bytes, &[1], max), whole);
    whole
}

/// A client's frame; `first` is FIN, reserved bits and opcode.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        bytes @ 0..=125 => frame.push(0x80 | bytes as u8),
        bytes @ 126..=0xFFFF => {
            frame.push(0x80 | 126);
            frame.extend_from_slice(&(bytes as u16).to_be_bytes());
        }
        bytes => {
            frame.push(0x80 | 127);
            frame.extend_from_slice(&(bytes as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(&MASK);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

fn frames(frames: &[(u8, &[u8])]) -> Vec<u8> {
    frames.iter().flat_map(|(first, payload)| frame(*first, payload)).collect()
}

#[test]
fn the_masked_examples_of_the_standard_read_as_it_says() {
    // RFC 6455 §5.7: a masked text, a masked pong.
    let (said, result) = decode(b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", 5);
    assert_eq!((said, result), (vec![Said::Message(5, true)], Ok(())));
    let mut pong = *b"\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58";
    assert_eq!(decode(&pong, 0), (vec![Said::Pong], Ok(())));
    pong[0] = 0x89;
    assert_eq!(decode(&pong, 0), (vec![Said::Ping(b"Hello".to_vec())], Ok(())));
}

#[test]
fn the_unmasked_examples_of_the_standard_are_refused() {
    for example in [
        &b"\x81\x05Hello"[..],
        b"\x01\x03Hel\x80\x02lo",
        b"\x89\x05Hello",
        b"\x82\x7e\x01\x00",
        b"\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00",
    ] {
        let expected = protocol("a client's frame is not masked");
        assert_eq!(decode(example, u64::MAX), (vec![], Err(expected)), "{example:x?}");
    }
}

#[test]
fn messages_count_all_their_fragments_and_let_control_frames_pass() {
    let bytes = frames(&[
        (0x01, "Grü".as_bytes()),
        (0x89, b"?"),
        (0x00, b""),
        (0x8a, b""),
        (0x80, b"ezi"),
        (0x82, &[0xff; 126]),
        (0x82, &[0; 70_000]),
        (0x81, b""),
    ]);
    let said = [
        Said::Ping(b"?".to_vec()),
        Said::Pong,
        Said::Message(7, true),
        Said::Message(126, false),
        Said::Message(70_000, false),
        Said::Message(0, true),
    ];
    assert_eq!(decode(&bytes, 70_000), (said.to_vec(), Ok(())));
}

#[test]
fn a_character_may_be_cut_by_a_fragment_but_not_by_the_end() {
    let smile = "😀".as_bytes();
    let whole = frames(&[(0x01, &smile[..1]), (0x00, &smile[1..3]), (0x89, b""), (0x80, &smile[3..])]);
    assert_eq!(decode(&whole, 9), (vec![Said::Ping(vec![]), Said::Message(4, true)], Ok(())));
    for cut in [frame(0x81, &smile[..3]), frames(&[(0x01, &smile[..3]), (0x80, b"")])] {
        assert_eq!(decode(&cut, 9), (vec![], Err(not_utf8("a text message is not UTF-8"))));
    }
}

#[test]
fn each_violation_is_named() {
    use CloseReason::{WsNotUtf8, WsProtocol, WsTooBig};
    let table: &[(&[u8], CloseReason, &str)] = &[
        (&frame(0xC1, b""), WsProtocol, "reserved bit"),
        (&frame(0xA1, b""), WsProtocol, "reserved bit"),
        (&frame(0x91, b""), WsProtocol, "reserved bit"),
        (&frame(0x83, b""), WsProtocol, "opcode"),
        (&frame(0x87, b""), WsProtocol, "opcode"),
        (&frame(0x8B, b""), WsProtocol, "opcode"),
        (&frame(0x8F, b""), WsProtocol, "opcode"),
        (&frame(0x0B, b""), WsProtocol, "opcode"),
        (&frame(0x09, b""), WsProtocol, "control frame is fragmented"),
        (&frame(0x0A, b""), WsProtocol, "control frame is fragmented"),
        (&frame(0x08, b""), WsProtocol, "control frame is fragmented"),
        (&frame(0x89, &[0; 126]), WsProtocol, "more than 125 bytes"),
        (&frame(0x80, b"a"), WsProtocol, "continues no message"),
        (&frames(&[(0x81, b"a"), (0x80, b"b")]), WsProtocol, "continues no message"),
        (&frames(&[(0x01, b"a"), (0x81, b"b")]), WsProtocol, "inside of another"),
        (&frames(&[(0x02, b"a"), (0x02, b"b")]), WsProtocol, "inside of another"),
        (b"\x82\xfe\x00\x7d", WsProtocol, "shortest"),
        (b"\x82\xff\x00\x00\x00\x00\x00\x00\xff\xff", WsProtocol, "shortest"),
        (b"\x82\xff\x80", WsProtocol, "top bit"),
        (&frame(0x88, b"\x03"), WsProtocol, "one byte"),
        (&frame(0x88, b"\x03\xe8\xff"), WsNotUtf8, "close reason"),
        (&frame(0x81, b"\xc0\x80"), WsNotUtf8, "text message"),
        // At the header: the payload is not there.
        (b"\x82\xfe\x00\x7f", WsTooBig, "larger than allowed"),
        (b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff", WsTooBig, "larger than allowed"),
        (&[&frame(0x02, &[0; 100])[..], b"\x80\x9b"].concat(), WsTooBig, "larger than allowed"),
    ];
    for (bytes, reason, detail) in table {
        let (said, result) = decode(bytes, 126);
        let violation = result.expect_err(detail);
        assert_eq!(violation.reason, *reason, "{detail}: {bytes:x?}");
        assert!(violation.detail.contains(detail), "{detail}: {violation:?}");
        assert!(said.iter().all(|said| matches!(said, Said::Message(1, true))), "{detail}: {said:?}");
    }
}

#[test]
fn invalid_text_is_refused_before_its_frame_is_whole() {
    let mut bytes = frame(0x81, &[0xff; 100]);
    bytes.truncate(7);
    assert_eq!(decode(&bytes, 100).1, Err(not_utf8("a text message is not UTF-8")));
}

#[test]
fn only_codes_that_may_be_sent_close() {
    for code in [1000, 1001, 1003, 1007, 1011, 1014, 3000, 3999, 4000, 4999] {
        let close = frame(0x88, &[&u16::to_be_bytes(code)[..], b"bye"].concat());
        assert_eq!(decode(&close, 0), (vec![Said::Close(Some(code), Some(code))], Ok(())));
    }
    for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, u16::MAX] {
        let expected = protocol("a close code is not allowed on the wire");
        assert_eq!(decode(&frame(0x88, &code.to_be_bytes()), 0), (vec![], Err(expected)), "{code}");
    }
    assert_eq!(decode(&frame(0x88, b""), 0), (vec![Said::Close(None, Some(1000))], Ok(())));
}

#[test]
fn nothing_is_read_after_a_close_or_a_violation() {
    let bytes = frames(&[(0x89, b"1"), (0x88, b""), (0x89, b"2"), (0xFF, b"")]);
    assert_eq!(decode(&bytes, 9), (vec![Said::Ping(b"1".to_vec()), Said::Close(None, Some(1000))], Ok(())));
    let mut decoder = Decoder::default();
    assert!(feed_pieces(&mut decoder, &frame(0xFF, b""), &[], 9).1.is_err());
    assert_eq!(feed_pieces(&mut decoder, &frame(0x89, b""), &[], 9), (vec![], Ok(())));
}

#[test]
fn a_box_is_held_only_while_a_control_frame_is_cut() {
    let ping = frame(0x89, b"abcdef");
    let mut decoder = Decoder::default();
    for (bytes, held) in [(&ping[..7], true), (&ping[7..8], true), (&ping[8..], false), (&ping, false)] {
        assert_eq!(feed_pieces(&mut decoder, bytes, &[], 0).1, Ok(()));
        assert_eq!(decoder.control.is_some(), held);
    }
}

#[test]
fn every_two_cuts_of_a_conversation_give_the_same_events() {
    let bytes = frames(&[
        (0x01, "aü".as_bytes()),
        (0x89, b"ping"),
        (0x80, "😀".as_bytes()),
        (0x82, &[7; 130]),
        (0x8A, b"x"),
        (0x81, b""),
        (0x88, b"\x03\xe9bye"),
    ]);
    let expected = decode(&bytes, 130);
    assert_eq!(expected.0.len(), 6);
    for first in 0..bytes.len() {
        for second in 0..bytes.len() - first {
            let cut = feed_pieces(&mut Decoder::default(), &bytes, &[first, second, usize::MAX], 130);
            assert_eq!(cut, expected, "cut after {first} and {second} more bytes");
        }
    }
}

#[test]
fn the_payload_is_shown_whole_and_unmasked_however_it_is_cut() {
    let binary = [0xfe; 130];
    let bytes = frames(&[
        (0x01, "Grü".as_bytes()),
        (0x89, b"not payload"),
        (0x80, b"ezi"),
        (0x82, &binary),
        (0x82, b""),
        (0x88, b"\x03\xe8bye"),
    ]);
    for size in 1..=bytes.len() {
        let (mut decoder, mut messages, mut payload) = (Decoder::default(), Vec::new(), Vec::new());
        for piece in bytes.clone().chunks_mut(size) {
            let fed = decoder.feed_showing(piece, 130, |incoming| match incoming {
                Incoming::Payload(piece) => payload.extend_from_slice(piece),
                Incoming::Message { text, .. } => messages.push((text, std::mem::take(&mut payload))),
                _ => {}
            });
            assert_eq!(fed, Ok(()));
        }
        let expected = [(true, "Grüezi".into()), (false, binary.to_vec()), (false, Vec::new())];
        assert_eq!((messages.as_slice(), payload.len()), (&expected[..], 0), "in pieces of {size}");
    }
}

#[test]
fn a_caller_that_breaks_off_reads_the_next_message_later() {
    let first = frames(&[(0x89, b"1"), (0x01, b"a"), (0x80, b"b")]);
    let bytes = [first.clone(), frames(&[(0x81, b"c"), (0x82, b""), (0x8a, b"")])].concat();
    let mut decoder = Decoder::default();
    let (mut rest, mut ends, mut payloads) = (bytes.clone(), Vec::new(), Vec::new());
    let mut at = 0;
    while at < rest.len() {
        at += decoder
            .feed_until(&mut rest[at..], 9, |incoming| match incoming {
                Incoming::Message { .. } => ControlFlow::Break(()),
                Incoming::Payload(piece) => {
                    payloads.extend_from_slice(piece);
                    ControlFlow::Break(())
                }
                _ => ControlFlow::Break(()),
            })
            .expect("valid frames");
        ends.push(at);
    }
    assert_eq!(payloads, b"abc");
    assert_eq!(ends, [first.len(), first.len() + 7, first.len() + 13, bytes.len()]);
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic_and_cuts_make_no_difference(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        sizes in proptest::collection::vec(1usize..20, 1..30),
    ) {
        let whole = feed_pieces(&mut Decoder::default(), &bytes, &[], 1 << 20);
        prop_assert_eq!(feed_pieces(&mut Decoder::default(), &bytes, &sizes, 1 << 20), whole);
    }

    #[test]
    fn almost_valid_frames_never_panic_and_cuts_make_no_difference(
        frames in proptest::collection::vec(
            (any::<u8>(), proptest::collection::vec(0u8..0x80, 0..140)),
            0..5,
        ),
        size in 1usize..40,
    ) {
        let frames = frames.iter().map(|(first, payload)| frame(first & 0x8F, payload));
        let bytes: Vec<u8> = frames.flatten().collect();
        let whole = feed_pieces(&mut Decoder::default(), &bytes, &[], 1 << 20);
        prop_assert_eq!(feed_pieces(&mut Decoder::default(), &bytes, &[size], 1 << 20), whole);
    }
}
