//! The server under test, and subscribers and HTTP clients that share no code with it.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

pub mod chromium;
pub mod chunks;
pub mod h2;
pub mod nats;
#[allow(dead_code, reason = "what the simulation alone needs")]
pub mod peer;
pub mod proxied;
pub mod raw;
pub mod records;
pub mod scratch;
pub mod secure;
pub mod server;
pub mod slow;
pub mod subscriber;
pub mod visit;

pub use chromium::Chromium;
pub use peer::Protocol;
pub use scratch::Scratch;
pub use server::Server;
pub use subscriber::{Said, Subscriber};

/// The longest that a test waits for one thing. Far more than anything takes, so that a loaded
/// machine fails no test.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// `work`, or a panic that says what did not happen.
pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(result) => result,
        Err(_) => panic!("waited {PATIENCE:?} for {what}"),
    }
}

/// Raises this process's descriptor limit as far as it goes, for a test that holds hundreds of
/// sockets.
pub fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Asks again and again until `condition` gives a value.
pub async fn until<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    within(what, async {
        loop {
            if let Some(value) = condition().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}
