//! A file system of dice: it refuses, writes in part, and forgets pages that were not synced.
//!
//! It has the manners of Linux: what was not synced is there as long as the kernel goes on, whatever
//! ends the process. Then each page of it may be there or not, in any order, and the file be longer
//! than what was written of it. A sync that fails takes the pages for written (fsync(2)), so a later
//! one that succeeds says nothing of them.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::egress::sim::Dice;
use crate::store::files::{Files, Glass, Grows};

/// Bytes that are written together; few, so that tests have many.
const PAGE_BYTES: usize = 64;

/// A file as the kernel has it, and as the disk does.
#[derive(Debug, Clone, Default)]
struct State {
    bytes: Vec<u8>,
    /// What the disk has.
    disk: Vec<u8>,
    /// The kernel takes the bytes up to here for written.
    clean: usize,
    /// Its name was synced.
    is_named: bool,
}

impl State {
    /// A file that the disk has.
    fn written(bytes: &[u8]) -> State {
        State { bytes: bytes.to_vec(), disk: bytes.to_vec(), clean: bytes.len(), is_named: true }
    }

    fn sync(&mut self) {
        self.disk.resize(self.bytes.len(), 0);
        self.disk[self.clean..].copy_from_slice(&self.bytes[self.clean..]);
        self.clean = self.bytes.len();
    }

    fn fail_to_sync(&mut self) {
        self.disk.resize(self.bytes.len(), 0);
        self.clean = self.bytes.len();
    }

    /// What a power failure leaves of it.
    fn left(&self, dice: &mut Dice) -> Vec<u8> {
        let (disk, kernel) = (self.disk.len(), self.bytes.len());
        let length = disk.min(kernel) + dice.roll(disk.abs_diff(kernel) as u64 + 1) as usize;
        let mut left = self.disk.clone();
        left.resize(length, 0);
        for page in (0..length.min(kernel)).step_by(PAGE_BYTES) {
            let (begin, end) = (page.max(self.clean), (page + PAGE_BYTES).min(length).min(kernel));
            if begin < end && dice.chance(1, 2) {
                left[begin..end].copy_from_slice(&self.bytes[begin..end]);
            }
        }
        left
    }
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
    /// So many syncs of files fail.
    failing_syncs: u64,
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

    /// Nothing goes on until this is dropped.
    pub fn hold(&self) -> impl Sized + '_ {
        self.inside()
    }

    /// The next syncs of files fail, so many.
    pub fn fail_syncs(&self, many: u64) {
        self.inside().failing_syncs = many;
    }

    /// A bit of a byte flips.
    pub fn flip(&self, name: &str, at: usize) {
        let mut inside = self.inside();
        let state = inside.state(name).expect("it is there");
        state.bytes[at] ^= 1;
        state.disk[at] ^= 1;
    }

    /// So many bytes still fit.
    pub fn set_room(&self, bytes: Option<usize>) {
        self.inside().room = bytes;
    }

    /// What is left of it when its process ends now. That process may go on with the old one.
    pub fn after(&self, end: End, dice: &mut Dice) -> Disk {
        let inside = self.inside();
        let (mut files, mut removed) = (inside.files.clone(), inside.removed.clone());
        if end == End::PowerFailure {
            for (name, state) in &inside.removed {
                // A removal that was not synced may be undone.
                if dice.chance(1, 2) && !files.contains_key(name) {
                    files.insert(name.clone(), state.clone());
                }
            }
            files.retain(|_, state| state.is_named || dice.chance(1, 2));
            files.values_mut().for_each(|state| *state = State::written(&state.left(dice)));
            removed.clear();
        }
        Disk(Arc::new(Mutex::new(Inside { files, removed, ..Inside::default() })))
    }

    /// Names and bytes of all files.
    pub fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        self.inside().files.iter().map(|(name, state)| (name.clone(), state.bytes.clone())).collect()
    }

    /// A disk with these.
    pub fn with(contents: &BTreeMap<String, Vec<u8>>) -> Disk {
        let files = contents.iter().map(|(name, bytes)| (name.clone(), State::written(bytes))).collect();
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

    fn write_over(&self, name: &str, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut inside = self.inside();
        let state = inside.files.entry(name.to_string()).or_default();
        let end = at as usize + bytes.len();
        state.bytes.resize(end.max(state.bytes.len()), 0);
        state.bytes[at as usize..end].copy_from_slice(bytes);
        state.clean = state.clean.min(at as usize);
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
        let mut outcome = inside.may_fail();
        if inside.failing_syncs > 0 {
            inside.failing_syncs -= 1;
            outcome = Err(io::Error::other("a sync that is to fail"));
        }
        let state = inside.state(&self.1)?;
        match &outcome {
            Ok(()) => state.sync(),
            Err(_) => state.fail_to_sync(),
        }
        outcome
    }

    fn bytes(&self) -> io::Result<u64> {
        self.0.inside().state(&self.1).map(|state| state.bytes.len() as u64)
    }

    fn cut(&mut self, bytes: u64) -> io::Result<()> {
        let mut inside = self.0.inside();
        inside.may_fail()?;
        let state = inside.state(&self.1)?;
        let gained = state.bytes.len().saturating_sub(bytes as usize);
        state.bytes.truncate(bytes as usize);
        state.clean = state.clean.min(bytes as usize);
        inside.room = inside.room.map(|room| room + gained);
        Ok(())
    }
}
