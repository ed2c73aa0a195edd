//! The loop: events of the board and of the link go into the core and the session, and their
//! outputs are performed. No policy here: no retry count, no ordering, no "if offline". Before the loop
//! the parts are created (`build`) and running containers are adopted (`recover`); after it comes only
//! the next agent in the same process (`handover`).

mod answers;
mod build;
mod certificate;
mod flash;
mod handover;
pub mod log_calls;
mod records;
mod recover;
mod uplink;
pub mod workers;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_channel::{Receiver, Sender};
use async_executor::LocalExecutor;
use edge_core::limits::AGENT_OPEN_FILES;
use edge_core::{Agent, EXIT_NOT_RUN, Fault, Input, Output, Signal};
use edge_proto::frame::Incarnation;
use edge_proto::hash::Hash16;
use edge_proto::key::Uid;
use edge_proto::lanes::{Lanes, Limits};
use edge_proto::session::{BlobInput, LinkInput, Node, StateInput};
use edge_proto::sorted::SortedMap;
use smol::future::or;
use smol::{Async, Timer};

use crate::board::clock::Clock;
use crate::board::config::Config;
use crate::driver::log_calls::LogCalls;
use crate::driver::workers::{Containers, RuntimeJob, StoreDone, StoreJob};
use crate::link::connection::{Connect, LinkEvent, LinkSender};
use crate::local::read_api::{self, Request};
use crate::local::workload_api::{self, Api};
use crate::paths;
use crate::storage::lock;
use crate::storage::outbox;
use crate::sys;
use crate::worker::pool::Pool;
use crate::worker::{Jobs, Watch};
use crate::workload::logs;
use crate::workload::reaper::Reaper;
use crate::workload::runtime::Runtime;
use certificate::Targets;
use handover::Handover;

/// Version of the package.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// One event of the loop.
enum Event {
    Link(LinkEvent),
    Store(StoreDone),
    Runtime(Input),
    Outbox(outbox::Done),
    Local(Request),
    Exits,
    Time,
}

struct Driver {
    config: Config,
    clock: Clock,
    start: Instant,
    agent: Agent,
    session: Node,
    node: String,
    link: Option<LinkSender>,
    lanes: Lanes,
    /// Those that hold in them.
    limits: Limits,
    send_at: Option<u64>,
    connects: Option<Sender<Connect>>,
    /// `None` before the join.
    targets: Option<Targets>,
    link_events: Sender<LinkEvent>,
    in_sync: bool,
    /// Spec hash of each running container.
    running: SortedMap<(Uid, String), Hash16>,
    reaper: Reaper,
    runtime: Runtime,
    runtime_jobs: Pool<Containers>,
    store_jobs: Jobs<StoreJob>,
    log_calls: LogCalls,
    outbox_jobs: Jobs<outbox::Job>,
    watch: Watch,
    /// When a job exceeds its deadline.
    watch_at: Option<Instant>,
    /// The outbox that the session knows, by its id.
    incarnation: Incarnation,
    outbox_report: outbox::Shared,
    /// Latest time at which the agent replaces itself, see [`handover`].
    hand_over_by: Option<u64>,
    /// What the agent before this one has left, until it is known what runs.
    handed_over: Handover,
    /// Delayed until then: starts, and new files of volumes.
    held_jobs: Vec<RuntimeJob>,
}

/// Runs the agent until the process is ended.
///
/// # Errors
/// Why it cannot start, human-readable.
pub fn run(config: Config) -> Result<(), String> {
    // Without it exit codes of containers by runc are unknown, but they still run.
    if let Err(error) = nix::sys::prctl::set_child_subreaper(true) {
        log::warn!("subreaper_failed error={}", error.desc());
    }
    // With fewer descriptors it runs as many containers as it can hold.
    if let Err(error) = sys::raise_open_files(AGENT_OPEN_FILES) {
        log::warn!("open_files_not_raised error={error}");
    }
    let _alone = lock::take(&config.state_dir, &config.run_dir)?;
    // Before any thread is started.
    let before = Handover::take().unwrap_or_default();
    let (mut driver, events) = build::build(config)?;
    driver.recover(before);
    driver.connect();
    driver.settle();
    let (requests, local_requests) = async_channel::bounded(read_api::CONNECTIONS_MAX);
    let listener =
        read_api::listen(&driver.config.run_dir).map_err(|error| failed("local socket", &error))?;
    let exits = driver.reaper.readiness().and_then(Async::new);
    let exits = exits.map_err(|error| failed("reaper", &error))?;
    log::info!("agent_started node={} version={VERSION}", driver.node);

    let api_listener = workload_api::listen(&driver.config.run_dir)
        .map_err(|error| failed("api socket", &error))?;
    let api = Api::new(
        driver.config.outbox.classes.clone(),
        driver.outbox_jobs.sender(),
        driver.outbox_report.clone(),
    );
    let executor = LocalExecutor::new();
    for place in &api.places {
        executor
            .spawn(workload_api::serve(&api_listener, &api, place))
            .detach();
    }
    for _ in 0..read_api::CONNECTIONS_MAX {
        executor
            .spawn(read_api::serve(&listener, &requests))
            .detach();
    }
    smol::block_on(executor.run(async {
        loop {
            let event = events
                .next(&local_requests, &exits, driver.deadline())
                .await;
            driver.handle(event);
            driver.watch_flash();
            driver.watch_workers();
            driver.settle();
            driver.hand_over(&events.runtime);
        }
    }))
}

/// Why the agent does not start, human-readable.
fn failed(what: &str, error: &dyn core::fmt::Display) -> String {
    [what, ": ", &error.to_string()].concat()
}

/// Where answers of the workers and events of the link arrive.
struct Events {
    link: Receiver<LinkEvent>,
    store: Receiver<StoreDone>,
    runtime: Receiver<Input>,
    outbox: Receiver<outbox::Done>,
}

impl Events {
    /// The next event, at the latest at `deadline`.
    async fn next(
        &self,
        local: &Receiver<Request>,
        exits: &Async<OwnedFd>,
        deadline: Option<Instant>,
    ) -> Event {
        or(
            or(async { Event::Link(next(&self.link).await) }, async {
                Event::Store(next(&self.store).await)
            }),
            or(
                or(
                    or(async { Event::Runtime(next(&self.runtime).await) }, async {
                        Event::Outbox(next(&self.outbox).await)
                    }),
                    async { Event::Local(next(local).await) },
                ),
                or(
                    async {
                        // An error would be a closed descriptor, which is ours.
                        exits.readable().await.ok();
                        Event::Exits
                    },
                    async {
                        driver_timer(deadline).await;
                        Event::Time
                    },
                ),
            ),
        )
        .await
    }
}

/// The next message; a sender that is gone (a thread of ours ended) never sends again.
async fn next<T>(receiver: &Receiver<T>) -> T {
    match receiver.recv().await {
        Ok(message) => message,
        Err(_) => std::future::pending().await,
    }
}

async fn driver_timer(deadline: Option<Instant>) {
    match deadline {
        Some(at) => drop(Timer::at(at).await),
        None => std::future::pending().await,
    }
}

fn random() -> Option<u64> {
    let mut bytes = [0; 8];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes).ok()?;
    Some(u64::from_le_bytes(bytes))
}

impl Driver {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn deadline(&self) -> Option<Instant> {
        let calls = self.log_calls.deadline();
        let earliest = [
            self.agent.deadline(),
            self.session.deadline(),
            self.send_at,
            calls,
            self.hand_over_deadline(),
        ];
        let at = earliest.into_iter().flatten().min();
        let at = at.and_then(|at| self.start.checked_add(Duration::from_millis(at)));
        let grows_at = self.runtime_jobs.grows_at();
        [at, self.watch_at, grows_at].into_iter().flatten().min()
    }

    fn handle(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::Link(event) => self.handle_link(now, event),
            Event::Store(done) => self.handle_store(now, done),
            Event::Runtime(input) => self.handle_runtime(now, input),
            Event::Outbox(done) => self.handle_outbox(now, done),
            Event::Local(request) => self.handle_local(request),
            Event::Exits => {
                for exit in self.reaper.drain() {
                    self.exited(exit.uid, exit.container, exit.code);
                }
                if self.reaper.take_hang_up() {
                    self.want_hand_over();
                }
            }
            Event::Time => {
                self.agent.handle(now, Input::Tick);
                self.session.handle(now, LinkInput::Tick);
            }
        }
    }

    fn handle_store(&mut self, now: u64, done: StoreDone) {
        match done {
            StoreDone::Applied { ticket, applied } => {
                for (key, payload) in applied {
                    let payload = payload.and_then(Result::ok);
                    self.agent.handle(now, Input::Desired(key, payload));
                }
                let refused = Vec::new();
                self.session
                    .handle(now, StateInput::Applied { ticket, refused });
            }
            StoreDone::Ahead(pods) => {
                for (key, payload) in pods {
                    self.agent.handle(now, Input::Desired(key, payload));
                }
            }
            StoreDone::Have(sha256, bytes) => {
                self.session.handle(now, BlobInput::Have { sha256, bytes });
            }
            StoreDone::Unwritable(reason) => {
                if let Some(reason) = &reason {
                    log::error!("store_write_failed error={reason}");
                }
                self.fault(Fault::StoreUnwritable, reason);
            }
        }
    }

    fn handle_runtime(&mut self, now: u64, input: Input) {
        if let Input::Started {
            uid,
            container,
            spec,
            result,
            ..
        } = &input
        {
            match result {
                Ok(pid) => {
                    let key = (*uid, container.clone());
                    return self.handle_started(key, *spec, *pid, input);
                }
                Err(failure) if failure.counts_as_run => {
                    let code = Some(EXIT_NOT_RUN);
                    self.runtime.note_end(*uid, container, *spec, code, false);
                }
                Err(_) => {}
            }
        }
        self.agent.handle(now, input);
    }

    fn handle_started(&mut self, key: (Uid, String), spec: Hash16, pid: u32, input: Input) {
        let watched = self.reaper.watch(key.0, &key.1, pid);
        self.running.insert(key.clone(), spec);
        self.agent.handle(self.now(), input);
        if let Err(code) = watched {
            self.exited(key.0, key.1, code);
        }
    }

    fn exited(&mut self, uid: Uid, container: String, code: Option<i32>) {
        let key = (uid, container);
        let ran = self.running.remove(&key);
        let (uid, container) = key;
        let oom = ran.is_some_and(|hash| self.runtime.oom_killed(uid, &container, hash));
        if let Some(hash) = ran {
            self.runtime.note_end(uid, &container, hash, code, oom);
        }
        self.agent.handle(
            self.now(),
            Input::Exited {
                uid,
                container,
                code,
                oom,
            },
        );
    }

    fn fault(&mut self, fault: Fault, message: Option<String>) {
        let input = Input::Fault(fault, message);
        self.agent.handle(self.now(), input);
    }

    /// Performs the outputs of the core and the session until there are none.
    fn settle(&mut self) {
        loop {
            self.store_jobs.flush();
            self.outbox_jobs.flush();
            if let Some(output) = self.agent.poll() {
                self.perform(output);
            } else if let Some(output) = self.session.poll() {
                self.perform_session(output);
            } else if !self.pump_log_calls() {
                break;
            }
        }
        self.pump_lanes();
    }

    fn perform(&mut self, output: Output) {
        match output {
            Output::Discover => self.discover(),
            Output::PreparePod { uid, logs_bytes } => {
                self.runtime_jobs
                    .push(RuntimeJob::PreparePod { uid, logs_bytes });
            }
            Output::UpdateConfig { uid, volumes } => {
                self.push_start(RuntimeJob::UpdateConfig(uid, volumes));
            }
            Output::Start(spec) => self.push_start(RuntimeJob::Start(spec, None)),
            Output::CancelStarts(uid) => self.runtime_jobs.cancel(uid),
            Output::Signal {
                uid,
                container,
                signal: Signal::Terminate,
                ..
            } => self.reaper.terminate(uid, &container),
            // Here and not in the worker, which may be busy with an image for minutes.
            Output::Signal {
                uid,
                container,
                spec,
                signal: Signal::Kill,
            } => self.runtime.kill(uid, &container, spec),
            Output::Remove { uid, container } => {
                self.runtime_jobs.push(RuntimeJob::Remove(uid, container));
            }
            Output::RemovePod { uid, images_in_use } => {
                self.runtime_jobs
                    .push(RuntimeJob::RemovePod(uid, images_in_use));
            }
            Output::TrimLog {
                uid,
                container,
                log_bytes,
            } => {
                let file = paths::log(&self.config.run_dir, uid, &container);
                // A container that has written nothing yet has no file.
                logs::trim(&file, log_bytes).ok();
            }
            Output::Report(key, payload) => {
                let now = self.now();
                let input = match payload {
                    Some(payload) => StateInput::Put {
                        key,
                        payload: Arc::from(payload),
                    },
                    None => StateInput::Delete { key },
                };
                self.session.handle(now, input);
            }
            Output::Event(event) if event.is_warning() => log::warn!("{event}"),
            Output::Event(event) => log::info!("{event}"),
            Output::Uplink(output) => self.perform_uplink(output),
            Output::FlashOverBudget(over) => self.store_jobs.push(StoreJob::OverBudget(over)),
            Output::ReadWear => self.read_wear(),
            Output::RepairStore => self.store_jobs.push(StoreJob::Repair),
        }
    }
}
