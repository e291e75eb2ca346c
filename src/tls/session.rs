//! What one TLS connection has beside its socket: its keys, and, only while it needs more, what it
//! is in the middle of.

use std::rc::Rc;

use super::handshake::Handshake;
use super::pieces::Buffer;
use super::record::{HEADER, Half, KEY_UPDATE, KEY_UPDATE_REQUEST, RecordError, content, length_of};
use crate::egress::{Batch, Insecure, ReceiveEnd};

/// Alerts (RFC 8446 §6).
const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;
const WARNING: u8 = 1;
const FATAL: u8 = 2;

/// Changes of keys, empty records and the like that a client may send in a row.
const IDLE_RECORDS_MAX: u8 = 32;

/// One TLS connection. An idle subscriber costs this, and nothing behind it.
#[derive(Debug, Default)]
pub(super) struct Session {
    /// From the client.
    receive: Half,
    /// To the client.
    pub send: Half,
    /// What it is in the middle of.
    cold: Option<Box<Cold>>,
    /// The client has said that it says no more.
    silent: bool,
    /// So have we: what follows would stand behind a word that the socket may not have taken whole.
    ended: bool,
    /// Its receive is in the ring.
    pub receiving: bool,
    /// Records in a row that say nothing.
    idle_records: u8,
    /// The submit at which something was asked for it last.
    pub asked: u32,
}

/// What only some connections have, some of the time.
#[derive(Debug, Default)]
pub(super) struct Cold {
    /// The handshake, until it is over.
    pub handshake: Option<Box<Handshake>>,
    /// It is in the queue of those whose handshake goes on.
    pub queued: bool,
    /// How the receive ended, if what came before it is still to be read.
    pub held_end: Option<ReceiveEnd>,
    /// The begin of a record whose rest has not come.
    part: Vec<u8>,
    /// The begin of a handshake message whose rest is to come in the next record.
    message: Vec<u8>,
    /// The tick at which the client began what is not whole; 0 if nobody has noted it.
    pub since: u32,
    /// It is among those that are looked at for that.
    pub listed: bool,
    /// The tick at which it was.
    pub looked: u32,
    /// Bytes of ours that go out before any others: a flight, a ticket, a KeyUpdate, an alert.
    pub own: Vec<u8>,
    /// Among them is a KeyUpdate.
    pub updates: bool,
    /// Sealed bytes that the socket did not take yet.
    pub rest: Option<Rest>,
    /// Why it ends, once that was told.
    pub fault: Option<Insecure>,
    /// The shard wants its socket closed.
    pub closing: bool,
    /// The shard wants our side of the stream ended.
    pub ending: bool,
    /// What the ring does for it is cancelled.
    pub cancelled: bool,
}

/// Sealed bytes of a batch that the socket did not take whole. They are never sealed again.
#[derive(Debug)]
pub(super) struct Rest {
    pub piece: Rc<Batch>,
    /// From here on.
    pub at: usize,
    /// The batch that the shard waits for, while a send of it is under way.
    pub plain: Option<Rc<Batch>>,
    /// The shard asked for a send without a copy.
    pub zero_copy: bool,
    /// The ring has it.
    pub sending: bool,
}

impl Session {
    /// A client has connected.
    pub fn new(handshake: Box<Handshake>) -> Session {
        let cold = Cold { handshake: Some(handshake), ..Cold::default() };
        Session { cold: Some(Box::new(cold)), ..Session::default() }
    }

    /// What it is in the middle of, if it is.
    #[inline]
    pub fn cold(&mut self) -> Option<&mut Cold> {
        self.cold.as_deref_mut()
    }

    /// What it is in the middle of, from now on.
    pub fn warm_up(&mut self) -> &mut Cold {
        self.cold.get_or_insert_default()
    }

    /// Gives the memory back that an idle connection does not need.
    pub fn cool_down(&mut self) {
        self.cold.take_if(|cold| cold.is_idle());
    }

    /// True once the client has said that it says no more.
    pub fn is_silent(&self) -> bool {
        self.silent
    }

    /// The socket has failed: nothing that we say arrives any more.
    pub fn lose(&mut self) {
        self.ended = true;
    }

    /// The handshake is over.
    pub fn open(&mut self, receive: Half, send: Half) {
        self.receive = receive;
        self.send = send;
    }

    /// Appends what stands before all else, and is due.
    #[inline]
    pub fn take_own(&mut self, out: &mut Buffer) {
        if let Some(cold) = &mut self.cold {
            out.append(&cold.own);
            cold.own = Vec::new();
            cold.updates = false;
        }
    }

    /// Tells `each` what whole records hold, and keeps the begin of the next one. An error has been
    /// put into words for the client.
    pub fn read(&mut self, bytes: &mut [u8], each: &mut dyn FnMut(&mut [u8])) -> Result<(), Insecure> {
        self.read_records(bytes, each).map_err(|error| {
            if error != RecordError::Told {
                self.alert(FATAL, error as u8);
            }
            Insecure::Record
        })
    }

    fn read_records(
        &mut self,
        mut bytes: &mut [u8],
        each: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), RecordError> {
        let mut part = match self.cold() {
            Some(cold) => std::mem::take(&mut cold.part),
            None => Vec::new(),
        };
        let mut has_whole = false;
        while !bytes.is_empty() && !self.silent {
            let have = part.len();
            if have == 0
                && let Some(header) = bytes.first_chunk::<HEADER>()
            {
                let whole = HEADER + length_of(*header)?;
                if bytes.len() >= whole {
                    let (record, behind) = bytes.split_at_mut(whole);
                    self.read_record(record, each)?;
                    has_whole = true;
                    bytes = behind;
                    continue;
                }
            }
            // The header first, which says how much is missing.
            let whole = match part.first_chunk::<HEADER>() {
                Some(header) => HEADER + length_of(*header)?,
                None => HEADER,
            };
            let missing = (whole - have).min(bytes.len());
            let (taken, behind) = bytes.split_at_mut(missing);
            part.reserve_exact(whole - have);
            part.extend_from_slice(taken);
            bytes = behind;
            if let Some(header) = part.first_chunk::<HEADER>()
                && part.len() == HEADER + length_of(*header)?
            {
                self.read_record(&mut part, each)?;
                has_whole = true;
                part.clear();
            }
        }
        if has_whole && let Some(cold) = self.cold() {
            cold.since = 0;
        }
        if !part.is_empty() && !self.silent {
            self.warm_up().part = part;
        }
        Ok(())
    }

    fn read_record(&mut self, record: &mut [u8], each: &mut dyn FnMut(&mut [u8])) -> Result<(), RecordError> {
        let (kind, content) = self.receive.open(record)?;
        // Each costs more to read than to send.
        self.idle_records += 1;
        if self.idle_records > IDLE_RECORDS_MAX {
            return Err(RecordError::UnexpectedMessage);
        }
        match (kind, content) {
            // Nothing may stand between the records of one message (RFC 8446 §5.1).
            (other, _) if other != content::HANDSHAKE && self.has_message() => {
                return Err(RecordError::UnexpectedMessage);
            }
            (content::DATA, []) => {}
            (content::DATA, data) => {
                self.idle_records = 0;
                each(data);
            }
            (content::HANDSHAKE, piece) => self.read_message(piece)?,
            // Of all alerts two are no errors (RFC 8446 §6.1).
            (content::ALERT, [_, CLOSE_NOTIFY]) => self.silent = true,
            (content::ALERT, [_, USER_CANCELED]) => {}
            (content::ALERT, [_, _]) => return Err(RecordError::Told),
            (content::ALERT, [_, ..]) => return Err(RecordError::DecodeError),
            _ => return Err(RecordError::UnexpectedMessage),
        }
        Ok(())
    }

    fn has_message(&self) -> bool {
        self.cold.as_ref().is_some_and(|cold| !cold.message.is_empty())
    }

    /// A record with a handshake message, or with a part of one: only a KeyUpdate may come, and
    /// nothing behind it, because what follows has other keys (RFC 8446 §5.1).
    fn read_message(&mut self, piece: &[u8]) -> Result<(), RecordError> {
        const KIND: usize = KEY_UPDATE.len() - 1;
        let mut message = self.cold().map(|cold| std::mem::take(&mut cold.message)).unwrap_or_default();
        let known = message.len() + piece.len();
        if piece.is_empty() || known > KEY_UPDATE.len() {
            return Err(RecordError::UnexpectedMessage);
        }
        message.extend_from_slice(piece);
        let begin = known.min(KIND);
        if message[..begin] != KEY_UPDATE[..begin] {
            return Err(RecordError::UnexpectedMessage);
        }
        let wants_ours = message == KEY_UPDATE_REQUEST;
        if known < KEY_UPDATE.len() {
            self.warm_up().message = message;
        } else if wants_ours || message == KEY_UPDATE {
            self.receive.update();
            if wants_ours {
                self.update_ours();
            }
        } else {
            // A wish that is neither of the two (RFC 8446 §4.6.3).
            return Err(RecordError::IllegalParameter);
        }
        Ok(())
    }

    /// The client wants another key from us. Ours waits for the next send: nobody needs it before.
    /// Several that are asked for meanwhile are one (RFC 8446 §4.6.3).
    fn update_ours(&mut self) {
        if self.ended {
            return;
        }
        let mut cold = self.cold.take().unwrap_or_default();
        if !cold.updates {
            cold.updates = true;
            self.send.seal(content::HANDSHAKE, &KEY_UPDATE, &mut cold.own);
            self.send.update();
        }
        self.cold = Some(cold);
    }

    /// Has an alert ready.
    fn alert(&mut self, level: u8, description: u8) {
        let mut cold = self.cold.take().unwrap_or_default();
        self.ended = true;
        self.send.seal(content::ALERT, &[level, description], &mut cold.own);
        self.cold = Some(cold);
    }

    /// Has the end of our stream ready, if that was not said.
    pub fn close_notify(&mut self) {
        if !self.ended {
            self.alert(WARNING, CLOSE_NOTIFY);
        }
    }

    /// Has our goodbye ready for a socket that is to be closed (RFC 8446 §6.1). False if there is
    /// none to say: there are no keys, it was said, or half a record of ours would stand before it.
    pub fn say_goodbye(&mut self) -> bool {
        let is_whole = self.cold.as_ref().is_none_or(|cold| {
            cold.handshake.is_none() && cold.fault.is_none() && cold.rest.is_none() && !cold.cancelled
        });
        let says = is_whole && !self.ended;
        if says {
            self.close_notify();
        }
        says
    }
}

impl Cold {
    /// A PROXY header has begun, and is not whole.
    pub fn has_part_of_header(&self) -> bool {
        let header = self.handshake.as_ref().and_then(|handshake| handshake.header.as_ref());
        header.is_some_and(|header| !header.is_empty())
    }

    /// The client is in the middle of a record or of a message.
    pub fn is_partial(&self) -> bool {
        !self.part.is_empty() || !self.message.is_empty()
    }

    fn is_idle(&self) -> bool {
        self.handshake.is_none()
            && self.held_end.is_none()
            && !self.is_partial()
            && !self.listed
            && self.own.is_empty()
            && self.rest.is_none()
            && self.fault.is_none()
            && !self.closing
            && !self.ending
            && !self.cancelled
    }
}
