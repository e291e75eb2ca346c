//! Opens the directory in which events outlive the process.

use std::path::Path;
use std::time::Instant;

use crate::broadcast::Encoded;
use crate::config::limits::STORE_SEGMENT_BYTES;
use crate::config::{Config, StoreRules};
use crate::event::Epoch;
use crate::hub::source::{Source, Stored, news};
use crate::store::{Directory, Settings, Store, StoreError, StorePast};

/// The store of a server with this configuration, and what it begins with. A new one has the epoch
/// `fresh`.
pub(super) fn open(
    config: &Config,
    rules: &StoreRules,
    fresh: Epoch,
) -> Result<(Source, StorePast), StoreError> {
    let StoreRules { data, promise, bytes_max, .. } = rules;
    let directory = lock(data)?;
    let settings = Settings {
        promise: *promise,
        bytes_max: *bytes_max,
        segment_bytes: STORE_SEGMENT_BYTES.min(bytes_max / 8),
        age_ms_max: rules.age_ms(&config.limits, &config.rules),
        rules: config.rules.clone(),
    };
    let (tell, heard) = news();
    // A hub that is gone has no use for it.
    let tell = move |news| _ = tell.send(news);
    let began = Instant::now();
    let (store, past) = Store::open(directory, settings, &config.limits, Encoded::memory_of, fresh, tell)?;
    tracing::info!(
        data = %data.display(),
        epoch = %past.state.epoch,
        sequence = past.state.sequence,
        events = past.state.events.len(),
        topics = past.state.topics.len(),
        ms = began.elapsed().as_millis() as u64,
        "history is read"
    );
    if past.state.hole > 0 {
        tracing::warn!(
            sequence = past.state.hole,
            "the store was not left in order and some of the last events may be missing: a subscriber that comes back \
             from before is told of a gap"
        );
    }
    Ok((Source::Store(Box::new(Stored::new(store, heard))), past))
}

fn lock(data: &Path) -> Result<Directory, StoreError> {
    let place = || data.display().to_string();
    match Directory::open(data) {
        Ok(Some(directory)) => Ok(directory),
        Ok(None) => Err(StoreError::Locked(place())),
        Err(source) => Err(StoreError::Io { what: "lock", place: place(), source }),
    }
}
