//! A server of the user's own, which runs already: named by the URLs to subscribe at and a way to
//! publish.
//!
//! A URL may hold `{topic}`, in whose place the name of a topic stands. Such a server
//! is measured at its plain port.

use std::fs;
use std::net::{SocketAddr, ToSocketAddrs};

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;

use super::pinned_to;
use crate::framing::Dialect;
use crate::target::Target;
use crate::way::Way;

/// A server of the user's own.
#[derive(Debug, Clone, Default, Args)]
pub struct CustomArgs {
    /// Measure a server that runs already: where to get its events as Server-Sent Events, for
    /// example http://127.0.0.1:3000/events/{topic}
    #[arg(long, value_name = "URL")]
    pub subscribe_sse: Option<String>,
    /// The same as WebSocket, ws://…; nats+ws://HOST:PORT/{topic} for the NATS client protocol in
    /// it
    #[arg(long, value_name = "URL")]
    pub subscribe_ws: Option<String>,
    /// Where to publish to it: http://… (one POST per event, the body is the data), ws://… (one
    /// message per event) or nats://HOST:PORT/SUBJECT
    #[arg(long, value_name = "URL")]
    pub publish_to: Option<String>,
    /// A command for `sh -c` that publishes to it: it gets the data of one event per line on its
    /// standard input
    #[arg(long, value_name = "COMMAND", conflicts_with = "publish_to")]
    pub publish_command: Option<String>,
    /// A process of that server, whose CPU and memory are measured; repeatable
    #[arg(long = "pid", value_name = "PID", value_delimiter = ',')]
    pub pids: Vec<u32>,
    /// What to call that server
    #[arg(long, value_name = "NAME", default_value = "custom")]
    pub server_name: String,
}

/// A URL taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Url {
    scheme: String,
    host: String,
    port: u16,
    /// Path and query, `/` at least.
    path: String,
}

impl CustomArgs {
    /// True if any of it was given.
    pub fn is_given(&self) -> bool {
        self.subscribe_sse.is_some()
            || self.subscribe_ws.is_some()
            || self.publish_to.is_some()
            || self.publish_command.is_some()
            || !self.pids.is_empty()
    }

    /// The server that is meant.
    pub fn target(&self) -> Result<Target> {
        let sse =
            self.subscribe_sse.as_deref().map(|url| parse("--subscribe-sse", url, &["http"])).transpose()?;
        let ws = self
            .subscribe_ws
            .as_deref()
            .map(|url| parse("--subscribe-ws", url, &["ws", "nats+ws"]))
            .transpose()?;
        let Some(either) = sse.as_ref().or(ws.as_ref()) else {
            bail!("a server of your own needs --subscribe-sse URL or --subscribe-ws URL, or both");
        };
        if let (Some(sse), Some(ws)) = (&sse, &ws)
            && (&sse.host, sse.port) != (&ws.host, ws.port)
        {
            bail!(
                "--subscribe-sse and --subscribe-ws name different servers: give them the same host and port"
            );
        }
        let subscribe = look_up(either)?;
        let (publish, way, publish_path) = self.publishing(subscribe)?;
        let dialect = match &ws {
            Some(url) if url.scheme == "nats+ws" => Dialect::Nats,
            _ => Dialect::Plain,
        };
        Ok(Target {
            name: self.server_name.clone(),
            version: "version not known".into(),
            pids: self.pids.clone(),
            cpus: cpus_of(&self.pids)?,
            subscribe,
            tls: None,
            h2_streams: None,
            secret: None,
            clients: subscribe,
            sse_path: sse.map(|url| url.path),
            ws_path: ws.map(|url| url.path),
            dialect,
            publish,
            way,
            publish_path,
        })
    }

    /// Where, how and under which path, subject or command to publish. A command needs no address.
    fn publishing(&self, subscribe: SocketAddr) -> Result<(SocketAddr, Way, String)> {
        if let Some(command) = &self.publish_command {
            if command.trim().is_empty() {
                bail!("--publish-command is empty: give a command that reads one event per line");
            }
            return Ok((subscribe, Way::Command, command.clone()));
        }
        let Some(url) = &self.publish_to else {
            bail!("a server of your own needs --publish-to URL or --publish-command COMMAND");
        };
        let url = parse("--publish-to", url, &["http", "ws", "nats"])?;
        let address = look_up(&url)?;
        Ok(match url.scheme.as_str() {
            "http" => (address, Way::Post, url.path),
            "ws" => (address, Way::WebSocket, url.path),
            _ => {
                let subject = url.path.trim_start_matches('/');
                (address, Way::Nats, if subject.is_empty() { "{topic}".into() } else { subject.into() })
            }
        })
    }
}

/// Takes `SCHEME://HOST[:PORT][/PATH]` apart; `option` is what errors name.
fn parse(option: &str, text: &str, schemes: &[&str]) -> Result<Url> {
    let wanted = schemes.iter().map(|scheme| format!("{scheme}://")).collect::<Vec<_>>().join(", ");
    let (scheme, rest) = text
        .split_once("://")
        .ok_or_else(|| anyhow!("{option} {text:?} is no URL: it begins with one of {wanted}"))?;
    if ["https", "wss", "tls", "nats+wss"].contains(&scheme) {
        bail!(
            "{option} {text:?}: TLS is spoken to servers that are started here (--tls) alone; name the server's plain port with one of {wanted}"
        );
    }
    if !schemes.contains(&scheme) {
        bail!("{option} {text:?}: {scheme}:// is not among {wanted}");
    }
    let (authority, path) = match rest.find(['/', '?']) {
        Some(at) if rest[at..].starts_with('?') => (&rest[..at], format!("/{}", &rest[at..])),
        Some(at) => (&rest[..at], rest[at..].to_owned()),
        None => (rest, "/".to_owned()),
    };
    if path.contains(|c: char| c.is_ascii_whitespace() || c.is_control()) || path.contains('#') {
        bail!("{option} {text:?}: a path has no spaces and no fragment; write them as percent escapes");
    }
    let default_port = if scheme == "nats" { 4_222 } else { 80 };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            (host, port.parse().map_err(|_| anyhow!("{option} {text:?}: {port:?} is no port"))?)
        }
        _ => (authority, default_port),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if host.is_empty() || host.contains('@') {
        bail!("{option} {text:?}: a host must follow ://, without a user name");
    }
    Ok(Url { scheme: scheme.into(), host: host.into(), port, path })
}

/// The first address of the URL's host, IPv4 before IPv6.
fn look_up(url: &Url) -> Result<SocketAddr> {
    let (host, port) = (url.host.as_str(), url.port);
    let mut found: Vec<SocketAddr> =
        (host, port).to_socket_addrs().with_context(|| format!("looking up the host {host:?}"))?.collect();
    found.sort_by_key(SocketAddr::is_ipv6);
    found.first().copied().with_context(|| format!("the host {host:?} has no address"))
}

/// The CPUs that all of these processes are pinned to, if they are.
fn cpus_of(pids: &[u32]) -> Result<Vec<usize>> {
    let mut cpus = Vec::new();
    for pid in pids {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))
            .with_context(|| format!("--pid {pid}: there is no such process on this machine"))?;
        let list = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
            .with_context(|| format!("--pid {pid}: the kernel does not tell its CPUs"))?;
        let allowed = pinned_to(&cpu_list(list));
        if allowed.is_empty() {
            return Ok(Vec::new());
        }
        cpus.extend(allowed);
    }
    cpus.sort_unstable();
    cpus.dedup();
    Ok(cpus)
}

/// The numbers in a list such as `0-3,7`.
fn cpu_list(text: &str) -> Vec<usize> {
    text.trim()
        .split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse().ok()?..=last.parse().ok()?)
        })
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(scheme: &str, host: &str, port: u16, path: &str) -> Url {
        Url { scheme: scheme.into(), host: host.into(), port, path: path.into() }
    }

    #[test]
    fn urls_are_taken_apart_with_their_default_ports() {
        let all = ["http", "ws", "nats", "nats+ws"];
        for (text, expected) in [
            ("http://a/b/{topic}?c=d", url("http", "a", 80, "/b/{topic}?c=d")),
            ("ws://127.0.0.1:9000", url("ws", "127.0.0.1", 9_000, "/")),
            ("http://[::1]:81/x", url("http", "::1", 81, "/x")),
            ("http://[::1]/x", url("http", "::1", 80, "/x")),
            ("nats://h", url("nats", "h", 4_222, "/")),
            ("nats+ws://h:1/{topic}", url("nats+ws", "h", 1, "/{topic}")),
            ("http://h?topic={topic}", url("http", "h", 80, "/?topic={topic}")),
        ] {
            assert_eq!(parse("--x", text, &all).expect(text), expected);
        }
    }

    #[test]
    fn a_url_that_cannot_be_used_is_told_with_its_option_and_the_remedy() {
        for (text, word) in [
            ("127.0.0.1:80", "http://"),
            ("https://h/", "plain port"),
            ("gopher://h/", "http://"),
            ("http:///x", "host"),
            ("http://h:99999/", "port"),
            ("http://u@h/", "user name"),
            ("http://h/a b", "percent"),
        ] {
            let error = parse("--subscribe-sse", text, &["http"]).expect_err(text).to_string();
            assert!(error.contains("--subscribe-sse") && error.contains(word), "{error}");
        }
    }

    fn args() -> CustomArgs {
        CustomArgs {
            subscribe_sse: Some("http://127.0.0.1:1/e/{topic}".into()),
            publish_to: Some("http://127.0.0.1:2/p".into()),
            ..CustomArgs::default()
        }
    }

    #[test]
    fn the_way_of_publishing_follows_from_the_url() {
        let way = |publish: &str| {
            let target =
                CustomArgs { publish_to: Some(publish.into()), ..args() }.target().expect("complete");
            (target.way, target.publish_path, target.publish.port())
        };
        assert_eq!(way("http://127.0.0.1:2/p"), (Way::Post, "/p".into(), 2));
        assert_eq!(way("ws://127.0.0.1:3/w"), (Way::WebSocket, "/w".into(), 3));
        assert_eq!(way("nats://127.0.0.1"), (Way::Nats, "{topic}".into(), 4_222));
        assert_eq!(way("nats://127.0.0.1/a.{topic}"), (Way::Nats, "a.{topic}".into(), 4_222));
        let command =
            CustomArgs { publish_to: None, publish_command: Some("publish {topic}".into()), ..args() };
        let target = command.target().expect("complete");
        assert_eq!((target.way, target.publish_path.as_str()), (Way::Command, "publish {topic}"));
    }

    #[test]
    fn what_is_missing_or_contradicts_itself_is_told() {
        let error = |args: CustomArgs| args.target().expect_err("incomplete").to_string();
        assert!(error(CustomArgs { subscribe_sse: None, ..args() }).contains("--subscribe-ws"));
        assert!(error(CustomArgs { publish_to: None, ..args() }).contains("--publish-command"));
        let elsewhere = Some("ws://127.0.0.1:9/".into());
        assert!(error(CustomArgs { subscribe_ws: elsewhere, ..args() }).contains("the same host"));
        assert!(error(CustomArgs { pids: vec![u32::MAX], ..args() }).contains("--pid"));
        let empty = CustomArgs { publish_to: None, publish_command: Some(" ".into()), ..args() };
        assert!(error(empty).contains("--publish-command"));
    }

    #[test]
    fn lists_of_cpus_are_read() {
        assert_eq!(cpu_list("\t0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(cpu_list("3"), [3]);
        assert!(cpu_list("").is_empty());
    }
}
