//! A body in chunks (RFC 9112 §7.1), as the tests' own subscribers read it.

/// What is left of a body in chunks.
#[derive(Debug, Default)]
pub struct Chunks {
    rest: Vec<u8>,
    ended: bool,
}

impl Chunks {
    /// The contents of the chunks that `bytes` make whole, one by one.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        self.rest.extend_from_slice(bytes);
        let mut contents = Vec::new();
        let mut at = 0;
        while let Some((content, used)) = whole(&self.rest[at..]) {
            assert!(!self.ended, "nothing follows the last chunk");
            at += used;
            match content {
                Some(content) => contents.push(content),
                None => self.ended = true,
            }
        }
        self.rest.drain(..at);
        contents
    }

    /// The last chunk has come: the body is whole.
    pub fn ended(&self) -> bool {
        self.ended
    }
}

/// The content of the first chunk, `None` for the last one, and its bytes in all; nothing if it is
/// not whole.
fn whole(bytes: &[u8]) -> Option<(Option<Vec<u8>>, usize)> {
    let line = bytes.iter().position(|byte| *byte == b'\n')?;
    let digits = bytes[..line].strip_suffix(b"\r").expect("a size ends with CRLF");
    let digits = std::str::from_utf8(digits).expect("a size is ASCII");
    assert!(digits == "0" || !digits.starts_with('0'), "a size has no zeros before it: {digits:?}");
    let size = usize::from_str_radix(digits, 16).expect("a size is in hexadecimal");
    let begin = line + 1;
    let content = bytes.get(begin..begin + size)?;
    let end = bytes.get(begin + size..begin + size + 2)?;
    assert_eq!(end, b"\r\n", "a chunk ends with CRLF");
    Some(((size > 0).then(|| content.to_vec()), begin + size + 2))
}
