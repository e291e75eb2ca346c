use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

const ANSWER: &str = "HTTP/1.1 200 OK\r\nContent-Length: 14\r\nConnection: close\r\n\r\n{\"id\":\"abc-1\"}";

/// What came of a `fanwave publish`, what it printed, and its notes.
pub(super) type Outcome = (Result<(), ClientError>, String, String);

pub(super) async fn publish(
    server: &str,
    args: &[&str],
    input: impl AsyncRead + Send + Unpin + 'static,
) -> Outcome {
    publish_within(PATIENCE, server, args, input).await
}

pub(super) async fn publish_within(
    patience: Patience,
    server: &str,
    args: &[&str],
    input: impl AsyncRead + Send + Unpin + 'static,
) -> Outcome {
    publish_to(patience, &["--server", server], args, input).await
}

pub(super) async fn publish_to(
    patience: Patience,
    place: &[&str],
    args: &[&str],
    input: impl AsyncRead + Send + Unpin + 'static,
) -> Outcome {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }
    let line = ["publish"].iter().chain(place).chain(args).copied();
    let line = <Line as clap::Parser>::try_parse_from(line).expect("valid flags");
    let (mut out, mut notes) = (Vec::new(), Vec::new());
    let work = super::publish(line.options, patience, input, &mut out, &mut notes);
    let result = tokio::time::timeout(Duration::from_secs(20), work).await.expect("publish ends in time");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (result, text(out), text(notes))
}

pub(super) async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let server = format!("http://{}", listener.local_addr().expect("bound"));
    (listener, server)
}

pub(super) async fn accept(listener: &TcpListener) -> TcpStream {
    listener.accept().await.expect("a connection").0
}

/// Reads up to and including `end`.
pub(super) async fn read_to(stream: &mut (impl AsyncRead + Unpin), end: &str) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(end.as_bytes()) {
        bytes.push(stream.read_u8().await.expect("more of the request"));
    }
    String::from_utf8(bytes).expect("UTF-8")
}

/// Takes one request whose body ends in `end`, answers it, and gives its head (as sent) and
/// body.
async fn answer(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    end: &str,
    answer: &str,
) -> (String, String) {
    let head = read_to(stream, "\r\n\r\n").await;
    let body = read_to(stream, end).await;
    stream.write_all(answer.as_bytes()).await.expect("the client reads");
    (head, body)
}

#[tokio::test]
async fn an_event_is_posted_with_its_options_and_its_id_is_printed() {
    let (listener, server) = listener().await;
    let args = ["räume/1", "hello, world", "--event", "a&b", "--id", "x y", "--retry", "500"];
    let serve = async { answer(&mut accept(&listener).await, "world", ANSWER).await };
    let ((head, body), (result, out, _)) = tokio::join!(serve, publish(&server, &args, tokio::io::empty()));
    result.expect("published");
    assert_eq!(out, "abc-1\n");
    assert_eq!(body, "hello, world");
    let target = "POST /topics/r%C3%A4ume%2F1?event=a%26b&id=x%20y&retry=500 HTTP/1.1\r\n";
    assert!(head.starts_with(target), "{head}");
    assert!(head.to_lowercase().contains("content-type: text/plain; charset=utf-8\r\n"), "{head}");
}

#[tokio::test]
async fn standard_input_is_one_event_without_its_last_line_break() {
    for (input, args, length, content_type) in [
        (&b"a\nb\r\n"[..], &["t"][..], 3, "text/plain"),
        (b"a\nb", &["t", "-"], 3, "text/plain"),
        (b"a\nb\r\n", &["t", "--binary"], 5, "application/octet-stream"),
    ] {
        let (listener, server) = listener().await;
        let serve = async { answer(&mut accept(&listener).await, "a\nb", ANSWER).await };
        let ((head, _), (result, _, _)) = tokio::join!(serve, publish(&server, args, input));
        result.expect("published");
        let head = head.to_lowercase();
        assert!(head.contains(&format!("content-length: {length}\r\n")), "{head}");
        assert!(head.contains(&format!("content-type: {content_type}")), "{head}");
    }
}

#[tokio::test]
async fn a_refused_event_fails_with_the_servers_line() {
    let (listener, server) = listener().await;
    let refusal = "HTTP/1.1 400 Bad Request\r\nContent-Length: 23\r\n\r\n{\"error\":\"id: illegal\"}";
    let serve = async { answer(&mut accept(&listener).await, "x", refusal).await };
    let (_, (result, out, _)) = tokio::join!(serve, publish(&server, &["t", "x"], tokio::io::empty()));
    match result {
        Err(ClientError::Refused(line)) => assert_eq!(line, "400 Bad Request: id: illegal"),
        other => panic!("{other:?}"),
    }
    assert_eq!(out, "");
}

#[tokio::test]
async fn a_full_server_is_asked_again_when_it_says_so() {
    let (listener, server) = listener().await;
    let full = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n\
        Content-Length: 4\r\n\r\nfull";
    let serve = async {
        answer(&mut accept(&listener).await, "x", full).await;
        let refused = std::time::Instant::now();
        answer(&mut accept(&listener).await, "x", ANSWER).await;
        refused.elapsed()
    };
    let (waited, (result, out, notes)) =
        tokio::join!(serve, publish(&server, &["t", "x"], tokio::io::empty()));
    result.expect("published");
    assert!(waited >= Duration::from_millis(990), "{waited:?}");
    assert_eq!(out, "abc-1\n");
    assert!(notes.contains("503 Service Unavailable: full; trying again in 1."), "{notes}");
}

/// Says `answer` to every request and then nothing more, for as long as `work` lasts.
pub(super) async fn while_silent<T>(listener: TcpListener, answer: &str, work: impl Future<Output = T>) -> T {
    let mut open = Vec::new();
    let serve = async {
        loop {
            let mut stream = accept(&listener).await;
            // The rest of the request fits the kernel's buffer. A client may give up at once.
            if stream.read_u8().await.is_ok() && stream.write_all(answer.as_bytes()).await.is_ok() {
                open.push(stream);
            }
        }
    };
    tokio::select! {
        () = serve => unreachable!("it serves for ever"),
        result = work => result,
    }
}

pub(super) const SHORT: Duration = Duration::from_millis(50);

/// Neither a server that takes the request and says nothing nor one that stops within its
/// answer is waited for without end.
#[tokio::test]
async fn an_answer_that_does_not_come_leaves_the_event_unknown() {
    let begun = "HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{\"id\":";
    for answer in ["", begun] {
        let (listener, server) = listener().await;
        let patience = Patience { answer: SHORT, ..PATIENCE };
        let work = publish_within(patience, &server, &["t", "x"], tokio::io::empty());
        let (result, out, _) = while_silent(listener, answer, work).await;
        let told = format!("{server}: no answer within 0.05 s; what was sent may or may not be published");
        assert!(matches!(&result, Err(ClientError::Unreachable(line)) if *line == told), "{result:?}");
        assert_eq!(out, "");
    }
}

#[test]
fn a_large_event_has_the_time_that_the_server_gives_it() {
    let seconds =
        [0, 65_535, 65_536, 1 << 20, EVENT_BYTES_MAX].map(|bytes| PATIENCE.of_event(bytes).as_secs());
    assert_eq!(seconds, [20, 20, 21, 36, 80]);
}

#[tokio::test]
async fn a_refusal_whose_body_does_not_come_is_told_as_far_as_it_came() {
    for (body, line) in [("", "400 Bad Request"), ("no such t", "400 Bad Request: no such t")] {
        let (listener, server) = listener().await;
        let answer = format!("HTTP/1.1 400 Bad Request\r\nContent-Length: 20\r\n\r\n{body}");
        let patience = Patience { refusal: SHORT, ..PATIENCE };
        let work = publish_within(patience, &server, &["t", "x"], tokio::io::empty());
        let (result, _, _) = while_silent(listener, &answer, work).await;
        assert!(matches!(&result, Err(ClientError::Refused(text)) if text == line), "{result:?}");
    }
}

/// The whole body counts, not each of its pieces: these would come for a minute.
#[tokio::test]
async fn a_refusal_that_trickles_in_is_not_read_to_its_end() {
    let (listener, server) = listener().await;
    let patience = Patience { refusal: SHORT, ..PATIENCE };
    let work = publish_within(patience, &server, &["t", "x"], tokio::io::empty());
    let trickle = async {
        let mut stream = accept(&listener).await;
        read_to(&mut stream, "\r\n\r\nx").await;
        let head = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 6000\r\n\r\nx";
        stream.write_all(head).await.expect("the client reads");
        let mut pieces = tokio::time::interval(Duration::from_millis(10));
        while stream.write_all(b"x").await.is_ok() {
            pieces.tick().await;
        }
    };
    let ((), (result, _, _)) = tokio::join!(trickle, work);
    let begins = |line: &String| line.starts_with("400 Bad Request: x");
    assert!(matches!(&result, Err(ClientError::Refused(line)) if begins(line)), "{result:?}");
}

#[tokio::test]
async fn a_unix_socket_is_a_server_too() {
    let path = std::env::temp_dir().join(format!("fanwave-{}-publish.sock", std::process::id()));
    let listener = tokio::net::UnixListener::bind(&path).expect("a socket");
    let serve = async {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        answer(&mut stream, "x", ANSWER).await
    };
    let server = format!("unix:{}", path.display());
    let ((head, _), (result, _, _)) = tokio::join!(serve, publish(&server, &["t", "x"], tokio::io::empty()));
    let _ = std::fs::remove_file(&path);
    result.expect("published");
    assert!(head.starts_with("POST /topics/t HTTP/1.1\r\n"), "{head}");
}

#[tokio::test]
async fn what_cannot_be_sent_is_said_before_connecting() {
    for (server, args, part) in [
        ("ftp://127.0.0.1:1", &["t", "x"][..], "https://HOST:PORT"),
        ("127.0.0.1:8081", &["t", "x"], "http://"),
        ("http://127.0.0.1:1", &["..", "x"], "--lines"),
        ("http://127.0.0.1:1", &["t", "x", "--lines"], "standard input"),
    ] {
        let (result, _, _) = publish(server, args, tokio::io::empty()).await;
        match result {
            Err(ClientError::Usage(line)) => assert!(line.contains(part), "{line}"),
            other => panic!("{args:?}: {other:?}"),
        }
    }
    let (listener, server) = listener().await;
    drop(listener);
    let (result, _, _) = publish(&server, &["t", "x"], tokio::io::empty()).await;
    let error = result.expect_err("nobody listens").to_string();
    assert!(error.contains("refused") && error.contains("fanwave serve"), "{error}");
}
