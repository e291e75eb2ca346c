//! Where a subscriber's topics begin, as a request says it.

use super::http::LastEventId;

/// Longest time that a request may look back, in milliseconds: 23 days, as the longest history.
pub const SINCE_MS_MAX: u64 = 2_000_000_000;

/// What a subscriber asks for. Each of its topics begins for itself, in the history that is
/// promised.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Start {
    /// With what is published from now on.
    #[default]
    Now,
    /// After the event of this id.
    After(LastEventId),
    /// With the first event that is at most so many milliseconds old.
    Since(u64),
    /// With the last so many events of each topic.
    Last(u64),
}

impl Start {
    /// The event that the client names, if it names one.
    pub fn after(&self) -> Option<&LastEventId> {
        match self {
            Start::After(id) => Some(id),
            Start::Now | Start::Since(_) | Start::Last(_) => None,
        }
    }
}

/// Reads a time with its unit: `500ms`, `30s`, `5m` or `1h`.
pub fn parse_duration_ms(text: &str) -> Option<u64> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let (digits, unit) = text.split_at(unit_at);
    let factor = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_whole_number_and_a_unit() {
        for (text, ms) in [("0s", 0), ("500ms", 500), ("30s", 30_000), ("5m", 300_000), ("2h", 7_200_000)] {
            assert_eq!(parse_duration_ms(text), Some(ms), "{text}");
        }
        for text in ["", "30", "s", "1.5s", "-1s", "+1s", "30 s", "1d", "1S", "18446744073709551615s", "1ss"]
        {
            assert_eq!(parse_duration_ms(text), None, "{text}");
        }
    }
}
