//! Connections that a proxy passes on: the PROXY header before their handshake.
//!
//! The header is plain. It may come in pieces, and with the begin of the handshake behind it. How
//! long it may take is the shard's to say, as with all that comes before a request.

use super::Layer;
use super::receiving::answer_to_other;
use crate::egress::{Completion, Insecure, Slot};
use crate::wire::proxy::{self, Preface};

impl Layer {
    /// True if connections to this listener begin with a PROXY header.
    pub(super) fn expects_header(&self, listener: usize) -> bool {
        self.proxied.get(listener % self.addresses).is_some_and(|proxied| *proxied)
    }

    /// First bytes of a connection that begins with a PROXY header.
    pub(super) fn read_header(
        &mut self,
        slot: Slot,
        bytes: &mut [u8],
        handle: &mut dyn FnMut(Completion<'_>),
    ) {
        let Some(cold) = self.session(slot).and_then(|session| session.cold()) else { return };
        let Some(handshake) = &mut cold.handshake else { return };
        let Some(header) = &mut handshake.header else { return };
        let before = header.len();
        header.extend_from_slice(bytes);
        match proxy::parse(header) {
            Ok(Preface::Partial) => {}
            Ok(Preface::Whole { bytes: whole, client }) => {
                handshake.header = None;
                handle(Completion::Introduced { slot, client });
                // Every byte of the header before these was a part of it.
                let rest = &mut bytes[whole - before..];
                if !rest.is_empty() {
                    self.received(slot, rest, handle);
                }
            }
            Err(detail) => self.refuse_header(slot, detail, handle),
        }
    }

    /// A connection whose begin is no PROXY header is of no use.
    pub(super) fn refuse_header(
        &mut self,
        slot: Slot,
        detail: &'static str,
        handle: &mut dyn FnMut(Completion<'_>),
    ) {
        let Some(cold) = self.session(slot).and_then(|session| session.cold()) else { return };
        if let Some(header) = cold.handshake.as_ref().and_then(|handshake| handshake.header.as_ref()) {
            let answer = answer_to_other(header, detail);
            cold.own.extend_from_slice(&answer);
        }
        self.fail(slot, Insecure::Header(detail), handle);
    }
}
