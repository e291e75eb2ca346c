//! The publisher process: an open loop with a clock of its own, which nothing else holds up.
//!
//! One thread keeps to the schedule; the other takes orders and tells counters, so that neither an
//! order nor a slow reader of the answers delays an event. Every event is stamped with the time at
//! which it was due. Whatever makes the process late, a stopped process or a server that does not
//! read, shows in the latencies: all events that have become due meanwhile go out at once, with the
//! times they should have gone. The thread sleeps without timer slack; a processor that has gone
//! idle takes tens of microseconds to wake, so before an event that stands alone it wakes that much
//! too early and spins.

use std::num::NonZeroU64;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use hdrhistogram::Histogram;
use rustix::time::{ClockId, Timespec};
use serde::{Deserialize, Serialize};

use super::schedule::Schedule;
use super::{PublishPlan, Publisher};
use crate::fault::{is_by_server, told};
use crate::link::{Lines, Link, write_line};
use crate::receiver::latency_histogram;
use crate::stamp::now_ns;
use crate::usage::own_cpu_ns;
use crate::workload::Pace;

/// From the order to the first event, so that the order itself does not make it late.
const LEAD_NS: u64 = 1_000_000;
/// The longest silence between the publisher and its server, while nothing is due.
pub const TEND_EVERY: Duration = Duration::from_secs(10);
/// How long before its time the thread is awake, and from which pause on: at most 10 % of a CPU for
/// being on time.
const SPIN_NS: u64 = 50_000;
const SPIN_PAUSE_NS: u64 = 500_000;
/// How long the process may take to connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to answer an order, and to end the publishing.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
enum Order {
    /// First of all. Answered by [`Word::Connected`].
    Connect(PublishPlan),
    /// Publish. Answered by [`Word::Done`] in the end.
    Go { pace: Pace, seconds: f64 },
    /// Answered by [`Word::Sample`] at once.
    Sample,
    /// Answered by [`Word::Finished`].
    Finish,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
enum Word {
    Connected,
    Done(Published),
    Sample(PublishSample),
    Finished,
    /// It is over; the process ends.
    Failed {
        cause: String,
        /// True if the server caused it.
        by_server: bool,
    },
}

/// What an open loop published.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Published {
    /// Events handed to the server, refused ones included.
    pub events: u64,
    /// Events that the server refused because it was busy.
    pub refused: u64,
    /// From the time the first one was due to the end of the last write.
    pub seconds: f64,
}

/// What happened since the last sample.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PublishSample {
    /// Events handed to the server, refused ones included.
    pub published: u64,
    /// Events that the server refused because it was busy.
    pub refused: u64,
    /// How late each event's write began, against the time it was due: nanoseconds and count.
    pub lateness: Vec<(u64, u64)>,
    /// CPU nanoseconds of the process.
    pub cpu_ns: u64,
}

/// Counters since the last sample, shared by the two threads.
struct Counters {
    published: u64,
    refused: u64,
    lateness: Histogram<u64>,
}

type Shared = Arc<Mutex<Counters>>;

/// What the thread of the schedule is asked to do.
enum Task {
    Go { pace: Pace, seconds: f64 },
    Finish,
}

/// Runs a publisher on standard input and output until the input ends. A failure is told to the
/// coordinator, which words it for the user.
pub fn run() -> Result<ExitCode> {
    match serve() {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) => {
            fail(&error)?;
            Ok(ExitCode::FAILURE)
        }
    }
}

fn say(word: &Word) -> Result<()> {
    write_line(std::io::stdout().lock(), word)
}

fn fail(error: &anyhow::Error) -> Result<()> {
    say(&Word::Failed { cause: format!("{error:#}"), by_server: is_by_server(error) })
}

/// Takes orders until there are no more.
fn serve() -> Result<()> {
    let stdin = std::io::stdin();
    let mut lines = Lines::default();
    let shared = Arc::new(Mutex::new(Counters { published: 0, refused: 0, lateness: latency_histogram() }));
    let mut tasks: Option<Sender<Task>> = None;
    let mut cpu_before = own_cpu_ns();
    while lines.fill(&stdin)? {
        while let Some(order) = lines.next()? {
            let give = |task| {
                let tasks = tasks.as_ref().context("an order came before the connection")?;
                tasks.send(task).map_err(|_| anyhow!("an order came after the end"))
            };
            match order {
                Order::Connect(plan) => {
                    let publisher = Publisher::connect(&plan)?;
                    tasks = Some(start(publisher, Arc::clone(&shared)));
                    say(&Word::Connected)?;
                }
                Order::Go { pace, seconds } => give(Task::Go { pace, seconds })?,
                Order::Finish => give(Task::Finish)?,
                Order::Sample => {
                    let cpu = own_cpu_ns();
                    say(&Word::Sample(sample(&shared, cpu - cpu_before)))?;
                    cpu_before = cpu;
                }
            }
        }
    }
    Ok(())
}

/// Starts the thread of the schedule. Its failure ends the process: there is nothing left to
/// publish.
fn start(mut publisher: Publisher, shared: Shared) -> Sender<Task> {
    let (give, tasks) = channel();
    std::thread::spawn(move || {
        let outcome = work(&mut publisher, &tasks, &shared).and_then(|()| publisher.finish());
        let told = match &outcome {
            Ok(()) => say(&Word::Finished),
            Err(error) => fail(error),
        };
        if outcome.is_err() || told.is_err() {
            std::process::exit(1);
        }
    });
    give
}

/// Obeys until the publishing is to be finished.
fn work(publisher: &mut Publisher, tasks: &Receiver<Task>, shared: &Shared) -> Result<()> {
    // Without slack a sleep ends within microseconds of its time; the default grants itself 50
    // more.
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1)).context("asking for precise timers")?;
    loop {
        match tasks.recv_timeout(TEND_EVERY) {
            Ok(Task::Go { pace, seconds }) => {
                let schedule = Schedule::new(pace, seconds, now_ns() + LEAD_NS)?;
                let published = keep_to(&schedule, publisher, shared)?;
                say(&Word::Done(published))?;
            }
            Ok(Task::Finish) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => publisher.tend()?,
        }
    }
}

/// Publishes everything when it is due.
fn keep_to(schedule: &Schedule, publisher: &mut Publisher, shared: &Shared) -> Result<Published> {
    let mut published = Published { events: 0, refused: 0, seconds: 0.0 };
    let mut times = Vec::new();
    while published.events < schedule.events() {
        let now = now_ns();
        let next = schedule.due(published.events);
        if next > now {
            match next - now {
                long if long > TEND_EVERY.as_nanos() as u64 => {
                    sleep_until(now + TEND_EVERY.as_nanos() as u64)?;
                    publisher.tend()?;
                }
                SPIN_PAUSE_NS.. => {
                    sleep_until(next - SPIN_NS)?;
                    while now_ns() < next {
                        std::hint::spin_loop();
                    }
                }
                _ => sleep_until(next)?,
            }
            continue;
        }
        let due = schedule.due_by(now).min(published.events + publisher.chunk_events as u64);
        times.clear();
        times.extend((published.events..due).map(|number| schedule.due(number)));
        let refused = publisher.send(&times)?.events;
        let mut counters = lock(shared);
        counters.published += times.len() as u64;
        counters.refused += refused;
        times.iter().for_each(|time| counters.lateness.saturating_record(now - time));
        published.events = due;
        published.refused += refused;
    }
    published.seconds = now_ns().saturating_sub(schedule.due(0)) as f64 / 1e9;
    Ok(published)
}

fn sleep_until(ns: u64) -> Result<()> {
    let time = Timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 };
    loop {
        match rustix::thread::clock_nanosleep_absolute(ClockId::Monotonic, &time) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("sleeping until the next event is due"),
        }
    }
}

fn lock(shared: &Shared) -> MutexGuard<'_, Counters> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes the counters away. What takes time, making a histogram and reading the other, happens
/// outside of the lock.
fn sample(shared: &Shared, cpu_ns: u64) -> PublishSample {
    let empty = Counters { published: 0, refused: 0, lateness: latency_histogram() };
    let counters = std::mem::replace(&mut *lock(shared), empty);
    let lateness = counters.lateness.iter_recorded();
    PublishSample {
        published: counters.published,
        refused: counters.refused,
        lateness: lateness.map(|value| (value.value_iterated_to(), value.count_at_value())).collect(),
        cpu_ns,
    }
}

/// The coordinator's end of a publisher process.
#[derive(Debug)]
pub struct PublishProcess {
    link: Link,
    /// Events of all schedules that are done.
    published: u64,
    /// Events of all samples.
    sampled: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    Quiet,
    Publishing,
    Done(Published),
}

impl PublishProcess {
    /// Starts the process, pinned to `cpu` if one is given, and connects it.
    pub fn start(plan: &PublishPlan, cpu: Option<usize>) -> Result<PublishProcess> {
        plan.check()?;
        let mut link = Link::start("publisher", cpu)?;
        link.send(&Order::Connect(plan.clone()))?;
        let mut process = PublishProcess { link, published: 0, sampled: 0, state: State::Quiet };
        match process.answer(Instant::now() + CONNECT_LIMIT)? {
            Some(Word::Connected) => Ok(process),
            Some(other) => Err(unexpected(&other)),
            None => bail!("the publisher did not connect to {} within {CONNECT_LIMIT:?}", plan.address),
        }
    }

    /// The number, from 1 over all topics, of the event that comes after all that have been
    /// published; while a schedule is being kept, as far as samples have told.
    pub fn next(&self) -> u64 {
        self.published.max(self.sampled) + 1
    }

    /// Publishes at `pace` for `seconds`; [`poll`](Self::poll) tells when that is done.
    pub fn go(&mut self, pace: Pace, seconds: f64) -> Result<()> {
        if let State::Publishing = self.state {
            bail!("the publisher is still publishing");
        }
        Schedule::new(pace, seconds, 0)?;
        self.order(&Order::Go { pace, seconds })?;
        self.state = State::Publishing;
        Ok(())
    }

    /// What happened since the last sample.
    pub fn sample(&mut self) -> Result<PublishSample> {
        self.order(&Order::Sample)?;
        match self.answer(Instant::now() + ANSWER_LIMIT)? {
            Some(Word::Sample(sample)) => {
                self.sampled += sample.published;
                Ok(sample)
            }
            Some(other) => Err(unexpected(&other)),
            None => bail!("the publisher did not answer within {ANSWER_LIMIT:?}"),
        }
    }

    /// What the last [`go`](Self::go) has published, if it is done. Does not wait.
    pub fn poll(&mut self) -> Result<Option<Published>> {
        if let State::Publishing = self.state
            && let Some(word) = self.take(Instant::now())?
            && let Some(word) = self.note(word)?
        {
            return Err(unexpected(&word));
        }
        match self.state {
            State::Done(published) => Ok(Some(published)),
            State::Publishing => Ok(None),
            State::Quiet => bail!("the publisher was not told to publish"),
        }
    }

    /// Ends the publishing; checks, where the way allows it, that the server took every event that
    /// it did not refuse.
    pub fn finish(mut self) -> Result<()> {
        self.order(&Order::Finish)?;
        match self.answer(Instant::now() + ANSWER_LIMIT)? {
            Some(Word::Finished) => Ok(()),
            Some(other) => Err(unexpected(&other)),
            None => bail!("the publisher did not end within {ANSWER_LIMIT:?}"),
        }
    }

    fn order(&mut self, order: &Order) -> Result<()> {
        let Err(error) = self.link.send(order) else { return Ok(()) };
        // Who does not listen any more has perhaps said why.
        while let Ok(Some(word)) = self.take(Instant::now()) {
            self.note(word)?;
        }
        Err(error.context("the publisher"))
    }

    /// The next word that is the answer to an order.
    fn answer(&mut self, deadline: Instant) -> Result<Option<Word>> {
        while let Some(word) = self.take(deadline)? {
            if let Some(word) = self.note(word)? {
                return Ok(Some(word));
            }
        }
        Ok(None)
    }

    fn take(&mut self, deadline: Instant) -> Result<Option<Word>> {
        self.link.next(deadline).context("the publisher")
    }

    /// Notes the end of the publishing, and gives any other word back.
    fn note(&mut self, word: Word) -> Result<Option<Word>> {
        match word {
            Word::Done(published) => {
                self.published += published.events;
                self.state = State::Done(published);
                Ok(None)
            }
            Word::Failed { cause, by_server } => Err(told(cause, by_server).context("the publisher")),
            other => Ok(Some(other)),
        }
    }
}

fn unexpected(word: &Word) -> anyhow::Error {
    anyhow!("the publisher gave an answer that nobody asked for: {word:?}")
}
