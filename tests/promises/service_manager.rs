//! Claim: systemd knows when the server is ready, alive, reloading and stopping, and may open its
//! sockets for it.
//!
//! Set-up: a datagram socket in the place of the manager's, listening sockets that are inherited,
//! and `systemd-analyze` where it is installed.
//!
//! Expectation: each state is told in its turn; a passed socket is used, is the only one of its
//! plane, and still listens after the server has ended. The unit files are right.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::process::Signal;

use crate::support::peer::request;
use crate::support::secure::{self, certificate};
use crate::support::{PATIENCE, Protocol, Scratch, Server, Subscriber, proxied};

/// What the manager is told next, as lines.
fn next(manager: &UnixDatagram) -> Vec<String> {
    let mut buffer = [0; 1_024];
    let bytes = manager.recv(&mut buffer).expect("the server tells its manager");
    std::str::from_utf8(&buffer[..bytes]).expect("text").lines().map(str::to_string).collect()
}

/// The next that is no sign of life.
fn next_state(manager: &UnixDatagram) -> Vec<String> {
    loop {
        let told = next(manager);
        if told != ["WATCHDOG=1"] {
            return told;
        }
    }
}

fn server(script: &str, flags: &[&str]) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{script} exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_fanwave")]);
    command.args(["serve", "--shards", "2", "--log", "fanwave=debug"]).args(flags);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).stdin(Stdio::null());
    command
}

const ANYWHERE: [&str; 4] = ["--listen", "127.0.0.1:0", "--control", "127.0.0.1:0"];

#[tokio::test]
async fn the_manager_is_told_of_every_state() {
    let scratch = Scratch::new();
    let manager = UnixDatagram::bind(scratch.path("notify")).expect("a socket");
    manager.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let mut command = server("", &ANYWHERE);
    command.env("NOTIFY_SOCKET", scratch.path("notify")).env("WATCHDOG_USEC", "200000");
    let mut server = Server::run(command);
    assert_eq!(next_state(&manager), ["READY=1", "STATUS=serving"]);
    for _ in 0..3 {
        assert_eq!(next(&manager), ["WATCHDOG=1"]);
    }
    server.signal(Signal::HUP);
    let told = next_state(&manager);
    assert!(told[0] == "RELOADING=1" && told[1].starts_with("MONOTONIC_USEC="), "{told:?}");
    assert_eq!(next_state(&manager), ["READY=1", "STATUS=serving"]);
    server.signal(Signal::TERM);
    assert_eq!(next_state(&manager), ["STOPPING=1", "STATUS=draining"]);
    assert_eq!(server.ended().await.code(), Some(0));
}

#[tokio::test]
async fn passed_sockets_are_used_and_outlive_the_server() {
    let listener = || TcpListener::bind("127.0.0.1:0").expect("a port");
    let (data, control) = (listener(), listener());
    let address = |listener: &TcpListener| listener.local_addr().expect("bound");
    let pass = |listener: &TcpListener| OwnedFd::from(listener.try_clone().expect("a descriptor"));
    for _ in 0..2 {
        // The addresses that are configured are in use, and not asked for.
        let configured = [address(&data), address(&control)].map(|address| address.to_string());
        let script = "exec 3<&0 4<&2 0</dev/null 2>/dev/null; export LISTEN_PID=$$ LISTEN_FDS=2;";
        let flags = ["--listen", &configured[1], "--control", &configured[0]];
        let mut command = server(script, &flags);
        command.env("LISTEN_FDNAMES", "data:control").stdin(pass(&data));
        let mut server = Server::run_with_stderr(command, pass(&control).into());
        assert_eq!((server.data, server.control), (address(&data), address(&control)));
        let mut subscribers = Vec::new();
        for number in 0..20 {
            let protocol = [Protocol::Sse, Protocol::WebSocket][number % 2];
            subscribers.push(Subscriber::connect(server.data, protocol, &["t"]).await);
        }
        server.publish("t", "x").await;
        for subscriber in &mut subscribers {
            assert_eq!(subscriber.text().await, "x");
        }
        drop(subscribers);
        server.signal(Signal::TERM);
        assert_eq!(server.ended().await.code(), Some(0));
        // The manager's own socket goes on listening: who comes now waits for the next server.
        std::net::TcpStream::connect(address(&data)).expect("it still listens");
    }
}

/// What is said of the address with TLS counts for it alone, wherever its listeners stand.
#[tokio::test]
async fn an_address_behind_a_proxy_with_tls_stands_beside_a_passed_socket() {
    let scratch = Scratch::new();
    let trusted = certificate(&scratch);
    let data = TcpListener::bind("127.0.0.1:0").expect("a port");
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| scratch.path(name).display().to_string());
    let script = "exec 3<&0 0</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1;";
    let flags = ["--listen-tls", "127.0.0.1:0", "--proxy-protocol", "127.0.0.1:0", "--tls-cert", &cert];
    let mut command = server(script, &[&ANYWHERE[..], &flags, &["--tls-key", &key]].concat());
    command.env("LISTEN_FDNAMES", "data").stdin(OwnedFd::from(data));
    let server = Server::run(command);
    let address = secure::address(&server);
    let header = proxied::v2("192.0.2.7:50000".parse().expect("an address"), b"");
    for number in 1..=8 {
        let mut client = secure::Client::behind(address, Arc::new(secure::trusting(&trusted)), &header);
        client.says(request(Protocol::Sse, &["t"], None).as_bytes());
        client.hears("\r\n\r\n");
        let mut plain = Subscriber::connect(server.data, Protocol::Sse, &["t"]).await;
        server.publish("t", format!("event {number}")).await;
        client.hears(&format!("event {number}"));
        assert_eq!(plain.text().await, format!("event {number}"));
    }
}

#[test]
fn a_socket_without_a_name_of_ours_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let mut command = server("exec 3<&0 0</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1;", &ANYWHERE);
    command.env("LISTEN_FDNAMES", "fanwave.socket").stdin(OwnedFd::from(listener));
    let output = command.output().expect("the program runs");
    let told = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("\"fanwave.socket\"") && told.contains("FileDescriptorName=data"), "{told}");
}
