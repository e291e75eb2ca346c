//! Certificates that an authority signs by itself (ACME, RFC 8555): ordered, kept, renewed.
//!
//! The authority asks on the data plane's own TLS listeners whether the names are ours
//! (tls-alpn-01, RFC 8737); `tls` answers there with what is set here.
//!
//! Invariants worth naming:
//! - A certificate is in force until another one is that was signed, fits its key, and names all
//!   domains. What fails changes nothing, is counted, and is tried again later and later.
//! - Key and certificate are one file, which is replaced whole.
//! - One order at a time, bounded in time. What is due again at once waits as after a failure.
//! - While no certificate is in force, the one that was kept is looked at before each order: the
//!   clock may have been wrong at the start.

use std::future::Future;
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
        if let Err(cause) = keeper.take_kept() {
            tracing::warn!("the certificate that was kept is not used: {cause}");
        }
        Ok(keeper)
    }

    /// Puts the certificate that was kept in force. False if there is none.
    fn take_kept(&mut self) -> Result<bool, String> {
        let Some(text) = self.state.certificate()? else { return Ok(false) };
        self.put_in_force(self.read(&text)?);
        Ok(true)
    }

    /// What there is to tell of it, now and later.
    pub fn report(&self) -> Arc<Report> {
        self.report.clone()
    }

    /// Orders a certificate whenever one is due, until `ended` resolves: then another process does,
    /// or nobody.
    pub async fn keep(self, ended: impl Future<Output = ()>) {
        tokio::select! {
            biased;
            () = ended => {}
            () = self.keep_on() => {}
        }
    }

    async fn keep_on(mut self) {
        let mut retry_ms = ACME_RETRY_MS;
        loop {
            // Why it is of no use was said at the start.
            if self.report.expires() == 0 && self.take_kept() == Ok(true) {
                tracing::info!("the certificate that was kept is in force by now");
            }
            let wait = Duration::from_secs(self.due.saturating_sub(now()));
            if !wait.is_zero() {
                // The clock may be set meanwhile.
                sleep(wait.min(Duration::from_millis(ACME_LOOK_MS))).await;
                continue;
            }
            let renewed = self.renew().await;
            let wait_ms = wait_after(renewed.is_ok() && self.due > now(), &mut retry_ms);
            match renewed {
                Ok(()) if self.due > now() => {}
                Ok(()) => {
                    tracing::warn!(
                        domains = ?self.rules.domains,
                        "the new certificate is to be renewed at once (--acme): is its time so short, or is the \
                         clock wrong? next order in {} s",
                        wait_ms / 1_000
                    );
                }
                Err(cause) => {
                    self.report.failures.fetch_add(1, Ordering::Relaxed);
                    let state = match self.report.expires() {
                        0 => "there is none, and handshakes are refused",
                        _ => "the old one stays",
                    };
                    tracing::error!(
                        domains = ?self.rules.domains,
                        "no new certificate (--acme): {cause}; {state}; next try in {} s",
                        wait_ms / 1_000
                    );
                }
            }
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

/// Milliseconds from the end of an order to the next one: after a good one few, and else more and
/// more.
fn wait_after(is_good: bool, retry_ms: &mut u64) -> u64 {
    if is_good {
        *retry_ms = ACME_RETRY_MS;
        return ACME_RETRY_MS;
    }
    let wait_ms = *retry_ms + jitter(*retry_ms / 4);
    *retry_ms = (3 * *retry_ms).min(ACME_RETRY_MS_MAX);
    wait_ms
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

    /// A keeper whose authority is nowhere, and its directory.
    fn keeper(name: &str) -> Keeper {
        let state = std::env::temp_dir().join(format!("fanwave-keeper-{}-{name}", std::process::id()));
        let rules = AcmeRules {
            domains: vec!["localhost".to_string()],
            directory: "https://localhost:1/dir".to_string(),
            contacts: Vec::new(),
            ca: None,
            state,
        };
        Keeper::open(&rules, Automatic::default()).expect("a directory of our own")
    }

    #[test]
    fn what_was_kept_is_in_force_as_soon_as_it_can_be_used() {
        let mut keeper = keeper("kept");
        let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).expect("a certificate");
        let text = made.signing_key.serialize_pem() + &made.cert.pem();
        let mut params = rcgen::CertificateParams::new(["localhost".to_string()]).expect("a name");
        params.not_before = rcgen::date_time_ymd(2999, 1, 1);
        params.not_after = rcgen::date_time_ymd(2999, 2, 1);
        let early = params.self_signed(&made.signing_key).expect("a certificate").pem();
        assert_eq!(keeper.take_kept(), Ok(false));
        keeper.state.keep_certificate(&(made.signing_key.serialize_pem() + &early)).expect("room");
        assert!(keeper.take_kept().is_err_and(|cause| cause.contains("not valid yet")));
        assert_eq!(keeper.report.expires(), 0);
        keeper.state.keep_certificate(&text).expect("room");
        assert_eq!(keeper.take_kept(), Ok(true));
        assert!(keeper.report.expires() > 0 && keeper.automatic.certificate().is_some());
        std::fs::remove_dir_all(&keeper.rules.state).expect("our own");
    }

    #[tokio::test]
    async fn a_process_that_ends_orders_nothing_more() {
        let keeper = keeper("ended");
        let (report, state) = (keeper.report(), keeper.rules.state.clone());
        keeper.keep(std::future::ready(())).await;
        assert_eq!((report.orders(), report.failures()), (0, 0));
        std::fs::remove_dir_all(&state).expect("our own");
    }

    #[test]
    fn an_order_that_is_due_again_at_once_waits_longer_each_time() {
        let mut retry_ms = ACME_RETRY_MS;
        let mut least_ms = ACME_RETRY_MS;
        for _ in 0..10 {
            let wait_ms = wait_after(false, &mut retry_ms);
            assert!((least_ms..=least_ms + least_ms / 4).contains(&wait_ms), "{wait_ms}");
            least_ms = (3 * least_ms).min(ACME_RETRY_MS_MAX);
        }
        assert_eq!(least_ms, ACME_RETRY_MS_MAX);
        assert_eq!(wait_after(true, &mut retry_ms), ACME_RETRY_MS);
        assert_eq!(retry_ms, ACME_RETRY_MS);
    }

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
