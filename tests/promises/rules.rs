//! Claim: rules of the configuration file say what a topic's history holds, and a file can be
//! checked before it is used.
//!
//! Set-up: servers and `fanwave check-config` with files of rules, right and wrong.
//!
//! Expectation: subscribers get what the first rule that matches promises, on every shard. A file
//! that cannot do what it says ends with exit code 2 and a line that names file, line and remedy.

use std::path::PathBuf;
use std::process::{Command, Output};

use crate::support::peer::{masked, request};
use crate::support::{Protocol, Server, Subscriber};

/// A file that is gone when the test is over.
pub(super) struct File(PathBuf);

impl File {
    pub(super) fn new(name: &str, text: &str) -> File {
        let path = std::env::temp_dir().join(format!("fanwave-rules-{}-{name}.toml", std::process::id()));
        std::fs::write(&path, text).expect("a temporary file");
        File(path)
    }

    pub(super) fn path(&self) -> &str {
        self.0.to_str().expect("a path in UTF-8")
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn check_config(args: &[&str]) -> Output {
    let program = env!("CARGO_BIN_EXE_fanwave");
    Command::new(program).arg("check-config").args(args).env_clear().output().expect("the program runs")
}

const RULES: &str = "\
window_events_max = 100
[[rule]]
match = \"quotes/EUR\"
history.events = 1
[[rule]]
match = \"quotes/**\"
history = { events = 3, age = \"1h\" }
";

#[tokio::test]
async fn a_history_holds_what_the_first_rule_that_matches_says() {
    let file = File::new("history", RULES);
    let server = Server::start(&["--shards", "2", "--config", file.path()]);
    for number in 0..5 {
        for topic in ["quotes/EUR", "quotes/USD", "news"] {
            server.publish(topic, number.to_string()).await;
        }
    }
    let mut subscribers = Vec::new();
    for protocol in [Protocol::Sse, Protocol::WebSocket] {
        for (topic, events) in [
            ("quotes/EUR", &["4"][..]),
            ("quotes/USD", &["2", "3", "4"]),
            ("news", &["0", "1", "2", "3", "4"]),
        ] {
            let head = request(protocol, &[topic], None).replacen(" HTTP", "&last=50 HTTP", 1);
            let mut subscriber = Subscriber::request(server.data, protocol, &head).await;
            assert_eq!(subscriber.texts(events.len()).await, events, "{protocol:?} {topic}");
            subscribers.push(subscriber);
        }
    }
    for topic in ["quotes/EUR", "quotes/USD", "news"] {
        server.publish(topic, "live").await;
    }
    for subscriber in &mut subscribers {
        assert_eq!(subscriber.text().await, "live", "and nothing else before");
    }
}

#[tokio::test]
async fn a_rule_says_where_clients_may_publish() {
    let text = "[[rule]]\nmatch = \"chat/closed\"\nclient_publish = false\n\
                [[rule]]\nmatch = \"chat/*\"\nclient_publish = true\n";
    let file = File::new("publish", text);
    let flags = ["--shards", "1", "--config", file.path(), "--client-publish", "chat/closed"];
    let server = Server::start(&flags);
    let mut all = Subscriber::connect(server.data, Protocol::Sse, &["chat/**"]).await;
    for topic in ["chat/closed", "chat/open"] {
        let mut client = Subscriber::connect(server.data, Protocol::WebSocket, &[topic]).await;
        client.send(&masked(1, topic.as_bytes())).await;
        if topic == "chat/open" {
            assert_eq!(client.text().await, topic);
        }
    }
    assert_eq!(all.text().await, "chat/open", "and nothing before");
}

#[test]
fn check_config_tells_what_a_topic_gets() {
    let file = File::new("told", RULES);
    let told = |args: &[&str]| {
        let output = check_config(&[&[file.path()], args].concat());
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    assert_eq!(
        told(&["--topic", "quotes/USD"]),
        "quotes/USD: the rule in line 5, match = \"quotes/**\"\n\
         history: 3 events, 8MiB, 1h, and at most 64MiB with their frames\n\
         slow subscribers: close; latest is the last event of the topic\n\
         clients may not publish, and may ask how many subscribers there are\n"
    );
    assert_eq!(
        told(&[]),
        format!(
            "{} is valid: 2 rules\n\
             line 2: quotes/EUR keeps 1 events, 8MiB, 5m\n\
             line 5: quotes/** keeps 3 events, 8MiB, 1h\n\
             other topics keep 100 events, 8MiB, 5m\n",
            file.path()
        )
    );
}

#[test]
fn a_file_that_cannot_do_what_it_says_is_refused_with_its_line() {
    for (name, text, told) in [
        ("key", "[[rule]]\nmatch = \"a\"\nretian = true\n", "line 3: unknown key `retian` of a rule"),
        ("order", "[[rule]]\nmatch = \"**\"\n[[rule]]\nmatch = \"a\"\n", "line 3: this rule never holds"),
        (
            "total",
            "window_bytes_total_max = \"128MiB\"\n[[rule]]\nmatch = \"a\"\nhistory.bytes = \"17MiB\"\n",
            "line 4: history.bytes is 17MiB, and one topic's history has at most 16777216 bytes",
        ),
    ] {
        let file = File::new(name, text);
        let program = env!("CARGO_BIN_EXE_fanwave");
        let serve = Command::new(program).args(["serve", "--config", file.path()]).env_clear().output();
        for output in [check_config(&[file.path()]), serve.expect("the program runs")] {
            let error = String::from_utf8(output.stderr).expect("UTF-8");
            assert_eq!(output.status.code(), Some(2), "{error}");
            let begin = format!("fanwave: --config {}: {told}", file.path());
            assert!(error.starts_with(&begin) && error.lines().count() == 1, "{error}");
        }
    }
}
