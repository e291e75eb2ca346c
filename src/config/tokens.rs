//! The flags about tokens of subscribers and publishers: keys, and what tokens must name.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::auth::{Key, KeySet, Keys};
use crate::config::limits::{JWKS_BYTES_MAX, KEYS_MAX};
use crate::wire::http::Origins;

/// Bytes of a file with a secret; what is larger is another file.
const SECRET_BYTES_MAX: usize = 4 << 10;

/// Where a set of public keys comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Jwks {
    /// A file, and what was read there.
    File(PathBuf, KeySet),
    /// It is fetched from this address, again and again.
    Url(String),
}

/// Who may hear and say what. `Default` is a server that asks for no tokens.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenRules {
    /// A set of keys.
    pub jwks: Option<Jwks>,
    /// A secret that issuer and server share.
    pub hs256: Option<KeySet>,
    /// Whom tokens must name as their issuer.
    pub issuer: Option<String>,
    /// Whom they must name as their audience.
    pub audience: Option<String>,
    /// The cookie that may hold a token.
    pub cookie: Option<String>,
}

impl TokenRules {
    /// True if every subscriber needs a token, save for public topics.
    pub fn is_configured(&self) -> bool {
        self.jwks.is_some() || self.hs256.is_some()
    }

    /// What tokens are checked with, where `fetched` is what the address of keys gave last.
    pub fn keys(&self, fetched: Option<&KeySet>) -> Keys {
        let jwks = self.jwks.as_ref().map(|jwks| match jwks {
            Jwks::File(_, set) => Some(set),
            Jwks::Url(_) => fetched,
        });
        let sources = jwks.into_iter().chain(self.hs256.as_ref().map(Some));
        Keys::new(sources).naming(self.issuer.as_deref(), self.audience.as_deref())
    }

    /// The address from which keys are fetched, if they are.
    pub fn url(&self) -> Option<&str> {
        match &self.jwks {
            Some(Jwks::Url(url)) => Some(url),
            _ => None,
        }
    }
}

/// What a flag about tokens says that it may not. Names the flag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Keys cannot be read, or are none.
    #[error("--auth-jwks {0}: {1}")]
    Jwks(String, String),
    /// The address holds a name or a password, at this host.
    #[error("--auth-jwks: the address at {0} holds a user or a password; public keys need none")]
    Credentials(String),
    /// The secret cannot be read, or is none.
    #[error("--auth-hs256-file {0}: {1}")]
    Secret(String, String),
    /// A flag that means nothing without keys.
    #[error("--{0} needs keys: name them with --auth-jwks or --auth-hs256-file")]
    WithoutKeys(&'static str),
    /// A cookie would speak for every page.
    #[error(
        "--auth-cookie with --cors-origin * would let every page use its visitors' cookies; list your pages' \
         origins with --cors-origin, or say none"
    )]
    CookieForAll,
    /// Text that is no name of a cookie (RFC 6265 §4.1.1).
    #[error("--auth-cookie `{0}`: a name is letters, digits or !#$%&'*+-.^_`|~")]
    Cookie(String),
    /// A name that says nothing.
    #[error("--{0} is empty")]
    Empty(&'static str),
}

/// The flags of [`TokenRules`].
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Tokens")]
pub(super) struct TokenFlags {
    /// Public keys of tokens, as a JWK set: a file, or an address that is fetched every minute;
    /// with keys every subscriber needs a token (RS256, ES256, EdDSA)
    #[arg(long, value_name = "FILE|URL")]
    auth_jwks: Option<String>,
    /// File with the secret of tokens that are signed with HS256
    #[arg(long, value_name = "FILE")]
    auth_hs256_file: Option<PathBuf>,
    /// Issuer (iss) that tokens must name
    #[arg(long, value_name = "NAME")]
    auth_issuer: Option<String>,
    /// Audience (aud) that tokens must name
    #[arg(long, value_name = "NAME")]
    auth_audience: Option<String>,
    /// Cookie that may hold the token, for pages of our own origin and those of --cors-origin
    #[arg(long, value_name = "NAME")]
    auth_cookie: Option<String>,
}

impl TokenFlags {
    /// Checked; reads the files.
    pub(super) fn rules(self, origins: &Origins) -> Result<TokenRules, TokenError> {
        let rules = TokenRules {
            jwks: self.auth_jwks.map(jwks).transpose()?,
            hs256: self.auth_hs256_file.map(|file| secret(&file)).transpose()?,
            issuer: self.auth_issuer,
            audience: self.auth_audience,
            cookie: self.auth_cookie,
        };
        let named = [
            ("auth-issuer", &rules.issuer),
            ("auth-audience", &rules.audience),
            ("auth-cookie", &rules.cookie),
        ];
        for (flag, value) in named {
            match value {
                Some(_) if !rules.is_configured() => return Err(TokenError::WithoutKeys(flag)),
                Some(name) if name.is_empty() => return Err(TokenError::Empty(flag)),
                _ => {}
            }
        }
        if let Some(name) = &rules.cookie {
            let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            if !name.bytes().all(is_token) {
                return Err(TokenError::Cookie(name.clone()));
            }
            if *origins == Origins::Any {
                return Err(TokenError::CookieForAll);
            }
        }
        Ok(rules)
    }
}

fn jwks(place: String) -> Result<Jwks, TokenError> {
    if place.starts_with("http://") || place.starts_with("https://") {
        // The log names the address, and so would an error.
        if let Some(host) = host_of_login(&place) {
            return Err(TokenError::Credentials(host.to_string()));
        }
        let is_url =
            place.parse::<http::Uri>().is_ok_and(|uri| uri.host().is_some_and(|host| !host.is_empty()));
        let cause = "it is no address; write https://issuer.example/jwks.json";
        return is_url.then(|| Jwks::Url(place.clone())).ok_or(TokenError::Jwks(place, cause.to_string()));
    }
    let set = read(Path::new(&place), JWKS_BYTES_MAX)
        .and_then(|bytes| KeySet::read(&bytes, true).map_err(|error| error.to_string()));
    match set {
        Ok(set) => Ok(Jwks::File(PathBuf::from(place), set)),
        Err(cause) => Err(TokenError::Jwks(place, cause)),
    }
}

/// The host of an address that holds a user or a password, also where it is no address for that.
pub(super) fn host_of_login(url: &str) -> Option<&str> {
    let (_, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let is_address = url.parse::<http::Uri>().is_ok();
    let (_, behind) = if is_address { authority.rsplit_once('@') } else { rest.rsplit_once('@') }?;
    behind.split(['/', '?', '#', ':']).next()
}

fn secret(file: &Path) -> Result<KeySet, TokenError> {
    let key = read(file, SECRET_BYTES_MAX)
        .and_then(|bytes| Key::from_secret(&bytes).map_err(|error| error.to_string()));
    key.map(KeySet::of).map_err(|cause| TokenError::Secret(file.display().to_string(), cause))
}

/// The bytes of a file, or of a pipe, whose size is known only when it was read.
fn read(file: &Path, bytes_max: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file);
    let read = opened.and_then(|file| file.take(bytes_max as u64 + 1).read_to_end(&mut bytes));
    match read {
        Err(error) => Err(error.to_string()),
        Ok(_) if bytes.len() > bytes_max => Err(format!("it has more than {bytes_max} bytes")),
        Ok(_) => Ok(bytes),
    }
}

const _: () = assert!(KEYS_MAX * 1_600 < JWKS_BYTES_MAX, "a full set of large keys fits");

#[cfg(test)]
mod tests {
    use super::super::flags::tests::config;

    /// A file of these bytes, for one test.
    fn file(name: &str, bytes: &[u8]) -> String {
        let path = std::env::temp_dir().join(format!("fanwave-tokens-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).expect("a temporary file");
        path.display().to_string()
    }

    #[test]
    fn keys_come_from_files_and_addresses() {
        let secret = file("secret", b"0123456789abcdef0123456789abcdef\n");
        let rules = |args: &[&str]| config(args, &[]).expect("valid").tokens;
        assert!(!rules(&[]).is_configured() && !rules(&[]).keys(None).is_configured());
        let odd = "https://issuer.example/@us/jwks.json";
        assert_eq!(rules(&["--auth-jwks", odd]).url(), Some(odd), "that is a path");
        let both = rules(&["--auth-hs256-file", &secret, "--auth-jwks", "https://issuer.example/jwks.json"]);
        assert_eq!(both.url(), Some("https://issuer.example/jwks.json"));
        let keys = both.keys(None);
        assert!(keys.is_configured() && keys.is_awaited() && keys.len() == 1);
        let jwk = file(
            "jwks",
            br#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#,
        );
        let one = rules(&["--auth-jwks", &jwk, "--auth-issuer", "us", "--auth-audience", "edge"]);
        let keys = one.keys(None);
        assert!(keys.is_configured() && !keys.is_awaited() && keys.len() == 1);
    }

    #[test]
    fn what_no_token_could_be_checked_with_is_refused_by_flag() {
        let secret = file("short", b"too short\n");
        let good = file("good", b"0123456789abcdef0123456789abcdef");
        let empty = file("empty", br#"{"keys":[]}"#);
        let large = file("large", &vec![b' '; 10 << 20]);
        let odd = file("odd", br#"{"keys":[{"kty":"EC","crv":"P-521"}]}"#);
        for (args, part) in [
            (&["--auth-hs256-file", &secret][..], "at least 32"),
            (&["--auth-hs256-file", "/nowhere/secret"], "/nowhere/secret: "),
            (&["--auth-jwks", "/nowhere/jwks"], "/nowhere/jwks: "),
            (&["--auth-jwks", &empty], "list of keys is empty"),
            (&["--auth-jwks", &large], "more than 1048576 bytes"),
            (&["--auth-jwks", &odd], "P-521"),
            (&["--auth-jwks", &good], "no JWK set"),
            (&["--auth-jwks", "https://"], "no address"),
            (&["--auth-jwks", "https://user:hush@issuer.example/jwks"], "at issuer.example holds a user"),
            (&["--auth-jwks", "https://hush@issuer.example/jwks"], "at issuer.example holds a user"),
            (&["--auth-jwks", "https://user:hu hush@issuer.example"], "at issuer.example holds a user"),
            (&["--auth-issuer", "us"], "needs keys"),
            (&["--auth-cookie", "token"], "needs keys"),
            (&["--auth-audience=", "--auth-hs256-file", &good], "is empty"),
            (&["--auth-cookie", "a b", "--auth-hs256-file", &good], "`a b`"),
            (&["--auth-cookie", "token", "--auth-hs256-file", &good], "--cors-origin *"),
        ] {
            let error = config(args, &[]).expect_err("no such keys");
            assert!(error.starts_with("--auth-") && error.contains(part), "no {part:?} in {error:?}");
            assert!(!error.contains("hush"), "{error:?}");
        }
        let cookie = ["--auth-cookie", "token", "--auth-hs256-file", &good, "--cors-origin", "none"];
        assert!(config(&cookie, &[]).is_ok());
    }
}
