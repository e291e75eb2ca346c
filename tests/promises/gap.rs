//! Claim: a subscriber that cannot get everything after its last event is told so before the first
//! event, never silently.
//!
//! Set-up: windows of four events; ids that the window no longer holds, of another epoch, of the
//! future, or that nobody ever gave.
//!
//! Expectation: a gap notice in-band with the client's id, the reason and the topics that lost
//! something; then what their windows hold, and everything of the other topics; then live events.
//! SSE and WebSocket alike.

use serde_json::json;

use crate::support::{Protocol, Said, Server, Subscriber};

const BOTH: [Protocol; 2] = [Protocol::Sse, Protocol::WebSocket];

#[tokio::test]
async fn a_lost_resume_point_is_told_first_and_then_the_window_follows() {
    let server = Server::start(&["--shards", "1", "--window-events-max", "4"]);
    let mut ids = Vec::new();
    for number in 0..10 {
        ids.push(server.publish_with("t", "", number.to_string()).await.id);
    }
    server.publish_with("custom", "?id=mine", "x").await;
    for number in 0..5 {
        server.publish("custom", number.to_string()).await;
    }
    let (epoch, _) = ids[0].split_once('-').expect("an id has an epoch");
    let future = format!("{epoch}-1000000");
    let cases = [
        ("t", ids[0].as_str(), "expired", ["6", "7", "8", "9"]),
        ("t", ids[4].as_str(), "expired", ["6", "7", "8", "9"]),
        ("t", "abc-3", "unknown", ["6", "7", "8", "9"]),
        ("t", future.as_str(), "unknown", ["6", "7", "8", "9"]),
        ("t", "nobody-gave-this", "unknown", ["6", "7", "8", "9"]),
        ("custom", "mine", "unknown", ["1", "2", "3", "4"]),
    ];
    for protocol in BOTH {
        for (topic, after, reason, held) in cases {
            let what = format!("{protocol:?} after {after}");
            let mut subscriber = Subscriber::resume(server.data, protocol, &[topic], Some(after)).await;
            let gap = json!({ "after": after, "reason": reason, "topics": [topic] });
            assert_eq!(subscriber.news().await, Said::Gap(gap), "{what}");
            assert_eq!(subscriber.texts(4).await, held, "{what}");
            server.publish(topic, "live").await;
            assert_eq!(subscriber.text().await, "live", "{what}");
            drop(subscriber);
            // The window is again what the next case expects.
            for number in held {
                server.publish(topic, number).await;
            }
        }
        assert_eq!(server.counter(protocol, "gaps").await, cases.len() as u64);
    }
}

/// The oldest event that the window holds needs its predecessor to be named, not the one before.
#[tokio::test]
async fn the_last_id_before_the_window_is_no_gap() {
    let server = Server::start(&["--shards", "1", "--window-events-max", "4"]);
    let mut ids = Vec::new();
    for number in 0..10 {
        ids.push(server.publish("t", number.to_string()).await.id);
    }
    for protocol in BOTH {
        let mut whole = Subscriber::resume(server.data, protocol, &["t"], Some(&ids[5])).await;
        assert_eq!(whole.texts(4).await, ["6", "7", "8", "9"], "{protocol:?}");
        assert_eq!(server.counter(protocol, "gaps").await, 0);
    }
}

/// Of several topics only those that lost events are named, and nothing of the others is left out.
#[tokio::test]
async fn a_busy_topic_costs_a_quiet_one_nothing() {
    let server = Server::start(&["--shards", "1", "--window-events-max", "4"]);
    let named = server.publish("quiet", "q0").await;
    server.publish("busy", "b0").await;
    let first_missed = server.publish("quiet", "q1").await;
    for number in 1..6 {
        server.publish("busy", format!("b{number}")).await;
    }
    server.publish("quiet", "q2").await;
    for protocol in BOTH {
        for (after, expected) in [
            (&named.id, &["q1", "b2", "b3", "b4", "b5", "q2"][..]),
            (&first_missed.id, &["b2", "b3", "b4", "b5", "q2"]),
        ] {
            let mut both = Subscriber::resume(server.data, protocol, &["quiet", "busy"], Some(after)).await;
            let gap = json!({ "after": after, "reason": "expired", "topics": ["busy"] });
            assert_eq!(both.news().await, Said::Gap(gap), "{protocol:?}");
            assert_eq!(both.texts(expected.len()).await, expected, "{protocol:?}");
        }
        let mut one = Subscriber::resume(server.data, protocol, &["quiet"], Some(&named.id)).await;
        assert_eq!(one.texts(2).await, ["q1", "q2"], "{protocol:?}: the quiet topic alone lost nothing");
    }
}

/// Nothing came to a topic while its subscriber was away, and meanwhile others pressed its last
/// event out of the windows.
#[tokio::test]
async fn a_quiet_topic_has_no_gap_although_its_window_is_gone() {
    let server = Server::start(&[
        "--shards",
        "1",
        "--message-bytes-max=1000",
        "--window-bytes-max=10KiB",
        "--window-bytes-total-max=144KiB",
    ]);
    let quiet = server.publish("quiet", "q0").await;
    let missed = server.publish("missed", "m0").await;
    server.publish("missed", "m1").await;
    // Four events of each of eight topics take more than the half of the memory that is for
    // histories.
    for number in 0..32 {
        server.publish(&format!("busy {}", number % 8), "x".repeat(1_000)).await;
    }
    for protocol in BOTH {
        let mut subscriber = Subscriber::resume(server.data, protocol, &["missed"], Some(&missed.id)).await;
        let gap = json!({ "after": missed.id, "reason": "expired", "topics": ["missed"] });
        assert_eq!(subscriber.news().await, Said::Gap(gap), "{protocol:?}");
    }
    let mut subscribers = Vec::new();
    for protocol in BOTH {
        subscribers.push(Subscriber::resume(server.data, protocol, &["quiet"], Some(&quiet.id)).await);
    }
    server.publish("quiet", "q1").await;
    for mut subscriber in subscribers {
        assert_eq!(subscriber.text().await, "q1", "nothing is told before it");
    }
}

/// Servers that start in the same instant, as two nodes of one deployment do, do not take each
/// other's ids for their own.
#[tokio::test]
async fn servers_that_start_together_have_epochs_of_their_own() {
    let starting: Vec<_> = (0..3).map(|_| std::thread::spawn(|| Server::start(&["--shards", "1"]))).collect();
    let mut ids = Vec::new();
    for server in starting {
        let server = server.join().expect("it starts");
        let id = server.publish("t", "first").await.id.to_string();
        let stranger: Option<String> = ids.last().cloned();
        if let Some(stranger) = stranger {
            let mut subscriber =
                Subscriber::resume(server.data, Protocol::Sse, &["t"], Some(&stranger)).await;
            let gap = json!({ "after": stranger, "reason": "unknown", "topics": ["t"] });
            assert_eq!(subscriber.news().await, Said::Gap(gap));
        }
        assert!(!ids.contains(&id), "{id} is among {ids:?}");
        ids.push(id);
    }
}

/// The process that gave the id is gone: the ids of its successor belong to another epoch.
#[tokio::test]
async fn an_id_from_before_a_restart_is_a_gap() {
    let before = Server::start(&["--shards", "1"]);
    let old = before.publish("t", "old").await;
    drop(before);
    let after = Server::start(&["--shards", "1"]);
    let new = after.publish("t", "new").await;
    assert_ne!(old.id, new.id);
    for protocol in BOTH {
        let mut subscriber = Subscriber::resume(after.data, protocol, &["t"], Some(&old.id)).await;
        let gap = json!({ "after": old.id, "reason": "unknown", "topics": ["t"] });
        assert_eq!(subscriber.news().await, Said::Gap(gap), "{protocol:?}");
        assert_eq!(subscriber.text().await, "new", "{protocol:?}");
    }
    // Told once is enough: with the notice comes an id that this process knows.
    let gap = json!({ "after": old.id, "reason": "unknown", "topics": ["quiet"] });
    let mut told = Subscriber::resume(after.data, Protocol::Sse, &["quiet"], Some(&old.id)).await;
    assert_eq!(told.news().await, Said::Gap(gap));
    told.next().await;
    let opening = told.opening_id.take().expect("an id follows the notice");
    drop(told);
    let mut again = Subscriber::resume(after.data, Protocol::Sse, &["quiet"], Some(&opening)).await;
    after.publish("quiet", "first").await;
    assert_eq!(again.text().await, "first");
}
