//! Claim: `fanwave publish --ws` publishes as a client of the data plane: one event, or a stream of
//! lines.
//!
//! Set-up: the program against servers that open some topics to their clients, and subscribers.
//!
//! Expectation: what the flags say is what subscribers get, in order; ids and summary are printed
//! as those of the control plane; an error of the server is told by its code and ends with 1.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};

use crate::support::{Protocol, Server, Subscriber};

fn publish(server: &Server, arguments: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanwave"));
    command.args(["publish", "--ws", &format!("ws://{}", server.data)]).args(arguments).env_clear();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().expect("it starts");
    let mut stdin = process.stdin.take().expect("piped");
    // A command that takes its data from elsewhere may have ended.
    let _ = stdin.write_all(input);
    drop(stdin);
    process.wait_with_output().expect("it ends")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

#[tokio::test]
async fn an_event_of_a_client_has_all_that_its_flags_say() {
    let server = Server::start(&["--shards", "2", "--client-publish", "chat/*"]);
    let mut subscriber = Subscriber::connect(server.data, Protocol::Sse, &["chat/a"]).await;
    let flags = ["--event", "greeting", "--id", "mine", "--retry", "500", "--idempotency-key", "once"];
    for _ in 0..2 {
        let output = publish(&server, &[&["chat/a", "hi \"you\""][..], &flags].concat(), b"");
        assert_eq!(
            (output.status.code(), text(&output.stdout), text(&output.stderr)),
            (Some(0), "mine\n", "")
        );
    }
    let output = publish(&server, &["chat/a", "--binary"], b"\0\xff");
    assert!(text(&output.stdout).ends_with("-2\n"), "the repeat was not taken: {output:?}");
    let event = subscriber.event().await;
    assert_eq!((event.id.as_deref(), event.name.as_deref()), (Some("mine"), Some("greeting")));
    assert_eq!((event.retry, event.text()), (Some(500), "hi \"you\""));
    assert_eq!(subscriber.text().await, "AP8=");
}

#[tokio::test]
async fn an_error_of_the_server_is_told_by_its_code() {
    let server = Server::start(&["--shards", "1", "--client-publish", "chat/*", "--message-bytes-max", "10"]);
    for (arguments, told) in [
        (&["other", "x"][..], "not_allowed: clients may not publish to this topic (--client-publish)"),
        (&["chat/a", "far too long"], "too_large: the data has 12 bytes, at most 10 are allowed"),
        (&["chat/a", "x", "--event", "fanwave-gap"], "bad_command: "),
        (&["chat/*", "x"], "bad_topic: "),
    ] {
        let output = publish(&server, arguments, b"");
        let line = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(line.starts_with(&format!("fanwave: {told}")) && line.lines().count() == 1, "{line}");
    }
    let output = publish(&server, &["chat/a", &"x".repeat(100_000)], b"");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).starts_with("fanwave: closed: 1009"), "{output:?}");
    for arguments in [&["chat/a", "x", "--server", "http://127.0.0.1:1"][..], &["chat/a", "x", "--lines"]] {
        assert_eq!(publish(&server, arguments, b"").status.code(), Some(2), "{arguments:?}");
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanwave"));
    let output =
        command.args(["publish", "--ws", &format!("ws://{nobody}"), "a", "x"]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("nobody listens at"), "{output:?}");
}

#[tokio::test]
async fn lines_of_a_client_come_in_order_and_wrong_ones_cost_no_others() {
    let server = Server::start(&["--shards", "2", "--client-publish", "**", "--message-bytes-max", "10"]);
    let mut subscriber = Subscriber::connect(server.data, Protocol::WebSocket, &["t"]).await;
    let lines: String = (1..=500).map(|number| format!("{number}\n")).collect();
    let output = publish(&server, &["t", "--lines"], lines.as_bytes());
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), ""));
    let mut summary: Value = serde_json::from_slice(&output.stdout).expect("a summary");
    assert!(summary["last_id"].take().as_str().expect("an id").ends_with("-500"));
    assert_eq!(summary, json!({ "accepted": 500, "refused": 0, "last_id": null }));
    let expected: Vec<String> = (1..=500).map(|number| number.to_string()).collect();
    assert_eq!(subscriber.texts(500).await, expected);

    let output = publish(&server, &["t", "--lines"], b"one\n\xff\nthree\nfour: too long\n\xfe\nsix");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(subscriber.texts(3).await, ["one", "three", "six"]);
    for part in [
        "line 2 is left out: not UTF-8",
        "line 4: too_large: the data has 14 bytes",
        "line 5 is left out: not UTF-8",
        "lines: 3 accepted, 1 refused by the server, 2 left out here",
    ] {
        assert!(text(&output.stderr).contains(part), "no {part:?} in {output:?}");
    }
}
