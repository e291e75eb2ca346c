//! The processes of a cluster: NATS servers and nodes that share their stream, or an origin and the
//! relays that follow it. Each can be killed and started again.

use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Serialize;

use crate::http;
use crate::report::progress;
use crate::server::{self, FanwaveArgs, JetStream, NatsArgs, Running, ServerChoice};

/// Where nodes get their events from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Common {
    /// A stream of NATS JetStream.
    Nats,
    /// Another fanwave, which they follow; events are published there.
    Relay,
}

/// Where a node is, or was until it died.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    /// For subscribers.
    pub subscribe: SocketAddr,
    /// For publishers: the node's own control plane, or the origin's.
    pub publish: SocketAddr,
}

/// Where all nodes are. Clients are not told of a death: they find out.
pub type Places = Arc<RwLock<Vec<Place>>>;

/// Running processes; dropping it kills them.
pub struct Stand {
    choice: ServerChoice,
    nodes: Vec<Option<Running>>,
    /// Of relays.
    origin: Option<Running>,
    /// Of [`Common::Nats`].
    servers: Vec<JetStream>,
    places: Places,
}

impl Stand {
    /// Starts `nodes` nodes, and before them what they read from: so many NATS servers, or an
    /// origin.
    pub fn start(
        fanwave: &FanwaveArgs,
        nats: &NatsArgs,
        common: Common,
        nodes: usize,
        servers: usize,
    ) -> Result<Stand> {
        if !(1..=64).contains(&nodes) {
            bail!("--nodes {nodes}: give 1 to 64");
        }
        let choice = ServerChoice { fanwave: fanwave.clone(), ..ServerChoice::default() };
        let mut stand =
            Stand { choice, nodes: Vec::new(), origin: None, servers: Vec::new(), places: Places::default() };
        match common {
            Common::Nats => stand.servers = JetStream::start(nats, servers)?,
            Common::Relay => stand.origin = Some(server::start(&stand.choice, None, 1, &[])?),
        }
        progress(&format!("{} started; starting {nodes} nodes", stand.source_name()));
        for _ in 0..nodes {
            let node = stand.node()?;
            let place = stand.place(&node);
            stand.nodes.push(Some(node));
            stand.places.write().unwrap_or_else(PoisonError::into_inner).push(place);
        }
        if servers > 1 && common == Common::Nats {
            stand.settle()?;
        }
        Ok(stand)
    }

    /// A further node.
    fn node(&self) -> Result<Running> {
        let source = match &self.origin {
            None => JetStream::url_of(&self.servers),
            Some(origin) => format!("relay://{}", origin.target.clients),
        };
        server::start(&self.choice, None, 1, &["--source".to_owned(), source])
    }

    fn place(&self, node: &Running) -> Place {
        let publish = self.origin.as_ref().unwrap_or(node).target.publish;
        Place { subscribe: node.target.subscribe, publish }
    }

    /// Where the nodes are.
    pub fn places(&self) -> Places {
        Arc::clone(&self.places)
    }

    /// What nodes read from, in words.
    pub fn source_name(&self) -> String {
        match self.servers.as_slice() {
            [] => "origin".to_owned(),
            [server] => format!("1 nats-server {}", server.version),
            [server, ..] => format!("{} nats-servers {}", self.servers.len(), server.version),
        }
    }

    /// fanwave's version.
    pub fn version(&self) -> String {
        self.nodes.iter().flatten().next().map_or_else(String::new, |node| node.target.version.clone())
    }

    /// Nodes in all.
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// The number of the NATS server that leads the stream.
    pub fn leader(&self) -> Result<usize> {
        let name = self.servers.first().context("there is no NATS server")?.leader()?;
        let named = self.servers.iter().position(|server| server.name == name);
        named.with_context(|| format!("the stream is led by {name}, which was not started here"))
    }

    /// Kills a NATS server.
    pub fn kill_server(&mut self, number: usize) {
        self.servers[number].kill();
    }

    /// Starts a NATS server again and waits until all copies are up to date.
    pub fn revive_server(&mut self, number: usize) -> Result<()> {
        self.servers[number].run()?;
        self.settle()
    }

    /// Waits until every copy of the stream is up to date.
    fn settle(&self) -> Result<()> {
        self.servers[0].wait_until_current(self.servers.len() - 1)
    }

    /// Kills a node.
    pub fn kill_node(&mut self, number: usize) {
        self.nodes[number] = None;
    }

    /// Starts a node in the place of one that was killed, on ports of its own.
    pub fn revive_node(&mut self, number: usize) -> Result<()> {
        let node = self.node()?;
        let place = self.place(&node);
        self.places.write().unwrap_or_else(PoisonError::into_inner)[number] = place;
        self.nodes[number] = Some(node);
        Ok(())
    }

    /// Publishes one event and gives its id.
    pub fn publish_one(&self, topic: &str) -> Result<String> {
        let place = self.places.read().unwrap_or_else(PoisonError::into_inner)[0];
        let answer = http::post(place.publish, &format!("/topics/{topic}"), b"begin")?;
        if answer.status != 200 {
            bail!("the first publish was answered {} {}", answer.status, answer.first_line());
        }
        let answer: serde_json::Value = serde_json::from_slice(&answer.body).context("an answer in JSON")?;
        answer["id"].as_str().map(str::to_owned).context("an answer with an id")
    }

    /// Ends all of them, nodes first. A node that ends otherwise than it should is an error.
    pub fn stop(mut self) -> Result<()> {
        let origin = self.origin.take();
        self.nodes.drain(..).flatten().chain(origin).try_for_each(Running::stop)
    }

    /// Adds to an error what nodes said that have ended.
    pub fn explain(&mut self, error: anyhow::Error) -> anyhow::Error {
        self.nodes.iter_mut().flatten().fold(error, |error, node| node.explain(error))
    }
}
