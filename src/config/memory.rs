//! The ceiling of the process's memory, as it is written, and what it comes to on this machine.

use std::fmt;
use std::str::FromStr;

use super::limits::{MEMORY_BYTES_MIN, MEMORY_MARGIN_SHARE};
use super::units::{Size, UnitError};

/// How much memory the process may take, the kernel's for its sockets included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MemoryMax {
    /// What the cgroup may have, less a margin; without such a limit there is no ceiling.
    #[default]
    Auto,
    /// There is no ceiling.
    None,
    /// So many bytes, and no more than `Auto`.
    Bytes(usize),
}

impl MemoryMax {
    /// The ceiling where the cgroup may have `limit` bytes.
    pub fn ceiling(self, limit: Option<u64>) -> Option<u64> {
        let auto = limit.map(|limit| limit - limit / MEMORY_MARGIN_SHARE);
        match self {
            MemoryMax::Auto => auto,
            MemoryMax::None => None,
            MemoryMax::Bytes(bytes) => Some(auto.map_or(bytes as u64, |auto| auto.min(bytes as u64))),
        }
    }
}

/// What text lacks to be a [`MemoryMax`]; the message says what to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MemoryMaxError {
    /// Neither a size nor one of the words.
    #[error("{}, or auto, or none", UnitError::Size)]
    Unknown,
    /// The server itself takes more.
    #[error("at least {} is needed; write none for no ceiling", Size(MEMORY_BYTES_MIN))]
    TooSmall,
}

impl FromStr for MemoryMax {
    type Err = MemoryMaxError;

    fn from_str(text: &str) -> Result<MemoryMax, MemoryMaxError> {
        match text {
            "auto" => Ok(MemoryMax::Auto),
            "none" => Ok(MemoryMax::None),
            size => match size.parse() {
                Ok(Size(bytes)) if bytes < MEMORY_BYTES_MIN => Err(MemoryMaxError::TooSmall),
                Ok(Size(bytes)) => Ok(MemoryMax::Bytes(bytes)),
                Err(_) => Err(MemoryMaxError::Unknown),
            },
        }
    }
}

/// Written as it is read.
impl fmt::Display for MemoryMax {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MemoryMax::Auto => f.write_str("auto"),
            MemoryMax::None => f.write_str("none"),
            MemoryMax::Bytes(bytes) => Size(*bytes).fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ceiling_reads_what_it_writes_and_refuses_the_rest_with_what_to_write() {
        for text in ["auto", "none", "32MiB", "1GiB", "16777215GiB"] {
            assert_eq!(text.parse::<MemoryMax>().map(|max| max.to_string()).as_deref(), Ok(text));
        }
        for (text, told) in [
            ("0", "at least 32MiB is needed; write none for no ceiling"),
            ("33554431", "at least 32MiB is needed"),
            ("1GB", "write bytes as 65536, 64KiB, 8MiB or 1GiB, or auto, or none"),
            ("-1", "or auto, or none"),
            ("", "or auto, or none"),
            ("99999999999GiB", "or auto, or none"),
        ] {
            let error = text.parse::<MemoryMax>().expect_err(text).to_string();
            assert!(error.starts_with(told) || error.ends_with(told), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_cgroup_bounds_what_is_asked_for_and_none_asks_for_nothing() {
        let bytes = MemoryMax::Bytes(1 << 30);
        let limit = Some(1_000_000_000);
        assert_eq!(MemoryMax::Auto.ceiling(limit), Some(900_000_000));
        assert_eq!(MemoryMax::Auto.ceiling(None), None);
        assert_eq!(MemoryMax::None.ceiling(limit), None);
        assert_eq!(bytes.ceiling(None), Some(1 << 30));
        assert_eq!(bytes.ceiling(limit), Some(900_000_000), "the kernel would end the process before");
        assert_eq!(bytes.ceiling(Some(1 << 40)), Some(1 << 30));
    }
}
