//! A file system of dice: it refuses, writes in part, forgets what was not synced, and changes bits.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::egress::sim::Dice;
use crate::store::files::{Files, Glass, Grows};

/// A file as the kernel has it, and as the disk does.
#[derive(Debug, Clone, Default)]
struct State {
    bytes: Vec<u8>,
    /// What is there after a power failure, at least.
    synced: Vec<u8>,
    /// Its name was synced.
    is_named: bool,
}

/// How a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The kernel goes on.
    Killed,
    /// So does nothing.
    PowerFailure,
}

#[derive(Debug, Default)]
struct Inside {
    files: BTreeMap<String, State>,
    /// Of the files that were removed and whose absence is not synced.
    removed: BTreeMap<String, State>,
    /// Bytes that still fit.
    room: Option<usize>,
    /// One operation of so many fails.
    fails: u64,
    dice: Option<Dice>,
}

/// The disk.
#[derive(Debug, Clone, Default)]
pub struct Disk(Arc<Mutex<Inside>>);

impl Disk {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on one operation of so many fails; 0: none does.
    pub fn fail_one_of(&self, many: u64, seed: u64) {
        let mut inside = self.inside();
        (inside.fails, inside.dice) = (many, Some(Dice::new(seed)));
    }

    /// So many bytes still fit.
    pub fn set_room(&self, bytes: Option<usize>) {
        self.inside().room = bytes;
    }

    /// What is left of it when its process ends now. That process may go on with the old one.
    pub fn after(&self, end: End, dice: &mut Dice) -> Disk {
        let inside = self.inside();
        let mut files = inside.files.clone();
        if end == End::PowerFailure {
            for (name, state) in &inside.removed {
                // A removal that was not synced may be undone.
                if dice.chance(1, 2) && !files.contains_key(name) {
                    files.insert(name.clone(), state.clone());
                }
            }
            files.retain(|_, state| state.is_named || dice.chance(1, 2));
            for state in files.values_mut() {
                let kept = state.bytes.starts_with(&state.synced);
                let more = state.bytes.len().saturating_sub(state.synced.len()) as u64;
                if kept && more > 0 {
                    let left = state.synced.len() + dice.roll(more + 1) as usize;
                    state.bytes.truncate(left);
                } else if !kept {
                    state.bytes = state.synced.clone();
                }
            }
        }
        for state in files.values_mut() {
            state.synced.clone_from(&state.bytes);
            state.is_named = true;
        }
        Disk(Arc::new(Mutex::new(Inside { files, ..Inside::default() })))
    }

    /// Names and bytes of all files.
    pub fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        self.inside().files.iter().map(|(name, state)| (name.clone(), state.bytes.clone())).collect()
    }

    /// A disk with these.
    pub fn with(contents: &BTreeMap<String, Vec<u8>>) -> Disk {
        let state = |bytes: &Vec<u8>| State { bytes: bytes.clone(), synced: bytes.clone(), is_named: true };
        let files = contents.iter().map(|(name, bytes)| (name.clone(), state(bytes))).collect();
        Disk(Arc::new(Mutex::new(Inside { files, ..Inside::default() })))
    }
}

impl Inside {
    /// Fails now and then.
    fn may_fail(&mut self) -> io::Result<()> {
        let many = self.fails;
        let fails = many > 0 && self.dice.as_mut().is_some_and(|dice| dice.chance(1, many));
        if fails { Err(io::Error::other("the dice say no")) } else { Ok(()) }
    }

    fn state(&mut self, name: &str) -> io::Result<&mut State> {
        self.files.get_mut(name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

/// A file of it.
#[derive(Debug)]
pub struct Handle(Disk, String);

impl Files for Disk {
    type File = Handle;

    fn names(&self) -> io::Result<Vec<String>> {
        Ok(self.inside().files.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.inside().state(name).map(|state| state.bytes.clone())
    }

    fn create(&self, name: &str) -> io::Result<Handle> {
        let mut inside = self.inside();
        inside.may_fail()?;
        if inside.files.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        inside.files.insert(name.to_string(), State::default());
        Ok(Handle(self.clone(), name.to_string()))
    }

    fn open(&self, name: &str) -> io::Result<Handle> {
        self.inside().state(name)?;
        Ok(Handle(self.clone(), name.to_string()))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inside = self.inside();
        inside.may_fail()?;
        let state = inside.files.remove(name).ok_or(io::ErrorKind::NotFound)?;
        inside.removed.insert(name.to_string(), state);
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        let mut inside = self.inside();
        inside.may_fail()?;
        inside.files.values_mut().for_each(|state| state.is_named = true);
        inside.removed.clear();
        Ok(())
    }

    fn note(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut inside = self.inside();
        let state = inside.files.entry(name.to_string()).or_default();
        state.bytes = bytes.to_vec();
        Ok(())
    }

    fn place(&self) -> String {
        "dice".to_string()
    }

    fn glass(&self) -> Box<dyn Glass> {
        Box::new(self.clone())
    }
}

impl Glass for Disk {
    fn names(&self) -> io::Result<Vec<String>> {
        Files::names(self)
    }

    fn read_at(&self, name: &str, offset: u64, bytes_max: usize) -> io::Result<Vec<u8>> {
        let bytes = self.read(name)?;
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        Ok(rest[..rest.len().min(bytes_max)].to_vec())
    }
}

impl Grows for Handle {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut inside = self.0.inside();
        let outcome = inside.may_fail();
        let fits = inside.room.unwrap_or(usize::MAX);
        let taken = match &mut inside.dice {
            Some(dice) if outcome.is_err() => dice.roll(bytes.len() as u64) as usize,
            _ => bytes.len().min(fits),
        };
        inside.room = inside.room.map(|room| room - taken.min(room));
        inside.state(&self.1)?.bytes.extend_from_slice(&bytes[..taken]);
        outcome?;
        if taken < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut inside = self.0.inside();
        inside.may_fail()?;
        let state = inside.state(&self.1)?;
        state.synced = state.bytes.clone();
        Ok(())
    }

    fn cut(&mut self, bytes: u64) -> io::Result<()> {
        let mut inside = self.0.inside();
        inside.may_fail()?;
        let state = inside.state(&self.1)?;
        let gained = state.bytes.len().saturating_sub(bytes as usize);
        state.bytes.truncate(bytes as usize);
        inside.room = inside.room.map(|room| room + gained);
        Ok(())
    }
}
