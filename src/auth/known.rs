//! Tokens that were checked before, by their digest: a client that comes back with the same one
//! costs no signature. So does one whose token is wrong.

use std::collections::{HashMap, VecDeque};
use std::ops::Deref;
use std::rc::Rc;

use sha2::{Digest as _, Sha256};

use super::{Claims, Keys, Refused, open};
use crate::config::limits::{TOKEN_BYTES_MAX, TOKENS_KNOWN_MAX};

/// What is remembered of one token.
type Digest = [u8; 32];

/// At most so many of a kind, of which the oldest make room.
#[derive(Debug)]
struct Bounded<T> {
    by_digest: HashMap<Digest, T>,
    /// In the order in which they came; each is in the map.
    order: VecDeque<Digest>,
}

impl<T> Default for Bounded<T> {
    fn default() -> Bounded<T> {
        Bounded { by_digest: HashMap::new(), order: VecDeque::new() }
    }
}

impl<T> Bounded<T> {
    fn keep(&mut self, digest: Digest, value: T) {
        if self.order.len() >= TOKENS_KNOWN_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_digest.remove(&oldest);
        }
        if self.by_digest.insert(digest, value).is_none() {
            self.order.push_back(digest);
        }
    }
}

/// Tokens that were checked with the same keys. What depends on the time is not remembered. `P` is
/// how claims are shared: by one thread, or by several.
#[derive(Debug)]
pub struct KnownTokens<P = Rc<Claims>> {
    good: Bounded<P>,
    bad: Bounded<Refused>,
}

impl<P> Default for KnownTokens<P> {
    fn default() -> KnownTokens<P> {
        KnownTokens { good: Bounded::default(), bad: Bounded::default() }
    }
}

/// What is known of a token.
#[derive(Debug)]
pub struct Known(Digest);

impl<P: Deref<Target = Claims> + From<Claims> + Clone> KnownTokens<P> {
    /// What a token grants at the time `now_ms`, if it was checked before; else its name for
    /// [`KnownTokens::check`].
    pub fn find(&self, token: &str, now_ms: u64) -> Result<Result<P, Refused>, Known> {
        if token.len() > TOKEN_BYTES_MAX {
            return Ok(Err(Refused::TooLong));
        }
        let digest = Digest::from(Sha256::digest(token));
        if let Some(claims) = self.good.by_digest.get(&digest) {
            return Ok(claims.check_time(now_ms).map(|()| claims.clone()));
        }
        match self.bad.by_digest.get(&digest) {
            Some(refused) => Ok(Err(refused.clone())),
            None => Err(Known(digest)),
        }
    }

    /// Checks a token that was not found, and remembers what came of it.
    pub fn check(
        &mut self,
        Known(digest): Known,
        token: &str,
        keys: &Keys,
        now_ms: u64,
    ) -> Result<P, Refused> {
        match open(token, keys) {
            Ok(claims) => {
                let claims = P::from(claims);
                self.good.keep(digest, claims.clone());
                claims.check_time(now_ms).map(|()| claims)
            }
            // Keys that come later may take it.
            Err(Refused::NoKeys) => Err(Refused::NoKeys),
            Err(refused) => {
                self.bad.keep(digest, refused.clone());
                Err(refused)
            }
        }
    }

    /// Other keys are in force.
    pub fn forget(&mut self) {
        *self = KnownTokens::default();
    }
}
