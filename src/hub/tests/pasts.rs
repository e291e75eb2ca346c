//! The past that shards ask for.

use super::*;
use crate::broadcast::{PastAnswer, PastAsk, PastAsker, PastTopicAsk};
use crate::hub::backfill::{Archive, Finding, Found, Pages, Style, Wanted};
use crate::wire::Format;

/// An archive that finds stretches at once, without an event, and nothing else ever.
#[derive(Debug)]
struct Slow;

impl Archive for Slow {
    fn pages(&mut self, _: Wanted, (_, until): (u64, u64), style: Style) -> Finding<'_, Pages> {
        let found = Found { to: until, ..Found::default() };
        Box::pin(async move { Ok(style.pages(found)) })
    }

    fn before_last(&mut self, _: Wanted, _: u64, _: u64) -> Finding<'_, u64> {
        Box::pin(std::future::pending())
    }

    fn before_time(&mut self, _: u64) -> Finding<'_, u64> {
        Box::pin(std::future::pending())
    }
}

async fn next(asker: &PastAsker) -> (u64, PastAnswer) {
    loop {
        if let Some(answer) = asker.next_answer() {
            return answer;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_search_that_takes_too_long_is_given_up_and_stretches_have_their_turns() {
    let mut bench = bench(1, Limits::default());
    let asker = bench.inboxes[0].take_past_asker();
    *bench.hub.archive() = Some(Box::new(Slow));
    tokio::spawn(crate::hub::backfill::serve(bench.hub.clone()));
    let name = Topic::new("t").expect("a topic");
    let topics: Arc<[PastTopicAsk]> = [PastTopicAsk { name, at: 9, told: 0 }].into();
    asker.ask(1, PastAsk::Last(topics.clone(), vec![5]));
    asker.ask(2, PastAsk::Since(topics.clone(), 7));
    asker.ask(3, PastAsk::Stretch { topics, after: 3, until: 8, format: Format::Sse });
    let answers = async { [next(&asker).await, next(&asker).await, next(&asker).await] };
    let patience = std::time::Duration::from_secs(60);
    let answers = tokio::time::timeout(patience, answers).await.expect("nobody waits for ever");
    let [(1, PastAnswer::Away), (2, PastAnswer::Away), (3, PastAnswer::Stretch(stretch))] = answers else {
        panic!("{answers:?}")
    };
    assert_eq!((stretch.to, stretch.frames), (8, 0));
}
