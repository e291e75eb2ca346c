//! Subjects of NATS outside of the stream as an input (`--nats-core`).
//!
//! Invariants worth naming:
//! - A message is published into the stream like what publishers say, by one of the nodes: they
//!   share a queue group. So it has a place and an id that all nodes know, and a history from then
//!   on.
//! - It comes at most once: what is not taken, or comes while no node is connected, is gone, and
//!   counted where a node had it. Several nodes may change the order of messages that come at the
//!   same time.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Message;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::sleep;

use super::super::Hub;
use super::jetstream::Status;
use crate::config::limits::{NATS_CORE_WAITING_MAX, NATS_RETRY_MS};
use crate::jetstream::{Said, Session, Understood, understand_core};
use crate::refusal::Refusal;

/// Hears one subject, as long as the hub lives.
pub(super) async fn hear(hub: Arc<Hub>, session: Session, status: Arc<Status>, subject: String) {
    let group = format!("fanwave-{}", session.stream_name());
    loop {
        match session.link.client.queue_subscribe(subject.clone(), group.clone()).await {
            Ok(mut messages) => {
                let mut waiting = FuturesUnordered::new();
                loop {
                    tokio::select! {
                        biased;
                        Some(()) = waiting.next() => {}
                        message = messages.next(), if waiting.len() < NATS_CORE_WAITING_MAX => {
                            let Some(message) = message else { break };
                            // Handed over in the order of their coming; answered whenever.
                            if let Some(outcome) = publish(&hub, &status, message) {
                                waiting.push(outcome);
                            }
                        }
                    }
                    if hub.intake().is_over() {
                        return;
                    }
                }
            }
            Err(error) => tracing::warn!("NATS: --nats-core {subject} is not heard: {error}"),
        }
        sleep(Duration::from_millis(NATS_RETRY_MS)).await;
    }
}

/// Publishes a message; what becomes of it is counted.
fn publish(
    hub: &Arc<Hub>,
    status: &Arc<Status>,
    message: Message,
) -> Option<impl Future<Output = ()> + Send + use<>> {
    let most = hub.config().limits.message_bytes_max;
    let understood = understand_core(&message.subject, message.headers.as_ref(), message.payload, most);
    let event = match understood {
        Ok(Understood { said: Said::Event(event), illegal, reserved, .. }) => {
            let mut told = status.told();
            told.core.taken += 1;
            told.core.left_out += illegal + reserved;
            event
        }
        // Only the stream's own subjects remove anything.
        Ok(Understood { said: Said::Removal(_), .. }) | Err(_) => {
            status.told().core.skipped += 1;
            return None;
        }
    };
    let (hub, status) = (hub.clone(), status.clone());
    let published = hub.change(|intake| intake.publish(event, None, hub.now()));
    hub.flush();
    Some(async move {
        let outcome = match published {
            Ok(published) => hub.outcome_of(published).await,
            Err(refusal) => Err(refusal),
        };
        if let Err(Refusal { text, .. }) = outcome {
            status.told().core.refused += 1;
            tracing::debug!("NATS: a message of --nats-core was not taken: {text}");
        }
    })
}
