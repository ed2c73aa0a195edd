//! Shards: which replica owns which, by leases in the store behind them.

use std::collections::BTreeMap;
use std::sync::Arc;

use edge_proto::hash::Hash16;
use edge_proto::rate_limiter::Reservation;
use edge_proto::session::{Cloud, CloudConfig, CloudInput, StateInput};

use super::{Session, index};
use crate::event::Event;
use crate::line::Line;
use crate::world::{SHARDS, World};

/// Shards that a replica with too many releases at once.
const GIVEN_AT_ONCE: usize = 16;

/// Lease of a shard.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shard {
    pub(crate) owner: Option<usize>,
    pub(crate) epoch: u64,
    renewed: u64,
    pub(crate) nodes: Vec<u32>,
}

impl World {
    pub(crate) fn look_after_leases(&mut self, replica: usize, life: u32) {
        let lease_ms = self.scenario.cloud.lease_s * 1000;
        let working = self
            .replicas
            .iter()
            .filter(|one| one.is_up && !one.paused)
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
        // The watch on the store continues, too.
        for (node, key) in std::mem::take(&mut self.replicas[replica].missed) {
            self.show_desired(replica, node, &key);
        }
        let replica = index(replica);
        self.plan(lease_ms / 3, Event::Lease { replica, life });
    }

    pub(super) fn drop_shard(&mut self, replica: usize, shard: usize) {
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
            if self.stored_nodes[node as usize].revoked.is_some() {
                continue;
            }
            // First it locks the old owner out of the store, then it reads.
            self.stored_nodes[node as usize].epoch = epoch;
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
        let stored_node = &self.stored_nodes[node as usize];
        let reported = stored_node.reported.iter();
        cloud.restore(reported.map(|(key, bytes)| (key.clone(), Hash16::of(bytes))));
        for (incarnation, class, next) in stored_node.ledger.streams() {
            cloud.restore_stream(incarnation, class, next);
        }
        cloud.handle(self.now, CloudInput::Clock { unix_s });
        for (key, payload) in &stored_node.desired {
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
            marks: stored_node.ledger.marks(),
            sunk_at: 0,
            heard: self.now,
            asked: 0,
            wake_at: u64::MAX,
        }
    }
}
