//! Claim: memory that was freed is given back within half a minute, although nothing more happens.
//!
//! Set-up: publishers that send part of a large event each and go away; then silence.
//!
//! Expectation: the server holds what they sent while they are there, and is nearly as small as
//! before some seconds after they have gone.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::{Server, until};

#[tokio::test]
async fn what_publishers_leave_behind_is_given_back() {
    const PUBLISHERS: usize = 64;
    const SENT: usize = 1_000_000;
    let server = Server::start(&["--shards", "1"]);
    let before = server.resident_bytes();
    let mut publishers = Vec::new();
    for _ in 0..PUBLISHERS {
        let mut publisher = TcpStream::connect(server.control).await.expect("it listens");
        let head = "POST /topics/t HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1048576\r\n\r\n";
        publisher.write_all(head.as_bytes()).await.expect("it reads");
        publisher.write_all(&vec![b'x'; SENT]).await.expect("it reads");
        publishers.push(publisher);
    }
    until("what the publishers have sent", async || {
        (server.resident_bytes() > before + PUBLISHERS * SENT / 2).then_some(())
    })
    .await;
    drop(publishers);
    until("memory that is given back", async || {
        (server.resident_bytes() < before + PUBLISHERS * SENT / 4).then_some(())
    })
    .await;
}
