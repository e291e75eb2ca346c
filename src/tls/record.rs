//! Records of TLS 1.3 after the handshake (RFC 8446 §5): one direction of a connection, its keys
//! and its counter. Sealing reads shared bytes and writes a connection's own; opening is in place.
//!
//! The cipher is made anew for every record from the raw key: with many connections that is faster
//! than to keep it, and takes a sixth of the memory.

use aws_lc_rs::aead::{AES_128_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Prk};
use rustls::ConnectionTrafficSecrets;

use super::pieces::Buffer;

/// Most bytes of content in a record (RFC 8446 §5.1).
pub const CONTENT_MAX: usize = 1 << 14;
/// Type, version and length of a record.
pub const HEADER: usize = 5;
/// What a record has beside its content: header, type, tag.
pub const OVERHEAD: usize = HEADER + 1 + TAG;
/// Most bytes of a record behind its header (RFC 8446 §5.2).
pub const SEALED_MAX: usize = CONTENT_MAX + 256;
const TAG: usize = 16;

/// Records under one key; AES-GCM allows 2^24.5 (RFC 8446 §5.5). Tests change keys more often.
pub(super) const RECORDS_PER_KEY_MAX: u64 = if cfg!(test) { 50 } else { 1 << 22 };

/// Content types (RFC 8446 §5.1).
pub mod content {
    /// What older versions said before they changed keys. It stands in handshakes, and says nothing.
    pub const CHANGE_CIPHER_SPEC: u8 = 20;
    /// An alert.
    pub const ALERT: u8 = 21;
    /// A handshake message.
    pub const HANDSHAKE: u8 = 22;
    /// What the application says.
    pub const DATA: u8 = 23;
}

/// A KeyUpdate that asks for none in return (RFC 8446 §4.6.3).
pub const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];
/// A KeyUpdate that asks for one in return.
pub const KEY_UPDATE_REQUEST: [u8; 5] = [24, 0, 0, 1, 1];

/// Why a record cannot be read: the alert that says so (RFC 8446 §6.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordError {
    /// The client has said itself that the connection failed. It is told nothing.
    Told = 0,
    /// It has no place here.
    UnexpectedMessage = 10,
    /// It was changed on its way, replayed, or is no record of this connection.
    BadRecordMac = 20,
    /// It is larger than a record may be.
    RecordOverflow = 22,
    /// A field of it has a value that is none.
    IllegalParameter = 47,
    /// It is no message of its kind.
    DecodeError = 50,
}

/// The keys of another suite than those that are offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnknownSuite;

/// One direction of a connection.
pub struct Half {
    /// Number of the next record.
    sequence: u64,
    secret: [u8; 32],
    key: [u8; 32],
    iv: [u8; 12],
    chacha: bool,
}

/// Nothing of it is for a log.
impl std::fmt::Debug for Half {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Half").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

impl Default for Half {
    /// Before the handshake has agreed on keys.
    fn default() -> Half {
        Half { sequence: 0, secret: [0; 32], key: [0; 32], iv: [0; 12], chacha: false }
    }
}

impl Half {
    /// From the number of the next record and what the handshake agreed on.
    pub fn new(
        (sequence, keys): (u64, ConnectionTrafficSecrets),
        secret: [u8; 32],
    ) -> Result<Half, UnknownSuite> {
        let (bytes, iv, chacha) = match &keys {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (key.as_ref(), iv.as_ref(), false),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (key.as_ref(), iv.as_ref(), true),
            _ => return Err(UnknownSuite),
        };
        let mut key = [0; 32];
        key.get_mut(..bytes.len()).ok_or(UnknownSuite)?.copy_from_slice(bytes);
        let iv = iv.try_into().map_err(|_| UnknownSuite)?;
        Ok(Half { sequence, secret, key, iv, chacha })
    }

    /// The cipher, and the nonce of the next record (RFC 8446 §5.3).
    fn next(&mut self) -> (LessSafeKey, Nonce) {
        let (algorithm, length) = if self.chacha { (&CHACHA20_POLY1305, 32) } else { (&AES_128_GCM, 16) };
        let mut nonce = self.iv;
        nonce[4..].iter_mut().zip(self.sequence.to_be_bytes()).for_each(|(byte, part)| *byte ^= part);
        self.sequence += 1;
        let key = UnboundKey::new(algorithm, &self.key[..length]).expect("a key of the cipher's length");
        (LessSafeKey::new(key), Nonce::assume_unique_for_key(nonce))
    }

    /// Writes one record with at most [`CONTENT_MAX`] bytes of content, which `record` is as long
    /// as.
    fn seal_into(&mut self, kind: u8, plain: &[u8], record: &mut [u8]) {
        debug_assert!(plain.len() <= CONTENT_MAX, "a record has a largest size");
        let [high, low] = ((plain.len() + 1 + TAG) as u16).to_be_bytes();
        let (header, rest) = record.split_first_chunk_mut::<HEADER>().expect("room for a header");
        *header = [content::DATA, 3, 3, high, low];
        let (sealed, tag) = rest.split_at_mut(plain.len());
        let (key, nonce) = self.next();
        key.seal_out_of_place_scatter(nonce, Aad::from(*header), plain, sealed, &[kind], tag)
            .expect("lengths that fit");
    }

    /// Appends a short record to `out`.
    pub fn seal(&mut self, kind: u8, plain: &[u8], out: &mut Vec<u8>) {
        let at = out.len();
        out.resize(at + plain.len() + OVERHEAD, 0);
        self.seal_into(kind, plain, &mut out[at..]);
    }

    /// Appends a record of what the application says, behind a KeyUpdate if the key is used up.
    #[inline]
    pub fn seal_data(&mut self, plain: &[u8], out: &mut Buffer) {
        if self.sequence >= RECORDS_PER_KEY_MAX {
            self.seal_into(content::HANDSHAKE, &KEY_UPDATE, out.grow(KEY_UPDATE.len() + OVERHEAD));
            self.update();
        }
        self.seal_into(content::DATA, plain, out.grow(plain.len() + OVERHEAD));
    }

    /// Opens one whole record, header included, in place. Returns its type and content.
    pub fn open<'a>(&mut self, record: &'a mut [u8]) -> Result<(u8, &'a mut [u8]), RecordError> {
        let (header, sealed) = record.split_first_chunk_mut::<HEADER>().ok_or(RecordError::BadRecordMac)?;
        let header = *header;
        let (key, nonce) = self.next();
        let opened =
            key.open_in_place(nonce, Aad::from(header), sealed).map_err(|_| RecordError::BadRecordMac)?;
        // Padding counts (RFC 8446 §5.4).
        if opened.len() > CONTENT_MAX + 1 {
            return Err(RecordError::RecordOverflow);
        }
        // Behind the content stands its type, and then padding (RFC 8446 §5.2).
        let at = opened.iter().rposition(|byte| *byte != 0).ok_or(RecordError::UnexpectedMessage)?;
        Ok((opened[at], &mut opened[..at]))
    }

    /// Goes on to the next key (RFC 8446 §7.2).
    pub fn update(&mut self) {
        self.secret = expand(&self.secret, b"traffic upd", 32);
        let length = if self.chacha { 32 } else { 16 };
        self.key = expand(&self.secret, b"key", length);
        let iv: [u8; 12] = expand(&self.secret, b"iv", 12);
        self.iv = iv;
        self.sequence = 0;
    }
}

/// A record that nobody seals, with an alert in it: what is said before there are keys.
pub fn plain_alert(alert: RecordError) -> [u8; 7] {
    [content::ALERT, 3, 3, 0, 2, 2, alert as u8]
}

/// The length of a record behind its header, if that may stand here after the handshake.
pub fn length_of(header: [u8; HEADER]) -> Result<usize, RecordError> {
    let [kind, _, _, high, low] = header;
    if kind != content::DATA {
        return Err(RecordError::UnexpectedMessage);
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > SEALED_MAX { Err(RecordError::RecordOverflow) } else { Ok(length) }
}

struct Length(usize);

impl KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// HKDF-Expand-Label without a context (RFC 8446 §7.1): the first `length` of the bytes returned.
fn expand<const N: usize>(secret: &[u8], label: &[u8], length: usize) -> [u8; N] {
    let mut out = [0; N];
    let lengths = [0, length as u8, (b"tls13 ".len() + label.len()) as u8];
    let info: [&[u8]; 4] = [&lengths, b"tls13 ", label, &[0]];
    Prk::new_less_safe(HKDF_SHA256, secret)
        .expand(&info, Length(length))
        .and_then(|okm| okm.fill(&mut out[..length]))
        .expect("a length that HKDF can give");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record of the first key with `content` and so many bytes of padding.
    fn padded(content: &[u8], padding: usize) -> Vec<u8> {
        let mut inner = [content, &[content::DATA], &vec![0; padding]].concat();
        let [high, low] = ((inner.len() + TAG) as u16).to_be_bytes();
        let header = [content::DATA, 3, 3, high, low];
        let (key, nonce) = Half::default().next();
        key.seal_in_place_append_tag(nonce, Aad::from(header), &mut inner).expect("lengths that fit");
        [&header[..], &inner].concat()
    }

    #[test]
    fn padding_has_room_where_content_has_and_no_further() {
        let mut text = [b'x'; 100];
        let mut record = padded(&text, CONTENT_MAX - text.len());
        assert_eq!(Half::default().open(&mut record), Ok((content::DATA, &mut text[..])));
        let mut record = padded(&text, CONTENT_MAX - text.len() + 1);
        assert_eq!(Half::default().open(&mut record), Err(RecordError::RecordOverflow));
    }
}
