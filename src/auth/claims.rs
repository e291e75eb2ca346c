//! What a token grants: topics to hear and to publish to, by pattern, and for how long.
//!
//! A claim that is absent grants nothing; one that is malformed makes the token invalid, so that a
//! slip of the issuer is seen at the first use.

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::Refused;
use crate::config::limits::CLAIM_PATTERNS_MAX;
use crate::event::Topic;
use crate::topic_pattern::Pattern;

/// Latest time that a claim may name, in seconds: the end of the year 9999.
const SECONDS_MAX: f64 = 253_402_300_799.0;

/// The claims of one token, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// Whom it names (`sub`).
    pub subject: Option<Box<str>>,
    /// Who made it (`iss`).
    pub issuer: Option<Box<str>>,
    /// For whom it was made (`aud`); empty for anybody.
    pub audience: Box<[Box<str>]>,
    /// From then on it is over (`exp`), in milliseconds since 1970; `None` never.
    pub expires_ms: Option<u64>,
    /// It is not valid before (`nbf`).
    pub begins_ms: Option<u64>,
    /// Its bearer may hear these.
    pub subscribe: Box<[Pattern]>,
    /// Its bearer may publish to these.
    pub publish: Box<[Pattern]>,
    /// The key with which it was signed ([`Key::number`](super::Key::number)).
    pub key: u32,
}

/// Claims as JSON; those that are not ours are passed over (RFC 7519 §4).
#[derive(Deserialize)]
struct ClaimsJson<'a> {
    #[serde(default, deserialize_with = "given")]
    sub: Option<Box<str>>,
    #[serde(default, deserialize_with = "given")]
    iss: Option<Box<str>>,
    #[serde(default, deserialize_with = "given")]
    aud: Option<AudienceJson>,
    #[serde(default, deserialize_with = "given")]
    exp: Option<f64>,
    #[serde(default, deserialize_with = "given")]
    nbf: Option<f64>,
    #[serde(default, deserialize_with = "given")]
    #[serde(borrow)]
    fanwave: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum AudienceJson {
    One(Box<str>),
    Several(Box<[Box<str>]>),
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct GrantJson {
    #[serde(default)]
    subscribe: Vec<String>,
    #[serde(default)]
    publish: Vec<String>,
}

/// A member that is there has a value: `null` is none.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(json: D) -> Result<Option<T>, D::Error> {
    T::deserialize(json).map(Some)
}

impl Claims {
    /// Reads the payload of a token that `key` has signed.
    pub(super) fn read(payload: &[u8], key: u32) -> Result<Claims, Refused> {
        let payload = std::str::from_utf8(payload).map_err(|_| wrong("they are not UTF-8"))?;
        let json: ClaimsJson<'_> = object(payload)?;
        let grant: GrantJson = match json.fanwave {
            Some(json) => object(json.get()).map_err(|refused| match refused {
                Refused::Claims(cause) => wrong(format!("fanwave: {cause}")),
                other => other,
            })?,
            None => GrantJson::default(),
        };
        Ok(Claims {
            subject: json.sub,
            issuer: json.iss,
            audience: match json.aud {
                None => Box::default(),
                Some(AudienceJson::One(one)) => Box::new([one]),
                Some(AudienceJson::Several(several)) => several,
            },
            expires_ms: json.exp.map(|seconds| time("exp", seconds)).transpose()?,
            begins_ms: json.nbf.map(|seconds| time("nbf", seconds)).transpose()?,
            subscribe: patterns("subscribe", &grant.subscribe)?,
            publish: patterns("publish", &grant.publish)?,
            key,
        })
    }

    /// Who brings it: those who have the same issuer and subject are one.
    pub fn principal(&self) -> [&str; 2] {
        [&self.issuer, &self.subject].map(|name| name.as_deref().unwrap_or_default())
    }

    /// Refuses a token outside of its time.
    pub fn check_time(&self, now_ms: u64) -> Result<(), Refused> {
        if self.expires_ms.is_some_and(|expires| now_ms >= expires) {
            return Err(Refused::Expired);
        }
        if self.begins_ms.is_some_and(|begins| now_ms < begins) {
            return Err(Refused::NotYet);
        }
        Ok(())
    }

    /// True if its bearer may hear a topic, or all topics of a pattern: one claim stands for all of
    /// them.
    pub fn lets_subscribe(&self, name: &Topic) -> bool {
        if !name.as_str().contains('*') {
            return self.subscribe.iter().any(|claim| claim.matches(name.as_str()));
        }
        let pattern = Pattern::new(name.as_str());
        pattern.is_ok_and(|pattern| self.subscribe.iter().any(|claim| claim.contains(&pattern)))
    }

    /// True if its bearer may publish to a topic.
    pub fn lets_publish(&self, topic: &str) -> bool {
        !topic.contains('*') && self.publish.iter().any(|claim| claim.matches(topic))
    }
}

/// A JSON object: the parser would also take an array of the members' values.
fn object<'a, T: Deserialize<'a>>(json: &'a str) -> Result<T, Refused> {
    if !json.trim_start_matches([' ', '\t', '\r', '\n']).starts_with('{') {
        return Err(wrong("not a JSON object"));
    }
    serde_json::from_str(json).map_err(|error| wrong(error.to_string()))
}

/// Seconds since 1970 (RFC 7519 §2, NumericDate) as milliseconds.
fn time(name: &str, seconds: f64) -> Result<u64, Refused> {
    match (0.0..=SECONDS_MAX).contains(&seconds) {
        true => Ok((seconds * 1_000.0) as u64),
        false => Err(wrong(format!("{name} is no time in seconds since 1970"))),
    }
}

fn patterns(name: &str, texts: &[String]) -> Result<Box<[Pattern]>, Refused> {
    if texts.len() > CLAIM_PATTERNS_MAX {
        return Err(wrong(format!("fanwave.{name} has more than {CLAIM_PATTERNS_MAX} patterns")));
    }
    let pattern =
        |text: &String| Pattern::new(text).map_err(|error| wrong(format!("fanwave.{name}: {error}")));
    texts.iter().map(pattern).collect()
}

fn wrong(cause: impl Into<String>) -> Refused {
    let mut cause: String = cause.into();
    // Parsers quote what they do not know, however long it is.
    cause.truncate(cause.floor_char_boundary(cause.len().min(256)));
    Refused::Claims(cause.chars().map(|c| if c.is_control() { ' ' } else { c }).collect())
}
