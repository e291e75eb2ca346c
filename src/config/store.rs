//! The flags of events that outlive their process.

use std::path::PathBuf;

use super::Limits;
use super::rules::{History, Rules};
use super::units::{Age, Size};
use crate::config::limits::{IDEMPOTENCY_MS, STORE_AGE_MS_MAX, STORE_BYTES_MIN};
use crate::wire::start::parse_duration_ms;

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
    /// Milliseconds that it keeps an event, [`u64::MAX`] for any; `None`: as long as histories
    /// promise ([`StoreRules::age_ms`]).
    pub age_ms_max: Option<u64>,
}

impl StoreRules {
    /// Milliseconds that an event is kept, if there is room for it: [`u64::MAX`] for any.
    pub fn age_ms(&self, limits: &Limits, rules: &Rules) -> u64 {
        self.age_ms_max.unwrap_or_else(|| promised_ms(limits, rules))
    }

    /// Fails if a start would not find what histories promise.
    pub(super) fn check(&self, limits: &Limits, rules: &Rules) -> Result<(), StoreFlagError> {
        let (age_ms, promised) = (self.age_ms(limits, rules), promised_ms(limits, rules));
        if age_ms < promised { Err(StoreFlagError::TooShort(Age(age_ms), Age(promised))) } else { Ok(()) }
    }
}

/// For how long something is promised to be there after a start: the longest history, and the keys
/// of publishers.
fn promised_ms(limits: &Limits, rules: &Rules) -> u64 {
    let histories = rules.iter().map(|rule| rule.history.age_ms).chain([History::of(limits).age_ms]);
    histories.fold(IDEMPOTENCY_MS, u64::max)
}

/// A flag about the store is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreFlagError {
    /// There is nothing to sync.
    #[error(
        "--fsync, --data-bytes-max and --data-age-max say how --data keeps events; name a directory with --data DIR"
    )]
    NoData,
    /// Another source keeps its events itself.
    #[error(
        "--data keeps the events of --source local; leave it out with another --source, which keeps its own"
    )]
    OtherSource,
    /// It is too small for its segments.
    #[error("--data-bytes-max is {0}, and a store needs {STORE_BYTES_MIN} bytes or more")]
    TooSmall(u64),
    /// A restart would forget what it should not.
    #[error(
        "--data-age-max is {0}, and a restart must find events of the last {1}: the longest of --window-ms-max, the \
         ages of rules and the two minutes of idempotency keys; 0s keeps events of any age"
    )]
    TooShort(Age, Age),
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
    /// How long --data keeps an event, for example 24h; 0s for as long as there is room. What is
    /// older goes a segment at a time [default: the longest of --window-ms-max and the rules' ages]
    #[arg(long, value_name = "AGE", value_parser = age, help_heading = "History that survives")]
    data_age_max: Option<u64>,
}

/// Reads the age of the oldest event; 0 is any.
fn age(text: &str) -> Result<u64, String> {
    let ms = parse_duration_ms(text).filter(|ms| *ms <= STORE_AGE_MS_MAX);
    let ms = ms.ok_or_else(|| "write 30m or 24h, at most 87600h, or 0s for any age".to_string())?;
    Ok(if ms == 0 { u64::MAX } else { ms })
}

impl StoreFlags {
    /// True if a directory is named.
    pub(super) fn is_used(&self) -> bool {
        self.data.is_some()
    }

    /// What they mean together.
    pub(super) fn rules(self) -> Result<Option<StoreRules>, StoreFlagError> {
        let Some(data) = self.data else {
            let is_idle =
                self.fsync.is_none() && self.data_bytes_max.is_none() && self.data_age_max.is_none();
            return if is_idle { Ok(None) } else { Err(StoreFlagError::NoData) };
        };
        let bytes_max = self.data_bytes_max.map_or(1 << 30, |size| size.0 as u64);
        if bytes_max < STORE_BYTES_MIN {
            return Err(StoreFlagError::TooSmall(bytes_max));
        }
        let (promise, age_ms_max) = (self.fsync.unwrap_or_default(), self.data_age_max);
        Ok(Some(StoreRules { data, promise, bytes_max, age_ms_max }))
    }
}
