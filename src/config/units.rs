//! Numbers with a unit, as people write them on the command line and in the configuration file.
//!
//! Each type reads what it writes. A count and a number of milliseconds are plain digits; a size
//! may carry a binary unit (`65536`, `64KiB`, `8MiB`, `1GiB`). Decimal units (`64KB`) are refused:
//! every size here is a power of two's neighbour, and a silent 2 % difference is a trap.

use std::fmt;
use std::str::FromStr;

/// How many of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count(pub usize);

/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub usize);

/// Milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Millis(pub u64);

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
