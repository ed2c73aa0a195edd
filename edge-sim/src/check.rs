//! The invariants. Most are checked where they could be violated, for the node that was changed;
//! the others once a virtual second, for a part of the fleet.

use std::collections::BTreeSet;

use edge_proto::frame::Frame;
use edge_proto::hash::Hash16;
use edge_proto::key::Uid;
use edge_proto::lanes::Lane;
use edge_proto::session::{BlobOutput, LinkOutput, NodeOutput, StateOutput};
use edge_proto::set::root;

use crate::board::{Board, Conn, Machine};
use crate::cloud::Session;
use crate::controller::StoredNode;
use crate::event::Event;
use crate::world::World;

/// The whole fleet is checked within so many seconds.
const ROUND_S: usize = 30;
/// Time after which frames in flight at a node's revocation have arrived, milliseconds.
const UNDER_WAY_MS: u64 = 120_000;
/// Events that may be planned for each node, besides those of the fleet.
const PLANNED_PER_NODE: usize = 600;

/// A violated invariant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Virtual time, milliseconds.
    pub at_ms: u64,
    /// Number of the node that violates it.
    pub node: u32,
    /// What is wrong.
    pub what: String,
}

impl World {
    /// Keeps the first violation; the run ends with it.
    pub(crate) fn fail(&mut self, node: u32, what: String) {
        let at_ms = self.now;
        self.violation
            .get_or_insert(Violation { at_ms, node, what });
    }

    /// A queue or set is within its cap.
    pub(crate) fn check_cap(&mut self, board: usize, what: &str, count: usize, cap: usize) {
        if count > cap {
            let node = self.boards[board].node;
            self.fail(node, format!("{what}: {count} of at most {cap}"));
        }
    }

    /// The epoch that a node has accepted never decreases, except with a lost store.
    pub(crate) fn check_epoch(&mut self, board: usize) {
        let one = &mut self.boards[board];
        let node = one.node;
        let Some(machine) = &mut one.machine else {
            return;
        };
        let (before, now) = (machine.epoch, machine.session.epoch());
        machine.epoch = now;
        let stored = one.store.epoch;
        if now < before || now < stored {
            self.fail(
                node,
                format!("accepted epoch {now} after {before}, stored {stored}"),
            );
        }
    }

    /// `order`: epoch of the frame that was just handled, and the epoch accepted before it.
    pub(crate) fn check_order(
        &mut self,
        board: usize,
        order: Option<(u64, u64)>,
        output: &NodeOutput,
    ) {
        let Some((epoch, accepted)) = order else {
            return;
        };
        let obeys = match output {
            NodeOutput::State(StateOutput::Apply { changes, .. }) => !changes.is_empty(),
            NodeOutput::Link(LinkOutput::Live { .. })
            | NodeOutput::Blob(BlobOutput::Wanted { .. }) => true,
            _ => false,
        };
        if obeys && epoch < accepted {
            let node = self.boards[board].node;
            self.fail(
                node,
                format!("obeyed a frame of epoch {epoch} after accepting {accepted}"),
            );
        }
    }

    /// One write at a time, and never under a lower epoch than the stored one.
    pub(crate) fn check_apply(&mut self, board: usize, epoch: u64) {
        let one = &self.boards[board];
        let (node, stored) = (one.node, one.store.epoch);
        let waiting = usize::from(one.applying.is_some());
        if epoch < stored {
            self.fail(
                node,
                format!("applies under epoch {epoch}, stored is {stored}"),
            );
        }
        self.check_cap(board, "writes of a board", waiting + 1, 1);
    }

    /// A deleted pod never starts again, and no container runs twice.
    pub(crate) fn check_start(&mut self, board: usize, uid: Uid, container: &str) {
        let one = &self.boards[board];
        let node = one.node;
        if one.store.ended.contains(&uid) {
            self.fail(node, format!("starts {container} of the deleted pod {uid}"));
            return;
        }
        let runs = one.running.iter();
        if runs
            .into_iter()
            .any(|run| run.uid == uid && run.name == container)
        {
            self.fail(
                node,
                format!("starts {container} of pod {uid} a second time"),
            );
        }
    }

    /// The broker admitted a node.
    pub(crate) fn check_admitted(&mut self, node: u32) {
        if self.stored_nodes[node as usize].revoked.is_some() {
            self.fail(node, "a revoked node was let in".to_owned());
        }
    }

    /// The cloud sends a revoked node only the end of its session.
    pub(crate) fn check_served(&mut self, node: u32, frame: &[u8]) {
        let revoked = self.stored_nodes[node as usize].revoked;
        if revoked.is_some_and(|at| self.now > at + UNDER_WAY_MS)
            && !matches!(Frame::decode(frame), Ok(Frame::Reset { .. }))
        {
            self.fail(node, "a revoked node was served".to_owned());
        }
    }

    /// No client can send on behalf of another node.
    pub(crate) fn check_sender(&mut self, node: u32, from: u32) {
        if node != from {
            self.fail(
                node,
                format!("a frame of node {from} was taken for one of its own"),
            );
        }
    }

    /// Whether a node is exempt from the invariants.
    pub(crate) fn is_excused(&self, node: u32) -> bool {
        self.stored_nodes[node as usize].revoked.is_some() || self.boards[node as usize].compromised
    }

    /// After a change of a node: whether both its ends report that the sets are equal.
    pub(crate) fn refresh(&mut self, node: u32) {
        let session = self.owner_session(node);
        let converged = self.is_excused(node)
            || (self.boards[node as usize].in_sync()
                && session.is_some_and(|session| session.in_sync));
        let stored_node = &mut self.stored_nodes[node as usize];
        match (stored_node.converged, converged) {
            (false, true) => self.series.unconverged -= 1,
            (true, false) => self.series.unconverged += 1,
            _ => {}
        }
        stored_node.converged = converged;
    }

    /// No frame waits longer than the share of its lane allows.
    pub(crate) fn check_lane(&mut self, node: u32, lane: Lane, waited_ms: u64, wait_ms_max: u64) {
        if waited_ms > wait_ms_max {
            self.fail(
                node,
                format!("a frame of lane {lane:?} waits {waited_ms} of {wait_ms_max} ms"),
            );
        }
    }

    /// The same for frames that still wait.
    fn check_lines(&mut self, board: usize) {
        let kbit = self.scenario.link.bandwidth_kbit;
        let (now, one) = (self.now, &self.boards[board]);
        let (node, asleep_until) = (one.node, one.asleep_until);
        let mut waits = Vec::new();
        let up = one.machine.as_ref().map(|machine| &machine.line);
        let down = self.owner_session(node).map(|session| &session.line);
        for line in up.into_iter().chain(down) {
            for (lane, since) in line.oldest() {
                let waited_ms = now.saturating_sub(since.max(asleep_until));
                waits.push((lane, waited_ms, line.wait_ms_max(lane, kbit)));
            }
        }
        for (lane, waited_ms, wait_ms_max) in waits {
            self.check_lane(node, lane, waited_ms, wait_ms_max);
        }
    }

    pub(crate) fn second(&mut self) {
        self.series.sample(self.now);
        self.set_clocks();
        self.look_over();
        let planned = self.queue.len();
        let cap = 10_000 + PLANNED_PER_NODE * self.boards.len();
        self.check_cap(0, "planned events", planned, cap);
        if !self.is_faulty() {
            let settled_s = (self.now - self.faults_until) / 1000;
            if self.series.unconverged == 0 && settled_s.is_multiple_of(10) && self.has_settled() {
                self.converged_at = Some(self.now);
                return;
            }
            if settled_s >= self.scenario.settle_seconds {
                let found = (0..self.stored_nodes.len() as u32).find_map(|node| {
                    let why = self.unsettled(node)?;
                    Some((node, why))
                });
                let (node, why) = found.unwrap_or((0, "the fleet is not quiet".to_owned()));
                let count = self.series.unconverged;
                self.fail(node, format!("did not converge: {why}; {count} nodes so"));
            }
        }
        self.plan(1000, Event::Second);
    }

    /// The wrong clocks of the replicas are corrected when the faults end.
    fn set_clocks(&mut self) {
        if !self.is_faulty() && self.replicas.iter().any(|one| one.ahead_s != 0) {
            for one in &mut self.replicas {
                one.ahead_s = 0;
            }
            self.disturbed_at = self.now;
        }
    }

    /// Checks a part of the fleet: caps, and whether a node starves.
    fn look_over(&mut self) {
        let count = self.boards.len().div_ceil(ROUND_S);
        for _ in 0..count {
            let board = self.cursor % self.boards.len();
            self.cursor += 1;
            let one = &self.boards[board];
            let node = one.node;
            let starve_ms = self.scenario.starve_s * 1000;
            let since = one
                .waiting_since
                .max(self.disturbed_at)
                .max(self.cut_until(node));
            let could = one.machine.is_some() && self.broker.up && !self.is_excused(node);
            let waited = self.now.saturating_sub(since);
            if could && !one.is_live() && waited > starve_ms {
                let way = match one.conn {
                    Conn::None => "not connected",
                    Conn::Trying(_) => "connecting",
                    Conn::Up(_) => "connected",
                };
                self.fail(node, format!("starves: {way}, no session for {waited} ms"));
            }
            self.check_certificate(board);
            self.check_lines(board);
            let blobs = self.boards[board].store.blobs.len();
            self.check_cap(board, "large objects half fetched", blobs, 64);
        }
    }

    fn has_settled(&self) -> bool {
        (0..self.stored_nodes.len() as u32).all(|node| self.unsettled(node).is_none())
    }

    /// Why a node is not in its final state, from everything that both ends and the stores hold.
    fn unsettled(&self, node: u32) -> Option<String> {
        let board = &self.boards[node as usize];
        let stored_node = &self.stored_nodes[node as usize];
        if self.is_excused(node) {
            return None;
        }
        let Some(machine) = &board.machine else {
            return Some("no agent".to_owned());
        };
        let Some(session) = self.owner_session(node) else {
            return Some("no replica has its shard".to_owned());
        };
        if !machine.session.is_live() || !session.cloud.is_live() {
            let state = (
                board.conn,
                machine.session.is_live(),
                session.cloud.is_live(),
            );
            return Some(format!("no live session at both ends: {state:?}"));
        }
        if let Some(what) = roots_unsettled(board, machine, session, stored_node) {
            return Some(what.to_owned());
        }
        if let Some(why) = containers_unsettled(board, machine, stored_node) {
            return Some(why);
        }
        let readers = session.calls.len();
        if readers > 0 {
            return Some(format!("{readers} calls go on at the cloud"));
        }
        let writers = machine.calls.len();
        if writers > 0 {
            return Some(format!(
                "{writers} calls go on at the node, and nobody reads"
            ));
        }
        if let Some(why) = self.certificate_unsettled(node) {
            return Some(why.to_owned());
        }
        let missing = stored_node.ledger.missing();
        if missing > 0 {
            return Some(format!(
                "{missing} acknowledged records are not at the sink"
            ));
        }
        (!stored_node.converged).then(|| "one end does not know that the sets are equal".to_owned())
    }
}

/// Which of the roots, at both ends and in the stores, is not the final one.
fn roots_unsettled(
    board: &Board,
    machine: &Machine,
    session: &Session,
    stored_node: &StoredNode,
) -> Option<&'static str> {
    let wanted: Vec<_> = stored_node
        .desired
        .iter()
        .map(|(key, bytes)| (key, Hash16::of(bytes)))
        .collect();
    let desired_root = root(wanted.iter().map(|(key, hash)| (*key, *hash)));
    let stored = root(board.store.objects.iter().map(|(key, one)| (key, one.hash)));
    let reported = root(
        stored_node
            .reported
            .iter()
            .map(|(key, bytes)| (key, Hash16::of(bytes))),
    );
    let roots = [
        (
            "desired at the replica",
            session.cloud.desired_root(),
            desired_root,
        ),
        (
            "desired at the node",
            machine.session.desired().root(),
            desired_root,
        ),
        ("desired on the node's medium", stored, desired_root),
        (
            "reported at the replica",
            session.cloud.reported().root(),
            machine.session.reported_root(),
        ),
        (
            "reported in the cloud's store",
            reported,
            machine.session.reported_root(),
        ),
    ];
    let mut roots = roots.into_iter();
    let (what, ..) = roots.find(|(_, is, shall)| is != shall)?;
    Some(what)
}

/// Whether exactly the desired containers run, with the desired spec.
fn containers_unsettled(
    board: &Board,
    machine: &Machine,
    stored_node: &StoredNode,
) -> Option<String> {
    let shall: BTreeSet<_> = stored_node
        .pods()
        .flat_map(|pod| {
            let names = pod.containers.into_iter().map(|container| container.name);
            let spec = |name: String| {
                let spec = machine.agent.spec_hash(&pod.uid, &name).unwrap_or_default();
                (pod.uid, name, spec)
            };
            names.map(spec).collect::<Vec<_>>()
        })
        .collect();
    let runs = board
        .running
        .iter()
        .map(|run| (run.uid, run.name.clone(), run.spec));
    let runs: BTreeSet<_> = runs.collect();
    let (uid, name, _) = shall.symmetric_difference(&runs).next()?;
    Some(format!(
        "container {name} of pod {uid} runs and shall not, or the reverse"
    ))
}
