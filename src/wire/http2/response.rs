//! An answer with a head of HTTP/1, as the block of fields that says the same (RFC 9113 §8.3.2).

use super::hpack::{push_field, push_status};

/// What a client is told of the head at the front of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoHead;

/// Appends the fields of the head that `answer` begins with to `block`. Returns the bytes of the
/// head.
pub fn push_head(answer: &[u8], block: &mut Vec<u8>) -> Result<usize, NoHead> {
    let length = memchr::memmem::find(answer, b"\r\n\r\n").ok_or(NoHead)? + 4;
    let mut lines = answer[..length - 4].split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    // `HTTP/1.1 200 OK`
    let status = lines.next().and_then(|line| line.get(9..12)).ok_or(NoHead)?;
    push_status(block, status);
    let mut name = Vec::new();
    for line in lines {
        let colon = memchr::memchr(b':', line).ok_or(NoHead)?;
        name.clear();
        name.extend(line[..colon].iter().map(u8::to_ascii_lowercase));
        // They are of the connection (RFC 9113 §8.2.2).
        if !matches!(&name[..], b"connection" | b"transfer-encoding" | b"upgrade" | b"keep-alive") {
            push_field(block, &name, line[colon + 1..].trim_ascii());
        }
    }
    Ok(length)
}
