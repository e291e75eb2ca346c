//! The `fanwave` command: flags, then config, then run, then exit code.
//!
//! Exit codes: 0 it did what it was told, 1 it could not, 2 it was told nonsense. Every error is
//! one line on standard error with its remedy; only a wrong command line is answered at length, by
//! clap.

use std::io::{self, Write};
use std::process::ExitCode;

use fanwave::client::{self, ClientError, publish, tail};
use fanwave::command::sources::{self, SourceError};
use fanwave::command::{Command, check_config, token};
use fanwave::config::Config;
use fanwave::config::flags::ServeFlags;
use fanwave::config::store::StoreFlagError;
use fanwave::serve::ServeError;
use fanwave::systemd::Passed;
use fanwave::{log, serve};

mod banner; // what `serve` prints once it runs

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const FAILURE: u8 = 1;
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let outcome = match sources::parse(std::env::args_os(), |name| std::env::var_os(name)) {
        Ok(Command::Serve(flags)) => run_server(*flags),
        Ok(Command::Publish(options)) => run_publish(options),
        Ok(Command::Tail(options)) => run_tail(options),
        Ok(Command::CheckConfig(options)) => check_config(&options),
        Ok(Command::Token(options)) => run_token(options),
        // Help and version end with 0, mistakes with 2.
        Err(SourceError::CommandLine(error)) => error.exit(),
        Err(error) => Err((USAGE, error.to_string())),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, line)) => {
            // Nobody is left to tell if standard error is gone.
            let _ = writeln!(io::stderr(), "fanwave: {line}");
            ExitCode::from(code)
        }
    }
}

/// What a command leaves: nothing, or an exit code with one line.
type Outcome = Result<(), (u8, String)>;

fn run_server(flags: ServeFlags) -> Outcome {
    log::start(flags.log(), flags.log_format(), flags.access_log());
    let outcome = serve_with(flags);
    log::flush();
    outcome
}

fn serve_with(mut flags: ServeFlags) -> Outcome {
    for line in sources::unknown_variables(std::env::vars_os()) {
        tracing::warn!("{line}");
    }
    let passed = Passed::from_environment().map_err(|line| (USAGE, line))?;
    let (mut listen, mut control) = (passed.data_addresses(), passed.control_addresses());
    let predecessor = match flags.upgrade() {
        None => None,
        Some(_) if !listen.is_empty() || !control.is_empty() => {
            let line = "with --upgrade the listeners are those of the process that runs; pass it no sockets";
            return Err((USAGE, line.to_string()));
        }
        Some(_) if flags.has_store() => return Err((USAGE, StoreFlagError::Upgrade.to_string())),
        Some((socket, address)) => {
            let met =
                serve::Predecessor::meet(socket, address).map_err(|error| (FAILURE, error.to_string()))?;
            (listen, control) = met.passed();
            Some(met)
        }
    };
    flags.take_over(listen.clone(), control.clone());
    let config = flags.config().map_err(|error| (USAGE, error.to_string()))?;
    let reread = move || {
        let command = sources::parse(std::env::args_os(), |name| std::env::var_os(name));
        let Command::Serve(mut flags) = command.map_err(|error| error.to_string())? else {
            return Err("the command is another one".to_string());
        };
        flags.take_over(listen.clone(), control.clone());
        flags.config().map_err(|error| error.to_string())
    };
    let adopt = |config: &Config| log::set_filter(&config.log, config.access_log);
    let operator = serve::Operator { reread: Box::new(reread), adopt: Box::new(adopt) };
    let (limits, slow) = (config.limits.clone(), config.slow);
    let program = std::env::args().next().unwrap_or_else(|| "fanwave".to_string());
    let started = |started: &serve::Started| {
        let text = banner::text(started, &limits, slow, &program);
        let mut out = io::stdout().lock();
        // A server whose standard output is closed still serves.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    };
    serve::run(config, passed, predecessor, operator, started).map_err(|error| match error {
        ServeError::Identity(error) => (USAGE, error.to_string()),
        error => (FAILURE, error.to_string()),
    })
}

fn run_publish(options: publish::Options) -> Outcome {
    let (mut out, mut notes) = (io::stdout(), io::stderr());
    outcome(client::block_on(async { publish::run(options, tokio::io::stdin(), &mut out, &mut notes).await }))
}

fn run_tail(options: tail::Options) -> Outcome {
    let (mut out, mut notes) = (io::stdout(), io::stderr());
    outcome(client::block_on(client::or_interrupted(tail::run(options, &mut out, &mut notes))))
}

fn check_config(options: &check_config::Options) -> Outcome {
    let text = check_config::run(options).map_err(|line| (USAGE, line))?;
    io::stdout().write_all(text.as_bytes()).map_err(|error| (FAILURE, error.to_string()))
}

fn run_token(options: token::Options) -> Outcome {
    let (text, verdict) = match token::run(options).map_err(|line| (USAGE, line))? {
        token::Outcome::Done(text) => (text, Ok(())),
        token::Outcome::Refused(text) => (text, Err((FAILURE, "the token is refused".to_string()))),
    };
    io::stdout().write_all(text.as_bytes()).map_err(|error| (FAILURE, error.to_string()))?;
    verdict
}

fn outcome(result: Result<(), ClientError>) -> Outcome {
    result.map_err(|error| match error {
        ClientError::Usage(line) => (USAGE, line),
        error => (FAILURE, error.to_string()),
    })
}
