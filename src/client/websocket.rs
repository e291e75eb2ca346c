//! Opening a WebSocket, and leaving one (RFC 6455): what both clients share.

use std::time::Duration;

use http::header::{AUTHORIZATION, SEC_WEBSOCKET_PROTOCOL};
use http::{HeaderValue, StatusCode};
use reqwest::Url;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::trust::{Trust, distrust, has_tls};
use super::{KEEPALIVE_TIME, cannot_connect, refusal_line, retry_after, root_cause};

/// How long a close frame may take to leave.
pub const CLOSE_TIME_MAX: Duration = Duration::from_secs(1);
/// The largest message that is taken; a server that sends more is not one of ours.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// A stream with TLS or without.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// An open connection.
pub type Socket = WebSocketStream<Box<dyn Stream>>;

/// Why there is no connection.
#[derive(Debug)]
pub enum Unopened {
    /// The server does not want us, or does not speak our language. A retry does not help.
    Refused(String),
    /// Nobody answers, or there is no room. A retry helps, after what the server asked for.
    Lost { why: String, asked: Option<Duration> },
}

/// The address of a WebSocket where somebody wrote that of its request.
pub fn as_websocket(url: &mut Url) {
    let scheme = if has_tls(url) { "wss" } else { "ws" };
    // All four are special schemes, so one becomes another (WHATWG URL §6.1).
    url.set_scheme(scheme).expect("http becomes ws");
}

/// What to connect to.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    pub url: &'a Url,
    /// The address that is named to the user.
    pub name: &'a Url,
    /// What is to be spoken; the server has to agree.
    pub subprotocol: Option<&'static str>,
    /// What lets us in.
    pub bearer: Option<&'a HeaderValue>,
    /// Which servers with TLS are believed.
    pub trust: &'a Trust,
}

impl Target<'_> {
    /// Connects, and gives up after so long.
    pub async fn open(self, time_max: Duration) -> Result<Socket, Unopened> {
        match timeout(time_max, self.connect()).await {
            Ok(outcome) => outcome,
            Err(_) => Err(self.cannot("no answer in time")),
        }
    }

    fn cannot(self, cause: &str) -> Unopened {
        Unopened::Lost { why: format!("cannot connect to {}: {cause}", self.name), asked: None }
    }

    async fn connect(self) -> Result<Socket, Unopened> {
        let host = self.url.host_str().unwrap_or_default();
        let port = self.url.port_or_known_default().unwrap_or(80);
        let connecting = TcpStream::connect(format!("{host}:{port}")).await;
        let stream = connecting
            .map_err(|error| Unopened::Lost { why: cannot_connect(self.name, &error), asked: None })?;
        let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE_TIME);
        let kept = socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive);
        kept.and_then(|()| stream.set_nodelay(true)).map_err(|error| self.cannot(&error.to_string()))?;
        let stream: Box<dyn Stream> = match has_tls(self.url) {
            false => Box::new(stream),
            true => Box::new(self.trust.shake(self.url, stream).await.map_err(|error| {
                match distrust(self.name, &error) {
                    Some(line) => Unopened::Refused(line),
                    None => self.cannot(&root_cause(&error)),
                }
            })?),
        };
        let mut request =
            self.url.as_str().into_client_request().map_err(|error| self.cannot(&root_cause(&error)))?;
        request.headers_mut().extend(self.bearer.map(|bearer| (AUTHORIZATION, bearer.clone())));
        if let Some(name) = self.subprotocol {
            request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
        }
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        match client_async_with_config(request, stream, Some(config)).await {
            Ok((socket, _)) => Ok(socket),
            Err(Error::Http(response)) => Err(self.refusal(&response)),
            Err(Error::Protocol(ProtocolError::SecWebSocketSubProtocolError(_))) => {
                let wanted = self.subprotocol.unwrap_or("raw messages");
                Err(Unopened::Refused(format!("{} does not speak {wanted}", self.name)))
            }
            Err(error) => Err(self.cannot(&root_cause(&error))),
        }
    }

    /// What an answer means that is no WebSocket.
    fn refusal(self, response: &http::Response<Option<Vec<u8>>>) -> Unopened {
        let body = response.body().as_deref().unwrap_or_default();
        let line = refusal_line(response.status(), body);
        match response.status() {
            status if status.is_server_error() => {
                Unopened::Lost { why: line, asked: retry_after(response.headers()) }
            }
            StatusCode::OK => Unopened::Refused(format!("{} answers, but not as a WebSocket", self.name)),
            _ => Unopened::Refused(line),
        }
    }
}

/// What one read of a connection brought.
pub enum Read {
    Message(Message),
    /// A ping or pong; the library answers pings.
    Alive,
    /// The connection is over.
    Over(Over),
}

/// Why a connection is over.
pub struct Over {
    /// In words.
    pub why: String,
    /// The code of the server's close frame.
    pub code: Option<u16>,
}

impl Read {
    pub fn of(next: Option<Result<Message, Error>>) -> Read {
        let over = |why: String| Read::Over(Over { why: format!("closed: {why}"), code: None });
        match next {
            Some(Ok(message @ (Message::Text(_) | Message::Binary(_)))) => Read::Message(message),
            Some(Ok(Message::Close(Some(frame)))) => Read::Over(frame.into()),
            Some(Ok(Message::Close(None))) => over("no reason given".to_string()),
            Some(Ok(_)) => Read::Alive,
            Some(Err(error)) => over(root_cause(&error)),
            None => over("end of stream".to_string()),
        }
    }
}

impl From<CloseFrame> for Over {
    /// A close frame in words (RFC 6455 §7.4).
    fn from(frame: CloseFrame) -> Over {
        let code = u16::from(frame.code);
        let why = match frame.reason.as_str() {
            "" => format!("closed: {code}"),
            reason => format!("closed: {code} {reason}"),
        };
        Over { why, code: Some(code) }
    }
}

/// Takes leave: with our close frame, or by flushing the library's answer to the server's (RFC 6455
/// §5.5.1). Polite, and not worth a failure.
pub async fn leave(socket: &mut Socket, is_first: bool) {
    let leaving = async {
        match is_first {
            true => socket.close(None).await,
            false => futures_util::SinkExt::flush(socket).await,
        }
    };
    let _ = timeout(CLOSE_TIME_MAX, leaving).await;
}
