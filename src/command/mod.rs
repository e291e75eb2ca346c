//! The commands of `fanwave` as types, and the parser that reads them.
//!
//! This room stands above the server's flags (`config::flags`) and those of the clients, so that
//! neither needs to know the other. [`sources`] reads the file and the environment as well.

use clap::CommandFactory;

use crate::client::{publish, tail};
use crate::config::flags::{ServeFlags, bounds};

pub mod check_config;
pub mod sources;
pub mod token;

/// Publish once, every subscriber gets it: Server-Sent Events and WebSocket
#[derive(Debug, clap::Parser)]
#[command(
    name = "fanwave",
    version,
    after_help = "Without a command fanwave serves: see `fanwave serve --help`."
)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Run the server; also what no command does
    #[command(after_help = SERVE_HELP)]
    Serve(Box<ServeFlags>),
    /// Publish one event, or one per line of standard input
    #[command(after_help = CLIENT_HELP)]
    Publish(publish::Options),
    /// Check a configuration file without the environment, and tell what its rules say
    CheckConfig(check_config::Options),
    /// Make tokens for trying, and explain them
    Token(token::Options),
    /// Print the events of an SSE or WebSocket address and follow its reconnects
    #[command(after_help = CLIENT_HELP)]
    Tail(tail::Options),
}

const CLIENT_HELP: &str = "\
Ends with 0 when all is done, with 1 where the server refuses or cannot be reached, with 2 for a wrong command
line. One line on standard error says why.";

const SERVE_HELP: &str = "\
Every flag is also an environment variable (FANWAVE_WINDOW_EVENTS_MAX) and a key of the --config file
(window_events_max = 4096). A flag is stronger than the environment, the environment than the file.
An empty variable counts as unset; FANWAVE_* names that are no flags are ignored, and told in the log.
BYTES are written as 65536, 64KiB, 8MiB or 1GiB, in the file with quotes (window_bytes_max = \"16MiB\");
MS are whole milliseconds.
Several addresses of --listen or --control are written with commas in the environment, and in the file as an
array (listen = [\"0.0.0.0:8080\", \"[::]:8080\"]). [::] is IPv6 alone; 0.0.0.0 beside it takes IPv4.
localhost:8080 is 127.0.0.1:8080.
Only heartbeats find idle peers that have vanished, so a large --heartbeat-ms leaves their connections open as
long. A connection also ends when its peer acknowledges no data for --stall-ms-max and 5 s more (TCP_USER_TIMEOUT).";

/// The parser; the help of each limit tells its bounds.
fn parser() -> clap::Command {
    let bounds = bounds();
    let with_bounds = |flag: clap::Arg| match flag.get_long().and_then(|name| bounds.get(name)) {
        Some(bounds) => {
            let help = flag.get_help().map(ToString::to_string).unwrap_or_default();
            flag.help(format!("{help} {bounds}"))
        }
        None => flag,
    };
    CommandLine::command().mut_subcommand("serve", |serve| {
        serve.mut_args(with_bounds).args(FLAGS_OF_OTHERS.map(flag_of_others))
    })
}

/// Flags that other servers have, and that stand in people's fingers.
const FLAGS_OF_OTHERS: [&str; 5] = ["port", "host", "bind", "address", "addr"];

/// A flag that only says what ours is called.
fn flag_of_others(name: &'static str) -> clap::Arg {
    let told = move |_: &str| -> Result<String, String> {
        Err(format!(
            "there is no --{name}; write --listen IP:PORT for subscribers and --control IP:PORT for publishers, \
             for example --listen 0.0.0.0:8080"
        ))
    };
    let flag = clap::Arg::new(name).long(name).hide(true);
    flag.num_args(0..=1).default_missing_value("").value_parser(told)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::ffi::OsString;

    use super::sources::{SourceError, parse};
    use super::*;

    /// What `fanwave` followed by `args` parses to.
    pub fn parse_with(args: &[&str], environment: &[(&str, &str)]) -> Result<Command, SourceError> {
        let args = std::iter::once("fanwave").chain(args.iter().copied()).map(OsString::from);
        parse(args, |name| {
            environment.iter().find(|(other, _)| *other == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn the_parser_is_consistent() {
        parser().debug_assert();
    }
}
