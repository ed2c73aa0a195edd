//! The replicas of the cloud end: the real session for each node of the shards that a replica
//! owns, leases with epochs, and a store behind them all. What the shell of edge-cloud does,
//! `edge-cloud/src/links` and `broker.rs` there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use edge_proto::frame::Frame;
use edge_proto::hash::Hash16;
use edge_proto::key::{Key, Kind};
use edge_proto::rate_limiter::{RateLimiter, Reservation};
use edge_proto::session::{
    BlobInput, BlobOutput, CallOutput, Cloud, CloudConfig, CloudInput, CloudOutput,
    CloudRecordsInput, LinkInput, LinkOutput, RecordsOutput, StateInput, StateOutput,
};

use crate::calls::Reader;
use crate::event::{Changes, Event, Packet};
use crate::line::Line;
use crate::outbox::{Batch, Books};
use crate::rng::Rng;
use crate::scenario::Scenario;
use crate::world::{SHARDS, World};

/// From replica to broker or back, milliseconds.
pub(crate) const FRAME_MS: u64 = 2;
/// Frames that wait for a replica (`REQUESTS_MAX` of edge-cloud's broker connection).
const REQUESTS_MAX: u64 = 8_192;
/// Nodes that are asked for their `Hello` in one go, and the time between two goes.
const PROBES_AT_ONCE: usize = 50;
const PROBE_PACE_MS: u64 = 100;
/// Signs of life that a silent node is asked for before it counts as not connected.
const ASKS_MAX: u32 = 3;
/// Nodes that are asked at once.
const ASKS_AT_ONCE: usize = 1_000;
/// Waits between attempts to reach the broker.
const WAIT_MS_MIN: u64 = 250;
const WAIT_MS_MAX: u64 = 30_000;
/// Shards that a replica with too many gives away at once.
const GIVEN_AT_ONCE: usize = 16;
/// Outputs that one input may have.
const OUTPUTS_MAX: usize = 400;

/// A shard as the leases tell it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shard {
    pub(crate) owner: Option<usize>,
    pub(crate) epoch: u64,
    renewed: u64,
    pub(crate) nodes: Vec<u32>,
}

/// One node at one replica.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) cloud: Cloud,
    pub(crate) serial: u32,
    /// Who reads the answers of calls.
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
    /// What the replica knows of the sink: read when it took the shard, its own writes since then.
    pub(crate) books: Books,
    /// When the sink has what was given to it.
    sunk_at: u64,
    heard: u64,
    asked: u32,
    wake_at: u64,
}

/// A replica.
#[derive(Debug)]
pub(crate) struct Replica {
    pub(crate) alive: bool,
    pub(crate) paused: bool,
    /// Counts starts and ends.
    pub(crate) life: u32,
    /// Connected to the broker.
    pub(crate) linked: bool,
    /// Epoch of each shard that it thinks it owns.
    pub(crate) owned: Vec<Option<u64>>,
    /// By node.
    pub(crate) sessions: Vec<Option<Box<Session>>>,
    unasked: VecDeque<u32>,
    probing: bool,
    /// What came while it was paused.
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
            alive: false,
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
            wait_ms: WAIT_MS_MIN,
            serials: 0,
            rng: Rng::new(seed),
        }
    }

    /// Whether it has subscribed to a shard.
    pub(crate) fn reads(&self, shard: u8) -> bool {
        self.alive && self.owned[usize::from(shard)].is_some()
    }
}

fn index(replica: usize) -> u8 {
    u8::try_from(replica).unwrap_or_default()
}

impl World {
    /// Whether the event is for a replica that is gone or paused; a paused one gets it later.
    pub(crate) fn passes_replica(&mut self, event: Event) -> Option<Event> {
        let (replica, life) = match &event {
            Event::ToCloud { replica, life, .. }
            | Event::Session { replica, life, .. }
            | Event::Stored { replica, life, .. }
            | Event::Sunk { replica, life, .. }
            | Event::Patience { replica, life, .. }
            | Event::CallRead { replica, life, .. }
            | Event::Lease { replica, life }
            | Event::Probe { replica, life }
            | Event::Watch { replica, life }
            | Event::Connect { replica, life } => (usize::from(*replica), *life),
            _ => return Some(event),
        };
        let one = &mut self.replicas[replica];
        if one.life != life || !one.alive {
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
        if one.alive {
            return;
        }
        one.alive = true;
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

    /// The process ends without a word.
    pub(crate) fn replica_dies(&mut self, replica: usize, down_ms: u64) {
        let one = &mut self.replicas[replica];
        if !one.alive {
            return;
        }
        self.stats.replica_losses += 1;
        one.alive = false;
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

    /// The process stops; it goes on later and has noticed nothing.
    pub(crate) fn replica_pauses(&mut self, replica: usize, ms: u64) {
        let one = &mut self.replicas[replica];
        if one.alive && !one.paused {
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
            // What waited comes first, and the lease is looked after only then.
            for event in std::mem::take(&mut one.backlog) {
                let late = matches!(event, Event::Lease { .. });
                self.plan(if late { 3_000 } else { 0 }, event);
            }
        }
    }

    pub(crate) fn look_after_leases(&mut self, replica: usize, life: u32) {
        let lease_ms = self.scenario.cloud.lease_s * 1000;
        let working = self
            .replicas
            .iter()
            .filter(|one| one.alive && !one.paused)
            .count();
        let quota = SHARDS.div_ceil(working.max(1));
        let mut owned = self
            .shards
            .iter()
            .filter(|one| one.owner == Some(replica))
            .count();
        let surplus = owned.saturating_sub(quota).min(GIVEN_AT_ONCE);
        let mut given = 0;
        for shard in 0..SHARDS {
            let lease = &mut self.shards[shard];
            let expired = self.now.saturating_sub(lease.renewed) > lease_ms;
            match lease.owner {
                Some(owner) if owner == replica && given < surplus => {
                    lease.owner = None;
                    given += 1;
                    self.drop_shard(replica, shard);
                }
                Some(owner) if owner == replica => lease.renewed = self.now,
                Some(_) if !expired => self.drop_shard(replica, shard),
                _ if owned < quota && given == 0 => {
                    self.drop_shard(replica, shard);
                    self.take_shard(replica, shard);
                    owned += 1;
                }
                _ => self.drop_shard(replica, shard),
            }
        }
        // The watch on the store goes on, too.
        for (node, key) in std::mem::take(&mut self.replicas[replica].missed) {
            self.show_desired(replica, node, &key);
        }
        let replica = index(replica);
        self.plan(lease_ms / 3, Event::Lease { replica, life });
    }

    fn drop_shard(&mut self, replica: usize, shard: usize) {
        if self.replicas[replica].owned[shard].take().is_none() {
            return;
        }
        for index in 0..self.shards[shard].nodes.len() {
            let node = self.shards[shard].nodes[index];
            self.replicas[replica].sessions[node as usize] = None;
            self.refresh(node);
        }
    }

    fn take_shard(&mut self, replica: usize, shard: usize) {
        let unix_s = self
            .unix_s()
            .saturating_add_signed(self.replicas[replica].ahead_s);
        let lease = &mut self.shards[shard];
        lease.epoch = (lease.epoch + 1).max(unix_s);
        lease.owner = Some(replica);
        lease.renewed = self.now;
        let epoch = lease.epoch;
        self.stats.handovers += 1;
        self.disturbed_at = self.now;
        self.replicas[replica].owned[shard] = Some(epoch);
        for index in 0..self.shards[shard].nodes.len() {
            let node = self.shards[shard].nodes[index];
            if self.records[node as usize].revoked.is_some() {
                continue;
            }
            // First it keeps the old owner out of the store, then it reads.
            self.records[node as usize].epoch = epoch;
            let session = self.open_session(replica, node, epoch, unix_s);
            self.replicas[replica].sessions[node as usize] = Some(Box::new(session));
            self.replicas[replica].unasked.push_back(node);
        }
        self.start_probing(replica);
    }

    fn open_session(&mut self, replica: usize, node: u32, epoch: u64, unix_s: u64) -> Session {
        let one = &mut self.replicas[replica];
        one.serials += 1;
        let mut cloud = Cloud::new(CloudConfig { epoch }, one.rng.draw());
        let record = &self.records[node as usize];
        let reported = record.reported.iter();
        cloud.restore(reported.map(|(key, bytes)| (key.clone(), Hash16::of(bytes))));
        for (incarnation, class, next) in record.ledger.streams() {
            cloud.restore_stream(incarnation, class, next);
        }
        cloud.handle(self.now, CloudInput::Clock { unix_s });
        for (key, payload) in &record.desired {
            let (key, payload) = (key.clone(), Arc::clone(payload));
            cloud.handle(self.now, StateInput::Put { key, payload });
        }
        Session {
            cloud,
            serial: one.serials,
            calls: BTreeMap::new(),
            last_call: 0,
            attached: false,
            live: false,
            reservation: Reservation::default(),
            in_sync: false,
            line: Line::default(),
            storing: None,
            books: record.ledger.books(),
            sunk_at: 0,
            heard: self.now,
            asked: 0,
            wake_at: u64::MAX,
        }
    }

    pub(crate) fn replica_connects(&mut self, replica: usize, life: u32) {
        let up = self.broker.up;
        let one = &mut self.replicas[replica];
        if !up {
            let wait = one.wait_ms;
            one.wait_ms = (wait * 2).min(WAIT_MS_MAX);
            let replica = index(replica);
            self.plan(wait, Event::Connect { replica, life });
            return;
        }
        one.linked = true;
        one.wait_ms = WAIT_MS_MIN;
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
                    self.tell_session(replica, node as u32, LinkInput::TransportDown);
                }
            }
            let replica = index(replica);
            self.plan(WAIT_MS_MIN, Event::Connect { replica, life });
        }
    }

    fn start_probing(&mut self, replica: usize) {
        let one = &mut self.replicas[replica];
        if one.linked && !one.probing && !one.unasked.is_empty() {
            one.probing = true;
            let life = one.life;
            let replica = index(replica);
            self.plan(PROBE_PACE_MS, Event::Probe { replica, life });
        }
    }

    pub(crate) fn probe_next(&mut self, replica: usize) {
        self.replicas[replica].probing = false;
        if !self.replicas[replica].linked {
            return;
        }
        let mut left = PROBES_AT_ONCE;
        while left > 0
            && let Some(node) = self.replicas[replica].unasked.pop_front()
        {
            let session = self.replicas[replica].sessions[node as usize].as_ref();
            if session.is_some_and(|session| !session.attached) {
                left -= 1;
                self.attach(replica, node);
            }
        }
        self.start_probing(replica);
    }

    fn attach(&mut self, replica: usize, node: u32) {
        let now = self.now;
        if let Some(session) = &mut self.replicas[replica].sessions[node as usize] {
            session.attached = true;
            session.heard = now;
            session.asked = 0;
            session.line.clear();
            session
                .line
                .limit(now, self.records[node as usize].limits_down());
            self.tell_session(replica, node, LinkInput::TransportUp);
        }
    }

    /// As `Sessions::ask_silent`.
    pub(crate) fn watch_silence(&mut self, replica: usize, life: u32) {
        let silence_ms = self.scenario.cloud.silence_s * 1000;
        let now = self.now;
        let (mut asked, mut gone) = (Vec::new(), Vec::new());
        let sessions = self.replicas[replica].sessions.iter_mut().enumerate();
        let silent = sessions.filter_map(|(node, session)| {
            let session = session
                .as_mut()
                .filter(|session| session.live && session.attached)?;
            (now.saturating_sub(session.heard) >= silence_ms).then_some((node as u32, session))
        });
        for (node, session) in silent.take(ASKS_AT_ONCE) {
            if session.asked < ASKS_MAX {
                session.asked += 1;
                asked.push(node);
            } else {
                gone.push(node);
            }
        }
        let unix_s = self
            .unix_s()
            .saturating_add_signed(self.replicas[replica].ahead_s);
        for node in asked {
            let shard = usize::from(self.records[node as usize].shard);
            if let Some(epoch) = self.replicas[replica].owned[shard] {
                self.publish_down(node, epoch, Frame::Probe { epoch, unix_s }.encode());
            }
        }
        for node in gone {
            self.tell_session(replica, node, LinkInput::TransportDown);
            self.tell_session(replica, node, LinkInput::TransportUp);
        }
        let replica = index(replica);
        let pace = (silence_ms / 30).max(1_000);
        self.plan(pace, Event::Watch { replica, life });
    }

    /// When a frame that comes now is taken, in milliseconds; `None` when too many wait.
    pub(crate) fn take_place(&mut self, replica: usize) -> Option<u64> {
        let now_us = self.now * 1000;
        let cost = 1_000_000 / self.scenario.cloud.frames_per_s.min(1_000_000);
        let one = &mut self.replicas[replica];
        let wait = one.free_us.saturating_sub(now_us);
        if wait > REQUESTS_MAX * cost {
            return None;
        }
        one.free_us = one.free_us.max(now_us) + cost;
        Some(FRAME_MS + wait / 1000)
    }

    pub(crate) fn frame_at_replica(&mut self, replica: usize, packet: Packet) {
        let node = packet.topic.node;
        let record = &self.records[node as usize];
        // Who is not known is not heard, and a topic must have the shard of its name.
        if record.revoked.is_some() || record.shard != packet.topic.shard {
            return;
        }
        let one = &mut self.replicas[replica];
        if !one.linked {
            return;
        }
        let Some(session) = &mut one.sessions[node as usize] else {
            return;
        };
        session.heard = self.now;
        session.asked = 0;
        if !session.attached {
            self.attach(replica, node);
        }
        self.check_sender(node, packet.from);
        if !self.must_wait(replica, &packet) {
            self.tell_session(replica, node, LinkInput::Frame(&packet.bytes));
        }
    }

    /// As `Sessions::must_wait`: a `Hello` that opens a session may have to wait for its turn.
    fn must_wait(&mut self, replica: usize, packet: &Packet) -> bool {
        let node = packet.topic.node;
        let now = self.now;
        let one = &mut self.replicas[replica];
        let Some(session) = one.sessions[node as usize].as_mut().filter(|one| !one.live) else {
            return false;
        };
        let Ok(Frame::Hello { n, .. }) = Frame::decode(&packet.bytes) else {
            return false;
        };
        let wait_ms = one.openings.ask(now, &mut session.reservation);
        let epoch = one.owned[usize::from(packet.topic.shard)];
        let Some(epoch) = epoch.filter(|_| wait_ms > 0) else {
            return false;
        };
        self.stats.told_to_wait += 1;
        self.publish_down(
            node,
            epoch,
            Frame::RetryAfter { n, epoch, wait_ms }.encode(),
        );
        true
    }

    pub(crate) fn session_wakes(&mut self, replica: usize, node: u32) {
        let now = self.now;
        if let Some(session) = &mut self.replicas[replica].sessions[node as usize]
            && session.wake_at <= now
        {
            session.wake_at = u64::MAX;
            self.tell_session(replica, node, LinkInput::Tick);
        }
    }

    /// One input to a session, and all that follows from it.
    pub(crate) fn tell_session<'a>(
        &mut self,
        replica: usize,
        node: u32,
        input: impl Into<CloudInput<'a>>,
    ) {
        let now = self.now;
        let shard = usize::from(self.records[node as usize].shard);
        let Some(epoch) = self.replicas[replica].owned[shard] else {
            return;
        };
        let Some(session) = &mut self.replicas[replica].sessions[node as usize] else {
            return;
        };
        session.cloud.handle(now, input);
        let mut outputs = 0;
        while let Some(session) = &mut self.replicas[replica].sessions[node as usize]
            && let Some(output) = session.cloud.poll()
        {
            outputs += 1;
            self.perform_cloud(replica, node, epoch, output);
        }
        self.check_cap(
            node as usize,
            "outputs of one input at the cloud",
            outputs,
            OUTPUTS_MAX,
        );
        self.pump_down(replica, node, epoch);
        let one = &mut self.replicas[replica];
        if let Some(session) = &mut one.sessions[node as usize]
            && let Some(at) = session.deadline()
            && at.max(now) < session.wake_at
        {
            session.wake_at = at.max(now);
            let life = one.life;
            let at = session.wake_at;
            let replica = index(replica);
            self.queue.push(
                at,
                Event::Session {
                    replica,
                    life,
                    node,
                },
            );
        }
        self.refresh(node);
    }

    fn perform_cloud(&mut self, replica: usize, node: u32, epoch: u64, output: CloudOutput) {
        let store_ms = self.scenario.cloud.store_ms;
        let one = &mut self.replicas[replica];
        let (life, linked) = (one.life, one.linked);
        let Some(session) = &mut one.sessions[node as usize] else {
            return;
        };
        match output {
            CloudOutput::Link(LinkOutput::Send(frame)) if linked && session.attached => {
                if !session.line.push(self.now, frame) {
                    self.stats.dropped += 1;
                }
                self.pump_down(replica, node, epoch);
            }
            CloudOutput::State(StateOutput::Apply {
                ticket, changes, ..
            }) => {
                let busy = session.storing.replace(ticket).is_some();
                let serial = session.serial;
                let ms = one.rng.between(1, store_ms);
                let replica = index(replica);
                self.plan(
                    ms,
                    Event::Stored {
                        replica,
                        life,
                        node,
                        ticket: (serial, ticket),
                        changes: Box::new(changes),
                    },
                );
                self.check_cap(
                    node as usize,
                    "writes of one session",
                    1 + usize::from(busy),
                    1,
                );
            }
            CloudOutput::Records(RecordsOutput {
                ticket,
                incarnation,
                class,
                first,
                held,
                entries,
                ..
            }) => {
                let batch = Batch {
                    ticket,
                    incarnation,
                    class,
                    first,
                    held,
                    entries,
                };
                self.sink_records(replica, node, batch);
            }
            CloudOutput::Blob(BlobOutput::Wanted { sha256, .. }) => {
                let input = BlobInput::Have { sha256, bytes: 0 };
                session.cloud.handle(self.now, input);
            }
            CloudOutput::Link(LinkOutput::Live { .. }) => {
                session.live = true;
                session.reservation = Reservation::default();
            }
            CloudOutput::Call(CallOutput::Data { id, bytes, .. }) => {
                self.call_data(replica, node, id, &bytes);
            }
            CloudOutput::CallResult(result) => self.call_result(replica, node, &result),
            CloudOutput::Call(CallOutput::Cancelled { id }) => {
                let broken = session.calls.remove(&id).is_some();
                self.stats.calls_broken += u64::from(broken);
            }
            CloudOutput::Link(LinkOutput::Down) => {
                session.live = false;
                session.in_sync = false;
            }
            CloudOutput::State(StateOutput::InSync { desired, reported }) => {
                session.in_sync = desired && reported
            }
            CloudOutput::Link(LinkOutput::PeerProblem(_)) => self.stats.problems_at_cloud += 1,
            CloudOutput::State(StateOutput::PutRefused { key, reason }) => {
                self.fail(
                    node,
                    format!("a desired object was refused: {key} {reason}"),
                );
            }
            _ => {}
        }
    }

    /// A write of a replica has come to the store, which keeps an older epoch out.
    pub(crate) fn report_stored(
        &mut self,
        replica: usize,
        node: u32,
        (serial, ticket): (u32, u32),
        changes: &Changes,
    ) {
        let shard = usize::from(self.records[node as usize].shard);
        let Some(epoch) = self.replicas[replica].owned[shard] else {
            return;
        };
        let Some(session) = &mut self.replicas[replica].sessions[node as usize] else {
            return;
        };
        if session.serial != serial || session.storing.take_if(|at| *at == ticket).is_none() {
            return;
        }
        let record = &mut self.records[node as usize];
        if record.epoch > epoch {
            self.stats.fenced += 1;
            self.drop_shard(replica, shard);
            return;
        }
        record.epoch = epoch;
        self.take_report(node, changes);
        let refused = Vec::new();
        self.tell_session(replica, node, StateInput::Applied { ticket, refused });
        self.drop_ended_pods(node);
    }

    /// When the sink would have what comes now, with the life and the number of the session.
    pub(crate) fn sink_turn(
        &mut self,
        replica: usize,
        node: u32,
        latest: u64,
    ) -> Option<(u32, u32, u64)> {
        let now = self.now;
        let one = &mut self.replicas[replica];
        let at = one.rng.between(now + 1, latest);
        let session = one.sessions[node as usize].as_mut()?;
        session.sunk_at = session.sunk_at.max(at);
        Some((one.life, session.serial, session.sunk_at))
    }

    pub(crate) fn records_sunk(&mut self, replica: usize, node: u32, serial: u32, batch: &Batch) {
        let shard = usize::from(self.records[node as usize].shard);
        let one = &self.replicas[replica];
        let Some(epoch) = one.owned[shard] else {
            return;
        };
        let session = one.sessions[node as usize].as_ref();
        if session.is_none_or(|session| session.serial != serial) {
            return;
        }
        if self.records[node as usize].epoch > epoch {
            self.stats.fenced += 1;
            self.drop_shard(replica, shard);
            return;
        }
        let fails = self.is_faulty() && self.rng.chance(self.scenario.faults.sink_failure);
        let ticket = batch.ticket;
        let input = if !fails && self.commit(replica, node, batch) {
            CloudRecordsInput::Durable { ticket }
        } else {
            self.stats.sink_failures += 1;
            CloudRecordsInput::Failed { ticket }
        };
        self.tell_session(replica, node, input);
    }

    /// The desired set of a node has changed: every replica that is awake sees it.
    pub(crate) fn tell_desired(&mut self, node: u32, key: &Key) {
        for replica in 0..self.replicas.len() {
            let one = &mut self.replicas[replica];
            if one.paused {
                one.missed.insert((node, key.clone()));
            } else {
                self.show_desired(replica, node, key);
            }
        }
    }

    fn show_desired(&mut self, replica: usize, node: u32, key: &Key) {
        let key = key.clone();
        let now = self.now;
        if key.kind() == Kind::NodePolicy
            && let Some(session) = &mut self.replicas[replica].sessions[node as usize]
        {
            session
                .line
                .limit(now, self.records[node as usize].limits_down());
        }
        let input = match self.records[node as usize].desired.get(&key) {
            Some(payload) => StateInput::Put {
                payload: Arc::clone(payload),
                key,
            },
            None => StateInput::Delete { key },
        };
        self.tell_session(replica, node, input);
    }

    /// A node is refused from now on, as `Sessions::end` does it.
    pub(crate) fn end_sessions(&mut self, node: u32) {
        let shard = usize::from(self.records[node as usize].shard);
        for replica in 0..self.replicas.len() {
            let one = &mut self.replicas[replica];
            let session = one.sessions[node as usize].take();
            let session = session.and_then(|session| session.cloud.session());
            if let (Some(session), Some(epoch)) = (session, one.owned[shard]) {
                self.publish_down(node, epoch, Frame::Reset { session, epoch }.encode());
            }
        }
    }

    /// The session of the replica that owns the node's shard.
    pub(crate) fn owner_session(&self, node: u32) -> Option<&Session> {
        let shard = &self.shards[usize::from(self.records[node as usize].shard)];
        self.replicas[shard.owner?].sessions[node as usize].as_deref()
    }
}
