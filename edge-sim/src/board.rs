//! A board: the real agent, reconnect rule and session of a node, over a model of its store and its
//! container runtime. It replaces the shell in `edge-min/src/driver/mod.rs`.

use std::collections::{BTreeMap, BTreeSet};

use edge_core::flash::Counters;
use edge_core::renewal::Validity;
use edge_core::time::TrustedTime;
use edge_core::write_scheduler::WriteScheduler;
use edge_core::{Agent, AgentConfig, Discovered, Input as AgentInput, UplinkInput};
use edge_proto::hash::{Hash16, Hash32, sha256};
use edge_proto::key::{Key, Kind, Uid};
use edge_proto::object::{NodeStatus, Pod};
use edge_proto::session::{Node, NodeConfig, Payload};

use crate::calls::Writer;
use crate::certs::{Certificate, Identity};
use crate::event::Changes;
use crate::line::Line;
use crate::outbox::{Medium, Post};
use crate::rng::Rng;
use crate::world::START_UNIX_S;

/// Monotonic clock at the start of the agent after a boot.
const UPTIME_MS: u64 = 5_000;
/// Date of the agent's build, seconds since 1970.
const BUILD_UNIX_S: u64 = START_UNIX_S - 86_400;
/// Used when certificates do not expire: a lifetime of a hundred years.
const ENDLESS: Validity = Validity {
    issued_unix_s: START_UNIX_S,
    not_after: START_UNIX_S + 100 * 365 * 86_400,
};
/// Highest number of pods of a node.
pub(crate) const PODS_MAX: u32 = 20;

/// Content of a node's medium.
#[derive(Clone, Debug, Default)]
pub(crate) struct Store {
    pub(crate) objects: BTreeMap<Key, Stored>,
    pub(crate) epoch: u64,
    /// Large objects, as far as they were received.
    pub(crate) blobs: BTreeMap<Hash32, Vec<u8>>,
    /// Pods that were durably deleted or terminating: none of them may ever start again.
    pub(crate) ended: BTreeSet<Uid>,
    pub(crate) outbox: Medium,
    /// Trusted floor of the time, seconds since 1970.
    pub(crate) floor_s: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) hash: Hash16,
    pub(crate) payload: Vec<u8>,
}

impl Store {
    /// Stored bytes of a large object; a complete one with a wrong hash counts as nothing.
    pub(crate) fn blob_bytes(&mut self, sha: Hash32, len: u32) -> u32 {
        let Some(blob) = self.blobs.get(&sha) else {
            return 0;
        };
        if blob.len() >= len as usize && sha256(blob) != sha {
            self.blobs.remove(&sha);
            return 0;
        }
        u32::try_from(blob.len()).unwrap_or(u32::MAX)
    }

    /// Makes `changes` durable; returns the input of the agent about them.
    pub(crate) fn apply(&mut self, changes: &Changes, epoch: u64) -> Vec<(Key, Option<Vec<u8>>)> {
        self.epoch = epoch;
        let mut applied = Vec::with_capacity(changes.len());
        for (key, payload) in changes {
            let bytes = match payload {
                None => None,
                Some(Payload::Inline(bytes)) => Some((Hash16::of(bytes), Some(bytes.clone()))),
                Some(Payload::Large { sha256, .. }) => {
                    Some((sha256.short(), self.blobs.remove(sha256)))
                }
                Some(Payload::Refused { hash, .. }) => Some((*hash, None)),
            };
            if let Key::Uid(Kind::Pod, uid) = key {
                let spec = bytes.as_ref().and_then(|(_, bytes)| bytes.as_deref());
                let spec = spec.and_then(|bytes| Pod::decode(bytes).ok());
                if spec.is_none_or(|pod| pod.terminating) {
                    self.ended.insert(*uid);
                }
            }
            match bytes {
                None => {
                    self.objects.remove(key);
                    applied.push((key.clone(), None));
                }
                Some((hash, bytes)) => {
                    let payload = bytes.clone().unwrap_or_default();
                    self.objects.insert(key.clone(), Stored { hash, payload });
                    applied.push((key.clone(), bytes));
                }
            }
        }
        applied
    }
}

/// A running container.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) pid: u32,
    pub(crate) uid: Uid,
    pub(crate) name: String,
    pub(crate) spec: Hash16,
}

/// State that a power cut or a kill of the agent loses.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) agent: Agent,
    pub(crate) session: Node,
    pub(crate) time: TrustedTime,
    /// When the store writes again.
    pub(crate) scheduler: WriteScheduler,
    /// Bytes written to the flash since the agent's start.
    pub(crate) written: Counters,
    /// The last time of the cloud is before the agent's build, and was not accepted.
    pub(crate) misled: bool,
    /// The other end has refused the certificate of the connection in progress.
    pub(crate) refused: bool,
    /// Calls that it answers, by id.
    pub(crate) calls: BTreeMap<u32, Writer>,
    /// Frames that wait for the socket.
    pub(crate) line: Line,
    /// When the next of them may be sent.
    pub(crate) send_at: Option<u64>,
    /// Highest epoch that the session has reported.
    pub(crate) epoch: u64,
    pub(crate) in_sync: bool,
    /// Length of the large object that is being fetched.
    pub(crate) blob_len: u32,
    /// `None` where no workload writes records.
    pub(crate) post: Option<Post>,
}

/// State of a board's connection to the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Conn {
    None,
    Trying(u32),
    Up(u32),
}

/// One direction of a link.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Direction {
    /// Time at which all given bytes are sent, microseconds.
    pub(crate) free_us: u64,
    /// Arrival of the last frame that is not overtaken, milliseconds.
    pub(crate) last: u64,
    /// Frames in flight.
    pub(crate) waiting: u32,
}

/// Name of the node with this number.
pub(crate) fn name_of(node: u32) -> String {
    format!("gate-{node:06}")
}

/// A board with its medium, machine and connection.
#[derive(Debug)]
pub(crate) struct Board {
    /// Number of the node whose identity it has.
    pub(crate) node: u32,
    pub(crate) rng: Rng,
    /// Counts starts of the agent.
    pub(crate) boot: u32,
    /// Random, new at each power-on.
    pub(crate) boot_id: u64,
    pub(crate) booted_at: u64,
    pub(crate) powered: bool,
    /// It never starts again.
    pub(crate) retired: bool,
    pub(crate) machine: Option<Box<Machine>>,
    pub(crate) store: Store,
    pub(crate) identity: Option<Identity>,
    /// Its identity is on its medium.
    pub(crate) joined: bool,
    /// The certificate of the connection in progress.
    pub(crate) shown: Option<Certificate>,
    /// When its agent was started.
    pub(crate) started_at: u64,
    /// Given to the store and not yet durable.
    pub(crate) applying: Option<(u32, Changes, u64)>,
    pub(crate) running: Vec<Run>,
    /// Containers that ended and are not removed.
    pub(crate) remains: Vec<(Uid, String, Hash16)>,
    pub(crate) pids: u32,
    pub(crate) conn: Conn,
    /// Time of the earliest planned `Wake`; `u64::MAX` is none.
    pub(crate) wake_at: u64,
    pub(crate) asleep_until: u64,
    /// Factor by which all its actions take longer.
    pub(crate) slow: u64,
    pub(crate) compromised: bool,
    /// Frames that a compromised board has recorded.
    pub(crate) seen: Vec<Vec<u8>>,
    /// Seconds that its wall clock is ahead. Records get its time; the agent does not use it.
    pub(crate) ahead_s: i64,
    pub(crate) up: Direction,
    pub(crate) down: Direction,
    /// Since when it has no live session.
    pub(crate) waiting_since: u64,
}

impl Board {
    pub(crate) fn new(node: u32, seed: u64) -> Self {
        Self {
            node,
            rng: Rng::new(seed),
            boot: 0,
            boot_id: 0,
            booted_at: 0,
            powered: false,
            retired: false,
            machine: None,
            store: Store::default(),
            identity: None,
            // Some were joined before.
            joined: !node.is_multiple_of(4),
            shown: None,
            started_at: 0,
            applying: None,
            running: Vec::new(),
            remains: Vec::new(),
            pids: 0,
            conn: Conn::None,
            wake_at: u64::MAX,
            asleep_until: 0,
            slow: 1,
            compromised: false,
            seen: Vec::new(),
            ahead_s: 0,
            up: Direction::default(),
            down: Direction::default(),
            waiting_since: 0,
        }
    }

    /// The board's monotonic clock.
    pub(crate) const fn local(&self, now: u64) -> u64 {
        now.saturating_sub(self.booted_at) + UPTIME_MS
    }

    /// Virtual time at which the board's monotonic clock shows `local`.
    const fn global(&self, local: u64) -> u64 {
        self.booted_at + local.saturating_sub(UPTIME_MS)
    }

    /// Time of the next action without an event.
    pub(crate) fn deadline(&self) -> Option<u64> {
        let machine = self.machine.as_ref()?;
        let deadlines = [
            machine.agent.deadline(),
            machine.session.deadline(),
            machine.scheduler.deadline(),
            machine.post.as_ref().and_then(Post::deadline),
        ];
        deadlines
            .into_iter()
            .flatten()
            .map(|at| self.global(at))
            .chain(machine.send_at)
            .min()
    }

    pub(crate) fn is_live(&self) -> bool {
        self.machine
            .as_ref()
            .is_some_and(|machine| machine.session.is_live())
    }

    pub(crate) fn in_sync(&self) -> bool {
        self.machine.as_ref().is_some_and(|machine| machine.in_sync)
    }

    /// Cuts the power, and loses all that is not durable. What was given to the store may be on the
    /// medium although it was not acknowledged.
    pub(crate) fn cut_power(&mut self) {
        self.kill_agent();
        self.running.clear();
        self.remains.clear();
        self.powered = false;
    }

    /// Ends the agent; containers continue.
    pub(crate) fn kill_agent(&mut self) {
        if let Some(post) = self.machine.take().and_then(|machine| machine.post) {
            post.cut(&mut self.store.outbox, &mut self.rng);
        }
        if let Some((_, changes, epoch)) = self.applying.take()
            && self.rng.below(2) == 0
        {
            self.store.apply(&changes, epoch);
        }
    }

    /// The state of the board that the agent finds at its start.
    fn discovered(&self) -> AgentInput {
        let running = self.running.iter().map(|run| Discovered {
            uid: run.uid,
            container: run.name.clone(),
            spec: run.spec,
            pid: Some(run.pid),
        });
        let remains = self.remains.iter().map(|(uid, name, spec)| Discovered {
            uid: *uid,
            container: name.clone(),
            spec: *spec,
            pid: None,
        });
        AgentInput::Discovered {
            containers: running.chain(remains).collect(),
            pods: Vec::new(),
        }
    }

    /// The session over the content of the medium.
    fn session(&mut self) -> Node {
        let mut session = Node::new(
            NodeConfig {
                kinds: Kind::Pod.bit()
                    | Kind::ConfigMap.bit()
                    | Kind::Secret.bit()
                    | Kind::NodePolicy.bit(),
                agent: "edge-min sim".to_owned(),
            },
            self.rng.draw(),
        );
        let objects = self.store.objects.iter();
        session.restore(
            objects.map(|(key, stored)| (key.clone(), stored.hash, None)),
            self.store.epoch,
        );
        session
    }

    /// Starts the agent over the medium and the board, as the shell does.
    pub(crate) fn start_agent(
        &mut self,
        now: u64,
        outbox_bytes: Option<u64>,
        flash_bytes_per_day: Option<u64>,
    ) {
        self.boot += 1;
        if !self.powered {
            self.powered = true;
            self.boot_id = self.rng.draw();
            self.booted_at = now;
        }
        let mut session = self.session();
        let post =
            outbox_bytes.map(|quota| Post::open(&mut self.store.outbox, quota, &mut self.rng));
        for input in post.iter().flat_map(|post| post.ready(&self.store.outbox)) {
            session.handle(self.local(now), input);
        }
        let facts = NodeStatus {
            agent: "sim".to_owned(),
            arch: "aarch64".to_owned(),
            cpus: 4,
            memory_bytes: 1 << 30,
            pods_max: PODS_MAX,
            boot_id: format!("{:016x}", self.boot_id),
            ..NodeStatus::default()
        };
        let mut agent = Agent::new(AgentConfig {
            facts,
            empty: self.store.objects.is_empty(),
            flash_bytes_per_day,
            ..AgentConfig::default()
        });
        for (key, stored) in &self.store.objects {
            let payload = Some(stored.payload.clone());
            agent.handle(0, AgentInput::Desired(key.clone(), payload));
        }
        agent.handle(self.local(now), self.discovered());
        let time = TrustedTime::new(BUILD_UNIX_S, self.store.floor_s);
        let reliable = time.reliable(self.local(now));
        agent.handle(self.local(now), AgentInput::Time(reliable));
        let uplink = match self.joined {
            true => self.known_identity(),
            false => UplinkInput::MayJoin {
                seed: self.rng.draw(),
            },
        };
        agent.handle(self.local(now), AgentInput::Uplink(uplink));
        self.machine = Some(Box::new(Machine {
            agent,
            session,
            time,
            scheduler: WriteScheduler::default(),
            written: Counters::default(),
            misled: false,
            refused: false,
            calls: BTreeMap::new(),
            line: Line::default(),
            send_at: None,
            epoch: self.store.epoch,
            in_sync: false,
            blob_len: 0,
            post,
        }));
        self.conn = Conn::None;
        self.started_at = now;
        self.waiting_since = now;
    }

    /// The identity on the medium, as the core gets it.
    pub(crate) fn known_identity(&mut self) -> UplinkInput {
        UplinkInput::Identity {
            node: name_of(self.node),
            seed: self.rng.draw(),
            new: self.identity.map_or(ENDLESS, |one| one.new.life()),
            old: self.identity.and_then(|one| one.old).map(|one| one.life()),
        }
    }

    /// The core accepts this time of the cloud.
    pub(crate) fn confirm_time(&mut self, now: u64, unix_s: u64) {
        let local = self.local(now);
        let Some(machine) = &mut self.machine else {
            return;
        };
        machine.misled = unix_s < BUILD_UNIX_S;
        machine.time.confirm(local, unix_s);
        if let Some(floor_s) = machine.time.to_keep(local) {
            machine.time.kept(floor_s);
            self.store.floor_s = floor_s;
        }
        let time = machine.time.reliable(local);
        machine.agent.handle(local, AgentInput::Time(time));
    }
}
