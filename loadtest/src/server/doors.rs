//! How subscribers come in to a server that is started here: by TLS, with tokens, over HTTP/2.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use clap::builder::RangedU64ValueParser;
use tempfile::TempDir;

use crate::framing::Protocol;
use crate::secure::TlsClient;
use crate::token::Secret;

/// Streams of one connection: as many as fanwave can be told to take.
const STREAMS_MAX: u64 = 10_000;
/// The name in our certificates.
const NAME: &str = "localhost";

/// What subscribers go through.
#[derive(Debug, Clone, Default, Args)]
pub struct Doors {
    /// Subscribers speak TLS 1.3; the server gets a certificate made just now (ECDSA P-256)
    #[arg(long)]
    pub tls: bool,
    /// Subscribers and publishers bring tokens, one each, that are signed with the secret in this
    /// file (HS256); a fanwave that is started here asks for them
    #[arg(long, value_name = "FILE")]
    pub token_hs256_file: Option<PathBuf>,
    /// Event streams come over HTTP/2, so many on each connection: by ALPN with --tls, by prior
    /// knowledge without; `cpu` and `memory` take several numbers
    #[arg(long, value_name = "STREAMS", value_delimiter = ',', value_parser = streams_parser())]
    pub h2_streams: Vec<usize>,
}

/// Streams of one connection.
pub fn streams_parser() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=STREAMS_MAX)
}

impl Doors {
    /// The secret of the tokens, if there are any.
    pub fn secret(&self) -> Result<Option<Secret>> {
        self.token_hs256_file.as_deref().map(Secret::read).transpose()
    }

    /// Event streams on each connection, if they come over HTTP/2. An error if several numbers were
    /// given.
    pub fn streams(&self) -> Result<Option<usize>> {
        match self.h2_streams[..] {
            [] => Ok(None),
            [streams] => Ok(Some(streams)),
            [..] => bail!("--h2-streams takes one number here"),
        }
    }

    /// Refuses HTTP/2 where not all subscribers are event streams.
    pub fn only_for_event_streams(&self, protocols: &[Protocol]) -> Result<()> {
        if !self.h2_streams.is_empty() && protocols.iter().any(|protocol| *protocol != Protocol::Sse) {
            bail!("--h2-streams is for event streams: give --protocol sse");
        }
        Ok(())
    }

    /// The same doors for event streams over HTTP/2 with so many on a connection, or over HTTP/1.1.
    pub fn with_streams(&self, streams: Option<usize>) -> Doors {
        Doors { h2_streams: streams.into_iter().collect(), ..self.clone() }
    }

    /// A certificate in `directory`, if TLS is spoken.
    pub fn certificate(&self, directory: &Path) -> Result<Option<Certificate>> {
        self.tls.then(|| Certificate::make(directory)).transpose()
    }

    /// Refuses tokens where the server knows none of ours.
    pub fn without_tokens(&self, server: &str) -> Result<&Doors> {
        match self.token_hs256_file {
            Some(_) => bail!("--token-hs256-file: {server} asks for no tokens of ours"),
            None => Ok(self),
        }
    }
}

/// A directory for what a server needs beside its program; gone when it is dropped.
pub fn scratch_directory(server: &str) -> Result<TempDir> {
    let prefix = format!("loadtest-{server}-");
    tempfile::Builder::new().prefix(&prefix).tempdir().context("making a temporary directory")
}

/// A certificate of this run and its key, as files.
#[derive(Debug)]
pub struct Certificate {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// How a client speaks with who has it.
    pub client: TlsClient,
}

impl Certificate {
    /// Makes one that signs itself, for ECDSA P-256.
    pub fn make(directory: &Path) -> Result<Certificate> {
        let made = rcgen::generate_simple_self_signed([NAME.to_owned()]).context("making a certificate")?;
        let (cert, key) = (directory.join("cert.pem"), directory.join("key.pem"));
        let roots = made.cert.pem();
        fs::write(&cert, &roots).with_context(|| format!("writing {}", cert.display()))?;
        fs::write(&key, made.signing_key.serialize_pem())
            .with_context(|| format!("writing {}", key.display()))?;
        Ok(Certificate { cert, key, client: TlsClient { name: NAME.to_owned(), roots, hybrid: false } })
    }
}
