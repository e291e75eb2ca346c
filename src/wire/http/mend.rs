//! Request heads that our parser refuses and that are to be taken all the same.
//!
//! - A later minor version of HTTP/1 is served as HTTP/1.1 (RFC 9110 §2.5).
//! - The bytes of a last event id are the client's matter, control characters included; only NUL,
//!   CR and LF are never part of a value (RFC 9110 §5.5).
//!
//! Such a head is parsed as a copy with other bytes in these places, and its values are read from
//! the original.

/// A copy of `head` that the parser may take, if there is something to mend.
pub(super) fn mended(head: &[u8]) -> Option<Vec<u8>> {
    let mut copy = head.to_vec();
    let mut lines = copy.split_inclusive_mut(|byte| *byte == b'\n');
    // Empty lines before the request line do not count (RFC 9112 §2.2).
    let request_line = lines.find(|line| !line.trim_ascii().is_empty())?;
    mend_version(request_line);
    lines.for_each(mend_last_event_id);
    (copy != head).then_some(copy)
}

/// Puts the values of the original into fields that were parsed from a copy of it.
pub(super) fn restore<'b>(headers: &mut [httparse::Header<'b>], copy: &'b [u8], original: &'b [u8]) {
    if copy.as_ptr() == original.as_ptr() {
        return;
    }
    for header in headers {
        let begin = header.value.as_ptr().addr().wrapping_sub(copy.as_ptr().addr());
        // An empty value may lie anywhere.
        if let Some(value) = original.get(begin..begin.saturating_add(header.value.len())) {
            header.value = value;
        }
    }
}

fn mend_version(line: &mut [u8]) {
    let end = line.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n')).map_or(0, |last| last + 1);
    if let Some((minor @ b'2'..=b'9', before)) = line[..end].split_last_mut()
        && before.ends_with(b" HTTP/1.")
    {
        *minor = b'1';
    }
}

fn mend_last_event_id(line: &mut [u8]) {
    let Some(colon) = line.iter().position(|byte| *byte == b':') else { return };
    if !line[..colon].eq_ignore_ascii_case(b"last-event-id") {
        return;
    }
    for byte in &mut line[colon + 1..] {
        if byte.is_ascii_control() && !matches!(byte, 0 | b'\t' | b'\r' | b'\n') {
            *byte = b'?';
        }
    }
}
