//! The one model of the agent's workers: threads that block, so that the driver does not.
//!
//! A job has a deadline and is answered once. Store and outbox take their jobs in order from a
//! bounded channel, by [`Jobs`] and [`next`]: they write one file after the other. Containers
//! and images are jobs of a [`pool`].
//!
//! A job of a pool checks its [`Stop`] between its steps, and fails when its deadline has passed or
//! when it was cancelled. A blocking system call, such as a sync to a medium that does not answer,
//! cannot be interrupted: [`Watch`] names the thread, and the driver reports it.

pub mod pool;

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_channel::{Receiver, RecvError, Sender, TrySendError};

/// Messages in each channel between a worker and the driver.
pub const CHANNEL_MAX: usize = 64;
/// A job of a channel takes milliseconds, and seconds on a worn medium. It is not interrupted: one
/// that takes longer is reported until it ends.
pub const QUEUE_TIMEOUT: Duration = Duration::from_secs(60);

/// Deadline of a job, and whether it was cancelled. The job checks it between its steps.
pub struct Stop {
    limit: Duration,
    due: Instant,
    cancelled: Arc<AtomicBool>,
}

impl Stop {
    /// For work that cannot be cancelled.
    #[must_use]
    pub fn after(limit: Duration) -> Self {
        Self::new(limit, Arc::default())
    }

    fn new(limit: Duration, cancelled: Arc<AtomicBool>) -> Self {
        Self {
            limit,
            due: Instant::now() + limit,
            cancelled,
        }
    }

    /// Time until the deadline.
    #[must_use]
    pub fn left(&self) -> Duration {
        self.due.saturating_duration_since(Instant::now())
    }

    /// # Errors
    /// The job must end now: it was cancelled, or `TimedOut`.
    pub fn check(&self) -> io::Result<()> {
        if self.cancelled.load(Relaxed) {
            return Err(io::Error::other("cancelled: it is not wanted any more"));
        }
        if self.left().is_zero() {
            let text = ["not done within ", &self.limit.as_secs().to_string(), " s"].concat();
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        Ok(())
    }
}

/// Present jobs of the threads, so that a job that does not end is noticed.
#[derive(Clone)]
pub struct Watch(Arc<Watched>);

struct Watched {
    table: Mutex<Table>,
    wake: Box<dyn Fn() + Send + Sync>,
}

struct Table {
    threads: Vec<Busy>,
    /// When the driver calls [`Watch::look`] next.
    look_at: Option<Instant>,
    /// A job exceeded its deadline, or such a job ended, since the driver's last call.
    changed: bool,
}

struct Busy {
    name: &'static str,
    /// Deadline of the present job.
    due: Option<Instant>,
    late: bool,
}

impl Watch {
    /// `wake` makes the driver call [`Self::look`] soon.
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        let table = Table {
            threads: Vec::new(),
            look_at: None,
            changed: false,
        };
        Self(Arc::new(Watched {
            table: Mutex::new(table),
            wake: Box::new(wake),
        }))
    }

    /// Adds a thread.
    #[must_use]
    pub fn thread(&self, name: &'static str) -> Thread {
        let mut table = self.0.lock();
        table.threads.push(Busy {
            name,
            due: None,
            late: false,
        });
        let index = table.threads.len() - 1;
        drop(table);
        Thread {
            watched: Arc::clone(&self.0),
            index,
        }
    }

    /// Names of the threads whose job is over its deadline, if that has changed; and when to call
    /// again.
    pub fn look(&self) -> (Option<Vec<&'static str>>, Option<Instant>) {
        let now = Instant::now();
        let mut table = self.0.lock();
        let mut next: Option<Instant> = None;
        let mut changed = std::mem::take(&mut table.changed);
        let mut late = Vec::new();
        for thread in &mut table.threads {
            let Some(due) = thread.due else { continue };
            if due > now {
                next = Some(next.map_or(due, |at| at.min(due)));
                continue;
            }
            changed |= !thread.late;
            thread.late = true;
            late.push(thread.name);
        }
        // A timer that is set already is kept: consecutive jobs then wake no thread.
        let standing = table.look_at.filter(|at| *at > now);
        table.look_at = next.or(standing);
        (changed.then_some(late), table.look_at)
    }
}

impl Watched {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread that is watched.
pub struct Thread {
    watched: Arc<Watched>,
    index: usize,
}

impl Thread {
    /// A job begins that should end by `due`.
    pub fn begin(&self, due: Instant) {
        self.set(Some(due));
    }

    /// The job has ended.
    pub fn end(&self) {
        self.set(None);
    }

    fn set(&self, due: Option<Instant>) {
        let mut table = self.watched.lock();
        let Some(thread) = table.threads.get_mut(self.index) else {
            return;
        };
        thread.due = due;
        let was_late = std::mem::take(&mut thread.late);
        table.changed |= was_late;
        // The driver has no timer, or a later one.
        let early = due.is_some_and(|due| table.look_at.is_none_or(|at| due < at));
        if early {
            table.look_at = due;
        }
        drop(table);
        if early || was_late {
            (self.watched.wake)();
        }
    }
}

/// Starts a thread that runs as long as the process.
///
/// # Errors
/// The system's, when no thread can be started.
pub fn spawn(
    name: &str,
    stack_bytes: usize,
    run: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .stack_size(stack_bytes)
        .spawn(run)
        .map(drop)
}

/// A bounded channel to a worker, plus the jobs that did not fit: at most those that the core and the session
/// have outstanding, which their own caps bound.
pub struct Jobs<T> {
    sender: Sender<T>,
    waiting: VecDeque<T>,
}

impl<T> Jobs<T> {
    /// The channel's two ends.
    #[must_use]
    pub fn new() -> (Self, Receiver<T>) {
        let (sender, receiver) = async_channel::bounded(CHANNEL_MAX);
        (
            Self {
                sender,
                waiting: VecDeque::new(),
            },
            receiver,
        )
    }

    /// For other senders of such jobs, which wait while the channel is full.
    #[must_use]
    pub fn sender(&self) -> Sender<T> {
        self.sender.clone()
    }

    /// Sends a job, now or as soon as the channel is not full.
    pub fn push(&mut self, job: T) {
        self.waiting.push_back(job);
        self.flush();
    }

    /// Sends waiting jobs until the channel is full.
    pub fn flush(&mut self) {
        while let Some(job) = self.waiting.pop_front() {
            match self.sender.try_send(job) {
                Ok(()) => {}
                Err(TrySendError::Full(job) | TrySendError::Closed(job)) => {
                    self.waiting.push_front(job);
                    return;
                }
            }
        }
    }
}

/// The next job; `None` after the timeout. `thread` is busy from here until the next call.
pub fn next<T>(
    jobs: &Receiver<T>,
    until: Option<Instant>,
    thread: &Thread,
) -> Option<Result<T, RecvError>> {
    thread.end();
    let found = match until {
        None => Some(jobs.recv_blocking()),
        Some(at) => smol::block_on(smol::future::or(async { Some(jobs.recv().await) }, async {
            smol::Timer::at(at).await;
            None
        })),
    };
    thread.begin(Instant::now() + QUEUE_TIMEOUT);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: Duration = Duration::from_secs(3600);

    /// Goal: a job that does not end is reported once, and its end is noticed; one in time is not reported.
    /// Method: deadlines in the past and far away.
    #[test]
    fn a_job_over_its_deadline_is_named_until_it_ends() {
        let (sender, wakes) = async_channel::bounded(8);
        let watch = Watch::new(move || sender.try_send(()).unwrap());
        let (store, outbox) = (watch.thread("store"), watch.thread("outbox"));
        assert_eq!(watch.look(), (None, None));
        let now = Instant::now();
        let later = now + NEVER;
        outbox.begin(later);
        assert_eq!(wakes.try_recv(), Ok(()), "the driver has no timer yet");
        assert_eq!(watch.look(), (None, Some(later)));
        store.begin(now);
        assert_eq!(wakes.try_recv(), Ok(()), "the driver's timer is too late");
        assert_eq!(watch.look(), (Some(vec!["store"]), Some(later)));
        assert_eq!(watch.look(), (None, Some(later)));
        outbox.end();
        outbox.begin(later);
        assert!(wakes.is_empty(), "the driver's timer is early enough");
        outbox.end();
        store.end();
        assert_eq!(wakes.try_recv(), Ok(()), "a late job has ended");
        assert_eq!(watch.look(), (Some(vec![]), Some(later)));
        assert_eq!(watch.look(), (None, Some(later)));
    }

    #[test]
    fn a_job_stops_at_its_deadline() {
        assert!(Stop::after(NEVER).check().is_ok());
        let error = Stop::after(Duration::ZERO).check().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
