//! What a running server takes from a new configuration, and what needs a restart.
//!
//! Every setting stands in one of two lists. What is taken is read anew at each use, by hub and
//! shards, so that nobody has to be disconnected. All else was built into tables, windows, sockets
//! or threads at the start. A new setting does not compile until it is in one of the lists.

use super::{Config, ControlRules, Limits, PageRules, TokenRules};

/// A configuration after a reload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reloaded {
    /// The one that is valid from now on.
    pub config: Config,
    /// Flags with another value now.
    pub changed: Vec<&'static str>,
    /// Flags that keep their value until the next start.
    pub needs_restart: Vec<&'static str>,
}

impl Reloaded {
    fn takes<T: PartialEq>(&mut self, flag: &'static str, field: fn(&mut Config) -> &mut T, value: T) {
        let field = field(&mut self.config);
        if *field != value {
            *field = value;
            self.changed.push(flag);
        }
    }

    fn keeps<T: PartialEq>(&mut self, flag: &'static str, field: &T, value: T) {
        if *field != value {
            self.needs_restart.push(flag);
        }
    }
}

impl Config {
    /// This configuration with what it can take from `new`.
    pub fn reloaded(&self, new: Config) -> Reloaded {
        let mut to = Reloaded { config: self.clone(), changed: Vec::new(), needs_restart: Vec::new() };
        let Config {
            listen,
            listen_tls,
            tls,
            acme,
            proxy_protocol,
            control,
            control_tls,
            control_rules: ControlRules { token, open },
            tokens,
            nats,
            relay,
            shard_cpus,
            pages,
            client_publish,
            slow,
            egress,
            sockets,
            diagnostic_echo,
            log,
            log_format,
            access_log,
            upgrade_socket,
            memory_max,
            store,
            limits,
            rules,
        } = new;
        let PageRules { origins, subprotocols, sse_refusals, control_origins, control_hosts, playground } =
            pages;
        to.takes("control-token-file", |config| &mut config.control_rules.token, token);
        to.takes("control-open", |config| &mut config.control_rules.open, open);
        self.reload_tokens(&mut to, tokens);
        to.takes("cors-origin", |config| &mut config.pages.origins, origins);
        to.takes("ws-subprotocols", |config| &mut config.pages.subprotocols, subprotocols);
        to.takes("refuse-sse-with", |config| &mut config.pages.sse_refusals, sse_refusals);
        to.takes("control-origin", |config| &mut config.pages.control_origins, control_origins);
        to.takes("control-host", |config| &mut config.pages.control_hosts, control_hosts);
        to.takes("diagnostic-echo", |config| &mut config.diagnostic_echo, diagnostic_echo);
        to.takes("log", |config| &mut config.log, log);
        to.takes("memory-max", |config| &mut config.memory_max, memory_max);
        to.keeps("data, --fsync, --data-bytes-max and --data-age-max", &self.store, store);
        to.keeps("listen", &self.listen, listen);
        to.takes("tls-cert, --tls-key and --tls-client-ca", |config| &mut config.tls, tls);
        to.keeps("acme and its flags", &self.acme, acme);
        to.keeps("listen-tls", &self.listen_tls, listen_tls);
        to.keeps("proxy-protocol", &self.proxy_protocol, proxy_protocol);
        to.keeps("control", &self.control, control);
        to.keeps("control-tls", &self.control_tls, control_tls);
        to.keeps("source and --nats-*", &self.nats, nats);
        to.keeps("source and --relay-*", &self.relay, relay);
        to.keeps("shards and --cpus", &self.shard_cpus, shard_cpus);
        to.keeps("client-publish", &self.client_publish, client_publish);
        to.keeps("playground", &self.pages.playground, playground);
        to.keeps("egress", &self.egress, egress);
        to.keeps("log-format", &self.log_format, log_format);
        to.keeps("access-log", &self.access_log, access_log);
        to.keeps("upgrade-socket", &self.upgrade_socket, upgrade_socket);
        to.keeps("sockets", &self.sockets, sockets);
        to.keeps("slow", &self.slow, slow);
        // Among other things: subscribers of a public topic have no token, and would stay.
        to.keeps("rule", &self.rules, rules);
        self.reload_limits(&mut to, limits);
        to
    }

    /// Whether tokens are needed at all is settled at the start: subscribers that came without
    /// would stay.
    fn reload_tokens(&self, to: &mut Reloaded, new: TokenRules) {
        let both_need_them = self.tokens.is_configured() && new.is_configured();
        let TokenRules { jwks, hs256, issuer, audience, cookie } = new;
        if both_need_them {
            to.takes("auth-jwks", |config| &mut config.tokens.jwks, jwks);
            to.takes("auth-hs256-file", |config| &mut config.tokens.hs256, hs256);
            to.takes("auth-issuer", |config| &mut config.tokens.issuer, issuer);
            to.takes("auth-audience", |config| &mut config.tokens.audience, audience);
            to.takes("auth-cookie", |config| &mut config.tokens.cookie, cookie);
        } else {
            to.keeps("auth-jwks", &self.tokens.jwks, jwks);
            to.keeps("auth-hs256-file", &self.tokens.hs256, hs256);
            to.keeps("auth-issuer", &self.tokens.issuer, issuer);
            to.keeps("auth-audience", &self.tokens.audience, audience);
            to.keeps("auth-cookie", &self.tokens.cookie, cookie);
        }
    }

    fn reload_limits(&self, to: &mut Reloaded, new: Limits) {
        let old = &self.limits;
        macro_rules! sorted {
            (takes $($taken:ident)+; keeps $($kept:ident)+;) => {
                let Limits { $($taken,)+ $($kept,)+ } = new;
                $(to.takes(flag(stringify!($taken)), |config| &mut config.limits.$taken, $taken);)+
                $(to.keeps(flag(stringify!($kept)), &old.$kept, $kept);)+
            };
        }
        sorted! {
            takes
                handshakes_per_second_max handshake_bytes_max handshake_ms_max topics_per_connection_max
                message_in_bytes_max pinned_bytes_max zero_copy_bytes_min heartbeat_ms drain_ms_max
                backfill_bytes_per_second backfills_per_shard_max;
            keeps
                connections_per_shard_max connections_per_address_max topics_max message_bytes_max
                window_events_max window_bytes_max window_ms_max window_bytes_total_max
                hub_queue_events_max hub_queue_bytes_max shard_queue_batches_max send_bytes_max
                stall_ms_max h2_streams_max;
        }
    }
}

/// A field's name as its flag: every limit has one.
fn flag(field: &'static str) -> &'static str {
    let limits = Limits::default();
    let bounded = limits.minima().map(|(name, ..)| name);
    let all = bounded.into_iter().chain(limits.maxima().map(|(name, ..)| name));
    all.into_iter().find(|name| name.replace('-', "_") == field).unwrap_or(field)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_change_does_and_the_rest_is_named() {
        let old = Config::default();
        let mut new = Config { log: "debug".into(), shard_cpus: vec![0, 0], ..Config::default() };
        new.limits.heartbeat_ms = 2_000;
        new.limits.topics_max = 5;
        new.pages.control_hosts = vec!["edge".into()];
        let reloaded = old.reloaded(new);
        assert_eq!(reloaded.changed, ["control-host", "log", "heartbeat-ms"]);
        assert_eq!(reloaded.needs_restart, ["shards and --cpus", "topics-max"]);
        let limits = Limits { heartbeat_ms: 2_000, ..Limits::default() };
        let mut expected = Config { log: "debug".into(), limits, ..Config::default() };
        expected.pages.control_hosts = vec!["edge".into()];
        assert_eq!(reloaded.config, expected);
    }

    #[test]
    fn nothing_new_changes_nothing() {
        let reloaded = Config::default().reloaded(Config::default());
        assert_eq!((reloaded.changed, reloaded.needs_restart), (vec![], vec![]));
    }
}
