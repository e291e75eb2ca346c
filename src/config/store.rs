//! The flags of events that outlive their process.

use std::path::PathBuf;

use super::units::Size;
use crate::config::limits::STORE_BYTES_MIN;

/// When an event counts as kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Promise {
    /// It is on the disk before it is answered and broadcast.
    Always,
    /// It is on the disk a moment later.
    #[default]
    Interval,
    /// It is on the disk when the kernel has written it.
    Never,
}

impl Promise {
    /// Its number in files.
    pub fn code(self) -> u8 {
        match self {
            Promise::Always => 1,
            Promise::Interval => 2,
            Promise::Never => 3,
        }
    }
}

/// Where events are kept, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreRules {
    /// The directory.
    pub data: PathBuf,
    /// When an event counts as kept.
    pub promise: Promise,
    /// What it may take on disk, about.
    pub bytes_max: u64,
}

/// A flag about the store is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreFlagError {
    /// There is nothing to sync.
    #[error("--fsync and --data-bytes-max say how --data keeps events; name a directory with --data DIR")]
    NoData,
    /// Another source keeps its events itself.
    #[error(
        "--data keeps the events of --source local; leave it out with another --source, which keeps its own"
    )]
    OtherSource,
    /// It is too small for its segments.
    #[error("--data-bytes-max is {0}, and a store needs {STORE_BYTES_MIN} bytes or more")]
    TooSmall(u64),
    /// Two processes cannot have it at once.
    #[error(
        "--upgrade with --data: two processes cannot have the directory at once; stop the one that runs and \
         start this one: clients resume without a gap"
    )]
    Upgrade,
}

/// The flags.
#[derive(Debug, clap::Args)]
pub(super) struct StoreFlags {
    /// Directory in which events, ids and retained values outlive the process; made if it is
    /// missing [default: none, they live in memory]
    #[arg(long, value_name = "DIR", help_heading = "History that survives")]
    data: Option<PathBuf>,
    /// When the disk has an event. always: before it is answered; interval: a tenth of a second
    /// later; never: when the kernel writes it [default: interval]
    #[arg(long, value_name = "always|interval|never", value_enum, hide_possible_values = true)]
    #[arg(help_heading = "History that survives")]
    fsync: Option<Promise>,
    /// What --data may take on disk, about; the oldest events go first [default: 1GiB]
    #[arg(long, value_name = "BYTES", help_heading = "History that survives")]
    data_bytes_max: Option<Size>,
}

impl StoreFlags {
    /// True if a directory is named.
    pub(super) fn is_used(&self) -> bool {
        self.data.is_some()
    }

    /// What they mean together.
    pub(super) fn rules(self) -> Result<Option<StoreRules>, StoreFlagError> {
        let Some(data) = self.data else {
            let is_idle = self.fsync.is_none() && self.data_bytes_max.is_none();
            return if is_idle { Ok(None) } else { Err(StoreFlagError::NoData) };
        };
        let bytes_max = self.data_bytes_max.map_or(1 << 30, |size| size.0 as u64);
        if bytes_max < STORE_BYTES_MIN {
            return Err(StoreFlagError::TooSmall(bytes_max));
        }
        Ok(Some(StoreRules { data, promise: self.fsync.unwrap_or_default(), bytes_max }))
    }
}
