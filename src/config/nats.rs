//! The flags about a source in NATS JetStream: which servers, which stream, which subjects.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::relay::is_relay;
use super::units::{Age, Size};

/// The port of nats-server where none is named.
const PORT: u16 = 4222;
/// Longest name of a stream, and longest prefix, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// Most servers that may be named; the others of a cluster are found by themselves.
const SERVERS_MAX: usize = 32;
/// Most subjects of [`Nats::core`].
const CORE_MAX: usize = 64;
/// Replicas that JetStream may keep.
const REPLICAS_MAX: usize = 5;

/// Where a cluster of NATS servers is, and who we are there.
#[derive(Clone, PartialEq, Eq)]
pub struct NatsServers {
    /// `HOST:PORT` of each, at least one.
    pub hosts: Vec<String>,
    /// Only by TLS.
    pub tls: bool,
    /// Who we are, if the address says it. Nobody prints it.
    pub login: Option<Login>,
}

/// Who we are, as an address says it.
#[derive(Clone, PartialEq, Eq)]
pub enum Login {
    /// A name and a password.
    User(String, String),
    /// A token.
    Token(String),
}

/// Names the servers alone, so that no password is printed.
impl fmt::Display for NatsServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "tls" } else { "nats" }, self.hosts.join(","))
    }
}

impl fmt::Debug for NatsServers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What text lacks to be [`NatsServers`]. None of these repeats what may be a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NatsServersError {
    /// Neither `nats://` nor `tls://` stands before it, or both do.
    #[error(
        "write local, or nats://HOST:PORT,HOST:PORT, or tls:// in place of nats://, or relay://HOST:PORT"
    )]
    Scheme,
    /// Something that is no `HOST:PORT`.
    #[error("server {0} of the list is no HOST or HOST:PORT")]
    Host(usize),
    /// More than 32.
    #[error("at most {SERVERS_MAX} servers may be named; the others of a cluster are found by themselves")]
    TooMany,
    /// An empty name or token, or two logins that differ.
    #[error(
        "write one USER:PASSWORD@ or TOKEN@ for all servers, percent-escaped, or better --nats-credentials FILE"
    )]
    Login,
}

impl FromStr for NatsServers {
    type Err = NatsServersError;

    fn from_str(text: &str) -> Result<NatsServers, NatsServersError> {
        let tls = match text.split_once("://") {
            Some(("nats", _)) => false,
            Some(("tls", _)) => true,
            _ => return Err(NatsServersError::Scheme),
        };
        let scheme = if tls { "tls://" } else { "nats://" };
        let (mut hosts, mut login) = (Vec::new(), None);
        for (number, server) in text.split(',').map(str::trim).enumerate() {
            let server = server.strip_prefix(scheme).unwrap_or(server);
            if server.contains("://") {
                return Err(NatsServersError::Scheme);
            }
            let (user, host) =
                server.rsplit_once('@').map_or((None, server), |(user, host)| (Some(user), host));
            if let Some(user) = user {
                let decoded = |text: &str| {
                    let text = percent_encoding::percent_decode_str(text).decode_utf8();
                    text.map(|text| text.into_owned()).map_err(|_| NatsServersError::Login)
                };
                let own = match user.split_once(':') {
                    Some((name, password)) => Login::User(decoded(name)?, decoded(password)?),
                    None => Login::Token(decoded(user)?),
                };
                let (Login::User(name, _) | Login::Token(name)) = &own;
                if name.is_empty() || login.as_ref().is_some_and(|other| *other != own) {
                    return Err(NatsServersError::Login);
                }
                login = Some(own);
            }
            hosts.push(host_and_port(host.trim_end_matches('/')).ok_or(NatsServersError::Host(number + 1))?);
        }
        if hosts.len() > SERVERS_MAX {
            return Err(NatsServersError::TooMany);
        }
        Ok(NatsServers { hosts, tls, login })
    }
}

fn host_and_port(text: &str) -> Option<String> {
    let authority: http::uri::Authority = text.parse().ok()?;
    if authority.host().is_empty() || text.contains('@') || text.ends_with(':') {
        return None;
    }
    // Without a port as a number `port` is nothing.
    match (authority.port_u16(), text.strip_prefix(authority.host())) {
        (Some(0), _) => None,
        (Some(port), _) => Some(format!("{}:{port}", authority.host())),
        (None, Some("")) => Some(format!("{}:{PORT}", authority.host())),
        (None, _) => None,
    }
}

/// A source in JetStream. What is `None` is left to the stream that exists, or to its default where
/// the stream is created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nats {
    /// The servers.
    pub servers: NatsServers,
    /// The stream's name.
    pub stream: String,
    /// What the subjects of topics begin with, without a dot at its end.
    pub prefix: String,
    /// A file with a JWT and a seed, as `nsc` makes it, or with the seed of an nkey.
    pub credentials: Option<PathBuf>,
    /// Who signs the servers' certificates, in PEM; else the system's.
    pub ca: Option<PathBuf>,
    /// Copies of the stream.
    pub replicas: Option<usize>,
    /// Age of the stream's oldest message in milliseconds; 0 for any.
    pub max_age_ms: Option<u64>,
    /// Bytes of the stream; 0 for any number.
    pub max_bytes: Option<u64>,
    /// Subjects outside of the stream that are heard too.
    pub core: Vec<String>,
}

impl Nats {
    /// The settings of a source without other flags.
    pub fn new(servers: NatsServers) -> Nats {
        Nats {
            servers,
            stream: "fanwave".into(),
            prefix: "fanwave".into(),
            credentials: None,
            ca: None,
            replicas: None,
            max_age_ms: None,
            max_bytes: None,
            core: Vec::new(),
        }
    }
}

/// What flags about NATS say together that they may not. Names the flag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NatsError {
    /// No source.
    #[error("--source: {0}")]
    Source(#[from] NatsServersError),
    /// A flag that has no meaning with another source.
    #[error("--{0} needs a source in NATS, such as --source nats://127.0.0.1:4222")]
    WithoutSource(&'static str),
    /// Two ways to say who we are.
    #[error("--nats-credentials is given, and --source says who we are; leave one of them out")]
    TwoLogins,
    /// More than 64 core subjects.
    #[error("--nats-core: at most {CORE_MAX} subjects may be heard; use * and >")]
    TooManyCore,
    /// A core subject that is heard by the stream already.
    #[error("--nats-core {0} overlaps with the subjects of the stream, {1}.>: its events would come twice")]
    CoreInStream(String, String),
}

/// Where events and their sequences come from, as it was written. It may hold a password, so it is
/// read where an error does not repeat it, and not by clap.
#[derive(Clone)]
struct SourceText(String);

impl FromStr for SourceText {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<SourceText, Self::Err> {
        Ok(SourceText(text.to_string()))
    }
}

impl fmt::Debug for SourceText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("source")
    }
}

impl SourceText {
    /// The servers, if it is neither this process nor a server of ours.
    fn servers(&self) -> Result<Option<NatsServers>, NatsServersError> {
        if self.0 == "local" || is_relay(&self.0) { Ok(None) } else { self.0.parse().map(Some) }
    }
}

/// The flags of [`Nats`].
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Source")]
pub(super) struct NatsFlags {
    /// Where events and their ids come from. local: this process; nats://HOST:PORT,HOST:PORT or
    /// tls://…: a stream of NATS JetStream, with the same ids on every node; relay://HOST:PORT or
    /// relays://…: another fanwave, which this one follows
    #[arg(long, value_name = "local|nats://HOST:PORT|relay://HOST:PORT", default_value = "local")]
    source: SourceText,
    /// JetStream stream that holds the events; it is created if it is missing [default: fanwave]
    #[arg(long, value_name = "NAME", value_parser = stream_name)]
    nats_stream: Option<String>,
    /// What the subjects of topics begin with: topic a/b is PREFIX.a.b [default: fanwave]
    #[arg(long, value_name = "PREFIX", value_parser = prefix)]
    nats_prefix: Option<String>,
    /// Credentials file for the NATS servers: a JWT and its seed, or the seed of an nkey alone
    #[arg(long, value_name = "FILE")]
    nats_credentials: Option<PathBuf>,
    /// Certificates of those who sign the NATS servers' certificates, in PEM [default: the system's]
    #[arg(long, value_name = "FILE")]
    nats_ca: Option<PathBuf>,
    /// Copies of the stream in the cluster, 1 to 5 [default: 3 in a cluster, else 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=REPLICAS_MAX as i64))]
    nats_replicas: Option<u8>,
    /// Age of the oldest event in the stream, for example 30m or 24h; 0s for any [default: 24h]
    #[arg(long, value_name = "AGE")]
    nats_max_age: Option<Age>,
    /// Bytes of the stream, beyond which the oldest events go; 0 for any number [default: 1GiB]
    #[arg(long, value_name = "BYTES")]
    nats_max_bytes: Option<Size>,
    /// Subjects outside of the stream whose messages one of the nodes publishes into it, at most once
    /// each; * for one token, > at the end for the rest
    #[arg(long, value_name = "SUBJECT", value_delimiter = ',', value_parser = core_subject)]
    nats_core: Vec<String>,
}

impl NatsFlags {
    /// The address of a server to follow, if the source is one.
    pub(super) fn relay(&self) -> Option<&str> {
        Some(self.source.0.as_str()).filter(|source| is_relay(source))
    }

    /// Checked; none without servers.
    pub(super) fn nats(self) -> Result<Option<Nats>, NatsError> {
        let Some(servers) = self.source.servers()? else {
            let given = [
                ("nats-stream", self.nats_stream.is_some()),
                ("nats-prefix", self.nats_prefix.is_some()),
                ("nats-credentials", self.nats_credentials.is_some()),
                ("nats-ca", self.nats_ca.is_some()),
                ("nats-replicas", self.nats_replicas.is_some()),
                ("nats-max-age", self.nats_max_age.is_some()),
                ("nats-max-bytes", self.nats_max_bytes.is_some()),
                ("nats-core", !self.nats_core.is_empty()),
            ];
            let first = given.into_iter().find(|(_, given)| *given);
            return first.map_or(Ok(None), |(flag, _)| Err(NatsError::WithoutSource(flag)));
        };
        if servers.login.is_some() && self.nats_credentials.is_some() {
            return Err(NatsError::TwoLogins);
        }
        let defaults = Nats::new(servers);
        let nats = Nats {
            stream: self.nats_stream.unwrap_or(defaults.stream),
            prefix: self.nats_prefix.unwrap_or(defaults.prefix),
            credentials: self.nats_credentials,
            ca: self.nats_ca,
            replicas: self.nats_replicas.map(usize::from),
            max_age_ms: self.nats_max_age.map(|ms| ms.0),
            max_bytes: self.nats_max_bytes.map(|bytes| bytes.0 as u64),
            core: self.nats_core,
            servers: defaults.servers,
        };
        if nats.core.len() > CORE_MAX {
            return Err(NatsError::TooManyCore);
        }
        let all = format!("{}.>", nats.prefix);
        if let Some(core) = nats.core.iter().find(|core| overlap(core, &all)) {
            return Err(NatsError::CoreInStream(core.clone(), nats.prefix));
        }
        Ok(Some(nats))
    }
}

fn is_plain(token: &str) -> bool {
    !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
}

fn stream_name(text: &str) -> Result<String, String> {
    let is_legal = text.len() <= NAME_BYTES_MAX && is_plain(text);
    is_legal.then(|| text.to_string()).ok_or_else(|| "write letters, digits, - and _, at most 64".to_string())
}

fn prefix(text: &str) -> Result<String, String> {
    let is_legal = text.len() <= NAME_BYTES_MAX && text.split('.').all(is_plain);
    is_legal.then(|| text.to_string()).ok_or_else(|| {
        "write tokens of letters, digits, - and _ with dots between, at most 64 bytes, such as acme.live"
            .into()
    })
}

/// A subject to hear: tokens without blanks and control characters, `*` and `>` as whole tokens.
fn core_subject(text: &str) -> Result<String, String> {
    let tokens: Vec<&str> = text.split('.').collect();
    let is_token = |(at, token): (usize, &&str)| match *token {
        "" => false,
        "*" => true,
        ">" => at + 1 == tokens.len(),
        token => !token.contains(|c: char| c == '*' || c == '>' || c.is_whitespace() || c.is_control()),
    };
    let is_ours = !tokens[0].starts_with(['$', '_', '*', '>']);
    let is_legal = text.len() <= 255 && is_ours && tokens.iter().enumerate().all(is_token);
    is_legal.then(|| text.to_string()).ok_or_else(|| {
        "write tokens with dots between, * for one token, > at the end for the rest; the first token is \
         a plain one"
            .into()
    })
}

/// True if some subject is in both filters.
pub fn overlap(one: &str, other: &str) -> bool {
    let (mut ones, mut others) = (one.split('.'), other.split('.'));
    loop {
        match (ones.next(), others.next()) {
            (None, None) => return true,
            (None, _) | (_, None) => return false,
            (Some(">"), _) | (_, Some(">")) => return true,
            (Some(a), Some(b)) if a == "*" || b == "*" || a == b => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_a_list_with_one_scheme_and_one_login() {
        let servers = |text: &str| text.parse::<NatsServers>().expect(text);
        assert_eq!(servers("nats://a").hosts, ["a:4222"]);
        let three = servers("nats://a:1, b:2,nats://[::1]:3");
        assert_eq!(
            (three.hosts.as_slice(), three.tls),
            (&["a:1".into(), "b:2".into(), "[::1]:3".into()][..], false)
        );
        let named = servers("tls://me:p%40ss@a,b");
        assert!(named.login == Some(Login::User("me".into(), "p@ss".into())));
        assert!(servers("nats://s%3Acret@a,b").login == Some(Login::Token("s:cret".into())));
        assert!(named.tls);
        for (text, error) in [
            ("a:4222", NatsServersError::Scheme),
            ("http://a", NatsServersError::Scheme),
            ("nats://a,tls://b", NatsServersError::Scheme),
            ("nats://", NatsServersError::Host(1)),
            ("nats://a,,b", NatsServersError::Host(2)),
            ("nats://a:x", NatsServersError::Host(1)),
            ("nats://a:0", NatsServersError::Host(1)),
            ("nats://a:", NatsServersError::Host(1)),
            ("nats://a b", NatsServersError::Host(1)),
            ("nats://a/b", NatsServersError::Host(1)),
            ("nats://@a", NatsServersError::Login),
            ("nats://x@a,y@b", NatsServersError::Login),
            ("nats://me:x@a,you:y@b", NatsServersError::Login),
            ("nats://:x@a", NatsServersError::Login),
            (&format!("nats://{}", ["a"; 33].join(",")), NatsServersError::TooMany),
        ] {
            assert_eq!(text.parse::<NatsServers>(), Err(error), "{text}");
        }
    }

    #[test]
    fn no_error_and_no_line_tells_a_password() {
        let servers: NatsServers = "nats://me:topsecret@a".parse().expect("servers");
        let settings = Nats::new(servers.clone());
        for text in [format!("{servers}"), format!("{servers:?}"), format!("{settings:?}")] {
            assert!(text.contains("a:4222") && !text.contains("topsecret"), "{text}");
        }
        let token = format!("{:?}", "nats://topsecret@a".parse::<NatsServers>().expect("servers"));
        assert!(token.contains("a:4222") && !token.contains("topsecret"), "{token}");
        for text in ["nats://me:topsecret@", "nats://topsecret@", "nats://me:topsecret@a,me:other@b"] {
            let error = text.parse::<NatsServers>().expect_err(text).to_string();
            assert!(!error.contains("topsecret"), "{error}");
        }
    }

    #[test]
    fn names_and_subjects_are_checked() {
        for name in ["fanwave", "a-b_C1"] {
            assert!(stream_name(name).is_ok() && prefix(name).is_ok(), "{name}");
        }
        assert!(prefix("acme.live").is_ok() && stream_name("acme.live").is_err());
        for text in ["", ".", "a.", ".a", "a..b", "a b", "a.*", ">", "$SYS", &"x".repeat(65)] {
            assert!(prefix(text).is_err() && stream_name(text).is_err(), "{text}");
        }
        for text in ["a", "a.b", "a.*", "a.*.b.>", "größe.>"] {
            assert!(core_subject(text).is_ok(), "{text}");
        }
        for text in ["", ">", "*", "*.a", "$SYS.>", "_INBOX.>", "a.>.b", "a.b*", "a..b", "a b", "a\tb"] {
            assert!(core_subject(text).is_err(), "{text}");
        }
    }

    #[test]
    fn filters_overlap_where_one_subject_is_in_both() {
        for (one, other, both) in [
            ("a.>", "a.b", true),
            ("a.*", "a.b.c", false),
            ("a.*", "*.b", true),
            ("a", "a.>", false),
            ("b.>", "a.>", false),
            ("*.x", "fanwave.>", true),
        ] {
            assert_eq!((overlap(one, other), overlap(other, one)), (both, both), "{one} {other}");
        }
    }
}
