//! Numbers with a unit, as people write them on the command line and in the configuration file.
//!
//! Each type reads what it writes. A count and a number of milliseconds are plain digits; a size
//! may carry a binary unit (`65536`, `64KiB`, `8MiB`, `1GiB`). Decimal units (`64KB`) are refused:
//! every size here is a power of two's neighbour, and a silent 2 % difference is a trap.

use std::fmt;
use std::str::FromStr;

use crate::wire::start::{SINCE_MS_MAX, parse_duration_ms};

/// How many of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count(pub usize);

/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub usize);

/// Milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Millis(pub u64);

/// Milliseconds, written with their unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age(pub u64);

impl Count {
    /// What the help writes in place of a value.
    pub const UNIT: &str = "N";
}

impl Size {
    /// What the help writes in place of a value.
    pub const UNIT: &str = "BYTES";
}

impl Millis {
    /// What the help writes in place of a value.
    pub const UNIT: &str = "MS";
}

/// Binary units, largest first.
const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// Text that is no number of its kind; the message says what to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// No [`Count`].
    #[error("write a whole number, for example 1024")]
    Count,
    /// No [`Millis`].
    #[error("write whole milliseconds, for example 15000")]
    Millis,
    /// No [`Size`].
    #[error("write bytes as 65536, 64KiB, 8MiB or 1GiB")]
    Size,
}

impl FromStr for Count {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Count, UnitError> {
        text.parse().map(Count).map_err(|_| UnitError::Count)
    }
}

impl FromStr for Millis {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Millis, UnitError> {
        text.parse().map(Millis).map_err(|_| UnitError::Millis)
    }
}

impl FromStr for Age {
    type Err = String;

    fn from_str(text: &str) -> Result<Age, String> {
        let ms = parse_duration_ms(text).filter(|ms| *ms <= SINCE_MS_MAX);
        ms.map(Age).ok_or_else(|| "write 500ms, 30s, 5m or 1h, at most 555h".to_string())
    }
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Size, UnitError> {
        let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (digits, unit) = text.split_at(digits_end);
        let unit = unit.trim_start();
        let factor = match UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) {
            Some((_, factor)) => Some(*factor),
            None if unit.is_empty() || unit.eq_ignore_ascii_case("b") => Some(1),
            None => None,
        };
        let bytes = digits.parse().ok().zip(factor).and_then(|(n, factor): (u64, u64)| n.checked_mul(factor));
        bytes.and_then(|bytes| usize::try_from(bytes).ok()).map(Size).ok_or(UnitError::Size)
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Exact: the largest unit that leaves no rest.
impl fmt::Display for Age {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("h", 3_600_000), ("m", 60_000), ("s", 1_000)];
        match units.iter().find(|(_, factor)| self.0 > 0 && self.0.is_multiple_of(*factor)) {
            Some((name, factor)) => write!(f, "{}{name}", self.0 / factor),
            None => write!(f, "{}ms", self.0),
        }
    }
}

/// Exact: the largest unit that leaves no rest.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as u64;
        match UNITS.iter().find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor)) {
            Some((name, factor)) => write!(f, "{}{name}", bytes / factor),
            None => write!(f, "{bytes}"),
        }
    }
}

/// Bytes for people who plan memory: three digits are enough (`1.5 GiB`, `256 MiB`, `512 B`).
pub fn rounded(bytes: u64) -> String {
    match UNITS.iter().find(|(_, factor)| bytes >= *factor) {
        Some((name, factor)) => {
            let value = bytes as f64 / *factor as f64;
            let digits = usize::from(value < 99.95 && !bytes.is_multiple_of(*factor));
            format!("{value:.digits$} {name}")
        }
        None => format!("{bytes} B"),
    }
}

/// Digits in groups of three.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let comma = |at: usize| if at > 0 && (digits.len() - at).is_multiple_of(3) { "," } else { "" };
    digits.char_indices().flat_map(|(at, digit)| comma(at).chars().chain([digit])).collect()
}

/// The known name that is the fewest changes of a character away from what was written.
pub fn nearest<'a>(written: &str, known: impl Iterator<Item = &'a str>) -> &'a str {
    known.min_by_key(|known| distance(written, known)).unwrap_or_default()
}

/// Characters to insert, delete or replace on the way from one name to the other (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (at, byte) in from.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], at + 1);
        for (other_at, other) in to.bytes().enumerate() {
            let replaced = diagonal + usize::from(byte != other);
            diagonal = row[other_at + 1];
            row[other_at + 1] = replaced.min(diagonal + 1).min(row[other_at] + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_plain_bytes_and_binary_units() {
        for (text, bytes) in [
            ("0", 0),
            ("65536", 65_536),
            ("7B", 7),
            ("64KiB", 64 << 10),
            ("8mib", 8 << 20),
            ("1 GiB", 1 << 30),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "KiB", "-1", "+1", "1.5MiB", "64KB", "64k", "1KiBKiB", "18446744073709551615KiB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
    }

    #[test]
    fn ages_read_what_they_write() {
        for (ms, text) in [(0, "0ms"), (1_500, "1500ms"), (90_000, "90s"), (300_000, "5m"), (7_200_000, "2h")]
        {
            assert_eq!(Age(ms).to_string(), text);
            assert_eq!(text.parse(), Ok(Age(ms)));
        }
        assert!("556h".parse::<Age>().is_err() && "5".parse::<Age>().is_err());
    }

    #[test]
    fn the_nearest_name_is_the_one_with_the_fewest_changes() {
        let known = || ["history", "match", "retain"].into_iter();
        for (written, found) in [("histroy", "history"), ("mach", "match"), ("retained", "retain")] {
            assert_eq!(nearest(written, known()), found);
        }
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }

    #[test]
    fn sizes_read_what_they_write() {
        for bytes in [0, 1, 1_023, 1 << 10, 3 << 10, (1 << 20) + 1, 8 << 20, 5 << 30] {
            assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
        }
        assert_eq!(Size(8 << 20).to_string(), "8MiB");
        assert_eq!(Size(1_536 << 10).to_string(), "1536KiB");
    }

    #[test]
    fn rounded_sizes_keep_three_digits() {
        assert_eq!(rounded(512), "512 B");
        assert_eq!(rounded(1_536), "1.5 KiB");
        assert_eq!(rounded(256 << 20), "256 MiB");
        assert_eq!(rounded((256 << 20) + 1), "256 MiB");
        assert_eq!(rounded(3 << 29), "1.5 GiB");
    }
}
