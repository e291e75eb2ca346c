//! What tokens are checked with: secrets and public keys, each with its one algorithm.

use std::fmt;
use std::sync::Arc;

use jsonwebtoken::{DecodingKey, crypto};
use sha2::{Digest as _, Sha256};

use super::{Claims, Refused};

/// Bytes of a secret for HS256 (RFC 7518 §3.2).
const SECRET_BYTES_MIN: usize = 32;

/// How a token is signed (RFC 7518 §3.1, RFC 8037 §3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// HMAC with SHA-256.
    Hs256,
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// ECDSA with P-256 and SHA-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

impl Algorithm {
    /// All that are taken.
    pub const ALL: [Algorithm; 4] = [Algorithm::Hs256, Algorithm::Rs256, Algorithm::Es256, Algorithm::EdDsa];

    /// As headers and keys write it.
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Hs256 => "HS256",
            Algorithm::Rs256 => "RS256",
            Algorithm::Es256 => "ES256",
            Algorithm::EdDsa => "EdDSA",
        }
    }

    /// The one of this name. `none` is not among them.
    pub fn named(name: &str) -> Option<Algorithm> {
        Algorithm::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// As the crate that signs and checks calls it.
    pub fn of_crate(self) -> jsonwebtoken::Algorithm {
        match self {
            Algorithm::Hs256 => jsonwebtoken::Algorithm::HS256,
            Algorithm::Rs256 => jsonwebtoken::Algorithm::RS256,
            Algorithm::Es256 => jsonwebtoken::Algorithm::ES256,
            Algorithm::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        }
    }
}

/// Why something is no key, or no set of keys: the operator's fault, or the issuer's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KeyError(pub(super) String);

/// One key. It is never shown.
pub struct Key {
    number: u32,
    kid: Option<Box<str>>,
    algorithm: Algorithm,
    decoding: DecodingKey,
}

impl Key {
    /// A key of this algorithm. `material` tells it from others.
    pub(super) fn new(
        algorithm: Algorithm,
        kid: Option<&str>,
        decoding: DecodingKey,
        material: &[&[u8]],
    ) -> Key {
        let mut digest = Sha256::new_with_prefix(algorithm.name());
        for part in material {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        let [a, b, c, d, ..] = <[u8; 32]>::from(digest.finalize());
        // 0 stands for no key.
        let number = u32::from_le_bytes([a, b, c, d]).max(1);
        Key { number, kid: kid.map(Into::into), algorithm, decoding }
    }

    /// A secret that issuer and server share, for HS256: the bytes of a file without a trailing
    /// line break.
    pub fn from_secret(bytes: &[u8]) -> Result<Key, KeyError> {
        let secret = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let secret = secret.strip_suffix(b"\r").filter(|_| secret.len() < bytes.len()).unwrap_or(secret);
        Key::secret(None, secret)
    }

    pub(super) fn secret(kid: Option<&str>, secret: &[u8]) -> Result<Key, KeyError> {
        if secret.len() < SECRET_BYTES_MIN {
            return Err(KeyError(format!(
                "the secret has {} bytes, and HS256 needs at least {SECRET_BYTES_MIN} (RFC 7518 3.2); make one \
                 with: openssl rand -hex 32",
                secret.len()
            )));
        }
        let decoding = DecodingKey::from_secret(secret).map_err(|error| KeyError(error.to_string()))?;
        Ok(Key::new(Algorithm::Hs256, kid, decoding, &[secret]))
    }

    /// Tells it from other keys, wherever it came from; the same after a reload. Never 0.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The name under which tokens ask for it.
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// Its algorithm, and no other one.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// True if `signature`, in base64url, is its signature of `message`.
    pub(super) fn has_signed(&self, message: &str, signature: &str) -> bool {
        crypto::verify(signature, message.as_bytes(), &self.decoding, self.algorithm.of_crate())
            .unwrap_or(false)
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Key) -> bool {
        (self.number, &self.kid, self.algorithm) == (other.number, &other.kid, other.algorithm)
    }
}

impl Eq for Key {}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key {} {:?}", self.algorithm.name(), self.kid)
    }
}

/// Keys of one source, at least one and at most
/// [`KEYS_MAX`](crate::config::limits::KEYS_MAX).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySet {
    pub(super) keys: Vec<Arc<Key>>,
    /// Why others of that source are not among them, a line each.
    pub skipped: Vec<String>,
}

impl KeySet {
    /// A set of one.
    pub fn of(key: Key) -> KeySet {
        KeySet { keys: vec![Arc::new(key)], skipped: Vec::new() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Never true: a source without keys is an error.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Key> {
        self.keys.iter().map(|key| &**key)
    }
}

/// All that a token is checked with. `Default` is a server that asks for no tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keys {
    keys: Vec<Arc<Key>>,
    issuer: Option<Box<str>>,
    audience: Option<Box<str>>,
    is_configured: bool,
    is_awaited: bool,
}

impl Keys {
    /// The keys of these sources; `None` for one that was not fetched yet. With one source at least
    /// tokens are needed.
    pub fn new<'a>(sources: impl IntoIterator<Item = Option<&'a KeySet>>) -> Keys {
        let mut keys = Keys::default();
        for source in sources {
            keys.is_configured = true;
            keys.is_awaited |= source.is_none();
            keys.keys.extend(source.into_iter().flat_map(|set| set.keys.iter().cloned()));
        }
        keys
    }

    /// The same for tokens of this issuer (`iss`) and for this audience (`aud`) alone.
    pub fn naming(self, issuer: Option<&str>, audience: Option<&str>) -> Keys {
        Keys { issuer: issuer.map(Into::into), audience: audience.map(Into::into), ..self }
    }

    /// True if tokens are needed.
    pub fn is_configured(&self) -> bool {
        self.is_configured
    }

    /// True until the keys of every source were fetched once.
    pub fn is_awaited(&self) -> bool {
        self.is_awaited
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// True if there are none, so that no token is taken.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// True if a key of this number is among them.
    pub fn has(&self, number: u32) -> bool {
        self.keys.iter().any(|key| key.number == number)
    }

    /// Those that may have signed a token that names `kid`: of that name, else nameless ones. All,
    /// if it names none.
    pub(super) fn candidates(&self, kid: Option<&str>) -> Vec<&Key> {
        let all = || self.keys.iter().map(|key| &**key);
        let Some(kid) = kid else { return all().collect() };
        let named: Vec<&Key> = all().filter(|key| key.kid() == Some(kid)).collect();
        if named.is_empty() { all().filter(|key| key.kid.is_none()).collect() } else { named }
    }

    /// Refuses a token of another issuer, or for others (RFC 7519 §4.1.1, §4.1.3).
    pub(super) fn check_names(&self, claims: &Claims) -> Result<(), Refused> {
        if self.issuer.is_some() && self.issuer != claims.issuer {
            return Err(Refused::Issuer);
        }
        // A token that names an audience is refused by all who are not of it.
        match &self.audience {
            None if claims.audience.is_empty() => Ok(()),
            Some(audience) if claims.audience.contains(audience) => Ok(()),
            _ => Err(Refused::Audience),
        }
    }
}
