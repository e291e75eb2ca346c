//! Which WebSocket subprotocol an answer names (RFC 6455 §1.9).
//!
//! A browser fails a connection whose offer is not answered (WHATWG WebSockets §3.1). Of the names
//! that are offered the first one counts that is ours and spoken, or may be given back: to us the
//! others mean nothing.

use super::{RefusedRequest, refuse};
use crate::close::CloseReason;

/// Bytes of a name that is given back.
const NAME_BYTES_MAX: usize = 64;
/// Names with a meaning of our own. Given back they would promise what we do not do, unless they
/// are spoken.
const OURS: &[u8] = b"fanwave.";
/// Events and commands as JSON.
pub const JSON: &str = "fanwave.v1.json";

/// Which names are given back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Subprotocols {
    /// All of them but ours.
    #[default]
    Any,
    /// These alone; perhaps none.
    Only(Vec<String>),
}

impl Subprotocols {
    /// The name to give back to a client that offers these, best first; `None` for none. Of ours
    /// those are `spoken` that are named here, whatever the rule.
    pub(super) fn choose<'a>(
        &self,
        offered: impl Iterator<Item = &'a [u8]>,
        spoken: &[&str],
    ) -> Result<Option<&'a str>, RefusedRequest> {
        let mut only_ours = None;
        for name in offered.filter(|name| is_name(name)) {
            if name.starts_with(OURS) {
                if let Some(name) = std::str::from_utf8(name).ok().filter(|name| spoken.contains(name)) {
                    return Ok(Some(name));
                }
                only_ours.get_or_insert(true);
                continue;
            }
            only_ours = Some(false);
            let name = std::str::from_utf8(name).expect("a token is ASCII");
            let wanted = match self {
                Subprotocols::Any => true,
                Subprotocols::Only(names) => names.iter().any(|known| known == name),
            };
            if wanted {
                return Ok(Some(name));
            }
        }
        match only_ours {
            Some(true) => {
                let names = if spoken.is_empty() { "none".to_string() } else { spoken.join(", ") };
                let detail = format!(
                    "none of the fanwave. subprotocols that are offered is spoken here ({names} is): \
                     leave Sec-WebSocket-Protocol out for raw messages"
                );
                Err(refuse(CloseReason::BadRequest, detail))
            }
            _ => Ok(None),
        }
    }
}

/// True for a token (RFC 9110 §5.6.2) that is not too long to be given back.
pub(crate) fn is_name(name: &[u8]) -> bool {
    let is_token_byte = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.iter().all(is_token_byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_name_that_may_be_given_back_is() {
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        let just = "x".repeat(NAME_BYTES_MAX);
        let only = |names: &[&str]| Subprotocols::Only(names.iter().map(|name| name.to_string()).collect());
        for (rule, offered, chosen) in [
            (Subprotocols::Any, &[][..], Some(None)),
            (Subprotocols::Any, &["a", "b"], Some(Some("a"))),
            (Subprotocols::Any, &["a b", "<", "", "b"], Some(Some("b"))),
            (Subprotocols::Any, &[&long, "b"], Some(Some("b"))),
            (Subprotocols::Any, &[&long], Some(None)),
            (Subprotocols::Any, &[&just], Some(Some(just.as_str()))),
            (Subprotocols::Any, &["fanwave.v2.json", "b"], Some(Some("b"))),
            (Subprotocols::Any, &["fanwave.v2.json", "fanwave.x"], None),
            (Subprotocols::Any, &["fanwave.v2.json", JSON, "b"], Some(Some(JSON))),
            (Subprotocols::Any, &["b", JSON], Some(Some("b"))),
            (Subprotocols::Any, &["fanwave.v1.jsonx"], None),
            (Subprotocols::Any, &["fanwaves"], Some(Some("fanwaves"))),
            (only(&["b", "c"]), &["a", "c", "b"], Some(Some("c"))),
            (only(&["b"]), &["a"], Some(None)),
            (only(&["b"]), &["fanwave.x"], None),
            (only(&["b"]), &["fanwave.x", "a"], Some(None)),
            (only(&[]), &["a"], Some(None)),
            (only(&[]), &["fanwave.x"], None),
            (only(&[]), &["a", JSON], Some(Some(JSON))),
        ] {
            let answer = rule.choose(offered.iter().map(|name| name.as_bytes()), &[JSON]);
            match chosen {
                Some(chosen) => assert_eq!(answer, Ok(chosen), "{rule:?} {offered:?}"),
                None => {
                    let refusal = answer.expect_err("only names of ours");
                    assert_eq!(refusal.reason, CloseReason::BadRequest);
                    assert!(refusal.detail.contains("raw messages"), "{refusal:?}");
                    assert!(refusal.detail.contains(JSON), "{refusal:?}");
                }
            }
        }
    }
}
