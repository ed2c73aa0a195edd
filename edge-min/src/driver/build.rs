//! Creates the parts of the driver: opens the stored state, starts the workers.

use std::path::Path;
use std::time::Instant;

use edge_core::{Agent, AgentConfig, HostPaths, Input};
use edge_proto::frame::Incarnation;
use edge_proto::key::Kind;
use edge_proto::lanes::{Lanes, Limits};
use edge_proto::object::NodeStatus;
use edge_proto::session::{Node, NodeConfig};
use edge_proto::sorted::SortedMap;

use super::handover::Handover;
use super::{Driver, Events, VERSION, failed, random, workers};
use crate::board::clock::Clock;
use crate::board::config::Config;
use crate::driver::log_calls::LogCalls;
use crate::image::images::Images;
use crate::paths;
use crate::storage::outbox;
use crate::storage::store::{Store, Stored};
use crate::worker::{self, Jobs, Watch};
use crate::workload::reaper::Reaper;
use crate::workload::runtime::Runtime;

/// Creates the driver, and the receiving ends of its channels.
pub(super) fn build(config: Config) -> Result<(Driver, Events), String> {
    let (store, objects, damage) = Store::open(&config.state_dir, Path::new("/proc/self/exe"))
        .map_err(|error| failed("state-dir", &error))?;
    let clock = Clock::open(&config.state_dir);
    let runtime = Runtime::new(&config).map_err(|error| failed("runtime", &error))?;
    // Before any thread: it blocks signals for all of them.
    let reaper = Reaper::new(runtime.starting_pids()).map_err(|error| failed("reaper", &error))?;
    let images = Images::new(&config.state_dir, &config.preload_dir)
        .map_err(|error| failed("layers", &error))?;
    let session = session(&objects, store.epoch())?;
    let agent = agent(&config, objects, damage);

    let (store_jobs, store_receiver) = Jobs::new();
    let (outbox_jobs, outbox_receiver) = Jobs::new();
    let (outbox_done, outbox) = async_channel::bounded(worker::CHANNEL_MAX);
    let outbox_report = outbox::Shared::default();
    let (runtime_done, runtime_events) = async_channel::bounded(worker::CHANNEL_MAX);
    let (store_done, store_events) = async_channel::bounded(worker::CHANNEL_MAX);
    let (link_events, link) = async_channel::bounded(worker::CHANNEL_MAX);
    let wake = runtime_done.clone();
    // A full channel wakes the driver as well.
    let watch = Watch::new(move || drop(wake.try_send(Input::Tick)));
    workers::spawn_store(store, store_receiver, store_done, watch.thread("store"))
        .map_err(|error| failed("store thread", &error))?;
    let runtime_jobs = workers::spawn_containers(runtime.clone(), images, &watch, runtime_done)
        .map_err(|error| failed("runtime threads", &error))?;
    outbox::spawn(
        paths::outbox(&config.state_dir),
        config.outbox.clone(),
        outbox_receiver,
        outbox_done,
        outbox_report.clone(),
        watch.thread("outbox"),
    )
    .map_err(|error| failed("outbox thread", &error))?;

    let driver = Driver {
        node: config.name().unwrap_or_default(),
        config,
        clock,
        start: Instant::now(),
        agent,
        session,
        link: None,
        lanes: Lanes::new(),
        limits: Limits::NONE,
        send_at: None,
        connects: None,
        targets: None,
        link_events,
        in_sync: false,
        running: SortedMap::new(),
        reaper,
        runtime,
        runtime_jobs,
        store_jobs,
        log_calls: LogCalls::default(),
        outbox_jobs,
        watch,
        watch_at: None,
        incarnation: Incarnation::default(),
        outbox_report,
        hand_over_by: None,
        handed_over: Handover::default(),
        held_jobs: Vec::new(),
    };
    let events = Events {
        link,
        store: store_events,
        runtime: runtime_events,
        outbox,
    };
    Ok((driver, events))
}

/// The session with the stored set.
fn session(objects: &[Stored], epoch: u64) -> Result<Node, String> {
    let config = NodeConfig {
        kinds: kinds(),
        agent: ["edge-min ", VERSION].concat(),
    };
    let seed = random().ok_or("the system's random source failed")?;
    let mut session = Node::new(config, seed);
    let stored = objects.iter().map(|object| {
        (
            object.key.clone(),
            object.hash,
            object.payload.as_ref().err().copied(),
        )
    });
    session.restore(stored, epoch);
    Ok(session)
}

/// The core with the stored set.
fn agent(config: &Config, objects: Vec<Stored>, damage: Option<String>) -> Agent {
    let mut agent = Agent::new(AgentConfig {
        facts: facts(config),
        damage,
        empty: objects.is_empty(),
        trims_logs: true,
        host_paths: HostPaths::new(config.host_paths.clone()),
        flash_bytes_per_day: config.flash_mib_per_day.map(|mib| u64::from(mib) << 20),
    });
    for object in objects {
        if let Ok(payload) = object.payload {
            agent.handle(0, Input::Desired(object.key, Some(payload)));
        }
    }
    agent
}

const fn kinds() -> u32 {
    Kind::Pod.bit() | Kind::ConfigMap.bit() | Kind::Secret.bit() | Kind::NodePolicy.bit()
}

fn facts(config: &Config) -> NodeStatus {
    let read = |path: &str| {
        std::fs::read_to_string(path)
            .map(|text| text.trim().to_owned())
            .unwrap_or_default()
    };
    let memory_kib: u64 = read("/proc/meminfo")
        .split_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok())
        .unwrap_or(0);
    NodeStatus {
        agent: VERSION.to_owned(),
        arch: std::env::consts::ARCH.to_owned(),
        kernel: read("/proc/sys/kernel/osrelease"),
        board: config.board.clone(),
        cpus: std::thread::available_parallelism()
            .map_or(1, |count| u32::try_from(count.get()).unwrap_or(1)),
        memory_bytes: config.memory_mib.map_or(memory_kib * 1024, |mib| {
            (u64::from(mib) << 20).min(memory_kib * 1024)
        }),
        pods_max: config.pods_max,
        boot_id: read("/proc/sys/kernel/random/boot_id"),
        labels: config.labels.clone(),
        ..NodeStatus::default()
    }
}
