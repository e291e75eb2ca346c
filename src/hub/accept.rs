//! What a client would rather read: the weights of `Accept` (RFC 9110 §12.5.1).

use axum::http::{HeaderMap, header};

/// True if `Accept` names the media type `wanted`, and gives it no less weight than `other`.
pub(super) fn rather(headers: &HeaderMap, wanted: &str, other: &str) -> bool {
    let is_it = |member: &[u8]| {
        let range = member.split(|byte| *byte == b';').next().unwrap_or_default();
        range.trim_ascii().eq_ignore_ascii_case(wanted.as_bytes())
    };
    let fields = headers.get_all(header::ACCEPT).iter();
    let named = fields.flat_map(|field| field.as_bytes().split(|byte| *byte == b',')).any(is_it);
    let weighs = weight(headers, wanted);
    named && weighs > 0 && weighs >= weight(headers, other)
}

/// The weight in thousandths that `Accept` gives to a media type, by its most specific range; 0 if
/// it does not want it. Without `Accept` everything is equally welcome.
fn weight(headers: &HeaderMap, wanted: &str) -> u16 {
    let (kind, _) = wanted.split_once('/').expect("a media type");
    let mut given = false;
    let mut decision = (0, 0);
    for field in headers.get_all(header::ACCEPT) {
        let members = field.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        for member in members.filter(|member| !member.is_empty()) {
            given = true;
            let mut parts = member.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let range = parts.next().unwrap_or_default();
            let of_kind = || {
                range
                    .split_last_chunk::<2>()
                    .is_some_and(|(before, end)| end == b"/*" && before.eq_ignore_ascii_case(kind.as_bytes()))
            };
            let specific = match range {
                range if range.eq_ignore_ascii_case(wanted.as_bytes()) => 3,
                _ if of_kind() => 2,
                b"*/*" => 1,
                _ => continue,
            };
            let weight = parts.find_map(weight_of).unwrap_or(1_000);
            decision = decision.max((specific, weight));
        }
    }
    if given { decision.1 } else { 1_000 }
}

/// The thousandths of `q=0.75`; `None` for another parameter. What is no number weighs nothing.
fn weight_of(parameter: &[u8]) -> Option<u16> {
    let [b'q' | b'Q', b'=', number @ ..] = parameter else { return None };
    let number = std::str::from_utf8(number).ok().and_then(|text| text.parse::<f32>().ok());
    Some((number.unwrap_or(0.0).clamp(0.0, 1.0) * 1_000.0).round() as u16)
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn a_type_that_is_named_comes_before_one_that_weighs_no_more() {
        for (accept, html) in [
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", true),
            ("text/html", true),
            ("text/html, text/plain", true),
            ("text/html;q=0.5, text/plain", false),
            ("text/html;q=0", false),
            ("*/*", false),
            ("text/*", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(rather(&headers, "text/html", "text/plain"), html, "{accept}");
        }
        assert!(!rather(&HeaderMap::new(), "text/html", "text/plain"));
    }

    #[test]
    fn the_most_specific_range_gives_the_weight() {
        for (accept, weighs) in [
            ("", 1_000),
            ("*/*", 1_000),
            ("text/html", 1_000),
            ("TEXT/HTML;charset=utf-8;Q=0.7", 700),
            ("text/*;q=0.5, */*;q=0.1", 500),
            ("text/html;q=0, */*", 0),
            ("application/json", 0),
            ("application/*, image/png", 0),
            ("text/html;q=x", 0),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, HeaderValue::from_static(accept));
            assert_eq!(weight(&headers, "text/html"), weighs, "{accept}");
        }
        assert_eq!(weight(&HeaderMap::new(), "text/html"), 1_000);
    }
}
