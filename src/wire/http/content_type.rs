//! What a message says that its body is (RFC 9110 §8.3).

use http::HeaderMap;
use http::header::CONTENT_TYPE;

/// True if `Content-Type` names `media_type`, in any case and with any parameters.
pub(crate) fn has_content_type(headers: &HeaderMap, media_type: &str) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| is_type(value.as_bytes(), media_type))
}

/// True if the value of a `Content-Type` names `media_type`.
pub(super) fn is_type(value: &[u8], media_type: &str) -> bool {
    // A quoted semicolon can only come after the one that begins the parameters.
    let named = value.split(|byte| *byte == b';').next().unwrap_or_default();
    named.trim_ascii().eq_ignore_ascii_case(media_type.as_bytes())
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn a_type_is_known_in_any_case_and_with_any_parameters_and_no_other_is_taken_for_it() {
        for (value, named) in [
            ("text/event-stream", true),
            ("Text/Event-STREAM", true),
            ("text/event-stream;charset=utf-8", true),
            ("text/event-stream ;\tcharset=utf-8", true),
            (" text/event-stream\t", true),
            ("text/event-stream;", true),
            ("text/event-stream; x=\"a;b, \\\"text/html\"", true),
            ("text/event-stream; x=é", true),
            ("", false),
            (";", false),
            ("text", false),
            ("text/*", false),
            ("text/event-streams", false),
            ("text/ event-stream", false),
            ("\"text/event-stream\"", false),
            ("text/event-stream, text/html", false),
            ("text/html; x=text/event-stream", false),
            ("text/html; x=\";text/event-stream;\"", false),
        ] {
            let value = HeaderValue::from_bytes(value.as_bytes()).expect("a field value");
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, value.clone())]);
            assert_eq!(has_content_type(&headers, "text/event-stream"), named, "{value:?}");
        }
        assert!(!has_content_type(&HeaderMap::new(), "text/event-stream"), "nothing is named");
    }
}
