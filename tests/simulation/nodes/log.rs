//! The log that both nodes read, and the tasks that stand between it and their hubs: one takes what
//! is published, one reads.

use super::*;

/// Something that was published, in its place.
pub struct Line {
    pub event: Event,
    pub topic: usize,
    pub id: EventId,
    /// The epoch that began when it was lost with the head of the log.
    pub lost_in: Option<u64>,
}

/// What both nodes read. Places count its lines from 1, over all epochs.
#[derive(Default)]
pub struct Log {
    pub lines: Vec<Line>,
    /// The place of each event by the number that its data begins with.
    pub places: HashMap<u64, usize>,
    /// Epochs from 0 on: how many lines there were that no id of it can mean.
    pub floors: Vec<usize>,
    pub sequence: u64,
    /// So many of the oldest lines are gone.
    pub dropped: usize,
    /// How many lines there were when something went missing the last time.
    pub trouble: Option<usize>,
    /// In which epoch each node reads, and how many lines it has come past.
    pub read: [(usize, usize); NODES],
    /// Nodes that are cut off.
    pub away: [bool; NODES],
}

pub type SharedLog = Arc<Mutex<Log>>;

pub fn epoch_of(number: usize) -> Epoch {
    Epoch(EPOCH.0 + number as u64)
}

impl Log {
    /// The present epoch, by its number.
    pub fn epoch(&self) -> usize {
        self.floors.len() - 1
    }

    pub fn append(&mut self, event: Event, number: u64, topic: usize, left_out: u64) -> EventId {
        self.sequence += 1 + left_out;
        let id = EventId { epoch: epoch_of(self.epoch()), sequence: self.sequence };
        self.lines.push(Line { event, topic, id, lost_in: None });
        self.places.insert(number, self.lines.len());
        id
    }

    /// The oldest lines go.
    pub fn drop_oldest(&mut self, lines: usize) {
        self.dropped = (self.dropped + lines).min(self.lines.len());
        self.trouble = Some(self.lines.len());
    }

    /// The newest lines are lost, and others will have their sequences.
    pub fn lose_head(&mut self, lines: usize) {
        let floor = *self.floors.last().expect("an epoch");
        self.floors.push(floor);
        let epoch = self.epoch() as u64;
        let kept = |line: &&mut Line| line.lost_in.is_none();
        for line in self.lines[floor.max(self.dropped)..].iter_mut().rev().filter(kept).take(lines) {
            line.lost_in = Some(epoch);
        }
        let newest = self.lines[floor..].iter().rev().find(|line| line.lost_in.is_none());
        self.sequence = newest.map_or(0, |line| line.id.sequence);
        self.trouble = Some(self.lines.len());
    }

    /// All is gone, and sequences begin again.
    pub fn make_anew(&mut self) {
        self.dropped = self.lines.len();
        self.floors.push(self.lines.len());
        self.sequence = 0;
        self.trouble = Some(self.lines.len());
    }

    /// The last place that an id has come to.
    pub fn place_of(&self, id: EventId) -> usize {
        let epoch = (id.epoch.0 - EPOCH.0) as usize;
        let floor = self.floors[epoch];
        let is_meant = |line: &Line| {
            let is_old = line.id.epoch.0 <= id.epoch.0 && line.id.sequence <= id.sequence;
            is_old && line.lost_in.is_none_or(|lost| lost > epoch as u64)
        };
        (floor..self.lines.len()).rev().find(|at| is_meant(&self.lines[*at])).map_or(floor, |at| at + 1)
    }
}

pub fn lock(log: &SharedLog) -> MutexGuard<'_, Log> {
    log.lock().expect("nobody panics with it")
}

/// Takes what is published on one node, as long as it lives.
pub async fn take(log: SharedLog, node: usize, mut submissions: Submissions, seed: u64) {
    let mut dice = Dice::new(seed ^ 0x7a);
    while let Some(Submission { wish, reply, .. }) = submissions.recv().await {
        let Wish::Publish(event, _) = wish else { panic!("nobody removes a topic here") };
        for _ in 0..dice.roll(6) {
            tokio::task::yield_now().await;
        }
        if lock(&log).away[node] {
            reply.tell(Err(Refusal::new(RefusalReason::Source, "the log is away")));
            continue;
        }
        let luck = dice.roll(20);
        if luck == 0 {
            // Neither the event nor an answer comes.
            continue;
        }
        let number = number_in(&event);
        let topic = TOPICS.iter().position(|name| *name == event.topic.as_str()).expect("one of ours");
        let left_out = if dice.chance(1, 4) { dice.roll(4) } else { 0 };
        let id = lock(&log).append(event, number, topic, left_out);
        // What has happened to the log meanwhile changes nothing of what it has said.
        for _ in 0..dice.roll(8) {
            tokio::task::yield_now().await;
        }
        if luck > 1 {
            reply.tell(Ok(Taken { epoch: id.epoch, sequence: id.sequence, duplicate: false }));
        }
    }
}

fn number_in(event: &Event) -> u64 {
    let data = std::str::from_utf8(event.data.bytes()).expect("UTF-8");
    data.split(' ').next().and_then(|number| number.parse().ok()).expect("data begins with a number")
}

/// Reads the log for one node, as long as its hub takes events.
pub async fn read(hub: SimHub, log: SharedLog, node: usize, seed: u64) {
    let mut dice = Dice::new(seed ^ 0x3e);
    // Lines that were read, in which epoch, and whether something before the next may be missing.
    let (mut at, mut epoch, mut lacks) = (0, 0, false);
    loop {
        for _ in 0..dice.roll(4) {
            tokio::task::yield_now().await;
        }
        tokio::task::yield_now().await;
        if lock(&log).away[node] {
            continue;
        }
        let present = lock(&log).epoch();
        if present != epoch {
            (epoch, lacks) = (present, true);
            if !hub.begin_era(epoch_of(epoch)).await {
                return;
            }
        }
        for _ in 0..1 + dice.roll(5) {
            let next = {
                let log = lock(&log);
                // A log that is another one is not read on.
                if log.epoch() != epoch {
                    break;
                }
                lacks |= at < log.dropped;
                at = at.max(log.dropped);
                while log.lines.get(at).is_some_and(|line| line.lost_in.is_some()) {
                    at += 1;
                }
                log.lines.get(at).map(|line| (line.event.clone(), line.id.sequence))
            };
            let Some((event, sequence)) = next else { break };
            if std::mem::take(&mut lacks)
                && sequence - 1 > hub.last().sequence
                && !hub.tell_hole(sequence - 1).await
            {
                return;
            }
            if !hub.place(event, sequence).await {
                return;
            }
            at += 1;
        }
        lock(&log).read[node] = (epoch, at);
    }
}
