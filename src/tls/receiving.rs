//! What comes from clients: steps of their handshakes, then records, then an end.

use super::Layer;
use super::handshake::Step;
use super::record::{self, RecordError};
use crate::config::limits::{HANDSHAKE_STEPS_PER_TURN, TICK_MS, TLS_HANDSHAKE_BYTES_MAX, TLS_RECORD_MS_MAX};
use crate::egress::{Completion, Insecure, ReceiveEnd, Slot};
use crate::wire::proxy;

/// What a client is told that speaks HTTP where TLS is spoken.
const PLAIN_REQUEST: &str = "this address speaks TLS: write https://";

/// What a peer is told whose first bytes are not what they have to be. A request is told so by
/// `line`: it is all that we understand besides TLS.
pub(super) fn answer_to_other(bytes: &[u8], line: &str) -> Vec<u8> {
    match bytes[0] {
        // A client behind a proxy that tells of it awaits TLS.
        byte if byte.is_ascii_uppercase() && !proxy::begins_like_one(bytes) => format!(
            "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\n\
             Cache-Control: no-store\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{line}\r\n",
            line.len() + 2
        )
        .into_bytes(),
        // An alert is answered by none.
        record::content::ALERT => Vec::new(),
        _ => record::plain_alert(RecordError::UnexpectedMessage).to_vec(),
    }
}

impl Layer {
    pub(super) fn received(&mut self, slot: Slot, bytes: &mut [u8], handle: &mut dyn FnMut(Completion<'_>)) {
        let has_steps = self.ahead < HANDSHAKE_STEPS_PER_TURN;
        let Some(session) = self.session(slot) else { return };
        if let Some(cold) = session.cold() {
            if cold.fault.is_some() {
                return;
            }
            if let Some(handshake) = &mut cold.handshake {
                if handshake.header.is_some() {
                    self.read_header(slot, bytes, handle);
                    return;
                }
                if !handshake.has_begun() && bytes[0] != record::content::HANDSHAKE {
                    if proxy::begins_like_one(bytes) {
                        tracing::debug!(
                            "a PROXY header comes before TLS where none is expected (--proxy-protocol)"
                        );
                    }
                    cold.own.extend_from_slice(&answer_to_other(bytes, PLAIN_REQUEST));
                    self.fail(slot, Insecure::Handshake, handle);
                    return;
                }
                let has_room = handshake.waiting() + bytes.len() <= TLS_HANDSHAKE_BYTES_MAX;
                // Once we have answered, what came may stand behind the client's Finished, and is no
                // handshake then. Before that it is too much, unless the turn has a step left.
                let goes_on = cold.queued && (has_steps || handshake.has_answered());
                if !has_room && goes_on {
                    self.ahead += 1;
                    self.shake_one(slot, handle);
                    self.received(slot, bytes, handle);
                } else if !has_room {
                    handshake.refuse(RecordError::IllegalParameter, &mut cold.own);
                    self.fail(slot, Insecure::Handshake, handle);
                } else {
                    handshake.take(bytes);
                    if !std::mem::replace(&mut cold.queued, true) {
                        self.shaking.push_back(slot);
                    }
                }
                return;
            }
        }
        self.read(slot, bytes, handle);
    }

    /// Opens what came behind the handshake.
    fn read(&mut self, slot: Slot, bytes: &mut [u8], handle: &mut dyn FnMut(Completion<'_>)) {
        let Some(session) = self.session(slot) else { return };
        let was_silent = session.is_silent();
        let read = session.read(bytes, &mut |bytes| handle(Completion::Received { slot, bytes }));
        if let Err(fault) = read {
            self.fail(slot, fault, handle);
            return;
        }
        let says_goodbye = session.is_silent() && !was_silent;
        self.list(slot);
        if says_goodbye {
            handle(Completion::ReceiveEnded { slot, end: ReceiveEnd::EndOfStream });
        }
    }

    /// Notes when a client began a record that is not whole.
    fn list(&mut self, slot: Slot) {
        let ticks = self.ticks;
        let Some(session) = self.sessions.get_mut(slot) else { return };
        if let Some(cold) = session.cold()
            && cold.is_partial()
        {
            if cold.since == 0 {
                cold.since = ticks;
            }
            if !std::mem::replace(&mut cold.listed, true) {
                self.partial.push(slot);
            }
        }
        session.cool_down();
    }

    /// A tick has passed: clients that have begun a record too long ago are of no use.
    pub(super) fn end_late_records(&mut self, handle: &mut dyn FnMut(Completion<'_>)) {
        let ticks = self.ticks;
        let mut partial = std::mem::take(&mut self.partial);
        partial.retain(|slot| {
            let Some(session) = self.session(*slot) else { return false };
            let receiving = session.receiving;
            let Some(cold) = session.cold() else { return false };
            // Another client may have the slot by now.
            if !cold.listed || std::mem::replace(&mut cold.looked, ticks) == ticks {
                return false;
            }
            if !receiving {
                // It cannot say more.
                cold.since = ticks;
            }
            let is_late = u64::from(ticks.wrapping_sub(cold.since)) * TICK_MS >= TLS_RECORD_MS_MAX;
            cold.listed = cold.is_partial() && cold.fault.is_none() && !is_late;
            if cold.listed {
                return true;
            }
            if is_late && cold.is_partial() && cold.fault.is_none() {
                session.say_goodbye();
                self.fail(*slot, Insecure::Record, handle);
            } else {
                session.cool_down();
            }
            false
        });
        self.partial = partial;
    }

    /// Tells that a connection is of no use any more.
    pub(super) fn fail(&mut self, slot: Slot, fault: Insecure, handle: &mut dyn FnMut(Completion<'_>)) {
        let Some(session) = self.session(slot) else { return };
        let cold = session.warm_up();
        cold.fault = Some(fault);
        cold.handshake = None;
        handle(Completion::ReceiveEnded { slot, end: ReceiveEnd::Insecure(fault) });
    }

    pub(super) fn receive_ended(
        &mut self,
        slot: Slot,
        end: ReceiveEnd,
        handle: &mut dyn FnMut(Completion<'_>),
    ) {
        let Some(session) = self.session(slot) else { return };
        session.receiving = false;
        if matches!(end, ReceiveEnd::Reset | ReceiveEnd::Failed(_)) {
            session.lose();
        }
        let is_silent = session.is_silent();
        if let Some(cold) = session.cold() {
            let is_closing = cold.closing;
            if end == ReceiveEnd::EndOfStream && !is_closing && cold.has_part_of_header() {
                self.refuse_header(slot, "the PROXY header breaks off", handle);
                return;
            }
            if cold.fault.is_none() && !is_closing && cold.queued {
                cold.held_end = Some(end);
                return;
            }
            if cold.fault.is_some() || is_closing {
                if is_closing {
                    self.due.push_back(slot);
                }
                return;
            }
        }
        // The end was told when the client said goodbye.
        if is_silent {
            return;
        }
        handle(Completion::ReceiveEnded { slot, end });
    }

    /// Goes on with handshakes, a bounded number of steps.
    pub(super) fn shake(&mut self, handle: &mut dyn FnMut(Completion<'_>)) -> usize {
        let mut steps = std::mem::take(&mut self.ahead);
        while steps < HANDSHAKE_STEPS_PER_TURN
            && let Some(slot) = self.shaking.pop_front()
        {
            steps += usize::from(self.shake_one(slot, handle));
        }
        steps
    }

    /// One step of a handshake, if there is something to step on. False if there was nothing.
    fn shake_one(&mut self, slot: Slot, handle: &mut dyn FnMut(Completion<'_>)) -> bool {
        let Some(session) = self.session(slot) else { return false };
        let Some(cold) = session.cold() else { return false };
        // Its place in the queue may be there still: then nothing is left to do.
        if !std::mem::take(&mut cold.queued) {
            return false;
        }
        let Some(handshake) = cold.handshake.take() else { return false };
        let step = handshake.step(&mut cold.own);
        let has_own = !cold.own.is_empty();
        let held_end = cold.held_end.take();
        match step {
            Step::Waits(handshake) => cold.handshake = Some(handshake),
            Step::Done { receive, send, mut rest } => {
                session.open(receive, send);
                handle(Completion::Secured { slot });
                self.read(slot, &mut rest, handle);
            }
            Step::Failed(error) => {
                tracing::debug!(%error, "a TLS handshake failed");
                self.fail(slot, Insecure::Handshake, handle);
            }
        }
        if has_own {
            self.due.push_back(slot);
        }
        if let Some(end) = held_end {
            self.receive_ended(slot, end, handle);
        }
        true
    }
}
