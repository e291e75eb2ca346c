//! How the control plane answers what it does not take: JSON with one line of reason.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;

use crate::refusal::Refusal;

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        error_response(self.reason.status(), &self.text)
    }
}

/// One line of JSON.
pub fn json_line(value: &impl Serialize) -> Response {
    let content_type = HeaderValue::from_static("application/json");
    ([(header::CONTENT_TYPE, content_type)], json_bytes(value)).into_response()
}

/// One line of JSON, as bytes.
pub fn json_bytes(value: &impl Serialize) -> Bytes {
    let mut line = serde_json::to_vec(value).expect("numbers, strings and lists of them are JSON");
    line.push(b'\n');
    line.into()
}

/// `{"error":"…"}` with this status, and `Retry-After: 1` where a retry helps.
pub fn error_response(status: StatusCode, text: &str) -> Response {
    #[derive(Serialize)]
    struct Body<'a> {
        error: &'a str,
    }
    let mut response = (status, json_line(&Body { error: text })).into_response();
    if status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
        response.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    }
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::refusal::RefusalReason;

    #[test]
    fn only_a_refusal_of_ours_invites_a_retry() {
        for reason in RefusalReason::ALL {
            let status = reason.status();
            let response = Refusal::new(reason, "x").into_response();
            assert_eq!(response.status(), status);
            use RefusalReason::*;
            let ours = matches!(reason, Full | Behind | Memory | Draining | Upgrading | Busy | Source);
            assert_eq!(response.headers().contains_key(header::RETRY_AFTER), ours, "{reason:?}");
        }
    }
}
