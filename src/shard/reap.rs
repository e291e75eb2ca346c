//! What completions mark, and what is counted as sent: nothing here talks to the ring.

use std::rc::Rc;

use super::connections::{Phase, Standing};
use super::state::State;
use crate::close::CloseReason;
use crate::egress::{Batch, Completion, Insecure, ReceiveEnd, SendError, Slot};
use crate::wire::Format;

impl State {
    /// One completion.
    pub(super) fn handle_completion(&mut self, completion: Completion<'_>) {
        match completion {
            Completion::Accepted { slot, peer, listener } => {
                self.metrics.accepted += 1;
                self.connections.occupy(slot, peer, self.tick);
                self.secure.set(slot, self.setup.config.is_secure(listener));
                self.mark_ready(slot);
                match self.setup.config.is_proxied(listener) {
                    true => self.connections.get_mut(slot).standing = Standing::Untold,
                    false => self.count_at_address(slot),
                }
            }
            Completion::StreamOpened { slot, carrier } => {
                self.metrics.http2.opened += 1;
                self.connections.get_mut(carrier).since = self.tick;
                self.connections.occupy_stream(slot, carrier, self.tick);
                self.secure.set(slot, self.secure.has(carrier));
            }
            Completion::StreamRefused { reason } => self.metrics.closed[reason.index()] += 1,
            Completion::AcceptFailed(errno) => {
                self.metrics.accept_failures += 1;
                self.accept_errno = Some(errno);
            }
            Completion::Introduced { slot, client } => {
                if self.connections.get(slot).phase == Phase::Handshake {
                    self.introduce(slot, client);
                }
            }
            Completion::Secured { .. } => self.metrics.tls_handshakes += 1,
            Completion::Received { slot, bytes } => self.handle_received(slot, bytes),
            Completion::ReceiveEnded { slot, end } => self.handle_receive_end(slot, end),
            Completion::Short { slot, batch, result } => self.handle_short(slot, batch, result),
            Completion::Sent { slot, batch, result } => self.handle_sent(slot, batch, result),
            Completion::Copied { slot } => {
                self.metrics.zero_copy_copied += 1;
                self.connections.get_mut(slot).copies = true;
            }
            Completion::StreamEnded { slot } => {
                self.connections.get_mut(slot).ending = false;
                self.mark_ready(slot);
            }
            Completion::Closed { slot } => {
                self.leave_address(slot);
                self.log_closed(slot);
                self.connections.vacate(slot);
                // The next client in this slot may have to wait as well.
                self.held_back.retain(|held| held.slot != slot);
                self.learning.retain(|held| held.0 != slot);
                self.backfills.forget_search(slot);
            }
        }
    }

    fn handle_receive_end(&mut self, slot: Slot, end: ReceiveEnd) {
        let connection = self.connections.get_mut(slot);
        connection.receiving = false;
        connection.ended = !matches!(end, ReceiveEnd::NoBuffers | ReceiveEnd::Cancelled);
        match (end, connection.phase) {
            (ReceiveEnd::EndOfStream, Phase::Handshake) if !self.is_held_back(slot) => {
                self.break_off_handshake(slot);
            }
            // Its request waits for an event on its way, and is answered when that has come.
            (ReceiveEnd::EndOfStream, Phase::Handshake) => {}
            (ReceiveEnd::EndOfStream, Phase::Serving) => self.say_answers(slot),
            // It may have ended its side alone, and wait for the answer.
            (ReceiveEnd::EndOfStream, Phase::Open) => self.mark_ready(slot),
            (ReceiveEnd::EndOfStream, Phase::Lingering | Phase::Carrying) | (ReceiveEnd::Reset, _) => {
                self.abort(slot, CloseReason::ClientGone);
            }
            (ReceiveEnd::CarrierGone, _) => self.abort(slot, CloseReason::CarrierGone),
            (ReceiveEnd::Against(reason), _) => self.abort(slot, reason),
            (ReceiveEnd::Insecure(Insecure::Header(detail)), _) => self.abort_header(slot, detail),
            (ReceiveEnd::Insecure(Insecure::Handshake), _) => self.abort(slot, CloseReason::TlsHandshake),
            (ReceiveEnd::Insecure(Insecure::Record), _) => self.abort(slot, CloseReason::TlsRecord),
            (ReceiveEnd::Failed(_), _) => self.abort(slot, CloseReason::SocketError),
            (ReceiveEnd::EndOfStream | ReceiveEnd::NoBuffers | ReceiveEnd::Cancelled, _) => {
                self.mark_ready(slot)
            }
        }
    }

    /// An instant send was counted as taken whole when it was submitted, and was not.
    fn handle_short(&mut self, slot: Slot, batch: Rc<Batch>, result: Result<usize, SendError>) {
        let connection = self.connections.get_mut(slot);
        let counters = &mut self.metrics.families[connection.format.family().index()];
        let taken = result.unwrap_or(0);
        if connection.subscribed() {
            counters.sends -= u64::from(taken == 0);
            counters.bytes -= (batch.len() - taken) as u64;
        }
        if let Some(access) = &mut self.access {
            access.take_back(slot, batch.frames(), batch.len() - taken);
        }
        if batch.frames() > 0 {
            counters.frames -= u64::from(batch.frames());
            // Recorded already, if the kernel took the send later than it was submitted.
            batch.completed.set(batch.completed.get().saturating_sub(1));
        }
        match result {
            Ok(taken) => self.keep_rest(slot, batch, taken),
            Err(_) => self.abort_failed(slot),
        }
    }

    /// Ends a connection whose socket takes no more. If its peer had ended its stream, that was no
    /// half of an end.
    fn abort_failed(&mut self, slot: Slot) {
        let reason = match self.connections.get(slot).ended {
            true => CloseReason::ClientGone,
            false => CloseReason::SocketError,
        };
        self.abort(slot, reason);
    }

    /// The kernel has taken a batch up to `offset`; the rest goes out before anything else.
    fn keep_rest(&mut self, slot: Slot, batch: Rc<Batch>, offset: usize) {
        let connection = self.connections.get_mut(slot);
        connection.offset = offset as u32;
        connection.partial = Some(batch);
        self.mark_ready(slot);
    }

    fn handle_sent(&mut self, slot: Slot, batch: Rc<Batch>, result: Result<usize, SendError>) {
        let tick = self.tick;
        let connection = self.connections.get_mut(slot);
        let counters = &mut self.metrics.families[connection.format.family().index()];
        let subscribed = connection.subscribed();
        counters.sends_in_flight -= u64::from(subscribed);
        connection.sending = false;
        let taken = match result {
            Ok(taken) => taken,
            Err(SendError::NoZeroCopy) => {
                connection.copies = true;
                connection.partial = Some(batch);
                self.mark_ready(slot);
                return;
            }
            Err(SendError::Gone(_)) => {
                self.abort_failed(slot);
                return;
            }
        };
        if subscribed {
            counters.sends += 1;
            counters.bytes += taken as u64;
        }
        connection.since = tick;
        let sent = connection.offset as usize + taken;
        if let Some(access) = &mut self.access {
            access.add(slot, if sent < batch.len() { 0 } else { batch.frames() }, taken);
        }
        if sent < batch.len() {
            self.keep_rest(slot, batch, sent);
            return;
        }
        connection.offset = 0;
        // A client that waits for this goes on.
        let waits = self.publishers.is_paused(slot);
        let owes =
            waits || connection.missed || connection.control.is_some() || connection.phase != Phase::Open;
        connection.missed = false;
        let format = connection.format;
        self.note_taken(format, &batch, 1);
        if owes {
            self.mark_ready(slot);
        }
    }

    /// So many sockets have taken the whole batch.
    pub(super) fn note_taken(&mut self, format: Format, batch: &Rc<Batch>, sockets: u32) {
        if batch.frames() > 0 && sockets > 0 {
            self.metrics.families[format.family().index()].frames +=
                u64::from(batch.frames()) * u64::from(sockets);
            let completed = batch.completed.get();
            batch.completed.set(completed + sockets);
            if completed == 0 {
                self.completed[format.index()].push(batch.clone());
            }
        }
    }

    /// Records the latencies of what was taken since the last turn: once per batch and run of
    /// events, with counts.
    pub(super) fn record_latencies(&mut self) {
        for format in Format::ALL {
            let histogram = &mut self.metrics.intake_to_written[format.family().index()];
            for batch in self.completed[format.index()].drain(..) {
                let sends = u64::from(batch.completed.replace(0));
                // None, if all that were noted turned out to be short.
                for (intake, events) in batch.intakes().iter().filter(|_| sends > 0) {
                    let latency = self.now.ns_since(*intake);
                    histogram.saturating_record_n(latency, sends * u64::from(*events));
                }
            }
        }
        for (intake, events) in self.offered.drain(..) {
            let latency = self.now.ns_since(intake);
            self.metrics.intake_to_last.saturating_record_n(latency, u64::from(events));
        }
    }
}
