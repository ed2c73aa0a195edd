//! The one model of the agent's workers: threads that block, so that the driver does not.
//!
//! A job has a deadline and is answered once. Store and outbox take their jobs in order from a
//! bounded channel, by [`Jobs`] and [`next`]: they write one file after the other. Containers
//! and images are jobs of a [`Pool`]: those of one key (a pod) are done in order and never two at
//! once, those of different keys do not wait for each other. A job that may take minutes, such as an
//! unpacking, is passed to the pool's one thread for long jobs, so it delays no short one.
//!
//! A job of a pool checks its [`Stop`] between its steps, and fails when its deadline has passed or
//! when it was cancelled. A blocking system call, such as a sync to a medium that does not answer,
//! cannot be interrupted: [`Watch`] names the thread, and the driver reports it.
//!
//! Bound: the threads are started once and never exit ([`SHORT_THREADS`] and one of a pool); waiting
//! jobs are at most those that the core has outstanding, which its own caps bound. An idle thread sleeps
//! until there is a job.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_channel::{Receiver, RecvError, Sender, TrySendError};

/// Messages in each channel between a worker and the driver.
pub const CHANNEL_MAX: usize = 64;
/// Threads of a pool for short jobs: one that waits for processes to end (2 s) does not delay the others.
pub const SHORT_THREADS: usize = 2;
/// A job of a channel takes milliseconds, and seconds on a worn medium. It is not interrupted: one
/// that takes longer is reported until it ends.
pub const QUEUE_TIMEOUT: Duration = Duration::from_secs(60);
/// A short job of a pool: on a slow board under load a start takes about a second.
pub const SHORT_TIMEOUT: Duration = Duration::from_secs(120);
/// A long job of a pool: 32 layers of 100 MiB at 1 MiB/s. Layers that an unpacking has finished stay, so
/// the next attempt continues from there.
pub const LONG_TIMEOUT: Duration = Duration::from_secs(3600);

/// Time in which a job of a pool must end after its deadline, when the program that it waits for is killed.
/// One that needs longer is reported.
const STOP_GRACE: Duration = Duration::from_secs(10);

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
pub struct Watch(Arc<Watched>);

struct Watched {
    table: Mutex<Table>,
    wake: Box<dyn Fn() + Send + Sync>,
}

struct Table {
    threads: Vec<Busy>,
    /// When the driver calls [`Self::look`] next.
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

/// Result of a step of a job.
pub enum Progress<J, L, A> {
    /// It is done; some jobs have nothing to answer.
    Done(Option<A>),
    /// This job of the same key is done next.
    Short(J),
    /// It takes long: the thread for long jobs does this, and no other of its key meanwhile.
    Long(L),
    /// It is done, and this long job follows for which no other job waits. It replaces an earlier one that is
    /// still waiting.
    DoneThen(A, L),
}

/// [`Progress`] of a job of `W`.
pub type ProgressOf<W> = Progress<<W as Work>::Job, <W as Work>::LongJob, <W as Work>::Answer>;

/// Implements the jobs of a pool.
pub trait Work: Sized + Send + Sync + 'static {
    /// Jobs with the same key are done in order.
    type Key: Copy + Eq + Send;
    /// Work for the threads for short jobs.
    type Job: Send;
    /// A job for the thread for long ones.
    type LongJob: Send;
    /// Result that is sent when a job ends.
    type Answer: Send;

    /// Key of a job.
    fn key(&self, job: &Self::Job) -> Self::Key;
    /// Does a job if that is short.
    fn perform(&self, job: Self::Job, stop: &Stop) -> ProgressOf<Self>;
    /// Does a long job to its end. One that is cancelled already ends at once: a thread for short
    /// jobs may do it.
    fn perform_long(&self, job: Self::LongJob, stop: &Stop) -> ProgressOf<Self>;
    /// Called by the thread for long jobs, once after each busy time of the pool, when it
    /// has been idle for its idle time.
    fn idle(&self) {}
}

/// A waiting job.
struct Waiting<K, J> {
    /// A long job may have no key.
    key: K,
    job: J,
    cancelled: Arc<AtomicBool>,
}

/// What a thread for short jobs does next.
enum Taken<W: Work> {
    Short(Waiting<W::Key, W::Job>),
    Long(Waiting<Option<W::Key>, W::LongJob>),
}

struct State<W: Work> {
    waiting: VecDeque<Waiting<W::Key, W::Job>>,
    long: VecDeque<Waiting<Option<W::Key>, W::LongJob>>,
    /// Keys of the jobs that are in progress, or that wait in `long`, and how to cancel them.
    busy: Vec<(W::Key, Arc<AtomicBool>)>,
    /// When [`Work::idle`] is due if no job arrives.
    idle_at: Option<Instant>,
}

struct Shared<W: Work> {
    work: W,
    state: Mutex<State<W>>,
    /// A job was added, or a key was released.
    changed: Condvar,
    idle_after: Duration,
    done: Sender<W::Answer>,
}

/// Passes jobs to the threads of a pool.
pub struct Pool<W: Work>(Arc<Shared<W>>);

impl<W: Work> Pool<W> {
    /// Starts the threads; the answers go to `done`, in the order in which the jobs end.
    ///
    /// # Errors
    /// The system's, when no thread can be started.
    pub fn spawn(
        names: (&'static str, &'static str),
        stack_bytes: usize,
        work: W,
        idle_after: Duration,
        watch: &Watch,
        done: Sender<W::Answer>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            work,
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                long: VecDeque::new(),
                busy: Vec::with_capacity(SHORT_THREADS + 1),
                idle_at: Instant::now().checked_add(idle_after),
            }),
            changed: Condvar::new(),
            idle_after,
            done,
        });
        for _ in 0..SHORT_THREADS {
            let (shared, thread) = (Arc::clone(&shared), watch.thread(names.0));
            spawn(names.0, stack_bytes, move || shared.run_short(&thread))?;
        }
        let (long, thread) = (Arc::clone(&shared), watch.thread(names.1));
        spawn(names.1, stack_bytes, move || long.run_long(&thread))?;
        Ok(Self(shared))
    }

    /// Adds a job.
    pub fn push(&self, job: W::Job) {
        let key = self.0.work.key(&job);
        self.0.lock().waiting.push_back(Waiting {
            key,
            job,
            cancelled: Arc::default(),
        });
        self.0.changed.notify_all();
    }

    /// Cancels the jobs of `key` that were added before. Those that check their [`Stop`] end
    /// early; each is answered nevertheless.
    pub fn cancel(&self, key: W::Key) {
        let state = self.0.lock();
        let waiting = state.waiting.iter().map(|one| (one.key, &one.cancelled));
        let busy = state.busy.iter().map(|(key, cancelled)| (*key, cancelled));
        for (_, cancelled) in waiting.chain(busy).filter(|(one, _)| *one == key) {
            cancelled.store(true, Relaxed);
        }
        drop(state);
        // A long one that waits is ended by the next thread that is free.
        self.0.changed.notify_all();
    }

    /// Whether no job waits or is in progress, except a long one for which no other waits.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        let state = self.0.lock();
        state.waiting.is_empty() && state.long.is_empty() && state.busy.is_empty()
    }
}

impl<W: Work> Shared<W> {
    fn lock(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first job whose key is free; the key is taken with it. A long job that is cancelled comes
    /// first: its key has been taken, and it may have to wait long for its own thread.
    fn take_short(&self) -> Taken<W> {
        let mut state = self.lock();
        loop {
            let mut long = state.long.iter();
            let given_up = long.position(|one| one.cancelled.load(Relaxed));
            if let Some(one) = given_up.and_then(|index| state.long.remove(index)) {
                return Taken::Long(one);
            }
            let free = |one: &Waiting<W::Key, W::Job>| {
                let mut busy = state.busy.iter();
                !busy.any(|(key, _)| *key == one.key)
            };
            let found = state.waiting.iter().position(free);
            if let Some(one) = found.and_then(|index| state.waiting.remove(index)) {
                let cancelled = Arc::clone(&one.cancelled);
                state.busy.push((one.key, cancelled));
                return Taken::Short(one);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn run_short(&self, thread: &Thread) {
        loop {
            let taken = self.take_short();
            let cancelled = match &taken {
                Taken::Short(one) => &one.cancelled,
                Taken::Long(one) => &one.cancelled,
            };
            let stop = Stop::new(SHORT_TIMEOUT, Arc::clone(cancelled));
            thread.begin(stop.due + STOP_GRACE);
            let (key, progress) = match taken {
                Taken::Short(one) => (Some(one.key), self.work.perform(one.job, &stop)),
                Taken::Long(one) => (one.key, self.work.perform_long(one.job, &stop)),
            };
            thread.end();
            if !self.finish(key, stop.cancelled, progress) {
                return;
            }
        }
    }

    fn run_long(&self, thread: &Thread) {
        loop {
            let found = self.take_long();
            let (key, job, cancelled) = match found {
                Some(one) => (one.key, Some(one.job), one.cancelled),
                None => (None, None, Arc::default()),
            };
            let stop = Stop::new(LONG_TIMEOUT, cancelled);
            thread.begin(stop.due + STOP_GRACE);
            let Some(job) = job else {
                self.work.idle();
                thread.end();
                continue;
            };
            let progress = self.work.perform_long(job, &stop);
            thread.end();
            if !self.finish(key, stop.cancelled, progress) {
                return;
            }
        }
    }

    /// The next long job; `None` when the pool has been idle for long.
    fn take_long(&self) -> Option<Waiting<Option<W::Key>, W::LongJob>> {
        let mut state = self.lock();
        loop {
            if let Some(one) = state.long.pop_front() {
                return Some(one);
            }
            let quiet = state.waiting.is_empty() && state.busy.is_empty();
            let Some(at) = state.idle_at.filter(|_| quiet) else {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.idle_at = None;
                return None;
            }
            (state, _) = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Answers, and then releases the key: the answers of one key are sent in the order of its jobs.
    /// `false` when the receiver of answers is gone.
    fn finish(
        &self,
        key: Option<W::Key>,
        cancelled: Arc<AtomicBool>,
        progress: ProgressOf<W>,
    ) -> bool {
        let (answer, short, long) = match progress {
            Progress::Done(answer) => (answer, None, None),
            Progress::Short(job) => (None, Some(job), None),
            Progress::Long(job) => (None, None, Some((key, job))),
            Progress::DoneThen(answer, job) => (Some(answer), None, Some((None, job))),
        };
        if let Some(answer) = answer
            && self.done.send_blocking(answer).is_err()
        {
            return false;
        }
        let mut state = self.lock();
        let keeps_key = long.as_ref().is_some_and(|(key, _)| key.is_some());
        if !keeps_key {
            state.busy.retain(|(busy, _)| Some(*busy) != key);
        }
        if let (Some(job), Some(key)) = (short, key) {
            state.waiting.push_front(Waiting {
                key,
                job,
                cancelled,
            });
        } else if let Some((key, job)) = long {
            state.long.retain(|one| one.key.is_some() || key.is_some());
            // A job without a key cannot be cancelled.
            let cancelled = key.map_or_else(Arc::default, |_| cancelled);
            state.long.push_back(Waiting {
                key,
                job,
                cancelled,
            });
        }
        state.idle_at = Instant::now().checked_add(self.idle_after);
        drop(state);
        self.changed.notify_all();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Job `(key, number)`. `(1, 0)` is long and `(1, 9)` follows it, `(2, 0)` has a long one after it,
    /// `(3, 0)` hangs; these end when the test opens the gate once for each. `(7, 0)` is long and needs no
    /// gate. An answer has 100 more when the job was cancelled.
    struct Steps {
        gate: Receiver<()>,
        hangs: AtomicBool,
        /// Whether a job hung when the pool was idle.
        idles: Sender<bool>,
    }

    fn answer((key, number): (u8, u8), stop: &Stop) -> Option<(u8, u8)> {
        Some((key, number + if stop.check().is_err() { 100 } else { 0 }))
    }

    impl Work for Steps {
        type Key = u8;
        type Job = (u8, u8);
        type LongJob = (u8, u8);
        type Answer = (u8, u8);

        fn key(&self, job: &Self::Job) -> u8 {
            job.0
        }

        fn perform(&self, job: Self::Job, stop: &Stop) -> ProgressOf<Self> {
            match job {
                (1 | 7, 0) => Progress::Long(job),
                (2, 0) => Progress::DoneThen(job, (2, 9)),
                (3, 0) => {
                    self.hangs.store(true, Relaxed);
                    self.gate.recv_blocking().unwrap();
                    self.hangs.store(false, Relaxed);
                    Progress::Done(Some(job))
                }
                _ => Progress::Done(answer(job, stop)),
            }
        }

        fn perform_long(&self, job: Self::LongJob, stop: &Stop) -> ProgressOf<Self> {
            if job.0 != 7 {
                self.gate.recv_blocking().unwrap();
            }
            match job {
                (1, 0) => Progress::Short((1, 9)),
                _ => Progress::Done(answer(job, stop)),
            }
        }

        fn idle(&self) {
            self.idles.send_blocking(self.hangs.load(Relaxed)).unwrap();
        }
    }

    struct Stand {
        pool: Pool<Steps>,
        open: Sender<()>,
        answers: Receiver<(u8, u8)>,
        idles: Receiver<bool>,
    }

    impl Stand {
        fn new(idle_after: Duration) -> Self {
            let (open, gate) = async_channel::bounded(4);
            let (done, answers) = async_channel::bounded(16);
            let (idles, idle) = async_channel::bounded(64);
            let hangs = AtomicBool::new(false);
            let work = Steps { gate, hangs, idles };
            let watch = Watch::new(|| {});
            let names = ("test", "test-long");
            let pool = Pool::spawn(names, 64 * 1024, work, idle_after, &watch, done).unwrap();
            Self {
                pool,
                open,
                answers,
                idles: idle,
            }
        }

        fn push(&self, jobs: &[(u8, u8)]) {
            jobs.iter().for_each(|job| self.pool.push(*job));
        }

        fn open(&self) {
            self.open.send_blocking(()).unwrap();
        }

        fn expect(&self, answers: &[(u8, u8)]) {
            for answer in answers {
                assert_eq!(self.answers.recv_blocking().unwrap(), *answer);
            }
        }
    }

    const NEVER: Duration = Duration::from_secs(3600);

    /// Goal: an image that is unpacked for one pod delays no other pod, and keeps the order of the pod's own
    /// jobs. Method: a long job that ends only when the test allows it; jobs of other keys
    /// are answered meanwhile, those of its own key are not, and follow it in order, first its
    /// continuation.
    #[test]
    fn a_long_job_delays_no_other_key_and_keeps_its_own_in_order() {
        let stand = Stand::new(NEVER);
        stand.push(&[(1, 0), (1, 1), (1, 2), (4, 0), (4, 1), (5, 0)]);
        let mut others: Vec<_> = (0..3)
            .map(|_| stand.answers.recv_blocking().unwrap())
            .collect();
        others.sort_unstable();
        assert_eq!(others, [(4, 0), (4, 1), (5, 0)]);
        assert!(stand.answers.is_empty(), "the key of the long job is held");
        stand.open();
        stand.expect(&[(1, 9), (1, 1), (1, 2)]);
    }

    /// Goal: no job waits for the work after a removal (the search for unused layers). Method:
    /// as above, with a job whose long part comes after its answer.
    #[test]
    fn what_follows_an_answer_holds_no_key() {
        let stand = Stand::new(NEVER);
        stand.push(&[(2, 0), (2, 1)]);
        stand.expect(&[(2, 0), (2, 1)]);
        stand.open();
        stand.expect(&[(2, 9)]);
    }

    /// Goal: removals while a large image is unpacked leave one search for unused layers, not one
    /// for each. Method: some of them while the thread for long jobs waits; one may have been taken.
    #[test]
    fn a_long_job_that_nobody_waits_for_replaces_the_one_before() {
        let stand = Stand::new(NEVER);
        stand.push(&[(2, 0), (2, 0), (2, 0), (2, 0), (2, 1)]);
        stand.expect(&[(2, 0), (2, 0), (2, 0), (2, 0), (2, 1)]);
        assert!(stand.pool.0.lock().long.len() <= 1);
        stand.open();
        stand.open();
        stand.expect(&[(2, 9)]);
    }

    /// Goal: one short job that hangs (a program that does not answer) blocks one thread only.
    #[test]
    fn a_short_job_that_hangs_delays_its_own_key_only() {
        let stand = Stand::new(NEVER);
        stand.push(&[(3, 0), (3, 1), (6, 0), (6, 1)]);
        stand.expect(&[(6, 0), (6, 1)]);
        stand.open();
        stand.expect(&[(3, 0), (3, 1)]);
    }

    /// Goal: cancelling affects a long job, its continuation and the jobs that wait behind it, but no
    /// later jobs and no other keys; each is answered. Method: jobs that report what they observed.
    #[test]
    fn a_cancelled_job_learns_it_and_is_answered() {
        let stand = Stand::new(NEVER);
        stand.push(&[(1, 0), (1, 1)]);
        stand.pool.cancel(1);
        stand.pool.cancel(4);
        stand.push(&[(1, 2), (4, 0)]);
        stand.expect(&[(4, 0)]);
        stand.open();
        stand.expect(&[(1, 109), (1, 101), (1, 2)]);
    }

    /// Goal: a pod that goes does not wait for the images of other pods. Method: a long job is
    /// cancelled while it waits behind another one, before the jobs of its key.
    #[test]
    fn a_long_job_that_is_cancelled_does_not_wait_for_the_one_before() {
        let stand = Stand::new(NEVER);
        let long = || stand.pool.0.lock().long.len();
        stand.push(&[(2, 0)]);
        stand.expect(&[(2, 0)]);
        // The next job of the key comes after the long one was handed on.
        stand.push(&[(2, 1)]);
        stand.expect(&[(2, 1)]);
        while long() > 0 {
            std::thread::yield_now();
        }
        stand.push(&[(7, 0)]);
        while long() == 0 {
            std::thread::yield_now();
        }
        stand.pool.cancel(7);
        stand.push(&[(7, 1)]);
        stand.expect(&[(7, 100), (7, 1)]);
        stand.open();
        stand.expect(&[(2, 9)]);
    }

    /// Goal: what is done when the pool is idle is done then, and again after each time that it was
    /// busy. Method: no idle time at all; while one job hangs, others end.
    #[test]
    fn the_pool_is_idle_when_no_job_waits_or_is_done() {
        let stand = Stand::new(Duration::ZERO);
        assert!(!stand.idles.recv_blocking().unwrap());
        stand.push(&[(3, 0)]);
        for number in 0..20 {
            stand.push(&[(6, number)]);
            stand.expect(&[(6, number)]);
        }
        stand.open();
        stand.expect(&[(3, 0)]);
        assert!(!stand.idles.recv_blocking().unwrap());
    }

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
