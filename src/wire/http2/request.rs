//! A request of HTTP/2 (RFC 9113 §8.3), as the head of HTTP/1 that says the same. So there is one
//! reader of requests, one set of limits, and one set of refusals.
//!
//! A request that is malformed in the sense of RFC 9113 §8.1.1 has no such head: its stream is
//! reset. All else that is wrong with it is for that one reader. What could end a line of the head,
//! or begin another field, is malformed here.

use std::io::Write as _;

use super::Fault;
use super::frame::PAYLOAD_MAX;
use super::hpack::FIELD_BYTES;

/// Bytes beside name and value of a field in a head: `: ` and the end of its line.
const LINE_BYTES: usize = 4;

/// So many bytes of fields, as RFC 9113 §6.5.2 counts them, are in a byte of a head at most: those of
/// a field with a name of one byte and no value.
const COUNTED_PER_BYTE: usize = (1 + FIELD_BYTES).div_ceil(1 + LINE_BYTES);

/// Bytes of fields, counted so, that a block may stand for where a head may have so many bytes. Every
/// head that is allowed is below that, and so is one that is larger and told as it is, which gets an
/// answer. A block that is above it uses a table of 4 KiB to make 4 KiB of each byte.
const fn field_bytes_max(head_bytes_max: usize) -> usize {
    COUNTED_PER_BYTE.saturating_mul(head_bytes_max).saturating_add(2 * PAYLOAD_MAX)
}

/// How the body of a request is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Body {
    /// There is none, or nobody wants it.
    None,
    /// So many bytes, as they are; of more than that no shard takes any.
    Known(u32),
    /// Each piece is a chunk (RFC 9112 §7.1).
    Chunked,
}

/// The fields of a block, as they come. Used again for the next one.
#[derive(Debug, Default)]
pub struct Request {
    method: Option<Vec<u8>>,
    scheme: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
    authority: Option<Vec<u8>>,
    host: Option<Vec<u8>>,
    cookies: Vec<u8>,
    content_length: Option<u64>,
    /// Lines of all other fields.
    lines: Vec<u8>,
    /// Bytes of a head, at most.
    head_bytes_max: usize,
    /// Bytes that it has by now.
    head_bytes: usize,
    /// Bytes of fields, as the standard counts them.
    field_bytes: usize,
    /// A field that does not begin with a colon has come.
    has_fields: bool,
    is_malformed: bool,
}

impl Request {
    /// Before the first field of a request whose head may have so many bytes.
    pub fn begin(&mut self, head_bytes_max: usize) {
        *self = Request {
            cookies: std::mem::take(&mut self.cookies),
            lines: std::mem::take(&mut self.lines),
            head_bytes_max,
            ..Request::default()
        };
        self.cookies.clear();
        self.lines.clear();
    }

    /// The next field. False once the block stands for more bytes than any request: nothing of what
    /// follows is worth its reading.
    pub fn take(&mut self, name: &[u8], value: &[u8]) -> bool {
        self.field_bytes = self.field_bytes.saturating_add(name.len() + value.len() + FIELD_BYTES);
        if self.field_bytes > field_bytes_max(self.head_bytes_max) {
            return false;
        }
        if self.head_bytes > self.head_bytes_max {
            return true;
        }
        self.head_bytes += name.len() + value.len() + LINE_BYTES;
        let is_sound = match name.strip_prefix(b":") {
            Some(name) => self.take_pseudo(name, value),
            None => self.take_field(name, value),
        };
        self.is_malformed |= !is_sound || !is_value(value);
        true
    }

    /// What stands for the request line; each comes once, before all fields. False if malformed.
    fn take_pseudo(&mut self, name: &[u8], value: &[u8]) -> bool {
        let place = match name {
            b"method" => &mut self.method,
            b"scheme" => &mut self.scheme,
            b"path" => &mut self.path,
            b"authority" => &mut self.authority,
            _ => return false,
        };
        !self.has_fields && place.replace(value.to_vec()).is_none()
    }

    fn take_field(&mut self, name: &[u8], value: &[u8]) -> bool {
        self.has_fields = true;
        if name.is_empty() || !name.iter().all(|byte| is_lowercase_token(*byte)) {
            return false;
        }
        match name {
            // They are of the connection, and HTTP/2 has others for that (RFC 9113 §8.2.2).
            b"connection" | b"proxy-connection" | b"keep-alive" | b"transfer-encoding" | b"upgrade" => false,
            b"te" => value.eq_ignore_ascii_case(b"trailers"),
            // The body comes when it comes.
            b"expect" => true,
            b"host" => self.host.replace(value.to_vec()).is_none_or(|host| host == value),
            // Browsers cut it, so that parts of it are remembered (RFC 9113 §8.2.3).
            b"cookie" => {
                if !self.cookies.is_empty() {
                    self.cookies.extend_from_slice(b"; ");
                }
                self.cookies.extend_from_slice(value);
                true
            }
            b"content-length" => {
                let digits = std::str::from_utf8(value).ok();
                let digits = digits.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
                let bytes = digits.and_then(|digits| digits.parse().ok());
                bytes.is_some()
                    && self.content_length.replace(bytes.unwrap_or(0)).is_none_or(|it| Some(it) == bytes)
            }
            name => {
                push_line(&mut self.lines, name, value);
                true
            }
        }
    }

    /// Trailer fields are read over, but they hold no pseudo field (RFC 9113 §8.1).
    pub fn are_trailers(&self) -> bool {
        let is_request = [&self.method, &self.scheme, &self.path, &self.authority];
        !self.is_malformed && is_request.iter().all(|place| place.is_none())
    }

    /// Appends the head. `is_over`: nothing follows the fields.
    ///
    /// A head that is larger than allowed is appended as far as it may go, and does not end.
    pub fn finish(&self, is_over: bool, head: &mut Vec<u8>) -> Result<Body, Fault> {
        let is_connect = self.method.as_deref() == Some(b"CONNECT");
        let has_target = self.scheme.is_some() && self.path.is_some();
        let has_none = self.scheme.is_none() && self.path.is_none() && self.authority.is_some();
        let is_too_large = self.head_bytes > self.head_bytes_max;
        // What did not fit was not looked at.
        let is_whole = is_too_large || if is_connect { has_none } else { has_target };
        let (Some(method), true, false) = (&self.method, is_whole, self.is_malformed) else {
            return Err(Fault::PROTOCOL);
        };
        let path = self.path.as_deref().unwrap_or(b"/");
        if method.is_empty() || !method.iter().all(|byte| is_token(*byte)) || !is_target(path) {
            return Err(Fault::PROTOCOL);
        }
        let takes_body = method == b"POST";
        let body = match self.content_length {
            Some(bytes) if is_over && bytes > 0 => return Err(Fault::PROTOCOL),
            _ if is_over => Body::None,
            Some(bytes) => Body::Known(u32::try_from(bytes).unwrap_or(u32::MAX)),
            None if takes_body => Body::Chunked,
            None => Body::None,
        };
        // Chunks are of HTTP/1.1; a stream of events that comes in none is of HTTP/1.0.
        let version: &[u8] = if takes_body { b" HTTP/1.1\r\n" } else { b" HTTP/1.0\r\n" };
        for part in [method, &b" "[..], path, version] {
            head.extend_from_slice(part);
        }
        if is_too_large {
            head.extend_from_slice(b"Too-Large: ");
            head.resize(head.len().max(self.head_bytes_max + 1), b'x');
            return Ok(Body::None);
        }
        if let Some(authority) = self.authority.as_ref().or(self.host.as_ref()) {
            push_line(head, b"Host", authority);
        }
        head.extend_from_slice(&self.lines);
        if !self.cookies.is_empty() {
            push_line(head, b"Cookie", &self.cookies);
        }
        match (body, self.content_length) {
            (Body::Known(_), Some(bytes)) => {
                write!(head, "Content-Length: {bytes}\r\n").expect("memory takes it");
            }
            (Body::Chunked, _) => head.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
            _ => {}
        }
        head.extend_from_slice(b"Connection: close\r\n\r\n");
        Ok(body)
    }
}

fn push_line(head: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    for part in [name, b": ", value, b"\r\n"] {
        head.extend_from_slice(part);
    }
}

/// Characters of a token (RFC 9110 §5.6.2).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_lowercase_token(byte: u8) -> bool {
    is_token(byte) && !byte.is_ascii_uppercase()
}

/// What may stand in the place of a target on a request line.
fn is_target(path: &[u8]) -> bool {
    !path.is_empty() && !path.iter().any(|byte| matches!(byte, 0..=b' ' | 0x7f))
}

/// RFC 9113 §8.2.1.
fn is_value(value: &[u8]) -> bool {
    let is_blank = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    !value.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n'))
        && !is_blank(value.first())
        && !is_blank(value.last())
}
