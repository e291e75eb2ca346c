use super::*;
use crate::event::{Data, Epoch};

fn publish(bytes: usize) -> Wish {
    let topic = Topic::new("t").expect("a topic");
    let data = Data::string("x".repeat(bytes));
    Wish::Publish(Event { topic, data, name: None, id: None, retry_ms: None, key: None }, None)
}

#[tokio::test]
async fn what_has_no_answer_is_bounded_in_number_and_bytes() {
    let (remote, mut submissions) = Remote::bounded(2, 10_000);
    let first = remote.submit(publish(1), Stamp(1), 1).expect("room");
    remote.submit(publish(1), Stamp(1), 1).expect("room");
    let refusal = remote.submit(publish(1), Stamp(1), 1).expect_err("two wait");
    assert_eq!(refusal.reason, RefusalReason::Source);
    let taken = submissions.recv().await.expect("the first");
    remote.submit(publish(20_000), Stamp(1), 1).expect("one of any size");
    assert!(!remote.has_room());
    submissions.recv().await.expect("the second").reply.tell(Err(Refusal::draining()));
    assert!(!remote.has_room(), "the large one has no answer");
    taken.reply.tell(Ok(Taken { epoch: Epoch(7), sequence: 9, duplicate: false }));
    assert_eq!(first.await, Ok(Taken { epoch: Epoch(7), sequence: 9, duplicate: false }));
    submissions.recv().await.expect("the large one").reply.tell(Err(Refusal::draining()));
    assert!(remote.has_room());
}

#[tokio::test]
async fn a_wish_that_nobody_answers_has_an_unknown_outcome() {
    let (remote, mut submissions) = Remote::new();
    let mut waiting = remote.submit(publish(1), Stamp(1), 1).expect("room");
    assert_eq!(waiting.try_take(), None);
    drop(submissions.recv().await);
    assert_eq!(waiting.await, Err(Refusal::outcome_unknown()));
    drop(submissions);
    let refusal = remote.submit(publish(1), Stamp(1), 1).expect_err("nobody is there");
    assert_eq!(refusal.reason, RefusalReason::Source, "it was sent nowhere");
}

/// A start waits for an origin as long as it says, and no longer.
#[tokio::test]
async fn an_origin_that_asks_for_an_hour_is_not_waited_for_so_long() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let answering = tokio::spawn(async move {
        loop {
            let (mut peer, _) = listener.accept().await.expect("a peer");
            let mut head = [0; 4_096];
            let _ = peer.read(&mut head).await;
            let answer = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 3600\r\nContent-Length: 0\r\n\r\n";
            let _ = peer.write_all(answer.as_bytes()).await;
        }
    });
    let relay = crate::config::Relay {
        name: format!("relay://{address}"),
        origin: format!("ws://{address}").parse().expect("an address"),
        matches: vec!["**".parse().expect("a pattern")],
        token_file: None,
        ca: None,
    };
    let greeting = relay::Greeting::get(&relay, 1, Duration::from_millis(300));
    let outcome = timeout(Duration::from_secs(20), greeting).await.expect("it does not wait for an hour");
    assert!(matches!(outcome, Err(crate::relay::Unheard::Lost { .. })), "{outcome:?}");
    answering.abort();
}
