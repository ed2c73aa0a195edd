//! Shared by the replicas: the store of desired and reported objects, which refuses an older epoch, and
//! the sink of records.

use std::sync::Arc;

use edge_proto::key::{Key, Kind};
use edge_proto::session::{CloudRecordsInput, StateInput};

use crate::event::Changes;
use crate::outbox::Batch;
use crate::world::World;

impl World {
    /// A write of a replica arrives at the store, which refuses an older epoch.
    pub(crate) fn report_stored(
        &mut self,
        replica: usize,
        node: u32,
        (serial, ticket): (u32, u32),
        changes: &Changes,
    ) {
        let shard = usize::from(self.stored_nodes[node as usize].shard);
        let Some(epoch) = self.replicas[replica].owned[shard] else {
            return;
        };
        let Some(session) = &mut self.replicas[replica].sessions[node as usize] else {
            return;
        };
        if session.serial != serial || session.storing.take_if(|at| *at == ticket).is_none() {
            return;
        }
        let stored_node = &mut self.stored_nodes[node as usize];
        if stored_node.epoch > epoch {
            self.stats.fenced += 1;
            self.drop_shard(replica, shard);
            return;
        }
        stored_node.epoch = epoch;
        self.take_report(node, changes);
        let refused = Vec::new();
        self.session_input(replica, node, StateInput::Applied { ticket, refused });
        self.drop_ended_pods(node);
    }

    /// When the sink would have stored what is given now, with the count of starts and the number of the
    /// session.
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
        let shard = usize::from(self.stored_nodes[node as usize].shard);
        let one = &self.replicas[replica];
        let Some(epoch) = one.owned[shard] else {
            return;
        };
        let session = one.sessions[node as usize].as_ref();
        if session.is_none_or(|session| session.serial != serial) {
            return;
        }
        if self.stored_nodes[node as usize].epoch > epoch {
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
        self.session_input(replica, node, input);
    }

    /// The desired set of a node has changed: every replica that is not paused sees it.
    pub(crate) fn desired_changed(&mut self, node: u32, key: &Key) {
        for replica in 0..self.replicas.len() {
            let one = &mut self.replicas[replica];
            if one.paused {
                one.missed.insert((node, key.clone()));
            } else {
                self.show_desired(replica, node, key);
            }
        }
    }

    pub(super) fn show_desired(&mut self, replica: usize, node: u32, key: &Key) {
        let key = key.clone();
        let now = self.now;
        if key.kind() == Kind::NodePolicy
            && let Some(session) = &mut self.replicas[replica].sessions[node as usize]
        {
            session
                .line
                .limit(now, self.stored_nodes[node as usize].limits_down());
        }
        let input = match self.stored_nodes[node as usize].desired.get(&key) {
            Some(payload) => StateInput::Put {
                payload: Arc::clone(payload),
                key,
            },
            None => StateInput::Delete { key },
        };
        self.session_input(replica, node, input);
    }
}
