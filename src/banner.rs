//! What `fanwave serve` prints on standard output once every shard is ready.
//!
//! Programs may read it: there is exactly one line `data plane    ADDR` and one line `control plane
//! ADDR` per bound address, with ports as bound; those with TLS stand behind `data, TLS` and
//! `control, TLS`. The commands at its end work as printed in the
//! shell that started the server.

use std::fmt::Write;
use std::time::{Duration, UNIX_EPOCH};

use fanwave::config::units::{grouped, rounded};
use fanwave::config::{ControlAddress, Limits, SlowPolicy};
use fanwave::hub::EgressReport;
use fanwave::hub::memory::CeilingReport;
use fanwave::printed::{quoted, reachable, scope};
use fanwave::serve::Started;

/// The whole text. `program` is how the user called us.
pub fn text(started: &Started, limits: &Limits, slow: SlowPolicy, program: &str) -> String {
    let mut lines = vec![format!("fanwave {}{}", env!("CARGO_PKG_VERSION"), page(started))];
    lines.extend(started.listen.iter().map(|address| format!("data plane    {address}")));
    lines.extend(started.listen_tls.iter().map(|address| format!("data, TLS     {address}")));
    lines.extend(started.control.iter().map(|address| format!("control plane {address}")));
    lines.extend(started.control_tls.iter().map(|address| format!("control, TLS  {address}")));
    for address in started.listen.iter().map(|address| reachable(*address)) {
        lines.push(format!("subscribe     http://{address}/sse/{{topic}}   ws://{address}/ws/{{topic}}"));
    }
    for address in started.listen_tls.iter().map(|address| reachable(*address)) {
        lines.push(format!("              https://{address}/sse/{{topic}}  wss://{address}/ws/{{topic}}"));
    }
    for control in &started.control {
        lines.push(match control {
            ControlAddress::Tcp(address) => {
                format!("publish       http://{}/topics/{{topic}}", reachable(*address))
            }
            ControlAddress::Unix(_) => format!("publish       POST /topics/{{topic}} on {control}"),
        });
    }
    for address in started.control_tls.iter().map(|address| reachable(*address)) {
        lines.push(format!("              https://{address}/topics/{{topic}}"));
    }
    lines.extend(playground(started));
    lines.extend(labelled("certificate", &certificate(started)));
    lines.extend(labelled("access", &access(started)));
    lines.extend(capacity(started, limits, slow));
    lines.extend(labelled("egress", &egress(&started.egress)));
    lines.extend(memory(&started.memory));
    lines.extend(labelled("ceiling", &ceiling(&started.ceiling)));
    lines.push(String::new());
    lines.extend(labelled("try", &commands(started, program)));
    lines.join("\n") + "\n"
}

/// What an authority signs by itself, if it is asked to.
fn certificate(started: &Started) -> Vec<String> {
    started
        .acme
        .iter()
        .map(|acme| match acme.expires {
            0 => format!(
                "of {}: none yet (--acme); TLS is refused until it is signed",
                acme.domains.join(", ")
            ),
            seconds => {
                let ends = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds));
                format!("of {}: until {ends} (--acme)", acme.domains.join(", "))
            }
        })
        .collect()
}

/// Who may subscribe, where that is worth a word.
fn access(started: &Started) -> Vec<String> {
    let is_exposed = started.listen.iter().any(|address| !address.ip().to_canonical().is_loopback());
    match (started.asks_for_tokens, is_exposed) {
        (true, _) => vec!["subscribers need a token, save for topics that a rule makes public".to_string()],
        (false, true) => vec![
            "every client that reaches the data plane may subscribe to every topic".to_string(),
            "remedy: name keys of tokens with --auth-jwks or --auth-hs256-file".to_string(),
        ],
        (false, false) => Vec::new(),
    }
}

/// Where a browser sees what this is; nothing where no browser gets to a control plane.
fn page(started: &Started) -> String {
    let tcp = started.control.iter().filter_map(|control| match control {
        ControlAddress::Tcp(address) => Some(*address),
        ControlAddress::Unix(_) => None,
    });
    // No URL of a browser has a scope.
    let mut pages = tcp.filter(|address| scope(*address).is_none()).map(reachable);
    pages.next().map_or_else(String::new, |page| format!(": see it at http://{page}/playground"))
}

/// What `--playground` has opened, and to whom.
fn playground(started: &Started) -> Vec<String> {
    if !started.playground {
        return Vec::new();
    }
    let mut rows = vec![
        "--playground: clients may publish to play/**; the data plane is asked as localhost, 127.0.0.1 or"
            .into(),
        "[::1] alone, by pages from there".to_string(),
    ];
    let beyond = started.listen.iter().filter(|address| !address.ip().to_canonical().is_loopback());
    rows.extend(
        beyond.map(|address| format!("programs on machines that reach {address} may publish there too")),
    );
    labelled("playground", &rows)
}

/// Shards, connections, windows, heartbeats.
fn capacity(started: &Started, limits: &Limits, slow: SlowPolicy) -> Vec<String> {
    let shards = started.shard_cpus.len();
    let cpus = started.shard_cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    let per_shard = started.connections_per_shard_max;
    let slow = match slow {
        SlowPolicy::Close => "closed, to come back and resume",
        SlowPolicy::Skip => "sent on with what comes next, after a notice",
        SlowPolicy::Latest => "sent the latest event alone",
    };
    vec![
        format!("shards        {shards}, on CPU {cpus}"),
        format!(
            "connections   {} per shard, {} in all",
            grouped(per_shard as u64),
            grouped(per_shard.saturating_mul(shards) as u64)
        ),
        format!(
            "window        {} events, {}, {} per topic; who is further behind is {slow}",
            grouped(limits.window_events_max as u64),
            rounded(limits.window_bytes_max as u64),
            seconds(limits.window_ms_max)
        ),
        format!("heartbeat     every {}", seconds(limits.heartbeat_ms)),
    ]
}

/// How subscribers are reached, and what that costs.
fn egress(report: &EgressReport) -> Vec<String> {
    let EgressReport { ring, sockets, why, cost, remedy } = report;
    let name = if *ring == "uring" { "io_uring" } else { ring };
    let mut rows = vec![format!("{name} on {sockets} descriptors: {why}")];
    rows.extend(cost.map(|cost| format!("costs {cost}")));
    rows.extend(remedy.iter().map(|remedy| format!("remedy: {remedy}")));
    rows
}

/// One line per owner, and the sum.
fn memory(owners: &[(&'static str, u64)]) -> Vec<String> {
    let sum = owners.iter().fold(0u64, |sum, (_, bytes)| sum.saturating_add(*bytes));
    let rows: Vec<_> = owners.iter().copied().chain([("in user space, at these limits", sum)]).collect();
    let width = rows.iter().map(|(owner, _)| owner.chars().count()).max().unwrap_or_default();
    let rows: Vec<_> =
        rows.iter().map(|(owner, bytes)| format!("{owner:width$}  {:>9}", rounded(*bytes))).collect();
    labelled("memory", &rows)
}

/// The ceiling of the process's memory, and what does not fit under it.
fn ceiling(report: &CeilingReport) -> Vec<String> {
    let CeilingReport { bytes, why, remedies } = report;
    let most = bytes.map_or_else(|| "none".to_string(), rounded);
    let first = format!("{most}: {why}");
    std::iter::once(first).chain(remedies.iter().map(|remedy| format!("remedy: {remedy}"))).collect()
}

/// Three commands that show the whole thing; fewer where there is no address for them. curl reaches
/// an address with a scope, `tail` does not.
fn commands(started: &Started, program: &str) -> Vec<String> {
    let mut commands = Vec::new();
    if let Some(address) = started.listen.first() {
        let url = quoted(&format!("http://{}/sse/hello", reachable(*address)));
        let token = if started.asks_for_tokens { "-H \"Authorization: Bearer $TOKEN\" " } else { "" };
        commands.push(format!("curl -N {token}{url}"));
    }
    if let Some(address) = started.listen.iter().find(|address| scope(**address).is_none()) {
        let url = quoted(&format!("ws://{}/ws/hello", reachable(*address)));
        let token = if started.asks_for_tokens { "--token-file TOKEN " } else { "" };
        commands.push(format!("{} tail {token}{url}", quoted(program)));
    }
    commands.extend(started.control.first().map(|control| match control {
        ControlAddress::Tcp(address) => {
            let url = quoted(&format!("http://{}/topics/hello", reachable(*address)));
            let token = started.token_file.as_ref().map_or_else(String::new, |file| {
                format!("-H \"Authorization: Bearer $(cat {})\" ", quoted(&file.to_string_lossy()))
            });
            format!("curl {token}-d 'hello, world' {url}")
        }
        ControlAddress::Unix(path) => {
            let path = quoted(&path.to_string_lossy());
            format!("curl --unix-socket {path} -d 'hello, world' http://localhost/topics/hello")
        }
    }));
    commands
}

/// The label before the first row, blanks before the others.
fn labelled(label: &str, rows: &[String]) -> Vec<String> {
    let labels = std::iter::once(label).chain(std::iter::repeat(""));
    labels.zip(rows).map(|(label, row)| format!("{label:13} {row}")).collect()
}

/// Milliseconds as seconds, without a rest of zeros: `15 s`, `0.25 s`.
fn seconds(ms: u64) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write!(text, "{} s", ms as f64 / 1_000.0);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn started(listen: &[&str], control: &[&str]) -> Started {
        Started {
            listen: listen.iter().map(|text| text.parse().expect("an address")).collect(),
            control: control.iter().map(|text| text.parse().expect("an address")).collect(),
            listen_tls: Vec::new(),
            control_tls: Vec::new(),
            token_file: None,
            acme: None,
            playground: false,
            asks_for_tokens: false,
            shard_cpus: vec![0, 2],
            connections_per_shard_max: 20_000,
            egress: EgressReport {
                ring: "epoll",
                sockets: "plain",
                why: "no io_uring: it is forbidden".into(),
                cost: Some("much"),
                remedy: Some("allow it".into()),
            },
            memory: vec![("connections", 5 << 20), ("windows, shared", 256 << 20)],
            ceiling: CeilingReport {
                bytes: Some(460 << 20),
                why: "nine tenths of it".into(),
                remedies: vec!["have more".into()],
            },
        }
    }

    fn banner(listen: &[&str], control: &[&str], program: &str) -> String {
        text(&started(listen, control), &Limits::default(), SlowPolicy::Close, program)
    }

    #[test]
    fn programs_find_one_line_per_bound_address() {
        let text = banner(&["127.0.0.1:8080", "0.0.0.0:9"], &["127.0.0.1:8081", "unix:/run/a b"], "fanwave");
        for line in [
            "data plane    127.0.0.1:8080",
            "data plane    0.0.0.0:9",
            "control plane 127.0.0.1:8081",
            "control plane unix:/run/a b",
        ] {
            assert_eq!(text.lines().filter(|other| *other == line).count(), 1, "{line}");
        }
        assert_eq!(text.lines().filter(|line| line.starts_with("data plane")).count(), 2);
    }

    #[test]
    fn the_first_line_says_where_a_browser_sees_it() {
        let first = |control: &[&str]| {
            let text = banner(&["127.0.0.1:8080"], control, "fanwave");
            text.lines().next().unwrap_or_default().replace(env!("CARGO_PKG_VERSION"), "V")
        };
        assert_eq!(first(&["127.0.0.1:8081"]), "fanwave V: see it at http://127.0.0.1:8081/playground");
        assert_eq!(first(&["unix:/run/a", "[::]:1"]), "fanwave V: see it at http://[::1]:1/playground");
        assert_eq!(first(&["[fe80::1%2]:1"]), "fanwave V");
        assert_eq!(first(&["unix:/run/a"]), "fanwave V");
    }

    #[test]
    fn what_the_playground_opens_is_told_by_its_flag() {
        let text = banner(&["127.0.0.1:1"], &["127.0.0.1:2"], "fanwave");
        assert!(!text.contains("--playground"), "{text}");
        let mut open = started(&["127.0.0.1:1", "0.0.0.0:3"], &["127.0.0.1:2"]);
        open.playground = true;
        let text = super::text(&open, &Limits::default(), SlowPolicy::Close, "fanwave");
        assert!(text.contains("\nplayground    --playground: clients may publish to play/**;"), "{text}");
        assert!(
            text.contains("\n              programs on machines that reach 0.0.0.0:3 may publish"),
            "{text}"
        );
        assert!(!text.contains("reach 127.0.0.1:1"), "{text}");
    }

    #[test]
    fn the_three_commands_stand_as_one_would_type_them() {
        let text = banner(&["0.0.0.0:8080"], &["[::]:8081"], "target/release/fanwave");
        for command in [
            "curl -N http://127.0.0.1:8080/sse/hello\n",
            " target/release/fanwave tail ws://127.0.0.1:8080/ws/hello\n",
            "curl -d 'hello, world' 'http://[::1]:8081/topics/hello'\n",
        ] {
            assert!(text.contains(command), "{text}");
        }
        let text = banner(&["[::]:8080"], &["127.0.0.1:8081"], "fanwave");
        for command in [
            "curl -N 'http://[::1]:8080/sse/hello'\n",
            " fanwave tail 'ws://[::1]:8080/ws/hello'\n",
            "curl -d 'hello, world' http://127.0.0.1:8081/topics/hello\n",
        ] {
            assert!(text.contains(command), "{text}");
        }
        let text = banner(&["127.0.0.1:1"], &["unix:/run/a b"], "/opt/it's/fanwave");
        assert!(text.contains(r"'/opt/it'\''s/fanwave' tail"), "{text}");
        assert!(text.contains("curl --unix-socket '/run/a b' -d"), "{text}");
    }

    #[test]
    fn a_data_plane_that_others_reach_says_who_may_subscribe() {
        let remedy = "name keys of tokens with --auth-jwks or --auth-hs256-file";
        assert!(banner(&["0.0.0.0:1"], &["127.0.0.1:2"], "fanwave").contains(remedy));
        assert!(!banner(&["127.0.0.1:1", "[::1]:1"], &["127.0.0.1:2"], "fanwave").contains("access "));
        let asking = Started { asks_for_tokens: true, ..started(&["0.0.0.0:1"], &["127.0.0.1:2"]) };
        let text = super::text(&asking, &Limits::default(), SlowPolicy::Close, "fanwave");
        assert!(text.contains("access        subscribers need a token") && !text.contains(remedy), "{text}");
        assert!(text.contains("curl -N -H \"Authorization: Bearer $TOKEN\" http://127.0.0.1:1/"), "{text}");
        assert!(text.contains("fanwave tail --token-file TOKEN ws://127.0.0.1:1/"), "{text}");
    }

    #[test]
    fn an_address_with_a_scope_keeps_it_and_tail_has_another_one() {
        let text = banner(&["[fe80::1%2]:8080"], &["[fe80::1%2]:8081"], "fanwave");
        for part in [
            "data plane    [fe80::1%2]:8080\n",
            "subscribe     http://[fe80::1%252]:8080/sse/{topic}",
            "curl -N 'http://[fe80::1%252]:8080/sse/hello'\n",
            "curl -d 'hello, world' 'http://[fe80::1%252]:8081/topics/hello'\n",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
        assert!(!text.contains("fanwave tail"), "{text}");
        let text = banner(&["[fe80::1%2]:8080", "[::1]:8080"], &["127.0.0.1:1"], "fanwave");
        assert!(text.contains("fanwave tail 'ws://[::1]:8080/ws/hello'\n"), "{text}");
    }

    #[test]
    fn capacity_and_memory_are_told_with_their_sums() {
        let text = banner(&["127.0.0.1:1"], &["127.0.0.1:2"], "fanwave");
        for part in [
            "2, on CPU 0, 2",
            "20,000 per shard, 40,000 in all",
            "1,024 events, 8 MiB, 300 s per topic",
            "every 15 s",
            "256 MiB\n",
            "in user space, at these limits    261 MiB\n",
            "\nceiling       460 MiB: nine tenths of it\n              remedy: have more\n",
        ] {
            assert!(text.contains(part), "no {part:?} in\n{text}");
        }
    }

    #[test]
    fn what_the_second_best_egress_costs_is_told_with_the_remedy() {
        let rows = "\negress        epoll on plain descriptors: no io_uring: it is forbidden\n              \
                    costs much\n              remedy: allow it\n";
        let text = banner(&["127.0.0.1:1"], &["127.0.0.1:2"], "fanwave");
        assert!(text.contains(rows), "no {rows:?} in\n{text}");
        let mut best = started(&["127.0.0.1:1"], &["127.0.0.1:2"]);
        best.egress = EgressReport {
            ring: "uring",
            sockets: "direct",
            why: "it works here".into(),
            cost: None,
            remedy: None,
        };
        let text = super::text(&best, &Limits::default(), SlowPolicy::Close, "fanwave");
        assert!(
            text.contains("\negress        io_uring on direct descriptors: it works here\nmemory "),
            "{text}"
        );
    }

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
