//! The token that a request brings: in `Authorization` (RFC 6750 §2.1), in the query, where an
//! `EventSource` or a WebSocket of a page can set no field, or in a cookie.
//!
//! The strongest alone counts, in this order. A browser sends a cookie with requests of any page,
//! so it counts only where the page is known: our own, or one that the operator has listed.

use std::fmt;

use super::fields::Fields;
use super::origin::Origins;
use super::target::Target;
use super::{HeadRules, RefusedRequest, refuse};
use crate::close::CloseReason;

/// A token as it came, unchecked. It is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Box<str>);

impl Token {
    /// The token in this text.
    pub fn new(text: impl Into<Box<str>>) -> Token {
        Token(text.into())
    }

    /// What is to be checked.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token of {} bytes", self.0.len())
    }
}

/// Where tokens are looked for, if the server asks for any.
#[derive(Debug, Clone, Copy)]
pub struct TokenPlaces<'a> {
    /// The name of the cookie that may hold one.
    pub cookie: Option<&'a str>,
}

/// The token of a request to `host`.
pub(super) fn token_of(
    fields: &Fields<'_, '_>,
    target: &Target<'_>,
    host: Option<&str>,
    rules: &HeadRules<'_>,
    places: TokenPlaces<'_>,
) -> Result<Option<Token>, RefusedRequest> {
    if let Some(bearer) = fields.bearer()? {
        return Ok(Some(bearer));
    }
    if let Some(text) = target.token()? {
        return Ok(Some(Token::new(text)));
    }
    let Some(name) = places.cookie else { return Ok(None) };
    let is_known = match fields.origin() {
        Some(origin) => {
            let admitted = rules.origins.admit(Some(origin), host.map(str::as_bytes), rules.is_secure);
            *rules.origins != Origins::Any && admitted.is_ok()
        }
        None => fields.is_same_origin_fetch(),
    };
    Ok(fields.cookie(name).filter(|_| is_known))
}

impl Fields<'_, '_> {
    /// The token in `Authorization`; other schemes are not ours.
    fn bearer(&self) -> Result<Option<Token>, RefusedRequest> {
        let Some(field) = self.one("Authorization")? else { return Ok(None) };
        let scheme = b"bearer";
        let Some((name, rest)) = field.split_at_checked(scheme.len()) else { return Ok(None) };
        if !name.eq_ignore_ascii_case(scheme) || rest.first().is_some_and(|byte| *byte != b' ') {
            return Ok(None);
        }
        let token = std::str::from_utf8(rest.trim_ascii()).unwrap_or_default();
        match token.is_empty() {
            true => Err(refuse(CloseReason::Unauthorized, "Authorization: Bearer is without a token")),
            false => Ok(Some(Token::new(token))),
        }
    }

    /// The first cookie of this name (RFC 6265 §4.2.1).
    fn cookie(&self, name: &str) -> Option<Token> {
        let pairs = self.all("Cookie").flat_map(|value| value.split(|byte| *byte == b';'));
        let value = |pair: &'_ [u8]| {
            let (key, value) = pair.split_at(pair.iter().position(|byte| *byte == b'=')?);
            let value = std::str::from_utf8(value[1..].trim_ascii()).ok()?;
            (key.trim_ascii() == name.as_bytes() && !value.is_empty()).then(|| Token::new(value))
        };
        let mut pairs = pairs;
        pairs.find_map(value)
    }

    /// True if a browser says that a page of our own asks (Fetch Metadata §2.3).
    fn is_same_origin_fetch(&self) -> bool {
        self.all("Sec-Fetch-Site").eq([&b"same-origin"[..]])
    }
}
