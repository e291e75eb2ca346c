//! The pages of the control plane for browsers: static files, compiled in.
//!
//! A page may load only what is here and ask only this server, whatever gets into it: its policy
//! allows nothing else, no script or style in the page itself included.

use axum::Router;
use axum::http::{HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::get;

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Path, content type, content.
const FILES: [(&str, &str, &str); 3] = [
    ("/pages/dashboard.css", "text/css; charset=utf-8", include_str!("pages/dashboard.css")),
    ("/pages/dashboard.js", "text/javascript; charset=utf-8", include_str!("pages/dashboard.js")),
    ("/pages/icon.svg", "image/svg+xml", include_str!("pages/icon.svg")),
];

/// The files that pages load.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    FILES.iter().fold(Router::new(), |router, (path, content_type, content)| {
        let file = async || guarded(([(header::CONTENT_TYPE, *content_type)], *content).into_response());
        router.route(path, get(file))
    })
}

/// True for the path of a file.
pub(super) fn is_file(path: &str) -> bool {
    FILES.iter().any(|file| file.0 == path)
}

/// What the server is doing, live.
pub(super) fn dashboard() -> Response {
    guarded(Html(include_str!("pages/dashboard.html")).into_response())
}

fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        // Another version of the server has other files under the same names.
        (header::CACHE_CONTROL, "no-cache"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
