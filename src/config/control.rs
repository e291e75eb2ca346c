//! The flags about who may use the control plane.

use std::path::PathBuf;

use super::{ControlAddress, ControlRules};
use crate::secret::Secret;

/// The flags of [`ControlRules`].
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Addresses")]
pub(super) struct ControlFlags {
    /// File with the token that publishers and operators bring: Authorization: Bearer TOKEN; not
    /// needed over a Unix socket
    #[arg(long, value_name = "FILE")]
    control_token_file: Option<PathBuf>,
    /// Whoever reaches the control plane may use it, beyond loopback too
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true)]
    #[arg(default_value = "false", default_missing_value = "true", hide_possible_values = true)]
    #[arg(action = clap::ArgAction::Set)]
    control_open: bool,
}

impl ControlFlags {
    /// Checked; reads the token. The error is one line that names the flag.
    pub(super) fn rules(self, control: &[ControlAddress]) -> Result<ControlRules, String> {
        if self.control_open && self.control_token_file.is_some() {
            return Err("--control-open and --control-token-file contradict each other; leave one out".into());
        }
        if let Some(exposed) = control.iter().find(|address| !address.is_local())
            && self.control_token_file.is_none()
            && !self.control_open
        {
            return Err(format!(
                "--control {exposed} can be reached from other machines, and whoever reaches it may publish: \
                 name a token with --control-token-file FILE, or allow it with --control-open"
            ));
        }
        let read =
            |file: PathBuf| Secret::read(&file).map_err(|error| format!("--control-token-file {error}"));
        Ok(ControlRules { token: self.control_token_file.map(read).transpose()? })
    }
}
