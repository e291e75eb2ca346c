//! Claim: what `deploy/` holds works as it stands, and names nothing that is not there.
//!
//! Set-up: the configuration of the package, the settings of the Dockerfile and of the Kubernetes
//! example, read by the server; the unit files, read by `systemd-analyze verify` where it is
//! installed; every flag and variable in `deploy/` and in the documents for users.
//!
//! Expectation: the server takes them and listens where they say, with a token where that is
//! needed; ports, probes and services agree; systemd finds nothing to complain about; the program's
//! own help knows each flag.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use yaml_rust2::{Yaml, YamlLoader};

use crate::support::server::client;
use crate::support::{Scratch, Server};

/// What other programs have: flags of cargo, curl, Docker, kubectl, loadtest, systemd and Debian's
/// tools.
const FLAGS_OF_OTHERS: [&str; 29] = [
    "data-binary",
    "foreground",
    "from",
    "from-literal",
    "group",
    "haproxy-protocol",
    "home",
    "http2-prior-knowledge",
    "kill-whom",
    "locked",
    "moves",
    "no-create-home",
    "no-install",
    "no-install-recommends",
    "nodes",
    "now",
    "package",
    "quiet",
    "rate",
    "release",
    "security-opt",
    "shell",
    "signal",
    "subscribers",
    "system",
    "through-cluster",
    "uid",
    "ulimit",
    "window",
];
/// What is told as gone or as nobody's.
const GONE: [&str; 1] = ["overrun"];

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn deployed(name: &str) -> String {
    text(&format!("deploy/{name}"))
}

/// The documents of a file of YAML.
fn yaml(name: &str) -> Vec<Yaml> {
    YamlLoader::load_from_str(&deployed(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Starts what a container starts, with its variables; ports are those that the kernel chooses.
fn contained(variables: &BTreeMap<String, String>, token_file: Option<&str>) -> Server {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanwave"));
    command.args(["serve"]).env_clear();
    for (name, value) in variables {
        let value = match (name.as_str(), token_file) {
            ("FANWAVE_LISTEN" | "FANWAVE_CONTROL", _) => "127.0.0.1:0",
            ("FANWAVE_CONTROL_TOKEN_FILE", Some(file)) => file,
            _ => value,
        };
        command.env(name, value);
    }
    command.env("FANWAVE_SHARDS", "1");
    if !variables.contains_key("FANWAVE_CONTROL") {
        command.env("FANWAVE_CONTROL", "127.0.0.1:0");
    }
    Server::run(command)
}

#[tokio::test]
async fn the_configuration_of_the_package_starts_a_server() {
    let scratch = Scratch::new();
    let socket = scratch.path("control.sock");
    let text = deployed("fanwave.toml").replace("/run/fanwave/control.sock", &socket.display().to_string());
    for address in ["127.0.0.1:8080", "127.0.0.1:8081"] {
        assert!(text.contains(address), "{text}");
    }
    let text = text.replace("127.0.0.1:8080", "127.0.0.1:0").replace("127.0.0.1:8081", "127.0.0.1:0");
    let file = scratch.write("fanwave.toml", &text);
    // What is commented out is valid too.
    let file_with_all = scratch.write(
        "all.toml",
        &text
            .replace("#cors", "cors")
            .replace("#proxy", "proxy")
            .replace("#connections", "connections")
            .replace("#log", "log")
            .replace("#control_token_file = \"/run/credentials/fanwave.service/control-token\"", ""),
    );
    for file in [file, file_with_all] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fanwave"));
        command.args(["serve", "--config", &file, "--shards", "1"]).env_clear();
        let server = Server::run(command);
        assert!(server.banner.iter().any(|line| line.contains(&format!("unix:{}", socket.display()))));
        assert_eq!(server.get("/healthz").await.status, 200);
        drop(server);
    }
}

#[test]
fn the_units_are_right() {
    let analyze = Command::new("systemd-analyze").arg("--version").output();
    if analyze.is_err() {
        eprintln!("skipped: systemd-analyze is not installed");
        return;
    }
    let scratch = Scratch::new();
    let program = env!("CARGO_BIN_EXE_fanwave");
    let units = ["fanwave.service", "fanwave.socket", "fanwave-control.socket"].map(|name| {
        // The program of the package is not installed here.
        let text = deployed(&format!("systemd/{name}"));
        scratch.write(name, &text.replace("/usr/bin/fanwave", program))
    });
    let output = Command::new("systemd-analyze").arg("verify").args(&units).output().expect("it runs");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && told.is_empty(), "{told}");
}

#[tokio::test]
async fn the_settings_of_the_kubernetes_example_start_a_server_behind_its_token() {
    let documents = yaml("kubernetes/fanwave.yaml");
    let of_kind = |kind: &str| {
        documents.iter().filter(|document| document["kind"].as_str() == Some(kind)).collect::<Vec<_>>()
    };
    let [deployment] = of_kind("Deployment")[..] else { panic!("one deployment") };
    let pod = &deployment["spec"]["template"];
    let container = &pod["spec"]["containers"][0];
    let list = |yaml: &Yaml| yaml.as_vec().cloned().unwrap_or_else(|| panic!("a list: {yaml:?}"));
    let word = |yaml: &Yaml| yaml.as_str().unwrap_or_else(|| panic!("a word: {yaml:?}")).to_string();

    // Each port is that of an address, and probes and services name one.
    let variables: BTreeMap<String, String> =
        list(&container["env"]).iter().map(|entry| (word(&entry["name"]), word(&entry["value"]))).collect();
    let ports: BTreeMap<String, i64> = list(&container["ports"])
        .iter()
        .map(|port| (word(&port["name"]), port["containerPort"].as_i64().expect("a number")))
        .collect();
    for (name, variable) in [("data", "FANWAVE_LISTEN"), ("control", "FANWAVE_CONTROL")] {
        assert_eq!(variables[variable], format!("0.0.0.0:{}", ports[name]));
    }
    assert_eq!(word(&container["readinessProbe"]["httpGet"]["path"]), "/healthz");
    for probe in [&container["readinessProbe"]["httpGet"], &container["livenessProbe"]["tcpSocket"]] {
        assert_eq!(word(&probe["port"]), "data");
    }
    let labels = &pod["metadata"]["labels"];
    assert_eq!(&deployment["spec"]["selector"]["matchLabels"], labels);
    let services = of_kind("Service");
    for service in &services {
        assert_eq!(&service["spec"]["selector"], labels);
        assert!(ports.contains_key(&word(&service["spec"]["ports"][0]["targetPort"])), "{service:?}");
    }
    // Publishers inside the cluster use the name of the service.
    let names: Vec<String> = services.iter().map(|service| word(&service["metadata"]["name"])).collect();
    assert!(names.contains(&variables["FANWAVE_CONTROL_HOST"]), "{names:?}");
    let mount = word(&container["volumeMounts"][0]["mountPath"]);
    assert!(variables["FANWAVE_CONTROL_TOKEN_FILE"].starts_with(&mount));
    // The pod is killed later than a drain takes.
    assert!(pod["spec"]["terminationGracePeriodSeconds"].as_i64() > Some(10 + 5));

    let scratch = Scratch::new();
    let token = scratch.write("token", "a-token-of-32-digits-0123456789a");
    let mut server = contained(&variables, Some(&token));
    let request = |host: &str| {
        let url = server.url("/stats");
        client(reqwest::Client::builder()).get(url).header("Host", host.to_string())
    };
    let host = &variables["FANWAVE_CONTROL_HOST"];
    assert_eq!(server.answer(request(host)).await.status, 401);
    let stats = server.answer(request(host).bearer_auth("a-token-of-32-digits-0123456789a")).await;
    assert_eq!(stats.status, 200, "{stats:?}");
    let health = client(reqwest::Client::builder()).get(format!("http://{}/healthz", server.data));
    assert_eq!(server.answer(health).await.status, 200);
    server.signal(rustix::process::Signal::TERM);
    assert!(server.ended().await.success());
    assert!(!server.log().contains("is no setting"), "each variable is a setting");
}

/// A flag's variable of each node, by the name of the variable.
fn settings_of(yaml: &Yaml) -> BTreeMap<String, String> {
    let hash = yaml.as_hash().unwrap_or_else(|| panic!("a mapping: {yaml:?}"));
    let word = |yaml: &Yaml| yaml.as_str().unwrap_or_else(|| panic!("a word: {yaml:?}")).to_string();
    hash.iter().map(|(name, value)| (word(name), word(value))).collect()
}

/// The hosts of a source, without their ports.
fn hosts(source: &str) -> Vec<&str> {
    let hosts = source.strip_prefix("nats://").expect("a source in NATS").split(',');
    hosts.map(|host| host.strip_suffix(":4222").expect("the usual port")).collect()
}

/// These settings are right, as a file.
fn check(variables: &BTreeMap<String, String>) {
    let scratch = Scratch::new();
    let token = scratch.write("token", "a-token-of-32-digits-0123456789a");
    let line = |(name, value): (&String, &String)| {
        let name = name.strip_prefix("FANWAVE_").expect("a variable of ours").to_lowercase();
        let value = if name == "control_token_file" { &token } else { value };
        let is_number = value.bytes().all(|byte| byte.is_ascii_digit());
        if is_number { format!("{name} = {value}\n") } else { format!("{name} = {value:?}\n") }
    };
    let file = scratch.write("fanwave.toml", &variables.iter().map(line).collect::<String>());
    let mut command = Command::new(env!("CARGO_BIN_EXE_fanwave"));
    let output = command.args(["check-config", &file]).env_clear().output().expect("the program runs");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn the_cluster_for_compose_names_servers_and_nodes_that_are_there() {
    let [compose] = &yaml("compose.yml")[..] else { panic!("one document") };
    let services = compose["services"].as_hash().expect("services");
    let names: Vec<&str> = services.keys().filter_map(Yaml::as_str).collect();
    let of = |prefix: &str| names.iter().copied().filter(|name| name.starts_with(prefix)).collect::<Vec<_>>();
    let (nats, nodes) = (of("nats-"), of("fanwave-"));
    assert_eq!((nats.len(), nodes.len()), (3, 3));
    let variables = settings_of(&compose["x-node"]["environment"]);
    assert_eq!(hosts(&variables["FANWAVE_SOURCE"]), nats);
    assert_eq!(variables["FANWAVE_NATS_REPLICAS"], "3");
    let config = compose["configs"]["nats"]["content"].as_str().expect("the servers' configuration");
    let balancer = deployed("haproxy/cluster.cfg");
    for name in &nats {
        assert!(config.contains(&format!("nats://{name}:6222")), "{name}");
    }
    for name in &nodes {
        for port in [8080, 8081] {
            assert!(balancer.contains(&format!("server {name} {name}:{port}")), "{name}");
        }
    }
    check(&variables);
}

#[test]
fn the_cluster_for_kubernetes_names_servers_that_are_there() {
    let documents = yaml("kubernetes/cluster.yaml");
    let of_kind = |kind: &str| documents.iter().find(|document| document["kind"].as_str() == Some(kind));
    let servers = of_kind("StatefulSet").expect("the NATS servers");
    let (name, service) = (&servers["metadata"]["name"], &servers["spec"]["serviceName"]);
    let pods: Vec<String> = (0..servers["spec"]["replicas"].as_i64().expect("a number"))
        .map(|number| {
            format!("{}-{number}.{}", name.as_str().expect("a name"), service.as_str().expect("a name"))
        })
        .collect();
    assert_eq!(pods.len(), 3);
    let node = &of_kind("Deployment").expect("the nodes")["spec"]["template"];
    let variables: BTreeMap<String, String> = node["spec"]["containers"][0]["env"]
        .as_vec()
        .expect("variables")
        .iter()
        .map(|entry| {
            let word = |name: &str| entry[name].as_str().expect("a word").to_string();
            (word("name"), word("value"))
        })
        .collect();
    assert_eq!(hosts(&variables["FANWAVE_SOURCE"]), pods);
    let config =
        of_kind("ConfigMap").expect("the servers' configuration")["data"]["nats-server.conf"].as_str();
    for pod in &pods {
        assert!(config.expect("a file").contains(&format!("nats://{pod}:6222")), "{pod}");
    }
    let labels = &node["metadata"]["labels"];
    for document in &documents {
        let selector = &document["spec"]["selector"];
        if document["kind"].as_str() == Some("Service") && selector["app"].as_str() == Some("fanwave") {
            assert_eq!(selector, labels);
        }
    }
    let names: Vec<&str> =
        documents.iter().filter_map(|document| document["metadata"]["name"].as_str()).collect();
    assert!(names.contains(&&*variables["FANWAVE_CONTROL_HOST"]), "{names:?}");
    check(&variables);
}

#[tokio::test]
async fn the_settings_of_the_dockerfile_start_a_server() {
    let text = deployed("Dockerfile");
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let of = |word: &str| lines.iter().filter_map(|line| line.strip_prefix(word)).collect::<Vec<&str>>();
    let variables: BTreeMap<String, String> = of("ENV ")
        .iter()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .collect();
    let exposed: Vec<&str> = of("EXPOSE ").iter().flat_map(|line| line.split(' ')).collect();
    assert_eq!(variables["FANWAVE_LISTEN"], format!("0.0.0.0:{}", exposed[0]));
    assert_eq!((of("ENTRYPOINT "), of("CMD ")), (vec![r#"["/usr/bin/fanwave"]"#], vec![r#"["serve"]"#]));
    assert_eq!(of("STOPSIGNAL "), ["SIGTERM"]);
    assert!(of("USER ").iter().all(|user| !user.starts_with('0') && *user != "root"));
    // The oldest compiler that Cargo.toml allows, or a newer one.
    let manifest = self::text("Cargo.toml");
    let version = |text: &str, before: &str| {
        let at = text.find(before).expect("a version") + before.len();
        let end = text[at..].find(|c: char| !c.is_ascii_digit() && c != '.').expect("something follows");
        let parts = text[at..at + end].split('.').map(|part| part.parse::<u32>().expect("a number"));
        parts.collect::<Vec<_>>()
    };
    assert!(version(&text, "FROM rust:") >= version(&manifest, "rust-version = \""));
    let mut server = contained(&variables, None);
    assert_eq!(server.get("/healthz").await.status, 200);
    server.signal(rustix::process::Signal::TERM);
    assert!(server.ended().await.success());
    assert!(!server.log().contains("is no setting"), "each variable is a setting");
}

#[test]
fn the_alerts_are_yaml() {
    let [rules] = &yaml("alerts.yml")[..] else { panic!("one document") };
    assert!(!rules["groups"].is_badvalue());
}

/// All files of `deploy/`, and what users read.
fn documents() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = [
        "README.md",
        "SECURITY.md",
        "docs/cluster.md",
        "docs/configuration.md",
        "docs/operations.md",
        "docs/protocol.md",
    ]
    .map(path)
    .to_vec();
    let mut folders = vec![path("deploy")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a directory") {
            let entry = entry.expect("an entry").path();
            if entry.is_dir() { folders.push(entry) } else { found.push(entry) }
        }
    }
    found
}

/// The long flags in a text, in its order and without their dashes.
fn flags(text: &str) -> Vec<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let mut flags = Vec::new();
    for (at, _) in text.match_indices("--") {
        let before = text[..at].chars().next_back();
        let name: String = text[at + 2..].chars().take_while(|c| is_part(*c)).collect();
        let is_flag = name.starts_with(|c: char| c.is_ascii_lowercase());
        if is_flag && !before.is_some_and(is_part) {
            flags.push(name.trim_end_matches('-').to_string());
        }
    }
    flags
}

/// The variables of this program in a text, as the flags that they stand for.
fn variables(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, prefix) in text.match_indices("FANWAVE_") {
        let name: String = text[at + prefix.len()..]
            .chars()
            .take_while(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || *c == '_')
            .collect();
        // `FANWAVE_*` and its like stand for several.
        if !name.is_empty() && !name.ends_with('_') {
            found.insert(name.to_lowercase().replace('_', "-"));
        }
    }
    found
}

#[test]
fn every_flag_and_variable_that_is_named_exists() {
    let mut known = BTreeSet::from(["help".to_string(), "version".to_string()]);
    for command in ["serve", "publish", "tail", "check-config"] {
        let output = Command::new(env!("CARGO_BIN_EXE_fanwave"))
            .args([command, "--help"])
            .env_clear()
            .output()
            .expect("the program runs");
        assert!(output.status.success(), "{command}");
        let help = String::from_utf8(output.stdout).expect("UTF-8");
        // A line begins with the flag that it tells of.
        let lines = help.lines().filter(|line| line.trim_start().starts_with('-'));
        known.extend(lines.filter_map(|line| flags(line).into_iter().next()));
    }
    assert!(known.len() > 40, "{known:?}");
    let others: BTreeSet<String> = FLAGS_OF_OTHERS.iter().chain(&GONE).map(|name| name.to_string()).collect();
    // Kubernetes' own for a service called fanwave.
    let of_links = BTreeSet::from(["port".to_string()]);
    let mut wrong = Vec::new();
    for document in documents() {
        let text = std::fs::read_to_string(&document).expect("text");
        let name = document.display();
        let flags = flags(&text);
        wrong.extend(
            flags
                .iter()
                .filter(|flag| !known.contains(*flag) && !others.contains(*flag))
                .map(|flag| format!("{name}: --{flag}")),
        );
        let variables = variables(&text);
        wrong.extend(
            variables
                .iter()
                .filter(|flag| !known.contains(*flag) && !of_links.contains(*flag))
                .map(|flag| format!("{name}: the variable of --{flag}")),
        );
    }
    assert!(
        wrong.is_empty(),
        "neither this program has these, nor are they among FLAGS_OF_OTHERS: {wrong:#?}"
    );
}

#[test]
fn flags_are_found_in_prose_and_commands() {
    let found = flags("a --b-c, `--d=1` --e.\n| `--f` -- x --- y--z <!-- c --> --G");
    assert_eq!(found, ["b-c", "d", "e", "f"]);
    let found = variables("FANWAVE_A_B=1 FANWAVE_* FANWAVE_C_* `FANWAVE_D`");
    assert_eq!(found.into_iter().collect::<Vec<_>>(), ["a-b", "d"]);
}
