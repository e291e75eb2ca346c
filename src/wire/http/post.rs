//! The head of `POST /topics/{topic}` on the data plane.
//!
//! Unlike other requests here it has a body, and its connection may carry further ones. What is
//! wrong with the head itself is told as with every other request; what the publish says is the
//! caller's matter. The parts of the head are shown where they lie.

use std::borrow::Cow;

use super::body::BodyLength;
use super::credentials::token_of;
use super::fields::Fields;
use super::origin::{Cors, Foreign};
use super::target::{Route, Target, is_topic_target, without_token};
use super::{HEADERS_MAX, HeadRules, Manner, RefusedRequest, Token, malformed, refuse, too_large};
use crate::close::CloseReason;

/// What becomes of a connection after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// It ends.
    Close,
    /// It carries the next request.
    Open,
    /// The same, and is said so: an HTTP/1.0 client asked for it.
    OpenAsAsked,
}

/// A publish whose head is whole.
#[derive(Debug, PartialEq, Eq)]
pub struct Post<'a> {
    /// The name of the topic in the path, still escaped.
    pub topic: &'a str,
    /// Still escaped, without a token if those are looked for.
    pub query: Option<Cow<'a, str>>,
    /// What follows the head.
    pub length: BodyLength,
    /// `application/octet-stream`.
    pub is_binary: bool,
    /// How the body is encoded, if it is.
    pub content_coding: Option<&'a [u8]>,
    /// The client sends the body once it is told to (RFC 9110 §10.1.1).
    pub awaits_continue: bool,
    /// No page asks, or one that may.
    pub admitted: Result<(), Foreign>,
    /// What becomes of the connection, if all goes well.
    pub keep: Keep,
    /// Who may read the answer.
    pub cors: Cors,
    /// What it brings to be let in.
    pub token: Option<Token>,
    /// Bytes of the head.
    pub head_bytes: usize,
}

/// What a head that begins like a publish is.
#[derive(Debug, PartialEq, Eq)]
pub enum PostHead<'a> {
    /// Not whole.
    Partial,
    /// A publish.
    Post(Post<'a>),
    /// Something that we answer with an error.
    Refused(RefusedRequest, Manner),
}

/// True if a request head begins with the request line of a publish, as far as it goes.
pub fn begins_post(head: &[u8]) -> bool {
    head.strip_prefix(b"POST ").is_some_and(is_topic_target)
}

/// Reads the head of a request for which [`begins_post`] is true. Call again with more bytes while
/// it is [`PostHead::Partial`]; that ends at `head_bytes_max` bytes at the latest.
pub fn parse_post<'a>(bytes: &'a [u8], rules: &HeadRules<'_>) -> PostHead<'a> {
    let allowed = &bytes[..bytes.len().min(rules.head_bytes_max)];
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let status = request.parse(allowed);
    let fields = Fields(request.headers);
    let cors = rules.origins.cors(fields.origin());
    let refused = |refusal, cors| PostHead::Refused(refusal, Manner { cors, ..Manner::default() });
    match status {
        Ok(httparse::Status::Complete(head_bytes)) => {
            let http_1_0 = request.version == Some(0);
            let target = request.path.unwrap_or_default();
            match interpret(&fields, target, http_1_0, rules, cors.clone()) {
                Ok(post) => PostHead::Post(Post { head_bytes, ..post }),
                Err(refusal) => refused(refusal, cors),
            }
        }
        Ok(httparse::Status::Partial) if allowed.len() < rules.head_bytes_max => PostHead::Partial,
        Ok(httparse::Status::Partial) => refused(too_large(allowed), cors),
        Err(error) => refused(malformed(allowed, error), cors),
    }
}

fn interpret<'a>(
    fields: &Fields<'_, 'a>,
    target: &'a str,
    http_1_0: bool,
    rules: &HeadRules<'_>,
    cors: Cors,
) -> Result<Post<'a>, RefusedRequest> {
    let host = fields.host(http_1_0)?;
    let target = Target::new(target, false)?;
    let (Route::Topic, Some(topic)) = (target.route, target.topic()) else {
        return Err(refuse(CloseReason::NotFound, "a publish is POST /topics/{topic}"));
    };
    let token = match rules.tokens {
        Some(places) => token_of(fields, &target, host, rules, places)?,
        None => None,
    };
    let query = target.query().map(|query| match rules.tokens {
        Some(_) => without_token(query),
        None => query.into(),
    });
    Ok(Post {
        topic,
        query,
        token,
        length: fields.body_length(http_1_0)?,
        is_binary: fields.names_type("application/octet-stream"),
        content_coding: fields.content_coding(),
        awaits_continue: !http_1_0 && fields.lists("Expect", "100-continue"),
        admitted: rules.origins.admit(fields.origin(), host.map(str::as_bytes), rules.is_secure),
        keep: match http_1_0 {
            _ if fields.lists("Connection", "close") => Keep::Close,
            false => Keep::Open,
            true if fields.lists("Connection", "keep-alive") => Keep::OpenAsAsked,
            true => Keep::Close,
        },
        cors,
        head_bytes: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Origins, Subprotocols};
    use super::*;

    fn rules(origins: &Origins) -> HeadRules<'_> {
        HeadRules {
            head_bytes_max: 400,
            topics_max: 3,
            origins,
            is_secure: false,
            subprotocols: &Subprotocols::Any,
            echo: false,
            tokens: None,
        }
    }

    fn post<'a>(head: &'a str, origins: &Origins) -> Post<'a> {
        assert!(begins_post(head.as_bytes()), "{head}");
        for end in 0..head.len() {
            let cut = &head.as_bytes()[..end];
            assert!(!begins_post(cut) || parse_post(cut, &rules(origins)) == PostHead::Partial, "{end}");
        }
        match parse_post(head.as_bytes(), &rules(origins)) {
            PostHead::Post(post) => post,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_head_says_what_the_publish_is() {
        let any = Origins::Any;
        let head = "POST /topics/a%20b/c?event=x&id=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n";
        let plain = post(head, &any);
        assert_eq!(
            (plain.topic, plain.query.as_deref(), plain.length),
            ("a%20b/c", Some("event=x&id=1"), BodyLength::Known(3))
        );
        assert_eq!((plain.is_binary, plain.content_coding, plain.awaits_continue), (false, None, false));
        assert_eq!((plain.keep, plain.admitted, plain.head_bytes), (Keep::Open, Ok(()), head.len()));
        let other = post(
            "POST http://h/topics/ HTTP/1.1\r\nHost: h\r\ntransfer-encoding: Chunked\r\nConnection: x, Close\r\n\
             content-type: Application/Octet-Stream; x=y\r\nContent-Encoding: gzip\r\nexpect: 100-Continue\r\n\r\n",
            &any,
        );
        assert_eq!((other.topic, other.query.as_deref(), other.length), ("", None, BodyLength::Chunked));
        assert_eq!((other.is_binary, other.awaits_continue, other.keep), (true, true, Keep::Close));
        assert_eq!(other.content_coding, Some(&b"gzip"[..]));
        let old = post("POST /topics/a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", &any);
        assert_eq!((old.length, old.keep), (BodyLength::Known(0), Keep::OpenAsAsked));
        assert_eq!(post("POST /topics/a HTTP/1.0\r\n\r\n", &any).keep, Keep::Close);
    }

    #[test]
    fn a_page_is_admitted_by_its_origin() {
        let listed = Origins::These(vec!["https://a.example".parse().expect("an origin")]);
        for (origin, admitted) in
            [("https://a.example", true), ("http://h", true), ("https://b.example", false), ("null", false)]
        {
            let head = format!("POST /topics/a HTTP/1.1\r\nHost: h\r\nOrigin: {origin}\r\n\r\n");
            assert_eq!(post(&head, &listed).admitted.is_ok(), admitted, "{origin}");
            assert!(post(&head, &Origins::Any).admitted.is_ok());
        }
    }

    #[test]
    fn what_is_wrong_with_a_head_is_told_by_its_reason() {
        use CloseReason::*;
        let line = "POST /topics/a HTTP/1.1\r\nHost: h\r\n";
        for (rest, reason) in [
            ("Content-Length: x\r\n", BadRequest),
            ("Content-Length: +1\r\n", BadRequest),
            ("Content-Length: 1\r\nContent-Length: 1\r\n", BadRequest),
            ("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", BadRequest),
            ("Transfer-Encoding: gzip, chunked\r\n", UnknownCoding),
            ("Transfer-Encoding: chunked, chunked\r\n", UnknownCoding),
            ("Host: again\r\n", BadRequest),
            ("no field\r\n", BadRequest),
            (&format!("X: {}\r\n", "y".repeat(400)), HeadTooLarge),
        ] {
            let head = format!("{line}{rest}\r\n");
            let PostHead::Refused(refusal, _) = parse_post(head.as_bytes(), &rules(&Origins::Any)) else {
                panic!("{rest} is taken");
            };
            assert_eq!(refusal.reason, reason, "{rest}: {}", refusal.detail);
        }
        let old = b"POST /topics/a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(matches!(parse_post(old, &rules(&Origins::Any)), PostHead::Refused(..)));
    }
}
