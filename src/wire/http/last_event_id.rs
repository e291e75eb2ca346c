//! The last event id that a client brings back, as text.
//!
//! What it is as bytes depends on the client. A browser sends the UTF-8 of the id (WHATWG HTML
//! §9.2.3). Others put its characters into Latin-1, as far as those go, or have taken the bytes of
//! our stream for Latin-1 and send these characters as UTF-8. So an id has up to two readings, and
//! what fits neither is none of ours.

/// What a client sent as the id of the last event that it had; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastEventId {
    text: String,
    /// What it means if the client mistook the stream for Latin-1.
    other: Option<String>,
}

impl LastEventId {
    /// Reads the bytes of a field or of a query's value; `None` if the client has no id (WHATWG
    /// HTML §9.2.4).
    pub(super) fn new(bytes: &[u8]) -> Option<LastEventId> {
        if bytes.is_empty() {
            return None;
        }
        let Ok(text) = std::str::from_utf8(bytes) else {
            return Some(LastEventId { text: bytes.iter().copied().map(char::from).collect(), other: None });
        };
        let other = match text.is_ascii() {
            true => None,
            false => text.chars().map(|c| u8::try_from(c).ok()).collect::<Option<Vec<u8>>>(),
        };
        let other = other.and_then(|latin_1| String::from_utf8(latin_1).ok());
        Some(LastEventId { text: text.to_string(), other })
    }

    /// An id that came as text: it has one reading. `None` if it is empty.
    pub fn from_text(text: &str) -> Option<LastEventId> {
        (!text.is_empty()).then(|| LastEventId { text: text.to_string(), other: None })
    }

    /// The id, as it is likeliest meant.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// All that may be meant, the likeliest first.
    pub fn readings(&self) -> impl Iterator<Item = &str> {
        [Some(self.text.as_str()), self.other.as_deref()].into_iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_reads_back_whatever_the_client_made_of_its_bytes() {
        for (bytes, readings) in [
            (&b"x-7"[..], &["x-7"][..]),
            ("rä".as_bytes(), &["rä"]),
            (b"r\xe4", &["rä"]),
            ("rÃ¤".as_bytes(), &["rÃ¤", "rä"]),
            ("✓".as_bytes(), &["✓"]),
            ("â\u{9c}\u{93}".as_bytes(), &["â\u{9c}\u{93}", "✓"]),
            (b"\xff\xfe", &["ÿþ"]),
            (b"a\x0cb", &["a\u{c}b"]),
        ] {
            let id = LastEventId::new(bytes).expect("an id");
            assert_eq!(id.readings().collect::<Vec<_>>(), readings, "{bytes:?}");
        }
        assert_eq!(LastEventId::new(b""), None);
        let long = LastEventId::new(&[b'x'; 256]).expect("an id, though none that we gave");
        assert_eq!(long.as_str().len(), 256);
    }
}
