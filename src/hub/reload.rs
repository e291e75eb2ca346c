//! A new configuration for a running server: `POST /reload`, and SIGHUP.
//!
//! A wrong one changes nothing. A right one is valid for the hub at once, and for each shard behind
//! the batches that wait for it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::interval;

use super::memory::{Reading, check_ceiling, in_use};
use super::refusal::json_line;
use super::stream::refused_unread;
use super::{Hub, Refusal, RefusalReason, Stage};
use crate::broadcast::{Message, Question};
use crate::config::Config;

/// What the hub asks of those who started it, and tells them.
pub struct Surroundings {
    /// Reads the configuration again; the error is one line.
    pub reread: Box<dyn Fn() -> Result<Config, String> + Send + Sync>,
    /// A configuration is valid from now on.
    pub adopt: Box<dyn Fn(&Config) + Send + Sync>,
    /// What happens to the process.
    pub tell: Box<dyn Fn(Tidings) + Send + Sync>,
    /// Reads what the process takes of memory.
    pub meter: Box<dyn Fn() -> Reading + Send + Sync>,
    /// What an authority has signed for this server, if it is asked to.
    pub certificate: Box<dyn Fn() -> Option<CertificateStats> + Send + Sync>,
    /// How long the hub may say nothing of being alive.
    pub watchdog: Option<Duration>,
    /// One message for each SIGHUP.
    pub hangups: Option<UnboundedReceiver<()>>,
}

/// What an authority has signed, for operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct CertificateStats {
    /// When it ends, in seconds since 1970; 0 if there is none.
    pub expires: u64,
    /// Orders that gave one.
    pub orders: u64,
    /// Orders that did not.
    pub failures: u64,
}

/// What happens to the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tidings {
    /// A reload begins.
    Reloading,
    /// A reload has ended, well or not.
    Reloaded,
    /// The drain has begun.
    Draining,
    /// The process of this id serves now; the drain begins.
    HandedOver(i32),
    /// The hub and all shards live.
    Alive,
}

impl Default for Surroundings {
    fn default() -> Surroundings {
        Surroundings {
            reread: Box::new(|| Err("there is nothing to read the configuration from".to_string())),
            adopt: Box::new(|_| {}),
            tell: Box::new(|_| {}),
            certificate: Box::new(|| None),
            meter: Box::new(Reading::default),
            watchdog: None,
            hangups: None,
        }
    }
}

impl fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Surroundings").field("watchdog", &self.watchdog).finish_non_exhaustive()
    }
}

/// The answer to a reload: flags by name.
#[derive(Debug, Serialize)]
struct Outcome {
    /// Have another value now.
    changed: Vec<&'static str>,
    /// Have another value in the file or the environment, and keep theirs until the next start.
    needs_restart: Vec<&'static str>,
}

/// Reloads whenever the operator hangs up.
pub(super) async fn reload_at_hangups(hub: Arc<Hub>, mut hangups: UnboundedReceiver<()>) {
    while hangups.recv().await.is_some() {
        // The log has what came of it.
        let _ = hub.reload().await;
    }
}

/// Says that hub and shards live, twice in each `patience`, as long as all of them do.
pub(super) async fn tell_of_life(hub: Arc<Hub>, patience: Duration) {
    let mut beats = interval(patience / 2);
    loop {
        beats.tick().await;
        // While the process ends, shards may be gone.
        let is_ending = *hub.stage.borrow() >= Stage::Draining;
        let answers = hub.scrape(Question::Counters).await;
        if is_ending || answers.iter().all(Option::is_some) {
            (hub.surroundings.tell)(Tidings::Alive);
        }
    }
}

/// `POST /reload`.
pub(super) async fn reload(State(hub): State<Arc<Hub>>, body: Body) -> Response {
    match hub.reload().await {
        Ok(outcome) => json_line(&outcome),
        Err(cause) => {
            let text = format!("the configuration is as it was: {cause}");
            refused_unread(&hub, Refusal::new(RefusalReason::BadConfig, text), body.into_data_stream())
        }
    }
}

impl Hub {
    async fn reload(&self) -> Result<Outcome, String> {
        // One after the other, so that hub and shards end with the same one. Never closed.
        let _alone = self.reloads.acquire().await;
        (self.surroundings.tell)(Tidings::Reloading);
        let outcome = self.reload_alone().await;
        (self.surroundings.tell)(Tidings::Reloaded);
        outcome
    }

    /// The error is one line.
    fn check_memory(&self, new: &Config) -> Result<(), String> {
        // What is the same is no worse than before, however much is in use by now.
        if new.memory_max == self.config().memory_max {
            return Ok(());
        }
        let reading = (self.surroundings.meter)();
        let base = self.memory_watch().base().unwrap_or_default();
        let in_use = in_use(&reading, self.intake().topics().memory(), base);
        check_ceiling(new, &reading, &in_use)
    }

    async fn reload_alone(&self) -> Result<Outcome, String> {
        let new = (self.surroundings.reread)();
        let new = new
            .and_then(|new| self.check_memory(&new).map(|()| new))
            .inspect_err(|cause| tracing::error!("reload: the configuration is as it was: {cause}"))?;
        let reloaded = self.config().reloaded(new);
        let config = Arc::new(reloaded.config);
        (self.surroundings.adopt)(&config);
        self.adopt(config.clone());
        self.tell_shards(|| Message::Reload(config.clone())).await;
        self.reload_keys().await;
        let (changed, needs_restart) = (reloaded.changed, reloaded.needs_restart);
        tracing::info!(?changed, ?needs_restart, "reloaded");
        Ok(Outcome { changed, needs_restart })
    }
}
