//! What happens to a subscriber that falls behind.

use std::str::FromStr;

/// The strictest first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SlowPolicy {
    /// It is closed: WebSocket 1013, SSE end of stream. The client reconnects and resumes.
    #[default]
    Close,
    /// It goes on with the next event of each topic that lost some, and is told of the gap.
    Skip,
    /// It gets the newest event of each of its topics, and is never too slow.
    Latest,
}

impl FromStr for SlowPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<SlowPolicy, String> {
        match text {
            "close" => Ok(SlowPolicy::Close),
            "skip" => Ok(SlowPolicy::Skip),
            "latest" => Ok(SlowPolicy::Latest),
            _ => Err("write close, skip or latest".to_string()),
        }
    }
}

impl std::fmt::Display for SlowPolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            SlowPolicy::Close => "close",
            SlowPolicy::Skip => "skip",
            SlowPolicy::Latest => "latest",
        })
    }
}
