//! The outbox on the medium: segment files, and one small file with the state of each class.
//! `edge-core` decides which records are kept; one thread here writes, syncs and reads.
//!
//! Records that arrive while the medium syncs share the next sync. A record is acknowledged to its writer,
//! and announced to the session, only after its sync. Memory holds one batch of new records and one
//! piece of a segment, whatever the backlog.

pub mod segment;
mod state;
mod store;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use async_channel::{Receiver, Sender};
use edge_core::outbox::{ClassConfig, Counters, Refused};
use edge_core::sync_scheduler::SyncScheduler;
use edge_proto::frame::{Entry, Incarnation};

use crate::worker;

pub use store::Store;

/// Stack of the thread.
const STACK_BYTES: usize = 128 * 1024;
/// Bytes of new records that one sync makes durable; further ones wait for the next.
const COMMIT_BYTES_MAX: usize = 64 * 1024;

/// A class, as the config names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// Name in the local API.
    pub name: String,
    /// Number, quota and time to live.
    pub config: ClassConfig,
    /// A record is answered only when it is durable.
    pub must: bool,
}

/// Settings of the outbox from the config.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Highest sum of the bytes of all segments.
    pub quota_bytes: u64,
    /// By number, at most [`edge_proto::limits::CLASSES_MAX`].
    pub classes: Vec<Class>,
}

/// Job of the outbox's thread.
pub enum Job {
    /// A new record.
    Append {
        /// Number of its class.
        class: u8,
        /// Answer only when it is durable.
        must: bool,
        /// Coalescing key, at most `segment::KEY_BYTES_MAX`.
        key: Vec<u8>,
        /// Time of writing, milliseconds since 1970.
        unix_ms: u64,
        /// At most `RECORD_BYTES_MAX`.
        bytes: Vec<u8>,
        /// Channel of the answer.
        reply: Sender<Answer>,
    },
    /// The session requests entries.
    Read {
        /// The outbox that the session knows.
        incarnation: Incarnation,
        /// Below `CLASSES_MAX`.
        class: u8,
        /// First number to read.
        from: u64,
        /// Upper bound of their bytes.
        bytes_max: usize,
    },
    /// The cloud has acknowledged everything before `next`.
    Acked {
        /// The outbox that the session knows.
        incarnation: Incarnation,
        /// Below `CLASSES_MAX`.
        class: u8,
        /// First unacknowledged number.
        next: u64,
    },
    /// The cloud knows numbers that were never assigned: create a new incarnation with the held records.
    Renew {
        /// The outbox that the session knows.
        incarnation: Incarnation,
    },
}

/// Answer to a new record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Accepted.
    Stored {
        /// Id of the outbox.
        incarnation: Incarnation,
        /// Number of the record.
        sequence: u64,
    },
    /// More important records fill the quota.
    Full,
    /// The medium cannot be written, for this reason.
    Medium(&'static str),
}

/// Event for the driver.
pub enum Done {
    /// These numbers can be read.
    Ready {
        /// Below `CLASSES_MAX`.
        class: u8,
        /// Id of the outbox.
        incarnation: Incarnation,
        /// Oldest number.
        held: u64,
        /// Number of the next record.
        end: u64,
    },
    /// Answers `Read`.
    Read {
        /// Id of the outbox.
        incarnation: Incarnation,
        /// Below `CLASSES_MAX`.
        class: u8,
        /// First number.
        first: u64,
        /// Entries from there on.
        entries: Vec<Entry>,
    },
    /// The medium cannot be written, for this reason; `None` when it can be written again.
    Unwritable(Option<String>),
}

/// Counters of the outbox, for the status.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Id of the outbox.
    pub incarnation: Incarnation,
    /// Number and counters of each class.
    pub classes: Vec<(u8, Counters)>,
}

/// The newest report; only the outbox's thread writes it.
pub type Shared = Arc<Mutex<Report>>;

/// A copy of the newest report.
#[must_use]
pub fn report(shared: &Shared) -> Report {
    shared
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone()
}

/// Milliseconds since 1970 by the system's clock.
#[must_use]
pub fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |time| {
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
    })
}

/// Starts the outbox's thread, which first reads the existing files.
///
/// # Errors
/// The system's, when no thread can be started.
pub fn spawn(
    dir: PathBuf,
    settings: Settings,
    jobs: Receiver<Job>,
    done: Sender<Done>,
    shared: Shared,
    watch: worker::Thread,
) -> io::Result<()> {
    let run = move || {
        let mut clock = Clock::start();
        let mut reported = String::new();
        // Without a directory no record can be accepted; the driver reports why.
        let store = loop {
            match Store::open(&dir, &settings) {
                Ok(store) => break store,
                Err(error) => {
                    clock.scheduler.failed(clock.now());
                    let reason = error.to_string();
                    if reported != reason {
                        reported.clone_from(&reason);
                        done.send_blocking(Done::Unwritable(Some(reason))).ok();
                    }
                    if !refuse(&jobs, clock.deadline(true), why(&error), &watch) {
                        return;
                    }
                }
            }
        };
        if clock.scheduler.recovered() {
            done.send_blocking(Done::Unwritable(None)).ok();
        }
        Thread {
            store,
            clock,
            done,
            shared,
            ready: Vec::new(),
            waiting_for_sync: Vec::new(),
            waiting_for_write: Vec::new(),
            failure: "",
            watch,
        }
        .run(&jobs);
    };
    worker::spawn("outbox", STACK_BYTES, run)
}

/// Refuses records until the medium is to be tried again. False when all senders are gone.
fn refuse(
    jobs: &Receiver<Job>,
    until: Option<Instant>,
    reason: &'static str,
    watch: &worker::Thread,
) -> bool {
    loop {
        match worker::next(jobs, until, watch) {
            // The writer may be gone.
            Some(Ok(Job::Append { reply, .. })) => drop(reply.try_send(Answer::Medium(reason))),
            Some(Ok(_)) => {}
            Some(Err(_)) => return false,
            None => return true,
        }
    }
}

/// [`SyncScheduler`] over this process's monotonic clock.
struct Clock {
    start: Instant,
    scheduler: SyncScheduler,
}

impl Clock {
    fn start() -> Self {
        Self {
            start: Instant::now(),
            scheduler: SyncScheduler::default(),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn deadline(&self, behind: bool) -> Option<Instant> {
        let at = self.scheduler.deadline(behind)?;
        self.start.checked_add(Duration::from_millis(at))
    }
}

/// Reason for the writer of a record; the log has the details.
fn why(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "the medium is full",
        io::ErrorKind::ReadOnlyFilesystem => "the medium is read-only",
        _ => "the medium cannot be written",
    }
}

type Replies = Vec<(Sender<Answer>, Answer)>;

/// Executes the decisions of [`SyncScheduler`].
struct Thread {
    store: Store,
    clock: Clock,
    done: Sender<Done>,
    shared: Shared,
    /// Last announcement of each class.
    ready: Vec<(u8, Incarnation, u64)>,
    /// Answers that are sent after the sync, and after the write. At most as many as
    /// [`COMMIT_BYTES_MAX`] allows.
    waiting_for_sync: Replies,
    waiting_for_write: Replies,
    /// Reason of the last failed write.
    failure: &'static str,
    watch: worker::Thread,
}

impl Thread {
    fn run(&mut self, jobs: &Receiver<Job>) {
        if self.settle().is_err() {
            return;
        }
        loop {
            match worker::next(
                jobs,
                self.clock.deadline(self.store.is_behind()),
                &self.watch,
            ) {
                Some(Ok(job)) => self.perform(job),
                Some(Err(_)) => return,
                None => {}
            }
            // Jobs that arrived meanwhile share the sync.
            while self.store.unwritten() < COMMIT_BYTES_MAX
                && let Ok(job) = jobs.try_recv()
            {
                self.perform(job);
            }
            if self.settle().is_err() {
                return;
            }
        }
    }

    fn perform(&mut self, job: Job) {
        match job {
            Job::Append {
                class,
                must,
                key,
                unix_ms,
                bytes,
                reply,
            } => {
                let answer = self.append(class, &key, unix_ms, &bytes);
                let stored = matches!(answer, Answer::Stored { .. });
                match (stored, must) {
                    (true, true) => self.waiting_for_sync.push((reply, answer)),
                    (true, false) => self.waiting_for_write.push((reply, answer)),
                    // The writer may be gone.
                    (false, _) => drop(reply.try_send(answer)),
                }
            }
            Job::Read {
                incarnation,
                class,
                from,
                bytes_max,
            } if incarnation == self.store.incarnation => {
                let entries = self.store.read(class, from, bytes_max);
                let read = Done::Read {
                    incarnation,
                    class,
                    first: from,
                    entries,
                };
                self.done.send_blocking(read).ok();
            }
            Job::Acked {
                incarnation,
                class,
                next,
            } if incarnation == self.store.incarnation => {
                let base = self.store.base(class);
                self.store.outbox.acked(class, next.saturating_add(base));
            }
            Job::Renew { incarnation } if incarnation == self.store.incarnation => {
                if let Err(error) = self.store.renew() {
                    self.write_failed(&error);
                }
            }
            // Of an outbox that was replaced meanwhile.
            Job::Read { .. } | Job::Acked { .. } | Job::Renew { .. } => {}
        }
    }

    fn append(&mut self, class: u8, key: &[u8], unix_ms: u64, bytes: &[u8]) -> Answer {
        if self.clock.scheduler.refuses(self.clock.now()) {
            return Answer::Medium(self.failure);
        }
        // Checked once for each batch, which is smaller than the reserve.
        if self.store.unwritten() == 0
            && let Err(error) = self.store.is_writable()
        {
            self.write_failed(&error);
            return Answer::Medium(why(&error));
        }
        match self.store.append(class, key, unix_ms, bytes) {
            Ok(Ok(number)) => Answer::Stored {
                incarnation: self.store.incarnation,
                sequence: number - self.store.base(class),
            },
            Ok(Err(Refused::LocalClass | Refused::LimitFull)) => Answer::Full,
            Err(error) => {
                self.fail(&error);
                Answer::Medium(why(&error))
            }
        }
    }

    /// Writes the batch, syncs it if necessary, answers, and reports to the driver. Fails when the
    /// driver is gone.
    fn settle(&mut self) -> Result<(), ()> {
        let now = self.clock.now();
        let waiting = !self.waiting_for_sync.is_empty();
        let sync = self.clock.scheduler.must_sync(now, waiting);
        let result = self.store.write().and_then(|()| match sync {
            true => self.store.sync(),
            false => Ok(()),
        });
        let written = result.is_ok();
        match result {
            Ok(()) if sync => {
                let recovered = self.clock.scheduler.synced();
                self.write_recovered(recovered);
            }
            Ok(()) if !self.waiting_for_write.is_empty() => self.clock.scheduler.written(now),
            Ok(()) => {}
            Err(error) => self.fail(&error),
        }
        let behind = self.store.is_behind();
        match self.store.settle() {
            Err(error) => self.write_failed(&error),
            Ok(()) if behind && written => {
                let recovered = self.clock.scheduler.recovered();
                self.write_recovered(recovered);
            }
            Ok(()) => {}
        }
        // The counters first: a client that writes and then reads them finds its record.
        self.announce()?;
        for (reply, answer) in self.replies() {
            // The writer may be gone.
            reply.try_send(answer).ok();
        }
        Ok(())
    }

    fn replies(&mut self) -> impl Iterator<Item = (Sender<Answer>, Answer)> {
        let after_sync = self.waiting_for_sync.drain(..);
        after_sync.chain(self.waiting_for_write.drain(..))
    }

    /// Records that are not durable are lost, and their writers get an error.
    fn fail(&mut self, error: &io::Error) {
        self.store.failed();
        for (reply, _) in self.replies() {
            reply.try_send(Answer::Medium(why(error))).ok();
        }
        let report = self.clock.scheduler.records_failed(self.clock.now());
        self.report_failure(error, report);
    }

    fn write_failed(&mut self, error: &io::Error) {
        let report = self.clock.scheduler.failed(self.clock.now());
        self.report_failure(error, report);
    }

    fn report_failure(&mut self, error: &io::Error, report: bool) {
        self.failure = why(error);
        if report {
            let reason = Some(error.to_string());
            self.done.send_blocking(Done::Unwritable(reason)).ok();
        }
    }

    fn write_recovered(&self, report: bool) {
        if report {
            self.done.send_blocking(Done::Unwritable(None)).ok();
        }
    }

    fn announce(&mut self) -> Result<(), ()> {
        let incarnation = self.store.incarnation;
        let mut report = Report {
            incarnation,
            classes: Vec::with_capacity(self.store.writers.len()),
        };
        for writer in &self.store.writers {
            let class = writer.class;
            report
                .classes
                .push((class, self.store.outbox.counters(class)));
            let Some((held, end)) = self.store.outbox.ready(class) else {
                continue;
            };
            let now = (class, incarnation, end);
            match self.ready.iter_mut().find(|known| known.0 == class) {
                Some(known) if *known == now => continue,
                Some(known) => *known = now,
                None => self.ready.push(now),
            }
            let ready = Done::Ready {
                class,
                incarnation,
                held: held - writer.base,
                end: end - writer.base,
            };
            self.done.send_blocking(ready).map_err(drop)?;
        }
        *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = report;
        Ok(())
    }
}
