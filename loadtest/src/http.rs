//! As much of an HTTP/1.1 client as the control plane needs: one socket, one answer at a time.
//!
//! Answers are read with `Content-Length`, chunked, or to the end of the connection (RFC 9112
//! §6.3). Bounded in size.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

/// How long connecting and a simple answer may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a body that are read before giving up.
const BODY_BYTES_MAX: usize = 64 << 20;
/// Lines of a head that are read before giving up.
const HEAD_LINES_MAX: usize = 1_000;

/// What a server answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// The body, without chunks.
    pub body: Vec<u8>,
    /// True if the connection takes no further request.
    pub close: bool,
    /// True if it says when to try again (`Retry-After`).
    pub retry_after: bool,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body's first line, for errors.
    pub fn first_line(&self) -> String {
        self.text().lines().next().unwrap_or_default().to_owned()
    }
}

/// Connects with a limit, without Nagle's algorithm.
pub fn connect(address: SocketAddr) -> Result<TcpStream> {
    let socket = TcpStream::connect_timeout(&address, LIMIT).with_context(|| {
        format!("cannot connect to the control plane at {address}; is the server running?")
    })?;
    socket.set_nodelay(true)?;
    Ok(socket)
}

/// One `GET` on a connection of its own.
pub fn get(address: SocketAddr, path: &str) -> Result<Answer> {
    let mut socket = connect(address)?;
    socket.set_read_timeout(Some(LIMIT))?;
    write!(socket, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let answer = read_answer(&mut socket).with_context(|| format!("GET {path}"))?;
    if answer.status != 200 {
        bail!("GET {path}: {} {}", answer.status, answer.first_line());
    }
    Ok(answer)
}

/// One `POST` on a connection of its own, whatever the answer.
pub fn post(address: SocketAddr, path: &str, body: &[u8]) -> Result<Answer> {
    let mut socket = connect(address)?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.write_all(&post_request(address, path, body))?;
    read_answer(&mut socket).with_context(|| format!("POST {path}"))
}

/// The bytes of a `POST` that leaves the connection open.
pub fn post_request(address: SocketAddr, path: &str, body: &[u8]) -> Vec<u8> {
    let head = format!("POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\n\r\n", body.len());
    [head.as_bytes(), body].concat()
}

/// Reads one answer; what may follow it on the connection must not have been asked for yet.
pub fn read_answer(socket: &mut TcpStream) -> Result<Answer> {
    read_next(&mut BufReader::new(socket))
}

/// Parses an answer that is here as a whole.
pub fn parse_answer(bytes: &[u8]) -> Result<Answer> {
    read_next(&mut &*bytes)
}

/// Reads the next one of several answers on a connection.
pub fn read_next(mut from: &mut impl BufRead) -> Result<Answer> {
    let status_line = read_line(&mut from)?;
    let status = status_line
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.get(2..5))
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| anyhow!("not an HTTP answer: {status_line:?}"))?;
    let mut length = None;
    let (mut chunked, mut retry_after) = (false, false);
    let mut close = status_line.starts_with("HTTP/1.0");
    for lines in 0.. {
        let line = read_line(&mut from)?;
        let Some((name, value)) = line.split_once(':') else { break };
        if lines == HEAD_LINES_MAX {
            bail!("the answer's head has more than {HEAD_LINES_MAX} lines");
        }
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.trim().parse::<usize>().context("Content-Length")?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = value.trim().eq_ignore_ascii_case("chunked");
        } else if name.eq_ignore_ascii_case("connection") {
            close = value.trim().eq_ignore_ascii_case("close");
        } else if name.eq_ignore_ascii_case("retry-after") {
            retry_after = true;
        }
    }
    let mut body = Vec::new();
    if chunked {
        loop {
            let size = usize::from_str_radix(read_line(&mut from)?.trim(), 16).context("a chunk's size")?;
            read_exactly(&mut from, size, &mut body)?;
            read_line(&mut from)?;
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = length {
        read_exactly(&mut from, length, &mut body)?;
    } else if status != 204 {
        from.take(BODY_BYTES_MAX as u64).read_to_end(&mut body)?;
        close = true;
    }
    Ok(Answer { status, body, close, retry_after })
}

fn read_line(from: &mut impl BufRead) -> Result<String> {
    const LINE_BYTES_MAX: u64 = 16 << 10;
    let mut line = String::new();
    from.take(LINE_BYTES_MAX).read_line(&mut line).context("reading an HTTP answer")?;
    if !line.ends_with('\n') {
        bail!("the answer ended within its head or a chunk");
    }
    line.truncate(line.trim_end().len());
    Ok(line)
}

fn read_exactly(from: &mut impl BufRead, bytes: usize, body: &mut Vec<u8>) -> Result<()> {
    if body.len().saturating_add(bytes) > BODY_BYTES_MAX {
        bail!("the answer has more than {BODY_BYTES_MAX} bytes");
    }
    let start = body.len();
    body.resize(start + bytes, 0);
    from.read_exact(&mut body[start..]).context("the answer ended within its body")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_read_in_each_of_their_three_framings() {
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
            "HTTP/1.0 200 OK\r\n\r\nhello",
        ] {
            let answer = parse_answer(text.as_bytes()).expect("well formed");
            assert_eq!((answer.status, answer.text().as_str()), (200, "hello"), "{text}");
        }
    }

    #[test]
    fn answers_in_a_row_are_read_one_by_one_with_what_they_say_of_the_connection() {
        let mut from: &[u8] = b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\nok\
            HTTP/1.1 503 Busy\r\nretry-after: 1\r\nContent-Length: 0\r\n\r\n\
            HTTP/1.1 200 OK\r\nconnection: Close\r\nContent-Length: 0\r\n\r\n\
            HTTP/1.0 204 No Content\r\n\r\n\
            HTTP/1.1 200 OK\r\n\r\nto the end";
        let mut next = || {
            let answer = read_next(&mut from).expect("well formed");
            (answer.status, answer.close, answer.retry_after)
        };
        assert_eq!(next(), (202, false, false));
        assert_eq!(next(), (503, false, true));
        assert_eq!(next(), (200, true, false));
        assert_eq!(next(), (204, true, false));
        assert_eq!(next(), (200, true, false));
    }

    #[test]
    fn a_truncated_answer_and_a_foreign_protocol_are_errors() {
        let endless = format!("HTTP/1.1 200 OK\r\n{}", "a: b\r\n".repeat(HEAD_LINES_MAX + 1));
        assert!(parse_answer(endless.as_bytes()).expect_err("too long").to_string().contains("more than"));
        for text in ["", "SSH-2.0\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe", "HTTP/1.1 2"] {
            assert!(parse_answer(text.as_bytes()).is_err(), "{text}");
        }
    }
}
