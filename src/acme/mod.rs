//! Certificates that an authority signs by itself (ACME, RFC 8555): ordered, kept, renewed.
//!
//! The authority asks on the data plane's own TLS listeners whether the names are ours
//! (tls-alpn-01, RFC 8737); `tls` answers there with what is set here.
//!
//! Invariants worth naming:
//! - A certificate is in force until another one is that was signed, fits its key, and names all
//!   domains. What fails changes nothing, is counted, and is tried again later and later.
//! - Key and certificate are one file, which is replaced whole.
//! - One order at a time, bounded in time.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{sleep, timeout};

use crate::config::AcmeRules;
use crate::config::limits::{ACME_LOOK_MS, ACME_ORDER_MS_MAX, ACME_RETRY_MS, ACME_RETRY_MS_MAX};
use crate::tls::{Automatic, Signed};
use state::State;

mod order;
mod state;

/// What an operator is told.
#[derive(Debug, Default)]
pub struct Report {
    expires: AtomicU64,
    orders: AtomicU64,
    failures: AtomicU64,
}

impl Report {
    /// When the certificate in force ends, in seconds since 1970; 0 if there is none.
    pub fn expires(&self) -> u64 {
        self.expires.load(Ordering::Relaxed)
    }

    /// Orders that gave a certificate.
    pub fn orders(&self) -> u64 {
        self.orders.load(Ordering::Relaxed)
    }

    /// Orders that did not.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
}

/// Keeps a certificate in force.
pub struct Keeper {
    rules: AcmeRules,
    state: State,
    automatic: Automatic,
    report: Arc<Report>,
    /// When the next one is due, in seconds since 1970; 0 for at once.
    due: u64,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("rules", &self.rules).finish_non_exhaustive()
    }
}

impl Keeper {
    /// With the certificate that was signed before, if it can be used. The error is one line: the
    /// directory cannot.
    pub fn open(rules: &AcmeRules, automatic: Automatic) -> Result<Keeper, String> {
        let state = State::open(&rules.state, &rules.directory)?;
        let mut keeper = Keeper { rules: rules.clone(), state, automatic, report: Arc::default(), due: 0 };
        match keeper.state.certificate().and_then(|kept| kept.map(|text| keeper.read(&text)).transpose()) {
            Ok(Some(signed)) => keeper.put_in_force(signed),
            Ok(None) => {}
            Err(cause) => tracing::warn!("the certificate that was kept is not used: {cause}"),
        }
        Ok(keeper)
    }

    /// What there is to tell of it, now and later.
    pub fn report(&self) -> Arc<Report> {
        self.report.clone()
    }

    /// Orders a certificate whenever one is due, for ever.
    pub async fn keep(mut self) {
        let mut retry_ms = ACME_RETRY_MS;
        loop {
            let wait = Duration::from_secs(self.due.saturating_sub(now()));
            if !wait.is_zero() {
                // The clock may be set meanwhile.
                sleep(wait.min(Duration::from_millis(ACME_LOOK_MS))).await;
                continue;
            }
            let wait_ms = match self.renew().await {
                Ok(()) => {
                    retry_ms = ACME_RETRY_MS;
                    ACME_RETRY_MS
                }
                Err(cause) => {
                    self.report.failures.fetch_add(1, Ordering::Relaxed);
                    let wait_ms = retry_ms + jitter(retry_ms / 4);
                    let state = match self.report.expires() {
                        0 => "there is none, and handshakes are refused",
                        _ => "the old one stays",
                    };
                    tracing::error!(
                        domains = ?self.rules.domains,
                        "no new certificate (--acme): {cause}; {state}; next try in {} s",
                        wait_ms / 1_000
                    );
                    retry_ms = (3 * retry_ms).min(ACME_RETRY_MS_MAX);
                    wait_ms
                }
            };
            sleep(Duration::from_millis(wait_ms)).await;
        }
    }

    /// One order, to its end.
    async fn renew(&mut self) -> Result<(), String> {
        let ordering = order::order(&self.rules, &self.state, &self.automatic);
        let ordered = timeout(Duration::from_millis(ACME_ORDER_MS_MAX), ordering).await;
        // Also after an order that was given up.
        self.automatic.forget_challenges();
        let text = ordered.unwrap_or_else(|_| Err("the order took too long".to_string()))?;
        let signed = self.read(&text).map_err(|cause| format!("what was signed is not used: {cause}"))?;
        self.report.orders.fetch_add(1, Ordering::Relaxed);
        self.put_in_force(signed);
        tracing::info!(domains = ?self.rules.domains, "a new certificate is in force (--acme)");
        if let Err(cause) = self.state.keep_certificate(&text) {
            tracing::error!("the new certificate is not kept for the next start: {cause}");
        }
        Ok(())
    }

    /// A certificate and its key, if it is what is wanted here.
    fn read(&self, text: &str) -> Result<Signed, String> {
        let signed = Signed::read(text).map_err(|error| error.to_string())?;
        match self.rules.domains.iter().find(|domain| !signed.names(domain)) {
            Some(domain) => Err(format!("it does not name {domain}")),
            None => Ok(signed),
        }
    }

    fn put_in_force(&mut self, signed: Signed) {
        self.report.expires.store(signed.expires(), Ordering::Relaxed);
        self.due = renewal(signed.begins(), signed.expires());
        self.automatic.set_certificate(signed);
    }
}

/// When a certificate is renewed: with a third of its time left, or some sooner.
fn renewal(begins: u64, expires: u64) -> u64 {
    let life = expires.saturating_sub(begins);
    expires - life / 3 - jitter(life / 60)
}

/// Up to so much, by chance: servers that were started together do not come together.
fn jitter(most: u64) -> u64 {
    RandomState::new().hash_one(most) % most.max(1)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_renewed_with_a_third_of_its_time_left_or_some_sooner() {
        let (begins, life) = (1_700_000_000, 90 * 86_400);
        let dues: Vec<u64> = (0..50).map(|_| renewal(begins, begins + life)).collect();
        let latest = begins + life - life / 3;
        assert!(dues.iter().all(|due| (latest - life / 60..=latest).contains(due)), "{dues:?}");
        assert!(dues.iter().any(|due| *due != dues[0]), "not all at the same time");
        assert_eq!(renewal(5, 5), 5);
    }
}
