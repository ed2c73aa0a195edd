//! Passes frames to the session of a node at a replica, and performs its outputs.

use edge_proto::frame::Frame;
use edge_proto::rate_limiter::Reservation;
use edge_proto::session::{
    BlobInput, BlobOutput, CallOutput, CloudInput, CloudOutput, LinkInput, LinkOutput, StateOutput,
};

use super::{FRAME_MS, REQUESTS_MAX, index};
use crate::event::{Event, Packet};
use crate::world::World;

/// Highest number of outputs of one input.
const OUTPUTS_MAX: usize = 400;

impl World {
    /// When a frame that arrives now is handled, in milliseconds; `None` when too many wait.
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
        let stored_node = &self.stored_nodes[node as usize];
        // Frames of an unknown node are ignored, and a topic must have the shard of its name.
        if stored_node.revoked.is_some() || stored_node.shard != packet.topic.shard {
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
            self.session_input(replica, node, LinkInput::Frame(&packet.bytes));
        }
    }

    /// As `Sessions::must_wait`: a `Hello` that opens a session may have to wait for admission.
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
        let wait_ms = one.openings.request(now, &mut session.reservation);
        let epoch = one.owned[usize::from(packet.topic.shard)];
        let Some(epoch) = epoch.filter(|_| wait_ms > 0) else {
            return false;
        };
        self.stats.retries_asked += 1;
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
            self.session_input(replica, node, LinkInput::Tick);
        }
    }

    /// One input to a session, and all its consequences.
    pub(crate) fn session_input<'a>(
        &mut self,
        replica: usize,
        node: u32,
        input: impl Into<CloudInput<'a>>,
    ) {
        let now = self.now;
        let shard = usize::from(self.stored_nodes[node as usize].shard);
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
        let Some(session) = &mut self.replicas[replica].sessions[node as usize] else {
            return;
        };
        match output {
            CloudOutput::Link(output) => self.perform_link(replica, node, epoch, output),
            CloudOutput::State(output) => self.perform_state(replica, node, output),
            CloudOutput::Records(output) => self.sink_records(replica, node, output.into()),
            CloudOutput::Blob(BlobOutput::Wanted { sha256, .. }) => {
                let input = BlobInput::Have { sha256, bytes: 0 };
                session.cloud.handle(self.now, input);
            }
            CloudOutput::Call(CallOutput::Data { id, bytes, .. }) => {
                self.call_data(replica, node, id, &bytes);
            }
            CloudOutput::CallResult(result) => self.call_result(replica, node, &result),
            CloudOutput::Call(CallOutput::Cancelled { id }) => {
                let broken = session.calls.remove(&id).is_some();
                self.stats.calls_broken += u64::from(broken);
            }
            _ => {}
        }
    }

    fn perform_link(&mut self, replica: usize, node: u32, epoch: u64, output: LinkOutput) {
        let one = &mut self.replicas[replica];
        let linked = one.linked;
        let Some(session) = &mut one.sessions[node as usize] else {
            return;
        };
        match output {
            LinkOutput::Send(frame) if linked && session.attached => {
                if !session.line.push(self.now, frame) {
                    self.stats.dropped += 1;
                }
                self.pump_down(replica, node, epoch);
            }
            LinkOutput::Live { .. } => {
                session.live = true;
                session.reservation = Reservation::default();
            }
            LinkOutput::Down => {
                session.live = false;
                session.in_sync = false;
            }
            LinkOutput::PeerProblem(_) => self.stats.problems_at_cloud += 1,
            _ => {}
        }
    }

    fn perform_state(&mut self, replica: usize, node: u32, output: StateOutput) {
        let one = &mut self.replicas[replica];
        let life = one.life;
        let Some(session) = &mut one.sessions[node as usize] else {
            return;
        };
        match output {
            StateOutput::Apply {
                ticket, changes, ..
            } => {
                let busy = session.storing.replace(ticket).is_some();
                let ticket = (session.serial, ticket);
                let ms = one.rng.between(1, self.scenario.cloud.store_ms);
                let (replica, changes) = (index(replica), Box::new(changes));
                let stored = Event::Stored {
                    replica,
                    life,
                    node,
                    ticket,
                    changes,
                };
                self.plan(ms, stored);
                let writes = 1 + usize::from(busy);
                self.check_cap(node as usize, "writes of one session", writes, 1);
            }
            StateOutput::InSync { desired, reported } => session.in_sync = desired && reported,
            StateOutput::PutRefused { key, reason } => {
                let what = format!("a desired object was refused: {key} {reason}");
                self.fail(node, what);
            }
        }
    }

    /// A node is refused from now on, as by `Sessions::end`.
    pub(crate) fn end_sessions(&mut self, node: u32) {
        let shard = usize::from(self.stored_nodes[node as usize].shard);
        for replica in 0..self.replicas.len() {
            let one = &mut self.replicas[replica];
            let session = one.sessions[node as usize].take();
            let session = session.and_then(|session| session.cloud.session());
            if let (Some(session), Some(epoch)) = (session, one.owned[shard]) {
                self.publish_down(node, epoch, Frame::Reset { session, epoch }.encode());
            }
        }
    }
}
