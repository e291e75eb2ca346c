//! Topics as NATS subjects and back.
//!
//! Invariants worth naming:
//! - Each topic has exactly one subject, and no other subject is read as that topic. So what a
//!   topic's subject holds in the stream is all that the topic has.
//! - A segment of the topic is a token of the subject: `/` becomes `.`. So a pattern of topics is a
//!   filter of subjects.
//! - `.`, `*`, `>`, `%` and blanks of a segment are percent-escaped with capital digits. An empty
//!   segment is a lone `%`, because NATS has no empty tokens.

use std::fmt::Write as _;

use crate::event::Topic;
use crate::topic_pattern::Pattern;

/// The subjects of topics: all that begin with a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subjects {
    /// Tokens with dots between, none at the end.
    prefix: String,
}

impl Subjects {
    /// Those that begin with `prefix`, which was checked ([`Nats`](crate::config::Nats)).
    pub fn new(prefix: &str) -> Subjects {
        Subjects { prefix: prefix.to_string() }
    }

    /// The filter of all subjects that begin with it.
    pub fn all(&self) -> String {
        format!("{}.>", self.prefix)
    }

    /// The subject of a topic.
    pub fn subject(&self, topic: &Topic) -> String {
        let mut subject = String::with_capacity(self.prefix.len() + topic.as_str().len() + 8);
        subject.push_str(&self.prefix);
        for segment in topic.as_str().split('/') {
            subject.push('.');
            push_token(&mut subject, segment);
        }
        subject
    }

    /// The topic whose subject this is; none if it is the subject of no topic.
    pub fn topic(&self, subject: &str) -> Option<Topic> {
        let topic = Subjects::topic_of_all(subject.strip_prefix(&*self.prefix)?.strip_prefix('.')?)?;
        // Another spelling of a topic would be a second subject of it.
        (self.subject(&topic) == subject).then_some(topic)
    }

    /// The topic whose segments are all tokens of a subject, however they are written.
    pub fn topic_of_all(tokens: &str) -> Option<Topic> {
        let mut name = String::with_capacity(tokens.len());
        for (number, token) in tokens.split('.').enumerate() {
            if number > 0 {
                name.push('/');
            }
            if token != "%" {
                name.push_str(&percent_encoding::percent_decode_str(token).decode_utf8().ok()?);
            }
        }
        Topic::new(&name).ok()
    }

    /// The filter of the subjects of the topics that a pattern names.
    pub fn filter(&self, pattern: &Pattern) -> String {
        if let Some(topic) = pattern.topic() {
            return self.subject(topic);
        }
        let mut filter = self.prefix.clone();
        for segment in pattern.as_str().split('/') {
            filter.push('.');
            match segment {
                "*" => filter.push('*'),
                "**" => filter.push('>'),
                segment => push_token(&mut filter, segment),
            }
        }
        filter
    }
}

fn push_token(subject: &mut String, segment: &str) {
    if segment.is_empty() {
        subject.push('%');
    }
    for c in segment.chars() {
        match c {
            '.' | '*' | '>' | '%' | ' ' => {
                let _ = write!(subject, "%{:02X}", c as u32);
            }
            c => subject.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn subjects() -> Subjects {
        Subjects::new("fan.wave")
    }

    fn topic(name: &str) -> Topic {
        Topic::new(name).expect("a topic")
    }

    #[test]
    fn a_topic_is_its_segments_as_tokens() {
        for (name, subject) in [
            ("news", "fan.wave.news"),
            ("news/local", "fan.wave.news.local"),
            ("a.b/c d", "fan.wave.a%2Eb.c%20d"),
            ("100%/*/>", "fan.wave.100%25.%2A.%3E"),
            ("/", "fan.wave.%.%"),
            ("a//b", "fan.wave.a.%.b"),
            ("%", "fan.wave.%25"),
            ("größe/ñ", "fan.wave.größe.ñ"),
        ] {
            assert_eq!(subjects().subject(&topic(name)), subject);
            assert_eq!(subjects().topic(subject), Some(topic(name)));
        }
    }

    #[test]
    fn a_subject_that_is_written_in_another_way_is_no_topic() {
        for subject in [
            "fan.wave",
            "fan.wave.",
            "fan.waves.a",
            "other.a",
            "fan.wave.a..b",
            "fan.wave.a%2eb",
            "fan.wave.a%41",
            "fan.wave.a%",
            "fan.wave.a/b",
            "fan.wave.a%2Fb",
            "fan.wave.%FF",
            "fan.wave.a%0A",
            &format!("fan.wave.{}", "x".repeat(256)),
        ] {
            assert_eq!(subjects().topic(subject), None, "{subject}");
        }
    }

    #[test]
    fn all_of_a_subject_outside_of_the_stream_is_the_topic() {
        for (subject, name) in
            [("sensors.1", "sensors/1"), ("a%2eb.c", "a.b/c"), ("a.%", "a/"), ("x/y", "x/y")]
        {
            assert_eq!(Subjects::topic_of_all(subject), Some(topic(name)));
        }
        assert_eq!(Subjects::topic_of_all("a.%0A"), None);
    }

    #[test]
    fn a_pattern_is_a_filter() {
        for (pattern, filter) in [
            ("news/**", "fan.wave.news.>"),
            ("a/*/c.d", "fan.wave.a.*.c%2Ed"),
            ("**", "fan.wave.>"),
            ("a/b", "fan.wave.a.b"),
            ("*", "fan.wave.*"),
        ] {
            assert_eq!(subjects().filter(&pattern.parse().expect("a pattern")), filter);
        }
    }

    proptest! {
        #[test]
        fn every_topic_comes_back_from_its_subject(name in "[^\\p{Cc}]{1,60}") {
            let topic = topic(&name);
            let subject = subjects().subject(&topic);
            prop_assert_eq!(subjects().topic(&subject), Some(topic));
            let is_legal = |token: &str| !token.is_empty() && !token.contains(['*', '>', ' ', '\t', '\r', '\n']);
            prop_assert!(subject.split('.').all(is_legal), "{}", subject);
        }

        #[test]
        fn the_signs_that_nats_has_a_meaning_for_come_back(name in "[a./*>% ]{1,60}") {
            let topic = topic(&name);
            prop_assert_eq!(subjects().topic(&subjects().subject(&topic)), Some(topic));
        }

        #[test]
        fn no_two_subjects_are_one_topic(subject in "fan\\.wave\\.[a.%0-9A-F/*> ]{1,40}") {
            if let Some(topic) = subjects().topic(&subject) {
                prop_assert_eq!(subjects().subject(&topic), subject);
            }
        }
    }
}
