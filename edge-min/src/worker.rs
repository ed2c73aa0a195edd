//! The one model of the agent's workers, the threads that block so that the driver need not.
//!
//! A job is answered once. Store and outbox take their jobs in order from a bounded channel, by
//! [`Jobs`] and [`next`]: what they write is one file after the other. Containers and images are
//! jobs of a [`Pool`]: those of one key (a pod) are done in order and never two at once, those of
//! different keys do not wait for each other. A job that may take minutes, such as an unpacking, is
//! handed on to the pool's one thread for long jobs, so it keeps no short one waiting.
//!
//! Bound: the threads are started once and never exit ([`SHORT_THREADS`] and one of a pool); what
//! waits is at most what the core has outstanding, which its own caps bound. An idle thread sleeps
//! until there is a job.

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_channel::{Receiver, RecvError, Sender, TrySendError};

/// Messages in each channel between a worker and the driver.
pub const CHANNEL_MAX: usize = 64;
/// Threads of a pool for short jobs: one that waits for processes to end (2 s) delays nobody else.
pub const SHORT_THREADS: usize = 2;

/// Starts a thread that lives as long as the process.
///
/// # Errors
/// The system's, when no thread can be made.
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

/// A bounded channel to a worker, and what did not fit: at most what the core and the session
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

    /// For others who have jobs of this kind, and wait while the channel is full.
    #[must_use]
    pub fn sender(&self) -> Sender<T> {
        self.sender.clone()
    }

    /// Hands over a job, now or as soon as there is room.
    pub fn push(&mut self, job: T) {
        self.waiting.push_back(job);
        self.flush();
    }

    /// Hands over what waits, as far as there is room.
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

/// The next job; `None` when the time came first.
pub fn next<T>(jobs: &Receiver<T>, until: Option<Instant>) -> Option<Result<T, RecvError>> {
    let Some(at) = until else {
        return Some(jobs.recv_blocking());
    };
    smol::block_on(smol::future::or(async { Some(jobs.recv().await) }, async {
        smol::Timer::at(at).await;
        None
    }))
}

/// How far a short job came.
pub enum Progress<L, A> {
    /// It is done; some jobs have nothing to answer.
    Done(Option<A>),
    /// It takes long: the thread for long jobs does it, and no other of its key meanwhile.
    Long(L),
    /// It is done, and this long job follows for which no other waits.
    DoneThen(A, L),
}

/// What a pool does.
pub trait Work: Send + Sync + 'static {
    /// Whose jobs stay in order.
    type Key: Copy + Eq + Send;
    /// A job.
    type Job: Send;
    /// A job for the thread for long ones.
    type LongJob: Send;
    /// Its answer.
    type Answer: Send;

    /// Whose job it is.
    fn key(&self, job: &Self::Job) -> Self::Key;
    /// Does a job if that is short.
    fn perform(&self, job: Self::Job) -> Progress<Self::LongJob, Self::Answer>;
    /// Does a long job to its end.
    fn perform_long(&self, job: Self::LongJob) -> Option<Self::Answer>;
    /// Called once by the thread for long jobs, when it first had none for the pool's idle time.
    fn idle(&self) {}
}

/// A job that waits for the thread for long jobs, with the key that it holds.
type Long<W> = (Option<<W as Work>::Key>, <W as Work>::LongJob);

struct State<W: Work> {
    waiting: VecDeque<W::Job>,
    long: VecDeque<Long<W>>,
    /// Keys of the jobs that are being done, or that wait in `long`.
    busy: Vec<W::Key>,
}

struct Shared<W: Work> {
    work: W,
    state: Mutex<State<W>>,
    /// A job came, or a key became free.
    changed: Condvar,
    done: Sender<W::Answer>,
}

/// Hands jobs to the threads of a pool.
pub struct Pool<W: Work>(Arc<Shared<W>>);

impl<W: Work> Pool<W> {
    /// Starts the threads; the answers go to `done`, in the order in which the jobs end.
    ///
    /// # Errors
    /// The system's, when no thread can be made.
    pub fn spawn(
        name: &str,
        stack_bytes: usize,
        work: W,
        idle_after: Duration,
        done: Sender<W::Answer>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            work,
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                long: VecDeque::new(),
                busy: Vec::with_capacity(SHORT_THREADS + 1),
            }),
            changed: Condvar::new(),
            done,
        });
        for _ in 0..SHORT_THREADS {
            let shared = Arc::clone(&shared);
            spawn(name, stack_bytes, move || shared.run_short())?;
        }
        let long = Arc::clone(&shared);
        spawn(&[name, "-long"].concat(), stack_bytes, move || {
            long.run_long(idle_after);
        })?;
        Ok(Self(shared))
    }

    /// Hands over a job.
    pub fn push(&self, job: W::Job) {
        self.0.lock().waiting.push_back(job);
        self.0.changed.notify_all();
    }
}

impl<W: Work> Shared<W> {
    fn lock(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first job whose key is free; the key is taken with it.
    fn take_short(&self) -> (W::Key, W::Job) {
        let mut state = self.lock();
        loop {
            let free = |job: &W::Job| !state.busy.contains(&self.work.key(job));
            let found = state.waiting.iter().position(free);
            if let Some(job) = found.and_then(|index| state.waiting.remove(index)) {
                let key = self.work.key(&job);
                state.busy.push(key);
                return (key, job);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn run_short(&self) {
        loop {
            let (key, job) = self.take_short();
            let (answer, long, free) = match self.work.perform(job) {
                Progress::Done(answer) => (answer, None, true),
                Progress::Long(job) => (None, Some((Some(key), job)), false),
                Progress::DoneThen(answer, job) => (Some(answer), Some((None, job)), true),
            };
            if !self.finish(free.then_some(key), answer, long) {
                return;
            }
        }
    }

    fn run_long(&self, idle_after: Duration) {
        let mut idle_at = Instant::now().checked_add(idle_after);
        loop {
            let Some((key, job)) = self.take_long(idle_at) else {
                idle_at = None;
                self.work.idle();
                continue;
            };
            let answer = self.work.perform_long(job);
            if !self.finish(key, answer, None) {
                return;
            }
        }
    }

    /// The next long job; `None` when the time came first.
    fn take_long(&self, until: Option<Instant>) -> Option<Long<W>> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.long.pop_front() {
                return Some(job);
            }
            let Some(at) = until else {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            (state, _) = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Answers, and then frees the key: the answers of one key come in the order of its jobs.
    /// `false` when nobody takes answers any more.
    fn finish(
        &self,
        free: Option<W::Key>,
        answer: Option<W::Answer>,
        long: Option<Long<W>>,
    ) -> bool {
        if let Some(answer) = answer
            && self.done.send_blocking(answer).is_err()
        {
            return false;
        }
        let mut state = self.lock();
        if let Some(key) = free {
            state.busy.retain(|busy| *busy != key);
        }
        state.long.extend(long);
        drop(state);
        self.changed.notify_all();
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Job `(key, number)`. `(1, 0)` is long, `(2, 0)` has a long one after it, `(3, 0)` hangs; these
    /// end when the test opens the gate once for each.
    struct Steps {
        gate: Receiver<()>,
    }

    impl Work for Steps {
        type Key = u8;
        type Job = (u8, u8);
        type LongJob = (u8, u8);
        type Answer = (u8, u8);

        fn key(&self, job: &Self::Job) -> u8 {
            job.0
        }

        fn perform(&self, job: Self::Job) -> Progress<Self::LongJob, Self::Answer> {
            match job {
                (1, 0) => Progress::Long(job),
                (2, 0) => Progress::DoneThen(job, (2, 9)),
                (3, 0) => {
                    self.gate.recv_blocking().unwrap();
                    Progress::Done(Some(job))
                }
                _ => Progress::Done(Some(job)),
            }
        }

        fn perform_long(&self, job: Self::LongJob) -> Option<Self::Answer> {
            self.gate.recv_blocking().unwrap();
            Some(job)
        }
    }

    fn pool() -> (Pool<Steps>, Sender<()>, Receiver<(u8, u8)>) {
        let (open, gate) = async_channel::bounded(4);
        let (done, answers) = async_channel::bounded(16);
        let idle = Duration::from_secs(3600);
        let pool = Pool::spawn("test", 64 * 1024, Steps { gate }, idle, done).unwrap();
        (pool, open, answers)
    }

    /// Goal: an image that is unpacked for one pod keeps no other pod waiting, and the pod's own
    /// jobs in order. Method: a long job that ends only when the test says so; jobs of other keys
    /// are answered meanwhile, those of its own key are not, and follow it in order.
    #[test]
    fn a_long_job_delays_no_other_key_and_keeps_its_own_in_order() {
        let (pool, open, answers) = pool();
        for job in [(1, 0), (1, 1), (1, 2), (4, 0), (4, 1), (5, 0)] {
            pool.push(job);
        }
        let mut others: Vec<_> = (0..3).map(|_| answers.recv_blocking().unwrap()).collect();
        others.sort_unstable();
        assert_eq!(others, [(4, 0), (4, 1), (5, 0)]);
        assert!(answers.is_empty(), "the key of the long job is held");
        open.send_blocking(()).unwrap();
        for number in 0..3 {
            assert_eq!(answers.recv_blocking().unwrap(), (1, number));
        }
    }

    /// Goal: what follows a removal (the search for unused layers) is waited for by nobody. Method:
    /// as above, with a job whose long part comes after its answer.
    #[test]
    fn what_follows_an_answer_holds_no_key() {
        let (pool, open, answers) = pool();
        pool.push((2, 0));
        pool.push((2, 1));
        assert_eq!(answers.recv_blocking().unwrap(), (2, 0));
        assert_eq!(answers.recv_blocking().unwrap(), (2, 1));
        open.send_blocking(()).unwrap();
        assert_eq!(answers.recv_blocking().unwrap(), (2, 9));
    }

    /// Goal: one short job that hangs (a program that does not answer) costs one thread only.
    #[test]
    fn a_short_job_that_hangs_delays_its_own_key_only() {
        let (pool, open, answers) = pool();
        for job in [(3, 0), (3, 1), (6, 0), (6, 1)] {
            pool.push(job);
        }
        assert_eq!(answers.recv_blocking().unwrap(), (6, 0));
        assert_eq!(answers.recv_blocking().unwrap(), (6, 1));
        open.send_blocking(()).unwrap();
        assert_eq!(answers.recv_blocking().unwrap(), (3, 0));
        assert_eq!(answers.recv_blocking().unwrap(), (3, 1));
    }
}
