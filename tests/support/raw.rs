//! HTTP over a bare socket: any bytes out, the answer read to the end of the stream.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::within;

/// An answer that ends with its connection.
#[derive(Debug)]
pub struct RawAnswer {
    pub status: u16,
    head: String,
    pub body: Vec<u8>,
}

impl RawAnswer {
    pub fn parse(bytes: &[u8]) -> RawAnswer {
        let end = memchr::memmem::find(bytes, b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no head: {:?}", String::from_utf8_lossy(bytes)));
        let head = String::from_utf8(bytes[..end].to_vec()).expect("a head is ASCII");
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        RawAnswer {
            status: status.unwrap_or_else(|| panic!("no status line: {head}")),
            head,
            body: bytes[end + 4..].to_vec(),
        }
    }

    /// The value of a header field.
    pub fn header(&self, name: &str) -> Option<&str> {
        let fields = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
    }

    /// The seconds of `Retry-After`, which must be there.
    pub fn retry_after_s(&self) -> u32 {
        self.header("Retry-After").and_then(|text| text.parse().ok()).expect("a number of seconds")
    }

    /// The body, which is one line.
    pub fn line(&self) -> &str {
        let text = std::str::from_utf8(&self.body).expect("plain text is UTF-8");
        let line = text.strip_suffix('\n').unwrap_or_else(|| panic!("no whole line: {text:?}"));
        assert!(!line.is_empty() && !line.contains(['\n', '\r']), "one line of reason: {text:?}");
        line
    }
}

/// Sends `request` and reads until the server ends the connection.
pub async fn exchange(server: SocketAddr, request: &[u8]) -> RawAnswer {
    RawAnswer::parse(&exchange_bytes(server, request).await)
}

/// Sends `request` and gives all that the server says before it ends the connection, maybe nothing.
pub async fn exchange_bytes(server: SocketAddr, request: &[u8]) -> Vec<u8> {
    let mut socket = within("a connection", TcpStream::connect(server)).await.expect("the server accepts");
    within("room to write", socket.write_all(request)).await.expect("the server reads");
    rest(&mut socket).await
}

/// All that comes until the server ends the connection. A reset is as good as an end here.
pub async fn rest(socket: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = within("the end of a connection", socket.read_to_end(&mut bytes)).await;
    bytes
}
