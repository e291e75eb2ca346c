//! Tokens that subscribers and publishers bring: JWTs that are signed here, with a secret that the
//! server has too (HS256, RFC 7518 §3.2).
//!
//! Each bearer has a token of its own, as people have, so that a server checks each of them. The
//! same bearer brings the same token again.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use std::{fmt, fs};

use anyhow::{Context, Result, bail};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde::{Deserialize, Serialize};

/// How long a token is valid, in seconds: longer than any run.
const LIFETIME: u64 = 86_400;
/// Bytes of a secret: RFC 7518 §3.2 asks for as many as the hash has.
const SECRET_BYTES_MIN: usize = 32;

/// The secret that tokens are signed with. It is not shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    /// The bytes of a file without a trailing line break, as `fanwave serve --auth-hs256-file`
    /// reads them.
    pub fn read(file: &Path) -> Result<Secret> {
        let mut bytes = fs::read(file).with_context(|| format!("--token-hs256-file {}", file.display()))?;
        if bytes.ends_with(b"\n") {
            bytes.pop();
        }
        if bytes.ends_with(b"\r") {
            bytes.pop();
        }
        if bytes.len() < SECRET_BYTES_MIN {
            bail!("--token-hs256-file {}: a secret has at least {SECRET_BYTES_MIN} bytes", file.display());
        }
        Ok(Secret(bytes))
    }
}

/// Signs tokens that are all over at the same time.
pub struct Signer {
    key: EncodingKey,
    expires: u64,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer").field("expires", &self.expires).finish_non_exhaustive()
    }
}

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    exp: u64,
    fanwave: Grants<'a>,
}

#[derive(Serialize)]
struct Grants<'a> {
    subscribe: &'a [&'a str],
    publish: &'a [&'a str],
}

impl Signer {
    /// With this secret.
    pub fn new(secret: &Secret) -> Result<Signer> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let key = EncodingKey::from_secret(&secret.0).context("a secret to sign with")?;
        Ok(Signer { key, expires: now + LIFETIME })
    }

    /// A token of `subject`, which may hear and say what matches these patterns.
    pub fn sign(&self, subject: &str, subscribe: &[&str], publish: &[&str]) -> Result<String> {
        let claims = Claims { sub: subject, exp: self.expires, fanwave: Grants { subscribe, publish } };
        encode(&Header::new(Algorithm::HS256), &claims, &self.key).context("signing a token")
    }
}

/// The line of a request's head that brings `token`; nothing without one.
pub fn head_line(token: Option<&str>) -> String {
    token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_read_without_its_line_break_and_never_shown() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let text = "0123456789abcdef0123456789abcdef";
        fs::write(file.path(), format!("{text}\r\n")).expect("room");
        let secret = Secret::read(file.path()).expect("long enough");
        assert_eq!(secret.0, text.as_bytes());
        assert_eq!(format!("{secret:?}"), "Secret(…)");
        fs::write(file.path(), "short").expect("room");
        let error = format!("{:#}", Secret::read(file.path()).expect_err("too short"));
        assert!(error.contains("--token-hs256-file") && error.contains("at least 32"), "{error}");
        let error = format!("{:#}", Secret::read(Path::new("/nowhere/secret")).expect_err("absent"));
        assert!(error.contains("/nowhere/secret"), "{error}");
    }

    #[test]
    fn tokens_of_two_bearers_differ_and_those_of_one_do_not() {
        let signer = Signer::new(&Secret(vec![7; 32])).expect("long enough");
        let of = |who: &str| signer.sign(who, &["a"], &[]).expect("signed");
        assert_ne!(of("1"), of("2"));
        assert_eq!(of("1"), of("1"));
        assert_eq!(of("1").split('.').count(), 3);
    }
}
