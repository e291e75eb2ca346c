//! Whose fault an error is, where that decides something: a server that ends, breaks or refuses
//! connections has found its limit, anything else is the measurement's own failure.
//!
//! Whoever sees the server do it says so with [`server_fault`]; context may be added on the way.
//! Where an error crosses from one process to another as text, `by_server` goes along.

use std::fmt;

use anyhow::Error;

/// What the server did, in one line. An error that has it in its chain is the server's.
#[derive(Debug)]
pub struct ServerFault(pub String);

impl fmt::Display for ServerFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ServerFault {}

/// An error that the server caused.
pub fn server_fault(what: impl Into<String>) -> Error {
    Error::new(ServerFault(what.into()))
}

/// True if the server caused the error.
pub fn is_by_server(error: &Error) -> bool {
    error.is::<ServerFault>()
}

/// An error that another process told of.
pub fn told(cause: String, by_server: bool) -> Error {
    if by_server { server_fault(cause) } else { Error::msg(cause) }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn the_servers_fault_is_known_whatever_was_added_to_it_and_by_whomever_it_was_told() {
        let fault = || server_fault("the server ended the stream");
        let ended = Error::msg("connection 3 broke").context(ServerFault("fanwave ended".into()));
        for error in [fault(), fault().context("receiver 0").context("ticker"), ended.context("ticker")] {
            assert!(is_by_server(&error), "{error:#}");
            let again = Err::<(), _>(told(format!("{error:#}"), is_by_server(&error))).context("receiver 1");
            assert!(is_by_server(&again.expect_err("an error")));
        }
        let own = Error::msg("no free port").context("the server ended");
        assert!(!is_by_server(&own) && !is_by_server(&told(format!("{own:#}"), false)));
    }
}
