//! A hub without sockets, for tests that play publishers and shards.
//!
//! Its routes, intake, streams and drain are those of [`run`](super::run), and its clock is the
//! runtime's. So where that is paused and one thread runs everything, the same questions in the
//! same order have the same answers.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::response::Response;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;

use super::asked::Scheme;
use super::backfill::Archive;
use super::{Hub, HubError, HubSetup, Intake, control, open};
use crate::clock::Stamp;
use crate::config::ControlAddress;
use crate::event::{Epoch, Event, EventId, Topic};

/// The hub of a test.
#[derive(Debug, Clone)]
pub struct SimHub {
    hub: Arc<Hub>,
    router: Router,
}

impl SimHub {
    /// A hub that is asked as if at `address`, and its life, which is to be awaited. To be called
    /// on a runtime.
    pub fn new(
        setup: HubSetup,
        address: ControlAddress,
        drain: impl Future<Output = ()>,
    ) -> (SimHub, impl Future<Output = Result<(), HubError>>) {
        let open = open(setup);
        let router = control::router(open.hub.clone(), address, Scheme::Http);
        (SimHub { hub: open.hub.clone(), router }, open.serve(drain))
    }

    /// Now, as the hub stamps events.
    pub fn now(&self) -> Stamp {
        self.hub.now()
    }

    /// The answer to one request of the control API.
    pub fn ask(&self, request: Request<Body>) -> impl Future<Output = Response> + Send + use<> {
        let answer = TowerToHyperService::new(self.router.clone()).call(request);
        async move {
            match answer.await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        }
    }

    /// A source places an event.
    pub fn place(&self, event: Event, sequence: u64) -> impl Future<Output = bool> + Send + use<> {
        let hub = self.hub.clone();
        async move {
            let placed = hub.place(event, sequence, 0).await;
            hub.flush();
            placed
        }
    }

    /// A source keeps what has left the windows.
    pub fn keep_past(&self, archive: Box<dyn Archive>) {
        *self.hub.archive() = Some(archive);
    }

    /// A source tells of a hole.
    pub fn tell_hole(&self, sequence: u64) -> impl Future<Output = bool> + Send + use<> {
        self.place_word(move |intake| intake.tell_hole(sequence))
    }

    /// A source tells of a hole of one topic.
    pub fn tell_hole_of(&self, topic: Topic, sequence: u64) -> impl Future<Output = bool> + Send + use<> {
        self.place_word(move |intake| intake.tell_hole_of(topic, sequence))
    }

    /// A source begins anew.
    pub fn begin_era(&self, epoch: Epoch) -> impl Future<Output = bool> + Send + use<> {
        self.place_word(move |intake| intake.begin_era(epoch))
    }

    /// A source removes what came of a topic so far.
    pub fn place_removal(&self, topic: Topic, sequence: u64) -> impl Future<Output = bool> + Send + use<> {
        self.place_word(move |intake| intake.place_removal(topic, sequence))
    }

    fn place_word<F>(&self, place: F) -> impl Future<Output = bool> + Send + use<F>
    where
        F: FnOnce(&mut Intake) + Send,
    {
        let hub = self.hub.clone();
        async move {
            let placed = hub.place_word(place).await;
            hub.flush();
            placed
        }
    }

    /// Whose sequences come now, and the last one.
    pub fn last(&self) -> EventId {
        self.hub.intake().last()
    }

    /// Times that a batch met a full shard queue.
    pub fn stalls(&self) -> u64 {
        self.hub.intake().counters().stalls
    }

    /// Times that histories were cut for want of memory.
    pub fn history_cuts(&self) -> u64 {
        self.hub.memory_watch().cuts()
    }

    /// Events and bytes that not every shard has.
    pub fn queue(&self) -> (usize, usize) {
        self.hub.intake().queue()
    }
}
