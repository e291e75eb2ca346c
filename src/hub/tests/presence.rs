//! What clients of the shards ask for: how many subscribers topics have.

use super::*;
use crate::broadcast::{Asker, Crowds, Ticket};

async fn next_answer(asker: &mut Asker) -> (Ticket, Crowds) {
    loop {
        match asker.next_answer() {
            Some(answer) => return answer,
            None => tokio::task::yield_now().await,
        }
    }
}

fn ticket(tag: u64) -> Ticket {
    Ticket { slot: 1, number: 2, tag }
}

#[tokio::test]
async fn subscribers_of_all_shards_are_added_up_and_each_ask_is_answered() {
    let mut bench = bench(2, Limits::default());
    let mut askers: Vec<Asker> = bench.inboxes.iter_mut().map(Inbox::take_asker).collect();
    let _seen: Vec<_> = (0..2).map(|shard| bench.start_shard(shard)).collect();
    let serving = tokio::spawn(crate::hub::presence::serve(bench.hub.clone()));
    let topic = |name: &str| Topic::new(name).expect("a topic");
    assert!(askers[0].ask(ticket(7), topic("a")) && askers[0].ask(ticket(8), topic("a")));
    assert!(askers[1].ask(ticket(9), topic("b")));
    assert_eq!(next_answer(&mut askers[0]).await, (ticket(7), Some([3, 20])));
    assert_eq!(next_answer(&mut askers[0]).await, (ticket(8), Some([3, 20])));
    assert_eq!(next_answer(&mut askers[1]).await, (ticket(9), Some([3, 20])));
    serving.abort();
}

#[tokio::test]
async fn where_a_shard_does_not_answer_nobody_is_told_too_few() {
    let mut bench = bench(2, Limits::default());
    let mut asker = bench.inboxes[0].take_asker();
    let _seen = bench.start_shard(0);
    // The other one has ended.
    bench.inboxes.clear();
    let serving = tokio::spawn(crate::hub::presence::serve(bench.hub.clone()));
    assert!(asker.ask(ticket(7), Topic::new("a").expect("a topic")));
    assert_eq!(next_answer(&mut asker).await, (ticket(7), None));
    serving.abort();
}
