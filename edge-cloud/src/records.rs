//! Records of the nodes: from their sessions, through a bounded queue, to one [`sink`], and the
//! acknowledgement back. Only records that the sink has durably stored are acknowledged, and
//! nothing here waits while it holds the lock of the sessions.
//!
//! Each record has a number in its stream (node, outbox, class). [`ledger`] applies a frame
//! to the ledger, a sink keeps data and ledger consistent as well as it can, and [`Records`] connects
//! them: [`WRITERS`] tasks, each busy with one node at a time. While a sink is slow or away its records are
//! not acknowledged: nodes keep them, and repeat them.
//!
//! Bound: [`QUEUE_BYTES_MAX`] of waiting records, beyond which they are refused and sent again.

pub mod cursors;
pub mod files;
mod http;
pub mod ledger;
pub mod ledger_reader;
pub mod line;
pub mod loss;
pub mod mark;
mod mqtt;
mod nats;
pub mod plan;
mod sink;
mod stdout;
pub mod stream;
pub mod target;
mod view;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use edge_proto::frame::Entry;
use edge_proto::limits::STREAMS_MAX;
use edge_proto::session::Cloud;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::ledger::{Batch, Incarnation, Item, Ledger, Loss, Plan};
use self::ledger_reader::{READERS, Reading};
use self::sink::{Sink, blocking};
use self::target::Config;

pub use view::{SinkRow, StreamRow, View};

/// Nodes whose records are written at the same time.
pub const WRITERS: usize = 8;
/// Folder of the files in the data folder when `--records` names no other sink.
pub const RECORDS: &str = "records";
/// Bytes of records that wait for the sink, of all nodes together.
pub const QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of records that the sink gets at once.
pub const PLAN_BYTES_MAX: usize = 64 * 1024;
/// First wait after a failure, of one node; doubles up to [`WAIT_MAX`].
const WAIT_MIN: Duration = Duration::from_millis(500);
/// See [`WAIT_MIN`].
const WAIT_MAX: Duration = Duration::from_secs(30);
/// Losses of a stream within this time become one event.
const NOTICE_INTERVAL: Duration = Duration::from_secs(60);
/// Bytes of an entry's bookkeeping, counted beside its payload.
const ENTRY_BYTES: usize = 64;

/// Records for which a session waits.
#[derive(Debug)]
struct Waiting {
    batch: Batch,
    /// Number of the session, see [`Records::attach`].
    session: u64,
    ticket: u32,
    bytes: usize,
}

/// Answer to a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Number of the session, see [`Records::attach`].
    pub session: u64,
    /// Ticket of the session's output.
    pub ticket: u32,
    /// Durable in the sink; otherwise they must be sent again.
    pub durable: bool,
}

/// An event about a node: reason and text.
pub type Notice = (&'static str, String);

/// The sessions, as far as records need them.
pub trait RecordSessions: Send + Sync + 'static {
    /// A node's ledger was read: its session may open.
    fn ledger_read(&self, node: &str);

    /// The result for a node's records: its session acknowledges, or requests them again.
    fn settle_records(&self, node: &str, settled: &[Settled], notices: Vec<Notice>);
}

#[derive(Debug, Default)]
struct NodeRecords {
    reading: Reading,
    /// `None` until it was read.
    ledger: Option<Ledger>,
    waiting: VecDeque<Waiting>,
    busy: bool,
    /// It has left the registry.
    gone: bool,
    failures: u32,
    /// Why the last attempt failed; `None` after a success.
    error: Option<String>,
    /// Batches of the failed attempt: the next one has the same, with the same key.
    again: Option<usize>,
    /// Records that were received again and are not in the ledger yet, by outbox and class; at most
    /// `STREAMS_MAX` of those.
    repeated: BTreeMap<(Incarnation, u8), u64>,
    /// Losses without an event, and the time of the last event of losses.
    unreported: BTreeMap<(u8, Loss), u64>,
    reported_at: Option<Instant>,
}

#[derive(Default)]
struct State {
    nodes: BTreeMap<String, NodeRecords>,
    /// Nodes whose ledgers must be read.
    unread: VecDeque<String>,
    /// Nodes that a writer may take, once each.
    ready: VecDeque<String>,
    later: BTreeSet<(Instant, String)>,
    bytes: usize,
    sessions: u64,
    failures: u64,
    refused: u64,
    /// Nodes whose last attempt failed.
    failing: usize,
    /// The failure of some was reported by an event.
    failing_reported: bool,
}

/// All records that wait for the sink.
pub struct Records {
    /// `None`: no sink, and no record is acknowledged.
    sink: Option<Arc<Sink>>,
    state: Mutex<State>,
    wake: Notify,
    unread: Notify,
}

/// Records of one node for a writer.
struct Job {
    node: String,
    ledger: Option<Ledger>,
    batches: Vec<Batch>,
    repeated: u64,
}

/// Result of a job.
struct Outcome {
    ledger: Ledger,
    plan: Plan,
    /// Those of the plan's duplicates that the session has dropped.
    repeated: u64,
}

impl Records {
    /// For an edge-cloud without a sink.
    #[must_use]
    pub fn none() -> Arc<Self> {
        Arc::new(Self {
            sink: None,
            state: Mutex::default(),
            wake: Notify::new(),
            unread: Notify::new(),
        })
    }

    /// Opens the sink. Call it within a tokio runtime, which some sinks need.
    ///
    /// # Errors
    /// An invalid name of the sink, or an error of a file or a folder.
    pub fn open(data: &Path, config: &Config) -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            sink: Some(Arc::new(Sink::open(data, config)?)),
            state: Mutex::default(),
            wake: Notify::new(),
            unread: Notify::new(),
        }))
    }

    /// A node has a new session, which gets the positions of its streams. Returns the number by which
    /// the session is known here, and whether its ledger is known: if not, the session must not
    /// open until [`RecordSessions::ledger_read`].
    pub(crate) fn attach(&self, node: &str, session: &mut Cloud) -> (u64, bool) {
        let mut state = self.lock();
        state.sessions += 1;
        let id = state.sessions;
        if self.sink.is_none() {
            return (id, true);
        }
        let has_ledger = self.has_ledger(&mut state, node);
        let known = state.nodes.entry(node.to_owned()).or_default();
        known.gone = false;
        for (class, stream) in known.ledger.iter().flat_map(|ledger| &ledger.streams) {
            for outbox in stream.outboxes.iter().rev() {
                session.restore_stream(outbox.incarnation.0, *class, outbox.next);
            }
        }
        (id, has_ledger)
    }

    /// A node has left the registry. Records that it has sent are still delivered.
    pub(crate) fn detach(&self, node: &str) {
        let mut state = self.lock();
        if let Some(known) = state.nodes.get_mut(node) {
            known.gone = true;
        }
        self.tidy(&mut state, node);
    }

    /// Queues records of a session. `false`: the queue is full, they must be sent again.
    pub(crate) fn offer(&self, node: &str, session: u64, ticket: u32, batch: Batch) -> bool {
        if self.sink.is_none() {
            // The node keeps them: its session is never answered.
            return true;
        }
        let bytes = batch.entries.iter().map(weight).sum::<usize>() + ENTRY_BYTES;
        let mut state = self.lock();
        if state.bytes + bytes > QUEUE_BYTES_MAX {
            state.refused += 1;
            return false;
        }
        state.bytes += bytes;
        let known = state.nodes.entry(node.to_owned()).or_default();
        known.waiting.push_back(Waiting {
            batch,
            session,
            ticket,
            bytes,
        });
        // A node that waits or pauses is in a list already.
        if !known.busy && known.waiting.len() == 1 {
            state.ready.push_back(node.to_owned());
            self.wake.notify_one();
        }
        true
    }

    /// Records were received again, and the session has dropped them. They are counted with the next write of
    /// the node's records.
    pub(crate) fn repeated(&self, node: &str, incarnation: [u8; 8], class: u8, count: u64) {
        let mut state = self.lock();
        let Some(known) = state.nodes.get_mut(node) else {
            return;
        };
        let key = (Incarnation(incarnation), class);
        if known.repeated.contains_key(&key) || known.repeated.len() < STREAMS_MAX {
            let repeated = known.repeated.entry(key).or_default();
            *repeated = repeated.saturating_add(count);
        }
    }

    /// Reads the ledgers, writes records and answers the sessions, for ever.
    pub async fn run<S: RecordSessions>(self: &Arc<Self>, sessions: &Arc<S>) {
        let mut writers = JoinSet::new();
        for _ in 0..READERS {
            let (records, sessions) = (Arc::clone(self), Arc::clone(sessions));
            writers.spawn(async move { records.read_ledgers(sessions.as_ref()).await });
        }
        for _ in 0..WRITERS {
            let (records, sessions) = (Arc::clone(self), Arc::clone(sessions));
            writers.spawn(async move {
                loop {
                    let job = records.take().await;
                    let node = job.node.clone();
                    let outcome = records.work(job).await;
                    let (settled, notices) = records.finish(&node, outcome);
                    sessions.settle_records(&node, &settled, notices);
                }
            });
        }
        // None of them ends.
        while writers.join_next().await.is_some() {}
    }

    /// The next node to write.
    async fn take(&self) -> Job {
        loop {
            let pause = {
                let mut state = self.lock();
                let now = Instant::now();
                while state.later.first().is_some_and(|(at, _)| *at <= now) {
                    let due = state.later.pop_first().map(|(_, node)| node);
                    state.ready.extend(due);
                }
                if let Some(job) = state.next_job() {
                    if !state.ready.is_empty() {
                        self.wake.notify_one();
                    }
                    return job;
                }
                state.later.first().map(|(at, _)| *at)
            };
            let far = || Instant::now() + Duration::from_secs(3600);
            tokio::select! {
                () = self.wake.notified() => {}
                () = tokio::time::sleep_until(pause.unwrap_or_else(far)) => {}
            }
        }
    }

    async fn work(&self, job: Job) -> Result<Outcome, (Option<Ledger>, String)> {
        let Some(sink) = &self.sink else {
            return Err((job.ledger, "there is no sink".to_owned()));
        };
        let Job {
            node,
            ledger,
            batches,
            repeated,
        } = job;
        let mut ledger = match ledger {
            Some(ledger) => ledger,
            None => {
                let (sink, name) = (Arc::clone(sink), node.clone());
                match blocking(move || sink.load(&name)).await {
                    Ok(found) => log_cut(&node, found),
                    Err(error) => return Err((None, error)),
                }
            }
        };
        let class = batches.first().map_or(0, |batch| batch.class);
        match sink.recover(&node, class).await {
            Ok(Some(stream)) => ledger.merge(&BTreeMap::from([(class, stream)])),
            Ok(None) => {}
            Err(error) => return Err((Some(ledger), error)),
        }
        let mut plan = ledger.plan(&batches);
        plan.duplicates = plan.duplicates.saturating_add(repeated);
        if !plan.is_known()
            && let Err(error) = sink.deliver(&node, &ledger, &plan).await
        {
            return Err((Some(ledger), error));
        }
        ledger.apply(&plan);
        Ok(Outcome {
            ledger,
            plan,
            repeated,
        })
    }

    /// Stores the result of a node's job: answers for its sessions, and events.
    fn finish(
        &self,
        node: &str,
        outcome: Result<Outcome, (Option<Ledger>, String)>,
    ) -> (Vec<Settled>, Vec<Notice>) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let mut settled = Vec::new();
        let Some(known) = state.nodes.get_mut(node) else {
            return (settled, Vec::new());
        };
        known.busy = false;
        let mut notices = Vec::new();
        let mut pause = None;
        match outcome {
            Ok(Outcome {
                ledger,
                plan,
                repeated,
            }) => {
                known.ledger = Some(ledger);
                known.failures = 0;
                known.again = None;
                if known.error.take().is_some() {
                    state.failing -= 1;
                    if state.failing == 0 && std::mem::take(&mut state.failing_reported) {
                        notices.push((
                            "RecordsResumed",
                            "the sink takes all records again".to_owned(),
                        ));
                    }
                }
                // A batch that does not follow is sent again, with all of its stream after it.
                let taken = plan.taken.max(1);
                for (index, one) in known
                    .waiting
                    .drain(..taken.min(known.waiting.len()))
                    .enumerate()
                {
                    state.bytes = state.bytes.saturating_sub(one.bytes);
                    settled.push(Settled {
                        session: one.session,
                        ticket: one.ticket,
                        durable: index < plan.taken,
                    });
                }
                known.noted(&plan, repeated);
                known.note(&plan);
                notices.extend(replaced(&plan));
                notices.extend(known.loss_notices(Instant::now()));
            }
            Err((ledger, error)) => {
                known.ledger = ledger;
                known.failures = known.failures.saturating_add(1);
                let doubled = WAIT_MIN * 2u32.saturating_pow(known.failures.min(10) - 1);
                pause = Some(Instant::now() + doubled.min(WAIT_MAX));
                state.failures += 1;
                state.failing += usize::from(known.error.is_none());
                if !std::mem::replace(&mut state.failing_reported, true) {
                    notices.push(("RecordsFailing", error.clone()));
                }
                known.error = Some(error);
            }
        }
        if !known.waiting.is_empty() {
            match pause {
                Some(at) => drop(state.later.insert((at, node.to_owned()))),
                None => state.ready.push_back(node.to_owned()),
            }
        }
        self.wake.notify_one();
        self.tidy(state, node);
        (settled, notices)
    }

    /// Drops the state of a node that has left and has no waiting records.
    fn tidy(&self, state: &mut State, node: &str) {
        let idle = |known: &NodeRecords| known.gone && !known.busy && known.waiting.is_empty();
        if state.nodes.get(node).is_some_and(idle) {
            let known = state.nodes.remove(node);
            state.failing -= usize::from(known.is_some_and(|known| known.error.is_some()));
            if let Some(sink) = &self.sink {
                sink.drop_state(node);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn next_job(&mut self) -> Option<Job> {
        while let Some(node) = self.ready.pop_front() {
            let Some(known) = self.nodes.get_mut(&node) else {
                continue;
            };
            if known.busy || known.waiting.is_empty() {
                continue;
            }
            known.busy = true;
            let batches = known.batches();
            known.again = Some(batches.len());
            let ledger = known.ledger.clone();
            let of = batches.first().map(|one| (one.incarnation, one.class));
            let repeated = of.and_then(|of| known.repeated.get(&of).copied());
            let repeated = repeated.unwrap_or_default();
            return Some(Job {
                node,
                ledger,
                batches,
                repeated,
            });
        }
        None
    }
}

impl NodeRecords {
    /// The oldest waiting records, of one stream and by one session.
    fn batches(&self) -> Vec<Batch> {
        let Some(first) = self.waiting.front() else {
            return Vec::new();
        };
        let same = |one: &&Waiting| {
            one.batch.class == first.batch.class
                && one.batch.incarnation == first.batch.incarnation
                && one.session == first.session
        };
        let mut bytes = 0;
        let fits = |one: &&Waiting| {
            let first = bytes == 0;
            bytes += one.bytes;
            first || bytes <= PLAN_BYTES_MAX
        };
        self.waiting
            .iter()
            .take(self.again.unwrap_or(usize::MAX))
            .take_while(same)
            .take_while(fits)
            .map(|one| one.batch.clone())
            .collect()
    }

    /// So many repeated records are in the ledger now; further ones may have arrived meanwhile.
    fn noted(&mut self, plan: &Plan, count: u64) {
        let of = (plan.incarnation, plan.class);
        if let Some(repeated) = self.repeated.get_mut(&of) {
            *repeated = repeated.saturating_sub(count);
            if *repeated == 0 {
                self.repeated.remove(&of);
            }
        }
    }

    fn note(&mut self, plan: &Plan) {
        for item in &plan.items {
            if let Item::Lost { count, loss, .. } = item
                // Coalescing keys exist for that.
                && *loss != Loss::Superseded
            {
                let unreported = self.unreported.entry((plan.class, *loss)).or_default();
                *unreported = unreported.saturating_add(*count);
            }
        }
    }

    fn loss_notices(&mut self, now: Instant) -> Vec<Notice> {
        if self
            .reported_at
            .is_some_and(|at| now.duration_since(at) < NOTICE_INTERVAL)
        {
            return Vec::new();
        }
        let unreported = std::mem::take(&mut self.unreported);
        if !unreported.is_empty() {
            self.reported_at = Some(now);
        }
        let text = |((class, loss), count): ((u8, Loss), u64)| {
            let class = ledger::class_name(class);
            let text = match loss {
                Loss::Forgotten => format!(
                    "{class}: {count} records were acknowledged before and are not known any more"
                ),
                loss => format!("{class}: {count} records, {}", loss.name()),
            };
            ("RecordsLost", text)
        };
        unreported.into_iter().map(text).collect()
    }
}

/// The event of an outbox that replaced another.
fn replaced(plan: &Plan) -> Option<Notice> {
    let before = plan.follows.as_ref()?;
    let text = format!(
        "{}: outbox {} took the place of {}, whose records from {} on are lost if there were any",
        ledger::class_name(plan.class),
        plan.incarnation,
        before.incarnation,
        before.next
    );
    Some(("OutboxLost", text))
}

fn log_cut(node: &str, found: files::Found) -> Ledger {
    for (path, bytes) in &found.cut {
        log::warn!(
            "record_file_cut node={node} file={} bytes={bytes}",
            path.display()
        );
    }
    found.ledger
}

fn weight(entry: &Entry) -> usize {
    match entry {
        Entry::Record { bytes, .. } => bytes.len() + ENTRY_BYTES,
        Entry::Gap { .. } => ENTRY_BYTES,
    }
}
