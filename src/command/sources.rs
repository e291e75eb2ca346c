//! Where settings come from: the command line, the environment, the file.
//!
//! Strength: flag, environment, file, default. What the weaker sources say is put on the command
//! line wherever the user typed nothing, so that one parser with one set of types and messages
//! reads all of them. File and environment are each checked alone before they are put together, so
//! a message about a value names its source; one about what several flags mean together names these
//! flags.
//!
//! Not here: what the flags are (`config::flags`) and what they mean together
//! ([`ServeFlags::config`]).
//!
//! [`ServeFlags::config`]: crate::config::flags::ServeFlags::config

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::FromArgMatches;
use clap::parser::ValueSource;
use toml::de::{DeInteger, DeTable, DeValue};

use super::{Command, CommandLine, parser};
use crate::config::LimitError;
use crate::config::rules::{self, RuleError, RuleText};
use crate::config::units::nearest;

/// Why there is no command to run.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The command line asks for help or the version, or is wrong; clap knows how to say so.
    #[error("{0}")]
    CommandLine(#[from] clap::Error),
    /// The file cannot be read, or is no table of settings.
    #[error("--config {}: {error}", .path.display())]
    File {
        /// Where it is.
        path: PathBuf,
        /// What is wrong.
        error: FileError,
    },
    /// What the file or the environment says is wrong by itself.
    #[error("{place}: {error}")]
    Value {
        /// The file's path, or `environment`.
        place: String,
        /// What is wrong.
        error: ValueError,
    },
}

/// What is wrong with a file of settings.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error(transparent)]
    Unreadable(#[from] std::io::Error),
    /// It is no TOML.
    #[error("{}", one_line(&.0.to_string()))]
    NoToml(#[from] toml::de::Error),
    /// A key that is none of the flags.
    #[error("unknown key `{}`; the nearest one is `{nearest}`", .key.escape_debug())]
    UnknownKey {
        /// The key.
        key: String,
        /// One that there is.
        nearest: String,
    },
    /// A rule is wrong.
    #[error(transparent)]
    Rule(#[from] RuleError),
    /// A number that no flag takes.
    #[error("`{0}` is too large a number")]
    TooLarge(String),
    /// A key in both spellings.
    #[error("`{0}` is given twice")]
    Twice(String),
    /// A value of a type that no flag has.
    #[error("`{key}` is a {kind}; write a text, a whole number, true or false")]
    Kind {
        /// The key.
        key: String,
        /// TOML's name of the type.
        kind: &'static str,
    },
}

/// What is wrong with a setting.
#[derive(Debug, thiserror::Error)]
pub enum ValueError {
    /// The flag does not take it.
    #[error("{}", cause(.0))]
    Flag(clap::Error),
    /// It is out of the limit's bounds.
    #[error(transparent)]
    Limit(#[from] LimitError),
}

/// What the file or the environment says: the values of each flag, by its name in snake_case.
type Settings = BTreeMap<String, Vec<OsString>>;

/// Reads a command line (`args` with the program's name first), the file that it names, and the
/// environment.
pub fn parse(
    args: impl IntoIterator<Item = OsString>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<Command, SourceError> {
    let mut args = with_command(args);
    let parser = parser();
    let typed = parser.clone().try_get_matches_from(&args)?;
    let (name, typed) = typed.subcommand().expect("a command is required");
    let flags = parser.find_subcommand(name).expect("a parsed command exists");

    let mut from_environment = environment_settings(name, flags, environment);
    if typed.try_contains_id("ws").unwrap_or_default() {
        // Address and token are those of the control plane, which is not asked.
        from_environment.clear();
    }
    let mut file = FileSettings::default();
    let mut source = PathBuf::new();
    if let Some(path) = config_path(name, typed, &from_environment) {
        file = std::fs::read_to_string(&path)
            .map_err(FileError::from)
            .and_then(|text| file_settings(flags, &text))
            .map_err(|error| SourceError::File { path: path.clone(), error })?;
        check_alone(&parser, &file.settings, &path.display().to_string())?;
        source = path;
    }
    if name == "serve" {
        check_alone(&parser, &from_environment, "environment")?;
    }
    let mut settings = file.settings;
    settings.extend(from_environment);
    settings.retain(|flag, _| typed.value_source(flag) != Some(ValueSource::CommandLine));
    // Positions 0 and 1 are the program and the command.
    args.splice(2..2, as_arguments(&settings));
    let matches = parser.try_get_matches_from(args)?;
    let mut command = CommandLine::from_arg_matches(&matches)?.command;
    if let Command::Serve(flags) = &mut command {
        flags.set_rules(file.rules, source);
    }
    Ok(command)
}

/// Puts `serve` where no command stands: without arguments, or before a flag that is not about the
/// program itself.
fn with_command(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    if args.is_empty() {
        args.push("fanwave".into());
    }
    let about_itself = ["-h", "--help", "-V", "--version"];
    let serve = match args.get(1).and_then(|arg| arg.to_str()) {
        Some(arg) => arg.starts_with('-') && !about_itself.contains(&arg),
        None => args.len() == 1,
    };
    if serve {
        args.insert(1, "serve".into());
    }
    args
}

fn config_path(command: &str, typed: &clap::ArgMatches, environment: &Settings) -> Option<PathBuf> {
    if command != "serve" {
        return None;
    }
    let from_environment = || environment.get("config").and_then(|values| values.first()).map(PathBuf::from);
    typed.get_one::<PathBuf>("config").cloned().or_else(from_environment)
}

/// The `FANWAVE_*` variables of a command. The clients take only the server's address from
/// there, and publishers their token: a topic or an id belongs to one call, and a subscriber may
/// ask a server that the token is not meant for. An empty variable counts as unset, as
/// composition files write it.
fn environment_settings(
    command: &str,
    flags: &clap::Command,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Settings {
    setting_names(flags)
        .filter(|name| {
            command == "serve" || matches!((command, *name), (_, "server") | ("publish", "token_file"))
        })
        .filter_map(|name| {
            let former = FORMER_NAMES.iter().find(|(_, now)| *now == name).map(|(before, _)| *before);
            let value_of = |name: &str| environment(&format!("FANWAVE_{}", name.to_ascii_uppercase()));
            let is_set = |value: &OsString| !value.is_empty();
            let value = value_of(name).filter(is_set).or_else(|| value_of(former?).filter(is_set))?;
            Some((name.to_string(), vec![value]))
        })
        .collect()
}

/// Settings that had another name, and the one that they have now.
const FORMER_NAMES: [(&str, &str); 1] = [("overrun", "slow")];

/// What the environment and the file may set, in snake_case.
fn setting_names(flags: &clap::Command) -> impl Iterator<Item = &str> {
    flags.get_arguments().filter(|flag| !flag.is_hide_set()).map(|flag| flag.get_id().as_str())
}

/// One line for each variable of the environment that looks like a setting of `fanwave serve` and
/// is none, with the nearest name that is one.
pub fn unknown_variables(environment: impl IntoIterator<Item = (OsString, OsString)>) -> Vec<String> {
    let parser = parser();
    let flags = parser.find_subcommand("serve").expect("a command of ours");
    let former = FORMER_NAMES.iter().map(|(before, _)| *before);
    let names = setting_names(flags).chain(former);
    let known: Vec<String> = names.map(|name| format!("FANWAVE_{}", name.to_ascii_uppercase())).collect();
    let unknown = environment.into_iter().filter_map(|(name, value)| {
        let name = name.into_string().ok().filter(|name| name.starts_with("FANWAVE_"))?;
        // The address of the clients; and what Kubernetes tells of a service that is called
        // fanwave.
        let is_link = name.starts_with("FANWAVE_SERVICE_") || name.starts_with("FANWAVE_PORT_");
        let is_link = is_link || name == "FANWAVE_PORT" && value.to_string_lossy().contains("://");
        let is_of_clients = ["FANWAVE_SERVER", "FANWAVE_TOKEN_FILE"].contains(&name.as_str());
        (!is_of_clients && !is_link && !known.contains(&name)).then_some(name)
    });
    let told = |name: String| {
        let listens = ["FANWAVE_PORT", "FANWAVE_HOST", "FANWAVE_ADDR", "FANWAVE_ADDRESS", "FANWAVE_BIND"];
        let nearest_name = match listens.contains(&name.as_str()) {
            true => "FANWAVE_LISTEN",
            false => nearest(&name, known.iter().map(String::as_str)),
        };
        format!("{name} is no setting and is ignored; the nearest one is {nearest_name}")
    };
    let mut lines: Vec<String> = unknown.map(told).collect();
    lines.sort();
    lines
}

/// What the file says: the values of flags, and the rules.
#[derive(Default)]
struct FileSettings {
    settings: Settings,
    rules: Vec<RuleText>,
}

/// The keys of a TOML file, in snake_case or kebab-case, and its rules; unknown keys are refused
/// with the nearest one.
fn file_settings(flags: &clap::Command, text: &str) -> Result<FileSettings, FileError> {
    let table = DeTable::parse(text)?;
    let mut settings = Settings::new();
    let mut rules = Vec::new();
    for (key, value) in table.get_ref() {
        let key = key.get_ref();
        if key == rules::KEY {
            rules = RuleText::read(value, text)?;
            continue;
        }
        let name = key.replace('-', "_");
        let now = FORMER_NAMES.iter().find(|(before, _)| *before == name).map(|(_, now)| now.to_string());
        let name = now.unwrap_or(name);
        let known = || setting_names(flags).filter(|known| *known != "config");
        if !known().any(|known| known == name) {
            let nearest = nearest(&name, known().chain([rules::KEY]));
            return Err(FileError::UnknownKey { key: key.to_string(), nearest: nearest.to_string() });
        }
        let values = match value.get_ref() {
            DeValue::Array(values) => values.iter().map(|value| value.get_ref()).collect(),
            value => vec![value],
        };
        let values = values.into_iter().map(|value| match value {
            DeValue::String(text) => Ok(text.as_ref().into()),
            DeValue::Integer(number) => {
                integer(number).map(OsString::from).ok_or_else(|| FileError::TooLarge(key.to_string()))
            }
            DeValue::Boolean(yes) => Ok(yes.to_string().into()),
            other => Err(FileError::Kind { key: key.to_string(), kind: other.type_str() }),
        });
        if settings.insert(name, values.collect::<Result<_, _>>()?).is_some() {
            return Err(FileError::Twice(key.to_string()));
        }
    }
    Ok(FileSettings { settings, rules })
}

/// An integer of TOML in decimal.
fn integer(number: &DeInteger<'_>) -> Option<String> {
    i64::from_str_radix(number.as_str(), number.radix()).ok().map(|number| number.to_string())
}

/// Parses what one source says to `fanwave serve` without the others, and checks its limits.
fn check_alone(parser: &clap::Command, settings: &Settings, place: &str) -> Result<(), SourceError> {
    let args = ["fanwave".into(), "serve".into()].into_iter().chain(as_arguments(settings));
    let parsed = parser.clone().try_get_matches_from(args);
    let checked = match parsed.and_then(|matches| CommandLine::from_arg_matches(&matches)) {
        Ok(CommandLine { command: Command::Serve(flags) }) => {
            flags.check_each_limit().map_err(ValueError::from)
        }
        Ok(_) => Ok(()),
        Err(error) => Err(ValueError::Flag(error)),
    };
    checked.map_err(|error| SourceError::Value { place: place.to_string(), error })
}

/// What clap says is wrong, without its advice.
fn cause(error: &clap::Error) -> String {
    let text = error.to_string();
    let cause = text.split("\n\n").next().unwrap_or_default();
    one_line(cause.strip_prefix("error: ").unwrap_or(cause))
}

fn as_arguments(settings: &Settings) -> Vec<OsString> {
    let argument = |name: &str, value: &OsString| {
        let mut argument = OsString::from(format!("--{}=", name.replace('_', "-")));
        argument.push(value);
        argument
    };
    settings.iter().flat_map(|(name, values)| values.iter().map(move |value| argument(name, value))).collect()
}

/// Messages of parsers come with pictures over several lines; ours are one line.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::super::tests::parse_with;
    use super::*;
    use crate::config::ControlAddress;
    use crate::config::flags::tests::config;

    /// A file that is gone when the test is over.
    struct File(PathBuf);

    impl File {
        fn new(name: &str, text: &str) -> File {
            let path = std::env::temp_dir().join(format!("fanwave-{}-{name}.toml", std::process::id()));
            std::fs::write(&path, text).expect("a temporary file");
            File(path)
        }

        fn path(&self) -> &str {
            self.0.to_str().expect("a path in UTF-8")
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
        let file = File::new(
            "precedence",
            "window_events_max = 100\nheartbeat-ms = 2000\nstall_ms_max = 3000\nlisten = [\"127.0.0.1:1\", \"127.0.0.1:2\"]\n",
        );
        let environment = [
            ("FANWAVE_CONFIG", file.path()),
            ("FANWAVE_HEARTBEAT_MS", "4000"),
            ("FANWAVE_STALL_MS_MAX", "5000"),
            ("FANWAVE_CONTROL", "unix:/run/a.sock,127.0.0.1:3"),
            ("FANWAVE_DRAIN_MS_MAX", ""),
        ];
        let config = config(&["--stall-ms-max", "6000"], &environment).expect("valid");
        assert_eq!(config.limits.window_events_max, 100, "file");
        assert_eq!(config.limits.heartbeat_ms, 4_000, "environment");
        assert_eq!(config.limits.stall_ms_max, 6_000, "flag");
        assert_eq!(config.limits.drain_ms_max, 10_000, "an empty variable is unset");
        assert_eq!(config.listen.len(), 2);
        assert_eq!(config.control[0], ControlAddress::Unix("/run/a.sock".into()));
        assert_eq!(config.control[1].to_string(), "127.0.0.1:3");
    }

    #[test]
    fn a_switch_is_a_word_alone_in_every_source() {
        let on = File::new("on", "diagnostic_echo = true\n");
        let on = ["--config", on.path()];
        for (args, environment, expected) in [
            (&[][..], &[][..], false),
            (&["--diagnostic-echo"], &[], true),
            (&["--diagnostic-echo", "--shards", "1"], &[], true),
            (&["--diagnostic-echo=true"], &[], true),
            (&["--diagnostic-echo=false"], &[("FANWAVE_DIAGNOSTIC_ECHO", "true")], false),
            (&[], &[("FANWAVE_DIAGNOSTIC_ECHO", "true")], true),
            (&on, &[], true),
            (&on, &[("FANWAVE_DIAGNOSTIC_ECHO", "false")], false),
        ] {
            let config = config(args, environment).expect("valid");
            assert_eq!(config.diagnostic_echo, expected, "{args:?} {environment:?}");
        }
        let error = config(&[], &[("FANWAVE_DIAGNOSTIC_ECHO", "yes")]).expect_err("no switch");
        assert!(error.contains("environment") && error.contains("diagnostic-echo"), "{error}");
    }

    #[test]
    fn a_former_name_still_sets_what_it_was_the_name_of() {
        use crate::config::SlowPolicy;
        let file = File::new("former", "overrun = \"skip\"\n");
        let slow =
            |args: &[&str], environment: &[(&str, &str)]| config(args, environment).map(|config| config.slow);
        assert_eq!(slow(&["--overrun", "skip"], &[]), Ok(SlowPolicy::Skip));
        assert_eq!(slow(&["--config", file.path()], &[]), Ok(SlowPolicy::Skip));
        let variables = [("FANWAVE_OVERRUN", "skip"), ("FANWAVE_SLOW", "latest")];
        assert_eq!(slow(&["--config", file.path()], &variables), Ok(SlowPolicy::Latest));
        assert_eq!(slow(&[], &variables[..1]), Ok(SlowPolicy::Skip));
        assert_eq!(unknown_variables([("FANWAVE_OVERRUN".into(), "skip".into())]), Vec::<String>::new());
    }

    #[test]
    fn a_repeated_flag_replaces_the_weaker_list() {
        let config =
            config(&["--listen", "0.0.0.0:1", "--listen=[::]:2"], &[("FANWAVE_LISTEN", "127.0.0.1:9")]);
        let listen = config.expect("valid").listen;
        assert_eq!(listen.iter().map(SocketAddr::to_string).collect::<Vec<_>>(), ["0.0.0.0:1", "[::]:2"]);
    }

    #[test]
    fn a_file_is_refused_by_key() {
        let cases = [
            (
                "window_evnts_max = 1",
                "unknown key `window_evnts_max`; the nearest one is `window_events_max`",
            ),
            ("\"shar\\nds\" = 1", "unknown key `shar\\nds`; the nearest one is `shards`"),
            ("[[rules]]", "unknown key `rules`; the nearest one is `rule`"),
            ("shards = 1\n[[rule]]\nmatch = \"a\"\nage = 1", "line 4: unknown key `age` of a rule"),
            ("config = \"other.toml\"", "unknown key `config`"),
            ("shards = 2.5", "`shards` is a float"),
            ("[limits]\nshards = 2", "unknown key `limits`"),
            ("heartbeat_ms = 1\nheartbeat-ms = 1", "given twice"),
            ("shards = [1, 2]", "'--shards <N>' cannot be used multiple times"),
            ("topics_max = -1", "'--topics-max <N>'"),
            ("heartbeat_ms = 5", ": --heartbeat-ms is 5, at least 1000"),
            ("shards = ", "line 1"),
        ];
        for (index, (text, part)) in cases.iter().enumerate() {
            let file = File::new(&format!("bad{index}"), text);
            let error = config(&["--config", file.path()], &[]).expect_err(text);
            assert!(error.contains(part) && error.contains(file.path()), "no {part:?} in {error:?}");
            assert!(!error.contains('\n'), "one line: {error:?}");
        }
    }

    #[test]
    fn limits_that_bound_each_other_may_come_from_different_sources() {
        let file = File::new("relations", "message_bytes_max = \"4MiB\"\n");
        let both = config(&["--config", file.path()], &[("FANWAVE_WINDOW_BYTES_MAX", "32MiB")]);
        assert_eq!(both.expect("valid together").limits.message_bytes_max, 4 << 20);
        let error = config(&["--config", file.path()], &[]).expect_err("the default window is too small");
        assert!(error.starts_with("--window-bytes-max is "), "{error}");
    }

    #[test]
    fn the_clients_take_only_the_server_from_the_environment() {
        let environment = [("FANWAVE_SERVER", "http://127.0.0.1:9"), ("FANWAVE_EVENT", "x")];
        let Ok(Command::Publish(options)) = parse_with(&["publish", "hello"], &environment) else {
            panic!("publish parses")
        };
        assert_eq!((options.server.as_str(), options.event), ("http://127.0.0.1:9", None));
        let by_websocket = ["publish", "hello", "--ws", "ws://127.0.0.1:8"];
        let Ok(Command::Publish(options)) = parse_with(&by_websocket, &environment) else {
            panic!("the control plane of the environment is not asked then")
        };
        assert_eq!(options.ws.as_deref(), Some("ws://127.0.0.1:8"));
        let both = [&by_websocket[..], &["--server", "http://127.0.0.1:9"]].concat();
        assert!(parse_with(&both, &[]).is_err(), "one way is wanted");
    }

    #[test]
    fn a_variable_that_is_no_setting_is_told_with_the_nearest_one() {
        let environment = [
            ("FANWAVE_WINDOW_EVENT_MAX", "1"),
            ("FANWAVE_PORT", "8080"),
            ("FANWAVE_LISTEN", "127.0.0.1:1"),
            ("FANWAVE_SERVER", "http://127.0.0.1:1"),
            ("FANWAVE_SERVICE_HOST", "10.0.0.1"),
            ("FANWAVE_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
            ("PATH", "/bin"),
        ];
        let pairs = |list: &[(&str, &str)]| -> Vec<_> {
            list.iter().map(|(name, value)| (OsString::from(name), OsString::from(value))).collect()
        };
        assert_eq!(
            unknown_variables(pairs(&environment)),
            [
                "FANWAVE_PORT is no setting and is ignored; the nearest one is FANWAVE_LISTEN",
                "FANWAVE_WINDOW_EVENT_MAX is no setting and is ignored; the nearest one is FANWAVE_WINDOW_EVENTS_MAX",
            ]
        );
        let by_kubernetes = [("FANWAVE_PORT", "tcp://10.0.0.1:8080")];
        assert_eq!(unknown_variables(pairs(&by_kubernetes)), Vec::<String>::new());
    }

    #[test]
    fn sizes_have_units_in_every_source() {
        let file = File::new("sizes", "send_bytes_max = \"64KiB\"\nhandshake_bytes_max = 4096\n");
        let config = config(
            &["--config", file.path(), "--window-bytes-max", "16MiB"],
            &[("FANWAVE_PINNED_BYTES_MAX", "2MiB")],
        );
        let limits = config.expect("valid").limits;
        assert_eq!(limits.send_bytes_max, 64 << 10);
        assert_eq!(limits.handshake_bytes_max, 4_096);
        assert_eq!(limits.window_bytes_max, 16 << 20);
        assert_eq!(limits.pinned_bytes_max, 2 << 20);
    }
}
