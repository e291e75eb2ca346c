//! The Huffman code of fields (RFC 7541 §5.2, Appendix B), to be read. We write none.
//!
//! The code is canonical: of codes of one length those of lower bytes are lower, and shorter codes
//! are lower than longer ones. So the lengths say all.

/// Bits of the code of each byte.
const LENGTHS: [u8; 256] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28,
    28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6,
    6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7,
    8, 13, 19, 13, 14, 6, 15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7,
    15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24,
    23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23,
    23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, 26, 26, 20, 19, 22, 23, 22, 25, 26,
    26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20,
    21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27,
    27, 27, 26,
];

/// The longest code. All of its ones is the end of a text, which never stands in one.
const LENGTH_MAX: usize = 30;
/// The shortest code.
const LENGTH_MIN: usize = 5;

/// Codes by their lengths.
struct Code {
    /// The bytes in the order of their codes.
    bytes: [u8; 256],
    /// By length: the first code that is longer, with zeros behind it up to 32 bits.
    limit: [u32; LENGTH_MAX + 1],
    /// By length: the first code of this length, in its own bits, and where its byte stands.
    first: [(u32, usize); LENGTH_MAX + 1],
}

const CODE: Code = {
    let mut code = Code { bytes: [0; 256], limit: [0; LENGTH_MAX + 1], first: [(0, 0); LENGTH_MAX + 1] };
    let (mut next, mut at, mut length) = (0u32, 0, LENGTH_MIN);
    while length <= LENGTH_MAX {
        code.first[length] = (next, at);
        let mut byte = 0;
        while byte < 256 {
            if LENGTHS[byte] as usize == length {
                code.bytes[at] = byte as u8;
                at += 1;
                next += 1;
            }
            byte += 1;
        }
        code.limit[length] = next << (32 - length);
        next <<= 1;
        length += 1;
    }
    code
};

/// The text is none of this code, or is padded with anything but up to seven ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// Appends the text that stands in `coded` to `out`.
pub fn decode(coded: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    let (mut bits, mut have, mut coded) = (0u64, 0usize, coded.iter());
    loop {
        while have <= 32 {
            let Some(byte) = coded.next() else { break };
            bits |= u64::from(*byte) << (56 - have);
            have += 8;
        }
        let window = (bits >> 32) as u32;
        let found = (LENGTH_MIN..=LENGTH_MAX).find(|length| window < CODE.limit[*length]);
        match found {
            Some(length) if length <= have => {
                let (first, at) = CODE.first[length];
                out.push(CODE.bytes[at + ((window >> (32 - length)) - first) as usize]);
                bits <<= length;
                have -= length;
            }
            // Too few bits for a code are padding: the first bits of the end of a text, which are
            // all ones.
            _ => {
                let is_padding = have < 8 && window == !(u32::MAX >> have);
                return if is_padding { Ok(()) } else { Err(Malformed) };
            }
        }
    }
}
