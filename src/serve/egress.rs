//! Which ring the shards get: io_uring where it works, else epoll. Every server serves, and says in
//! its banner, its log and `/stats` what it stands on.

use super::ServeError;
use crate::config::{Egress, Sockets};
use crate::egress::RingError;
use crate::egress::uring::{frees_direct_descriptors, try_out};
use crate::hub::EgressReport;
use crate::runtime::{LockedMemory, check_locked_memory};

/// What epoll costs, for operators.
const COST: &str =
    "one system call per send instead of one per 128, and all shards share the descriptor limit";

/// The ring of every shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ring {
    /// io_uring.
    Uring {
        /// Sockets are direct descriptors.
        direct: bool,
    },
    /// epoll.
    Epoll,
}

impl Ring {
    /// Sockets are direct descriptors.
    pub fn is_direct(self) -> bool {
        self == Ring::Uring { direct: true }
    }
}

/// A ring, and what is told of it.
#[derive(Debug)]
pub(super) struct Choice {
    pub ring: Ring,
    pub report: EgressReport,
    /// The operator did not ask for this one.
    fell_back: bool,
}

/// Chooses the ring. Fails with the cause and the remedy if the operator asked for one that does
/// not work here.
///
/// glommio panics where io_uring is missing, so a ring of our own is tried before any of its.
pub(super) fn choose(wanted: Egress, sockets: Sockets) -> Result<Choice, ServeError> {
    match wanted {
        Egress::Uring => {
            try_out()?;
            Ok(uring(sockets, "--egress uring asks for it"))
        }
        Egress::Epoll => Ok(epoll("--egress epoll asks for it".into(), None)),
        Egress::Auto => Ok(match try_out() {
            Err(error) => without_uring(&error),
            Ok(()) => match check_locked_memory() {
                Err(lack) => without_memory(&lack),
                Ok(()) => uring(sockets, "it works here"),
            },
        }),
    }
}

fn uring(sockets: Sockets, why: &str) -> Choice {
    let direct = match sockets {
        Sockets::Auto => frees_direct_descriptors(),
        Sockets::Direct => true,
        Sockets::Plain => false,
    };
    let report = EgressReport {
        ring: "uring",
        sockets: if direct { "direct" } else { "plain" },
        why: why.into(),
        cost: None,
        remedy: None,
    };
    Choice { ring: Ring::Uring { direct }, report, fell_back: false }
}

fn epoll(why: String, remedy: Option<String>) -> Choice {
    let report = EgressReport { ring: "epoll", sockets: "plain", why, cost: Some(COST), remedy };
    Choice { ring: Ring::Epoll, report, fell_back: false }
}

/// epoll in the place of io_uring, which fails for this cause; the remedy may be empty.
fn instead(cause: &str, remedy: &str) -> Choice {
    let remedy = Some(remedy).filter(|remedy| !remedy.is_empty()).map(str::to_string);
    Choice { fell_back: true, ..epoll(format!("no io_uring: {cause}"), remedy) }
}

fn without_uring(error: &RingError) -> Choice {
    instead(&format!("{}: {}", error.what, error.source), error.remedy.trim_start_matches("; "))
}

fn without_memory(lack: &LockedMemory) -> Choice {
    instead(&lack.to_string(), LockedMemory::REMEDY)
}

impl Choice {
    /// Says in the log what the shards stand on, as a warning if it is second best.
    pub fn log(&self) {
        let EgressReport { ring, sockets, why, cost, remedy } = &self.report;
        if self.fell_back {
            let (cost, remedy) = (cost.unwrap_or_default(), remedy.as_deref().unwrap_or_default());
            tracing::warn!(ring, why, cost, remedy, "subscribers are served over epoll");
        } else {
            tracing::info!(ring, sockets, why, "egress");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_io_uring_lacks_is_told_as_cause_and_remedy() {
        let error = RingError {
            what: "making an io_uring",
            source: std::io::Error::from_raw_os_error(1),
            remedy: "; let it pass",
        };
        let choice = without_uring(&error);
        assert_eq!(
            choice.report.why,
            "no io_uring: making an io_uring: Operation not permitted (os error 1)"
        );
        assert_eq!(choice.report.remedy.as_deref(), Some("let it pass"));
        let choice = without_memory(&LockedMemory { allowed: 64 << 10 });
        assert_eq!(
            choice.report.why,
            "no io_uring: the limit of locked memory (memlock) is 64 KiB, an executor needs 512 KiB"
        );
        assert_eq!(choice.report.remedy.as_deref(), Some("raise ulimit -l"));
        assert!(choice.fell_back && choice.ring == Ring::Epoll);
        let choice = without_uring(&RingError { remedy: "", ..error });
        assert!(choice.fell_back && choice.report.remedy.is_none(), "nothing is known to help");
    }

    #[test]
    fn a_ring_that_was_asked_for_is_no_second_best() {
        let choice = choose(Egress::Epoll, Sockets::Auto).expect("every kernel has it");
        assert!(!choice.fell_back && !choice.ring.is_direct());
        let choice = uring(Sockets::Direct, "");
        assert!(!choice.fell_back && choice.ring.is_direct());
    }
}
