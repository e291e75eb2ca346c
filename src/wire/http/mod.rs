//! HTTP/1.1 on the data plane (RFC 9112): the head of a client's request in, one decision out.
//!
//! Invariants worth naming:
//! - The decision depends on the first `head_bytes_max` bytes alone, not on how they came in.
//! - Every refusal has a [`CloseReason`] with an HTTP status, and one line that says what is wrong
//!   and where.
//! - A connection carries one request: every answer but an upgrade closes it, so bodies and
//!   pipelined requests need no rules of their own. What follows the head of a subscription is the
//!   caller's. Only a publish (`post`, `body`) has a body, and may be followed by further requests.
//!
//! The parts: `target` (paths, queries, topics), `fields` (header fields), `mend` (heads that are
//! taken although the parser is stricter), `host`, `origin`, `subprotocol`, `last_event_id` (one
//! field each), `credentials` (tokens), `answer` and `front` (what we say); `target`, `host`,
//! `origin`, `subprotocol` and `content_type` also serve other rooms. Not here: when a head has
//! taken too long, and whether there is room for the subscriber (`shard`).

use crate::close::CloseReason;
use crate::event::Topic;
use crate::wire::{Family, Format, SlowPolicy, Start};

mod answer;
mod body;
mod content_type;
mod credentials;
mod fields;
mod front;
mod host;
mod last_event_id;
mod mend;
mod origin;
mod post;
mod subprotocol;
mod target;

pub(crate) use content_type::has_content_type;
pub(crate) use host::{is_host, is_ours};
pub(crate) use origin::is_own_page;
pub(crate) use subprotocol::is_name as is_subprotocol;
pub(crate) use target::{EscapeFault, LAST_EVENT_ID_NAMES, percent_decoded};

pub use answer::{Answer, Manner};
pub use body::{BodyLength, BodyReader, Broken};
pub use credentials::{Token, TokenPlaces};
pub use last_event_id::LastEventId;
pub use origin::{Cors, Foreign, Origin, OriginError, Origins};
pub use post::{Keep, Post, PostHead, begins_post, parse_post};
pub use subprotocol::{JSON, Subprotocols};

use fields::Fields;
use target::{Route, Target};

/// Header fields of one request head. A browser sends about 20; the array lives on the stack while
/// a head is parsed.
pub const HEADERS_MAX: usize = 64;

/// What the operator allows.
#[derive(Debug, Clone, Copy)]
pub struct HeadRules<'a> {
    /// Bytes of a request head, its last blank line included.
    pub head_bytes_max: usize,
    /// Distinct topics of one subscriber.
    pub topics_max: usize,
    /// Pages of other origins.
    pub origins: &'a Origins,
    /// The client speaks TLS with us.
    pub is_secure: bool,
    /// WebSocket subprotocols that are given back.
    pub subprotocols: &'a Subprotocols,
    /// WebSockets on `/echo` and `/` get back what they send.
    pub echo: bool,
    /// Where tokens are looked for; `None` if nobody needs one.
    pub tokens: Option<TokenPlaces<'a>>,
}

/// What a request head asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Head {
    /// The head is not whole yet.
    Partial,
    /// A subscription, and the bytes of the head; what follows them belongs to the protocol after
    /// it.
    Subscribe(Box<Subscribe>, usize),
    /// A WebSocket that gets back what it sends, and the bytes of the head.
    Echo(Handshake, usize),
    /// The head of an event stream alone, which a subscriber would get.
    StreamHead(Box<Subscribe>),
    /// A probe of `/healthz`.
    Health,
    /// What there is to ask: a page for a browser, or plain text.
    Front {
        /// A browser asks.
        is_html: bool,
        /// The page, or the text.
        body: String,
    },
    /// OPTIONS on one of our paths: a browser asks what it may send from another origin.
    Preflight,
    /// Nothing that we answer with anything but an error.
    Refused(RefusedRequest),
}

/// A subscriber who may come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe {
    /// How it wants its events.
    pub format: Format,
    /// Distinct, in the order given: the path's first, then the query's. Those with a `*` are
    /// patterns ([`Pattern`](crate::topic_pattern::Pattern)). At least one, save where the format
    /// takes commands.
    pub topics: Vec<Topic>,
    /// Where each of them begins.
    pub start: Start,
    /// What happens when it falls behind, if it says so.
    pub slow: Option<SlowPolicy>,
    /// Some exactly if the format is a WebSocket one.
    pub handshake: Option<Handshake>,
    /// It asks for an event stream by name (`Accept`), as an `EventSource` does.
    pub names_event_stream: bool,
    /// What it brings to be let in.
    pub token: Option<Token>,
}

/// What the answer to a WebSocket's opening handshake holds (RFC 6455 §4.2.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handshake {
    /// `Sec-WebSocket-Accept`.
    pub accept: [u8; 28],
    /// `Sec-WebSocket-Protocol`.
    pub subprotocol: Option<String>,
}

/// Why a request is not served. The client's fault, except for `Full` and `Draining`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedRequest {
    /// A reason with an HTTP status.
    pub reason: CloseReason,
    /// One line for a human, without its end.
    pub detail: String,
}

/// A refusal for `reason`.
fn refuse(reason: CloseReason, detail: impl Into<String>) -> RefusedRequest {
    RefusedRequest { reason, detail: detail.into() }
}

/// Reads the head of a request from its first byte on, and says how its answer is to look. Call
/// again with more bytes while it is [`Head::Partial`]; that ends at `head_bytes_max` bytes at the
/// latest.
pub fn parse_head(bytes: &[u8], rules: &HeadRules<'_>) -> (Head, Manner) {
    let allowed = &bytes[..bytes.len().min(rules.head_bytes_max)];
    let head_only = allowed.trim_ascii_start().starts_with(b"HEAD ");
    let parsed = parse(allowed, allowed, rules).or_else(|error| match mend::mended(allowed) {
        Some(mended) => parse(&mended, allowed, rules),
        None => Err(error),
    });
    let (head, manner) = parsed.unwrap_or_else(|error| {
        let manner = Manner { cors: rules.origins.cors(None), ..Manner::default() };
        (Head::Refused(malformed(allowed, error)), manner)
    });
    (head, Manner { head_only, ..manner })
}

/// Reads the head in `bytes`, which is `original` or was made of it by changing single bytes.
fn parse(bytes: &[u8], original: &[u8], rules: &HeadRules<'_>) -> Result<(Head, Manner), httparse::Error> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let status = request.parse(bytes)?;
    mend::restore(request.headers, bytes, original);
    let fields = Fields(request.headers);
    let mut manner = Manner { cors: rules.origins.cors(fields.origin()), ..Manner::default() };
    let head = match status {
        httparse::Status::Complete(head_bytes) => {
            interpret(&request, head_bytes, rules, &mut manner).unwrap_or_else(Head::Refused)
        }
        httparse::Status::Partial if bytes.len() < rules.head_bytes_max => Head::Partial,
        httparse::Status::Partial => Head::Refused(too_large(bytes)),
    };
    Ok((head, manner))
}

/// Decides about a whole head.
fn interpret(
    request: &httparse::Request<'_, '_>,
    head_bytes: usize,
    rules: &HeadRules<'_>,
    manner: &mut Manner,
) -> Result<Head, RefusedRequest> {
    let fields = Fields(request.headers);
    let http_1_0 = request.version == Some(0);
    let host = fields.host(http_1_0)?;
    let target = Target::new(request.path.unwrap_or_default(), rules.echo)?;
    manner.allow = target.route.allow();
    if target.route != Route::Health {
        let admitted = rules.origins.admit_reader(fields.origin(), host.map(str::as_bytes));
        admitted.map_err(foreign)?;
    }
    match request.method.unwrap_or_default() {
        "OPTIONS" => return Ok(Head::Preflight),
        method if manner.allow.split(", ").any(|allowed| allowed == method) => {}
        method => {
            let detail = match target.route {
                Route::Topic => format!("{method} is not allowed on a topic; publish to it with POST"),
                Route::Subscribe(_) => "a subscription is a GET".to_string(),
                _ => format!("only {} may be asked here, not {method}", manner.allow),
            };
            return Err(refuse(CloseReason::MethodNotAllowed, detail));
        }
    }
    if target.route != Route::Topic {
        fields.check_no_body()?;
    }
    let family = match target.route {
        Route::Subscribe(family) => family,
        Route::Health => return Ok(Head::Health),
        Route::Echo => return Ok(Head::Echo(handshake(&fields, http_1_0, host, rules, &[])?, head_bytes)),
        Route::Front if rules.echo && fields.wants_websocket() => {
            return Ok(Head::Echo(handshake(&fields, http_1_0, host, rules, &[])?, head_bytes));
        }
        Route::Topic => return Err(refuse(CloseReason::BadRequest, "a publish is of HTTP/1.1 or HTTP/1.0")),
        Route::Front | Route::Server => {
            let is_html = fields.wants_html();
            return Ok(Head::Front { is_html, body: front::front(is_html, host) });
        }
    };

    let speaks_json = family == Family::WebSocket
        && matches!(fields.subprotocol(rules.subprotocols, &[JSON]), Ok(Some(name)) if name == JSON);
    let wanted = target.wanted(rules.topics_max)?;
    if wanted.topics.is_empty() && !speaks_json {
        return Err(target.no_topic());
    }
    // A browser comes back with the same URL and the header, so the header is newer.
    let start = fields.last_event_id().map_or(wanted.start, Start::After);
    let (format, handshake) = match family {
        Family::EventStream => {
            fields.check_accepts_event_stream()?;
            // Chunks are not for clients of HTTP/1.0 (RFC 9112 §7.1).
            (if http_1_0 { Format::Sse } else { Format::SseChunked }, None)
        }
        Family::WebSocket => {
            let format = if speaks_json { Format::Json } else { Format::WebSocket };
            (format, Some(handshake(&fields, http_1_0, host, rules, &[JSON])?))
        }
    };
    let token = match rules.tokens {
        Some(places) => credentials::token_of(&fields, &target, host, rules, places)?,
        None => None,
    };
    let names_event_stream = family == Family::EventStream && fields.names_event_stream();
    let (topics, slow) = (wanted.topics, wanted.slow);
    let subscribe = Subscribe { format, topics, start, slow, handshake, names_event_stream, token };
    Ok(match request.method == Some("HEAD") {
        true => Head::StreamHead(Box::new(subscribe)),
        false => Head::Subscribe(Box::new(subscribe), head_bytes),
    })
}

/// What to answer to a WebSocket's opening handshake, where these subprotocols of ours are
/// `spoken`.
fn handshake(
    fields: &Fields<'_, '_>,
    http_1_0: bool,
    host: Option<&str>,
    rules: &HeadRules<'_>,
    spoken: &[&str],
) -> Result<Handshake, RefusedRequest> {
    if http_1_0 {
        return Err(refuse(CloseReason::BadRequest, "a WebSocket needs HTTP/1.1 (RFC 6455 4.1)"));
    }
    let accept = fields.websocket_accept()?;
    rules.origins.admit(fields.origin(), host.map(str::as_bytes), rules.is_secure).map_err(foreign)?;
    let subprotocol = fields.subprotocol(rules.subprotocols, spoken)?.map(str::to_string);
    Ok(Handshake { accept, subprotocol })
}

/// The refusal of a foreign page or name.
fn foreign(what: Foreign) -> RefusedRequest {
    let reason = match what {
        Foreign::Unnamed | Foreign::Origin => CloseReason::ForeignOrigin,
        Foreign::Host => CloseReason::ForeignHost,
    };
    refuse(reason, what.text())
}

/// The head does not end within the limit: is it its first line or the rest?
fn too_large(allowed: &[u8]) -> RefusedRequest {
    let bytes = allowed.len();
    // Empty lines before the request line do not count (RFC 9112 §2.2).
    let start = allowed.iter().position(|byte| !matches!(byte, b'\r' | b'\n'));
    match start.map(|start| &allowed[start..]) {
        Some(line) if memchr::memchr(b'\n', line).is_none() => {
            refuse(CloseReason::TargetTooLong, format!("the request line has more than {bytes} bytes"))
        }
        _ => refuse(CloseReason::HeadTooLarge, format!("the request head has more than {bytes} bytes")),
    }
}

/// What a human needs to hear about bytes that are no request head.
fn malformed(bytes: &[u8], error: httparse::Error) -> RefusedRequest {
    use httparse::Error;
    // A TLS record of type handshake, version 3.x (RFC 8446 §5.1).
    if matches!(bytes, [0x16] | [0x16, 3, ..]) {
        return refuse(CloseReason::BadRequest, "this port speaks plain HTTP, not TLS");
    }
    if crate::wire::proxy::begins_like_one(bytes) {
        let detail = "no PROXY header is expected on this address (--proxy-protocol)";
        return refuse(CloseReason::BadRequest, detail);
    }
    let detail = match error {
        Error::TooManyHeaders => {
            let detail = format!("the request head has more than {HEADERS_MAX} header fields");
            return refuse(CloseReason::HeadTooLarge, detail);
        }
        Error::Version if bytes.starts_with(b"PRI ") => "this port speaks HTTP/1.1, not HTTP/2",
        Error::Version => "the request line does not end in HTTP/1.1 or HTTP/1.0",
        Error::Token => "the request line is not of the form: GET /path HTTP/1.1",
        Error::HeaderName => "a header field's name is malformed",
        Error::HeaderValue => "a header field's value holds a control character",
        Error::NewLine => "a line does not end in CR LF",
        Error::Status => "the request head is malformed",
    };
    refuse(CloseReason::BadRequest, detail)
}

#[cfg(test)]
mod tests;
