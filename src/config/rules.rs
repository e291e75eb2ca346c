//! Rules: what the configuration file says of the topics of a pattern. The first rule that matches
//! a topic holds for it, and no other one; what it leaves open is as the flags say.
//!
//! A rule that can never do what it says is refused at the start, with its line and a remedy: one
//! whose topics all belong to an earlier rule, one with bounds that cannot be reached, rules whose
//! histories or retained values do not fit into the memory. A key that is known but not built is
//! refused too, so that nothing in the file is without effect.
//!
//! Not here: the file's other keys (`command::sources`), and what a history does with its bounds
//! (`shard::topics`).

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Limits;
use super::limits::{HISTORY_MS_MIN, RETAINED_VALUE_BYTES, RULES_MAX};
use super::units::{Age, Size, grouped, nearest};
use crate::event::EVENT_BYTES_FIXED;
use crate::topic_pattern::Pattern;
use crate::wire::SlowPolicy;

/// Why a rule cannot do what it says: one line with its place and a remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RuleError(String);

/// The name of the tables in the file.
pub const KEY: &str = "rule";

/// The keys of a rule.
const KEYS: [&str; 8] =
    ["match", "history", "retain", "conflate", "slow", "client_publish", "public", "presence"];
/// The keys of a history.
const HISTORY_KEYS: [&str; 3] = ["events", "bytes", "age"];

/// The bounds of a topic's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct History {
    /// Events.
    pub events: usize,
    /// Bytes that these weigh as published.
    pub bytes: usize,
    /// Their age in milliseconds.
    pub age_ms: u64,
}

impl History {
    /// What holds for topics without a rule.
    pub fn of(limits: &Limits) -> History {
        History {
            events: limits.window_events_max,
            bytes: limits.window_bytes_max,
            age_ms: limits.window_ms_max,
        }
    }
}

/// Of which events the newest one counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Conflate {
    /// Of all events of a topic.
    #[default]
    Topic,
    /// Of those with one key; those without a key belong together.
    Key,
}

/// One rule, with all that it leaves open filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Which topics.
    pub pattern: Pattern,
    /// Where it begins in the file.
    pub line: usize,
    /// What returning subscribers get.
    pub history: History,
    /// The newest event of each topic, or of each key, stays for subscribers to come.
    pub retain: bool,
    /// What `retain` and `slow = "latest"` mean by the newest event.
    pub conflate: Conflate,
    /// What happens to subscribers that fall behind and say nothing of it; `None` leaves it to the
    /// flag.
    pub slow: Option<SlowPolicy>,
    /// Whether clients of the data plane may publish there; `None` leaves it to the flag.
    pub client_publish: Option<bool>,
    /// Its topics need no token although tokens are configured.
    pub public: bool,
    /// Clients of the data plane may ask how many subscribers there are.
    pub presence: bool,
}

/// All rules in the order of the file, at most `RULES_MAX`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rules(Vec<Rule>);

/// A rule as the file says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleText {
    pattern: Pattern,
    line: usize,
    events: Option<(usize, usize)>,
    bytes: Option<(usize, usize)>,
    age_ms: Option<u64>,
    /// The line of `retain = true`.
    retain: Option<usize>,
    conflate: Conflate,
    slow: Option<SlowPolicy>,
    client_publish: Option<bool>,
    public: bool,
    presence: bool,
}

impl Rules {
    /// Fills in what the rules leave open, and checks what they say together.
    pub fn new(texts: &[RuleText], limits: &Limits) -> Result<Rules, RuleError> {
        Rules::checked(texts, limits).map_err(RuleError)
    }

    fn checked(texts: &[RuleText], limits: &Limits) -> Result<Rules, String> {
        let mut rules: Vec<Rule> = Vec::new();
        let mut bytes = 0;
        for text in texts {
            let RuleText { pattern, line, .. } = text;
            if let Some(earlier) = rules.iter().find(|earlier| earlier.pattern.contains(pattern)) {
                return Err(format!(
                    "line {line}: this rule never holds, because the rule in line {} (match = \"{}\") comes first and \
                     matches all of its topics; put this one before it",
                    earlier.line, earlier.pattern
                ));
            }
            let rule = text.filled(limits)?;
            bytes += rule.history.bytes;
            let most = limits.history_memory_max();
            if bytes > most {
                return Err(format!(
                    "line {line}: the histories of one topic of each rule up to here take {bytes} bytes, and all \
                     histories together have at most {most}, half of --window-bytes-total-max; raise that to {}",
                    Size((2 * bytes).next_multiple_of(1 << 20))
                ));
            }
            rules.push(rule);
        }
        Ok(Rules(rules))
    }

    /// The index of the rule of a topic, that of the last one and one more if no rule matches.
    pub fn index_of(&self, topic: &str) -> u8 {
        let matches = |rule: &Rule| rule.pattern.matches(topic);
        self.0.iter().position(matches).unwrap_or(self.0.len()) as u8
    }

    /// The rule of a topic, if one matches.
    pub fn of(&self, topic: &str) -> Option<&Rule> {
        self.0.get(usize::from(self.index_of(topic)))
    }

    /// True if the rule of every topic of a pattern makes it public.
    pub fn is_public(&self, pattern: &Pattern) -> bool {
        for rule in self.0.iter().filter(|rule| rule.pattern.overlaps(pattern)) {
            if !rule.public {
                return false;
            }
            if rule.pattern.contains(pattern) {
                return true;
            }
        }
        false
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.0.iter()
    }
}

impl RuleText {
    /// Reads the rules of a file: the value of its key `rule`.
    pub fn read(value: &Spanned<DeValue<'_>>, text: &str) -> Result<Vec<RuleText>, RuleError> {
        RuleText::read_all(value, text).map_err(RuleError)
    }

    fn read_all(value: &Spanned<DeValue<'_>>, text: &str) -> Result<Vec<RuleText>, String> {
        let place = |span: Range<usize>| 1 + text[..span.start].matches('\n').count();
        let tables =
            value.get_ref().as_array().filter(|array| array.iter().all(|one| one.get_ref().is_table()));
        let tables = tables.ok_or_else(|| {
            format!(
                "line {}: write each rule as a table of its own that begins with [[{KEY}]]",
                place(value.span())
            )
        })?;
        if tables.len() > RULES_MAX {
            return Err(format!("there are {} rules, at most {RULES_MAX} are possible", tables.len()));
        }
        let read = |table: &Spanned<DeValue<'_>>| {
            let line = place(table.span());
            let keys = table.get_ref().as_table().expect("looked at above");
            Keys { line, keys, place: &place }.rule()
        };
        tables.iter().map(read).collect()
    }

    /// The rule with what it leaves open as the limits say.
    fn filled(&self, limits: &Limits) -> Result<Rule, String> {
        let usual = History::of(limits);
        let history = History {
            events: self.events.map_or(usual.events, |(events, _)| events),
            bytes: self.bytes.map_or(usual.bytes, |(bytes, _)| bytes),
            age_ms: self.age_ms.unwrap_or(usual.age_ms),
        };
        let most = limits.topic_history_memory_max();
        if let Some((bytes, line)) = self.bytes.filter(|(bytes, _)| *bytes > most) {
            return Err(format!(
                "line {line}: history.bytes is {}, and one topic's history has at most {most} bytes, an eighth of \
                 --window-bytes-total-max; raise that to {}",
                Size(bytes),
                at_least(bytes.saturating_mul(8), 1 << 20)
            ));
        }
        // An event weighs this with a topic and no data.
        let reachable = history.bytes / (EVENT_BYTES_FIXED + 1);
        if let Some((events, line)) = self.events.filter(|(events, _)| *events > reachable) {
            return Err(format!(
                "line {line}: history.events is {}, but {} bytes hold at most {} of the smallest events; raise \
                 history.bytes to {} or more",
                grouped(events as u64),
                grouped(history.bytes as u64),
                grouped(reachable as u64),
                at_least(events.saturating_mul(EVENT_BYTES_FIXED + 1), 1 << 10)
            ));
        }
        let RuleText { line, retain, conflate, slow, client_publish, public, presence, .. } = *self;
        if let Some(line) = retain {
            check_retained(line, limits)?;
        }
        Ok(Rule {
            pattern: self.pattern.clone(),
            line,
            history,
            retain: retain.is_some(),
            conflate,
            slow,
            client_publish,
            public,
            presence,
        })
    }
}

/// The keys of one table and where they stand.
struct Keys<'a, P> {
    line: usize,
    keys: &'a DeTable<'a>,
    /// The line of a span.
    place: &'a P,
}

impl<P: Fn(Range<usize>) -> usize> Keys<'_, P> {
    fn rule(&self) -> Result<RuleText, String> {
        let mut rule = RuleText {
            pattern: self.pattern()?,
            line: self.line,
            events: None,
            bytes: None,
            age_ms: None,
            retain: None,
            conflate: Conflate::default(),
            slow: None,
            client_publish: None,
            public: false,
            presence: true,
        };
        for (key, value) in self.keys {
            let line = (self.place)(key.span());
            match key.get_ref().as_ref() {
                "match" => {}
                "history" => {
                    let keys = value.get_ref().as_table().ok_or_else(|| {
                        format!(
                            "line {line}: write history = {{ events = 1000, bytes = \"8MiB\", age = \"5m\" }}"
                        )
                    })?;
                    Keys { line, keys, place: self.place }.history(&mut rule)?;
                }
                "slow" => {
                    let slow = value.get_ref().as_str().and_then(|text| text.parse().ok());
                    let slow = slow.ok_or_else(|| {
                        format!("line {line}: write slow = \"close\", \"skip\" or \"latest\"")
                    })?;
                    rule.slow = Some(slow);
                }
                "retain" => rule.retain = yes_or_no(line, "retain", value)?.then_some(line),
                "conflate" => {
                    rule.conflate = match value.get_ref().as_str() {
                        Some("topic") => Conflate::Topic,
                        Some("key") => Conflate::Key,
                        _ => return Err(format!("line {line}: write conflate = \"topic\" or \"key\"")),
                    };
                }
                "client_publish" => rule.client_publish = Some(yes_or_no(line, "client_publish", value)?),
                "public" => rule.public = yes_or_no(line, "public", value)?,
                "presence" => rule.presence = yes_or_no(line, "presence", value)?,
                name => return Err(unknown(line, name, "a rule", &KEYS)),
            }
        }
        Ok(rule)
    }

    fn pattern(&self) -> Result<Pattern, String> {
        let Some((key, value)) = self.keys.iter().find(|(key, _)| key.get_ref() == "match") else {
            return Err(format!(
                "line {}: a rule needs match = \"quotes/**\", the pattern of its topics",
                self.line
            ));
        };
        let line = (self.place)(key.span());
        let text =
            value.get_ref().as_str().ok_or_else(|| format!("line {line}: match is a text in quotes"))?;
        Pattern::new(text).map_err(|error| format!("line {line}: {error}"))
    }

    fn history(&self, rule: &mut RuleText) -> Result<(), String> {
        for (key, value) in self.keys {
            let line = (self.place)(key.span());
            let bad = |how: &str| format!("line {line}: write {} = {how}", key.get_ref());
            match key.get_ref().as_ref() {
                "events" => {
                    let events = number(value.get_ref()).ok_or_else(|| bad("1000, a whole number"))?;
                    rule.events = Some((events, line));
                }
                "bytes" => {
                    let text =
                        value.get_ref().as_str().and_then(|text| text.parse().ok()).map(|Size(bytes)| bytes);
                    let bytes = text.or_else(|| number(value.get_ref()));
                    rule.bytes = Some((bytes.ok_or_else(|| bad("\"8MiB\", \"64KiB\" or 65536"))?, line));
                }
                "age" => {
                    let age = value.get_ref().as_str().and_then(|text| text.parse().ok());
                    let Age(age_ms) = age.ok_or_else(|| bad("\"30s\", \"5m\" or \"1h\""))?;
                    if age_ms < HISTORY_MS_MIN {
                        return Err(format!(
                            "line {line}: age is {age_ms} ms, at least {HISTORY_MS_MIN} are needed; events = 0 keeps no \
                             history"
                        ));
                    }
                    rule.age_ms = Some(age_ms);
                }
                name => return Err(unknown(line, name, "a history", &HISTORY_KEYS)),
            }
        }
        Ok(())
    }
}

/// Refuses retained values where the largest one has no room.
fn check_retained(line: usize, limits: &Limits) -> Result<(), String> {
    let (needed, most) = (limits.event_memory_max() + RETAINED_VALUE_BYTES, limits.retained_memory_max());
    match needed <= most {
        true => Ok(()),
        false => Err(format!(
            "line {line}: retain is true, and the largest event (--message-bytes-max) takes {needed} bytes, but all \
             retained values have {most}, a sixteenth of --window-bytes-total-max; raise that to {}",
            at_least(needed.saturating_mul(16), 1 << 20)
        )),
    }
}

fn yes_or_no(line: usize, name: &str, value: &Spanned<DeValue<'_>>) -> Result<bool, String> {
    value.get_ref().as_bool().ok_or_else(|| format!("line {line}: write {name} = true or false"))
}

/// So many bytes or a little more, in whole units; what no memory holds stays as it is.
fn at_least(bytes: usize, unit: usize) -> Size {
    Size(bytes.checked_next_multiple_of(unit).unwrap_or(bytes))
}

fn unknown(line: usize, name: &str, of: &str, known: &[&'static str]) -> String {
    // A key in quotes may hold line breaks.
    format!(
        "line {line}: unknown key `{}` of {of}; the nearest one is `{}`",
        name.escape_debug(),
        nearest(name, known.iter().copied())
    )
}

/// A whole number that is not negative.
fn number(value: &DeValue<'_>) -> Option<usize> {
    let number = value.as_integer()?;
    usize::from_str_radix(number.as_str(), number.radix()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Result<Rules, RuleError> {
        let file = DeTable::parse(text).unwrap_or_else(|error| panic!("{error}"));
        let (_, value) = file.get_ref().iter().find(|(key, _)| key.get_ref() == KEY).expect("rules");
        Rules::new(&RuleText::read(value, text)?, &Limits::default())
    }

    #[test]
    fn the_first_rule_that_matches_holds_and_what_it_leaves_open_is_as_the_flags_say() {
        let rules = rules(
            "[[rule]]\nmatch = \"quotes/EUR\"\nhistory = { events = 10, bytes = 65536 }\n\
             [[rule]]\nmatch = \"quotes/**\"\nhistory.age = \"30s\"\n\
             [[rule]]\nmatch = \"**\"\n[rule.history]\nevents = 0\n",
        )
        .expect("valid");
        let usual = History::of(&Limits::default());
        for (topic, index, history) in [
            ("quotes/EUR", 0, History { events: 10, bytes: 65_536, ..usual }),
            ("quotes/EUR/bid", 1, History { age_ms: 30_000, ..usual }),
            ("news", 2, History { events: 0, ..usual }),
        ] {
            assert_eq!(rules.index_of(topic), index, "{topic}");
            assert_eq!(rules.of(topic).map(|rule| rule.history), Some(history), "{topic}");
        }
        assert_eq!(rules.iter().map(|rule| rule.line).collect::<Vec<_>>(), [1, 4, 7]);
        assert_eq!((Rules::default().index_of("news"), Rules::default().of("news")), (0, None));
    }

    #[test]
    fn what_is_kept_besides_a_history_is_off_unless_a_rule_says_so() {
        let rules = rules(
            "[[rule]]\nmatch = \"a\"\nretain = true\nconflate = \"key\"\npresence = false\n\
             [[rule]]\nmatch = \"b\"\nretain = false\nconflate = \"topic\"\npresence = true\n\
             [[rule]]\nmatch = \"c\"\n",
        )
        .expect("valid");
        let told = |topic| rules.of(topic).map(|rule| (rule.retain, rule.conflate, rule.presence));
        assert_eq!(told("a"), Some((true, Conflate::Key, false)));
        assert_eq!((told("b"), told("c")), (Some((false, Conflate::Topic, true)), told("b")));
    }

    #[test]
    fn a_retained_value_of_the_largest_kind_has_room() {
        let text = "[[rule]]\nmatch = \"a\"\nretain = true\n";
        let file = DeTable::parse(text).expect("TOML");
        let (_, value) = file.get_ref().iter().next().expect("rules");
        let texts = RuleText::read(value, text).expect("rules");
        let limits = |total| Limits { window_bytes_total_max: total, ..Limits::default() };
        let least = 16 * (Limits::default().event_memory_max() + RETAINED_VALUE_BYTES);
        assert!(Rules::new(&texts, &limits(least)).is_ok());
        let error = Rules::new(&texts, &limits(least - 1)).expect_err("too little").to_string();
        assert!(error.starts_with("line 3: retain is true, and the largest event"), "{error}");
        assert!(error.ends_with("--window-bytes-total-max; raise that to 81MiB"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line_and_a_remedy() {
        let rule = "[[rule]]\nmatch = \"a\"\n";
        for (text, told) in [
            (
                "rule = 1".to_string(),
                "line 1: write each rule as a table of its own that begins with [[rule]]",
            ),
            ("[[rule]]\nhistory = { events = 1 }".into(), "line 1: a rule needs match = \"quotes/**\""),
            ("[[rule]]\nmatch = 1".into(), "line 2: match is a text in quotes"),
            ("[[rule]]\nmatch = \"a*\"".into(), "line 2: the segment \"a*\" of the pattern mixes *"),
            (
                format!("{rule}histroy = 1"),
                "line 3: unknown key `histroy` of a rule; the nearest one is `history`",
            ),
            (format!("{rule}history = 1"), "line 3: write history = { events = 1000"),
            (
                format!("{rule}\"sl\\now\" = 1"),
                "line 3: unknown key `sl\\now` of a rule; the nearest one is `slow`",
            ),
            (
                format!("{rule}history.bytes = 0x7fffffffffffffff"),
                "line 3: history.bytes is 9223372036854775807, and one topic's history has at most 67108864 bytes, \
                 an eighth of --window-bytes-total-max; raise that to 18446744073709551615",
            ),
            (
                format!("{rule}history.events = 9223372036854775807"),
                "line 3: history.events is 9,223,372,036,854,775,807, but 8,388,608 bytes hold at most 16,878 of the \
                 smallest events; raise history.bytes to 18446744073709551615 or more",
            ),
            (
                format!("{rule}history.event = 1"),
                "line 3: unknown key `event` of a history; the nearest one is `events`",
            ),
            (format!("{rule}history.events = -1"), "line 3: write events = 1000, a whole number"),
            (format!("{rule}history.bytes = \"8MB\""), "line 3: write bytes = \"8MiB\""),
            (format!("{rule}history.age = 30"), "line 3: write age = \"30s\""),
            (format!("{rule}history.age = \"999ms\""), "line 3: age is 999 ms, at least 1000 are needed"),
            (format!("{rule}slow = \"drop\""), "line 3: write slow = \"close\", \"skip\" or \"latest\""),
            (format!("{rule}public = 1"), "line 3: write public = true or false"),
            (format!("{rule}retain = 1"), "line 3: write retain = true or false"),
            (format!("{rule}conflate = true"), "line 3: write conflate = \"topic\" or \"key\""),
            (format!("{rule}presence = \"no\""), "line 3: write presence = true or false"),
            (
                format!("{rule}history.events = 20000"),
                "line 3: history.events is 20,000, but 8,388,608 bytes hold at most 16,878 of the smallest events; raise \
                 history.bytes to 9708KiB or more",
            ),
            (
                format!("{rule}history.bytes = \"65MiB\""),
                "line 3: history.bytes is 65MiB, and one topic's history has at most 67108864 bytes, an eighth of \
                 --window-bytes-total-max; raise that to 520MiB",
            ),
            (
                format!("{rule}[[rule]]\nmatch = \"**\"\n[[rule]]\nmatch = \"b/*\""),
                "line 5: this rule never holds, because the rule in line 3 (match = \"**\") comes first",
            ),
            (
                (0..5).map(|n| format!("[[rule]]\nmatch = \"{n}\"\nhistory.bytes = \"60MiB\"\n")).collect(),
                "line 13: the histories of one topic of each rule up to here take 314572800 bytes",
            ),
        ] {
            let error = rules(&text).expect_err(&text).to_string();
            assert!(error.starts_with(told), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
