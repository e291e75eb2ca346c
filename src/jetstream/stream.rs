//! The stream that holds the events: created if it is missing, else checked.
//!
//! Invariants worth naming:
//! - A stream that exists is never changed: it may be shared with others. What of it does not fit
//!   refuses the start, with the remedy.
//! - The configuration that comes back counts, not the one that was sent: servers ignore what they
//!   do not know.
//! - Nodes that start together create one stream.
//! - What a server says of the stream's state may be old: one that has just become its leader may
//!   not have taken in all that it has. So nothing is concluded from a state that lacks something
//!   before it is [`certain`].

use std::time::Duration;

use async_nats::jetstream::context::{CreateStreamErrorKind, GetStreamErrorKind};
use async_nats::jetstream::stream::{
    Config, DiscardPolicy, Info, PurgeErrorKind, RetentionPolicy, StorageType, Stream,
};
use async_nats::jetstream::{Context, ErrorCode};
use tokio::time::{Instant, sleep, timeout};

use super::connect::{innermost, one_line};
use crate::config::Nats;
use crate::config::limits::{
    NATS_API_MS_MAX, NATS_CREATE_MS_MAX, NATS_DUPLICATE_MS, NATS_FENCES_MAX, NATS_LOOKS, NATS_MAX_AGE_MS,
    NATS_MAX_BYTES, NATS_RETRY_MS,
};

/// Why there is no stream to work with. One line with the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// JetStream is off.
    #[error("JetStream is off on the NATS server; start it with nats-server --jetstream --store_dir DIR")]
    NoJetStream,
    /// It does not answer.
    #[error("JetStream does not answer about the stream {stream} ({cause}); most of its servers must run")]
    Silent {
        /// The stream.
        stream: String,
        /// What happened.
        cause: String,
    },
    /// It cannot be created.
    #[error("cannot create the stream {stream}: {cause}{remedy}")]
    Create {
        /// The stream.
        stream: String,
        /// What the server says.
        cause: String,
        /// What to do about it.
        remedy: &'static str,
    },
    /// It is there and does not fit.
    #[error("the stream {stream} does not fit: {what}")]
    Misfit {
        /// The stream.
        stream: String,
        /// What does not fit, and the remedy.
        what: String,
    },
}

/// Takes the stream as it is, or creates it.
pub async fn open(context: &Context, nats: &Nats, in_cluster: bool) -> Result<Stream, StreamError> {
    let deadline = Instant::now() + Duration::from_millis(NATS_CREATE_MS_MAX);
    let name = || nats.stream.clone();
    loop {
        let cause = match context.get_stream(&nats.stream).await {
            Ok(stream) => {
                let misfits = misfits(&stream.cached_info().config, nats);
                return match misfits.into_iter().next() {
                    None => Ok(stream),
                    Some(what) => Err(StreamError::Misfit { stream: name(), what }),
                };
            }
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(inner) if inner.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                    match create(context, nats, in_cluster).await? {
                        Some(stream) => return Ok(stream),
                        None => "it is being created".to_string(),
                    }
                }
                GetStreamErrorKind::JetStream(inner) if is_off(inner.error_code()) => {
                    return Err(StreamError::NoJetStream);
                }
                _ => innermost(&error),
            },
        };
        if Instant::now() >= deadline {
            return Err(StreamError::Silent { stream: name(), cause });
        }
        sleep(Duration::from_millis(NATS_RETRY_MS)).await;
    }
}

fn is_off(code: ErrorCode) -> bool {
    code == ErrorCode::JETSTREAM_NOT_ENABLED || code == ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT
}

/// A subject that no message has: purging it changes nothing.
const FENCE: &str = "fanwave-fence.nothing";

/// The stream as it certainly is. The error is one line; a retry helps once a server leads it.
///
/// The leader is made to do something that changes nothing, which all copies have to agree on: it
/// does that behind all that was agreed before, so it knows all of it then. Where the stream does
/// not allow it, the leader has to say the same several times.
pub async fn certain(stream: &Stream) -> Result<Info, String> {
    let mut before = state(stream).await?;
    for _ in 0..NATS_FENCES_MAX {
        let Some(leader) = copies_leader(&before) else {
            // There is one copy, and the server that has it says so.
            return Ok(before);
        };
        if !fence(stream).await? {
            return unchanged(stream, before).await;
        }
        let after = state(stream).await?;
        if copies_leader(&after) == Some(leader) {
            return Ok(after);
        }
        before = after;
    }
    Err("the stream changes its leader all the time".to_string())
}

/// The leader of a stream that has several copies; empty while nobody leads it.
fn copies_leader(info: &Info) -> Option<String> {
    let cluster = info.cluster.as_ref().filter(|cluster| !cluster.replicas.is_empty())?;
    Some(cluster.leader.clone().unwrap_or_default())
}

async fn state(stream: &Stream) -> Result<Info, String> {
    let info = timeout(Duration::from_millis(NATS_API_MS_MAX), stream.get_info()).await;
    info.map_err(|_| "no answer in time".to_string())?.map_err(|error| innermost(&error))
}

/// False where the stream does not allow it.
async fn fence(stream: &Stream) -> Result<bool, String> {
    let purge = stream.purge().sequence(1).filter(FENCE);
    let purged = timeout(Duration::from_millis(NATS_API_MS_MAX), purge).await;
    match purged.map_err(|_| "no answer in time".to_string())? {
        Ok(_) => Ok(true),
        // Somebody has answered, and will not do it.
        Err(error) if matches!(error.kind(), PurgeErrorKind::JetStream(_)) => Ok(false),
        Err(error) => Err(innermost(&error)),
    }
}

/// The state that the same leader tells several times.
async fn unchanged(stream: &Stream, first: Info) -> Result<Info, String> {
    let mut last = first;
    for _ in 1..NATS_LOOKS {
        sleep(Duration::from_millis(NATS_RETRY_MS)).await;
        let next = state(stream).await?;
        let is_behind = next.state.first_sequence < last.state.first_sequence
            || next.state.last_sequence < last.state.last_sequence;
        if copies_leader(&next) != copies_leader(&last) || is_behind {
            return Err("the stream changes its leader".to_string());
        }
        last = next;
    }
    Ok(last)
}

/// Creates the stream; `None` if it has to be looked for again.
async fn create(context: &Context, nats: &Nats, in_cluster: bool) -> Result<Option<Stream>, StreamError> {
    let wanted = wanted(nats, in_cluster);
    let failed = |cause: String, remedy| StreamError::Create { stream: nats.stream.clone(), cause, remedy };
    let stream = match context.create_stream(wanted.clone()).await {
        Ok(stream) => stream,
        Err(error) => {
            return match error.kind() {
                CreateStreamErrorKind::JetStream(inner) => {
                    let cause = one_line(&inner.to_string());
                    match inner.error_code() {
                        // It is there by now, created by another node.
                        ErrorCode::STREAM_NAME_EXIST => Ok(None),
                        ErrorCode::CLUSTER_NO_PEERS | ErrorCode::STREAM_REPLICAS_NOT_SUPPORTED => {
                            Err(failed(cause, "; start as many NATS servers, or give --nats-replicas 1"))
                        }
                        ErrorCode::STREAM_SUBJECT_OVERLAP => {
                            Err(failed(cause, "; another stream has these subjects: give --nats-prefix"))
                        }
                        ErrorCode::STORAGE_RESOURCES_EXCEEDED | ErrorCode::MEMORY_RESOURCES_EXCEEDED => {
                            Err(failed(cause, "; give --nats-max-bytes, or the server more storage"))
                        }
                        _ => Err(failed(cause, "")),
                    }
                }
                CreateStreamErrorKind::TimedOut => Ok(None),
                _ => Err(failed(innermost(&error), "")),
            };
        }
    };
    let misfits = misfits(&stream.cached_info().config, nats);
    match misfits.into_iter().next() {
        None => {
            let replicas = wanted.num_replicas;
            tracing::info!(stream = nats.stream, replicas, "NATS: the stream was created");
            Ok(Some(stream))
        }
        Some(what) => Err(failed(format!("the server made another one of it ({what})"), "")),
    }
}

/// A stream as we create it.
fn wanted(nats: &Nats, in_cluster: bool) -> Config {
    let max_age = Duration::from_millis(nats.max_age_ms.unwrap_or(NATS_MAX_AGE_MS));
    let duplicate_window = Duration::from_millis(NATS_DUPLICATE_MS);
    Config {
        name: nats.stream.clone(),
        subjects: vec![format!("{}.>", nats.prefix)],
        description: Some("events of fanwave".to_string()),
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        discard: DiscardPolicy::Old,
        num_replicas: nats.replicas.unwrap_or(if in_cluster { 3 } else { 1 }),
        max_age,
        max_bytes: bytes(nats.max_bytes.unwrap_or(NATS_MAX_BYTES)),
        max_messages: -1,
        max_messages_per_subject: -1,
        max_consumers: -1,
        max_message_size: -1,
        duplicate_window: if max_age.is_zero() { duplicate_window } else { duplicate_window.min(max_age) },
        allow_direct: true,
        ..Config::default()
    }
}

/// As JetStream writes it.
fn bytes(most: u64) -> i64 {
    if most == 0 { -1 } else { i64::try_from(most).unwrap_or(i64::MAX) }
}

/// What of a stream does not fit, each with its remedy.
fn misfits(config: &Config, nats: &Nats) -> Vec<String> {
    let mut found = Vec::new();
    let all = format!("{}.>", nats.prefix);
    if !config.subjects.iter().any(|subject| covers(subject, &all)) {
        let subjects = config.subjects.join(", ");
        found.push(format!(
            "its subjects are {subjects}, and topics need {all}: give --nats-prefix, another --nats-stream, or add \
             {all} (nats stream edit --subjects)"
        ));
    }
    let mut refuse = |is_wrong: bool, what: &str| {
        if is_wrong {
            found.push(format!("{what}; name another one with --nats-stream"));
        }
    };
    refuse(
        config.retention != RetentionPolicy::Limits,
        "its retention is not by limits, so messages go once somebody has them",
    );
    refuse(config.mirror.is_some(), "it is a mirror, to which nobody can publish");
    refuse(config.sealed, "it is sealed, so nobody can publish to it");
    refuse(
        config.max_messages_per_subject > 0,
        "it keeps only some messages of each subject (max_msgs_per_subject), and nobody is told which are gone",
    );
    refuse(config.no_ack, "it acknowledges nothing (no_ack)");
    refuse(config.subject_transform.is_some(), "it changes subjects (subject_transform)");
    refuse(
        config.discard_new_per_subject,
        "it refuses new messages of full subjects (discard_new_per_subject)",
    );
    let mut differ = |flag: &str, wanted: Option<String>, has: String, edit: &str| {
        if let Some(wanted) = wanted.filter(|wanted| *wanted != has) {
            found.push(format!(
                "--{flag} asks for {wanted}, and it has {has}: leave the flag out, or change it (nats stream edit {edit})"
            ));
        }
    };
    let replicas = nats.replicas.map(|replicas| replicas.to_string());
    differ("nats-replicas", replicas, config.num_replicas.max(1).to_string(), "--replicas");
    let age = |ms: u64| if ms == 0 { "any age".to_string() } else { format!("{ms} ms") };
    let max_age_ms = u64::try_from(config.max_age.as_millis()).unwrap_or(u64::MAX);
    differ("nats-max-age", nats.max_age_ms.map(age), age(max_age_ms), "--max-age");
    let size = |most: i64| if most <= 0 { "any size".to_string() } else { format!("{most} bytes") };
    let wanted = nats.max_bytes.map(|most| size(bytes(most)));
    differ("nats-max-bytes", wanted, size(config.max_bytes), "--max-bytes");
    found
}

/// What the operator should know of a stream that fits.
pub fn warnings(info: &Info, message_bytes_max: usize, max_payload: usize) -> Vec<String> {
    let config = &info.config;
    let mut found = Vec::new();
    let most = largest(config, max_payload);
    if message_bytes_max > most {
        found.push(format!(
            "events of more than {most} bytes are refused, although --message-bytes-max is {message_bytes_max}: \
             max_payload of the NATS server, or max_msg_size of the stream"
        ));
    }
    if config.storage == StorageType::Memory {
        found.push("the stream is in memory: events are lost with the NATS servers".to_string());
    }
    if config.duplicate_window < Duration::from_millis(NATS_DUPLICATE_MS) {
        let ms = config.duplicate_window.as_millis();
        found.push(format!(
            "idempotency keys are remembered for {ms} ms only, as the stream's duplicate window says"
        ));
    }
    if config.discard == DiscardPolicy::New {
        found.push("a full stream refuses publishes, because it discards new messages".to_string());
    }
    found
}

/// Bytes of the largest message, headers included, that server and stream take.
pub fn largest(config: &Config, max_payload: usize) -> usize {
    match usize::try_from(config.max_message_size) {
        Ok(most) if most > 0 => most.min(max_payload),
        _ => max_payload,
    }
}

/// True if every subject of the filter `inner` is one of `outer`.
fn covers(outer: &str, inner: &str) -> bool {
    let mut inners = inner.split('.');
    for token in outer.split('.') {
        match (token, inners.next()) {
            (_, None) => return false,
            (">", Some(_)) => return true,
            (_, Some(">")) => return false,
            ("*", Some(_)) => {}
            (token, Some(other)) if token == other => {}
            _ => return false,
        }
    }
    inners.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nats() -> Nats {
        Nats::new("nats://a".parse().expect("a server"))
    }

    #[test]
    fn what_we_create_fits() {
        assert_eq!(misfits(&wanted(&nats(), true), &nats()), Vec::<String>::new());
        let all = Nats { replicas: Some(5), max_age_ms: Some(0), max_bytes: Some(0), ..nats() };
        let stream = wanted(&all, false);
        assert_eq!((stream.num_replicas, stream.max_bytes, stream.max_age), (5, -1, Duration::ZERO));
        assert_eq!(misfits(&stream, &all), Vec::<String>::new());
        let short = wanted(&Nats { max_age_ms: Some(1_000), ..nats() }, false);
        assert_eq!(short.duplicate_window, Duration::from_secs(1), "no longer than messages are kept");
    }

    #[test]
    fn a_foreign_shape_is_explained_with_the_remedy() {
        let fits = wanted(&nats(), false);
        let shapes: [(Config, &str); 6] = [
            (Config { subjects: vec!["orders.>".into()], ..fits.clone() }, "--nats-prefix"),
            (Config { subjects: vec!["fanwave.*".into()], ..fits.clone() }, "fanwave.>"),
            (Config { retention: RetentionPolicy::WorkQueue, ..fits.clone() }, "retention"),
            (Config { sealed: true, ..fits.clone() }, "sealed"),
            (Config { no_ack: true, ..fits.clone() }, "no_ack"),
            (Config { mirror: Some(Default::default()), ..fits.clone() }, "mirror"),
        ];
        for (config, part) in shapes {
            let found = misfits(&config, &nats());
            assert!(found.len() == 1 && found[0].contains(part), "{part}: {found:?}");
        }
        let wider = Config { subjects: vec!["orders.*".into(), ">".into()], ..fits.clone() };
        assert_eq!(misfits(&wider, &nats()), Vec::<String>::new(), "others may share it");
    }

    #[test]
    fn a_flag_that_the_stream_contradicts_is_named() {
        let stream = wanted(&nats(), false);
        for (flag, asked) in [
            ("--nats-replicas", Nats { replicas: Some(3), ..nats() }),
            ("--nats-max-age", Nats { max_age_ms: Some(5), ..nats() }),
            ("--nats-max-bytes", Nats { max_bytes: Some(0), ..nats() }),
        ] {
            let found = misfits(&stream, &asked);
            assert!(
                found.len() == 1 && found[0].contains(flag) && found[0].contains("nats stream edit"),
                "{found:?}"
            );
        }
    }

    #[test]
    fn a_filter_covers_what_is_within_it() {
        for (outer, inner, covered) in [
            (">", "a.>", true),
            ("a.>", "a.>", true),
            ("a.>", "a.b.>", true),
            ("a.b.>", "a.>", false),
            ("*.>", "a.>", true),
            ("a.*", "a.>", false),
            ("a", "a.>", false),
        ] {
            assert_eq!(covers(outer, inner), covered, "{outer} {inner}");
        }
    }
}
