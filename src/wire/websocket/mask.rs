//! The masking of clients' payloads (RFC 6455 §5.3). Masking and unmasking are the same.
//!
//! A plain loop over words of eight bytes: the compiler makes vector instructions of it.

/// XORs `bytes` with the masking key (RFC 6455 §5.3); `offset` is the place of the first byte in
/// its payload.
pub fn unmask(bytes: &mut [u8], mask: [u8; 4], offset: usize) {
    let mut mask = mask;
    mask.rotate_left(offset % 4);
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (words, tail) = bytes.as_chunks_mut::<8>();
    for word in words {
        *word = (u64::from_ne_bytes(*word) ^ wide).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn unmasking_is_the_xor_of_the_standard(
            bytes in proptest::collection::vec(any::<u8>(), 0..70),
            mask in any::<[u8; 4]>(),
            offset in 0usize..9,
        ) {
            let expected: Vec<u8> =
                bytes.iter().enumerate().map(|(at, byte)| byte ^ mask[(at + offset) % 4]).collect();
            let mut unmasked = bytes;
            unmask(&mut unmasked, mask, offset);
            prop_assert_eq!(unmasked, expected);
        }
    }
}
