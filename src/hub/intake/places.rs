//! What a source does to the intake: events, removals, holes and epochs get their places, in the
//! order of the source's sequences.

use super::*;
use crate::event::EventId;

impl Intake {
    /// Why an event that comes from elsewhere cannot be one here, if so.
    pub fn unfit(&self, event: &Event) -> Option<Refusal> {
        let too_large = || {
            let memory = Encoded::memory_of(event);
            (memory > self.event_memory_max).then(|| {
                let most = self.event_memory_max;
                let text = format!("the event takes {memory} bytes with its frames, at most {most} may be");
                Refusal::new(RefusalReason::TooLarge, text)
            })
        };
        self.frame_too_long(event).or_else(too_large).or_else(|| names_many(&event.topic, "publish to one"))
    }

    /// Takes in an event that has its sequence, which is above all before it, and was fit for this
    /// process. Room for it was waited for ([`Intake::room_to_place`]).
    pub fn place(&mut self, event: Event, sequence: u64, unix_ms: u64, intake: Stamp) {
        let bytes = event.published_bytes();
        self.advance(sequence);
        let kept = self.kept_of(&event);
        let Recorded { account, forgets } = self.topics.record(&event, self.sequence, bytes);
        self.counters.events += 1;
        self.counters.bytes += bytes as u64;
        let encoded = Encoded::new(event, self.era, self.sequence, intake);
        let encoded = encoded.taken_at(unix_ms).keeping(kept);
        let encoded = encoded.forgetting(forgets).counted_in(&account);
        self.events += 1;
        self.bytes += encoded.memory();
        for format in Format::ALL {
            if self.demand.wants(format) && encoded.keeps(format) {
                encoded.frame(format);
            }
        }
        self.queued.push_back(Queued::Event(Arc::new(encoded)));
        if self.queued.len() >= self.batch_events_max && !self.stalled {
            self.flush();
        }
    }

    /// The id of what came last, of this epoch; its sequence is 0 before the first.
    pub(in crate::hub) fn last(&self) -> EventId {
        self.era.id(self.sequence)
    }

    /// What is told of something that has this sequence of the present epoch.
    pub(in crate::hub) fn taken(&self, sequence: u64, duplicate: bool) -> Taken {
        Taken { epoch: self.era.epoch, sequence, duplicate }
    }

    /// Something has this sequence of the source.
    fn advance(&mut self, sequence: u64) {
        let position = self.era.base + sequence;
        assert!(position > self.sequence, "a source gives rising sequences");
        self.sequence = position;
        self.demand.announce(position);
    }

    /// Whether an event may be placed now that others have already. Nobody is refused for it, so its
    /// topic may be as far behind as memory allows; where that is short it waits.
    pub fn room_to_place(&self, memory: usize) -> Result<(), NoRoom> {
        if self.topics.memory().pressure() == Pressure::Publishers {
            return Err(NoRoom::Ceiling);
        }
        if self.events > 0
            && (self.events >= self.queue_events_max || self.bytes + memory > self.queue_bytes_max)
        {
            return Err(NoRoom::Queue);
        }
        // Another topic may be forgotten for its own.
        let memory = memory + TOPIC_BYTES_MAX;
        if self.topics.memory().has_room(memory) { Ok(()) } else { Err(NoRoom::Memory) }
    }

    /// Whether there is room for a word that is no event: it has a place in the queue as events do.
    pub fn room_for_word(&self) -> bool {
        self.events == 0 || self.events < self.queue_events_max
    }

    /// Removes what came of a topic up to this sequence of the source. Room for it was waited for
    /// ([`Intake::room_for_word`]), as for a hole and for another epoch.
    pub fn place_removal(&mut self, topic: Topic, sequence: u64) {
        self.advance(sequence);
        self.topics.removed(&topic, self.sequence);
        self.removals.note(topic.clone(), self.sequence);
        self.counters.removals += 1;
        self.say(Package::Removal(Arc::new(Removal { topic, sequence: self.sequence })));
    }

    /// Events up to this sequence of the source, which is above all before it, may be missing: all
    /// who had not come so far are told.
    pub fn tell_hole(&mut self, sequence: u64) {
        self.advance(sequence);
        self.counters.holes += 1;
        self.hole = self.sequence;
        self.say(Package::Hole(self.sequence));
    }

    /// The same of one topic, which has no `*`: nobody else is told.
    pub fn tell_hole_of(&mut self, topic: Topic, sequence: u64) {
        self.advance(sequence);
        self.counters.holes += 1;
        self.say(Package::TopicHole(Arc::new(TopicHole { topic, position: self.sequence })));
    }

    /// The source has begun anew: its sequences are of another epoch from now on, and begin at 1
    /// again. All who are here are told that they may have lost something.
    pub fn begin_era(&mut self, epoch: Epoch) {
        // Positions go on behind a place that no event has.
        let base = self.sequence + 1;
        self.era = Era { epoch, base };
        self.sequence = base;
        self.demand.announce_era(base);
        self.counters.holes += 1;
        self.hole = base;
        // What was said under them has sequences of the epoch before.
        self.keys = Keys::default();
        self.say(Package::Era(self.era));
    }

    fn say(&mut self, word: Package) {
        self.events += 1;
        self.queued.push_back(Queued::Word(word));
    }

    /// The source takes no publishes, and this is why, in one line; `None`: it does.
    pub fn degrade(&mut self, why: Option<String>) {
        self.demand.tell_degraded(why.as_deref());
        self.degraded = why;
    }

    /// Why the source takes no publishes, if it does not.
    pub fn degraded(&self) -> Option<&str> {
        self.degraded.as_deref()
    }

    /// An event was taken under a key, elsewhere.
    pub fn remember(&mut self, event: &Event, key: IdempotencyKey, sequence: u64, now: Stamp) {
        self.keys.note(event.topic.clone(), key, PastKey::said_by(event), sequence, now);
    }

    /// The sequence that this event got before under `key`.
    pub(in crate::hub) fn find_key(
        &mut self,
        event: &Event,
        key: &IdempotencyKey,
        now: Stamp,
    ) -> Result<Option<u64>, Refusal> {
        match self.keys.find(event, key, now) {
            Ok(found) => Ok(found),
            Err(refusal) => self.refuse(refusal),
        }
    }
}
