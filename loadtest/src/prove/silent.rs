//! `loadtest silent`: what thousands of connections from one address that say nothing cost those
//! who come from others.
//!
//! Each server is asked twice for newcomers at a steady rate, from addresses of their own: in calm,
//! and while the silent connections come all at once and stay. A newcomer's time is what its user
//! waits: from the moment at which it was due to the head of the answer. All silent ones must be
//! closed by the server once its patience for a request head is over.
//!
//! Not here: peers that say something and then stall; that is `isolation`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, ipproto};
use serde::Serialize;

use super::topic::Latencies;
use super::{Bench, ServerArgs};
use crate::fault::server_fault;
use crate::fleet::Fleet;
use crate::framing::Protocol;
use crate::process::check_sockets;
use crate::receiver::{CrowdSetup, latency_histogram, record};
use crate::report::{progress, save, say, table};
use crate::server::Running;
use crate::unit::grouped;

/// Where the silent ones come from: nobody else does.
const SILENT_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 9, 9);
/// Ports of one address that may be used up.
const SILENT_MAX: usize = 25_000;
/// Newcomers share an address by the thousand; each leg has its own thousands.
const LEG_FIRST: usize = 100_000;
/// From the end of the server's patience until the last silent connection must be closed.
const GRACE: Duration = Duration::from_secs(3);
/// What a newcomer should wait at most, in milliseconds.
const TARGET_MS: u64 = 100;

/// Options of `silent`.
#[derive(Debug, Clone, Args)]
pub struct SilentArgs {
    #[command(flatten)]
    server: ServerArgs,
    /// Silent connections, all from one address
    #[arg(long, default_value_t = 5_000)]
    silent: usize,
    /// Newcomers per second from other addresses
    #[arg(long, default_value_t = 50.0)]
    per_second: f64,
    /// Seconds of newcomers, of one leg; the patience lies within
    #[arg(long, default_value_t = 6.0)]
    seconds_per_leg: f64,
    /// The server's patience for a request head (--handshake-ms-max)
    #[arg(long, default_value_t = 3_000)]
    patience_ms: u64,
    /// Connections of one address in the second round (--connections-per-address-max)
    #[arg(long, default_value_t = 1_000)]
    address_max: usize,
}

/// A server with this limit, in calm and beside silent connections.
#[derive(Debug, Serialize)]
struct Round {
    /// Connections of one address; none for any number.
    address_max: Option<usize>,
    calm: Latencies,
    beside: Latencies,
    /// Newcomers beside the silent ones that waited longer than the target.
    late: u64,
    /// Silent connections that the server had accepted and closed.
    closed: usize,
    /// Seconds from the first connect of a silent one until the last was closed.
    closed_seconds: f64,
}

/// Measures and prints.
pub fn run(bench: &Bench, args: &SilentArgs) -> Result<()> {
    let newcomers = args.newcomers()?;
    check_sockets("this process", args.silent as u64)?;
    let mut rounds = Vec::new();
    for address_max in [None, Some(args.address_max)] {
        let limit = address_max.map_or_else(|| "no limit".to_owned(), |most| format!("a limit of {most}"));
        progress(&format!("{} silent connections, {limit} per address", grouped(args.silent as u64)));
        let more = [
            format!("--handshake-ms-max={}", args.patience_ms),
            format!("--connections-per-address-max={}", address_max.unwrap_or(0)),
        ];
        let round = |server: &Running| round(bench, args, server, newcomers, address_max);
        rounds.push(args.server.ask(bench, &more, round)?);
    }
    show(bench, args, &rounds);
    save(bench.common.json.as_deref(), "silent", &bench.machine, &rounds)
}

impl SilentArgs {
    /// How many newcomers a leg has, if all numbers make sense.
    fn newcomers(&self) -> Result<usize> {
        if self.silent == 0 || self.silent > SILENT_MAX {
            bail!("--silent {}: one address has ports for 1 to {SILENT_MAX}", self.silent);
        }
        let newcomers = (self.per_second * self.seconds_per_leg).floor();
        if !(self.per_second > 0.0 && (1.0..LEG_FIRST as f64).contains(&newcomers)) {
            bail!("--per-second times --seconds-per-leg is at least 1 newcomer and below {LEG_FIRST}");
        }
        if newcomers as usize > self.address_max {
            bail!(
                "--address-max {}: the newcomers, up to 1,000 from an address and {newcomers} in all, need more",
                self.address_max
            );
        }
        Ok(newcomers as usize)
    }
}

fn round(
    bench: &Bench,
    args: &SilentArgs,
    server: &Running,
    newcomers: usize,
    address_max: Option<usize>,
) -> Result<Round> {
    let leg = |first: usize| -> Result<_> {
        let subscribers = bench.subscribers(&server.target, Protocol::Sse)?;
        let rate = Some(args.per_second);
        let mut fleet = Fleet::new(CrowdSetup { first, ramp_per_second: rate, ..subscribers });
        fleet.open(newcomers)?;
        let mut handshakes = latency_histogram();
        for word in fleet.sample()? {
            record(&mut handshakes, &word.handshakes);
        }
        Ok(handshakes)
    };
    let calm = leg(0)?;
    let target = server.target.subscribe;
    let patience = Duration::from_millis(args.patience_ms);
    let (beside, silence) = std::thread::scope(|scope| {
        let silent = scope.spawn(|| Silence::keep(target, args.silent, patience + GRACE));
        let beside = leg(LEG_FIRST);
        (beside, silent.join().expect("the thread does not panic"))
    });
    let (beside, silence) = (beside?, silence?);
    if silence.closed < args.silent {
        return Err(server_fault(format!(
            "{} of {} silent connections are still open {GRACE:?} after --handshake-ms-max",
            args.silent - silence.closed,
            args.silent
        )));
    }
    let late = beside.len() - beside.count_between(0, TARGET_MS * 1_000_000);
    Ok(Round {
        address_max,
        calm: Latencies::of(&calm),
        beside: Latencies::of(&beside),
        late,
        closed: silence.closed,
        closed_seconds: silence.seconds,
    })
}

/// What became of the silent connections.
struct Silence {
    closed: usize,
    seconds: f64,
}

impl Silence {
    /// Connects so many at once, says nothing, and waits until the server has closed them, at most
    /// for `limit`.
    fn keep(target: SocketAddr, connections: usize, limit: Duration) -> Result<Silence> {
        let start = Instant::now();
        let mut open = Vec::with_capacity(connections);
        for _ in 0..connections {
            open.push(connect(target)?);
        }
        let deadline = start + limit;
        while !open.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let ready = {
                let mut polled: Vec<PollFd<'_>> =
                    open.iter().map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
                let timeout = Timespec::try_from(left).context("a time of seconds")?;
                match poll(&mut polled, Some(&timeout)) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error).context("waiting for silent connections"),
                }
                polled.iter().map(|polled| !polled.revents().is_empty()).collect::<Vec<bool>>()
            };
            let mut ready = ready.into_iter();
            open.retain(|socket| !(ready.next().unwrap_or(false) && is_closed(socket)));
            // Thousands are closed within a second: not a look at all of them for each.
            std::thread::sleep(Duration::from_millis(20).min(left));
        }
        Ok(Silence { closed: connections - open.len(), seconds: start.elapsed().as_secs_f64() })
    }
}

/// Begins a connection from the address of the silent ones, if the target is on loopback.
fn connect(target: SocketAddr) -> Result<OwnedFd> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))
        .context("opening a silent connection failed; raise the descriptor limit with `ulimit -n`")?;
    if matches!(target.ip(), IpAddr::V4(ip) if ip.is_loopback()) {
        rustix::net::bind(&socket, &SocketAddr::from((SILENT_ADDRESS, 0)))
            .with_context(|| format!("no free port at source address {SILENT_ADDRESS}"))?;
    }
    match rustix::net::connect(&socket, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error).with_context(|| format!("connecting to {target}")),
    }
}

/// True once the server has ended the connection. Nothing else can come from it.
fn is_closed(socket: &OwnedFd) -> bool {
    let mut byte = [0];
    match rustix::net::recv(socket, &mut byte[..], RecvFlags::empty()) {
        Ok((read, _)) => read == 0,
        Err(Errno::AGAIN | Errno::NOTCONN | Errno::INTR) => false,
        Err(_) => true,
    }
}

fn show(bench: &Bench, args: &SilentArgs, rounds: &[Round]) {
    say(&format!("{}\n", bench.machine.line()));
    let mut rows = Vec::new();
    for round in rounds {
        let limit = round.address_max.map_or_else(|| "none".to_owned(), |most| grouped(most as u64));
        for (leg, latencies) in [("in calm", &round.calm), ("beside them", &round.beside)] {
            let ms = |us: f64| format!("{:.2} ms", us / 1e3);
            rows.push(vec![
                limit.clone(),
                leg.to_owned(),
                grouped(latencies.count),
                ms(latencies.p50_us),
                ms(latencies.p99_us),
                ms(latencies.max_us),
            ]);
        }
    }
    table(2, &["limit per address", "newcomers", "answered", "median", "p99", "largest"], &rows);
    for round in rounds {
        let limit = match round.address_max {
            Some(most) => format!("with a limit of {}", grouped(most as u64)),
            None => "without a limit".to_owned(),
        };
        let late = match round.late {
            0 => format!("every newcomer was answered within {TARGET_MS} ms"),
            late => format!("{late} newcomers waited longer than {TARGET_MS} ms"),
        };
        say(&format!(
            "\n{limit}: {late}; {} silent connections were closed, the last after {:.2} s",
            grouped(round.closed as u64),
            round.closed_seconds
        ));
    }
    say(&format!(
        "\n{} silent connections from {SILENT_ADDRESS} at once, {} newcomers per second from other addresses;",
        grouped(args.silent as u64),
        args.per_second
    ));
    say(&format!(
        "the server waits {} ms for a request head; time = due to the head of the answer.",
        grouped(args.patience_ms)
    ));
}
