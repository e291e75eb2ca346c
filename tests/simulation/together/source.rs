//! A source of dice: it answers late, leaves numbers out, is away now and then, loses answers, and
//! tells of holes.

use std::sync::Mutex;

use fanwave::hub::source::{Submission, Submissions, Wish};
use fanwave::refusal::{Refusal, RefusalReason};

use super::*;

/// What it says when it is away.
pub const AWAY: &str = "the source is away";

/// Serves until the hub is gone.
pub async fn serve(hub: SimHub, mut submissions: Submissions, seed: u64) {
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
            hub.tell_hole(sequence);
        }
        sequence += 1;
        if !hub.place(event, sequence).await {
            return;
        }
        if let Some(reply) = reply {
            reply.tell(Ok(Taken { sequence, duplicate: false }));
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
