//! The fleet in virtual time: one queue of events, the state that they change, and the loop.

use edge_proto::hash::sha256;

use crate::board::{Board, Direction, name_of};
use crate::broker::Broker;
use crate::check::Violation;
use crate::cloud::{Replica, Shard};
use crate::controller::StoredNode;
use crate::event::Event;
use crate::queue::Queue;
use crate::report::{Outcome, Series, Stats};
use crate::rng::Rng;
use crate::scenario::Scenario;

/// Shards of the fleet, a constant of the wire.
pub(crate) const SHARDS: usize = 256;
/// Wall-clock time of the start, seconds since 1970.
pub(crate) const START_UNIX_S: u64 = 1_800_000_000;

/// The whole simulated fleet, and its queue of events.
pub struct World {
    pub(crate) scenario: Scenario,
    pub(crate) now: u64,
    pub(crate) rng: Rng,
    pub(crate) queue: Queue<Event>,
    pub(crate) boards: Vec<Board>,
    /// By node: the cloud's durable store.
    pub(crate) stored_nodes: Vec<StoredNode>,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) shards: Vec<Shard>,
    pub(crate) broker: Broker,
    /// Until when each station and each province is cut off.
    pub(crate) station_cut: Vec<u64>,
    pub(crate) province_cut: Vec<u64>,
    /// Until when faults happen.
    pub(crate) faults_until: u64,
    /// When the last event happened that disconnects every node.
    pub(crate) disturbed_at: u64,
    pub(crate) stats: Stats,
    pub(crate) series: Series,
    pub(crate) violation: Option<Violation>,
    /// The next board to check, see `check`.
    pub(crate) cursor: usize,
    pub(crate) converged_at: Option<u64>,
    /// Certificates that were issued.
    pub(crate) serials: u64,
}

impl World {
    /// Before its first event.
    #[must_use]
    pub fn new(scenario: Scenario, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let nodes = scenario.nodes as usize;
        let stations = nodes.div_ceil(scenario.station_nodes as usize);
        let faults_until = scenario.seconds * 1000;
        let replicas = scenario.cloud.replicas;
        let mut world = Self {
            now: 0,
            queue: Queue::default(),
            boards: Vec::with_capacity(nodes),
            stored_nodes: Vec::with_capacity(nodes),
            replicas: Vec::new(),
            shards: vec![Shard::default(); SHARDS],
            broker: Broker::new(nodes),
            station_cut: vec![0; stations],
            province_cut: vec![0; scenario.provinces as usize],
            faults_until,
            disturbed_at: 0,
            stats: Stats::default(),
            series: Series::default(),
            violation: None,
            cursor: 0,
            converged_at: None,
            serials: 0,
            rng: Rng::new(rng.draw()),
            scenario,
        };
        for node in 0..world.scenario.nodes {
            let [shard, ..] = sha256(name_of(node).as_bytes()).0;
            world.shards[usize::from(shard)].nodes.push(node);
            let stored_node = StoredNode::new(&world.scenario, node, shard, &mut rng);
            world.stored_nodes.push(stored_node);
            let mut board = Board::new(node, rng.draw());
            if rng.chance(world.scenario.faults.slow) {
                board.slow = world.scenario.faults.slow_factor;
            }
            board.compromised = rng.chance(world.scenario.faults.compromised);
            let at = rng.below(world.scenario.boot_spread_s * 1000 + 1);
            world.queue.push(at, Event::Start(node, 0));
            world.boards.push(board);
            world.join(node);
        }
        world.series.unconverged = nodes;
        for replica in 0..replicas {
            world
                .replicas
                .push(Replica::new(&world.scenario, rng.draw()));
            let index = u8::try_from(replica).unwrap_or_default();
            world.queue.push(0, Event::Launch(index));
        }
        world.plan_faults();
        world.queue.push(1000, Event::Second);
        world
    }

    /// Runs until everything has converged after the faults, or an invariant is violated.
    #[must_use]
    pub fn run(mut self) -> Outcome {
        while self.violation.is_none()
            && self.converged_at.is_none()
            && let Some((at, event)) = self.queue.pop()
        {
            self.now = self.now.max(at);
            self.stats.events += 1;
            self.dispatch(event);
        }
        Outcome::new(self.now, self.stats, self.series, self.violation)
    }

    /// Whether faults still happen.
    pub(crate) const fn is_faulty(&self) -> bool {
        self.now < self.faults_until
    }

    /// Wall-clock time.
    pub(crate) const fn unix_s(&self) -> u64 {
        START_UNIX_S + self.now / 1000
    }

    pub(crate) fn plan(&mut self, after_ms: u64, event: Event) {
        self.queue.push(self.now + after_ms, event);
    }

    pub(crate) fn station(&self, node: u32) -> usize {
        (node / self.scenario.station_nodes) as usize
    }

    pub(crate) fn province(&self, node: u32) -> usize {
        self.station(node) * self.province_cut.len() / self.station_cut.len()
    }

    /// Until when a node is cut off; in the past if it is not.
    pub(crate) fn cut_until(&self, node: u32) -> u64 {
        self.station_cut[self.station(node)].max(self.province_cut[self.province(node)])
    }

    pub(crate) fn is_cut(&self, node: u32) -> bool {
        self.cut_until(node) > self.now
    }

    /// When a frame of `bytes` that is given to a link now arrives: never, once or twice.
    pub(crate) fn transmit(&mut self, board: usize, up: bool, bytes: usize) -> [Option<u64>; 2] {
        let faulty = self.is_faulty();
        let now = self.now;
        let link = &self.scenario.link;
        let faults = &self.scenario.faults;
        let Board {
            rng,
            up: up_line,
            down: down_line,
            ..
        } = &mut self.boards[board];
        let direction: &mut Direction = if up { up_line } else { down_line };
        let bits = bytes as u64 * 8;
        direction.free_us = direction.free_us.max(now * 1000) + bits * 1000 / link.bandwidth_kbit;
        let base = direction.free_us.div_ceil(1000) + link.delay_ms + rng.below(link.jitter_ms + 1);
        if faulty && rng.chance(faults.loss) {
            return [None, None];
        }
        let first = if faulty && rng.chance(faults.reordering) {
            base + rng.below(faults.reorder_ms + 1)
        } else {
            direction.last = direction.last.max(base);
            direction.last
        };
        let twice = faulty && rng.chance(faults.duplication);
        let second = base + rng.below(faults.reorder_ms + 1);
        [Some(first), twice.then_some(second)]
    }

    fn dispatch(&mut self, event: Event) {
        let Some(event) = self
            .passes_board(event)
            .and_then(|event| self.passes_replica(event))
        else {
            return;
        };
        match event {
            Event::Wake(board) => self.board_wakes(board as usize),
            Event::Enrol(enrolment) => self.enrol(enrolment),
            Event::Enrolled(enrolment, answer) => self.enrolled(enrolment, answer),
            Event::Answer(board, boot, answer) => self.board_answer(board as usize, boot, *answer),
            Event::Exit(board, pid, code) => self.container_exits(board as usize, pid, code),
            Event::Start(board, boot) => self.board_starts(board as usize, boot),
            Event::Dial { board, conn } => self.dial(board as usize, conn),
            Event::Dialled { board, conn, open } => self.dialled(board as usize, conn, open),
            Event::Broken {
                board,
                conn,
                silence,
            } => self.connection_broken(board as usize, conn, silence),
            Event::Expire { node, conn } => self.connection_expires(node, conn),
            Event::Up {
                board,
                conn,
                packet,
            } => self.frame_at_broker(board as usize, conn, *packet),
            Event::Down {
                board,
                conn,
                epoch,
                bytes,
            } => self.frame_at_board(board as usize, conn, epoch, bytes),
            Event::ToCloud {
                replica, packet, ..
            } => self.frame_at_replica(usize::from(replica), *packet),
            Event::Session { replica, node, .. } => self.session_wakes(usize::from(replica), node),
            Event::Stored {
                replica,
                node,
                ticket,
                changes,
                ..
            } => self.report_stored(usize::from(replica), node, ticket, &changes),
            Event::Sunk {
                replica,
                node,
                serial,
                batch,
                ..
            } => self.records_sunk(usize::from(replica), node, serial, &batch),
            Event::CallTimeout {
                replica,
                node,
                call,
                ..
            } => self.call_timeout(usize::from(replica), node, call),
            Event::CallRead {
                replica,
                node,
                call,
                taken,
                ..
            } => self.call_read(usize::from(replica), node, call, taken),
            Event::Lease { replica, life } => self.look_after_leases(usize::from(replica), life),
            Event::Probe { replica, .. } => self.probe_next(usize::from(replica)),
            Event::Watch { replica, life } => self.watch_silence(usize::from(replica), life),
            Event::Connect { replica, life } => self.replica_connects(usize::from(replica), life),
            Event::Launch(replica) => self.launch(usize::from(replica)),
            Event::Resume(replica) => self.resume(usize::from(replica)),
            Event::BrokerUp => self.broker_up(),
            Event::Fault(kind) => self.fault(kind),
            Event::Step(index) => self.step(index),
            Event::RollOut(node) => self.update_pod(node),
            Event::TwinOff(board) => self.twin_off(board as usize),
            Event::Second => self.second(),
        }
    }
}
