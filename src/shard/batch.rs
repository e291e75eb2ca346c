//! Building batches, and remembering the last few so that connections at the same cursor share one.
//!
//! A run is "all events of these topics after the cursor, up to what one send carries". It serves
//! every cursor from the event before it up to (not including) its own first event. Where a topic
//! begins later than the cursor, as after a gap, the run serves only those who begin there too.
//! Buffers of batches that nobody holds any more are used again, so that steady traffic does not
//! allocate.

use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;

use super::connections::{Membership, Memberships, TopicIndex};
use super::topics::Topics;
use crate::broadcast::Encoded;
use crate::config::limits::{BATCHES_CACHED, BATCHES_POOLED, CONTIGUOUS_FRAME_BYTES_MAX, SEGMENTS_MAX};
use crate::egress::{Batch, Ledger, Payload};
use crate::wire::Format;

/// Smallest buffers. They grow to powers of two, so that after a few runs each buffer fits every
/// usual run.
const BUFFER_BYTES_MIN: usize = 4 << 10;
const BUFFER_SEGMENTS_MIN: usize = 32;

/// Topics of a connection from which on the newest events are asked which of them have news.
const RECENT_LOOKS_MIN: usize = 4;

/// What everybody lacks whose cursor stands between the same two events, and whose topics begin
/// where these do.
#[derive(Debug, Clone)]
pub struct Run {
    /// The bytes.
    pub batch: Rc<Batch>,
    /// Events of these topics remain beyond what one send carries.
    pub more: bool,
    format: Format,
    /// It has the newest event of each topic alone.
    latest: bool,
    /// The topic of all its events, if they are of one and it has all of that topic's.
    topic: Option<TopicIndex>,
    /// The cursors that it serves.
    cursors: Range<u64>,
}

impl Run {
    /// True if [`Batches::news_after`] would give this run again to a subscriber of its format, as
    /// long as nothing has been pushed or evicted since it did. False for subscribers of several
    /// topics: which of them have news takes a longer look.
    #[inline]
    pub fn serves(&self, memberships: &[Membership], cursor: u64) -> bool {
        let [only] = memberships else { return false };
        self.topic == Some(only.topic) && self.cursors.contains(&cursor)
    }
}

/// What a subscriber lacks.
#[derive(Debug)]
pub enum News {
    /// Nothing.
    None,
    /// Events that are here no more.
    Lost,
    /// Events.
    Run(Run),
}

/// A run that is remembered.
#[derive(Debug)]
struct Cached {
    /// The topics of the run: exactly those of the connection that had news, in its order.
    topics: Vec<TopicIndex>,
    /// `Batches::starts` when the run was built.
    starts: Vec<u64>,
    /// Newest sequence of these topics when the run was built.
    head: u64,
    /// `Topics::gone` then.
    gone: u64,
    run: Run,
}

/// Builds and remembers batches.
#[derive(Debug)]
pub struct Batches {
    cached: VecDeque<Cached>,
    pool: VecDeque<Rc<Batch>>,
    /// Buffers of former batches that wait for a payload of their kind; at most `BATCHES_POOLED` of
    /// each.
    spare_bytes: Vec<Vec<u8>>,
    spare_segments: Vec<Vec<Bytes>>,
    ledger: Ledger,
    send_bytes_max: usize,
    /// The events of the run being built, and their frames.
    run: Vec<Arc<Encoded>>,
    frames: Vec<Bytes>,
    /// Topics with news of the connection being served.
    news: Vec<TopicIndex>,
    /// By topic of `news`, the sequence after which its events are sent if that is beyond the
    /// cursor, else 0. Zeros at the end are left out, so that this is empty for nearly everybody.
    starts: Vec<u64>,
    /// The place of the next event of each topic of `news`.
    next: Vec<u64>,
}

impl Batches {
    /// Nothing remembered; no send carries more than `send_bytes_max` bytes, except a single frame.
    pub fn new(send_bytes_max: usize, ledger: &Ledger) -> Batches {
        Batches {
            cached: VecDeque::with_capacity(BATCHES_CACHED * Format::COUNT + 1),
            pool: VecDeque::with_capacity(BATCHES_POOLED + 1),
            spare_bytes: Vec::with_capacity(BATCHES_POOLED),
            spare_segments: Vec::with_capacity(BATCHES_POOLED),
            ledger: ledger.clone(),
            send_bytes_max,
            run: Vec::new(),
            frames: Vec::new(),
            news: Vec::new(),
            starts: Vec::new(),
            next: Vec::new(),
        }
    }

    /// What a subscriber of these topics lacks after `cursor`.
    pub fn news_after(
        &mut self,
        topics: &Topics,
        memberships: &Memberships,
        (format, latest): (Format, bool),
        cursor: u64,
    ) -> News {
        self.news.clear();
        self.starts.clear();
        let head = match latest {
            true => self.find_values(topics, memberships, cursor),
            false => self.find_news(topics, memberships, cursor),
        };
        let Some(head) = head else { return News::Lost };
        let Some(&first) = self.news.first() else { return News::None };
        let hit = self.cached.iter().find(|cached| {
            // A run that is bounded by what one send carries does not change with what comes behind
            // it.
            // But its topics' indexes may be of others since; those have another head.
            (cached.head == head || cached.run.more && cached.gone == topics.gone() && !latest)
                && cached.run.format == format
                && cached.run.latest == latest
                && cached.run.cursors.contains(&cursor)
                && cached.topics[0] == first
                && cached.topics[1..] == self.news[1..]
                && cached.starts == self.starts
        });
        if let Some(cached) = hit {
            return News::Run(cached.run.clone());
        }
        News::Run(self.build(topics, (format, latest), cursor, head))
    }

    /// Fills `news` and `starts`, and returns the newest sequence of the topics with news, 0 if
    /// there are none; `None` if one of them has lost some.
    fn find_news(&mut self, topics: &Topics, memberships: &Memberships, cursor: u64) -> Option<u64> {
        let members = memberships.as_slice();
        let mut head = 0;
        if members.len() > RECENT_LOOKS_MIN
            && !memberships.has_starts()
            && let Some(recent) = topics.recent_after(cursor, members.len())
        {
            // Of many topics few have news: the events since the cursor tell which.
            let place = |topic: &TopicIndex| members.binary_search_by_key(topic, |m| m.topic).ok();
            let places =
                recent.flat_map(|topic| topics.with_patterns(topic)).filter_map(|topic| place(&topic));
            self.news.extend(places.map(|at| members[at].topic));
            self.news.sort_unstable();
            self.news.dedup();
            // An index may have had another topic when the event came.
            self.news.retain(|topic| topics.newest(*topic) > cursor);
            for topic in &self.news {
                if topics.get(*topic).window.gone() > cursor {
                    return None;
                }
                head = head.max(topics.newest(*topic));
            }
            return Some(head);
        }
        for (topic, from) in memberships.iter_from(cursor) {
            let newest = topics.newest(topic);
            let is_lost = topics.get(topic).window.gone() > from;
            // What a pattern has lost it may name no more.
            if is_lost && (newest > from || topics.get(topic).is_pattern()) {
                return None;
            }
            if newest > from {
                if from > cursor {
                    self.starts.resize(self.news.len(), 0);
                    self.starts.push(from);
                }
                self.news.push(topic);
                head = head.max(newest);
            }
        }
        Some(head)
    }

    /// Does the same for a subscriber of the newest events alone.
    fn find_values(&mut self, topics: &Topics, memberships: &Memberships, cursor: u64) -> Option<u64> {
        let mut head = 0;
        for (topic, from) in memberships.iter_from(cursor) {
            let values = topics.values(topic);
            if values.since() > from {
                return None;
            }
            if values.newest() > from {
                if from > cursor {
                    self.starts.resize(self.news.len(), 0);
                    self.starts.push(from);
                }
                self.news.push(topic);
                head = head.max(values.newest());
            }
        }
        Some(head)
    }

    /// Forgets all remembered batches, so that their memory is free when the last send of each is
    /// done.
    pub fn forget(&mut self) {
        self.cached.clear();
        self.pool.clear();
        self.spare_bytes.clear();
        self.spare_segments.clear();
    }

    fn build(&mut self, topics: &Topics, (format, latest): (Format, bool), cursor: u64, head: u64) -> Run {
        let low = match latest {
            true => self.collect_values(topics, format, cursor),
            false => self.collect(topics, format, cursor),
        };
        let first = self.run.first().expect("there is news").sequence;
        let mut shared = self.take_from_pool();
        let batch = Rc::get_mut(&mut shared).expect("the pool gives batches that nobody else holds");
        match batch.recycle() {
            Payload::Contiguous(bytes) => keep(&mut self.spare_bytes, bytes),
            Payload::Vectored(segments) => keep(&mut self.spare_segments, segments),
            Payload::Own(_) | Payload::Frame(_) | Payload::Front(..) => {}
        }
        for event in &self.run {
            batch.note(event.intake);
        }
        let to = self.run.last().expect("there is news").sequence;
        // Frames that their events do not keep belong to this batch.
        let are_kept = self.run.iter().all(|event| event.keeps(format));
        let len = self.frames.iter().map(Bytes::len).sum::<usize>();
        let payload = match self.frames.as_mut_slice() {
            [frame] if are_kept => Payload::Frame(std::mem::take(frame)),
            [frame] => Payload::Own(std::mem::take(frame)),
            frames if !are_kept || frames.iter().all(|frame| frame.len() <= CONTIGUOUS_FRAME_BYTES_MAX) => {
                // Frames differ in length by format: a run takes the least buffer that fits it.
                let spare = self.spare_bytes.iter().enumerate();
                let fitting = spare.filter(|(_, spare)| spare.capacity() >= len);
                let mut bytes = match fitting.min_by_key(|(_, spare)| spare.capacity()) {
                    Some((at, _)) => self.spare_bytes.swap_remove(at),
                    None => self.spare_bytes.pop().unwrap_or_default(),
                };
                bytes.reserve(len.next_power_of_two().max(BUFFER_BYTES_MIN));
                frames.iter().for_each(|frame| bytes.extend_from_slice(frame));
                Payload::Contiguous(bytes)
            }
            frames => {
                let mut segments = self.spare_segments.pop().unwrap_or_default();
                segments.reserve(frames.len().next_power_of_two().max(BUFFER_SEGMENTS_MIN));
                segments.extend(frames.iter_mut().map(std::mem::take));
                Payload::Vectored(segments)
            }
        };
        batch.fill(payload, to);
        self.run.clear();
        self.frames.clear();
        let topic = match (self.news.as_slice(), self.starts.as_slice()) {
            ([only], []) => Some(*only),
            _ => None,
        };
        let run = Run { batch: shared, more: to < head, format, latest, topic, cursors: low..first };
        self.remember(&run, head, topics.gone());
        run
    }

    /// Fills `run` with the events after `cursor` and `starts` in sequence order, as many as one
    /// send carries, and returns the least cursor that lacks the same.
    fn collect(&mut self, topics: &Topics, format: Format, cursor: u64) -> u64 {
        self.next.clear();
        let mut low = 0;
        for (at, topic) in self.news.iter().enumerate() {
            let start = self.starts.get(at).copied().unwrap_or(0);
            let place = topics.place_after(*topic, cursor.max(start));
            if start == 0 {
                low = low.max(topics.sequence_before(*topic, place));
            }
            self.next.push(place);
        }
        let mut bytes = 0;
        while self.run.len() < SEGMENTS_MAX {
            let candidates = self.news.iter().zip(&self.next).enumerate();
            let oldest = candidates
                .filter_map(|(at, (topic, place))| Some((at, topics.event_at(*topic, *place)?)))
                .min_by_key(|(_, event)| event.sequence);
            let Some((_, event)) = oldest else { break };
            let frame = event.frame(format);
            bytes += frame.len();
            if bytes > self.send_bytes_max && !self.run.is_empty() {
                break;
            }
            self.run.push(event.clone());
            self.frames.push(frame);
            // A topic and its patterns have the same event, which goes out once.
            for (topic, place) in self.news.iter().zip(&mut self.next) {
                if topics.event_at(*topic, *place).is_some_and(|other| other.sequence == event.sequence) {
                    *place = topics.place_behind(*topic, *place);
                }
            }
        }
        low
    }

    /// Fills `run` with the newest events after `cursor` and `starts` in sequence order, as many as
    /// one send carries, and returns the least cursor that lacks the same.
    fn collect_values(&mut self, topics: &Topics, format: Format, cursor: u64) -> u64 {
        let mut low = 0;
        for (at, topic) in self.news.iter().enumerate() {
            let values = topics.values(*topic);
            let start = self.starts.get(at).copied().unwrap_or(0);
            if start == 0 {
                low = low.max(values.sequence_before(cursor));
            }
            self.run.extend(values.from(cursor.max(start)).take(SEGMENTS_MAX).cloned());
        }
        // A topic and its patterns have the same event, which goes out once.
        self.run.sort_unstable_by_key(|event| event.sequence);
        self.run.dedup_by_key(|event| event.sequence);
        let mut bytes = 0;
        for event in self.run.iter().take(SEGMENTS_MAX) {
            let frame = event.frame(format);
            bytes += frame.len();
            if bytes > self.send_bytes_max && !self.frames.is_empty() {
                break;
            }
            self.frames.push(frame);
        }
        self.run.truncate(self.frames.len());
        low
    }

    fn take_from_pool(&mut self) -> Rc<Batch> {
        // The oldest is the likeliest to be free. Two looks are enough: what is held longer belongs
        // to a slow socket.
        for _ in 0..self.pool.len().min(2) {
            let batch = self.pool.pop_front().expect("not empty");
            if Rc::strong_count(&batch) == 1 {
                return batch;
            }
            if self.pool.len() < BATCHES_POOLED {
                self.pool.push_back(batch);
            }
        }
        Rc::new(Batch::empty(&self.ledger))
    }

    fn remember(&mut self, run: &Run, head: u64, gone: u64) {
        let (mut topics, mut starts) = (Vec::new(), Vec::new());
        if self.cached.len() >= BATCHES_CACHED * Format::COUNT {
            let oldest = self.cached.pop_back().expect("not empty");
            (topics, starts) = (oldest.topics, oldest.starts);
        }
        topics.clear();
        topics.extend_from_slice(&self.news);
        starts.clear();
        starts.extend_from_slice(&self.starts);
        if self.pool.len() >= BATCHES_POOLED {
            self.pool.pop_front();
        }
        self.pool.push_back(run.batch.clone());
        self.cached.push_front(Cached { topics, starts, head, gone, run: run.clone() });
    }
}

/// Keeps the buffer of a batch that nobody holds any more, emptied.
fn keep<T>(spare: &mut Vec<Vec<T>>, mut buffer: Vec<T>) {
    if buffer.capacity() > 0 && spare.len() < BATCHES_POOLED {
        buffer.clear();
        spare.push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Limits, Rules};
    use crate::event::Topic;
    use crate::shard::fixtures::{encoded, encoded_with};

    fn batches(send_bytes_max: usize) -> Batches {
        Batches::new(send_bytes_max, &Ledger::default())
    }

    fn members(topics: &mut Topics, names: &[&str]) -> Memberships {
        let of =
            |name: &&str| Membership { topic: topics.intern(&Topic::new(name).expect("legal")), position: 0 };
        Memberships::from(names.iter().map(of).collect::<Vec<_>>())
    }

    fn run_after(
        batches: &mut Batches,
        topics: &Topics,
        members: &Memberships,
        format: Format,
        cursor: u64,
    ) -> Option<Run> {
        match batches.news_after(topics, members, (format, false), cursor) {
            News::Run(run) => Some(run),
            News::None => None,
            News::Lost => panic!("nothing is gone"),
        }
    }

    fn text(run: &Run) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < run.batch.len() {
            bytes.extend_from_slice(run.batch.bytes_at(bytes.len()));
        }
        bytes
    }

    fn frames(events: &[Arc<Encoded>], format: Format) -> Vec<u8> {
        events.iter().flat_map(|event| event.frame(format).to_vec()).collect()
    }

    #[test]
    fn connections_between_the_same_two_events_share_a_batch() {
        let mut topics = Topics::new(&Limits::default(), &Rules::default());
        let events = [encoded("a", 3), encoded("a", 7), encoded("a", 9)];
        events.iter().for_each(|event| topics.push(event));
        let members = members(&mut topics, &["a"]);
        let mut batches = batches(1 << 20);
        let one = run_after(&mut batches, &topics, &members, Format::Sse, 3).expect("news");
        let two = run_after(&mut batches, &topics, &members, Format::Sse, 6).expect("news");
        assert!(Rc::ptr_eq(&one.batch, &two.batch));
        assert_eq!(text(&one), frames(&events[1..], Format::Sse));
        assert_eq!((one.batch.to(), one.batch.frames(), one.more), (9, 2, false));
        let three = run_after(&mut batches, &topics, &members, Format::Sse, 7).expect("news");
        assert!(!Rc::ptr_eq(&one.batch, &three.batch), "one event fewer");
        let four = run_after(&mut batches, &topics, &members, Format::WebSocket, 3).expect("news");
        assert_eq!(text(&four), frames(&events[1..], Format::WebSocket));
        assert!(run_after(&mut batches, &topics, &members, Format::Sse, 9).is_none());
        topics.push(&encoded("a", 12));
        let five = run_after(&mut batches, &topics, &members, Format::Sse, 3).expect("news");
        assert_eq!(five.batch.to(), 12, "an outdated batch is not served again");
    }

    #[test]
    fn events_of_several_topics_come_in_sequence_order() {
        let mut topics = Topics::new(&Limits::default(), &Rules::default());
        let events: Vec<_> =
            [("b", 1), ("a", 2), ("c", 3), ("a", 4), ("b", 5)].map(|(topic, n)| encoded(topic, n)).into();
        events.iter().for_each(|event| topics.push(event));
        let abc = members(&mut topics, &["a", "b", "c"]);
        let ab = members(&mut topics, &["a", "b"]);
        let mut batches = batches(1 << 20);
        let all = run_after(&mut batches, &topics, &abc, Format::Sse, 0).expect("news");
        assert_eq!(text(&all), frames(&events, Format::Sse));
        let some = run_after(&mut batches, &topics, &ab, Format::Sse, 0).expect("news");
        let expected: Vec<_> = events.iter().filter(|event| event.sequence != 3).cloned().collect();
        assert_eq!(text(&some), frames(&expected, Format::Sse), "another set of topics, another batch");
        let late = run_after(&mut batches, &topics, &abc, Format::Sse, 3).expect("news");
        let same = run_after(&mut batches, &topics, &ab, Format::Sse, 3).expect("news");
        assert!(Rc::ptr_eq(&late.batch, &same.batch), "only a and b have news for either");
    }

    #[test]
    fn after_a_gap_each_topic_begins_where_it_is_whole() {
        let mut topics = Topics::new(&Limits::default(), &Rules::default());
        let events: Vec<_> = [("a", 1), ("b", 2), ("a", 3), ("b", 4), ("a", 5), ("b", 6)]
            .map(|(topic, n)| encoded(topic, n))
            .into();
        events.iter().for_each(|event| topics.push(event));
        let whole = members(&mut topics, &["a", "b"]);
        let mut lost_b = members(&mut topics, &["a", "b"]);
        assert_eq!(lost_b.start_after(vec![1, 4]), 1);
        let mut batches = batches(1 << 20);
        let all = run_after(&mut batches, &topics, &whole, Format::Sse, 1).expect("news");
        let some = run_after(&mut batches, &topics, &lost_b, Format::Sse, 1).expect("news");
        assert_eq!(text(&all), frames(&events[1..], Format::Sse));
        let left: Vec<_> = [3, 5, 6].map(|sequence| events[sequence - 1].clone()).into();
        assert_eq!(text(&some), frames(&left, Format::Sse), "a from 1 on, b from 4 on");
        let again = run_after(&mut batches, &topics, &lost_b, Format::Sse, 1).expect("news");
        assert!(Rc::ptr_eq(&some.batch, &again.batch), "who lost the same shares a batch");
        let mut lost_less = members(&mut topics, &["a", "b"]);
        lost_less.start_after(vec![1, 2]);
        let other = run_after(&mut batches, &topics, &lost_less, Format::Sse, 1).expect("news");
        let left: Vec<_> = [3, 4, 5, 6].map(|sequence| events[sequence - 1].clone()).into();
        assert_eq!(text(&other), frames(&left, Format::Sse));
        let mut batches = self::batches(1 << 20);
        let two = run_after(&mut batches, &topics, &lost_b, Format::Sse, 3).expect("news");
        let three = run_after(&mut batches, &topics, &lost_b, Format::Sse, 1).expect("news");
        assert_eq!((two.batch.frames(), three.batch.frames()), (2, 3), "a run for a later cursor lacks 3");
        let late = run_after(&mut batches, &topics, &lost_b, Format::Sse, 4).expect("news");
        let same = run_after(&mut batches, &topics, &whole, Format::Sse, 4).expect("news");
        assert!(Rc::ptr_eq(&late.batch, &same.batch), "beyond its starts it is as all others");
    }

    /// A subscriber of one topic is handed the run of the one before, if that serves its cursor.
    #[test]
    fn a_run_that_leaves_something_out_serves_nobody_else() {
        let mut topics = Topics::new(&Limits::default(), &Rules::default());
        for sequence in 1..=6 {
            topics.push(&encoded("b", sequence));
        }
        let only_b = members(&mut topics, &["b"]);
        let mut lost_b = members(&mut topics, &["a", "b"]);
        lost_b.start_after(vec![1, 4]);
        let mut batches = batches(1 << 20);
        let whole = run_after(&mut batches, &topics, &only_b, Format::Sse, 1).expect("news");
        assert!(whole.serves(only_b.as_slice(), 1));
        let partial = run_after(&mut batches, &topics, &lost_b, Format::Sse, 1).expect("news");
        assert_eq!((whole.batch.frames(), partial.batch.frames()), (5, 2));
        assert!(!partial.serves(only_b.as_slice(), 1), "2 to 4 are not in it");
    }

    #[test]
    fn a_send_is_bounded_and_large_frames_stay_where_they_are() {
        let mut topics = Topics::new(&Limits::default(), &Rules::default());
        for sequence in 1..=3 {
            topics.push(&encoded_with("a", sequence, vec![b'x'; 5_000]));
        }
        let members = members(&mut topics, &["a"]);
        let mut batches = batches(12_000);
        let run = run_after(&mut batches, &topics, &members, Format::WebSocket, 0).expect("news");
        assert_eq!((run.batch.to(), run.more, run.batch.segments().map(<[_]>::len)), (2, true, Some(2)));
        let rest = run_after(&mut batches, &topics, &members, Format::WebSocket, 2).expect("news");
        assert_eq!((rest.batch.to(), rest.more, rest.batch.segments().is_none()), (3, false, true));
    }

    #[test]
    fn buffers_of_batches_that_nobody_holds_are_used_again() {
        let mut topics = Topics::new(&Limits::default(), &Rules::default());
        let members = members(&mut topics, &["a"]);
        let mut batches = batches(1 << 20);
        let mut seen = Vec::new();
        for sequence in 1..200 {
            topics.push(&encoded("a", sequence));
            let run = run_after(&mut batches, &topics, &members, Format::Sse, sequence - 1).expect("news");
            seen.push(Rc::as_ptr(&run.batch));
        }
        seen.sort_unstable();
        seen.dedup();
        assert!(seen.len() <= BATCHES_POOLED + 2, "{} batches for 199 runs", seen.len());
    }
}
