//! What is kept of ACME on disk: for each authority the key of the account, and the certificate
//! with its key. Only our user can read it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use instant_acme::AccountCredentials;
use sha2::{Digest as _, Sha256};

/// More than any certificate with its chain has.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The files of one authority.
#[derive(Debug)]
pub(super) struct State(PathBuf);

impl State {
    /// Those of the authority at `url`, below `directory`. The error is one line.
    pub(super) fn open(directory: &Path, url: &str) -> Result<State, String> {
        let place = directory.join(name_of(url));
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&place);
        let probe = place.join("probe");
        made.and_then(|()| replace(&probe, b""))
            .and_then(|()| fs::remove_file(&probe))
            .map_err(|error| format!("--acme-dir {}: cannot write there: {error}", directory.display()))?;
        Ok(State(place))
    }

    /// The account, if there is one.
    pub(super) fn account(&self) -> Result<Option<AccountCredentials>, String> {
        let Some(text) = self.read("account.json")? else { return Ok(None) };
        serde_json::from_str(&text).map(Some).map_err(|error| self.failed("account.json", &error))
    }

    pub(super) fn forget_account(&self) -> Result<(), String> {
        fs::remove_file(self.0.join("account.json")).map_err(|error| self.failed("account.json", &error))
    }

    pub(super) fn keep_account(&self, account: &AccountCredentials) -> Result<(), String> {
        let text = serde_json::to_vec(account).map_err(|error| self.failed("account.json", &error))?;
        self.keep("account.json", &text)
    }

    /// A certificate with its chain and its key, in PEM, if there is one.
    pub(super) fn certificate(&self) -> Result<Option<String>, String> {
        self.read("certificate.pem")
    }

    pub(super) fn keep_certificate(&self, text: &str) -> Result<(), String> {
        self.keep("certificate.pem", text.as_bytes())
    }

    fn read(&self, name: &str) -> Result<Option<String>, String> {
        let mut text = String::new();
        let opened = File::open(self.0.join(name));
        match opened.and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text)) {
            Ok(_) => Ok(Some(text)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed(name, &error)),
        }
    }

    fn keep(&self, name: &str, bytes: &[u8]) -> Result<(), String> {
        replace(&self.0.join(name), bytes).map_err(|error| self.failed(name, &error))
    }

    fn failed(&self, name: &str, error: &dyn std::error::Error) -> String {
        format!("{}: {error}", self.0.join(name).display())
    }
}

/// Replaces a file whole: after a crash there is the old one or the new one.
fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // Another process of ours may write there too, while it hands over to us.
    let draft = path.with_extension(format!("{}.draft", std::process::id()));
    let _ = fs::remove_file(&draft);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// A name for the files of an authority: its host and port, and what tells it from others there.
fn name_of(url: &str) -> String {
    let host = url.split("://").nth(1).and_then(|rest| rest.split('/').next()).unwrap_or_default();
    let host = host.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' });
    let digest = Sha256::digest(url);
    let tail: String = digest[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{tail}", host.collect::<String>())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_is_kept_is_ours_alone_and_of_one_authority() {
        let directory = std::env::temp_dir().join(format!("fanwave-acme-{}", std::process::id()));
        let state = State::open(&directory, "https://ca.example:14000/dir").expect("a directory");
        assert_eq!(state.certificate(), Ok(None));
        for text in ["one", "another"] {
            state.keep_certificate(text).expect("room");
            assert_eq!(state.certificate(), Ok(Some(text.to_string())));
        }
        let place = directory.join("ca.example-14000-c618465b");
        let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        assert_eq!((mode(&place), mode(&place.join("certificate.pem"))), (0o700, 0o600));
        for url in ["https://other.example/dir", "https://ca.example:14000/other-dir"] {
            let other = State::open(&directory, url).expect("a directory");
            assert_eq!(other.certificate(), Ok(None), "{url} is another authority");
        }
        fs::write(place.join("account.json"), "nonsense").expect("a file");
        assert!(state.account().is_err_and(|cause| cause.contains("account.json")));
        fs::remove_dir_all(&directory).expect("our own");
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_named() {
        let file = std::env::temp_dir().join(format!("fanwave-acme-file-{}", std::process::id()));
        fs::write(&file, "").expect("a file");
        let error = State::open(&file, "https://ca.example/dir").expect_err("it is no directory");
        assert!(error.starts_with(&format!("--acme-dir {}: ", file.display())), "{error}");
        fs::remove_file(&file).expect("our own");
    }
}
