//! A directory for a server's files, removed with all of them when it is dropped.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Names tried: those of runs that were killed may still be there.
const NAMES_MAX: u32 = 1_000;

/// A directory of our own below the system's temporary directory.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes one; `name` is part of its name.
    pub fn new(name: &str) -> Result<Scratch> {
        let base = std::env::temp_dir();
        let own = std::process::id();
        for number in 0..NAMES_MAX {
            let path = base.join(format!("loadtest-{name}-{own}-{number}"));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Scratch { path }),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error).with_context(|| format!("making {}", path.display())),
            }
        }
        anyhow::bail!("{} is full of old directories loadtest-{name}-{own}-*: remove them", base.display())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file in it and gives its path.
    pub fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is the system's to clean; there is nobody to tell.
        let _ = fs::remove_dir_all(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_directories_differ_and_are_gone_with_their_files_after_the_drop() {
        let (one, other) = (Scratch::new("t").expect("room"), Scratch::new("t").expect("room"));
        let file = one.write("a", "b").expect("room");
        assert_ne!(one.path(), other.path());
        assert!(file.exists());
        let path = one.path().to_owned();
        drop(one);
        assert!(!path.exists() && other.path().exists());
    }
}
