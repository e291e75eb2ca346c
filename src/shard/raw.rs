//! A WebSocket in raw mode whose messages are published to its topic (`--client-publish`).
//!
//! A text is published as text, anything else as binary data. The client is told nothing: it gets
//! its event like every other subscriber. A message that is not taken is counted by its reason.

use std::ops::ControlFlow;

use bytes::Bytes;

use super::connections::{Memberships, Phase, Session};
use super::publishers::Until;
use super::state::State;
use crate::config::limits::PONGS_BYTES_MAX;
use crate::egress::Slot;
use crate::event::{Data, Event, Topic};
use crate::refusal::RefusalReason;
use crate::wire::Family;
use crate::wire::websocket::{self, Incoming};

impl State {
    /// The topic to which a subscriber's messages go: its only one, if clients and its token may
    /// publish there.
    pub(super) fn publishes_to(&self, slot: Slot) -> Option<&Topic> {
        let config = &self.setup.config;
        if !config.has_client_publishers() {
            return None;
        }
        let Memberships::One(member) = &self.connections.get(slot).memberships else { return None };
        let topic = self.topics.get(member.topic);
        if topic.is_pattern() {
            return None;
        }
        let topic = &topic.name;
        let may = config.lets_clients_publish(topic.as_str()) && self.check_speaking(slot, topic).is_ok();
        may.then_some(topic)
    }

    /// Frames from the client of `slot`, whose messages go to `topic`.
    pub(super) fn handle_raw(&mut self, slot: Slot, bytes: &mut [u8], topic: &Topic) {
        if self.publishers.room(slot) == 0 {
            self.pause(slot, bytes, Until::Room);
            return;
        }
        let connection = self.connections.get_mut(slot);
        let waiting = connection.control.as_ref().map_or(0, |batch| batch.len());
        let Session::WebSocket(decoder) = &mut connection.session else { return };
        let mut decoder = std::mem::take(decoder);
        let mut message = self.publishers.take_message(slot);
        let limits = &self.setup.config.limits;
        let message_bytes_max = limits.message_in_bytes_max.min(limits.message_bytes_max) as u64;
        let mut pongs = Vec::new();
        let mut closed = None;
        let mut messages = 0;
        let fed = decoder.feed_until(bytes, message_bytes_max, |incoming| {
            match incoming {
                Incoming::Ping(payload) if waiting + pongs.len() <= PONGS_BYTES_MAX => {
                    pongs.extend_from_slice(&websocket::pong_frame(payload));
                }
                Incoming::Ping(_) | Incoming::Pong => {}
                Incoming::Payload(piece) => message.push(piece),
                Incoming::Message { text, .. } => {
                    messages += 1;
                    let Some(payload) = message.take() else {
                        self.metrics.refused.add(RefusalReason::Busy);
                        return ControlFlow::Continue(());
                    };
                    let event = raw_event(topic, payload.into(), text);
                    self.publish(slot, 0, event).expect("it was asked for room");
                    if self.publishers.room(slot) == 0 {
                        return ControlFlow::Break(());
                    }
                }
                Incoming::Close { reply, .. } => closed = Some(reply),
            }
            ControlFlow::Continue(())
        });
        if let Session::WebSocket(place) = &mut self.connections.get_mut(slot).session {
            *place = decoder;
        }
        self.metrics.families[Family::WebSocket.index()].messages_in += messages;
        if !pongs.is_empty() {
            self.answer(slot, pongs);
        }
        self.end_of_frames(slot, closed, fed.map(drop));
        if self.connections.get(slot).phase != Phase::Open {
            return;
        }
        let incoming_bytes_max = self.setup.config.limits.incoming_bytes_max();
        self.publishers.keep_message(slot, message, incoming_bytes_max);
        if self.publishers.room(slot) == 0 {
            // A violation has ended the connection.
            let read = fed.unwrap_or(bytes.len());
            self.pause(slot, &bytes[read..], Until::Room);
        }
    }
}

fn raw_event(topic: &Topic, payload: Bytes, text: bool) -> Event {
    let data = match text {
        true => Data::text(payload).expect("the decoder has checked it"),
        false => Data::binary(payload),
    };
    Event { topic: topic.clone(), data, name: None, id: None, retry_ms: None, key: None }
}
