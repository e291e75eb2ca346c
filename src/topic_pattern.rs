//! Patterns: names for many topics at once. One matcher for all that choose topics by their names.
//!
//! A topic is cut into segments at each slash, and an empty segment is one as well: `/a` has two.
//! In a pattern a segment `*` stands for exactly one segment, whatever it holds. A segment `**` at
//! the end stands for one or more. Both are whole segments: `a*` is an error, and so is `**`
//! elsewhere. Without either a pattern is the name of one topic.
//!
//! Not here: which topics there are, and who asked for them.

use std::fmt;
use std::str::FromStr;

use crate::event::{Topic, TopicError};

/// One segment.
const ONE: &str = "*";
/// One or more segments.
const REST: &str = "**";

/// A pattern: 1 to 255 bytes of UTF-8 without control characters, its `*` in legal places.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pattern(Topic);

/// Why a string is no pattern. The fault of its author; a retry does not help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It could not be a topic's name either.
    #[error("{}", .0.to_string().replace("the topic", "the pattern"))]
    Name(#[from] TopicError),
    /// A segment that holds a `*` beside other characters.
    #[error("the segment \"{0}\" of the pattern mixes * with other characters; * stands for a whole segment")]
    Mixed(String),
    /// A `**` that is not the last segment.
    #[error("** stands before the end of the pattern; it is its last segment or none")]
    RestInside,
}

impl Pattern {
    /// Checks `text` and shares it.
    pub fn new(text: &str) -> Result<Pattern, PatternError> {
        let name = Topic::new(text)?;
        let mut segments = text.split('/').peekable();
        while let Some(segment) = segments.next() {
            match segment {
                REST if segments.peek().is_some() => return Err(PatternError::RestInside),
                ONE | REST => {}
                other if other.contains('*') => return Err(PatternError::Mixed(other.to_string())),
                _ => {}
            }
        }
        Ok(Pattern(name))
    }

    /// The pattern as text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// The pattern as a name: that of a topic, or one with a `*`.
    pub fn name(&self) -> &Topic {
        &self.0
    }

    /// The same, owned.
    pub fn into_name(self) -> Topic {
        self.0
    }

    /// The one topic that it names, if it has no `*`.
    pub fn topic(&self) -> Option<&Topic> {
        (!self.as_str().contains('*')).then_some(&self.0)
    }

    /// True if it stands for every topic that `other` stands for.
    pub fn contains(&self, other: &Pattern) -> bool {
        let mut others = other.as_str().split('/');
        for segment in self.as_str().split('/') {
            match (segment, others.next()) {
                (_, None) => return false,
                (REST, Some(_)) => return true,
                (_, Some(REST)) => return false,
                (ONE, Some(_)) => {}
                (exact, Some(other)) if exact == other => {}
                _ => return false,
            }
        }
        others.next().is_none()
    }

    /// True if some topic is one of both.
    pub fn overlaps(&self, other: &Pattern) -> bool {
        let (mut ours, mut others) = (self.as_str().split('/'), other.as_str().split('/'));
        loop {
            match (ours.next(), others.next()) {
                (None, None) => return true,
                (None, _) | (_, None) => return false,
                (Some(REST), _) | (_, Some(REST)) => return true,
                (Some(ours), Some(others)) if ours == ONE || others == ONE || ours == others => {}
                _ => return false,
            }
        }
    }

    /// True if it stands for `topic`, among others perhaps.
    pub fn matches(&self, topic: &str) -> bool {
        let mut names = topic.split('/');
        for segment in self.as_str().split('/') {
            let Some(name) = names.next() else { return false };
            match segment {
                REST => return true,
                ONE => {}
                exact if exact == name => {}
                _ => return false,
            }
        }
        names.next().is_none()
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Pattern, PatternError> {
        Pattern::new(text)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::new(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn each_pattern_stands_for_the_topics_of_its_shape() {
        let cases: [(&str, &[&str], &[&str]); 9] = [
            ("a", &["a"], &["b", "a/", "/a", "a/b", "A"]),
            ("*", &["a", "ä ö"], &["a/b", "/", "a/"]),
            ("**", &["a", "a/b", "/", "//", "a/b/c/d"], &[]),
            ("a/*", &["a/b", "a/"], &["a", "a/b/c", "b/a"]),
            ("a/**", &["a/b", "a/", "a/b/c", "a//"], &["a", "ab/c"]),
            ("*/b", &["a/b", "/b"], &["b", "a/b/c", "a/c"]),
            ("a/*/c", &["a/b/c", "a//c"], &["a/c", "a/b/b/c"]),
            ("a/*/**", &["a/b/c", "a/b/c/d", "a//"], &["a/b", "a"]),
            ("/", &["/"], &["", "//", "a/"]),
        ];
        for (text, inside, outside) in cases {
            for topic in inside {
                assert!(pattern(text).matches(topic), "{text} stands for {topic}");
            }
            for topic in outside {
                assert!(!pattern(text).matches(topic), "{text} does not stand for {topic}");
            }
        }
    }

    #[test]
    fn a_pattern_without_a_star_is_one_topic() {
        assert_eq!(pattern("news/eu").topic().map(Topic::as_str), Some("news/eu"));
        for text in ["*", "**", "news/*", "*/eu", "news/**"] {
            assert_eq!(pattern(text).topic(), None, "{text}");
        }
    }

    #[test]
    fn what_is_no_pattern_says_why() {
        for text in ["a*", "*a", "a/b*/c", "***", "a/***", "**a"] {
            let error = Pattern::new(text).expect_err(text);
            assert!(matches!(error, PatternError::Mixed(_)), "{text}: {error}");
        }
        for text in ["**/a", "a/**/b", "**/*", "**/"] {
            assert_eq!(Pattern::new(text), Err(PatternError::RestInside), "{text}");
        }
        assert_eq!(Pattern::new("").expect_err("empty").to_string(), "the pattern is empty");
        assert!(Pattern::new(&"a".repeat(256)).is_err());
        assert!(Pattern::new("a\n*").is_err());
    }

    /// The same by recursion over lists of segments.
    fn naive(pattern: &[&str], topic: &[&str]) -> bool {
        match (pattern, topic) {
            ([], []) => true,
            (["**"], [_, ..]) => true,
            (["*", pattern @ ..], [_, topic @ ..]) => naive(pattern, topic),
            ([first, pattern @ ..], [name, topic @ ..]) => first == name && naive(pattern, topic),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn matching_agrees_with_the_definition(
            segments in prop::collection::vec("[ab]?|\\*", 1..5),
            rest in any::<bool>(),
            topic in prop::collection::vec("[ab]?", 1..6),
        ) {
            let mut segments = segments;
            if rest {
                segments.push("**".into());
            }
            let (text, topic) = (segments.join("/"), topic.join("/"));
            prop_assume!(!text.is_empty());
            let by_hand: Vec<&str> = text.split('/').collect();
            let names: Vec<&str> = topic.split('/').collect();
            prop_assert_eq!(pattern(&text).matches(&topic), naive(&by_hand, &names));
        }

        /// What contains another pattern stands for each of its topics; what does not lacks one.
        #[test]
        fn containing_is_standing_for_all_topics_of_the_other(
            texts in prop::array::uniform2("([ab*]/){0,3}([ab*]|\\*\\*)"),
        ) {
            let [outer, inner] = texts.each_ref().map(|text| pattern(text));
            // All topics of up to five segments over a, b and a stranger.
            let mut topics = vec![String::new()];
            let mut all = Vec::new();
            for _ in 0..5 {
                topics = topics.iter().flat_map(|begin| ["a", "b", "c"].map(|name| {
                    if begin.is_empty() { name.to_string() } else { format!("{begin}/{name}") }
                })).collect();
                all.extend(topics.iter().cloned());
            }
            let holds = all.iter().filter(|topic| inner.matches(topic)).all(|topic| outer.matches(topic));
            prop_assert_eq!(outer.contains(&inner), holds, "{} {}", outer, inner);
            let meet = all.iter().any(|topic| inner.matches(topic) && outer.matches(topic));
            prop_assert_eq!(outer.overlaps(&inner), meet, "{} {}", outer, inner);
        }
    }
}
