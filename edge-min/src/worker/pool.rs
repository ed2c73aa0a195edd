//! Threads that share jobs: those of one key (a pod) are done in order and never two at once, those of
//! different keys do not wait for each other. A job that may take minutes, such as an unpacking, is handed
//! on to the one thread for long jobs, so it keeps no short one waiting.
//!
//! A job may hang until its deadline, and longer in the kernel. When all threads for short jobs have been
//! busy for a while and another job waits, the pool gets more of them ([`Pool::grow`]), so that what hangs
//! for some pods delays the others by that while at most.
//!
//! Bound: one thread for long jobs, and [`SHORT_THREADS`] for short ones, up to [`SHORT_THREADS_MAX`] while
//! others hang; what waits is at most what the core has outstanding, which its own caps bound. An idle
//! thread sleeps until there is a job.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_channel::Sender;

use super::{Stop, Thread, Watch, spawn};

/// Threads of a pool for short jobs: one that waits for processes to end (2 s) does not delay the others.
pub const SHORT_THREADS: usize = 2;
/// Threads for short jobs while some of them hang. With as many pods that hang, the others wait.
pub const SHORT_THREADS_MAX: usize = 16;
/// Time in which no thread for short jobs takes or ends one, after which there are too few of them.
pub const CROWDED_AFTER: Duration = Duration::from_secs(1);
/// A short job of a pool: on a slow board under load a start takes about a second.
pub const SHORT_TIMEOUT: Duration = Duration::from_secs(120);
/// A long job of a pool: 32 layers of 100 MiB at 1 MiB/s. Layers that an unpacking has finished stay, so
/// the next attempt continues from there.
pub const LONG_TIMEOUT: Duration = Duration::from_secs(3600);

/// Time in which a job of a pool must end after its deadline, when the program that it waits for is killed.
/// One that needs longer is reported.
const STOP_GRACE: Duration = Duration::from_secs(10);

/// How far a job came.
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

/// What a pool does.
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

/// A job that waits.
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
    /// Threads for short jobs, and those of them that wait for one or begin.
    threads: usize,
    idle: usize,
    /// Of threads that have exited, for those that come.
    spare: Vec<Thread>,
    /// When a thread has last taken a short job, or ended one.
    moved_at: Instant,
}

impl<W: Work> State<W> {
    /// Places of the short jobs whose key is free, the first of each key.
    fn free(&self) -> impl Iterator<Item = usize> {
        let all = self.waiting.iter().enumerate();
        all.filter(|(index, one)| {
            let mut busy = self.busy.iter().map(|(key, _)| key);
            let mut before = self.waiting.iter().take(*index).map(|one| &one.key);
            !busy.any(|key| *key == one.key) && !before.any(|key| *key == one.key)
        })
        .map(|(index, _)| index)
    }

    /// How many jobs threads could take at once.
    fn takeable(&self) -> usize {
        let long = self.long.iter();
        let given_up = long.filter(|one| one.cancelled.load(Relaxed));
        self.free().count() + given_up.count()
    }

    /// Takes the first job whose key is free, and its key. A long job that is cancelled comes first: its
    /// key has been taken, and it may have to wait long for its own thread.
    fn take(&mut self) -> Option<Taken<W>> {
        let mut long = self.long.iter();
        let given_up = long.position(|one| one.cancelled.load(Relaxed));
        if let Some(one) = given_up.and_then(|index| self.long.remove(index)) {
            return Some(Taken::Long(one));
        }
        let index = self.free().next()?;
        let one = self.waiting.remove(index)?;
        self.busy.push((one.key, Arc::clone(&one.cancelled)));
        Some(Taken::Short(one))
    }
}

struct Shared<W: Work> {
    work: W,
    name: &'static str,
    stack_bytes: usize,
    watch: Watch,
    crowded_after: Duration,
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
        (idle_after, crowded_after): (Duration, Duration),
        watch: &Watch,
        done: Sender<W::Answer>,
    ) -> io::Result<Self> {
        let now = Instant::now();
        let shared = Arc::new(Shared {
            work,
            name: names.0,
            stack_bytes,
            watch: watch.clone(),
            crowded_after,
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                long: VecDeque::new(),
                busy: Vec::with_capacity(SHORT_THREADS + 1),
                idle_at: now.checked_add(idle_after),
                threads: 0,
                idle: 0,
                spare: Vec::new(),
                moved_at: now,
            }),
            changed: Condvar::new(),
            idle_after,
            done,
        });
        for _ in 0..SHORT_THREADS {
            shared.add_thread()?;
        }
        let (long, thread) = (Arc::clone(&shared), watch.thread(names.1));
        spawn(names.1, stack_bytes, move || long.run_long(&thread))?;
        Ok(Self(shared))
    }

    /// When [`Self::grow`] is due: a job waits, and all threads are busy.
    #[must_use]
    pub fn grows_at(&self) -> Option<Instant> {
        let state = self.0.lock();
        if state.idle > 0 || state.threads >= SHORT_THREADS_MAX || state.takeable() == 0 {
            return None;
        }
        state.moved_at.checked_add(self.0.crowded_after)
    }

    /// Adds a thread for each job that waits, if they have waited long enough. To be called after every
    /// event.
    pub fn grow(&self) {
        let now = Instant::now();
        if self.grows_at().is_none_or(|at| at > now) {
            return;
        }
        let state = self.0.lock();
        let room = SHORT_THREADS_MAX.saturating_sub(state.threads);
        let count = state.takeable().min(room);
        drop(state);
        for _ in 0..count {
            if let Err(error) = self.0.add_thread() {
                log::warn!("no_more_threads error={error}");
                // Not at once again.
                self.0.lock().moved_at = now;
                return;
            }
        }
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

    /// Starts one more thread for short jobs.
    fn add_thread(self: &Arc<Self>) -> io::Result<()> {
        let mut state = self.lock();
        state.threads += 1;
        state.idle += 1;
        drop(state);
        let shared = Arc::clone(self);
        let started = spawn(self.name, self.stack_bytes, move || {
            let mut state = shared.lock();
            state.idle -= 1;
            let spare = state.spare.pop();
            drop(state);
            // Only by a thread that runs: those that cannot be started must not fill the table.
            let thread = spare.unwrap_or_else(|| shared.watch.thread(shared.name));
            shared.run_short(thread);
        });
        if started.is_err() {
            let mut state = self.lock();
            state.threads -= 1;
            state.idle -= 1;
        }
        started
    }

    /// What a thread for short jobs does next; `None` when enough others wait.
    fn take_short(&self) -> Option<Taken<W>> {
        let mut state = self.lock();
        loop {
            if let Some(taken) = state.take() {
                state.moved_at = Instant::now();
                return Some(taken);
            }
            if state.idle >= SHORT_THREADS {
                return None;
            }
            state.idle += 1;
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    fn run_short(&self, thread: Thread) {
        loop {
            let Some(taken) = self.take_short() else {
                let mut state = self.lock();
                state.threads -= 1;
                state.spare.push(thread);
                return;
            };
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
        let now = Instant::now();
        state.idle_at = now.checked_add(self.idle_after);
        state.moved_at = now;
        drop(state);
        self.changed.notify_all();
        true
    }
}

#[cfg(test)]
mod tests {
    use async_channel::Receiver;

    use super::*;

    /// Job `(key, number)`. `(1, 0)` is long and `(1, 9)` follows it, `(2, 0)` has a long one after it,
    /// `(3, 0)` and from `(20, 0)` on hang; these end when the test opens the gate once for each. `(7, 0)` is long and needs no
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
                (3 | 20.., 0) => {
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
            let (open, gate) = async_channel::bounded(32);
            let (done, answers) = async_channel::bounded(64);
            let (idles, idle) = async_channel::bounded(64);
            let hangs = AtomicBool::new(false);
            let work = Steps { gate, hangs, idles };
            let watch = Watch::new(|| {});
            let names = ("test", "test-long");
            let times = (idle_after, Duration::ZERO);
            let pool = Pool::spawn(names, 64 * 1024, work, times, &watch, done).unwrap();
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

    /// Goal: jobs that hang delay no other key, and the threads for that go again. Method: more jobs hang
    /// than the pool has threads, then as many as it may have; one that waits is answered when it grows.
    #[test]
    fn the_pool_grows_while_jobs_hang_and_shrinks_again() {
        let stand = Stand::new(NEVER);
        let threads = || stand.pool.0.lock().threads;
        let until = |reached: &dyn Fn(&State<Steps>) -> bool| {
            while !reached(&stand.pool.0.lock()) {
                std::thread::yield_now();
            }
        };
        stand.push(&[(20, 0), (21, 0)]);
        until(&|state| state.busy.len() == 2);
        stand.pool.grow();
        assert_eq!(
            (threads(), stand.pool.grows_at()),
            (2, None),
            "nothing waits"
        );
        stand.push(&[(22, 0), (23, 0), (4, 1), (4, 2)]);
        assert!(stand.pool.grows_at().is_some());
        assert_eq!(threads(), 2);
        stand.pool.grow();
        assert_eq!(threads(), 5, "one for each key that waits");
        stand.expect(&[(4, 1), (4, 2)]);

        let more = 24..20 + u8::try_from(SHORT_THREADS_MAX).unwrap();
        more.for_each(|key| stand.push(&[(key, 0)]));
        let all_hang = |state: &State<Steps>| state.busy.len() == SHORT_THREADS_MAX;
        while !all_hang(&stand.pool.0.lock()) {
            stand.pool.grow();
            std::thread::yield_now();
        }
        stand.push(&[(5, 1)]);
        stand.pool.grow();
        assert_eq!(
            (threads(), stand.pool.grows_at()),
            (SHORT_THREADS_MAX, None)
        );
        for _ in 0..SHORT_THREADS_MAX {
            stand.open();
        }
        until(&|state| state.threads == SHORT_THREADS && state.busy.is_empty());
        let answered = std::iter::from_fn(|| stand.answers.try_recv().ok());
        assert_eq!(answered.count(), SHORT_THREADS_MAX + 1);
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

    /// Goal: the idle work is done when the pool is idle, and again after each time that it was
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
}
