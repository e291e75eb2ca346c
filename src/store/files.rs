//! The files of a store, as far as it needs a file system.
//!
//! A trait, so that tests have a file system of their own that loses, tears and refuses.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::format::FORMAT_FILE;

/// A directory.
pub trait Files: Send + 'static {
    /// A file that grows.
    type File: Grows;
    /// The names in it.
    fn names(&self) -> io::Result<Vec<String>>;
    /// All bytes of a file.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;
    /// A new file, which must not be there.
    fn create(&self, name: &str) -> io::Result<Self::File>;
    /// A file that is there, to be appended to or cut.
    fn open(&self, name: &str) -> io::Result<Self::File>;
    /// Takes a file away.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// What was created and removed is so for good.
    fn sync_names(&self) -> io::Result<()>;
    /// Writes bytes into a file in place of what it has at `at`, without a promise when. The file is
    /// made if it is missing.
    fn write_over(&self, name: &str, at: u64, bytes: &[u8]) -> io::Result<()>;
    /// Where it is, for messages.
    fn place(&self) -> String;
    /// Its files as another thread reads them, while they grow and go.
    fn glass(&self) -> Box<dyn Glass>;
}

/// A look at the files of a directory.
pub trait Glass: Send + std::fmt::Debug {
    /// The names in it.
    fn names(&self) -> io::Result<Vec<String>>;
    /// Bytes of a file from there on, at most so many; fewer only at its end.
    fn read_at(&self, name: &str, offset: u64, bytes_max: usize) -> io::Result<Vec<u8>>;
}

/// A file that grows at its end.
pub trait Grows: Send {
    /// Writes all of it behind what is there.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// What was appended is there for good.
    fn sync(&mut self) -> io::Result<()>;
    /// How long it is.
    fn bytes(&self) -> io::Result<u64>;
    /// Takes away what is behind so many bytes.
    fn cut(&mut self, bytes: u64) -> io::Result<()>;
}

/// A directory of the system's, which is locked for as long as this lives.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    _lock: File,
}

/// Events are their user's alone.
const OWN: u32 = 0o600;
/// The name of the file that is locked.
const LOCK: &str = "lock";
/// What a file system of its own has at its root.
const LOST: &str = "lost+found";

impl Directory {
    /// Makes it, if it is missing, and locks it. `None` if another process has it.
    pub fn open(path: &Path) -> io::Result<Option<Directory>> {
        if !path.join(FORMAT_FILE).exists() {
            make(path, |parent| File::open(parent)?.sync_all())?;
        }
        let mut options = OpenOptions::new();
        let lock = options.create(true).truncate(false).write(true).mode(OWN).open(path.join(LOCK))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Directory { path: path.to_path_buf(), _lock: lock })),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }
}

/// Makes a directory and all above it that are missing. `sync` is told of those that have got an
/// entry: else it may be gone after a power failure, with all that is in it.
fn make(path: &Path, mut sync: impl FnMut(&Path) -> io::Result<()>) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let missing: Vec<&Path> = path.ancestors().take_while(|level| is_missing(level)).collect();
    for level in missing.iter().rev() {
        match std::fs::DirBuilder::new().mode(0o700).create(level) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => sync(parent_of(level))?,
        }
    }
    if missing.is_empty() {
        // A process that was killed may have made it. One that is not ours to read is as it was.
        match sync(parent_of(path)) {
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn is_missing(level: &Path) -> bool {
    !level.as_os_str().is_empty() && !level.exists()
}

/// Where the entry of a directory is.
fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => path,
    }
}

impl Files for Directory {
    type File = File;

    fn names(&self) -> io::Result<Vec<String>> {
        names_in(&self.path)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        std::fs::read(self.path.join(name))
    }

    fn create(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().create_new(true).append(true).mode(OWN).open(self.path.join(name))
    }

    fn open(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().append(true).open(self.path.join(name))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn write_over(&self, name: &str, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).mode(OWN).open(self.path.join(name))?;
        file.write_all_at(bytes, at)
    }

    fn place(&self) -> String {
        self.path.display().to_string()
    }

    fn glass(&self) -> Box<dyn Glass> {
        Box::new(Pane(self.path.clone()))
    }
}

fn names_in(path: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let name = entry?.file_name();
        names.extend(name.to_str().map(str::to_string).filter(|name| name != LOCK && name != LOST));
    }
    Ok(names)
}

/// A look at a directory of the system's, which does not keep it locked.
#[derive(Debug)]
struct Pane(PathBuf);

impl Glass for Pane {
    fn names(&self) -> io::Result<Vec<String>> {
        names_in(&self.0)
    }

    fn read_at(&self, name: &str, offset: u64, bytes_max: usize) -> io::Result<Vec<u8>> {
        let file = File::open(self.0.join(name))?;
        let length = file.metadata()?.len().saturating_sub(offset).min(bytes_max as u64);
        let mut bytes = vec![0; length as usize];
        // It may have been cut meanwhile.
        let mut read = 0;
        while read < bytes.len() {
            match file.read_at(&mut bytes[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        bytes.truncate(read);
        Ok(bytes)
    }
}

impl Grows for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }

    fn bytes(&self) -> io::Result<u64> {
        self.metadata().map(|metadata| metadata.len())
    }

    fn cut(&mut self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_got_a_new_entry_is_synced_at_every_level() {
        let scratch = std::env::temp_dir().join(format!("fanwave-files-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&scratch);
        std::fs::create_dir(&scratch).expect("a directory");
        let path = scratch.join("a/b/c");
        let synced = || {
            let mut synced = Vec::new();
            make(&path, |level| {
                synced.push(level.strip_prefix(&scratch).expect("below it").to_path_buf());
                Ok(())
            })
            .expect("it is made");
            synced
        };
        assert_eq!(synced(), ["", "a", "a/b"].map(PathBuf::from));
        assert!(path.is_dir());
        // A process that ended before it had synced leaves it to the next.
        assert_eq!(synced(), ["a/b"].map(PathBuf::from));
        let fails = |kind: io::ErrorKind| make(&path, |_| Err(kind.into())).map_err(|error| error.kind());
        assert_eq!(fails(io::ErrorKind::PermissionDenied), Ok(()), "it is not ours to sync");
        assert_eq!(fails(io::ErrorKind::Other), Err(io::ErrorKind::Other));
        let _ = std::fs::remove_dir_all(&scratch);
    }
}
