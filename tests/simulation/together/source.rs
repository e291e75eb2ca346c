//! A source of dice: it answers late, leaves numbers out, is away now and then, loses answers, and
//! tells of holes. In half of its worlds it keeps all events, for those who lack more than windows
//! hold; it gives them in pieces of any length, and not always.

use std::sync::{Mutex, PoisonError};

use fanwave::hub::backfill::{Archive, Away, Finding, Found, Pages, Style, Wanted};
use fanwave::hub::source::{Submission, Submissions, Wish};
use fanwave::refusal::{Refusal, RefusalReason};
use fanwave::store::Stored;

use super::*;

/// What it says when it is away.
pub const AWAY: &str = "the source is away";

/// All that it gave.
pub type Kept = Arc<Mutex<Vec<Stored>>>;

/// What it keeps.
#[derive(Debug)]
pub struct Past {
    kept: Kept,
    dice: Dice,
}

impl Past {
    pub fn new(kept: Kept, seed: u64) -> Past {
        Past { kept, dice: Dice::new(seed ^ 0x51) }
    }

    fn find<T: Send + 'static>(&mut self, found: T) -> Finding<'_, T> {
        let (yields, is_away) = (self.dice.roll(4), self.dice.chance(1, 12));
        Box::pin(async move {
            for _ in 0..yields {
                tokio::task::yield_now().await;
            }
            if is_away { Err(Away) } else { Ok(found) }
        })
    }
}

impl Archive for Past {
    fn pages(&mut self, wanted: Wanted, (after, until): (u64, u64), style: Style) -> Finding<'_, Pages> {
        let most = 1 + self.dice.roll(40) as usize;
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = kept.last().map_or(0, |stored| stored.sequence);
        let of = |stored: &&Stored| {
            let sequence = stored.sequence;
            after < sequence && sequence <= until && wanted.has(stored.event.topic.as_str(), sequence)
        };
        let mut events: Vec<Stored> = kept.iter().filter(of).take(most + 1).cloned().collect();
        drop(kept);
        let mut to = newest.min(until);
        if events.len() > most {
            events.pop();
            to = events.last().map_or(after, |last| last.sequence);
        }
        self.find(style.pages(Found { events, to, floor: 0 }))
    }

    fn before_last(&mut self, wanted: Wanted, until: u64, events: u64) -> Finding<'_, u64> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let of = kept.iter().rev().filter(|stored| {
            stored.sequence <= until && wanted.has(stored.event.topic.as_str(), stored.sequence)
        });
        let before = of.take(events as usize).last().map_or(until, |first| first.sequence - 1);
        drop(kept);
        self.find(before)
    }

    fn before_time(&mut self, _unix_ms: u64) -> Finding<'_, u64> {
        self.find(0)
    }
}

/// Serves until the hub is gone.
pub async fn serve(hub: SimHub, mut submissions: Submissions, seed: u64, kept: Kept) {
    let mut dice = Dice::new(seed ^ 0x50);
    let mut sequence = 0;
    while let Some(Submission { wish, reply, .. }) = submissions.recv().await {
        let Wish::Publish(event, _) = wish else { panic!("nobody removes a topic here") };
        for _ in 0..dice.roll(6) {
            tokio::task::yield_now().await;
        }
        let mut reply = Some(reply);
        match dice.roll(40) {
            0 => {
                let away = Refusal::new(RefusalReason::Source, AWAY);
                reply.take().expect("it is there").tell(Err(away));
                continue;
            }
            // The answer is lost, with the event or without.
            1 => drop(reply.take()),
            2 => continue,
            _ => {}
        }
        if dice.chance(1, 4) {
            sequence += dice.roll(5);
        }
        if dice.chance(1, 60) {
            sequence += 1;
            if !hub.tell_hole(sequence).await {
                return;
            }
        }
        if dice.chance(1, 60) {
            sequence += 1;
            if !hub.tell_hole_of(event.topic.clone(), sequence).await {
                return;
            }
        }
        sequence += 1;
        let stored = Stored { sequence, unix_ms: 0, event: event.clone(), idempotency: None };
        kept.lock().unwrap_or_else(PoisonError::into_inner).push(stored);
        if !hub.place(event, sequence).await {
            return;
        }
        if let Some(reply) = reply {
            reply.tell(Ok(Taken { epoch: EPOCH, sequence, duplicate: false }));
        }
    }
}

/// As many seeds as `FANWAVE_DICE_SEEDS` says; else as many as there is time for, which
/// `FANWAVE_DICE_MS` says. `FANWAVE_SIM_SEED` names one.
fn seeds_in_time() -> Box<dyn Iterator<Item = u64> + Send> {
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name} is a number")))
    };
    let (one, many) = (number("FANWAVE_SIM_SEED"), number("FANWAVE_DICE_SEEDS"));
    if one.or(many).is_some() {
        return Box::new(one.map_or(0..many.unwrap_or(0), |seed| seed..seed + 1));
    }
    let patience = std::time::Duration::from_millis(number("FANWAVE_DICE_MS").unwrap_or(1_500));
    let began = std::time::Instant::now();
    Box::new((0..).take_while(move |_| began.elapsed() < patience))
}

#[test]
fn dice_whatever_a_source_does_what_it_places_reaches_everybody_once_and_in_order() {
    let (seeds, all) = (Mutex::new(seeds_in_time()), Mutex::new(Tally::default()));
    let threads = std::thread::available_parallelism().map_or(1, |cpus| cpus.get().min(8));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let next = || seeds.lock().expect("nobody panics with it").next();
                let tally = play_all(std::iter::from_fn(next), true);
                all.lock().expect("nobody panics with it").add(&tally);
            });
        }
    });
    let all = all.into_inner().expect("nobody panics with it");
    assert!(all.heard > 0 && all.left_out + all.accepted > 0, "{all:?}");
    eprintln!("{all:?}");
}
