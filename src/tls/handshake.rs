//! The handshake of one connection, sans-IO: rustls makes it, and is left as soon as both sides
//! have keys. What it keeps afterwards would be 3.5 KB for each subscriber.
//!
//! rustls is given one record at a time: what it is given beyond the client's Finished would be
//! lost with it.

use std::cell::Cell;
use std::sync::Arc;

use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use rustls::{Error, KeyLog, ServerConfig};

use super::automatic;
use super::record::{CONTENT_MAX, HEADER, Half, RecordError, SEALED_MAX, UnknownSuite, content, plain_alert};

thread_local! {
    /// The secrets of the handshake that is stepped on this thread: ours, the client's.
    static SECRETS: Cell<[[u8; 32]; 2]> = const { Cell::new([[0; 32]; 2]) };
}

/// Learns the secrets from which later keys are made, which rustls does not give away otherwise.
#[derive(Debug)]
pub struct SecretsTap;

impl KeyLog for SecretsTap {
    fn will_log(&self, label: &str) -> bool {
        label.ends_with("_TRAFFIC_SECRET_0")
    }

    fn log(&self, label: &str, _: &[u8], secret: &[u8]) {
        let mut secrets = SECRETS.get();
        // Suites with SHA-256 alone are offered, so every secret has 32 bytes.
        if let Ok(secret) = secret.try_into() {
            secrets[usize::from(label.starts_with("CLIENT"))] = secret;
        }
        SECRETS.set(secrets);
    }
}

/// Room for what rustls writes at once: a flight with its certificates.
const FLIGHT_BYTES: usize = 4 << 10;

/// A handshake under way.
pub struct Handshake {
    connection: UnbufferedServerConnection,
    /// The PROXY header that comes first, as far as it has come; `None` once it is whole, and where
    /// none is expected.
    pub header: Option<Vec<u8>>,
    /// What the client sent and rustls has not taken.
    inbound: Vec<u8>,
    /// So many bytes of it rustls may see.
    shown: usize,
    begun: bool,
    /// We have said something, maybe under keys.
    answered: bool,
    secrets: [[u8; 32]; 2],
}

impl std::fmt::Debug for Handshake {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handshake").field("inbound", &self.inbound.len()).finish_non_exhaustive()
    }
}

/// What a step has come to.
#[derive(Debug)]
pub enum Step {
    /// The client has to say more.
    Waits(Box<Handshake>),
    /// Both sides have keys.
    Done {
        /// From the client.
        receive: Half,
        /// To the client.
        send: Half,
        /// What the client sent behind its Finished: sealed records.
        rest: Vec<u8>,
    },
    /// There will be no connection. Where rustls found the fault, the alert that says so was written.
    Failed(Error),
}

impl Handshake {
    /// With the certificates of now.
    pub fn new(config: Arc<ServerConfig>) -> Result<Box<Handshake>, Error> {
        let connection = UnbufferedServerConnection::new(config)?;
        Ok(Box::new(Handshake {
            connection,
            header: None,
            inbound: Vec::new(),
            shown: 0,
            begun: false,
            answered: false,
            secrets: [[0; 32]; 2],
        }))
    }

    /// The client sent something.
    pub fn take(&mut self, bytes: &[u8]) {
        self.begun = true;
        self.inbound.extend_from_slice(bytes);
    }

    /// True once the client has sent something.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// True once we have said something.
    pub fn has_answered(&self) -> bool {
        self.answered
    }

    /// Bytes that wait for a step.
    pub fn waiting(&self) -> usize {
        self.inbound.len()
    }

    /// Goes as far as what was taken allows; appends what is to be sent to `out`.
    pub fn step(mut self: Box<Handshake>, out: &mut Vec<u8>) -> Step {
        match self.advance(out) {
            Ok(false) => Step::Waits(self),
            Ok(true) => self.finish().unwrap_or_else(Step::Failed),
            Err(error) => {
                self.write_alert(out);
                Step::Failed(error)
            }
        }
    }

    /// True once both sides have keys.
    fn advance(&mut self, out: &mut Vec<u8>) -> Result<bool, Error> {
        loop {
            let shown = &mut self.inbound[..self.shown];
            let UnbufferedStatus { discard, state, .. } = self.connection.process_tls_records(shown);
            learn(&mut self.secrets);
            let mut is_idle = false;
            match state? {
                ConnectionState::EncodeTlsData(mut data) => {
                    self.answered = true;
                    encode(&mut data, out)?;
                }
                ConnectionState::TransmitTlsData(data) => data.done(),
                ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_) => is_idle = true,
                _ => return Err(Error::General("the client has ended its stream".into())),
            }
            self.inbound.drain(..discard);
            self.shown -= discard;
            if !is_idle {
                continue;
            }
            if !self.connection.is_handshaking() {
                return Ok(true);
            }
            match whole_record(&self.inbound[self.shown..]) {
                Ok(Some(length)) => self.shown += length,
                Ok(None) => return Ok(false),
                Err(fault) => return Err(self.refuse(fault, out)),
            }
        }
    }

    /// Tells the client of a fault that rustls has not seen.
    pub fn refuse(&mut self, fault: RecordError, out: &mut Vec<u8>) -> Error {
        if !self.answered {
            out.extend_from_slice(&plain_alert(fault));
        } else {
            // There may be keys, which rustls has: it is shown a record that nobody may send.
            self.inbound.splice(self.shown.., [content::HANDSHAKE, 3, 3, 0xff, 0xff]);
            let _ = self.connection.process_tls_records(&mut self.inbound);
            self.write_alert(out);
        }
        Error::General(format!("a record of the client is at fault: {fault:?}"))
    }

    fn finish(self) -> Result<Step, Error> {
        // An authority has seen what it looks for, and has nothing to say (RFC 8737 §4).
        if self.connection.alpn_protocol() == Some(automatic::ALPN) {
            return Err(Error::General("it was only to see a proof for an authority".into()));
        }
        let [ours, theirs] = self.secrets;
        let (keys, _) = self.connection.dangerous_into_kernel_connection()?;
        let unknown = |UnknownSuite| Error::General("a suite that was not offered".into());
        let receive = Half::new(keys.rx, theirs).map_err(unknown)?;
        let send = Half::new(keys.tx, ours).map_err(unknown)?;
        Ok(Step::Done { receive, send, rest: self.inbound })
    }

    /// After an error rustls has the alert ready that tells the client. It is asked for what it has
    /// to say, and no further: it would go on to the next message, and panic where that is not there
    /// or is at fault too.
    fn write_alert(&mut self, out: &mut Vec<u8>) {
        while self.connection.wants_write() {
            let state = self.connection.process_tls_records(&mut []).state;
            let Ok(ConnectionState::EncodeTlsData(mut data)) = state else { return };
            if encode(&mut data, out).is_err() {
                return;
            }
        }
    }
}

/// Keeps the secrets that were told since the last time.
fn learn(secrets: &mut [[u8; 32]; 2]) {
    let told = SECRETS.replace([[0; 32]; 2]);
    secrets.iter_mut().zip(told).filter(|(_, told)| *told != [0; 32]).for_each(|(kept, told)| *kept = told);
}

/// Appends what rustls has to say.
fn encode(data: &mut EncodeTlsData<'_, ServerConnectionData>, out: &mut Vec<u8>) -> Result<(), Error> {
    let at = out.len();
    let mut room = FLIGHT_BYTES;
    loop {
        out.resize(at + room, 0);
        match data.encode(&mut out[at..]) {
            Ok(written) => {
                out.truncate(at + written);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(needed)) => room = needed.required_size,
            Err(EncodeError::AlreadyEncoded) => {
                out.truncate(at);
                return Ok(());
            }
        }
    }
}

/// The length of the record that `bytes` begin with, header included, if all of it is there.
fn whole_record(bytes: &[u8]) -> Result<Option<usize>, RecordError> {
    let Some([kind, _, _, high, low]) = bytes.first_chunk::<HEADER>().copied() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([high, low]));
    // RFC 8446 §5.1 and §5.2.
    let most = match kind {
        content::CHANGE_CIPHER_SPEC | content::ALERT | content::HANDSHAKE if length > 0 => CONTENT_MAX,
        content::DATA => SEALED_MAX,
        _ => return Err(RecordError::UnexpectedMessage),
    };
    if length > most {
        return Err(RecordError::RecordOverflow);
    }
    Ok(Some(HEADER + length).filter(|whole| *whole <= bytes.len()))
}
