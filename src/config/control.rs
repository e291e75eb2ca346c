//! The flags about who may use the control plane.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::{ControlAddress, ControlRules};
use crate::secret::Secret;

/// What a flag about the control plane says that it may not. Names the flag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// Open and with a token.
    #[error("--control-open and --control-token-file contradict each other; leave one out")]
    Contradiction,
    /// An address beyond loopback, and the operator has not said who may use it.
    #[error(
        "{0} {1} can be reached from other machines, and every client there may publish: name a \
         token with --control-token-file FILE or keys with --auth-jwks or --auth-hs256-file, or allow it with \
         --control-open"
    )]
    Exposed(&'static str, ControlAddress),
    /// The token cannot be read, or is none.
    #[error("--control-token-file {0}")]
    Token(String),
}

/// The flags of [`ControlRules`].
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Addresses")]
pub(super) struct ControlFlags {
    /// File with the token that publishers and operators bring: Authorization: Bearer TOKEN; not
    /// needed over a Unix socket
    #[arg(long, value_name = "FILE")]
    control_token_file: Option<PathBuf>,
    /// Every client that reaches the control plane may use it, beyond loopback too
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true)]
    #[arg(default_value = "false", default_missing_value = "true", hide_possible_values = true)]
    #[arg(action = clap::ArgAction::Set)]
    control_open: bool,
}

impl ControlFlags {
    /// Checked; reads the token. `has_keys`: publishers may bring tokens of their own.
    pub(super) fn rules(
        self,
        control: &[ControlAddress],
        control_tls: &[SocketAddr],
        has_keys: bool,
    ) -> Result<ControlRules, ControlError> {
        if self.control_open && self.control_token_file.is_some() {
            return Err(ControlError::Contradiction);
        }
        let plain = control.iter().map(|address| ("--control", address.clone()));
        let tls = control_tls.iter().map(|address| ("--control-tls", ControlAddress::Tcp(*address)));
        if let Some((flag, exposed)) = plain.chain(tls).find(|(_, address)| !address.is_local())
            && self.control_token_file.is_none()
            && !has_keys
            && !self.control_open
        {
            return Err(ControlError::Exposed(flag, exposed));
        }
        let token = self.control_token_file.map(|file| Secret::read(&file).map_err(ControlError::Token));
        Ok(ControlRules { token: token.transpose()?, open: self.control_open })
    }
}
