//! TCP listeners. Of the data plane one per shard and address, sharing the port (`SO_REUSEPORT`);
//! of the control plane one per address. An IPv6 address of either takes IPv6 alone: what the
//! operator did not name is not open.
//!
//! What is set here is inherited by every accepted socket, so a new subscriber costs no further
//! system call.
//!
//! There is no SO_KEEPALIVE: heartbeats find out who is gone, at the pace that the operator chose.
//! Its probes would only come where heartbeats are rare, and `TCP_USER_TIMEOUT` takes the place of
//! their count (tcp(7)): one lost probe would end a healthy connection.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::config::limits::{BIND_MS_MAX, BIND_RETRY_MS, LISTEN_BACKLOG, NOT_SENT_BYTES_MAX};

/// Binds `address` once per shard. A port of 0 is chosen by the kernel once and then shared.
///
/// Fails with `AddrInUse` if anybody else listens there, another fanwave included, although sharing
/// the port would let both bind.
pub fn listen(
    address: SocketAddr,
    shards: usize,
    user_timeout: Duration,
) -> io::Result<(SocketAddr, Vec<OwnedFd>)> {
    if address.port() != 0 {
        await_free(address)?;
    }
    let mut bound = address;
    let mut listeners = Vec::with_capacity(shards);
    for _ in 0..shards {
        let socket = socket(address)?;
        socket.set_reuse_port(true)?;
        configure(&socket, user_timeout)?;
        socket.bind(&bound.into())?;
        socket.listen(LISTEN_BACKLOG)?;
        bound = socket.local_addr()?.as_socket().ok_or_else(|| io::Error::other("not an IP address"))?;
        listeners.push(socket.into());
    }
    Ok((bound, listeners))
}

/// Makes a listener that was passed one of ours.
pub fn take_over(listener: &OwnedFd, user_timeout: Duration) -> io::Result<()> {
    // An accept in the ring waits only on a socket that blocks.
    SockRef::from(listener).set_nonblocking(false)?;
    configure(listener, user_timeout)
}

/// Sets what every accepted socket inherits.
pub fn configure(listener: &impl AsFd, user_timeout: Duration) -> io::Result<()> {
    let socket = SockRef::from(listener);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(user_timeout))?;
    socket.set_tcp_notsent_lowat(NOT_SENT_BYTES_MAX)
}

/// Binds an address of the control plane, which is shared with nobody.
pub fn listen_alone(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket(address)?;
    socket.bind(&address.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    Ok(socket.into())
}

/// Fails if somebody listens on `address`. A process that was killed keeps its ports until the
/// kernel has taken its rings apart, so a port in use is looked at again for a while.
fn await_free(address: SocketAddr) -> io::Result<()> {
    let until = Instant::now() + Duration::from_millis(BIND_MS_MAX);
    loop {
        let probe = socket(address)?;
        match probe.bind(&address.into()).and_then(|()| probe.listen(1)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(BIND_RETRY_MS));
            }
            result => return result,
        }
    }
}

fn socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, TcpStream};

    use super::*;

    #[test]
    fn shards_share_a_port_and_nobody_else_does() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (bound, listeners) = listen(any, 3, Duration::from_secs(1)).expect("a free port");
        assert_eq!(listeners.len(), 3);
        let second = listen(bound, 1, Duration::from_secs(1)).expect_err("the port is taken");
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_listener_of_its_own_shares_with_nobody() {
        let first = listen_alone(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        let bound = first.local_addr().expect("bound");
        let second = listen_alone(bound).expect_err("the port is taken");
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn an_ipv6_address_takes_ipv6_alone() {
        if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_err() {
            eprintln!("skipped: this machine has no IPv6");
            return;
        }
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let (shared, _listeners) = listen(any, 1, Duration::from_secs(1)).expect("a free port");
        let alone = listen_alone(any).expect("a free port");
        for port in [shared.port(), alone.local_addr().expect("bound").port()] {
            TcpStream::connect((Ipv6Addr::LOCALHOST, port)).expect("it listens");
            let refused = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect_err("not on IPv4");
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        }
    }
}
