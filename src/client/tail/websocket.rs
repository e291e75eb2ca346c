//! One raw WebSocket subscription over as many connections as it takes (RFC 6455).

use std::ops::ControlFlow;
use std::time::Duration;

use futures_util::StreamExt;
use tokio_tungstenite::tungstenite::Message;

use super::super::trust::Trust;
use super::super::websocket::{Read, Target, leave};
use super::{Addresses, Ended, Output, Payload};

/// The subscription.
pub(super) struct Stream {
    addresses: Addresses,
    trust: Trust,
    /// True once a connection was open. Raw messages carry no ids, so asking for the same start
    /// again would print everything again.
    returning: bool,
    /// From the first packet to the whole answer to the handshake.
    answer_time_max: Duration,
}

impl Stream {
    pub(super) fn new(addresses: Addresses, trust: Trust, answer_time_max: Duration) -> Stream {
        Stream { addresses, trust, returning: false, answer_time_max }
    }

    /// Connects once and prints until the connection is over.
    pub(super) async fn follow(&mut self, output: &mut Output<'_>) -> Ended {
        let Addresses { name, first, later, bearer } = &self.addresses;
        let url = if self.returning { later } else { first };
        let target = Target { url, name, subprotocol: None, bearer: bearer.as_ref(), trust: &self.trust };
        let mut socket = match target.open(self.answer_time_max).await {
            Ok(socket) => socket,
            Err(unopened) => return unopened.into(),
        };
        let returning = std::mem::replace(&mut self.returning, true);
        output.connected(name, returning.then_some("a raw WebSocket carries no ids"));
        let ended = loop {
            let flow = match Read::of(socket.next().await) {
                Read::Message(Message::Text(text)) => output.event("message", "", Payload::Text(&text)),
                Read::Message(message) => output.event("message", "", Payload::Binary(&message.into_data())),
                Read::Alive => ControlFlow::Continue(()),
                Read::Over(over) => ControlFlow::Break(Ended::lost(over.why)),
            };
            if let ControlFlow::Break(ended) = flow {
                break ended;
            }
        };
        leave(&mut socket, matches!(ended, Ended::Done)).await;
        ended
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{SinkExt, StreamExt};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::protocol::CloseFrame;
    use tokio_tungstenite::{WebSocketStream, accept_async};

    use super::super::tests::tail;
    use crate::client::ClientError;

    async fn listener() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("ws://{}/ws/hello", listener.local_addr().expect("bound"));
        (listener, url)
    }

    async fn accept(listener: &TcpListener) -> WebSocketStream<TcpStream> {
        let (stream, _) = listener.accept().await.expect("a connection");
        accept_async(stream).await.expect("a handshake")
    }

    #[tokio::test]
    async fn a_closed_websocket_is_told_and_opened_again() {
        let (listener, url) = listener().await;
        let server = async {
            let mut first = accept(&listener).await;
            first.send(Message::text("one")).await.expect("open");
            let frame = CloseFrame { code: 1013.into(), reason: "overrun".into() };
            first.close(Some(frame)).await.expect("open");
            let answer = first.next().await.expect("the client answers").expect("a frame");
            assert!(matches!(answer, Message::Close(_)), "{answer:?}");
            drop(first);
            let mut second = accept(&listener).await;
            second.send(Message::Ping("are you there".into())).await.expect("open");
            assert!(matches!(second.next().await, Some(Ok(Message::Pong(_)))));
            second.send(Message::binary(vec![0, 255])).await.expect("open");
            assert!(matches!(second.next().await, Some(Ok(Message::Close(_)))), "the client takes leave");
        };
        let ((), (result, out, notes)) = tokio::join!(server, tail(&url, &["--count", "2"]));
        result.expect("two events");
        assert_eq!(out, "one\n<2 bytes binary>\n");
        assert!(notes.contains("closed: 1013 overrun; reconnecting in 0.1 s"), "{notes}");
        let told = "fanwave: events may be missing: a raw WebSocket carries no ids\n";
        assert_eq!(notes.matches(told).count(), 1, "at the return and not before: {notes}");
    }

    #[tokio::test]
    async fn json_carries_binary_messages_as_base64() {
        let (listener, url) = listener().await;
        let server = async {
            let mut socket = accept(&listener).await;
            socket.send(Message::text("a\nb")).await.expect("open");
            socket.send(Message::binary(vec![0, 255])).await.expect("open");
            socket.next().await
        };
        let (_, (result, out, _)) = tokio::join!(server, tail(&url, &["--json", "--count", "2"]));
        result.expect("two events");
        let events: Vec<serde_json::Value> =
            out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(events[0], serde_json::json!({ "event": "message", "id": "", "data": "a\nb" }));
        assert_eq!(events[1], serde_json::json!({ "event": "message", "id": "", "base64": "AP8=" }));
    }

    /// Answers the handshake of each connection in turn with bytes.
    async fn refuse(listener: &TcpListener, answer: &str) -> String {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("a request head"));
        }
        stream.write_all(answer.as_bytes()).await.expect("the client reads");
        String::from_utf8(head).expect("ASCII")
    }

    #[tokio::test]
    async fn an_unknown_path_ends_with_the_servers_line() {
        let (listener, url) = listener().await;
        let answer = "HTTP/1.1 404 Not Found\r\nContent-Length: 13\r\n\r\nno such path\n";
        let (head, (result, _, _)) = tokio::join!(refuse(&listener, answer), tail(&url, &["--from", "a b"]));
        assert!(head.starts_with("GET /ws/hello?last-event-id=a%20b HTTP/1.1\r\n"), "{head}");
        match result {
            Err(ClientError::Refused(line)) => assert_eq!(line, "404 Not Found: no such path"),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn from_holds_for_one_connection() {
        let (listener, url) = listener().await;
        let server = async {
            drop(accept(&listener).await);
            refuse(&listener, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await
        };
        let (head, (result, _, notes)) = tokio::join!(server, tail(&url, &["--from", "a-1"]));
        assert!(head.starts_with("GET /ws/hello HTTP/1.1\r\n"), "{head}");
        assert!(notes.contains("closed: "), "{notes}");
        assert!(matches!(result, Err(ClientError::Refused(line)) if line == "404 Not Found"));
    }

    #[tokio::test]
    async fn a_draining_server_is_asked_again() {
        let (listener, url) = listener().await;
        let server = async {
            let answer = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 9\r\n\r\ndraining\n";
            refuse(&listener, answer).await;
            let mut socket = accept(&listener).await;
            socket.send(Message::text("x")).await.expect("open");
            socket.next().await
        };
        let (_, (result, out, notes)) = tokio::join!(server, tail(&url, &["--count", "1"]));
        result.expect("an event");
        assert_eq!(out, "x\n");
        assert!(notes.contains("503 Service Unavailable: draining; reconnecting in"), "{notes}");
        assert!(!notes.contains("missing"), "there was no connection before: {notes}");
    }
}
