//! The header fields of a request that decide something (RFC 9110 §5, RFC 6455 §4.2.1); all others
//! are ignored.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, STANDARD as BASE64};
use sha1::{Digest as _, Sha1};

use super::body::BodyLength;
use super::content_type::is_type;
use super::host::is_host;
use super::last_event_id::LastEventId;
use super::subprotocol::Subprotocols;
use super::{RefusedRequest, refuse};
use crate::close::CloseReason;

/// Appended to the client's key before it is hashed (RFC 6455 §1.3).
const WEBSOCKET_GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Characters of base64 for the 16 bytes of a key.
const KEY_CHARACTERS: usize = 24;

/// Decodes a key. Some clients put random characters where only zero bits may be left over; the key
/// is hashed as text, so that does no harm.
const KEY_BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// The fields of one request head, in order.
pub(super) struct Fields<'a, 'b>(pub(super) &'a [httparse::Header<'b>]);

impl<'b> Fields<'_, 'b> {
    /// The values of every field called `name`, without surrounding blanks and tabs (RFC 9110
    /// §5.5).
    pub(super) fn all(&self, name: &str) -> impl Iterator<Item = &'b [u8]> {
        self.0.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| {
            let inner = |byte: &u8| !matches!(byte, b' ' | b'\t');
            let value = field.value;
            let Some(first) = value.iter().position(inner) else { return &[][..] };
            let last = value.iter().rposition(inner).expect("the first one at the latest");
            &value[first..=last]
        })
    }

    /// The value of the field called `name`, which may come only once.
    pub(super) fn one(&self, name: &str) -> Result<Option<&'b [u8]>, RefusedRequest> {
        let mut values = self.all(name);
        let value = values.next();
        if values.next().is_some() {
            return Err(bad(format!("the {name} header field comes twice")));
        }
        Ok(value)
    }

    /// The comma-separated members of every field called `name` (RFC 9110 §5.6.1).
    fn members(&self, name: &str) -> impl Iterator<Item = &'b [u8]> {
        self.all(name)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            .filter(|member| !member.is_empty())
    }

    /// True if a field called `name` lists `token`, in any case.
    pub(super) fn lists(&self, name: &str, token: &str) -> bool {
        self.members(name).any(|member| member.eq_ignore_ascii_case(token.as_bytes()))
    }

    /// The `Host`, of which a request of HTTP/1.1 has exactly one (RFC 9112 §3.2); checked.
    pub(super) fn host(&self, http_1_0: bool) -> Result<Option<&'b str>, RefusedRequest> {
        match self.one("Host")? {
            None if !http_1_0 => Err(bad("the Host header field is missing")),
            Some(host) if !is_host(host) => {
                Err(bad("the Host header field is malformed: write host or host:port"))
            }
            host => Ok(host.map(|host| std::str::from_utf8(host).expect("a checked host is ASCII"))),
        }
    }

    /// The origin of the page that asks, if it is one.
    pub(super) fn origin(&self) -> Option<&'b [u8]> {
        self.all("Origin").next()
    }

    /// True for a browser that shows what it gets to a human.
    pub(super) fn wants_html(&self) -> bool {
        self.members("Accept").any(|member| {
            let range = member.split(|byte| *byte == b';').next().unwrap_or_default();
            range.trim_ascii().eq_ignore_ascii_case(b"text/html")
        })
    }

    /// True if a WebSocket is asked for, in whatever form.
    pub(super) fn wants_websocket(&self) -> bool {
        self.lists("Upgrade", "websocket")
    }

    /// Refuses requests that announce a body (RFC 9112 §6).
    pub(super) fn check_no_body(&self) -> Result<(), RefusedRequest> {
        let body = || refuse(CloseReason::BodyNotAllowed, "a request body is not wanted here");
        let mut codings = self.members("Transfer-Encoding").peekable();
        if codings.peek().is_some() {
            return match codings.all(|coding| coding.eq_ignore_ascii_case(b"chunked")) {
                true => Err(body()),
                false => {
                    let detail = "the only transfer coding that is understood here is chunked";
                    Err(refuse(CloseReason::UnknownCoding, detail))
                }
            };
        }
        for length in self.all("Content-Length") {
            if length.is_empty() || !length.iter().all(u8::is_ascii_digit) {
                return Err(bad("the Content-Length header field is not a number"));
            }
            if length.iter().any(|digit| *digit != b'0') {
                return Err(body());
            }
        }
        Ok(())
    }

    /// How long the body is that a request announces (RFC 9112 §6.3). A request that could be read
    /// in two ways is refused.
    pub(super) fn body_length(&self, http_1_0: bool) -> Result<BodyLength, RefusedRequest> {
        let length = self.one("Content-Length")?;
        let mut codings = self.members("Transfer-Encoding");
        if let Some(coding) = codings.next() {
            if !coding.eq_ignore_ascii_case(b"chunked") || codings.next().is_some() {
                let detail = "the only transfer coding that is understood here is chunked";
                return Err(refuse(CloseReason::UnknownCoding, detail));
            }
            if length.is_some() || http_1_0 {
                return Err(bad("a body in chunks has no Content-Length, and is for HTTP/1.1"));
            }
            return Ok(BodyLength::Chunked);
        }
        let Some(length) = length else { return Ok(BodyLength::Known(0)) };
        if length.is_empty() || !length.iter().all(u8::is_ascii_digit) {
            return Err(bad("the Content-Length header field is not a number"));
        }
        let digits = std::str::from_utf8(length).expect("digits are ASCII");
        Ok(BodyLength::Known(digits.parse().unwrap_or(usize::MAX)))
    }

    /// True if the body is of this media type.
    pub(super) fn names_type(&self, media_type: &str) -> bool {
        self.all("Content-Type").next().is_some_and(|value| is_type(value, media_type))
    }

    /// The first coding of the body that is one (RFC 9110 §8.4).
    pub(super) fn content_coding(&self) -> Option<&'b [u8]> {
        self.members("Content-Encoding").find(|coding| !coding.eq_ignore_ascii_case(b"identity"))
    }

    /// The id that an `EventSource` had last; `None` if the field is absent or empty.
    pub(super) fn last_event_id(&self) -> Option<LastEventId> {
        self.all("Last-Event-ID").find_map(LastEventId::new)
    }

    /// The subprotocol to be named in the answer to an opening handshake, where these of ours are
    /// `spoken`.
    pub(super) fn subprotocol(
        &self,
        rules: &Subprotocols,
        spoken: &[&str],
    ) -> Result<Option<&'b str>, RefusedRequest> {
        rules.choose(self.members("Sec-WebSocket-Protocol"), spoken)
    }

    /// Refuses clients that say that they cannot read `text/event-stream`. Of the media ranges that
    /// match it the most specific decides (RFC 9110 §12.5.1); no `Accept`, or an empty one, accepts
    /// everything.
    pub(super) fn check_accepts_event_stream(&self) -> Result<(), RefusedRequest> {
        let mut given = false;
        // How specific the deciding range is, and whether it admits the type.
        let mut decision = (0, false);
        for member in self.members("Accept") {
            given = true;
            let mut parts = member.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let range = parts.next().unwrap_or_default();
            let specific = if range.eq_ignore_ascii_case(b"text/event-stream") {
                3
            } else if range.eq_ignore_ascii_case(b"text/*") {
                2
            } else if range == b"*/*" {
                1
            } else {
                continue;
            };
            decision = decision.max((specific, !parts.any(is_weight_zero)));
        }
        if given && !decision.1 {
            let detail = "the Accept header field admits no text/event-stream";
            return Err(refuse(CloseReason::NotAcceptable, detail));
        }
        Ok(())
    }

    /// True if the client asks for `text/event-stream` by name.
    pub(super) fn names_event_stream(&self) -> bool {
        let range = |member: &[u8]| {
            member
                .split(|byte| *byte == b';')
                .next()
                .map(<[u8]>::trim_ascii)
                .is_some_and(|range| range.eq_ignore_ascii_case(b"text/event-stream"))
        };
        self.members("Accept").any(range)
    }

    /// Checks the opening handshake (RFC 6455 §4.2.1) and gives the value of
    /// `Sec-WebSocket-Accept`.
    pub(super) fn websocket_accept(&self) -> Result<[u8; 28], RefusedRequest> {
        let upgrade = |detail: &str| refuse(CloseReason::UpgradeRequired, detail);
        if !self.wants_websocket() {
            return Err(upgrade("this path speaks WebSocket: Upgrade: websocket is missing"));
        }
        if !self.lists("Connection", "upgrade") {
            return Err(upgrade("this path speaks WebSocket: Connection: Upgrade is missing"));
        }
        if self.one("Sec-WebSocket-Version")? != Some(b"13") {
            return Err(upgrade("Sec-WebSocket-Version is not 13"));
        }
        let Some(key) = self.one("Sec-WebSocket-Key")? else {
            return Err(bad("the Sec-WebSocket-Key header field is missing"));
        };
        if !is_key(key) {
            return Err(bad("the Sec-WebSocket-Key header field is not base64 of 16 bytes"));
        }
        let digest = Sha1::new().chain_update(key).chain_update(WEBSOCKET_GUID).finalize();
        let mut accept = [0; 28];
        BASE64.encode_slice(digest, &mut accept).expect("20 bytes are 28 characters of base64");
        Ok(accept)
    }
}

/// True for a parameter `q=0`, `q=0.0` and so on (RFC 9110 §12.4.2).
fn is_weight_zero(parameter: &[u8]) -> bool {
    let [b'q' | b'Q', weight @ ..] = parameter else { return false };
    weight.strip_prefix(b"=0").is_some_and(|rest| rest.iter().all(|byte| matches!(byte, b'.' | b'0')))
}

/// True for base64 of 16 bytes.
fn is_key(key: &[u8]) -> bool {
    // The decoder wants room for characters that might not be padding.
    let mut bytes = [0; KEY_CHARACTERS / 4 * 3];
    key.len() == KEY_CHARACTERS && KEY_BASE64.decode_slice(key, &mut bytes) == Ok(16)
}

fn bad(detail: impl Into<String>) -> RefusedRequest {
    refuse(CloseReason::BadRequest, detail)
}
