//! A WebSocket that gets back every message that it sends, for public test suites
//! (`--diagnostic-echo`).
//!
//! Invariants worth naming:
//! - An echo is one unfragmented message of the same type, behind the pongs and echoes before it.
//! - What is held is bounded: the message under way, one send in the ring, and
//!   [`ECHO_WAITING_BYTES_MAX`] behind it. A client that sends more without reading is closed.
//! - To the rest of the shard it is a subscriber of no topic: counted, limited, pinged and drained.

use super::connections::{Phase, Session};
use super::state::State;
use crate::close::CloseReason;
use crate::config::limits::{ECHO_BYTES_MAX, ECHO_WAITING_BYTES_MAX};
use crate::egress::Slot;
use crate::wire::http::{Handshake, Manner};
use crate::wire::websocket::{self, Decoder, Incoming};
use crate::wire::{Format, SlowPolicy};

/// What an echo remembers.
#[derive(Debug, Default)]
pub struct Echo {
    decoder: Decoder,
    /// The payload of the message under way, as far as it has come.
    message: Vec<u8>,
}

impl State {
    /// Makes the connection an echo; false if it was refused.
    pub(super) fn open_echo(&mut self, slot: Slot, handshake: &Handshake, manner: &Manner) -> bool {
        if let Some(refusal) = self.why_no_subscriber(slot, &[]) {
            self.refuse(slot, &refusal, manner);
            return false;
        }
        let connection = self.connections.get_mut(slot);
        connection.phase = Phase::Open;
        connection.slow = Some(SlowPolicy::Close);
        connection.format = Format::WebSocket;
        connection.session = Session::Echo(Box::default());
        let head = self.answer_in(manner);
        let head = head.websocket_head(&handshake.accept, handshake.subprotocol.as_deref());
        self.answer(slot, head);
        self.count_in(Format::WebSocket);
        self.log_subscribed(slot);
        true
    }

    /// Frames from the client of an echo, perhaps in part.
    pub(super) fn handle_echo(&mut self, slot: Slot, bytes: &mut [u8]) {
        let connection = self.connections.get_mut(slot);
        let waiting = connection.control.as_ref().map_or(0, |batch| batch.len());
        let Session::Echo(echo) = &mut connection.session else { return };
        let Echo { decoder, message } = &mut **echo;
        let message_bytes_max = self.setup.config.limits.message_in_bytes_max.min(ECHO_BYTES_MAX);
        let mut answers = Vec::new();
        let mut closed = None;
        let mut messages = 0;
        let fed = decoder.feed_showing(bytes, message_bytes_max as u64, |incoming| match incoming {
            Incoming::Payload(piece) => message.extend_from_slice(piece),
            Incoming::Message { text, .. } => {
                messages += 1;
                answers.append(&mut websocket::message_frame(text, &std::mem::take(message)));
            }
            Incoming::Ping(payload) => answers.append(&mut websocket::pong_frame(payload)),
            Incoming::Pong => {}
            Incoming::Close { reply, .. } => closed = Some(reply),
        });
        self.metrics.families[Format::WebSocket.family().index()].messages_in += messages;
        if waiting > 0 && waiting + answers.len() > ECHO_WAITING_BYTES_MAX {
            self.abort(slot, CloseReason::Stalled);
            return;
        }
        if !answers.is_empty() {
            self.answer(slot, answers);
        }
        self.end_of_frames(slot, closed, fed);
    }
}
