//! The chunked transfer coding (RFC 9112 §7.1), as many servers send an event stream.
//!
//! [`Chunks`] gives the runs of data within the bytes fed, wherever these are cut; where chunks
//! begin and end has nothing to do with events. It keeps the line of the current chunk's size,
//! which is bounded, and nothing of the data. The last chunk is the end of the stream: trailers
//! carry nothing that matters here and are not read.

use std::ops::Range;

/// Bytes of the line with a chunk's size and its extensions.
const LINE_BYTES_MAX: usize = 4 << 10;
/// How the reason begins where the last chunk has come.
pub const ENDED: &str = "the server ended the stream";

/// Takes the chunks' borders out of a stream.
#[derive(Debug, Default)]
pub struct Chunks {
    /// The line of the current chunk's size as far as it has arrived.
    line: Vec<u8>,
    next: Next,
}

/// What comes next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Next {
    /// The line with a size, or its rest.
    #[default]
    Size,
    /// So many bytes of data, at least 1.
    Data(u64),
    /// The CR behind the data.
    Cr,
    /// And the LF.
    Lf,
}

impl Chunks {
    /// The next run of data in `bytes` from `at` on, which moves behind it; `None` when all is
    /// taken. An error is a broken coding, or the end of the stream ([`ENDED`]).
    pub fn next(&mut self, bytes: &[u8], at: &mut usize) -> Result<Option<Range<usize>>, String> {
        while *at < bytes.len() {
            match self.next {
                Next::Size => *at += self.size_line(&bytes[*at..])?,
                Next::Data(left) => {
                    let here = left.min((bytes.len() - *at) as u64);
                    self.next = if here == left { Next::Cr } else { Next::Data(left - here) };
                    let data = *at..*at + here as usize;
                    *at = data.end;
                    return Ok(Some(data));
                }
                Next::Cr | Next::Lf => {
                    let (wanted, next) = match self.next {
                        Next::Cr => (b'\r', Next::Lf),
                        _ => (b'\n', Next::Size),
                    };
                    if bytes[*at] != wanted {
                        return Err("the server sent a chunk that is longer than it said".into());
                    }
                    self.next = next;
                    *at += 1;
                }
            }
        }
        Ok(None)
    }

    /// Takes what is here of a size line; gives its bytes.
    fn size_line(&mut self, bytes: &[u8]) -> Result<usize, String> {
        let end = memchr::memchr(b'\n', bytes);
        let taken = end.map_or(bytes.len(), |end| end + 1);
        if self.line.len() + taken > LINE_BYTES_MAX {
            return Err(format!("the server sent a chunk size of more than {LINE_BYTES_MAX} bytes"));
        }
        self.line.extend_from_slice(&bytes[..taken]);
        if end.is_some() {
            match size(&self.line) {
                Some(0) => return Err(format!("{ENDED} by its last chunk")),
                Some(bytes) => self.next = Next::Data(bytes),
                None => {
                    let shown = String::from_utf8_lossy(&self.line[..self.line.len().min(80)]).into_owned();
                    return Err(format!("the server sent {shown:?} in place of a chunk size"));
                }
            }
            self.line.clear();
        }
        Ok(taken)
    }
}

/// The size in a whole line, which may have extensions behind it.
fn size(line: &[u8]) -> Option<u64> {
    let line = std::str::from_utf8(line.strip_suffix(b"\r\n")?).ok()?;
    let digits = line.split(';').next()?.trim_end_matches([' ', '\t']);
    // A sign, which the number's own parser would take, is no digit.
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The data of `stream` in pieces of `piece` bytes, and the error at its end if there was one.
    fn decode(stream: &[u8], piece: usize) -> (Vec<u8>, Option<String>) {
        let (mut chunks, mut data) = (Chunks::default(), Vec::new());
        for bytes in stream.chunks(piece) {
            let mut at = 0;
            loop {
                match chunks.next(bytes, &mut at) {
                    Ok(Some(run)) => data.extend_from_slice(&bytes[run]),
                    Ok(None) => break,
                    Err(cause) => return (data, Some(cause)),
                }
            }
        }
        (data, None)
    }

    #[test]
    fn data_comes_out_whole_however_the_bytes_arrive_and_the_last_chunk_is_the_end() {
        let stream =
            b"5\r\nhello\r\n00b;name=\"v\"\r\n, chunk\r\n\r\n\r\nA \r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n";
        for piece in [1, 2, 3, 7, stream.len()] {
            let (data, ended) = decode(stream, piece);
            assert_eq!(String::from_utf8_lossy(&data), "hello, chunk\r\n\r\n0123456789", "{piece}");
            assert!(ended.is_some_and(|cause| cause.starts_with(ENDED)), "pieces of {piece}");
        }
        assert_eq!(decode(b"5\r\nhel", 2), (b"hel".to_vec(), None));
    }

    #[test]
    fn what_is_no_chunk_is_named() {
        let long = [b"1;".to_vec(), vec![b'x'; LINE_BYTES_MAX]].concat();
        let cases: [(&[u8], &str); 8] = [
            (b"data: 1\n\n", "in place of a chunk size"),
            (b"\r\n", "in place of a chunk size"),
            (b"+5\r\nhello", "in place of a chunk size"),
            (b"5\nhello", "in place of a chunk size"),
            (b"11112222333344445\r\n", "in place of a chunk size"),
            (b"\xff\r\n", "in place of a chunk size"),
            (b"2\r\nhello\r\n", "longer than it said"),
            (&long, "more than 4096 bytes"),
        ];
        for (stream, expected) in cases {
            for piece in [1, stream.len()] {
                let (_, cause) = decode(stream, piece);
                assert!(
                    cause.as_ref().is_some_and(|cause| cause.contains(expected)),
                    "{expected}: {cause:?}"
                );
            }
        }
    }
}
