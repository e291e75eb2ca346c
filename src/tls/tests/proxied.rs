//! Promise: a PROXY header before TLS tells who connects, in whatever pieces it comes, and neither
//! takes anything from the handshake nor gives it anything. What is no such header ends the
//! connection with a word.

use proptest::prelude::*;

use super::*;
use crate::wire::proxy::fixtures::{v1, v2};

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// Both addresses, and their second listeners, expect the header; the plain one is the shard's.
fn behind(listener: usize) -> Bench {
    let inner = SimRing::new(4, Weather::Fair, 7).recording();
    let ring = Tls::new(inner, 1, 2, Identity::new(ends().0.clone()));
    Bench::over(ring.behind_proxies(vec![true, true]), listener)
}

fn new_client() -> ClientConnection {
    let name = ServerName::try_from("localhost").expect("a name");
    ClientConnection::new(ends().1.clone(), name).expect("a client")
}

impl Bench {
    /// The handshake goes on, and a request behind it is heard.
    fn comes_in(&mut self, client: &mut ClientConnection, told: Option<SocketAddr>) {
        for _ in 0..3 {
            self.exchange(client).expect("a handshake");
        }
        let sealed = record(client, b"GET /sse/t");
        self.sends(&sealed);
        assert_eq!((self.heard.as_slice(), self.end), (&b"GET /sse/t"[..], None));
        assert_eq!((self.introduced.as_slice(), self.secured), (&[(told, false)][..], 1));
        self.send("welcome");
        assert_eq!(self.exchange(client), Ok(b"welcome".to_vec()));
        let session = self.ring.layer.session(self.slot).expect("it is there");
        assert!(session.cold().is_none(), "nothing is left of the header: {session:?}");
    }

    /// The shard closes it. Returns the last words.
    fn closes(&mut self) -> Vec<u8> {
        self.ring.close(self.slot);
        self.turn();
        assert_eq!(self.closed, 1);
        self.takes()
    }
}

#[test]
fn a_header_is_read_wherever_it_is_cut_and_the_handshake_begins_behind_it() {
    let (four, six) = (address("198.51.100.7:50000"), address("[2001:db8::7]:443"));
    let headers = [
        (v1(four), Some(four)),
        (v2(four, b""), Some(four)),
        (v2(six, b"\x04\0\x01\0"), Some(six)),
        (b"PROXY UNKNOWN\r\n".to_vec(), None),
        // The proxy itself, to see whether we live.
        (b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0".to_vec(), None),
    ];
    for (header, told) in headers {
        for cut in 0..header.len() + 7 {
            let (mut bench, mut client) = (behind(1), new_client());
            let whole = [&header[..], &says(&mut client)].concat();
            if cut > 0 {
                bench.sends(&whole[..cut]);
            }
            assert_eq!(bench.introduced.len(), usize::from(cut >= header.len()), "cut at {cut}");
            bench.sends(&whole[cut..]);
            bench.comes_in(&mut client, told);
        }
    }
}

#[test]
fn a_header_may_come_byte_by_byte_and_with_all_that_a_client_can_say_behind_it() {
    let four = address("198.51.100.7:50000");
    for listener in [1, 3] {
        // As long as a header may be.
        let header = v2(four, &[b'x'; (4 << 10) - 28]);
        let (mut bench, mut client) = (behind(listener), new_client());
        for byte in [&header[..], &says(&mut client)].concat() {
            bench.sends(&[byte]);
        }
        bench.comes_in(&mut client, Some(four));
    }
}

#[test]
fn plain_addresses_are_the_shards_to_read() {
    let header = v1(address("198.51.100.7:50000"));
    for listener in [0, 2] {
        let mut bench = behind(listener);
        bench.sends(&header);
        assert_eq!((bench.heard.as_slice(), bench.introduced.len()), (&header[..], 0));
    }
}

/// What a peer says in place of a header, and what of the detail and of the answer is to be seen.
#[test]
fn what_is_no_header_is_refused_with_a_word_in_the_protocol_of_its_peer() {
    let alert: &[u8] = &[21, 3, 3, 0, 2, 2, 10];
    let hello = says(&mut new_client());
    let overlong = [&b"PROXY UNKNOWN "[..], &[b'x'; 200]].concat();
    let cases: [(&[u8], &str, &[u8]); 10] = [
        (&hello, "expected here", alert),
        (b"\x15\x03\x03\0\x02\x02\x0a", "expected here", b""),
        (b"\0\x01\x02", "expected here", alert),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1\r\n", "form", alert),
        (&overlong, "more than 107", alert),
        (b"\r\n\r\n\0\r\nQUIT\n\x11\x11\0\x0c", "version", alert),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0c", "not of a TCP", alert),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0b", "too short", alert),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff", "more than 4096", alert),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "expected here", b"HTTP/1.1 400 "),
    ];
    for (bytes, word, said) in cases {
        for step in [1, bytes.len()] {
            let mut bench = behind(1);
            bytes.chunks(step).for_each(|part| bench.sends(part));
            let Some(ReceiveEnd::Insecure(Insecure::Header(detail))) = bench.end else {
                panic!("{}: {:?}", bytes.escape_ascii(), bench.end)
            };
            assert!(detail.contains(word), "{}: {detail}", bytes.escape_ascii());
            assert_eq!((bench.introduced.len(), bench.secured, bench.ends), (0, 0, 1));
            let answer = bench.closes();
            assert!(answer.starts_with(said), "{}: {answer:?}", bytes.escape_ascii());
            match answer.starts_with(b"HTTP") {
                true => {
                    let text = String::from_utf8(answer).expect("text");
                    let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
                    assert!(body.contains("a PROXY header is expected here"), "{text}");
                    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{text}");
                }
                false => assert_eq!(answer.len(), said.len()),
            }
        }
    }
}

#[test]
fn a_header_that_breaks_off_is_told_from_a_client_that_said_nothing() {
    let header = v1(address("198.51.100.7:50000"));
    for cut in 0..=header.len() {
        let mut bench = behind(1);
        if cut > 0 {
            bench.sends(&header[..cut]);
        }
        bench.ring.inner_mut().peer_closes(bench.slot);
        bench.turn();
        let expected = match cut {
            0 => ReceiveEnd::EndOfStream,
            all if all == header.len() => ReceiveEnd::EndOfStream,
            _ => ReceiveEnd::Insecure(Insecure::Header("the PROXY header breaks off")),
        };
        assert_eq!((bench.end, bench.ends), (Some(expected), 1), "cut at {cut}");
        bench.closes();
    }
}

#[test]
fn a_header_where_none_is_expected_is_no_handshake() {
    let four = address("198.51.100.7:50000");
    for header in [v1(four), v2(four, b"")] {
        let (mut bench, mut client) = (Bench::new(), new_client());
        bench.sends(&[&header[..], &says(&mut client)].concat());
        assert_eq!(bench.end, Some(ReceiveEnd::Insecure(Insecure::Handshake)));
        assert_eq!((bench.introduced.len(), bench.closes()), (0, vec![21, 3, 3, 0, 2, 2, 10]));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_client_is_known_in_any_pieces(
        client: SocketAddr,
        more in proptest::collection::vec(any::<u8>(), 0..300),
        version in 1..=2,
        mut cuts in proptest::collection::vec(0..700_usize, 0..12),
    ) {
        let told = SocketAddr::new(client.ip(), client.port());
        let header = if version == 1 { v1(told) } else { v2(told, &more) };
        let (mut bench, mut client) = (behind(1), new_client());
        let whole = [&header[..], &says(&mut client)].concat();
        cuts.extend([0, whole.len()]);
        cuts.iter_mut().for_each(|cut| *cut = (*cut).min(whole.len()));
        cuts.sort_unstable();
        cuts.dedup();
        for part in cuts.windows(2) {
            bench.sends(&whole[part[0]..part[1]]);
            prop_assert_eq!(bench.introduced.len(), usize::from(part[1] >= header.len()));
        }
        bench.comes_in(&mut client, Some(told));
    }
}
