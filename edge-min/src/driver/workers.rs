//! Work of the store's thread, and of the threads for containers and images. [`crate::worker`]
//! has the model of a worker.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use async_channel::{Receiver, Sender};
use edge_core::limits::CLEAR_AFTER_MS;
use edge_core::spec::{ContainerSpec, Content, Volume};
use edge_core::write_scheduler::{self as scheduler, WriteScheduler};
use edge_core::{Fault, Input, StartFailure};
use edge_proto::hash::Hash32;
use edge_proto::key::{Key, Uid};
use edge_proto::session::Payload;

use super::Driver;
use crate::image::error::ImageError;
use crate::image::images::{Image, Images};
use crate::storage::store::{Applied, Store};
use crate::worker::pool::{CROWDED_AFTER, Pool, Progress, ProgressOf, Work};
use crate::worker::{self, QUEUE_TIMEOUT, Stop, Thread, Watch};
use crate::workload::runtime::Runtime;
use crate::workload::spec::{Bind, Rootfs, Spec};
use crate::workload::volume;

/// Stack of a worker: JSON, tar and deflate in debug builds need the most.
const STACK_BYTES: usize = 512 * 1024;

/// Job of the store's thread.
pub enum StoreJob {
    /// Make these changes durable.
    Apply {
        /// Returned in the answer.
        ticket: u32,
        /// New payload by key; `None` deletes.
        changes: Vec<(Key, Option<Payload>)>,
        /// Epoch to store with them.
        epoch: u64,
    },
    /// A large object is wanted.
    BlobWanted(Hash32, u32),
    /// The cloud has confirmed the set: damaged files are overwritten.
    Repair,
    /// Whether the flash budget of the day is used up.
    OverBudget(bool),
    /// A piece of the wanted object: hash, offset, bytes.
    Piece(Hash32, u32, Vec<u8>),
}

/// Answer of the store's thread.
pub enum StoreDone {
    /// The changes are durable.
    Applied {
        /// As in the job.
        ticket: u32,
        /// The objects as they are now.
        applied: Vec<Applied>,
    },
    /// Stored bytes of the wanted object.
    Have(Hash32, u32),
    /// Removed pods of a change that is not durable yet, as the cloud has them now.
    Ahead(Vec<(Key, Option<Vec<u8>>)>),
    /// A write failed and is retried; `None` when writes succeed again.
    Unwritable(Option<String>),
}

/// Starts the store's thread.
///
/// # Errors
/// The system's, when no thread can be started.
pub fn spawn_store(
    store: Store,
    jobs: Receiver<StoreJob>,
    done: Sender<StoreDone>,
    watch: Thread,
) -> io::Result<()> {
    let mut thread = StoreThread {
        store,
        scheduler: WriteScheduler::default(),
        start: Instant::now(),
        wanted: 0,
        done,
        watch,
    };
    worker::spawn("store", STACK_BYTES, move || thread.run(&jobs))
}

/// Executes the decisions of [`WriteScheduler`].
struct StoreThread {
    store: Store,
    scheduler: WriteScheduler,
    start: Instant,
    /// Length of the large object that is being received.
    wanted: u32,
    done: Sender<StoreDone>,
    watch: Thread,
}

impl StoreThread {
    /// Runs until there are no more jobs, or the driver is gone.
    fn run(&mut self, jobs: &Receiver<StoreJob>) {
        if self.store.cache_behind() {
            self.schedule(scheduler::Input::Changed);
        }
        // A job whose write failed: no other job is done before it.
        let mut failed = None;
        loop {
            let job = if failed.is_some() {
                self.sleep();
                self.schedule(scheduler::Input::Tick);
                match self.scheduler.poll() {
                    Some(scheduler::Output::Retry) => failed.take(),
                    _ => None,
                }
            } else {
                match worker::next(jobs, self.deadline(), &self.watch) {
                    Some(Ok(job)) => Some(job),
                    Some(Err(_)) => return,
                    None => {
                        self.schedule(scheduler::Input::Tick);
                        None
                    }
                }
            };
            let mut reason = None;
            if let Some(job) = job {
                match self.perform(&job) {
                    Ok(answer) => {
                        self.schedule(scheduler::Input::Written);
                        if let Some(answer) = answer
                            && self.done.send_blocking(answer).is_err()
                        {
                            return;
                        }
                    }
                    Err(error) => {
                        reason = Some(error.to_string());
                        failed = Some(job);
                        self.schedule(scheduler::Input::Failed);
                    }
                }
            }
            match self.scheduler.poll() {
                Some(scheduler::Output::Failing | scheduler::Output::Recovered) => {
                    self.done.send_blocking(StoreDone::Unwritable(reason)).ok();
                    if let Some(StoreJob::Apply { changes, .. }) = &failed {
                        let pods = scheduler::ends_before_write(changes);
                        if !pods.is_empty() {
                            self.done.send_blocking(StoreDone::Ahead(pods)).ok();
                        }
                    }
                }
                Some(scheduler::Output::Cache) => {
                    self.watch.begin(Instant::now() + QUEUE_TIMEOUT);
                    if let Err(error) = self.store.write_cache() {
                        log::warn!("cache_not_written error={error}");
                        self.schedule(scheduler::Input::CacheFailed);
                    }
                }
                Some(scheduler::Output::Retry) | None => {}
            }
        }
    }

    fn schedule(&mut self, input: scheduler::Input) {
        let now = self.start.elapsed().as_millis();
        self.scheduler
            .handle(u64::try_from(now).unwrap_or(u64::MAX), input);
    }

    /// The answer, or why nothing has changed and the job has to be repeated.
    fn perform(&mut self, job: &StoreJob) -> io::Result<Option<StoreDone>> {
        let answer = match job {
            StoreJob::Apply {
                ticket,
                changes,
                epoch,
            } => {
                let applied = self.store.apply(changes.clone(), *epoch)?;
                self.schedule(scheduler::Input::Changed);
                StoreDone::Applied {
                    ticket: *ticket,
                    applied,
                }
            }
            StoreJob::Repair => {
                if let Err(error) = self.store.repair() {
                    log::warn!("store_not_repaired error={error}");
                }
                return Ok(None);
            }
            StoreJob::BlobWanted(hash, length) => {
                self.wanted = *length;
                StoreDone::Have(*hash, self.store.blob_have(*hash, *length))
            }
            StoreJob::Piece(hash, offset, bytes) => {
                let have = self.store.blob_piece(*hash, *offset, bytes, self.wanted)?;
                StoreDone::Have(*hash, have)
            }
            StoreJob::OverBudget(over) => {
                self.schedule(scheduler::Input::OverBudget(*over));
                return Ok(None);
            }
        };
        Ok(Some(answer))
    }

    fn deadline(&self) -> Option<Instant> {
        let at = Duration::from_millis(self.scheduler.deadline()?);
        self.start.checked_add(at)
    }

    fn sleep(&self) {
        self.watch.end();
        if let Some(at) = self.deadline() {
            std::thread::sleep(at.saturating_duration_since(Instant::now()));
        }
        self.watch.begin(Instant::now() + QUEUE_TIMEOUT);
    }
}

impl Driver {
    /// Sees to it that jobs that hang delay no other pod, and reports threads whose job is over its
    /// deadline. To be called after every event.
    pub(super) fn watch_workers(&mut self) {
        self.runtime_jobs.grow();
        let (changed, next) = self.watch.look();
        self.watch_at = next;
        let Some(late) = changed else { return };
        let late = late.join(", ");
        if late.is_empty() {
            log::warn!("workers_go_on");
        } else {
            log::error!("workers_stalled threads={late}");
        }
        let late = Some(late).filter(|late| !late.is_empty());
        self.fault(Fault::WorkerStalled, late);
    }
}

/// A job for containers.
pub enum RuntimeJob {
    /// Create the pod's directory.
    PreparePod {
        /// UID of the pod.
        uid: Uid,
        /// Size of the tmpfs of its logs.
        logs_bytes: u64,
    },
    /// Rewrite the files of volumes.
    UpdateConfig(Uid, Vec<Volume>),
    /// Start a container, with its image if it was just unpacked.
    Start(Box<ContainerSpec>, Option<Image>),
    /// Remove what a container left behind.
    Remove(Uid, String),
    /// Remove what a pod left behind; contains the images of the pods that stay.
    RemovePod(Uid, Vec<String>),
}

/// A job that may take minutes.
pub enum LongJob {
    /// Unpack the image of a container that starts then.
    Unpack(Box<ContainerSpec>),
    /// Remove layers that none of these images uses, if space is short.
    Collect(Vec<String>),
}

/// Everything that the threads for containers and images share; each answer is an input of the
/// core.
pub struct Containers {
    runtime: Runtime,
    images: Images,
}

/// Starts the threads for containers and images.
///
/// # Errors
/// The system's, when no thread can be started.
pub fn spawn_containers(
    runtime: Runtime,
    images: Images,
    watch: &Watch,
    done: Sender<Input>,
) -> io::Result<Pool<Containers>> {
    let work = Containers { runtime, images };
    let times = (Duration::from_millis(CLEAR_AFTER_MS), CROWDED_AFTER);
    let names = ("runtime", "runtime-long");
    Pool::spawn(names, STACK_BYTES, work, times, watch, done)
}

impl Work for Containers {
    type Key = Uid;
    type Job = RuntimeJob;
    type LongJob = LongJob;
    type Answer = Input;

    fn key(&self, job: &RuntimeJob) -> Uid {
        match job {
            RuntimeJob::Start(start, _) => start.uid,
            RuntimeJob::PreparePod { uid, .. }
            | RuntimeJob::UpdateConfig(uid, _)
            | RuntimeJob::Remove(uid, _)
            | RuntimeJob::RemovePod(uid, _) => *uid,
        }
    }

    fn perform(&self, job: RuntimeJob, stop: &Stop) -> ProgressOf<Self> {
        let runtime = &self.runtime;
        match job {
            RuntimeJob::PreparePod { uid, logs_bytes } => {
                let result = runtime.prepare_pod(uid, logs_bytes);
                let result = result.map_err(|error| error.to_string());
                Progress::Done(Some(Input::PodPrepared(uid, result)))
            }
            RuntimeJob::UpdateConfig(uid, volumes) => {
                for Volume { name, content } in volumes {
                    let dir = runtime.volume_dir(uid, &name);
                    let Content::Files { files, mode, .. } = content else {
                        continue;
                    };
                    // A volume that no container has mounted yet is written at its start.
                    if dir.exists()
                        && let Err(error) = volume::write_files(&dir, &files, mode)
                    {
                        log::warn!("volume_not_updated pod={uid} volume={name} error={error}");
                    }
                }
                Progress::Done(None)
            }
            RuntimeJob::Start(start, unpacked) => {
                let image = match (unpacked, &start.image) {
                    (None, Some(wanted)) => match self.images.ready(&wanted.reference) {
                        Ok(None) => return Progress::Long(LongJob::Unpack(start)),
                        found => found,
                    },
                    (image, _) => Ok(image),
                };
                Progress::Done(Some(self.start(*start, image, stop)))
            }
            RuntimeJob::Remove(uid, container) => {
                let result = runtime.remove(uid, &container);
                let result = result.map_err(|error| error.to_string());
                Progress::Done(Some(Input::Removed(uid, container, result)))
            }
            RuntimeJob::RemovePod(uid, in_use) => {
                let result = runtime.remove_pod(uid).map_err(|error| error.to_string());
                let removed = Input::PodRemoved(uid, result);
                Progress::DoneThen(removed, LongJob::Collect(in_use))
            }
        }
    }

    fn perform_long(&self, job: LongJob, stop: &Stop) -> ProgressOf<Self> {
        match job {
            LongJob::Unpack(start) => {
                let image = start.image.as_ref().map(|image| {
                    let (reference, in_use) = (&image.reference, &image.in_use);
                    let wanted = stop.check();
                    wanted.map_err(|error| ImageError::Io(reference.into(), error))?;
                    self.images.ensure(reference, in_use, stop)
                });
                match image.transpose() {
                    // The program is started by a thread for short jobs: this one is for the next image.
                    Ok(image) => Progress::Short(RuntimeJob::Start(start, image.flatten())),
                    Err(error) => Progress::Done(Some(self.start(*start, Err(error), stop))),
                }
            }
            LongJob::Collect(in_use) => {
                if let Err(error) = self.images.collect_unused(&in_use) {
                    log::warn!("layers_remain error={error}");
                }
                Progress::Done(None)
            }
        }
    }

    fn idle(&self) {
        self.images.clear_remains();
    }
}

impl Containers {
    fn start(
        &self,
        start: ContainerSpec,
        image: Result<Option<Image>, ImageError>,
        stop: &Stop,
    ) -> Input {
        let result = image
            .map_err(|error| StartFailure {
                reason: error.reason().to_owned(),
                message: error.to_string(),
                counts_as_run: false,
            })
            .and_then(|image| spec(&self.runtime, image, &start))
            .and_then(|spec| self.runtime.start(&spec, stop));
        Input::Started {
            uid: start.uid,
            container: start.container,
            run: start.run,
            spec: start.hash,
            result,
        }
    }
}

/// The spec with its image and its volumes in place.
fn spec<'a>(
    runtime: &Runtime,
    image: Option<Image>,
    start: &'a ContainerSpec,
) -> Result<Spec<'a>, StartFailure> {
    let config = StartFailure::config;
    let (rootfs, image) = image
        .map(|image| {
            let (layers, pin) = (image.layers, image.pin);
            (Rootfs { layers, pin }, image.config)
        })
        .unzip();
    let process = start.process(image)?;
    let mut binds = Vec::with_capacity(start.mounts.len());
    for (index, mount) in start.mounts.iter().enumerate() {
        let Volume { name, content } = &*mount.volume;
        let dir = match content {
            Content::Empty { memory: false, .. } => runtime
                .scratch_dir(start.uid, name)
                .map_err(|error| config(["emptyDir: ", &error.to_string()].concat()))?,
            _ => runtime.volume_dir(start.uid, name),
        };
        let mut source = volume::prepare(&dir, content).map_err(config)?;
        if !mount.sub_path.is_empty() {
            // The name of a volume never begins with a dot. Unmounted with the volumes of the pod.
            let place = [".", &start.container, ".", &index.to_string()].concat();
            let place = runtime.volume_dir(start.uid, &place);
            volume::sub_path(&source, &mount.sub_path, mount.new_dir_mode, &place)
                .map_err(config)?;
            source = place;
        }
        binds.push(Bind {
            source,
            target: PathBuf::from(&mount.target),
            read_only: mount.read_only,
        });
    }
    Ok(Spec {
        resolved: start,
        process,
        rootfs,
        binds,
    })
}
