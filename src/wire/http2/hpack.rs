//! Blocks of header fields (RFC 7541): a decoder with the table that its client fills, and the few
//! forms in which we write.
//!
//! We ask for a table of no bytes, so it stands only from a client's first request to its answer to
//! our SETTINGS. We ourselves never use one.

use std::collections::VecDeque;

use super::huffman::{self, Malformed};

/// Bytes of a table before anybody has said anything of it (RFC 9113 §6.5.2).
const TABLE_BYTES: usize = 4_096;
/// What a field counts beside its name and value (RFC 7541 §4.1).
pub const FIELD_BYTES: usize = 32;

/// Fields that need not be told (RFC 7541, Appendix A), from index 1.
const STATIC: [(&[u8], &[u8]); 61] = [
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    (b":status", b"200"),
    (b":status", b"204"),
    (b":status", b"206"),
    (b":status", b"304"),
    (b":status", b"400"),
    (b":status", b"404"),
    (b":status", b"500"),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    (b"accept-language", b""),
    (b"accept-ranges", b""),
    (b"accept", b""),
    (b"access-control-allow-origin", b""),
    (b"age", b""),
    (b"allow", b""),
    (b"authorization", b""),
    (b"cache-control", b""),
    (b"content-disposition", b""),
    (b"content-encoding", b""),
    (b"content-language", b""),
    (b"content-length", b""),
    (b"content-location", b""),
    (b"content-range", b""),
    (b"content-type", b""),
    (b"cookie", b""),
    (b"date", b""),
    (b"etag", b""),
    (b"expect", b""),
    (b"expires", b""),
    (b"from", b""),
    (b"host", b""),
    (b"if-match", b""),
    (b"if-modified-since", b""),
    (b"if-none-match", b""),
    (b"if-range", b""),
    (b"if-unmodified-since", b""),
    (b"last-modified", b""),
    (b"link", b""),
    (b"location", b""),
    (b"max-forwards", b""),
    (b"proxy-authenticate", b""),
    (b"proxy-authorization", b""),
    (b"range", b""),
    (b"referer", b""),
    (b"refresh", b""),
    (b"retry-after", b""),
    (b"server", b""),
    (b"set-cookie", b""),
    (b"strict-transport-security", b""),
    (b"transfer-encoding", b""),
    (b"user-agent", b""),
    (b"vary", b""),
    (b"via", b""),
    (b"www-authenticate", b""),
];

/// The block cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unreadable;

impl From<Malformed> for Unreadable {
    fn from(Malformed: Malformed) -> Unreadable {
        Unreadable
    }
}

/// A field that the client has told to be remembered.
#[derive(Debug)]
struct Remembered {
    /// The name, then the value.
    bytes: Box<[u8]>,
    name: usize,
}

/// What a client has told to be remembered, the newest first.
#[derive(Debug, Default)]
struct Table {
    fields: VecDeque<Remembered>,
    /// What they count.
    size: usize,
}

impl Table {
    fn shrink_to(&mut self, bytes: usize) {
        while self.size > bytes
            && let Some(oldest) = self.fields.pop_back()
        {
            self.size -= oldest.bytes.len() + FIELD_BYTES;
        }
    }
}

/// Reads the blocks of one client.
#[derive(Debug)]
pub struct Decoder {
    table: Option<Box<Table>>,
    /// Bytes that the client has chosen for the table, at most `allowed`.
    most: u16,
    /// Bytes that it may choose.
    allowed: u16,
    /// It knows that it may choose less than it has chosen, and has to say so first.
    must_shrink: bool,
}

impl Default for Decoder {
    fn default() -> Decoder {
        let bytes = TABLE_BYTES as u16;
        Decoder { table: None, most: bytes, allowed: bytes, must_shrink: false }
    }
}

/// Room for a name and a value that have to be decoded.
#[derive(Debug, Default)]
pub struct Scratch {
    name: Vec<u8>,
    value: Vec<u8>,
}

impl Decoder {
    /// The client knows from now on that we remember nothing.
    pub fn forget(&mut self) {
        self.must_shrink |= self.most > 0;
        self.allowed = 0;
        self.table = None;
    }

    /// Tells `each` the fields of a whole block, in order: names and values as they were sent. False
    /// if `each` was and wants no more: then nothing that this client sends can be read any more,
    /// because the table has not all that it has told.
    pub fn read(
        &mut self,
        mut block: &[u8],
        scratch: &mut Scratch,
        each: &mut dyn FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<bool, Unreadable> {
        // Sizes of the table stand before all fields (RFC 7541 §4.2).
        while let [first @ 0x20..0x40, ..] = block {
            let most = read_integer(*first, 5, &mut block)?;
            if most > usize::from(self.allowed) {
                return Err(Unreadable);
            }
            self.most = most as u16;
            self.must_shrink = false;
            if let Some(table) = &mut self.table {
                table.shrink_to(most);
            }
        }
        if self.must_shrink {
            return Err(Unreadable);
        }
        while let [first, ..] = block {
            let first = *first;
            if first >= 0x80 {
                let index = read_integer(first, 7, &mut block)?;
                let (name, value) = self.field(index)?;
                if !each(name, value) {
                    return Ok(false);
                }
                continue;
            }
            let is_remembered = first >= 0x40;
            if !is_remembered && first >= 0x20 {
                return Err(Unreadable);
            }
            let index = read_integer(first, if is_remembered { 6 } else { 4 }, &mut block)?;
            scratch.name.clear();
            match index {
                0 => read_text(&mut block, &mut scratch.name)?,
                index => scratch.name.extend_from_slice(self.field(index)?.0),
            }
            scratch.value.clear();
            read_text(&mut block, &mut scratch.value)?;
            if !each(&scratch.name, &scratch.value) {
                return Ok(false);
            }
            if is_remembered {
                self.remember(&scratch.name, &scratch.value);
            }
        }
        Ok(true)
    }

    fn field(&self, index: usize) -> Result<(&[u8], &[u8]), Unreadable> {
        let at = index.checked_sub(1).ok_or(Unreadable)?;
        if let Some(field) = STATIC.get(at) {
            return Ok(*field);
        }
        let fields = &self.table.as_ref().ok_or(Unreadable)?.fields;
        let field = fields.get(at - STATIC.len()).ok_or(Unreadable)?;
        Ok(field.bytes.split_at(field.name))
    }

    /// Puts a field into the table; one that is larger than the table empties it (RFC 7541 §4.4).
    fn remember(&mut self, name: &[u8], value: &[u8]) {
        let (most, size) = (usize::from(self.most), name.len() + value.len() + FIELD_BYTES);
        if size > most {
            self.table = None;
            return;
        }
        let table = self.table.get_or_insert_default();
        table.shrink_to(most - size);
        table.fields.push_front(Remembered { bytes: [name, value].concat().into(), name: name.len() });
        table.size += size;
    }
}

/// Takes an integer from the front, whose first byte has `prefix` bits of it (RFC 7541 §5.1).
fn read_integer(first: u8, prefix: u32, block: &mut &[u8]) -> Result<usize, Unreadable> {
    let mask = (1 << prefix) - 1;
    *block = &block[1..];
    let mut value = usize::from(first & mask);
    if value < usize::from(mask) {
        return Ok(value);
    }
    for shift in [0, 7, 14, 21] {
        let (byte, rest) = block.split_first().ok_or(Unreadable)?;
        *block = rest;
        value += usize::from(byte & 0x7f) << shift;
        if *byte < 0x80 {
            return Ok(value);
        }
    }
    Err(Unreadable)
}

/// Takes a text from the front (RFC 7541 §5.2).
fn read_text(block: &mut &[u8], out: &mut Vec<u8>) -> Result<(), Unreadable> {
    let first = *block.first().ok_or(Unreadable)?;
    let length = read_integer(first, 7, block)?;
    let (text, rest) = block.split_at_checked(length).ok_or(Unreadable)?;
    *block = rest;
    match first >= 0x80 {
        true => huffman::decode(text, out)?,
        false => out.extend_from_slice(text),
    }
    Ok(())
}

/// Says that we use no table from here on. Stands at the begin of a block.
pub fn push_no_table(out: &mut Vec<u8>) {
    out.push(0x20);
}

/// A status.
pub fn push_status(out: &mut Vec<u8>, status: &[u8]) {
    match STATIC.iter().position(|field| *field == (&b":status"[..], status)) {
        Some(at) => out.push(0x80 | (at + 1) as u8),
        None => push_field(out, b":status", status),
    }
}

/// A field that nobody is to remember.
pub fn push_field(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    match STATIC.iter().position(|field| field.0 == name) {
        Some(at) => push_integer(out, 0, 4, at + 1),
        None => {
            out.push(0);
            push_text(out, name);
        }
    }
    push_text(out, value);
}

fn push_text(out: &mut Vec<u8>, text: &[u8]) {
    push_integer(out, 0, 7, text.len());
    out.extend_from_slice(text);
}

fn push_integer(out: &mut Vec<u8>, flags: u8, prefix: u32, value: usize) {
    let mask = (1 << prefix) - 1;
    if value < mask {
        out.push(flags | value as u8);
        return;
    }
    out.push(flags | mask as u8);
    let mut left = value - mask;
    while left >= 0x80 {
        out.push(0x80 | left as u8);
        left >>= 7;
    }
    out.push(left as u8);
}
