//! What a layer around a ring keeps for some of the slots.
//!
//! Invariants worth naming:
//! - An entry lies beside others of its kind, in chunks that are never moved: so it takes its own
//!   size, whatever a handshake or a request has allocated and freed meanwhile.
//! - A slot without an entry takes four bytes, and these only below the highest one that had an
//!   entry.

use super::Slot;

/// Bytes of a chunk. Entries of connections lie in chunks as large (`shard::connections`); smaller
/// ones would be mixed with what comes and goes.
const CHUNK_BYTES: usize = 32 << 10;

/// Entries by slot.
#[derive(Debug)]
pub struct Places<T> {
    /// The place of each slot's entry, and one more; 0 where it has none.
    of: Vec<u32>,
    chunks: Vec<Box<[Option<T>]>>,
    /// Places that are free.
    free: Vec<u32>,
}

impl<T> Default for Places<T> {
    fn default() -> Places<T> {
        Places { of: Vec::new(), chunks: Vec::new(), free: Vec::new() }
    }
}

impl<T> Places<T> {
    /// Entries of a chunk.
    const CHUNK: usize = CHUNK_BYTES / size_of::<Option<T>>();

    /// The entry of `slot`, if it has one.
    #[inline]
    pub fn get(&self, slot: Slot) -> Option<&T> {
        let place = self.of.get(slot as usize)?.checked_sub(1)? as usize;
        self.chunks[place / Self::CHUNK][place % Self::CHUNK].as_ref()
    }

    /// The entry of `slot`, if it has one.
    #[inline]
    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut T> {
        let place = self.of.get(slot as usize)?.checked_sub(1)?;
        self.place(place).as_mut()
    }

    /// Gives `slot` this entry, for the one that it has.
    pub fn put(&mut self, slot: Slot, entry: T) {
        let at = slot as usize;
        if self.of.len() <= at {
            self.of.resize(at + 1, 0);
        }
        let place = match self.of[at].checked_sub(1) {
            Some(place) => place,
            None => self.free.pop().unwrap_or_else(|| self.grow()),
        };
        self.of[at] = place + 1;
        *self.place(place) = Some(entry);
    }

    /// Borrows the entry of `slot`, which has none until it is [`put`](Places::put) back.
    pub fn take(&mut self, slot: Slot) -> Option<T> {
        let place = self.of.get(slot as usize)?.checked_sub(1)?;
        self.place(place).take()
    }

    /// Forgets the entry of `slot`.
    pub fn remove(&mut self, slot: Slot) {
        let Some(of) = self.of.get_mut(slot as usize) else { return };
        let Some(place) = std::mem::take(of).checked_sub(1) else { return };
        *self.place(place) = None;
        self.free.push(place);
    }

    #[inline]
    fn place(&mut self, place: u32) -> &mut Option<T> {
        &mut self.chunks[place as usize / Self::CHUNK][place as usize % Self::CHUNK]
    }

    /// A place in a new chunk; the others there are free.
    fn grow(&mut self) -> u32 {
        let first = (self.chunks.len() * Self::CHUNK) as u32;
        self.chunks.push((0..Self::CHUNK).map(|_| None).collect());
        self.free.extend((first + 1..first + Self::CHUNK as u32).rev());
        first
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As large as a session with TLS.
    type Large = [u64; 24];
    const CHUNK: usize = Places::<Large>::CHUNK;

    #[test]
    fn each_slot_has_its_own_entry_until_it_is_forgotten() {
        let mut places = Places::default();
        for slot in 0..400 {
            places.put(slot * 3, [u64::from(slot); 24]);
        }
        assert_eq!(places.chunks.len(), 400_usize.div_ceil(CHUNK));
        for slot in 0..400 {
            assert_eq!(places.get(slot * 3), Some(&[u64::from(slot); 24]));
            assert!(places.get(slot * 3 + 1).is_none());
        }
        for slot in (0..400).step_by(2) {
            places.remove(slot * 3);
            places.remove(slot * 3);
        }
        assert!((0..400).all(|slot| places.get(slot * 3).is_some() == (slot % 2 == 1)));
        for slot in 1_500..1_700 {
            places.put(slot, [7; 24]);
        }
        assert_eq!(places.chunks.len(), 400_usize.div_ceil(CHUNK), "places are used again");
        assert!((1_500..1_700).all(|slot| places.get_mut(slot) == Some(&mut [7; 24])));
    }

    #[test]
    fn a_borrowed_entry_is_put_back_into_its_place() {
        let mut places = Places::default();
        places.put(5, 1_u64);
        assert_eq!(places.take(5), Some(1));
        assert_eq!(places.get(5), None);
        assert_eq!(places.take(5), None);
        places.put(5, 2);
        assert_eq!((places.get(5), places.of[5], places.free.len()), (Some(&2), 1, Places::<u64>::CHUNK - 1));
        // One that is forgotten meanwhile leaves its place to others.
        assert_eq!(places.take(5), Some(2));
        places.remove(5);
        places.put(9, 3);
        assert_eq!((places.get(5), places.get(9), places.of[9]), (None, Some(&3), 1));
    }
}
