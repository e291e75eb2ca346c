//! Claim: `GET /metrics` says what `/stats` says, in the formats that Prometheus reads; the board
//! and the alerts in `deploy/` ask for nothing that is not there.
//!
//! Set-up: a server with deliveries, gaps and refusals behind it; hundreds of scrapes at once;
//! Prometheus itself, its query language and its promtool.
//!
//! Expectation: both formats are clean, their figures are those of `/stats`, and Prometheus answers
//! a quantile that agrees with it. Every query of the board and of the alerts is one, and every
//! metric in it exists.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use tokio::task::JoinSet;

use crate::support::raw::exchange;
use crate::support::server::{answer, client};
use crate::support::{PATIENCE, Protocol, Scratch, Server, Subscriber, until};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0";

/// A server that has delivered, refused and closed.
async fn used() -> Server {
    let server = Server::start(&["--shards", "2"]);
    let mut subscribers = Vec::new();
    for protocol in [Protocol::Sse, Protocol::WebSocket, Protocol::Sse, Protocol::WebSocket] {
        subscribers.push(Subscriber::connect(server.data, protocol, &["t"]).await);
    }
    for number in 0..20 {
        server.publish("t", number.to_string()).await;
        for subscriber in &mut subscribers {
            assert_eq!(subscriber.text().await, number.to_string());
        }
    }
    assert_eq!(server.get("/nothing").await.status, 404);
    drop(subscribers);
    server.await_closed("client_gone", 4).await;
    server
}

/// The text in the format that `accept` asks for.
async fn scrape(server: &Server, accept: &str) -> (String, String) {
    let request =
        format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\nConnection: close\r\n\r\n");
    let answer = exchange(server.control, request.as_bytes()).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let content_type = answer.header("content-type").expect("a content type").to_string();
    (content_type, String::from_utf8(answer.body).expect("UTF-8"))
}

/// The sum of the samples of `name` that have all these labels.
fn sum(text: &str, name: &str, labels: &[&str]) -> f64 {
    let mut found = false;
    let mut sum = 0.0;
    for line in text.lines() {
        let Some(rest) = line.strip_prefix(name).filter(|rest| rest.starts_with(['{', ' '])) else {
            continue;
        };
        let (has, value) = rest.rsplit_once(' ').expect("a value");
        if labels.iter().all(|label| has.contains(label)) {
            found = true;
            sum += value.parse::<f64>().expect("a number");
        }
    }
    assert!(found, "no {name} with {labels:?} in {text}");
    sum
}

#[tokio::test]
async fn metrics_say_what_stats_say_in_both_formats() {
    let server = used().await;
    let stats = server.stats().await;
    let (totals, hub) = (&stats["totals"], &stats["hub"]);
    for (accept, content_type) in [
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        (OPEN_METRICS, "application/openmetrics-text; version=1.0.0; charset=utf-8"),
    ] {
        let (told, text) = scrape(&server, accept).await;
        assert_eq!(told, content_type);
        assert_eq!(text.ends_with("# EOF\n"), accept == OPEN_METRICS);
        for (name, labels, value) in [
            ("fanwave_published_events_total", &[][..], &hub["events"]),
            ("fanwave_published_bytes_total", &[], &hub["bytes"]),
            ("fanwave_refused_requests_total", &["reason=\"unknown_path\""], &hub["refused"]["unknown_path"]),
            ("fanwave_memory_max_bytes", &[], &hub["memory"]["bytes_max"]),
            ("fanwave_accepted_connections_total", &[], &totals["accepted"]),
            (
                "fanwave_closed_connections_total",
                &["reason=\"client_gone\""],
                &totals["closed"]["client_gone"],
            ),
            ("fanwave_sent_frames_total", &["format=\"sse\""], &totals["formats"]["sse"]["frames"]),
            ("fanwave_sent_bytes_total", &["format=\"websocket\""], &totals["formats"]["websocket"]["bytes"]),
            ("fanwave_opened_subscribers_total", &[], &4.into()),
            (
                "fanwave_publish_to_shard_seconds_count",
                &[],
                &totals["latency_us"]["intake_to_shard"]["count"],
            ),
            ("fanwave_publish_to_last_seconds_count", &[], &totals["latency_us"]["intake_to_last"]["count"]),
            (
                "fanwave_publish_to_written_seconds_bucket",
                &["format=\"sse\"", "le=\"+Inf\""],
                &totals["latency_us"]["intake_to_written"]["sse"]["count"],
            ),
            ("fanwave_removed_topics_total", &[], &hub["removed_topics"]),
            ("fanwave_conflated_events_total", &["format=\"sse\""], &totals["formats"]["sse"]["conflated"]),
            ("fanwave_retained_given_up_total", &[], &totals["retained"]["given_up"]),
            ("fanwave_shard_up", &[], &2.into()),
            ("fanwave_shard_lag_events", &[], &0.into()),
            ("fanwave_limit_bytes", &["limit=\"send_bytes_max\""], &(256 << 10).into()),
            ("fanwave_limit_seconds", &["limit=\"heartbeat_ms\""], &15.into()),
            ("fanwave_limit", &["limit=\"topics_per_connection_max\""], &64.into()),
        ] {
            assert_eq!(Some(sum(&text, name, labels)), value.as_f64(), "{name} {labels:?}: {stats}");
        }
        let mean = sum(&text, "fanwave_publish_to_shard_seconds_sum", &[]) / 40.0 * 1e6;
        let told = totals["latency_us"]["intake_to_shard"]["mean"].as_f64().expect("a number");
        assert!((mean / told - 1.0).abs() < 0.02, "{mean} is not {told}");
        let described = |what: &str| -> BTreeSet<&str> {
            text.lines().filter_map(|line| line.strip_prefix(what)?.split(' ').next()).collect()
        };
        let (helped, typed) = (described("# HELP "), described("# TYPE "));
        assert_eq!(helped, typed);
        for name in names(&text) {
            let ends = ["_bucket", "_sum", "_count", "_total", "_info"];
            let family = ends.iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
            assert!(helped.contains(name) || helped.contains(family), "{name} is not described");
        }
    }
}

/// The names of all samples.
fn names(text: &str) -> BTreeSet<&str> {
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples.filter_map(|line| line.split(['{', ' ']).next()).collect()
}

#[tokio::test]
async fn hundreds_of_scrapes_at_once_are_all_answered() {
    let server = std::sync::Arc::new(used().await);
    let mut scrapes = JoinSet::new();
    for number in 0..300 {
        let server = server.clone();
        let path = ["/metrics", "/stats"][number % 2];
        scrapes.spawn(async move { server.get(path).await.status });
    }
    assert!(scrapes.join_all().await.iter().all(|status| *status == 200));
    assert_eq!(server.get("/metrics?x=1").await.status, 400);
}

/// What promtool says of `input`; fails if that is anything.
fn promtool(args: &[&str], input: &str) {
    let mut tool = Command::new("promtool")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool is installed");
    tool.stdin.take().expect("piped").write_all(input.as_bytes()).expect("promtool reads");
    let output = tool.wait_with_output().expect("our own child");
    let said =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "promtool {args:?}: {said}\n{input}");
    let complaint = said.lines().find(|line| line.contains("error") || line.contains("should"));
    assert_eq!(complaint, None, "promtool {args:?}: {said}");
}

#[tokio::test]
#[ignore = "needs prometheus: tests/run installs it"]
async fn promtool_finds_nothing_to_say_about_the_metrics() {
    let server = used().await;
    promtool(&["check", "metrics"], &scrape(&server, "text/plain").await.1);
}

/// A Prometheus that scrapes one server every second; it is ended when dropped.
struct Prometheus {
    process: Child,
    address: SocketAddr,
    directory: PathBuf,
    client: reqwest::Client,
}

impl Prometheus {
    fn start(server: &Server) -> Prometheus {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = port.expect("a free port");
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("prometheus-{}", address.port()));
        // An earlier run may have left one behind.
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).expect("a directory of our own");
        let file = directory.join("prometheus.yml");
        let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/alerts.yml");
        let text = format!(
            "global: {{scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 1s}}\n\
             rule_files: [{rules:?}]\n\
             scrape_configs:\n- {{job_name: fanwave, static_configs: [{{targets: [{:?}]}}]}}\n",
            server.control.to_string()
        );
        fs::write(&file, text).expect("a file in it");
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("prometheus is installed");
        Prometheus {
            process,
            address,
            directory,
            client: client(reqwest::Client::builder().timeout(PATIENCE)),
        }
    }

    /// Its answer to a query of now; `None` while it has not started.
    async fn try_query(&self, query: &str) -> Option<Value> {
        let ready = self.client.get(format!("http://{}/-/ready", self.address)).send().await.ok()?;
        if !ready.status().is_success() {
            return None;
        }
        let url = reqwest::Url::parse_with_params(
            &format!("http://{}/api/v1/query", self.address),
            [("query", query)],
        );
        Some(answer(self.client.get(url.expect("a URL"))).await.json())
    }

    /// Waits until a query has a result, and gives its first value.
    async fn value(&self, query: &str) -> f64 {
        until(query, async || {
            let answer = self.try_query(query).await?;
            assert_eq!(answer["status"], "success", "{query}: {answer}");
            let value = answer["data"]["result"][0]["value"][1].as_str()?.parse::<f64>();
            value.ok().filter(|value| !value.is_nan())
        })
        .await
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// The bounds of the buckets, as the first sample of a histogram tells them.
fn bucket(text: &str, seconds: f64) -> usize {
    let name = "fanwave_publish_to_shard_seconds_bucket{shard=\"0\",le=\"";
    let bounds = text.lines().filter_map(|line| line.strip_prefix(name)?.split('"').next());
    bounds.filter_map(|bound| bound.parse::<f64>().ok()).filter(|bound| *bound < seconds).count()
}

#[tokio::test]
#[ignore = "needs prometheus: tests/run installs it"]
async fn promtool_and_a_real_prometheus_agree_with_stats() {
    let server = used().await;
    let prometheus = Prometheus::start(&server);
    assert_eq!(prometheus.value("sum(fanwave_sent_frames_total)").await, 80.0);
    assert_eq!(prometheus.value("up").await, 1.0);
    // promtool knows no OpenMetrics, which Prometheus asks for: only there is a build an `info`.
    let url = format!("http://{}/api/v1/metadata?metric=fanwave_build", prometheus.address);
    let metadata = answer(prometheus.client.get(url)).await.json();
    assert_eq!(metadata["data"]["fanwave_build"][0]["type"], "info", "{metadata}");
    let (text, stats) = (scrape(&server, "*/*").await.1, server.stats().await);
    let latency = &stats["totals"]["latency_us"];
    for (metric, told) in [
        ("fanwave_publish_to_shard_seconds_bucket", &latency["intake_to_shard"]),
        ("fanwave_publish_to_last_seconds_bucket", &latency["intake_to_last"]),
        ("fanwave_publish_to_written_seconds_bucket{format=\"sse\"}", &latency["intake_to_written"]["sse"]),
    ] {
        for (quantile, name) in [(0.5, "p50"), (0.99, "p99")] {
            let query = format!("histogram_quantile({quantile}, sum by (le) ({metric}))");
            let (answered, told) = (prometheus.value(&query).await, told[name].as_f64().expect("a number"));
            let apart = bucket(&text, answered).abs_diff(bucket(&text, told / 1e6));
            assert!(apart <= 1, "{query} is {answered} s, /stats says {told} us");
        }
    }
}

/// All queries of the board, each with its title.
fn queries_of_board() -> Vec<(String, String)> {
    fn collect(value: &Value, title: &str, found: &mut Vec<(String, String)>) {
        match value {
            Value::Object(members) => {
                let title = members.get("title").and_then(Value::as_str).unwrap_or(title);
                if let Some(query) = members.get("expr").and_then(Value::as_str) {
                    found.push((title.to_string(), query.to_string()));
                }
                members.values().for_each(|value| collect(value, title, found));
            }
            Value::Array(values) => values.iter().for_each(|value| collect(value, title, found)),
            _ => {}
        }
    }
    let board: Value = serde_json::from_str(&deployed("grafana.json")).expect("JSON");
    let mut found = Vec::new();
    collect(&board, "", &mut found);
    assert!(found.len() >= 10, "a board has queries: {found:?}");
    // Grafana puts its own values in before it asks.
    let filled = |query: String| {
        query.replace("$__rate_interval", "1m").replace("$instance", ".*").replace("$job", ".*")
    };
    found.into_iter().map(|(title, query)| (title, filled(query))).collect()
}

/// All queries of the alerts, each with its name.
fn queries_of_alerts() -> Vec<(String, String)> {
    let text = deployed("alerts.yml");
    let value = |line: &str, key: &str| {
        line.trim().trim_start_matches("- ").strip_prefix(key).map(|rest| rest.trim().to_string())
    };
    let names: Vec<String> = text.lines().filter_map(|line| value(line, "alert:")).collect();
    let queries: Vec<String> = text.lines().filter_map(|line| value(line, "expr:")).collect();
    assert!(names.len() >= 5 && names.len() == queries.len(), "each alert has its query in one line");
    names.into_iter().zip(queries).collect()
}

fn deployed(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[tokio::test]
async fn the_board_and_the_alerts_ask_for_metrics_that_exist() {
    let server = used().await;
    let text = scrape(&server, "*/*").await.1;
    // Some metrics come with what they are about.
    let scratch = Scratch::new();
    let [data, acme] = ["data", "acme"].map(|name| scratch.path(name).display().to_string());
    let nobody = "https://127.0.0.1:1/directory";
    let more = Server::start(&["--shards", "1", "--data", &data]);
    let orders = ["--listen-tls", "127.0.0.1:0", "--acme", "x.test", "--acme-dir", &acme];
    let orders = Server::start(&[&["--shards", "1", "--acme-directory", nobody], &orders[..]].concat());
    let (more, orders) = (scrape(&more, "*/*").await.1, scrape(&orders, "*/*").await.1);
    let names: BTreeSet<&str> = [&text, &more, &orders].into_iter().flat_map(|text| names(text)).collect();
    let reasons = |query: &str| -> Vec<String> {
        let marked = query.replace("reason=~", "reason=");
        let labels = marked.split("reason=\"").skip(1).filter_map(|rest| rest.split('"').next());
        labels.flat_map(|labels| labels.split('|')).map(str::to_string).collect()
    };
    for (title, query) in queries_of_board().into_iter().chain(queries_of_alerts()) {
        let words = query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let asked: Vec<&str> =
            words.filter(|word| word.starts_with("fanwave_") || word.starts_with("process_")).collect();
        assert!(!asked.is_empty() || query.contains("up{"), "{title}: no metric of ours in {query}");
        for name in asked {
            assert!(names.contains(name), "{title}: there is no {name}");
        }
        for reason in reasons(&query) {
            assert!(text.contains(&format!("reason=\"{reason}\"")), "{title}: there is no reason {reason}");
        }
    }
}

#[tokio::test]
#[ignore = "needs prometheus: tests/run installs it"]
async fn promtool_and_prometheus_understand_every_query_of_board_and_alerts() {
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/alerts.yml");
    promtool(&["check", "rules", rules.to_str().expect("a path in UTF-8")], "");
    let server = used().await;
    let prometheus = Prometheus::start(&server);
    prometheus.value("fanwave_connections").await;
    for (title, query) in queries_of_board().into_iter().chain(queries_of_alerts()) {
        let answer = prometheus.try_query(&query).await.expect("it has started");
        assert_eq!(answer["status"], "success", "{title}: {query}: {answer}");
    }
    // One that asks what is always there shows that samples come.
    assert_eq!(prometheus.value("count(fanwave_shard_up == 1)").await, 2.0);
}
