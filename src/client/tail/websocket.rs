//! One WebSocket subscription over as many connections as it takes (RFC 6455).

use std::ops::ControlFlow;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use http::header::AUTHORIZATION;
use http::{HeaderValue, StatusCode};
use reqwest::Url;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::super::{KEEPALIVE_TIME, cannot_connect, push_query, refusal_line, retry_after, root_cause};
use super::{EVENT_BYTES_MAX, Ended, Output, Payload};

/// How long a close frame may take to leave.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(1);

/// The subscription.
pub(super) struct Stream {
    url: Url,
    /// `url` with the id to start after, until a connection has used it: raw messages carry no ids,
    /// so asking for it again would print everything again.
    resuming: Option<Url>,
    /// What lets it in.
    bearer: Option<HeaderValue>,
    /// True once a connection was open.
    returning: bool,
    /// From the first packet to the whole answer to the handshake.
    answer_time_max: Duration,
}

impl Stream {
    pub(super) fn new(
        url: Url,
        from: Option<&str>,
        bearer: Option<HeaderValue>,
        answer_time_max: Duration,
    ) -> Stream {
        let resuming = from.map(|id| {
            let mut resuming = url.clone();
            push_query(&mut resuming, "last-event-id", id);
            resuming
        });
        Stream { url, resuming, bearer, returning: false, answer_time_max }
    }

    /// Connects once and prints until the connection is over.
    pub(super) async fn follow(&mut self, output: &mut Output<'_>) -> Ended {
        let mut socket = match timeout(self.answer_time_max, self.connect()).await {
            Ok(Ok(socket)) => socket,
            Ok(Err(ended)) => return ended,
            Err(_) => return Ended::lost(format!("cannot connect to {}: no answer in time", self.url)),
        };
        self.resuming = None;
        let returning = std::mem::replace(&mut self.returning, true);
        output.connected(&self.url, returning.then_some("a raw WebSocket carries no ids"));
        let ended = loop {
            let flow = match socket.next().await {
                Some(Ok(Message::Text(text))) => output.event("message", "", Payload::Text(&text)),
                Some(Ok(Message::Binary(bytes))) => output.event("message", "", Payload::Binary(&bytes)),
                Some(Ok(Message::Close(frame))) => ControlFlow::Break(Ended::lost(describe(frame))),
                // Pings are answered by the library.
                Some(Ok(_)) => ControlFlow::Continue(()),
                Some(Err(error)) => return Ended::lost(format!("closed: {}", root_cause(&error))),
                None => return Ended::lost("closed: end of stream"),
            };
            if let ControlFlow::Break(ended) = flow {
                break ended;
            }
        };
        // Our close frame, or the library's answer to the server's (RFC 6455 §5.5.1): polite, not
        // worth a failure.
        let leave = async {
            if matches!(ended, Ended::Done) { socket.close(None).await } else { socket.flush().await }
        };
        let _ = timeout(CLOSE_TIME_MAX, leave).await;
        ended
    }

    async fn connect(&self) -> Result<WebSocketStream<TcpStream>, Ended> {
        let cannot = |cause: String| Ended::lost(format!("cannot connect to {}: {cause}", self.url));
        let host = self.url.host_str().unwrap_or_default();
        let port = self.url.port_or_known_default().unwrap_or(80);
        let connecting = TcpStream::connect(format!("{host}:{port}"));
        let stream = connecting.await.map_err(|error| Ended::lost(cannot_connect(&self.url, &error)))?;
        let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE_TIME);
        socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive).map_err(|e| cannot(e.to_string()))?;
        let url = self.resuming.as_ref().unwrap_or(&self.url);
        let config = WebSocketConfig::default()
            .max_message_size(Some(EVENT_BYTES_MAX))
            .max_frame_size(Some(EVENT_BYTES_MAX));
        let mut request = url.as_str().into_client_request().map_err(|error| cannot(root_cause(&error)))?;
        request.headers_mut().extend(self.bearer.clone().map(|bearer| (AUTHORIZATION, bearer)));
        match client_async_with_config(request, stream, Some(config)).await {
            Ok((socket, _)) => Ok(socket),
            Err(Error::Http(response)) => {
                let body = response.body().as_deref().unwrap_or_default();
                let line = refusal_line(response.status(), body);
                Err(match response.status() {
                    status if status.is_server_error() => {
                        Ended::Lost { why: line, asked: retry_after(response.headers()) }
                    }
                    StatusCode::OK => Ended::Refused(format!("{} answers, but not as a WebSocket", self.url)),
                    _ => Ended::Refused(line),
                })
            }
            Err(error) => Err(cannot(root_cause(&error))),
        }
    }
}

/// The server's close frame in words (RFC 6455 §7.4).
fn describe(frame: Option<CloseFrame>) -> String {
    match frame {
        Some(frame) if !frame.reason.is_empty() => {
            format!("closed: {} {}", u16::from(frame.code), frame.reason)
        }
        Some(frame) => format!("closed: {}", u16::from(frame.code)),
        None => "closed: no reason given".to_string(),
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
