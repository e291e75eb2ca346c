//! UTF-8 that comes in pieces: says at the first possible byte that a text is none (RFC 6455 §8.1).
//!
//! Whole pieces go through the standard library, which skips over ASCII; only a character that is
//! cut by the end of a piece is kept, at most three bytes of it.

/// The state between two pieces of a text.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Utf8 {
    /// The first `pending` bytes are the beginning of a character.
    bytes: [u8; 3],
    /// 0 <= pending <= 3.
    pending: u8,
}

impl Utf8 {
    /// Takes the next piece. False if no continuation can make the text UTF-8.
    pub(super) fn push(&mut self, piece: &[u8]) -> bool {
        let mut rest = piece;
        while self.pending > 0 {
            let Some((&byte, after)) = rest.split_first() else { return true };
            rest = after;
            if !self.complete(byte) {
                return false;
            }
        }
        let Err(error) = std::str::from_utf8(rest) else { return true };
        if error.error_len().is_some() {
            return false;
        }
        let tail = &rest[error.valid_up_to()..];
        self.bytes[..tail.len()].copy_from_slice(tail);
        self.pending = tail.len() as u8;
        true
    }

    /// True if the text may end here: no character is incomplete.
    pub(super) fn is_whole(&self) -> bool {
        self.pending == 0
    }

    /// Adds one byte to the incomplete character.
    fn complete(&mut self, byte: u8) -> bool {
        let pending = self.pending as usize;
        let mut character = [0; 4];
        character[..pending].copy_from_slice(&self.bytes[..pending]);
        character[pending] = byte;
        match std::str::from_utf8(&character[..=pending]) {
            Ok(_) => {
                self.pending = 0;
                true
            }
            // Four bytes are a character or wrong, so here at most three are incomplete.
            Err(error) if error.error_len().is_none() => {
                self.bytes[pending] = byte;
                self.pending += 1;
                true
            }
            Err(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_wrong_byte_is_found_as_soon_as_nothing_can_repair_it() {
        for (valid, wrong) in [
            (&b"\xce\xba"[..], 0x80),
            (b"\xe0", 0x80),         // overlong
            (b"\xed", 0xa0),         // surrogate
            (b"\xf4", 0x90),         // above U+10FFFF
            (b"\xf0\x9f\x98", b'x'), // cut
            (b"", 0xc0),
            (b"", 0xff),
        ] {
            let mut state = Utf8::default();
            for byte in valid {
                assert!(state.push(&[*byte]));
            }
            assert!(!state.push(&[wrong]), "{valid:x?} {wrong:x}");
        }
    }

    proptest! {
        #[test]
        fn pieces_say_the_same_as_the_whole(
            text in prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..6),
                ".{0,12}".prop_map(String::into_bytes),
                (".{0,6}", any::<u8>(), ".{0,6}")
                    .prop_map(|(a, b, c)| [a.as_bytes(), &[b], c.as_bytes()].concat()),
            ],
            size in 1usize..5,
        ) {
            let mut state = Utf8::default();
            let pieces = text.chunks(size).all(|piece| state.push(piece)) && state.is_whole();
            prop_assert_eq!(pieces, std::str::from_utf8(&text).is_ok());
        }
    }
}
