//! `fanwave check-config`: reads a configuration file as `fanwave serve` would, without the
//! environment and other flags, and tells what its rules say. Certificates and keys that it names
//! are read too.

use std::ffi::OsString;
use std::path::PathBuf;

use super::Command;
use super::sources;
use crate::config::rules::{Conflate, History, Rule};
use crate::config::store::Promise;
use crate::config::units::{Age, Size, grouped};
use crate::config::{Config, StoreRules};
use crate::event::Topic;
use crate::tls;

/// The flags.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The file
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Tell what holds for this topic
    #[arg(long, value_name = "TOPIC", value_parser = topic)]
    topic: Option<Topic>,
}

fn topic(text: &str) -> Result<Topic, String> {
    match Topic::new(text) {
        Ok(_) if text.contains('*') => Err("a topic has no `*`; name one topic".to_string()),
        other => other.map_err(|error| error.to_string()),
    }
}

/// What there is to tell, one line each. `Err` is one line that says what is wrong.
pub fn run(options: &Options) -> Result<String, String> {
    let mut file = OsString::from("--config=");
    file.push(&options.file);
    let args = ["fanwave".into(), "serve".into(), file];
    let command = sources::parse(args, |_| None).map_err(|error| error.to_string())?;
    let Command::Serve(flags) = command else { return Err("the file is not for this command".to_string()) };
    let config = flags.config().map_err(|error| error.to_string())?;
    config.tls.as_ref().map(tls::load).transpose().map_err(|error| error.to_string())?;
    Ok(match &options.topic {
        Some(topic) => told_of(topic, &config),
        None => told(&config, &options.file.display().to_string()),
    })
}

/// All rules, and what holds without one.
fn told(config: &Config, file: &str) -> String {
    let rules: Vec<&Rule> = config.rules.iter().collect();
    let mut text = format!("{file} is valid: {} rules\n", rules.len());
    for rule in rules {
        let retained = if rule.retain { format!(", and {}", retained(rule)) } else { String::new() };
        text += &format!("line {}: {} keeps {}{retained}\n", rule.line, rule.pattern, history(rule.history));
    }
    text += &format!("other topics keep {}\n", history(History::of(&config.limits)));
    text + &config.store.as_ref().map_or(String::new(), |store| stored(store, config))
}

/// What is kept on disk.
fn stored(store: &StoreRules, config: &Config) -> String {
    let age = match store.age_ms(&config.limits, &config.rules) {
        u64::MAX => "events of any age".to_string(),
        age_ms => format!("events for {}", Age(age_ms)),
    };
    let when = match store.promise {
        Promise::Always => "before they are answered",
        Promise::Interval => "a tenth of a second later",
        Promise::Never => "when the kernel writes them",
    };
    let (data, most) = (store.data.display(), bytes(usize::try_from(store.bytes_max).unwrap_or(usize::MAX)));
    format!("{data} keeps {age}, and at most {most}; it has them {when}\n")
}

/// What is retained besides.
fn retained(rule: &Rule) -> &'static str {
    match rule.conflate {
        Conflate::Topic => "the last event of each topic",
        Conflate::Key => "the last event of each key",
    }
}

/// What a topic would get.
pub fn told_of(topic: &Topic, config: &Config) -> String {
    let rule = config.rules.of(topic.as_str());
    let (which, kept) = match rule {
        Some(rule) => (format!("the rule in line {}, match = \"{}\"", rule.line, rule.pattern), rule.history),
        None => ("no rule, so the flags alone".to_string(), History::of(&config.limits)),
    };
    let memory = config.limits.topic_history_memory_max();
    let needed = match (config.tokens.is_configured(), config.is_public(topic.as_str())) {
        (false, _) => "",
        (true, false) => "clients need a token\n",
        (true, true) => "clients need no token\n",
    };
    let may = |yes: bool| if yes { "may" } else { "may not" };
    let publish = may(config.lets_clients_publish(topic.as_str()));
    let ask = may(config.tells_presence(topic.as_str()));
    let mut text = format!(
        "{topic}: {which}\nhistory: {}, and at most {} with their frames\n{needed}",
        history(kept),
        bytes(memory)
    );
    if let Some(rule) = rule.filter(|rule| rule.retain) {
        let most = bytes(config.limits.retained_memory_max());
        text += &format!("retained: {}; all topics together {most}\n", retained(rule));
    }
    let newest = match rule.map_or(Conflate::default(), |rule| rule.conflate) {
        Conflate::Topic => "the topic",
        Conflate::Key => "each key",
    };
    let slow = config.slow_of(topic.as_str());
    text += &format!("slow subscribers: {slow}; latest is the last event of {newest}\n");
    text + &format!("clients {publish} publish, and {ask} ask how many subscribers there are\n")
}

fn history(History { events, bytes: size, age_ms }: History) -> String {
    format!("{} events, {}, {}", grouped(events as u64), bytes(size), Age(age_ms))
}

fn bytes(size: usize) -> String {
    Size(size).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_on_disk_is_told_with_the_age_that_rules_give_or_a_flag_does() {
        let rules = "[[rule]]\nmatch = \"long/**\"\nhistory = { age = \"2h\" }\n";
        let told = |age_ms_max, promise| {
            let store =
                StoreRules { data: "/var/lib/fanwave".into(), promise, bytes_max: 1 << 30, age_ms_max };
            let told = super::told(&Config { store: Some(store), ..config(rules) }, "f");
            told.lines().last().expect("a line").to_string()
        };
        assert_eq!(
            told(None, Promise::Interval),
            "/var/lib/fanwave keeps events for 2h, and at most 1GiB; it has them a tenth of a second later"
        );
        assert_eq!(
            told(Some(24 * 3_600_000), Promise::Always),
            "/var/lib/fanwave keeps events for 24h, and at most 1GiB; it has them before they are answered"
        );
        let any = told(Some(u64::MAX), Promise::Never);
        assert!(
            any.contains("keeps events of any age, and at most 1GiB; it has them when the kernel"),
            "{any}"
        );
    }

    fn config(text: &str) -> Config {
        use toml::de::DeTable;

        use crate::config::Limits;
        use crate::config::rules::{KEY, RuleText, Rules};
        let file = DeTable::parse(text).expect("TOML");
        let (_, value) = file.get_ref().iter().find(|(key, _)| key.get_ref() == KEY).expect("rules");
        let texts = RuleText::read(value, text).expect("rules");
        let limits = Limits::default();
        Config { rules: Rules::new(&texts, &limits).expect("valid"), limits, ..Config::default() }
    }

    #[test]
    fn a_topic_is_told_its_rule_and_what_that_gives() {
        let config = config(
            "[[rule]]\nmatch = \"quotes/**\"\nhistory = { events = 10, age = \"30s\" }\nclient_publish = true\n\
             retain = true\nconflate = \"key\"\nslow = \"latest\"\npresence = false\n",
        );
        let told = |topic: &str| told_of(&Topic::new(topic).expect("legal"), &config);
        assert_eq!(
            told("quotes/EUR"),
            "quotes/EUR: the rule in line 1, match = \"quotes/**\"\n\
             history: 10 events, 8MiB, 30s, and at most 64MiB with their frames\n\
             retained: the last event of each key; all topics together 32MiB\n\
             slow subscribers: latest; latest is the last event of each key\n\
             clients may publish, and may not ask how many subscribers there are\n"
        );
        assert_eq!(
            told("news"),
            "news: no rule, so the flags alone\n\
             history: 1,024 events, 8MiB, 5m, and at most 64MiB with their frames\n\
             slow subscribers: close; latest is the last event of the topic\n\
             clients may not publish, and may ask how many subscribers there are\n"
        );
        assert!(
            super::told(&config, "f")
                .contains("keeps 10 events, 8MiB, 30s, and the last event of each key\n")
        );
    }
}
