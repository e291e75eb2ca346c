//! What is kept out: pages and names that are foreign, hosts that are none, bodies in a coding that
//! subscribers would get.

use super::*;
use crate::hub::RefusalReason;

/// A request for `uri` with these header fields.
fn request(method: &str, uri: &str, fields: &[(&str, &str)]) -> axum::http::Result<Request<Body>> {
    let request = Request::builder().method(method).uri(uri);
    fields.iter().fold(request, |request, (name, value)| request.header(*name, *value)).body(Body::from("x"))
}

#[tokio::test]
async fn a_foreign_page_or_name_neither_publishes_nor_reads() {
    use RefusalReason::{BadHost, ForeignHost, ForeignOrigin};
    let mut bench = bench(1, Limits::default());
    let _seen = bench.start_shard(0);
    for (fields, refused) in [
        (&[("host", "localhost:8081")][..], None),
        (&[("host", "127.0.0.1:8081"), ("origin", "http://127.0.0.1:8081")], None),
        (&[("host", "localhost"), ("origin", "http://localhost")], None),
        (&[("host", "EDGE.example:8081"), ("origin", "https://edge.example:8081")], None),
        (&[("host", "[::1]:8081"), ("origin", "https://ops.example")], None),
        (
            &[("host", "localhost:8081"), ("origin", "http://localhost:3000")],
            Some((ForeignOrigin, "localhost:3000")),
        ),
        (
            &[("host", "localhost"), ("origin", "https://evil.example")],
            Some((ForeignOrigin, "--control-origin")),
        ),
        (&[("host", "localhost"), ("origin", "null")], Some((ForeignOrigin, "null"))),
        (
            &[("host", "localhost"), ("origin", "https://ops.example"), ("origin", "https://evil.example")],
            Some((ForeignOrigin, "evil.example")),
        ),
        (&[("host", "evil.example:8081")], Some((ForeignHost, "--control-host"))),
        (&[("host", "evil.example"), ("origin", "http://evil.example")], Some((ForeignHost, "evil.example"))),
        (&[("host", "a b")], Some((BadHost, "malformed"))),
        (&[("host", "u@h")], Some((BadHost, "malformed"))),
        (&[("host", "h:80:80")], Some((BadHost, "malformed"))),
        (&[("host", "[::1")], Some((BadHost, "malformed"))),
        (&[("host", "localhost"), ("host", "localhost")], Some((BadHost, "twice"))),
    ] {
        for (method, uri) in
            [("POST", "/topics/a"), ("POST", "/publish"), ("GET", "/stats"), ("GET", "/topics")]
        {
            let counted = |reason| bench.hub.intake().counters().refused.get(reason);
            match refused {
                None => {
                    let answer = bench.ask(request(method, uri, fields)).await;
                    assert_eq!(answer.status, StatusCode::OK, "{method} {uri} {fields:?}: {}", answer.body);
                }
                Some((reason, word)) => {
                    let before = counted(reason);
                    let answer = bench.ask(request(method, uri, fields)).await;
                    answer.assert_error(reason.status(), word);
                    assert_eq!(counted(reason), before + 1, "{method} {uri} {fields:?}");
                }
            }
        }
    }
    assert_eq!(bench.hub.intake().counters().events, 5, "nothing of a stranger was published");
}

#[tokio::test]
async fn a_target_that_names_a_foreign_host_is_foreign() {
    let bench = bench(1, Limits::default());
    let answer = bench.ask(request("GET", "http://evil.example/stats", &[("host", "localhost")])).await;
    answer.assert_error(StatusCode::FORBIDDEN, "evil.example");
    for scheme in ["http", "https"] {
        let uri = format!("{scheme}://localhost:8081/healthz");
        assert_eq!(bench.ask(request("GET", &uri, &[])).await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_missing_host_is_refused_from_http_1_1_on() {
    let bench = bench(1, Limits::default());
    for (version, status) in [(Version::HTTP_10, StatusCode::OK), (Version::HTTP_11, StatusCode::BAD_REQUEST)]
    {
        let request = Request::get("/healthz").version(version).body(Body::empty()).expect("a request");
        let answer = bench.router.clone().oneshot(request).await.expect("infallible");
        assert_eq!(answer.status(), status, "{version:?}");
    }
}

#[tokio::test]
async fn probes_and_the_unix_socket_are_out_of_every_pages_reach() {
    let bench = bench(1, Limits::default());
    let foreign = [("host", "evil.example"), ("origin", "https://evil.example")];
    assert_eq!(bench.ask(request("GET", "/healthz", &foreign)).await.status, StatusCode::OK);
    assert_eq!(bench.ask(request("HEAD", "/healthz", &foreign)).await.status, StatusCode::OK);
    let router = control::router(bench.hub.clone(), "unix:/run/a".parse().expect("an address"), Scheme::Http);
    let bench = Bench { router, ..bench };
    assert_eq!(bench.ask(request("GET", "/", &foreign)).await.status, StatusCode::OK);
}

#[tokio::test]
async fn a_page_that_the_operator_names_may_publish_and_read_the_answer() {
    let bench = bench(1, Limits::default());
    let page = [("host", "localhost"), ("origin", "https://ops.example")];
    let preflight = bench.ask(request("OPTIONS", "/topics/a", &page)).await;
    assert_eq!(preflight.status, StatusCode::NO_CONTENT);
    let told = |name: &str| preflight.headers.get(name).and_then(|value| value.to_str().ok());
    assert_eq!(told("access-control-allow-methods"), Some("GET, POST, DELETE"));
    assert_eq!(told("access-control-allow-headers"), Some("Authorization, Content-Type, Accept"));
    let answer = bench.ask(request("POST", "/topics/a", &page)).await;
    assert_eq!(answer.status, StatusCode::OK);
    for answer in [preflight, answer] {
        assert_eq!(answer.headers["access-control-allow-origin"], "https://ops.example");
        assert_eq!(answer.headers["access-control-allow-credentials"], "true");
        assert_eq!(answer.headers["vary"], "Origin");
    }
}

#[tokio::test]
async fn a_body_in_a_coding_is_refused_before_subscribers_get_it() {
    let bench = bench(1, Limits::default());
    let counted = |reason| bench.hub.intake().counters().refused.get(reason);
    for uri in ["/topics/a", "/publish"] {
        for coding in ["gzip", "br", "identity, gzip", "GZIP"] {
            let answer = bench.ask(request("POST", uri, &[("content-encoding", coding)])).await;
            answer.assert_error(StatusCode::UNSUPPORTED_MEDIA_TYPE, "Content-Encoding");
            assert_eq!(answer.headers[header::ACCEPT_ENCODING], "identity");
        }
        let answer = bench.ask(request("POST", uri, &[("transfer-encoding", "gzip, chunked")])).await;
        answer.assert_error(StatusCode::NOT_IMPLEMENTED, "chunked");
        for fields in [
            [("content-encoding", "identity")],
            [("content-encoding", "")],
            [("transfer-encoding", "chunked")],
        ] {
            assert_eq!(bench.ask(request("POST", uri, &fields)).await.status, StatusCode::OK, "{fields:?}");
        }
    }
    assert_eq!((counted(RefusalReason::ContentCoding), counted(RefusalReason::TransferCoding)), (8, 2));
    assert_eq!(bench.hub.intake().counters().events, 3);
}

/// What nobody reads on the connection must not be taken for the next request.
#[tokio::test]
async fn who_is_refused_with_a_body_on_its_way_is_told_that_the_connection_ends() {
    let bench = bench(1, Limits { message_bytes_max: 4, window_bytes_max: 1 << 16, ..Limits::default() });
    for (uri, body) in [("/topics/a", "too large"), ("/nowhere", "x"), ("/stats", "x"), ("/publish?x", "x")] {
        let answer = bench.post(uri, body).await;
        assert!(answer.status.is_client_error(), "{uri}");
        assert_eq!(answer.headers[header::CONNECTION], "close", "{uri}");
    }
    for (uri, body) in [("/topics/a", "x"), ("/topics/", "")] {
        assert!(!bench.post(uri, body).await.headers.contains_key(header::CONNECTION), "{uri}");
    }
}

#[tokio::test]
async fn every_json_answer_is_one_line() {
    let mut bench = bench(1, Limits::default());
    let _seen = bench.start_shard(0);
    assert!(bench.post("/topics/a", "x").await.body.ends_with("}\n"));
    for uri in ["/topics", "/topics/a", "/stats", "/topics/nobody", "/nowhere"] {
        let answer = bench.get(uri).await;
        assert_eq!(answer.headers[header::CONTENT_TYPE], "application/json", "{uri}");
        assert!(answer.body.ends_with("}\n") && answer.body.lines().count() == 1, "{uri}: {}", answer.body);
    }
}
