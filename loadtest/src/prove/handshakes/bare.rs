//! Bare handshakes: the server's half of rustls in this process, without sockets, its CPU time taken
//! apart from the client's.
//!
//! The configuration is what `fanwave serve` has: the same provider, suites, kind of certificate,
//! and one stateless ticket. Many handshakes go on side by side, step by step, so that reading the
//! clock costs none of them.

use std::fs;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use rustix::time::{ClockId, clock_gettime};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{Ticketer, cipher_suite, default_provider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::NoServerSessionStorage;
use rustls::{ClientConnection, ServerConfig, ServerConnection};

use crate::process::pin_self;
use crate::secure::Door;
use crate::server::doors::Certificate;

/// Handshakes side by side.
const AT_ONCE: usize = 50;

/// Both ends of bare handshakes.
#[derive(Debug, Clone)]
pub struct Bare {
    server: Arc<ServerConfig>,
    client: Door,
    cpu: usize,
}

impl Bare {
    /// With this certificate, on this CPU.
    pub fn new(certificate: &Certificate, cpu: usize) -> Result<Bare> {
        let chain = vec![CertificateDer::from_pem_slice(&fs::read(&certificate.cert)?)?];
        let key = PrivateKeyDer::from_pem_slice(&fs::read(&certificate.key)?)?;
        let cipher_suites =
            vec![cipher_suite::TLS13_AES_128_GCM_SHA256, cipher_suite::TLS13_CHACHA20_POLY1305_SHA256];
        let provider = CryptoProvider { cipher_suites, ..default_provider() };
        let mut server = ServerConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(chain, key)?;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        server.ignore_client_order = true;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.ticketer = Ticketer::new()?;
        server.send_tls13_tickets = 1;
        Ok(Bare { server: Arc::new(server), client: Door::new(&certificate.client, false)?, cpu })
    }

    /// CPU microseconds of the server's half of one handshake, over `handshakes` of them. A thread
    /// of its own does them.
    pub fn measure(&self, handshakes: usize) -> Result<f64> {
        let bare = self.clone();
        let thread = std::thread::spawn(move || -> Result<f64> {
            pin_self(bare.cpu)?;
            let batches = handshakes.div_ceil(AT_ONCE);
            let ns = (0..batches).map(|_| bare.batch()).sum::<Result<u64>>()?;
            Ok(ns as f64 / 1e3 / (batches * AT_ONCE) as f64)
        });
        thread.join().map_err(|_| anyhow!("bare handshakes broke"))?
    }

    /// CPU nanoseconds of the server's half of so many handshakes.
    fn batch(&self) -> Result<u64> {
        let client =
            |_| Ok(ClientConnection::new(Arc::clone(&self.client.config), self.client.name.clone())?);
        let mut clients = (0..AT_ONCE).map(client).collect::<Result<Vec<_>>>()?;
        let mut to_server = clients.iter_mut().map(|client| client.say()).collect::<Result<Vec<_>>>()?;
        let start = thread_ns();
        let server = |_| Ok(ServerConnection::new(Arc::clone(&self.server))?);
        let mut servers = (0..AT_ONCE).map(server).collect::<Result<Vec<_>>>()?;
        let mut ns = thread_ns() - start;
        // Hello; Finished, after which the ticket comes.
        for _ in 0..2 {
            let start = thread_ns();
            let mut to_client = Vec::with_capacity(AT_ONCE);
            for (server, bytes) in servers.iter_mut().zip(&to_server) {
                server.hear(bytes)?;
                to_client.push(server.say()?);
            }
            ns += thread_ns() - start;
            for ((client, bytes), back) in clients.iter_mut().zip(&to_client).zip(&mut to_server) {
                client.hear(bytes)?;
                *back = client.say()?;
            }
        }
        if servers.iter().any(|server| server.is_handshaking()) {
            return Err(anyhow!("a bare handshake did not end"));
        }
        let start = thread_ns();
        drop(servers);
        Ok(ns + thread_ns() - start)
    }
}

/// One end, with its bytes in memory.
trait End {
    fn hear(&mut self, bytes: &[u8]) -> Result<()>;
    fn say(&mut self) -> Result<Vec<u8>>;
}

impl<C, D> End for C
where
    C: std::ops::DerefMut<Target = rustls::ConnectionCommon<D>>,
    D: rustls::SideData,
{
    fn hear(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            self.read_tls(&mut bytes)?;
            self.process_new_packets().context("a bare handshake")?;
        }
        Ok(())
    }

    fn say(&mut self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        while self.wants_write() {
            self.write_tls(&mut out)?;
        }
        Ok(out)
    }
}

/// CPU nanoseconds of this thread.
fn thread_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bare_handshakes_come_to_their_end_and_cost_time() {
        let directory = tempfile::tempdir().expect("room");
        let certificate = Certificate::make(directory.path()).expect("a certificate");
        let cpu = crate::process::cpus_allowed()[0];
        let us = Bare::new(&certificate, cpu).expect("valid").measure(1).expect("no fault");
        assert!(us > 1.0, "{us}");
    }
}
