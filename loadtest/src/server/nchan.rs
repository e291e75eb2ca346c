//! nchan, a module of nginx, as a rival: one nginx worker on one CPU.
//!
//! The configuration is `loadtest/rivals/nchan.conf`, filled in and put into a directory of its
//! own. nginx's worker outlives a master that is killed, so a guard ends it whenever this program
//! ends, however it ends.

use std::fs;
use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use super::doors::{Certificate, scratch_directory};
use super::program::Program;
use super::{Doors, INSTALL, Running, version_of, write_config};
use crate::framing::Dialect;
use crate::process::sockets_per_process_max;
use crate::target::Target;
use crate::way::Way;

const CONFIG: &str = include_str!("../../rivals/nchan.conf");
/// Ports tried: another program may take one between our choice and nginx's start.
const PORTS_MAX: usize = 3;

/// Ends a group of processes when it is dropped, and when this program dies: it waits for the end
/// of its input.
pub struct Guard {
    shell: Child,
}

impl Guard {
    /// A guard of nobody yet. It is there before those whom it guards, so that there is no moment
    /// without it.
    fn new() -> Result<Guard> {
        // A terminal's Ctrl-C reaches the guard too, which has its work to do then.
        let script =
            "trap '' HUP INT QUIT TERM; read group && { cat > /dev/null; kill -s KILL -- \"-$group\"; }";
        let shell = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting sh")?;
        Ok(Guard { shell })
    }

    /// From here on it guards the process group `group`.
    fn watch(&mut self, group: u32) -> Result<()> {
        let input = self.shell.stdin.as_mut().context("the guard's input is a pipe")?;
        writeln!(input, "{group}").context("telling the guard")
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // It ends with its input; an error means that it has ended already.
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

/// Starts nginx with nchan on `cpu` alone if one is given, and waits until its worker is there.
pub fn start(cpu: Option<usize>, doors: &Doors) -> Result<Running> {
    let nginx = version_of("nginx".as_ref(), &["-v"], INSTALL)?;
    let modules = modules_path()?;
    if !fs::exists(format!("{modules}/ngx_nchan_module.so")).unwrap_or(false) {
        bail!("nginx {nginx} has no nchan in {modules}; {INSTALL}");
    }
    let mut tries = 1;
    let started = loop {
        match try_start(cpu, &modules, doors) {
            Err(error) if tries < PORTS_MAX && format!("{error:#}").contains("bind()") => tries += 1,
            outcome => break outcome?,
        }
    };
    let Started { scratch, guard, program, worker, publish, subscribe, certificate } = started;
    let target = Target {
        name: "nchan".into(),
        version: format!("{} in nginx {nginx}", package_version()),
        // The master sleeps; it costs nothing.
        pids: vec![worker],
        cpus: cpu.into_iter().collect(),
        subscribe,
        tls: certificate.map(|certificate| certificate.client),
        h2_streams: doors.streams()?,
        secret: None,
        clients: publish,
        sse_path: Some("/sse?topic={topic}".into()),
        ws_path: Some("/ws?topic={topic}".into()),
        dialect: Dialect::Plain,
        publish,
        way: Way::WebSocket,
        publish_path: "/publish?topic={topic}".into(),
    };
    Ok(Running { target, program: Some(program), _guard: Some(guard), _scratch: Some(scratch) })
}

/// An nginx that is ready. Dropped in this order.
struct Started {
    program: Program,
    guard: Guard,
    scratch: TempDir,
    worker: u32,
    publish: SocketAddr,
    /// The same without TLS.
    subscribe: SocketAddr,
    certificate: Option<Certificate>,
}

fn try_start(cpu: Option<usize>, modules: &str, doors: &Doors) -> Result<Started> {
    let publish = free_address()?;
    // A plain port of this nginx speaks one of HTTP/1.1 and HTTP/2.
    let is_apart = doors.tls || doors.streams()?.is_some();
    let subscribe = if is_apart { free_address()? } else { publish };
    let scratch = scratch_directory("nginx")?;
    let certificate = doors.certificate(scratch.path())?;
    let subscribers = is_apart.then(|| listen(subscribe.port(), certificate.as_ref(), doors));
    let is_root = rustix::process::geteuid().is_root();
    let config = config(modules, publish.port(), subscribers, sockets_per_process_max(), is_root);
    let file = write_config(scratch.path(), "nginx", &config)?;
    let options =
        ["-e".into(), "stderr".into(), "-p".into(), scratch.path().into(), "-c".into(), file.into()];
    let args = [&["nginx".into()], &options[..]].concat();
    let mut guard = Guard::new()?;
    // `setsid` becomes nginx, which is then the first of a process group of its own.
    let mut program = Program::start("nginx", cpu, "setsid".as_ref(), &args)?;
    guard.watch(program.pid())?;
    let worker = program.wait_ready(started_worker)?;
    Ok(Started { program, guard, scratch, worker, publish, subscribe, certificate })
}

/// The lines of a port for subscribers alone.
fn listen(port: u16, certificate: Option<&Certificate>, doors: &Doors) -> String {
    let most = doors.h2_streams.iter().max();
    let http2 = if most.is_some() { " http2" } else { "" };
    let streams = most.map(|most| format!(" http2_max_concurrent_streams {most};")).unwrap_or_default();
    let listen = format!("listen 127.0.0.1:{port}{http2}");
    match certificate {
        None => format!("{listen} backlog=4096;{streams}"),
        // 4 KiB hold what one subscriber gets at once; nginx's own 16 KiB only take memory.
        Some(Certificate { cert, key, .. }) => format!(
            "{listen} ssl backlog=4096; ssl_protocols TLSv1.3; ssl_buffer_size 4k; \
             ssl_certificate {}; ssl_certificate_key {};{streams}",
            cert.display(),
            key.display()
        ),
    }
}

fn config(modules: &str, port: u16, subscribers: Option<String>, connections: u64, root: bool) -> String {
    CONFIG
        .replace("@SUBSCRIBERS@", &subscribers.unwrap_or_default())
        .replace("@MODULES@", modules)
        // A worker of root's nginx is another user by default, who may not write into the
        // directory.
        .replace("@USER@", if root { "user root;" } else { "" })
        .replace("@CONNECTIONS@", &connections.to_string())
        .replace("@PORT@", &port.to_string())
}

/// The worker's process id in a line such as `… [notice] 7#7: start worker process 9`.
fn started_worker(line: &str) -> Option<u32> {
    line.rsplit_once("start worker process ")?.1.trim().parse().ok()
}

/// A loopback address that is free now.
fn free_address() -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("finding a free port")?;
    Ok(listener.local_addr()?)
}

/// Where this nginx has its modules: it tells how it was built.
fn modules_path() -> Result<String> {
    let output = Command::new("nginx").arg("-V").output().context("running nginx -V")?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok(modules_in(&text).unwrap_or("/usr/lib/nginx/modules").to_owned())
}

fn modules_in(built: &str) -> Option<&str> {
    built.split_whitespace().find_map(|word| word.strip_prefix("--modules-path="))
}

/// nchan does not tell its version; its package does.
fn package_version() -> String {
    match Command::new("dpkg-query").args(["-W", "-f", "${Version}", "libnginx-mod-nchan"]).output() {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Err(error) if error.kind() != ErrorKind::NotFound => format!("of unknown version ({error})"),
        _ => "of unknown version".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_filled_in_completely() {
        let text = config("/m", 81, None, 500, true);
        assert_eq!(text.matches('@').count(), 2, "those of the comment that explains them");
        for line in [
            "load_module /m/ngx_nchan_module.so;",
            "user root;",
            "listen 127.0.0.1:81 ",
            "worker_connections 500;",
        ] {
            assert!(text.contains(line), "{line}");
        }
        assert!(!config("/m", 81, None, 500, false).contains("user") && !text.contains("ssl"));
        let directory = tempfile::tempdir().expect("room");
        let certificate = Certificate::make(directory.path()).expect("a certificate");
        let doors = Doors { tls: true, ..Doors::default() };
        let text = config("/m", 81, Some(listen(82, Some(&certificate), &doors)), 500, true);
        assert!(text.contains("listen 127.0.0.1:82 ssl") && text.contains("cert.pem;"), "{text}");
        assert!(!text.contains("http2"), "{text}");
        let text = listen(82, Some(&certificate), &doors.with_streams(Some(6)));
        assert!(text.contains(":82 http2 ssl") && text.contains("_concurrent_streams 6;"), "{text}");
        assert!(listen(82, None, &doors.with_streams(Some(6))).starts_with("listen 127.0.0.1:82 http2 b"));
    }

    #[test]
    fn what_nginx_says_of_itself_is_understood() {
        let line = "2026/11/21 06:21:29 [notice] 13891#13891: start worker process 13893";
        assert_eq!(started_worker(line), Some(13_893));
        assert_eq!(started_worker("2026/11/21 06:21:29 [notice] 13891#13891: start worker processes"), None);
        assert_eq!(modules_in("configure arguments: --a=b --modules-path=/x/y --c"), Some("/x/y"));
        assert_eq!(modules_in("configure arguments: --a=b"), None);
    }
}
