//! Tokens: signed claims about who may hear and say what (RFC 7519, in the compact form of RFC
//! 7515).
//!
//! Invariants worth naming:
//! - The key fixes the algorithm. What a token's header says may only agree with it.
//! - Sans-IO: keys and the time are arguments. There is no leeway: two clocks that differ refuse.
//! - A token is read in bounded time: [`TOKEN_BYTES_MAX`], [`KEYS_TRIED_MAX`] signatures.
//! - What is wrong with a token is one line, without the token.
//!
//! Reading order: here (one token), `claims` (what it grants), `keys` (what it is checked with),
//! `jwk` (keys as JSON), `known` (tokens that were checked before), `signer` (makes some, for
//! trying). Not here: where keys come from (`config`, `hub/jwks`), where a token comes from
//! (`wire/http/credentials`), and whom a refusal meets (`shard/tokens`, `hub/guard`).

use std::rc::Rc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use crate::config::limits::{KEYS_TRIED_MAX, TOKEN_BYTES_MAX};

mod claims;
mod jwk;
mod keys;
mod known;
mod signer;
#[cfg(test)]
mod tests;

pub use claims::Claims;
pub use keys::{Algorithm, Key, KeyError, KeySet, Keys};
pub use known::{Known, KnownTokens};
pub use signer::Signer;

/// Most of a token's own text that a refusal quotes.
const QUOTED_BYTES_MAX: usize = 64;

/// Why a token is not taken: the client's fault, save for [`Refused::NoKeys`]. Another token may
/// help; the same one does not.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is longer than a token may be.
    #[error("the token has more than {TOKEN_BYTES_MAX} bytes")]
    TooLong,
    /// It is not header, claims and signature, each as it must be.
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    /// Its algorithm is none that we take, or not that of the key it names.
    #[error("the token's alg is {0}, and no key of this server is for that")]
    Algorithm(String),
    /// No key of ours has the `kid` that it names.
    #[error("the token names the key (kid) {0}, which this server does not have")]
    UnknownKey(String),
    /// It names no key, and there are too many to try.
    #[error("the token names no key (kid), and this server has several of its alg")]
    Ambiguous,
    /// Keys are to be fetched, and were not yet. A retry helps.
    #[error("this server has not fetched its keys yet")]
    NoKeys,
    /// The signature is not that of the key.
    #[error("the token's signature is wrong")]
    Signature,
    /// Its claims are of the wrong shape.
    #[error("the token's claims are wrong: {0}")]
    Claims(String),
    /// It is of another issuer.
    #[error("the token's issuer (iss) is not the one of --auth-issuer")]
    Issuer,
    /// It is for others.
    #[error("the token's audience (aud) is not the one of --auth-audience")]
    Audience,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Its time has not come.
    #[error("the token is not valid yet (nbf)")]
    NotYet,
}

/// What a header says that we heed (RFC 7515 §4.1).
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    typ: Option<String>,
    /// Extensions that a reader must understand.
    crit: Option<serde::de::IgnoredAny>,
}

/// What `token` grants at the time `now_ms`, in milliseconds since 1970.
pub fn verify(token: &str, keys: &Keys, now_ms: u64) -> Result<Rc<Claims>, Refused> {
    let claims = open(token, keys)?;
    claims.check_time(now_ms)?;
    Ok(Rc::new(claims))
}

/// What `token` grants in its time, which may be over or still to come.
pub fn open(token: &str, keys: &Keys) -> Result<Claims, Refused> {
    let Parts { header, message, signature, payload } = Parts::of(token)?;
    let Some(algorithm) = Algorithm::named(&header.alg) else {
        return Err(Refused::Algorithm(quoted(&header.alg)));
    };
    let key = signer(keys, algorithm, header.kid.as_deref(), (message, signature))?;
    let claims = Claims::read(&decoded(payload)?, key.number())?;
    keys.check_names(&claims)?;
    Ok(claims)
}

/// What `token` says of itself, for people: its algorithm, the name of its key, and its claims,
/// which nobody has checked.
pub fn peek(token: &str) -> Result<(&'static str, Option<String>, Claims), Refused> {
    let Parts { header, payload, .. } = Parts::of(token)?;
    let Some(algorithm) = Algorithm::named(&header.alg) else {
        return Err(Refused::Algorithm(quoted(&header.alg)));
    };
    Ok((algorithm.name(), header.kid, Claims::read(&decoded(payload)?, 0)?))
}

/// A token, taken apart.
struct Parts<'a> {
    header: Header,
    /// What is signed.
    message: &'a str,
    signature: &'a str,
    payload: &'a str,
}

impl Parts<'_> {
    fn of(token: &str) -> Result<Parts<'_>, Refused> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(Refused::TooLong);
        }
        let form = Refused::Malformed("it is not of the form header.claims.signature");
        let Some((message, signature)) = token.rsplit_once('.') else { return Err(form) };
        let Some((header, payload)) = message.split_once('.').filter(|(_, payload)| !payload.contains('.'))
        else {
            return Err(form);
        };
        let header: Header = serde_json::from_slice(&decoded(header)?)
            .map_err(|_| Refused::Malformed("its header is not JSON with an alg"))?;
        if header.crit.is_some() {
            return Err(Refused::Malformed("its header asks for extensions (crit), and none are understood"));
        }
        let is_jwt = |typ: &String| {
            ["JWT", "at+jwt", "application/at+jwt"].iter().any(|known| typ.eq_ignore_ascii_case(known))
        };
        if header.typ.as_ref().is_some_and(|typ| !is_jwt(typ)) {
            return Err(Refused::Malformed("the typ of its header is not JWT"));
        }
        Ok(Parts { header, message, signature, payload })
    }
}

/// The key with which a token was signed, whose header names `algorithm` and perhaps `kid`.
fn signer<'a>(
    keys: &'a Keys,
    algorithm: Algorithm,
    kid: Option<&str>,
    (message, signature): (&str, &str),
) -> Result<&'a Key, Refused> {
    let candidates = keys.candidates(kid);
    let of_algorithm = || candidates.iter().filter(|key| key.algorithm() == algorithm);
    match of_algorithm().count() {
        0 if keys.is_awaited() => return Err(Refused::NoKeys),
        0 if candidates.is_empty() => return Err(Refused::UnknownKey(quoted(kid.unwrap_or_default()))),
        0 => return Err(Refused::Algorithm(algorithm.name().to_string())),
        more if more > KEYS_TRIED_MAX => return Err(Refused::Ambiguous),
        _ => {}
    }
    of_algorithm().find(|key| key.has_signed(message, signature)).copied().ok_or(Refused::Signature)
}

/// A part of a token (RFC 7515 §2).
fn decoded(part: &str) -> Result<Vec<u8>, Refused> {
    URL_SAFE_NO_PAD.decode(part).map_err(|_| Refused::Malformed("a part of it is not base64url"))
}

/// Text of a token in a line for people: short, without control characters.
fn quoted(text: &str) -> String {
    let end = text.floor_char_boundary(QUOTED_BYTES_MAX.min(text.len()));
    format!("{:?}{}", &text[..end], if end < text.len() { "…" } else { "" })
}
