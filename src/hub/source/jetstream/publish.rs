//! Publishes on their way to the stream, and what their publishers are told.
//!
//! Invariants worth naming:
//! - They are handed over in the order of their coming, and answered as the stream says.
//! - An id of ours is told once it is certain whose sequence it has. An acknowledgement does not
//!   say so: another stream may have taken the place of the one that was meant, or its epoch may
//!   have begun since. Certain is where this node has read the message itself. Where it is behind,
//!   a look that began after the acknowledgement and finds the same stream says so as well.
//! - Where neither comes in time, nobody knows what became of it, and the publisher is told that.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, timeout};

use super::Status;
use crate::broadcast::Taken;
use crate::clock::Stamp;
use crate::config::limits::NATS_ACK_MS_MAX;
use crate::event::EventId;
use crate::hub::Hub;
use crate::hub::source::{Submission, Submissions, Wish};
use crate::jetstream::{Entry, PublishFault, Receipt, Sent, Session};
use crate::refusal::{Refusal, RefusalReason};

/// Hands publishes to the stream in their order, and answers them as they are acknowledged.
pub(super) async fn serve(
    hub: Arc<Hub>,
    session: Session,
    mut submissions: Submissions,
    status: Arc<Status>,
) {
    let mut under_way = FuturesUnordered::new();
    loop {
        status.told().in_flight = under_way.len();
        let Submission { wish, intake, reply, .. } = tokio::select! {
            Some(()) = under_way.next() => continue,
            submission = submissions.recv() => match submission {
                Some(submission) => submission,
                None => break,
            },
        };
        // Publishes beyond what may be in flight wait here, in their order, but not for ever.
        let sent = loop {
            if hub.now().ns_since(intake) > NATS_ACK_MS_MAX * 1_000_000 {
                break Err(PublishFault::Full);
            }
            let sent = match &wish {
                Wish::Publish(event, key) => session.publisher.send(event, key.as_ref()).await,
                Wish::Remove(topic) => session.publisher.send_removal(topic).await,
            };
            match sent {
                Err(PublishFault::Full) if !under_way.is_empty() => {
                    under_way.next().await;
                }
                sent => break sent,
            }
        };
        match sent {
            Ok(sent) => {
                let (hub, session, status) = (hub.clone(), session.clone(), status.clone());
                under_way.push(async move {
                    let outcome = outcome(&hub, &session, &status, wish, intake, sent).await;
                    reply.tell(outcome.map_err(refusal));
                });
            }
            Err(fault) => reply.tell(Err(refusal(fault))),
        }
    }
    while under_way.next().await.is_some() {}
}

fn refusal(fault: PublishFault) -> Refusal {
    let reason = match &fault {
        PublishFault::NotSent(_) | PublishFault::Full | PublishFault::Refused(_) => RefusalReason::Source,
        PublishFault::TooLarge { .. } => RefusalReason::TooLarge,
        PublishFault::Unknown => RefusalReason::OutcomeUnknown,
        PublishFault::Conflict => RefusalReason::Conflict,
    };
    Refusal::new(reason, fault.to_string())
}

/// What became of something that was sent.
async fn outcome(
    hub: &Hub,
    session: &Session,
    status: &Status,
    wish: Wish,
    intake: Stamp,
    mut sent: Sent,
) -> Result<Taken, PublishFault> {
    let acknowledged = sent.acknowledgement().await;
    let (at, duplicate) = match acknowledged {
        Ok(Receipt { sequence, duplicate }) => {
            {
                let mut told = status.told();
                told.acknowledged += 1;
                told.duplicates += u64::from(duplicate);
                (told.alive, told.cause) = (hub.now(), None);
            }
            let at = match duplicate {
                true => of_repeat(session, status, sequence).await,
                false => of_new(status, &mut sent, sequence).await,
            };
            (at.ok_or(PublishFault::Unknown)?, duplicate)
        }
        // What was read here is in the stream, although the word of that was lost.
        Err(PublishFault::Unknown) => (sent.place_now().ok_or(PublishFault::Unknown)?, false),
        Err(fault) => return Err(fault),
    };
    match wish {
        Wish::Publish(event, Some(key)) => {
            if duplicate && !session.says(at.sequence, &event).await {
                return Err(PublishFault::Conflict);
            }
            let mut intake_of = hub.intake();
            if intake_of.era.epoch == at.epoch {
                intake_of.remember(&event, key, at.sequence, intake);
            }
        }
        Wish::Publish(_, None) => {}
        // Of another stream nothing is to go.
        Wish::Remove(topic) if status.told().entry.epoch == at.epoch => {
            if let Err(cause) = session.purge(&topic, at.sequence).await {
                tracing::warn!(%topic, "NATS: what was removed is still in the stream: {cause}");
            }
        }
        Wish::Remove(_) => {}
    }
    Ok(Taken { epoch: at.epoch, sequence: at.sequence, duplicate })
}

/// The place of a message that was acknowledged now, if it is certain in time.
async fn of_new(status: &Status, sent: &mut Sent, sequence: u64) -> Option<EventId> {
    if let Some(at) = sent.place_now() {
        return Some(at);
    }
    let acknowledged = Instant::now();
    let mut looks = status.looks.subscribe();
    let looked = async move {
        let looked = looks.wait_for(|looked| looked.is_some_and(|looked| looked.begun >= acknowledged)).await;
        match looked.ok().and_then(|looked| *looked) {
            Some(looked) => EventId { epoch: looked.epoch, sequence },
            // Nobody looks any more.
            None => std::future::pending().await,
        }
    };
    let certain = async {
        tokio::select! {
            biased;
            at = sent.place() => at,
            at = looked => at,
        }
    };
    timeout(Duration::from_millis(NATS_ACK_MS_MAX), certain).await.ok()
}

/// The place of a message that was there before: nobody reads it anew.
async fn of_repeat(session: &Session, status: &Status, sequence: u64) -> Option<EventId> {
    let seen: Entry = status.told().seen();
    let info = session.look().await.ok()?;
    let is_same = session.is_same(&info, &seen).await.ok()?;
    if !is_same {
        status.doubt.notify_one();
    }
    is_same.then_some(EventId { epoch: seen.epoch, sequence })
}
