//! The stamp inside every payload: which event it is and when it was published.
//!
//! A stamp is 36 bytes of ASCII, `~fw` + sequence + time + `~` with 16 hex digits each, at the
//! start of the payload. It survives JSON, SSE and WebSocket text unchanged, and its width never
//! varies, so neither does the length of a payload. Times are `CLOCK_MONOTONIC` nanoseconds: they
//! compare between processes of one machine.

use rustix::time::{ClockId, clock_gettime};

/// Bytes of a stamp, and so the smallest payload.
pub const STAMP_BYTES: usize = 36;

/// Which event, and when it was published or should have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The publisher's number of the event over all topics, from 1, without gaps.
    pub sequence: u64,
    /// `CLOCK_MONOTONIC` nanoseconds.
    pub time_ns: u64,
}

impl Stamp {
    /// Writes the stamp into the first [`STAMP_BYTES`] of `out`, which must have them.
    pub fn write(self, out: &mut [u8]) {
        out[..3].copy_from_slice(b"~fw");
        write_hex(self.sequence, &mut out[3..19]);
        write_hex(self.time_ns, &mut out[19..35]);
        out[35] = b'~';
    }

    /// Reads a stamp from the start of a payload; `None` if there is none.
    pub fn read(bytes: &[u8]) -> Option<Stamp> {
        if bytes.len() < STAMP_BYTES || &bytes[..3] != b"~fw" || bytes[35] != b'~' {
            return None;
        }
        Some(Stamp { sequence: read_hex(&bytes[3..19])?, time_ns: read_hex(&bytes[19..35])? })
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn write_hex(value: u64, out: &mut [u8]) {
    for (at, byte) in out.iter_mut().enumerate() {
        *byte = b"0123456789abcdef"[(value >> (60 - 4 * at)) as usize & 15];
    }
}

/// Sixteen lower-case hex digits, eight at a time: a receiver reads two such numbers per delivery.
fn read_hex(digits: &[u8]) -> Option<u64> {
    let (high, low) = digits.split_at_checked(8)?;
    Some(read_hex_half(high)? << 32 | read_hex_half(low)?)
}

fn read_hex_half(digits: &[u8]) -> Option<u64> {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let text = u64::from_be_bytes(digits.try_into().ok()?);
    // The low nibble, and 9 more where bit 6 says that it is a letter.
    let values = (text & (ONES * 0x0f)) + (text >> 6 & ONES) * 9;
    // Whatever was no digit has a value beyond 15 or differs from the digit that its value is
    // written with.
    let letters = (values + ONES * 6) >> 4 & ONES;
    if values & (ONES * 0xf0) != 0 || values + ONES * 0x30 + letters * 0x27 != text {
        return None;
    }
    let pairs = (values | values >> 4) & 0x00ff_00ff_00ff_00ff;
    let quads = (pairs | pairs >> 8) & 0x0000_ffff_0000_ffff;
    Some((quads | quads >> 16) & 0xffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_reads_back_what_was_written() {
        for stamp in
            [Stamp { sequence: 0, time_ns: u64::MAX }, Stamp { sequence: 0x0123_4567_89ab_cdef, time_ns: 1 }]
        {
            let mut bytes = [b'x'; STAMP_BYTES + 4];
            stamp.write(&mut bytes);
            assert_eq!(Stamp::read(&bytes), Some(stamp));
        }
    }

    #[test]
    fn what_is_no_stamp_is_not_read_as_one() {
        let mut bytes = [0; STAMP_BYTES];
        Stamp { sequence: 7, time_ns: 8 }.write(&mut bytes);
        assert_eq!(Stamp::read(&bytes[..35]), None);
        for at in [0, 2, 3, 18, 19, 34, 35] {
            let mut broken = bytes;
            broken[at] = b'G';
            assert_eq!(Stamp::read(&broken), None, "byte {at}");
        }
    }

    #[test]
    fn every_byte_that_is_no_lower_case_hex_digit_is_refused_at_every_place() {
        for at in 0..16 {
            for byte in 0..=u8::MAX {
                let mut digits = *b"0123456789abcdef";
                digits[at] = byte;
                let expected = matches!(byte, b'0'..=b'9' | b'a'..=b'f')
                    .then(|| u64::from_str_radix(std::str::from_utf8(&digits).expect("ASCII"), 16))
                    .map(|value| value.expect("hex digits"));
                assert_eq!(read_hex(&digits), expected, "{byte:#x} at {at}");
            }
        }
    }

    #[test]
    fn the_clock_goes_forward() {
        let before = now_ns();
        assert!(before > 0);
        assert!(now_ns() >= before);
    }
}
