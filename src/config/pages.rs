//! The flags about pages in browsers: whose may subscribe, publish and read.

use super::{PageRules, SseRefusals};
use crate::wire::http::{Origin, OriginError, Origins, Subprotocols, is_host, is_subprotocol};

/// What a flag about pages says that it may not. Names the flag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// A word for all or no origins stands beside others.
    #[error("--cors-origin: `*` and `none` each stand alone")]
    OriginsBesideWord,
    /// Text that is no origin, of pages that may subscribe.
    #[error("--cors-origin `{text}`: {error}, * or none")]
    CorsOrigin {
        /// As it was given.
        text: String,
        /// What is wrong with it.
        error: OriginError,
    },
    /// Text that is no origin, of pages that may use the control plane.
    #[error("--control-origin `{text}`: {error}")]
    ControlOrigin {
        /// As it was given.
        text: String,
        /// What is wrong with it.
        error: OriginError,
    },
    /// `none` stands beside names.
    #[error("--ws-subprotocols: `none` stands alone")]
    SubprotocolsBesideNone,
    /// A name that the server uses itself.
    #[error("--ws-subprotocols `{0}`: names that begin with fanwave. are the server's own")]
    OwnSubprotocol(String),
    /// Text that is no name of a subprotocol (RFC 6455 §4.1).
    #[error("--ws-subprotocols `{0}`: a name is 1 to 64 letters, digits or !#$%&'*+-.^_`|~")]
    Subprotocol(String),
    /// The playground is for pages of loopback, and others are named.
    #[error(
        "--playground and --cors-origin contradict each other: the playground lets pages of localhost \
         and of loopback addresses in, and no others; leave one out"
    )]
    PlaygroundBesideOrigins,
    /// Text that is no name of a host.
    #[error("--control-host `{0}`: write a name such as fanwave.internal, without a port")]
    Host(String),
}

/// The flags of [`PageRules`].
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Pages")]
pub(super) struct PageFlags {
    /// Whose pages may subscribe, besides our own: a list of origins, * for all, none; binds
    /// WebSockets too
    #[arg(long, value_name = "LIST|*|none", value_delimiter = ',', default_value = "*")]
    cors_origin: Vec<String>,
    /// WebSocket subprotocols that are given back where a client offers them: a list, or none
    /// [default: all]
    #[arg(long, value_name = "LIST|none", value_delimiter = ',')]
    ws_subprotocols: Vec<String>,
    /// What an event stream gets that cannot come in now: an empty stream, after which a browser
    /// comes back, or the status, which ends an EventSource for good
    #[arg(long, value_name = "retry|status", value_enum, default_value = "retry")]
    #[arg(hide_possible_values = true)]
    refuse_sse_with: SseRefusals,
    /// Whose pages may use the control plane, besides its own
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    control_origin: Vec<String>,
    /// Names under which the control plane may be asked, besides localhost and IP addresses
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    control_host: Vec<String>,
    /// To try it here: clients may publish to play/**, and --listen answers only pages of localhost
    /// and of loopback addresses
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true)]
    #[arg(default_value = "false", default_missing_value = "true", hide_possible_values = true)]
    #[arg(action = clap::ArgAction::Set)]
    playground: bool,
}

impl PageFlags {
    /// Checked.
    pub(super) fn rules(self) -> Result<PageRules, PageError> {
        let [cors_origin, subprotocols, control_origin, control_host] =
            [self.cors_origin, self.ws_subprotocols, self.control_origin, self.control_host].map(trimmed);
        let origins = origins(&cors_origin)?;
        if self.playground && origins != Origins::Any {
            return Err(PageError::PlaygroundBesideOrigins);
        }
        Ok(PageRules {
            origins,
            playground: self.playground,
            subprotocols: match subprotocols.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
                [] => Subprotocols::Any,
                ["none"] => Subprotocols::Only(Vec::new()),
                _ => Subprotocols::Only(each(subprotocols, subprotocol)?),
            },
            sse_refusals: self.refuse_sse_with,
            control_origins: each(control_origin, control_origin_of)?,
            control_hosts: each(control_host, host)?,
        })
    }
}

fn trimmed(list: Vec<String>) -> Vec<String> {
    list.iter().map(|text| text.trim().to_string()).collect()
}

fn each<T>(list: Vec<String>, check: impl Fn(String) -> Result<T, PageError>) -> Result<Vec<T>, PageError> {
    list.into_iter().map(check).collect()
}

fn origins(list: &[String]) -> Result<Origins, PageError> {
    match list.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["*"] => Ok(Origins::Any),
        ["none"] => Ok(Origins::None),
        several if several.contains(&"*") || several.contains(&"none") => Err(PageError::OriginsBesideWord),
        several => {
            several.iter().map(|text| cors_origin_of(text)).collect::<Result<_, _>>().map(Origins::These)
        }
    }
}

fn cors_origin_of(text: &str) -> Result<Origin, PageError> {
    text.parse().map_err(|error| PageError::CorsOrigin { text: text.to_string(), error })
}

fn control_origin_of(text: String) -> Result<Origin, PageError> {
    text.parse().map_err(|error| PageError::ControlOrigin { text, error })
}

fn subprotocol(name: String) -> Result<String, PageError> {
    match name.as_str() {
        "none" => Err(PageError::SubprotocolsBesideNone),
        known if known.starts_with("fanwave.") => Err(PageError::OwnSubprotocol(name)),
        known if is_subprotocol(known.as_bytes()) => Ok(name),
        _ => Err(PageError::Subprotocol(name)),
    }
}

fn host(name: String) -> Result<String, PageError> {
    if name.is_empty() || name.contains([':', '[']) || !is_host(name.as_bytes()) {
        return Err(PageError::Host(name));
    }
    Ok(name.strip_suffix('.').map(str::to_string).unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use super::super::flags::tests::config;
    use super::*;

    fn rules(args: &[&str], environment: &[(&str, &str)]) -> PageRules {
        config(args, environment).expect("valid").pages
    }

    #[test]
    fn origins_come_as_a_list_repeated_from_the_environment_or_as_a_word() {
        let these = Origins::These(
            ["https://a.example", "http://localhost:3000"]
                .map(|text| text.parse().expect("an origin"))
                .into(),
        );
        for args in [
            &["--cors-origin", "https://a.example,http://localhost:3000"][..],
            &["--cors-origin", "HTTPS://a.example:443, http://localhost:3000"],
            &["--cors-origin", "https://a.example", "--cors-origin=http://localhost:3000"],
        ] {
            assert_eq!(rules(args, &[]).origins, these, "{args:?}");
        }
        let variable = [("FANWAVE_CORS_ORIGIN", "https://a.example,http://localhost:3000")];
        assert_eq!(rules(&[], &variable).origins, these);
        assert_eq!(rules(&["--cors-origin", "none"], &variable).origins, Origins::None);
        assert_eq!(rules(&["--cors-origin", "*"], &variable).origins, Origins::Any);
    }

    #[test]
    fn subprotocols_and_names_of_the_control_plane_come_as_lists() {
        let args =
            ["--ws-subprotocols", "chat,v2.json", "--control-host", "Edge.internal.", "--control-host=b"];
        let rules = |args: &[&str]| rules(args, &[("FANWAVE_CONTROL_ORIGIN", "https://ops.example")]);
        let some = rules(&args);
        assert_eq!(some.subprotocols, Subprotocols::Only(vec!["chat".into(), "v2.json".into()]));
        assert_eq!(some.control_hosts, ["Edge.internal", "b"]);
        assert_eq!(some.control_origins, ["https://ops.example".parse().expect("an origin")]);
        assert_eq!(rules(&["--ws-subprotocols", "none"]).subprotocols, Subprotocols::Only(Vec::new()));
    }

    #[test]
    fn the_playground_opens_its_topics_and_lets_in_pages_of_loopback_alone() {
        for (args, environment) in
            [(&["--playground"][..], &[][..]), (&[], &[("FANWAVE_PLAYGROUND", "true")][..])]
        {
            let config = config(args, environment).expect("valid");
            assert_eq!(config.origins(), &Origins::Loopback);
            assert!(config.has_client_publishers());
            for (topic, open) in
                [("play/chat", true), ("play/", true), ("play", false), ("player/a", false), ("news", false)]
            {
                assert_eq!(config.lets_clients_publish(topic), open, "{topic}");
            }
        }
        let config = config(&["--playground=false"], &[]).expect("valid");
        assert_eq!((config.origins(), config.has_client_publishers()), (&Origins::Any, false));
        for origins in ["none", "https://a.example"] {
            let error = super::super::flags::tests::config(&["--playground", "--cors-origin", origins], &[]);
            let error = error.expect_err("they contradict each other");
            assert!(error.starts_with("--playground and --cors-origin contradict each other"), "{error}");
        }
    }

    #[test]
    fn what_is_no_origin_no_name_and_no_host_is_refused_by_flag() {
        for (args, part) in [
            (["--cors-origin", "*,https://a"], "each stand alone"),
            (["--cors-origin", "https://a,none"], "each stand alone"),
            (["--cors-origin", "https://a/"], "without a path, * or none"),
            (["--cors-origin", "null"], "`null`"),
            (["--control-origin", "*"], "`*`: write an origin"),
            (["--ws-subprotocols", "a b"], "`a b`"),
            (["--ws-subprotocols", "none,a"], "stands alone"),
            (["--ws-subprotocols", "fanwave.v1.json"], "the server's own"),
            (["--control-host", "h:80"], "without a port"),
            (["--control-host", "u@h"], "`u@h`"),
            (["--control-host", ""], "``"),
        ] {
            let error = config(&args, &[]).expect_err("no such rule");
            assert!(error.starts_with(args[0]) && error.contains(part), "no {part:?} in {error:?}");
        }
    }
}
