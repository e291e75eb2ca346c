//! For the tests of both clients: a server that speaks `fanwave.v1.json`, word by word.

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::{WebSocketStream, accept_hdr_async};

/// A port of ours, and its address with this scheme.
pub async fn listener(scheme: &str) -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("{scheme}://{}", listener.local_addr().expect("bound"));
    (listener, url)
}

/// The server's end of a connection.
pub struct End {
    pub socket: WebSocketStream<TcpStream>,
    /// The target that was asked for.
    pub target: String,
}

impl End {
    /// The next client, which has to offer the subprotocol.
    pub async fn accept(listener: &TcpListener) -> End {
        let (stream, _) = listener.accept().await.expect("a connection");
        let mut target = String::new();
        #[allow(clippy::result_large_err, reason = "the library's type")]
        let agree = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
            target = request.uri().to_string();
            let offered = request.headers().get("sec-websocket-protocol").expect("an offer");
            assert_eq!(offered, "fanwave.v1.json");
            response.headers_mut().insert("sec-websocket-protocol", offered.clone());
            Ok(response)
        };
        let socket = accept_hdr_async(stream, agree).await.expect("a handshake");
        End { socket, target }
    }

    /// The next command: its `ref`, and what is under `name`.
    pub async fn hear(&mut self, name: &str) -> (Value, Value) {
        let message = self.socket.next().await.expect("a command").expect("a message");
        let command: Value = serde_json::from_str(message.to_text().expect("text")).expect("JSON");
        assert!(command[name].is_object(), "{name} is awaited: {command}");
        (command["ref"].clone(), command[name].clone())
    }

    pub async fn say(&mut self, text: Value) {
        self.socket.send(Message::text(text.to_string())).await.expect("the client is there");
    }

    /// Answers a command with an error.
    pub async fn refuse(&mut self, reference: Value, code: &str) {
        self.say(json!({ "ref": reference, "error": { "code": code, "detail": "not now" } })).await;
    }

    /// Closes, and waits for the client to be gone.
    pub async fn close(mut self, code: u16) {
        let frame = CloseFrame { code: code.into(), reason: "enough".into() };
        self.socket.close(Some(frame)).await.expect("open");
        while let Some(Ok(_)) = self.socket.next().await {}
    }
}
