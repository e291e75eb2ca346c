//! A source of dice: it answers late, leaves numbers out, is away now and then, loses answers, and
//! tells of holes.

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
            if !hub.tell_hole(sequence).await {
                return;
            }
        }
        sequence += 1;
        if !hub.place(event, sequence).await {
            return;
        }
        if let Some(reply) = reply {
            reply.tell(Ok(Taken { epoch: EPOCH, sequence, duplicate: false }));
        }
    }
}
