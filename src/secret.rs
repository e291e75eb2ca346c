//! Text that only its owner and we may know: a bearer token, read from a file.
//!
//! It is compared in constant time, and neither logs nor panics nor `Debug` show it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use subtle::ConstantTimeEq;

/// Bytes of a token; what is larger is another file.
const TOKEN_BYTES_MAX: u64 = 4 << 10;

/// A bearer token (RFC 6750 §2.1).
#[derive(Clone)]
pub struct Secret {
    bytes: Arc<[u8]>,
    /// Where it was read.
    file: PathBuf,
}

impl Secret {
    /// Reads a token: the bytes of the file without a trailing line break. The error is one line
    /// that names the file.
    pub fn read(file: &Path) -> Result<Secret, String> {
        let failed = |cause: String| format!("{}: {cause}", file.display());
        // A pipe may hold a token too, so the size is known only when it was read.
        let text = std::fs::File::open(file).and_then(|file| {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut std::io::Read::take(file, TOKEN_BYTES_MAX + 2), &mut bytes)?;
            Ok(bytes)
        });
        let text = text.map_err(|error| failed(error.to_string()))?;
        let token = text.strip_suffix(b"\n").unwrap_or(&text);
        let token = token.strip_suffix(b"\r").unwrap_or(token);
        if token.is_empty() {
            return Err(failed("the token is empty".to_string()));
        }
        if token.len() as u64 > TOKEN_BYTES_MAX {
            return Err(failed(format!("the token has more than {TOKEN_BYTES_MAX} bytes")));
        }
        if !token.iter().all(u8::is_ascii_graphic) {
            return Err(failed("a token is one line of ASCII without blanks".to_string()));
        }
        Ok(Secret { bytes: token.into(), file: file.to_path_buf() })
    }

    /// True if `text` is this secret. Takes as long for every text of its length.
    pub fn is(&self, text: &[u8]) -> bool {
        self.bytes.ct_eq(text).into()
    }

    /// The file that it was read from.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The value of `Authorization` that names it.
    pub fn bearer(&self) -> Vec<u8> {
        [b"Bearer ", &*self.bytes].concat()
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Secret) -> bool {
        self.is(&other.bytes)
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret from {}", self.file.display())
    }
}

/// The token of an `Authorization` field, if that is its scheme (RFC 9110 §11.4, RFC 6750 §2.1).
pub fn bearer_token(field: &[u8]) -> Option<&[u8]> {
    let scheme = b"bearer";
    let (name, token) = field.split_at_checked(scheme.len())?;
    (name.eq_ignore_ascii_case(scheme) && token.first() == Some(&b' ')).then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a file of these bytes is read as.
    fn read(name: &str, bytes: &[u8]) -> Result<Secret, String> {
        let path = std::env::temp_dir().join(format!("fanwave-secret-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).expect("a temporary file");
        let secret = Secret::read(&path);
        let _ = std::fs::remove_file(&path);
        secret
    }

    #[test]
    fn a_token_is_the_file_without_its_last_line_break() {
        for (name, bytes) in [("bare", &b"s3cret"[..]), ("lf", b"s3cret\n"), ("crlf", b"s3cret\r\n")] {
            let secret = read(name, bytes).expect("a token");
            assert!(secret.is(b"s3cret"), "{name}");
            for other in [&b"s3cres"[..], b"s3cre", b"s3cret ", b""] {
                assert!(!secret.is(other), "{name}");
            }
        }
    }

    #[test]
    fn what_is_no_token_is_refused_without_telling_it() {
        for (name, bytes, cause) in [
            ("empty", &b"\n"[..], "empty"),
            ("blank", b"two words", "one line of ASCII"),
            ("lines", b"topsecret\nmore\n", "one line of ASCII"),
            ("long", &[b'x'; 5_000], "more than 4096 bytes"),
        ] {
            let error = read(name, bytes).expect_err(name);
            assert!(error.contains(cause) && error.contains(name), "{error}");
            assert!(!error.contains("topsecret") && !error.contains("two"), "{error}");
        }
        assert!(
            Secret::read(Path::new("/nowhere/token")).expect_err("no file").starts_with("/nowhere/token: ")
        );
    }

    #[test]
    fn nothing_prints_a_secret() {
        let secret = read("debug", b"topsecret").expect("a token");
        assert!(!format!("{secret:?}").contains("topsecret"));
    }

    #[test]
    fn a_token_is_found_whatever_the_case_of_its_scheme() {
        for (field, token) in [
            (&b"Bearer abc"[..], Some(&b"abc"[..])),
            (b"bearer  abc ", Some(b"abc")),
            (b"Bearer", None),
            (b"Bearerabc", None),
            (b"Basic abc", None),
            (b"", None),
        ] {
            assert_eq!(bearer_token(field), token);
        }
    }
}
