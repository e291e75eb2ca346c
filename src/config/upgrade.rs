//! Where a server waits for the one that takes its place.

use std::convert::Infallible;
use std::path::PathBuf;
use std::str::FromStr;

/// `--upgrade-socket`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum UpgradeSocket {
    /// At a path that is derived from the first control address (`handover/place`).
    #[default]
    Derived,
    /// At this path.
    Path(PathBuf),
    /// Nowhere: no process takes its place.
    None,
}

impl FromStr for UpgradeSocket {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<UpgradeSocket, Infallible> {
        Ok(match text {
            "auto" => UpgradeSocket::Derived,
            "none" => UpgradeSocket::None,
            path => UpgradeSocket::Path(path.into()),
        })
    }
}
