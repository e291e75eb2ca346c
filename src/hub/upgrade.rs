//! Hands over to a process that wants our place (`handover`), and takes over from one.
//!
//! Invariants worth naming:
//! - One conversation at a time; whoever else asks is told so.
//! - Publishes are refused from `Ready` on, at most [`HAND_OVER_MS_MAX`]. Streams wait, as for
//!   room, and so do clients of the data plane.
//! - What fails before `Taken` is undone: publishes are taken, and clients come in again.
//! - The drain ends a conversation.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::listen::Listener;
use super::past::Gathered;
use super::source::Source;
use super::{Hub, OpenHub, Stage, jwks};
use crate::broadcast::{Doors, Message, Question};
use crate::config::limits::{
    CONTROL_ACCEPT_RETRY_MS, HAND_OVER_DESCRIPTORS_MAX, HAND_OVER_MS_MAX, HAND_OVER_START_MS_MAX,
    HAND_OVER_WORD_MS_MAX,
};
use crate::handover::place::Place;
use crate::handover::state::State;
use crate::handover::talk::{ControlOffer, DataOffer, Offer, Talk, TalkError, Word};
use crate::handover::{FORMAT, VERSION};

/// What a process has to hand over besides what it knows.
#[derive(Debug)]
pub struct Estate {
    /// Where those ask who want it.
    pub place: Place,
    /// The socket there, which listens.
    pub listener: OwnedFd,
    /// Addresses of the data plane, in the order of the shards' listeners; how many these are is
    /// found out when it is asked for.
    pub data: Vec<DataOffer>,
    /// Addresses of the control plane.
    pub control: Vec<ControlOffer>,
}

/// Waits for a process that takes our place, and hands over to it. Returns its process id.
pub(super) async fn serve(hub: Arc<Hub>, estate: Estate) -> i32 {
    let Estate { mut place, listener, data, control } = estate;
    let waiting = match UnixListener::from_std(listener.into()) {
        Ok(listener) => Waiting { listener, data, control },
        Err(error) => {
            tracing::warn!(%error, "cannot wait for a process that takes our place");
            return std::future::pending().await;
        }
    };
    let mut talking: Option<Pin<Box<dyn Future<Output = Option<i32>> + Send + '_>>> = None;
    let heir = loop {
        let accepted = tokio::select! {
            biased;
            heir = async { talking.as_mut().expect("asked for below").await }, if talking.is_some() => {
                talking = None;
                match heir {
                    Some(heir) => break heir,
                    None => continue,
                }
            }
            accepted = waiting.listener.accept() => accepted,
        };
        match accepted.map_err(TalkError::from).and_then(|(socket, _)| Line::new(socket)) {
            Err(error) => {
                tracing::warn!("cannot speak to a process that wants our place: {error}");
                sleep(Duration::from_millis(CONTROL_ACCEPT_RETRY_MS)).await;
            }
            Ok(line) if talking.is_some() => {
                // One that is gone already needs no answer.
                let _ = line.talk.say(&refused("another upgrade is under way"), &[]);
            }
            Ok(line) => talking = Some(Box::pin(try_to_hand_over(&hub, &waiting, line))),
        }
    };
    drop(talking);
    place.is_left = true;
    heir
}

/// An estate that is to be asked for.
struct Waiting {
    listener: UnixListener,
    data: Vec<DataOffer>,
    control: Vec<ControlOffer>,
}

/// A conversation, and what tells that there is a next word.
struct Line {
    talk: Talk,
    ready: UnixStream,
}

impl Line {
    fn new(socket: UnixStream) -> Result<Line, TalkError> {
        let socket = OwnedFd::from(socket.into_std()?);
        let ready = UnixStream::from_std(socket.try_clone()?.into())?;
        Ok(Line { talk: Talk::new(socket)?, ready })
    }

    /// The next word.
    async fn hear(&self, ms_max: u64) -> Result<Word, TalkError> {
        let heard = async {
            loop {
                self.ready.readable().await?;
                let heard = self.ready.try_io(Interest::READABLE, || match self.talk.hear() {
                    Ok(None) => Err(std::io::ErrorKind::WouldBlock.into()),
                    Ok(Some((word, _))) => Ok(Ok(word)),
                    Err(error) => Ok(Err(error)),
                });
                match heard {
                    Ok(heard) => return heard,
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
            }
        };
        timeout(Duration::from_millis(ms_max), heard).await.unwrap_or(Err(TalkError::Silent(ms_max)))
    }

    async fn expect(&self, word: &Word, ms_max: u64) -> Result<(), TalkError> {
        let heard = self.hear(ms_max).await?;
        if heard == *word { Ok(()) } else { Err(TalkError::unexpected(&heard)) }
    }
}

fn refused(why: impl ToString) -> Word {
    Word::Refused { why: why.to_string() }
}

/// The process id of who has our place now; `None` if we keep it.
async fn try_to_hand_over(hub: &Arc<Hub>, waiting: &Waiting, line: Line) -> Option<i32> {
    let error = match hand_over(hub, waiting, &line).await {
        Ok(heir) => return Some(heir),
        Err(error) => error,
    };
    tracing::error!("upgrade: this process goes on: {error}");
    // The other one may be gone.
    let _ = line.talk.say(&refused(&error), &[]);
    hub.resume().await;
    None
}

async fn hand_over(hub: &Arc<Hub>, waiting: &Waiting, line: &Line) -> Result<i32, TalkError> {
    let heir = rustix::net::sockopt::socket_peercred(&line.talk)?.pid.as_raw_nonzero().get();
    match line.hear(HAND_OVER_WORD_MS_MAX).await? {
        Word::Hello { format: FORMAT, version } => tracing::info!(heir, version, "upgrade: a process asks"),
        Word::Hello { format, version } => {
            return Err(TalkError::Refused(format!(
                "fanwave {VERSION}, which runs, hands over in format {FORMAT}, and fanwave {version} takes \
                 format {format}: stop the one and start the other"
            )));
        }
        word => return Err(TalkError::unexpected(&word)),
    }
    if matches!(hub.intake().source, Source::Store(_)) {
        return Err(TalkError::Refused(
            "it keeps its events in a directory (--data), which two processes cannot have at once: stop it and \
             start the other, and clients resume without a gap"
                .into(),
        ));
    }
    offer(hub, waiting, &line.talk).await?;
    line.expect(&Word::Ready, HAND_OVER_START_MS_MAX).await?;
    tracing::info!(heir, "upgrade: publishes are refused until the state is handed over");
    hub.intake().paused = true;
    let handing = hand_over_state(hub, line);
    let out_of_time = |_| TalkError::Silent(HAND_OVER_MS_MAX);
    timeout(Duration::from_millis(HAND_OVER_MS_MAX), handing).await.map_err(out_of_time)??;
    let taken = line.expect(&Word::Taken, HAND_OVER_WORD_MS_MAX).await;
    // One that has said it has our place, however late it is heard.
    match taken {
        Err(error) if !line.talk.hang_up(&Word::Taken) => Err(error),
        _ => Ok(heir),
    }
}

/// Tells what we have.
async fn offer(hub: &Hub, waiting: &Waiting, talk: &Talk) -> Result<(), TalkError> {
    let queues = hub.queues(waiting.data.len()).await?;
    let control: Vec<Arc<Listener>> = hub.control_listeners().iter().filter_map(Weak::upgrade).collect();
    let data = waiting.data.iter().zip(&queues);
    let offer = Offer {
        epoch: hub.epoch().0,
        pid: std::process::id(),
        data: data.map(|(offer, own)| DataOffer { listeners: own.len(), ..offer.clone() }).collect(),
        control: waiting.control.clone(),
    };
    if control.len() != offer.control.len() {
        return Err(TalkError::Refused("it does not listen for publishers any more".into()));
    }
    talk.say(&Word::Offer(offer), &[])?;
    let all = queues.iter().flatten().map(OwnedFd::as_fd).chain(control.iter().map(|one| one.as_fd()));
    let all: Vec<BorrowedFd<'_>> = all.chain([waiting.listener.as_fd()]).collect();
    all.chunks(HAND_OVER_DESCRIPTORS_MAX).try_for_each(|some| talk.say(&Word::Listeners, some))
}

/// Hands over what we know, and stops to let anybody in.
async fn hand_over_state(hub: &Arc<Hub>, line: &Line) -> Result<(), TalkError> {
    hub.flush_all().await;
    let gathered = hub.gather().await.map_err(TalkError::Refused)?;
    // Its bytes take time that others need.
    let written = tokio::task::spawn_blocking(move || write(&gathered)).await;
    let memory = written.map_err(std::io::Error::other)??;
    line.talk.say(&Word::State, &[memory.as_fd()])?;
    line.expect(&Word::Restored, HAND_OVER_MS_MAX).await?;
    hub.turn_doors(Doors::Closed).await;
    line.talk.say(&Word::Go, &[])
}

/// The state in memory that nobody can change any more.
fn write(gathered: &Gathered) -> std::io::Result<File> {
    let memory = memfd_create("fanwave-state", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let memory = File::from(memory);
    gathered.write(&memory)?;
    fcntl_add_seals(&memory, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(memory)
}

impl Hub {
    /// Lets clients of both planes in or not; returns once every shard has said that it is so.
    pub(super) async fn turn_doors(&self, doors: Doors) {
        self.doors.send_replace(doors);
        let mut said = Vec::new();
        self.tell_shards(|| {
            let (done, waits) = oneshot::channel();
            said.push(waits);
            Message::Doors(doors, done)
        })
        .await;
        for done in said {
            // A shard that is gone lets nobody in.
            let _ = done.await;
        }
    }

    /// The queues of peers of each of so many addresses, which all shards accept from.
    async fn queues(&self, addresses: usize) -> Result<Vec<Vec<OwnedFd>>, TalkError> {
        let mut queues: Vec<Vec<OwnedFd>> = (0..addresses).map(|_| Vec::new()).collect();
        let mut known = HashSet::new();
        for listeners in self.scrape(Question::Listeners).await {
            let silent = || TalkError::Refused("a shard does not tell its listeners".into());
            for (at, listener) in listeners.ok_or_else(silent)??.into_iter().enumerate() {
                // Shards may share a queue.
                if known.insert(rustix::fs::fstat(&listener)?.st_ino) {
                    queues[at % addresses].push(listener);
                }
            }
        }
        Ok(queues)
    }

    /// Nobody has taken our place: undoes what was done for that.
    pub(super) async fn resume(&self) {
        if std::mem::take(&mut self.intake().paused) {
            self.room.notify_waiters();
        }
        if *self.doors.borrow() == Doors::Closed {
            self.turn_doors(Doors::Open).await;
        }
    }

    /// True once another process has our place.
    pub(super) fn is_left(&self) -> bool {
        *self.doors.borrow() == Doors::Left
    }
}

/// Takes over from a former process.
impl OpenHub {
    /// Goes on where a former process has stopped: hub and shards. Nobody was let in yet.
    pub async fn restore(&self, state: State) {
        let hub = &self.hub;
        let limits = &hub.config().limits;
        let (histories, values) = (limits.history_memory_max(), limits.retained_memory_max());
        let past = Arc::new(hub.intake().restore(state, histories, values, hub.now()));
        let mut said = Vec::new();
        hub.tell_shards(|| {
            let (done, waits) = oneshot::channel();
            said.push(waits);
            Message::Restore(past.clone(), done)
        })
        .await;
        for done in said {
            // A shard that is gone is told of by its end.
            let _ = done.await;
        }
    }

    /// Fetches the keys of tokens, if an address has them. The error is one line.
    pub async fn fetch_keys(&self) -> Result<(), String> {
        jwks::fetch_first(&self.hub).await
    }

    /// What is handed over in turn, if anything; its place is ours from now on.
    pub fn own_place(&mut self) -> Option<&Estate> {
        let estate = self.entrance.estate.as_mut()?;
        estate.place.is_left = false;
        Some(estate)
    }

    /// Resolves once the drain begins: another process serves, or nobody will.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut stage = self.hub.stage.subscribe();
        async move {
            // A hub that is gone has drained.
            let _ = stage.wait_for(|now| *now >= Stage::Draining).await;
        }
    }

    /// Lets clients in, which the shards did not do so far.
    pub async fn open_doors(&self) {
        self.hub.turn_doors(Doors::Open).await;
    }
}
