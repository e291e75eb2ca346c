//! `fanwave token`: makes tokens for trying, and says what one grants or why it is refused.
//!
//! A token is read from a file or from standard input, never from the command line: other users of
//! the machine see that.

use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

use crate::auth::{Claims, Key, KeySet, Keys, Signer, peek, verify};
use crate::clock::unix_ms;
use crate::config::limits::{JWKS_BYTES_MAX, TOKEN_BYTES_MAX};
use crate::config::units::Age;
use crate::topic_pattern::{Pattern, PatternError};

/// Bytes of a file with a key.
const KEY_BYTES_MAX: usize = 64 << 10;

/// The flags of `fanwave token`.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Action {
    /// Make a token, for trying: an issuer has its own program
    Make(Make),
    /// Say what a token grants, and whether a server with these keys takes it
    Explain(Explain),
    /// Print the public half of a private key as a JWK set for --auth-jwks
    Keys(PublicKeys),
}

#[derive(Debug, Clone, clap::Args)]
struct Signing {
    /// Private key: PEM (PKCS #8) or JWK, for RS256, ES256 or EdDSA
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Name of the key, which the token carries
    #[arg(long, value_name = "NAME")]
    kid: Option<String>,
}

#[derive(Debug, Clone, clap::Args)]
struct Make {
    #[command(flatten)]
    signing: Signing,
    /// Secret for HS256, as the server's --auth-hs256-file
    #[arg(long, value_name = "FILE", conflicts_with = "key")]
    hs256_file: Option<PathBuf>,
    /// Topics that its bearer may hear: a list of patterns, * for one segment, ** at the end for
    /// the rest
    #[arg(long, value_name = "PATTERN", value_delimiter = ',', value_parser = pattern)]
    subscribe: Vec<Pattern>,
    /// Topics to which its bearer may publish
    #[arg(long, value_name = "PATTERN", value_delimiter = ',', value_parser = pattern)]
    publish: Vec<Pattern>,
    /// How long it is valid from now on: 30s, 5m, 1h
    #[arg(long, value_name = "TIME", default_value = "1h")]
    lifetime: Age,
    /// Whom it names (sub)
    #[arg(long, value_name = "NAME")]
    subject: Option<String>,
    /// Who makes it (iss)
    #[arg(long, value_name = "NAME")]
    issuer: Option<String>,
    /// For whom it is (aud)
    #[arg(long, value_name = "NAME")]
    audience: Option<String>,
}

#[derive(Debug, Clone, clap::Args)]
struct Explain {
    /// File with the token [default: standard input]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The server's flag, with a file
    #[arg(long, value_name = "FILE")]
    auth_jwks: Option<PathBuf>,
    /// The server's flag
    #[arg(long, value_name = "FILE")]
    auth_hs256_file: Option<PathBuf>,
    /// The server's flag
    #[arg(long, value_name = "NAME")]
    auth_issuer: Option<String>,
    /// The server's flag
    #[arg(long, value_name = "NAME")]
    auth_audience: Option<String>,
}

#[derive(Debug, Clone, clap::Args)]
struct PublicKeys {
    #[command(flatten)]
    signing: Signing,
}

/// What a command comes to.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is done, and this is to be printed.
    Done(String),
    /// This is to be printed, and the token is one that is refused.
    Refused(String),
}

/// What there is to print. `Err` is one line that says what is wrong with the flags.
pub fn run(options: Options) -> Result<Outcome, String> {
    match options.action {
        Action::Make(make) => make.run().map(Outcome::Done),
        Action::Explain(explain) => explain.run(),
        Action::Keys(PublicKeys { signing }) => {
            let signer = signing.signer()?.ok_or("name the private key with --key FILE")?;
            let set = signer.public_set().ok_or("--key: a secret has no public half")?;
            let set = set.map_err(|error| format!("--key: {error}"))?;
            Ok(Outcome::Done(format!("{set:#}\n")))
        }
    }
}

impl Signing {
    fn signer(&self) -> Result<Option<Signer>, String> {
        let Some(file) = &self.key else { return Ok(None) };
        let failed = |cause: String| format!("--key {}: {cause}", file.display());
        let bytes = read(file, KEY_BYTES_MAX).map_err(failed)?;
        let signer = Signer::read(&bytes).map_err(|error| failed(error.to_string()))?;
        Ok(Some(signer.named(self.kid.clone())))
    }
}

impl Make {
    fn run(self) -> Result<String, String> {
        let signer = match (self.signing.signer()?, &self.hs256_file) {
            (Some(signer), _) => signer,
            (None, Some(file)) => {
                let failed = |cause: String| format!("--hs256-file {}: {cause}", file.display());
                let bytes = read(file, KEY_BYTES_MAX).map_err(failed)?;
                let signer = Signer::from_secret(&bytes).map_err(|error| failed(error.to_string()))?;
                signer.named(self.signing.kid.clone())
            }
            (None, None) => return Err("name a key with --hs256-file FILE or --key FILE".to_string()),
        };
        let now_s = unix_ms() / 1_000;
        let texts = |patterns: &[Pattern]| patterns.iter().map(Pattern::to_string).collect::<Vec<_>>();
        let mut claims = Map::new();
        for (name, value) in [("sub", self.subject), ("iss", self.issuer), ("aud", self.audience)] {
            claims.extend(value.map(|value| (name.to_string(), Value::String(value))));
        }
        claims.insert("iat".to_string(), now_s.into());
        claims.insert("exp".to_string(), (now_s + self.lifetime.0.div_ceil(1_000)).into());
        let grant = json!({ "subscribe": texts(&self.subscribe), "publish": texts(&self.publish) });
        claims.insert("fanwave".to_string(), grant);
        let token = signer.sign(&Value::Object(claims)).map_err(|error| error.to_string())?;
        if token.len() > TOKEN_BYTES_MAX {
            return Err(format!("the token has {} bytes, at most {TOKEN_BYTES_MAX} are taken", token.len()));
        }
        Ok(format!("{token}\n"))
    }
}

impl Explain {
    fn run(self) -> Result<Outcome, String> {
        let token = match &self.token_file {
            Some(file) => read(file, TOKEN_BYTES_MAX + 2)
                .map_err(|cause| format!("--token-file {}: {cause}", file.display()))?,
            None => read_from(&mut std::io::stdin().lock(), TOKEN_BYTES_MAX + 2)
                .map_err(|cause| format!("standard input: {cause}"))?,
        };
        let token = String::from_utf8_lossy(&token).trim().to_string();
        let keys = self.keys()?;
        let now_ms = unix_ms();
        let mut text = match peek(&token) {
            Ok((algorithm, kid, claims)) => told(algorithm, kid.as_deref(), &claims, now_ms),
            Err(_) => String::new(),
        };
        let verdict = match (verify(&token, &keys, now_ms), keys.is_configured()) {
            (_, false) => {
                let unread = peek(&token).err();
                match unread {
                    Some(refused) => format!("refused: {refused}"),
                    None => {
                        text.push_str(
                            "verdict    not checked: name keys with --auth-jwks or --auth-hs256-file\n",
                        );
                        return Ok(Outcome::Done(text));
                    }
                }
            }
            (Ok(_), true) => {
                text.push_str("verdict    taken\n");
                return Ok(Outcome::Done(text));
            }
            (Err(refused), true) => format!("refused: {refused}"),
        };
        Ok(Outcome::Refused(format!("{text}verdict    {verdict}\n")))
    }

    fn keys(&self) -> Result<Keys, String> {
        let jwks = self.auth_jwks.as_ref().map(|file| {
            let set = read(file, JWKS_BYTES_MAX)
                .and_then(|bytes| KeySet::read(&bytes, true).map_err(|error| error.to_string()));
            set.map_err(|cause| format!("--auth-jwks {}: {cause}", file.display()))
        });
        let hs256 = self.auth_hs256_file.as_ref().map(|file| {
            let key = read(file, KEY_BYTES_MAX)
                .and_then(|bytes| Key::from_secret(&bytes).map_err(|error| error.to_string()));
            key.map(KeySet::of).map_err(|cause| format!("--auth-hs256-file {}: {cause}", file.display()))
        });
        let sets = [jwks.transpose()?, hs256.transpose()?];
        let keys = Keys::new(sets.iter().flatten().map(Some));
        Ok(keys.naming(self.auth_issuer.as_deref(), self.auth_audience.as_deref()))
    }
}

/// What a token says of itself, a line each.
fn told(algorithm: &str, kid: Option<&str>, claims: &Claims, now_ms: u64) -> String {
    let mut lines = vec![("alg", algorithm.to_string())];
    lines.extend(kid.map(|kid| ("kid", kid.to_string())));
    lines.extend(claims.issuer.as_deref().map(|name| ("issuer", name.to_string())));
    if !claims.audience.is_empty() {
        lines.push(("audience", claims.audience.join(", ")));
    }
    lines.extend(claims.subject.as_deref().map(|name| ("subject", name.to_string())));
    lines.extend(claims.begins_ms.map(|ms| ("begins", moment(ms, now_ms))));
    lines.push(("expires", claims.expires_ms.map_or("never".to_string(), |ms| moment(ms, now_ms))));
    lines.push(("subscribe", listed(&claims.subscribe)));
    lines.push(("publish", listed(&claims.publish)));
    lines.iter().fold(String::new(), |mut text, (label, value)| {
        let value: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        writeln!(text, "{label:10} {value}").expect("a string takes every write");
        text
    })
}

/// A date, and how far it is from now.
fn moment(ms: u64, now_ms: u64) -> String {
    let date = SystemTime::UNIX_EPOCH + Duration::from_millis(ms);
    let far = Age(ms.abs_diff(now_ms) / 1_000 * 1_000);
    let date = httpdate::fmt_http_date(date);
    if ms > now_ms { format!("{date}, in {far}") } else { format!("{date}, {far} ago") }
}

fn listed(patterns: &[Pattern]) -> String {
    match patterns {
        [] => "nothing".to_string(),
        some => some.iter().map(Pattern::to_string).collect::<Vec<_>>().join(", "),
    }
}

fn read(file: &Path, bytes_max: usize) -> Result<Vec<u8>, String> {
    let mut file = std::fs::File::open(file).map_err(|error| error.to_string())?;
    read_from(&mut file, bytes_max)
}

fn read_from(source: &mut dyn Read, bytes_max: usize) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = source.take(bytes_max as u64 + 1).read_to_end(&mut bytes);
    match read {
        Err(error) => Err(error.to_string()),
        Ok(_) if bytes.len() > bytes_max => Err(format!("more than {bytes_max} bytes")),
        Ok(_) => Ok(bytes),
    }
}

fn pattern(text: &str) -> Result<Pattern, String> {
    text.trim().parse().map_err(|error: PatternError| error.to_string())
}
