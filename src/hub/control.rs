//! The control API: who may ask what, and how it is answered.
//!
//! Every answer but `/`, `/healthz` and the NDJSON of `POST /publish` is one JSON object; every
//! error is `{"error":"one line"}`. Nothing here waits for a subscriber: a publish is answered once
//! it is queued to the shards. What is no request does not come here (`head`), nor what strangers
//! want through a visitor's browser (`guard`).

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, BodyDataStream, HttpBody};
use axum::extract::{RawQuery, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Router};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Serialize;

use super::asked::{Scheme, authority};
use super::guard::Guard;
use super::listing::Page;
use super::openmetrics::Exposition;
use super::principal::Principal;
use super::refusal::{error_response, json_bytes, json_line};
use super::reload::reload;
use super::stream::{publish_stream, refused_unread};
use super::{Hub, Refusal, RefusalReason, id_text, pages};
use crate::broadcast::Taken;
use crate::config::ControlAddress;
use crate::config::limits::CONTROL_BODY_MS_MAX;
use crate::event::{CustomId, Data, Event, Topic};
use crate::printed::{quoted, reachable};
use crate::publishing::{
    IdempotencyKey, Options, check_content_coding, check_size, parse_options, parse_query, parse_text,
    parse_topic_path,
};
use crate::wire::http::has_content_type;

/// Where the path of one topic begins.
const TOPIC_PATH: &str = "/topics/";

/// All routes of the control API, as served at `address`, behind the guard.
pub(super) fn router(hub: Arc<Hub>, address: ControlAddress, scheme: Scheme) -> Router {
    let guard = Guard::new(hub.clone(), &address, scheme);
    let front =
        async move |State(hub): State<Arc<Hub>>, headers: HeaderMap| front(&hub, &address, scheme, &headers);
    let topic = || get(show_topic).post(publish_one).delete(remove_topic);
    Router::new()
        .route("/", get(front))
        .route("/healthz", get(health))
        .route("/readyz", get(ready))
        .route("/stats", get(stats))
        .route("/metrics", get(metrics))
        .route("/slow", get(slow))
        .route("/topics", get(list_topics))
        // The empty topic has a route of its own: the wildcard does not match it, and it deserves
        // its reason.
        .route(TOPIC_PATH, topic())
        .route("/topics/{*topic}", topic())
        .route("/publish", post(publish_stream))
        .route("/reload", post(reload))
        .merge(pages::routes(scheme))
        .method_not_allowed_fallback(wrong_method)
        .fallback(unknown_path)
        .with_state(hub)
        .layer(axum::middleware::from_fn_with_state(Arc::new(guard), Guard::check))
}

/// The value of `Allow` for a path of ours.
pub(super) fn allowed(path: &str) -> Option<&'static str> {
    match path {
        "/" | "/healthz" | "/readyz" | "/stats" | "/metrics" | "/slow" | "/topics" => {
            Some("GET, HEAD, OPTIONS")
        }
        "/publish" | "/reload" => Some("POST, OPTIONS"),
        "*" => Some("OPTIONS"),
        path if pages::is_page(path) => Some("GET, HEAD, OPTIONS"),
        path => path.starts_with(TOPIC_PATH).then_some("GET, HEAD, POST, DELETE, OPTIONS"),
    }
}

/// The answer to an accepted event, or to a removal.
#[derive(Serialize)]
struct Accepted {
    /// The id that subscribers see.
    id: String,
    sequence: u64,
    /// It was taken before, under the same idempotency key.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    duplicate: bool,
}

impl Accepted {
    fn of(custom: Option<&CustomId>, taken: Taken) -> Accepted {
        let Taken { sequence, duplicate, .. } = taken;
        Accepted { id: id_text(custom, taken.id()), sequence, duplicate }
    }
}

async fn publish_one(
    State(hub): State<Arc<Hub>>,
    Extension(principal): Extension<Principal>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Response> {
    let mut body = body.into_data_stream();
    let (event, key) = match read_event(&hub, &principal, &uri, &headers, &mut body).await {
        Ok(read) => read,
        Err(refusal) => return Err(refused_unread(&hub, refusal, body)),
    };
    let id = event.id.clone();
    let taken = hub.publish(event, key).await.map_err(IntoResponse::into_response)?;
    Ok(json_line(&Accepted::of(id.as_ref(), taken)))
}

async fn read_event(
    hub: &Hub,
    principal: &Principal,
    uri: &Uri,
    headers: &HeaderMap,
    body: &mut BodyDataStream,
) -> Result<(Event, Option<IdempotencyKey>), Refusal> {
    check_content_coding(headers)?;
    let topic = topic_of(uri)?;
    principal.check_topic(hub, &topic)?;
    let Options { name, id, retry_ms, key, idempotency_key } = parse_options(uri.query())?;
    let reading = read_body(body, hub.config().limits.message_bytes_max);
    let bytes = tokio::time::timeout(Duration::from_millis(CONTROL_BODY_MS_MAX), reading)
        .await
        .unwrap_or_else(|_| {
            let text = format!("the body did not arrive within {CONTROL_BODY_MS_MAX} ms");
            Err(Refusal::new(RefusalReason::BodyTimeout, text))
        })?;
    let data = match has_content_type(headers, "application/octet-stream") {
        true => Data::binary(bytes),
        false => parse_text(bytes)?,
    };
    let idempotency_key = idempotency_key.map(|key| principal.own(key));
    Ok((Event { topic, data, name, id, retry_ms, key }, idempotency_key))
}

/// The topic that the path names.
fn topic_of(uri: &Uri) -> Result<Topic, Refusal> {
    parse_topic_path(uri.path().strip_prefix(TOPIC_PATH).unwrap_or(""))
}

/// The whole body, at most `bytes_max`; a larger one is refused as soon as that is known, and is
/// not held. The result is a copy of exactly its size, so that it does not keep the connection's
/// receive buffer alive.
async fn read_body(body: &mut BodyDataStream, bytes_max: usize) -> Result<Bytes, Refusal> {
    let announced = HttpBody::size_hint(body).exact();
    let announced = announced.map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    let mut held = Vec::new();
    let mut size = announced.unwrap_or(0);
    loop {
        check_size(size, bytes_max)?;
        let Some(frame) = body.next().await else {
            return Ok(held.into_boxed_slice().into());
        };
        let frame = frame
            .map_err(|_| Refusal::new(RefusalReason::BodyBroken, "the body broke off or is malformed"))?;
        if announced == Some(frame.len()) {
            return Ok(Bytes::copy_from_slice(&frame));
        }
        size = size.max(held.len() + frame.len());
        if size <= bytes_max {
            held.reserve(size - held.len());
            held.extend_from_slice(&frame);
        }
    }
}

async fn list_topics(State(hub): State<Arc<Hub>>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let page = Page::parse(query.as_deref()).map_err(|refusal| hub.counted(refusal))?;
    Ok(json_line(&hub.list_topics(&page).await))
}

async fn show_topic(State(hub): State<Arc<Hub>>, uri: Uri) -> Result<Response, Refusal> {
    let parsed =
        parse_query(uri.query(), &["scope"]).and_then(|query| Ok((scope_of(&query)?, topic_of(&uri)?)));
    let (is_cluster, topic) = parsed.map_err(|refusal| hub.counted(refusal))?;
    if is_cluster {
        let view = hub.find_in_cluster(topic).await.map_err(|refusal| hub.counted(refusal))?;
        return Ok(json_line(&view));
    }
    Ok(match hub.find_topic(topic.clone()).await {
        Ok(Some(view)) => json_line(&view),
        Ok(None) => {
            let text = format!("nobody has published or subscribed to the topic {topic:?}");
            error_response(StatusCode::NOT_FOUND, &text)
        }
        Err(shards) => {
            let text = format!("the topic {topic:?} is not known, but shards {shards:?} did not answer");
            error_response(StatusCode::SERVICE_UNAVAILABLE, &text)
        }
    })
}

/// Whether all nodes are meant, or this one.
fn scope_of(query: &[(&str, String)]) -> Result<bool, Refusal> {
    match query.first().map(|(_, scope)| scope.as_str()) {
        None | Some("node") => Ok(false),
        Some("cluster") => Ok(true),
        Some(other) => {
            let text = format!("scope={other:?} is neither node nor cluster");
            Err(Refusal::new(RefusalReason::BadQuery, text))
        }
    }
}

async fn remove_topic(State(hub): State<Arc<Hub>>, uri: Uri) -> Result<Response, Refusal> {
    let topic =
        parse_query(uri.query(), &[]).and_then(|_| topic_of(&uri)).map_err(|refusal| hub.counted(refusal))?;
    let taken = hub.remove(topic).await?;
    Ok(json_line(&Accepted::of(None, taken)))
}

async fn stats(State(hub): State<Arc<Hub>>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    parse_query(query.as_deref(), &[]).map_err(|refusal| hub.counted(refusal))?;
    let gather = async { json_bytes(&hub.stats().await) };
    Ok(answer_of("application/json", &*hub.shared.stats.get(gather).await))
}

async fn slow(State(hub): State<Arc<Hub>>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    parse_query(query.as_deref(), &[]).map_err(|refusal| hub.counted(refusal))?;
    let gather = async { json_bytes(&hub.slow().await) };
    Ok(answer_of("application/json", &*hub.shared.slow.get(gather).await))
}

async fn metrics(
    State(hub): State<Arc<Hub>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    parse_query(query.as_deref(), &[]).map_err(|refusal| hub.counted(refusal))?;
    let exposition = Exposition::asked(&headers);
    let shared = match exposition {
        Exposition::Prometheus => &hub.shared.prometheus,
        Exposition::OpenMetrics => &hub.shared.open_metrics,
    };
    let text = shared.get(async { hub.metrics(exposition).await.into() }).await;
    let mut response = answer_of(exposition.content_type(), &text);
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    Ok(response)
}

fn answer_of(content_type: &'static str, body: &Bytes) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static(content_type))], body.clone()).into_response()
}

async fn health(State(hub): State<Arc<Hub>>) -> Response {
    if hub.intake().is_draining() {
        (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], "draining\n").into_response()
    } else if let Some(why) = hub.intake().degraded() {
        // Subscribers go on.
        format!("degraded: {why}\n").into_response()
    } else {
        "ok\n".into_response()
    }
}

/// Whether the server does what `?publish` asks for: with it, whether publishes are taken.
async fn ready(State(hub): State<Arc<Hub>>, RawQuery(query): RawQuery) -> Result<Response, Refusal> {
    let wants_publish = match query.as_deref() {
        None | Some("") => false,
        Some("publish" | "publish=") => true,
        Some(query) => {
            let text = format!("the query {query:?} is unknown: /readyz takes ?publish");
            return Err(hub.counted(Refusal::new(RefusalReason::BadQuery, text)));
        }
    };
    let intake = hub.intake();
    let why = match () {
        () if intake.is_draining() => Some("draining".to_string()),
        () if wants_publish && intake.is_paused() => Some("upgrading".to_string()),
        () if wants_publish => intake.degraded().map(|why| format!("degraded: {why}")),
        () => None,
    };
    Ok(match why {
        Some(why) => {
            let head = [(header::RETRY_AFTER, "1")];
            (StatusCode::SERVICE_UNAVAILABLE, head, format!("{why}\n")).into_response()
        }
        None => "ok\n".into_response(),
    })
}

async fn unknown_path(State(hub): State<Arc<Hub>>, uri: Uri, body: Body) -> Response {
    let text = format!("no such path: {}; GET / lists them", uri.path());
    refused_unread(&hub, Refusal::new(RefusalReason::UnknownPath, text), body.into_data_stream())
}

async fn wrong_method(State(hub): State<Arc<Hub>>, method: Method, uri: Uri, body: Body) -> Response {
    let text = format!("{method} is not allowed on {}", uri.path());
    let refusal = Refusal::new(RefusalReason::WrongMethod, text);
    let mut response = refused_unread(&hub, refusal, body.into_data_stream());
    if let Some(allowed) = allowed(uri.path()) {
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
    }
    response
}

/// The dashboard for browsers, the endpoints for everybody else.
fn front(hub: &Hub, address: &ControlAddress, scheme: Scheme, headers: &HeaderMap) -> Response {
    let mut response = match pages::wants_html(headers) {
        true => pages::dashboard(),
        false => help(hub, address, scheme, headers).into_response(),
    };
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response
}

/// The endpoints, with commands for a client that asked through `address`.
fn help(hub: &Hub, address: &ControlAddress, scheme: Scheme, headers: &HeaderMap) -> String {
    let asked = headers.get(header::HOST).and_then(authority);
    let (curl, control, asked) = match address {
        ControlAddress::Tcp(address) => {
            let control = asked.as_ref().map_or_else(|| reachable(*address), Authority::to_string);
            let curl = match hub.config().control_rules.token {
                Some(_) => r#"curl -H "Authorization: Bearer $TOKEN""#,
                None => "curl",
            };
            (curl.to_string(), control, asked)
        }
        ControlAddress::Unix(path) => {
            (format!("curl --unix-socket {}", quoted(&path.to_string_lossy())), "localhost".to_string(), None)
        }
    };
    let subscribe = hub.listen.found(scheme, asked.as_ref()).map_or_else(String::new, |(scheme, address)| {
        format!("curl -N {}\n", quoted(&format!("{}://{address}/sse/news", scheme.name())))
    });
    let url = |path: &str| quoted(&format!("{}://{control}{path}", scheme.name()));
    format!(
        "fanwave {version}: control API

POST /topics/TOPIC     publish the body (event=, id=, retry=, key=, idempotency_key= as query; application/octet-stream is binary)
POST /publish          publish NDJSON, one event per line; one request may last for ever
GET  /topics           topics with subscribers, last id and window (limit=, after=)
GET  /topics/TOPIC     one topic (scope=cluster: its subscribers on all nodes)
DELETE /topics/TOPIC   remove its history and retained values
GET  /stats            counters and latencies
GET  /metrics          the same for Prometheus, or as OpenMetrics
GET  /slow             subscribers whose sends wait longest
GET  /healthz          200 while serving, 503 while draining
GET  /readyz           the same; with ?publish 503 too while no publishes are taken
POST /reload           read the configuration again
GET  /playground       subscribe and publish in a browser; GET / is a dashboard there

{subscribe}{curl} -d 'hello' {news}
{curl} -d 'hello' {news_with_options}
{curl} --data-binary @photo.jpg -H 'Content-Type: application/octet-stream' {photos}
echo '{{\"topic\":\"news\",\"data\":\"hello\"}}' | {curl} -N -X POST -T - {publish}
{curl} {news}
{curl} {stats}
",
        version = env!("CARGO_PKG_VERSION"),
        news = url("/topics/news"),
        news_with_options = url("/topics/news?event=greeting&id=1&retry=5000"),
        photos = url("/topics/photos"),
        publish = url("/publish"),
        stats = url("/stats"),
    )
}
