//! What is asked of every control request before a route sees it: one proper `Host`, a transfer
//! coding that we understand, and no foreign page behind it.
//!
//! A visitor's browser may reach what its pages shall not: a page of another origin can send
//! requests here (`Origin` tells), and one whose name was made to lead here can read the answers
//! too (`Host` tells). Neither may publish or read. A Unix socket is out of any page's reach, and
//! `GET /healthz` and `/readyz` tell nobody anything. With a token configured every request brings
//! it, but those of these two kinds and those for the pages, which hold nothing but their script: a
//! client that may open the socket's file is let in. So is one that brings a token with claims of
//! its own, to publish where these say (`principal`).

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::asked::Scheme;
use super::control::allowed;
use super::principal::Principal;
use super::stream::refused_unread;
use super::{Hub, Refusal, RefusalReason, pages};
use crate::config::{Config, ControlAddress, PageRules};
use crate::secret::bearer_token;
use crate::wire::http::{is_host, is_ours, is_own_page};

/// Stands before the routes of one listener.
pub(super) struct Guard {
    hub: Arc<Hub>,
    /// True for a Unix socket.
    is_private: bool,
    /// True where only this machine comes in.
    is_local: bool,
    scheme: Scheme,
}

impl Guard {
    pub(super) fn new(hub: Arc<Hub>, address: &ControlAddress, scheme: Scheme) -> Guard {
        let is_private = matches!(address, ControlAddress::Unix(_));
        Guard { hub, is_private, is_local: address.is_local(), scheme }
    }

    /// Lets a request pass to its route, or refuses it.
    pub(super) async fn check(State(guard): State<Arc<Guard>>, mut request: Request, next: Next) -> Response {
        let config = guard.hub.config();
        let checked = check_host(request.version(), request.headers())
            .and_then(|host| guard.check_caller(&config, &request, host))
            .and_then(|caller| check_transfer_coding(request.headers()).map(|()| caller));
        let page = match checked {
            Ok((page, principal)) => {
                request.extensions_mut().insert(principal);
                page
            }
            Err(refusal) => {
                return refused_unread(&guard.hub, refusal, request.into_body().into_data_stream());
            }
        };
        let asks_what_is_allowed = request.method() == Method::OPTIONS;
        let mut response = match allowed(request.uri().path()).filter(|_| asks_what_is_allowed) {
            Some(allowed) => preflight(allowed, page.is_some()),
            None => next.run(request).await,
        };
        if let Some(origin) = page {
            let headers = response.headers_mut();
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
            headers.append(header::VARY, HeaderValue::from_static("Origin"));
        }
        response
    }

    /// Refuses what a foreign page wants, and a request without a token where one is needed. Gives
    /// the origin of a page that the operator has named, and who asks.
    fn check_caller(
        &self,
        config: &Config,
        request: &Request,
        host: &str,
    ) -> Result<(Option<HeaderValue>, Principal), Refusal> {
        let is_probe = matches!(*request.method(), Method::GET | Method::HEAD)
            && ["/healthz", "/readyz"].contains(&request.uri().path());
        if self.is_private || is_probe {
            return Ok((None, Principal::Operator));
        }
        let brought = bearer(request.headers());
        let token = config.control_rules.token.as_ref();
        let is_operator = token.zip(brought).is_some_and(|(token, brought)| token.is(brought));
        // Without a token of operators every client is one, where the operator has left it open.
        let is_open_by_config = config.control_rules.open || !config.tokens.is_configured();
        let is_open = token.is_none() && (self.is_local || is_open_by_config);
        let publisher = match brought {
            Some(brought) if !is_operator && config.tokens.is_configured() => {
                Some(match Principal::may_be_asked(request) {
                    true => Principal::of_token(&self.hub, brought),
                    false => Err(Principal::no_operator(brought)),
                })
            }
            _ => None,
        };
        let has_token = is_operator || matches!(publisher, Some(Ok(_)));
        let page = match check_page(&config.pages, request, host, self.scheme) {
            // A page that knows the token was given it.
            Err(_) if has_token => None,
            checked => checked?,
        };
        // A browser asks what it may ask without the token (Fetch §4.8).
        let is_preflight = *request.method() == Method::OPTIONS;
        let is_page = pages::is_asked(request.method(), request.uri(), request.headers());
        if is_operator || is_open && publisher.is_none() || is_preflight || is_page {
            return Ok((page, Principal::Operator));
        }
        let principal = publisher.unwrap_or_else(|| {
            let text = match request.headers().contains_key(header::AUTHORIZATION) {
                true => "the token in Authorization is not that of this server",
                false => "a token is needed here, as Authorization: Bearer TOKEN (--control-token-file)",
            };
            Err(Refusal::new(RefusalReason::Unauthorized, text))
        })?;
        Ok((page, principal))
    }
}

/// The token that the request brings, once.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut fields = headers.get_all(header::AUTHORIZATION).iter();
    let (first, second) = (fields.next(), fields.next());
    first.filter(|_| second.is_none()).and_then(|field| bearer_token(field.as_bytes()))
}

/// Refuses what a foreign page wants. Gives the origin of a page that the operator has named.
fn check_page(
    pages: &PageRules,
    request: &Request,
    host: &str,
    scheme: Scheme,
) -> Result<Option<HeaderValue>, Refusal> {
    // A target in absolute form names the host as well, and means it (RFC 9112 §3.2.2).
    let named = request.uri().authority().map(|authority| authority.as_str());
    if let Some(foreign) =
        [Some(host), named].into_iter().flatten().find(|host| !is_ours(host, &pages.control_hosts))
    {
        let text = format!("the host {foreign:?} is not known as a name of this server (--control-host)");
        return Err(Refusal::new(RefusalReason::ForeignHost, text));
    }
    let mut listed = None;
    for origin in request.headers().get_all(header::ORIGIN) {
        if pages.control_origins.iter().any(|known| known.as_str().as_bytes() == origin.as_bytes()) {
            listed = Some(origin.clone());
        } else if !is_own_page(origin.as_bytes(), host.as_bytes(), scheme == Scheme::Https) {
            let origin = String::from_utf8_lossy(origin.as_bytes());
            let text = format!("pages of the origin {origin:?} may not ask here (--control-origin)");
            return Err(Refusal::new(RefusalReason::ForeignOrigin, text));
        }
    }
    Ok(listed)
}

/// The `Host`, of which a request has exactly one (RFC 9112 §3.2); before HTTP/1.1 perhaps none,
/// here empty.
fn check_host(version: Version, headers: &HeaderMap) -> Result<&str, Refusal> {
    let mut hosts = headers.get_all(header::HOST).iter();
    let text = match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => "the Host header field comes twice",
        (Some(host), None) if is_host(host.as_bytes()) => {
            return Ok(host.to_str().expect("a checked host is ASCII"));
        }
        (Some(_), None) => "the Host header field is malformed: write host or host:port",
        (None, _) if version == Version::HTTP_10 => return Ok(""),
        (None, _) => "the Host header field is missing",
    };
    Err(Refusal::new(RefusalReason::BadHost, text))
}

/// Chunks are the only transfer coding that is undone here (RFC 9112 §6.1).
fn check_transfer_coding(headers: &HeaderMap) -> Result<(), Refusal> {
    let values = headers.get_all(header::TRANSFER_ENCODING).iter();
    let mut codings =
        values.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
    match codings.all(|coding| coding.is_empty() || coding.eq_ignore_ascii_case(b"chunked")) {
        true => Ok(()),
        false => {
            let text = "the only transfer coding that is understood here is chunked";
            Err(Refusal::new(RefusalReason::TransferCoding, text))
        }
    }
}

/// The answer to OPTIONS; a page that may ask is told how.
fn preflight(allowed: &'static str, is_page: bool) -> Response {
    const PREFLIGHT_SECONDS: HeaderValue = HeaderValue::from_static("7200");
    let mut response = (StatusCode::NO_CONTENT, Body::empty()).into_response();
    let headers = response.headers_mut();
    headers.insert(header::ALLOW, HeaderValue::from_static(allowed));
    if is_page {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, DELETE"));
        let fields = HeaderValue::from_static("Authorization, Content-Type, Accept");
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, fields);
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_SECONDS);
    }
    response
}
