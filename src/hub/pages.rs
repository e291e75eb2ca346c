//! The pages of the control plane for browsers: static files, compiled in.
//!
//! A page may load only what is here, ask only this server, and run only the scripts that we wrote,
//! whatever gets into it: its policy allows nothing else. The dashboard and the playground load
//! their scripts; an example holds its script, so that it can be copied whole, and its policy names
//! the script's hash (CSP Level 3 §2.3.1).
//!
//! No page holds a secret, so none needs the control token: a page asks for it, and brings it with
//! what it asks. In each page stands the address [`PLACE`] where the one of the data plane goes.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::asked::{Scheme, authority};
use super::{Hub, accept};

/// Path, content type, content.
const FILES: [(&str, &str, &str); 7] = [
    ("/pages/pages.css", "text/css; charset=utf-8", include_str!("pages/pages.css")),
    ("/pages/session.js", "text/javascript; charset=utf-8", include_str!("pages/session.js")),
    ("/pages/dashboard.js", "text/javascript; charset=utf-8", include_str!("pages/dashboard.js")),
    ("/pages/playground.css", "text/css; charset=utf-8", include_str!("pages/playground.css")),
    ("/pages/playground.js", "text/javascript; charset=utf-8", include_str!("pages/playground.js")),
    ("/pages/examples.css", "text/css; charset=utf-8", include_str!("pages/examples.css")),
    ("/pages/icon.svg", "image/svg+xml", include_str!("pages/icon.svg")),
];

/// Path and content of the pages that speak to the data plane.
const LIVE: [(&str, &str); 7] = [
    ("/playground", include_str!("pages/playground.html")),
    ("/examples/news", include_str!("pages/examples/news.html")),
    ("/examples/monitor", include_str!("pages/examples/monitor.html")),
    ("/examples/quotes", include_str!("pages/examples/quotes.html")),
    ("/examples/chat", include_str!("pages/examples/chat.html")),
    ("/examples/board", include_str!("pages/examples/board.html")),
    ("/examples/game", include_str!("pages/examples/game.html")),
];

/// The data plane in the files. So each of them is an example that works as it is.
const PLACE: &str = "127.0.0.1:8080";

/// Where [`NOTICE`] goes.
const NOTICE_PLACE: &str = "<!-- notice -->\n";

/// What stands on a page whose publishes would be refused.
const NOTICE: &str = "<p class=\"notice warning\">This server takes no publishes from pages like this one. \
                      Start it with <code>fanwave serve --playground</code>.</p>\n";

/// A topic of the pages.
const PLAY_TOPIC: &str = "play/hello";

/// The pages, and the files that they load.
pub(super) fn routes(scheme: Scheme) -> Router<Arc<Hub>> {
    let router = FILES.iter().fold(Router::new(), |router, (path, content_type, content)| {
        let policy = policy("'self'", "'self'", "");
        let file = async move || guarded(([(header::CONTENT_TYPE, *content_type)], *content), &policy);
        router.route(path, get(file))
    });
    LIVE.iter().fold(router, |router, (path, content)| {
        let page = async move |State(hub): State<Arc<Hub>>, headers: HeaderMap| {
            live(&hub, scheme, &headers, content)
        };
        router.route(path, get(page))
    })
}

/// True for the path of a page or of a file.
pub(super) fn is_page(path: &str) -> bool {
    FILES.iter().any(|file| file.0 == path) || LIVE.iter().any(|page| page.0 == path)
}

/// True for a request that is answered with a page or a file, whatever else it brings.
pub(super) fn is_asked(method: &Method, uri: &Uri, headers: &HeaderMap) -> bool {
    let is_front = || uri.path() == "/" && wants_html(headers);
    matches!(*method, Method::GET | Method::HEAD) && (is_page(uri.path()) || is_front())
}

/// True if the client would rather read a page than a text.
pub(super) fn wants_html(headers: &HeaderMap) -> bool {
    accept::rather(headers, "text/html", "text/plain")
}

/// What the server is doing, live.
pub(super) fn dashboard() -> Response {
    guarded(Html(include_str!("pages/dashboard.html")), &policy("'self'", "'self'", "'self'"))
}

/// A page, with the address of the data plane for a browser that asked with `headers`.
fn live(hub: &Hub, scheme: Scheme, headers: &HeaderMap, content: &str) -> Response {
    let asked = headers.get(header::HOST).and_then(authority);
    let found = hub.listen.found(scheme, asked.as_ref());
    let (scheme, address) = found.unwrap_or_else(|| (scheme, PLACE.to_string()));
    let (http, ws, data) = (scheme.name(), scheme.of_websockets(), in_policy(address));
    let notice = if hub.config().lets_clients_publish(PLAY_TOPIC) { "" } else { NOTICE };
    let page = content
        .replace(NOTICE_PLACE, notice)
        .replace(&format!("http://{PLACE}"), &format!("{http}://{data}"))
        .replace(&format!("ws://{PLACE}"), &format!("{ws}://{data}"))
        .replace(PLACE, &data);
    let connect = match data.starts_with('[') {
        // A policy cannot name such an address (CSP Level 3 §2.3.1, host-source).
        true => format!("'self' {http}: {ws}:"),
        false => format!("'self' {http}://{data} {ws}://{data}"),
    };
    let (script, style) = (sources(&page, "script"), sources(&page, "style"));
    guarded(Html(page), &policy(&script, &style, &connect))
}

/// An address as a policy can name it, where there is a way.
fn in_policy(address: String) -> String {
    match address.strip_prefix("[::1]") {
        Some(port) => format!("localhost{port}"),
        None => address,
    }
}

/// Our own files, and what stands in the page between the tags `name`, by its hash.
fn sources(page: &str, name: &str) -> String {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let inner = page.split(&open).skip(1).filter_map(|rest| rest.split(&close).next());
    let hashes = inner.map(|text| format!(" 'sha256-{}'", STANDARD.encode(Sha256::digest(text))));
    format!("'self'{}", hashes.collect::<String>())
}

fn policy(script: &str, style: &str, connect: &str) -> String {
    let connect = if connect.is_empty() { "'none'" } else { connect };
    format!(
        "default-src 'none'; script-src {script}; style-src {style}; img-src 'self'; connect-src {connect}; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

fn guarded(content: impl IntoResponse, policy: &str) -> Response {
    let fixed = |name: HeaderName, value: &'static str| (name, HeaderValue::from_static(value));
    let policy = HeaderValue::from_str(policy).expect("the parts of an address are plain ASCII");
    let mut response = content.into_response();
    response.headers_mut().extend([
        (header::CONTENT_SECURITY_POLICY, policy),
        fixed(header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        fixed(header::REFERRER_POLICY, "no-referrer"),
        // Another version of the server has other files under the same names.
        fixed(header::CACHE_CONTROL, "no-cache"),
    ]);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_is_short_and_stands_for_itself() {
        for (path, content) in LIVE.iter().filter(|page| page.0.starts_with("/examples/")) {
            let lines = content.lines().count();
            assert!(lines <= 120, "{path} has {lines} lines");
            assert!(content.lines().all(|line| line.len() <= 120), "{path} has long lines");
            assert_eq!(content.matches("<script>").count(), 1, "{path}");
            assert!(content.contains(NOTICE_PLACE) && content.contains(PLACE), "{path}");
            for part in content.split("://").skip(1) {
                assert!(part.starts_with(PLACE), "{path} names another host: {part}");
            }
        }
    }

    #[test]
    fn a_script_in_a_page_is_named_by_its_hash() {
        let hash = "'sha256-ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0='";
        assert_eq!(sources("<script>abc</script>", "script"), format!("'self' {hash}"));
        assert_eq!(sources("<script src=\"/a.js\"></script>", "script"), "'self'");
    }

    #[test]
    fn an_address_is_one_that_a_policy_can_name_where_there_is_a_way() {
        for (address, named) in [
            ("[::1]:8080", "localhost:8080"),
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("[2001:db8::1]:1", "[2001:db8::1]:1"),
        ] {
            assert_eq!(in_policy(address.to_string()), named);
        }
    }
}
