//! The body of a request (RFC 9112 §6, §7.1), read as it comes in pieces of any size.
//!
//! A body in chunks is read strictly: every line ends in CR LF. What comes beside the data, chunk
//! extensions and trailer fields, is dropped and bounded.

/// The most bytes of chunk extensions and trailer fields of one body.
const BESIDE_BYTES_MAX: u32 = 8 << 10;

/// How long a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    /// So many bytes.
    Known(usize),
    /// As its chunks say.
    Chunked,
}

/// The chunks of a body are malformed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken;

/// Which part of a body the next byte belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Data without chunks: so many bytes are to come, at least one.
    Plain(usize),
    /// The size of a chunk, of which so many digits are here.
    Size {
        size: usize,
        digits: u8,
    },
    /// A chunk extension.
    Extension(usize),
    /// The LF of the line with the size.
    SizeEnd(usize),
    /// The data of a chunk: so many bytes are to come, at least one.
    Data(usize),
    /// The CR, then the LF behind the data.
    DataCr,
    DataLf,
    /// A line of the trailer section; empty so far or not.
    Trailer {
        is_empty: bool,
    },
    /// The LF of such a line.
    TrailerEnd {
        is_empty: bool,
    },
    /// Nothing more.
    Whole,
}

/// Reads one body.
#[derive(Debug)]
pub struct BodyReader {
    part: Part,
    /// Bytes of extensions and trailer fields so far.
    beside: u32,
}

impl BodyReader {
    /// Before the first byte.
    pub fn new(length: BodyLength) -> BodyReader {
        let part = match length {
            BodyLength::Known(0) => Part::Whole,
            BodyLength::Known(bytes) => Part::Plain(bytes),
            BodyLength::Chunked => Part::Size { size: 0, digits: 0 },
        };
        BodyReader { part, beside: 0 }
    }

    /// True once the last byte was read.
    pub fn is_whole(&self) -> bool {
        self.part == Part::Whole
    }

    /// Reads from the front of `bytes` up to the end of the body, and calls `on` with each piece of
    /// data. Returns how many bytes belong to the body.
    pub fn feed(&mut self, bytes: &[u8], mut on: impl FnMut(&[u8])) -> Result<usize, Broken> {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match self.part {
                Part::Whole => break,
                Part::Plain(left) | Part::Data(left) => {
                    let here = left.min(rest.len());
                    on(&rest[..here]);
                    at += here;
                    self.part = match (self.part, left - here) {
                        (Part::Plain(_), 0) => Part::Whole,
                        (Part::Plain(_), left) => Part::Plain(left),
                        (_, 0) => Part::DataCr,
                        (_, left) => Part::Data(left),
                    };
                }
                _ => {
                    self.framing_byte(rest[0])?;
                    at += 1;
                }
            }
        }
        Ok(at)
    }

    /// Takes a byte that is no data.
    fn framing_byte(&mut self, byte: u8) -> Result<(), Broken> {
        self.part = match (self.part, byte) {
            (Part::Size { digits: 0, .. }, b'\r' | b';' | b' ' | b'\t') => return Err(Broken),
            (Part::Size { size, .. }, b'\r') => Part::SizeEnd(size),
            (Part::Size { size, .. }, b';' | b' ' | b'\t') => Part::Extension(size),
            (Part::Size { size, digits }, byte) => {
                let digit = char::from(byte).to_digit(16).ok_or(Broken)? as usize;
                // Leading zeros are digits too, so that a line of them ends.
                if digits as usize >= 2 * size_of::<usize>() {
                    return Err(Broken);
                }
                Part::Size { size: size << 4 | digit, digits: digits + 1 }
            }
            (Part::Extension(size), b'\r') => Part::SizeEnd(size),
            (Part::Extension(_), b'\n') => return Err(Broken),
            (Part::Extension(size), _) => {
                self.drop_one()?;
                Part::Extension(size)
            }
            (Part::SizeEnd(0), b'\n') => Part::Trailer { is_empty: true },
            (Part::SizeEnd(size), b'\n') => Part::Data(size),
            (Part::DataCr, b'\r') => Part::DataLf,
            (Part::DataLf, b'\n') => Part::Size { size: 0, digits: 0 },
            (Part::Trailer { is_empty }, b'\r') => Part::TrailerEnd { is_empty },
            (Part::Trailer { .. }, b'\n') => return Err(Broken),
            (Part::Trailer { .. }, _) => {
                self.drop_one()?;
                Part::Trailer { is_empty: false }
            }
            (Part::TrailerEnd { is_empty: true }, b'\n') => Part::Whole,
            (Part::TrailerEnd { is_empty: false }, b'\n') => Part::Trailer { is_empty: true },
            (Part::SizeEnd(_) | Part::DataCr | Part::DataLf | Part::TrailerEnd { .. }, _) => {
                return Err(Broken);
            }
            (Part::Plain(_) | Part::Data(_) | Part::Whole, _) => unreachable!("that is data"),
        };
        Ok(())
    }

    /// A byte of an extension or a trailer field.
    fn drop_one(&mut self) -> Result<(), Broken> {
        self.beside += 1;
        if self.beside > BESIDE_BYTES_MAX { Err(Broken) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Data, and bytes used; in pieces of `size`.
    fn read(length: BodyLength, bytes: &[u8], size: usize) -> Result<(Vec<u8>, usize, bool), Broken> {
        let mut reader = BodyReader::new(length);
        let (mut data, mut used) = (Vec::new(), 0);
        for piece in bytes.chunks(size) {
            let here = reader.feed(piece, |piece| data.extend_from_slice(piece))?;
            used += here;
            if here < piece.len() {
                assert!(reader.is_whole(), "only the end stops");
                break;
            }
        }
        Ok((data, used, reader.is_whole()))
    }

    #[test]
    fn a_body_is_read_to_its_end_and_no_further_however_it_is_cut() {
        for (length, bytes, data, used) in [
            (BodyLength::Known(0), &b"GET"[..], &b""[..], 0),
            (BodyLength::Known(3), b"abcGET", b"abc", 3),
            (BodyLength::Chunked, b"0\r\n\r\nGET", b"", 5),
            (BodyLength::Chunked, b"3\r\nabc\r\n2 ;x=\"y\"\r\nde\r\n000\r\n\r\nGET", b"abcde", 29),
            (BodyLength::Chunked, b"A;a\r\n0123456789\r\n0\r\nx: 1\r\ny: 2\r\n\r\nP", b"0123456789", 34),
        ] {
            for size in 1..=bytes.len() {
                let expected = (data.to_vec(), used, true);
                assert_eq!(read(length, bytes, size), Ok(expected), "{bytes:?} in pieces of {size}");
            }
        }
        assert_eq!(read(BodyLength::Known(4), b"abc", 9), Ok((b"abc".to_vec(), 3, false)));
    }

    #[test]
    fn malformed_chunks_are_told() {
        let long = [b"1;".to_vec(), vec![b'x'; BESIDE_BYTES_MAX as usize + 1]].concat();
        let zeros = [vec![b'0'; 17], b"1\r\n".to_vec()].concat();
        for bytes in [
            &b"\r\n"[..],
            b"x\r\n",
            b"3\nabc",
            b"3\r\nabcd\r\n",
            b"3\r\nabc\n",
            b"-1\r\n",
            b"0x1\r\n",
            b"11111111111111111\r\n",
            b"0\r\n\n",
            b"0\r\nx: 1\n\r\n",
            &long,
            &zeros,
        ] {
            assert_eq!(read(BodyLength::Chunked, bytes, 7), Err(Broken), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn cuts_make_no_difference(bytes in "[0-3ab;\r\n]{0,60}", size in 1usize..9) {
            let whole = read(BodyLength::Chunked, bytes.as_bytes(), usize::MAX);
            prop_assert_eq!(read(BodyLength::Chunked, bytes.as_bytes(), size), whole);
        }
    }
}
