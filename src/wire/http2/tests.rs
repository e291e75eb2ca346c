use proptest::prelude::*;

use super::frame::{Header, WINDOW, flag, kind, without_padding};
use super::hpack::{Decoder, Scratch, Unreadable, push_field, push_no_table, push_status};
use super::request::{Body, Request};
use super::settings::Settings;
use super::*;

type Fields = Vec<(String, String)>;

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).expect("hex"));
    pairs.map(|pair| u8::from_str_radix(pair, 16).expect("hex")).collect()
}

fn read(decoder: &mut Decoder, block: &[u8]) -> Result<Fields, Unreadable> {
    let mut fields = Fields::new();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let each = &mut |name: &[u8], value: &[u8]| {
        fields.push((text(name), text(value)));
        true
    };
    assert!(decoder.read(block, &mut Scratch::default(), each)?, "to its end");
    Ok(fields)
}

fn fields(pairs: &[(&str, &str)]) -> Fields {
    pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

/// RFC 7541, C.3 and C.4: three requests on one connection, plain and with Huffman codes.
#[test]
fn the_requests_of_the_standard_are_read() {
    let host = (":authority", "www.example.com");
    let first = [(":method", "GET"), (":scheme", "http"), (":path", "/"), host];
    let second = [first.as_slice(), &[("cache-control", "no-cache")]].concat();
    let third = [
        (":method", "GET"),
        (":scheme", "https"),
        (":path", "/index.html"),
        host,
        ("custom-key", "custom-value"),
    ];
    for blocks in [
        [
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ],
        [
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        ],
    ] {
        let mut decoder = Decoder::default();
        for (block, expected) in blocks.iter().zip([&first[..], &second, &third]) {
            assert_eq!(read(&mut decoder, &hex(block)), Ok(fields(expected)), "{block}");
        }
    }
}

/// RFC 7541, C.6: a table of 256 bytes, from which fields fall out.
#[test]
fn a_full_table_lets_go_of_the_oldest_fields() {
    let blocks = [
        "3fe101 4882 6402 5885 aec3 771a 4b61 96d0 7abe 9410 54d4 44a8 2005 9504 0b81 66e0 82a6 2d1b ff6e \
         919d 29ad 1718 63c7 8f0b 97c8 e9ae 82ae 43d3",
        "4883 640e ffc1 c0bf",
        "88c1 6196 d07a be94 1054 d444 a820 0595 040b 8166 e084 a62d 1bff c05a 839b d9ab 77ad 94e7 821d \
         d7f2 e6c7 b335 dfdf cd5b 3960 d5af 2708 7f36 72c1 ab27 0fb5 291f 9587 3160 65c0 03ed 4ee5 b106 \
         3d50 07",
    ];
    let mut decoder = Decoder::default();
    let read: Vec<_> = blocks.iter().map(|block| read(&mut decoder, &hex(block)).expect("a block")).collect();
    assert_eq!(read[0][0], (":status".into(), "302".into()));
    let (date, location) =
        (("date", "Mon, 21 Oct 2013 20:13:21 GMT"), ("location", "https://www.example.com"));
    let private = ("cache-control", "private");
    assert_eq!(read[1], fields(&[(":status", "307"), private, date, location]));
    assert_eq!(read[2][4], ("content-encoding".into(), "gzip".into()));
    assert!(read[2][5].1.starts_with("foo=ASDJKHQKBZXOQWEOPIUAXQWEOIU; max-age=3600"));
}

#[test]
fn a_block_that_cannot_be_read_is_told() {
    for (block, what) in [
        ("80", "index 0"),
        ("be", "a field that nobody has told"),
        ("ff ff ff ff ff 7f", "an integer without an end"),
        ("40 05 61", "a name that breaks off"),
        ("00 01 61", "no value"),
        ("00 01 61 81 ff", "a text that is padded with a whole byte"),
        ("00 01 61 81 00", "padding of zeros"),
        ("00 01 61 84 ff ff ff ff", "the end of a text within a text"),
        ("3f e2 1f", "a larger table than allowed"),
        ("82 20", "the size of a table behind a field"),
        ("20 be", "what the table has let go"),
    ] {
        let mut decoder = Decoder::default();
        assert_eq!(read(&mut decoder, &hex(block)), Err(Unreadable), "{what}");
    }
}

/// RFC 9113 §4.3.1.
#[test]
fn once_we_remember_nothing_a_client_says_so_first() {
    let told = || {
        let mut decoder = Decoder::default();
        read(&mut decoder, &hex("40 01 61 01 62")).expect("a field to be remembered");
        assert_eq!(read(&mut decoder, &hex("be")), Ok(fields(&[("a", "b")])));
        decoder.forget();
        decoder
    };
    assert_eq!(read(&mut told(), &hex("82")), Err(Unreadable));
    assert_eq!(read(&mut told(), &hex("21 82")), Err(Unreadable), "a table of one byte");
    assert_eq!(read(&mut told(), &hex("20 be")), Err(Unreadable));
    let mut decoder = told();
    assert_eq!(read(&mut decoder, &hex("20 82")), Ok(fields(&[(":method", "GET")])));
    assert_eq!(read(&mut decoder, &hex("40 01 61 01 62")), Ok(fields(&[("a", "b")])), "it is not kept");
    assert_eq!(read(&mut decoder, &hex("be")), Err(Unreadable));
}

#[test]
fn our_statuses_are_short_where_the_standard_has_a_word_for_them() {
    let mut block = Vec::new();
    push_no_table(&mut block);
    push_status(&mut block, b"200");
    assert_eq!(block, [0x20, 0x88]);
    push_status(&mut block, b"503");
    let expected = fields(&[(":status", "200"), (":status", "503")]);
    assert_eq!(read(&mut Decoder::default(), &block), Ok(expected));
}

#[test]
fn a_head_of_http_1_becomes_fields_without_those_of_its_connection() {
    let answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\
        X-Accel-Buffering:  no\r\nUpgrade: websocket\r\nConnection: close\r\n\r\nid: 7\n\n";
    let mut block = Vec::new();
    let length = response::push_head(answer, &mut block).expect("a head");
    assert_eq!(&answer[length..], b"id: 7\n\n");
    let expected = [(":status", "200"), ("content-type", "text/event-stream"), ("x-accel-buffering", "no")];
    assert_eq!(read(&mut Decoder::default(), &block), Ok(fields(&expected)));
    assert!(response::push_head(b"HTTP/1.1 200 OK\r\nA: b\r\n", &mut block).is_err());
}

fn request(pairs: &[(&str, &str)], is_over: bool, head_bytes_max: usize) -> Result<(Body, String), Fault> {
    let mut request = Request::default();
    request.begin(head_bytes_max);
    assert!(pairs.iter().all(|(name, value)| request.take(name.as_bytes(), value.as_bytes())));
    let mut head = Vec::new();
    let body = request.finish(is_over, &mut head)?;
    Ok((body, String::from_utf8(head).expect("UTF-8")))
}

const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "https"), (":path", "/sse/a?x=1"), (":authority", "h:1")];

#[test]
fn a_request_is_told_as_a_head_of_http_1() {
    let browser = [&GET[..], &[("cookie", "a=1"), ("accept", "*/*"), ("te", "trailers"), ("cookie", "b=2")]];
    let head = "GET /sse/a?x=1 HTTP/1.0\r\nHost: h:1\r\naccept: */*\r\nCookie: a=1; b=2\r\n\
        Connection: close\r\n\r\n";
    assert_eq!(request(&browser.concat(), true, 8_192), Ok((Body::None, head.into())));
    let post =
        [(":method", "POST"), (":path", "/topics/a"), (":scheme", "http"), ("host", "h"), ("expect", "x")];
    let (body, head) = request(&post, false, 8_192).expect("a request");
    assert_eq!(body, Body::Chunked);
    assert_eq!(
        head,
        "POST /topics/a HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    );
    let known = [&post[..], &[("content-length", "3")]].concat();
    let (body, head) = request(&known, false, 8_192).expect("a request");
    assert!(body == Body::Known(3) && head.contains("\r\nContent-Length: 3\r\n"), "{head}");
    let connect = [(":method", "CONNECT"), (":authority", "h:1")];
    assert!(request(&connect, false, 8_192).expect("a request").1.starts_with("CONNECT / HTTP/1.0\r\n"));
}

/// RFC 9113 §8.1.1, §8.2, §8.3.
#[test]
fn a_malformed_request_has_no_head() {
    let without = |name: &str| GET.into_iter().filter(|field| field.0 != name).collect::<Vec<_>>();
    let with = |name, value| [&GET[..], &[(name, value)]].concat();
    let instead = |name: &'static str, value| [&without(name)[..], &[(name, value)]].concat();
    for pairs in [
        without(":method"),
        without(":scheme"),
        without(":path"),
        with(":path", "/again"),
        with(":protocol", "websocket"),
        with(":status", "200"),
        [&[("accept", "*/*")], &GET[..]].concat(),
        instead(":path", ""),
        instead(":path", "/a b"),
        instead(":path", "/a HTTP/1.1\r\nx: y"),
        instead(":method", "GE T"),
        instead(":method", ""),
        with("Accept", "*/*"),
        with("a b", "c"),
        with("", "c"),
        with("a:", "c"),
        with("a", "b\r\nc: d"),
        with("a", "b\nc"),
        with("a", "b\0"),
        with("a", " b"),
        with("a", "b\t"),
        with("connection", "close"),
        with("transfer-encoding", "chunked"),
        with("upgrade", "websocket"),
        with("te", "gzip"),
        with("content-length", "1"),
        with("content-length", "x"),
        with("content-length", "+0"),
        [with("content-length", "0"), vec![("content-length", "1")]].concat(),
        [with("host", "a"), vec![("host", "b")]].concat(),
        with(":authority", "h:1"),
        vec![(":method", "CONNECT")],
        vec![(":method", "CONNECT"), (":authority", "h"), (":path", "/"), (":scheme", "http")],
    ] {
        assert_eq!(request(&pairs, true, 8_192), Err(Fault::PROTOCOL), "{pairs:?}");
    }
}

#[test]
fn a_head_that_is_too_large_is_told_as_far_as_it_may_go() {
    let long = "x".repeat(200);
    let (_, head) = request(&[&GET[..], &[("a", &long)]].concat(), true, 200).expect("a head");
    assert!(head.starts_with("GET /sse/a?x=1 HTTP/1.0\r\n") && head.len() > 200, "{head}");
    assert!(!head.contains("\r\n\r\n"));
}

/// RFC 9113 §10.5.1: fields of 4,000 bytes, which a table makes of a byte each, as values or as
/// names of others, and the shortest ones, which count 33.
#[test]
fn a_bomb_of_fields_is_read_as_far_as_a_request_may_go() {
    let remembered = [&[0x40, 1, b'a', 0x7f, 0xa1, 0x1e][..], &[b'x'; 4_000]].concat();
    let name = [&[0x40, 0x7f, 0xa1, 0x1e][..], &[b'x'; 4_000], &[1, b'a']].concat();
    let short = [0, 1, b'a', 0];
    for (first, each, counted) in
        [(remembered, &[0xbe][..], 4_033), (name, &[0x0f, 0x2f, 0], 4_033), (vec![], &short, 33)]
    {
        let block = [&first[..], &each.repeat(20_000)].concat();
        let (mut request, mut told) = (Request::default(), 0);
        request.begin(8_192);
        let take = &mut |name: &[u8], value: &[u8]| {
            told += name.len() + value.len() + 32;
            request.take(name, value)
        };
        assert_eq!(Decoder::default().read(&block, &mut Scratch::default(), take), Ok(false));
        assert!((8_192..=90_112 + counted).contains(&told), "{told} bytes of fields of {counted}");
        let mut head = Vec::new();
        let _ = request.finish(true, &mut head);
        assert!(head.len() < 16_500, "{} bytes of a head", head.len());
    }
}

#[test]
fn the_most_fields_that_a_head_may_have_are_no_bomb() {
    let mut request = Request::default();
    request.begin(8_192);
    assert!(GET.iter().all(|(name, value)| request.take(name.as_bytes(), value.as_bytes())));
    let left = 8_192 - GET.iter().map(|(name, value)| name.len() + value.len() + 4).sum::<usize>();
    assert!((0..left / 5).all(|_| request.take(b"a", b"")));
    let mut head = Vec::new();
    assert_eq!(request.finish(true, &mut head), Ok(Body::None));
    assert!(head.ends_with(b"a: \r\nConnection: close\r\n\r\n"), "{} bytes", head.len());
}

#[test]
fn padding_and_priority_are_cut_off() {
    let header = |kind, flags| Header { length: 0, kind, flags, stream: 1 };
    let data = header(kind::DATA, flag::PADDED);
    assert_eq!(without_padding(data, &[2, b'a', b'b', 0, 0]), Some(&b"ab"[..]));
    assert_eq!(without_padding(data, &[2, 0, 0]), Some(&b""[..]));
    assert_eq!(without_padding(data, &[3, 0, 0]), None);
    assert_eq!(without_padding(data, &[]), None);
    let fields = header(kind::HEADERS, flag::PADDED | flag::PRIORITY);
    assert_eq!(without_padding(fields, &[1, 0, 0, 0, 0, 9, b'a', 0]), Some(&b"a"[..]));
    assert_eq!(without_padding(fields, &[1, 0, 0, 0, 0]), None);
}

/// RFC 9113 §6.5.2.
#[test]
fn settings_are_within_their_bounds() {
    let apply = |setting: u16, value: u32| {
        let payload = [&setting.to_be_bytes()[..], &value.to_be_bytes()].concat();
        let mut settings = Settings::default();
        settings.apply(&payload).map(|()| settings)
    };
    assert_eq!(apply(4, 0).expect("a window").window, 0);
    assert_eq!(apply(5, 20_000).expect("a size").payload_max, 20_000);
    assert_eq!(apply(99, 7), Ok(Settings { window: WINDOW, ..Settings::default() }));
    assert_eq!(apply(2, 2), Err(Fault::PROTOCOL));
    assert_eq!(apply(4, 1 << 31), Err(Fault::FLOW_CONTROL));
    assert_eq!(apply(5, 16_383), Err(Fault::PROTOCOL));
    assert_eq!(apply(5, 1 << 24), Err(Fault::PROTOCOL));
    assert_eq!(Settings::default().apply(&[0; 5]), Err(Fault::FRAME_SIZE));
}

#[test]
fn a_preface_is_known_by_its_first_byte_on() {
    assert!((1..=24).all(|end| begins_preface(&PREFACE[..end])));
    assert!(begins_preface(&[&PREFACE[..], b"more"].concat()));
    assert!(!begins_preface(b"") && !begins_preface(b"POST /") && !begins_preface(b"PRI * HTTP/2.1"));
}

proptest! {
    #[test]
    fn what_we_write_is_read_as_it_was(pairs in prop::collection::vec(("[a-z-]{1,9}", "\\PC{0,300}"), 0..9)) {
        let mut block = Vec::new();
        push_no_table(&mut block);
        pairs.iter().for_each(|(name, value)| push_field(&mut block, name.as_bytes(), value.as_bytes()));
        prop_assert_eq!(read(&mut Decoder::default(), &block), Ok(pairs));
    }

    #[test]
    fn any_bytes_are_a_block_or_none(blocks in prop::collection::vec(any::<Vec<u8>>(), 0..4)) {
        let mut decoder = Decoder::default();
        for block in blocks {
            let _ = read(&mut decoder, &block);
        }
    }

    #[test]
    fn a_frames_header_is_read_as_it_was(length in 0usize..1 << 24, kind: u8, flags: u8, stream in 0u32..1 << 31) {
        let header = Header { length, kind, flags, stream };
        prop_assert_eq!(Header::read(header.bytes()), header);
    }
}
