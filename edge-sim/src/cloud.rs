//! The replicas of the cloud end: the real session for each node of the shards that a replica
//! owns, leases with epochs, and a shared store. It replaces `edge-cloud/src/sessions` and
//! `transport/broker.rs`.
//!
//! This file has a replica's start and end and its link to the broker; the folder has one file for each noun.

mod leases;
mod presence;
mod sessions;
mod store;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use edge_proto::key::Key;
use edge_proto::limits::{BROKER_FRAMES_MAX, BROKER_RETRY_MS_MAX, BROKER_RETRY_MS_MIN};
use edge_proto::rate_limiter::{RateLimiter, Reservation};
use edge_proto::session::{Cloud, LinkInput};

use crate::calls::Reader;
use crate::event::Event;
use crate::line::Line;
use crate::outbox::Marks;
use crate::rng::Rng;
use crate::scenario::Scenario;
use crate::world::{SHARDS, World};

pub(crate) use self::leases::Shard;

/// From replica to broker or back, milliseconds.
pub(crate) const FRAME_MS: u64 = 2;
/// Frames that wait for a replica.
const REQUESTS_MAX: u64 = BROKER_FRAMES_MAX as u64;

/// One node at one replica.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) cloud: Cloud,
    pub(crate) serial: u32,
    /// Clients that read the answers of calls.
    pub(crate) calls: BTreeMap<u32, Reader>,
    pub(crate) last_call: u32,
    attached: bool,
    live: bool,
    /// When it may open a session.
    reservation: Reservation,
    pub(crate) in_sync: bool,
    /// Frames that wait for a rate of the node's policy.
    pub(crate) line: Line,
    storing: Option<u32>,
    /// The replica's state of the sink: read when it took the shard, plus its own writes since then.
    pub(crate) marks: Marks,
    /// When the sink has stored what was given to it.
    sunk_at: u64,
    heard: u64,
    asked: u32,
    wake_at: u64,
}

/// One process of the cloud.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) is_up: bool,
    pub(crate) paused: bool,
    /// Counts starts and ends; an event of an earlier count is stale.
    pub(crate) life: u32,
    /// Connected to the broker.
    pub(crate) linked: bool,
    /// Epoch of each shard that it assumes to own.
    pub(crate) owned: Vec<Option<u64>>,
    /// By node.
    pub(crate) sessions: Vec<Option<Box<Session>>>,
    unasked: VecDeque<u32>,
    probing: bool,
    /// Events that arrived while it was paused.
    backlog: Vec<Event>,
    /// Changes of desired sets that it has not seen because it was paused.
    missed: BTreeSet<(u32, Key)>,
    pub(crate) ahead_s: i64,
    openings: RateLimiter,
    free_us: u64,
    wait_ms: u64,
    serials: u32,
    rng: Rng,
}

impl Session {
    fn deadline(&self) -> Option<u64> {
        let own = self.cloud.deadline().into_iter();
        own.chain(self.line.deadline()).min()
    }
}

impl Replica {
    pub(crate) fn new(scenario: &Scenario, seed: u64) -> Self {
        let mut sessions = Vec::new();
        sessions.resize_with(scenario.nodes as usize, || None);
        Self {
            is_up: false,
            paused: false,
            life: 0,
            linked: false,
            owned: vec![None; SHARDS],
            sessions,
            unasked: VecDeque::new(),
            probing: false,
            backlog: Vec::new(),
            missed: BTreeSet::new(),
            ahead_s: 0,
            openings: RateLimiter::new(scenario.cloud.admissions_per_s),
            free_us: 0,
            wait_ms: BROKER_RETRY_MS_MIN,
            serials: 0,
            rng: Rng::new(seed),
        }
    }

    /// Whether it has subscribed to a shard.
    pub(crate) fn reads(&self, shard: u8) -> bool {
        self.is_up && self.owned[usize::from(shard)].is_some()
    }
}

fn index(replica: usize) -> u8 {
    u8::try_from(replica).unwrap_or_default()
}
impl World {
    /// Whether the event is for a replica that has ended or is paused; a paused one gets it later.
    pub(crate) fn passes_replica(&mut self, event: Event) -> Option<Event> {
        let (replica, life) = match &event {
            Event::ToCloud { replica, life, .. }
            | Event::Session { replica, life, .. }
            | Event::Stored { replica, life, .. }
            | Event::Sunk { replica, life, .. }
            | Event::CallTimeout { replica, life, .. }
            | Event::CallRead { replica, life, .. }
            | Event::Lease { replica, life }
            | Event::Probe { replica, life }
            | Event::Watch { replica, life }
            | Event::Connect { replica, life } => (usize::from(*replica), *life),
            _ => return Some(event),
        };
        let one = &mut self.replicas[replica];
        if one.life != life || !one.is_up {
            return None;
        }
        if !one.paused {
            return Some(event);
        }
        if one.backlog.len() < REQUESTS_MAX as usize || !matches!(event, Event::ToCloud { .. }) {
            one.backlog.push(event);
        }
        None
    }

    pub(crate) fn launch(&mut self, replica: usize) {
        let one = &mut self.replicas[replica];
        if one.is_up {
            return;
        }
        one.is_up = true;
        one.life += 1;
        let life = one.life;
        let spread = one.rng.below(1_000);
        for shard in &mut self.shards {
            if shard.owner == Some(replica) {
                shard.owner = None;
            }
        }
        let replica = index(replica);
        self.plan(0, Event::Connect { replica, life });
        self.plan(spread, Event::Lease { replica, life });
        self.plan(spread, Event::Watch { replica, life });
    }

    /// The process ends without closing anything.
    pub(crate) fn replica_dies(&mut self, replica: usize, down_ms: u64) {
        let one = &mut self.replicas[replica];
        if !one.is_up {
            return;
        }
        self.stats.replica_losses += 1;
        one.is_up = false;
        one.paused = false;
        one.backlog.clear();
        one.missed.clear();
        one.life += 1;
        one.linked = false;
        one.unasked.clear();
        one.probing = false;
        let owned: Vec<usize> = (0..SHARDS)
            .filter(|shard| one.owned[*shard].is_some())
            .collect();
        for shard in owned {
            self.drop_shard(replica, shard);
        }
        self.disturbed_at = self.now;
        self.plan(down_ms, Event::Launch(index(replica)));
    }

    /// The process stops; it continues later without being aware of it.
    pub(crate) fn replica_pauses(&mut self, replica: usize, ms: u64) {
        let one = &mut self.replicas[replica];
        if one.is_up && !one.paused {
            self.stats.replica_pauses += 1;
            one.paused = true;
            self.disturbed_at = self.now;
            self.plan(ms, Event::Resume(index(replica)));
        }
    }

    pub(crate) fn resume(&mut self, replica: usize) {
        let one = &mut self.replicas[replica];
        if one.paused {
            one.paused = false;
            // Waiting events come first, and the lease is checked only then.
            for event in std::mem::take(&mut one.backlog) {
                let late = matches!(event, Event::Lease { .. });
                self.plan(if late { 3_000 } else { 0 }, event);
            }
        }
    }

    pub(crate) fn replica_connects(&mut self, replica: usize, life: u32) {
        let up = self.broker.up;
        let one = &mut self.replicas[replica];
        if !up {
            let wait = one.wait_ms;
            one.wait_ms = (wait * 2).min(BROKER_RETRY_MS_MAX);
            let replica = index(replica);
            self.plan(wait, Event::Connect { replica, life });
            return;
        }
        one.linked = true;
        one.wait_ms = BROKER_RETRY_MS_MIN;
        one.unasked = (0..one.sessions.len() as u32)
            .filter(|node| one.sessions[*node as usize].is_some())
            .collect();
        self.start_probing(replica);
    }

    pub(crate) fn replicas_lose_broker(&mut self) {
        for replica in 0..self.replicas.len() {
            let one = &mut self.replicas[replica];
            if !one.linked {
                continue;
            }
            one.linked = false;
            one.unasked.clear();
            let life = one.life;
            for node in 0..one.sessions.len() {
                if let Some(session) = &mut self.replicas[replica].sessions[node] {
                    session.attached = false;
                    session.line.clear();
                    self.session_input(replica, node as u32, LinkInput::TransportDown);
                }
            }
            let replica = index(replica);
            self.plan(BROKER_RETRY_MS_MIN, Event::Connect { replica, life });
        }
    }

    /// The session of the replica that owns the node's shard.
    pub(crate) fn owner_session(&self, node: u32) -> Option<&Session> {
        let shard = &self.shards[usize::from(self.stored_nodes[node as usize].shard)];
        self.replicas[shard.owner?].sessions[node as usize].as_deref()
    }
}
