//! What a carrier and its streams remember. An idle one costs this, and nothing behind it.

use std::collections::VecDeque;
use std::rc::Rc;

use crate::config::limits::{
    H2_CARRIER_BYTES, H2_EMPTY_FRAMES, H2_PINGS, H2_RESETS, H2_SETTINGS, H2_STREAM_BYTES, H2_WINDOW_UPDATES,
    POST_BODY_MS_MAX,
};
use crate::egress::{Batch, Slot};
use crate::wire::http2::frame::{self, Header, WINDOW, kind};
use crate::wire::http2::hpack::Decoder;
use crate::wire::http2::request::Body;
use crate::wire::http2::settings::Settings;
use crate::wire::http2::{ErrorCode, Fault};

/// The carrier of a stream that has none any more.
pub(super) const NOBODY: Slot = Slot::MAX;

/// No stream has a number as high.
pub(super) const ALL: u32 = u32::MAX;

/// Kinds of frames of which there may be too many, the index of their counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Resets,
    Settings,
    Pings,
    EmptyFrames,
    WindowUpdates,
}

/// For each kind: how many may come at once, how many more with each tick, and what more are.
const BOUNDS: [((u16, u16), Fault); 5] = [
    (H2_RESETS, Fault::RESETS),
    (H2_SETTINGS, Fault::SETTINGS),
    (H2_PINGS, Fault::PINGS),
    (H2_EMPTY_FRAMES, Fault::EMPTY_FRAMES),
    (H2_WINDOW_UPDATES, Fault::WINDOW_UPDATES),
];

/// How much of its patience a carrier has used up.
#[derive(Debug, Default)]
pub(super) struct Budgets {
    used: [u16; BOUNDS.len()],
    /// The tick up to which time has given some back.
    tick: u32,
}

impl Budgets {
    /// One frame of this kind.
    pub fn charge(&mut self, kind: Kind, tick: u32) -> Result<(), Fault> {
        if tick != self.tick {
            for (used, ((_, more), _)) in self.used.iter_mut().zip(BOUNDS) {
                let back = u32::from(more).saturating_mul(tick - self.tick);
                *used = used.saturating_sub(back.min(u32::from(u16::MAX)) as u16);
            }
            self.tick = tick;
        }
        let ((most, _), fault) = BOUNDS[kind as usize];
        self.used[kind as usize] += 1;
        if self.used[kind as usize] > most { Err(fault) } else { Ok(()) }
    }

    /// A frame of DATA went out, which may be answered.
    #[inline]
    pub fn allow_updates(&mut self) {
        let used = &mut self.used[Kind::WindowUpdates as usize];
        *used = used.saturating_sub(2);
    }
}

/// One connection of HTTP/2.
#[derive(Debug)]
pub(super) struct Carrier {
    /// Frames for the next send, put together within a turn; beside a send that waits, too.
    pub out: Vec<u8>,
    /// Its streams, in rising order of their numbers.
    pub streams: Vec<(u32, Slot)>,
    /// What its client has said of itself.
    pub settings: Settings,
    /// Reads blocks of fields.
    pub decoder: Decoder,
    /// Bytes of DATA that may be sent; never below 0.
    pub window: i32,
    /// Bytes of DATA that came and were not given back.
    pub received: u32,
    /// Those of them that were read, and can be given back.
    pub owed: u32,
    /// The highest number of a stream so far.
    pub last: u32,
    /// The highest number of a stream that was reset by us. What comes for one up to here may have
    /// been on its way.
    pub reset: u32,
    /// Its streams are heard up to this one: up to [`ALL`], until it is told farewell.
    pub heard_to: u32,
    pub budgets: Budgets,
    /// What it is in the middle of.
    pub cold: Option<Box<Cold>>,
    /// Its receive is in the ring.
    pub receiving: bool,
    /// SETTINGS have come, which follow the preface.
    pub has_settings: bool,
    /// It is in `Layer::due`.
    pub is_due: bool,
    /// It is in `Layer::watched`.
    pub is_watched: bool,
}

const _: () = assert!(size_of::<Carrier>() <= H2_CARRIER_BYTES);

/// What only some carriers have, some of the time.
#[derive(Debug, Default)]
pub(super) struct Cold {
    /// The begin of a frame whose rest has not come.
    pub part: Vec<u8>,
    /// The block of fields that is not whole, behind the header of its first frame.
    pub block: Option<(Header, Vec<u8>)>,
    /// Frames of that block, without the first.
    pub continuations: u8,
    /// The tick in which something was begun that is not whole, or 0.
    pub since: u32,
    /// What the socket did not take yet.
    pub rest: Option<Rest>,
    /// Streams with something to send for which there was no room, in the order of their turns.
    pub waiting: VecDeque<Slot>,
    /// Its end was told: what comes yet is dropped.
    pub is_over: bool,
    /// The shard wants its socket closed.
    pub closing: bool,
    /// The shard wants our side of the stream ended.
    pub ending: bool,
    /// It has asked for that: what comes yet is dropped, for nothing can be answered.
    pub has_ended: bool,
    /// What the ring does for it was asked to end.
    pub cancelled: bool,
}

/// A piece that the socket did not take whole.
#[derive(Debug)]
pub(super) struct Rest {
    pub piece: Rc<Batch>,
    /// From here on.
    pub at: usize,
    /// The ring has it, since this tick.
    pub sending: Option<u32>,
}

impl Carrier {
    /// A client whose first words are those of HTTP/2.
    pub fn new(receiving: bool, tick: u32) -> Carrier {
        Carrier {
            out: Vec::new(),
            streams: Vec::new(),
            settings: Settings::default(),
            decoder: Decoder::default(),
            window: WINDOW as i32,
            received: 0,
            owed: 0,
            last: 0,
            reset: 0,
            heard_to: ALL,
            budgets: Budgets { tick, ..Budgets::default() },
            cold: None,
            receiving,
            has_settings: false,
            is_due: false,
            is_watched: false,
        }
    }

    /// What it is in the middle of, from now on.
    pub fn warm_up(&mut self) -> &mut Cold {
        self.cold.get_or_insert_default()
    }

    /// Gives the memory back that an idle carrier does not need.
    pub fn cool_down(&mut self) {
        self.cold.take_if(|cold| cold.is_idle());
    }

    /// True while its socket has no room.
    #[inline]
    pub fn is_stuck(&self) -> bool {
        self.cold.as_ref().is_some_and(|cold| cold.rest.is_some())
    }

    /// True once its end was told.
    pub fn is_over(&self) -> bool {
        self.cold.as_ref().is_some_and(|cold| cold.is_over)
    }

    /// True once nothing that comes on it is heard.
    pub fn is_deaf(&self) -> bool {
        self.cold.as_ref().is_some_and(|cold| cold.is_over || cold.has_ended || cold.cancelled)
    }

    /// Says farewell, and up to which stream its client is heard: never further than it was told
    /// before (RFC 9113 §6.8).
    pub fn push_goaway(&mut self, code: ErrorCode) {
        if self.heard_to == ALL {
            self.heard_to = self.last;
        }
        frame::push_goaway(&mut self.out, self.heard_to, code);
    }

    /// Ends a stream in the middle of it.
    pub fn push_reset(&mut self, id: u32, code: ErrorCode) {
        self.reset = self.reset.max(id);
        frame::push_reset(&mut self.out, id, code);
    }

    /// The slot of a stream by its number.
    pub fn find(&self, id: u32) -> Option<Slot> {
        let at = self.streams.binary_search_by_key(&id, |stream| stream.0).ok()?;
        Some(self.streams[at].1)
    }

    /// A stream is none of it any more. What it has not read is read by nobody.
    pub fn let_go(&mut self, stream: &mut Stream, slot: Slot) {
        stream.carrier = NOBODY;
        self.give_back(stream.unread().into());
        if let Ok(at) = self.streams.binary_search_by_key(&stream.id, |other| other.0) {
            self.streams.remove(at);
        }
        if self.streams.is_empty() {
            self.streams = Vec::new();
        }
        if let Some(cold) = &mut self.cold {
            cold.waiting.retain(|waiting| *waiting != slot);
        }
        self.cool_down();
    }

    /// So many bytes of DATA were read, or dropped: their room is given back, half a window at a
    /// time.
    pub fn give_back(&mut self, bytes: u32) {
        self.owed += bytes;
        if self.owed >= WINDOW / 2 {
            frame::push_window_update(&mut self.out, 0, self.owed);
            self.received -= std::mem::take(&mut self.owed);
        }
    }
}

impl Cold {
    fn is_idle(&self) -> bool {
        self.part.is_empty()
            && self.block.is_none()
            && self.rest.is_none()
            && self.waiting.is_empty()
            && !self.is_over
            && !self.closing
            && !self.ending
            && !self.has_ended
            && !self.cancelled
    }

    /// True while something has begun and not come to its end.
    pub fn is_partial(&self) -> bool {
        !self.part.is_empty() || self.block.is_some()
    }

    /// Milliseconds that it has for that. A body comes as fast as its client can send it.
    pub fn patience_ms(&self, head_ms_max: u64) -> u64 {
        match self.part.get(frame::KIND_AT) {
            Some(&kind::DATA) if self.block.is_none() => head_ms_max.max(POST_BODY_MS_MAX),
            _ => head_ms_max,
        }
    }
}

/// A stream: one request, and its answer.
#[derive(Debug)]
pub(super) struct Stream {
    /// Its number; 0 for a free place.
    pub id: u32,
    /// Its carrier, or `NOBODY`.
    pub carrier: Slot,
    /// Bytes of DATA that may be sent; below 0 where a client has made it smaller.
    pub window: i32,
    /// Bytes of its body that came and were not given back; at most a window.
    pub received: u16,
    /// Those of them that were read, and can be given back.
    pub owed: u16,
    /// How its body is told to the shard, and how much of it is to come.
    pub body: Body,
    /// The batch for whose bytes there was no room.
    pub waiting: Option<Waiting>,
    /// The shard asked for that without a copy.
    pub zero_copy: bool,
    /// The head of our answer is on its way.
    pub has_head: bool,
    /// The client says no more on it.
    pub is_silent: bool,
    /// The shard has its receive in the ring.
    pub armed: bool,
    /// The shard does not want to hear more for now.
    pub paused: bool,
}

const _: () = assert!(size_of::<Stream>() <= H2_STREAM_BYTES);

/// A send that waits for room.
#[derive(Debug)]
pub(super) struct Waiting {
    pub batch: Rc<Batch>,
    /// Where the shard asked to begin.
    pub from: u32,
    /// What was taken, from the begin of the batch.
    pub at: u32,
}

impl Stream {
    /// A place without a stream.
    pub fn free() -> Stream {
        Stream {
            id: 0,
            carrier: NOBODY,
            window: 0,
            received: 0,
            owed: 0,
            body: Body::None,
            waiting: None,
            zero_copy: false,
            has_head: false,
            is_silent: false,
            armed: false,
            paused: false,
        }
    }

    /// So many bytes of its body were read: their room is given back, half a window at a time.
    pub fn give_back(&mut self, bytes: u16, out: &mut Vec<u8>) {
        self.owed += bytes;
        if u32::from(self.owed) >= WINDOW / 2 && !self.is_silent {
            frame::push_window_update(out, self.id, self.owed.into());
            self.received -= std::mem::take(&mut self.owed);
        }
    }

    /// Bytes of its body that nobody has read.
    pub fn unread(&self) -> u16 {
        self.received - self.owed
    }
}
