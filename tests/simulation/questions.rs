//! Promise: the control API is answered at once, whatever the shard has to do.
//!
//! Set-up: the worlds of this simulation, with questions on the side path while batches wait,
//! sockets stall and the ring has no room; and a shard that knows more topics than one answer
//! holds.
//!
//! Expectation: each turn answers one question, in the order in which they were asked; no counter
//! falls; what was sent before a question is known to its answer where the shard takes it in one
//! turn; no turn tells of more topics than its bound.

use std::sync::Arc;

use fanwave::broadcast::TopicQuery;
use fanwave::config::limits::{QUESTIONS_MAX, TOPICS_PER_ANSWER_MAX};
use fanwave::egress::EgressRing;

use super::*;

/// Whatever waits in the queue of messages, and whether the ring has room or not, a question is
/// answered within `QUESTIONS_MAX` turns, in the order in which they were asked, and no counter
/// falls between two answers.
#[test]
fn a_question_is_answered_within_a_few_turns_whatever_waits() {
    let mut without_room = 0;
    for seed in super::seeds(40) {
        let mut world = World::new(seed, Weather::Rough);
        let mut asked = std::collections::VecDeque::new();
        for turn in 0..300 {
            match world.dice.roll(6) {
                0 => world.connect(),
                1 => world.meddle(),
                _ => world.publish(),
            }
            world.offer();
            let (answer, answered) = oneshot::channel();
            if world.dice.chance(1, 2) && world.outbox.ask(Question::Counters(answer)) {
                asked.push_back((turn, answered));
            }
            world.turn(0);
            let no_room = world.shard.ring_mut().room() == 0;
            let waiting = asked.len();
            while let Some((_, answered)) = asked.front_mut()
                && let Ok(report) = answered.try_recv()
            {
                asked.pop_front();
                without_room += usize::from(no_room);
                world.compare_with(report);
            }
            assert!(waiting == 0 || asked.len() < waiting, "seed {seed}: each turn answers a question");
            let oldest = asked.front().map_or(turn, |(asked_at, _)| *asked_at);
            assert!(turn - oldest < QUESTIONS_MAX, "seed {seed}: asked in turn {oldest}, now is {turn}");
        }
        world.settle();
    }
    let is_one = std::env::var_os("FANWAVE_SIM_SEED").is_some();
    assert!(without_room > 20 || is_one, "the ring had no room {without_room} times");
}

/// A question passes the events that the shard has not taken yet.
#[test]
fn a_question_does_not_wait_for_events_that_wait() {
    let mut world = World::new(0, Weather::Fair);
    let mut wide = (*config(64, SlowPolicy::Close, &mut world.dice)).clone();
    wide.limits.shard_queue_batches_max = 16;
    (world.outbox, world.shard) =
        build(Arc::new(wide), Weather::Fair, 2, world.now, world.demand.clone(), world.memory.clone());
    for _ in 0..16 {
        world.publish_events(&[1; BATCH_EVENTS_MAX]);
    }
    let (answer, mut answered) = oneshot::channel();
    assert!(world.outbox.ask(Question::Counters(answer)));
    world.turn(0);
    let report = answered.try_recv().expect("the first turn answers");
    assert_eq!(report.metrics.events, EVENTS_PER_TURN_MAX as u64, "as many as a turn takes");
    assert_eq!(world.outbox.len(), 16 - EVENTS_PER_TURN_MAX / BATCH_EVENTS_MAX, "others wait");
}

/// What was sent before a question is known to its answer, where the shard takes it in one turn.
#[test]
fn an_answer_knows_what_was_sent_before_the_question() {
    let mut world = World::new(0, Weather::Fair);
    for _ in 0..50 {
        world.publish();
        assert!(world.stuck.is_none(), "a shard that keeps up has room for one batch");
        let (answer, mut answered) = oneshot::channel();
        assert!(world.outbox.ask(Question::Counters(answer)));
        world.turn(0);
        let report = answered.try_recv().expect("the first turn answers");
        assert_eq!(report.metrics.events, count_of(&world.log));
        world.turns();
    }
}

/// A list of many topics costs each turn a bounded number of them, however many are asked for at
/// once.
#[test]
fn no_turn_tells_of_more_topics_than_one_answer_holds() {
    let mut world = World::new(0, Weather::Fair);
    let wide = Arc::new(Config {
        limits: Limits::default(),
        ..(*config(64, SlowPolicy::Close, &mut world.dice)).clone()
    });
    (world.outbox, world.shard) =
        build(wide, Weather::Fair, 2, world.now, world.demand.clone(), world.memory.clone());
    let count = 3 * TOPICS_PER_ANSWER_MAX + 5;
    for number in 0..count {
        let event = Event {
            // In no order of names.
            topic: Topic::new(&format!("{:06}", number * 7_919 % count)).expect("legal"),
            data: Data::text(Bytes::from("x")).expect("UTF-8"),
            name: None,
            id: None,
            retry_ms: None,
            key: None,
        };
        let account = world.accounts.record(&event, number as u64 + 1, 1).account;
        let encoded = Encoded::new(event, EPOCH, number as u64 + 1, world.now).counted_in(&account);
        let events = [Arc::new(encoded)].into();
        world.stuck = Some(Message::Batch(Arc::new(EncodedBatch { events })));
        while world.stuck.is_some() {
            world.offer();
            world.shard.turn(world.now).expect("the simulated ring does not fail");
        }
    }
    world.turns();
    let mut names = Vec::new();
    let mut answers = 0;
    loop {
        let after: Arc<str> = names.last().map_or("", String::as_str).into();
        let mut asked: Vec<_> = (0..QUESTIONS_MAX)
            .map(|_| {
                let (answer, answered) = oneshot::channel();
                let query = TopicQuery::Page { after: after.clone(), most: usize::MAX };
                assert!(world.outbox.ask(Question::Topics(query, answer)));
                answered
            })
            .collect();
        let mut told = Vec::new();
        while !asked.is_empty() {
            world.turn(0);
            let before = asked.len();
            asked.retain_mut(|answered| match answered.try_recv() {
                Ok(topics) => {
                    told = topics;
                    false
                }
                Err(_) => true,
            });
            assert_eq!(before - asked.len(), 1, "one answer per turn");
            assert!(told.len() <= TOPICS_PER_ANSWER_MAX, "{} topics in one turn", told.len());
        }
        answers += 1;
        names.extend(told.iter().map(|report| report.topic.to_string()));
        if told.len() < TOPICS_PER_ANSWER_MAX {
            break;
        }
    }
    assert_eq!(answers, 4);
    assert_eq!(names, (0..count).map(|number| format!("{number:06}")).collect::<Vec<_>>());
}
