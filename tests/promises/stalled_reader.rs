//! Claim: a reader that stalls delays nobody, and is hung up on under its own reason.
//!
//! Set-up: one shard with twenty readers of one protocol and one subscriber of the other that never
//! reads. Large events until its socket takes no more.
//!
//! Expectation: all others get every event, several of them while the stalled send is provably in
//! the kernel. Then the stalled one is closed and counted as stalled, and the others still get
//! events.

use crate::support::slow::publish_until_stuck;
use crate::support::{Protocol, Server, Subscriber};

const OTHERS: usize = 20;

async fn stalled(slow: Protocol, fast: Protocol) {
    let server = Server::start(&["--shards", "1", "--stall-ms-max", "5000"]);
    let idle = Subscriber::connect(server.data, slow, &["t"]).await;
    let mut others = Vec::new();
    for _ in 0..OTHERS {
        others.push(Subscriber::connect(server.data, fast, &["t"]).await);
    }
    publish_until_stuck(&server, "t", slow, &mut others, 0, 3).await;
    assert_eq!(server.closed("stalled").await, 0, "the others were served while it was stalled");

    server.await_closed("stalled", 1).await;
    server
        .await_subscribers("t", u64::from(fast == Protocol::Sse) * OTHERS as u64, {
            u64::from(fast == Protocol::WebSocket) * OTHERS as u64
        })
        .await;
    let stats = server.stats().await;
    assert_eq!(stats["totals"]["connections"], OTHERS, "only the stalled one is gone");
    server.publish("t", "after").await;
    for other in &mut others {
        assert_eq!(other.text().await, "after");
    }
    drop(idle);
}

#[tokio::test]
async fn a_stalled_websocket_delays_no_event_stream() {
    stalled(Protocol::WebSocket, Protocol::Sse).await;
}

#[tokio::test]
async fn a_stalled_event_stream_delays_no_websocket() {
    stalled(Protocol::Sse, Protocol::WebSocket).await;
}
