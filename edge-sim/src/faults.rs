//! When and where faults happen: by the rates of the scenario, and by its steps.

use edge_proto::frame::{Frame, SessionId, Set};
use edge_proto::hash::Hash16;

use crate::board::{Board, Conn, Store};
use crate::event::{Event, Topic};
use crate::rng::PerHour;
use crate::scenario::{Act, Step};
use crate::world::World;

/// Pause after the faults in which a power cut or a clone of the scenario ends, milliseconds.
const MOMENT_MS: u64 = 3_000;

/// A kind of fault or change that happens by chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    PartitionStation,
    PartitionProvince,
    BrokerRestart,
    ReplicaLoss,
    ReplicaPause,
    PowerCut,
    AgentCrash,
    Stall,
    StoreWipe,
    ClockJump,
    ReplicaClockJump,
    Attack,
    ContainerCrash,
    Revoke,
    CreatePod,
    UpdatePod,
    DeletePod,
    ChangeConfig,
    ChangePolicy,
    BeginCall,
    AppendRecord,
}

const KINDS: [Kind; 21] = [
    Kind::PartitionStation,
    Kind::PartitionProvince,
    Kind::BrokerRestart,
    Kind::ReplicaLoss,
    Kind::ReplicaPause,
    Kind::PowerCut,
    Kind::AgentCrash,
    Kind::Stall,
    Kind::StoreWipe,
    Kind::ClockJump,
    Kind::ReplicaClockJump,
    Kind::Attack,
    Kind::ContainerCrash,
    Kind::Revoke,
    Kind::CreatePod,
    Kind::UpdatePod,
    Kind::DeletePod,
    Kind::ChangeConfig,
    Kind::ChangePolicy,
    Kind::BeginCall,
    Kind::AppendRecord,
];

impl World {
    /// Plans the first fault of each kind, and the steps.
    pub(crate) fn plan_faults(&mut self) {
        for kind in KINDS {
            self.plan_fault(kind);
        }
        for index in 0..self.scenario.step.len() {
            let at = self.scenario.step[index].at_s * 1000;
            self.queue.push(at, Event::Step(index));
        }
    }

    fn plan_fault(&mut self, kind: Kind) {
        let (rate, count) = self.rate(kind);
        if let Some(wait) = rate.wait(count, &mut self.rng) {
            self.plan(wait, Event::Fault(kind));
        }
    }

    /// Rate of each, and number of affected parts.
    fn rate(&self, kind: Kind) -> (PerHour, usize) {
        let faults = &self.scenario.faults;
        let workload = &self.scenario.workload;
        let nodes = self.stored_nodes.len();
        let replicas = self.replicas.len().max(self.scenario.cloud.replicas);
        match kind {
            Kind::PartitionStation => (faults.partition_station, self.station_cut.len()),
            Kind::PartitionProvince => (faults.partition_province, self.province_cut.len()),
            Kind::BrokerRestart => (faults.broker_restart, 1),
            Kind::ReplicaLoss => (faults.replica_loss, replicas),
            Kind::ReplicaPause => (faults.replica_pause, replicas),
            Kind::PowerCut => (faults.power_cut, nodes),
            Kind::AgentCrash => (faults.agent_crash, nodes),
            Kind::Stall => (faults.stall, nodes),
            Kind::StoreWipe => (faults.store_wipe, nodes),
            Kind::ClockJump => (faults.clock_jump, nodes),
            Kind::ReplicaClockJump => (faults.replica_clock_jump, replicas),
            Kind::Attack => {
                let count = self.boards.iter().filter(|board| board.compromised).count();
                (faults.attack, count)
            }
            Kind::ContainerCrash => (faults.container_crash, nodes),
            Kind::Revoke => (faults.revoke, nodes),
            Kind::CreatePod => (workload.create, nodes),
            Kind::UpdatePod => (workload.update, nodes),
            Kind::DeletePod => (workload.delete, nodes),
            Kind::ChangeConfig => (workload.config, nodes),
            Kind::ChangePolicy => (workload.policy, nodes),
            Kind::BeginCall => (workload.call, nodes),
            Kind::AppendRecord => (workload.record.unwrap_or_default(), nodes),
        }
    }

    /// End of a fault that begins now: all faults end with the fault phase.
    fn span(&mut self, max_s: u64) -> u64 {
        let left = self.faults_until.saturating_sub(self.now);
        self.rng.between(1, (max_s * 1000).max(1)).min(left.max(1))
    }

    fn jump_s(&mut self) -> i64 {
        let max = self.scenario.faults.clock_jump_s;
        let by = i64::try_from(self.rng.below(2 * max + 1)).unwrap_or(0);
        by - i64::try_from(max).unwrap_or(0)
    }

    pub(crate) fn fault(&mut self, kind: Kind) {
        if !self.is_faulty() {
            return;
        }
        let faults = self.scenario.faults.clone();
        let board = self.rng.index(self.boards.len());
        let node = self.rng.index(self.stored_nodes.len()) as u32;
        let replica = self.rng.index(self.replicas.len());
        match kind {
            Kind::PartitionStation => {
                let station = self.rng.index(self.station_cut.len());
                let ms = self.span(faults.partition_s);
                self.cut_station(station, ms);
            }
            Kind::PartitionProvince => {
                let province = self.rng.index(self.province_cut.len());
                let ms = self.span(faults.partition_s);
                self.cut_province(province, ms);
            }
            Kind::BrokerRestart => {
                let ms = self.span(faults.broker_down_s);
                self.broker_restarts(ms);
            }
            Kind::ReplicaLoss => {
                let ms = self.span(faults.replica_down_s);
                self.replica_dies(replica, ms);
            }
            Kind::ReplicaPause => {
                let ms = self.span(faults.replica_pause_s);
                self.replica_pauses(replica, ms);
            }
            Kind::PowerCut => {
                let ms = self.span(faults.power_off_s);
                self.cut_power(board, ms);
            }
            Kind::AgentCrash => self.kill_agent(board),
            Kind::Stall => self.boards[board].asleep_until = self.now + self.span(faults.stall_s),
            Kind::StoreWipe => self.wipe_store(board),
            Kind::ClockJump => self.boards[board].ahead_s += self.jump_s(),
            Kind::ReplicaClockJump => self.replicas[replica].ahead_s += self.jump_s(),
            Kind::Attack => self.attack(),
            Kind::ContainerCrash => {
                let one = &mut self.boards[board];
                let index = one.rng.index(one.running.len());
                if let Some(pid) = one.running.get(index).map(|run| run.pid) {
                    let code = one.rng.index(3) as i32;
                    self.container_exits(board, pid, code);
                }
            }
            Kind::Revoke => self.revoke(node),
            Kind::CreatePod => self.create_pod(node),
            Kind::UpdatePod => self.update_pod(node),
            Kind::DeletePod => self.delete_pod(node),
            Kind::ChangeConfig => self.change_config(node),
            Kind::ChangePolicy => self.change_policy(node),
            Kind::BeginCall => self.begin_call(node),
            Kind::AppendRecord => self.append_record(node as usize),
        }
        self.plan_fault(kind);
    }

    fn cut_station(&mut self, station: usize, ms: u64) {
        self.stats.partitions += 1;
        let until = self.now + ms;
        let cut = &mut self.station_cut[station];
        *cut = until.max(*cut);
        for board in 0..self.boards.len() {
            if self.station(self.boards[board].node) == station {
                self.cut_begins(board);
            }
        }
    }

    fn cut_province(&mut self, province: usize, ms: u64) {
        self.stats.partitions += 1;
        let until = self.now + ms;
        let cut = &mut self.province_cut[province];
        *cut = until.max(*cut);
        for board in 0..self.boards.len() {
            if self.province(self.boards[board].node) == province {
                self.cut_begins(board);
            }
        }
    }

    fn wipe_store(&mut self, board: usize) {
        if self.boards[board].powered && !self.boards[board].retired {
            self.cut_power(board, MOMENT_MS);
            self.boards[board].store = Store::default();
            let node = self.boards[board].node as usize;
            self.stored_nodes[node].ledger.medium_lost();
            self.stats.wipes += 1;
        }
    }

    pub(crate) fn step(&mut self, index: usize) {
        let step = self.scenario.step[index].clone();
        let for_ms = step.for_s * 1000;
        match step.act {
            Act::BrokerRestart => self.broker_restarts(for_ms),
            Act::ReplicaLoss => self.replica_dies(step.replica, for_ms),
            Act::ReplicaPause => self.replica_pauses(step.replica, for_ms),
            Act::ReplicaClock => self.replicas[step.replica].ahead_s += step.by_s,
            Act::Partition => {
                let all = self.province_cut.len();
                let count = if step.provinces == 0 {
                    all
                } else {
                    all.min(step.provinces as usize)
                };
                for province in 0..count {
                    self.cut_province(province, for_ms);
                }
            }
            Act::PowerOff => {
                for node in self.chosen(&step) {
                    // Boards take differently long to start.
                    let ms = for_ms + self.rng.below(self.scenario.boot_spread_s * 1000 + 1);
                    self.cut_power(node as usize, ms);
                }
            }
            Act::StoreWipe => {
                for node in self.chosen(&step) {
                    self.wipe_store(node as usize);
                }
            }
            Act::RollOut => {
                for node in self.chosen(&step) {
                    let ms = self.rng.below(step.over_s * 1000 + 1);
                    self.plan(ms, Event::RollOut(node));
                }
            }
            Act::Revoke => {
                for node in self.chosen(&step) {
                    self.revoke(node);
                }
            }
            Act::Clock => {
                for node in self.chosen(&step) {
                    self.boards[node as usize].ahead_s += step.by_s;
                }
            }
            Act::Clone => {
                for node in self.chosen(&step) {
                    self.add_twin(node, for_ms);
                }
            }
        }
    }

    /// The nodes of a step.
    fn chosen(&mut self, step: &Step) -> Vec<u32> {
        let mut chosen = Vec::new();
        for node in 0..self.stored_nodes.len() as u32 {
            let there = step.provinces == 0 || self.province(node) < step.provinces as usize;
            if there && self.rng.chance(step.share) {
                chosen.push(node);
            }
        }
        chosen
    }

    /// A second board with the identity and a copy of the store.
    fn add_twin(&mut self, node: u32, for_ms: u64) {
        let board = self.boards.len() as u32;
        let mut twin = Board::new(node, self.rng.draw());
        twin.store = self.boards[node as usize].store.clone();
        twin.identity = self.boards[node as usize].identity;
        twin.joined = self.boards[node as usize].joined;
        twin.boot_id = self.rng.draw();
        self.boards.push(twin);
        self.stats.twins += 1;
        self.plan(0, Event::Start(board, 0));
        self.plan(for_ms, Event::TwinOff(board));
    }

    pub(crate) fn twin_off(&mut self, board: usize) {
        self.cut_power(board, 0);
        self.boards[board].retired = true;
    }

    /// A compromised node sends something.
    fn attack(&mut self) {
        let nodes = self.boards.iter().enumerate();
        let bad: Vec<usize> = nodes
            .filter(|(_, one)| one.compromised)
            .map(|(at, _)| at)
            .collect();
        let index = self.rng.index(bad.len());
        let Some(board) = bad.get(index).copied() else {
            return;
        };
        if !matches!(self.boards[board].conn, Conn::Up(_)) {
            return;
        }
        self.stats.attacks += 1;
        let mut node = self.boards[board].node;
        if self.rng.below(3) == 0 {
            node = self.rng.index(self.stored_nodes.len()) as u32;
        }
        let mut shard = self.stored_nodes[node as usize].shard;
        if self.rng.below(10) == 0 {
            shard = self.rng.below(256) as u8;
        }
        let bytes = self.hostile_frame(board);
        self.publish_up(board, Topic { shard, node }, bytes);
    }

    fn hostile_frame(&mut self, board: usize) -> Vec<u8> {
        let seen = self.boards[board].seen.clone();
        let index = self.rng.index(seen.len());
        let old = seen.get(index).cloned().unwrap_or_default();
        let session = Frame::decode(&old).ok().and_then(|frame| frame.session());
        let session = session.unwrap_or(SessionId {
            n: self.rng.draw().to_le_bytes(),
            c: self.rng.draw().to_le_bytes(),
        });
        let root = Hash16([self.rng.draw() as u8; 16]);
        let set = if self.rng.below(2) == 0 {
            Set::Desired
        } else {
            Set::Reported
        };
        match self.rng.below(8) {
            0 => (0..self.rng.index(200))
                .map(|_| self.rng.draw() as u8)
                .collect(),
            1 => {
                let mut altered = old;
                let at = self.rng.index(altered.len());
                if let Some(byte) = altered.get_mut(at) {
                    *byte ^= 1 << self.rng.below(8);
                }
                altered
            }
            2 => Frame::Hello {
                n: session.n,
                wire: edge_proto::limits::WIRE_VERSION,
                kinds: u32::MAX,
                epoch: u64::MAX >> self.rng.below(64),
                desired_root: root,
                reported_root: root,
                agent: String::new(),
            }
            .encode(),
            3 => Frame::Have {
                session,
                set,
                root,
                order: u64::MAX >> self.rng.below(64),
            }
            .encode(),
            4 => {
                let epoch = self.rng.draw();
                Frame::Reset { session, epoch }.encode()
            }
            5 => Frame::Gone { n: session.n }.encode(),
            6 => Frame::Inventory {
                session,
                set,
                root,
                page: self.rng.draw() as u8,
                last: self.rng.below(2) == 0,
                order: u64::MAX >> self.rng.below(64),
                entries: Vec::new(),
            }
            .encode(),
            _ => old,
        }
    }
}
