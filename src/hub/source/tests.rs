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
