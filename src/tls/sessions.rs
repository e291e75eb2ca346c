//! The sessions of connections with TLS, by slot.
//!
//! Invariants worth naming:
//! - A session lies beside others of its kind, in pieces of memory that are never moved: so it takes
//!   its own size, whatever handshakes have allocated and freed meanwhile.
//! - A connection without TLS takes four bytes, and these only where some have it.

use super::session::Session;
use crate::egress::Slot;

/// Sessions of a piece of memory.
const CHUNK: usize = 64;

/// Sessions by slot.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    /// The place of each slot's session, and one more; 0 where it has none.
    of: Vec<u32>,
    chunks: Vec<Box<[Session; CHUNK]>>,
    /// Places that are free.
    free: Vec<u32>,
}

impl Sessions {
    /// The session of `slot`, if it has one.
    #[inline]
    pub fn get(&mut self, slot: Slot) -> Option<&mut Session> {
        let place = self.of.get(slot as usize)?.checked_sub(1)? as usize;
        Some(&mut self.chunks[place / CHUNK][place % CHUNK])
    }

    /// Gives `slot` a session.
    pub fn put(&mut self, slot: Slot, session: Session) {
        self.remove(slot);
        let at = slot as usize;
        if self.of.len() <= at {
            self.of.resize(at + 1, 0);
        }
        let place = self.free.pop().unwrap_or_else(|| self.grow()) as usize;
        self.chunks[place / CHUNK][place % CHUNK] = session;
        self.of[at] = place as u32 + 1;
    }

    /// Forgets the session of `slot`, its keys included.
    pub fn remove(&mut self, slot: Slot) {
        let Some(of) = self.of.get_mut(slot as usize) else { return };
        let Some(place) = std::mem::take(of).checked_sub(1) else { return };
        self.chunks[place as usize / CHUNK][place as usize % CHUNK] = Session::default();
        self.free.push(place);
    }

    /// A place in new memory; the others there are free.
    fn grow(&mut self) -> u32 {
        let first = (self.chunks.len() * CHUNK) as u32;
        let chunk: Box<[Session]> = (0..CHUNK).map(|_| Session::default()).collect();
        self.chunks.push(chunk.try_into().expect("so many sessions"));
        self.free.extend((first + 1..first + CHUNK as u32).rev());
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(number: u64) -> Session {
        let mut session = Session::default();
        session.receiving = number % 2 == 1;
        session
    }

    #[test]
    fn each_slot_has_its_own_session_until_it_is_forgotten() {
        let mut sessions = Sessions::default();
        for slot in 0..200 {
            sessions.put(slot * 3, of(slot as u64));
        }
        assert_eq!(sessions.chunks.len(), 200_usize.div_ceil(CHUNK));
        for slot in 0..200 {
            assert_eq!(sessions.get(slot * 3).map(|one| one.receiving), Some(slot % 2 == 1));
            assert!(sessions.get(slot * 3 + 1).is_none());
        }
        for slot in (0..200).step_by(2) {
            sessions.remove(slot * 3);
            sessions.remove(slot * 3);
        }
        assert!((0..200).all(|slot| sessions.get(slot * 3).is_some() == (slot % 2 == 1)));
        for slot in 1_000..1_100 {
            sessions.put(slot, of(1));
        }
        assert_eq!(sessions.chunks.len(), 200_usize.div_ceil(CHUNK), "places are used again");
        assert!((1_000..1_100).all(|slot| sessions.get(slot).is_some_and(|one| one.receiving)));
    }
}
