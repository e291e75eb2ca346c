//! Who asks on the control plane: an operator, who may do everything, or a publisher with a token
//! of its own, who may publish where its claims say, and nothing else.

use std::sync::Arc;

use axum::extract::Request;
use axum::http::Method;

use super::jwks::TooMany;
use super::{Hub, Refusal, RefusalReason};
use crate::auth::{Claims, Refused, peek};
use crate::clock::{Stamp, unix_ms};
use crate::event::Topic;
use crate::publishing::IdempotencyKey;

/// The client that a request comes from. The guard puts it into the request.
#[derive(Debug, Clone)]
pub(super) enum Principal {
    /// It may do everything.
    Operator,
    /// It may publish where these say.
    Publisher(Arc<Claims>),
}

impl Principal {
    /// The one who brings this token.
    pub(super) fn of_token(hub: &Hub, token: &[u8]) -> Result<Principal, Refusal> {
        let token = std::str::from_utf8(token).unwrap_or_default();
        let checked = hub.keyring.verify(token, unix_ms(), Stamp::now()).map_err(|TooMany| {
            let text = "too many tokens that are not known yet came in this second";
            Refusal::new(RefusalReason::Busy, text)
        })?;
        let claims = checked.map_err(|refused| {
            // A retry helps only where keys are still to come.
            let reason = match refused {
                Refused::NoKeys => RefusalReason::Busy,
                _ => RefusalReason::Unauthorized,
            };
            Refusal::new(reason, refused.to_string())
        })?;
        Ok(Principal::Publisher(claims))
    }

    /// True for a request that a publisher may make, if its claims say so.
    pub(super) fn may_be_asked(request: &Request) -> bool {
        let path = request.uri().path();
        *request.method() == Method::POST && (path == "/publish" || path.starts_with("/topics/"))
    }

    /// Why a token that is not that of operators does not allow any other request. No signature is
    /// checked for that.
    pub(super) fn no_operator(token: &[u8]) -> Refusal {
        let token = std::str::from_utf8(token).unwrap_or_default();
        match peek(token) {
            Ok(_) => {
                let text =
                    "this token may publish and nothing else; operators bring that of --control-token-file";
                Refusal::new(RefusalReason::NotAllowed, text)
            }
            Err(refused) => Refusal::new(RefusalReason::Unauthorized, refused.to_string()),
        }
    }

    /// An idempotency key as one of its own.
    pub(super) fn own(&self, key: IdempotencyKey) -> IdempotencyKey {
        match self {
            Principal::Operator => key.of(&[]),
            Principal::Publisher(claims) => key.of(&claims.principal()),
        }
    }

    /// Refuses what this one may not publish.
    pub(super) fn check_topic(&self, hub: &Hub, topic: &Topic) -> Result<(), Refusal> {
        let Principal::Publisher(claims) = self else { return Ok(()) };
        // A stream may outlive its key.
        if !hub.keyring.keys().has(claims.key) {
            let text = "the key of the token is not valid any more";
            return Err(Refusal::new(RefusalReason::Unauthorized, text));
        }
        if claims.check_time(unix_ms()).is_err() {
            return Err(Refusal::new(RefusalReason::Unauthorized, "the token has expired"));
        }
        if !claims.lets_publish(topic.as_str()) {
            let text = format!("the token does not allow to publish to the topic {:?}", topic.as_str());
            return Err(Refusal::new(RefusalReason::NotAllowed, text));
        }
        Ok(())
    }
}
